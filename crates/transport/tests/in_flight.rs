//! How many messages with descriptors are on their way: a bound that holds whatever the receiver does (A5, A7, A8).

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use common::raw::KINDS;
use common::{alone, memfd};
use memlane_transport::{Error, Fd, FdRef, Limits, Link, SocketKind};
use rustix::net::{RecvFlags, recv};

const BOUNDS: [usize; 4] = [1, 2, 7, 128];

fn limited(kind: SocketKind, bound: usize) -> (Link, Link) {
    let (left, right) = Link::pair_of(kind).unwrap();
    (left.with_limits(Limits::new().in_flight(bound)), right)
}

/// Sends until there is no room, and says how many left.
fn fill(link: &Link, message: impl Fn(usize) -> usize, file: &Fd) -> usize {
    let mut sent = 0;
    loop {
        match link.try_send(&("x".repeat(message(sent)), file)) {
            Ok(()) => sent += 1,
            Err(Error::WouldBlock) => return sent,
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// What has left and been received is exactly the bound, where the socket has room for it.
#[test]
fn a_receiver_that_never_reads() {
    let _alone = alone();
    let file = Fd::from(memfd());
    for kind in KINDS {
        for bound in BOUNDS {
            let (left, right) = limited(kind, bound);
            assert_eq!(fill(&left, |_| 1, &file), bound, "{kind:?}");
            // Time changes nothing, and it is told like any other lack of room.
            let error = left
                .send_timeout(&file, Duration::from_millis(30))
                .unwrap_err();
            assert!(matches!(error, Error::TimedOut), "{error:?}");
            // Messages without descriptors are not bounded by it.
            left.try_send(&("plain", 1_u8)).unwrap();
            // Counted: those in flight are what comes out.
            drop(left);
            let mut came = 0;
            while right.recv::<(String, Fd)>().is_ok() {
                came += 1;
            }
            assert_eq!(came, bound);
        }
    }
}

/// Messages of different sizes, plain ones between them, large bodies in memory, several packets: never more than the bound
/// are there, in the middle of reading, too, and all arrive.
#[test]
fn different_sizes() {
    const MESSAGES: usize = 400;
    let _alone = alone();
    let file = Fd::from(memfd());
    let text = |number: usize| "x".repeat([0, 10_000, 1, 40_000, 3000, 16_000][number % 6]);
    for kind in KINDS {
        for bound in [1, 3, 16] {
            let (left, right) = limited(kind, bound);
            let (mut sent, mut received) = (0, 0);
            while received < MESSAGES {
                while sent < MESSAGES {
                    let fds = vec![&file; 1 + sent % 5 * 80];
                    match left.try_send(&(sent, text(sent), fds)) {
                        Ok(()) => sent += 1,
                        Err(Error::WouldBlock) => break,
                        Err(error) => panic!("{error:?}"),
                    }
                    assert!(sent - received <= bound, "{kind:?}: {sent} - {received}");
                    if sent % 3 == 0 {
                        // Plain ones count as room that is taken, at most.
                        let _ = left.try_send(&(usize::MAX, "", Vec::<u16>::new()));
                    }
                }
                let _ = left.try_flush();
                match right.try_recv::<(usize, String, Vec<Fd>)>() {
                    Ok((usize::MAX, ..)) | Err(Error::WouldBlock) => {}
                    Ok((number, body, fds)) => {
                        assert_eq!((number, fds.len()), (received, 1 + received % 5 * 80));
                        assert!(body == text(received));
                        received += 1;
                    }
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
    }
}

/// With a bound of one each message waits for the one before: no more, and no deadlock.
#[test]
fn no_deadlock_when_the_receiver_goes_on() {
    let _alone = alone();
    let file = Fd::from(memfd());
    for kind in KINDS {
        for bound in [1, 2] {
            for small in [false, true] {
                let (left, right) = limited(kind, bound);
                if small {
                    rustix::net::sockopt::set_socket_send_buffer_size(&left, 1).unwrap();
                }
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        for number in 0..300_u32 {
                            let fds = vec![&file; number as usize % 3 * 200];
                            left.send(&(number, "x".repeat(number as usize * 5), fds))
                                .unwrap();
                        }
                    });
                    for number in 0..300_u32 {
                        let (came, _, fds): (u32, String, Vec<Fd>) = right.recv().unwrap();
                        assert_eq!((came, fds.len()), (number, number as usize % 3 * 200));
                    }
                });
            }
        }
    }
}

/// Both ends send before they receive, with a bound of one.
#[test]
fn both_ways_at_once() {
    let _alone = alone();
    let file = Fd::from(memfd());
    for kind in KINDS {
        let (left, right) = limited(kind, 1);
        let right = right.with_limits(Limits::new().in_flight(1));
        std::thread::scope(|scope| {
            for link in [&left, &right] {
                let file = &file;
                scope.spawn(move || {
                    for number in 0..500_u32 {
                        link.send(&(number, file)).unwrap();
                        assert_eq!(link.recv::<(u32, Fd)>().unwrap().0, number);
                    }
                });
            }
        });
    }
}

/// What the receiver can do to its socket: look without taking, change its buffers, hold copies, shut down its sending side. The
/// count is the kernel's, and goes down only by what is taken.
#[test]
fn a_receiver_that_would_like_to_be_sent_more() {
    let _alone = alone();
    let file = Fd::from(memfd());
    for kind in KINDS {
        let (left, right) = limited(kind, 3);
        assert_eq!(fill(&left, |number| number * 1000, &file), 3);
        let right: OwnedFd = right.into_fd();
        let copy = right.try_clone().unwrap();
        let mut bytes = [0; 100];
        for _ in 0..10 {
            recv(
                &right,
                &mut bytes[..],
                RecvFlags::PEEK | RecvFlags::DONTWAIT,
            )
            .unwrap();
        }
        rustix::net::sockopt::set_socket_recv_buffer_size(&right, 1 << 20).unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&copy, 1 << 20).unwrap();
        rustix::net::shutdown(&copy, rustix::net::Shutdown::Write).unwrap();
        drop(copy);
        assert_eq!(fill(&left, |_| 1, &file), 0, "{kind:?}");
        if kind == SocketKind::Stream {
            // A part of a packet's bytes, with its descriptors taken: it is still there.
            recv(&right, &mut bytes[..3], RecvFlags::DONTWAIT).unwrap();
            assert_eq!(fill(&left, |_| 1, &file), 0);
        }
        // Whatever is taken makes room, however it is taken, and for as many at most.
        let mut large = vec![0; 70_000];
        recv(
            &right,
            &mut large[..if kind == SocketKind::Stream { 12 } else { 1 }],
            RecvFlags::DONTWAIT,
        )
        .unwrap();
        assert!(fill(&left, |_| 1, &file) <= 1, "{kind:?}");
        // Those that never come are not waited for.
        drop(right);
        assert!(left.send(&file).unwrap_err().is_disconnected());
    }
}

/// A message that did not leave is not counted.
#[test]
fn messages_that_fail() {
    let _alone = alone();
    let file = memfd();
    for kind in KINDS {
        let (left, right) = limited(kind, 2);
        let left = left.with_limits(Limits::new().in_flight(2).body(1000).descriptors(2));
        for _ in 0..10 {
            left.try_send(&(FdRef::new(&file), "x".repeat(2000)))
                .unwrap_err();
            left.try_send(&vec![FdRef::new(&file); 3]).unwrap_err();
        }
        assert_eq!(
            fill(
                &left,
                |_| 1,
                &Fd::from(file.as_fd().try_clone_to_owned().unwrap())
            ),
            2
        );
        for _ in 0..2 {
            right.recv::<(String, Fd)>().unwrap();
        }
    }
}

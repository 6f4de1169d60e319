//! Hostile publishers that are in, and what is in their rings.

use std::{
    io::{self},
    os::fd::OwnedFd,
    sync::atomic::Ordering,
    time::Duration,
};

use memlane::{Link, RecvError, RecvTimeoutError, Subscriber, TryRecvError};
use memlane_region::{WordsMut, ring};
use memlane_signaling::WaitPolicy;
use memlane_tests::{
    PATIENCE, Policy, Scene, Wish,
    wire::{Answer, Greeting, Rings, VERSION, Welcome, header},
};
use rustix::net::{RecvFlags, SendFlags};

use crate::by_hand::{CAPACITY, a_ring, open};

/// Headers that no honest publisher writes, in a ring that is otherwise in order: an error, in whichever way they
/// are met, and the same error from then on.
#[test]
fn corrupt_rings() {
    let _scene = Scene::new();
    let capacity = CAPACITY as u64;
    let headers = [
        1,
        8,
        // Longer than the ring, to no word, to nowhere.
        header(capacity, capacity - 8),
        header(1 << 31, 8),
        header(20, 8),
        1 << 32,
        // More padding than there is, or than record.
        header(512, 8),
        0xff << 40 | 1 << 32 | 16,
        // No such kind, and bits that mean nothing.
        header(16, 8) ^ 3 << 32,
        header(16, 8) | 2 << 48,
        header(16, 8) | 1 << 63,
        u64::MAX,
    ];
    for policy in Policy::ALL {
        for (at, bad) in headers.into_iter().enumerate() {
            for start in [0, 8, CAPACITY as u64 - 8, (1 << 62) - 64] {
                let (mut memory, fd) = a_ring();
                let (here, there) = Link::pair().unwrap();
                let connecting = std::thread::spawn(move || {
                    Wish {
                        policy,
                        trusting: false,
                    }
                    .over(there)
                    .unwrap()
                });
                open(&here, VERSION);
                let greeting: Greeting = here.recv_timeout(PATIENCE).unwrap();
                here.send(&Answer::Welcome(Welcome {
                    start,
                    rings: if policy == Policy::Poll {
                        Rings::Nothing
                    } else {
                        Rings::Socket
                    },
                    ..Welcome::new(fd, CAPACITY as u64)
                }))
                .unwrap();
                let memlane_tests::AnySubscriber::Untrusting(mut subscriber) =
                    connecting.join().unwrap()
                else {
                    unreachable!()
                };
                // One message that is in order, then the header that is not.
                memory.write(start, 8, b"in order");
                let next = ring::end(start, 8);
                memory.store(next, bad);
                memory.store_release(start, header(next - start, 8));
                assert_eq!(subscriber.recv().unwrap().to_vec(), b"in order");
                for form in at..at + 4 {
                    let corrupt = match form % 3 {
                        0 => match subscriber.recv() {
                            Err(RecvError::Corrupt(corrupt)) => corrupt,
                            other => panic!("{other:?}"),
                        },
                        1 => match subscriber.try_recv() {
                            Err(TryRecvError::Corrupt(corrupt)) => corrupt,
                            other => panic!("{other:?}"),
                        },
                        _ => match subscriber.recv_timeout(PATIENCE) {
                            Err(RecvTimeoutError::Corrupt(corrupt)) => corrupt,
                            other => panic!("{other:?}"),
                        },
                    };
                    assert_eq!((corrupt.header, corrupt.position), (bad, next));
                }
                // Corrupt wins over the end: there is no telling what else is wrong.
                drop((here, greeting));
                assert!(matches!(subscriber.recv(), Err(RecvError::Corrupt(_))));
            }
        }
    }
}

/// A publisher that changes what it has committed: lengths and contents are read once, whatever they are by then.
#[test]
fn rings_that_change_under_the_reader() {
    let _scene = Scene::new();
    let (mut memory, fd) = a_ring();
    let (here, there) = Link::pair().unwrap();
    let connecting = std::thread::spawn(move || {
        Subscriber::builder()
            .wait(WaitPolicy::Poll)
            .over(there)
            .unwrap()
    });
    open(&here, VERSION);
    let greeting: Greeting = here.recv_timeout(PATIENCE).unwrap();
    here.send(&Answer::Welcome(Welcome {
        rings: Rings::Nothing,
        ..Welcome::new(fd, CAPACITY as u64)
    }))
    .unwrap();
    let mut subscriber = connecting.join().unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut word = 1_u64;
            let memory = &mut memory;
            while !stop.load(Ordering::Relaxed) {
                for position in (0..CAPACITY as u64).step_by(8) {
                    word = word.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
                    // Lengths that are fine, mostly: all positions may be headers.
                    let len = (word >> 33) % 300;
                    memory.store(position, header(8 + len.next_multiple_of(8), len));
                }
            }
        });
        let mut copy = Vec::new();
        for _ in 0..50_000 {
            match subscriber.recv_timeout(PATIENCE) {
                Ok(message) => {
                    let len = message.len();
                    assert!(len < 300);
                    message.copy_into(&mut copy);
                    assert_eq!((message.len(), copy.len()), (len, len));
                }
                Err(error) => panic!("{error}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(greeting);
}

/// A publisher that rings without end keeps its subscriber awake, and from nothing else; one that never rings is
/// waited for.
#[test]
fn publishers_that_ring_without_end() {
    let _scene = Scene::new();
    let (mut memory, fd) = a_ring();
    let (here, there) = Link::pair().unwrap();
    let connecting = std::thread::spawn(move || {
        Subscriber::builder()
            .wait(WaitPolicy::Block)
            .over(there)
            .unwrap()
    });
    open(&here, VERSION);
    let greeting: Greeting = here.recv_timeout(PATIENCE).unwrap();
    let bell: OwnedFd = greeting.doorbell.socket.unwrap().into();
    here.send(&Answer::Welcome(Welcome::new(fd, CAPACITY as u64)))
        .unwrap();
    let mut subscriber = connecting.join().unwrap();
    let mut rings = 0;
    let mut ring_all = |bell: &OwnedFd| loop {
        match rustix::net::send(bell, &[1; 64], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => rings += 1,
            Err(rustix::io::Errno::AGAIN) => break,
            Err(error) => panic!("{}", io::Error::from(error)),
        }
    };
    ring_all(&bell);
    for _ in 0..20 {
        assert!(matches!(
            subscriber.recv_timeout(Duration::from_millis(1)),
            Err(RecvTimeoutError::TimedOut)
        ));
        ring_all(&bell);
    }
    memory.write(0, 8, b"message!");
    memory.store_release(0, header(16, 8));
    ring_all(&bell);
    assert_eq!(subscriber.recv().unwrap().to_vec(), b"message!");
    // What it cost: a full doorbell wakes nobody any more, until the subscriber drains it, after 64 wake-ups.
    let stats = subscriber.stats();
    println!("{rings} rings for nothing, {stats:?}");
    assert!((1..=stats.wakeups).contains(&stats.spurious));
    assert!(stats.wakeups <= rings && stats.wakeups <= stats.sleeps + 1);
    let mut sink = [0; 16];
    let back = rustix::net::recv(&bell, &mut sink, RecvFlags::DONTWAIT);
    assert!(back.is_err(), "nothing comes back from a doorbell");
    drop(here);
    assert!(matches!(
        subscriber.recv(),
        Err(RecvError::Disconnected { .. })
    ));
}

//! Messages that do not fit a packet, on both kinds of sockets.

mod common;

use std::thread;

use common::{alone, inode, memfd};
use memlane_transport::frame::MAX_INLINE;
use memlane_transport::{Error, Fd, FdRef, Limits, Link, SocketKind};

const KINDS: [SocketKind; 2] = [SocketKind::Packets, SocketKind::Stream];

#[test]
fn any_number_of_descriptors_in_order() {
    let _alone = alone();
    for kind in KINDS {
        for count in [0, 1, 252, 253, 254, 506, 507, 1000, 1024] {
            let (left, right) = Link::pair_of(kind).unwrap();
            let files = [memfd(), memfd(), memfd()];
            let refs: Vec<_> = (0..count).map(|at| FdRef::new(&files[at % 3])).collect();
            left.send(&(7_u8, refs, "tail")).unwrap();
            let (head, fds, tail): (u8, Vec<Fd>, String) = right.recv().unwrap();
            assert_eq!((head, fds.len(), tail.as_str()), (7, count, "tail"));
            for (at, fd) in fds.iter().enumerate() {
                assert_eq!(inode(fd), inode(&files[at % 3]), "{kind:?}, {count}, {at}");
            }
        }
    }
}

#[test]
fn bodies_of_any_size() {
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        for size in [
            0,
            1,
            MAX_INLINE - 5,
            MAX_INLINE - 3,
            MAX_INLINE,
            1 << 20,
            10 << 20,
        ] {
            let text: String = (0..size)
                .map(|at| char::from(b'a' + (at % 26) as u8))
                .collect();
            let sender = thread::scope(|scope| {
                let sent = scope.spawn(|| left.send(&(&text, FdRef::new(&std::io::stderr()))));
                let (received, _fd): (String, Fd) = right.recv().unwrap();
                assert!(received == text, "{kind:?}: {size} bytes differ");
                sent.join().unwrap()
            });
            sender.unwrap();
        }
    }
}

/// Descriptors belong to the message they were sent with, however messages are glued together on a stream.
#[test]
fn descriptors_stay_with_their_message() {
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        let files: Vec<_> = (0..20).map(|_| memfd()).collect();
        for (at, file) in files.iter().enumerate() {
            left.send(&(at, "before")).unwrap();
            left.send(&(at, FdRef::new(file))).unwrap();
        }
        for (at, file) in files.iter().enumerate() {
            assert_eq!(right.recv::<(usize, String)>().unwrap().0, at);
            let (index, fd): (usize, Fd) = right.recv().unwrap();
            assert_eq!((index, inode(fd)), (at, inode(file)));
        }
    }
}

/// A stream takes parts of messages when it is full; none is lost, doubled or torn.
#[test]
fn a_small_buffer() {
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&left, 1).unwrap();
        // The smallest buffer takes no packet of this size at all.
        let size = if kind == SocketKind::Stream {
            15_000
        } else {
            3000
        };
        let file = memfd();
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..200_u32 {
                    let refs = vec![FdRef::new(&file); round as usize % 3 * 200];
                    left.send(&(round, vec![round as u8; size], refs)).unwrap();
                }
            });
            for round in 0..200_u32 {
                let (number, bytes, fds): (u32, Vec<u8>, Vec<Fd>) = right.recv().unwrap();
                assert_eq!((number, fds.len()), (round, round as usize % 3 * 200));
                assert_eq!(bytes, vec![round as u8; size]);
            }
        });
    }
}

/// Without waiting: what has begun is finished by the next calls, and what has not can be tried again.
#[test]
fn begun_and_finished_later() {
    let _alone = alone();
    let (left, right) = Link::pair_of(SocketKind::Stream).unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&left, 1).unwrap();
    let mut sent = 0_u32;
    while left.try_send(&(sent, vec![1_u8; 10_000])).is_ok() {
        sent += 1;
    }
    assert!(sent > 0);
    assert!(matches!(left.try_flush(), Err(Error::WouldBlock)));
    // A receive on the same end goes on sending, too.
    right.send(&5_u8).unwrap();
    for number in 0..sent {
        let received = loop {
            match right.try_recv::<(u32, Vec<u8>)>() {
                Err(Error::WouldBlock) => match left.try_recv::<u8>() {
                    Ok(5) | Err(Error::WouldBlock) => {}
                    other => panic!("{other:?}"),
                },
                other => break other.unwrap(),
            }
        };
        assert_eq!(received, (number, vec![1; 10_000]));
    }
    left.try_flush().unwrap();
    assert!(matches!(right.try_recv::<u8>(), Err(Error::WouldBlock)));
}

/// Whoever goes in the middle of a message has not sent it.
#[test]
fn a_part_is_nothing() {
    let alone = alone();
    let (left, right) = Link::pair_of(SocketKind::Stream).unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&left, 1).unwrap();
    let file = memfd();
    let mut sent = 0;
    while left
        .try_send(&(sent, vec![1_u8; 10_000], FdRef::new(&file)))
        .is_ok()
    {
        sent += 1;
    }
    drop((left, file));
    let mut received = 0;
    let error = loop {
        match right.recv::<(i32, Vec<u8>, Fd)>() {
            Ok((number, ..)) => {
                assert_eq!(number, received);
                received += 1;
            }
            Err(error) => break error,
        }
    };
    assert!(error.is_disconnected(), "{error:?}");
    assert_eq!(received, sent - 1, "the last had not left whole");
    drop(right);
    alone.settled();
}

/// The receiver's limits end the link; the sender's are told before anything has left.
#[test]
fn beyond_the_receivers_limits() {
    let alone = alone();
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        let right = right.with_limits(Limits::new().descriptors(300));
        let file = memfd();
        left.send(&vec![FdRef::new(&file); 301]).unwrap();
        let error = right.recv::<Vec<Fd>>().unwrap_err();
        assert!(
            matches!(error, Error::PeerTooManyDescriptors { limit: 300, .. }),
            "{error:?}"
        );
        assert!(error.ends_link());

        for size in [2000_usize, 100_000] {
            let (left, right) = Link::pair_of(kind).unwrap();
            let right = right.with_limits(Limits::new().body(1000));
            left.send(&vec![0_u8; size]).unwrap();
            let error = right.recv::<Vec<u8>>().unwrap_err();
            assert!(
                matches!(error, Error::PeerBodyTooLarge { limit: 1000, size: s } if s > size as u64),
                "{error:?}"
            );
        }
    }
    alone.settled();
}

//! Packets that break the protocol: each ends the link with an error that says how, and leaks nothing.

mod common;

use std::os::fd::{AsFd, OwnedFd};

use common::{all_writers_closed, alone, frame, memfd, raw_send};
use memlane_transport::frame::{MAX_FIELDS, MAX_INLINE};
use memlane_transport::{Error, Fd, Link, codec};
use serde::de::DeserializeOwned;

/// Sends the packet with `count` descriptors, half of them pipes, to a link that expects a `T`.
fn refuse<T: DeserializeOwned>(packet: &[u8], count: usize) -> Error {
    let (link, peer) = Link::pair().unwrap();
    let peer = peer.into_fd();
    let mut readers = Vec::new();
    let files: Vec<OwnedFd> = (0..count)
        .map(|number| {
            if number % 2 == 0 {
                return memfd();
            }
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            readers.push(reader);
            writer
        })
        .collect();
    let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    raw_send(&peer, packet, &borrowed);
    // One more, which must not be delivered any more.
    raw_send(&peer, &frame(0, &[]), &[]);
    drop(files);

    let error = link.recv::<T>().map(drop).unwrap_err();
    assert!(error.ends_link(), "{error:?}");
    // Every copy of the writers gets closed.
    for reader in readers {
        all_writers_closed(reader);
    }
    for again in [
        link.recv::<()>().unwrap_err(),
        link.try_recv::<()>().unwrap_err(),
        link.send(&()).unwrap_err(),
    ] {
        let Error::Ended { why } = &again else {
            panic!("{again:?}")
        };
        assert!(why.contains(&error.to_string()), "{why:?} is not {error}");
    }
    // The peer notices, too.
    let error_of_peer =
        rustix::net::send(&peer, b"x", rustix::net::SendFlags::NOSIGNAL).unwrap_err();
    assert_eq!(error_of_peer, rustix::io::Errno::PIPE);
    error
}

fn body<T: serde::Serialize>(value: &T) -> Vec<u8> {
    codec::encode(value, MAX_INLINE).unwrap()
}

#[test]
fn more_descriptors_than_the_type_takes() {
    let _alone = alone();
    for count in [1, 2, 3] {
        let error = refuse::<u8>(&frame(count, &[7]), usize::from(count));
        assert!(
            matches!(error, Error::SurplusDescriptors { received, taken: 0 } if received == usize::from(count))
        );
    }
    let error = refuse::<Fd>(&frame(3, &body(&1_u16)), 3);
    assert!(
        matches!(
            error,
            Error::SurplusDescriptors {
                received: 3,
                taken: 1
            }
        ),
        "{error:?}"
    );
}

#[test]
fn fewer_descriptors_than_the_type_takes() {
    let _alone = alone();
    let error = refuse::<(Fd, Fd)>(&frame(1, &body(&(0_u16, 1_u16))), 1);
    assert!(
        matches!(
            error,
            Error::MissingDescriptor {
                index: 1,
                received: 1
            }
        ),
        "{error:?}"
    );
    let error = refuse::<Fd>(&frame(0, &body(&u16::MAX)), 0);
    assert!(
        matches!(
            error,
            Error::MissingDescriptor {
                index: u16::MAX,
                received: 0
            }
        ),
        "{error:?}"
    );
}

#[test]
fn one_descriptor_in_two_places() {
    let _alone = alone();
    let error = refuse::<(Fd, Fd)>(&frame(2, &body(&(1_u16, 1_u16))), 2);
    assert!(
        matches!(error, Error::DescriptorTwice { index: 1 }),
        "{error:?}"
    );
}

#[test]
fn a_wrong_number_announced() {
    let _alone = alone();
    for (announced, received) in [(0, 1), (2, 1), (1, 0), (u16::MAX, 4), (252, 253)] {
        let error = refuse::<Vec<Fd>>(&frame(announced, &[0]), received);
        assert!(
            matches!(error, Error::DescriptorCount { announced: a, received: r } if (a, r) == (announced, received)),
            "{error:?}"
        );
    }
}

#[test]
fn an_empty_packet_with_descriptors() {
    let _alone = alone();
    let error = refuse::<()>(&[], 1);
    assert!(
        matches!(error, Error::EmptyPacket { descriptors: 1 }),
        "{error:?}"
    );
    let error = refuse::<()>(&[], 253);
    assert!(
        matches!(error, Error::EmptyPacket { descriptors: 253 }),
        "{error:?}"
    );
}

/// It cannot be told from a hang-up, so it is one.
#[test]
fn an_empty_packet_without_descriptors() {
    let _alone = alone();
    let (link, peer) = Link::pair().unwrap();
    raw_send(&peer, &[], &[]);
    raw_send(&peer, &frame(0, &[]), &[]);
    for _ in 0..2 {
        assert!(link.recv::<()>().unwrap_err().is_disconnected());
        assert!(link.send(&()).unwrap_err().is_disconnected());
    }
    assert!(peer.send(&()).unwrap_err().is_disconnected());
}

#[test]
fn a_packet_too_large() {
    let _alone = alone();
    for excess in [1, 2, 100_000] {
        for count in [0, 2] {
            let error = refuse::<Vec<u8>>(
                &frame(count, &vec![0; MAX_INLINE + excess]),
                usize::from(count),
            );
            assert!(
                matches!(error, Error::PacketTooLarge { limit } if limit == 8 + MAX_FIELDS + MAX_INLINE),
                "{error:?}"
            );
        }
    }
}

#[test]
fn another_protocol_or_version() {
    let _alone = alone();
    let error = refuse::<()>(&[b'm', 2, 0, 0], 0);
    assert!(
        matches!(
            error,
            Error::Version {
                found: 2,
                expected: 1
            }
        ),
        "{error:?}"
    );
    let error = refuse::<()>(&[b'm', 0, 1, 0], 1);
    assert!(
        matches!(
            error,
            Error::Version {
                found: 0,
                expected: 1
            }
        ),
        "{error:?}"
    );
    let error = refuse::<()>(b"GET / HTTP/1.1", 0);
    assert!(
        matches!(
            error,
            Error::NotMemlane {
                found: b'G',
                expected: b'm'
            }
        ),
        "{error:?}"
    );
    let error = refuse::<()>(b"G", 2);
    assert!(
        matches!(error, Error::NotMemlane { found: b'G', .. }),
        "{error:?}"
    );
}

#[test]
fn a_torn_header() {
    let _alone = alone();
    for size in 1..8 {
        let error = refuse::<()>(&frame(1, &[])[..size], 1);
        assert!(
            matches!(error, Error::ShortPacket { size: s, expected: 8 } if s == size),
            "{error:?}"
        );
    }
}

#[test]
fn a_body_that_does_not_decode() {
    let _alone = alone();
    for (error, why) in [
        (refuse::<String>(&frame(0, &[2, 0xff, 0xfe]), 0), "utf-8"),
        (refuse::<bool>(&frame(0, &[9]), 0), "InvalidBooleanValue(9)"),
        (refuse::<Option<u8>>(&frame(0, &[9]), 0), "expected 0 or 1"),
        (
            refuse::<(u8, u8)>(&frame(0, &[1, 2, 3]), 0),
            "1 bytes follow",
        ),
        (refuse::<u64>(&frame(0, &[]), 0), "bytes end before"),
        (
            refuse::<Vec<u8>>(&frame(0, &[200, 1, 2]), 0),
            "length of 200 is announced where 2 bytes",
        ),
        // The descriptors that were taken before the body turned out wrong are closed as well.
        (
            refuse::<(Fd, Fd, Fd, bool)>(&frame(3, &[0, 1, 2, 9]), 3),
            "InvalidBooleanValue(9)",
        ),
        (
            refuse::<(Fd, bool)>(&frame(3, &[1, 9]), 3),
            "InvalidBooleanValue(9)",
        ),
    ] {
        let Error::Decode { expected, source } = error else {
            panic!("{error:?}")
        };
        assert!(!expected.is_empty());
        assert!(
            source.to_string().contains(why),
            "{source} does not say {why}"
        );
    }
}

#[test]
fn an_endless_sequence_of_nothing() {
    let _alone = alone();
    let mut bomb = vec![253];
    bomb.extend(u64::MAX.to_le_bytes());
    let error = refuse::<Vec<()>>(&frame(0, &bomb), 0);
    assert!(matches!(error, Error::Decode { .. }), "{error:?}");
}

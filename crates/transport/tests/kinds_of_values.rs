//! Descriptors of the wrong kind, links nobody adopts, and links in the middle of something.

mod common;

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

use common::raw::{FROZEN, KINDS, borrowed, ended, link_to_raw, sealed};
use common::{Directory, abstract_name, alone, frame, memfd, raw_send};
use memlane_transport::{Error, EventFd, Fd, Limits, Link, Listener, MemoryFd, StreamFd};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags, SealFlags, open};
use serde::de::DeserializeOwned;

/// One of each, with the kinds that take it.
fn every_kind() -> Vec<(&'static str, OwnedFd, &'static [&'static str])> {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let directory = Directory::new();
    let file = std::fs::File::create(directory.join("file")).unwrap();
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
    let pidfd = rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    )
    .unwrap();
    vec![
        ("frozen memory", sealed(b"x", FROZEN), &["memory"]),
        (
            "memory that cannot shrink",
            sealed(b"x", SealFlags::SHRINK),
            &["memory"],
        ),
        ("memory without seals", memfd(), &[]),
        (
            "memory that can only shrink",
            sealed(b"x", SealFlags::GROW | SealFlags::SEAL),
            &[],
        ),
        ("a file", file.into(), &[]),
        (
            "the root directory",
            open("/", OFlags::DIRECTORY, Mode::empty()).unwrap(),
            &[],
        ),
        (
            "a path",
            open("/", OFlags::PATH, Mode::empty()).unwrap(),
            &[],
        ),
        (
            "a device",
            std::fs::File::open("/dev/null").unwrap().into(),
            &[],
        ),
        ("a pipe's reader", reader, &[]),
        ("a pipe's writer", writer, &[]),
        (
            "an eventfd",
            eventfd(0, EventfdFlags::empty()).unwrap(),
            &["eventfd"],
        ),
        ("an epoll", epoll, &[]),
        ("a pidfd", pidfd, &[]),
        (
            "a stream socket",
            UnixStream::pair().unwrap().0.into(),
            &["stream"],
        ),
        (
            "a datagram socket",
            UnixDatagram::unbound().unwrap().into(),
            &[],
        ),
        ("a packet socket", Link::pair().unwrap().0.into(), &[]),
        (
            "a TCP socket",
            std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(),
            &[],
        ),
    ]
}

fn taken_or_refused<T: DeserializeOwned>(kind: &str) {
    for socket in KINDS {
        for (name, fd, takers) in every_kind() {
            let (link, peer) = link_to_raw(socket);
            // Beside one of no particular kind, which goes with it.
            raw_send(&peer, &frame(2, &[1, 0]), &borrowed(&[fd, memfd()]));
            match link.recv::<(Fd, T)>() {
                Ok(_) => assert!(takers.contains(&kind), "{name} was taken as {kind}"),
                Err(error) => {
                    assert!(!takers.contains(&kind), "{name} was refused: {error:?}");
                    assert!(
                        matches!(&error, Error::WrongDescriptor { expected, found }
                            if expected.contains(kind) && !found.is_empty()),
                        "{name}: {error:?}"
                    );
                    ended(&link, &peer, &error);
                }
            }
        }
    }
}

#[test]
fn memory() {
    let _alone = alone();
    taken_or_refused::<MemoryFd>("memory");
}

#[test]
fn eventfds() {
    let _alone = alone();
    taken_or_refused::<EventFd>("eventfd");
}

#[test]
fn stream_sockets() {
    let _alone = alone();
    taken_or_refused::<StreamFd>("stream");
}

/// The sender's own mistake: the descriptor comes back.
#[test]
fn before_sending() {
    let _alone = alone();
    for (name, fd, takers) in every_kind() {
        let inode = common::inode(&fd);
        match EventFd::try_from(fd) {
            Ok(_) => assert!(takers.contains(&"eventfd"), "{name}"),
            Err(wrong) => {
                assert!(
                    wrong.to_string().starts_with("expected an eventfd, found "),
                    "{wrong}"
                );
                assert_eq!(common::inode(&wrong.fd), inode);
            }
        }
    }
}

#[test]
fn links_and_listeners_that_nobody_adopts() {
    let _alone = alone();
    for kind in KINDS {
        for listener in [false, true] {
            let (left, right) = Link::pair_of(kind).unwrap();
            let error = if listener {
                left.send(&Listener::bind(&abstract_name("unadopted")).unwrap())
                    .unwrap();
                right.recv::<Listener>().map(drop).unwrap_err()
            } else {
                let (given, _kept) = Link::pair().unwrap();
                left.send(&(1_u8, vec![given])).unwrap();
                right.recv::<(u8, Vec<Link>)>().map(drop).unwrap_err()
            };
            let what = if listener { "listener" } else { "link" };
            assert!(
                matches!(error, Error::NotAdopted { what: found } if found == what),
                "{error:?}"
            );
            ended(&right, &left, &error);
        }
        // As a plain descriptor it is anybody's.
        let (left, right) = Link::pair_of(kind).unwrap();
        left.send(&Link::pair().unwrap().0).unwrap();
        right.recv::<Fd>().unwrap();
    }
}

/// Whoever adopts gets links, and nothing that is none.
#[test]
fn adopted() {
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        let right = right.adopting();
        let (given, kept) = Link::pair_of(kind).unwrap();
        let given = given.with_limits(Limits::new().descriptors(1)).adopting();
        left.send(&given).unwrap();
        drop(given);
        let taken: Link = right.recv().unwrap();
        kept.send(&vec![Fd::from(memfd()), Fd::from(memfd())])
            .unwrap();
        // Limits and adoption have stayed behind.
        assert_eq!(taken.recv::<Vec<Fd>>().unwrap().len(), 2);
        kept.send(&Link::pair().unwrap().0).unwrap();
        let error = taken.recv::<Link>().unwrap_err();
        assert!(matches!(error, Error::NotAdopted { .. }), "{error:?}");
    }
    for (name, fd, _) in every_kind() {
        let (left, right) = Link::pair().unwrap();
        let right = right.adopting();
        left.send(&Fd::from(fd)).unwrap();
        match right.recv::<Link>() {
            Ok(_) => assert!(
                ["a packet socket", "a stream socket"].contains(&name),
                "{name}"
            ),
            // A socket whose other end is gone is a link to nobody, or none.
            Err(error) => assert!(
                matches!(
                    error,
                    Error::WrongDescriptor {
                        expected: "a link",
                        ..
                    }
                ),
                "{name}: {error:?}"
            ),
        }
    }
}

/// What has begun in either direction would be torn by handing the link on.
#[test]
fn links_in_the_middle_of_a_message() {
    let _alone = alone();
    let (carrier, taker) = Link::pair().unwrap();
    let taker = taker.adopting();
    let refused = |link: &Link| {
        let error = carrier.send(link).unwrap_err();
        let Error::Encode(source) = &error else {
            panic!("{error:?}")
        };
        assert!(
            source.to_string().contains("in the middle of a message"),
            "{source}"
        );
    };
    for kind in KINDS {
        // Begun to be sent.
        let (left, right) = Link::pair_of(kind).unwrap();
        let mut plain = 0;
        while left.try_send(&0_u8).is_ok() {
            plain += 1;
        }
        // Room for one packet of three.
        right.recv::<u8>().unwrap();
        left.try_send(&vec![&Fd::from(memfd()); 600]).unwrap();
        refused(&left);
        for _ in 1..plain {
            right.recv::<u8>().unwrap();
        }
        left.flush().unwrap();
        carrier.send(&left).unwrap();
        taker.recv::<Link>().unwrap();

        // Begun to be received.
        let (link, peer) = link_to_raw(kind);
        raw_send(
            &peer,
            &common::packet(1, &common::raw::more(2), &[]),
            &borrowed(&[memfd()]),
        );
        assert!(matches!(link.try_recv::<Vec<Fd>>(), Err(Error::WouldBlock)));
        refused(&link);
        raw_send(&peer, &frame(1, &[2, 0, 1]), &borrowed(&[memfd()]));
        assert_eq!(link.recv::<Vec<Fd>>().unwrap().len(), 2);
        carrier.send(&link).unwrap();
        taker.recv::<Link>().unwrap();
    }
    let (link, peer) = link_to_raw(KINDS[1]);
    raw_send(&peer, &frame(0, &[1])[..3], &[]);
    assert!(matches!(link.try_recv::<u8>(), Err(Error::WouldBlock)));
    refused(&link);
}

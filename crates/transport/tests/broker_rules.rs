//! Clients of a broker that keep no rules, and brokers that keep none: each loses its link, and nobody else notices.

mod common;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use common::broker::{
    ACCEPTED, DECLINED, INTRODUCE, INTRODUCED, accepted, anybody, client, drive, introduced, only,
};
use common::{alone, frame, memfd};
use memlane_transport::broker::Client;
use memlane_transport::{Error, FdRef, Link};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

/// Each message to each role: what only the other side may send ends the link (D1, D2).
#[test]
fn roles_and_messages() {
    let _alone = alone();
    let (fd, _other) = Link::pair().unwrap();
    let fd = FdRef::new(&fd);
    // A message, as it is sent by a peer that keeps no rules.
    type Sent<'a> = (&'a str, &'a dyn Fn(&Link) -> Result<(), Error>, bool, bool);
    let messages: [Sent<'_>; 8] = [
        (
            "introduce",
            &|link| link.send(&(1_u8, INTRODUCE, 0_u64, "b")),
            true,
            false,
        ),
        (
            "accepted",
            &|link| link.send(&(1_u8, ACCEPTED, 0_u64, fd)),
            false,
            true,
        ),
        (
            "accepted, without a link",
            &|link| link.send(&(1_u8, ACCEPTED, 0_u64, 0_u16)),
            false,
            false,
        ),
        (
            "declined",
            &|link| link.send(&(1_u8, DECLINED, 0_u64, 0_u32)),
            false,
            true,
        ),
        (
            "introduced",
            &|link| link.send(&(1_u8, INTRODUCED, "c", fd)),
            false,
            true,
        ),
        (
            "a message of the future",
            &|link| link.send(&(1_u8, 4_u32)),
            false,
            false,
        ),
        (
            "another version",
            &|link| link.send(&(2_u8, INTRODUCE, 0_u64, "b")),
            false,
            false,
        ),
        (
            "more",
            &|link| link.send(&(1_u8, INTRODUCE, 0_u64, "b", 0_u8)),
            false,
            false,
        ),
    ];
    for (what, send, to_broker, to_client) in messages {
        let mut broker = anybody();
        let link = broker.admit("a").unwrap();
        // A kernel with SO_PASSRIGHTS refuses descriptors to the sender; it stays a client then.
        match send(&link) {
            Err(Error::Io { source, .. }) => {
                assert_eq!(Errno::from_io_error(&source), Some(Errno::PERM), "{what}");
                assert_eq!(drive(&mut broker), BTreeMap::new());
            }
            sent => {
                sent.unwrap();
                let event = only(drive(&mut broker));
                assert_eq!(event == "a to b: Unknown", to_broker, "{what}: {event}");
                assert_eq!(
                    event.starts_with("a expelled"),
                    !to_broker,
                    "{what}: {event}"
                );
                assert_eq!(broker.names().count(), usize::from(to_broker));
                assert_eq!(
                    link.recv::<(u8, u32, u64, u32)>().is_ok(),
                    to_broker,
                    "{what}"
                );
            }
        }

        let (broker, link) = Link::pair().unwrap();
        let mut client = Client::new(link);
        client.request("b").unwrap();
        send(&broker).unwrap();
        match client.try_recv() {
            Ok(_) => assert!(to_client, "{what}"),
            Err(error) => {
                assert!(!to_client && error.ends_link(), "{what}: {error:?}");
            }
        }
    }
}

#[test]
fn a_version_is_named() {
    let _alone = alone();
    let (broker, link) = Link::pair().unwrap();
    let mut client = Client::new(link);
    broker.send(&(9_u8, DECLINED, 0_u64, 0_u32)).unwrap();
    let error = client.recv().unwrap_err();
    let Error::Decode { source, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(source.to_string().contains("version 9"), "{source}");
}

#[test]
fn a_broker_takes_no_descriptors() {
    let _alone = alone();
    let mut broker = anybody();
    let a = broker.admit("a").unwrap();
    let file = memfd();
    let result = a.try_send(&(1_u8, INTRODUCE, 0_u64, FdRef::new(&file)));
    let events = drive(&mut broker);
    match result {
        Ok(()) => assert!(only(events).starts_with("a expelled")),
        // Linux 6.16.
        Err(error) => assert!(error.to_string().contains("sending"), "{error}"),
    }
}

/// What the broker itself checks, where the kernel lets descriptors through.
#[test]
fn descriptors_that_came_all_the_same() {
    let _alone = alone();
    let (link, _other) = Link::pair().unwrap();
    let fd = FdRef::new(&link);
    type Send<'a> = &'a dyn Fn(&Link) -> Result<(), Error>;
    let sends: [Send<'_>; 3] = [
        &|client| client.send(&(1_u8, INTRODUCE, 0_u64, "b", fd)),
        &|client| client.send(&(1_u8, ACCEPTED, 0_u64, fd)),
        &|client| client.send(&(1_u8, INTRODUCED, "b", vec![fd; 300])),
    ];
    for send in sends {
        let mut broker = anybody();
        let (ours, client) = Link::pair().unwrap();
        let copy = ours.as_fd().try_clone_to_owned().unwrap();
        broker.admit_link("a", ours.adopting()).unwrap();
        pass_rights(&copy);
        drop(copy);
        send(&client).unwrap();
        let event = only(drive(&mut broker));
        assert!(
            event.contains("expelled: PeerTooManyDescriptors"),
            "{event}"
        );
    }
}

fn pass_rights(socket: &OwnedFd) {
    const SO_PASSRIGHTS: libc::c_int = 83;
    let one: libc::c_int = 1;
    // SAFETY: an integer and its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const one).cast(),
            4,
        )
    };
    // Unknown before Linux 6.16: never off then.
    let error = std::io::Error::last_os_error();
    assert!(
        result == 0 || error.raw_os_error() == Some(libc::ENOPROTOOPT),
        "{error}"
    );
}

/// Garbage of all kinds on one link, while others go on.
#[test]
fn garbage() {
    let _alone = alone();
    let mut broker = anybody();
    let mut a = client(&mut broker, "a");
    let mut b = client(&mut broker, "b");
    for length in 0..200_usize {
        let bad: OwnedFd = broker.admit("bad").unwrap().into();
        let bytes: Vec<u8> = (0..length)
            .map(|at| (at * 37 + length * 11) as u8)
            .collect();
        let sent = send(&bad, &frame(0, &bytes), SendFlags::NOSIGNAL).unwrap();
        assert!(sent > 0);
        a.request("b").unwrap();
        let events = drive(&mut broker);
        assert_eq!(events.len(), 2, "{events:?}");
        assert_eq!(events["a to b"], 1);
        assert!(events.keys().any(|event| event.starts_with("bad expelled")));
        accepted(&mut a).send(&length).unwrap();
        assert_eq!(introduced(&mut b).1.recv::<usize>().unwrap(), length);
    }
}

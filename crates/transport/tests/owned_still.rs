//! A value that was not sent, for whatever reason, still owns its descriptors, and can be sent again.

mod common;

use std::os::fd::OwnedFd;
use std::time::Duration;

use common::raw::{KINDS, witnesses};
use common::{all_writers_closed, alone, inode};
use memlane_transport::{Error, Fd, Limits, Link};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::ser::{Error as _, Serialize, Serializer};

/// A message whose descriptors are watched.
#[derive(serde::Serialize)]
struct Cargo {
    fds: Vec<Fd>,
    text: String,
    #[serde(skip)]
    readers: Vec<OwnedFd>,
}

fn cargo(count: usize) -> Cargo {
    let (readers, writers) = witnesses(count);
    Cargo {
        fds: writers.into_iter().map(Fd::from).collect(),
        text: "cargo".to_owned(),
        readers,
    }
}

/// All of it is still there, goes over another link, and is closed when both are done with it.
fn still_there(cargo: Cargo) {
    for reader in &cargo.readers {
        let mut fds = [PollFd::new(reader, PollFlags::empty())];
        assert_eq!(
            poll(&mut fds, Some(&Timespec::default())).unwrap(),
            0,
            "a writer was closed"
        );
    }
    let (left, right) = Link::pair().unwrap();
    left.send(&cargo).unwrap();
    let (fds, text): (Vec<Fd>, String) = right.recv().unwrap();
    assert_eq!(text, cargo.text);
    assert!(fds.iter().map(inode).eq(cargo.fds.iter().map(inode)));
    let Cargo {
        fds: own, readers, ..
    } = cargo;
    // Taken out whole: nothing else shares them, so that no duplicate is made.
    own.into_iter().for_each(|fd| drop(OwnedFd::from(fd)));
    drop(fds);
    readers.iter().for_each(all_writers_closed);
}

fn refused(link: &Link, cargo: &Cargo, expected: impl Fn(&Error) -> bool) {
    for error in [
        link.try_send(cargo).unwrap_err(),
        link.try_transfer(cargo).map(drop).unwrap_err(),
    ] {
        assert!(expected(&error), "{error:?}");
    }
}

#[test]
fn without_room() {
    let _alone = alone();
    for kind in KINDS {
        for count in [1, 300] {
            let (left, right) = Link::pair_of(kind).unwrap();
            let left = left.with_limits(Limits::new().in_flight(1));
            left.send(&cargo(1).fds).unwrap();
            let cargo = cargo(count);
            refused(&left, &cargo, |error| matches!(error, Error::WouldBlock));
            let timeout = Duration::from_millis(2);
            for error in [
                left.send_timeout(&cargo, timeout).unwrap_err(),
                left.transfer_timeout(&cargo, timeout).unwrap_err(),
            ] {
                assert!(matches!(error, Error::TimedOut), "{error:?}");
            }
            // On the same link, once there is room.
            right.recv::<Vec<Fd>>().unwrap();
            left.send(&cargo).unwrap();
            right.recv::<(Vec<Fd>, String)>().unwrap();
            still_there(cargo);
        }
    }
}

#[test]
fn beyond_the_limits() {
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        let left = left.with_limits(Limits::new().descriptors(5));
        let many = cargo(6);
        refused(&left, &many, |error| {
            matches!(error, Error::TooManyDescriptors { count: 6, limit: 5 })
        });
        still_there(many);
        let left = left.with_limits(Limits::new().body(10));
        let mut long = cargo(2);
        long.text = "x".repeat(100);
        refused(&left, &long, |error| {
            matches!(error, Error::BodyTooLarge { limit: 10, .. })
        });
        still_there(long);
        left.send("on").unwrap();
        assert_eq!(right.recv::<String>().unwrap(), "on");
    }
}

#[test]
fn on_a_link_that_has_ended() {
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        drop(right);
        let first = cargo(2);
        refused(&left, &first, Error::is_disconnected);
        still_there(first);

        let (left, right) = Link::pair_of(kind).unwrap();
        right.send("not a number").unwrap();
        left.recv::<(u64, u64, u64, Fd)>().unwrap_err();
        let second = cargo(300);
        refused(&left, &second, |error| matches!(error, Error::Ended { .. }));
        still_there(second);
    }
}

#[test]
fn when_a_part_of_the_value_refuses() {
    struct Refuses(Cargo);
    impl Serialize for Refuses {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            (&self.0, Tired).serialize(serializer)
        }
    }
    struct Tired;
    impl Serialize for Tired {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(S::Error::custom("too tired"))
        }
    }
    let _alone = alone();
    let (left, _right) = Link::pair().unwrap();
    let value = Refuses(cargo(3));
    let error = left.send(&value).unwrap_err();
    assert!(matches!(error, Error::Encode(_)), "{error:?}");
    still_there(value.0);
}

/// A message that has begun to leave when its link goes: it has not been received, and the value has lost nothing.
#[test]
fn in_the_middle() {
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&left, 1).unwrap();
        let left = left.with_limits(Limits::new().descriptors(5000));
        let value = cargo(3);
        let many: Vec<&Fd> = value.fds.iter().cycle().take(5000).collect();
        left.try_send(&many).unwrap();
        assert!(matches!(left.try_flush(), Err(Error::WouldBlock)));
        drop(many);
        drop((left, right));
        still_there(value);
    }
}

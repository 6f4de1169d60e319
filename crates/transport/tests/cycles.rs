//! Sockets in the queues of sockets (A23).

mod common;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use common::raw::{KINDS, witnesses};
use common::{alone, until};
use memlane_transport::{Error, Fd, FdRef, Link, Listener};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

#[test]
fn a_link_on_itself() {
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        let right = right.adopting();
        for error in [
            left.send(&left).unwrap_err(),
            left.send(&(1_u8, vec![Some(&left)])).unwrap_err(),
            left.transfer(&left).unwrap_err(),
        ] {
            assert!(matches!(error, Error::LinkInItself), "{error:?}");
        }
        left.send(&5_u8).unwrap();
        assert_eq!(right.recv::<u8>().unwrap(), 5);
    }
}

/// Whether every copy of every writing end is closed.
fn gone(readers: &[OwnedFd]) -> bool {
    readers.iter().all(|reader| {
        let mut fds = [PollFd::new(reader, PollFlags::empty())];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    })
}

/// The kernel looks for such cycles when some Unix socket is closed: it takes no more than going on with them.
fn freed(readers: &[OwnedFd]) {
    until("the kernel frees the cycles", || {
        drop(UnixStream::pair().unwrap());
        gone(readers)
    });
}

/// A link whose socket waits in the queue of its own peer, that is, of itself: what the public API cannot see, since the other
/// end may be anywhere.
#[test]
fn links_in_their_own_queues() {
    let _alone = alone();
    for kind in KINDS {
        let (readers, writers) = witnesses(200);
        for writer in writers {
            let (left, right) = Link::pair_of(kind).unwrap();
            left.send(&(&right, Fd::from(writer))).unwrap();
            drop((left, right));
        }
        freed(&readers);
    }
}

#[test]
fn links_in_each_others_queues() {
    let _alone = alone();
    for kind in KINDS {
        let (readers, writers) = witnesses(200);
        for writer in writers {
            let (left, right) = Link::pair_of(kind).unwrap();
            let (other, another) = Link::pair_of(kind).unwrap();
            left.send(&(&another, FdRef::new(&writer))).unwrap();
            other.send(&(&right, FdRef::new(&writer))).unwrap();
        }
        freed(&readers);
    }
}

/// A listener in the queue of a link that waits in its own backlog.
#[test]
fn listeners_in_their_backlogs() {
    let _alone = alone();
    let (readers, writers) = witnesses(20);
    for (number, writer) in writers.into_iter().enumerate() {
        // A name stays taken until its cycle is freed.
        let address = common::abstract_name(&format!("cycle-{number}"));
        let listener = Listener::bind(&address).unwrap();
        let client = Link::connect(&address).unwrap();
        client.send(&(&listener, FdRef::new(&writer))).unwrap();
    }
    freed(&readers);
}

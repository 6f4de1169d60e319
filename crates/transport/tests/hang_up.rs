//! The end of a link: after everything that was sent, without a signal, once and for all (A29).

mod common;

use std::os::fd::{AsFd, OwnedFd};

use common::{Reaped, alone, child, memfd, parent, role};
use memlane_transport::{Error, Fd, Link};

#[test]
fn what_was_sent_is_delivered_first() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    left.send(&1_u8).unwrap();
    left.send(&(2_u8, Fd::from(memfd()))).unwrap();
    drop(left);
    assert!(right.send(&()).unwrap_err().is_disconnected());
    assert_eq!(right.recv::<u8>().unwrap(), 1);
    assert!(right.try_send(&()).unwrap_err().is_disconnected());
    assert_eq!(right.recv::<(u8, Fd)>().unwrap().0, 2);
    for _ in 0..3 {
        assert!(right.recv::<()>().unwrap_err().is_disconnected());
        assert!(right.try_recv::<()>().unwrap_err().is_disconnected());
        assert!(right.send(&()).unwrap_err().is_disconnected());
    }
}

/// A peer that closes with messages unread makes the kernel report ECONNRESET before the messages that it had sent.
#[test]
fn also_when_the_peer_had_not_read_everything() {
    let _alone = alone();
    for receive_first in [true, false] {
        let (left, right) = Link::pair().unwrap();
        right.send(&(0_u8, Fd::from(memfd()))).unwrap();
        left.send(&1_u8).unwrap();
        left.send(&2_u8).unwrap();
        drop(left);
        if !receive_first {
            assert!(right.send(&()).unwrap_err().is_disconnected());
        }
        assert_eq!(right.recv::<u8>().unwrap(), 1);
        assert_eq!(right.recv::<u8>().unwrap(), 2);
        assert!(right.recv::<u8>().unwrap_err().is_disconnected());
    }
}

#[test]
fn a_waiting_receiver_is_woken() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| right.recv::<()>().unwrap_err());
        drop(left);
        assert!(waiting.join().unwrap().is_disconnected());
    });
}

#[test]
fn a_waiting_sender_is_woken() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    while left.try_send(&()).is_ok() {}
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| left.send(&()).unwrap_err());
        drop(right);
        assert!(waiting.join().unwrap().is_disconnected());
    });
}

#[test]
fn a_link_that_was_shut_down_by_a_holder_of_the_socket() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let shared: OwnedFd = left.as_fd().try_clone_to_owned().unwrap();
    rustix::net::shutdown(&shared, rustix::net::Shutdown::Both).unwrap();
    assert!(left.send(&()).unwrap_err().is_disconnected());
    assert!(left.recv::<()>().unwrap_err().is_disconnected());
    assert!(right.recv::<()>().unwrap_err().is_disconnected());
}

#[test]
fn no_signal() {
    if role().is_some() {
        // SAFETY: the default action, which for SIGPIPE is to die; Rust's runtime ignores it.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let link = parent();
        link.recv::<String>().unwrap();
        let (left, right) = Link::pair().unwrap();
        drop(right);
        assert!(matches!(
            left.send(&Fd::from(memfd())),
            Err(Error::Disconnected)
        ));
        link.send("alive").unwrap();
        return;
    }
    let _alone = alone();
    let (link, theirs) = Link::pair().unwrap();
    let mut process = Reaped::spawn(&mut child("no_signal", "sender", theirs));
    link.send("go").unwrap();
    assert_eq!(link.recv::<String>().unwrap(), "alive");
    process.succeed();
}

#[test]
fn a_killed_peer() {
    if role().is_some() {
        let link = parent();
        link.send(&Fd::from(memfd())).unwrap();
        link.recv::<()>().unwrap();
    }
    let _alone = alone();
    let (link, theirs) = Link::pair().unwrap();
    let mut process = Reaped::spawn(&mut child("a_killed_peer", "victim", theirs));
    rustix::event::poll(
        &mut [rustix::event::PollFd::new(
            &link,
            rustix::event::PollFlags::IN,
        )],
        None,
    )
    .unwrap();
    process.kill();
    link.recv::<Fd>().unwrap();
    assert!(link.recv::<()>().unwrap_err().is_disconnected());
}

//! No room is an outcome, not a loss.

mod common;

use std::time::{Duration, Instant};

use common::{Reaped, alone, child, memfd, role};
use memlane_transport::{Error, Fd, FdRef, Link};
use rustix::process::{Resource, Rlimit, setrlimit};

#[test]
fn a_full_link_takes_more_once_the_peer_has_read() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let file = Fd::from(memfd());
    let mut sent = 0_u32;
    let error = loop {
        match left.try_send(&(sent, FdRef::new(&file))) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::WouldBlock), "{error:?}");
    assert!(error.is_retryable());
    assert!(sent > 10);

    let late = left
        .send_timeout(&(sent, FdRef::new(&file)), Duration::from_millis(5))
        .unwrap_err();
    assert!(matches!(late, Error::TimedOut), "{late:?}");

    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            for more in 0..1000 {
                left.send(&(sent + more, FdRef::new(&file))).unwrap();
            }
        });
        for expected in 0..sent + 1000 {
            assert_eq!(right.recv::<(u32, Fd)>().unwrap().0, expected);
        }
        sender.join().unwrap();
    });
    assert!(matches!(right.try_recv::<()>(), Err(Error::WouldBlock)));
}

#[test]
fn timeouts() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    for timeout in [
        Duration::ZERO,
        Duration::from_nanos(1),
        Duration::from_millis(20),
    ] {
        let start = Instant::now();
        assert!(matches!(
            right.recv_timeout::<()>(timeout),
            Err(Error::TimedOut)
        ));
        assert!(start.elapsed() >= timeout);
    }
    left.send(&1_u8).unwrap();
    // Something there is found with no time at all, and a time beyond the clock's range is for ever.
    assert_eq!(right.recv_timeout::<u8>(Duration::ZERO).unwrap(), 1);
    left.send_timeout(&2_u8, Duration::MAX).unwrap();
    assert_eq!(right.recv_timeout::<u8>(Duration::MAX).unwrap(), 2);
}

#[test]
fn the_flag_of_a_shared_description_does_not_matter() {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let _alone = alone();
    for flags in [OFlags::empty(), OFlags::NONBLOCK] {
        let (left, right) = Link::pair().unwrap();
        for end in [&left, &right] {
            let others = fcntl_getfl(end).unwrap() - OFlags::NONBLOCK;
            fcntl_setfl(end, others | flags).unwrap();
        }
        assert!(matches!(right.try_recv::<()>(), Err(Error::WouldBlock)));
        assert!(matches!(
            right.recv_timeout::<()>(Duration::from_millis(1)),
            Err(Error::TimedOut)
        ));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| right.recv::<u8>().unwrap());
            left.send(&3_u8).unwrap();
            assert_eq!(waiting.join().unwrap(), 3);
        });
        while left.try_send(&()).is_ok() {}
        assert!(matches!(
            left.send_timeout(&(), Duration::from_millis(1)),
            Err(Error::TimedOut)
        ));
    }
}

/// The limit is the sender's RLIMIT_NOFILE on what its user has in flight; root is exempt (A7).
#[test]
fn too_many_descriptors_in_flight() {
    if role().is_some() {
        return in_flight();
    }
    let _alone = alone();
    if !rustix::process::geteuid().is_root() {
        return in_flight();
    }
    let (_link, theirs) = Link::pair().unwrap();
    let mut command = child("too_many_descriptors_in_flight", "sender", theirs);
    if let Some(mut process) = Reaped::spawn_as(65534, &mut command) {
        process.succeed();
    }
}

fn in_flight() {
    let (left, right) = Link::pair().unwrap();
    let file = memfd();
    let limits = rustix::process::getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(64),
            ..limits
        },
    )
    .unwrap();
    let batch = vec![FdRef::new(&file); 10];
    let mut sent = 0;
    let error = loop {
        match left.try_send(&batch) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::WouldBlock), "{error:?}");
    // Long before the link is full of bytes.
    assert!(sent < 20, "{sent}");
    assert!(matches!(
        left.send_timeout(&batch, Duration::from_millis(3)),
        Err(Error::TimedOut)
    ));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| left.send(&batch).unwrap());
        for _ in 0..=sent {
            assert_eq!(right.recv::<Vec<Fd>>().unwrap().len(), 10);
        }
        sender.join().unwrap();
    });
    // A peer that goes away meanwhile is noticed.
    while left.try_send(&batch).is_ok() {}
    drop(right);
    assert!(left.send(&batch).unwrap_err().is_disconnected());
}

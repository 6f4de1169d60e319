//! Receipts: an answer comes exactly when the receiver holds the descriptors.

mod common;

use std::time::Duration;

use common::raw::KINDS;
use common::{Reaped, alone, child, inode, memfd, parent, role};
use memlane_transport::{Error, EventFd, Fd, Link, Receipt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const SOON: Duration = Duration::from_millis(2);

fn readable(receipt: &Receipt) -> bool {
    poll(
        &mut [PollFd::new(receipt, PollFlags::IN)],
        Some(&Timespec::default()),
    )
    .unwrap()
        > 0
}

fn pending(receipt: &Receipt) {
    assert!(!readable(receipt));
    assert!(matches!(receipt.try_wait(), Err(Error::WouldBlock)));
    assert!(matches!(receipt.wait_timeout(SOON), Err(Error::TimedOut)));
    assert!(receipt.try_wait().unwrap_err().is_retryable());
}

/// Whatever it is, it is the same for ever.
fn acknowledged(receipt: &Receipt) {
    for _ in 0..3 {
        receipt.wait().unwrap();
        receipt.try_wait().unwrap();
        receipt.wait_timeout(Duration::ZERO).unwrap();
        assert!(readable(receipt));
    }
}

fn not_acknowledged(receipt: &Receipt) {
    for _ in 0..3 {
        for answer in [
            receipt.wait(),
            receipt.try_wait(),
            receipt.wait_timeout(SOON),
        ] {
            let error = answer.unwrap_err();
            assert!(matches!(error, Error::NotAcknowledged), "{error:?}");
            assert!(!error.is_retryable() && !error.ends_link());
        }
        assert!(readable(receipt));
    }
}

#[test]
fn acknowledged_when_taken() {
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        let files: Vec<Fd> = (0..300).map(|_| memfd().into()).collect();
        for value in [&files[..0], &files[..1], &files] {
            // With the body in the packet, and in memory.
            for text in ["short".to_owned(), "long".repeat(10_000)] {
                let receipt = left.transfer(&(value, &text)).unwrap();
                pending(&receipt);
                let (taken, received): (Vec<Fd>, String) = right.recv().unwrap();
                acknowledged(&receipt);
                assert!(received == text);
                assert!(taken.iter().map(inode).eq(value.iter().map(inode)));
            }
        }
    }
}

/// Timed out first, taken later; and by several who wait at once.
#[test]
fn late() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let receipt = left.transfer(&Fd::from(memfd())).unwrap();
    assert!(matches!(receipt.wait_timeout(SOON), Err(Error::TimedOut)));
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..3).map(|_| scope.spawn(|| receipt.wait())).collect();
        right.recv::<Fd>().unwrap();
        for waiter in waiting {
            waiter.join().unwrap().unwrap();
        }
    });
    acknowledged(&receipt);
}

#[test]
fn for_each_message_its_own() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let receipts: Vec<_> = (0..5_u8)
        .map(|number| left.try_transfer(&number).unwrap())
        .collect();
    for taken in 0..5 {
        assert_eq!(right.recv::<u8>().unwrap(), taken);
        for (number, receipt) in receipts.iter().enumerate() {
            match number <= usize::from(taken) {
                true => acknowledged(receipt),
                false => pending(receipt),
            }
        }
    }
}

#[test]
fn the_receiver_refuses_the_message() {
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        let null = Fd::from(std::os::fd::OwnedFd::from(
            std::fs::File::open("/dev/null").unwrap(),
        ));
        let receipt = left.transfer(&null).unwrap();
        let behind = left.transfer(&null).unwrap();
        let error = right.recv::<EventFd>().unwrap_err();
        assert!(matches!(error, Error::WrongDescriptor { .. }), "{error:?}");
        not_acknowledged(&receipt);
        // Those that were queued behind are lost with the link.
        pending(&behind);
        drop(right);
        not_acknowledged(&behind);
        // The descriptor is still the sender's.
        let (again, taker) = Link::pair().unwrap();
        let receipt = again.transfer(&null).unwrap();
        taker.recv::<Fd>().unwrap();
        acknowledged(&receipt);
    }
}

#[test]
fn the_receiver_hangs_up_with_it_unread() {
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        let receipt = left.transfer(&Fd::from(memfd())).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| receipt.wait().unwrap_err());
            drop(right);
            assert!(matches!(waiting.join().unwrap(), Error::NotAcknowledged));
        });
        not_acknowledged(&receipt);
        let error = left.transfer(&()).unwrap_err();
        assert!(error.is_disconnected(), "{error:?}");
    }
}

#[test]
fn the_receiver_is_killed() {
    if let Some(role) = role() {
        let link = parent();
        if role == "takes" {
            link.recv::<Fd>().unwrap();
        }
        link.send("here").unwrap();
        link.recv::<String>().map(drop).unwrap_err();
        unreachable!("the parent kills this process");
    }
    let _alone = alone();
    for role in ["takes", "waits"] {
        let (link, theirs) = Link::pair().unwrap();
        let mut process = Reaped::spawn(&mut child("the_receiver_is_killed", role, theirs));
        let receipt;
        if role == "takes" {
            receipt = link.transfer(&Fd::from(memfd())).unwrap();
            assert_eq!(link.recv::<String>().unwrap(), "here");
            process.kill();
            // It had taken the message: that it died later is another matter.
            acknowledged(&receipt);
        } else {
            assert_eq!(link.recv::<String>().unwrap(), "here");
            // SAFETY: a child of ours that has not been waited for.
            unsafe { libc::kill(process.0.id() as i32, libc::SIGSTOP) };
            receipt = link.transfer(&Fd::from(memfd())).unwrap();
            pending(&receipt);
            process.kill();
            not_acknowledged(&receipt);
        }
    }
}

/// A sender that does not wait: the receiver does not notice.
#[test]
fn dropped_before_the_answer() {
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        for number in 0..3_u8 {
            drop(left.transfer(&(number, Fd::from(memfd()))).unwrap());
            assert_eq!(right.recv::<(u8, Fd)>().unwrap().0, number);
        }
        drop(left.transfer(&(3_u8, Fd::from(memfd()))).unwrap());
        drop(left);
        assert_eq!(right.recv::<(u8, Fd)>().unwrap().0, 3);
        assert!(right.recv::<()>().unwrap_err().is_disconnected());
    }
}

/// What cannot be sent has no receipt, and is still there.
#[test]
fn without_room() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let file = Fd::from(memfd());
    let mut receipts = Vec::new();
    let error = loop {
        match left.try_transfer(&file) {
            Ok(receipt) => receipts.push(receipt),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::WouldBlock), "{error:?}");
    let error = left.transfer_timeout(&file, SOON).unwrap_err();
    assert!(matches!(error, Error::TimedOut), "{error:?}");
    for receipt in &receipts {
        right.recv::<Fd>().unwrap();
        acknowledged(receipt);
    }
    left.try_transfer(&file).unwrap();
    right.recv::<Fd>().unwrap();
}

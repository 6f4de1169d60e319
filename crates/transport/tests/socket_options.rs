//! Someone who shares this end's socket turns on control messages that nobody asked for (A17).

mod common;

use std::os::fd::{AsFd, AsRawFd};

use common::{alone, descriptors, memfd};
use memlane_transport::{Error, Fd, FdRef, Link};

fn set(link: &Link, option: libc::c_int) -> bool {
    let one: libc::c_int = 1;
    // SAFETY: an integer and its size.
    let result = unsafe {
        libc::setsockopt(
            link.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const one).cast(),
            4,
        )
    };
    result == 0
}

#[test]
fn credentials_end_the_link() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    assert!(set(&right, libc::SO_PASSCRED));
    let file = memfd();
    // As many as go, so that everything together needs the most room.
    left.send(&vec![FdRef::new(&file); 253]).unwrap();
    let error = right.recv::<Vec<Fd>>().unwrap_err();
    assert!(matches!(
        error,
        Error::ForeignControl {
            level: libc::SOL_SOCKET,
            kind: libc::SCM_CREDENTIALS
        }
    ));
    assert!(matches!(right.recv::<()>(), Err(Error::Ended { .. })));
}

#[test]
fn pidfds_are_closed() {
    const SO_PASSPIDFD: libc::c_int = 76;
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    if !set(&right, SO_PASSPIDFD) {
        eprintln!("skipped: no SO_PASSPIDFD before Linux 6.5");
        return;
    }
    let before = descriptors();
    let file = memfd();
    for count in [0, 1, 253] {
        for _ in 0..200 {
            left.send(&vec![FdRef::new(&file); count]).unwrap();
            assert_eq!(right.recv::<Vec<Fd>>().unwrap().len(), count);
        }
    }
    drop(file);
    assert_eq!(descriptors(), before);
}

#[test]
fn both_options_leak_nothing() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    set(&right, 76);
    assert!(set(&right, libc::SO_PASSCRED));
    left.send(&Fd::from(memfd())).unwrap();
    assert!(right.recv::<Fd>().unwrap_err().ends_link());
}

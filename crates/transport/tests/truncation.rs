//! A receiver without free descriptor numbers loses descriptors silently, says recvmsg; here it is an error that says so (A1).

mod common;

use std::os::fd::OwnedFd;

use common::{Reaped, child, descriptors, memfd, parent, role};
use memlane_transport::{Error, Fd, FdRef, Link};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Takes every number below the highest in use: the limit is on numbers, and those below it that are free count.
fn fill_gaps() -> Vec<OwnedFd> {
    let null = std::fs::File::open("/dev/null").unwrap();
    let mut fillers = vec![OwnedFd::from(null)];
    let full = || descriptors().into_keys().eq(0..descriptors().len() as i32);
    while !full() {
        fillers.push(fillers[0].try_clone().unwrap());
    }
    fillers
}

/// Leaves `free` descriptor numbers.
fn leave(free: u64) {
    let used = descriptors();
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(used.len() as u64 + free),
            maximum,
        },
    )
    .unwrap();
}

fn receive(free: u64) {
    let link = parent();
    link.send("ready").unwrap();
    link.recv::<()>().unwrap();
    let _fillers = fill_gaps();
    let before = descriptors();
    let limit = getrlimit(Resource::Nofile);
    leave(free);
    let error = link.recv::<Vec<Fd>>().unwrap_err();
    let again = link.recv::<Vec<Fd>>().unwrap_err();
    setrlimit(Resource::Nofile, limit).unwrap();
    assert_eq!(descriptors(), before);
    assert!(
        matches!(error, Error::DescriptorsTruncated { announced: Some(10), received } if received as u64 == free),
        "{error:?}"
    );
    assert!(error.to_string().contains("RLIMIT_NOFILE"), "{error}");
    assert!(matches!(again, Error::Ended { .. }), "{again:?}");
}

fn truncated(test: &str) {
    let _alone = common::alone();
    let (link, theirs) = Link::pair().unwrap();
    let mut process = Reaped::spawn(&mut child(test, "receiver", theirs));
    assert_eq!(link.recv::<String>().unwrap(), "ready");
    let file = memfd();
    link.send(&()).unwrap();
    link.send(&vec![FdRef::new(&file); 10]).unwrap();
    process.succeed();
}

#[test]
fn three_numbers_left() {
    match role() {
        Some(_) => receive(3),
        None => truncated("three_numbers_left"),
    }
}

#[test]
fn no_number_left() {
    match role() {
        Some(_) => receive(0),
        None => truncated("no_number_left"),
    }
}

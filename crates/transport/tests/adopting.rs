//! Descriptors that are taken as links and listeners: only what is one.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use common::{Directory, abstract_name, alone, memfd};
use memlane_transport::{Access, Address, Error, Link, Listener};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

fn wrong(fd: impl Into<OwnedFd>, expected: &str) {
    let fd = fd.into();
    let copy = fd.try_clone().unwrap();
    let error = Link::from_fd(fd).unwrap_err();
    assert!(matches!(error, Error::WrongSocket { .. }), "{error:?}");
    assert!(error.to_string().contains(expected), "{error}");
    let error = Listener::from_fd(copy, Access::SameUser).unwrap_err();
    assert!(matches!(error, Error::WrongSocket { .. }), "{error:?}");
}

#[test]
fn other_kinds() {
    let alone = alone();
    wrong(memfd(), "no socket");
    wrong(std::fs::File::open("/dev/null").unwrap(), "no socket");
    wrong(
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap(),
        "family 2",
    );
    wrong(UnixDatagram::pair().unwrap().0, "type 2");
    let flags = SocketFlags::CLOEXEC;
    wrong(
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap(),
        "not connected",
    );
    alone.settled();
}

#[test]
fn a_link() {
    let _alone = alone();
    let (left, right) = Link::pair().unwrap();
    let fd = left.into_fd();
    fcntl_setfd(&fd, FdFlags::empty()).unwrap();
    let left = Link::from_fd(fd).unwrap();
    assert_eq!(fcntl_getfd(&left).unwrap(), FdFlags::CLOEXEC);
    left.send("hello").unwrap();
    drop(left);
    // One whose peer is gone is still a link, with something to deliver.
    let right = Link::from_fd(right.into()).unwrap();
    assert_eq!(right.recv::<String>().unwrap(), "hello");
    assert!(right.recv::<()>().unwrap_err().is_disconnected());
    assert!(Link::from_fd(right.into()).is_ok());
}

#[test]
fn a_listener() {
    let _alone = alone();
    let directory = Directory::new();
    for address in [
        Address::path(directory.join("service")).unwrap(),
        abstract_name("inherited"),
    ] {
        let original = Listener::bind(&address).unwrap();
        let copy = original.as_fd().try_clone_to_owned().unwrap();
        let adopted = Listener::from_fd(copy, Access::SameUser).unwrap();
        assert_eq!(adopted.address(), &address);
        let client = Link::connect(&address).unwrap();
        adopted.accept().unwrap().send("hello").unwrap();
        assert_eq!(client.recv::<String>().unwrap(), "hello");
        // It does not own the file.
        drop(adopted);
        Link::connect(&address).unwrap();
        let connected = Link::connect(&address).unwrap().into_fd();
        assert!(Listener::from_fd(connected, Access::SameUser).is_err());
        assert!(Link::from_fd(original.as_fd().try_clone_to_owned().unwrap()).is_err());
    }
}

/// What std makes is a link, too: the other kind.
#[test]
fn a_stream() {
    let _alone = alone();
    let (left, right) = UnixStream::pair().unwrap();
    let left = Link::from_fd(left.into()).unwrap();
    let right = Link::from_fd(right.into()).unwrap();
    left.send("hello").unwrap();
    assert_eq!(right.recv::<String>().unwrap(), "hello");
}

//! Links that come in, and what happens when they do not.

mod common;

use std::time::Duration;

use common::{Directory, Reaped, abstract_name, alone, child, descriptors, parent, role};
use memlane_transport::{Access, Address, Error, Fd, Link, Listener};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{FdFlags, fcntl_getfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn by_path_and_by_abstract_name() {
    let _alone = alone();
    let directory = Directory::new();
    for address in [
        Address::path(directory.join("service")).unwrap(),
        abstract_name("service"),
    ] {
        let listener = Listener::bind(&address).unwrap();
        assert_eq!(fcntl_getfd(&listener).unwrap(), FdFlags::CLOEXEC);
        let clients: Vec<_> = (0..5).map(|_| Link::connect(&address).unwrap()).collect();
        for (number, client) in clients.iter().enumerate() {
            client.send(&(number, Fd::from(common::memfd()))).unwrap();
            let link = listener.accept().unwrap();
            assert_eq!(fcntl_getfd(&link).unwrap(), FdFlags::CLOEXEC);
            assert_eq!(link.recv::<(usize, Fd)>().unwrap().0, number);
            link.send("done").unwrap();
            assert_eq!(client.recv::<String>().unwrap(), "done");
        }
        let error = Listener::bind(&address).unwrap_err();
        assert!(matches!(error, Error::AddressInUse { .. }), "{error:?}");
        drop(listener);
        let error = Link::connect(&address).unwrap_err();
        assert!(matches!(error, Error::NotRunning { .. }), "{error:?}");
    }
}

#[test]
fn without_anyone_waiting() {
    let _alone = alone();
    let address = abstract_name("lonely");
    let listener = Listener::bind(&address).unwrap();
    assert!(matches!(listener.try_accept(), Err(Error::WouldBlock)));
    assert!(matches!(
        listener.accept_timeout(Duration::from_millis(2)),
        Err(Error::TimedOut)
    ));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| listener.accept().unwrap());
        let client = Link::connect(&address).unwrap();
        waiting.join().unwrap().send(&1_u8).unwrap();
        assert_eq!(client.recv::<u8>().unwrap(), 1);
    });
    let _client = Link::connect(&address).unwrap();
    poll(&mut [PollFd::new(&listener, PollFlags::IN)], None).unwrap();
    listener.try_accept().unwrap();
    let _client = Link::connect(&address).unwrap();
    listener.accept_timeout(Duration::MAX).unwrap();
}

#[test]
fn a_full_backlog_bounds_a_connect() {
    let _alone = alone();
    let address = abstract_name("full");
    let listener = Listener::bind(&address).unwrap();
    let mut clients = Vec::new();
    let error = loop {
        match Link::connect_timeout(&address, Duration::from_millis(20)) {
            Ok(client) => clients.push(client),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::TimedOut), "{error:?}");
    assert!(matches!(
        Link::connect_timeout(&address, Duration::ZERO),
        Err(Error::TimedOut)
    ));
    let error = Link::try_connect(&address).unwrap_err();
    assert!(matches!(error, Error::WouldBlock), "{error:?}");
    // A place that becomes free is taken by one that waits for it.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Link::connect(&address).unwrap());
        for client in &clients {
            client.send(&0_u8).unwrap();
            assert_eq!(listener.accept().unwrap().recv::<u8>().unwrap(), 0);
        }
        let late = waiting.join().unwrap();
        late.send(&1_u8).unwrap();
        assert_eq!(listener.accept().unwrap().recv::<u8>().unwrap(), 1);
    });
    // Whoever waits when the listener goes is told.
    let clients: Vec<_> = (0..clients.len())
        .map(|_| Link::connect(&address).unwrap())
        .collect();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Link::connect(&address).unwrap_err());
        drop(listener);
        let error = waiting.join().unwrap();
        assert!(matches!(error, Error::NotRunning { .. }), "{error:?}");
    });
    assert!(
        clients
            .iter()
            .all(|client| client.recv::<()>().unwrap_err().is_disconnected())
    );
}

#[test]
fn out_of_descriptor_numbers() {
    if role().is_some() {
        let link = parent();
        let listener = Listener::bind(&abstract_name("limit")).unwrap();
        link.send(&listener.address().to_string()).unwrap();
        link.recv::<()>().unwrap();
        let before = descriptors();
        let limits = getrlimit(Resource::Nofile);
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(3),
                ..limits
            },
        )
        .unwrap();
        for _ in 0..3 {
            let error = listener.accept().unwrap_err();
            assert!(matches!(error, Error::DescriptorLimit(_)), "{error:?}");
            assert!(error.is_retryable());
        }
        setrlimit(Resource::Nofile, limits).unwrap();
        assert_eq!(descriptors(), before);
        // The client has waited.
        assert_eq!(
            listener.accept().unwrap().recv::<String>().unwrap(),
            "patience"
        );
        return;
    }
    let _alone = alone();
    let (link, theirs) = Link::pair().unwrap();
    let mut process = Reaped::spawn(&mut child("out_of_descriptor_numbers", "server", theirs));
    let address: String = link.recv().unwrap();
    let client = Link::connect(&address.parse().unwrap()).unwrap();
    client.send("patience").unwrap();
    link.send(&()).unwrap();
    process.succeed();
}

/// Whoever connects need not know the type. Of abstract names each type has its own, and packets come first.
#[test]
fn of_either_kind() {
    let _alone = alone();
    let directory = Directory::new();
    for kind in common::raw::KINDS {
        for address in [
            Address::path(directory.join("kind")).unwrap(),
            abstract_name("kind"),
        ] {
            let listener = Listener::bind_kind(&address, Access::SameUser, kind).unwrap();
            let client = Link::connect(&address).unwrap();
            let server = listener.accept().unwrap();
            client.send(&(1_u8, Fd::from(common::memfd()))).unwrap();
            assert_eq!(server.recv::<(u8, Fd)>().unwrap().0, 1);
            drop((client, server));
            let client = Link::try_connect(&address).unwrap();
            client.send("hello").unwrap();
            assert_eq!(
                listener.accept().unwrap().recv::<String>().unwrap(),
                "hello"
            );
            let error = Listener::bind_kind(&address, Access::SameUser, kind).unwrap_err();
            assert!(matches!(error, Error::AddressInUse { .. }), "{error:?}");
            drop(listener);
            let error = Link::connect(&address).unwrap_err();
            assert!(matches!(error, Error::NotRunning { .. }), "{error:?}");
        }
    }
    let address = abstract_name("both");
    let [packets, stream] = common::raw::KINDS
        .map(|kind| Listener::bind_kind(&address, Access::SameUser, kind).unwrap());
    let _client = Link::connect(&address).unwrap();
    packets.try_accept().unwrap();
    assert!(matches!(stream.try_accept(), Err(Error::WouldBlock)));
}

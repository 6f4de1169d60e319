//! One message with everything in it: a region, both kinds of doorbells, a listener, a link, a file.

use std::{
    fs::File,
    io::Read,
    os::fd::OwnedFd,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use memlane_region::{Remote, Shared, page_size};
use memlane_signaling::{Backing, Doorbell, Ringer, Waiter, Woken};
use memlane_tests::{Part, Role, Scene, play};
use memlane_transport::{Address, EventFd, Fd, FdRef, Link, Listener, MemoryFd, StreamFd};
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[("receiver", receiver)];

#[test]
fn other_process() {
    play(ROLES);
}

const QUOTA: usize = 1 << 20;

#[derive(Serialize)]
struct Bundle<'a> {
    name: &'a str,
    regions: Vec<MemoryFd>,
    trusted: EventFd,
    untrusted: Option<StreamFd>,
    service: (&'a Listener, &'a Link),
    file: FdRef<'a>,
}

#[derive(Deserialize)]
struct Received {
    name: String,
    regions: Vec<MemoryFd>,
    trusted: EventFd,
    untrusted: Option<StreamFd>,
    service: (Listener, Link),
    file: Fd,
}

/// Uses each of the things it gets.
fn receiver(role: &Role) {
    role.hear::<()>();
    let bundle: Received = role.hear();
    assert_eq!((bundle.name.as_str(), bundle.regions.len()), ("bundle", 2));
    for (at, region) in bundle.regions.into_iter().enumerate() {
        let region = Remote::open(OwnedFd::from(region), page_size(), 0, QUOTA).expect("a region");
        assert_eq!(region.load_word(64), at as u64 + 7);
    }
    let (listener, link) = bundle.service;
    link.send("from the link").expect("room");
    let client = listener.accept().expect("the parent");
    client.send("from the listener").expect("room");
    let mut text = String::new();
    File::from(OwnedFd::from(bundle.file))
        .read_to_string(&mut text)
        .expect("the file");
    role.tell(&text);
    for (end, backing) in [
        (OwnedFd::from(bundle.trusted), Backing::EventFd),
        (
            OwnedFd::from(bundle.untrusted.expect("a doorbell")),
            Backing::Socket,
        ),
    ] {
        Ringer::open(end, backing).expect("a doorbell").ring();
    }
    role.hear()
}

#[test]
fn everything_at_once() {
    let scene = Scene::new();
    let child = scene.spawn("receiver", &());

    let regions = [7, 8].map(|value| {
        let (region, descriptor) = Shared::create("test", page_size(), 0).expect("a page");
        region.word(64).store(value, Ordering::Relaxed);
        (
            region,
            MemoryFd::try_from(descriptor).expect("a region is memory"),
        )
    });
    let (kept, regions): (Vec<_>, Vec<_>) = regions.into_iter().unzip();
    let (mut trusted, eventfd) = Doorbell::new(Backing::EventFd).expect("an eventfd");
    let (mut untrusted, socket) = Doorbell::new(Backing::Socket).expect("a socket");
    let address = Address::path(scene.directory().join("service")).expect("a short path");
    let listener = Listener::bind(&address).expect("a listener");
    let (link, theirs) = Link::pair().expect("a pair");
    let path = scene.directory().join("file");
    std::fs::write(&path, "from the file").expect("a file");
    let file = File::open(&path).expect("a file");
    // The descriptor is all it takes.
    std::fs::remove_file(path).expect("the file");

    child.tell(&Bundle {
        name: "bundle",
        regions,
        trusted: eventfd.try_into().expect("an eventfd"),
        untrusted: Some(socket.try_into().expect("a stream socket")),
        service: (&listener, &theirs),
        file: FdRef::new(&file),
    });
    // The child goes on with it, and removes the file.
    listener.release();
    drop(theirs);

    assert_eq!(link.recv::<String>().expect("the child"), "from the link");
    let client = Link::connect(&address).expect("the child");
    assert_eq!(
        client.recv::<String>().expect("the child"),
        "from the listener"
    );
    assert_eq!(child.hear::<String>(), "from the file");
    for doorbell in [&mut trusted, &mut untrusted] {
        let waiter = Waiter::new(&*doorbell).expect("an epoll");
        let woken = waiter.wait(doorbell, Some(Instant::now() + Duration::from_secs(60)));
        assert_eq!(woken.expect("a wait"), Woken::Rung);
    }
    drop(kept);
    child.tell(&());
    child.finish();
    assert!(!scene.directory().join("service").exists());
}

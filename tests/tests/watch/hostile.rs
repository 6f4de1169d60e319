//! Senders by hand, of another version, or mean.

use std::thread;

use memlane::{
    Address, Error, Link, ReadError, Reason, WatchError, WatchReceiver,
    transport::{Access, Listener},
};
use memlane_region::{Shared, latest::ring_len, page_size};
use memlane_tests::{PATIENCE, Scene, wait_until, wire};

use crate::lane::{bind, connect};

/// A sender that is made by hand: what it has in memory is up to the test.
fn by_hand(
    address: &Address,
    capacity: u64,
    write: impl FnOnce(&mut Shared) + Send + 'static,
) -> thread::JoinHandle<Link> {
    let listener = Listener::bind_with(address, Access::SameUser).unwrap();
    thread::spawn(move || {
        let link = listener.accept().unwrap();
        let version = wire::VERSION;
        link.send(&wire::Opening { version }).unwrap();
        let opening: wire::Opening = link.recv().unwrap();
        assert_eq!(opening.version, version);
        let _greeting: wire::Greeting = link.recv().unwrap();
        let (mut memory, ring) =
            Shared::create("by-hand", page_size(), ring_len(24).unwrap()).unwrap();
        write(&mut memory);
        let welcome = wire::Welcome {
            rings: wire::Rings::Socket,
            doorbell: wire::Bell::None,
            ..wire::Welcome::new(ring.into(), capacity)
        };
        link.send(&wire::Answer::Welcome(welcome)).unwrap();
        drop(listener);
        link
    })
}

#[test]
fn nonsense_in_memory_is_an_error() {
    let scene = Scene::new();
    let address = scene.address("pose");
    // Larger than the memory that is there.
    let hostile = by_hand(&address, 1 << 20, |_| {});
    let error = WatchReceiver::builder().connect_to(&address).unwrap_err();
    assert!(matches!(error, Error::Region(_)), "{error:?}");
    hostile.join().unwrap();
    for capacity in [u64::MAX, 1 << 62] {
        let hostile = by_hand(&address, capacity, |_| {});
        let error = WatchReceiver::builder().connect_to(&address).unwrap_err();
        assert!(matches!(error, Error::NoSender { .. }), "{error:?}");
        hostile.join().unwrap();
    }
    // A length that no value has.
    let hostile = by_hand(&address, 24, |memory| {
        use memlane_region::WordsMut;
        memory.store(128 + 8, 25);
        memory.store_release(128, 1 << 1);
    });
    let mut receiver = connect(&address);
    let error = receiver.get().unwrap_err();
    assert!(
        matches!(
            error,
            WatchError::Value(ReadError::Corrupt { len: 25, max: 24 })
        ),
        "{error:?}"
    );
    let link = hostile.join().unwrap();
    drop((receiver, link));
    // What is no farewell is nonsense, too.
    let hostile = by_hand(&address, 24, |_| {});
    let mut receiver = connect(&address);
    let link = hostile.join().unwrap();
    link.send(&wire::Notice::Removed { id: 3 }).unwrap();
    drop(link);
    let error = receiver.changed().unwrap_err();
    assert!(
        matches!(&error, WatchError::Disconnected { reason: Reason::Broken { why } }
            if why == "expected a farewell, got Removed { id: 3 }"),
        "{error:?}"
    );
    // A number that is in the wrong place, and one that no update reaches.
    for word in [2 << 1, u64::MAX - 1] {
        drop(receiver);
        let hostile = by_hand(&address, 24, move |memory| {
            use memlane_region::WordsMut;
            memory.store_release(128, word);
        });
        receiver = connect(&address);
        let error = receiver.get().unwrap_err();
        assert!(
            matches!(error, WatchError::Value(ReadError::Unstable { .. })),
            "{error:?}"
        );
        hostile.join().unwrap();
    }
}

#[test]
fn another_version_is_told_from_ours() {
    let scene = Scene::new();
    let address = scene.address("pose");
    let future = wire::of_the_future(&address);
    let error = WatchReceiver::builder().connect_to(&address).unwrap_err();
    assert!(matches!(error, Error::Version { .. }), "{error:?}");
    future.join().unwrap();

    let sender = bind(&address);
    let link = Link::connect_with(&address, Access::SameUser).unwrap();
    let version = wire::VERSION - 1;
    link.send(&wire::Opening { version }).unwrap();
    let opening: wire::Opening = link.recv_timeout(PATIENCE).unwrap();
    assert_eq!(opening.version, wire::VERSION);
    wait_until("it is refused", || sender.refused() == 1);
}

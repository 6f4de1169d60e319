//! Ends that meet one of another version, older or newer, whatever that says next: each hears the other's version, and goes on.
//!
//! Publishers and subscribers do in services.rs, clients and servers and latest values in files of theirs, those who move in
//! travel_steps.

use std::thread;

use memlane::{
    Error, Key, Link, Publisher, Receiver, Sender, Subscriber, Subscriptions, TryRecvError,
    transport::Listener,
};
use memlane_tests::{
    PATIENCE, Scene, unbound, wait_until,
    wire::{Greeting, Opening, VERSION, of_the_future},
};

/// Before and after this one, and some that will never be.
const OTHERS: [u32; 4] = [VERSION - 1, VERSION + 1, 0, u32::MAX];

#[track_caller]
fn told<T: std::fmt::Debug>(outcome: Result<T, Error>, version: u32, them: &str, us: &str) {
    let error = outcome.unwrap_err();
    assert!(
        matches!(error, Error::Version { theirs, ours, .. } if (theirs, ours) == (version, VERSION)),
        "{error:?}"
    );
    let text = error.to_string();
    let which = if version > VERSION { us } else { them };
    for expected in [
        format!("the {them} speaks version {version}"),
        format!("this {us} version {VERSION}"),
        format!("update the {which}"),
    ] {
        assert!(text.contains(&expected), "expected {expected}, got {text}");
    }
}

/// A receiver lets those of other versions go, and counts them; senders of its own get on.
#[test]
fn senders_that_come_to_a_receiver() {
    let scene = Scene::new();
    let address = scene.address("jobs");
    let mut receiver = Receiver::builder().bind_to(&address).unwrap();
    let connecting = thread::spawn(move || {
        let builder = Publisher::builder().timeout(PATIENCE);
        builder.connect_to(&address).unwrap()
    });
    wait_until("the sender is there", || {
        assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
        receiver.senders() == 1
    });
    let mut sender = connecting.join().unwrap();
    for (at, version) in OTHERS.into_iter().enumerate() {
        let link = Link::connect(&scene.address("jobs")).unwrap();
        link.send(&Opening { version }).unwrap();
        let _ = link.send(&("an offer of the future", vec![1_u64; 20]));
        wait_until("it is let go", || {
            assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
            receiver.stats().refused == at as u64 + 1
        });
        let theirs: Opening = link.recv_timeout(PATIENCE).unwrap();
        assert_eq!(theirs.version, VERSION);
        // It greets whoever comes, without waiting.
        let end = loop {
            if let Err(error) = link.recv_timeout::<Greeting>(PATIENCE) {
                break error;
            }
        };
        assert!(end.is_disconnected(), "{end}");
        sender.send(b"a job").unwrap();
        assert_eq!(receiver.recv_timeout(PATIENCE).unwrap().to_vec(), b"a job");
    }
    assert_eq!(receiver.senders(), 1);
}

#[test]
fn a_sender_that_comes_to_a_receiver() {
    let scene = Scene::new();
    let address = scene.address("jobs");
    for version in OTHERS {
        let listener = Listener::bind(&address).unwrap();
        let connecting = {
            let address = address.clone();
            thread::spawn(move || Sender::builder().timeout(PATIENCE).connect_to(&address))
        };
        let link = listener.accept_timeout(PATIENCE).unwrap();
        link.send(&Opening { version }).unwrap();
        let _ = link.send(&(3_u8, "a greeting of the future"));
        told(connecting.join().unwrap(), version, "receiver", "sender");
    }
}

/// One of many: the others are not touched, and it is no member.
#[test]
fn subscriptions_to_one_of_another_version() {
    let scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let mut publisher = unbound(4096).unbound().unwrap();
    publisher.attach(ours).unwrap();
    let mut subscriptions = Subscriptions::new().unwrap();
    let subscriber = Subscriber::builder().over(theirs).unwrap();
    let key: Key = subscriptions.add(subscriber).unwrap();
    let address = scene.address("future");
    let future = of_the_future(&address);
    let error = subscriptions.connect_to(&address);
    told(error, VERSION + 1, "publisher", "subscriber");
    future.join().unwrap();
    assert_eq!(subscriptions.len(), 1);
    publisher.send(b"as ever").unwrap();
    let memlane::Received::Message(from, message) = subscriptions.recv().unwrap() else {
        panic!("nobody has ended");
    };
    assert_eq!((from, message.to_vec()), (key, b"as ever".to_vec()));
}

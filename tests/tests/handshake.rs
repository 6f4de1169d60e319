//! Handshakes at awkward moments, and links that come from elsewhere.

use std::thread;

use memlane::{Error, Link, Publisher, RecvError, Subscriber, WaitPolicy};
use memlane_tests::{Part, Role, Scene, alive, play, wait_until};
use memlane_transport::{Error as LinkError, Fd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const ROLES: &[(&str, Part)] = &[("launcher", launcher)];

#[test]
fn other_process() {
    play(ROLES);
}

/// Makes a link, gives both ends away, and exits.
fn launcher(role: &Role) {
    let (left, right) = Link::pair().expect("a pair");
    let ends: (Fd, Fd) = (left.into_fd().into(), right.into_fd().into());
    role.tell(&ends);
}

fn readable(link: &Link) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut source = [PollFd::new(link, PollFlags::IN)];
    poll(&mut source, Some(&now)) == Ok(1)
}

/// The greeting is there before the publisher gets the link: the event that says so must not be taken for one of
/// the subscriber that it has made by then.
#[test]
fn a_greeting_that_waits() {
    let _scene = Scene::new();
    let mut publisher = Publisher::builder().unbound().unwrap();
    for round in 0..300_u32 {
        let (ours, theirs) = Link::pair().unwrap();
        thread::scope(|scope| {
            let connecting = scope.spawn(|| Subscriber::builder().over(theirs).unwrap());
            wait_until("the greeting", || readable(&ours));
            publisher.attach(ours).unwrap();
            let mut subscriber = connecting.join().unwrap();
            publisher.send(&round.to_ne_bytes()).unwrap();
            assert_eq!(subscriber.recv().unwrap().to_vec(), round.to_ne_bytes());
            assert_eq!(publisher.subscribers(), 1);
        });
        wait_until("the subscriber has left", || publisher.subscribers() == 0);
        alive();
    }
}

/// A client that tries until the publisher is there connects while it is still being made.
#[test]
fn clients_that_were_first() {
    let scene = Scene::new();
    let address = scene.address("early");
    for _ in 0..100 {
        thread::scope(|scope| {
            let connecting = scope.spawn(|| {
                loop {
                    match Subscriber::builder().connect_to(&address) {
                        Ok(subscriber) => return subscriber,
                        Err(Error::Link(LinkError::NotRunning { .. })) => thread::yield_now(),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
            let mut publisher = Publisher::builder().bind_to(&address).unwrap();
            publisher.wait_for_subscribers(1).unwrap();
            publisher.send(b"first").unwrap();
            assert_eq!(
                connecting.join().unwrap().recv().unwrap().to_vec(),
                b"first"
            );
        });
        alive();
    }
}

/// The kernel says of a pair who made it. That this process is gone says nothing of those who use it.
#[test]
fn a_launcher_that_exits() {
    let scene = Scene::new();
    let child = scene.spawn("launcher", &());
    let (left, right): (Fd, Fd) = child.hear();
    child.finish();
    let [ours, theirs] = [left, right].map(|end| Link::from_fd(end.into()).unwrap());
    let mut publisher = Publisher::builder().unbound().unwrap();
    publisher.attach(ours).unwrap();
    let mut subscriber = Subscriber::builder()
        .wait(WaitPolicy::Block)
        .over(theirs)
        .unwrap();
    for message in 0..100_u32 {
        publisher.send(&message.to_ne_bytes()).unwrap();
        assert_eq!(subscriber.recv().unwrap().to_vec(), message.to_ne_bytes());
    }
    assert_eq!(publisher.subscribers(), 1);
    drop(publisher);
    assert!(matches!(
        subscriber.recv(),
        Err(RecvError::Disconnected { .. })
    ));
}

/// A subscriber joins and falls asleep while the ring is full of messages to nobody: the publisher's next message
/// takes it up when it looks for room, and still has to ring.
#[test]
fn a_sleeper_that_is_found_while_looking_for_room() {
    let _scene = Scene::new();
    for _ in 0..20 {
        let mut publisher = Publisher::builder().ring_bytes(1 << 16).unbound().unwrap();
        let message = [7; 8000];
        while publisher.try_send(&message).is_ok() && publisher.stats().messages < 8 {}
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        let mut subscriber = Subscriber::builder()
            .wait(WaitPolicy::Block)
            .over(theirs)
            .unwrap();
        thread::scope(|scope| {
            let receiving = scope.spawn(move || {
                for _ in 0..50 {
                    assert_eq!(subscriber.recv().unwrap().len(), 8000);
                }
            });
            for _ in 0..50 {
                publisher.send(&message).unwrap();
            }
            receiving.join().unwrap();
        });
        alive();
    }
}

//! Either side is killed, and somebody else has its end of the link.

use std::os::fd::AsFd;

use memlane::Link;
use memlane_region::page_size;
use memlane_tests::{Form, Policy, Received, Role, Scene, Wish, thread_id, unbound, wait_asleep};
use memlane_transport::Fd;

/// Publishes so many messages to one subscriber, and waits for its end.
pub(crate) fn sharing_publisher(role: &Role) {
    let (address, messages): (String, u64) = role.hear();
    let mut publisher = unbound(page_size())
        .bind_to(&address.parse().expect("an address"))
        .expect("a publisher");
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("a subscriber");
    for number in 0..messages {
        publisher.send(&number.to_le_bytes()).expect("room");
    }
    role.tell(&());
    role.hear::<()>();
}

/// Somebody else holds the publisher's end of the link, so that it does not hang up: its process is what counts.
#[test]
fn a_killed_publisher_whose_link_lives_on() {
    for policy in Policy::ALL {
        for form in [Form::Recv, Form::TryRecv, Form::RecvTimeout] {
            for trusting in [false, true] {
                let scene = Scene::new();
                let address = scene.address("lane");
                let child = scene.spawn("sharing publisher", &(address.to_string(), 10_u64));
                child.hear::<()>();
                let mut subscriber = Wish { policy, trusting }.connect(&address).unwrap();
                child.hear::<()>();
                let copies = child.copies_of_its_sockets();
                assert!(!copies.is_empty());
                let mut message = Vec::new();
                let asleep = std::thread::scope(|scope| {
                    let (id, ids) = std::sync::mpsc::channel();
                    let (subscriber, message) = (&mut subscriber, &mut message);
                    let receiving = scope.spawn(move || {
                        for number in 0..10_u64 {
                            subscriber.receive(form, message).expect("a message");
                            assert_eq!(**message, number.to_le_bytes());
                        }
                        id.send(thread_id()).unwrap();
                        subscriber.receive(form, message)
                    });
                    let thread = ids.recv().unwrap();
                    if policy == Policy::Block && !matches!(form, Form::TryRecv) {
                        wait_asleep(std::process::id(), thread);
                    }
                    child.kill();
                    receiving.join().unwrap()
                });
                assert!(
                    matches!(asleep, Ok(Received::Disconnected(_))),
                    "{asleep:?}"
                );
                child.kill_and_reap();
                drop(copies);
                drop(subscriber);
                memlane_transport::remove_stale(&address).unwrap();
            }
        }
    }
}

/// Subscribes over a link of which the parent gets a copy, receives nothing, and waits for its end.
pub(crate) fn sharing_subscriber(role: &Role) {
    let (address, wish): (String, Wish) = role.hear();
    let link = Link::connect(&address.parse().expect("an address")).expect("a publisher");
    role.tell(&Fd::from(
        link.as_fd().try_clone_to_owned().expect("a copy"),
    ));
    let subscriber = wish.over(link).expect("a publisher");
    role.tell(&());
    role.hear::<()>();
    drop(subscriber);
}

/// The same the other way round, with a publisher that waits for room.
#[test]
fn a_killed_subscriber_whose_link_lives_on() {
    for policy in Policy::ALL {
        for trusting in [false, true] {
            for driven in [false, true] {
                let scene = Scene::new();
                let address = scene.address("lane");
                let mut builder = unbound(page_size()).wait(policy.into());
                if driven {
                    builder = builder.driven();
                }
                let mut publisher = builder.bind_to(&address).unwrap();
                let wish = Wish {
                    policy: Policy::Block,
                    trusting,
                };
                let child = scene.spawn("sharing subscriber", &(address.to_string(), wish));
                let copy: Fd = child.hear();
                publisher.wait_for_subscribers(1).unwrap();
                child.hear::<()>();
                while publisher.try_send(&[0; 500]).is_ok() {}
                let (id, ids) = std::sync::mpsc::channel();
                std::thread::scope(|scope| {
                    let publisher = &mut publisher;
                    let sending = scope.spawn(move || {
                        id.send(thread_id()).unwrap();
                        publisher.send(&[0; 500]).expect("room");
                    });
                    let thread = ids.recv().unwrap();
                    if policy == Policy::Block {
                        wait_asleep(std::process::id(), thread);
                    }
                    child.kill();
                    sending.join().unwrap();
                });
                publisher.drive().unwrap();
                assert_eq!(publisher.subscribers(), 0);
                child.kill_and_reap();
                drop(copy);
            }
        }
    }
}

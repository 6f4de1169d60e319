//! Messages of all sizes, from one process to three, by every way to send, to receive and to wait.

use std::{thread, time::Duration};

use memlane::{Publisher, SendTimeoutError, TryRecvError, TrySendError};
use memlane_tests::{
    AnySubscriber, Form, PATIENCE, Policy, Received, Role, Scene, Wish, alive, check, fill, length,
    play,
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Plan {
    publisher: Policy,
    /// Whether the publisher trusts its subscribers.
    trusting: bool,
    driven: bool,
    ring_bytes: usize,
    messages: u64,
    subscribers: Vec<Wish>,
}

#[test]
fn other_process() {
    play(&[("publisher", publisher), ("subscriber", subscriber)]);
}

fn run(plan: &Plan) {
    let scene = Scene::new();
    let publisher = scene.spawn("publisher", plan);
    publisher.hear::<()>();
    let subscribers: Vec<_> = plan
        .subscribers
        .iter()
        .map(|wish| scene.spawn("subscriber", &(wish, plan)))
        .collect();
    for subscriber in subscribers {
        assert_eq!(subscriber.hear::<u64>(), plan.messages, "{plan:?}");
        subscriber.finish();
    }
    publisher.finish();
}

fn publisher(role: &Role) {
    let plan: Plan = role.hear();
    let mut builder = Publisher::builder()
        .ring_bytes(plan.ring_bytes)
        .wait(plan.publisher.into());
    if plan.trusting {
        builder = builder.trust_subscribers();
    }
    if plan.driven {
        builder = builder.driven();
    }
    let mut publisher = builder.bind("lane").expect("a publisher");
    role.tell(&());
    publisher
        .wait_for_subscribers(plan.subscribers.len())
        .expect("subscribers");
    let longest = memlane_region::ring::max_payload(plan.ring_bytes as u64);
    assert!(publisher.max_message() > longest);
    let mut buffer = vec![0; longest];
    for number in 0..plan.messages {
        send(&mut publisher, number, &mut buffer);
        if number % 64 == 0 {
            alive();
            publisher.drive().expect("control work");
        }
    }
    let stats = publisher.stats();
    assert_eq!((stats.messages, stats.evicted), (plan.messages, 0));
    if plan
        .subscribers
        .iter()
        .all(|wish| wish.policy == Policy::Poll)
    {
        assert_eq!(stats.rings, 0, "nobody sleeps, nobody is to be rung");
    }
    if plan.publisher == Policy::Poll {
        assert_eq!(stats.sleeps, 0);
    }
}

/// Sends message `number`, each in another of the ways there are.
fn send(publisher: &mut Publisher, number: u64, buffer: &mut [u8]) {
    let max = buffer.len();
    let message = &mut buffer[..length(number, max)];
    fill(number, message);
    let len = message.len();
    // 11 has no factor in common with the 16 classes of lengths.
    match number % 11 {
        0 | 1 => publisher.send(message).expect("room"),
        2 | 3 => loop {
            match publisher.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full) => {
                    publisher.drive().expect("control work");
                    thread::yield_now();
                }
                Err(error) => panic!("{error}"),
            }
        },
        4 => loop {
            match publisher.send_timeout(message, Duration::from_micros(100)) {
                Ok(()) => break,
                Err(SendTimeoutError::TimedOut) => {}
                Err(error) => panic!("{error}"),
            }
        },
        5 => publisher.send_timeout(message, PATIENCE).expect("room"),
        6 => {
            let mut place = publisher.reserve(len).expect("room");
            place.copy_from_slice(message);
            place.commit();
        }
        7 => {
            let mut place = loop {
                // The borrow of a reservation that is returned from a loop would last too long.
                match publisher.try_reserve(len).map(drop) {
                    Ok(()) => break publisher.try_reserve(len).expect("the room of just now"),
                    Err(TrySendError::Full) => {
                        publisher.drive().expect("control work");
                        thread::yield_now();
                    }
                    Err(error) => panic!("{error}"),
                }
            };
            place.copy_from_slice(message);
            place.commit();
        }
        8 => {
            let mut place = publisher.reserve_timeout(len, PATIENCE).expect("room");
            place.copy_from_slice(message);
            place.commit();
        }
        9 => {
            let more = (len + number as usize % 200).min(max);
            let mut place = publisher.reserve(more).expect("room");
            assert_eq!(place.len(), more);
            place.fill(0xee);
            place[..len].copy_from_slice(message);
            place.commit_first(len);
        }
        _ => {
            let mut dropped = publisher.reserve(max).expect("room");
            dropped.fill(0xdd);
            drop(dropped);
            publisher.send(message).expect("room");
        }
    }
}

fn subscriber(role: &Role) {
    let (wish, plan): (Wish, Plan) = role.hear();
    let mut subscriber = wish.connect_by_name("lane").expect("the publisher");
    let mut message = Vec::new();
    let longest = memlane_region::ring::max_payload(plan.ring_bytes as u64);
    let mut max = 0;
    for number in 0..plan.messages {
        let form = [Form::Recv, Form::TryRecv, Form::RecvTimeout][number as usize % 3];
        match subscriber.receive(form, &mut message) {
            Ok(Received::Message) => {}
            other => panic!("message {number}: {other:?}"),
        }
        assert_eq!(message.len(), length(number, longest));
        check(number, &message);
        max = max.max(message.len());
        if number % 64 == 0 {
            alive();
        }
    }
    assert_eq!(max, longest, "the longest message was there");
    for form in [Form::Recv, Form::TryRecv, Form::RecvTimeout, Form::Recv] {
        match subscriber.receive(form, &mut message) {
            Ok(Received::Disconnected(_)) => {}
            other => panic!("after the last message: {other:?}"),
        }
    }
    let stats = subscriber.stats();
    assert_eq!(stats.messages, plan.messages);
    if wish.policy == Policy::Poll {
        assert_eq!((stats.sleeps, stats.wakeups), (0, 0));
    }
    if let AnySubscriber::Untrusting(subscriber) = &mut subscriber {
        assert!(matches!(
            subscriber.try_recv(),
            Err(TryRecvError::Disconnected { .. })
        ));
    }
    role.tell(&stats.messages);
}

fn matrix(trusting: bool) {
    for publisher in Policy::ALL {
        for policy in Policy::ALL {
            run(&Plan {
                publisher,
                trusting,
                driven: false,
                ring_bytes: 1 << 16,
                // More processes that spin than cores: each gets on only when it has its turn.
                messages: if [publisher, policy].contains(&Policy::Poll) {
                    600
                } else {
                    2000
                },
                subscribers: vec![Wish { policy, trusting }; 3],
            });
        }
    }
}

#[test]
fn every_policy_on_both_sides_untrusting() {
    matrix(false);
}

#[test]
fn every_policy_on_both_sides_trusting() {
    matrix(true);
}

/// Trust need not be mutual, nor the same for all.
#[test]
fn mixed_subscribers() {
    for trusting in [false, true] {
        for driven in [false, true] {
            run(&Plan {
                publisher: Policy::Adaptive,
                trusting,
                driven,
                ring_bytes: 1 << 14,
                messages: 4000,
                subscribers: vec![
                    Wish {
                        policy: Policy::Poll,
                        trusting: true,
                    },
                    Wish {
                        policy: Policy::Adaptive,
                        trusting: false,
                    },
                    Wish {
                        policy: Policy::Block,
                        trusting: true,
                    },
                ],
            });
        }
    }
}

/// The smallest ring, where nearly every message has to wait for room, and a large one.
#[test]
fn smallest_and_large_rings() {
    for (ring_bytes, messages) in [(memlane_region::page_size(), 6000), (1 << 22, 300)] {
        run(&Plan {
            publisher: Policy::Block,
            trusting: false,
            driven: false,
            ring_bytes,
            messages,
            subscribers: vec![
                Wish {
                    policy: Policy::Block,
                    trusting: false,
                };
                3
            ],
        });
    }
}

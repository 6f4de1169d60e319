//! Publishers are killed.

use std::sync::atomic::{AtomicU64, Ordering};

use memlane::{Error, Link};
use memlane_region::{Remote, Shared, page_size};
use memlane_tests::{
    AnySubscriber, Dice, Form, Policy, Received, Role, Scene, Wish, check, fill, length, unbound,
    wait_until,
};
use memlane_transport::{Error as LinkError, Fd};
use serde::{Deserialize, Serialize};

use crate::chance::{LONGEST, kills, mostly_sleepy, untrusting};

/// A publisher that is going to be killed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) policy: Policy,
    pub(crate) ring_bytes: usize,
    pub(crate) trusting: bool,
    pub(crate) driven: bool,
    pub(crate) subscribers: usize,
    /// Bound, or over the links that follow.
    pub(crate) bound: bool,
    pub(crate) links: Vec<Fd>,
}

/// Publishes until it is killed, and writes down how many messages it has committed, where the parent can read it
/// afterwards.
pub(crate) fn publisher(role: &Role) {
    let plan: Plan = role.hear();
    let (committed, descriptor) = Shared::create("test-progress", page_size(), 0).expect("a page");
    let mut builder = unbound(plan.ring_bytes).wait(plan.policy.into());
    if plan.trusting {
        builder = builder.trust_subscribers();
    }
    if plan.driven {
        builder = builder.driven();
    }
    let mut publisher = if plan.bound {
        builder.bind("lane")
    } else {
        builder.unbound()
    }
    .expect("a publisher");
    for link in plan.links {
        let link = Link::from_fd(link.into()).expect("a link");
        publisher.attach(link).expect("a link");
    }
    role.tell(&Fd::from(descriptor));
    publisher
        .wait_for_subscribers(plan.subscribers)
        .expect("subscribers");
    let mut buffer = [0; LONGEST];
    for number in 0.. {
        let message = &mut buffer[..length(number, LONGEST)];
        fill(number, message);
        publisher.send(message).expect("room");
        committed.word(0).store(number + 1, Ordering::Release);
        if number % 16 == 0 {
            publisher.drive().expect("control work");
        }
    }
}

/// Receives everything up to the end of the publisher, and says how many messages that was.
fn drain(mut subscriber: AnySubscriber, received: &AtomicU64) -> u64 {
    let mut message = Vec::new();
    for expected in 0.. {
        let form = [Form::Recv, Form::RecvTimeout, Form::TryRecv][expected as usize % 3];
        match subscriber.receive(form, &mut message) {
            Ok(Received::Message) => {}
            Ok(Received::Disconnected(_)) => return expected,
            Err(error) => panic!("message {expected}: {error}"),
        }
        assert_eq!(message.len(), length(expected, LONGEST));
        check(expected, &message);
        received.store(expected + 1, Ordering::Relaxed);
    }
    unreachable!("there is an end to everything")
}

/// What the publisher says it has committed is received, by everyone, then the end; what it was about to write is
/// not.
#[test]
fn killed_publishers() {
    let scene = Scene::new();
    let mut dice = Dice::new();
    let address = scene.address("lane");
    let kills = kills(1200);
    let mut received_in_all = 0;
    for _ in 0..kills {
        let subscribers = 1 + dice.below(2) as usize;
        let bound = dice.below(2) == 0;
        let (ours, theirs): (Vec<Link>, Vec<Fd>) = (0..if bound { 0 } else { subscribers })
            .map(|_| {
                let (ours, theirs) = Link::pair().unwrap();
                (ours, Fd::from(theirs.into_fd()))
            })
            .unzip();
        let plan = Plan {
            policy: mostly_sleepy(&mut dice),
            ring_bytes: page_size() << dice.below(4),
            trusting: dice.below(2) == 0,
            driven: dice.below(4) == 0,
            subscribers,
            bound,
            links: theirs,
        };
        let child = scene.spawn("publisher", &plan);
        drop(plan);
        let page: Fd = child.hear();
        let committed = Remote::open(page.into(), page_size(), 0, page_size()).unwrap();
        let mut ours = ours.into_iter();
        let ends: Vec<_> = (0..subscribers)
            .map(|_| {
                let wish = Wish {
                    policy: mostly_sleepy(&mut dice),
                    trusting: dice.below(2) == 0,
                };
                (wish, ours.next())
            })
            .collect();
        let received = AtomicU64::new(0);
        let counts: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = ends
                .into_iter()
                .map(|(wish, link)| {
                    let (address, received) = (&address, &received);
                    scope.spawn(move || {
                        let subscriber = match link {
                            Some(link) => wish.over(link),
                            None => wish.connect(address),
                        };
                        drain(subscriber.expect("a publisher"), received)
                    })
                })
                .collect();
            let goal = dice.pick(&[1, 10, 30, 100, 500]);
            let goal = dice.below(goal);
            wait_until("messages arrive", || {
                received.load(Ordering::Relaxed) >= goal.max(1)
            });
            dice.dally(20_000);
            child.kill();
            // A zombie is dead enough.
            threads
                .into_iter()
                .map(|thread| thread.join().expect("a subscriber"))
                .collect()
        });
        child.kill_and_reap();
        let committed = committed.load_word(0);
        for count in &counts {
            assert!(
                (committed..=committed + 1).contains(count),
                "{committed} messages committed, {counts:?} received"
            );
        }
        assert!(
            counts.iter().all(|count| *count == counts[0]),
            "not the same for all: {counts:?}"
        );
        assert_eq!(scene.services(), [""; 0], "a stale name");
        received_in_all += counts[0];
    }
    println!("{kills} killed, {received_in_all} messages");
}

/// A publisher that dies while subscribers come gives them an error that says so, or a lane that ends.
#[test]
fn killed_publishers_in_handshakes() {
    let scene = Scene::new();
    let mut dice = Dice::new();
    let address = scene.address("lane");
    let (mut refused, mut joined) = (0, 0);
    for _ in 0..kills(300) {
        let plan = Plan {
            policy: Policy::Adaptive,
            ring_bytes: page_size(),
            trusting: false,
            driven: false,
            subscribers: 1,
            bound: true,
            links: Vec::new(),
        };
        let child = scene.spawn("publisher", &plan);
        child.hear::<Fd>();
        let wish = untrusting(dice.pick(&Policy::ALL));
        std::thread::scope(|scope| {
            let connecting = scope.spawn(|| wish.connect(&address));
            dice.dally(150_000);
            child.kill();
            match connecting.join().unwrap() {
                Ok(subscriber) => {
                    drain(subscriber, &AtomicU64::new(0));
                    joined += 1;
                }
                Err(Error::HungUp | Error::Link(LinkError::NotRunning { .. })) => refused += 1,
                Err(error) => panic!("{error:?}"),
            }
        });
        child.kill_and_reap();
        // One that was not connected yet may have found a live name, and then nobody: the next clears it.
        wish.connect(&address).unwrap_err();
        assert_eq!(scene.services(), [""; 0], "a stale name");
    }
    println!("{joined} joined, {refused} refused");
}

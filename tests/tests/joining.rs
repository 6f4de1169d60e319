//! Subscribers that come late, and go early: each begins at the next message and misses none from there on.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use memlane::{Link, Publisher, WaitPolicy};
use memlane_region::{Remote, Shared, page_size, ring::max_payload};
use memlane_tests::{
    AnySubscriber, Census, Dice, Form, Part, Policy, Received, Role, Scene, Steady, Stream, Wish,
    alive, check, fill, length, number, play, steady, thread_id, unbound, wait_asleep, wait_until,
};
use memlane_transport::Fd;

const ROLES: &[(&str, Part)] = &[
    ("publisher", publisher),
    ("joiner", joiner),
    ("steady", steady),
];

#[test]
fn other_process() {
    play(ROLES);
}

const RING: usize = 1 << 14;
const LONGEST: usize = 1000;

/// Publishes at full speed until it is told to stop, and keeps count of what it has committed.
fn publisher(role: &Role) {
    let policy: Policy = role.hear();
    let (committed, descriptor) = Shared::create("test-progress", page_size(), 0).expect("a page");
    let mut publisher = Publisher::builder()
        .ring_bytes(RING)
        .wait(policy.into())
        .bind("lane")
        .expect("a publisher");
    role.tell(&Fd::from(descriptor));
    let mut buffer = [0; LONGEST];
    let mut next = 0;
    while role.has_said::<()>().is_none() {
        for _ in 0..64 {
            let message = &mut buffer[..length(next, LONGEST).max(8)];
            fill(next, message);
            publisher.send(message).expect("room");
            next += 1;
            committed.word(0).store(next, Ordering::Release);
        }
        alive();
    }
    assert_eq!(publisher.stats().evicted, 0);
}

/// Messages of that stream, from the first that came on.
fn expect_run(subscriber: &mut AnySubscriber, count: u64) -> u64 {
    let mut message = Vec::new();
    let mut first = None;
    for at in 0..count {
        let form = [Form::Recv, Form::TryRecv, Form::RecvTimeout][at as usize % 3];
        match subscriber.receive(form, &mut message) {
            Ok(Received::Message) => {}
            other => panic!("message {at} after the join: {other:?}"),
        }
        let first = *first.get_or_insert_with(|| number(&message));
        assert_eq!(message.len(), length(first + at, LONGEST).max(8));
        check(first + at, &message);
    }
    first.expect("at least one message")
}

/// Joins and leaves all the time, against a publisher that never pauses: each joiner gets what was committed after
/// it had joined, nothing from before it came, and no gap.
#[test]
fn to_a_publisher_at_full_speed() {
    let mut dice = Dice::new();
    for policy in Policy::ALL {
        let scene = Scene::new();
        let publisher = scene.spawn("publisher", &policy);
        let page: Fd = publisher.hear();
        let committed = Remote::open(page.into(), page_size(), 0, page_size()).expect("a page");
        let address = scene.address("lane");
        let wish = Wish {
            policy: Policy::Adaptive,
            trusting: false,
        };
        let witness = Steady::start(&scene, &address, wish, LONGEST);
        let base = Census::take();
        for _ in 0..150 {
            let wish = Wish {
                policy: dice.pick(&Policy::ALL),
                trusting: dice.below(2) == 0,
            };
            let before = committed.load_word(0);
            let mut subscriber = wish.connect(&address).expect("the publisher");
            // One more than it says may have been committed by then.
            let after = committed.load_word(0) + 1;
            let first = expect_run(&mut subscriber, 1 + dice.below(100));
            assert!(
                (before..=after).contains(&first),
                "joined between messages {before} and {after}, and began with {first}"
            );
            alive();
        }
        base.settle();
        publisher.tell(&());
        publisher.finish();
        let (received, end) = witness.finish();
        assert!(received > 0 && end == committed.load_word(0));
    }
}

/// Several at a time come and go in one process, with a publisher in another.
#[test]
fn crowds_that_come_and_go() {
    let scene = Scene::new();
    let publisher = scene.spawn("publisher", &Policy::Adaptive);
    publisher.hear::<Fd>();
    let address = scene.address("lane");
    std::thread::scope(|scope| {
        for at in 0..4 {
            let address = &address;
            scope.spawn(move || {
                for round in 0..40 {
                    let wish = Wish {
                        policy: Policy::SLEEPY[(round + at) % 2],
                        trusting: round % 3 == 0,
                    };
                    let mut subscriber = wish.connect(address).expect("the publisher");
                    expect_run(&mut subscriber, 20 + at as u64);
                    alive();
                }
            });
        }
    });
    publisher.tell(&());
    publisher.finish();
}

/// Joins when told to, says so, sleeps until the first message comes, and says which it was.
fn joiner(role: &Role) {
    let address: String = role.hear();
    let address = address.parse().expect("an address");
    let mut message = Vec::new();
    while let Some(wish) = role.hear::<Option<Wish>>() {
        let mut subscriber = wish.connect(&address).expect("the publisher");
        role.tell(&thread_id());
        match subscriber.recv(&mut message) {
            Ok(Received::Message) => {}
            other => panic!("the first message: {other:?}"),
        }
        role.tell(&(number(&message), message.len(), subscriber.stats().sleeps));
    }
}

/// The publisher does nothing while somebody joins, and sends when the joiner sleeps: it must be woken by the first
/// message, whichever way the publisher learns of it.
fn to_an_idle_publisher(mut publisher: Publisher, scene: &Scene, len: usize, joins: u64) {
    let joiner = scene.spawn("joiner", &scene.address("lane").to_string());
    let mut buffer = vec![0; len];
    let mut dice = Dice::new();
    let mut slept = 0;
    for next in 0..joins {
        joiner.tell(&Some(Wish {
            policy: dice.pick(&Policy::SLEEPY),
            trusting: dice.below(2) == 0,
        }));
        let thread = joiner.hear();
        if dice.below(4) > 0 {
            wait_asleep(joiner.id(), thread);
        } else {
            dice.dally(2000);
        }
        fill(next, &mut buffer);
        publisher.send(&buffer).expect("room");
        let (first, length, sleeps): (u64, usize, u64) = joiner.hear();
        assert_eq!((first, length), (next, len));
        slept += sleeps;
    }
    assert!(slept >= joins / 2, "only {slept} of {joins} had to sleep");
    joiner.tell(&None::<Wish>);
    joiner.finish();
    wait_until("everyone has left", || publisher.subscribers() == 0);
}

#[test]
fn to_an_idle_publisher_with_room_to_spare() {
    let scene = Scene::new();
    let publisher = unbound(RING).bind_to(&scene.address("lane")).unwrap();
    to_an_idle_publisher(publisher, &scene, 100, 300);
}

/// Every message fills the ring, so that the publisher looks at its subscribers for room before it commits.
#[test]
fn to_an_idle_publisher_that_needs_room() {
    let scene = Scene::new();
    let publisher = unbound(page_size())
        .bind_to(&scene.address("lane"))
        .unwrap();
    let len = max_payload(page_size() as u64);
    to_an_idle_publisher(publisher, &scene, len, 300);
}

/// The very first look at the roster is then the one for room, and the commit must not take that for no news.
#[test]
fn to_a_publisher_whose_ring_was_full_of_messages_to_nobody() {
    let scene = Scene::new();
    let joiner = scene.spawn("joiner", &scene.address("lane").to_string());
    for policy in Policy::SLEEPY {
        for trusting in [false, true] {
            for next in 0..10 {
                let mut publisher = unbound(page_size())
                    .bind_to(&scene.address("lane"))
                    .unwrap();
                let mut buffer = vec![0; max_payload(page_size() as u64)];
                publisher.send(&buffer).unwrap();
                joiner.tell(&Some(Wish { policy, trusting }));
                wait_asleep(joiner.id(), joiner.hear());
                fill(next, &mut buffer);
                publisher.send(&buffer).unwrap();
                let (first, _, _): (u64, usize, u64) = joiner.hear();
                assert_eq!(first, next);
            }
        }
    }
    joiner.tell(&None::<Wish>);
    joiner.finish();
}

/// While others are there already, awake or asleep, or never sleep.
#[test]
fn to_an_idle_publisher_beside_others() {
    for policy in [WaitPolicy::Poll, WaitPolicy::Block] {
        let scene = Scene::new();
        let publisher = unbound(page_size())
            .bind_to(&scene.address("lane"))
            .unwrap();
        let (here, there) = Link::pair().unwrap();
        publisher.attach(here).unwrap();
        let mut neighbour = memlane::Subscriber::builder()
            .wait(policy)
            .over(there)
            .unwrap();
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let mut count = 0;
                while neighbour.recv().is_ok() {
                    count += 1;
                }
                count
            });
            let joiner = scene.spawn("joiner", &scene.address("lane").to_string());
            let mut publisher = publisher;
            let mut buffer = vec![0; 1000];
            for next in 0..100 {
                joiner.tell(&Some(Wish {
                    policy: Policy::Block,
                    trusting: next % 2 == 0,
                }));
                wait_asleep(joiner.id(), joiner.hear());
                fill(next, &mut buffer);
                publisher.send(&buffer).expect("room");
                let (first, _, _): (u64, usize, u64) = joiner.hear();
                assert_eq!(first, next);
            }
            joiner.tell(&None::<Wish>);
            joiner.finish();
            drop(publisher);
            assert_eq!(reading.join().unwrap(), 100);
        });
    }
}

/// A publisher that is driven by a loop of the user's takes joiners only when it is driven; nobody is lost either.
#[test]
fn to_a_driven_publisher() {
    let scene = Scene::new();
    let mut publisher = unbound(RING)
        .driven()
        .bind_to(&scene.address("lane"))
        .unwrap();
    let joiner = scene.spawn("joiner", &scene.address("lane").to_string());
    for next in 0..100_u64 {
        joiner.tell(&Some(Wish {
            policy: Policy::Block,
            trusting: false,
        }));
        publisher.wait_for_subscribers(1).unwrap();
        wait_asleep(joiner.id(), joiner.hear());
        publisher.send(&next.to_le_bytes()).unwrap();
        let (first, _, _): (u64, usize, u64) = joiner.hear();
        assert_eq!(first, next);
        wait_until("it has left", || {
            publisher.drive().unwrap();
            publisher.subscribers() == 0
        });
    }
    joiner.tell(&None::<Wish>);
    joiner.finish();
}

/// Waiting for subscribers ends when they are there, and in time when they are not.
#[test]
fn waiting_for_subscribers() {
    for driven in [false, true] {
        let scene = Scene::new();
        let mut builder = unbound(RING);
        if driven {
            builder = builder.driven();
        }
        let address = scene.address("lane");
        let publisher = builder.bind_to(&address).unwrap();
        let start = Instant::now();
        let time = Duration::from_millis(20);
        assert!(!publisher.wait_for_subscribers_timeout(1, time).unwrap());
        assert!(start.elapsed() >= time);
        assert!(publisher.wait_for_subscribers_timeout(0, time).unwrap());
        let wish = Wish {
            policy: Policy::Block,
            trusting: false,
        };
        std::thread::scope(|scope| {
            let joining = scope.spawn(|| [(); 3].map(|()| wish.connect(&address).unwrap()));
            publisher.wait_for_subscribers(3).unwrap();
            assert_eq!(publisher.subscribers(), 3);
            drop(joining.join().unwrap());
        });
        wait_until("they have left", || {
            publisher.drive().unwrap();
            publisher.subscribers() == 0
        });
    }
}

/// The same service, stopped and started under a stream of joiners.
#[test]
fn to_one_publisher_after_another() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let wish = Wish {
        policy: Policy::Adaptive,
        trusting: false,
    };
    for _ in 0..20 {
        let publisher = unbound(RING).bind_to(&address).unwrap();
        let stream = Stream::start(publisher, LONGEST);
        let mut subscriber = wish.connect(&address).unwrap();
        expect_run(&mut subscriber, 100);
        // Dropped first: the stream may be waiting for it.
        drop(subscriber);
        drop(stream.stop());
        let error = wish.connect(&address).unwrap_err().to_string();
        assert!(error.contains("nobody listens at"), "{error}");
    }
}

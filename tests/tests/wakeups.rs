//! No wake-up is lost: neither of a subscriber for a message, nor of a publisher for room. And none is needed where
//! nobody sleeps.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use memlane::{Link, Publisher, SendTimeoutError, Subscriber, WaitPolicy};
use memlane_region::page_size;
use memlane_tests::{
    Form, PATIENCE, Part, Policy, Received, Role, Scene, Wish, alive, check, cores, fill, pin,
    play, rounds, thread_id, unbound, wait_asleep, wait_until,
};
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[("player", player), ("reader", reader), ("replier", replier)];

#[test]
fn other_process() {
    play(ROLES);
}

/// Two lanes between two processes, there and back.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Match {
    rounds: u64,
    wish: Wish,
    len: usize,
    one_core: bool,
}

fn publisher(wish: Wish, ring_bytes: usize) -> memlane::PublisherBuilder {
    let builder = unbound(ring_bytes).wait(wish.policy.into());
    if wish.trusting {
        builder.trust_subscribers()
    } else {
        builder
    }
}

/// Plays back what it gets. Its own publisher is there first, and it subscribes second.
fn player(role: &Role) {
    let game: Match = role.hear();
    let cores = cores();
    pin(if game.one_core || cores.len() < 2 {
        cores[0]
    } else {
        cores[1]
    });
    let mut back = publisher(game.wish, page_size())
        .bind("back")
        .expect("a publisher");
    let mut there = game.wish.connect_by_name("there").expect("a publisher");
    role.tell(&());
    back.wait_for_subscribers(1).expect("a subscriber");
    let mut message = Vec::new();
    for number in 0..game.rounds {
        match there.recv(&mut message) {
            Ok(Received::Message) => {}
            other => panic!("ball {number}: {other:?}"),
        }
        check(number, &message);
        back.send(&message).expect("room");
        if number % 1024 == 0 {
            alive();
        }
    }
    role.tell(&there.stats().sleeps);
    role.hear::<()>();
}

fn ping_pong(game: Match) {
    let scene = Scene::new();
    // On a thread of its own, since affinity is a thread's and the next test has this one.
    std::thread::scope(|scope| {
        let there = publisher(game.wish, page_size())
            .bind_to(&scene.address("there"))
            .unwrap();
        let player = scene.spawn("player", &game);
        player.hear::<()>();
        let sleeps = scope
            .spawn(|| {
                let mut there = there;
                pin(cores()[0]);
                let mut back = game.wish.connect(&scene.address("back")).unwrap();
                let mut ball = vec![0; game.len];
                let mut message = Vec::new();
                for number in 0..game.rounds {
                    fill(number, &mut ball);
                    there.send(&ball).unwrap();
                    match back.recv(&mut message) {
                        Ok(Received::Message) => {}
                        other => panic!("ball {number}: {other:?}"),
                    }
                    check(number, &message);
                    if number % 1024 == 0 {
                        alive();
                    }
                }
                (back.stats().sleeps, there)
            })
            .join()
            .unwrap();
        let others: u64 = player.hear();
        println!("{game:?}: slept {} and {others} times", sleeps.0);
        player.tell(&());
        player.finish();
        drop(sleeps.1);
    });
}

fn one_core(policy: Policy, trusting: bool) {
    ping_pong(Match {
        rounds: rounds(100_000),
        wish: Wish { policy, trusting },
        len: 64,
        one_core: true,
    });
}

#[test]
fn on_one_core_blocking_over_sockets() {
    one_core(Policy::Block, false);
}

#[test]
fn on_one_core_blocking_over_eventfds() {
    one_core(Policy::Block, true);
}

#[test]
fn on_one_core_adaptive_over_sockets() {
    one_core(Policy::Adaptive, false);
}

#[test]
fn on_one_core_adaptive_over_eventfds() {
    one_core(Policy::Adaptive, true);
}

#[test]
fn on_two_cores() {
    for policy in Policy::SLEEPY {
        for trusting in [false, true] {
            ping_pong(Match {
                rounds: rounds(20_000),
                wish: Wish { policy, trusting },
                len: 64,
                one_core: false,
            });
        }
    }
}

/// Balls that fill the ring: each side waits for messages and for room.
#[test]
fn with_balls_that_fill_the_ring() {
    let len = memlane_region::ring::max_payload(page_size() as u64);
    for one_core in [false, true] {
        for policy in Policy::SLEEPY {
            for trusting in [false, true] {
                ping_pong(Match {
                    rounds: 5_000,
                    wish: Wish { policy, trusting },
                    len,
                    one_core,
                });
            }
        }
    }
}

/// Reads everything, in the form it was told to.
fn reader(role: &Role) {
    let (wish, core, messages): (Wish, usize, u64) = role.hear();
    pin(core);
    let mut subscriber = wish.connect_by_name("lane").expect("a publisher");
    role.tell(&());
    let mut message = Vec::new();
    for number in 0..messages {
        let form = if number % 2 == 0 {
            Form::Recv
        } else {
            Form::RecvTimeout
        };
        match subscriber.receive(form, &mut message) {
            Ok(Received::Message) => {}
            other => panic!("message {number}: {other:?}"),
        }
        check(number, &message);
        if number % 1024 == 0 {
            alive();
        }
    }
    role.tell(&(subscriber.stats().sleeps, subscriber.stats().wakeups));
    role.hear::<()>();
}

/// The publisher is faster than its subscribers, and sleeps for room in the smallest ring there is.
fn writer_blocked(one_core: bool, policy: Policy, trusting: bool, subscribers: usize) {
    const MESSAGES: u64 = 10_000;
    let scene = Scene::new();
    let wish = Wish { policy, trusting };
    let publisher = publisher(wish, page_size())
        .bind_to(&scene.address("lane"))
        .unwrap();
    let cores = cores();
    let theirs = if one_core {
        cores[0]
    } else {
        cores[cores.len() - 1]
    };
    let readers: Vec<_> = (0..subscribers)
        .map(|_| scene.spawn("reader", &(wish, theirs, MESSAGES)))
        .collect();
    for reader in &readers {
        reader.hear::<()>();
    }
    let publisher = std::thread::spawn(move || {
        let mut publisher = publisher;
        pin(cores[0]);
        let mut message = [0; 500];
        for number in 0..MESSAGES {
            let message = &mut message[..100 + number as usize % 400];
            fill(number, message);
            if number % 3 == 0 {
                publisher.send_timeout(message, Duration::MAX).unwrap();
            } else {
                publisher.send(message).unwrap();
            }
            if number % 1024 == 0 {
                alive();
            }
        }
        publisher
    })
    .join()
    .unwrap();
    for reader in readers {
        reader.hear::<(u64, u64)>();
        reader.tell(&());
        reader.finish();
    }
    let stats = publisher.stats();
    println!("one core: {one_core}, {wish:?}, {subscribers} subscribers: {stats:?}");
    assert_eq!((stats.messages, stats.evicted), (MESSAGES, 0));
    if one_core && policy == Policy::Block {
        assert!(stats.sleeps > 0, "it never slept: {stats:?}");
    }
}

#[test]
fn of_a_publisher_that_waits_for_room() {
    for one_core in [true, false] {
        for policy in Policy::SLEEPY {
            for trusting in [false, true] {
                for subscribers in [1, 3] {
                    writer_blocked(one_core, policy, trusting, subscribers);
                }
            }
        }
    }
}

/// Receives one message at a time, and the next only after it was told to.
fn replier(role: &Role) {
    let (wish, service): (Wish, String) = role.hear();
    let mut subscriber = wish.connect_by_name(&service).expect("a publisher");
    role.tell(&());
    let mut message = Vec::new();
    while role.hear::<bool>() {
        match subscriber.recv(&mut message) {
            Ok(Received::Message) => {}
            other => panic!("{other:?}"),
        }
        role.tell(&message.len());
    }
}

/// A subscriber that has released a quarter of the ring, and then does something else (waits for an answer, perhaps, that
/// comes after this message), has woken the publisher.
#[test]
fn by_a_subscriber_that_pauses_when_there_is_room() {
    for policy in Policy::SLEEPY {
        for trusting in [false, true] {
            for len in [40, 500, 1000, 3000] {
                let scene = Scene::new();
                let wish = Wish { policy, trusting };
                let mut publisher = publisher(wish, page_size())
                    .bind_to(&scene.address("lane"))
                    .unwrap();
                let replier = scene.spawn("replier", &(wish, "lane"));
                replier.hear::<()>();
                let message = vec![7; len];
                let mut waiting = 0;
                while publisher.try_send(&message).is_ok() {
                    waiting += 1;
                }
                let (id, ids) = std::sync::mpsc::channel();
                let sent = std::thread::scope(|scope| {
                    let (publisher, message) = (&mut publisher, &message);
                    let sending = scope.spawn(move || {
                        id.send(thread_id()).unwrap();
                        publisher.send_timeout(message, PATIENCE)
                    });
                    wait_asleep(std::process::id(), ids.recv().unwrap());
                    for _ in 0..waiting / 4 + 1 {
                        replier.tell(&true);
                        assert_eq!(replier.hear::<usize>(), len);
                    }
                    sending.join().unwrap()
                });
                assert!(
                    sent.is_ok(),
                    "{policy:?}, {len} bytes: {} of {waiting} messages were released",
                    waiting / 4 + 1
                );
                replier.tell(&false);
                replier.finish();
            }
        }
    }
}

/// Where nobody sleeps, nobody is rung, and nobody goes to sleep.
#[test]
fn that_are_not_needed() {
    let _scene = Scene::new();
    let mut publisher = unbound(1 << 14).wait(WaitPolicy::Poll).unbound().unwrap();
    let (here, there) = Link::pair().unwrap();
    publisher.attach(here).unwrap();
    let mut subscriber = Subscriber::builder()
        .wait(WaitPolicy::Poll)
        .over(there)
        .unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20_000 {
                drop(subscriber.recv().unwrap());
            }
            alive();
        });
        for _ in 0..20_000 {
            publisher.send(&[1; 100]).unwrap();
        }
    });
    let stats = publisher.stats();
    assert_eq!((stats.rings, stats.sleeps), (0, 0), "{stats:?}");
    let stats = subscriber.stats();
    assert_eq!((stats.sleeps, stats.wakeups), (0, 0), "{stats:?}");
}

/// A burst rings a sleeper once, not for each message.
#[test]
fn once_for_a_burst() {
    let scene = Scene::new();
    for trusting in [false, true] {
        let wish = Wish {
            policy: Policy::Block,
            trusting,
        };
        let mut publisher: Publisher = publisher(wish, 1 << 16)
            .bind_to(&scene.address("lane"))
            .unwrap();
        let mut subscriber = wish.connect(&scene.address("lane")).unwrap();
        let (id, ids) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let all = scope.spawn(move || {
                id.send(thread_id()).unwrap();
                let mut message = Vec::new();
                for number in 0..100 {
                    subscriber.recv(&mut message).unwrap();
                    check(number, &message);
                }
                subscriber.stats()
            });
            wait_asleep(std::process::id(), ids.recv().unwrap());
            for number in 0..100 {
                let mut message = [0; 100];
                fill(number, &mut message);
                publisher.send(&message).unwrap();
            }
            let stats = all.join().unwrap();
            let rings = publisher.stats().rings;
            assert!(
                (1..=stats.sleeps + 1).contains(&rings),
                "{rings} rings for {stats:?}"
            );
        });
    }
}

/// A batch rings each sleeper once, however long it is, and whoever wakes meanwhile.
#[test]
fn once_for_a_batch() {
    let scene = Scene::new();
    for trusting in [false, true] {
        let wish = Wish {
            policy: Policy::Block,
            trusting,
        };
        let mut publisher: Publisher = publisher(wish, 1 << 16)
            .bind_to(&scene.address("lane"))
            .unwrap();
        let received = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let (id, ids) = std::sync::mpsc::channel();
            let all: Vec<_> = (0..3)
                .map(|_| {
                    let mut subscriber = wish.connect(&scene.address("lane")).unwrap();
                    let (id, received) = (id.clone(), &received);
                    scope.spawn(move || {
                        id.send(thread_id()).unwrap();
                        let mut message = Vec::new();
                        for number in 0..300 {
                            subscriber.recv(&mut message).unwrap();
                            check(number, &message);
                            received.fetch_add(1, Ordering::Relaxed);
                        }
                        subscriber.stats()
                    })
                })
                .collect();
            let ids: Vec<_> = ids.iter().take(3).collect();
            for batch in 1..=3 {
                wait_until("they have the one before", || {
                    received.load(Ordering::Relaxed) == (batch - 1) * 300
                });
                for id in &ids {
                    wait_asleep(std::process::id(), *id);
                }
                publisher.batch(|publisher| {
                    let before = publisher.stats().rings;
                    for number in (batch - 1) * 100..batch * 100 {
                        let mut message = [0; 100];
                        fill(number, &mut message);
                        publisher.send(&message).unwrap();
                        assert_eq!(publisher.stats().rings, before, "in a batch");
                    }
                });
                assert_eq!(publisher.stats().rings, 3 * batch);
            }
            for stats in all {
                let stats = stats.join().unwrap();
                assert_eq!((stats.messages, stats.sleeps), (300, 3), "{stats:?}");
                assert_eq!((stats.wakeups, stats.spurious), (3, 0), "{stats:?}");
                assert_eq!((stats.spins, stats.barriers), (0, 0), "{stats:?}");
            }
        });
    }
}

/// Nor is a batch that is told that there is no room: whoever shall make some is not left asleep beside its messages.
#[test]
fn for_a_batch_that_tries_until_there_is_room() {
    let _scene = Scene::new();
    let publisher = unbound(page_size()).pool_bytes(64 << 10);
    let publisher = publisher.max_message(64 << 10);
    let mut publisher = publisher.wait(WaitPolicy::Block).unbound().unwrap();
    let (here, there) = Link::pair().unwrap();
    publisher.attach(here).unwrap();
    let mut subscriber = Subscriber::builder()
        .wait(WaitPolicy::Block)
        .over(there)
        .unwrap();
    let (id, ids) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            id.send(thread_id()).unwrap();
            while subscriber.recv().is_ok() {}
        });
        let id = ids.recv().unwrap();
        for long in [false, true] {
            wait_asleep(std::process::id(), id);
            publisher.batch(|publisher| {
                for _ in 0..100 {
                    let message = [0; 100];
                    let begun = Instant::now();
                    while match long {
                        false => publisher.try_send(&message).is_err(),
                        true => match publisher.try_loan(64 << 10) {
                            Ok(loan) => publisher.try_send_loan(loan).is_err(),
                            Err(_) => true,
                        },
                    } {
                        assert!(begun.elapsed() < PATIENCE, "nobody makes room");
                        std::thread::yield_now();
                    }
                }
            });
        }
        drop(publisher);
    });
}

/// Time-outs pass while asleep, too, and a message that comes later wakes as before.
#[test]
fn after_time_outs() {
    let scene = Scene::new();
    for trusting in [false, true] {
        for policy in Policy::ALL {
            let wish = Wish { policy, trusting };
            let mut publisher = publisher(wish, page_size())
                .bind_to(&scene.address("lane"))
                .unwrap();
            let mut subscriber = wish.connect(&scene.address("lane")).unwrap();
            let short = Duration::from_millis(1);
            let mut message = Vec::new();
            for round in 0..30_u64 {
                let time = short * (round % 3) as u32;
                match &mut subscriber {
                    memlane_tests::AnySubscriber::Untrusting(subscriber) => {
                        assert!(subscriber.recv_timeout(time).is_err());
                    }
                    memlane_tests::AnySubscriber::Trusting(subscriber) => {
                        assert!(subscriber.recv_timeout(time).is_err());
                    }
                }
                publisher.send(&round.to_le_bytes()).unwrap();
                subscriber.recv(&mut message).unwrap();
                assert_eq!(message, round.to_le_bytes());
            }
            while publisher.try_send(&[0; 100]).is_ok() {}
            for _ in 0..3 {
                assert!(matches!(
                    publisher.send_timeout(&[0; 100], short),
                    Err(SendTimeoutError::TimedOut)
                ));
            }
        }
    }
}

//! Either side is killed, stopped or dropped, at any moment: what was committed is received, whoever is left goes on,
//! and nothing stays behind.
//!
//! `MEMLANE_KILLS` says how many are killed per test of those that kill many.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use memlane::{
    Error, Link, RecvTimeoutError, SendTimeoutError, Subscriber, TryRecvError, TrySendError,
};
use memlane_region::{Remote, Shared, page_size, ring::max_payload};
use memlane_tests::{
    AnySubscriber, Census, Child, Dice, Form, Part, Policy, Received, Role, Scene, Steady, Stream,
    Wish, alive, check, fill, length, play, ready_to_sleep, steady, thread_id, unbound,
    wait_asleep, wait_until,
};
use memlane_transport::{Error as LinkError, Fd};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[
    ("publisher", publisher),
    ("subscriber", subscriber),
    ("orderly publisher", orderly_publisher),
    ("sharing publisher", sharing_publisher),
    ("sharing subscriber", sharing_subscriber),
    ("steady", steady),
];

#[test]
fn other_process() {
    play(ROLES);
}

const LONGEST: usize = 1500;

fn kills(default: u64) -> u64 {
    match std::env::var("MEMLANE_KILLS") {
        Ok(kills) => kills.parse().expect("MEMLANE_KILLS is a number"),
        Err(_) => default,
    }
}

fn untrusting(policy: Policy) -> Wish {
    Wish {
        policy,
        trusting: false,
    }
}

/// Where more threads spin than there are cores, each gets on only when it has its turn: a few rounds will do.
fn mostly_sleepy(dice: &mut Dice) -> Policy {
    use Policy::{Adaptive, Block, Poll};
    dice.pick(&[Adaptive, Block, Adaptive, Block, Adaptive, Block, Poll])
}

/// A publisher that is going to be killed.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    policy: Policy,
    ring_bytes: usize,
    trusting: bool,
    driven: bool,
    subscribers: usize,
    /// Bound, or over the links that follow.
    bound: bool,
    links: Vec<Fd>,
}

/// Publishes until it is killed, and writes down how many messages it has committed, where the parent can read it
/// afterwards.
fn publisher(role: &Role) {
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

/// What a subscriber does until it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Conduct {
    /// Receives.
    Reads,
    /// Receives so many messages, then no more, so that the publisher comes to wait for it.
    Stops(u64),
    /// Holds a message for ever.
    Holds,
}

fn subscriber(role: &Role) {
    let (address, wish, conduct): (String, Wish, Conduct) = role.hear();
    let mut subscriber = wish
        .connect(&address.parse().expect("an address"))
        .expect("a publisher");
    role.tell(&thread_id());
    let mut message = Vec::new();
    let mut left = match conduct {
        Conduct::Reads => u64::MAX,
        Conduct::Stops(after) => after,
        Conduct::Holds => 0,
    };
    while left > 0 {
        match subscriber.recv(&mut message) {
            Ok(Received::Message) => left -= 1,
            Ok(Received::Disconnected(_)) => return,
            Err(error) => panic!("{error}"),
        }
        alive();
    }
    let held = match (&mut subscriber, conduct) {
        (AnySubscriber::Untrusting(subscriber), Conduct::Holds) => subscriber.recv().ok(),
        _ => None,
    };
    // Says nothing: it waits for its end.
    role.hear::<()>();
    drop(held);
}

impl Conduct {
    fn start(self, scene: &Scene, wish: Wish) -> Child {
        let address = scene.address("lane").to_string();
        scene.spawn("subscriber", &(address, wish, self))
    }
}

/// Subscribers are killed before, in and after the handshake, awake, asleep, and while the publisher waits for them.
/// It goes on each time, those who are left lose nothing, and it gets back what the dead cost it.
#[test]
fn killed_subscribers() {
    let mut dice = Dice::new();
    for policy in Policy::ALL {
        for trusting in [false, true] {
            let scene = Scene::new();
            let address = scene.address("lane");
            let mut builder = unbound(page_size() << 1).wait(policy.into());
            if trusting {
                builder = builder.trust_subscribers();
            }
            let publisher = ready_to_sleep(builder.bind_to(&address).unwrap(), policy);
            let steady = Steady::start(&scene, &address, untrusting(Policy::Adaptive), LONGEST);
            let base = Census::beside(&publisher);
            let stream = Stream::start(publisher, LONGEST);
            for _ in 0..kills(1200) / 6 {
                let conduct = match dice.below(4) {
                    0 => Conduct::Reads,
                    1 => Conduct::Holds,
                    _ => Conduct::Stops(dice.below(30)),
                };
                let wish = Wish {
                    policy: dice.pick(&Policy::ALL),
                    trusting: dice.below(2) == 0,
                };
                let victim = conduct.start(&scene, wish);
                if dice.below(5) > 0 {
                    victim.hear::<u32>();
                    if conduct != Conduct::Reads {
                        wait_until("the publisher waits", || stream.blocked());
                    }
                    dice.dally(3000);
                } else {
                    // Somewhere between its start and its first message.
                    dice.dally(300_000);
                }
                victim.kill();
                // While it is a zombie.
                steady.advance(100);
                if dice.below(8) == 0 {
                    wait_until("the dead are let go of", || {
                        Census::take().regions() == base.regions()
                    });
                }
                victim.kill_and_reap();
            }
            base.settle();
            let publisher = stream.stop();
            assert_eq!(publisher.subscribers(), 1);
            assert_eq!(publisher.stats().evicted, 0);
            let sent = publisher.stats().messages;
            drop(publisher);
            let (received, end) = steady.finish();
            assert_eq!((received, end), (sent, sent));
        }
    }
}

/// A subscriber that is asleep when it is killed: the publisher learns of it without sending anything.
#[test]
fn subscribers_killed_asleep() {
    for driven in [false, true] {
        let scene = Scene::new();
        let mut builder = unbound(page_size());
        if driven {
            builder = builder.driven();
        }
        let mut publisher = builder.bind_to(&scene.address("lane")).unwrap();
        let base = Census::take();
        for round in 0..20 {
            let wish = Wish {
                policy: Policy::Block,
                trusting: round % 2 == 0,
            };
            let victim = Conduct::Reads.start(&scene, wish);
            publisher.wait_for_subscribers(1).unwrap();
            wait_asleep(victim.id(), victim.hear());
            victim.kill();
            wait_until("the publisher notices", || {
                publisher.drive().unwrap();
                publisher.subscribers() == 0
            });
            victim.kill_and_reap();
            publisher.send(b"to nobody").unwrap();
            base.settle();
        }
    }
}

/// Slow is not dead: a stopped subscriber holds the publisher up for as long as it likes, and loses nothing.
#[test]
fn a_stopped_subscriber() {
    for policy in Policy::ALL {
        let scene = Scene::new();
        let address = scene.address("lane");
        let mut publisher = unbound(page_size() << 2)
            .wait(policy.into())
            .bind_to(&address)
            .unwrap();
        let slow = Steady::start(&scene, &address, untrusting(Policy::Block), LONGEST);
        let other = Steady::start(&scene, &address, untrusting(Policy::Adaptive), LONGEST);
        slow.stop();
        let message = |number| {
            let mut message = vec![0; length(number, LONGEST).max(8)];
            fill(number, &mut message);
            message
        };
        let mut next = 0;
        // Until it is full when the other has caught up.
        let mut full = false;
        loop {
            match publisher.try_send(&message(next)) {
                Ok(()) => (next, full) = (next + 1, false),
                Err(TrySendError::Full) if full => break,
                Err(TrySendError::Full) => {
                    other.catch_up(next);
                    full = true;
                }
                Err(error) => panic!("{error}"),
            }
        }
        let short = Duration::from_millis(20);
        for _ in 0..3 {
            match publisher.send_timeout(&[0; LONGEST], short) {
                Err(SendTimeoutError::TimedOut) => {}
                other => panic!("{other:?}, {:?}", publisher.stats()),
            }
            match publisher.reserve_timeout(LONGEST, short).map(drop) {
                Err(SendTimeoutError::TimedOut) => {}
                other => panic!("{other:?}, {:?}", publisher.stats()),
            }
            match publisher.try_reserve(LONGEST).map(drop) {
                Err(TrySendError::Full) => {}
                other => panic!("{other:?}, {:?}", publisher.stats()),
            }
        }
        assert_eq!(publisher.subscribers(), 2, "slow is not dead");
        let (id, ids) = std::sync::mpsc::channel();
        let mut publisher = std::thread::scope(|scope| {
            let blocked = scope.spawn(move || {
                id.send(thread_id()).unwrap();
                publisher.send(&message(next)).expect("room");
                publisher
            });
            let thread = ids.recv().unwrap();
            if policy == Policy::Block {
                wait_asleep(std::process::id(), thread);
            }
            assert!(!blocked.is_finished());
            slow.child().signal(Signal::CONT);
            blocked.join().unwrap()
        });
        for number in next + 1..next + 1000 {
            publisher.send(&message(number)).unwrap();
        }
        let sent = next + 1000;
        assert_eq!(publisher.stats().messages, sent);
        assert_eq!(publisher.subscribers(), 2);
        drop(publisher);
        assert_eq!(slow.finish(), (sent, sent));
        assert_eq!(other.finish(), (sent, sent));
    }
}

/// A stopped publisher is not dead either.
#[test]
fn a_stopped_publisher() {
    for policy in Policy::ALL {
        let scene = Scene::new();
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
        let page: Fd = child.hear();
        let committed = Remote::open(page.into(), page_size(), 0, page_size()).unwrap();
        let address = scene.address("lane");
        let mut subscriber = Subscriber::builder()
            .wait(policy.into())
            .connect_to(&address)
            .unwrap();
        child.signal(Signal::STOP);
        let mut count = 0;
        // The first time out may come before the signal does.
        let mut time_outs = 0;
        while time_outs < 3 {
            match subscriber.recv_timeout(Duration::from_millis(20)) {
                Ok(_) => (count, time_outs) = (count + 1, 0),
                Err(RecvTimeoutError::TimedOut) => time_outs += 1,
                Err(error) => panic!("slow is not dead: {error}"),
            }
        }
        assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
        child.signal(Signal::CONT);
        while count < 2000 {
            drop(subscriber.recv().expect("a message"));
            count += 1;
        }
        child.kill_and_reap();
        while subscriber.recv().is_ok() {
            count += 1;
        }
        assert!((committed.load_word(0)..=committed.load_word(0) + 1).contains(&count));
    }
}

/// Publishes so many messages to one subscriber, and waits for its end.
fn sharing_publisher(role: &Role) {
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

/// Copies of all sockets of another process: what a helper has that it forked.
fn copies_of_its_sockets(child: u32) -> Vec<OwnedFd> {
    let pid = Pid::from_raw(child as i32).expect("a process");
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("a pidfd");
    let directory = std::fs::read_dir(format!("/proc/{child}/fd")).expect("its descriptors");
    directory
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let target = std::fs::read_link(entry.path()).ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            let socket = target.to_string_lossy().starts_with("socket:");
            // Standard input is the link to this test, which has to end with the process.
            (socket && number > 0).then(|| {
                pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).expect("a copy of a socket")
            })
        })
        .collect()
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
                let copies = copies_of_its_sockets(child.id());
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
fn sharing_subscriber(role: &Role) {
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

fn orderly_publisher(role: &Role) {
    let policy: Policy = role.hear();
    let mut publisher = unbound(page_size())
        .wait(policy.into())
        .bind("lane")
        .expect("a publisher");
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("a subscriber");
    for number in 0..1000_u64 {
        publisher.send(&number.to_le_bytes()).expect("room");
    }
    drop(publisher);
    role.tell(&());
    // Alive, but no publisher any more.
    role.hear::<()>();
}

/// A publisher that is dropped hangs up, though its process lives; what it sent is received.
#[test]
fn a_dropped_publisher() {
    for policy in Policy::ALL {
        let scene = Scene::new();
        let child = scene.spawn("orderly publisher", &policy);
        child.hear::<()>();
        let mut subscriber = untrusting(policy).connect(&scene.address("lane")).unwrap();
        let mut message = Vec::new();
        for number in 0..1000_u64 {
            subscriber.recv(&mut message).unwrap();
            assert_eq!(message, number.to_le_bytes());
        }
        for _ in 0..3 {
            let end = subscriber.recv(&mut message);
            assert!(matches!(end, Ok(Received::Disconnected(_))), "{end:?}");
        }
        child.hear::<()>();
        assert_eq!(scene.services(), [""; 0]);
        child.tell(&());
        child.finish();
    }
}

/// A dropped subscriber, in the middle of a stream or with the publisher waiting for it, costs nobody anything.
#[test]
fn dropped_subscribers() {
    for driven in [false, true] {
        for policy in Policy::ALL {
            for trusting in [false, true] {
                let scene = Scene::new();
                let address = scene.address("lane");
                let mut builder = unbound(page_size()).wait(policy.into());
                if driven {
                    builder = builder.driven();
                }
                let mut publisher = ready_to_sleep(builder.bind_to(&address).unwrap(), policy);
                let base = Census::take();
                for round in 0..20 {
                    std::thread::scope(|scope| {
                        let joining = scope.spawn(|| Wish { policy, trusting }.connect(&address));
                        publisher.wait_for_subscribers(1).unwrap();
                        let mut subscriber = joining.join().unwrap().unwrap();
                        while publisher.try_send(&[1; 300]).is_ok() {}
                        let (id, ids) = std::sync::mpsc::channel();
                        let publisher = &mut publisher;
                        let sending = scope.spawn(move || {
                            id.send(thread_id()).unwrap();
                            // Room for this one comes only with the end of the subscriber.
                            let len = max_payload(page_size() as u64);
                            publisher.send(&vec![2; len]).expect("room");
                        });
                        let thread = ids.recv().unwrap();
                        if policy == Policy::Block && round % 2 == 0 {
                            wait_asleep(std::process::id(), thread);
                        }
                        let mut message = Vec::new();
                        for _ in 0..round % 4 {
                            subscriber.recv(&mut message).unwrap();
                        }
                        drop(subscriber);
                        sending.join().unwrap();
                    });
                    wait_until("it is let go of", || {
                        publisher.drive().unwrap();
                        publisher.subscribers() == 0
                    });
                }
                base.settle();
                assert_eq!(publisher.stats().evicted, 0);
            }
        }
    }
}

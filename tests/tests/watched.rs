//! Lane ends in loops of all kinds: readable when there is something, for as long as there is, and not otherwise.

use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use memlane::{
    Address, Error, Link, Publisher, RecvTimeoutError, SendError, Subscriber, TryRecvError,
    TrySendError, WaitPolicy, Watched,
};
use memlane_region::page_size;
use memlane_tests::{
    Census, Dice, PATIENCE, Part, Role, Scene, alive, check, fill, length, play, unbound,
    wait_until,
};
use rustix::event::{
    PollFd, PollFlags, Timespec,
    epoll::{self, CreateFlags, EventData, EventFlags},
    poll,
};
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[("watcher", watcher), ("sender", sender)];

#[test]
fn other_process() {
    play(ROLES);
}

/// Ways to wait for a descriptor.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Way {
    Poll,
    Level,
    Edge,
}

const WAYS: [Way; 3] = [Way::Poll, Way::Level, Way::Edge];

/// A loop that waits for one descriptor.
struct Loop {
    way: Way,
    epoll: OwnedFd,
}

impl Loop {
    fn new(way: Way, of: impl AsFd) -> Loop {
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("epoll");
        let flags = match way {
            Way::Poll => return Loop { way, epoll },
            Way::Level => EventFlags::IN,
            Way::Edge => EventFlags::IN | EventFlags::ET,
        };
        epoll::add(&epoll, of, EventData::new_u64(0), flags).expect("epoll_ctl");
        Loop { way, epoll }
    }

    /// Waits for the event; whether it came in time.
    fn turn(&self, of: impl AsFd, patience: Duration) -> bool {
        let patience = Timespec {
            tv_sec: patience.as_secs() as i64,
            tv_nsec: patience.subsec_nanos().into(),
        };
        match self.way {
            Way::Poll => poll(&mut [PollFd::new(&of, PollFlags::IN)], Some(&patience)) == Ok(1),
            Way::Level | Way::Edge => {
                let mut events = [MaybeUninit::uninit(); 1];
                epoll::wait(&self.epoll, &mut events, Some(&patience))
                    .expect("epoll_wait")
                    .0
                    .len()
                    == 1
            }
        }
    }

    #[track_caller]
    fn wait(&self, of: impl AsFd) {
        assert!(self.turn(of, PATIENCE), "no event for {PATIENCE:?}");
    }

    /// How many messages to take in a turn: an edge is told of once, so that all of them have to be.
    fn portion(&self, dice: &mut Dice) -> u64 {
        match self.way {
            Way::Edge => u64::MAX,
            Way::Poll | Way::Level => dice.pick(&[1, 2, 7, u64::MAX]),
        }
    }
}

fn readable(of: impl AsFd) -> bool {
    poll(
        &mut [PollFd::new(&of, PollFlags::IN)],
        Some(&Timespec::default()),
    ) == Ok(1)
}

/// A watched pair with a ring of one page, in this process.
fn pair(wait: WaitPolicy) -> (Watched<Publisher>, Watched<Subscriber>) {
    let (here, there) = Link::pair().unwrap();
    let publisher = unbound(page_size()).wait(wait).unbound().unwrap();
    publisher.attach(here).unwrap();
    let subscriber = Subscriber::builder().wait(wait).over(there).unwrap();
    (
        Watched::new(publisher).unwrap(),
        Watched::new(subscriber).unwrap(),
    )
}

fn is_empty(subscriber: &mut Subscriber) -> bool {
    matches!(subscriber.try_recv().map(drop), Err(TryRecvError::Empty))
}

/// Sends until there is no room; how many messages that took.
fn fill_up(publisher: &mut Publisher) -> u64 {
    let mut sent = 0;
    loop {
        match publisher.try_send(&[0; 100]) {
            Ok(()) => sent += 1,
            Err(TrySendError::Full) => return sent,
            Err(error) => panic!("{error}"),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    address: String,
    way: Way,
    messages: u64,
}

const LONGEST: usize = 16 << 10;

fn watcher(role: &Role) {
    let Orders {
        address,
        way,
        messages,
    } = role.hear();
    let mut dice = Dice::new();
    let subscriber = Subscriber::builder()
        .wait(WaitPolicy::Block)
        .connect_to(&address.parse().expect("an address"))
        .expect("the publisher");
    let mut subscriber = Watched::new(subscriber).expect("descriptors");
    let turns = Loop::new(way, &subscriber);
    role.tell(&());
    let (mut next, mut message) = (0, Vec::new());
    'turns: loop {
        turns.wait(&subscriber);
        alive();
        for _ in 0..turns.portion(&mut dice) {
            match subscriber.try_recv() {
                Ok(came) => came.copy_into(&mut message),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected { .. }) => break 'turns,
                Err(error) => panic!("message {next}: {error}"),
            }
            assert_eq!(message.len(), length(next, LONGEST));
            check(next, &message);
            next += 1;
            if dice.below(64) == 0 {
                dice.dally(20_000);
            }
        }
    }
    assert_eq!(next, messages);
    drop(turns);
}

#[test]
fn nothing_is_lost_between_two_loops() {
    for way in WAYS {
        for driven in [false, true] {
            let scene = Scene::new();
            let address = scene.address("lane");
            let mut dice = Dice::new();
            let messages = 10_000;
            let builder = unbound(page_size()).wait(WaitPolicy::Block);
            let builder = builder.pool_bytes(4 * LONGEST);
            let builder = if driven { builder.driven() } else { builder };
            let mut publisher = Watched::new(builder.bind_to(&address).unwrap()).unwrap();
            let turns = Loop::new(way, &publisher);
            let orders = Orders {
                address: address.to_string(),
                way,
                messages,
            };
            let child = scene.spawn("watcher", &orders);
            publisher.wait_for_subscribers(1).unwrap();
            child.hear::<()>();
            let mut buffer = vec![0; LONGEST];
            let (mut next, mut waits) = (0, 0);
            while next < messages {
                let message = &mut buffer[..length(next, LONGEST)];
                fill(next, message);
                match publisher.try_send(message) {
                    Ok(()) => next += 1,
                    Err(TrySendError::Full) => {
                        waits += 1;
                        turns.wait(&publisher);
                        alive();
                        publisher.drive().unwrap();
                    }
                    Err(error) => panic!("message {next}: {error}"),
                }
                if dice.below(64) == 0 {
                    dice.dally(20_000);
                }
            }
            println!("{way:?}: waited {waits} times, {:?}", publisher.stats());
            assert!(waits > 0);
            drop((turns, publisher));
            child.finish();
        }
    }
}

#[test]
fn a_subscriber_is_readable_until_it_was_found_empty() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = pair(WaitPolicy::Block);
    for _ in 0..3 {
        assert!(readable(&subscriber));
        assert!(is_empty(&mut subscriber));
        assert!(!readable(&subscriber));
        for _ in 0..3 {
            publisher.send(b"one").unwrap();
        }
        for _ in 0..3 {
            assert!(readable(&subscriber));
            drop(subscriber.try_recv().unwrap());
        }
        assert!(readable(&subscriber));
        assert!(is_empty(&mut subscriber));
        assert!(!readable(&subscriber));
        publisher.send(b"four").unwrap();
        drop(subscriber.recv().unwrap());
    }
    // A burst rings once, and wakes once.
    assert!(is_empty(&mut subscriber));
    let (rings, wakeups) = (publisher.stats().rings, subscriber.stats().wakeups);
    for _ in 0..8 {
        publisher.send(b"burst").unwrap();
    }
    assert_eq!(publisher.stats().rings, rings + 1);
    for _ in 0..8 {
        drop(subscriber.try_recv().unwrap());
    }
    assert!(is_empty(&mut subscriber));
    assert_eq!(subscriber.stats().wakeups, wakeups + 1);
}

/// An edge-triggered loop is told of each message that comes after an empty ring.
#[test]
fn every_message_after_an_empty_ring_is_an_edge() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = pair(WaitPolicy::Block);
    let edges = Loop::new(Way::Edge, &subscriber);
    edges.wait(&subscriber);
    assert!(is_empty(&mut subscriber));
    for _ in 0..1000 {
        publisher.send(b"one").unwrap();
        edges.wait(&subscriber);
        drop(subscriber.try_recv().unwrap());
        assert!(is_empty(&mut subscriber));
        assert!(!edges.turn(&subscriber, Duration::ZERO));
    }
}

/// The ring and the hang-up come together, and an edge-triggered loop is told once.
#[test]
fn a_last_message_does_not_hide_the_end() {
    for way in WAYS {
        let _scene = Scene::new();
        let (mut publisher, mut subscriber) = pair(WaitPolicy::Block);
        let turns = Loop::new(way, &subscriber);
        turns.wait(&subscriber);
        assert!(is_empty(&mut subscriber));
        publisher.send(b"the last").unwrap();
        drop(publisher);
        turns.wait(&subscriber);
        assert_eq!(subscriber.try_recv().unwrap().to_vec(), b"the last");
        loop {
            match subscriber.try_recv().map(drop) {
                Err(TryRecvError::Empty) => turns.wait(&subscriber),
                Err(TryRecvError::Disconnected { .. }) => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(readable(&subscriber));
        drop(turns);
    }
}

fn sender(role: &Role) {
    let address: String = role.hear();
    let address: Address = address.parse().expect("an address");
    let mut publisher = unbound(page_size()).bind_to(&address).expect("a publisher");
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("a subscriber");
    publisher.send(b"the last").expect("room");
    role.tell(&());
    role.hear::<()>();
}

#[test]
fn a_killed_publisher_is_an_event() {
    for way in WAYS {
        let scene = Scene::new();
        let address = scene.address("lane");
        let child = scene.spawn("sender", &address.to_string());
        child.hear::<()>();
        let subscriber = Subscriber::builder().connect_to(&address).unwrap();
        let mut subscriber = Watched::new(subscriber).unwrap();
        let turns = Loop::new(way, &subscriber);
        child.hear::<()>();
        turns.wait(&subscriber);
        assert_eq!(subscriber.try_recv().unwrap().to_vec(), b"the last");
        assert!(is_empty(&mut subscriber));
        child.kill();
        loop {
            turns.wait(&subscriber);
            match subscriber.try_recv().map(drop) {
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected { .. }) => break,
                other => panic!("{other:?}"),
            }
        }
        child.kill_and_reap();
        drop((turns, subscriber));
    }
}

#[test]
fn a_publisher_is_readable_when_there_may_be_room() {
    for way in WAYS {
        let _scene = Scene::new();
        let (mut publisher, mut subscriber) = pair(WaitPolicy::Block);
        let turns = Loop::new(way, &publisher);
        publisher.drive().unwrap();
        for _ in 0..100 {
            assert!(!readable(&publisher));
            assert!(fill_up(&mut publisher) > 0);
            while turns.turn(&publisher, Duration::ZERO) {
                // Of the time before it was full.
                publisher.drive().unwrap();
                assert_eq!(fill_up(&mut publisher), 0);
            }
            drop(subscriber.try_recv().unwrap());
            while subscriber.try_recv().is_ok() {}
            turns.wait(&publisher);
            publisher.drive().unwrap();
            assert!(!readable(&publisher));
        }
        // One that leaves makes room, too.
        fill_up(&mut publisher);
        drop(subscriber);
        turns.wait(&publisher);
        publisher.drive().unwrap();
        publisher.try_send(b"to nobody").unwrap();
        drop(turns);
    }
}

/// And unreadable once it has been driven, whoever has what he asked for by then.
#[test]
fn a_publisher_is_readable_when_a_loan_is_dropped() {
    let _scene = Scene::new();
    let mut publisher = Watched::new(
        unbound(page_size())
            .pool_bytes(256 << 10)
            .max_message(64 << 10)
            .unbound()
            .unwrap(),
    )
    .unwrap();
    let (here, there) = Link::pair().unwrap();
    publisher.attach(here).unwrap();
    let mut subscriber = Subscriber::builder().over(there).unwrap();
    let len = 64 << 10;
    // Somebody else has one of them: nobody waits for what only he himself could give back.
    let loan = publisher.try_loan(len).unwrap();
    publisher.try_send_loan(loan).unwrap();
    let held = subscriber.recv().unwrap().hold().unwrap();
    for _ in 0..10 {
        let mut loans = Vec::new();
        loop {
            match publisher.try_loan(len) {
                Ok(loan) => loans.push(loan),
                Err(TrySendError::Full) => break,
                Err(error) => panic!("{error}"),
            }
        }
        publisher.drive().unwrap();
        assert!(!readable(&publisher));
        let dropped = loans.pop();
        std::thread::spawn(move || drop(dropped)).join().unwrap();
        assert!(readable(&publisher));
        publisher.drive().unwrap();
        assert!(!readable(&publisher));
        drop(publisher.try_loan(len).unwrap());
        drop(loans);
        assert!(!readable(&publisher));
    }
    drop(held);
}

/// A blocking call of an end that is readable for a loop sleeps all the same.
#[test]
fn blocking_calls_sleep() {
    let _scene = Scene::new();
    for wait in [WaitPolicy::Block, WaitPolicy::Adaptive] {
        let (mut publisher, mut subscriber) = pair(wait);
        for _ in 0..3 {
            let before = subscriber.stats();
            let timed_out = subscriber.recv_timeout(Duration::from_millis(30));
            assert!(matches!(
                timed_out.map(drop),
                Err(RecvTimeoutError::TimedOut)
            ));
            let after = subscriber.stats();
            assert_eq!(after.wakeups, before.wakeups);
            assert!(after.sleeps <= before.sleeps + 3, "{after:?}");
        }
        publisher.send(b"one").unwrap();
        assert_eq!(subscriber.recv().unwrap().to_vec(), b"one");
        // And it is readable for the loop, since nobody has seen it empty.
        assert!(readable(&subscriber));
        assert!(is_empty(&mut subscriber));
        assert!(!readable(&subscriber));
    }
}

#[test]
fn out_of_a_loop_and_in_again() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = pair(WaitPolicy::Block);
    let before = Census::beside(&publisher);
    for round in 0..10 {
        assert!(is_empty(&mut subscriber));
        fill_up(&mut publisher);
        let mut out = publisher.into_inner();
        let mut unwatched = subscriber.into_inner();
        let sender = std::thread::spawn(move || {
            for _ in 0..100 {
                out.send(b"blocking").unwrap();
            }
            out
        });
        for _ in 0..100 {
            drop(unwatched.recv().unwrap());
        }
        let joined = sender.join().unwrap();
        while unwatched.try_recv().is_ok() {}
        publisher = Watched::new(joined).unwrap();
        subscriber = Watched::new(unwatched).unwrap();
        assert!(readable(&subscriber), "round {round}");
    }
    before.settle();
}

#[test]
fn one_that_only_polls_cannot_be_watched() {
    let _scene = Scene::new();
    let (here, there) = Link::pair().unwrap();
    let publisher = unbound(page_size())
        .wait(WaitPolicy::Poll)
        .unbound()
        .unwrap();
    publisher.attach(here).unwrap();
    let subscriber = Subscriber::builder()
        .wait(WaitPolicy::Poll)
        .over(there)
        .unwrap();
    for error in [
        Watched::new(subscriber).map(drop).unwrap_err(),
        Watched::new(publisher).map(drop).unwrap_err(),
    ] {
        let said = error.to_string();
        assert!(matches!(error, Error::Option { what: "wait", .. }));
        assert!(said.ends_with("got Poll"), "{said}");
    }
}

/// Control work that comes in one go, more than is done in one go: an edge-triggered loop gets to all of it.
#[test]
fn a_crowd_is_let_in() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let builder = unbound(page_size()).max_subscribers(200).driven();
    let mut publisher = Watched::new(builder.bind_to(&address).unwrap()).unwrap();
    let edges = Loop::new(Way::Edge, &publisher);
    let begin = || Subscriber::builder().timeout(PATIENCE).begin_at(&address);
    let mut crowd: Vec<_> = (0..150).map(|_| begin().unwrap()).collect();
    let mut subscribers = Vec::new();
    while subscribers.len() < 150 {
        if edges.turn(&publisher, Duration::from_millis(1)) {
            publisher.drive().unwrap();
        }
        crowd.retain_mut(|connecting| match connecting.try_finish().unwrap() {
            Some(subscriber) => {
                subscribers.push(subscriber);
                false
            }
            None => true,
        });
        if subscribers.len().is_multiple_of(10) {
            alive();
        }
    }
    publisher.try_send(b"to all").unwrap();
    for mut subscriber in subscribers {
        assert_eq!(subscriber.recv().unwrap().to_vec(), b"to all");
    }
    wait_until("all have left", || {
        if edges.turn(&publisher, Duration::ZERO) {
            publisher.drive().unwrap();
        }
        publisher.subscribers() == 0
    });
    drop(edges);
}

/// The last of them has to be looked for: nothing else happens that an edge-triggered loop would be told of.
#[test]
fn nobody_is_forgotten_behind_a_crowd() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let builder = unbound(page_size()).driven();
    let mut publisher = Watched::new(builder.bind_to(&address).unwrap()).unwrap();
    let (here, there) = Link::pair().unwrap();
    let edges = Loop::new(Way::Edge, &publisher);
    // As many as may be there without a greeting.
    let crowd: Vec<_> = (0..63).map(|_| Link::connect(&address).unwrap()).collect();
    publisher.attach(here).unwrap();
    while edges.turn(&publisher, Duration::ZERO) {
        publisher.drive().unwrap();
    }
    drop(crowd);
    let last = Link::connect(&address).unwrap();
    let mut connecting = Subscriber::builder()
        .timeout(PATIENCE)
        .begin_over(there)
        .unwrap();
    let mut subscriber = loop {
        edges.wait(&publisher);
        publisher.drive().unwrap();
        if let Some(subscriber) = connecting.try_finish().unwrap() {
            break subscriber;
        }
    };
    publisher.try_send(b"welcome").unwrap();
    assert_eq!(subscriber.recv().unwrap().to_vec(), b"welcome");
    drop((edges, last));
}

/// All of the pool is loaned to one who asks for more: that is said, not waited for.
#[test]
fn nobody_waits_for_himself() {
    let _scene = Scene::new();
    let builder = unbound(page_size())
        .pool_bytes(64 << 10)
        .max_message(64 << 10);
    let mut publisher = Watched::new(builder.unbound().unwrap()).unwrap();
    let loan = publisher.try_loan(64 << 10).unwrap();
    assert!(matches!(
        publisher.try_loan(64 << 10),
        Err(TrySendError::Loaned { .. })
    ));
    assert!(matches!(
        publisher.loan(64 << 10),
        Err(SendError::Loaned { .. })
    ));
    assert!(!readable(&publisher));
    drop(loan);
}

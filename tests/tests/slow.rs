//! Subscribers that are slow, or stopped, beside others that are not: what is kept for them, what becomes of it, and who waits
//! for whom.

use std::time::Duration;

use memlane::{
    Error, Link, Publisher, PublisherBuilder, RecvError, SendTimeoutError, Subscriber,
    TrySendError,
    region::{Remote, Shared, page_size},
};
use memlane_tests::{
    Census, Child, Dice, PATIENCE, Part, Policy, Received, Role, Scene, Wish, check, fill, length,
    play, unbound, wait_until,
    wire::{Answer, Bell, Greeting, Notice, Offer, Opening, Overflow, Rings, VERSION, Welcome},
};
use memlane_transport::Fd;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[("subscriber", subscriber)];

#[test]
fn other_process() {
    play(ROLES);
}

const RING: usize = 4096;
const LONGEST: usize = 300;

/// What another process is to subscribe over.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    link: Fd,
    policy: Policy,
    trusting: bool,
    longest: usize,
}

/// Receives to the end, checks what it gets, and says how many messages that were, and what the end was. The number of the first
/// is for it to find out.
fn subscriber(role: &Role) {
    let plan: Plan = role.hear();
    let link = Link::from_fd(plan.link.into()).expect("a link");
    let wish = Wish {
        policy: plan.policy,
        trusting: plan.trusting,
    };
    let mut subscriber = wish.over(link).expect("a subscriber");
    role.tell(&std::process::id());
    let mut message = Vec::new();
    for expected in 0_u64.. {
        match subscriber.recv(&mut message).expect("a message") {
            Received::Message => {
                assert_eq!(message.len(), length(expected, plan.longest));
                check(expected, &message);
            }
            Received::Disconnected(reason) => {
                role.tell(&(expected, reason.to_string()));
                return;
            }
        }
    }
}

fn join(scene: &Scene, publisher: &Publisher, policy: Policy, longest: usize) -> Child {
    let (ours, theirs) = Link::pair().expect("a pair");
    let before = publisher.subscribers();
    publisher.attach(ours).expect("a link");
    let plan = Plan {
        link: Fd::from(theirs.into_fd()),
        policy,
        trusting: false,
        longest,
    };
    let child = scene.spawn("subscriber", &plan);
    let _: u32 = child.hear();
    publisher
        .wait_for_subscribers(before + 1)
        .expect("a subscriber");
    child
}

fn message(number: u64, longest: usize) -> Vec<u8> {
    let mut message = vec![0; length(number, longest)];
    fill(number, &mut message);
    message
}

/// Sends until there is no room, from message `first` on; the number of the next.
fn fill_up(publisher: &mut Publisher, first: u64, longest: usize) -> u64 {
    for number in first.. {
        match publisher.try_send(&message(number, longest)) {
            Ok(()) => {}
            Err(TrySendError::Full) => return number,
            Err(error) => panic!("message {number}: {error}"),
        }
    }
    unreachable!("memory is bounded")
}

fn spilling(rings: usize) -> PublisherBuilder {
    unbound(RING).spill_bytes(rings * RING)
}

/// One is stopped. The other gets everything meanwhile, and nobody waits, until there is no more to keep; then all wait. What
/// was kept is received once the first goes on.
#[test]
fn a_stopped_subscriber_is_served_from_a_spill() {
    for policy in Policy::SLEEPY {
        let scene = Scene::new();
        let mut publisher = spilling(8).wait(policy.into()).unbound().unwrap();
        let slow = join(&scene, &publisher, policy, LONGEST);
        slow.signal(Signal::STOP);
        let fast = join(&scene, &publisher, policy, LONGEST);
        let mut sent = 0;
        while publisher.stats().spills < 8 {
            publisher
                .send_timeout(&message(sent, LONGEST), PATIENCE)
                .expect("room beside one that is stopped");
            sent += 1;
        }
        assert_eq!(publisher.pool_bytes(), 0);
        sent = fill_up(&mut publisher, sent, LONGEST);
        // The other one is not why.
        let timed_out = publisher.send_timeout(&message(sent, LONGEST), Duration::from_millis(20));
        assert!(matches!(timed_out, Err(SendTimeoutError::TimedOut)));
        assert!(
            publisher.ring_bytes() <= 10 * RING,
            "{}",
            publisher.ring_bytes()
        );
        slow.signal(Signal::CONT);
        for number in sent..sent + 2000 {
            publisher.send(&message(number, LONGEST)).unwrap();
        }
        assert!(publisher.drain(PATIENCE).unwrap());
        publisher.close();
        for child in [slow, fast] {
            let (received, end): (u64, String) = child.hear();
            assert_eq!(received, sent + 2000, "{end}");
            child.finish();
        }
    }
}

/// What was kept for one that is killed is given back, with its descriptors and mappings.
#[test]
fn a_killed_laggard_gives_its_memory_back() {
    let scene = Scene::new();
    let mut publisher = spilling(4).unbound().unwrap();
    let slow = join(&scene, &publisher, Policy::Block, LONGEST);
    let fast = join(&scene, &publisher, Policy::Block, LONGEST);
    publisher.send(&message(0, LONGEST)).unwrap();
    assert!(publisher.drain(PATIENCE).unwrap());
    let before = Census::beside(&publisher);
    slow.signal(Signal::STOP);
    let mut next = fill_up(&mut publisher, 1, LONGEST);
    assert_eq!(publisher.ring_bytes(), 5 * RING);
    let full = Census::beside(&publisher);
    assert_eq!(full.descriptors() - before.descriptors(), 4);
    assert_eq!(full.regions() - before.regions(), 4 * 2);
    slow.kill_and_reap();
    wait_until("it is gone", || publisher.subscribers() == 1);
    publisher.send(&message(next, LONGEST)).unwrap();
    next += 1;
    assert!(publisher.drain(PATIENCE).unwrap());
    publisher.trim(Duration::ZERO);
    // Back in the first ring: the fast one has still to go on there.
    publisher.send(&message(next, LONGEST)).unwrap();
    assert!(publisher.drain(PATIENCE).unwrap());
    publisher.trim(Duration::ZERO);
    assert_eq!(publisher.ring_bytes(), RING);
    publisher.close();
    let (received, _): (u64, String) = fast.hear();
    assert_eq!(received, next + 1);
    fast.finish();
}

/// A subscriber that is slower by turns, over thousands of rings that are left and used again.
#[test]
fn rings_are_left_and_used_again() {
    let scene = Scene::new();
    let mut dice = Dice::new();
    let mut publisher = spilling(2).unbound().unwrap();
    let children = Policy::SLEEPY.map(|policy| join(&scene, &publisher, policy, LONGEST));
    let mut next = 0;
    let mut stopped = false;
    while publisher.stats().spills < 3000 {
        if dice.below(50) == 0 && !stopped {
            children[0].signal(Signal::STOP);
            stopped = true;
        }
        if publisher.try_send(&message(next, LONGEST)).is_ok() {
            next += 1;
        } else {
            children[0].signal(Signal::CONT);
            stopped = false;
            publisher.send(&message(next, LONGEST)).unwrap();
            next += 1;
        }
        assert!(publisher.ring_bytes() <= 4 * RING);
    }
    children[0].signal(Signal::CONT);
    publisher.close();
    for child in children {
        let (received, end): (u64, String) = child.hear();
        assert_eq!(received, next, "{end}");
        child.finish();
    }
}

/// Long messages are in the pool, whose records are in whichever ring.
#[test]
fn long_messages_in_a_spill() {
    let scene = Scene::new();
    let longest = 9000;
    let mut publisher = spilling(60).pool_bytes(8 << 20).unbound().unwrap();
    let slow = join(&scene, &publisher, Policy::Block, longest);
    slow.signal(Signal::STOP);
    let fast = join(&scene, &publisher, Policy::Block, longest);
    for number in 0..120 {
        let sent = publisher.send_timeout(&message(number, longest), PATIENCE);
        sent.expect("room");
    }
    assert!(publisher.stats().spills > 2, "{:?}", publisher.stats());
    slow.signal(Signal::CONT);
    for number in 120..1000 {
        publisher.send(&message(number, longest)).unwrap();
    }
    publisher.close();
    for child in [slow, fast] {
        let (received, end): (u64, String) = child.hear();
        assert_eq!(received, 1000, "{end}");
        child.finish();
    }
}

/// Who joins while rings are left for others begins with the next message, wherever that is.
#[test]
fn joining_while_rings_are_left() {
    let _scene = Scene::new();
    let mut publisher = spilling(3).unbound().unwrap();
    let mut next = 0_u64;
    let mut waiting: Vec<(Subscriber, u64)> = Vec::new();
    let mut dice = Dice::new();
    for _ in 0..400 {
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        waiting.push((Subscriber::builder().over(theirs).unwrap(), next));
        for _ in 0..dice.below(120) {
            let sent = loop {
                match publisher.try_send(&next.to_ne_bytes()) {
                    Ok(()) => break true,
                    Err(_) if waiting.is_empty() => break false,
                    // The oldest has kept all that it may.
                    Err(_) => {
                        let (mut subscriber, first) = waiting.remove(0);
                        for number in first..next {
                            let message = subscriber.recv().unwrap();
                            assert_eq!(message.to_vec(), number.to_ne_bytes());
                        }
                        drop(subscriber);
                        let subscribers = waiting.len();
                        wait_until("it is gone", || publisher.subscribers() == subscribers);
                    }
                }
            };
            next += u64::from(sent);
        }
        if waiting.len() > 5 {
            let at = dice.below(waiting.len() as u64) as usize;
            let (mut subscriber, first) = waiting.swap_remove(at);
            for number in first..next {
                assert_eq!(subscriber.recv().unwrap().to_vec(), number.to_ne_bytes());
            }
        }
    }
    assert!(publisher.stats().spills > 10, "{:?}", publisher.stats());
}

/// A publisher that is closed, or dropped, leaves all that it has kept.
#[test]
fn what_is_kept_is_received_after_the_end() {
    let _scene = Scene::new();
    let mut publisher = spilling(8).unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let mut subscriber = Subscriber::builder().over(theirs).unwrap();
    let sent = fill_up(&mut publisher, 0, LONGEST);
    assert_eq!(publisher.stats().spills, 8);
    publisher.close();
    for number in 0..sent {
        assert_eq!(
            subscriber.recv().unwrap().to_vec(),
            message(number, LONGEST)
        );
    }
    let Err(RecvError::Disconnected { reason }) = subscriber.recv() else {
        panic!("there is no end");
    };
    assert_eq!(reason, memlane::Reason::Closed);
}

#[test]
fn spills_that_cannot_be() {
    let _scene = Scene::new();
    for bytes in [1, RING - 1, 63 * RING, usize::MAX] {
        let error = unbound(RING).spill_bytes(bytes).unbound().unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Option { .. }), "{text}");
        assert!(text.contains(&bytes.to_string()), "{text}");
    }
}

/// The publisher's side of a lane, by hand: a ring of one page, to which one subscriber comes.
struct Hostile {
    link: Link,
    ring: Shared,
    subscriber: Subscriber,
}

/// The header of a ring's end.
fn switch(ring: u64) -> u64 {
    ring | 3 << 32
}

fn hostile(rings: &[(u32, Fd)], at: u32) -> (Link, Shared, Result<Subscriber, Error>) {
    let (ours, theirs) = Link::pair().unwrap();
    let (ring, descriptor) = Shared::create("test-ring", page_size(), page_size()).unwrap();
    std::thread::scope(|scope| {
        let subscriber = scope.spawn(|| Subscriber::builder().timeout(PATIENCE).over(theirs));
        ours.send(&Opening { version: VERSION }).unwrap();
        assert_eq!(ours.recv::<Opening>().unwrap().version, VERSION);
        let _greeting: Greeting = ours.recv().unwrap();
        for (id, memory) in rings {
            let memory = memory_of(memory);
            ours.send(&(2_u32, Notice::Ring { id: *id, memory }))
                .unwrap();
        }
        ours.send(&Answer::Welcome(Welcome {
            ring: descriptor.into(),
            capacity: page_size() as u64,
            start: 0,
            rings: Rings::Socket,
            doorbell: Bell::None,
            registered: false,
            sequence: 0,
            at,
        }))
        .unwrap();
        (ours, ring, subscriber.join().unwrap())
    })
}

fn memory_of(memory: &Fd) -> Fd {
    use std::os::fd::AsFd;
    memory.as_fd().try_clone_to_owned().unwrap().into()
}

fn another_ring(len: usize) -> (Shared, Fd) {
    let (ring, descriptor) = Shared::create("test-ring", page_size(), len).unwrap();
    (ring, descriptor.into())
}

/// Stores a header in a ring, as its writer.
fn store(ring: &mut Shared, position: u64, header: u64) {
    use memlane::region::WordsMut;
    ring.store_release(position, header);
}

impl Hostile {
    fn new(rings: &[(u32, Fd)]) -> Hostile {
        let (link, ring, subscriber) = hostile(rings, 0);
        Hostile {
            link,
            ring,
            subscriber: subscriber.unwrap(),
        }
    }
}

/// A ring ends, and the next one is none: not announced, not a ring, of another size, over the quota.
#[test]
fn rings_that_are_none() {
    let _scene = Scene::new();
    let page = page_size();
    let null = || {
        Fd::from(std::os::fd::OwnedFd::from(
            std::fs::File::open("/dev/null").unwrap(),
        ))
    };
    let cases: [(&str, Option<Fd>); 3] = [
        ("expected a ring that was announced, got 7", None),
        ("ring 7", Some(null())),
        ("ring 7", Some(another_ring(2 * page).1)),
    ];
    for (expected, memory) in cases {
        let known = memory.is_some();
        let mut lane = Hostile::new(&[]);
        if let Some(memory) = memory {
            lane.link.send(&Notice::Ring { id: 7, memory }).unwrap();
        }
        store(&mut lane.ring, 0, switch(7));
        for _ in 0..2 {
            let error = lane.subscriber.recv().unwrap_err();
            let text = error.to_string();
            let refused = matches!(error, RecvError::Chunk(_));
            // Longer than announced is as good.
            if known && !refused {
                panic!("{text}");
            }
            assert!(refused && text.contains(expected), "{text}");
            assert!(lane.subscriber.try_recv().is_err());
        }
    }
}

/// Rings that lead to one another, and rings without end, each with something in it.
#[test]
fn rings_in_circles() {
    let _scene = Scene::new();
    let (mut second, memory) = another_ring(page_size());
    let mut lane = Hostile::new(&[(1, memory)]);
    store(&mut lane.ring, 0, switch(1));
    store(&mut second, 0, switch(0));
    for _ in 0..3 {
        let error = lane.subscriber.recv().unwrap_err();
        assert!(matches!(error, RecvError::Corrupt(_)), "{error}");
    }

    let (mut second, memory) = another_ring(page_size());
    let mut lane = Hostile::new(&[(1, memory)]);
    for position in (0..64).step_by(16) {
        // Both the same record; at each position but the first, the way to the other ring is beside it.
        let (here, there) = match position / 16 % 2 {
            0 => (&mut lane.ring, &mut second),
            _ => (&mut second, &mut lane.ring),
        };
        store(here, position, memlane_tests::wire::header(16, 8));
        store(
            here,
            position + 16,
            switch(if position / 16 % 2 == 0 { 1 } else { 0 }),
        );
        store(there, position + 16, 0);
    }
    for _ in 0..4 {
        assert_eq!(lane.subscriber.recv().unwrap().len(), 8);
    }
    assert!(lane.subscriber.try_recv().is_err());
}

/// Notices of more rings than there can be, of the same one again, of the first, and a welcome to none.
#[test]
fn notices_of_rings_that_make_no_sense() {
    let _scene = Scene::new();
    let page = page_size();
    let many: Vec<_> = (0..64).map(|id| (id, another_ring(page).1)).collect();
    let (_link, _ring, subscriber) = hostile(&many, 63);
    assert!(subscriber.is_ok(), "{:?}", subscriber.err());
    drop(subscriber);
    let (_link, _ring, subscriber) = hostile(&[], 5);
    let Err(Error::Welcome { why }) = subscriber else {
        panic!("{subscriber:?}");
    };
    assert_eq!(why, "expected a ring that was announced, got 5");
    let twice = [(1, another_ring(page).1), (1, another_ring(page).1)];
    let mut lane = Hostile::new(&twice);
    store(&mut lane.ring, 0, switch(2));
    let text = lane.subscriber.recv().unwrap_err().to_string();
    assert!(
        text.contains("expected a new ring, got 1 once more"),
        "{text}"
    );
}

/// A subscriber that never reads its link is dropped once it leaves too many notices unread, and nobody else is.
#[test]
fn a_subscriber_that_takes_no_notices() {
    let _scene = Scene::new();
    let mut publisher = spilling(1).unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let (_page, descriptor) = Shared::create("test-page", page_size(), 0).unwrap();
    theirs.send(&Opening { version: VERSION }).unwrap();
    theirs
        .send(&Greeting {
            hello: Default::default(),
            page: descriptor.into(),
            doorbell: Offer::default(),
            trusts: false,
            expects: None,
            overflow: Overflow::Block,
        })
        .unwrap();
    publisher.wait_for_subscribers(1).unwrap();
    // All that is kept for it is one ring, and so is what it is told of.
    let sent = fill_up(&mut publisher, 0, LONGEST);
    assert!(sent > 0);
    assert_eq!(publisher.stats().spills, 1);
    assert_eq!(publisher.subscribers(), 1);
    assert_eq!(theirs.recv::<Opening>().unwrap().version, VERSION);
    let Answer::Welcome(welcome) = theirs.recv().unwrap() else {
        panic!("refused");
    };
    assert_eq!((welcome.start, welcome.at), (0, 0));
    let Notice::Ring { id, memory } = theirs.recv().unwrap() else {
        panic!("no ring");
    };
    assert_eq!(id, 1);
    Remote::open(memory.into(), page_size(), RING, 1 << 20).unwrap();
}

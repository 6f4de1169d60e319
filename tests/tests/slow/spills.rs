//! What is kept for them in rings of its own.

use std::time::Duration;

use memlane::{
    Error, Link, RecvError, SendTimeoutError, Subscriber,
    region::{Remote, Shared, page_size},
};
use memlane_tests::{
    Census, Dice, PATIENCE, Policy, Scene, unbound, wait_until,
    wire::{Answer, Greeting, Notice, Offer, Opening, VERSION},
};

use crate::lane::{LONGEST, RING, fill_up, join, message, spilling};

/// One is stopped. The other gets everything meanwhile, and nobody waits, until there is no more to keep; then all wait. What
/// was kept is received once the first goes on.
#[test]
fn a_stopped_subscriber_is_served_from_a_spill() {
    for policy in Policy::SLEEPY {
        let scene = Scene::new();
        let mut publisher = spilling(8).wait(policy.into()).unbound().unwrap();
        let slow = join(&scene, &publisher, policy, LONGEST);
        slow.stop();
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
        slow.go_on();
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
    slow.stop();
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
            children[0].stop();
            stopped = true;
        }
        if publisher.try_send(&message(next, LONGEST)).is_ok() {
            next += 1;
        } else {
            children[0].go_on();
            stopped = false;
            publisher.send(&message(next, LONGEST)).unwrap();
            next += 1;
        }
        assert!(publisher.ring_bytes() <= 4 * RING);
    }
    children[0].go_on();
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
    slow.stop();
    let fast = join(&scene, &publisher, Policy::Block, longest);
    for number in 0..120 {
        let sent = publisher.send_timeout(&message(number, longest), PATIENCE);
        sent.expect("room");
    }
    assert!(publisher.stats().spills > 2, "{:?}", publisher.stats());
    slow.go_on();
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
        .send(&Greeting::new(descriptor.into(), Offer::default()))
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

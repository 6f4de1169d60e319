//! They are dropped: at once, after a while, or as a callback decides.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use memlane::{
    Async, Decision, Link, Overflow, Publisher, SendTimeoutError, Subscriber, TrySendError,
    Watched, WhenFull,
};
use memlane_tests::{
    Child, Control, Dice, PATIENCE, Policy, Scene, Tasks, trusting, unbound, wait_until,
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::Signal,
};

use crate::lane::{
    LONGEST, RING, assert_too_slow, fill_up, join, join_as, message, spilling, subscribe,
};

/// One asks to be dropped, and is stopped: nobody waits for it. Once it goes on, it receives what it had begun to read, and is
/// told. What it kept is given back.
#[test]
fn a_subscriber_that_asks_is_dropped_at_once() {
    for rings in [0, 2] {
        let scene = Scene::new();
        let mut publisher = spilling(rings).unbound().unwrap();
        let slow = join_as(&scene, &publisher, Overflow::Disconnect, LONGEST);
        slow.stop();
        let fast = join(&scene, &publisher, Policy::Block, LONGEST);
        for number in 0..1000 {
            let sent = publisher.send_timeout(&message(number, LONGEST), PATIENCE);
            sent.expect("room beside one that is dropped");
        }
        assert_eq!(publisher.stats().too_slow, 1);
        assert_eq!(publisher.subscribers(), 1);
        slow.go_on();
        let (received, end): (u64, String) = slow.hear();
        assert!(received > 10, "{received}");
        assert_too_slow(&end);
        slow.finish();
        assert!(publisher.drain(PATIENCE).unwrap());
        publisher.close();
        let (received, _): (u64, String) = fast.hear();
        assert_eq!(received, 1000);
        fast.finish();
    }
}

/// One that is waited for, and then not any longer: by calls that wait, that do not, in a loop, and in a task.
#[test]
fn a_subscriber_is_waited_for_so_long() {
    const AFTER: Duration = Duration::from_millis(30);
    for form in 0..4 {
        let _scene = Scene::new();
        let when_full = WhenFull::Disconnect { after: AFTER };
        let publisher = unbound(RING).when_full(when_full).unbound().unwrap();
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        let mut slow = Subscriber::builder().over(theirs).unwrap();
        let since = Instant::now();
        let send = |number: u64| message(number, LONGEST);
        let publisher = match form {
            0 => {
                let mut publisher = publisher;
                (0..200).for_each(|number| publisher.send(&send(number)).unwrap());
                publisher
            }
            1 => {
                let mut publisher = publisher;
                for number in 0..200 {
                    while let Err(error) = publisher.try_send(&send(number)) {
                        assert!(matches!(error, TrySendError::Full));
                        std::thread::yield_now();
                    }
                }
                publisher
            }
            2 => {
                let mut publisher = Watched::new(publisher).unwrap();
                for number in 0..200 {
                    while let Err(error) = publisher.try_send(&send(number)) {
                        assert!(matches!(error, TrySendError::Full));
                        poll(&mut [PollFd::new(&publisher, PollFlags::IN)], None).unwrap();
                        publisher.drive().unwrap();
                    }
                }
                publisher.into_inner()
            }
            _ => Control::run(async {
                let mut publisher = Async::new(publisher).unwrap();
                for number in 0..200 {
                    publisher.send(&send(number)).await.unwrap();
                }
                publisher.into_inner()
            }),
        };
        assert!(since.elapsed() >= AFTER);
        assert_eq!(publisher.stats().too_slow, 1);
        assert_eq!(publisher.subscribers(), 0);
        let mut received = 0;
        let end = loop {
            match slow.recv() {
                Ok(text) => assert_eq!(text.to_vec(), message(received, LONGEST)),
                Err(error) => break error.to_string(),
            }
            received += 1;
        };
        assert!(received > 10);
        assert_too_slow(&end);
        // It has said so, so that what it kept is free, and it finds nothing in that.
        wait_until("its place is free", || {
            publisher.drive().unwrap();
            publisher.stats().left == 0
        });
        for _ in 0..3 {
            assert_too_slow(&slow.recv().unwrap_err().to_string());
            assert_too_slow(&slow.try_recv().unwrap_err().to_string());
        }
    }
}

/// The callback knows who is in the way, and decides for each.
#[test]
fn a_callback_decides() {
    let scene = Scene::new();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let mut publisher = {
        let asked = asked.clone();
        spilling(4)
            .on_lagging(move |lagging| {
                asked.lock().unwrap().push(lagging.clone());
                match lagging.subscriber {
                    0 => Decision::Spill,
                    1 => Decision::Disconnect,
                    _ => Decision::Wait,
                }
            })
            .unbound()
            .unwrap()
    };
    let children = [(); 2].map(|()| join(&scene, &publisher, Policy::Block, LONGEST));
    children.iter().for_each(Child::stop);
    let mut sent = 0;
    while publisher.stats().spills < 4 {
        publisher.send(&message(sent, LONGEST)).unwrap();
        sent += 1;
    }
    assert_eq!(publisher.stats().too_slow, 1);
    // The first one has all that it may have, and the others wait for it.
    sent = fill_up(&mut publisher, sent, LONGEST);
    let before = asked.lock().unwrap().len();
    // It is asked every now and then, and not all the time.
    for calls in 1.. {
        let timeout = Duration::from_millis(200);
        let timed_out = publisher.send_timeout(&message(sent, LONGEST), timeout);
        assert!(matches!(timed_out, Err(SendTimeoutError::TimedOut)));
        let asked = asked.lock().unwrap();
        let again = asked.len() - before;
        assert!(again <= 30 * calls, "asked {again} times in {calls} calls");
        let last = asked.last().unwrap();
        assert_eq!((last.subscriber, last.spilled), (0, 4 * RING));
        assert!(last.behind > 4 * RING as u64);
        if again >= 2 && last.waited > Duration::from_millis(100) {
            break;
        }
    }
    {
        let asked = asked.lock().unwrap();
        assert!(
            asked
                .iter()
                .all(|lagging| lagging.overflow == Overflow::Block)
        );
    }
    children.iter().for_each(|child| child.go_on());
    publisher.send(&message(sent, LONGEST)).unwrap();
    publisher.close();
    let [first, second] = children;
    let (received, _): (u64, String) = first.hear();
    assert_eq!(received, sent + 1);
    let (received, end): (u64, String) = second.hear();
    assert!(received < sent, "{received}");
    assert_too_slow(&end);
    first.finish();
    second.finish();
}

/// "Never" is a time, too.
#[test]
fn a_subscriber_is_waited_for_without_end() {
    let _scene = Scene::new();
    let when_full = WhenFull::Disconnect {
        after: Duration::MAX,
    };
    let mut publisher = unbound(RING).when_full(when_full).unbound().unwrap();
    let _slow = subscribe(&publisher, Overflow::Block);
    let sent = fill_up(&mut publisher, 0, LONGEST);
    let timed_out = publisher.send_timeout(&message(sent, LONGEST), Duration::from_millis(20));
    assert!(matches!(timed_out, Err(SendTimeoutError::TimedOut)));
    assert_eq!(publisher.stats().too_slow, 0);
}

/// Subscribers that stop and go on at random are dropped at every point of their way from ring to ring: whatever they receive is
/// what was sent, in order, and then they are told.
#[test]
fn dropped_at_any_moment() {
    let scene = Scene::new();
    let mut dice = Dice::new();
    let mut dropped = 0;
    for _ in 0..60 {
        let rings = dice.below(3) as usize;
        let mut publisher = spilling(rings).max_subscribers(8).unbound().unwrap();
        let fast = join(&scene, &publisher, Policy::Block, LONGEST);
        let slow = join_as(&scene, &publisher, Overflow::Disconnect, LONGEST);
        let total = 2000;
        for number in 0..total {
            if dice.below(300) == 0 {
                // It may have ended by now.
                slow.signal(Signal::STOP);
            } else if dice.below(100) == 0 {
                slow.go_on();
            }
            publisher.send(&message(number, LONGEST)).unwrap();
        }
        let killed = dice.below(4) == 0;
        if killed {
            slow.kill();
        }
        slow.go_on();
        publisher.close();
        let (received, _): (u64, String) = fast.hear();
        assert_eq!(received, total);
        fast.finish();
        match slow.hear_if_alive::<(u64, String)>() {
            Some((received, end)) if received < total => {
                assert_too_slow(&end);
                dropped += 1;
                if !killed {
                    slow.finish();
                }
            }
            Some(_) if !killed => slow.finish(),
            _ => {}
        }
    }
    assert!(dropped > 0, "nobody was dropped, of 60");
}

/// What is being looked at in place when its reader is dropped stays what it is.
#[test]
fn a_message_outlives_its_subscription() {
    let _scene = Scene::new();
    let mut publisher = spilling(0).unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let builder = Subscriber::builder().overflow(Overflow::Disconnect);
    let mut slow = trusting(builder).over(theirs).unwrap();
    publisher.send(&message(0, LONGEST)).unwrap();
    let long = vec![7; 100_000];
    publisher.send(&long).unwrap();
    let first = slow.recv().unwrap();
    for number in 0..1000 {
        publisher.send(&message(number, LONGEST)).unwrap();
    }
    assert_eq!(publisher.stats().too_slow, 1);
    assert_eq!(&*first, message(0, LONGEST));
    drop(first);
    let held = slow.recv().unwrap().hold().expect("a slot");
    let end = loop {
        match slow.recv() {
            Ok(_) => {}
            Err(error) => break error.to_string(),
        }
    };
    assert_too_slow(&end);
    for _ in 0..20 {
        publisher.send(&vec![9; 100_000]).unwrap();
    }
    assert!(*held == *long, "torn");
    drop(slow);
    publisher.send(&vec![9; 100_000]).unwrap();
    assert!(*held == *long, "torn after the end");
}

/// Those who were dropped have their places until they are gone.
#[test]
fn places_of_the_dropped() {
    let _scene = Scene::new();
    let mut publisher = spilling(0).max_subscribers(2).unbound().unwrap();
    let subscribe = || {
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        Subscriber::builder()
            .overflow(Overflow::Disconnect)
            .over(theirs)
    };
    let slow = subscribe().unwrap();
    let other = subscribe().unwrap();
    drop(other);
    wait_until("it is gone", || publisher.subscribers() == 1);
    for number in 0..200 {
        publisher.send(&message(number, LONGEST)).unwrap();
    }
    assert_eq!(
        (publisher.subscribers(), publisher.stats().too_slow),
        (0, 1)
    );
    let subscribe = |publisher: &Publisher| {
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        Subscriber::builder().over(theirs)
    };
    let second = subscribe(&publisher).unwrap();
    let refused = subscribe(&publisher).unwrap_err().to_string();
    assert!(refused.contains("takes no more"), "{refused}");
    drop(slow);
    let mut third = None;
    wait_until("a place is free", || {
        third = subscribe(&publisher).ok();
        third.is_some()
    });
    drop(second);
}

/// More are dropped, and read on, than a subscriber can know rings: what is kept for them is no concern of the others.
#[test]
fn more_are_dropped_than_there_can_be_rings() {
    const DROPPED: usize = 70;
    let _scene = Scene::new();
    let mut publisher = spilling(0).max_subscribers(80).unbound().unwrap();
    let mut fast = subscribe(&publisher, Overflow::Block);
    let mut number = 0;
    let mut slow = Vec::new();
    for dropped in 1..=DROPPED as u64 {
        slow.push((number, subscribe(&publisher, Overflow::Disconnect)));
        while publisher.stats().too_slow < dropped {
            let text = message(number, LONGEST);
            publisher.send_timeout(&text, PATIENCE).expect("room");
            assert_eq!(fast.recv().unwrap().to_vec(), text);
            number += 1;
        }
    }
    assert!(publisher.ring_bytes() > DROPPED * RING);
    // Who comes now hears of few.
    let mut newcomer = subscribe(&publisher, Overflow::Block);
    let text = message(number, LONGEST);
    publisher.send(&text).unwrap();
    for subscriber in [&mut fast, &mut newcomer] {
        assert_eq!(subscriber.recv().unwrap().to_vec(), text);
        // It says what it has released.
        assert!(subscriber.try_recv().is_err());
    }
    for (first, mut slow) in slow {
        for number in first.. {
            match slow.recv() {
                Ok(received) => assert_eq!(received.to_vec(), message(number, LONGEST)),
                Err(error) => {
                    assert!(number > first);
                    assert_too_slow(&error.to_string());
                    break;
                }
            }
        }
    }
    wait_until("they have left", || {
        publisher.trim(Duration::ZERO);
        publisher.ring_bytes() <= 2 * RING
    });
    publisher.send(&text).unwrap();
    assert_eq!(fast.recv().unwrap().to_vec(), text);
}

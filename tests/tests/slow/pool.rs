//! They have the pool.

use std::time::Duration;

use memlane::{Decision, Overflow, TryRecvError, WhenFull};
use memlane_tests::{PATIENCE, Policy, Scene, unbound};

use crate::lane::{assert_too_slow, join, message, subscribe};

/// One that has all of the pool is dropped: what it has stays as it is until it is gone, and others get more.
#[test]
fn a_laggard_that_has_the_pool() {
    let scene = Scene::new();
    let longest = 200_000;
    let builder = unbound(1 << 16).pool_bytes(4 << 20).max_message(longest);
    let mut publisher = builder
        .on_lagging(|lagging| match lagging.subscriber {
            0 => Decision::Disconnect,
            _ => Decision::Wait,
        })
        .unbound()
        .unwrap();
    let slow = join(&scene, &publisher, Policy::Block, longest);
    slow.stop();
    let fast = join(&scene, &publisher, Policy::Block, longest);
    let mut sent = 0;
    while publisher.stats().too_slow == 0 {
        let text = message(sent, longest);
        publisher.send_timeout(&text, PATIENCE).expect("room");
        sent += 1;
    }
    for number in sent..sent + 200 {
        let text = message(number, longest);
        publisher.send_timeout(&text, PATIENCE).expect("room");
    }
    assert_eq!(publisher.stats().too_slow, 1);
    assert!(publisher.pool_bytes() <= 8 << 20);
    slow.go_on();
    let (received, end): (u64, String) = slow.hear();
    assert!(received > 5 && received <= sent, "{received} of {sent}");
    assert_too_slow(&end);
    slow.finish();
    for number in sent + 200..sent + 400 {
        publisher.send(&message(number, longest)).unwrap();
    }
    assert!(publisher.drain(PATIENCE).unwrap());
    publisher.trim(Duration::ZERO);
    assert!(
        publisher.pool_bytes() <= 4 << 20,
        "{}",
        publisher.pool_bytes()
    );
    publisher.close();
    let (received, _): (u64, String) = fast.hear();
    assert_eq!(received, sent + 400);
    fast.finish();
}

/// Two have all of the pool. One is dropped at once, the other after a while, with no message between the two.
#[test]
fn those_who_have_the_pool_are_dropped_one_after_the_other() {
    let _scene = Scene::new();
    let after = Duration::from_millis(30);
    let builder = unbound(1 << 16).pool_bytes(1 << 20).max_message(200_000);
    let when_full = WhenFull::Disconnect { after };
    let mut publisher = builder.when_full(when_full).unbound().unwrap();
    let subscribers = [Overflow::Disconnect, Overflow::Block];
    let subscribers = subscribers.map(|overflow| subscribe(&publisher, overflow));
    let text = vec![7; 200_000];
    let mut sent = 0;
    while publisher.stats().too_slow < 2 {
        let room = publisher.send_timeout(&text, PATIENCE);
        room.expect("room beside those who are dropped");
        sent += 1;
    }
    for mut subscriber in subscribers {
        let mut received = 0;
        let end = loop {
            match subscriber.recv() {
                Ok(message) => assert_eq!(message.to_vec(), text),
                Err(error) => break error.to_string(),
            }
            received += 1;
        };
        assert!((1..sent).contains(&received), "{received} of {sent}");
        assert_too_slow(&end);
    }
}

/// Who has released all records, and keeps what they name, is in the way of the next long message, and nobody else is.
#[test]
fn one_that_keeps_the_pool_is_dropped() {
    let _scene = Scene::new();
    let when_full = WhenFull::Disconnect {
        after: Duration::ZERO,
    };
    let builder = unbound(1 << 16).pool_bytes(1 << 20).max_message(200_000);
    let mut publisher = builder.when_full(when_full).unbound().unwrap();
    let mut keeper = subscribe(&publisher, Overflow::Block);
    let mut other = subscribe(&publisher, Overflow::Block);
    let text = vec![7; 200_000];
    let mut held = Vec::new();
    for _ in 0..8 {
        publisher.send_timeout(&text, PATIENCE).expect("room");
        if publisher.stats().too_slow == 0 {
            held.push(keeper.recv().unwrap().hold().expect("a slot"));
            assert!(matches!(keeper.try_recv(), Err(TryRecvError::Empty)));
            // Its cursor is known, too.
            publisher.drain(Duration::ZERO).unwrap();
        }
        assert_eq!(other.recv().unwrap().to_vec(), text);
    }
    assert_eq!(publisher.stats().too_slow, 1);
    assert!(held.iter().all(|held| held.to_vec() == text));
    assert_too_slow(&keeper.recv().unwrap_err().to_string());
    assert!(matches!(other.try_recv(), Err(TryRecvError::Empty)));
}

/// The same of two, one after the other: nothing has been written yet in the ring that was begun for the first. That gives up less
/// than is needed.
#[test]
fn two_that_keep_the_pool_are_dropped_in_turn() {
    let _scene = Scene::new();
    let builder = unbound(1 << 16).pool_bytes(1 << 20).max_message(200_000);
    let after = Duration::from_millis(30);
    let when_full = WhenFull::Disconnect { after };
    let mut publisher = builder.when_full(when_full).unbound().unwrap();
    let mut first = subscribe(&publisher, Overflow::Disconnect);
    let mut second = subscribe(&publisher, Overflow::Block);
    let mut other = subscribe(&publisher, Overflow::Block);
    let mut held = Vec::new();
    let mut send = |len: usize| {
        let text = vec![len as u8; len];
        let sent = publisher.send_timeout(&text, PATIENCE);
        sent.expect("room beside those who are dropped");
        let dropped = publisher.stats().too_slow;
        if dropped == 0 {
            held.push((text.clone(), second.recv().unwrap().hold().expect("a slot")));
            let message = first.recv().unwrap();
            match len < 100_000 {
                true => held.push((text.clone(), message.hold().expect("a slot"))),
                false => drop(message),
            }
            for keeper in [&mut first, &mut second] {
                assert!(matches!(keeper.try_recv(), Err(TryRecvError::Empty)));
            }
        }
        assert_eq!(other.recv().unwrap().to_vec(), text);
        // Its cursor is known, too.
        publisher.drain(Duration::ZERO).unwrap();
        dropped
    };
    assert_eq!(send(70_000), 0);
    let mut sent = 0;
    let dropped = loop {
        sent += 1;
        match send(200_000) {
            0 => {}
            dropped => break dropped,
        }
    };
    assert_eq!((sent, dropped), (5, 2));
    assert_eq!(send(100), 2);
    assert_eq!(publisher.stats().spills, 2);
    for keeper in [&mut first, &mut second] {
        assert_too_slow(&keeper.recv().unwrap_err().to_string());
    }
    assert!(held.iter().all(|(text, held)| held.to_vec() == *text));
}

/// Where one that is waited for has the pool, one that asks to be dropped, and reads, is not in the way.
#[test]
fn one_that_keeps_up_is_not_in_the_way_of_the_pool() {
    let _scene = Scene::new();
    let builder = unbound(1 << 16).pool_bytes(1 << 20).max_message(200_000);
    let mut publisher = builder.unbound().unwrap();
    let _slow = subscribe(&publisher, Overflow::Block);
    let mut fast = subscribe(&publisher, Overflow::Disconnect);
    let text = vec![7; 200_000];
    let mut sent = 0;
    while publisher.try_send(&text).is_ok() {
        sent += 1;
        if sent > 1 {
            // One behind, always.
            assert_eq!(fast.recv().unwrap().to_vec(), text);
        }
    }
    assert!(sent > 2, "{sent}");
    assert_eq!(publisher.stats().too_slow, 0);
    assert_eq!(fast.recv().unwrap().to_vec(), text);
}

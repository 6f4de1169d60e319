//! Those who come late, and what was kept for them.

use std::time::Duration;

use memlane::{Link, Overflow, Publisher, SendTimeoutError, Subscriber, TryRecvError};
use memlane_tests::{Dice, Scene, unbound, wait_until};

use crate::lane::{LONGEST, RING, message, spilling};

/// Who joins at any moment gets the last messages that it asks for, and then every one that follows, however it reads.
#[test]
fn a_history_for_those_who_come_late() {
    const KEPT: u64 = 20;
    let _scene = Scene::new();
    let mut publisher = spilling(1).history(KEPT as usize).unbound().unwrap();
    let links: Vec<(Link, Link)> = (0..300).map(|_| Link::pair().unwrap()).collect();
    let (ours, theirs): (Vec<_>, Vec<_>) = links.into_iter().unzip();
    let (attach, attached) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut dice = Dice::new();
            for (link, ours) in theirs.into_iter().zip(ours) {
                attach.send(ours).unwrap();
                let asked = dice.below(KEPT + 5);
                let overflow = dice.pick(&[Overflow::Block, Overflow::Overwrite]);
                let builder = Subscriber::builder().history(asked).overflow(overflow);
                let mut subscriber = builder.over(link).unwrap();
                let first = subscriber.recv().unwrap();
                let mut expected = first.sequence() + 1;
                assert_eq!(first.to_vec(), message(expected - 1, LONGEST));
                let mut missed = first.missed();
                assert!(missed == 0 || overflow == Overflow::Overwrite);
                drop(first);
                for _ in 0..asked + 10 {
                    let next = subscriber.recv().unwrap();
                    missed += next.missed();
                    assert_eq!(next.sequence(), expected + next.missed());
                    assert_eq!(next.to_vec(), message(next.sequence(), LONGEST));
                    expected = next.sequence() + 1;
                }
                assert_eq!(subscriber.stats().missed, missed);
            }
        });
        let mut number = 0;
        while !reader.is_finished() {
            while let Ok(link) = attached.try_recv() {
                publisher.attach(link).unwrap();
            }
            let text = message(number, LONGEST);
            match publisher.send_timeout(&text, Duration::from_millis(1)) {
                Ok(()) => number += 1,
                Err(SendTimeoutError::TimedOut) => {}
                Err(error) => panic!("{error}"),
            }
        }
        reader.join().unwrap();
    });
}

/// Exactly as many as are asked for, and are there, short or long.
#[test]
fn a_history_is_exact() {
    let _scene = Scene::new();
    for longest in [40, 9000] {
        let mut publisher = unbound(1 << 16).history(10).unbound().unwrap();
        for sent in 0..60 {
            for asked in [0, 1, 7, 10, 11] {
                for overflow in [Overflow::Block, Overflow::Overwrite, Overflow::Disconnect] {
                    let (ours, theirs) = Link::pair().unwrap();
                    publisher.attach(ours).unwrap();
                    let builder = Subscriber::builder().history(asked).overflow(overflow);
                    let mut subscriber = builder.over(theirs).unwrap();
                    for number in sent - asked.min(10).min(sent)..sent {
                        let text = subscriber.try_recv().unwrap();
                        assert_eq!(text.sequence(), number);
                        assert_eq!(text.to_vec(), message(number, longest));
                    }
                    assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
                    assert_eq!(subscriber.sequence(), sent);
                    assert_eq!(subscriber.stats().missed, 0);
                    drop(subscriber);
                    wait_until("it is gone", || publisher.subscribers() == 0);
                }
            }
            publisher.send(&message(sent, longest)).unwrap();
        }
    }
}

/// What is sent has the memory first: of messages that are long for the ring, or the pool, fewer are kept.
#[test]
fn a_history_that_does_not_fit() {
    let _scene = Scene::new();
    let mut publisher = unbound(RING)
        .pool_bytes(1 << 20)
        .max_message(250_000)
        .history(1000)
        .unbound()
        .unwrap();
    let got = |publisher: &Publisher, sent: u64, longest: usize| {
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        let mut subscriber = Subscriber::builder()
            .history(u64::MAX)
            .over(theirs)
            .unwrap();
        let mut got = 0;
        while let Ok(text) = subscriber.try_recv() {
            let number = text.sequence();
            assert_eq!(text.to_vec(), message(number, longest));
            got += 1;
        }
        assert_eq!(subscriber.sequence(), sent);
        drop(subscriber);
        wait_until("it is gone", || publisher.subscribers() == 0);
        got
    };
    for number in 0..500 {
        publisher.try_send(&message(number, LONGEST)).unwrap();
    }
    let short = got(&publisher, 500, LONGEST);
    assert!((10..100).contains(&short), "{short}");
    for number in 500..600 {
        publisher.try_send(&message(number, 250_000)).unwrap();
    }
    let long = got(&publisher, 600, 250_000);
    assert!((1..40).contains(&long), "{long}");
    assert!(publisher.pool_bytes() <= 1 << 20);
}

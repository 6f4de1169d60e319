//! The other side is of another version, or mean.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use memlane::{
    Error, Link, Reason, RecvError, RecvTimeoutError, Subscriber, TryRecvError, Watched,
};
use memlane_region::{Shared, WordsMut, page_size};
use memlane_tests::{
    Dice, PATIENCE, Policy, Scene, alive, check, unbound, wait_until,
    wire::{self, Answer, Greeting, Offer, Opening, Rings, VERSION, Welcome},
};

use crate::lane::{LONGEST, RING, len, overwritten, send};

#[test]
fn another_version_is_refused() {
    let _scene = Scene::new();
    let (here, there) = Link::pair().unwrap();
    let connecting = std::thread::spawn(move || overwritten(Policy::Block).over(there));
    let version = VERSION - 1;
    here.send(&Opening { version }).unwrap();
    let error = connecting.join().unwrap().unwrap_err();
    assert!(
        matches!(error, Error::Version { theirs, ours, .. } if (theirs, ours) == (VERSION - 1, VERSION)),
        "{error}"
    );
}

/// A subscriber of this process, and the ring and the link of its publisher, which is whatever the test makes it.
fn rogue(policy: Policy, sequence: u64) -> (Result<Subscriber, Error>, Shared, Link) {
    let capacity = 4096;
    let (ring, descriptor) = Shared::create("rogue", page_size(), capacity).unwrap();
    let (here, there) = Link::pair().unwrap();
    let connecting = std::thread::spawn(move || overwritten(policy).over(there));
    here.send(&Opening { version: VERSION }).unwrap();
    let Opening { version } = here.recv_timeout(PATIENCE).unwrap();
    assert_eq!(version, VERSION);
    let greeting: Greeting = here.recv_timeout(PATIENCE).unwrap();
    assert_eq!(greeting.overflow, wire::Overflow::Overwrite);
    here.send(&Answer::Welcome(Welcome {
        start: 64,
        rings: match policy {
            Policy::Poll => Rings::Nothing,
            _ => Rings::Socket,
        },
        sequence,
        ..Welcome::new(descriptor.into(), capacity as u64)
    }))
    .unwrap();
    (connecting.join().unwrap(), ring, here)
}

/// How far it is, of which the publisher has said nonsense: where the newest anchor is, and how many messages came before.
const LAPS: usize = 256;
const BOUND: usize = LAPS;
const ANCHOR: [usize; 2] = [LAPS + 16, LAPS + 24];

/// Bounds and anchors that make no sense: a clear error, in every form, which is final; or nothing, until it is told otherwise.
#[test]
fn hostile_publishers() {
    let _scene = Scene::new();
    for policy in Policy::ALL {
        for (position, sequence) in [
            // Not behind the reader, at it, or at no multiple of 8.
            (0, 8),
            (64, 8),
            (64, 100),
            (12_345, 300),
            (u64::MAX, 300),
            // More messages than there can be, and fewer.
            (1 << 20, 1 << 20),
            (128, 1000),
            (1 << 20, 8),
            (1 << 20, 0),
            (u64::MAX - 7, u64::MAX),
        ] {
            let (subscriber, ring, link) = rogue(policy, 8);
            let mut subscriber = subscriber.unwrap();
            ring.word(ANCHOR[0]).store(position, Ordering::Release);
            ring.word(ANCHOR[1]).store(sequence, Ordering::Release);
            ring.word(BOUND).store(u64::MAX, Ordering::Release);
            let error = subscriber.recv().unwrap_err();
            assert!(matches!(error, RecvError::Anchor(_)), "{error}");
            assert!(error.to_string().contains("expected a place behind"));
            let again = subscriber.try_recv().unwrap_err();
            assert!(matches!(again, TryRecvError::Anchor(_)), "{again}");
            let again = subscriber.recv_timeout(PATIENCE).unwrap_err();
            assert!(matches!(again, RecvTimeoutError::Anchor(_)), "{again}");
            assert_eq!(again.to_string(), error.to_string());
            drop(link);
            assert!(matches!(subscriber.recv(), Err(RecvError::Anchor(_))));
        }
        // An anchor that makes sense is gone on from, and a header behind it that makes none is told of.
        let (subscriber, mut ring, _link) = rogue(policy, 8);
        let mut subscriber = subscriber.unwrap();
        ring.word(ANCHOR[0]).store(8192, Ordering::Release);
        ring.word(ANCHOR[1]).store(100, Ordering::Release);
        ring.word(BOUND).store(8192 + 4096, Ordering::Release);
        assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
        assert_eq!(subscriber.stats().missed, 92);
        ring.store_release(8192, 77);
        assert!(matches!(subscriber.recv(), Err(RecvError::Corrupt(_))));
        // A chunk that was never announced is missed.
        let (subscriber, mut ring, link) = rogue(policy, 8);
        let mut subscriber = subscriber.unwrap();
        for (at, word) in [(72, 7), (80, 1), (88, 5)] {
            ring.store(at, word);
        }
        ring.store_release(64, 2 << 32 | 32);
        assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
        assert_eq!(subscriber.stats().missed, 1);
        drop(link);
        assert!(matches!(
            subscriber.recv(),
            Err(RecvError::Disconnected {
                reason: Reason::Died
            })
        ));
    }
    // A ring that was never announced is waited for, as long as there is a publisher.
    for policy in Policy::ALL {
        let (subscriber, mut ring, link) = rogue(policy, 8);
        let mut subscriber = subscriber.unwrap();
        ring.store_release(64, 5 | 3 << 32);
        for _ in 0..3 {
            assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
            assert!(matches!(
                subscriber.recv_timeout(Duration::from_millis(1)),
                Err(RecvTimeoutError::TimedOut)
            ));
        }
        drop(link);
        let error = subscriber.recv().unwrap_err();
        assert!(matches!(error, RecvError::Chunk(_)), "{error}");
    }
    // More messages than there can have been.
    let (refused, ..) = rogue(Policy::Block, 9);
    let error = refused.unwrap_err();
    assert!(matches!(error, Error::Welcome { .. }), "{error}");
}

/// A publisher that moves on without end, and one that never settles: no call takes longer than it is told to.
#[test]
fn a_publisher_that_is_always_further() {
    let _scene = Scene::new();
    for policy in Policy::ALL {
        for settles in [true, false] {
            let (subscriber, ring, link) = rogue(policy, 8);
            let mut subscriber = Watched::new(subscriber.unwrap()).map_err(drop);
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut position = 64;
                    for anchors in 1_u64.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        position += 1 << 16;
                        let at = LAPS + 16 + 24 * (anchors % 2) as usize;
                        ring.word(at).store(position, Ordering::Relaxed);
                        ring.word(at + 8)
                            .store(position / 64 + 7, Ordering::Relaxed);
                        ring.word(LAPS + 8).store(anchors, Ordering::Release);
                        let bound = if settles { position + 1 } else { u64::MAX };
                        ring.word(BOUND).store(bound, Ordering::Release);
                    }
                });
                let mut empty = 0;
                while empty < 100 {
                    let Ok(subscriber) = &mut subscriber else {
                        break;
                    };
                    alive();
                    match subscriber.try_recv() {
                        Err(TryRecvError::Empty) => empty += 1,
                        // It was met between two stores.
                        Err(TryRecvError::Anchor(_)) => break,
                        other => panic!("{other:?}"),
                    }
                    match subscriber.recv_timeout(Duration::from_millis(1)) {
                        Err(RecvTimeoutError::TimedOut) => {}
                        Err(RecvTimeoutError::Anchor(_)) => break,
                        other => panic!("{other:?}"),
                    }
                }
                stop.store(true, Ordering::Relaxed);
            });
            drop(link);
        }
    }
}

/// Whatever one writes that is overwritten: nobody but itself is any the worse for it.
#[test]
fn hostile_subscribers() {
    let _scene = Scene::new();
    let pool = 16 * LONGEST.next_multiple_of(4096);
    let builder = unbound(RING).pool_bytes(pool);
    let mut publisher = builder.unbound().unwrap();
    let (here, there) = Link::pair().unwrap();
    publisher.attach(there).unwrap();
    here.send(&Opening { version: VERSION }).unwrap();
    let (page, descriptor) = Shared::create("rogue", page_size(), 0).unwrap();
    let greeting = Greeting {
        overflow: wire::Overflow::Overwrite,
        ..Greeting::new(descriptor.into(), Offer::default())
    };
    here.send(&greeting).unwrap();
    let (other, there) = Link::pair().unwrap();
    publisher.attach(there).unwrap();
    let mut honest = Subscriber::builder()
        .wait(Policy::Block.into())
        .over(other)
        .unwrap();
    publisher.wait_for_subscribers(2).unwrap();
    let mut dice = Dice::new();
    let mut buffer = vec![0; LONGEST];
    let mut copy = Vec::new();
    for number in 0..20_000 {
        let word = match dice.below(4) {
            0 => dice.below(u64::MAX),
            1 => u64::MAX - dice.below(2),
            _ => dice.below(number + 1),
        };
        // Its cursor, how many slots it uses, its flag (though it has no doorbell), and its slots.
        let at = [0, 8, 128, 512 + 8 * dice.below(8) as usize];
        let at = dice.pick(&at);
        page.word(at).store(word, Ordering::Release);
        send(&mut publisher, number, &mut buffer);
        honest.try_recv().unwrap().copy_into(&mut copy);
        assert_eq!(copy.len(), len(number));
        check(number, &copy);
        if number.is_multiple_of(1024) {
            alive();
        }
    }
    assert!(publisher.drain(PATIENCE).unwrap());
    assert_eq!(publisher.subscribers(), 2);
    let stats = publisher.stats();
    assert_eq!((stats.evicted, stats.left, stats.stalls), (0, 0, 0));
    drop(here);
    wait_until("it has left", || publisher.subscribers() == 1);
}

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use super::Spun;
use crate::{Link, Publisher, Subscriber, WaitPolicy};

/// A lane whose longer messages are in chunks.
fn lane(wait: WaitPolicy) -> (Publisher, Subscriber) {
    let (ours, theirs) = Link::pair().unwrap();
    let publisher = Publisher::builder().ring_bytes(4096).max_message(LONG);
    let publisher = publisher.unbound().unwrap();
    publisher.attach(ours).unwrap();
    let builder = Subscriber::builder().wait(wait);
    (publisher, builder.over(theirs).unwrap())
}

const LONG: usize = 64 << 10;

#[test]
fn messages_that_a_spin_has_met_are_counted_wherever_they_are() {
    let (mut publisher, mut subscriber) = lane(WaitPolicy::Poll);
    let asked = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for sent in 0.. {
                while asked.load(Ordering::Relaxed) == sent {
                    thread::yield_now();
                }
                if asked.load(Ordering::Relaxed) == u64::MAX {
                    break;
                }
                publisher.send(&[0; LONG]).unwrap();
            }
        });
        let mut met = false;
        while !met {
            asked.fetch_add(1, Ordering::Relaxed);
            // Spins on, as one that polls does, until it is there.
            loop {
                let _ = subscriber.spin();
                match subscriber.spun {
                    Spun::InVain => subscriber.spun = Spun::Not,
                    Spun::Met => break met = true,
                    // Before the first look.
                    Spun::Not => break,
                }
            }
            let _ = subscriber.recv();
        }
        asked.store(u64::MAX, Ordering::Relaxed);
    });
    let stats = subscriber.stats();
    assert_eq!((stats.spins, stats.sleeps), (1, 0), "{stats:?}");
}

#[test]
fn what_is_there_already_is_nothing_that_a_wait_learns_from() {
    let (mut publisher, mut subscriber) = lane(WaitPolicy::Adaptive);
    let pacer = format!("{:?}", subscriber.pacer);
    for len in [1, LONG, 2, LONG, LONG] {
        publisher.send(&[0; LONG][..len]).unwrap();
        assert_eq!(subscriber.recv().unwrap().len(), len);
        assert_eq!(format!("{:?}", subscriber.pacer), pacer);
    }
    let stats = subscriber.stats();
    assert_eq!((stats.spins, stats.sleeps), (0, 0), "{stats:?}");
}

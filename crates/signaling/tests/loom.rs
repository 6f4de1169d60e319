//! Models of arm, commit and wake: the real `Armed` and `Rung`, under every interleaving and every value a load may
//! see. A lost wake-up is a deadlock, and loom reports it.
#![cfg(memlane_loom)]

use std::panic;

use loom::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering, fence},
    },
    thread,
};
use memlane_signaling::{Armed, Rung};

/// A doorbell as the kernel makes it: rings are counted, waiting takes them all.
struct Bell {
    rings: Mutex<u64>,
    rung: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rings.lock().unwrap() += 1;
        self.rung.notify_one();
    }

    fn wait(&self) -> u64 {
        let mut rings = self.rings.lock().unwrap();
        while *rings == 0 {
            rings = self.rung.wait(rings).unwrap();
        }
        std::mem::take(&mut *rings)
    }
}

/// What the two sides share.
struct Lane {
    data: AtomicU64,
    armed: AtomicU64,
    bell: Bell,
}

/// The ringer commits `messages` messages; the sleeper sleeps for each one it does not find. Returns through the
/// model's end, or not at all.
fn model(messages: u64, ringer_fence: fn()) {
    loom::model(move || {
        let lane = Arc::new(Lane {
            data: AtomicU64::new(0),
            armed: AtomicU64::new(0),
            bell: Bell {
                rings: Mutex::new(0),
                rung: Condvar::new(),
            },
        });
        let ringer = {
            let lane = lane.clone();
            thread::spawn(move || {
                let rung = Rung::new();
                for message in 1..=messages {
                    lane.data.store(message, Ordering::Release);
                    ringer_fence();
                    if rung.due(lane.armed.load(Ordering::Relaxed)) {
                        lane.bell.ring();
                    }
                }
            })
        };
        let mut armed = Armed::new();
        let mut seen = 0;
        while seen < messages {
            let found = lane.data.load(Ordering::Relaxed);
            if found != seen {
                seen = found;
                continue;
            }
            armed.arm(&lane.armed);
            if lane.data.load(Ordering::Relaxed) == seen {
                let rings = lane.bell.wait();
                // One for this sleep, and at most one that an earlier sleep did not wait for.
                assert!(rings <= 2, "{rings} rings for one sleep");
            }
            armed.disarm(&lane.armed);
        }
        ringer.join().unwrap();
    });
}

#[test]
fn no_wake_up_is_lost() {
    model(1, || fence(Ordering::SeqCst));
}

#[test]
fn no_wake_up_is_lost_from_one_sleep_to_the_next() {
    model(2, || fence(Ordering::SeqCst));
}

/// The model can fail: with less than a SeqCst fence after the commit, a wake-up is lost.
#[test]
fn without_the_fence_one_is() {
    for weaker in [|| (), || fence(Ordering::AcqRel)] as [fn(); 2] {
        let outcome = panic::catch_unwind(|| model(1, weaker));
        assert!(outcome.is_err(), "loom found no lost wake-up");
    }
}

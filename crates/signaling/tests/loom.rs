//! Models of arm, commit and wake: the real `Armed` and `Rung`, under every interleaving and every value a load may
//! see. A lost wake-up is a deadlock, and loom reports it.
//!
//! membarrier(2) is modelled as the kernel does it: the sleeper asks, and the ringer, wherever it is at that moment, makes a
//! `SeqCst` fence that its program does not have. Question and answer are Relaxed: they order nothing by themselves.
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
use std::cell::Cell;

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

/// The interrupt of a processor that runs the ringer.
struct Ipi {
    asked: AtomicU64,
    answered: AtomicU64,
}

/// More than is ever asked: the ringer runs no more. (Its last switch was a fence.)
const STOPPED: u64 = u64::MAX;

impl Ipi {
    /// Between any two steps of the ringer: if it has been asked, this is where the interrupt comes.
    fn point(&self) {
        let asked = self.asked.load(Ordering::Relaxed);
        if asked != self.answered.load(Ordering::Relaxed) {
            fence(Ordering::SeqCst);
            self.answered.store(asked, Ordering::Relaxed);
        }
    }

    fn stop(&self) {
        fence(Ordering::SeqCst);
        self.answered.store(STOPPED, Ordering::Relaxed);
    }

    /// Waits until the ringer has been interrupted.
    fn interrupt(&self) {
        let number = self.asked.load(Ordering::Relaxed) + 1;
        self.asked.store(number, Ordering::Relaxed);
        while self.answered.load(Ordering::Relaxed) < number {
            thread::yield_now();
        }
    }
}

/// What is wrong in a model that must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    Nothing,
    /// The sleeper's call fences nobody but itself.
    NoInterrupt,
    /// A sleeper that gives the barrier back just says so.
    GivesBackWithoutBarrier,
    /// A sleeper whose call has failed sleeps at once.
    DoesNotSettle,
    /// A ringer that gets the barrier back believes the look that told it.
    NoSecondLook,
}

/// The ringer commits `messages` messages; the sleeper carries the barrier as `carry` says, for one sleep after the other, and
/// the kernel does its part in it `times` times.
fn carried(messages: u64, carry: &'static [bool], times: u64, flaw: Flaw) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let lane = Arc::new(Lane {
            data: AtomicU64::new(0),
            armed: AtomicU64::new(0),
            bell: Bell {
                rings: Mutex::new(0),
                rung: Condvar::new(),
            },
        });
        let ipi = Arc::new(Ipi {
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        });
        let ringer = {
            let (lane, ipi) = (lane.clone(), ipi.clone());
            thread::spawn(move || {
                let rung = Rung::registered();
                for message in 1..=messages {
                    lane.data.store(message, Ordering::Release);
                    ipi.point();
                    if rung.fences() {
                        fence(Ordering::SeqCst);
                    }
                    while let Some(look) = rung.look(lane.armed.load(Ordering::Relaxed)) {
                        if look.ring {
                            lane.bell.ring();
                        }
                        if !look.moved || !rung.fences() || flaw == Flaw::NoSecondLook {
                            break;
                        }
                        fence(Ordering::SeqCst);
                    }
                    ipi.point();
                }
                ipi.stop();
            })
        };
        let mut armed = Armed::modelled();
        let left = Cell::new(times);
        let heavy = |giving_back: bool| {
            if left.get() == 0 {
                return false;
            }
            left.set(left.get() - 1);
            fence(Ordering::SeqCst);
            if flaw != Flaw::NoInterrupt && !(giving_back && flaw == Flaw::GivesBackWithoutBarrier)
            {
                ipi.interrupt();
            }
            fence(Ordering::SeqCst);
            true
        };
        // Whatever the ringer's processor has executed is out of it: as if it had been interrupted.
        let settle = || {
            if flaw != Flaw::DoesNotSettle {
                ipi.interrupt();
            }
        };
        let mut seen = 0;
        let mut sleeps = 0;
        while seen < messages {
            let found = lane.data.load(Ordering::Relaxed);
            if found != seen {
                seen = found;
                continue;
            }
            let carries = carry[sleeps % carry.len()];
            sleeps += 1;
            armed.arm_with(&lane.armed, carries, || heavy(!carries), settle);
            if lane.data.load(Ordering::Relaxed) == seen {
                lane.bell.wait();
            }
            armed.disarm(&lane.armed);
        }
        ringer.join().unwrap();
    });
}

#[test]
fn no_wake_up_is_lost_where_the_sleeper_carries_the_barrier() {
    carried(1, &[true], 9, Flaw::Nothing);
    carried(2, &[true], 9, Flaw::Nothing);
}

#[test]
fn no_wake_up_is_lost_where_the_barrier_moves() {
    carried(2, &[true, false], 9, Flaw::Nothing);
    carried(2, &[false, true], 9, Flaw::Nothing);
}

#[test]
fn no_wake_up_is_lost_where_it_moves_twice() {
    carried(3, &[true, false, false], 9, Flaw::Nothing);
    carried(3, &[false, true, false], 9, Flaw::Nothing);
}

#[test]
fn no_wake_up_is_lost_where_membarrier_fails_one_day() {
    carried(2, &[true], 0, Flaw::Nothing);
    carried(2, &[true], 1, Flaw::Nothing);
    carried(3, &[true], 1, Flaw::Nothing);
    carried(3, &[true, false], 1, Flaw::Nothing);
}

/// Each part of it is needed.
#[test]
fn without_a_part_of_it_one_is() {
    let lost = |messages, carry, times, flaw| {
        let outcome = panic::catch_unwind(|| carried(messages, carry, times, flaw));
        assert!(outcome.is_err(), "loom found no lost wake-up: {flaw:?}");
    };
    lost(2, &[true], 9, Flaw::NoInterrupt);
    lost(2, &[true, false], 9, Flaw::GivesBackWithoutBarrier);
    lost(3, &[true], 1, Flaw::DoesNotSettle);
    lost(3, &[true, false, false], 9, Flaw::NoSecondLook);
}

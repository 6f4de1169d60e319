//! Models of what a wait set does in user space, around the kernel's part: notifications that join one another, and keys of
//! sources that are removed, and their slots used again, while another thread has their events in hand. The real `Pending`
//! and `Registry`, under every interleaving. A lost wake-up is a deadlock, and loom reports it.
#![cfg(memlane_loom)]

use std::panic;

use loom::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};
use memlane_signaling::model::{Pending, Registry};

/// An eventfd in an epoll: rings are counted; whoever reads takes them all, if nobody else has.
#[derive(Default)]
struct Bell {
    rings: Mutex<u64>,
    rung: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rings.lock().unwrap() += 1;
        self.rung.notify_all();
    }

    fn wait_readable(&self) {
        let mut rings = self.rings.lock().unwrap();
        while *rings == 0 {
            rings = self.rung.wait(rings).unwrap();
        }
    }

    fn read(&self) -> bool {
        std::mem::take(&mut *self.rings.lock().unwrap()) > 0
    }
}

struct Set {
    pending: Pending,
    bell: Bell,
    said: [AtomicU64; 2],
}

impl Set {
    fn new() -> Arc<Set> {
        Arc::new(Set {
            pending: Pending::new(),
            bell: Bell::default(),
            said: [AtomicU64::new(0), AtomicU64::new(0)],
        })
    }

    fn notify(&self) {
        if self.pending.raise() {
            self.bell.ring();
        }
    }

    /// As `Shared::take_notice` does it, or with the two steps the other way round.
    fn take(&self, read_first: bool) -> bool {
        if read_first {
            return self.bell.read() && self.pending.take();
        }
        let pending = self.pending.take();
        self.bell.read();
        pending
    }

    fn wait(&self) {
        loop {
            self.bell.wait_readable();
            if self.take(true) {
                return;
            }
        }
    }

    fn heard(&self) -> u64 {
        self.said
            .iter()
            .map(|said| said.load(Ordering::Relaxed))
            .sum()
    }
}

/// Runs every execution with at most so many preemptions.
fn model(preemptions: Option<usize>, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(body);
}

/// Some threads say something and notify, `rounds` times; one waits until it has heard it all. What it hears is stored
/// Relaxed: the notification carries it.
fn all_is_heard(preemptions: Option<usize>, speakers: usize, rounds: u64) {
    model(preemptions, move || {
        let set = Set::new();
        let threads: Vec<_> = (0..speakers)
            .map(|speaker| {
                let set = set.clone();
                thread::spawn(move || {
                    for round in 1..=rounds {
                        set.said[speaker].store(round, Ordering::Relaxed);
                        set.notify();
                    }
                })
            })
            .collect();
        while set.heard() < speakers as u64 * rounds {
            set.wait();
        }
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn no_notification_is_lost_of_several_in_a_row() {
    all_is_heard(None, 1, 2);
    all_is_heard(Some(4), 1, 3);
}

/// At most 3 preemptions.
#[test]
fn nor_of_several_threads() {
    all_is_heard(Some(3), 2, 1);
}

/// Whoever is notified is rung for, whatever a waiter did meanwhile.
fn what_is_pending_is_rung_for(read_first: bool) {
    model(None, move || {
        let set = Set::new();
        set.notify();
        let speaker = {
            let set = set.clone();
            thread::spawn(move || set.notify())
        };
        assert!(set.take(read_first));
        speaker.join().unwrap();
        assert!(
            !set.pending.is_raised() || set.bell.read(),
            "pending, and nobody will ring any more"
        );
    });
}

#[test]
fn no_notification_goes_without_a_ring() {
    what_is_pending_is_rung_for(true);
}

/// The model can fail: the other way round, one does.
#[test]
fn with_the_bell_read_last_one_does() {
    let outcome = panic::catch_unwind(|| what_is_pending_is_rung_for(false));
    assert!(outcome.is_err(), "loom found no lost notification");
}

/// One notification, passed on by each thread that it stops, stops them all. At most 3 preemptions.
#[test]
fn a_notification_that_is_passed_on_reaches_everybody() {
    model(Some(3), || {
        let set = Set::new();
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let set = set.clone();
                thread::spawn(move || {
                    while set.heard() == 0 {
                        set.wait();
                    }
                    set.notify();
                })
            })
            .collect();
        set.said[0].store(1, Ordering::Relaxed);
        set.notify();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

/// One thread has an event in hand; another removes its source, and adds a new one in its slot.
#[test]
fn a_removed_source_is_not_reported_nor_taken_for_the_next_one() {
    model(None, || {
        let registry = Arc::new(Registry::default());
        // The kernel's ready list.
        let ready = Arc::new(Mutex::new(Vec::new()));
        let removed = Arc::new(AtomicU64::new(0));
        let old = registry.insert();
        ready.lock().unwrap().push(old);
        let remover = {
            let (registry, ready, removed) = (registry.clone(), ready.clone(), removed.clone());
            thread::spawn(move || {
                // As `Registration` does it: the kernel first.
                ready.lock().unwrap().clear();
                registry.remove(old);
                removed.store(1, Ordering::Release);
                let new = registry.insert();
                assert_eq!(new.index(), old.index(), "the slot is used again");
                ready.lock().unwrap().push(new);
                new
            })
        };
        let mut reported = Vec::new();
        for _ in 0..2 {
            let gone = removed.load(Ordering::Acquire) == 1;
            let found = ready.lock().unwrap().last().copied();
            if let Some(key) = found.filter(|&key| registry.contains(key)) {
                assert!(key != old || !gone, "reported after it was removed");
                reported.push(key);
            }
        }
        let new = remover.join().unwrap();
        assert_ne!(new, old);
        assert!(reported.iter().all(|&key| key == old || key == new));
        assert!(registry.contains(new) && !registry.contains(old));
        let last = ready.lock().unwrap().clone();
        assert_eq!(last, [new], "and it is the only one");
    });
}

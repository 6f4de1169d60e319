use crate::primitive::{AtomicU64, Ordering, fence};

/// The sleeper's side of the armed flag: a word in its own shared page, 0 while it is awake.
///
/// Every time it is armed the word gets a value it never had, so that the ringer can tell one sleep from the
/// next and rings once for each ([`Rung`]).
#[derive(Debug, Default)]
pub struct Armed {
    last: u64,
}

impl Armed {
    /// A flag that has not been armed.
    pub fn new() -> Armed {
        Armed::default()
    }

    /// Announces the sleep in `word`, which only this side writes. Afterwards the sleeper must look for data
    /// once more before it waits.
    pub fn arm(&mut self, word: &AtomicU64) {
        self.last += 1;
        word.store(self.last, Ordering::Relaxed);
        // Pairs with the ringer's fence between its commit and its load of the word.
        fence(Ordering::SeqCst);
    }

    /// Takes the announcement back.
    pub fn disarm(&mut self, word: &AtomicU64) {
        word.store(0, Ordering::Relaxed);
    }
}

/// The ringer's side of the armed flag: remembers which sleep it has rung for.
#[derive(Debug, Default)]
pub struct Rung {
    /// Only one thread rings; the atomic makes that thread free to change.
    last: std::sync::atomic::AtomicU64,
}

impl Rung {
    /// Nothing rung for yet.
    pub fn new() -> Rung {
        Rung::default()
    }

    /// Whether to ring, given the flag as loaded after the commit and a `fence(SeqCst)`: the other side sleeps,
    /// and has not been rung for since it fell asleep.
    ///
    /// A burst rings once. A hostile sleeper can make the ringer ring for every message by changing the flag
    /// each time; that is the worst it can do, and one system call that never blocks.
    #[inline(always)]
    pub fn due(&self, armed: u64) -> bool {
        use std::sync::atomic::Ordering::Relaxed;
        if armed == 0 || armed == self.last.load(Relaxed) {
            return false;
        }
        self.last.store(armed, Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ring_for_each_sleep() {
        let (word, mut armed, rung) = (AtomicU64::new(0), Armed::new(), Rung::new());
        let load = || word.load(Ordering::Relaxed);
        assert!(!rung.due(load()));
        for _ in 0..3 {
            armed.arm(&word);
            assert!(rung.due(load()));
            assert!(!rung.due(load()));
            armed.disarm(&word);
            assert!(!rung.due(load()));
        }
    }
}

use std::{fmt, sync::PoisonError};

use crate::primitive::{AtomicU64, Ordering, RwLock};

/// Names a source of a [`WaitSet`](crate::WaitSet) in what it reports.
///
/// A set never gives out the same key twice: what was known of a source that is gone is not mistaken for news of the one
/// that came after it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u64);

/// Above the generation. Says of an event, not of the source, that the kernel reports it again for as long as it holds.
const LEVEL: u64 = 1 << 63;
const LAST_GENERATION: u32 = u32::MAX >> 1;

impl Key {
    fn new(index: u32, generation: u32) -> Key {
        Key(u64::from(generation) << 32 | u64::from(index))
    }

    /// A small number that no other source of the set has at the same time, for tables. It is the smallest that is free or the
    /// one that became free last, and belongs to another source later on: compare keys, too.
    pub fn index(self) -> usize {
        self.0 as u32 as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// What the kernel keeps for the source.
    pub(super) fn token(self, level: bool) -> u64 {
        self.0 | if level { LEVEL } else { 0 }
    }

    /// The key in a token, and whether it is reported again.
    pub(super) fn of(token: u64) -> (Key, bool) {
        (Key(token & !LEVEL), token & LEVEL != 0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}.{})", self.index(), self.generation() / 2)
    }
}

/// Which keys are of sources that are there.
///
/// A slot's generation is odd while a source has it, and grows with each step. A slot whose generations are used up is
/// never used again.
#[derive(Debug, Default)]
pub struct Registry {
    slots: RwLock<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    generations: Vec<u32>,
    free: Vec<u32>,
}

impl Registry {
    /// A key that there never was.
    pub fn insert(&self) -> Key {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let index = slots.free.pop().unwrap_or_else(|| {
            slots.generations.push(0);
            // A source takes a descriptor or a timer: memory ends long before the numbers do.
            (slots.generations.len() - 1) as u32
        });
        let generation = &mut slots.generations[index as usize];
        *generation += 1;
        Key::new(index, *generation)
    }

    /// Takes a key back. From the moment this returns it is not [there](Registry::contains).
    pub fn remove(&self, key: Key) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        match slots.generations.get_mut(key.index()) {
            Some(generation) if *generation == key.generation() => {
                if *generation < LAST_GENERATION {
                    *generation += 1;
                    slots.free.push(key.index() as u32);
                } else {
                    *generation = 0;
                }
            }
            _ => {}
        }
    }

    /// Whether the source with that key is there.
    pub fn contains(&self, key: Key) -> bool {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.generations.get(key.index()) == Some(&key.generation())
    }
}

/// A notification that nobody has taken yet. Those that come meanwhile join it.
///
/// ```text
/// notifier                         waiter
///   swap(1) -> was 0? -> ring        woken: read the bell
///                                    swap(0) -> was 1? -> notified
/// ```
///
/// The bell is read *before* the swap. The other way round, a notifier between the two would set the word, ring, and have
/// its ring read away: the word would say for ever that somebody has been rung for. This way, a notifier that finds 1 comes
/// before the swap to 0 that takes it: what it did before is seen by the waiter that returns.
#[derive(Debug, Default)]
pub struct Pending(AtomicU64);

impl Pending {
    /// Nothing.
    pub fn new() -> Pending {
        Pending(AtomicU64::new(0))
    }

    /// Whether to ring: there was nothing that somebody else rings for.
    pub fn raise(&self) -> bool {
        // Release pairs with the Acquire in `take`; swaps of others in between carry it on.
        self.0.swap(1, Ordering::AcqRel) == 0
    }

    /// Whether it is worth reading the bell.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// Takes what there is, after the bell was read.
    pub fn take(&self) -> bool {
        self.0.swap(0, Ordering::AcqRel) != 0
    }
}

#[cfg(all(test, not(memlane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_there_until_it_is_removed_and_never_again() {
        let registry = Registry::default();
        let mut gone = Vec::new();
        let stays = registry.insert();
        for _ in 0..1000 {
            let key = registry.insert();
            assert_eq!(key.index(), 1, "slots are used again");
            assert!(!gone.contains(&key));
            assert!(registry.contains(key));
            registry.remove(key);
            registry.remove(key);
            assert!(!registry.contains(key));
            gone.push(key);
        }
        assert!(registry.contains(stays));
        assert!(gone.iter().all(|&key| !registry.contains(key)));
    }

    #[test]
    fn a_slot_without_generations_is_not_used_again() {
        let registry = Registry::default();
        registry.remove(registry.insert());
        registry.slots.write().unwrap().generations[0] = LAST_GENERATION - 1;
        let last = registry.insert();
        assert_eq!((last.index(), last.generation()), (0, LAST_GENERATION));
        registry.remove(last);
        assert!(!registry.contains(last));
        let next = registry.insert();
        assert_eq!((next.index(), next.generation()), (1, 1));
    }

    #[test]
    fn tokens_hold_a_key_whatever_its_generation() {
        for generation in [1, LAST_GENERATION] {
            let key = Key::new(7, generation);
            for level in [false, true] {
                assert_eq!(Key::of(key.token(level)), (key, level));
            }
        }
    }

    #[test]
    fn one_ring_for_notifications_that_nobody_has_taken() {
        let pending = Pending::new();
        assert!(!pending.take());
        for _ in 0..3 {
            assert!(pending.raise());
            assert!(!pending.raise());
            assert!(pending.is_raised());
            assert!(pending.take());
            assert!(!pending.take());
        }
    }
}

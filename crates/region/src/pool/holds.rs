use std::sync::Arc;

use super::HOLD_SLOTS;
use crate::primitive::{AtomicU64, Ordering, fence};

/// A reader's own control page, where its hold slots are.
pub trait HoldPage {
    /// Stores `sequence` in hold slot number `slot`, below [`HOLD_SLOTS`], `Release`: whatever the slot says next,
    /// what it named before is no longer read.
    ///
    /// A store of 0 is a release. If the owner sleeps until one comes, this is the place to wake it.
    fn store(&self, slot: usize, sequence: u64);

    /// Raises the word that says how many slots, from slot 0 on, have ever been used, to `slots` if it is less
    /// (`fetch_max`, `Release`): the owner looks at no others. Called rarely, and before the slot is used.
    fn raise(&self, slots: u64);
}

/// Why a chunk cannot be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// All slots are taken.
    #[error("all {HOLD_SLOTS} hold slots are taken: drop a message that is held, or copy this one")]
    Full,
    /// The chunk is on its way to be used again: the message is lost to this reader, which was too slow.
    #[error("the chunk is no longer what was sent: expected sequence {expected}, found {found}")]
    Gone {
        /// The sequence that the record named.
        expected: u64,
        /// What the chunk's word says now.
        found: u64,
    },
}

/// A reader's hold slots: which are free is known to it alone. Shared by all that it holds.
///
/// `page` lives as long as anything is held, so it can own what must outlive that: the link by which the reader
/// counts as one, since the owner takes no notice of a reader that has left.
#[derive(Debug)]
pub struct Holds<P> {
    page: P,
    /// A bit for each slot that is not taken.
    free: AtomicU64,
    /// What the page's word has been raised to, at least.
    raised: AtomicU64,
}

impl<P: HoldPage> Holds<P> {
    /// Takes over a page whose slots are all 0.
    pub fn new(page: P) -> Holds<P> {
        const { assert!(HOLD_SLOTS == u64::BITS as usize) };
        Holds {
            page,
            free: AtomicU64::new(u64::MAX),
            raised: AtomicU64::new(0),
        }
    }

    /// The page.
    pub fn page(&self) -> &P {
        &self.page
    }

    /// How many slots are taken.
    pub fn taken(&self) -> usize {
        self.free.load(Ordering::Relaxed).count_zeros() as usize
    }

    /// Holds a chunk that is held already, implicitly, by a cursor that has not been exported yet.
    ///
    /// # Errors
    ///
    /// [`HoldError::Full`].
    #[inline]
    pub fn hold(self: &Arc<Self>, sequence: u64) -> Result<Hold<P>, HoldError> {
        let mut free = self.free.load(Ordering::Relaxed);
        loop {
            if free == 0 {
                return Err(HoldError::Full);
            }
            // Pairs with the Release in `drop`: the slot's store of 0 comes first.
            match self.free.compare_exchange_weak(
                free,
                free & (free - 1),
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => free = now,
            }
        }
        let slot = free.trailing_zeros();
        // Pairs with the Release below: if another thread raised the word, that comes before this slot's store.
        let slots = u64::from(slot) + 1;
        if self.raised.load(Ordering::Acquire) < slots {
            self.page.raise(slots);
            self.raised.fetch_max(slots, Ordering::Release);
        }
        self.page.store(slot as usize, sequence);
        Ok(Hold {
            holds: self.clone(),
            slot,
        })
    }

    /// Holds a chunk that may be on its way to be used again: `word` loads its word in the segment, `Relaxed`.
    ///
    /// # Errors
    ///
    /// [`HoldError::Full`]; [`HoldError::Gone`] if the word is not `sequence`, and then nothing is held.
    #[inline]
    pub fn announce(
        self: &Arc<Self>,
        sequence: u64,
        word: impl FnOnce() -> u64,
    ) -> Result<Hold<P>, HoldError> {
        let hold = self.hold(sequence)?;
        // Pairs with the fence in `Ledger::look`, between the store of 0 and the loads of slots.
        fence(Ordering::SeqCst);
        match word() {
            found if found == sequence => Ok(hold),
            found => Err(HoldError::Gone {
                expected: sequence,
                found,
            }),
        }
    }
}

/// A slot that names a chunk, until it is dropped.
#[derive(Debug)]
pub struct Hold<P: HoldPage> {
    holds: Arc<Holds<P>>,
    slot: u32,
}

impl<P: HoldPage> Drop for Hold<P> {
    fn drop(&mut self) {
        self.holds.page.store(self.slot as usize, 0);
        self.holds.free.fetch_or(1 << self.slot, Ordering::Release);
    }
}

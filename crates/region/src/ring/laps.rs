//! The words by which a reader that holds nobody up finds out that it was overtaken, and where to go on.
//!
//! They are in the header of the writer's region, wherever the ring's maker put them: [`LAP_WORDS`] bytes, best in
//! one cache line. The writer stores them about eight times a lap, whether anybody reads them or not.

use super::layout;
use crate::{
    primitive::{Ordering, fence},
    words::{Words, WordsMut},
};

/// Bytes of these words.
pub const LAP_WORDS: usize = 64;

/// The bound: no byte of the stream from there on was ever written.
pub(super) const BOUND: usize = 0;

/// How many anchors there have been; which of the two is the newest: the one of its parity.
pub(super) const ANCHORS: usize = 8;

/// The anchors, which take turns: a position where a record began, how many records came before it, and the number of the
/// ring that it is in.
pub(super) const ANCHOR_POSITION: usize = 16;
pub(super) const ANCHOR_SEQUENCE: usize = 24;
pub(super) const ANCHOR_RING: usize = 32;

/// From the even anchor to the odd one.
pub(super) const ANCHOR_STRIDE: usize = 24;

/// A payload that is shorter than this is written with stores that come in order.
pub(crate) const STREAMED: u64 = 4096;

/// How often a reader looks for an anchor that stays as it is while it is read.
const ATTEMPTS: usize = 16;

/// Where the newest anchor of so many is.
fn anchor(at: usize, anchors: u64) -> usize {
    at + ANCHOR_STRIDE * (anchors & 1) as usize
}

/// A place to go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Anchor {
    pub(super) position: u64,
    pub(super) sequence: u64,
    pub(super) ring: u32,
}

/// The writer's end: what it has stored, which it never loads.
#[derive(Debug)]
pub(super) struct Laps {
    at: usize,
    bound: u64,
    anchors: u64,
}

impl Laps {
    /// No words, and no lossy readers.
    pub(super) fn none() -> Laps {
        Laps {
            at: 0,
            bound: u64::MAX,
            anchors: 0,
        }
    }

    /// Words from byte `at` of the header on, all of them 0.
    pub(super) fn new(at: usize) -> Laps {
        Laps {
            at,
            bound: 0,
            anchors: 0,
        }
    }

    /// Up to where bytes may be written without a word about it.
    #[inline(always)]
    pub(super) fn bound(&self) -> u64 {
        self.bound
    }

    /// Moves the bound to `needed` or beyond, before a byte is written there. `here` is where the next record begins. `memory`
    /// is that of the first ring.
    pub(super) fn export<M: WordsMut>(&mut self, memory: &mut M, here: Anchor, needed: u64) {
        let capacity = memory.capacity();
        // Not beyond a lap from here: whoever goes on from the anchor is not overtaken yet.
        let bound = (needed + layout::step(capacity)).min(here.position + capacity);
        self.bound = self.bound.max(bound);
        self.anchors += 1;
        // The anchor before the last. The fence below, of last time, has made it known that there is a newer one.
        let anchor = anchor(self.at, self.anchors);
        memory.store_control(anchor + ANCHOR_POSITION, here.position);
        memory.store_control(anchor + ANCHOR_SEQUENCE, here.sequence);
        memory.store_control(anchor + ANCHOR_RING, here.ring.into());
        memory.store_control(self.at + ANCHORS, self.anchors);
        memory.store_control(self.at + BOUND, self.bound);
        // Pairs with the fence of a reader behind its copy: if that has any of the bytes written from here on, its load
        // of the bound shows that they are being written.
        // That goes for every record up to the bound, not only for the one that is about to be written.
        if self.bound - here.position < STREAMED {
            fence(Ordering::Release);
        } else {
            // The copy of a long payload may use stores that overtake others (MOVNTDQ), for which x86-64 has no
            // lesser fence.
            fence(Ordering::SeqCst);
        }
    }
}

/// A reader's end.
#[derive(Debug)]
pub(super) struct LapWords {
    pub(super) at: usize,
}

impl LapWords {
    /// Whether a byte at or behind a lap from `position` may have been written: what was loaded at `position` or behind it
    /// may be anything then, whatever it looks like. After a `fence(Acquire)` behind those loads.
    #[inline(always)]
    pub(super) fn overtaken<M: Words>(&self, memory: &M, position: u64) -> bool {
        memory.load_control(self.at + BOUND) > position.saturating_add(memory.capacity())
    }

    /// The newest anchor; `None` if the writer goes on too fast to tell.
    pub(super) fn anchor<M: Words>(&self, memory: &M) -> Option<Anchor> {
        // Pairs with the Release store of the bound that was seen: there is an anchor which belongs to it.
        fence(Ordering::Acquire);
        let mut anchors = memory.load_control(self.at + ANCHORS);
        for _ in 0..ATTEMPTS {
            // Pairs with the Release store of the count: the anchor is there. And what was stored before it, in the ring.
            fence(Ordering::Acquire);
            let anchor = anchor(self.at, anchors);
            let anchor = Anchor {
                position: memory.load_control(anchor + ANCHOR_POSITION),
                sequence: memory.load_control(anchor + ANCHOR_SEQUENCE),
                // A number that is none names no ring.
                ring: memory
                    .load_control(anchor + ANCHOR_RING)
                    .try_into()
                    .unwrap_or(u32::MAX),
            };
            // Pairs with the fence in `export`: a word of the anchor after the next one shows that there is a next one.
            fence(Ordering::Acquire);
            match memory.load_control(self.at + ANCHORS) {
                again if again == anchors => return Some(anchor),
                again => anchors = again,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    documented!(
        LAP_WORDS,
        BOUND,
        ANCHORS,
        ANCHOR_POSITION,
        ANCHOR_SEQUENCE,
        ANCHOR_RING,
        ANCHOR_STRIDE
    );

    const _: () = assert!(ANCHOR_RING + ANCHOR_STRIDE + 8 == LAP_WORDS);
}

use std::collections::VecDeque;

use crate::primitive::{Ordering, fence};

/// Hold slots of a reader: 64-bit words in its own control page, each 0 or the sequence of a chunk that it holds.
pub const HOLD_SLOTS: usize = 64;

/// What [`Holder::released`] answers for a reader that holds nothing but what its slots name: a lossy one.
pub const NOTHING: u64 = u64::MAX;

#[cfg(test)]
documented!(HOLD_SLOTS);

/// At least so many chunks are sent between two looks, if there are free ones.
const MIN_DUE: usize = 16;

/// A reader as the owner of a pool sees it: words of the reader's own page, which may say anything.
pub trait Holder {
    /// The position that this reader has released the ring up to, having joined at `start`: it may read what the
    /// records from there on name. [`NOTHING`] if it holds nothing that way. A `Relaxed` load.
    fn released(&self, start: u64) -> u64;

    /// Loads how many slots the reader has ever used, from slot 0 on ([`HoldPage::raise`](super::HoldPage::raise)),
    /// `Relaxed`. At most [`HOLD_SLOTS`] are looked at.
    fn slots(&self) -> u64;

    /// Loads hold slot number `slot`, below [`HOLD_SLOTS`], `Relaxed`.
    fn slot(&self, slot: usize) -> u64;
}

/// Who may hold chunks: the readers of the ring that their names are sent in.
///
/// A [`RingWriter`](crate::ring::RingWriter) is this for its own readers.
pub trait Holders {
    /// A reader.
    type Holder: Holder;

    /// Every reader that has joined by now, and where it joined.
    ///
    /// It is called after a `SeqCst` fence, twice a look, and has to tell of each reader whose start may be a
    /// position that the writer had before that fence. Those that it leaves out must not be told of chunks that
    /// were sent before.
    fn joined(&mut self) -> impl Iterator<Item = (u64, &Self::Holder)>;

    /// The position from which on what records name is kept, whoever has passed them: for readers who join later. It is called
    /// before [`joined`](Holders::joined), which has to tell of those who joined when this was less. By default, nothing is.
    fn kept(&mut self) -> u64 {
        u64::MAX
    }

    /// Every reader that is to get nothing more, and may still read what it had: where it joined, and the position up to
    /// which it had something. It is called right after [`joined`](Holders::joined). By default, there are none.
    fn dismissed(&mut self) -> impl Iterator<Item = (u64, u64, &Self::Holder)> {
        std::iter::empty()
    }
}

/// Nobody.
impl Holders for () {
    type Holder = Nobody;

    fn joined(&mut self) -> impl Iterator<Item = (u64, &Nobody)> {
        std::iter::empty()
    }
}

/// A reader that there is none of.
#[derive(Debug)]
pub enum Nobody {}

impl Holder for Nobody {
    fn released(&self, _: u64) -> u64 {
        match *self {}
    }

    fn slots(&self) -> u64 {
        match *self {}
    }

    fn slot(&self, _: usize) -> u64 {
        match *self {}
    }
}

fn slots<H: Holder>(holder: &H) -> usize {
    holder.slots().min(HOLD_SLOTS as u64) as usize
}

/// Marks what a reader's slots name.
fn mark_slots<K, H: Holder>(passed: &mut [Sent<K>], holder: &H) {
    for slot in 0..slots(holder) {
        let sequence = holder.slot(slot);
        if sequence == 0 {
            continue;
        }
        let known = passed.binary_search_by_key(&sequence, |sent| sent.sequence);
        if let Ok(at) = known {
            passed[at].held = true;
        }
    }
}

/// Which chunks have been sent, and which of them no reader has any more: the owner's side of the protocol,
/// without memory, so that models can run it. A [`Pool`](super::Pool) has one for each size class; `K` names a
/// chunk.
#[derive(Debug)]
pub struct Ledger<K> {
    /// Records that some reader had not passed at the last look, and newer ones, as they were sent.
    sent: VecDeque<Sent<K>>,
    /// Chunks whose word is 0 by now, and which only slots hold; as they were sent.
    passed: Vec<Sent<K>>,
    /// A look is due when so many are in `sent`.
    due: usize,
}

#[derive(Clone, Copy, Debug)]
struct Sent<K> {
    sequence: u64,
    position: u64,
    chunk: K,
    /// Found in a slot; false between two looks.
    held: bool,
}

impl<K> Default for Ledger<K> {
    fn default() -> Ledger<K> {
        Ledger {
            sent: VecDeque::new(),
            passed: Vec::new(),
            due: MIN_DUE,
        }
    }
}

impl<K: Copy> Ledger<K> {
    /// An empty one.
    pub fn new() -> Ledger<K> {
        Ledger::default()
    }

    /// Makes room for `chunks` of them, so that nothing is allocated later.
    pub(super) fn reserve(&mut self, chunks: usize) {
        self.sent.reserve(chunks.saturating_sub(self.sent.len()));
        self.passed
            .reserve(chunks.saturating_sub(self.passed.len()));
    }

    /// Notes that a chunk is sent, in the record at `position`. Positions and sequences grow; a sequence is never 0.
    ///
    /// The record itself must follow before the next [`look`](Ledger::look).
    #[inline]
    pub fn send(&mut self, chunk: K, sequence: u64, position: u64) {
        debug_assert!(self.sent.back().is_none_or(|last| last.sequence < sequence));
        self.sent.push_back(Sent {
            sequence,
            position,
            chunk,
            held: false,
        });
    }

    /// How many chunks are out.
    pub fn len(&self) -> usize {
        self.sent.len() + self.passed.len()
    }

    /// Whether no chunk is out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many are out that readers had not passed at the last look.
    pub(super) fn recent(&self) -> usize {
        self.sent.len()
    }

    /// Whether so much has been sent that a look is worth its while.
    #[inline]
    pub(super) fn is_due(&self) -> bool {
        self.sent.len() >= self.due
    }

    /// The position of the oldest record that readers have not passed, as far as is known.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.sent.front().map(|sent| sent.position)
    }

    /// Looks at the readers, and calls `free` for each chunk that none of them has any more. `retire` stores 0 in a
    /// chunk's word, `Relaxed`; it is called before. If there are lossy readers, the newest `keep` chunks are left
    /// alone: they may be about to announce them.
    pub fn look<H: Holders>(
        &mut self,
        keep: usize,
        holders: &mut H,
        mut retire: impl FnMut(K),
        mut free: impl FnMut(K),
    ) {
        if self.is_empty() {
            return;
        }
        let kept = holders.kept();
        // Pairs with the fence in `Roster::join`: a reader that is not seen below starts after all that was sent, or at
        // what is kept.
        fence(Ordering::SeqCst);
        let (mut limit, mut lossy) = (kept, false);
        for (start, holder) in holders.joined() {
            match holder.released(start) {
                NOTHING => lossy = true,
                released => limit = limit.min(released),
            }
        }
        let mut taken = self.sent.partition_point(|sent| sent.position < limit);
        if lossy {
            taken = taken.min(self.sent.len().saturating_sub(keep));
        }
        for sent in self.sent.range(..taken) {
            retire(sent.chunk);
            self.passed.push(*sent);
        }
        self.sent.drain(..taken);
        self.due = MIN_DUE.max(2 * self.sent.len());

        // Pairs, for lossy readers, with the fence in `Holds::announce`: their announcement is seen below, or they
        // see the 0. For lossless ones it orders the slots after the cursors.
        fence(Ordering::SeqCst);
        let passed = &mut self.passed;
        for (_, holder) in holders.joined() {
            mark_slots(passed, holder);
        }
        for (start, stop, holder) in holders.dismissed() {
            let released = holder.released(start);
            for sent in passed.iter_mut() {
                sent.held |= (released..stop).contains(&sent.position);
            }
            mark_slots(passed, holder);
        }
        // Pairs with the Release stores of cursors and slots: the readers are done with what they no longer hold.
        fence(Ordering::Acquire);
        self.passed.retain_mut(|sent| {
            let held = std::mem::take(&mut sent.held);
            if !held {
                free(sent.chunk);
            }
            held
        });
    }

    /// How many chunks only those have who were dismissed, or who keep them in slots: at most so many, counted for each of the
    /// former. As of the last look.
    pub(super) fn kept_by_dismissed<H: Holders>(&self, holders: &mut H) -> usize {
        let passed = &self.passed;
        let kept = |(start, stop, holder): (u64, u64, &H::Holder)| {
            let window = holder.released(start)..stop;
            let named = (0..slots(holder)).filter(|&slot| {
                let sequence = holder.slot(slot);
                let known = passed.binary_search_by_key(&sequence, |sent| sent.sequence);
                known.is_ok_and(|at| !window.contains(&passed[at].position))
            });
            let inside = passed.iter().filter(|sent| window.contains(&sent.position));
            inside.count() + named.count()
        };
        holders
            .dismissed()
            .map(kept)
            .sum::<usize>()
            .min(passed.len())
    }

    /// Whether a slot of this reader keeps a chunk that every cursor has passed. As of the last look.
    pub(super) fn is_kept_by<H: Holder>(&self, holder: &H) -> bool {
        let passed = &self.passed;
        (0..slots(holder)).any(|slot| {
            let sequence = holder.slot(slot);
            let known = passed.binary_search_by_key(&sequence, |sent| sent.sequence);
            known.is_ok()
        })
    }

    /// How many chunks this reader has, by its own word.
    pub(super) fn held_by<H: Holder>(&self, start: u64, holder: &H) -> usize {
        let released = holder.released(start);
        let passed = self.sent.partition_point(|sent| sent.position < released);
        let mut named = [0; HOLD_SLOTS];
        let slots = slots(holder);
        for (slot, named) in named[..slots].iter_mut().enumerate() {
            *named = holder.slot(slot);
        }
        // One that is named twice is one.
        named.sort_unstable();
        let held = named.iter().enumerate().filter(|&(at, &sequence)| {
            let key = |sent: &Sent<K>| sent.sequence;
            let before = self.sent.binary_search_by_key(&sequence, key);
            sequence != 0
                && (at == 0 || named[at - 1] != sequence)
                && (before.is_ok_and(|at| at < passed)
                    || self.passed.binary_search_by_key(&sequence, key).is_ok())
        });
        self.sent.len() - passed + held.count()
    }
}

use std::{
    io,
    sync::{Arc, atomic::AtomicBool},
};

use crossbeam_utils::CachePadded;

use crate::pool::NOTHING;
use crate::primitive::{AtomicU64, Mutex, Ordering, asymmetric, fence_heavy, lock, spin_loop};

/// The cursor of a reader that holds nobody up: one that reads no more and may still hold chunks, or a lossy one.
pub const LEFT: u64 = u64::MAX;

/// A reader as the ring's writer sees it.
pub trait Reader {
    /// Loads the cursor that the reader exported: bytes released since it joined, or [`LEFT`]. `Relaxed`. Of a
    /// [`LossyReader`](super::LossyReader) it is always [`LEFT`], whatever its page says.
    fn cursor(&self) -> u64;

    /// Called once when the cursor made no sense (it went back, or beyond what was written). The writer has
    /// dropped the reader already: it no longer holds anything up.
    fn corrupt(&self, found: u64);
}

/// A reader of the ring, and where it began.
#[derive(Debug)]
pub struct Joined<R> {
    /// Names this reader, and never another.
    pub id: u64,
    /// The position of the first record it gets.
    pub start: u64,
    /// How many records there were before that.
    pub sequence: u64,
    /// The number of the ring in which that record is, or will be ([`RingWriter::switch`](super::RingWriter::switch)).
    pub ring: u32,
    /// How many records from there on are older than it has asked for, and not for it.
    pub skip: u64,
    /// The reader itself.
    pub reader: Arc<R>,
    /// The first of those that have had its place: what the writer knows of one holds for the next.
    pub(crate) lineage: u64,
    /// Another has its place. It holds nobody up, and keeps what its slots name.
    pub(crate) succeeded: bool,
}

impl<R> Clone for Joined<R> {
    fn clone(&self) -> Joined<R> {
        Joined {
            id: self.id,
            start: self.start,
            sequence: self.sequence,
            ring: self.ring,
            skip: self.skip,
            reader: self.reader.clone(),
            lineage: self.lineage,
            succeeded: self.succeeded,
        }
    }
}

/// A reader that was dismissed, and may still read what it had before.
#[derive(Debug)]
pub(crate) struct Lingering<R> {
    pub(crate) joined: Joined<R>,
    /// Where the ring ends behind which it reads nothing more.
    pub(crate) stop: u64,
}

impl<R> Clone for Lingering<R> {
    fn clone(&self) -> Lingering<R> {
        Lingering {
            joined: self.joined.clone(),
            stop: self.stop,
        }
    }
}

/// Where records are that are kept for those who join: from this position on, which so many came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) position: u64,
    pub(crate) sequence: u64,
    /// Nobody gets more than so many of them.
    pub(crate) most: u64,
}

/// Why a reader cannot take another's place ([`Roster::succeed`]).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoSuccession {
    /// The other is not there, or has given its place up.
    #[error("the reader whose place was to be taken is not there any more")]
    Gone,
    /// Its cursor makes no sense.
    #[error("expected a place up to what was written, got {found}")]
    Corrupt {
        /// What it said.
        found: u64,
    },
    /// It has still to read what a writer before this one has written ([`Roster::adopt`]).
    #[error("the reader has not yet come to what this writer has written")]
    Elsewhere,
    /// As for [`Roster::join`].
    #[error(transparent)]
    Fence(io::Error),
}

/// Who reads a ring. Shared between its writer and whoever accepts readers, in one process.
#[derive(Debug)]
pub struct Roster<R> {
    /// Where the writer is, stored at each commit, loaded by `join`.
    progress: CachePadded<Progress>,
    /// Changes with `joined`; the writer compares it with what it saw last.
    epoch: CachePadded<AtomicU64>,
    state: Mutex<State<R>>,
    /// A reader is so far ahead of `progress` at most: by the record that was committed a moment ago.
    reach: u64,
    /// Private to this process, and only a choice between two correct fences: not modelled.
    asymmetric: AtomicBool,
}

#[derive(Debug)]
struct Progress {
    /// How many records there are. Stored before `position`, so that it may be one ahead.
    sequence: AtomicU64,
    /// Where the next record begins, and in the low bits, those of its sequence.
    position: AtomicU64,
}

/// Bits of a position that are always 0.
const LOW: u64 = 7;

#[derive(Debug)]
struct State<R> {
    next_id: u64,
    joined: Vec<Joined<R>>,
    lingering: Vec<Lingering<R>>,
    /// Where rings begin that somebody may start in, and their numbers; the last one is that of the writer.
    rings: Vec<(u64, u32)>,
    /// Where this writer began: who is not there yet reads what another has written.
    begun: u64,
    /// None if no history is kept.
    history: Option<Kept>,
}

impl<R> State<R> {
    /// The last ring that begins there or before.
    fn ring(&self, position: u64) -> u32 {
        let behind = self.rings.partition_point(|&(base, _)| base <= position);
        self.rings[behind.saturating_sub(1)].1
    }

    /// A reader that begins there, before that record, with an id of its own.
    fn joins(&mut self, reader: Arc<R>, start: u64, sequence: u64) -> Joined<R> {
        let id = self.next_id;
        self.next_id += 1;
        Joined {
            id,
            start,
            sequence,
            ring: self.ring(start),
            skip: 0,
            reader,
            lineage: id,
            succeeded: false,
        }
    }
}

impl<R> Roster<R> {
    pub(crate) fn new(reach: u64) -> Roster<R> {
        Roster {
            progress: CachePadded::new(Progress {
                sequence: AtomicU64::new(0),
                position: AtomicU64::new(0),
            }),
            epoch: CachePadded::new(AtomicU64::new(0)),
            state: Mutex::new(State {
                next_id: 0,
                joined: Vec::new(),
                lingering: Vec::new(),
                rings: vec![(0, 0)],
                begun: 0,
                history: None,
            }),
            reach,
            asymmetric: AtomicBool::new(asymmetric()),
        }
    }

    /// Adds a reader whose cursor is 0, from the writer's next record on. It may run on any thread, at any
    /// time. A writer that notices at that very moment waits until this is through: a microsecond, unless this
    /// thread is preempted.
    ///
    /// # Errors
    ///
    /// membarrier(2) is gone since the ring was made (a seccomp filter was installed). The reader is not added;
    /// from then on `join` and the writer do without it.
    pub fn join(&self, reader: Arc<R>) -> io::Result<Joined<R>> {
        self.join_behind(reader, 0)
    }

    /// [`join`](Roster::join), from the last `history` records on that there are, or as many as the writer has
    /// [kept](super::RingWriter::keep).
    ///
    /// # Errors
    ///
    /// As [`join`](Roster::join).
    pub fn join_behind(&self, reader: Arc<R>, history: u64) -> io::Result<Joined<R>> {
        let mut state = lock(&self.state);
        self.publish()?;
        let (mut start, mut sequence) = self.progress();
        let mut skip = 0;
        if let (Some(kept), 1..) = (state.history, history) {
            // What the writer keeps it keeps until it has this lock.
            let records = sequence - kept.sequence;
            if records > 0 {
                (start, sequence) = (kept.position, kept.sequence);
                skip = records.saturating_sub(history.min(kept.most));
            }
        }
        let joined = Joined {
            skip,
            ..state.joins(reader, start, sequence)
        };
        state.joined.push(joined.clone());
        Ok(joined)
    }

    /// Adds a reader of the writer before this one, which began at `start`, before record `sequence`, and goes on reading with the
    /// cursor it has. Before anything is written.
    pub fn adopt(&self, reader: Arc<R>, start: u64, sequence: u64) -> Joined<R> {
        let mut state = lock(&self.state);
        let joined = state.joins(reader, start, sequence);
        state.joined.push(joined.clone());
        self.epoch.fetch_add(1, Ordering::Release);
        joined
    }

    /// The reader with this id, if it is one that is waited for, or lossy.
    pub fn joined(&self, id: u64) -> Option<Joined<R>> {
        let state = lock(&self.state);
        let here = |joined: &&Joined<R>| joined.id == id && !joined.succeeded;
        state.joined.iter().find(here).cloned()
    }

    /// Where the writer [began](super::RingWriter::begin_at): a reader that is not there yet reads what another one has written.
    pub fn begun(&self) -> u64 {
        lock(&self.state).begun
    }

    /// Says that the roster changes, with its lock held.
    fn publish(&self) -> io::Result<()> {
        self.epoch.fetch_add(1, Ordering::Release);
        // Pairs with the fence after each commit and before each refresh in the writer: it sees the new epoch
        // there (and then waits for the lock), or this thread sees the position that it had there.
        fence_heavy(self.asymmetric()).inspect_err(|_| {
            self.asymmetric
                .store(false, std::sync::atomic::Ordering::Relaxed);
        })
    }

    /// A position that the writer has now, or had when this was called, and its sequence. It looks again whenever the writer
    /// commits meanwhile: that ends at the latest when the writer notices the new epoch, within a lap.
    fn progress(&self) -> (u64, u64) {
        let Progress { sequence, position } = &*self.progress;
        let mut found = position.load(Ordering::Acquire);
        loop {
            // Pairs with the Release store of a later sequence: the position that was stored before it is seen below.
            let ahead = sequence.load(Ordering::Acquire);
            match position.load(Ordering::Acquire) {
                again if again == found => {
                    // So it is ahead by one at most.
                    return (found & !LOW, ahead - (ahead.wrapping_sub(found) & LOW));
                }
                again => found = again,
            }
            spin_loop();
        }
    }

    /// Removes a reader: from the writer's next look on, it holds nothing up. False if it was not there.
    pub fn leave(&self, id: u64) -> bool {
        let mut state = lock(&self.state);
        let before = state.joined.len() + state.lingering.len();
        state.joined.retain(|joined| joined.id != id);
        state.lingering.retain(|gone| gone.joined.id != id);
        let left = state.joined.len() + state.lingering.len() != before;
        if left {
            self.epoch.fetch_add(1, Ordering::Release);
        }
        left
    }

    /// How many readers were [dismissed](super::RingWriter::dismiss) and have not left yet.
    pub fn lingering(&self) -> usize {
        lock(&self.state).lingering.len()
    }

    /// How many of those whose place this reader has, the one after the other, have not left yet.
    pub fn predecessors(&self, id: u64) -> usize {
        let state = lock(&self.state);
        let reader = state.joined.iter().find(|joined| joined.id == id);
        let before = |joined: &&Joined<R>| {
            joined.succeeded && reader.is_some_and(|reader| reader.lineage == joined.lineage)
        };
        state.joined.iter().filter(before).count()
    }

    /// Makes a reader one that holds nothing up but what it may be reading, up to `stop`.
    pub(crate) fn dismiss(&self, id: u64, stop: u64) {
        let mut state = lock(&self.state);
        let here = |joined: &Joined<R>| joined.id == id && !joined.succeeded;
        if let Some(at) = state.joined.iter().position(here) {
            let joined = state.joined.remove(at);
            state.lingering.push(Lingering { joined, stop });
            self.epoch.fetch_add(1, Ordering::Release);
        }
    }

    /// The writer begins, at this position, before record `sequence`, in this ring.
    pub(crate) fn begin_at(&self, position: u64, sequence: u64, ring: u32) {
        let mut state = lock(&self.state);
        state.begun = position;
        state.rings = vec![(position, ring)];
        self.set_progress(position, sequence);
    }

    /// The rings that somebody may start in, where each begins.
    pub(crate) fn set_rings(&self, rings: Vec<(u64, u32)>) {
        lock(&self.state).rings = rings;
    }

    /// What is kept for those who join. Who has joined before is seen by the next [`snapshot`](Roster::snapshot).
    pub(crate) fn set_history(&self, kept: Kept) {
        lock(&self.state).history = Some(kept);
    }

    /// Removes a reader, and whoever has taken its place meanwhile: those that were removed.
    pub(crate) fn evict(&self, evicted: &Joined<R>) -> Vec<Arc<R>> {
        let mut state = lock(&self.state);
        let (out, rest) = std::mem::take(&mut state.joined)
            .into_iter()
            .partition(|joined| joined.lineage == evicted.lineage);
        state.joined = rest;
        if !out.is_empty() {
            self.epoch.fetch_add(1, Ordering::Release);
        }
        out.into_iter()
            .map(|joined: Joined<R>| joined.reader)
            .collect()
    }

    /// How many readers there are.
    pub fn len(&self) -> usize {
        lock(&self.state).joined.len()
    }

    /// Whether nobody reads.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether [`join`](Roster::join) carries the expensive half of the barrier, see
    /// [`RingWriter::fence`](super::RingWriter::fence).
    #[inline(always)]
    pub(crate) fn asymmetric(&self) -> bool {
        self.asymmetric.load(std::sync::atomic::Ordering::Relaxed)
    }

    #[inline(always)]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Says that there are `sequence` records now, and that the next one begins at `position`, a multiple of 8.
    #[inline(always)]
    pub(crate) fn set_progress(&self, position: u64, sequence: u64) {
        self.progress.sequence.store(sequence, Ordering::Release);
        self.progress
            .position
            .store(position | sequence & LOW, Ordering::Release);
    }

    /// The readers now, those that were dismissed, and the epoch they belong to.
    pub(crate) fn snapshot(&self) -> (u64, Vec<Joined<R>>, Vec<Lingering<R>>) {
        let state = lock(&self.state);
        (
            self.epoch.load(Ordering::Relaxed),
            state.joined.clone(),
            state.lingering.clone(),
        )
    }
}

impl<R: Reader> Roster<R> {
    /// Puts a reader whose cursor is 0 in the place of another, which reads no more, and must have exported its cursor.
    /// Nothing between the two is lost, and the writer goes on meanwhile. If the other `stays`, it is listed until it
    /// [leaves](Roster::leave), as one that holds nobody up: what its hold slots name is kept.
    ///
    /// It may run on any thread, at any time, as [`join`](Roster::join).
    ///
    /// # Errors
    ///
    /// [`NoSuccession`]; nothing has changed then.
    pub fn succeed(
        &self,
        other: u64,
        reader: Arc<R>,
        from: From,
        stays: bool,
    ) -> Result<Joined<R>, NoSuccession> {
        let mut state = lock(&self.state);
        let here = |joined: &Joined<R>| joined.id == other && !joined.succeeded;
        let at = state.joined.iter().position(here);
        let at = at.ok_or(NoSuccession::Gone)?;
        let before = state.joined[at].clone();
        let cursor = before.reader.cursor();
        if cursor == LEFT && matches!(from, From::Cursor(_)) {
            return Err(NoSuccession::Gone);
        }
        // As in `join`: a writer that does not see the new reader has committed nothing that this one will not find, and
        // looks at the cursor of the other, which is as good.
        self.publish().map_err(NoSuccession::Fence)?;
        let (position, records) = self.progress();
        let (start, sequence, least) = match from {
            From::Cursor(sequence) => (
                before.start.wrapping_add(cursor),
                sequence.unwrap_or(before.sequence),
                before.sequence,
            ),
            From::Said { position, sequence } => (position, sequence, before.sequence),
            From::Here => (position, records, before.sequence),
            // What was there when it came it need not have read.
            From::Seen(sequence) => (position, sequence, 0),
        };
        if start < before.start || start > position + self.reach || start & LOW != 0 {
            let found = start.wrapping_sub(before.start);
            return Err(NoSuccession::Corrupt { found });
        }
        if sequence < least || sequence > records + 1 {
            return Err(NoSuccession::Corrupt { found: sequence });
        }
        if start < state.begun {
            return Err(NoSuccession::Elsewhere);
        }
        let joined = Joined {
            lineage: before.lineage,
            ..state.joins(reader, start, sequence)
        };
        let place = std::mem::replace(&mut state.joined[at], joined.clone());
        if stays {
            state.joined.push(Joined {
                // With its cursor as it is, it has released all there will ever be.
                start: (NOTHING - 1).wrapping_sub(cursor),
                succeeded: true,
                ..place
            });
        }
        Ok(joined)
    }
}

/// Where a reader begins that takes another's place ([`Roster::succeed`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// At the other's cursor. How many records there were before that, if the other has said so; the number of those before
    /// its own start, if it has not, which is too low.
    Cursor(Option<u64>),
    /// Where the other has said it is, which is lossy and has no cursor.
    Said {
        /// The position of the next record.
        position: u64,
        /// How many records there were before it.
        sequence: u64,
    },
    /// At the writer's next record: the other is lossy, and has said nothing.
    Here,
    /// At the newest of [latest values](crate::latest), of which the other has read the one with this number last; 0 if it has not
    /// said so, or has read none.
    Seen(u64),
}

use std::sync::Arc;

use super::{
    history::History,
    laps::{Anchor, LAP_WORDS, Laps},
    layout::{self, HEADER, KIND_CHUNK, KIND_INLINE},
    roster::{Joined, LEFT, Reader, Roster},
    spill::{Dismissed, Past},
};
use crate::{
    Shared,
    pool::{ChunkRef, Holder, Holders},
    primitive::{Ordering, fence, fence_light},
    words::WordsMut,
};

/// Why a record cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// The slowest reader has not released enough yet.
    Full,
    /// It would not even fit an empty ring; `max` bytes do.
    TooLarge {
        /// The longest payload this ring takes, in bytes.
        max: usize,
    },
}

/// The one writer of a ring.
///
/// What it believes is private: its position, its limit and the readers. From shared memory it loads nothing
/// but the readers' cursors, and checks those.
#[derive(Debug)]
pub struct RingWriter<M, R> {
    /// Of the ring that it writes in.
    pub(super) memory: M,
    pub(super) capacity: u64,
    max_payload: usize,
    pub(super) position: u64,
    /// Records before that position.
    pub(super) sequence: u64,
    /// Bytes before this position may be written at once: the lesser of `room` and the bound that lossy readers have
    /// been told.
    pub(super) limit: u64,
    /// The slowest reader's cursor plus the capacity, when last looked at; of one that reads another ring, where this one
    /// began.
    pub(super) room: u64,
    pub(super) laps: Laps,
    /// The number of its first ring, whose header has the control words.
    pub(super) home: u32,
    /// The number of its ring, and where that began.
    pub(super) ring: u32,
    pub(super) base: u64,
    /// The rings that it has left, the oldest first.
    pub(super) past: Vec<Past<M>>,
    /// The slowest reader's position, when last looked at.
    pub(super) slowest: u64,
    /// Absent unless records are kept for those who join.
    pub(super) history: Option<Box<History>>,
    pub(super) roster: Arc<Roster<R>>,
    /// Of the roster, as `readers` are.
    epoch: u64,
    /// The last one that `sync` told its caller of.
    told: u64,
    /// Of the roster, when last looked at.
    asymmetric: bool,
    pub(super) readers: Vec<Seen<R>>,
    pub(super) dismissed: Vec<Dismissed<R>>,
    /// Those whose place another has by now: they keep what their hold slots name.
    succeeded: Vec<Joined<R>>,
}

#[derive(Debug)]
pub(super) struct Seen<R> {
    pub(super) joined: Joined<R>,
    /// Its position when last looked at. It never goes back.
    pub(super) position: u64,
}

impl<M: WordsMut, R: Reader> RingWriter<M, R> {
    /// A writer over zeroed memory, without readers, none of which may be lossy.
    ///
    /// # Panics
    ///
    /// If the capacity is below 128 bytes.
    pub fn new(memory: M) -> RingWriter<M, R> {
        RingWriter::over(memory, Laps::none())
    }

    /// A writer over zeroed memory, without readers, that tells lossy ones how far it is, in the [`LAP_WORDS`] bytes
    /// from byte `laps` of the memory's header on. They cost a few stores about eight times a lap; each message costs what
    /// it does without.
    ///
    /// # Panics
    ///
    /// If the capacity is below 128 bytes, or the header has no such words.
    pub fn with_laps(memory: M, laps: usize) -> RingWriter<M, R> {
        for word in (0..LAP_WORDS).step_by(8) {
            memory.load_control(laps + word);
        }
        RingWriter::over(memory, Laps::new(laps))
    }

    fn over(memory: M, laps: Laps) -> RingWriter<M, R> {
        let capacity = memory.capacity();
        assert!(
            capacity >= layout::MIN_CAPACITY,
            "a ring of {capacity} bytes holds nothing"
        );
        let roster = Arc::new(Roster::new(layout::max_advance(capacity)));
        RingWriter {
            memory,
            capacity,
            max_payload: layout::max_payload(capacity),
            position: 0,
            sequence: 0,
            limit: capacity.min(laps.bound()),
            room: capacity,
            laps,
            home: 0,
            ring: 0,
            base: 0,
            past: Vec::new(),
            slowest: 0,
            history: None,
            asymmetric: roster.asymmetric(),
            roster,
            epoch: 0,
            told: 0,
            readers: Vec::new(),
            dismissed: Vec::new(),
            succeeded: Vec::new(),
        }
    }

    /// Where readers join and leave.
    pub fn roster(&self) -> &Arc<Roster<R>> {
        &self.roster
    }

    /// The memory of the first ring, whose header has the control words, whichever ring it writes in.
    pub fn memory(&self) -> &M {
        match self.ring == self.home {
            true => &self.memory,
            false => self.first(),
        }
    }

    /// Where the next record begins: bytes since the first ring began.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How many records were committed.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The longest payload this ring takes, in bytes.
    pub fn max_payload(&self) -> usize {
        self.max_payload
    }

    /// Makes room for a payload of `len` bytes. Looks at the readers' cursors only if it does not fit below
    /// the limit known already.
    ///
    /// # Errors
    ///
    /// [`NoRoom`]; nothing has changed then.
    #[inline(always)]
    pub fn reserve(&mut self, len: usize) -> Result<(), NoRoom> {
        // Compared this way round, so that no length, however large, can overflow anything.
        if len > self.max_payload {
            return Err(NoRoom::TooLarge {
                max: self.max_payload,
            });
        }
        let needed = layout::furthest_end(self.position, len) + HEADER;
        if needed <= self.limit || self.make_room(needed) {
            Ok(())
        } else {
            Err(NoRoom::Full)
        }
    }

    /// Copies `src` into the payload of the record being written, from byte `offset` (a multiple of 8) on.
    ///
    /// After a [`reserve`](RingWriter::reserve) of at least `offset + src.len()`.
    #[inline(always)]
    pub fn write(&mut self, offset: usize, src: &[u8]) {
        self.memory
            .write(self.position, HEADER as usize + offset, src);
    }

    /// Commits the record being written with `len` bytes of payload, at most what was reserved.
    ///
    /// # Panics
    ///
    /// If there is no room for that: it was not reserved.
    #[inline(always)]
    pub fn commit(&mut self, len: usize) {
        let end = layout::end(self.position, len);
        assert!(
            end + HEADER <= self.limit,
            "committed more than was reserved"
        );
        self.commit_until(KIND_INLINE, end, len);
    }

    /// Commits the record being written, as [`commit`](RingWriter::commit) does, as a message with attachments. They have
    /// gone to the readers by now, who find them by the record's [`position`](RingWriter::position) and `tag`, which is below
    /// [`TAGS`](super::TAGS).
    ///
    /// # Panics
    ///
    /// If there is no room for that: it was not reserved.
    pub fn commit_attached(&mut self, len: usize, tag: u16) {
        let end = layout::end(self.position, len);
        assert!(
            end + HEADER <= self.limit,
            "committed more than was reserved"
        );
        self.commit_until(KIND_INLINE | layout::attached(tag), end, len);
    }

    /// Reserves, writes and commits a whole payload.
    ///
    /// # Errors
    ///
    /// [`NoRoom`]; nothing has changed then.
    #[inline(always)]
    pub fn append(&mut self, payload: &[u8]) -> Result<(), NoRoom> {
        let len = payload.len();
        if len > self.max_payload {
            return Err(NoRoom::TooLarge {
                max: self.max_payload,
            });
        }
        let end = layout::end(self.position, len);
        if end + HEADER > self.limit && !self.make_room(end + HEADER) {
            return Err(NoRoom::Full);
        }
        self.write(0, payload);
        self.commit_until(KIND_INLINE, end, len);
        Ok(())
    }

    /// Reserves, writes and commits a record that says where a message is: in a chunk of a pool.
    ///
    /// [`Pool::send`](crate::pool::Pool::send) does this, and keeps account.
    ///
    /// # Errors
    ///
    /// [`NoRoom`]; nothing has changed then.
    pub fn append_chunk(&mut self, chunk: ChunkRef) -> Result<(), NoRoom> {
        self.append_chunk_with(chunk, None)
    }

    /// [`append_chunk`](RingWriter::append_chunk), with attachments that are known by this tag, if any.
    pub(crate) fn append_chunk_with(
        &mut self,
        chunk: ChunkRef,
        tag: Option<u16>,
    ) -> Result<(), NoRoom> {
        let len = ChunkRef::LEN;
        self.reserve(len)?;
        for (at, word) in (HEADER..).step_by(8).zip(chunk.to_words()) {
            self.memory.store(self.position + at, word);
        }
        let kind = KIND_CHUNK | tag.map_or(0, layout::attached);
        self.commit_until(kind, layout::end(self.position, len), len);
        Ok(())
    }

    #[inline(always)]
    fn commit_until(&mut self, kind: u64, end: u64, len: usize) {
        // The zero comes after the payload: it is often the first store to a line that readers had last, and
        // stores retire in order, so it would hold up the ones behind it. The header comes after the zero, or a
        // reader would go on into an older record.
        self.memory.store(end, 0);
        let header = layout::header(kind, end - self.position, len);
        self.memory.store_release(self.position, header);
        if let Some(history) = &mut self.history {
            history.note(self.sequence, self.position);
        }
        self.position = end;
        self.sequence += 1;
        self.roster.set_progress(end, self.sequence);
    }

    /// The word to show to readers before sleeping until `len` bytes fit, not 0. A reader wakes the writer when
    /// its cursor gets to the position in it: where they fit, and an eighth of the ring is free, so that a
    /// writer ahead of its readers does not sleep and wake for every record.
    ///
    /// After it is stored comes one more [`reserve`](RingWriter::reserve), then sleep: that look fences before
    /// it loads the cursors, as a reader does between storing its cursor and loading this word.
    pub fn want(&self, len: usize) -> u64 {
        let fits =
            (layout::furthest_end(self.position, len) + HEADER).saturating_sub(self.capacity);
        let free = layout::step(self.capacity);
        let eighth = (self.position + free).saturating_sub(self.capacity) & !7;
        fits.max(eighth) | layout::WAITING
    }

    /// Whether every reader has released every record. Looks at their cursors.
    #[cold]
    pub fn is_drained(&mut self) -> bool {
        self.refresh(0);
        self.slowest == self.position
    }

    /// The word to show to readers before sleeping until the ring [is drained](RingWriter::is_drained), as
    /// [`want`](RingWriter::want) is for room.
    pub fn want_drained(&self) -> u64 {
        self.position | layout::WAITING
    }

    /// The barrier between a commit and the look at whatever a reader says about itself: its presence in the
    /// roster ([`sync`](RingWriter::sync)) or its armed flag.
    ///
    /// `full` is needed if any reader sleeps (one SeqCst fence, 5 ns); otherwise joining readers carry the
    /// expensive half, and this costs nothing.
    #[inline(always)]
    pub fn fence(&self, full: bool) {
        fence_light(self.asymmetric && !full);
    }

    /// Takes up what changed in the roster; true if anything did since it last said so. One load otherwise.
    ///
    /// A look for room may have taken up a change before; that does not make it known to the caller.
    #[inline(always)]
    pub fn sync(&mut self) -> bool {
        if self.roster.epoch() == self.told {
            return false;
        }
        self.take_roster();
        self.told = self.epoch;
        true
    }

    /// The readers, as of the last [`sync`](RingWriter::sync).
    #[inline(always)]
    pub fn readers(&self) -> impl Iterator<Item = &Joined<R>> {
        self.readers.iter().map(|seen| &seen.joined)
    }

    #[cold]
    pub(super) fn take_roster(&mut self) {
        if self.roster.epoch() == self.epoch {
            return;
        }
        let (epoch, joined, lingering) = self.roster.snapshot();
        let before = std::mem::take(&mut self.dismissed);
        self.dismissed = lingering
            .into_iter()
            .map(|lingering| Dismissed::new(lingering, &before))
            .collect();
        self.epoch = epoch;
        self.asymmetric = self.roster.asymmetric();
        let before = std::mem::take(&mut self.readers);
        let (succeeded, readers): (Vec<_>, Vec<_>) =
            joined.into_iter().partition(|joined| joined.succeeded);
        self.succeeded = succeeded;
        self.readers = readers
            .into_iter()
            .map(|joined| {
                // One that has taken another's place has to begin where that one was, or later.
                let known = before
                    .iter()
                    .find(|seen| seen.joined.lineage == joined.lineage);
                Seen {
                    position: known.map_or(joined.start, |seen| seen.position),
                    joined,
                }
            })
            .collect();
    }

    /// Moves the limit to `needed` or beyond. False if a reader is in the way.
    #[cold]
    #[inline(never)]
    fn make_room(&mut self, needed: u64) -> bool {
        if needed > self.room {
            self.refresh(needed);
        }
        let fits = needed <= self.room;
        if fits && needed > self.laps.bound() {
            self.export(needed);
        }
        self.limit = self.room.min(self.laps.bound());
        fits
    }

    /// Tells lossy readers that bytes up to `needed` are about to be written.
    pub(super) fn export(&mut self, needed: u64) {
        self.export_in(self.ring, needed);
    }

    /// The same, where the next record is written in this ring.
    pub(super) fn export_in(&mut self, ring: u32, needed: u64) {
        let here = Anchor {
            position: self.position,
            sequence: self.sequence,
            ring,
        };
        let first = match self.ring == self.home {
            true => &mut self.memory,
            false => super::spill::first_mut(&mut self.past, self.home),
        };
        self.laps.export(first, here, needed);
    }

    /// Looks at every reader's cursor for more room, up to `needed` if that can be.
    pub(super) fn refresh(&mut self, needed: u64) {
        // Before the look at the roster: who has joined before this begins where it was said, and is seen there.
        let kept = self.advance_history(needed);
        // Pairs with the fence in `Roster::join`, and, for a writer that has stored what it waits for, with the
        // one in `RingReader::export`.
        fence(Ordering::SeqCst);
        self.take_roster();
        let mut slowest = self.position;
        let mut at = 0;
        while let Some(seen) = self.readers.get_mut(at) {
            let cursor = seen.joined.reader.cursor();
            if cursor == LEFT {
                at += 1;
                continue;
            }
            let position = seen.joined.start.wrapping_add(cursor);
            if position < seen.position || position > self.position {
                let evicted = self.readers.swap_remove(at).joined;
                let others = self.roster.evict(&evicted).into_iter();
                evicted.reader.corrupt(cursor);
                // One that has taken its place since this side has looked at the roster.
                others
                    .filter(|other| !Arc::ptr_eq(other, &evicted.reader))
                    .for_each(|other| other.corrupt(cursor));
                continue;
            }
            seen.position = position;
            slowest = slowest.min(position);
            at += 1;
        }
        // Pairs with the readers' Release stores of their cursors: they are done with what lies before.
        fence(Ordering::Acquire);
        self.slowest = slowest;
        // Who reads another ring is in nobody's way in this one.
        let slowest = slowest.min(kept).max(self.base);
        // It never shrinks: a reader that said it had left, and comes back, is none whose bytes are spared.
        self.room = self.room.max(slowest + self.capacity);
    }
}

/// Whoever reads the ring may hold the chunks that its records name.
impl<M: WordsMut, R: Reader + Holder> Holders for RingWriter<M, R> {
    type Holder = R;

    fn joined(&mut self) -> impl Iterator<Item = (u64, &R)> {
        self.take_roster();
        let readers = self.readers.iter().map(|seen| &seen.joined);
        let joined = readers.chain(&self.succeeded);
        joined.map(|joined| (joined.start, &*joined.reader))
    }

    fn kept(&mut self) -> u64 {
        self.advance_history(0)
    }

    fn dismissed(&mut self) -> impl Iterator<Item = (u64, u64, &R)> {
        let dismissed = self.dismissed.iter();
        dismissed.map(|gone| (gone.joined.start, gone.stop, &*gone.joined.reader))
    }
}

impl<R: Reader> RingWriter<Shared, R> {
    /// The payload of the record being written, as it is so far: `len` bytes, after a
    /// [`reserve`](RingWriter::reserve) of at least as many.
    #[inline(always)]
    pub fn payload(&self, len: usize) -> &[u8] {
        self.memory.bytes(self.position, HEADER as usize, len)
    }

    /// The payload of the record being written, in place: `len` bytes, after a
    /// [`reserve`](RingWriter::reserve) of at least as many. They contain leftovers of older records.
    #[inline(always)]
    pub fn payload_mut(&mut self, len: usize) -> &mut [u8] {
        self.memory.bytes_mut(self.position, HEADER as usize, len)
    }
}

use super::layout::{self, Corrupt, HEADER, WAITING};
use crate::{
    Remote,
    pool::ChunkRef,
    primitive::{Ordering, fence},
    words::Words,
};

/// A reader's control page, and the way to wake the writer. `M` is the writer's memory.
pub trait CursorPage<M> {
    /// Stores the cursor, `Release`.
    fn export(&mut self, cursor: u64);

    /// Whether the writer ever sleeps for want of room. If not, it need not be asked what it waits for.
    fn writer_sleeps(&self) -> bool;

    /// What the writer waits for: the word that [`RingWriter::want`](super::RingWriter::want) computed, 0 if it
    /// does not wait. A `Relaxed` load. `writer` is the memory of the ring that is read now, which need not be the one with
    /// that word: it is the first one's that has it.
    fn wanted(&self, writer: &M) -> u64;

    /// Wakes the writer.
    fn wake(&mut self);
}

/// What [`RingReader::poll_record`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The message is in the record: the length of its payload, in bytes.
    Inline(usize),
    /// The message is in this chunk of the writer's pool, if the writer is honest.
    Chunk(ChunkRef),
    /// A message with attachments, which have gone another way: they are known by the record's position and this tag.
    Attached {
        /// Below [`TAGS`](super::TAGS).
        tag: u16,
        /// The message.
        message: Carried,
    },
}

/// Where a message with attachments is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// In the record: the length of its payload, in bytes.
    Inline(usize),
    /// In this chunk of the writer's pool, if the writer is honest.
    Chunk(ChunkRef),
}

/// What a header says that is not one of an inline record: the advance to the next, and what the record is, whose words are
/// loaded with `word`, once each. `None` if no writer writes it.
pub(super) fn special(header: u64, max: u64, word: impl Fn(u64) -> u64) -> Option<(u64, Record)> {
    let (tag, plain) = layout::split(header);
    let chunk = || ChunkRef::from_words([word(0), word(1), word(2)]);
    let (advance, message) = match (layout::parse(plain, layout::KIND_CHUNK, max), tag) {
        (Some((advance, ChunkRef::LEN)), _) => (advance, Carried::Chunk(chunk())),
        (None, Some(_)) => {
            let (advance, len) = layout::parse(plain, layout::KIND_INLINE, max)?;
            (advance, Carried::Inline(len))
        }
        _ => return None,
    };
    let record = match (tag, message) {
        (Some(tag), message) => Record::Attached { tag, message },
        (None, Carried::Chunk(chunk)) => Record::Chunk(chunk),
        (None, Carried::Inline(len)) => Record::Inline(len),
    };
    Some((advance, record))
}

/// What [`RingReader::look`] has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Look {
    /// Nothing, and nothing is left to do.
    Nothing,
    /// A record: the length of its payload in bytes.
    Payload(usize),
    /// Something for [`poll_record`](RingReader::poll_record): another record, the end of the ring, a cursor to export, nonsense.
    Other,
}

/// A reader of a ring: its own position over the writer's memory.
#[derive(Debug)]
pub struct RingReader<M, P> {
    memory: M,
    page: P,
    start: u64,
    position: u64,
    exported: u64,
    /// The cursor is exported at least every so many bytes.
    step: u64,
    /// The cursor is exported once so many bytes are released: `step`, or 0 if a chunk is among them, which its
    /// owner's pool may be short of, or a message with attachments.
    due: u64,
    /// The longest record there can be.
    max: u64,
    /// Bytes of the record that `poll` found; 0 without one.
    advance: u64,
    /// What headers must say; nothing is right any more once one was wrong.
    kind: u64,
    corrupt: Option<Corrupt>,
    /// The ring in which the stream goes on, at the position.
    next: Option<u32>,
    /// Where it came to this ring, and the number of that.
    arrived: Option<(u64, u32)>,
    /// How many rings it has left there since the last record, for others that were there before.
    empty: u32,
    /// It reads nothing more.
    stopped: bool,
}

impl<M: Words, P: CursorPage<M>> RingReader<M, P> {
    /// A reader that begins at `start`, which [`Roster::join`](super::Roster::join) answered on the writer's
    /// side, with a `page` whose cursor is 0.
    ///
    /// # Panics
    ///
    /// If the capacity is below 128 bytes.
    pub fn new(memory: M, page: P, start: u64) -> RingReader<M, P> {
        let capacity = memory.capacity();
        assert!(
            capacity >= layout::MIN_CAPACITY,
            "a ring of {capacity} bytes holds nothing"
        );
        RingReader {
            max: layout::max_advance(capacity),
            advance: 0,
            step: layout::step(capacity),
            due: layout::step(capacity),
            memory,
            page,
            start,
            position: start & !7,
            exported: start & !7,
            kind: layout::KIND_INLINE,
            corrupt: None,
            next: None,
            arrived: None,
            empty: 0,
            stopped: false,
        }
    }

    /// Looks for a record: the length of its payload in bytes, or `None` if the ring is empty, in which case
    /// everything released so far has been exported. The stream may go on in another ring then
    /// ([`switched`](RingReader::switched)).
    ///
    /// A hostile writer can fill the ring with records for ever: whoever reads until it is empty sets a limit.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] if the header makes no sense, from then on always. For a reader that uses this method, a
    /// record that names a chunk, or has attachments, makes no sense.
    #[inline(always)]
    pub fn poll(&mut self) -> Result<Option<usize>, Corrupt> {
        self.poll_or(|reader, header| reader.end_or_corrupt(header).map(|()| None))
    }

    /// Looks for a record, like [`poll`](RingReader::poll), in a ring whose writer has a pool.
    ///
    /// A record that names a chunk is released like any other, and the cursor is exported at once then. What is
    /// to outlive the record must have a hold before ([`Chunk::hold`](crate::pool::Chunk::hold)).
    ///
    /// # Errors
    ///
    /// [`Corrupt`] if the header makes no sense, from then on always.
    #[inline(always)]
    pub fn poll_record(&mut self) -> Result<Option<Record>, Corrupt> {
        let mut special = None;
        let found = self.poll_or(|reader, header| {
            special = reader.special(header)?;
            Ok(special.and(Some(0)))
        })?;
        Ok(match special {
            None => found.map(Record::Inline),
            special => special,
        })
    }

    /// Looks for a record that is nothing but a payload, which most are: all that the hot path of a reader needs.
    /// [`poll_record`](RingReader::poll_record) tells what the others are.
    #[inline(always)]
    pub fn look(&mut self) -> Look {
        let header = self.memory.load(self.position);
        if header == 0 {
            if self.exported != self.position || self.kind != layout::KIND_INLINE {
                return Look::Other;
            }
            self.advance = 0;
            return Look::Nothing;
        }
        // Pairs with the Release store of the header: the payload is there.
        fence(Ordering::Acquire);
        match layout::parse(header, self.kind, self.max) {
            Some((advance, len)) => {
                self.advance = advance;
                Look::Payload(len)
            }
            None => Look::Other,
        }
    }

    /// What `poll` does; `other` says what a header means that is not one of an inline record.
    #[inline(always)]
    fn poll_or(
        &mut self,
        other: impl FnOnce(&mut Self, u64) -> Result<Option<usize>, Corrupt>,
    ) -> Result<Option<usize>, Corrupt> {
        let header = self.memory.load(self.position);
        if header == 0 {
            self.advance = 0;
            if self.exported != self.position {
                self.export();
            }
            return self.corrupt.map_or(Ok(None), Err);
        }
        // Pairs with the Release store of the header: the payload is there.
        fence(Ordering::Acquire);
        match layout::parse(header, self.kind, self.max) {
            Some((advance, len)) => {
                self.advance = advance;
                Ok(Some(len))
            }
            None => other(self, header),
        }
    }

    /// The record with this header, which is none of those that have but a payload.
    #[inline(never)]
    fn special(&mut self, header: u64) -> Result<Option<Record>, Corrupt> {
        // Not `KIND_INLINE` any more once a header was wrong.
        let found = (self.kind == layout::KIND_INLINE)
            .then(|| {
                special(header, self.max, |at| {
                    let at = self.position.wrapping_add(HEADER + 8 * at);
                    self.memory.load(at)
                })
            })
            .flatten();
        let Some((advance, record)) = found else {
            return self.end_or_corrupt(header).map(|()| None);
        };
        self.advance = advance;
        // Chunks and descriptors are what a writer may be short of.
        self.due = 0;
        Ok(Some(record))
    }

    /// What a header says that is no record's: that the ring ends here, or nothing that makes sense.
    #[cold]
    fn end_or_corrupt(&mut self, header: u64) -> Result<(), Corrupt> {
        if self.stopped {
            return Ok(());
        }
        let next = layout::parse_switch(header);
        // A writer comes to a ring to write in it, as a rule: two that lead to one another would have no end. One that hands over at
        // once leads to a ring that is made later.
        let back = |(position, ring): (u64, u32)| position == self.position && next <= Some(ring);
        let circles = self.arrived.is_some_and(back) && self.empty >= layout::MAX_EMPTY;
        let honest = self.kind == layout::KIND_INLINE && !circles;
        if let (Some(next), true) = (next, honest) {
            self.next = Some(next);
            self.advance = 0;
            if self.exported != self.position {
                self.export();
            }
            return Ok(());
        }
        let corrupt = Corrupt {
            position: self.position,
            header,
            max: self.max,
        };
        self.kind = layout::KIND_NONE;
        Err(*self.corrupt.get_or_insert(corrupt))
    }

    /// Whether the stream goes on in another ring, as [`poll`](RingReader::poll) has found.
    #[inline(always)]
    pub fn ends(&self) -> bool {
        self.next.is_some()
    }

    /// Reads nothing more, whatever comes to be where it is: its writer has [dismissed](super::RingWriter::dismiss) it, and it has
    /// found the [end](RingReader::ends) of the ring; or the writer takes it for gone.
    pub fn stop(&mut self) {
        self.kind = layout::KIND_NONE;
        self.stopped = true;
    }

    /// The number of the ring in which the stream goes on, if [`poll`](RingReader::poll) has found that it ends in this one:
    /// the reader takes that one's memory, and [follows](RingReader::follow).
    ///
    /// Before it does so, it has to look whether the writer has [dismissed](super::RingWriter::dismiss) it, and be content with
    /// what it has had if so. For that, this exports the cursor, and fences.
    #[cold]
    pub fn switched(&mut self) -> Option<u32> {
        let next = self.next?;
        self.page.export(self.position.wrapping_sub(self.start));
        // Pairs with the fence in `RingWriter::dismiss`: it sees that all of this ring is released, or was said before it
        // that this reader is dismissed.
        fence(Ordering::SeqCst);
        Some(next)
    }

    /// Goes on in the ring that [`switched`](RingReader::switched) has named, whose memory this is. The old one's is given
    /// back. Does nothing but that if it has named none.
    ///
    /// # Panics
    ///
    /// If the capacity is another.
    pub fn follow(&mut self, memory: M) -> M {
        assert_eq!(
            memory.capacity(),
            self.memory.capacity(),
            "a ring of another size"
        );
        let Some(next) = self.next.take() else {
            return memory;
        };
        self.empty = match self.arrived {
            Some((position, ring)) if position == self.position => {
                self.empty + u32::from(next <= ring)
            }
            _ => 0,
        };
        self.arrived = Some((self.position, next));
        std::mem::replace(&mut self.memory, memory)
    }

    /// Whether a record waits. Exports nothing.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.memory.load(self.position) == 0
    }

    /// Where the next record begins, or the one that [`poll`](RingReader::poll) found: bytes since the ring
    /// began.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Copies payload of the record that [`poll`](RingReader::poll) found, from byte `offset` on. The
    /// writer, if it does not play by the rules, may be changing it.
    ///
    /// # Panics
    ///
    /// If `offset + dst.len()` is more than the capacity.
    #[inline(always)]
    pub fn read(&self, offset: usize, dst: &mut [u8]) {
        self.memory
            .read(self.position, HEADER as usize + offset, dst);
    }

    /// Releases the record that [`poll`](RingReader::poll) found: its memory may be written again. Does nothing
    /// if it found none.
    #[inline(always)]
    pub fn release(&mut self) {
        // Wrapping, since the start is what the peer announced.
        self.position = self.position.wrapping_add(self.advance);
        self.advance = 0;
        if self.position.wrapping_sub(self.exported) >= self.due
            || self.reaches(self.page.wanted(&self.memory))
        {
            self.export();
        }
    }

    /// Whether an export now would take the cursor to what the writer waits for, where it was not before.
    #[inline(always)]
    fn reaches(&self, wanted: u64) -> bool {
        let wanted = wanted & !WAITING;
        self.exported < wanted && wanted <= self.position
    }

    #[inline(never)]
    fn export(&mut self) {
        self.page.export(self.position.wrapping_sub(self.start));
        if self.page.writer_sleeps() {
            // Pairs with the fence of a writer that has said what it waits for: it sees this cursor, or its
            // word is seen here.
            fence(Ordering::SeqCst);
            if self.reaches(self.page.wanted(&self.memory)) {
                self.page.wake();
            }
        }
        self.exported = self.position;
        self.due = self.step;
    }

    /// Exports everything released so far, for one that is to take this reader's place
    /// ([`Roster::succeed`](super::Roster::succeed)).
    pub fn release_all(&mut self) {
        if self.exported != self.position {
            self.export();
        }
    }

    /// Begins at another position than it was made for, in a ring with this memory: it has taken another's place
    /// there. Before it looks for a record.
    pub fn begin_at(&mut self, memory: M, start: u64) {
        self.memory = memory;
        self.start = start;
        self.position = start & !7;
        self.exported = start & !7;
    }

    /// Exports that this reader reads no more ([`LEFT`](super::LEFT)), and wakes the writer if it waits: it holds up
    /// nobody from now on, and keeps the chunks that its hold slots name. It finds nothing from then on, and exports nothing else.
    pub fn leave(&mut self) {
        self.page.export(super::LEFT);
        self.stop();
        self.advance = 0;
        self.exported = self.position;
        self.due = u64::MAX;
        if self.page.writer_sleeps() {
            // Pairs with the writer's fence between what it wants and its last look.
            fence(Ordering::SeqCst);
            if self.page.wanted(&self.memory) != 0 {
                self.page.wake();
            }
        }
    }

    /// The page this reader exports to.
    pub fn page(&self) -> &P {
        &self.page
    }

    /// The page, to change whom it tells: the ring that it [follows](RingReader::follow) to may be another writer's.
    pub fn page_mut(&mut self) -> &mut P {
        &mut self.page
    }

    /// The writer's memory, of the ring that is read now.
    pub fn memory(&self) -> &M {
        &self.memory
    }
}

impl<P: CursorPage<Remote>> RingReader<Remote, P> {
    /// Payload of the record that [`poll`](RingReader::poll) found, in place: `len` bytes of it.
    ///
    /// # Safety
    ///
    /// The writer must not write these bytes before they are released ([`Remote::bytes`]): it must be a
    /// program that plays by the rules.
    #[allow(unsafe_code)]
    #[inline(always)]
    pub unsafe fn payload(&self, len: usize) -> &[u8] {
        // SAFETY: the caller vouches for the writer.
        unsafe { self.memory.bytes(self.position, HEADER as usize, len) }
    }
}

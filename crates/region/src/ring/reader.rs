use super::layout::{self, Corrupt, HEADER, WAITING};
use crate::{
    Remote,
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
    /// does not wait. A `Relaxed` load.
    fn wanted(&self, writer: &M) -> u64;

    /// Wakes the writer.
    fn wake(&mut self);
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
    /// The longest record there can be.
    max: u64,
    /// Bytes of the record that `poll` found; 0 without one.
    advance: u64,
    /// What headers must say; nothing is right any more once one was wrong.
    kind: u64,
    corrupt: Option<Corrupt>,
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
            memory,
            page,
            start,
            position: start & !7,
            exported: start & !7,
            kind: layout::KIND_INLINE,
            corrupt: None,
        }
    }

    /// Looks for a record: the length of its payload in bytes, or `None` if the ring is empty, in which case
    /// everything released so far has been exported.
    ///
    /// A hostile writer can fill the ring with records for ever: whoever reads until it is empty sets a limit.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] if the header makes no sense, from then on always.
    #[inline(always)]
    pub fn poll(&mut self) -> Result<Option<usize>, Corrupt> {
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
            None => Err(self.give_up(header)),
        }
    }

    #[cold]
    fn give_up(&mut self, header: u64) -> Corrupt {
        let corrupt = Corrupt {
            position: self.position,
            header,
            max: self.max,
        };
        self.kind = layout::KIND_NONE;
        *self.corrupt.get_or_insert(corrupt)
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
        if self.position.wrapping_sub(self.exported) >= self.step
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
    }

    /// The page this reader exports to.
    pub fn page(&self) -> &P {
        &self.page
    }

    /// The writer's memory.
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

use super::layout::{self, Corrupt, HEADER};
use crate::{
    Remote,
    primitive::{Ordering, fence},
    words::Words,
};

/// Where a reader exports its cursor to.
pub trait CursorPage {
    /// Stores the cursor, `Release`, and wakes the writer if it waits for room.
    fn export(&mut self, cursor: u64);

    /// Whether the writer waits for room. A hint: a `Relaxed` load.
    fn wanted(&self) -> bool;
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
    max: usize,
}

impl<M: Words, P: CursorPage> RingReader<M, P> {
    /// A reader that begins at `start`, which [`Roster::join`](super::Roster::join) answered on the writer's
    /// side, with a `page` whose cursor is 0.
    pub fn new(memory: M, page: P, start: u64) -> RingReader<M, P> {
        let capacity = memory.capacity();
        RingReader {
            max: layout::max_payload(capacity.max(2 * HEADER)),
            step: capacity / 8,
            memory,
            page,
            start,
            position: start & !7,
            exported: start & !7,
        }
    }

    /// Looks for a record: the length of its payload in bytes, or `None` if the ring is empty, in which case
    /// everything released so far has been exported.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] if the header makes no sense; it will not make any later.
    #[inline(always)]
    pub fn poll(&mut self) -> Result<Option<usize>, Corrupt> {
        let header = self.memory.load(self.position);
        if header == 0 {
            if self.exported != self.position {
                self.export();
            }
            return Ok(None);
        }
        // Pairs with the Release store of the header: the payload is there.
        fence(Ordering::Acquire);
        layout::payload_len(header, self.max, self.position).map(Some)
    }

    /// Whether a record waits. Exports nothing.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.memory.load(self.position) == 0
    }

    /// Copies payload of the record that [`poll`](RingReader::poll) found, from byte `offset` on. The
    /// writer, if it does not play by the rules, may be changing it.
    #[inline(always)]
    pub fn read(&self, offset: usize, dst: &mut [u8]) {
        self.memory
            .read(self.position, HEADER as usize + offset, dst);
    }

    /// Releases the record that [`poll`](RingReader::poll) found with `len` bytes: its memory may be
    /// written again.
    #[inline(always)]
    pub fn release(&mut self, len: usize) {
        self.position = layout::end(self.position, len);
        if self.position - self.exported >= self.step || self.page.wanted() {
            self.export();
        }
    }

    /// The page this reader exports to.
    pub fn page(&self) -> &P {
        &self.page
    }

    /// The page this reader exports to.
    pub fn page_mut(&mut self) -> &mut P {
        &mut self.page
    }

    /// The writer's memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    fn export(&mut self) {
        self.exported = self.position;
        self.page.export(self.position.wrapping_sub(self.start));
    }
}

impl<P: CursorPage> RingReader<Remote, P> {
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

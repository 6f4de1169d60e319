//! Segments as their owner has them.
//!
//! # Safety
//!
//! A chunk's bytes are borrowed through the one [`Exclusive`] that exists of it. [`Memory::create`] makes one of
//! each chunk; one that is dropped sets the chunk's bit, and [`Memory::take_dropped`] makes one in exchange for
//! the bit, which it clears by the same atomic operation that read it. Nothing else in this process makes references
//! into a segment's chunks, and no other process can write there (seals).

use std::sync::Arc;

use rustix::fd::OwnedFd;

use super::returns::Returns;
use crate::{
    Error, Options, Shared, page_size,
    primitive::{AtomicU64, Ordering},
};

/// What a segment consists of: after a header of one word per chunk, in whole pages, its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// How many chunks, at least one.
    pub chunks: u32,
    /// Bytes in each: a multiple of the page size, not 0.
    pub chunk_size: u64,
}

impl Geometry {
    /// Bytes before the first chunk.
    pub(super) fn header(self) -> usize {
        (8 * self.chunks as usize).next_multiple_of(page_size())
    }

    /// Bytes of the whole region.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] if no segment can be like this.
    pub(super) fn region(self) -> Result<usize, Error> {
        let page = page_size() as u64;
        let wrong = |what, len, expected| Error::Length {
            what,
            len,
            expected,
        };
        if self.chunk_size == 0 || self.chunk_size % page != 0 {
            let expected = "a multiple of the page size";
            return Err(wrong("a chunk", self.chunk_size, expected));
        }
        if self.chunks == 0 {
            return Err(wrong("a segment", 0, "at least one chunk"));
        }
        u64::from(self.chunks)
            .checked_mul(self.chunk_size)
            .and_then(|chunks| chunks.checked_add(self.header() as u64))
            .and_then(|len| usize::try_from(len).ok())
            .filter(|&len| len <= isize::MAX as usize)
            .ok_or_else(|| {
                let expected = "a segment that fits the address space";
                wrong("a chunk", self.chunk_size, expected)
            })
    }
}

/// A segment, mapped writable.
#[derive(Debug)]
pub(super) struct Memory {
    region: Shared,
    geometry: Geometry,
    /// Where the first chunk begins.
    first: usize,
    /// A bit for each chunk whose `Exclusive` was dropped.
    dropped: Box<[AtomicU64]>,
    returns: Arc<Returns>,
}

impl Memory {
    /// Makes a segment and touches all of its pages. Beside it, its chunks, and the permission to map it.
    pub(super) fn create(
        options: &Options,
        geometry: Geometry,
        returns: &Arc<Returns>,
    ) -> Result<(Arc<Memory>, Vec<Exclusive>, OwnedFd), Error> {
        let options = options.clone().prefault(true);
        let (region, descriptor) = Shared::create(options, geometry.region()?, 0)?;
        let words = geometry.chunks.div_ceil(64);
        let memory = Arc::new(Memory {
            region,
            geometry,
            first: geometry.header(),
            dropped: (0..words).map(|_| AtomicU64::new(0)).collect(),
            returns: returns.clone(),
        });
        let chunks = (0..geometry.chunks).map(|chunk| Exclusive {
            memory: memory.clone(),
            chunk,
        });
        let chunks = chunks.collect();
        Ok((memory, chunks, descriptor))
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The chunk's word: the sequence it was sent with, or 0.
    #[inline(always)]
    pub(super) fn word(&self, chunk: u32) -> &std::sync::atomic::AtomicU64 {
        self.region.word(8 * chunk as usize)
    }

    /// The chunks that were dropped since the last call; whoever dropped them is done with them.
    pub(super) fn take_dropped(self: &Arc<Self>) -> impl Iterator<Item = Exclusive> {
        let words = (0..).zip(&self.dropped);
        words.flat_map(move |(word, dropped)| {
            let mut bits = match dropped.load(Ordering::Relaxed) {
                0 => 0,
                // Pairs with the Release in `Exclusive::drop`.
                _ => dropped.swap(0, Ordering::Acquire),
            };
            std::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros())?;
                bits &= bits - 1;
                Some(Exclusive {
                    memory: self.clone(),
                    chunk: 64 * word + bit,
                })
            })
        })
    }
}

/// The only handle on the bytes of a chunk.
#[derive(Debug)]
pub(super) struct Exclusive {
    memory: Arc<Memory>,
    chunk: u32,
}

impl Exclusive {
    pub(super) fn chunk(&self) -> u32 {
        self.chunk
    }

    pub(super) fn is_in(&self, memory: &Arc<Memory>) -> bool {
        Arc::ptr_eq(&self.memory, memory)
    }

    #[inline(always)]
    fn range(&self, len: usize) -> *mut u8 {
        let size = self.memory.geometry.chunk_size as usize;
        assert!(len <= size, "{len} bytes of a chunk of {size}");
        let offset = self.memory.first + self.chunk as usize * size;
        self.memory.region.mapping.header_range(offset, len)
    }

    /// The first `len` bytes.
    ///
    /// # Panics
    ///
    /// If the chunk has less.
    #[inline(always)]
    pub(super) fn bytes(&self, len: usize) -> &[u8] {
        let bytes = self.range(len);
        // SAFETY: `len` bytes of this chunk are mapped there, as asserted. Nobody writes them while `self` is
        // borrowed (see the module).
        unsafe { std::slice::from_raw_parts(bytes, len) }
    }

    /// The first `len` bytes.
    ///
    /// # Panics
    ///
    /// If the chunk has less.
    #[inline(always)]
    pub(super) fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        let bytes = self.range(len);
        // SAFETY: `len` bytes of this chunk are mapped there, as asserted. They are nobody else's, neither in this
        // process nor, for writing, in any other, while `self` is borrowed exclusively (see the module).
        unsafe { std::slice::from_raw_parts_mut(bytes, len) }
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        let bit = 1 << (self.chunk % 64);
        // Pairs with the Acquire in `take_dropped`: what was written here is over.
        self.memory.dropped[self.chunk as usize / 64].fetch_or(bit, Ordering::Release);
        self.memory.returns.returned();
    }
}

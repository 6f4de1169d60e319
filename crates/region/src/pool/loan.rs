use std::ops::{Deref, DerefMut};

use super::memory::Exclusive;

/// A chunk of a pool, exclusively owned: a message to be written in place, then sent
/// ([`Pool::send`](super::Pool::send)).
///
/// It derefs to as many bytes as were asked for. It keeps its segment mapped and borrows nothing, so that several
/// can be out, on any thread. Dropped unsent, it goes back to the pool, without a lock.
#[derive(Debug)]
pub struct Loan {
    chunk: Exclusive,
    /// Index of its segment in the pool's table.
    pub(super) place: u32,
    len: usize,
    /// Length when it was loaned.
    asked: usize,
}

impl Loan {
    #[inline(always)]
    pub(super) fn new(chunk: Exclusive, place: u32, len: usize) -> Loan {
        Loan {
            chunk,
            place,
            len,
            asked: len,
        }
    }

    pub(super) fn chunk(&self) -> &Exclusive {
        &self.chunk
    }

    pub(super) fn into_chunk(self) -> Exclusive {
        self.chunk
    }

    /// As many bytes as it was loaned with, whatever it was shortened to since.
    pub fn capacity(&self) -> usize {
        self.asked
    }

    /// Shortens the message to its first `len` bytes; does nothing if it is no longer than that.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Zeroes what the message was shortened by.
    pub(super) fn zero_tail(&mut self) {
        if self.len < self.asked {
            self.chunk.bytes_mut(self.asked)[self.len..].fill(0);
        }
    }
}

impl Deref for Loan {
    type Target = [u8];

    #[inline(always)]
    fn deref(&self) -> &[u8] {
        self.chunk.bytes(self.len)
    }
}

impl DerefMut for Loan {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [u8] {
        self.chunk.bytes_mut(self.len)
    }
}

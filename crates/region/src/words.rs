//! What a ring needs of its memory, and a heap-backed version of it for models and tests.

use crate::primitive::{AtomicU64, Ordering};

/// Memory of a ring as 64-bit words, by byte position: positions grow for ever and wrap at the capacity.
///
/// The ring is generic over this, so that one piece of code runs over mappings ([`Shared`](crate::Shared),
/// [`Remote`](crate::Remote)) and over [`HeapWords`], which loom and Miri can watch.
pub trait Words {
    /// Bytes until positions wrap: a power of two.
    fn capacity(&self) -> u64;

    /// Loads the word at `position`, `Relaxed`. Ordering comes from fences: a read-only page allows no more.
    fn load(&self, position: u64) -> u64;

    /// Copies `dst.len()` bytes, from `position` (a multiple of 8) plus `offset` on, out of memory that may
    /// change meanwhile.
    ///
    /// # Panics
    ///
    /// If `offset + dst.len()` is more than the capacity.
    fn read(&self, position: u64, offset: usize, dst: &mut [u8]);

    /// Loads the control word at byte `offset` of the header before the ring, `Relaxed`.
    ///
    /// # Panics
    ///
    /// If there is no word.
    fn load_control(&self, offset: usize) -> u64;

    /// Has the cache line at `position` fetched, without waiting for it. A hint: nothing happens where it cannot.
    #[inline(always)]
    fn prefetch(&self, position: u64) {
        let _ = position;
    }
}

/// [`Words`] that this process may write.
pub trait WordsMut: Words {
    /// Stores the word at `position`, `Relaxed`.
    fn store(&mut self, position: u64, value: u64);

    /// Stores the word at `position`, `Release`: the commit of a record.
    fn store_release(&mut self, position: u64, value: u64);

    /// Copies `src` in, from `position` (a multiple of 8) plus `offset` (a multiple of 8) on.
    ///
    /// # Panics
    ///
    /// If `offset + src.len()` is more than the capacity.
    fn write(&mut self, position: u64, offset: usize, src: &[u8]);

    /// Stores the control word at byte `offset` of the header before the ring, `Release`.
    ///
    /// # Panics
    ///
    /// If there is no word.
    fn store_control(&mut self, offset: usize, value: u64);
}

/// [`Words`] on the heap, for models and tests: every access is an atomic that loom or Miri sees.
#[derive(Debug)]
pub struct HeapWords {
    header: std::sync::Arc<[AtomicU64]>,
    words: std::sync::Arc<[AtomicU64]>,
}

impl HeapWords {
    /// `capacity` bytes of zeroes, without a header.
    ///
    /// # Panics
    ///
    /// If `capacity` is not a power of two of at least 8.
    pub fn new(capacity: usize) -> HeapWords {
        HeapWords::with_header(0, capacity)
    }

    /// `capacity` bytes of zeroes, and before them `header` bytes (a multiple of 8) of control words.
    ///
    /// # Panics
    ///
    /// If `capacity` is not a power of two of at least 8.
    pub fn with_header(header: usize, capacity: usize) -> HeapWords {
        assert!(
            capacity.is_power_of_two() && capacity >= 8,
            "capacity {capacity} is not a power of two >= 8"
        );
        let zeroes = |len: usize| (0..len / 8).map(|_| AtomicU64::new(0)).collect();
        HeapWords {
            header: zeroes(header),
            words: zeroes(capacity),
        }
    }

    /// Another handle on the same words, as a second mapping would be.
    pub fn map(&self) -> HeapWords {
        HeapWords {
            header: self.header.clone(),
            words: self.words.clone(),
        }
    }

    fn word(&self, position: u64) -> &AtomicU64 {
        &self.words[(position / 8) as usize % self.words.len()]
    }
}

impl Words for HeapWords {
    fn capacity(&self) -> u64 {
        self.words.len() as u64 * 8
    }

    fn load(&self, position: u64) -> u64 {
        self.word(position).load(Ordering::Relaxed)
    }

    fn read(&self, position: u64, offset: usize, dst: &mut [u8]) {
        assert!(offset as u64 + dst.len() as u64 <= self.capacity());
        let mut at = position.wrapping_add(offset as u64);
        let mut rest = dst;
        while !rest.is_empty() {
            let skip = (at % 8) as usize;
            let word = self.load(at).to_ne_bytes();
            let (head, tail) = rest.split_at_mut(rest.len().min(8 - skip));
            head.copy_from_slice(&word[skip..skip + head.len()]);
            at = at.wrapping_add(head.len() as u64);
            rest = tail;
        }
    }

    fn load_control(&self, offset: usize) -> u64 {
        self.header[offset / 8].load(Ordering::Relaxed)
    }
}

impl WordsMut for HeapWords {
    fn store(&mut self, position: u64, value: u64) {
        self.word(position).store(value, Ordering::Relaxed);
    }

    fn store_release(&mut self, position: u64, value: u64) {
        self.word(position).store(value, Ordering::Release);
    }

    fn write(&mut self, position: u64, offset: usize, src: &[u8]) {
        assert!(offset as u64 + src.len() as u64 <= self.capacity());
        for (i, chunk) in src.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.store(position + (offset + 8 * i) as u64, u64::from_ne_bytes(word));
        }
    }

    fn store_control(&mut self, offset: usize, value: u64) {
        self.header[offset / 8].store(value, Ordering::Release);
    }
}

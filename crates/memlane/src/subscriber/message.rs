use std::{fmt, marker::PhantomData, ops::Deref};

use memlane_region::{Remote, pool::Chunk, ring::RingReader};

use super::{Held, Trust, page::Page, trust::Trusted};

/// A message, in place, in the publisher's memory. Dropping it releases that memory to be written again.
///
/// Its bytes are copied out, since the publisher, if it is broken or hostile, may be changing them: what is
/// checked must be the copy. Over a [`Trusted`] publisher it is a `&[u8]` as well.
#[must_use = "a message is released when it is dropped"]
pub struct Message<'a, T: Trust = super::Untrusted> {
    ring: &'a mut RingReader<Remote, Page>,
    /// Where it is, if it is not in the ring.
    chunk: Option<Chunk<'a>>,
    len: usize,
    trust: PhantomData<T>,
}

impl<'a, T: Trust> Message<'a, T> {
    #[inline(always)]
    pub(super) fn in_ring(ring: &'a mut RingReader<Remote, Page>, len: usize) -> Message<'a, T> {
        Message {
            ring,
            chunk: None,
            len,
            trust: PhantomData,
        }
    }

    #[inline(always)]
    pub(super) fn in_chunk(
        ring: &'a mut RingReader<Remote, Page>,
        chunk: Chunk<'a>,
    ) -> Message<'a, T> {
        Message {
            ring,
            chunk: Some(chunk),
            len: chunk.len(),
            trust: PhantomData,
        }
    }

    /// Its length in bytes, which does not change.
    #[inline(always)]
    #[allow(clippy::len_without_is_empty)] // below
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes. Messages may be empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies it into `dst`, or as much of it as `dst` holds; how many bytes that was.
    #[inline(always)]
    pub fn copy_to(&self, dst: &mut [u8]) -> usize {
        let len = self.len.min(dst.len());
        self.read(0, &mut dst[..len]);
        len
    }

    /// Copies `dst.len()` bytes from `offset` on.
    ///
    /// # Panics
    ///
    /// If the message ends before that.
    #[inline]
    pub fn read_at(&self, offset: usize, dst: &mut [u8]) {
        let len = dst.len();
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes from {offset} on, of a message of {}",
            self.len
        );
        self.read(offset, dst);
    }

    /// A copy of it.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut copy = vec![0; self.len];
        self.read(0, &mut copy);
        copy
    }

    /// Replaces the contents of `copy` by a copy of it, without allocating where they fit.
    #[inline]
    pub fn copy_into(&self, copy: &mut Vec<u8>) {
        copy.resize(self.len, 0);
        self.read(0, copy);
    }

    /// Keeps it beyond the next one. A long message stays where it is, a short one is copied.
    ///
    /// # Errors
    ///
    /// The message, if it is a long one and 64 of them are held already: drop one of those, or copy this one.
    pub fn hold(self) -> Result<Held<T>, Message<'a, T>> {
        match self.chunk {
            None => Ok(Held::copy(self.to_vec())),
            Some(chunk) => match chunk.hold(self.ring.page().holds()) {
                // Before the record is released, which dropping `self` does.
                Ok(held) => Ok(Held::chunk(held)),
                Err(_) => Err(self),
            },
        }
    }

    #[inline(always)]
    fn read(&self, offset: usize, dst: &mut [u8]) {
        match &self.chunk {
            None => self.ring.read(offset, dst),
            Some(chunk) => chunk.read(offset, dst),
        }
    }
}

impl Deref for Message<'_, Trusted> {
    type Target = [u8];

    #[allow(unsafe_code)]
    #[inline(always)]
    fn deref(&self) -> &[u8] {
        // SAFETY: whoever made this subscriber a trusted one promised that the publisher does not write a
        // record, or the chunk it names, before it is released (`SubscriberBuilder::trust_publisher`), and it is
        // released on drop.
        unsafe {
            match &self.chunk {
                None => self.ring.payload(self.len),
                Some(chunk) => chunk.bytes(),
            }
        }
    }
}

impl<T: Trust> Drop for Message<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.ring.release();
    }
}

impl<T: Trust> fmt::Debug for Message<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

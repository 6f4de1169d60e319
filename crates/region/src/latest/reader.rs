use rustix::fd::OwnedFd;
use zerocopy::{FromBytes, IntoBytes};

use super::{
    layout::{self, LENGTH, LINE, SLOTS, VALUE},
    ring_len,
};
use crate::{
    Refused, Remote, page_size,
    primitive::{Ordering, fence},
    words::Words,
};

/// How often a read begins anew before it gives up.
const ATTEMPTS: u32 = if cfg!(memlane_loom) { 3 } else { 64 };

/// The greatest number that a slot's word can tell.
const LAST: u64 = u64::MAX >> 1;

/// A value that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// Its number: 1 for the first that was ever written, and one more each time. The difference to the one read
    /// before tells how many were missed in between.
    pub sequence: u64,
    /// Its length in bytes.
    pub len: usize,
}

/// Why there is no value to be had. What the buffer contains then means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The writer has overtaken every attempt: it writes values faster than they can be read, or it does not
    /// keep to the rules. The next call may do better.
    #[error("no value stood still during {attempts} attempts to read it")]
    Unstable {
        /// How often it was tried.
        attempts: u32,
    },
    /// No honest writer leaves such a length.
    #[error("corrupt cell: expected a value of at most {max} bytes, found {len} as the length")]
    Corrupt {
        /// The length found, in bytes.
        len: u64,
        /// The longest that the cell was made for, in bytes.
        max: usize,
    },
    /// The value is of another length than the one asked for, or longer than the buffer. It does not count as
    /// read.
    #[error("expected a value of {expected} bytes, found one of {found}")]
    Length {
        /// Length of the buffer, or of the type, in bytes.
        expected: usize,
        /// Length of the value, in bytes.
        found: usize,
    },
}

/// A reader of a cell. There can be any number of them, and nobody knows of them.
#[derive(Debug)]
pub struct LatestReader<M = Remote> {
    memory: M,
    max_len: usize,
    stride: u64,
    /// What was read last.
    seen: Seen,
}

/// An update that was read, and where: computed once, since it is looked at far more often than it changes.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The first word of its slot; 0 if nothing was read yet.
    word: u64,
    /// Its slot.
    at: u64,
    /// The slot of the next update.
    next_at: u64,
    /// Its length in bytes, once it was found twice: then the writer is quiet, and the next read looks at the next
    /// slot only. Longer than any buffer until then: the next read looks at all slots at once.
    len: usize,
}

impl Seen {
    fn new(sequence: u64, len: usize, stride: u64) -> Seen {
        Seen {
            word: layout::written(sequence),
            at: layout::slot(sequence, stride),
            next_at: layout::slot(sequence + 1, stride),
            len,
        }
    }
}

impl LatestReader<Remote> {
    /// Verifies a received descriptor, as [`Remote::open`] does, and maps it as a cell for values of up to
    /// `max_len` bytes, which the writer's side has announced. `quota` in bytes is for the whole region.
    ///
    /// # Errors
    ///
    /// [`Refused`], with the reason and the descriptor.
    pub fn open(
        descriptor: OwnedFd,
        max_len: usize,
        quota: usize,
    ) -> Result<LatestReader<Remote>, Box<Refused>> {
        match ring_len(max_len) {
            Ok(ring) => {
                let memory = Remote::open(descriptor, page_size(), ring, quota)?;
                Ok(LatestReader::new(memory, max_len))
            }
            Err(error) => Err(Box::new(Refused { error, descriptor })),
        }
    }
}

impl<M: Words> LatestReader<M> {
    /// A reader of a cell for values of up to `max_len` bytes.
    ///
    /// # Panics
    ///
    /// If the memory is shorter than [`ring_len`] says.
    pub fn new(memory: M, max_len: usize) -> LatestReader<M> {
        let stride = layout::stride(memory.capacity(), max_len);
        LatestReader {
            stride,
            memory,
            max_len,
            seen: Seen::new(0, usize::MAX, stride),
        }
    }

    /// The longest value, in bytes.
    pub fn max_len(&self) -> usize {
        self.max_len
    }

    /// The number of the update that was read last, 0 before the first.
    pub fn sequence(&self) -> u64 {
        layout::sequence(self.seen.word)
    }

    /// Goes on where another reader of this cell has been, to which the update with this number was the last: that one is no news, and
    /// no older one is read. A number that no update reaches is [`ReadError::Unstable`] from then on.
    pub fn begin_at(&mut self, sequence: u64) {
        self.seen = Seen::new(sequence.min(LAST), usize::MAX, self.stride);
    }

    /// The memory below.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Whether there is a newer value than the one read last. One load, of a line that a quiet writer leaves alone.
    ///
    /// A reader that sleeps arms its flag, fences (`SeqCst`), and looks here once more before it does.
    #[inline(always)]
    pub fn changed(&self) -> bool {
        // The next update goes to one slot only. If a later one is being written there, the next was complete.
        let next = self.seen.word.wrapping_add(layout::written(1));
        let word = self.memory.load(self.seen.next_at);
        word >= next && word != layout::begun(next)
    }

    /// Copies the latest value to the beginning of `dst`, and says which update it is; `None` before the first.
    ///
    /// It is the latest that was complete when the call began, or a newer one, and never older than what was
    /// read before. A writer that was stopped or killed while writing has no influence. The bytes are those
    /// of one update, but what they say is the writer's business: check it.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; [`Length`](ReadError::Length) if `dst` is shorter than the value.
    #[inline(always)]
    pub fn read(&mut self, dst: &mut [u8]) -> Result<Option<Update>, ReadError> {
        if self.read_again(dst) {
            return Ok(Some(Update {
                sequence: self.sequence(),
                len: self.seen.len,
            }));
        }
        self.read_anew(dst)
    }

    /// Copies the latest value out as a `T`, with its sequence number; `None` before the first.
    ///
    /// ```
    /// use memlane_region::latest::{LatestReader, LatestWriter};
    ///
    /// let (mut writer, descriptor) = LatestWriter::<_>::create("pose", 24)?;
    /// let mut reader = LatestReader::open(descriptor, 24, 1 << 20)?;
    /// writer.write_value(&[1.0_f64, 2.0, 0.5])?;
    /// assert_eq!(reader.read_value::<[f64; 3]>()?, Some((1, [1.0, 2.0, 0.5])));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ReadError`]; [`Length`](ReadError::Length) if the value is not as long as a `T`.
    #[inline(always)]
    pub fn read_value<T: FromBytes + IntoBytes>(&mut self) -> Result<Option<(u64, T)>, ReadError> {
        let mut value = T::new_zeroed();
        let before = self.seen;
        match self.read(value.as_mut_bytes())? {
            None => Ok(None),
            Some(Update { sequence, len }) if len == size_of::<T>() => Ok(Some((sequence, value))),
            Some(Update { len, .. }) => {
                self.seen = before;
                Err(ReadError::Length {
                    expected: size_of::<T>(),
                    found: len,
                })
            }
        }
    }

    /// Copies what was read last, if that is still the latest. False if not, or if nothing was read yet.
    #[inline(always)]
    fn read_again(&self, dst: &mut [u8]) -> bool {
        let Seen { word, at, len, .. } = self.seen;
        if self.changed() || len > dst.len() {
            return false;
        }
        self.memory.read(at, VALUE, &mut dst[..len]);
        // Pairs with the writer's fence before the first byte of a later update. Where this is the same update as
        // before, its length is.
        fence(Ordering::Acquire);
        self.memory.load(at) == word
    }

    #[inline(never)]
    fn read_anew(&mut self, dst: &mut [u8]) -> Result<Option<Update>, ReadError> {
        for _ in 0..ATTEMPTS {
            match self.attempt(dst)? {
                // What this attempt has seen, the next one sees too: it gets further.
                Attempt::Overtaken => fence(Ordering::Acquire),
                Attempt::Empty => return Ok(None),
                Attempt::Value(Update { len, .. }) if len > dst.len() => {
                    return Err(ReadError::Length {
                        expected: dst.len(),
                        found: len,
                    });
                }
                Attempt::Value(update) => {
                    let quiet = update.sequence == self.sequence();
                    let len = if quiet { update.len } else { usize::MAX };
                    self.seen = Seen::new(update.sequence, len, self.stride);
                    return Ok(Some(update));
                }
            }
        }
        Err(ReadError::Unstable { attempts: ATTEMPTS })
    }

    /// Finds the newest complete update, copies it, and looks whether it was left alone meanwhile.
    fn attempt(&self, dst: &mut [u8]) -> Result<Attempt, ReadError> {
        // No word says which slot is the newest: that would be one more line to wait for, and only then could
        // the slot's be asked for. These loads do not depend on one another.
        for slot in 0..SLOTS {
            self.memory.prefetch(layout::slot(slot, self.stride) + LINE);
        }
        let mut newest = 0;
        for slot in 0..SLOTS {
            let word = self.memory.load(layout::slot(slot, self.stride));
            newest = newest.max(layout::complete(word));
        }
        let sequence = layout::sequence(newest);
        if newest == 0 || newest < self.seen.word {
            return Ok(self.nothing_newer());
        }
        // Pairs with the Release store of the word: length and value are there.
        fence(Ordering::Acquire);
        // Of the number, not of where it stood: a number in the wrong slot fails the second look.
        let at = layout::slot(sequence, self.stride);
        let len = self.memory.load(at + LENGTH);
        if len > self.max_len as u64 {
            return Err(ReadError::Corrupt {
                len,
                max: self.max_len,
            });
        }
        let len = len as usize;
        let copied = len.min(dst.len());
        self.memory.read(at, VALUE, &mut dst[..copied]);
        // Pairs with the writer's fence before the first byte of a later update.
        fence(Ordering::Acquire);
        if self.memory.load(at) != newest {
            return Ok(Attempt::Overtaken);
        }
        Ok(Attempt::Value(Update { sequence, len }))
    }

    /// No complete update that is new enough: there was none yet, or the words are of different moments.
    #[cold]
    fn nothing_newer(&self) -> Attempt {
        let begun = (0..SLOTS)
            .map(|slot| layout::sequence(self.memory.load(layout::slot(slot, self.stride))));
        // At most the first one has begun, and nothing was read before.
        if self.seen.word == 0 && begun.max() <= Some(1) {
            return Attempt::Empty;
        }
        Attempt::Overtaken
    }
}

enum Attempt {
    Value(Update),
    /// Nothing was ever written.
    Empty,
    /// Bytes of two updates, or none.
    Overtaken,
}

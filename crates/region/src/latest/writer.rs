use std::{convert::Infallible, sync::Arc};

use rustix::fd::OwnedFd;
use zerocopy::{Immutable, IntoBytes};

use super::{
    layout::{self, LENGTH, VALUE},
    ring_len,
};
use crate::{
    Error, Options, Shared,
    primitive::{Ordering, fence, fence_light},
    ring::{Joined, Roster, STREAMED},
    words::WordsMut,
};

/// A reader that sleeps until the value changes, as the writer sees it. Those that only look need not be known.
pub trait Watcher {
    /// Wakes the reader if it says that it sleeps. Called after every update, behind a full fence; the writer
    /// waits for it, so it must not block.
    fn wake(&self);
}

/// Nobody sleeps.
impl Watcher for Infallible {
    fn wake(&self) {
        match *self {}
    }
}

/// A value longer than the cell was made for. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a value of at most {max} bytes, got one of {len}")]
pub struct TooLong {
    /// Length of the value, in bytes.
    pub len: usize,
    /// What the cell takes, in bytes.
    pub max: usize,
}

/// The one writer of a cell. It waits for nobody, whatever readers do.
///
/// ```
/// use memlane_region::latest::{LatestReader, LatestWriter};
///
/// let (mut writer, descriptor) = LatestWriter::<_>::create("pose", 64)?;
/// // ... the descriptor travels to another process, which opens it:
/// let mut reader = LatestReader::open(descriptor, 64, 1 << 20)?;
///
/// let mut value = [0; 64];
/// assert_eq!(reader.read(&mut value)?, None);
/// writer.write(b"north")?;
/// writer.write(b"south-east")?;
/// let update = reader.read(&mut value)?.expect("a value");
/// assert_eq!(update.sequence, 2);
/// assert_eq!(&value[..update.len], b"south-east");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LatestWriter<M = Shared, W = Infallible> {
    memory: M,
    max_len: usize,
    stride: u64,
    /// Of the last complete update.
    sequence: u64,
    roster: Arc<Roster<W>>,
    /// Of the roster, as `watchers` are.
    epoch: u64,
    asymmetric: bool,
    watchers: Vec<Joined<W>>,
}

impl<W: Watcher> LatestWriter<Shared, W> {
    /// Makes a cell for values of up to `max_len` bytes, in a region of one page and [`ring_len`] bytes that is
    /// made as `options` say (a name or [`Options`]). Its pages are touched, so that no update faults.
    ///
    /// The descriptor beside it is the permission to read the cell, to be sent to others; it is the caller's.
    ///
    /// # Errors
    ///
    /// Those of [`Shared::create`].
    pub fn create(
        options: impl Into<Options>,
        max_len: usize,
    ) -> Result<(LatestWriter<Shared, W>, OwnedFd), Error> {
        let (memory, descriptor) = Shared::create(options, 1, ring_len(max_len)?)?;
        memory.prefault()?;
        Ok((LatestWriter::new(memory, max_len), descriptor))
    }

    /// Has `fill` write a value of `len` bytes in place, and makes it the latest. Returns its sequence number.
    ///
    /// `fill` gets what a much older update left there. Readers see the value before until `fill` is through;
    /// if it panics, they go on seeing that.
    ///
    /// # Errors
    ///
    /// [`TooLong`]; `fill` is not called then.
    #[inline(always)]
    pub fn write_with(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<u64, TooLong> {
        let at = self.begin(len)?;
        fill(self.memory.bytes_mut(at, VALUE, len));
        Ok(self.commit(at, len))
    }
}

impl<M: WordsMut, W: Watcher> LatestWriter<M, W> {
    /// A writer over zeroed memory, for values of up to `max_len` bytes. Nothing is written yet.
    ///
    /// # Panics
    ///
    /// If the memory is shorter than [`ring_len`] says.
    pub fn new(memory: M, max_len: usize) -> LatestWriter<M, W> {
        let roster = Arc::new(Roster::new(0));
        LatestWriter {
            stride: layout::stride(memory.capacity(), max_len),
            memory,
            max_len,
            sequence: 0,
            asymmetric: roster.asymmetric(),
            roster,
            epoch: 0,
            watchers: Vec::new(),
        }
    }

    /// Where readers that sleep join and leave. The [`sequence`](Joined::sequence) that [`Roster::join`] answers is that
    /// of an update which the reader can see already.
    pub fn roster(&self) -> &Arc<Roster<W>> {
        &self.roster
    }

    /// The memory below.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// The longest value, in bytes.
    pub fn max_len(&self) -> usize {
        self.max_len
    }

    /// The number of the latest update: 0 before the first.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Makes `value` the latest. Returns its sequence number: 1 for the first, and one more each time.
    ///
    /// # Errors
    ///
    /// [`TooLong`].
    #[inline(always)]
    pub fn write(&mut self, value: &[u8]) -> Result<u64, TooLong> {
        let at = self.begin(value.len())?;
        self.memory.write(at, VALUE, value);
        Ok(self.commit(at, value.len()))
    }

    /// Makes `value` the latest, as its bytes are in memory.
    ///
    /// # Errors
    ///
    /// [`TooLong`].
    #[inline(always)]
    pub fn write_value<T: IntoBytes + Immutable + ?Sized>(
        &mut self,
        value: &T,
    ) -> Result<u64, TooLong> {
        self.write(value.as_bytes())
    }

    /// Takes the slot of the oldest update away from readers.
    #[inline(always)]
    fn begin(&mut self, len: usize) -> Result<u64, TooLong> {
        if len > self.max_len {
            return Err(TooLong {
                len,
                max: self.max_len,
            });
        }
        let next = self.sequence + 1;
        let at = layout::slot(next, self.stride);
        self.memory.store(at, layout::begun(layout::written(next)));
        // Pairs with the fence behind a reader's copy: if that has any of the bytes stored from here on, its
        // second load of the slot's word shows that they are being written.
        if (len as u64) < STREAMED {
            fence(Ordering::Release);
        } else {
            // A long value may be written with stores that overtake the one above (MOVNTDQ, as memcpy does from some
            // hundred KiB on), for which x86-64 has no lesser fence. Those of the value and the commit need none: who
            // uses such stores ends with one (SFENCE).
            fence(Ordering::SeqCst);
        }
        Ok(at)
    }

    #[inline(always)]
    fn commit(&mut self, at: u64, len: usize) -> u64 {
        let sequence = self.sequence + 1;
        self.memory.store(at + LENGTH, len as u64);
        self.memory.store_release(at, layout::written(sequence));
        self.sequence = sequence;
        self.roster.set_progress(8 * sequence, sequence);
        self.tell();
        sequence
    }

    /// Wakes those who sleep, and takes up who came and went.
    #[inline(always)]
    fn tell(&mut self) {
        // Pairs with the fence of a reader between saying that it sleeps and looking again, and with the one in
        // `Roster::join`, which carries the expensive half where nobody can be asleep yet.
        fence_light(self.asymmetric && self.watchers.is_empty());
        if self.roster.epoch() != self.epoch {
            self.take_roster();
        }
        for watcher in &self.watchers {
            watcher.reader.wake();
        }
    }

    #[cold]
    fn take_roster(&mut self) {
        (self.epoch, self.watchers, _) = self.roster.snapshot();
        self.asymmetric = self.roster.asymmetric();
        // For those who have just joined: they may have gone to sleep already.
        fence(Ordering::SeqCst);
    }
}

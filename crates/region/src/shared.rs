use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fd::{AsFd, OwnedFd};

use crate::{
    Error, HugePages, Options, PageKind,
    copy::copy_in,
    gate::LIVE_SEALS,
    limits,
    mapping::{Mapping, check_ring, page_size},
    memory,
    words::{Words, WordsMut},
};

/// A live region of mine: a sealed memfd that this process writes and everyone else can only read.
///
/// It consists of a header (control words) and a ring that is mapped twice in a row, so that no record ever
/// wraps; a region without a ring is a control page. The memory is allocated when it is created, and freed
/// by the kernel when the last process that has it is gone, however it went.
///
/// The region is not inherited over fork(2): a child must not touch it.
///
/// ```
/// use memlane_region::{Remote, Shared, page_size};
/// use std::sync::atomic::Ordering;
///
/// let (mine, descriptor) = Shared::create("example", page_size(), 0)?;
/// // ... the descriptor travels to another process, which opens it:
/// let theirs = Remote::open(descriptor, page_size(), 0, 1 << 20)?;
/// mine.word(64).store(7, Ordering::Relaxed);
/// assert_eq!(theirs.load_word(64), 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Shared {
    pub(crate) mapping: Mapping,
}

impl Shared {
    /// Creates a region of `header` bytes (rounded up to whole pages, at least one) and a ring of `ring`
    /// bytes (0, or a power of two of at least a page). `options` are a name or [`Options`].
    ///
    /// The descriptor beside the region is the permission to map it read-only, to be sent to others; it is
    /// the caller's, and the region lives on without it.
    ///
    /// # Errors
    ///
    /// As [`Region::create`](crate::Region::create), and [`Error::Length`] if the lengths are not possible.
    pub fn create(
        options: impl Into<Options>,
        header: usize,
        ring: usize,
    ) -> Result<(Shared, OwnedFd), Error> {
        check_ring(ring)?;
        let len = header
            .max(1)
            .checked_next_multiple_of(page_size())
            .and_then(|header| header.checked_add(ring))
            .unwrap_or(usize::MAX);
        let mut options = options.into();
        if options.huge_pages != HugePages::Never {
            // A ring's second image begins behind a page of control words, where hugetlb pages cannot.
            options.huge_pages = HugePages::Transparent;
        }
        let memory = memory::create(&options, len)?;
        let fd = memory.fd.as_fd();
        // Mapped before it is sealed, since after FUTURE_WRITE not even this process can map it writable.
        let mapping = Mapping::new(fd, len - ring, ring, true, options.dump);
        let mapping = mapping.map_err(limits::mapping(len, len + ring))?;
        let range = mapping.address_space();
        memory::fill(&memory, range, &options)?;
        if options.lock {
            // One image: the kernel evicts no page that is locked anywhere.
            range.lock(len).map_err(limits::locking(len))?;
        }
        rustix::fs::fcntl_add_seals(fd, LIVE_SEALS).map_err(Error::os("seal", len))?;
        Ok((Shared { mapping }, memory.fd))
    }

    /// Touches every page now, so that no message pays for a page fault later (2.5 us each). MADV_POPULATE
    /// is known since Linux 5.14; on older kernels this does nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if the kernel cannot.
    pub fn prefault(&self) -> Result<(), Error> {
        let populated = self.mapping.address_space().populate();
        populated.map_err(Error::os("prefault", self.len()))
    }

    /// Which pages it is made of, asked of the kernel: not for a hot path.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] without /proc.
    pub fn page_kind(&self) -> Result<PageKind, Error> {
        self.mapping.address_space().page_kind(self.len())
    }

    /// The control word at byte `offset` of the header.
    ///
    /// Only this process stores to it; others load it, `Relaxed`.
    ///
    /// # Panics
    ///
    /// If `offset` is not a multiple of 8 or outside of the header.
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        self.mapping.header_word(offset)
    }

    /// Length of the whole region (header and ring), in bytes.
    #[allow(clippy::len_without_is_empty)] // a region is never empty
    pub fn len(&self) -> usize {
        self.mapping.header_len() + self.mapping.ring_len()
    }
}

impl Shared {
    /// `len` bytes of the ring, `offset` bytes after `position` (a multiple of 8).
    ///
    /// # Panics
    ///
    /// If `offset + len` is more than the ring's capacity.
    #[allow(unsafe_code)]
    #[inline(always)]
    pub fn bytes(&self, position: u64, offset: usize, len: usize) -> &[u8] {
        let bytes = self.mapping.range(position, offset, len);
        // SAFETY: `len` bytes are mapped there. Nobody else can write them (seals), and this process only through
        // `&mut self`.
        unsafe { std::slice::from_raw_parts(bytes, len) }
    }

    /// `len` bytes of the ring, `offset` bytes after `position` (a multiple of 8), to be written in place.
    ///
    /// They contain what was written there before. A `&mut` is right here, where it would not be over a
    /// [`Remote`](crate::Remote): no other process can write these bytes, and this one has them borrowed.
    ///
    /// # Panics
    ///
    /// If `offset + len` is more than the ring's capacity.
    #[allow(unsafe_code)]
    #[inline(always)]
    pub fn bytes_mut(&mut self, position: u64, offset: usize, len: usize) -> &mut [u8] {
        let bytes = self.mapping.range(position, offset, len);
        // SAFETY: `len` bytes are mapped there. Exclusive: nobody else can write (seals), and `self` is borrowed.
        unsafe { std::slice::from_raw_parts_mut(bytes, len) }
    }
}

impl Words for Shared {
    fn capacity(&self) -> u64 {
        self.mapping.ring_len() as u64
    }

    #[inline(always)]
    fn load(&self, position: u64) -> u64 {
        self.mapping.ring_word(position).load(Ordering::Relaxed)
    }

    fn read(&self, position: u64, offset: usize, dst: &mut [u8]) {
        self.mapping.read(position, offset, dst);
    }

    #[inline(always)]
    fn load_control(&self, offset: usize) -> u64 {
        self.word(offset).load(Ordering::Relaxed)
    }
}

impl WordsMut for Shared {
    #[inline(always)]
    fn store(&mut self, position: u64, value: u64) {
        self.mapping
            .ring_word(position)
            .store(value, Ordering::Relaxed);
    }

    #[inline(always)]
    fn store_release(&mut self, position: u64, value: u64) {
        self.mapping
            .ring_word(position)
            .store(value, Ordering::Release);
    }

    #[inline(always)]
    fn write(&mut self, position: u64, offset: usize, src: &[u8]) {
        copy_in(self.bytes_mut(position, offset, src.len()), src);
    }

    #[inline(always)]
    fn store_control(&mut self, offset: usize, value: u64) {
        self.word(offset).store(value, Ordering::Release);
    }
}

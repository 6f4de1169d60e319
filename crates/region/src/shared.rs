use std::sync::atomic::{AtomicU64, Ordering};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{FallocateFlags, MemfdFlags, Mode, SealFlags},
    io::Errno,
};

use crate::{
    Error,
    copy::copy_in,
    mapping::{Mapping, check_ring, page_size},
    words::{Words, WordsMut},
};

/// The seals of a live region: nobody can resize it, map it writable, write to it by system call, punch
/// holes into it, or add seals; the creator's mapping, made before, goes on writing.
pub(crate) const LIVE_SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::FUTURE_WRITE)
    .union(SealFlags::SEAL);

/// From this length on, a region is compared with the machine's memory before it is allocated.
const LARGE: usize = 64 << 20;

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
    mapping: Mapping,
}

impl Shared {
    /// Creates a region of `header` bytes (rounded up to whole pages, at least one) and a ring of `ring`
    /// bytes (0, or a power of two of at least a page). `name` shows up in `/proc/PID/maps` as
    /// `memfd:name`, nowhere else; at most 249 bytes of it (memfd_create(2)).
    ///
    /// The descriptor beside the region is the permission to map it read-only, to be sent to others; it is
    /// the caller's, and the region lives on without it.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] if the lengths are not possible, [`Error::Os`] if the kernel refuses, for lack of
    /// memory above all.
    pub fn create(name: &str, header: usize, ring: usize) -> Result<(Shared, OwnedFd), Error> {
        let page = page_size();
        check_ring(ring)?;
        let too_long = || Error::Length {
            what: "a region",
            len: u64::MAX,
            expected: "at most 2^46 bytes",
        };
        let header = header
            .max(1)
            .checked_next_multiple_of(page)
            .ok_or_else(too_long)?;
        let len = header
            .checked_add(ring)
            .filter(|&len| len <= 1 << 46)
            .ok_or_else(too_long)?;

        let os = |what| {
            move |errno: Errno| Error::Os {
                what,
                len,
                source: errno.into(),
            }
        };
        // fallocate would not fail for lack of memory, but take what there is until the OOM killer steps in.
        if len > LARGE && len as u64 > rustix::system::sysinfo().totalram as u64 {
            return Err(os("allocate")(Errno::NOMEM));
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // NOEXEC_SEAL is known since Linux 6.3; older kernels answer EINVAL.
        let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
            result => result,
        }
        .map_err(os("create"))?;
        // The order matters: 0600 first, or strangers could set attributes on it or commit its holes; memory
        // before mapping, so that shortage is an error here; mapping before seals, since after
        // FUTURE_WRITE not even this process can map it writable again.
        rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(os("restrict"))?;
        rustix::fs::ftruncate(&fd, len as u64).map_err(os("size"))?;
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, len as u64)
            .map_err(os("allocate"))?;
        let mapping = Mapping::new(fd.as_fd(), header, ring, true).map_err(|source| Error::Os {
            what: "map",
            len,
            source,
        })?;
        rustix::fs::fcntl_add_seals(&fd, LIVE_SEALS).map_err(os("seal"))?;
        Ok((Shared { mapping }, fd))
    }

    /// Touches every page now, so that no message pays for a page fault later (2.5 us each). MADV_POPULATE
    /// is known since Linux 5.14; on older kernels this does nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if the kernel cannot.
    pub fn prefault(&self) -> Result<(), Error> {
        match self.mapping.populate(true) {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
            result => result.map_err(|source| Error::Os {
                what: "prefault",
                len: self.len(),
                source,
            }),
        }
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
}

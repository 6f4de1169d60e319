//! Mappings of memfds, with an optional mirror, and the word accesses on them.
//!
//! # Safety
//!
//! The pages here are outside of every allocation Rust knows of: their address comes from mmap(2), and other
//! processes see them. What makes each access in this module sound:
//!
//! 1. **In bounds.** A [`Mapping`] owns `header + 2 * ring` (or `header`) bytes of address space until it is
//!    dropped. Positions are masked with `capacity - 1`, so no value from a peer can leave it, and a range
//!    of up to `capacity` bytes that starts inside the ring ends inside its mirror.
//! 2. **No SIGBUS.** A peer's memory is mapped only by [`Remote::open`](crate::Remote::open) after the seals
//!    SHRINK and FUTURE_WRITE were seen on it, so it can neither be truncated nor punched (memfd_create(2);
//!    measured for all ways in). Own memory is allocated before it is handed out.
//! 3. **One size per address.** Words are only ever accessed as 64-bit atomics, 8-aligned.
//! 4. **Read-only pages.** A mapping of a peer's memory is `PROT_READ`; only `Relaxed` loads are done on it.
//! 5. **Mirrors.** The ring's second image is the same memory at another address. Header words are always
//!    accessed at their first image. Payload bytes of one record are accessed through one image; the same
//!    bytes are reused through the other only a lap later, after the refresh that loaded the readers'
//!    cursors and fenced, and addresses from mmap are opaque to the compiler.

use std::{
    io,
    ptr::NonNull,
    sync::{Arc, atomic::AtomicU64},
};

use rustix::{
    fd::BorrowedFd,
    mm::{MapFlags, ProtFlags},
};

use crate::{
    Error,
    copy::copy_out,
    range::{Care, Range},
};

/// The size of a page here, in bytes: lengths of regions are multiples of it.
pub fn page_size() -> usize {
    rustix::param::page_size()
}

/// Whether a ring can have this length.
pub(crate) fn check_ring(ring: usize) -> Result<(), Error> {
    if ring == 0 || (ring.is_power_of_two() && ring >= page_size()) {
        return Ok(());
    }
    Err(Error::Length {
        what: "a ring",
        len: ring as u64,
        expected: "0, or a power of two of at least one page",
    })
}

/// A shared mapping of one memfd: `header` bytes, then `ring` bytes that are mapped twice in a row.
///
/// A clone is the same mapping: it is unmapped with the last of them.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    header: usize,
    ring: usize,
    /// Where masked positions count from, and the mask; without a ring, both stay inside the header.
    ring_base: NonNull<u8>,
    mask: usize,
    range: Arc<Range>,
}

// SAFETY: the memory is shared between processes to begin with; every access through `&Mapping` is an atomic
// load or store, or one of the unsafe methods, whose callers answer for it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `header + ring` bytes of `fd`, the ring twice. Both are multiples of the page size, `header` at
    /// least one page, `ring` zero or a power of two.
    ///
    /// The descriptor is not needed afterwards: the mapping keeps the memory alive. The mapping is not
    /// inherited over fork(2): a child's copy would veto the freezing of the region, and its writes would be
    /// a second writer.
    pub(crate) fn new(
        fd: BorrowedFd<'_>,
        header: usize,
        ring: usize,
        writable: bool,
        dump: bool,
    ) -> io::Result<Mapping> {
        debug_assert!(header >= page_size() && header % page_size() == 0);
        debug_assert!(ring == 0 || (ring.is_power_of_two() && ring % page_size() == 0));
        let len = header.checked_add(ring).ok_or(io::ErrorKind::OutOfMemory)?;
        let prot = if writable {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        // Behind it, room for the ring's second image. Where huge pages fit into the first, they fit into that: both
        // begin as far behind a multiple of their size as the file does.
        let mut range = Range::map(fd, 0, len, ring, prot, MapFlags::SHARED)?;
        if ring > 0 {
            range.place(len, fd, header as u64, ring, prot, MapFlags::SHARED)?;
        }
        range.care(Care {
            dont_fork: true,
            dont_dump: !dump,
        })?;
        let base = range.base();
        Ok(Mapping {
            base,
            header,
            ring,
            // SAFETY: the header is the beginning of what was mapped.
            ring_base: unsafe { base.add(if ring > 0 { header } else { 0 }) },
            mask: if ring > 0 { ring - 1 } else { 7 },
            range: Arc::new(range),
        })
    }

    /// What of its address space is the file, once: header and ring.
    pub(crate) fn address_space(&self) -> &Range {
        &self.range
    }

    /// The 64-bit word at byte `offset` of the header.
    ///
    /// # Panics
    ///
    /// If the offset is unaligned or outside of the header; offsets are constants of this workspace.
    pub(crate) fn header_word(&self, offset: usize) -> &AtomicU64 {
        assert!(
            offset % 8 == 0 && offset + 8 <= self.header,
            "no word at byte {offset} of the header"
        );
        // SAFETY: in bounds and aligned as asserted (a mapping starts at a page); rule 3 of the module.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// `len` bytes of the header, from byte `offset` on.
    ///
    /// # Panics
    ///
    /// If `offset + len` is more than the header.
    #[inline(always)]
    pub(crate) fn header_range(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset.saturating_add(len) <= self.header,
            "{offset} + {len} bytes are over the header of {} bytes",
            self.header
        );
        // SAFETY: in bounds as asserted.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// Copies bytes of the header out, from byte `offset` on; see [`Words::read`](crate::Words::read).
    ///
    /// # Panics
    ///
    /// If `offset + dst.len()` is more than the header.
    #[inline(always)]
    pub(crate) fn read_header(&self, offset: usize, dst: &mut [u8]) {
        self.header_range(offset, dst.len());
        // SAFETY: the base is 8-aligned; the range ends inside the header, whole pages, and so do the words that
        // hold its ends (rules 1 and 2).
        unsafe { copy_out(self.base.as_ptr(), offset, dst) }
    }

    /// Address of byte `position` of the ring, in its first image. In bounds for `ring` bytes from there.
    #[inline(always)]
    pub(crate) fn ring_ptr(&self, position: u64) -> *mut u8 {
        // SAFETY: the masked offset is below `ring`, a power of two; without a ring it is below 8, and the
        // header, at least a page, is what it counts from.
        unsafe { self.ring_base.as_ptr().add(position as usize & self.mask) }
    }

    /// The 64-bit word at byte `position` (a multiple of 8) of the ring.
    #[inline(always)]
    pub(crate) fn ring_word(&self, position: u64) -> &AtomicU64 {
        debug_assert!(position % 8 == 0);
        // SAFETY: rules 1 and 3 of the module: masked, and 8-aligned once its low bits are cleared.
        unsafe { AtomicU64::from_ptr(self.ring_ptr(position & !7).cast()) }
    }

    /// `len` bytes of the ring, `offset` bytes after `position`, mapped from there on in one piece: a range of at
    /// most the capacity that starts inside the ring ends inside its mirror.
    ///
    /// # Panics
    ///
    /// If `offset + len` is more than the ring's capacity.
    #[inline(always)]
    pub(crate) fn range(&self, position: u64, offset: usize, len: usize) -> *mut u8 {
        self.check(offset, len);
        // SAFETY: rule 1, and the check.
        unsafe { self.ring_ptr(position).add(offset) }
    }

    #[inline(always)]
    fn check(&self, offset: usize, len: usize) {
        // Out of the way: formatting here would put both numbers on the stack, panic or not.
        #[cold]
        fn over(offset: usize, len: usize, ring: usize) -> ! {
            panic!("{offset} + {len} bytes are over the ring of {ring} bytes");
        }
        if offset.saturating_add(len) > self.ring {
            over(offset, len, self.ring);
        }
    }

    /// Has the line that holds byte `position` of the ring fetched, without waiting for it.
    #[inline(always)]
    pub(crate) fn prefetch(&self, position: u64) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: a hint, which touches nothing; the address is one of the ring's (rule 1).
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(self.ring_ptr(position).cast_const().cast());
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = position;
    }

    /// Copies bytes of the ring out; see [`Words::read`](crate::Words::read).
    #[inline(always)]
    pub(crate) fn read(&self, position: u64, offset: usize, dst: &mut [u8]) {
        self.check(offset, dst.len());
        // SAFETY: `position & !7` is 8-aligned in a page-aligned ring; the range is at most the capacity, so
        // it ends inside the mirror, and so do the words that hold its ends (rules 1 and 2).
        unsafe { copy_out(self.ring_ptr(position & !7), offset, dst) }
    }

    pub(crate) fn ring_len(&self) -> usize {
        self.ring
    }

    pub(crate) fn header_len(&self) -> usize {
        self.header
    }
}

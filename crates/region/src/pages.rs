//! One mapping of a memfd, unmapped on drop: what [`Region`](crate::Region), [`Frozen`](crate::Frozen), [`Live`](crate::Live)
//! and [`LiveView`](crate::LiveView) stand on.
//!
//! # Safety
//!
//! The pages are outside of every allocation Rust knows of: their address comes from mmap(2). What the unsafe
//! code of this module rests on:
//!
//! 1. **In bounds.** A [`Pages`] owns `len` bytes of address space, rounded up to whole pages, until it is dropped: its
//!    [`Range`] does.
//! 2. **No SIGBUS.** Whoever maps answers for the file being at least `len` bytes long, allocated, and staying so:
//!    own memory because it is allocated before it is handed out and this process alone can shrink it, a peer's because
//!    the gate saw the seals that forbid it. Of [`Foreign`](crate::Foreign) memory nobody knows that: its pages are
//!    written by [`Pages::write`] alone, in which not this process touches them but the kernel, which fails instead.
//! 3. **Who may write** differs by type, so that references are made by those types, through the unsafe methods here.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fd::{AsFd, BorrowedFd},
    io::Errno,
    mm::{MapFlags, ProtFlags},
};

use crate::{
    Error, Options, PageKind,
    copy::copy_out,
    limits,
    memory::{self, Memory},
    range::{Care, Range},
};

/// How a memfd is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Shared and writable. Not inherited over fork(2): a child's copy would be a second writer, and would veto
    /// the seals.
    Write,
    /// Shared and read-only: sees what the writer writes. Not inherited over fork(2).
    Read,
    /// Read-only and private, for memory that never changes: a shared mapping of write-sealed memory through a
    /// writable descriptor is refused before Linux 6.7 (commit 28464bbb2ddc), and this kind never vetoes a
    /// seal. Inherited over fork(2).
    Frozen,
}

/// What its maker wants of a region's mappings, those that come later included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) lock: bool,
    pub(crate) dump: bool,
}

impl Wanted {
    /// What holds for received memory.
    pub(crate) const DEFAULT: Wanted = Wanted {
        lock: false,
        dump: true,
    };

    pub(crate) fn of(options: &Options) -> Wanted {
        Wanted {
            lock: options.lock,
            dump: options.dump,
        }
    }
}

/// A mapping of `len` bytes of a memfd, the first ones as a rule.
#[derive(Debug)]
pub(crate) struct Pages {
    range: Range,
    len: usize,
    wanted: Wanted,
}

impl Pages {
    /// Maps the memory of a new region, and allocates it.
    pub(crate) fn create(memory: &Memory, options: &Options) -> Result<Pages, Error> {
        let len = memory.len;
        let pages = Pages::map(memory.fd.as_fd(), len, Access::Write, Wanted::of(options))?;
        memory::fill(memory, &pages.range, options)?;
        pages.lock()?;
        Ok(pages)
    }

    /// Maps `len` bytes, at least one. It is not locked yet.
    pub(crate) fn map(
        fd: BorrowedFd<'_>,
        len: usize,
        access: Access,
        wanted: Wanted,
    ) -> Result<Pages, Error> {
        Pages::map_at(fd, 0, len, access, wanted)
    }

    /// Maps `len` bytes, at least one, from `offset` on, a multiple of the page size.
    pub(crate) fn map_at(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        access: Access,
        wanted: Wanted,
    ) -> Result<Pages, Error> {
        let (prot, flags) = match access {
            Access::Write => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
            Access::Read => (ProtFlags::READ, MapFlags::SHARED),
            // Without NORESERVE, a private mapping of huge pages reserves as many again.
            Access::Frozen => (ProtFlags::READ, MapFlags::PRIVATE | MapFlags::NORESERVE),
        };
        let mut range =
            Range::map(fd, offset, len, 0, prot, flags).map_err(limits::mapping(len, len))?;
        let care = Care {
            dont_fork: access != Access::Frozen,
            dont_dump: !wanted.dump,
        };
        range.care(care).map_err(limits::mapping(len, len))?;
        Ok(Pages { range, len, wanted })
    }

    /// What its maker wanted.
    pub(crate) fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// Locks it in memory if its maker wanted that.
    pub(crate) fn lock(&self) -> Result<(), Error> {
        if !self.wanted.lock {
            return Ok(());
        }
        self.range.lock(self.len).map_err(limits::locking(self.len))
    }

    /// Which pages it is made of.
    pub(crate) fn page_kind(&self) -> Result<PageKind, Error> {
        self.range.page_kind(self.len)
    }

    /// Bytes mapped.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Copies `dst.len()` bytes from `offset` on, which another process may be writing meanwhile.
    ///
    /// # Panics
    ///
    /// If the range ends behind what is mapped.
    #[inline]
    pub(crate) fn read(&self, offset: usize, dst: &mut [u8]) {
        let len = dst.len();
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes from {offset} on are not in a region of {} bytes",
            self.len
        );
        // SAFETY: in bounds as asserted; a mapping begins at a page and ends with one, so that the words which hold
        // the ends of the range are mapped.
        unsafe { copy_out(self.range.base().as_ptr(), offset, dst) }
    }

    /// Has the kernel copy `src` in, from `offset` on, and says how much of it there was a place for. Where the file
    /// has been truncated, that fails with EFAULT, and no signal comes (process_vm_writev(2)).
    ///
    /// # Panics
    ///
    /// If the range ends behind what is mapped.
    pub(crate) fn write(&self, offset: usize, src: &[u8]) -> Result<usize, Errno> {
        // The call takes a little less than 2 GiB.
        let len = src.len().min(1 << 30);
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes from {offset} on are not in a region of {} bytes",
            self.len
        );
        let from = libc::iovec {
            iov_base: src.as_ptr().cast_mut().cast(),
            iov_len: len,
        };
        let to = libc::iovec {
            // SAFETY: in bounds as asserted.
            iov_base: unsafe { self.range.base().as_ptr().add(offset) }.cast(),
            iov_len: len,
        };
        // SAFETY: the kernel reads `len` bytes of `src`, and writes as many to the mapping, where no reference exists:
        // pages that are written here are never borrowed. Both lists have one element.
        let written =
            unsafe { libc::process_vm_writev(std::process::id() as i32, &from, 1, &to, 1, 0) };
        usize::try_from(written)
            .map_err(|_| Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::FAULT))
    }

    /// Loads the 64-bit word at `offset`, `Relaxed`: the one atomic access that is defined on read-only pages.
    ///
    /// # Panics
    ///
    /// If `offset` is not a multiple of 8, or the word ends behind what is mapped.
    #[inline(always)]
    pub(crate) fn load(&self, offset: usize) -> u64 {
        let word = self.word(offset);
        // SAFETY: in bounds and aligned; whoever writes it meanwhile is another process, and the loads of `read` are
        // as large.
        unsafe { AtomicU64::from_ptr(word) }.load(Ordering::Relaxed)
    }

    /// Stores the 64-bit word at `offset`, `Release`.
    ///
    /// # Safety
    ///
    /// The pages are mapped writable, and nobody else reads through a reference, or writes, meanwhile.
    ///
    /// # Panics
    ///
    /// If `offset` is not a multiple of 8, or the word ends behind what is mapped.
    #[inline(always)]
    pub(crate) unsafe fn store(&mut self, offset: usize, value: u64) {
        let word = self.word(offset);
        // SAFETY: in bounds and aligned; exclusive in this process by the caller's promise.
        unsafe { AtomicU64::from_ptr(word) }.store(value, Ordering::Release);
    }

    /// Address of the 64-bit word at `offset`.
    #[inline(always)]
    fn word(&self, offset: usize) -> *mut u64 {
        assert!(
            offset % 8 == 0 && offset.checked_add(8).is_some_and(|end| end <= self.len),
            "no word at byte {offset} of a region of {} bytes",
            self.len
        );
        // SAFETY: in bounds as asserted; a mapping begins at a page, so that it is aligned.
        unsafe { self.range.base().as_ptr().add(offset).cast() }
    }

    /// The first `len` bytes.
    ///
    /// # Safety
    ///
    /// Nobody writes them for as long as they are borrowed.
    #[inline(always)]
    pub(crate) unsafe fn bytes(&self, len: usize) -> &[u8] {
        debug_assert!(len <= self.len);
        // SAFETY: mapped until `self` is dropped; that nobody writes is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.range.base().as_ptr(), len) }
    }

    /// The first `len` bytes.
    ///
    /// # Safety
    ///
    /// They are mapped writable, and nobody else reads through a reference, or writes, for as long as they are borrowed.
    #[inline(always)]
    pub(crate) unsafe fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        debug_assert!(len <= self.len);
        // SAFETY: mapped until `self` is dropped; that it is exclusive is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.range.base().as_ptr(), len) }
    }
}

//! A range of address space over a memfd: what [`Pages`](crate::pages) and [`Mapping`](crate::mapping) stand on.
//!
//! # Safety
//!
//! A [`Range`] owns `len` bytes of address space, which begin and end with a page, from a single mmap(2) of that length
//! until it is dropped; everything here stays inside of it. It makes no references and touches no byte: who may do that,
//! and why nothing faults, is settled by the types above.

use std::{ffi::c_int, io, ptr, ptr::NonNull};

use rustix::{
    fd::BorrowedFd,
    mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap, mmap_anonymous, munmap},
};

use crate::{Error, PageKind, mapping::page_size, page_kind};

/// Asks for huge pages here and now, whatever /sys says about transparent ones (madvise(2), since Linux 6.1). rustix does
/// not know it, and libc does on some targets only.
const MADV_COLLAPSE: c_int = 25;

/// What holds for a mapping besides who may read and write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Care {
    /// Kept out of children of fork(2).
    pub(crate) dont_fork: bool,
    /// Kept out of core dumps.
    pub(crate) dont_dump: bool,
}

/// Address space, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Range {
    base: NonNull<u8>,
    len: usize,
    /// The process that alone has it, if children do not inherit it.
    alone: Option<u32>,
}

// SAFETY: an address range of the process, not of a thread; what may be done with it is settled by the types that own
// it.
unsafe impl Send for Range {}
// SAFETY: as above; nothing here touches the memory but through system calls.
unsafe impl Sync for Range {}

impl Range {
    /// Maps `len` bytes of `fd` from `from` on, shared or privately as `flags` say, with `tail` bytes of address space
    /// behind it, which the caller [replaces](Range::place) before anything touches them.
    ///
    /// From the length of a huge page on, the beginning of a file is mapped at a multiple of one, since only then can a
    /// huge page be mapped as such (mm/huge_mm.h, thp_vma_suitable_order). The kernel sees to that by itself only where it
    /// is set to use huge pages for all shared memory.
    pub(crate) fn map(
        fd: BorrowedFd<'_>,
        from: u64,
        len: usize,
        tail: usize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> io::Result<Range> {
        let total = len.checked_add(tail).ok_or(io::ErrorKind::OutOfMemory)?;
        let align = page_kind::huge_page_size().filter(|&huge| from == 0 && len >= huge);
        if let Some(range) = align.and_then(|align| Range::reserve(total, align).ok()) {
            match range.place(0, fd, 0, len, prot, flags) {
                Ok(()) => return Ok(range),
                // Huge pages of another size: the kernel knows where they may be.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) => return Err(error),
            }
        }
        // SAFETY: a fresh address range chosen by the kernel. The tail may reach past the end of the file; it is
        // replaced before anything touches it.
        let base = unsafe { mmap(ptr::null_mut(), total, prot, flags, fd, from)? };
        Range::new(base.cast(), total)
    }

    /// `len` bytes of address space that begin at a multiple of `align`, a power of two.
    fn reserve(len: usize, align: usize) -> io::Result<Range> {
        let page = page_size();
        let len = len
            .checked_next_multiple_of(page)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let larger = len.checked_add(align).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh address range chosen by the kernel.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), larger, ProtFlags::empty(), flags)? };
        let before = (base as usize).next_multiple_of(align) - base as usize;
        let behind = larger - before - len;
        // SAFETY: `before < align`, so that `before + len + behind` are the bytes just mapped; the first and the last
        // of the three are given back.
        unsafe {
            if before > 0 {
                munmap(base, before)?;
            }
            if behind > 0 {
                munmap(base.byte_add(before + len), behind)?;
            }
            Range::new(base.cast::<u8>().add(before), len)
        }
    }

    fn new(base: *mut u8, len: usize) -> io::Result<Range> {
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        let alone = None;
        Ok(Range { base, len, alone })
    }

    /// Maps `len` bytes of `fd` from `from` on over what is mapped at `offset`; all but `len` are multiples of the page
    /// size.
    ///
    /// # Panics
    ///
    /// If that is not inside the range.
    pub(crate) fn place(
        &self,
        offset: usize,
        fd: BorrowedFd<'_>,
        from: u64,
        len: usize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> io::Result<()> {
        self.check(offset, len);
        let flags = flags | MapFlags::FIXED;
        // SAFETY: inside the range, as checked, up to the end of its last page, which is the range's too. Callers do
        // this before they let anything touch it.
        unsafe { mmap(self.at(offset), len, prot, flags, fd, from)? };
        Ok(())
    }

    pub(crate) fn care(&mut self, care: Care) -> io::Result<()> {
        if care.dont_fork {
            self.alone = Some(std::process::id());
            self.advise(0, self.len, Advice::LinuxDontFork)?;
        }
        if care.dont_dump {
            self.advise(0, self.len, Advice::LinuxDontDump)?;
        }
        Ok(())
    }

    /// Makes every page present, all of them mapped writable, so that no first touch costs a page fault later. Kernels
    /// before 5.14 do not know that, which costs page faults and nothing else.
    pub(crate) fn populate(&self) -> io::Result<()> {
        match self.advise(0, self.len, Advice::LinuxPopulateWrite) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            result => result,
        }
    }

    /// Keeps the first `len` bytes in memory: never swapped, and present from here on.
    pub(crate) fn lock(&self, len: usize) -> io::Result<()> {
        self.check(0, len);
        // SAFETY: inside the range, as checked; locking changes neither contents nor addresses.
        unsafe { mlock(self.base.as_ptr().cast(), len)? };
        Ok(())
    }

    /// Tries to put the first `len` bytes of a file without pages, mapped writable, into transparent huge pages, as
    /// far as they fill such. What it does not get is not there afterwards.
    ///
    /// For each, one page is touched, as a system call does it, without a signal where there is none: where the
    /// kernel is set to use huge pages for shared memory that asks for it (shmem_enabled), that is a huge one. Else
    /// the kernel is told to make it one now, which takes at least one page to be there, and copies no more than that.
    pub(crate) fn huge(&self, len: usize) {
        let Some(huge) = page_kind::huge_page_size() else {
            return;
        };
        let len = len - len % huge;
        // Says EINVAL where the kernel has none.
        if len == 0 || self.advise(0, len, Advice::LinuxHugepage).is_err() {
            return;
        }
        let touched = (0..len)
            .step_by(huge)
            .try_for_each(|at| self.advise(at, page_size(), Advice::LinuxPopulateWrite));
        if touched.is_ok() {
            // SAFETY: inside the range, as `advise` has checked; contents and addresses stay. Where it fails, pages
            // stay small.
            let _ = unsafe { libc::madvise(self.base.as_ptr().cast(), len, MADV_COLLAPSE) };
        }
    }

    /// Advice that changes neither contents nor addresses.
    fn advise(&self, offset: usize, len: usize, advice: Advice) -> io::Result<()> {
        self.check(offset, len);
        // SAFETY: inside the range, as checked; callers, all of them above, pass only such advice.
        unsafe { madvise(self.at(offset), len, advice)? };
        Ok(())
    }

    fn check(&self, offset: usize, len: usize) {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{offset} + {len} bytes are over the range of {} bytes",
            self.len
        );
    }

    fn at(&self, offset: usize) -> *mut std::ffi::c_void {
        self.base.as_ptr().wrapping_add(offset).cast()
    }

    /// Which pages its first `len` bytes are made of.
    pub(crate) fn page_kind(&self, len: usize) -> Result<PageKind, Error> {
        PageKind::of(self.base, len).map_err(Error::os("read /proc/self/smaps for", len))
    }

    #[inline(always)]
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // In a child that did not inherit it, whatever is there now is something else.
        if self.alone.is_some_and(|alone| alone != std::process::id()) {
            return;
        }
        // SAFETY: the range is ours and unmapped once; whoever borrowed from it borrowed from its owner.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}

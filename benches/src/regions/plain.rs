//! Shared memory as one would map it by hand, between two halves of one executable that trust each other.

use std::os::fd::AsFd;
use std::ptr::{self, NonNull};

use anyhow::{Context, Result};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// A shared mapping of a memfd, which other processes may write as well: whose turn it is, they arrange by other means.
#[derive(Debug)]
pub struct Plain {
    base: NonNull<u8>,
    len: usize,
}

impl Plain {
    /// Maps the first `len` bytes of `fd`, which is as long, to write them or only to read them.
    ///
    /// # Errors
    ///
    /// Fails if the kernel refuses.
    pub fn map(fd: impl AsFd, len: usize, writable: bool) -> Result<Self> {
        let access = if writable {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        // SAFETY: a fresh mapping at an address the kernel chooses takes nothing from anybody.
        let base = unsafe { mmap(ptr::null_mut(), len, access, MapFlags::SHARED, fd, 0) };
        Ok(Self {
            base: NonNull::new(base.context("mmap")?.cast()).context("mapped at address zero")?,
            len,
        })
    }

    /// Makes all pages present for writing.
    ///
    /// # Errors
    ///
    /// Fails if the kernel is older than 5.14, or has no memory.
    pub fn populate(&self) -> Result<()> {
        // SAFETY: the range is this mapping's, and populating changes no contents.
        unsafe {
            madvise(
                self.base.as_ptr().cast(),
                self.len,
                Advice::LinuxPopulateWrite,
            )
        }
        .context("MADV_POPULATE_WRITE")
    }

    /// Its bytes.
    ///
    /// # Safety
    ///
    /// No process writes them as long as they are borrowed.
    #[inline]
    pub unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: mapped as long as `self` lives; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    /// Its bytes.
    ///
    /// # Safety
    ///
    /// They are mapped to be written, and no other process accesses them as long as they are borrowed.
    #[inline]
    pub unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: mapped as long as `self` lives; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map`, and borrows of it end with `self`.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

//! The one place where memory is mapped: a header page of atomic words, then ring data that is mapped twice
//! in a row.
//!
//! The references trust each other, as the two halves of one executable may: every process here maps the
//! whole region writable, and the ordering of accesses to the data is the duty of the code that uses it.

use std::ffi::c_void;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Bytes before the ring data: one page of control words.
pub const HEADER: usize = 4096;

/// Distance of two control words that must not disturb each other: two cache lines, since adjacent ones are
/// fetched together.
pub const LINE: usize = 128;

/// Creates a region for `capacity` bytes of ring data, its pages allocated or left to the first use.
///
/// # Errors
///
/// Fails if the kernel has no memory or no descriptor left.
pub fn create(capacity: usize, allocate: bool) -> Result<OwnedFd> {
    let len = (HEADER + capacity) as u64;
    let fd = memfd_create("memlane-bench", MemfdFlags::CLOEXEC).context("memfd_create")?;
    ftruncate(&fd, len).context("ftruncate")?;
    if allocate {
        fallocate(&fd, FallocateFlags::empty(), 0, len).context("fallocate")?;
    }
    Ok(fd)
}

/// A region in this process: [`HEADER`] bytes, then the data, then the same data again, so that no record
/// ever wraps.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    capacity: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is unmapped only by `Drop`.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps a region made by [`create`] with the same `capacity`, which is 0 or a power of two of at least
    /// a page.
    ///
    /// # Errors
    ///
    /// Fails if the region is too small or the kernel refuses the mapping.
    pub fn new(fd: impl AsFd, capacity: usize, populate: bool) -> Result<Self> {
        ensure!(
            capacity == 0 || capacity.is_power_of_two() && capacity >= HEADER,
            "capacity {capacity}"
        );
        let len = rustix::fs::fstat(&fd).context("fstat")?.st_size;
        ensure!(
            usize::try_from(len) == Ok(HEADER + capacity),
            "region of {len} bytes for a capacity of {capacity}"
        );

        // SAFETY: a fresh mapping at an address the kernel chooses takes nothing from anybody.
        let base = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                HEADER + 2 * capacity,
                ProtFlags::empty(),
                MapFlags::PRIVATE,
            )
        }
        .context("cannot reserve addresses")?;
        // From here on the reservation is owned: `Drop` removes it, whatever of it has been replaced by
        // then.
        let mapping = Self {
            base: NonNull::new(base.cast()).context("mapped at address zero")?,
            capacity,
        };

        let parts = [
            (0, HEADER, 0),
            (HEADER, capacity, HEADER),
            (HEADER + capacity, capacity, HEADER),
        ];
        let populate = if populate {
            MapFlags::POPULATE
        } else {
            MapFlags::empty()
        };
        for (at, len, offset) in parts.into_iter().filter(|&(_, len, _)| len > 0) {
            // SAFETY: the three parts lie within the reservation made above, so MAP_FIXED replaces nothing
            // but it.
            unsafe {
                mmap(
                    mapping.base.as_ptr().add(at).cast::<c_void>(),
                    len,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::SHARED | MapFlags::FIXED | populate,
                    &fd,
                    offset as u64,
                )
            }
            .context("mmap")?;
        }
        Ok(mapping)
    }

    /// The control word at `offset` bytes into the header page.
    #[inline]
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset < HEADER);
        // SAFETY: the word is aligned, because the page is and the offset is; it lies within the header,
        // which is mapped as long as `self` lives; and all processes access the header through this
        // function only, so every access is atomic and of this size.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    /// Bytes of ring data.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The first byte of the data. From here `2 * capacity` bytes may be read and written as long as the
    /// mapping lives, byte `i` and byte `i + capacity` being the same memory. Other processes write there
    /// too: what keeps accesses from racing is the caller's to arrange.
    #[inline]
    pub fn data(&self) -> *mut u8 {
        // SAFETY: the data follows the header in the same mapping.
        unsafe { self.base.as_ptr().add(HEADER) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this range was reserved in `new`, and the references and pointers given out by `self` end
        // with it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), HEADER + 2 * self.capacity) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_mirrored() {
        let fd = create(HEADER, true).unwrap();
        let mapping = Mapping::new(&fd, HEADER, true).unwrap();
        // SAFETY: both bytes lie within the two images of the data, and no other process or thread knows
        // the region.
        unsafe {
            mapping.data().add(7).write(42);
            assert_eq!(mapping.data().add(HEADER + 7).read(), 42);
        }
    }

    #[test]
    fn sizes_must_agree() {
        let fd = create(HEADER, false).unwrap();
        assert!(Mapping::new(&fd, 2 * HEADER, false).is_err());
    }
}

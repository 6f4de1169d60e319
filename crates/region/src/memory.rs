//! New memory: a memfd, private to its maker, sized, and allocated.

use rustix::{
    fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    fs::{FallocateFlags, MemfdFlags, Mode, OFlags, fallocate, fstat, memfd_create},
    io::{Errno, retry_on_intr},
};

use crate::{Error, HugePages, Options, limits, mapping::page_size, range::Range};

/// No region is longer: half of what a process can address on most machines.
pub(crate) const MAX_LEN: usize = 1 << 46;

/// Bytes of a name (memfd_create(2)).
const MAX_NAME: usize = 249;

/// So much is allocated in one step: 10 ms or so.
const STEP: usize = 32 << 20;

/// A memfd.
pub(crate) struct Memory {
    pub(crate) fd: OwnedFd,
    /// Its length, which for hugetlb memory may be more than was asked for.
    pub(crate) len: usize,
    /// Whether its pages are those of a hugetlb pool, and allocated.
    pub(crate) hugetlb: bool,
}

/// A memfd of `len` bytes, or a few more if it is in huge pages. It is to be mapped and then [filled](fill).
///
/// The order matters: mode 0600 first, or strangers could set attributes on it or commit its holes.
pub(crate) fn create(options: &Options, len: usize) -> Result<Memory, Error> {
    if len == 0 || len > MAX_LEN {
        return Err(Error::Length {
            what: "a region",
            len: len as u64,
            expected: "from 1 to 2^46 bytes",
        });
    }
    let name = options.name.as_ref();
    if name.len() > MAX_NAME || name.contains('\0') {
        return Err(Error::Name {
            name: name.to_owned(),
        });
    }
    limits::file_size(len)?;
    // Whatever is wrong beyond a lack of huge pages shows below again.
    if let Some(memory) = hugetlb(options, len) {
        return Ok(memory);
    }
    limits::memory(len, len)?;
    let fd = memfd(options, MemfdFlags::empty()).map_err(Error::os("create", len))?;
    rustix::fs::ftruncate(&fd, len as u64).map_err(Error::os("size", len))?;
    Ok(Memory {
        fd,
        len,
        hugetlb: false,
    })
}

fn memfd(options: &Options, more: MemfdFlags) -> Result<OwnedFd, Errno> {
    let name = options.name.as_ref();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | more;
    // NOEXEC_SEAL is known since Linux 6.3; older kernels answer EINVAL.
    let fd = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, flags)?,
        result => result?,
    };
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
    Ok(fd)
}

/// Memory in hugetlb pages, if they were asked for and can be had. They are taken from the pool here, so that none can be
/// missing at use (which would be a SIGBUS).
fn hugetlb(options: &Options, len: usize) -> Option<Memory> {
    let size = match options.huge_pages {
        HugePages::Never | HugePages::Transparent => return None,
        HugePages::Hugetlb => 0,
        // The binary logarithm, in the upper six bits (memfd_create(2)).
        HugePages::HugetlbOf(size) if size.is_power_of_two() => size.trailing_zeros(),
        HugePages::HugetlbOf(_) => return None,
    };
    let size = MemfdFlags::from_bits_retain(size << MFD_HUGE_SHIFT);
    let fd = memfd(options, MemfdFlags::HUGETLB | size).ok()?;
    let len = len.checked_next_multiple_of(granule(fd.as_fd()).ok()?)?;
    limits::file_size(len).ok()?;
    rustix::fs::ftruncate(&fd, len as u64).ok()?;
    retry_on_intr(|| fallocate(&fd, FallocateFlags::empty(), 0, len as u64)).ok()?;
    Some(Memory {
        fd,
        len,
        hugetlb: true,
    })
}

const MFD_HUGE_SHIFT: u32 = 26;

/// The size of a page of this memory: lengths of hugetlb memory are multiples of it.
pub(crate) fn granule(fd: BorrowedFd<'_>) -> Result<usize, Errno> {
    Ok(rustix::fs::fstatfs(fd)?.f_bsize as usize)
}

/// Makes the pages of a new region that `range` maps writable: huge ones if they are wanted, and all of them allocated.
pub(crate) fn fill(memory: &Memory, range: &Range, options: &Options) -> Result<(), Error> {
    let len = memory.len;
    if !memory.hugetlb {
        if options.huge_pages != HugePages::Never {
            range.huge(len);
        }
        allocate(memory.fd.as_fd(), len)?;
    }
    if options.prefault {
        range.populate().map_err(Error::os("prefault", len))?;
    }
    Ok(())
}

/// Gives the file all its pages, so that shortage is an error here and never a SIGBUS at use. Pages that are there stay.
///
/// In steps, between which the budget is looked at anew; ever shorter ones where signals arrive, at which older kernels
/// undo what the step did (mm/shmem.c, shmem_fallocate: today only where the process is being killed).
fn allocate(fd: BorrowedFd<'_>, len: usize) -> Result<(), Error> {
    let os = Error::os::<Errno>;
    let (mut at, mut step) = (0, STEP);
    while at < len {
        let stop = len.min(at - at % STEP + STEP);
        if at > 0 && at % STEP == 0 {
            let present = fstat(fd).map_err(os("read the size of", len))?.st_blocks as usize * 512;
            limits::memory(len, len.saturating_sub(present))?;
        }
        let piece = step.min(stop - at);
        match fallocate(fd, FallocateFlags::empty(), at as u64, piece as u64) {
            Ok(()) => at += piece,
            Err(Errno::INTR) => step = (piece / 2).max(page_size()).next_multiple_of(page_size()),
            Err(errno) => return Err(os("allocate", len)(errno)),
        }
    }
    Ok(())
}

/// A memfd with a copy of `bytes` and nothing else, in small pages. Each is allocated and filled by the kernel in one step,
/// not zeroed first and mapped by a page fault: a copy of 1 MiB takes 0.4 of the time that it takes through a mapping.
pub(crate) fn copy_of(options: &Options, bytes: &[u8]) -> Result<OwnedFd, Error> {
    let len = bytes.len();
    let Memory { fd, .. } = create(options, len)?;
    let mut at = 0;
    while at < len {
        if at > 0 && at % STEP == 0 {
            limits::memory(len, len - at)?;
        }
        let piece = &bytes[at..len.min(at - at % STEP + STEP)];
        // The descriptor's position, which everybody who gets it shares, stays at the beginning.
        match rustix::io::pwrite(&fd, piece, at as u64) {
            Ok(0) => return Err(Error::os("write", len)(Errno::NOSPC)),
            Ok(written) => at += written,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::os("write", len)(errno)),
        }
    }
    Ok(fd)
}

/// Another descriptor of a memfd, opened read-only.
pub(crate) fn reopen_read_only(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

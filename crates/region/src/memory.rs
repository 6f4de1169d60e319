//! New memory: a memfd, private to its maker, sized, and allocated.

use std::io;

use rustix::{
    fd::{AsRawFd, BorrowedFd, OwnedFd},
    fs::{FallocateFlags, MemfdFlags, Mode, OFlags},
    io::Errno,
};

use crate::{Error, Options};

/// From this length on, a region is compared with the machine's memory before it is allocated.
const LARGE: usize = 64 << 20;

/// No region is longer: half of what a process can address on most machines.
pub(crate) const MAX_LEN: usize = 1 << 46;

/// A memfd of `len` bytes, all allocated, so that shortage is an error here and never a SIGBUS at use.
///
/// The order matters: mode 0600 first, or strangers could set attributes on it or commit its holes.
pub(crate) fn allocate(options: &Options, len: usize) -> Result<OwnedFd, Error> {
    let os = |what| Error::os(what, len);
    if len == 0 || len > MAX_LEN {
        return Err(Error::Length {
            what: "a region",
            len: len as u64,
            expected: "from 1 to 2^46 bytes",
        });
    }
    // fallocate would not fail for lack of memory, but take what there is until the OOM killer steps in.
    if len > LARGE && len as u64 > rustix::system::sysinfo().totalram as u64 {
        return Err(os("allocate")(Errno::NOMEM));
    }
    let name = options.name.as_ref();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // NOEXEC_SEAL is known since Linux 6.3; older kernels answer EINVAL.
    let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        result => result,
    }
    .map_err(os("create"))?;
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(os("restrict"))?;
    rustix::fs::ftruncate(&fd, len as u64).map_err(os("size"))?;
    rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, len as u64).map_err(os("allocate"))?;
    Ok(fd)
}

/// What madvise(MADV_POPULATE_WRITE) said: kernels before 5.14 do not know it, which costs page faults and nothing else.
pub(crate) fn populated(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
        result => result,
    }
}

/// Another descriptor of a memfd, opened read-only.
pub(crate) fn reopen_read_only(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

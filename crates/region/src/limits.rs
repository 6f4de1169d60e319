//! What a process, its memory cgroup and the machine have left, asked where the kernel's own answer would be a signal.
//!
//! RLIMIT_FSIZE: a memfd that would be longer gets its maker a SIGXFSZ (fs/attr.c, inode_newsize_ok). Memory: fallocate(2)
//! does not fail at the limit of a memory cgroup, nor when the machine has no more: the kernel reclaims what it can, and
//! then kills somebody (mm/memcontrol.c, mem_cgroup_oom; the order of a page is never "costly"). So a region that is not
//! small is compared with what is left before it is allocated, and every 32 MiB while it is.
//!
//! What remains: regions below [`CHECKED`] are not compared, as little as what malloc(3) gets; others may take what was
//! left between the look and the allocation; and where the process's cgroup or /proc is not to be seen, nothing is
//! compared. Then the OOM killer comes, as for all memory. After creation nothing is missing, in any of these cases.

use std::io;

use rustix::{
    io::Errno,
    process::{Resource, getrlimit},
};

use crate::{Error, Limit, cgroup, page_kind::bytes};

/// From this length on, a region is compared with what is left: the comparison takes some 30 us, the allocation of so
/// much 400.
const CHECKED: usize = 4 << 20;

/// Whether a file may be so long.
pub(crate) fn file_size(len: usize) -> Result<(), Error> {
    match getrlimit(Resource::Fsize).current {
        Some(limit) if len as u64 > limit => Err(over(Limit::FileSize, len, limit)),
        _ => Ok(()),
    }
}

/// Whether there is memory for the `missing` bytes of a region of `len` bytes.
pub(crate) fn memory(len: usize, missing: usize) -> Result<(), Error> {
    if len < CHECKED {
        return Ok(());
    }
    // What the kernel needs to keep the pages in, and to map them: an eight-byte entry for each, in both.
    let needed = (missing as u64).saturating_add(missing as u64 / 64);
    if let Some(left) = machine().filter(|&left| needed > left) {
        return Err(over(Limit::Memory, len, left));
    }
    match cgroup::left(needed) {
        Some(left) if needed > left => Err(over(Limit::Cgroup, len, left)),
        _ => Ok(()),
    }
}

/// An error of mmap(2), for a region of `len` bytes that takes `space` bytes of addresses.
pub(crate) fn mapping(len: usize, space: usize) -> impl FnOnce(io::Error) -> Error {
    move |error| {
        let errnos = [Errno::NOMEM];
        exceeded(&error, &errnos, space, Resource::As, "VmSize:")
            .map(|left| over(Limit::AddressSpace, len, left))
            .unwrap_or_else(|| Error::os("map", len)(error))
    }
}

/// An error of mlock(2).
pub(crate) fn locking(len: usize) -> impl FnOnce(io::Error) -> Error {
    move |error| {
        // EPERM: the limit is 0.
        let errnos = [Errno::NOMEM, Errno::PERM];
        exceeded(&error, &errnos, len, Resource::Memlock, "VmLck:")
            .map(|left| over(Limit::LockedMemory, len, left))
            .unwrap_or_else(|| Error::os("lock", len)(error))
    }
}

/// Whether `len` bytes more than there are in `field` of /proc/self/status are over the limit on a resource, if that is
/// what one of the `errnos` can mean: what is left of it.
fn exceeded(
    error: &io::Error,
    errnos: &[Errno],
    len: usize,
    resource: Resource,
    field: &str,
) -> Option<u64> {
    Errno::from_io_error(error).filter(|errno| errnos.contains(errno))?;
    let left = getrlimit(resource).current?.saturating_sub(used(field));
    (len as u64 > left).then_some(left)
}

fn over(limit: Limit, len: usize, left: u64) -> Error {
    let len = len as u64;
    Error::Limit { limit, len, left }
}

/// A field of /proc/self/status, in bytes; 0 if it cannot be read.
fn used(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field));
    line.map_or(0, |line| bytes(line) as u64)
}

/// What the machine has left: what the kernel says is available without swapping (proc_meminfo(5)), and the swap space.
fn machine() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name| {
        meminfo
            .lines()
            .find(|line| line.starts_with(name))
            .map(bytes)
    };
    Some((field("MemAvailable:")? + field("SwapFree:").unwrap_or(0)) as u64)
}

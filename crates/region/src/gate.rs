//! The gate: what is asked of a received descriptor before it becomes memory, in the one order in which each
//! question is safe.

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{SealFlags, fcntl_get_seals, fstat, fstatfs},
    io::Errno,
};

use crate::{Error, implied};

/// The seals of a live region: nobody can resize it, map it writable, write to it by system call, punch
/// holes into it, or add seals; the creator's mapping, made before, goes on writing.
pub(crate) const LIVE_SEALS: SealFlags = FREEZABLE_SEALS.union(SealFlags::SEAL);

/// Those of a live region that can be frozen later.
pub(crate) const FREEZABLE_SEALS: SealFlags = VIEW_SEALS;

/// What the reader of a live region needs: that it can neither be truncated nor punched, since both would make
/// reads fault or allocate.
pub(crate) const VIEW_SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::FUTURE_WRITE);

/// Those of a frozen region. WRITE alone is not enough: shrinking and growing again zeroes the bytes.
pub(crate) const FROZEN_SEALS: SealFlags = SealFlags::WRITE
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW);

/// Those of memory that others can write as well, its length apart: PipeWire's buffers have them, and those of many
/// Wayland clients (without SEAL).
pub(crate) const WRITABLE_SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// `f_type` of memfds and of those of huge pages (linux/magic.h).
const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// What a receiver is willing to map of a peer's. A plain number is one: so many bytes, none of them in
/// huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    bytes: usize,
    hugetlb: bool,
}

impl Quota {
    /// At most `bytes` bytes.
    pub const fn new(bytes: usize) -> Quota {
        Quota {
            bytes,
            hugetlb: false,
        }
    }

    /// Whether the memory may be a hugetlb memfd, which occupies pages of a pool that the administrator set aside.
    pub const fn hugetlb(self, hugetlb: bool) -> Quota {
        Quota { hugetlb, ..self }
    }

    pub(crate) fn bytes(self) -> usize {
        self.bytes
    }

    /// # Errors
    ///
    /// [`Error::Quota`].
    pub(crate) fn check(self, len: u64) -> Result<(), Error> {
        if len <= self.bytes as u64 {
            return Ok(());
        }
        Err(Error::Quota {
            len,
            quota: self.bytes as u64,
        })
    }
}

impl From<usize> for Quota {
    fn from(bytes: usize) -> Quota {
        Quota::new(bytes)
    }
}

/// Its seals. F_GET_SEALS never blocks, and only shared memory answers it: everything else is asked after it.
pub(crate) fn seals(fd: impl AsFd) -> Result<SealFlags, Error> {
    match fcntl_get_seals(fd) {
        // EINVAL: not shared memory. EBADF: opened with O_PATH.
        Err(Errno::INVAL | Errno::BADF) => Err(Error::NotSharedMemory),
        result => result.map_err(Error::os("read the seals of", 0)),
    }
}

/// Asks everything that makes it safe to map: memory with the seals `required`, as long as was announced (if it was),
/// within `quota`, and allocated to the last byte. Its length in bytes, which is not 0.
pub(crate) fn verify(
    fd: &OwnedFd,
    required: SealFlags,
    announced: Option<usize>,
    quota: Quota,
) -> Result<usize, Error> {
    sealed(fd, required)?;
    measure(fd, announced, quota)
}

/// As [`verify`], of memory that nobody can write. `earlier` are seals that were seen on it before, or none. Its length in
/// bytes, which is not 0.
pub(crate) fn frozen(
    fd: &OwnedFd,
    earlier: Option<SealFlags>,
    quota: Quota,
) -> Result<usize, Error> {
    let found = sealed(fd, FROZEN_SEALS)?;
    check_write(earlier, found, implied::proven)?;
    measure(fd, None, quota)
}

/// Whether memory with these seals is frozen beyond doubt.
pub(crate) fn proves_frozen(found: SealFlags) -> bool {
    found.contains(FROZEN_SEALS) && check_write(None, found, implied::proven).is_ok()
}

/// The seals that are there, with `required` among them.
fn sealed(fd: &OwnedFd, required: SealFlags) -> Result<SealFlags, Error> {
    let found = seals(fd)?;
    // A file on a tmpfs answers with F_SEAL_SEAL alone: all masks ask for SHRINK too. Compared by mask, since
    // vm.memfd_noexec adds F_SEAL_EXEC.
    if found.contains(required) {
        return Ok(found);
    }
    Err(Error::Seals {
        required: required.bits(),
        found: found.bits(),
    })
}

/// Whether F_SEAL_WRITE among `found` is proof that nobody can write. What F_SEAL_EXEC may have brought along is not,
/// where the kernel does not see to it; it brings FUTURE_WRITE too, so that without that WRITE was asked for. Neither did
/// EXEC bring WRITE along if it was there without it before.
fn check_write(
    earlier: Option<SealFlags>,
    found: SealFlags,
    proven: impl FnOnce() -> bool,
) -> Result<(), Error> {
    let asked_for = earlier.is_some_and(|earlier| {
        earlier.contains(SealFlags::EXEC) && !earlier.contains(SealFlags::WRITE)
    });
    let doubtful = found.contains(SealFlags::EXEC | SealFlags::FUTURE_WRITE) && !asked_for;
    if doubtful && !proven() {
        let found = found.bits();
        return Err(Error::Implied { found });
    }
    Ok(())
}

/// Asks what it takes to own it: memory without seals (but for EXEC), within `quota`, and allocated to the last byte.
pub(crate) fn private(fd: &OwnedFd, quota: Quota) -> Result<usize, Error> {
    let found = seals(fd)?;
    let rest = found - SealFlags::EXEC;
    if !rest.is_empty() {
        return Err(Error::Seals {
            required: 0,
            found: found.bits(),
        });
    }
    measure(fd, None, quota)
}

/// Asks what it takes to copy from and to `len` bytes of it, from `offset` on: shared memory of any seals, on tmpfs, that
/// long, and `len` within `quota`. None of that stays so, but for what it is.
pub(crate) fn window(fd: &OwnedFd, offset: u64, len: usize, quota: Quota) -> Result<(), Error> {
    seals(fd)?;
    let file_system = fstatfs(fd)
        .map_err(Error::os("read the file system of", len))?
        .f_type as u64;
    // Not hugetlbfs: of its mappings, lengths are counted in other pages.
    if file_system != TMPFS_MAGIC {
        return Err(Error::FileSystem { found: file_system });
    }
    if len == 0 {
        return Err(Error::Length {
            what: "a received region",
            len: 0,
            expected: "at least 1 byte",
        });
    }
    let found = fstat(fd)
        .map_err(Error::os("read the size of", len))?
        .st_size as u64;
    let expected = offset.saturating_add(len as u64);
    // A file has at most 2^63 - 1 bytes, so that a sum that does not fit is refused as well.
    if found < expected {
        return Err(Error::Size { expected, found });
    }
    quota.check(len as u64)
}

/// File system, size, quota and allocation of what is known to be shared memory, so that the kernel alone answers.
fn measure(fd: &OwnedFd, announced: Option<usize>, quota: Quota) -> Result<usize, Error> {
    let stat = fstat(fd).map_err(Error::os("read the size of", 0))?;
    let len = stat.st_size as u64;
    let os = |what| Error::os::<Errno>(what, len as usize);
    let file_system = fstatfs(fd).map_err(os("read the file system of"))?.f_type as u64;
    let known = file_system == TMPFS_MAGIC || (file_system == HUGETLBFS_MAGIC && quota.hugetlb);
    if !known {
        return Err(Error::FileSystem { found: file_system });
    }
    if let Some(expected) = announced.filter(|&expected| expected as u64 != len) {
        return Err(Error::Size {
            expected: expected as u64,
            found: len,
        });
    }
    if len == 0 {
        return Err(Error::Length {
            what: "a received region",
            len,
            expected: "at least 1 byte",
        });
    }
    quota.check(len)?;
    let allocated = (stat.st_blocks as u64).saturating_mul(512);
    if allocated < len {
        return Err(Error::Sparse {
            expected: len,
            found: allocated,
        });
    }
    Ok(len as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    documented!(LIVE_SEALS.bits(), VIEW_SEALS.bits(), FREEZABLE_SEALS.bits());
    documented!(FROZEN_SEALS.bits(), WRITABLE_SEALS.bits());
    documented!(TMPFS_MAGIC, HUGETLBFS_MAGIC);

    #[test]
    fn write_seals_that_may_be_implied() {
        let explicit = FROZEN_SEALS | SealFlags::SEAL;
        for found in [
            explicit,
            explicit | SealFlags::EXEC,
            explicit | SealFlags::FUTURE_WRITE,
        ] {
            check_write(None, found, || unreachable!()).unwrap();
        }
        let implied = explicit | SealFlags::EXEC | SealFlags::FUTURE_WRITE;
        check_write(None, implied, || true).unwrap();
        for earlier in [
            None,
            Some(implied),
            Some(VIEW_SEALS),
            Some(SealFlags::empty()),
        ] {
            let error = check_write(earlier, implied, || false).unwrap_err();
            assert!(matches!(error, Error::Implied { .. }), "{error}");
        }
        let earlier = Some(VIEW_SEALS | SealFlags::EXEC);
        check_write(earlier, implied, || unreachable!()).unwrap();
    }
}

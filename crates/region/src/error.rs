use std::{fmt, io};

use rustix::{fd::OwnedFd, fs::SealFlags, io::Errno};

/// Why a region could not be made or sealed, or why a received one was refused.
///
/// Nothing is lost with it: a received descriptor comes back in [`Refused`], a region of one's own in
/// [`Rejected`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused to create, size, allocate, map, lock or seal the memory. Shortage shows here or as
    /// [`Limit`](Error::Limit), at creation, and never as a SIGBUS at use.
    #[error("cannot {what} a shared region of {len} bytes: {source}")]
    Os {
        /// The step that failed.
        what: &'static str,
        /// Length asked for, in bytes.
        len: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// More than is left of what this process, its memory cgroup or the machine may use.
    #[error("a region of {len} bytes is over {limit}: {left} bytes are left")]
    Limit {
        /// What limits it.
        limit: Limit,
        /// Length of the region, in bytes.
        len: u64,
        /// What would have fit, in bytes, as far as can be told beforehand.
        left: u64,
    },
    /// A name that no memory can have.
    #[error("expected a name of at most 249 bytes without a zero, got {name:?}")]
    Name {
        /// The name.
        name: String,
    },
    /// A length that no region or ring can have.
    #[error("{what} of {len} bytes is not possible: {expected}")]
    Length {
        /// What the length was meant for.
        what: &'static str,
        /// The length asked for, in bytes.
        len: u64,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// The received descriptor is not shared memory (it does not know seals).
    #[error("expected a sealed memfd, got a descriptor that is not shared memory")]
    NotSharedMemory,
    /// A seal that makes the region safe to map is absent.
    #[error("expected a region sealed with {}, got one sealed with {}", Names(*required), Names(*found))]
    Seals {
        /// `F_SEAL_*` bits that must be there.
        required: u32,
        /// `F_SEAL_*` bits that are.
        found: u32,
    },
    /// The region cannot be frozen now: somebody has it mapped writable (for a shared mapping through a writable
    /// descriptor, that they could make it writable is enough), or a page of it is in use (by a pipe, or by I/O
    /// under way), for which the kernel waits 0.16 s before it gives up.
    #[error(
        "cannot freeze a region of {len} bytes: somebody has it mapped, or a page of it is in use"
    )]
    Busy {
        /// Length of the region, in bytes.
        len: u64,
    },
    /// The region cannot be sealed: this descriptor of it is read-only, or its maker forbade more seals.
    #[error(
        "cannot freeze a region sealed with {} through this descriptor: it is read-only, or no more seals may be added",
        Names(*found)
    )]
    Unsealable {
        /// `F_SEAL_*` bits that are there.
        found: u32,
    },
    /// The region is write-sealed, and perhaps only because F_SEAL_EXEC implied it, which on this kernel is no proof
    /// that nobody can write: from Linux 6.3 until commit 3b041514cb6e (2026, and in stable kernels) mappings were not
    /// looked at. It strikes executable memory, and what was live before it was frozen where the receiver did not have
    /// it while it was live.
    #[error(
        "expected a region whose write seal is proven, got one sealed with {}: on this kernel F_SEAL_EXEC may have \
         implied it while somebody had it mapped",
        Names(*found)
    )]
    Implied {
        /// `F_SEAL_*` bits that are there.
        found: u32,
    },
    /// The region is not as long as announced.
    #[error("expected a region of {expected} bytes, got one of {found}")]
    Size {
        /// Length announced, in bytes.
        expected: u64,
        /// Length found, in bytes.
        found: u64,
    },
    /// The region has holes: reading them would allocate memory at the reader's expense, and could fail with
    /// SIGBUS where memory is short. Blocks are counted, so that holes which are made up for by pages behind the end
    /// pass; they cost the reader no more than its quota.
    #[error("expected a region with all its {expected} bytes allocated, found {found}")]
    Sparse {
        /// Length of the region, in bytes.
        expected: u64,
        /// Bytes allocated.
        found: u64,
    },
    /// The memory is not on tmpfs (a hugetlb memfd, for instance).
    #[error("expected memory on tmpfs (type 0x01021994), got file system type {found:#x}")]
    FileSystem {
        /// `f_type` of statfs(2).
        found: u64,
    },
    /// [`Foreign`](crate::Foreign) memory ends sooner than announced: the other program has truncated it. Where it was
    /// written, the kernel may have found no memory for a hole in it instead.
    #[error(
        "expected {expected} bytes of foreign memory from byte {offset} on, only {found} are there"
    )]
    Short {
        /// First byte of the access, counted from the beginning of the region.
        offset: u64,
        /// Bytes asked for.
        expected: u64,
        /// Bytes copied before the end.
        found: u64,
    },
    /// A range that is not in the region.
    #[error("{len} bytes from byte {offset} on are not in a region of {available} bytes")]
    Outside {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Length of the region, in bytes.
        available: u64,
    },
    /// Longer than the receiver is willing to map for this peer.
    #[error("a region of {len} bytes is over this peer's quota of {quota} bytes")]
    Quota {
        /// Length of the region, in bytes.
        len: u64,
        /// What the receiver allows, in bytes.
        quota: u64,
    },
    /// The announced segment of a pool is mapped already. Its owner never uses an id twice.
    #[error("expected a new segment, got another one with the id {id}")]
    DuplicateSegment {
        /// The id announced.
        id: u32,
    },
    /// More segments than a pool can have.
    #[error("expected at most {max} segments of a pool at a time, got one more")]
    TooManySegments {
        /// How many a pool can have.
        max: usize,
    },
}

impl Error {
    /// An error of a system call that is a step of making or opening a region of `len` bytes.
    pub(crate) fn os<E: Into<io::Error>>(
        what: &'static str,
        len: usize,
    ) -> impl FnOnce(E) -> Error {
        move |source| Error::Os {
            what,
            len,
            source: source.into(),
        }
    }

    /// What F_ADD_SEALS said to the seals of a frozen region.
    pub(crate) fn freezing(errno: Errno, len: usize, found: SealFlags) -> Error {
        match errno {
            Errno::BUSY => Error::Busy { len: len as u64 },
            Errno::PERM => Error::Unsealable {
                found: found.bits(),
            },
            errno => Error::os("freeze", len)(errno),
        }
    }
}

/// What limits the memory of a process, see [`Error::Limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// RLIMIT_FSIZE, the size of any one file: a memfd is one.
    FileSize,
    /// RLIMIT_AS, all mappings together.
    AddressSpace,
    /// RLIMIT_MEMLOCK, all [locked](crate::Options::lock) memory together.
    LockedMemory,
    /// The memory cgroup of this process, or one above it. Others in it have a part in what is left.
    Cgroup,
    /// The memory and swap space of the machine.
    Memory,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::FileSize => "RLIMIT_FSIZE",
            Limit::AddressSpace => "RLIMIT_AS",
            Limit::LockedMemory => "RLIMIT_MEMLOCK",
            Limit::Cgroup => "the limit of this process's memory cgroup",
            Limit::Memory => "the available memory of this machine",
        })
    }
}

/// The names of `F_SEAL_*` bits.
struct Names(u32);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 6] = ["SEAL", "SHRINK", "GROW", "WRITE", "FUTURE_WRITE", "EXEC"];
        let named = NAMES.iter().enumerate();
        let present: Vec<_> = named
            .filter(|(bit, _)| self.0 & 1 << bit != 0)
            .map(|(_, name)| *name)
            .collect();
        match self.0 >> NAMES.len() {
            0 if present.is_empty() => f.write_str("nothing"),
            0 => f.write_str(&present.join("|")),
            _ => write!(f, "{:#x}", self.0),
        }
    }
}

/// A descriptor that was refused, and why.
///
/// The descriptor comes back because closing it here could hang: where the peer sent a file of a FUSE file
/// system, close(2) waits for that file system's server, unkillably. Close it where waiting harms nobody
/// (memlane-transport's `dispose`).
#[derive(Debug)]
pub struct Refused {
    /// What was expected, and what came.
    pub error: Error,
    /// The refused descriptor.
    pub descriptor: OwnedFd,
}

impl Refused {
    pub(crate) fn new(error: Error, descriptor: OwnedFd) -> Box<Refused> {
        Box::new(Refused { error, descriptor })
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Refused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// A region that could not become another kind of region: the reason, and the region, given back.
#[derive(Debug)]
pub struct Rejected<R> {
    /// What was expected, and what came.
    pub error: Error,
    /// The region as it is now.
    pub region: R,
}

impl<R> fmt::Display for Rejected<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<R: fmt::Debug> std::error::Error for Rejected<R> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seals_by_name() {
        assert_eq!(Names(0).to_string(), "nothing");
        assert_eq!(Names(0b10).to_string(), "SHRINK");
        assert_eq!(
            Names(0x3f).to_string(),
            "SEAL|SHRINK|GROW|WRITE|FUTURE_WRITE|EXEC"
        );
        assert_eq!(Names(0x41).to_string(), "0x41");
    }
}

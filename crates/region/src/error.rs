use std::io;

/// Why a region could not be made, or why a received one was refused.
///
/// A refused descriptor is handed back beside the error ([`Remote::open`](crate::Remote::open)): closing a
/// descriptor of unknown kind can hang for as long as a hostile file system likes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused to create, size, allocate, map or seal the memory. A full tmpfs or memory cgroup
    /// shows here, at creation, and never as a SIGBUS at use.
    #[error("cannot {what} a shared region of {len} bytes: {source}")]
    Os {
        /// The step that failed.
        what: &'static str,
        /// Length asked for, in bytes.
        len: usize,
        /// What the kernel said.
        source: io::Error,
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
    #[error(
        "expected a region sealed with {required:#x} (SHRINK|GROW|FUTURE_WRITE|SEAL), got seals {found:#x}"
    )]
    Seals {
        /// `F_SEAL_*` bits that must be there.
        required: u32,
        /// `F_SEAL_*` bits that are.
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
    /// SIGBUS where memory is short.
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
    /// Longer than the receiver is willing to map for this peer.
    #[error("a region of {len} bytes is over this peer's quota of {quota} bytes")]
    Quota {
        /// Length of the region, in bytes.
        len: u64,
        /// What the receiver allows, in bytes.
        quota: u64,
    },
}

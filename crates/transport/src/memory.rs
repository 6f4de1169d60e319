//! Bodies too long for a packet: sealed memory that the receiver copies from.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};
use rustix::io::{Errno, pread, write};
use rustix::process::{Resource, getrlimit};

use crate::error::Error;

/// Nobody can change it any more, its creator included (memfd_create(2)).
const FROZEN: SealFlags = SealFlags::WRITE
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW);

/// New memory that holds `bytes` and never anything else.
pub(crate) fn with(bytes: &[u8]) -> Result<OwnedFd, Error> {
    let failed = |error: Errno| {
        Error::io(
            format!("making memory for a body of {} bytes", bytes.len()),
            error,
        )
    };
    // A write beyond it would be answered by SIGXFSZ, which kills (setrlimit(2)).
    let most = getrlimit(Resource::Fsize).current;
    if most.is_some_and(|most| most < bytes.len() as u64) {
        return Err(failed(Errno::FBIG));
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = match memfd_create("memlane-body", flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => memfd_create("memlane-body", flags),
        other => other,
    }
    .map_err(failed)?;
    let mut left = bytes;
    while !left.is_empty() {
        match write(&memory, left) {
            Ok(count) => left = &left[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    seal(&memory).map_err(failed)?;
    Ok(memory)
}

/// How often the kernel is asked to seal memory that it calls busy.
const ATTEMPTS: usize = 8;

/// Seals memory that nobody else has yet. The kernel calls it busy all the same while it has hold of one of its pages itself, in
/// reclaim or compaction: it waits for 0.15 s then, and gives up (memfd_wait_for_pins in mm/memfd.c).
fn seal(memory: &OwnedFd) -> Result<(), Errno> {
    for _ in 1..ATTEMPTS {
        match fcntl_add_seals(memory, FROZEN | SealFlags::SEAL) {
            Err(Errno::BUSY) => {}
            sealed => return sealed,
        }
    }
    fcntl_add_seals(memory, FROZEN | SealFlags::SEAL)
}

/// The `size` bytes of `memory`, which came from a peer.
///
/// Seals are asked for first: only shared memory has them, and the kernel answers without entering the file, which could
/// be one that a hostile FUSE server lets hang. After that neither fstat nor pread can wait for anybody.
pub(crate) fn read(memory: impl AsFd, size: u64, limit: usize) -> Result<Vec<u8>, Error> {
    let size = match usize::try_from(size) {
        Ok(size) if size <= limit => size,
        _ => return Err(Error::PeerBodyTooLarge { size, limit }),
    };
    let refused = |found: String| Error::WrongDescriptor {
        expected: "memory sealed against writing, for a body",
        found,
    };
    let seals = fcntl_get_seals(&memory).map_err(|error| refused(format!("no memfd ({error})")))?;
    if !seals.contains(FROZEN) {
        return Err(refused(format!("memory with seals {seals:?}")));
    }
    let stat = fstat(&memory).map_err(|error| Error::io("asking for the size of a body", error))?;
    if u64::try_from(stat.st_size) != Ok(size as u64) {
        return Err(refused(format!(
            "{} bytes of memory for a body of {size}",
            stat.st_size
        )));
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(size).map_err(|error| {
        Error::io(
            format!("making room for a body of {size} bytes"),
            std::io::Error::other(error),
        )
    })?;
    while bytes.len() < size {
        let at = bytes.len() as u64;
        match pread(&memory, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(refused(format!("memory that ends after {at} bytes"))),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io("reading a body", error)),
        }
    }
    // Room beyond what was asked for may have been filled, too.
    bytes.truncate(size);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|byte| byte as u8).collect();
        let memory = with(&bytes).unwrap();
        assert_eq!(read(&memory, 100_000, 100_000).unwrap(), bytes);
        assert!(write(&memory, b"more").is_err());
        for (size, limit, why) in [
            (100_000, 99_999, "100000 bytes"),
            (u64::MAX, usize::MAX, "18446744073709551615"),
            (
                99_999,
                100_000,
                "100000 bytes of memory for a body of 99999",
            ),
            (100_001, 200_000, "100000 bytes of memory"),
        ] {
            let error = read(&memory, size, limit).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn memory_that_could_change_is_refused() {
        let memory = memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        write(&memory, b"body").unwrap();
        for missing in [SealFlags::WRITE, SealFlags::SHRINK] {
            // Added one by one: each time one is still missing.
            assert!(read(&memory, 4, 4).is_err(), "without {missing:?}");
            fcntl_add_seals(&memory, missing).unwrap();
        }
        assert!(read(&memory, 4, 4).is_err());
        fcntl_add_seals(&memory, SealFlags::GROW).unwrap();
        assert_eq!(read(&memory, 4, 4).unwrap(), b"body");
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(read(&null, 0, 4).is_err());
    }
}

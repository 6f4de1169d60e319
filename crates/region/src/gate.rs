use std::fmt;

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::SealFlags,
    io::Errno,
};

use crate::{
    Error,
    mapping::{Mapping, check_ring, page_size},
    shared::LIVE_SEALS,
    words::Words,
};

/// `f_type` of memfds (linux/magic.h); hugetlb memfds have another.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// A live region of a peer's: read-only here, and written by its creator alone, at any moment.
///
/// What is read from it is whatever the peer wrote, so it is copied out and checked, never borrowed, unless
/// the user vouches for the peer ([`Remote::bytes`]).
#[derive(Debug)]
pub struct Remote {
    mapping: Mapping,
}

/// A descriptor that [`Remote::open`] refused, and why.
///
/// The descriptor comes back because closing it here could hang: where the peer sent a file of a FUSE file
/// system, close(2) waits for that file system's server, unkillably. Close it where waiting harms nobody.
#[derive(Debug)]
pub struct Refused {
    /// What was expected, and what came.
    pub error: Error,
    /// The refused descriptor.
    pub descriptor: OwnedFd,
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

impl Remote {
    /// Verifies a received descriptor, then maps it: `header` bytes and a ring of `ring` bytes (0, or a
    /// power of two), as its creator announced them. The descriptor is closed once the region is mapped.
    ///
    /// The checks come in the one order in which each is safe (verified against a FUSE descriptor whose server
    /// never answers): `F_GET_SEALS`, which never blocks and only shared memory answers; the seals, by mask,
    /// since vm.memfd_noexec adds F_SEAL_EXEC; size; file system; allocation; `quota`, in bytes, what the
    /// caller is willing to map for this peer; mmap. Once it is mapped, nothing the peer does can make a read
    /// of it fault.
    ///
    /// # Errors
    ///
    /// [`Refused`], with the reason and the descriptor.
    pub fn open(
        descriptor: OwnedFd,
        header: usize,
        ring: usize,
        quota: usize,
    ) -> Result<Remote, Box<Refused>> {
        match verify_and_map(&descriptor, header, ring, quota) {
            Ok(mapping) => Ok(Remote { mapping }),
            Err(error) => Err(Box::new(Refused { error, descriptor })),
        }
    }

    /// Loads the control word at byte `offset` of the header, `Relaxed`; a fence afterwards orders it.
    ///
    /// # Panics
    ///
    /// If `offset` is not a multiple of 8 or outside of the header.
    #[inline(always)]
    pub fn load_word(&self, offset: usize) -> u64 {
        self.mapping
            .header_word(offset)
            .load(std::sync::atomic::Ordering::Relaxed)
    }

    /// `len` bytes of the ring, `offset` bytes after `position`, in place.
    ///
    /// # Safety
    ///
    /// The peer must not write these bytes while they are borrowed. Nothing but the peer's own code sees to
    /// that: it is a promise about another program.
    ///
    /// # Panics
    ///
    /// If `offset + len` is more than the ring's capacity.
    #[allow(unsafe_code)]
    #[inline(always)]
    pub unsafe fn bytes(&self, position: u64, offset: usize, len: usize) -> &[u8] {
        let bytes = self.mapping.range(position, offset, len);
        // SAFETY: `len` bytes are mapped there; that nobody writes them is the caller's promise.
        unsafe { std::slice::from_raw_parts(bytes, len) }
    }
}

impl Words for Remote {
    fn capacity(&self) -> u64 {
        self.mapping.ring_len() as u64
    }

    #[inline(always)]
    fn load(&self, position: u64) -> u64 {
        self.mapping
            .ring_word(position)
            .load(std::sync::atomic::Ordering::Relaxed)
    }

    #[inline(always)]
    fn read(&self, position: u64, offset: usize, dst: &mut [u8]) {
        self.mapping.read(position, offset, dst);
    }
}

fn verify_and_map(
    fd: &OwnedFd,
    header: usize,
    ring: usize,
    quota: usize,
) -> Result<Mapping, Error> {
    let page = page_size();
    check_ring(ring)?;
    if header == 0 || header % page != 0 {
        let expected = "a multiple of the page size";
        return Err(Error::Length {
            what: "a header",
            len: header as u64,
            expected,
        });
    }
    let Some(len) = header.checked_add(ring).filter(|&len| len <= quota) else {
        return Err(Error::Quota {
            len: (header as u64).saturating_add(ring as u64),
            quota: quota as u64,
        });
    };
    let os = |what| {
        move |errno: Errno| Error::Os {
            what,
            len,
            source: errno.into(),
        }
    };

    let seals = match rustix::fs::fcntl_get_seals(fd) {
        // EINVAL: not shared memory. EBADF: opened with O_PATH.
        Err(Errno::INVAL | Errno::BADF) => return Err(Error::NotSharedMemory),
        result => result.map_err(os("read the seals of"))?,
    };
    // A file on a tmpfs answers with F_SEAL_SEAL alone: the mask asks for SHRINK too.
    if !seals.contains(LIVE_SEALS) {
        let bits = |flags: SealFlags| flags.bits();
        return Err(Error::Seals {
            required: bits(LIVE_SEALS),
            found: bits(seals),
        });
    }
    // It is shared memory now, so that fstat and fstatfs are answered by the kernel alone.
    let stat = rustix::fs::fstat(fd).map_err(os("read the size of"))?;
    if stat.st_size as u64 != len as u64 {
        return Err(Error::Size {
            expected: len as u64,
            found: stat.st_size as u64,
        });
    }
    let file_system = rustix::fs::fstatfs(fd)
        .map_err(os("read the file system of"))?
        .f_type as u64;
    if file_system != TMPFS_MAGIC {
        return Err(Error::FileSystem { found: file_system });
    }
    let allocated = (stat.st_blocks as u64).saturating_mul(512);
    if allocated < len as u64 {
        return Err(Error::Sparse {
            expected: len as u64,
            found: allocated,
        });
    }
    Mapping::new(fd.as_fd(), header, ring, false).map_err(|source| Error::Os {
        what: "map",
        len,
        source,
    })
}

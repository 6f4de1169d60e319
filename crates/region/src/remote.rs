use rustix::fd::{AsFd, OwnedFd};

use crate::{
    Error, PageKind, Quota, Refused,
    gate::{self, LIVE_SEALS},
    limits,
    mapping::{Mapping, check_ring, page_size},
    words::Words,
};

/// A live region of a peer's: read-only here, and written by its creator alone, at any moment.
///
/// What is read from it is whatever the peer wrote, so it is copied out and checked, never borrowed, unless
/// the user vouches for the peer ([`Remote::bytes`]). A clone is the same mapping once more.
#[derive(Clone, Debug)]
pub struct Remote {
    pub(crate) mapping: Mapping,
}

impl Remote {
    /// Verifies a received descriptor, then maps it: `header` bytes and a ring of `ring` bytes (0, or a
    /// power of two), as its creator announced them. The descriptor is closed once the region is mapped.
    ///
    /// The checks come in the one order in which each is safe (verified against a FUSE descriptor whose server
    /// never answers): `F_GET_SEALS`, which never blocks and only shared memory answers; the seals, by mask,
    /// since vm.memfd_noexec adds F_SEAL_EXEC; file system; size; `quota`, in bytes or as [`Quota`], what the
    /// caller is willing to map for this peer; allocation; mmap. Once it is mapped, nothing the peer does can make a read
    /// of it fault.
    ///
    /// # Errors
    ///
    /// [`Refused`], with the reason and the descriptor.
    pub fn open(
        descriptor: OwnedFd,
        header: usize,
        ring: usize,
        quota: impl Into<Quota>,
    ) -> Result<Remote, Box<Refused>> {
        match verify_and_map(&descriptor, header, ring, quota.into()) {
            Ok(mapping) => Ok(Remote { mapping }),
            Err(error) => Err(Refused::new(error, descriptor)),
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

    /// Which pages it is made of in this process's mapping, as far as they have been touched through it (a mapping that is
    /// new, as after freezing or opening, has none), asked of the kernel: not for a hot path.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] without /proc.
    pub fn page_kind(&self) -> Result<PageKind, Error> {
        let mapping = &self.mapping;
        let len = mapping.header_len() + mapping.ring_len();
        mapping.address_space().page_kind(len)
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

    #[inline(always)]
    fn load_control(&self, offset: usize) -> u64 {
        self.load_word(offset)
    }

    #[inline(always)]
    fn prefetch(&self, position: u64) {
        self.mapping.prefetch(position);
    }
}

fn verify_and_map(
    fd: &OwnedFd,
    header: usize,
    ring: usize,
    quota: Quota,
) -> Result<Mapping, Error> {
    check_ring(ring)?;
    if header == 0 || header % page_size() != 0 {
        let expected = "a multiple of the page size";
        return Err(Error::Length {
            what: "a header",
            len: header as u64,
            expected,
        });
    }
    let len = header.saturating_add(ring);
    // Before anything is asked of the kernel: what was announced is too much already.
    quota.check(len as u64)?;
    gate::verify(fd, LIVE_SEALS, Some(len), quota)?;
    Mapping::new(fd.as_fd(), header, ring, false, true).map_err(limits::mapping(len, len + ring))
}

use std::{
    fmt,
    ops::Deref,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::fs::{SealFlags, fcntl_add_seals, fcntl_get_seals};

use crate::{
    Error, HugePages, Options, PageKind, Quota, Refused, Region,
    gate::{self, FROZEN_SEALS},
    memory,
    pages::{Access, Pages, Wanted},
};

/// A frozen region: immutable for everybody, for ever, whoever made it. So it is a plain `&[u8]`.
///
/// The kernel vouches for that: the seals WRITE, SHRINK and GROW were seen on the memory (fcntl(2)). They cannot be
/// removed, and F_SEAL_WRITE is given only while nobody can write: not through a mapping, not through a page that
/// is in a pipe or in I/O under way. (Where F_SEAL_EXEC gives it without that, as in Linux 6.3 and for three years after,
/// memory that may have it from there is refused: [`Error::Implied`].)
///
/// A clone is the same memory once more, for the price of a reference count. The descriptor
/// ([`AsFd`]) can be sent any number of times, to anybody. It is inherited over fork(2).
///
/// ```
/// use memlane_region::Frozen;
///
/// let mine = Frozen::copy_of("answer", b"42")?;
/// // ... a descriptor of it travels to another process, which opens it:
/// # use std::os::fd::AsFd;
/// let descriptor = mine.as_fd().try_clone_to_owned()?;
/// let theirs = Frozen::open(descriptor, 1 << 20)?;
/// assert_eq!(&theirs[..], b"42");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// There is no way to write to it:
///
/// ```compile_fail,E0594
/// let mut frozen = memlane_region::Frozen::copy_of("answer", b"42")?;
/// frozen[0] = 0;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Frozen(Arc<Inner>);

struct Inner {
    pages: Pages,
    len: usize,
    fd: OwnedFd,
}

impl Frozen {
    pub(crate) fn new(pages: Pages, len: usize, fd: OwnedFd) -> Frozen {
        Frozen(Arc::new(Inner { pages, len, fd }))
    }

    /// A new frozen region with a copy of `bytes`, at least one. `options` are a name or [`Options`].
    ///
    /// # Errors
    ///
    /// As [`Region::create`](crate::Region::create).
    pub fn copy_of(options: impl Into<Options>, bytes: &[u8]) -> Result<Frozen, Error> {
        let options = options.into();
        if options.huge_pages != HugePages::Never {
            // Which write(2) would not make, or not take.
            let region = Region::copy_of(options, bytes)?;
            return region.freeze().map_err(|rejected| rejected.error);
        }
        let len = bytes.len();
        let fd = memory::copy_of(&options, bytes)?;
        fcntl_add_seals(&fd, FROZEN_SEALS | SealFlags::SEAL)
            .map_err(|errno| Error::freezing(errno, len, SealFlags::empty()))?;
        let pages = Pages::map(fd.as_fd(), len, Access::Frozen, Wanted::of(&options))?;
        pages.lock()?;
        Ok(Frozen::new(pages, len, fd))
    }

    /// Verifies a received descriptor, that its memory is frozen, and maps it. Its length is the file's.
    ///
    /// The checks come in the one order in which each is safe, see [`Remote::open`](crate::Remote::open).
    /// `quota` is what the caller is willing to map of this peer's, in bytes or as [`Quota`].
    ///
    /// # Errors
    ///
    /// [`Refused`], with the reason and the descriptor.
    pub fn open(descriptor: OwnedFd, quota: impl Into<Quota>) -> Result<Frozen, Box<Refused>> {
        Frozen::open_seen(descriptor, None, quota.into())
    }

    /// Opens memory on which the seals `earlier` were seen before, if any.
    pub(crate) fn open_seen(
        descriptor: OwnedFd,
        earlier: Option<SealFlags>,
        quota: Quota,
    ) -> Result<Frozen, Box<Refused>> {
        match verify_and_map(&descriptor, earlier, quota) {
            Ok((pages, len)) => Ok(Frozen::new(pages, len, descriptor)),
            Err(error) => Err(Refused::new(error, descriptor)),
        }
    }

    /// Which pages it is made of in this process's mapping, as far as they have been touched through it (a mapping that is
    /// new, as after freezing or opening, has none), asked of the kernel: not for a hot path.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] without /proc.
    pub fn page_kind(&self) -> Result<PageKind, Error> {
        self.0.pages.page_kind()
    }

    /// Freezes a received region and opens it.
    pub(crate) fn claim(descriptor: OwnedFd, quota: Quota) -> Result<Frozen, Box<Refused>> {
        match seal(&descriptor) {
            Ok(earlier) => Frozen::open_seen(descriptor, Some(earlier), quota),
            Err(error) => Err(Refused::new(error, descriptor)),
        }
    }
}

fn verify_and_map(
    fd: &OwnedFd,
    earlier: Option<SealFlags>,
    quota: Quota,
) -> Result<(Pages, usize), Error> {
    let len = gate::frozen(fd, earlier, quota)?;
    let pages = Pages::map(fd.as_fd(), len, Access::Frozen, Wanted::DEFAULT)?;
    Ok((pages, len))
}

/// Adds the seals of a frozen region to a received one. Those it had before.
fn seal(fd: &OwnedFd) -> Result<SealFlags, Error> {
    let found = gate::seals(fd)?;
    if found.contains(FROZEN_SEALS) {
        return Ok(found);
    }
    // From here on it is shared memory, and fstat is answered by the kernel alone.
    let len = rustix::fs::fstat(fd).map_or(0, |stat| stat.st_size as usize);
    // All of them or none: the kernel sets them in one step.
    match fcntl_add_seals(fd, FROZEN_SEALS | SealFlags::SEAL) {
        Ok(()) => Ok(found),
        // Its maker may have frozen it in the meantime.
        Err(errno) => match fcntl_get_seals(fd) {
            Ok(now) if now.contains(FROZEN_SEALS) => Ok(found),
            _ => Err(Error::freezing(errno, len, found)),
        },
    }
}

impl Deref for Frozen {
    type Target = [u8];

    #[inline(always)]
    fn deref(&self) -> &[u8] {
        // SAFETY: the memory carries FROZEN_SEALS: added by `Region::freeze` or `Live::freeze`, or seen by the gate, and
        // known to be more than implied.
        // So nobody can write it, punch it or shorten it (memfd_create(2), fcntl(2)), and `len` is its length.
        unsafe { self.0.pages.bytes(self.0.len) }
    }
}

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// The descriptor to send. It stays the region's.
impl AsFd for Frozen {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frozen")
            .field("len", &self.len())
            .field("fd", &self.0.fd)
            .finish()
    }
}

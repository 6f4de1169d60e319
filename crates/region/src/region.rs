use std::{
    ops::{Deref, DerefMut},
    os::fd::OwnedFd,
};

use rustix::{
    fd::AsFd,
    fs::{SealFlags, fcntl_add_seals},
    io::Errno,
};

use crate::{
    Error, Frozen, Live, Moved, Options, PageKind, Quota, Refused, Rejected,
    gate::{self, FREEZABLE_SEALS, FROZEN_SEALS, LIVE_SEALS, WRITABLE_SEALS},
    mapping::page_size,
    memory::{self, Memory},
    pages::{Access, Pages, Wanted},
};

/// How often the kernel is asked to seal memory that it calls busy.
const ATTEMPTS: usize = 8;

/// Seals memory that nobody else has, as far as is known. The kernel calls it busy all the same while it has hold of one of its
/// pages itself: it waits for 0.15 s then, and gives up (memfd_wait_for_pins in mm/memfd.c). Of a mapping that is in the way it
/// says so at once.
fn insist(mut seal: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    for _ in 1..ATTEMPTS {
        match seal() {
            Err(Errno::BUSY) => {}
            sealed => return sealed,
        }
    }
    seal()
}

/// A region of mine: nobody else has it, so that it is a plain `&mut [u8]`.
///
/// It starts as zeroes, all of it allocated. From here it goes one of three ways:
///
/// | | becomes | others get |
/// |---|---|---|
/// | [`freeze`](Region::freeze) | [`Frozen`]: immutable for everybody, for ever | a `Frozen` too |
/// | [`share`](Region::share) | [`Live`]: goes on being written here, and nowhere else | a [`LiveView`](crate::LiveView) |
/// | [`into_moved`](Region::into_moved) | [`Moved`]: a descriptor to be sent away | the region: [`Moved::claim`] |
///
/// It is not inherited over fork(2): a child must not touch it. A process of the same user that may trace this
/// one (ptrace(2)) can reach into it as into all other memory; the threat model says so.
///
/// ```
/// use memlane_region::Region;
///
/// let mut region = Region::create("greeting", 1 << 16)?;
/// region[..5].copy_from_slice(b"hello");
/// region.truncate(5)?;
/// let frozen = region.freeze()?;
/// assert_eq!(&frozen[..], b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// What is frozen or shared is no longer the region it was:
///
/// ```compile_fail,E0382
/// let mut region = memlane_region::Region::create("once", 1)?;
/// let frozen = region.freeze()?;
/// region[0] = 1; // moved
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Region {
    pages: Pages,
    len: usize,
    fd: OwnedFd,
}

impl Region {
    /// Creates a region of `len` bytes, all zero. `options` are a name or [`Options`].
    ///
    /// All of it is allocated here, and charged to this process's memory cgroup: what is missing is missing here, and
    /// no access to it fails later. At the limit of a cgroup or of the machine the kernel itself knows no error, only
    /// the OOM killer. So from 4 MiB on, a region is compared with what is left before it takes it. That
    /// leaves to the killer what smaller regions add up to, and what others allocate at the same moment.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] for 0 bytes, or more than 2^46. [`Error::Limit`] if it is over what a resource limit
    /// (getrlimit(2)), a cgroup or the machine leaves. [`Error::Os`] if the kernel refuses, for lack of
    /// descriptors above all.
    pub fn create(options: impl Into<Options>, len: usize) -> Result<Region, Error> {
        let options = options.into();
        let memory = memory::create(&options, len)?;
        let pages = Pages::create(&memory, &options)?;
        let Memory { fd, len, .. } = memory;
        Ok(Region { pages, len, fd })
    }

    /// Which pages it is made of in this process's mapping, as far as they have been touched through it (a mapping that is
    /// new, as after freezing or opening, has none), asked of the kernel: not for a hot path.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] without /proc.
    pub fn page_kind(&self) -> Result<PageKind, Error> {
        self.pages.page_kind()
    }

    /// A region with a copy of `bytes`, at least one.
    ///
    /// # Errors
    ///
    /// As [`create`](Region::create).
    pub fn copy_of(options: impl Into<Options>, bytes: &[u8]) -> Result<Region, Error> {
        let mut region = Region::create(options, bytes.len())?;
        // In hugetlb pages, it is longer.
        region[..bytes.len()].copy_from_slice(bytes);
        Ok(region)
    }

    /// Shortens it to `len` bytes, at least one; the memory behind goes back to the kernel. Does nothing if it
    /// is not longer. In hugetlb pages, `len` is rounded up to whole ones.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] for 0 bytes; [`Error::Os`] if the kernel refuses.
    pub fn truncate(&mut self, len: usize) -> Result<(), Error> {
        if len == 0 {
            return Err(Error::Length {
                what: "a region",
                len: 0,
                expected: "at least 1 byte",
            });
        }
        // Of pages of the usual size, the last may be used in part.
        let granule = memory::granule(self.fd.as_fd()).map_err(Error::os("truncate", len))?;
        let len = match granule > page_size() {
            true => len.saturating_add(granule - 1) / granule * granule,
            false => len,
        };
        if len < self.len {
            rustix::fs::ftruncate(&self.fd, len as u64).map_err(Error::os("truncate", len))?;
            // Of the mapping, what lies behind `len` is never touched again.
            self.len = len;
        }
        Ok(())
    }

    /// Makes it immutable, for everybody and for ever: the kernel takes no write to it any more, and no one can
    /// resize it.
    ///
    /// The kernel itself may have hold of a page for a moment, in reclaim or compaction: it is asked up to 8 times then, each
    /// of which takes 0.16 s. So this can take longer than a second, though next to never.
    ///
    /// # Errors
    ///
    /// [`Rejected`], with the region as it was: [`Error::Limit`] if it is to be [locked](Options::lock) and others have
    /// used up the limit meanwhile (it is locked no more then); [`Error::Busy`] if somebody has got hold of it by other ways
    /// (`/proc/PID/fd`), [`Error::Os`].
    ///
    /// # Panics
    ///
    /// If it cannot be frozen and the kernel has no memory to map it again, as it just was.
    pub fn freeze(self) -> Result<Frozen, Box<Rejected<Region>>> {
        let len = self.len;
        // Before anything else, since afterwards it could not be undone.
        let wanted = self.pages.wanted();
        let read_only = match Pages::map(self.fd.as_fd(), len, Access::Frozen, wanted) {
            Ok(pages) => pages,
            Err(error) => return Err(self.rejected(error)),
        };
        let Region { pages, fd, .. } = self;
        // The kernel counts this mapping as one that may be writing.
        drop(pages);
        // The limit on locked memory counts each mapping: this one is locked once the other is gone.
        let sealed = read_only.lock().and_then(|()| {
            insist(|| fcntl_add_seals(&fd, FROZEN_SEALS | SealFlags::SEAL))
                .map_err(|errno| Error::freezing(errno, len, SealFlags::empty()))
        });
        match sealed {
            Ok(()) => Ok(Frozen::new(read_only, len, fd)),
            Err(error) => {
                drop(read_only);
                let pages = Pages::map(fd.as_fd(), len, Access::Write, wanted)
                    .expect("a region of one's own, unmapped a moment ago, can be mapped again");
                // Where others have used up the limit meanwhile, it is locked no more.
                let _ = pages.lock();
                Err(Region { pages, len, fd }.rejected(error))
            }
        }
    }

    /// Shares it: this process goes on writing, others get it read-only, and the kernel enforces that. It can never
    /// be frozen.
    ///
    /// # Errors
    ///
    /// [`Rejected`], with the region as it was.
    pub fn share(self) -> Result<Live, Box<Rejected<Region>>> {
        if let Err(errno) = fcntl_add_seals(&self.fd, LIVE_SEALS) {
            let error = Error::os("seal", self.len)(errno);
            return Err(self.rejected(error));
        }
        Ok(Live::new(self.pages, self.len, self.fd, None))
    }

    /// As [`share`](Region::share), and it can be frozen later ([`Live::freeze`]), for which others get a
    /// descriptor that is read-only as well, so that they cannot seal it. This takes /proc.
    ///
    /// Readers can veto the freezing, for as long as they have a page of it in a pipe. Those of the same user can open
    /// their descriptor again for writing (/proc/self/fd), and so veto it for ever by forbidding more seals, or make it
    /// wait ([`Moved::claim`]). Write to it they cannot.
    ///
    /// # Errors
    ///
    /// [`Rejected`], with the region as it was.
    pub fn share_freezable(self) -> Result<Live, Box<Rejected<Region>>> {
        let reader = match memory::reopen_read_only(self.fd.as_fd()) {
            Ok(reader) => reader,
            Err(errno) => {
                let error = Error::os("open a read-only descriptor of", self.len)(errno);
                return Err(self.rejected(error));
            }
        };
        if let Err(errno) = fcntl_add_seals(&self.fd, FREEZABLE_SEALS) {
            let error = Error::os("seal", self.len)(errno);
            return Err(self.rejected(error));
        }
        Ok(Live::new(self.pages, self.len, self.fd, Some(reader)))
    }

    /// As [`share`](Region::share), for programs that map writable what they only read, and refuse memory that forbids
    /// it, as libwayland-server does with `wl_shm` pools: the kernel does not keep them from writing. Nobody can change its
    /// length, and it can never be frozen.
    ///
    /// For memory that others are meant to write there is [`Foreign::create`](crate::Foreign::create).
    ///
    /// # Safety
    ///
    /// As long as the [`Live`] region exists, nobody who gets its descriptor writes to the memory or punches holes into
    /// it. Nothing but the code of those programs sees to that.
    ///
    /// # Errors
    ///
    /// [`Rejected`], with the region as it was.
    pub unsafe fn share_writable(self) -> Result<Live, Box<Rejected<Region>>> {
        if let Err(errno) = fcntl_add_seals(&self.fd, WRITABLE_SEALS) {
            let error = Error::os("seal", self.len)(errno);
            return Err(self.rejected(error));
        }
        Ok(Live::new(self.pages, self.len, self.fd, None))
    }

    /// Gives it up here, to be sent to another process, which makes it its own ([`Moved::claim`]).
    pub fn into_moved(self) -> Moved {
        Moved::from(self.fd)
    }

    /// Makes a received descriptor a region of mine.
    ///
    /// # Errors
    ///
    /// [`Refused`], with the reason and the descriptor.
    pub(crate) fn own(fd: OwnedFd, quota: Quota) -> Result<Region, Box<Refused>> {
        let result = gate::private(&fd, quota).and_then(|len| {
            let pages = Pages::map(fd.as_fd(), len, Access::Write, Wanted::DEFAULT)?;
            Ok((pages, len))
        });
        match result {
            Ok((pages, len)) => Ok(Region { pages, len, fd }),
            Err(error) => Err(Refused::new(error, fd)),
        }
    }

    fn rejected(self, error: Error) -> Box<Rejected<Region>> {
        let region = self;
        Box::new(Rejected { error, region })
    }
}

impl Deref for Region {
    type Target = [u8];

    #[inline(always)]
    fn deref(&self) -> &[u8] {
        // SAFETY: the descriptor never left this process as long as this is a `Region` (or whoever made it of a
        // received one vouched for that), so that nobody else has the memory; here it is written through
        // `&mut self` alone. The file is `len` bytes long, since nobody else can shorten it.
        unsafe { self.pages.bytes(self.len) }
    }
}

impl DerefMut for Region {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively; it is mapped with `Access::Write`.
        unsafe { self.pages.bytes_mut(self.len) }
    }
}

impl AsRef<[u8]> for Region {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Region {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

#[cfg(all(test, not(memlane_loom)))]
mod tests {
    use super::*;

    /// A page that the kernel has isolated counts as pinned, which no test can bring about.
    #[test]
    fn memory_that_the_kernel_calls_busy_is_sealed_a_little_later() {
        let sealed_after = |busy: usize, then: Result<(), Errno>| {
            let mut asked = 0;
            let sealed = insist(|| {
                asked += 1;
                if asked > busy { then } else { Err(Errno::BUSY) }
            });
            (asked, sealed)
        };
        assert_eq!(sealed_after(0, Ok(())), (1, Ok(())));
        assert_eq!(sealed_after(7, Ok(())), (8, Ok(())));
        assert_eq!(sealed_after(8, Ok(())), (8, Err(Errno::BUSY)));
        assert_eq!(sealed_after(2, Err(Errno::PERM)), (3, Err(Errno::PERM)));
    }
}

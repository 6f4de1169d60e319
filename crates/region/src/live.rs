use std::{
    ops::{Deref, DerefMut},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::fs::{SealFlags, fcntl_add_seals, fcntl_get_seals};

use crate::{
    Error, Frozen, Moved, PageKind, Rejected,
    gate::{FREEZABLE_SEALS, FROZEN_SEALS, LIVE_SEALS},
    pages::{Access, Pages},
};

/// A live region of mine: this process writes it, others read it while it does ([`LiveView`](crate::LiveView)), and
/// the kernel lets nobody else write (but see [`Region::share_writable`](crate::Region::share_writable)).
///
/// Here it is a plain `&mut [u8]`, since no other process can write it. What others see of a write, and when, is as
/// with all memory: to hand over something whole, say so on a lane or a link afterwards.
///
/// The descriptor to send is its [`AsFd`]. It is not inherited over fork(2).
///
/// ```
/// use memlane_region::{LiveView, Region};
/// # use std::os::fd::AsFd;
///
/// let mut live = Region::create("gauge", 4096)?.share()?;
/// // ... the descriptor travels to another process, which opens it:
/// let view = LiveView::open(live.as_fd().try_clone_to_owned()?, 1 << 20)?;
/// live[..4].copy_from_slice(b"37.2");
/// let mut reading = [0; 4];
/// view.read(0, &mut reading);
/// assert_eq!(&reading, b"37.2");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Live {
    pages: Pages,
    len: usize,
    fd: OwnedFd,
    /// A read-only descriptor for others, if it can be frozen later: one that can write vetoes that.
    reader: Option<OwnedFd>,
}

impl Live {
    pub(crate) fn new(pages: Pages, len: usize, fd: OwnedFd, reader: Option<OwnedFd>) -> Live {
        Live {
            pages,
            len,
            fd,
            reader,
        }
    }

    /// Stores the 64-bit word at byte `offset`, after everything written before it (`Release`): readers who
    /// [load](crate::LiveView::load) it, and fence (`Acquire`), find what was written before.
    ///
    /// ```
    /// use memlane_region::{LiveView, Region};
    /// # use std::os::fd::AsFd;
    /// use std::sync::atomic::{Ordering, fence};
    ///
    /// let mut live = Region::create("gauge", 4096)?.share()?;
    /// let view = LiveView::open(live.as_fd().try_clone_to_owned()?, 1 << 20)?;
    /// live[8..12].copy_from_slice(b"37.2");
    /// live.store(0, 1);
    /// // ... in another process:
    /// if view.load(0) == 1 {
    ///     fence(Ordering::Acquire);
    ///     let mut reading = [0; 4];
    ///     view.read(8, &mut reading);
    ///     assert_eq!(&reading, b"37.2");
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If `offset` is not a multiple of 8, or the word does not end in the region.
    #[inline]
    pub fn store(&mut self, offset: usize, value: u64) {
        assert!(
            offset.checked_add(8).is_some_and(|end| end <= self.len),
            "no word at byte {offset} of a region of {} bytes",
            self.len
        );
        // SAFETY: as for `deref_mut`.
        unsafe { self.pages.store(offset, value) }
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

    /// Stops writing, and makes it immutable, for everybody and for ever. Readers can turn their views into
    /// [`Frozen`] regions then ([`LiveView::frozen`](crate::LiveView::frozen)).
    ///
    /// # Errors
    ///
    /// [`Error::Unsealable`] if it was not shared as one that can be frozen, with the region as it was, or if a reader of
    /// the same user forbade more seals, and then it is given back as below.
    /// [`Error::Busy`] if a reader vetoes it ([`Region::share_freezable`](crate::Region::share_freezable)), after
    /// 0.16 s where a page is in use: the region is given back as [`Ended`], since the kernel lets nobody map it writable
    /// again; it can be [tried again](Moved::claim). So it is if it is to be [locked](crate::Options::lock) and others
    /// have used up the limit meanwhile.
    pub fn freeze(self) -> Result<Frozen, Box<Rejected<Ended>>> {
        let len = self.len;
        let live = |error, region| Err(Box::new(Rejected { error, region }));
        if self.reader.is_none() {
            let found = fcntl_get_seals(&self.fd).unwrap_or(LIVE_SEALS).bits();
            return live(Error::Unsealable { found }, Ended::Live(self));
        }
        let wanted = self.pages.wanted();
        let read_only = match Pages::map(self.fd.as_fd(), len, Access::Frozen, wanted) {
            Ok(pages) => pages,
            Err(error) => return live(error, Ended::Live(self)),
        };
        let Live { pages, fd, .. } = self;
        drop(pages);
        // Now that it is locked no more through the other mapping: the limit counts both.
        if let Err(error) = read_only.lock() {
            return live(error, Ended::Unmapped(Moved::from(fd)));
        }
        match fcntl_add_seals(&fd, FROZEN_SEALS | SealFlags::SEAL) {
            Ok(()) => Ok(Frozen::new(read_only, len, fd)),
            Err(errno) => {
                let error = Error::freezing(errno, len, FREEZABLE_SEALS);
                live(error, Ended::Unmapped(Moved::from(fd)))
            }
        }
    }
}

/// What is left of a [`Live`] region that could not be frozen.
#[derive(Debug)]
pub enum Ended {
    /// The region, as it was.
    Live(Live),
    /// Its memory, which nobody can map writable any more.
    Unmapped(Moved),
}

impl Deref for Live {
    type Target = [u8];

    #[inline(always)]
    fn deref(&self) -> &[u8] {
        // SAFETY: it was a `Region`, and got the seals SHRINK, GROW and FUTURE_WRITE before its descriptor could leave
        // this process. So this mapping is the only one that can write (tests/single_writer.rs), and here it is
        // written through `&mut self` alone. Of one that others could write, `Region::share_writable`'s caller has
        // promised that they do not.
        unsafe { self.pages.bytes(self.len) }
    }
}

impl DerefMut for Live {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively. Other processes read without references: they are
        // outside of this program, and what they see is their business.
        unsafe { self.pages.bytes_mut(self.len) }
    }
}

impl AsRef<[u8]> for Live {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Live {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// The descriptor to send: the permission to read. It stays the region's.
impl AsFd for Live {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_ref().unwrap_or(&self.fd).as_fd()
    }
}

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::SealFlags;

use crate::{
    Error, Frozen, PageKind, Quota, Refused, Rejected,
    gate::{self, VIEW_SEALS},
    pages::{Access, Pages, Wanted},
};

/// A peer's live region, read-only here, and written by its maker at any moment.
///
/// So it is never borrowed as `&[u8]`, unless the caller vouches for its maker: bytes are copied out
/// ([`read`](LiveView::read)), and what is checked must be the copy. Reads do not fault, whatever the maker does.
///
/// There is no safe way to a reference:
///
/// ```compile_fail,E0614
/// fn borrow(view: &memlane_region::LiveView) -> &[u8] {
///     &**view
/// }
/// ```
#[derive(Debug)]
pub struct LiveView {
    pages: Pages,
    /// Those it had when it was opened.
    seals: SealFlags,
    fd: OwnedFd,
}

impl LiveView {
    /// Verifies a received descriptor of a [`Live`](crate::Live) region and maps it. Its length is the file's.
    ///
    /// The checks come in the one order in which each is safe, see [`Remote::open`](crate::Remote::open). `quota` is
    /// what the caller is willing to map of this peer's, in bytes or as [`Quota`].
    ///
    /// # Errors
    ///
    /// [`Refused`], with the reason and the descriptor.
    pub fn open(descriptor: OwnedFd, quota: impl Into<Quota>) -> Result<LiveView, Box<Refused>> {
        let verified = gate::verify(&descriptor, VIEW_SEALS, None, quota.into());
        let mapped = verified
            .and_then(|len| Pages::map(descriptor.as_fd(), len, Access::Read, Wanted::DEFAULT));
        match mapped {
            Ok(pages) => Ok(LiveView {
                pages,
                seals: gate::seals(&descriptor).unwrap_or(VIEW_SEALS),
                fd: descriptor,
            }),
            Err(error) => Err(Refused::new(error, descriptor)),
        }
    }

    /// Its length in bytes, which does not change.
    #[allow(clippy::len_without_is_empty)] // a region is never empty
    pub fn len(&self) -> usize {
        self.pages.len()
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

    /// Copies `dst.len()` bytes from `offset` on. If the maker writes meanwhile, the copy may be a mixture.
    ///
    /// # Panics
    ///
    /// If the region ends before that.
    #[inline]
    pub fn read(&self, offset: usize, dst: &mut [u8]) {
        self.pages.read(offset, dst);
    }

    /// Loads the 64-bit word at byte `offset`, `Relaxed`. `fence(Acquire)` after it pairs with the `Release` of
    /// [`Live::store`](crate::Live::store): who has loaded what was stored, and then fenced, reads what was written
    /// before the store.
    ///
    /// # Panics
    ///
    /// If `offset` is not a multiple of 8, or the word does not end in the region.
    #[inline]
    pub fn load(&self, offset: usize) -> u64 {
        self.pages.load(offset)
    }

    /// Its bytes, in place.
    ///
    /// # Safety
    ///
    /// The maker must not write them while they are borrowed. Nothing but its own code sees to that: it is a promise
    /// about another program.
    #[allow(unsafe_code)]
    #[inline(always)]
    pub unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: the caller vouches for the maker; nobody else can write.
        unsafe { self.pages.bytes(self.pages.len()) }
    }

    /// The region as a [`Frozen`] one, once its maker has [frozen](crate::Live::freeze) it.
    ///
    /// # Errors
    ///
    /// [`Rejected`], with the view: it is not frozen ([`Error::Seals`]), that is not proven on this kernel
    /// ([`Error::Implied`], not for regions that [`Options`](crate::Options) make), or it cannot be mapped.
    pub fn frozen(self) -> Result<Frozen, Box<Rejected<LiveView>>> {
        let quota = Quota::new(self.pages.len()).hugetlb(true);
        let LiveView { pages, seals, fd } = self;
        // The gate sees it anew: only the seals can have changed.
        Frozen::open_seen(fd, Some(seals), quota).map_err(|refused| {
            Box::new(Rejected {
                error: refused.error,
                region: LiveView {
                    pages,
                    seals,
                    fd: refused.descriptor,
                },
            })
        })
    }
}

/// The descriptor, to be sent on: what can be read here can be read there. It stays the view's.
impl AsFd for LiveView {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::{Frozen, Quota, Refused, Region};

/// A region that changes hands: a descriptor, mapped nowhere as far as this process knows.
///
/// Its sender makes one of a [`Region`] ([`Region::into_moved`]) and sends it; the receiver, who cannot know what the
/// sender kept, makes it its own:
///
/// - [`claim`](Moved::claim) proves that nobody can write it any more, by asking the kernel to freeze it;
/// - [`own`](Moved::own) takes it as a writable [`Region`], for which the caller has to trust the sender.
///
/// ```
/// use memlane_region::Region;
///
/// let region = Region::copy_of("frame", &[7; 4096])?;
/// let moved = region.into_moved();
/// // ... it travels, and the receiver claims it:
/// let frozen = moved.claim(1 << 20)?;
/// assert_eq!(frozen[4095], 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Moved(OwnedFd);

impl Moved {
    /// Freezes the region. That the kernel does so is the proof that nobody can write it: not its former owner
    /// through a mapping it kept, not a child that inherited one, not a pipe with a page of it.
    ///
    /// If a page is in use, the kernel waits for it, 0.16 s at most. And whoever has a descriptor can make it wait for
    /// as long as he likes, and unkillably: by a write(2) whose source he does not let be read (a page of a FUSE file,
    /// userfaultfd(2)), during which the kernel takes no seals. So this is not for a thread that others need, where the
    /// sender is not trusted; [`Frozen::open`] waits for nobody, and asks of the sender to freeze it.
    ///
    /// A region that is frozen already is taken as it is. `quota` is what the caller is willing to map of this peer's, in
    /// bytes or as [`Quota`].
    ///
    /// # Errors
    ///
    /// [`Refused`], with the descriptor: [`Error::Busy`](crate::Error::Busy) if somebody still has it,
    /// [`Error::Unsealable`](crate::Error::Unsealable), or what [`Frozen::open`] refuses; by then it may be frozen.
    pub fn claim(self, quota: impl Into<Quota>) -> Result<Frozen, Box<Refused>> {
        Frozen::claim(self.0, quota.into())
    }

    /// Takes the region as it is, to read and write it.
    ///
    /// # Safety
    ///
    /// Nobody else has this memory: whoever had it before has unmapped it and closed its descriptors, or will use
    /// neither again. Nothing but the code of those programs sees to that, since the kernel has no proof to give
    /// but that of [`claim`](Moved::claim).
    ///
    /// # Errors
    ///
    /// [`Refused`], with the descriptor. No seal may be on it but EXEC.
    pub unsafe fn own(self, quota: impl Into<Quota>) -> Result<Region, Box<Refused>> {
        Region::own(self.0, quota.into())
    }
}

/// A received descriptor, of whatever kind: it is looked at when it is claimed.
impl From<OwnedFd> for Moved {
    fn from(fd: OwnedFd) -> Moved {
        Moved(fd)
    }
}

impl From<Moved> for OwnedFd {
    fn from(moved: Moved) -> OwnedFd {
        moved.0
    }
}

/// The descriptor to send. Drop the rest once it is sent.
impl AsFd for Moved {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

//! Doorbells towards a peer that may be hostile.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use memlane_signaling::{Backing, Doorbell, Ringer};
use memlane_transport::{dispose, refuse_descriptors};

/// A doorbell that takes rings and nothing else, where the kernel can see to that: a descriptor in its queue could make
/// the sleeper wait in close(2) for as long as the peer likes.
pub(crate) fn make(backing: Backing) -> io::Result<(Doorbell, OwnedFd)> {
    let (doorbell, end) = Doorbell::new(backing)?;
    if backing == Backing::Socket {
        refuse_descriptors(doorbell.as_fd())?;
    }
    Ok((doorbell, end))
}

/// The end of a peer's doorbell, closed on another thread: the peer can have sent anything to it.
#[derive(Debug)]
pub(crate) struct Bell(Option<Ringer>);

impl Bell {
    pub(crate) fn new(ringer: Ringer) -> Bell {
        Bell(Some(ringer))
    }

    /// The end, to be sent on.
    pub(crate) fn ringer(&self) -> Option<&Ringer> {
        self.0.as_ref()
    }

    pub(crate) fn ring(&self) {
        if let Some(ringer) = &self.0 {
            ringer.ring();
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        if let Some(ringer) = self.0.take() {
            dispose(ringer.into());
        }
    }
}

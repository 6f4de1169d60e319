//! Descriptors in a tokio runtime's epoll.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::Error;
use crate::{Link, Listener, Receipt};

/// What owns a descriptor.
///
/// # Safety
/// The raw descriptor must be open, and always the same, for as long as the value lives.
pub(crate) unsafe trait OneDescriptor: AsRawFd {}

// SAFETY: `Link::fd` is set where the link is made and never again; an `Fd` owns one descriptor until it is taken apart, which takes
// the link.
unsafe impl OneDescriptor for Link {}
// SAFETY: `Listener::fd` is set where the listener is made, and taken apart when it is dropped.
unsafe impl OneDescriptor for Listener {}
// SAFETY: `Receipt::socket` is set where the receipt is made and never again.
unsafe impl OneDescriptor for Receipt {}

/// A descriptor with other owners.
#[derive(Debug)]
pub(crate) struct Shared(pub(crate) Arc<OwnedFd>);

impl AsRawFd for Shared {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

// SAFETY: an `OwnedFd` is open and the same for as long as it lives, and in an `Arc` nobody can take it or change it as long as
// this one is there, of which nobody gets hold by `&mut` once it is registered.
unsafe impl OneDescriptor for Shared {}

/// Registers with the reactor of the calling task's runtime; what is registered is dropped on failure. Panics outside a
/// runtime, or in one without I/O.
pub(crate) fn register<T: OneDescriptor>(
    waitable: T,
    interest: Interest,
) -> Result<AsyncFd<T>, Error> {
    // SAFETY: the descriptor is open and stays the same for as long as `waitable` lives (`OneDescriptor`), and nothing but
    // shared references to it are given out until it is taken out of the `AsyncFd`, which deregisters it first.
    unsafe { AsyncFd::register_with_interest(waitable, interest) }.map_err(|error| {
        let (_, error) = error.into_parts();
        Error::io("registering a descriptor with the runtime", error)
    })
}

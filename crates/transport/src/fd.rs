//! Descriptors as values: [`Fd`] and [`FdRef`] can stand anywhere in a message.
//!
//! In the body a descriptor is its index among the message's, a `u16`. How the descriptors themselves get past serde is in
//! [`scope`].

mod scope;

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use crate::dispose::{dispose, dispose_within};

pub(crate) use scope::{
    Adoption, Fault, Incoming, Lent, adoption, fault, note_link, receiving, sending,
};

/// An owned descriptor that can be part of a message.
///
/// Sending borrows it: the kernel gives the receiver a descriptor of its own, this one stays open and stays here. Received,
/// it is owned and close-on-exec; which *kind* of file it is, nobody has checked.
///
/// Dropping a received `Fd` hands it to [`dispose`], because to close a file of unknown kind can hang. Whoever takes it
/// out with [`OwnedFd::from`] closes it where they like: check the kind first.
///
/// ```
/// use std::fs::File;
/// use std::os::fd::OwnedFd;
///
/// use memlane_transport::{Fd, FdRef, Link};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize)]
/// struct Offer<'a> {
///     name: &'a str,
///     ring: FdRef<'a>,
/// }
///
/// #[derive(Deserialize)]
/// struct Received {
///     name: String,
///     ring: Fd,
/// }
///
/// let (left, right) = Link::pair()?;
/// let file = File::open("/dev/null")?;
/// left.send(&Offer { name: "camera", ring: FdRef::new(&file) })?;
///
/// let offer: Received = right.recv()?;
/// assert_eq!(offer.name, "camera");
/// let ring: OwnedFd = offer.ring.into();
/// # drop(ring);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Elsewhere an `Fd` is no value:
///
/// ```
/// # use memlane_transport::{Fd, codec};
/// let null = Fd::from(std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null")?));
/// assert!(codec::encode(&null, 100).unwrap_err().to_string().contains("only by a link"));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Fd {
    /// `None` only while it is being taken apart.
    fd: Option<Inner>,
}

enum Inner {
    /// Made here. A message that is being sent shares it, instead of a duplicate.
    Local(Arc<OwnedFd>),
    /// Of unknown kind.
    Received(OwnedFd),
    /// Of a kind that close(2) does not wait for.
    Checked(OwnedFd),
    /// A socket that a peer can send to.
    Socket(OwnedFd),
}

/// How long dropping a socket waits for another thread to close it. That takes some 20 us, unless the peer has sent what
/// makes it wait; then it goes on without this thread.
const CLOSING: Duration = Duration::from_millis(50);

impl Fd {
    pub(crate) fn received(fd: OwnedFd) -> Fd {
        Fd {
            fd: Some(Inner::Received(fd)),
        }
    }

    /// A socket of this process's own: when dropping it returns, its peer knows, and its name is free.
    pub(crate) fn socket(fd: OwnedFd) -> Fd {
        Fd {
            fd: Some(Inner::Socket(fd)),
        }
    }

    /// Drops it like any other from now on.
    pub(crate) fn checked(mut self) -> Fd {
        let fd = match self.fd.take() {
            Some(Inner::Received(fd)) => Some(Inner::Checked(fd)),
            other => other,
        };
        Fd { fd }
    }

    fn inner(&self) -> &Inner {
        self.fd.as_ref().expect("an Fd is taken apart once")
    }
}

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Fd {
        Fd {
            fd: Some(Inner::Local(Arc::new(fd))),
        }
    }
}

/// Gives the descriptor itself, closing it is the caller's from now on.
///
/// # Panics
/// If a message with this `Fd` is on its way in the very moment (sent by another thread, or begun by a `try_send` and not
/// [flushed](crate::Link::flush)), and no descriptor number is left for a duplicate. Never for a received one.
impl From<Fd> for OwnedFd {
    fn from(mut fd: Fd) -> OwnedFd {
        match fd.fd.take().expect("an Fd is taken apart once") {
            Inner::Received(fd) | Inner::Checked(fd) | Inner::Socket(fd) => fd,
            Inner::Local(shared) => Arc::try_unwrap(shared).unwrap_or_else(|shared| {
                shared
                    .try_clone()
                    .expect("a descriptor number for one that is being sent")
            }),
        }
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self.inner() {
            Inner::Local(fd) => fd.as_fd(),
            Inner::Received(fd) | Inner::Checked(fd) | Inner::Socket(fd) => fd.as_fd(),
        }
    }
}

impl fmt::Debug for Fd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fd")
            .field(&self.as_fd().as_raw_fd())
            .finish()
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        match self.fd.take() {
            Some(Inner::Received(fd)) => dispose(fd),
            Some(Inner::Socket(fd)) => dispose_within(fd, CLOSING),
            Some(Inner::Local(_) | Inner::Checked(_)) | None => {}
        }
    }
}

/// A borrowed descriptor to send: written like an [`Fd`], received as one.
///
/// It is duplicated when it is serialised, and the duplicate closed when the message has left, since nothing else keeps it
/// open until then. For the highest rates send an [`Fd`] made of an owned descriptor, which is shared instead.
#[derive(Clone, Copy, Debug)]
pub struct FdRef<'a>(BorrowedFd<'a>);

impl<'a> FdRef<'a> {
    /// Borrows the descriptor of `owner`.
    pub fn new<F: AsFd + ?Sized>(owner: &'a F) -> FdRef<'a> {
        FdRef(owner.as_fd())
    }
}

impl<'a> From<BorrowedFd<'a>> for FdRef<'a> {
    fn from(fd: BorrowedFd<'a>) -> FdRef<'a> {
        FdRef(fd)
    }
}

impl AsFd for FdRef<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0
    }
}

impl Serialize for Fd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.inner() {
            Inner::Local(shared) => {
                scope::lend(serializer, || Ok(Lent::Shared(Arc::clone(shared))))
            }
            // Closing the duplicate is closing a file of unknown kind, too.
            Inner::Received(fd) => scope::lend(serializer, || {
                Ok(Lent::Unknown(Fd::received(fd.try_clone()?)))
            }),
            Inner::Checked(fd) | Inner::Socket(fd) => FdRef::new(fd).serialize(serializer),
        }
    }
}

impl Serialize for FdRef<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        scope::lend(serializer, || self.0.try_clone_to_owned().map(Lent::Own))
    }
}

impl<'de> Deserialize<'de> for Fd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fd, D::Error> {
        scope::take(deserializer).map(Fd::received)
    }
}

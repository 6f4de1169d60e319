//! Descriptors as values: [`Fd`] and [`FdRef`] can stand anywhere in a message.
//!
//! In the body a descriptor is its index among the message's, a `u16`. How the descriptors themselves get past serde is in
//! [`scope`].

mod batch;
mod scope;

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use crate::dispose::{dispose, dispose_within};

pub use batch::{Fds, WeakFds};
pub(crate) use scope::{
    Adoption, Descriptors, Fault, Lent, Taken, adoption, fault, note_link, receiving, sending,
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
    fd: Option<OwnedFd>,
    origin: Origin,
}

/// Says how to close it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Made here.
    Local,
    /// Of unknown kind.
    Received,
    /// Of a kind that close(2) does not wait for.
    Checked,
    /// A socket that a peer can send to.
    Socket,
}

/// How long dropping a socket waits for another thread to close it. That takes some 20 us, unless the peer has sent what
/// makes it wait; then it goes on without this thread.
const CLOSING: Duration = Duration::from_millis(50);

impl Fd {
    fn new(fd: OwnedFd, origin: Origin) -> Fd {
        Fd {
            fd: Some(fd),
            origin,
        }
    }

    pub(crate) fn received(fd: OwnedFd) -> Fd {
        Fd::new(fd, Origin::Received)
    }

    /// A socket of this process's own: when dropping it returns, its peer knows, and its name is free.
    pub(crate) fn socket(fd: OwnedFd) -> Fd {
        Fd::new(fd, Origin::Socket)
    }

    /// Whether it came from a peer, and nobody has looked what it is.
    fn is_unknown(&self) -> bool {
        self.origin == Origin::Received
    }

    /// Drops it like any other from now on.
    pub(crate) fn checked(mut self) -> Fd {
        if self.origin == Origin::Received {
            self.origin = Origin::Checked;
        }
        self
    }

    fn duplicate(&self) -> std::io::Result<Lent> {
        let duplicate = self.as_fd().try_clone_to_owned()?;
        Ok(match self.origin {
            // Closing the duplicate is closing a file of unknown kind, too.
            Origin::Received => Lent::Unknown(Fd::received(duplicate)),
            Origin::Local | Origin::Checked | Origin::Socket => Lent::Own(duplicate),
        })
    }
}

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Fd {
        Fd::new(fd, Origin::Local)
    }
}

macro_rules! from_std {
    ($($owner:ty),+ $(,)?) => {
        $(impl From<$owner> for Fd {
            fn from(owner: $owner) -> Fd {
                OwnedFd::from(owner).into()
            }
        })+
    };
}

/// Whatever it is: of a file that came from elsewhere, reading may block, and never end.
impl From<Fd> for std::fs::File {
    fn from(fd: Fd) -> std::fs::File {
        OwnedFd::from(fd).into()
    }
}

from_std!(
    std::fs::File,
    std::net::TcpListener,
    std::net::TcpStream,
    std::net::UdpSocket,
    std::os::unix::net::UnixDatagram,
    std::os::unix::net::UnixListener,
    std::os::unix::net::UnixStream,
);

impl From<Fd> for OwnedFd {
    fn from(mut fd: Fd) -> OwnedFd {
        fd.fd.take().expect("an Fd is taken apart once")
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("an Fd is taken apart once").as_fd()
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
        match (self.fd.take(), self.origin) {
            (Some(fd), Origin::Received) => dispose(fd),
            (Some(fd), Origin::Socket) => dispose_within(fd, CLOSING),
            (_, Origin::Local | Origin::Checked) | (None, _) => {}
        }
    }
}

/// A descriptor that is sent again and again, or to many: written like an [`Fd`], received as one or the other.
///
/// The message shares it until it has left, where an [`Fd`] or [`FdRef`] is duplicated, because nothing else keeps those
/// open until then: two system calls for each, 0.3 us. A clone is the same descriptor.
///
/// ```
/// use std::os::fd::OwnedFd;
///
/// use memlane_transport::{Fd, Link, SharedFd};
///
/// let (left, right) = Link::pair()?;
/// let log = SharedFd::from(OwnedFd::from(std::fs::File::open("/dev/null")?));
/// for _ in 0..3 {
///     left.send(&log)?;
///     let _log: Fd = right.recv()?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct SharedFd(Counted);

#[derive(Clone, Debug)]
enum Counted {
    Fd(Arc<Fd>),
    Owned(Arc<OwnedFd>),
}

impl From<OwnedFd> for SharedFd {
    fn from(fd: OwnedFd) -> SharedFd {
        Fd::from(fd).into()
    }
}

impl From<Fd> for SharedFd {
    fn from(fd: Fd) -> SharedFd {
        SharedFd(Counted::Fd(Arc::new(fd)))
    }
}

/// Of one that others have, too, in their own way.
impl From<Arc<OwnedFd>> for SharedFd {
    fn from(fd: Arc<OwnedFd>) -> SharedFd {
        SharedFd(Counted::Owned(fd))
    }
}

impl AsFd for SharedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Counted::Fd(fd) => fd.as_fd(),
            Counted::Owned(fd) => fd.as_fd(),
        }
    }
}

/// A borrowed descriptor to send: written like an [`Fd`], received as one.
///
/// It is duplicated when it is serialised, and the duplicate closed when the message has left, since nothing else keeps it
/// open until then. For the highest rates send a [`SharedFd`]. To pass on what came from a peer, send the received [`Fd`]
/// itself: the duplicate of a reference is closed here, which can wait where the file is one that a peer serves.
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
        scope::lend(serializer, || self.duplicate())
    }
}

impl Serialize for SharedFd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        scope::lend(serializer, || {
            Ok(match &self.0 {
                Counted::Fd(fd) => Lent::Shared(Arc::clone(fd)),
                Counted::Owned(fd) => Lent::Counted(Arc::clone(fd)),
            })
        })
    }
}

/// Writes a link's socket, of which the message keeps a share until it has left.
pub(crate) fn lend_socket<S: Serializer>(fd: &Arc<Fd>, serializer: S) -> Result<S::Ok, S::Error> {
    scope::lend(serializer, || Ok(Lent::Shared(Arc::clone(fd))))
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

impl<'de> Deserialize<'de> for SharedFd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SharedFd, D::Error> {
        Fd::deserialize(deserializer).map(SharedFd::from)
    }
}

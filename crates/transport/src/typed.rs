//! Descriptors of a known kind.

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use crate::fd::{Fault, Fd, fault};

pub mod kinds;

/// What a descriptor has to be.
///
/// For kinds of one's own beside those in [`kinds`]: a type without values that implements this, then
/// [`Typed<MyKind>`](Typed) in messages.
pub trait Kind {
    /// The kind for an error's text, with its article: `"an eventfd"`.
    const NAME: &'static str;

    /// Whether close(2) on this kind never waits for anybody, so that it can be closed where it is dropped. Otherwise
    /// [`dispose`](crate::dispose) closes received ones.
    const CLOSES_AT_ONCE: bool = false;

    /// Says what `fd` is instead, if it is something else.
    ///
    /// # Errors
    /// What it is.
    ///
    /// # What it may ask
    /// The descriptor comes from a peer and may be served by one. Only questions that the kernel answers without entering
    /// the file will do: F_GET_SEALS, F_GETFL, getsockopt(2), statx(2) with AT_STATX_DONT_SYNC, readlink(2) of
    /// `/proc/self/fd`. Never fstat, ioctl, read, write, poll, or epoll: on a FUSE file they can sleep for ever, in a sleep
    /// that nothing ends (THREATS A18).
    fn check(fd: BorrowedFd<'_>) -> Result<(), String>;
}

/// An owned descriptor that is of kind `K`: checked when it is made, and again by the receiver when it comes in a message. A
/// message with a descriptor of another kind is refused ([`Error::WrongDescriptor`](crate::Error::WrongDescriptor)).
///
/// ```
/// use std::os::fd::OwnedFd;
///
/// use memlane_transport::{Error, Fd, Link, StreamFd};
///
/// let (left, right) = Link::pair()?;
/// let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
/// left.send(&StreamFd::try_from(OwnedFd::from(theirs))?)?;
/// let stream: StreamFd = right.recv()?;
/// # drop((ours, stream));
///
/// let null = std::fs::File::open("/dev/null")?;
/// left.send(&Fd::from(OwnedFd::from(null)))?;
/// let error = right.recv::<StreamFd>().unwrap_err();
/// assert!(matches!(error, Error::WrongDescriptor { expected: "a Unix stream socket", .. }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Typed<K> {
    fd: Fd,
    kind: PhantomData<fn() -> K>,
}

/// Memory that cannot shrink: a memlane region, or another program's memfd sealed like one.
pub type MemoryFd = Typed<kinds::Memory>;
/// An eventfd: a doorbell between processes that trust one another.
pub type EventFd = Typed<kinds::Event>;
/// A Unix stream socket: a doorbell to a process that one does not trust.
pub type StreamFd = Typed<kinds::Stream>;

/// A descriptor that is of another kind than the one asked for. It is still in here.
#[derive(Debug, thiserror::Error)]
#[error("expected {expected}, found {found}")]
pub struct WrongKind {
    /// The descriptor.
    pub fd: Fd,
    /// The kind asked for.
    pub expected: &'static str,
    /// What it is.
    pub found: String,
}

impl<K: Kind> TryFrom<Fd> for Typed<K> {
    type Error = WrongKind;

    fn try_from(fd: Fd) -> Result<Typed<K>, WrongKind> {
        match K::check(fd.as_fd()) {
            Ok(()) => Ok(Typed {
                fd: if K::CLOSES_AT_ONCE { fd.checked() } else { fd },
                kind: PhantomData,
            }),
            Err(found) => Err(WrongKind {
                fd,
                expected: K::NAME,
                found,
            }),
        }
    }
}

impl<K: Kind> TryFrom<OwnedFd> for Typed<K> {
    type Error = WrongKind;

    fn try_from(fd: OwnedFd) -> Result<Typed<K>, WrongKind> {
        Fd::from(fd).try_into()
    }
}

impl<K> From<Typed<K>> for OwnedFd {
    fn from(typed: Typed<K>) -> OwnedFd {
        typed.fd.into()
    }
}

impl<K> AsFd for Typed<K> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<K: Kind> fmt::Debug for Typed<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Typed")
            .field(&K::NAME)
            .field(&self.fd)
            .finish()
    }
}

impl<K> Serialize for Typed<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.fd.serialize(serializer)
    }
}

impl<'de, K: Kind> Deserialize<'de> for Typed<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Typed<K>, D::Error> {
        Typed::try_from(Fd::deserialize(deserializer)?).map_err(|wrong| {
            fault(Fault::Kind {
                expected: wrong.expected,
                found: wrong.found,
            })
        })
    }
}

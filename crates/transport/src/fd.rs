//! Descriptors as values: [`Fd`] and [`FdRef`] can stand anywhere in a message.
//!
//! In the body a descriptor is its index in the packet's SCM_RIGHTS array, a `u16`. The array itself travels past serde
//! in a thread-local that exists only while [`Link::send`](crate::Link::send) encodes or [`Link::recv`](crate::Link::recv)
//! decodes on this thread; a guard restores what was there before, also when a `Serialize` panics or sends on another link.

use std::cell::RefCell;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Error as _, Serialize, Serializer};

use crate::dispose::dispose;

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
    received: bool,
}

impl Fd {
    fn take(&mut self) -> OwnedFd {
        self.fd.take().expect("an Fd is taken apart once")
    }
}

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Fd {
        Fd {
            fd: Some(fd),
            received: false,
        }
    }
}

impl From<Fd> for OwnedFd {
    fn from(mut fd: Fd) -> OwnedFd {
        fd.take()
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
        match self.fd.take() {
            Some(fd) if self.received => dispose(fd),
            closed_here => drop(closed_here),
        }
    }
}

/// A borrowed descriptor to send: written like an [`Fd`], received as one.
///
/// It is duplicated when it is serialised, and the duplicate closed when the packet has left: a hand-written `Serialize`
/// may drop what it has just serialised, and a number that was closed could name another file by then.
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
        FdRef(self.as_fd()).serialize(serializer)
    }
}

impl Serialize for FdRef<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let index = SCOPE.with_borrow_mut(|scope| match scope {
            Scope::Sending(outgoing) => {
                let index = outgoing.fds.len();
                let duplicate = self.0.try_clone_to_owned().map_err(S::Error::custom)?;
                outgoing.fds.push(duplicate);
                // More than any packet takes; the frame refuses the count.
                Ok(u16::try_from(index).unwrap_or(u16::MAX))
            }
            _ => Err(S::Error::custom(
                "a descriptor can be serialised only by a link that sends it",
            )),
        })?;
        serializer.serialize_u16(index)
    }
}

impl<'de> Deserialize<'de> for Fd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fd, D::Error> {
        if !SCOPE.with_borrow(|scope| matches!(scope, Scope::Receiving(_))) {
            return Err(D::Error::custom(
                "a descriptor can be deserialised only by a link that received it",
            ));
        }
        let index = u16::deserialize(deserializer)?;
        let slot = SCOPE.with_borrow_mut(|scope| match scope {
            Scope::Receiving(incoming) => incoming.take(index),
            _ => None,
        });
        match slot {
            Some(fd) => Ok(Fd {
                fd: Some(fd),
                received: true,
            }),
            None => Err(D::Error::custom(format_args!(
                "descriptor {index} did not come, or was taken already"
            ))),
        }
    }
}

/// The descriptors of a message being sent: duplicates of the value's.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    pub(crate) fds: Vec<OwnedFd>,
}

/// The descriptors of a message being received.
#[derive(Debug)]
pub(crate) struct Incoming {
    slots: Vec<Option<OwnedFd>>,
    pub(crate) taken: usize,
    /// The first index that could not be had.
    pub(crate) fault: Option<Fault>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Missing(u16),
    Twice(u16),
}

impl Incoming {
    fn take(&mut self, index: u16) -> Option<OwnedFd> {
        let fault = match self.slots.get_mut(usize::from(index)) {
            None => Fault::Missing(index),
            Some(slot) => match slot.take() {
                Some(fd) => {
                    self.taken += 1;
                    return Some(fd);
                }
                None => Fault::Twice(index),
            },
        };
        self.fault.get_or_insert(fault);
        None
    }

    /// Those that no place in the message asked for.
    pub(crate) fn surplus(self) -> impl Iterator<Item = OwnedFd> {
        self.slots.into_iter().flatten()
    }
}

#[derive(Default)]
enum Scope {
    #[default]
    Outside,
    Sending(Outgoing),
    Receiving(Incoming),
}

thread_local! {
    static SCOPE: RefCell<Scope> = const { RefCell::new(Scope::Outside) };
}

/// Puts back what was there before, on return and on unwind.
struct Entered {
    outer: Option<Scope>,
}

impl Entered {
    fn new(scope: Scope) -> Entered {
        Entered {
            outer: Some(SCOPE.replace(scope)),
        }
    }

    fn leave(mut self) -> Scope {
        self.outer
            .take()
            .map(|outer| SCOPE.replace(outer))
            .unwrap_or_default()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(outer) = self.outer.take() {
            if let Scope::Receiving(incoming) = SCOPE.replace(outer) {
                incoming.surplus().for_each(dispose);
            }
        }
    }
}

/// Runs `encode` and collects the descriptors it serialises.
pub(crate) fn sending<R>(encode: impl FnOnce() -> R) -> (R, Outgoing) {
    let entered = Entered::new(Scope::Sending(Outgoing::default()));
    let result = encode();
    match entered.leave() {
        Scope::Sending(outgoing) => (result, outgoing),
        _ => unreachable!("inner scopes restore this one"),
    }
}

/// Runs `decode` with `fds` to take from.
pub(crate) fn receiving<R>(fds: Vec<OwnedFd>, decode: impl FnOnce() -> R) -> (R, Incoming) {
    let slots = fds.into_iter().map(Some).collect();
    let entered = Entered::new(Scope::Receiving(Incoming {
        slots,
        taken: 0,
        fault: None,
    }));
    let result = decode();
    match entered.leave() {
        Scope::Receiving(incoming) => (result, incoming),
        _ => unreachable!("inner scopes restore this one"),
    }
}

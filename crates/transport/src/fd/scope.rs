//! Descriptors on their way past serde.
//!
//! They travel in a thread-local that exists only while a link encodes or decodes on this thread; a guard restores what
//! was there before, also when a `Serialize` panics or sends on another link.

use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Error as _, Serializer};

use crate::dispose::dispose;
use crate::fd::Fd;

/// A descriptor that stays open until its message has left, whatever becomes of the value: a hand-written `Serialize` may
/// drop what it has just serialised, or another thread replace it, and the number could name another file by then.
#[derive(Debug)]
pub(crate) enum Lent {
    Shared(Arc<OwnedFd>),
    Own(OwnedFd),
    Unknown(Fd),
}

impl AsRawFd for Lent {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Lent::Shared(fd) => fd.as_raw_fd(),
            Lent::Own(fd) => fd.as_raw_fd(),
            Lent::Unknown(fd) => fd.as_fd().as_raw_fd(),
        }
    }
}

/// Adds a descriptor to the message being sent and writes its index.
pub(super) fn lend<S: Serializer>(
    serializer: S,
    fd: impl FnOnce() -> std::io::Result<Lent>,
) -> Result<S::Ok, S::Error> {
    let index = SCOPE.with_borrow_mut(|scope| match scope {
        Scope::Sending(outgoing) => {
            let index = outgoing.count;
            outgoing.count += 1;
            // What is too much is only counted, for the error.
            if index < outgoing.limit {
                outgoing.fds.push(fd().map_err(S::Error::custom)?);
            }
            Ok(u16::try_from(index).unwrap_or(u16::MAX))
        }
        _ => Err(S::Error::custom(
            "a descriptor can be serialised only by a link that sends it",
        )),
    })?;
    serializer.serialize_u16(index)
}

/// Reads an index and takes the descriptor out of the message being received.
pub(super) fn take<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OwnedFd, D::Error> {
    let index = u16::deserialize(deserializer)?;
    SCOPE.with_borrow_mut(|scope| match scope {
        Scope::Receiving(incoming) => incoming.take(index).ok_or_else(|| {
            D::Error::custom(format_args!(
                "descriptor {index} did not come, or was taken already"
            ))
        }),
        _ => Err(D::Error::custom(
            "a descriptor can be deserialised only by a link that received it",
        )),
    })
}

/// Notes why the message being received is refused: more than a text, which is all that serde passes on.
pub(crate) fn fault<E: serde::de::Error>(fault: Fault) -> E {
    let error = E::custom(&fault);
    SCOPE.with_borrow_mut(|scope| {
        if let Scope::Receiving(incoming) = scope {
            incoming.fault.get_or_insert(fault);
        }
    });
    error
}

/// Notes that the message being sent carries this link.
pub(crate) fn note_link(identity: Option<(u64, u64)>) {
    SCOPE.with_borrow_mut(|scope| {
        if let Scope::Sending(outgoing) = scope {
            outgoing.links.push(identity);
        }
    });
}

/// Whether links and listeners may be taken out of the message being received.
pub(crate) fn adoption() -> Adoption {
    SCOPE.with_borrow(|scope| match scope {
        Scope::Receiving(incoming) => incoming.adoption,
        _ => Adoption::Refused,
    })
}

/// Whether links and listeners that come in a message are taken as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adoption {
    Refused,
    Allowed,
}

/// The descriptors of a message being sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) fds: Vec<Lent>,
    /// Those of them that are links.
    pub(crate) links: Vec<Option<(u64, u64)>>,
    /// How many the value has, counted also beyond the limit.
    pub(crate) count: usize,
    limit: usize,
}

/// The descriptors of a message being received.
#[derive(Debug)]
pub(crate) struct Incoming {
    slots: Vec<Option<OwnedFd>>,
    adoption: Adoption,
    pub(crate) taken: usize,
    /// The first thing that was wrong with one.
    fault: Option<Fault>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("descriptor {0} did not come")]
    Missing(u16),
    #[error("descriptor {0} was taken already")]
    Twice(u16),
    #[error("expected {expected}, found {found}")]
    Kind {
        expected: &'static str,
        found: String,
    },
    #[error("a {0} is not taken from this peer")]
    Unadopted(&'static str),
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

    /// Closes those that no place in the message asked for, and says what was wrong.
    pub(crate) fn dispose_of_surplus(self) -> Option<Fault> {
        self.slots.into_iter().flatten().for_each(dispose);
        self.fault
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
                incoming.dispose_of_surplus();
            }
        }
    }
}

/// Runs `encode` and collects the descriptors it serialises, `limit` at most.
pub(crate) fn sending<R>(limit: usize, encode: impl FnOnce() -> R) -> (R, Outgoing) {
    let entered = Entered::new(Scope::Sending(Outgoing {
        fds: Vec::new(),
        links: Vec::new(),
        count: 0,
        limit,
    }));
    let result = encode();
    match entered.leave() {
        Scope::Sending(outgoing) => (result, outgoing),
        _ => unreachable!("inner scopes restore this one"),
    }
}

/// Runs `decode` with `fds` to take from.
pub(crate) fn receiving<R>(
    fds: Vec<OwnedFd>,
    adoption: Adoption,
    decode: impl FnOnce() -> R,
) -> (R, Incoming) {
    let entered = Entered::new(Scope::Receiving(Incoming {
        slots: fds.into_iter().map(Some).collect(),
        adoption,
        taken: 0,
        fault: None,
    }));
    let result = decode();
    match entered.leave() {
        Scope::Receiving(incoming) => (result, incoming),
        _ => unreachable!("inner scopes restore this one"),
    }
}

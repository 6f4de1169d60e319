//! Descriptors on their way past serde.
//!
//! They travel in a thread-local that is in use only while a link encodes or decodes on this thread; a guard restores what
//! was there before, also when a `Serialize` panics or sends on another link.

use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::vec;

use serde::de::{Deserialize, Deserializer};
use serde::ser::Serializer;

use crate::dispose::dispose_all;
use crate::fd::Fd;
use crate::fd::batch::Batch;

/// A descriptor that stays open until its message has left, whatever becomes of the value: a hand-written `Serialize` may
/// drop what it has just serialised, or another thread replace it, and the number could name another file by then.
#[derive(Debug)]
#[allow(dead_code, reason = "held, not read: the numbers are beside them")]
pub(crate) enum Lent {
    Shared(Arc<Fd>),
    /// Of this process's own.
    Counted(Arc<OwnedFd>),
    Batch(Arc<Batch>),
    Own(OwnedFd),
    Unknown(Fd),
}

impl Lent {
    /// Whether there may be one among them that a peer chose, and that close(2) may wait for.
    pub(super) fn is_unknown(&self) -> bool {
        match self {
            Lent::Own(_) | Lent::Counted(_) => false,
            Lent::Unknown(_) => true,
            Lent::Shared(fd) => fd.is_unknown(),
            Lent::Batch(batch) => batch.is_received(),
        }
    }

    fn numbers(&self, numbers: &mut Vec<RawFd>) {
        match self {
            Lent::Shared(fd) => numbers.push(fd.as_fd().as_raw_fd()),
            Lent::Batch(fds) => numbers.extend(fds.as_slice().iter().map(AsRawFd::as_raw_fd)),
            Lent::Counted(fd) => numbers.push(fd.as_raw_fd()),
            Lent::Own(fd) => numbers.push(fd.as_raw_fd()),
            Lent::Unknown(fd) => numbers.push(fd.as_fd().as_raw_fd()),
        }
    }
}

/// Descriptors of a message, in order, and what keeps them open.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    numbers: Vec<RawFd>,
    held: Vec<Lent>,
}

impl Descriptors {
    pub(crate) const fn new() -> Descriptors {
        Descriptors {
            numbers: Vec::new(),
            held: Vec::new(),
        }
    }

    #[inline]
    pub(crate) fn push(&mut self, lent: Lent) {
        lent.numbers(&mut self.numbers);
        self.held.push(lent);
    }

    pub(crate) fn numbers(&self) -> &[RawFd] {
        &self.numbers
    }

    /// What keeps them open.
    pub(crate) fn into_lent(self) -> Vec<Lent> {
        self.held
    }

    pub(crate) fn clear(&mut self) {
        self.numbers.clear();
        self.held.clear();
    }
}

/// Adds a descriptor to the message being sent and writes its index.
#[inline]
pub(super) fn lend<S: Serializer>(
    serializer: S,
    fd: impl FnOnce() -> std::io::Result<Lent>,
) -> Result<S::Ok, S::Error> {
    let index = lend_many::<S::Error>(1, fd)?;
    serializer.serialize_u16(index)
}

/// Adds what keeps `count` descriptors open to the message being sent, and gives the index of the first.
#[inline]
pub(super) fn lend_many<E: serde::ser::Error>(
    count: usize,
    lent: impl FnOnce() -> std::io::Result<Lent>,
) -> Result<u16, E> {
    SCOPE.with(|scope| {
        if scope.state.get() != State::Sending {
            return Err(E::custom(
                "a descriptor can be serialised only by a link, or a publisher of such values, that sends it",
            ));
        }
        let mut outgoing = scope.outgoing.borrow_mut();
        let index = outgoing.count;
        outgoing.count += count;
        // What is too much is only counted, for the error.
        if outgoing.count <= outgoing.limit {
            match lent() {
                Ok(lent) => outgoing.fds.push(lent),
                Err(error) => {
                    let refused = E::custom(&error);
                    outgoing.failure.get_or_insert(error);
                    return Err(refused);
                }
            }
        }
        Ok(u16::try_from(index).unwrap_or(u16::MAX))
    })
}

/// Reads an index and takes the descriptor out of the message being received.
#[inline]
pub(super) fn take<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OwnedFd, D::Error> {
    let index = u16::deserialize(deserializer)?;
    let taken = SCOPE.with(|scope| match scope.state.get() {
        State::Receiving => scope.incoming.borrow_mut().take(index),
        _ => None,
    });
    taken.ok_or_else(|| missing(index))
}

/// Appends the `count` descriptors from index `first` on to `fds`, which belong to somebody who disposes of them.
pub(super) fn take_run<E: serde::de::Error>(
    fds: &mut Vec<OwnedFd>,
    first: u16,
    count: usize,
) -> Result<(), E> {
    let refused = SCOPE.with(|scope| {
        if scope.state.get() != State::Receiving {
            return Some(first);
        }
        let mut incoming = scope.incoming.borrow_mut();
        if let Some(run) = incoming.take_run(first, count) {
            if fds.is_empty() {
                *fds = run;
            } else {
                fds.extend(run);
            }
            return None;
        }
        for index in (usize::from(first)..).take(count) {
            // A run that goes on behind the largest index has not come either.
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            match incoming.take(index) {
                Some(fd) => fds.push(fd),
                None => return Some(index),
            }
        }
        None
    });
    match refused {
        None => Ok(()),
        Some(index) => Err(missing(index)),
    }
}

#[cold]
fn missing<E: serde::de::Error>(index: u16) -> E {
    if SCOPE.with(|scope| scope.state.get()) == State::Receiving {
        E::custom(format_args!(
            "descriptor {index} did not come, or was taken already"
        ))
    } else {
        E::custom("a descriptor can be deserialised only by a link that received it")
    }
}

/// Notes why the message being received is refused: more than a text, which is all that serde passes on.
pub(crate) fn fault<E: serde::de::Error>(fault: Fault) -> E {
    let error = E::custom(&fault);
    SCOPE.with(|scope| {
        if scope.state.get() == State::Receiving {
            scope.incoming.borrow_mut().fault.get_or_insert(fault);
        }
    });
    error
}

/// Notes that the message being sent carries this link.
pub(crate) fn note_link(identity: Option<(u64, u64)>) {
    SCOPE.with(|scope| {
        if scope.state.get() == State::Sending {
            scope.outgoing.borrow_mut().links.push(identity);
        }
    });
}

/// Whether links and listeners may be taken out of the message being received.
pub(crate) fn adoption() -> Adoption {
    SCOPE.with(|scope| match scope.state.get() {
        State::Receiving => scope.incoming.borrow().adoption,
        _ => Adoption::Refused,
    })
}

/// Whether links and listeners that come in a message are taken as such.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Adoption {
    #[default]
    Refused,
    Allowed,
}

/// The descriptors of a message being sent.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    pub(crate) fds: Descriptors,
    /// Those of them that are links.
    pub(crate) links: Vec<Option<(u64, u64)>>,
    /// How many the value has, counted also beyond the limit.
    pub(crate) count: usize,
    limit: usize,
    /// Why one could not be duplicated.
    pub(crate) failure: Option<std::io::Error>,
}

/// The descriptors of a message being received.
#[derive(Debug, Default)]
struct Incoming {
    slots: Slots,
    adoption: Adoption,
    taken: usize,
    /// The first thing that was wrong with one.
    fault: Option<Fault>,
}

#[derive(Debug)]
enum Slots {
    /// Taken one after the other so far, as they are when both ends derive what they send.
    InOrder(vec::IntoIter<OwnedFd>),
    AnyOrder(Vec<Option<OwnedFd>>),
}

impl Default for Slots {
    fn default() -> Slots {
        Slots::InOrder(Vec::new().into_iter())
    }
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
    #[inline]
    fn take(&mut self, index: u16) -> Option<OwnedFd> {
        if let Slots::InOrder(rest) = &mut self.slots {
            if usize::from(index) == self.taken {
                if let Some(fd) = rest.next() {
                    self.taken += 1;
                    return Some(fd);
                }
            }
        }
        self.take_any(index)
    }

    /// All of these at once, if they are next.
    fn take_run(&mut self, first: u16, count: usize) -> Option<Vec<OwnedFd>> {
        match &mut self.slots {
            Slots::InOrder(rest) if usize::from(first) == self.taken && count <= rest.len() => {
                self.taken += count;
                Some(if count == rest.len() {
                    // In the vector they came in.
                    std::mem::take(rest).collect()
                } else {
                    rest.take(count).collect()
                })
            }
            _ => None,
        }
    }

    #[cold]
    fn take_any(&mut self, index: u16) -> Option<OwnedFd> {
        if let Slots::InOrder(rest) = &mut self.slots {
            let mut slots = Vec::new();
            slots.resize_with(self.taken, || None);
            slots.extend(rest.map(Some));
            self.slots = Slots::AnyOrder(slots);
        }
        let Slots::AnyOrder(slots) = &mut self.slots else {
            return None;
        };
        let fault = match slots.get_mut(usize::from(index)) {
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
}

impl Slots {
    #[inline]
    fn dispose(self) {
        match self {
            Slots::InOrder(rest) => dispose_all(rest.collect()),
            Slots::AnyOrder(slots) => dispose_all(slots.into_iter().flatten().collect()),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Outside,
    Sending,
    Receiving,
}

#[derive(Default)]
struct Scope {
    state: Cell<State>,
    outgoing: RefCell<Outgoing>,
    incoming: RefCell<Incoming>,
}

thread_local! {
    /// Never dropped: it is empty whenever no call is under way on the thread, and so needs no destructor.
    static SCOPE: ManuallyDrop<Scope> = ManuallyDrop::new(Scope::default());
}

/// Puts back what was there before, on return and on unwind.
struct Entered {
    /// `None` at the outermost level, where nearly every call is.
    outer: Option<Box<Scope>>,
}

impl Entered {
    #[inline]
    fn new(state: State) -> Entered {
        SCOPE.with(|scope| {
            let outer = match scope.state.get() {
                State::Outside => None,
                outer => Some(Box::new(Scope {
                    state: Cell::new(outer),
                    outgoing: RefCell::new(scope.outgoing.take()),
                    incoming: RefCell::new(scope.incoming.take()),
                })),
            };
            scope.state.set(state);
            Entered { outer }
        })
    }
}

impl Drop for Entered {
    #[inline]
    fn drop(&mut self) {
        SCOPE.with(|scope| {
            // Of an unwind: a call that returned has taken what there was.
            if scope.state.replace(State::Outside) != State::Outside {
                let (outgoing, incoming) = (scope.outgoing.take(), scope.incoming.take());
                drop(outgoing);
                incoming.slots.dispose();
            }
            if let Some(outer) = self.outer.take() {
                scope.state.set(outer.state.get());
                scope.outgoing.swap(&outer.outgoing);
                scope.incoming.swap(&outer.incoming);
            }
        });
    }
}

/// Runs `encode` and collects the descriptors it serialises behind those in `fds`, which is empty: `limit` at most.
#[inline]
pub(crate) fn sending<R>(
    fds: Descriptors,
    limit: usize,
    encode: impl FnOnce() -> R,
) -> (R, Outgoing) {
    let _entered = Entered::new(State::Sending);
    SCOPE.with(|scope| {
        let mut outgoing = scope.outgoing.borrow_mut();
        outgoing.fds = fds;
        outgoing.limit = limit;
    });
    let result = encode();
    let outgoing = SCOPE.with(|scope| {
        scope.state.set(State::Outside);
        scope.outgoing.take()
    });
    (result, outgoing)
}

/// What became of the descriptors of a message that has been decoded. Those that no place asked for are disposed of.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) count: usize,
    pub(crate) fault: Option<Fault>,
}

/// Runs `decode` with `fds` to take from.
#[inline]
pub(crate) fn receiving<R>(
    fds: Vec<OwnedFd>,
    adoption: Adoption,
    decode: impl FnOnce() -> R,
) -> (R, Taken) {
    let _entered = Entered::new(State::Receiving);
    SCOPE.with(|scope| {
        let mut incoming = scope.incoming.borrow_mut();
        incoming.slots = Slots::InOrder(fds.into_iter());
        incoming.adoption = adoption;
        incoming.taken = 0;
    });
    let result = decode();
    let taken = SCOPE.with(|scope| {
        scope.state.set(State::Outside);
        let mut incoming = scope.incoming.borrow_mut();
        let taken = Taken {
            count: incoming.taken,
            fault: incoming.fault.take(),
        };
        (taken, std::mem::take(&mut incoming.slots))
    });
    let (taken, slots) = taken;
    slots.dispose();
    (result, taken)
}

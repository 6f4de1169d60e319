//! Many descriptors at once.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeSeq, Serializer};

use super::Fd;
use super::scope::{self, Lent};
use crate::dispose::dispose_all;

/// Many descriptors, for little more than what the kernel takes for them.
///
/// Sending shares them until the message has left, like a [`SharedFd`](super::SharedFd), but all with one count. A clone is the
/// same batch. On the wire it is a sequence of descriptors: what is sent as `Fds` can be received as `Vec<Fd>` or any
/// other sequence, and the other way round.
///
/// Received ones are the receiver's, close-on-exec and of unknown kind; those that are dropped in here go to
/// [`dispose`](crate::dispose).
///
/// ```
/// use std::fs::File;
/// use std::os::fd::OwnedFd;
///
/// use memlane_transport::{Fds, Link};
///
/// let (left, right) = Link::pair()?;
/// let files = (0..64)
///     .map(|_| File::open("/dev/null").map(OwnedFd::from))
///     .collect::<Result<Fds, _>>()?;
/// left.send(&("files", &files))?;
///
/// let (_, received): (String, Fds) = right.recv()?;
/// let received: Vec<OwnedFd> = received.into_vec().expect("nobody else has it");
/// assert_eq!(received.len(), 64);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct Fds(Option<Arc<Batch>>);

#[derive(Debug)]
pub(crate) struct Batch {
    fds: Vec<OwnedFd>,
    received: bool,
}

impl Drop for Batch {
    fn drop(&mut self) {
        if self.received {
            dispose_all(std::mem::take(&mut self.fds));
        }
    }
}

impl Batch {
    pub(super) fn as_slice(&self) -> &[OwnedFd] {
        &self.fds
    }

    /// Whether they came from a peer.
    pub(super) fn is_received(&self) -> bool {
        self.received
    }
}

impl Fds {
    fn local(fds: Vec<OwnedFd>) -> Fds {
        let received = false;
        Fds::of(Batch { fds, received })
    }

    /// None at all cost no allocation.
    fn of(batch: Batch) -> Fds {
        Fds((!batch.fds.is_empty()).then(|| Arc::new(batch)))
    }

    fn as_slice(&self) -> &[OwnedFd] {
        self.0.as_ref().map_or(&[], |batch| batch.as_slice())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The descriptors in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = BorrowedFd<'_>> {
        self.as_slice().iter().map(AsFd::as_fd)
    }

    /// The descriptors themselves, the caller's from now on.
    ///
    /// # Errors
    /// Gives the batch back when it has a clone, or is part of a message that is just being sent.
    pub fn into_vec(self) -> Result<Vec<OwnedFd>, Fds> {
        match self.0.map(Arc::try_unwrap) {
            None => Ok(Vec::new()),
            Some(Ok(mut batch)) => Ok(std::mem::take(&mut batch.fds)),
            Some(Err(shared)) => Err(Fds(Some(shared))),
        }
    }
}

impl Fds {
    /// Each descriptor by itself, the caller's from now on. Received ones that are dropped later go to
    /// [`dispose`](crate::dispose), where those of [`into_vec`](Fds::into_vec) are closed on the spot.
    ///
    /// # Errors
    /// As [`into_vec`](Fds::into_vec).
    pub fn into_fds(self) -> Result<Vec<Fd>, Fds> {
        let received = self.0.as_ref().is_some_and(|batch| batch.received);
        let fds = self.into_vec()?.into_iter();
        Ok(match received {
            true => fds.map(Fd::received).collect(),
            false => fds.map(Fd::from).collect(),
        })
    }

    /// Those of a value being encoded, which is borrowed: what it only lends is duplicated, but for a batch that is all there
    /// is.
    pub(crate) fn of_value(mut lent: Vec<Lent>) -> std::io::Result<Fds> {
        if let [Lent::Batch(batch)] = &lent[..] {
            return Ok(Fds(Some(Arc::clone(batch))));
        }
        // If one cannot be duplicated, the others are closed as their kind asks for.
        let received = lent.iter().any(Lent::is_unknown);
        let mut batch = Batch {
            fds: Vec::with_capacity(lent.len()),
            received,
        };
        for lent in lent.drain(..) {
            match lent {
                Lent::Own(fd) => batch.fds.push(fd),
                Lent::Unknown(fd) => batch.fds.push(fd.into()),
                Lent::Shared(fd) => batch.fds.push(fd.as_fd().try_clone_to_owned()?),
                Lent::Counted(fd) => batch.fds.push(fd.try_clone()?),
                Lent::Batch(other) => {
                    for fd in other.as_slice() {
                        batch.fds.push(fd.try_clone()?);
                    }
                }
            }
        }
        Ok(Fds::of(batch))
    }

    /// A reference that does not keep them open, by which a batch can be recognised.
    #[must_use]
    pub fn downgrade(&self) -> WeakFds {
        WeakFds(self.0.as_ref().map_or_else(Weak::new, Arc::downgrade))
    }
}

/// A batch that is open as long as somebody else has it ([`Fds::downgrade`]).
#[derive(Clone, Debug)]
pub struct WeakFds(Weak<Batch>);

impl WeakFds {
    /// The batch, if it is still there.
    #[must_use]
    pub fn upgrade(&self) -> Option<Fds> {
        self.0.upgrade().map(|batch| Fds(Some(batch)))
    }

    /// Whether that is the batch: `fds`, or what it is a clone of. Never true of another, even when this one is gone.
    #[must_use]
    pub fn is(&self, fds: &Fds) -> bool {
        fds.0
            .as_ref()
            .is_some_and(|batch| std::ptr::eq(self.0.as_ptr(), Arc::as_ptr(batch)))
    }
}

impl From<Vec<OwnedFd>> for Fds {
    fn from(fds: Vec<OwnedFd>) -> Fds {
        Fds::local(fds)
    }
}

impl FromIterator<OwnedFd> for Fds {
    fn from_iter<I: IntoIterator<Item = OwnedFd>>(fds: I) -> Fds {
        Fds::local(fds.into_iter().collect())
    }
}

impl fmt::Debug for Fds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Serialize for Fds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let first = match &self.0 {
            Some(batch) => scope::lend_many(self.len(), || Ok(Lent::Batch(Arc::clone(batch))))?,
            None => 0,
        };
        let mut indices = serializer.serialize_seq(Some(self.len()))?;
        for at in 0..self.len() {
            // More than any message takes is refused as a whole.
            indices.serialize_element(&first.saturating_add(at as u16))?;
        }
        indices.end()
    }
}

impl<'de> Deserialize<'de> for Fds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fds, D::Error> {
        deserializer.deserialize_seq(Indices)
    }
}

struct Indices;

impl<'de> Visitor<'de> for Indices {
    type Value = Fds;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence of descriptors")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut indices: A) -> Result<Fds, A::Error> {
        // A batch from the start: whatever ends this early, those that were taken are disposed of.
        let mut batch = Batch {
            fds: Vec::new(),
            received: true,
        };
        let mut run: Option<(u16, usize)> = None;
        while let Some(index) = indices.next_element::<u16>()? {
            match &mut run {
                Some((first, count)) if usize::from(*first) + *count == usize::from(index) => {
                    *count += 1;
                }
                _ => {
                    if let Some((first, count)) = run.replace((index, 1)) {
                        scope::take_run(&mut batch.fds, first, count)?;
                    }
                }
            }
        }
        if let Some((first, count)) = run {
            scope::take_run(&mut batch.fds, first, count)?;
        }
        Ok(Fds::of(batch))
    }
}

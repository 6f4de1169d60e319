//! Many descriptors at once.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeSeq, Serializer};

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
#[derive(Clone)]
pub struct Fds(Arc<Batch>);

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
}

impl Fds {
    fn local(fds: Vec<OwnedFd>) -> Fds {
        let received = false;
        Fds(Arc::new(Batch { fds, received }))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.fds.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.fds.is_empty()
    }

    /// The descriptors in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = BorrowedFd<'_>> {
        self.0.fds.iter().map(AsFd::as_fd)
    }

    /// The descriptors themselves, the caller's from now on.
    ///
    /// # Errors
    /// Gives the batch back when it has a clone, or is part of a message that is just being sent.
    pub fn into_vec(self) -> Result<Vec<OwnedFd>, Fds> {
        match Arc::try_unwrap(self.0) {
            Ok(mut batch) => Ok(std::mem::take(&mut batch.fds)),
            Err(shared) => Err(Fds(shared)),
        }
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
        let first = scope::lend_many(self.len(), || Ok(Lent::Batch(Arc::clone(&self.0))))?;
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
        Ok(Fds(Arc::new(batch)))
    }
}

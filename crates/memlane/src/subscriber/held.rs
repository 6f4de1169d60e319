use std::{fmt, marker::PhantomData, ops::Deref};

use memlane_region::pool::HeldChunk;
use memlane_transport::Fds;

use super::{Trust, Untrusted, attachments::Attached, page::Slots, trust::Trusted};
use crate::AttachmentError;

/// A message that is kept for as long as one likes, while others are received: on any thread, beyond its subscriber, and
/// beyond the publisher's life. A lane that [breaks](crate::Reason::Broken) on this side takes nothing of it away.
///
/// A long one stays in the publisher's memory, which is one chunk less for it meanwhile; a short one was copied.
/// A subscriber that was dropped counts as one until all that it held is dropped, too, and holds up nobody.
pub struct Held<T: Trust = Untrusted> {
    place: Place,
    attached: Option<Box<Attached>>,
    trust: PhantomData<T>,
}

enum Place {
    Copy(Box<[u8]>),
    Chunk(HeldChunk<Slots>),
}

impl<T: Trust> Held<T> {
    pub(super) fn copy(bytes: Vec<u8>, attached: Option<Box<Attached>>) -> Held<T> {
        Held {
            place: Place::Copy(bytes.into()),
            attached,
            trust: PhantomData,
        }
    }

    pub(super) fn chunk(chunk: HeldChunk<Slots>, attached: Option<Box<Attached>>) -> Held<T> {
        Held {
            place: Place::Chunk(chunk),
            attached,
            trust: PhantomData,
        }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        match &self.place {
            Place::Copy(bytes) => bytes.len(),
            Place::Chunk(held) => held.chunk().len(),
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it came with attachments that have not been [taken](Held::take_attachments).
    pub fn has_attachments(&self) -> bool {
        self.attached.is_some()
    }

    /// The attachments of the message, as [`Message::take_attachments`](super::Message::take_attachments) gives them.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn take_attachments(&mut self) -> Result<Fds, AttachmentError> {
        let attached = self.attached.take();
        attached.map_or_else(|| Ok(Fds::default()), |attached| attached.fds)
    }

    /// Copies `dst.len()` bytes from `offset` on. The publisher, if it is broken or hostile, may be changing them.
    ///
    /// # Panics
    ///
    /// If the message ends before that.
    pub fn read_at(&self, offset: usize, dst: &mut [u8]) {
        let len = dst.len();
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len()),
            "{len} bytes from {offset} on, of a message of {}",
            self.len()
        );
        match &self.place {
            Place::Copy(bytes) => dst.copy_from_slice(&bytes[offset..][..len]),
            Place::Chunk(held) => held.chunk().read(offset, dst),
        }
    }

    /// A copy of it.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut copy = vec![0; self.len()];
        self.read_at(0, &mut copy);
        copy
    }
}

impl Deref for Held<Trusted> {
    type Target = [u8];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[u8] {
        match &self.place {
            Place::Copy(bytes) => bytes,
            // SAFETY: whoever made the subscriber a trusted one promised that the publisher does not write a chunk
            // again that is held (`SubscriberBuilder::trust_publisher`), and this one is while `self` lives.
            Place::Chunk(held) => unsafe { held.chunk().bytes() },
        }
    }
}

impl<T: Trust> fmt::Debug for Held<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

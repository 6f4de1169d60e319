//! What a message has that is more than a payload in the ring. It is the subscriber's, and the message borrows it, so that
//! one that has nothing of this is as small as can be: it goes through registers.

use memlane_region::pool::{Chunk, HeldChunk, KeptChunk};
use zerocopy::IntoBytes;

use super::{attachments::Attached, page::Slots};

/// Of the message that was given out last, if it had any of this.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    pub(super) place: Place,
    /// Where messages are copied to: words, so that values lie in it as they would in place.
    pub(super) buffer: Vec<u64>,
    /// How many were missed before it.
    pub(super) missed: u64,
    pub(super) attached: Option<Box<Attached>>,
}

/// Where it is.
#[derive(Debug, Default)]
pub(super) enum Place {
    /// In the ring.
    #[default]
    Ring,
    /// In a chunk, which is kept as long as the record is not released.
    Chunk(KeptChunk),
    /// In the buffer.
    Copy,
    /// In a chunk that a slot keeps.
    Held(HeldChunk<Slots>),
}

/// The same, to read from.
pub(super) enum Bytes<'a> {
    Ring,
    Chunk(Chunk<'a>),
    Copy(&'a [u8]),
}

impl Elsewhere {
    #[inline]
    pub(super) fn bytes(&self) -> Bytes<'_> {
        match &self.place {
            Place::Ring => Bytes::Ring,
            Place::Chunk(chunk) => Bytes::Chunk(chunk.chunk()),
            Place::Copy => Bytes::Copy(self.buffer.as_bytes()),
            Place::Held(chunk) => Bytes::Chunk(chunk.chunk()),
        }
    }

    /// Of a new message.
    #[inline]
    pub(super) fn set(&mut self, place: Place, missed: u64, attached: Option<Box<Attached>>) {
        self.place = place;
        self.missed = missed;
        self.attached = attached;
    }

    /// The message is dropped.
    #[inline(never)]
    pub(super) fn clear(&mut self) {
        self.set(Place::Ring, 0, None);
    }
}

//! Messages of a lane whose publisher does not wait for this subscriber.

use std::sync::Arc;

use memlane_region::{
    Remote, Words,
    pool::{HeldChunk, Holds},
    ring::{Carried, LossyReader, Polled, Record, Taken, max_payload},
};
use memlane_transport::{Fds, Link};
use zerocopy::IntoBytes;

use super::{
    Next, NoMessage, Why,
    attachments::Attached,
    chunks::Chunks,
    elsewhere::{Elsewhere, Place},
    page::Slots,
};
use crate::{AttachmentError, ChunkError, page::LAPS};

/// So many messages are found too late in one go, before others have their turn.
const ATTEMPTS: usize = 64;

/// A reader that is overtaken, and the message that it has taken last.
#[derive(Debug)]
pub(super) struct Lossy {
    reader: LossyReader<Remote>,
    /// Of the message that was given last; where messages are copied to.
    elsewhere: Elsewhere,
    taken: Option<(Taken, Option<HeldChunk<Slots>>)>,
    /// What that one has attached.
    attached: Option<Result<Fds, AttachmentError>>,
    broken: Option<ChunkError>,
    /// The ring in which it was to go on last and that it does not know, and where that was.
    lost: Option<(u32, u64)>,
    /// Why it does not know it. If the publisher is honest, it was not told yet: there was no room on the link.
    stranded: Option<ChunkError>,
    /// The first message that is for it, and how many it has had from there on.
    from: u64,
    kept: u64,
}

impl Lossy {
    /// From `start` on, before message `sequence`; that is in the first ring, which has this id, or in another one.
    pub(super) fn new(
        (home, first): (u32, Remote),
        other: Option<(u32, Remote)>,
        start: u64,
        sequence: u64,
        skip: u64,
    ) -> Lossy {
        let mut reader = LossyReader::new(first, LAPS, start, sequence).numbered(home);
        if let Some((id, memory)) = other {
            reader = reader.starting_in(id, memory);
        }
        Lossy {
            reader,
            lost: None,
            stranded: None,
            from: sequence + skip,
            kept: 0,
            elsewhere: Elsewhere::default(),
            taken: None,
            attached: None,
            broken: None,
        }
    }

    /// Takes the next message, unless one is taken already. That there is none does not say that there is nothing to look for:
    /// see [`is_empty`](Lossy::is_empty).
    #[inline]
    pub(super) fn poll(
        &mut self,
        chunks: &mut Chunks,
        link: &Link,
        holds: &Arc<Holds<Slots>>,
    ) -> Result<Option<Next>, NoMessage> {
        if self.taken.is_some() {
            return Ok(Some(Next::Taken));
        }
        if let Some(broken) = &self.broken {
            return Err(Why::Chunk(broken.clone()).into());
        }
        self.stranded = None;
        for _ in 0..ATTEMPTS {
            let taken = match self.reader.poll(self.elsewhere.buffer.as_mut_bytes())? {
                Polled::Message(taken) if taken.sequence < self.from => continue,
                Polled::Message(taken) => taken.since(self.from),
                Polled::Longer(len) => {
                    self.grow(len);
                    continue;
                }
                Polled::Switch(ring) => match self.follow(ring, chunks, link)? {
                    true => continue,
                    false => return Ok(None),
                },
                Polled::Empty | Polled::Overtaken => return Ok(None),
            };
            let (tag, message) = match taken.record {
                Record::Inline(len) => (None, Carried::Inline(len)),
                Record::Chunk(found) => (None, Carried::Chunk(found)),
                Record::Attached { tag, message } => (Some(tag), message),
            };
            let held = match message {
                Carried::Inline(_) => None,
                Carried::Chunk(found) => {
                    match chunks.announce(found, taken.position, link, holds) {
                        Ok(Some(held)) => Some(held),
                        Ok(None) => {
                            self.reader.forgo(taken);
                            continue;
                        }
                        Err(error) => {
                            self.reader.forgo(taken);
                            self.broken = Some(error.clone());
                            return Err(Why::Chunk(error).into());
                        }
                    }
                }
            };
            self.attached = tag.map(|tag| chunks.attached(taken.position, tag, link));
            self.kept += 1;
            self.taken = Some((taken, held));
            return Ok(Some(Next::Taken));
        }
        Ok(None)
    }

    /// Goes on in another ring. If that was given up meanwhile, the next poll finds where the publisher is now. False if it is not
    /// known yet.
    #[cold]
    fn follow(&mut self, ring: u32, chunks: &mut Chunks, link: &Link) -> Result<bool, NoMessage> {
        if chunks.ring(ring).is_err() {
            chunks.take_ring(ring, link, self.reader.position());
        }
        let error = match chunks.ring(ring) {
            Ok(memory) => {
                if chunks.come_to(ring) {
                    self.reader.follow_home(memory);
                } else {
                    let first = chunks.rings.is_first(ring);
                    self.reader.follow((!first).then_some(memory));
                }
                self.stranded = None;
                return Ok(true);
            }
            Err(error) => error,
        };
        if let Some(reason) = chunks.evicted() {
            // It was not told of rings any more.
            return Err(Why::Disconnected(reason.clone()).into());
        }
        let here = Some((ring, self.reader.position()));
        if self.lost != here {
            self.lost = here;
            return Ok(true);
        }
        if chunks.rings.is_short() {
            self.broken = Some(error.clone());
            return Err(Why::Chunk(error).into());
        }
        self.stranded = Some(error);
        Ok(false)
    }

    /// Why what there is cannot be had, though the publisher is gone, which was to say where it is.
    pub(super) fn stranded(&self) -> Option<&ChunkError> {
        self.stranded.as_ref()
    }

    /// Makes the buffer longer: for `len` bytes, which some record has, or had.
    #[cold]
    fn grow(&mut self, len: usize) {
        let longest = max_payload(self.reader.memory().capacity());
        let len = len.max(len.next_power_of_two().min(longest));
        self.elsewhere.buffer.resize(len.div_ceil(8), 0);
    }

    /// Whether there is nothing to poll for: neither a message nor one that was missed. What it is still to be told of is none:
    /// its publisher rings with that, and with each message that comes before.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.taken.is_none() && (self.stranded.is_some() || self.reader.is_empty())
    }

    /// The message that is taken: its length, how many there were before it, and all else. It is not taken any more.
    #[inline]
    pub(super) fn give(&mut self, adopts: bool) -> Option<(usize, u64, &mut Elsewhere)> {
        let (taken, held) = self.taken.take()?;
        let attached = self.attached.take();
        let (len, place) = match (taken.record, held) {
            (_, Some(chunk)) => (chunk.chunk().len(), Place::Held(chunk)),
            (
                Record::Inline(len)
                | Record::Attached {
                    message: Carried::Inline(len),
                    ..
                },
                None,
            ) => (len, Place::Copy),
            // It was taken with the chunk.
            _ => return None,
        };
        let attached = attached.map(|fds| Attached::new(fds, adopts));
        let elsewhere = &mut self.elsewhere;
        elsewhere.set(place, taken.missed, attached);
        Some((len, taken.sequence, elsewhere))
    }

    /// Where it is in the stream: behind what is taken.
    pub(super) fn position(&self) -> u64 {
        self.reader.position()
    }

    /// Lets go of what is taken, and of what a message that was never dropped had.
    pub(super) fn forget(&mut self) {
        self.elsewhere.clear();
        self.taken = None;
        self.attached = None;
    }

    /// Whether a message is taken and was not given.
    pub(super) fn has_taken(&self) -> bool {
        self.taken.is_some()
    }

    /// How many messages there were before the next one.
    pub(super) fn sequence(&self) -> u64 {
        match &self.taken {
            Some((taken, _)) => taken.sequence,
            None => self.reader.sequence(),
        }
    }

    /// How many messages were missed.
    pub(super) fn missed(&self) -> u64 {
        let behind = self.reader.sequence().saturating_sub(self.from);
        behind.saturating_sub(self.kept)
    }
}

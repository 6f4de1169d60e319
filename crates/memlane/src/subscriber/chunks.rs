use std::{error::Error as _, os::fd::AsFd, sync::Arc};

use memlane_region::{
    Remote,
    pool::{Chunk, ChunkRef, Geometry, HeldChunk, Holds, MAX_SEGMENTS, PoolReader, Unresolved},
    ring::Record,
};
use memlane_transport::{Error as LinkError, Fds, Link, dispose};

use rustix::net::{Shutdown, shutdown};

use super::{
    Next, attachments::Attachments, homes::Homes, moving::Moving, page::Slots, rings::Rings,
};
use crate::{
    AttachmentError, ChunkError, Reason,
    protocol::{Farewell, MAX_ATTACHED, MAX_RINGS, Notice},
};

/// So many notices are taken in one go: more than an honest publisher has to give.
const MAX_NOTICES: usize = 4 * (MAX_SEGMENTS + MAX_RINGS) + MAX_ATTACHED;

/// So many times, where all have to be taken: sockets with larger buffers than usual hold more.
const MAX_LOOKS: usize = 64;

/// The publisher's pool, and its rings, as far as they are mapped here, attachments, and what else it has said.
#[derive(Debug)]
pub(super) struct Chunks {
    pub(super) reader: PoolReader,
    /// What is held of it, once there is a lane.
    pub(super) holds: Option<Arc<Holds<Slots>>>,
    pub(super) rings: Rings,
    pub(super) attachments: Attachments,
    /// Of the message that was found last, if it is more than a payload in the ring.
    noted: Option<Record>,
    pub(super) homes: Homes,
    /// Why a segment is not here, though it was announced, and which one; none if nothing more is heard of any.
    refused: Option<(Option<u32>, String)>,
    /// What the publisher said last, or why nothing more is heard of it.
    farewell: Option<Reason>,
    /// The link has ended, with or without a word.
    hung_up: bool,
    /// With which ring it ends, where, and why, if the publisher goes on without it by then.
    dismissed: Option<(u32, u64, String)>,
    /// The number of the ring that is read.
    pub(super) reads: u32,
    /// What it has said of a move.
    pub(super) moving: Moving,
}

impl Chunks {
    pub(super) fn new(quota: usize, rings: usize) -> Chunks {
        Chunks {
            reader: PoolReader::new(quota),
            holds: None,
            rings: Rings::new(rings),
            attachments: Attachments::default(),
            noted: None,
            homes: Homes::default(),
            refused: None,
            farewell: None,
            hung_up: false,
            dismissed: None,
            reads: 0,
            moving: Moving::default(),
        }
    }

    /// Why there is no publisher any more, once it is gone, as far as it has said so.
    pub(super) fn farewell(&mut self, link: &Link) -> Reason {
        // All that waits: nothing is added to it any more, and what fits a socket is less than this. Attachments among it are
        // those of messages that never came.
        for _ in 0..2 {
            self.take_while(link, |chunks| {
                chunks.attachments.forget_before(u64::MAX);
                true
            });
        }
        self.farewell.clone().unwrap_or(Reason::Died)
    }

    /// Whether nothing is mapped that could be given up.
    pub(super) fn is_empty(&self) -> bool {
        self.reader.is_empty() && self.rings.is_empty()
    }

    /// Whether nothing more is to be heard. A link whose end is read is closed on this side, too, and what is still to be
    /// received, or is held, is the publisher's from then on: so nothing is read behind a farewell.
    pub(super) fn is_over(&self) -> bool {
        self.farewell.is_some()
    }

    /// Whether the end of the link was met.
    pub(super) fn has_hung_up(&self) -> bool {
        self.hung_up
    }

    /// Why the publisher goes on without this subscriber, if it has said so.
    pub(super) fn evicted(&self) -> Option<&Reason> {
        let evicted = |reason: &&Reason| matches!(reason, Reason::Evicted { .. });
        self.farewell.as_ref().filter(evicted)
    }

    /// The same, of a subscriber at the end of its ring, which is here; or why it does whatever it says.
    pub(super) fn ended(&mut self, position: u64) -> Option<Reason> {
        if self.is_broken() {
            return self.farewell.clone();
        }
        // What was said of an end that it has gone on from is void, and another may be said.
        self.dismissed.take_if(|(_, end, _)| *end < position);
        match &self.dismissed {
            Some((ring, end, why)) if (*ring, *end) == (self.reads, position) => {
                Some(Reason::Evicted { why: why.clone() })
            }
            _ => self.evicted().cloned(),
        }
    }

    /// Notes what was found, for whoever delivers it: by itself it would be moved through memory on its way.
    pub(super) fn note(&mut self, found: Record) -> Next {
        match found {
            Record::Inline(len) => Next::InRing(len),
            found => {
                self.noted = Some(found);
                Next::Noted
            }
        }
    }

    /// What was noted last.
    pub(super) fn noted(&self) -> Record {
        self.noted.expect("found a moment ago")
    }

    /// The ring in which the stream goes on. Its notice was sent before: if it has not been taken from the link yet, it is there.
    pub(super) fn ring(&self, id: u32) -> Result<Remote, ChunkError> {
        self.rings.get(id).map_err(|why| ChunkError { why })
    }

    /// The chunk that a record names, in a segment that [is here](Chunks::has) if that can be had.
    #[inline]
    pub(super) fn resolve(&mut self, found: ChunkRef) -> Result<Chunk<'_>, ChunkError> {
        let Chunks {
            reader, refused, ..
        } = self;
        reader
            .resolve(found)
            .map_err(|unresolved| why(refused.as_ref(), unresolved))
    }

    /// Keeps the chunk that the record at this position names, for a reader that may be too late for that: `None` if it is.
    #[inline]
    pub(super) fn announce(
        &mut self,
        found: ChunkRef,
        position: u64,
        link: &Link,
        holds: &Arc<Holds<Slots>>,
    ) -> Result<Option<HeldChunk<Slots>>, ChunkError> {
        if self.is_broken() {
            let segment = found.segment;
            return Err(why(self.refused.as_ref(), Unresolved::Segment { segment }));
        }
        if !self.has(found.segment, position, link) && self.refused.is_none() {
            // It was given up meanwhile: all that was in it has been read, or missed.
            return Ok(None);
        }
        let chunk = self.resolve(found)?;
        // There is a slot: of those who keep messages, one is left.
        Ok(chunk.announce(holds).ok())
    }

    /// The attachments of the message whose record is at this position and has this tag. Their notice was sent before the
    /// record was committed.
    #[cold]
    pub(super) fn attached(
        &mut self,
        position: u64,
        tag: u16,
        link: &Link,
    ) -> Result<Fds, AttachmentError> {
        self.take_until(link, position, |chunks| {
            chunks.attachments.have(position, tag)
        });
        let found = self.attachments.take(position, tag);
        found.ok_or_else(|| match &self.farewell {
            Some(Reason::Broken { why }) => AttachmentError::Refused { why: why.clone() },
            _ => AttachmentError::Missing,
        })
    }

    /// Takes what the publisher has said since the last time, to a reader that is at this position and has found nothing there.
    /// What belongs to later messages stays on the link, where it costs this process no descriptors.
    #[cold]
    pub(super) fn take_notices(&mut self, link: &Link, position: u64) {
        self.take_until(link, position, |_| false);
    }

    /// Takes all that the publisher has said, what belongs to later messages included, however much a socket holds here; but not
    /// what another one says, which is [not heard yet](Homes::is_ahead).
    ///
    /// # Errors
    ///
    /// There is no end to it.
    #[cold]
    pub(super) fn take_all(&mut self, link: &Link, position: u64) -> Result<(), ChunkError> {
        self.attachments.forget_before(position);
        let goes_on = |chunks: &mut Chunks| !chunks.homes.is_ahead();
        let mut all = |_| self.take_while(link, goes_on) || self.homes.is_ahead();
        match (0..MAX_LOOKS).any(&mut all) {
            true => Ok(()),
            false => Err(ChunkError {
                why: format!(
                    "expected at most {} notices at a time, got more",
                    MAX_LOOKS * MAX_NOTICES
                ),
            }),
        }
    }

    /// Whether the segment that the record at this position names is here. Its notice was sent before the record: if it has not
    /// been taken from the link yet, it is there.
    #[inline]
    pub(super) fn has(&mut self, segment: u32, position: u64, link: &Link) -> bool {
        self.reader.contains(segment) || {
            self.take_segment(segment, position, link);
            self.reader.contains(segment)
        }
    }

    /// Takes notices until that of this segment is among them, if it is there.
    #[cold]
    fn take_segment(&mut self, segment: u32, position: u64, link: &Link) {
        self.take_until(link, position, |chunks| chunks.reader.contains(segment));
    }

    /// Takes notices until that of this ring is among them, if it is there.
    #[cold]
    pub(super) fn take_ring(&mut self, id: u32, link: &Link, position: u64) {
        self.take_until(link, position, |chunks| chunks.rings.get(id).is_ok());
    }

    /// Takes what there is on the link until it is enough, or has got ahead of the message at this position, or of the publisher that
    /// is heard.
    fn take_until(&mut self, link: &Link, position: u64, mut enough: impl FnMut(&Chunks) -> bool) {
        self.take_while(link, |chunks| {
            chunks.attachments.forget_before(position);
            let ahead = chunks.attachments.are_ahead_of(position) || chunks.homes.is_ahead();
            !enough(chunks) && !ahead
        });
    }

    /// Takes what there is, as long as there may be more of it; whether that was all.
    fn take_while(&mut self, link: &Link, mut goes_on: impl FnMut(&mut Chunks) -> bool) -> bool {
        for _ in 0..MAX_NOTICES {
            if self.is_over() {
                return true;
            }
            if !goes_on(self) {
                return false;
            }
            match link.try_recv::<Notice>() {
                Ok(notice) => self.take(notice),
                Err(LinkError::WouldBlock) => return true,
                Err(error) if error.is_disconnected() => {
                    self.hung_up = true;
                    return true;
                }
                Err(error) => {
                    self.break_off(link, &error);
                    return true;
                }
            }
        }
        false
    }

    /// The link has ended by this. What is held keeps it open towards the publisher, who would take that back.
    pub(super) fn break_off(&mut self, link: &Link, error: &LinkError) {
        let why = match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        self.refused = Some((None, why.clone()));
        self.farewell.get_or_insert(Reason::Broken { why });
        let holds = self.holds.as_ref().is_some_and(|holds| holds.taken() > 0);
        if holds {
            // This side alone finds it closed.
            let _ = shutdown(link.as_fd(), Shutdown::Read);
        } else {
            link.hang_up();
        }
    }

    /// Whether the link was ended on this side, for what came over it. To the publisher this subscriber has left then, or leaves when it
    /// next looks for a message: nothing of its memory may be read any more but what is held.
    pub(super) fn is_broken(&self) -> bool {
        matches!(self.refused, Some((None, _)))
    }

    /// Takes one notice.
    pub(super) fn take(&mut self, notice: Notice) {
        match notice {
            Notice::Added {
                id,
                chunks,
                chunk_size,
                memory,
            } => {
                let geometry = Geometry { chunks, chunk_size };
                if let Err(refused) = self.reader.insert(id, memory.into(), geometry) {
                    dispose(refused.descriptor);
                    self.refused = Some((Some(id), format!("segment {id}: {}", refused.error)));
                }
            }
            Notice::Removed { id } => {
                self.reader.remove(id);
                self.refused.take_if(|(refused, _)| *refused == Some(id));
            }
            Notice::Farewell(Farewell::Dismissed { why, ring, end }) => {
                self.dismissed = Some((ring, end, why));
            }
            Notice::Farewell(farewell) => {
                self.farewell.get_or_insert(farewell.into());
            }
            Notice::Ring { id, memory } => self.rings.insert(id, memory.into()),
            Notice::RingRemoved { id } => {
                self.rings.remove(id);
                self.homes.forget(id);
            }
            Notice::Home {
                id,
                memory,
                doorbell,
            } => self.announce_home(id, memory, doorbell),
            Notice::Moved {
                home,
                rings,
                segments,
            } => self.moved(home, rings, segments),
            Notice::Attachments { position, tag, fds } => {
                self.attachments.keep(position, tag, fds);
            }
            of_a_move => drop(self.moving.take(of_a_move)),
        }
    }
}

#[cold]
fn why(refused: Option<&(Option<u32>, String)>, unresolved: Unresolved) -> ChunkError {
    let why = refused.map(|(_, why)| why.clone());
    ChunkError {
        why: why.unwrap_or_else(|| unresolved.to_string()),
    }
}

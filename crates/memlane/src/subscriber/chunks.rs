use std::sync::Arc;

use memlane_region::{
    Remote,
    pool::{Chunk, ChunkRef, Geometry, HeldChunk, Holds, MAX_SEGMENTS, PoolReader, Unresolved},
};
use memlane_transport::{Error as LinkError, Link, dispose};

use super::{page::Slots, rings::Rings};
use crate::{
    ChunkError, Reason,
    protocol::{MAX_RINGS, Notice},
};

/// So many notices are taken in one go: more than an honest publisher has to give.
const MAX_NOTICES: usize = 4 * (MAX_SEGMENTS + MAX_RINGS);

/// The publisher's pool, and its rings, as far as they are mapped here, and what else it has said.
#[derive(Debug)]
pub(super) struct Chunks {
    reader: PoolReader,
    pub(super) rings: Rings,
    /// Why a segment is not here, though it was announced, and which one; none if nothing more is heard of any.
    refused: Option<(Option<u32>, String)>,
    /// What the publisher said last, or why nothing more is heard of it.
    farewell: Option<Reason>,
}

impl Chunks {
    pub(super) fn new(quota: usize, rings: usize) -> Chunks {
        Chunks {
            reader: PoolReader::new(quota),
            rings: Rings::new(rings),
            refused: None,
            farewell: None,
        }
    }

    /// Why there is no publisher any more, once it is gone, as far as it has said so.
    pub(super) fn farewell(&mut self, link: &Link) -> Reason {
        if self.farewell.is_none() {
            // All that waits: nothing is added to it any more, and what fits a socket is less than this.
            self.take_notices(link);
            self.take_notices(link);
        }
        self.farewell.clone().unwrap_or(Reason::Died)
    }

    /// Whether nothing is mapped that could be given up.
    pub(super) fn is_empty(&self) -> bool {
        self.reader.is_empty() && self.rings.is_empty()
    }

    /// Why the publisher goes on without this subscriber, if it has said so.
    pub(super) fn evicted(&self) -> Option<&Reason> {
        let evicted = |reason: &&Reason| matches!(reason, Reason::Evicted { .. });
        self.farewell.as_ref().filter(evicted)
    }

    /// The ring in which the stream goes on. Its notice was sent before: if it has not been taken from the link yet, it is there.
    pub(super) fn ring(&self, id: u32) -> Result<Remote, ChunkError> {
        self.rings.get(id).map_err(|why| ChunkError { why })
    }

    /// The chunk that a record names. Its segment's notice was sent before the record: if it has not been taken from the
    /// link yet, it is there.
    #[inline]
    pub(super) fn resolve(
        &mut self,
        found: ChunkRef,
        link: &Link,
    ) -> Result<Chunk<'_>, ChunkError> {
        if !self.reader.contains(found.segment) {
            self.take_notices(link);
        }
        let Chunks {
            reader, refused, ..
        } = self;
        reader
            .resolve(found)
            .map_err(|unresolved| why(refused.as_ref(), unresolved))
    }

    /// Keeps the chunk that a record names, for a reader that may be too late for that: `None` if it is.
    #[inline]
    pub(super) fn announce(
        &mut self,
        found: ChunkRef,
        link: &Link,
        holds: &Arc<Holds<Slots>>,
    ) -> Result<Option<HeldChunk<Slots>>, ChunkError> {
        if !self.reader.contains(found.segment) {
            self.take_notices(link);
            if !self.reader.contains(found.segment) && self.refused.is_none() {
                // It was given up meanwhile: all that was in it has been read, or missed.
                return Ok(None);
            }
        }
        let chunk = self.resolve(found, link)?;
        // There is a slot: of those who keep messages, one is left.
        Ok(chunk.announce(holds).ok())
    }

    /// Takes what the publisher has said of its pool since the last time.
    #[cold]
    pub(super) fn take_notices(&mut self, link: &Link) {
        for _ in 0..MAX_NOTICES {
            match link.try_recv::<Notice>() {
                Ok(notice) => self.take(notice),
                Err(LinkError::WouldBlock) => return,
                Err(error) if error.is_disconnected() => return,
                // The link has ended by that.
                Err(error) => {
                    let why = error.to_string();
                    self.refused = Some((None, why.clone()));
                    self.farewell.get_or_insert(Reason::Broken { why });
                    return;
                }
            }
        }
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
            Notice::Farewell(farewell) => {
                self.farewell.get_or_insert(farewell.into());
            }
            Notice::Ring { id, memory } => self.rings.insert(id, memory.into()),
            Notice::RingRemoved { id } => self.rings.remove(id),
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

//! A pool as its readers have it.

use std::sync::Arc;

use rustix::fd::OwnedFd;

use super::{ChunkRef, Geometry, Hold, HoldError, HoldPage, Holds, MAX_SEGMENTS};
use crate::{Error, Refused, Remote};

/// The segments of a peer's pool that this reader has mapped, read-only.
#[derive(Debug)]
pub struct PoolReader {
    /// By id.
    segments: Vec<Arc<Mapped>>,
    bytes: usize,
    quota: usize,
}

#[derive(Debug)]
struct Mapped {
    id: u32,
    geometry: Geometry,
    first: usize,
    len: usize,
    region: Remote,
}

/// A chunk that is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unresolved {
    /// Its segment is not: if the owner is honest, the announcement is on its way.
    #[error("segment {segment} is not mapped here")]
    Segment {
        /// The segment's id.
        segment: u32,
    },
    /// No honest owner says this.
    #[error("corrupt reference: expected a message within {geometry:?}, found {found:?}")]
    Corrupt {
        /// What was said.
        found: ChunkRef,
        /// What the segment consists of.
        geometry: Geometry,
    },
}

impl PoolReader {
    /// A reader of a pool, without segments. All that it maps at a time will be at most `quota` bytes, which
    /// should be somewhat more than the owner's limit, since segments are removed later than given up.
    pub fn new(quota: usize) -> PoolReader {
        PoolReader {
            segments: Vec::new(),
            bytes: 0,
            quota,
        }
    }

    /// Verifies the descriptor of an announced segment as [`Remote::open`] does, and maps it. The descriptor is
    /// closed once it is mapped.
    ///
    /// # Errors
    ///
    /// [`Refused`], with the reason and the descriptor: those of [`Remote::open`], an impossible geometry, an id
    /// that is there already, more than [`MAX_SEGMENTS`].
    pub fn insert(
        &mut self,
        id: u32,
        descriptor: OwnedFd,
        geometry: Geometry,
    ) -> Result<(), Box<Refused>> {
        let (at, len) = match self.place(id, geometry) {
            Ok(found) => found,
            Err(error) => return Err(Box::new(Refused { error, descriptor })),
        };
        let region = Remote::open(descriptor, len, 0, self.quota - self.bytes)?;
        let first = geometry.header();
        let mapped = Mapped {
            id,
            geometry,
            first,
            len,
            region,
        };
        self.bytes += len;
        self.segments.insert(at, Arc::new(mapped));
        Ok(())
    }

    /// Where the segment goes, and its length.
    fn place(&self, id: u32, geometry: Geometry) -> Result<(usize, usize), Error> {
        let Err(at) = self.find(id) else {
            return Err(Error::DuplicateSegment { id });
        };
        if self.segments.len() == MAX_SEGMENTS {
            return Err(Error::TooManySegments { max: MAX_SEGMENTS });
        }
        Ok((at, geometry.region()?))
    }

    #[inline]
    fn find(&self, id: u32) -> Result<usize, usize> {
        self.segments
            .binary_search_by_key(&id, |segment| segment.id)
    }

    /// Removes a segment that the owner has given up: it is unmapped once nothing is held of it. False if it was
    /// not there.
    pub fn remove(&mut self, id: u32) -> bool {
        let found = self.find(id);
        if let Ok(at) = found {
            self.bytes -= self.segments.remove(at).len;
        }
        found.is_ok()
    }

    /// Removes the segments with lower ids than this one: those of an owner that another has [succeeded](super::Pool::begin_at).
    pub fn remove_before(&mut self, id: u32) {
        let gone = self.segments.partition_point(|segment| segment.id < id);
        let gone = self.segments.drain(..gone);
        self.bytes -= gone.map(|segment| segment.len).sum::<usize>();
    }

    /// Whether a segment is mapped.
    #[inline]
    pub fn contains(&self, id: u32) -> bool {
        self.find(id).is_ok()
    }

    /// How many segments are mapped.
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Whether no segment is mapped.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The chunk that a record names, checked against what is mapped here.
    ///
    /// # Errors
    ///
    /// [`Unresolved`].
    #[inline]
    pub fn resolve(&self, found: ChunkRef) -> Result<Chunk<'_>, Unresolved> {
        let Ok(at) = self.find(found.segment) else {
            let segment = found.segment;
            return Err(Unresolved::Segment { segment });
        };
        let segment = &self.segments[at];
        let geometry = segment.geometry;
        if found.chunk >= geometry.chunks || found.len > geometry.chunk_size || found.sequence == 0
        {
            return Err(Unresolved::Corrupt { found, geometry });
        }
        Ok(Chunk { segment, found })
    }
}

/// A message in a chunk of a peer's pool.
///
/// By itself it holds nothing. A lossless reader may read it while it has not released the record that named it;
/// a lossy one holds it first, and reads then. What the owner, if it does not play by the rules, writes there
/// meanwhile changes what is read; it does no more harm than that.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    segment: &'a Arc<Mapped>,
    /// Checked.
    found: ChunkRef,
}

impl<'a> Chunk<'a> {
    /// Length of the message, in bytes.
    #[allow(clippy::len_without_is_empty)] // a message
    pub fn len(&self) -> usize {
        self.found.len as usize
    }

    /// What the record said.
    pub fn chunk_ref(&self) -> ChunkRef {
        self.found
    }

    /// Where `len` bytes from `offset` on are in the region.
    #[inline(always)]
    fn range(&self, offset: usize, len: usize) -> usize {
        assert!(
            offset.saturating_add(len) <= self.len(),
            "{offset} + {len} bytes are over the message of {}",
            self.len()
        );
        let size = self.segment.geometry.chunk_size as usize;
        self.segment.first + self.found.chunk as usize * size + offset
    }

    /// Copies bytes of the message out, from byte `offset` on.
    ///
    /// # Panics
    ///
    /// If `offset + dst.len()` is more than the message's length.
    #[inline(always)]
    pub fn read(&self, offset: usize, dst: &mut [u8]) {
        let at = self.range(offset, dst.len());
        self.segment.region.mapping.read_header(at, dst);
    }

    /// The message, in place.
    ///
    /// # Safety
    ///
    /// The owner must not write these bytes while they are borrowed: it must be a program that plays by the rules,
    /// and this process must keep the chunk for as long, by a hold or by not releasing the record.
    #[inline(always)]
    pub unsafe fn bytes(&self) -> &'a [u8] {
        let bytes = self
            .segment
            .region
            .mapping
            .header_range(self.range(0, self.len()), self.len());
        // SAFETY: `len` bytes are mapped there for as long as the segment is borrowed; that nobody writes them is
        // the caller's promise.
        unsafe { std::slice::from_raw_parts(bytes, self.len()) }
    }

    /// Holds the message beyond its record, for a lossless reader. It must come before the record's release.
    ///
    /// # Errors
    ///
    /// [`HoldError::Full`].
    pub fn hold<P: HoldPage>(&self, holds: &Arc<Holds<P>>) -> Result<HeldChunk<P>, HoldError> {
        Ok(self.held(holds.hold(self.found.sequence)?))
    }

    /// Holds the message, for a lossy reader: nothing of it may be believed that was read before.
    ///
    /// # Errors
    ///
    /// [`HoldError::Full`]; [`HoldError::Gone`] if the chunk is about to be used again.
    pub fn announce<P: HoldPage>(&self, holds: &Arc<Holds<P>>) -> Result<HeldChunk<P>, HoldError> {
        let word = || {
            let at = 8 * self.found.chunk as usize;
            self.segment.region.load_word(at)
        };
        Ok(self.held(holds.announce(self.found.sequence, word)?))
    }

    fn held<P: HoldPage>(&self, hold: Hold<P>) -> HeldChunk<P> {
        HeldChunk {
            _hold: hold,
            kept: self.keep(),
        }
    }

    /// The same, owned: it keeps the segment mapped, and holds as little as this.
    #[inline]
    pub fn keep(&self) -> KeptChunk {
        KeptChunk {
            segment: self.segment.clone(),
            found: self.found,
        }
    }
}

/// A [`Chunk`] that is owned: its segment stays mapped. It holds nothing, either.
#[derive(Clone, Debug)]
pub struct KeptChunk {
    segment: Arc<Mapped>,
    found: ChunkRef,
}

impl KeptChunk {
    /// The message.
    #[inline(always)]
    pub fn chunk(&self) -> Chunk<'_> {
        Chunk {
            segment: &self.segment,
            found: self.found,
        }
    }
}

/// A message that this process holds, until it is dropped: owned, on any thread, whatever becomes of the record
/// and of the segment's place in the [`PoolReader`].
#[derive(Debug)]
pub struct HeldChunk<P: HoldPage> {
    _hold: Hold<P>,
    kept: KeptChunk,
}

impl<P: HoldPage> HeldChunk<P> {
    /// The message.
    #[inline(always)]
    pub fn chunk(&self) -> Chunk<'_> {
        self.kept.chunk()
    }
}

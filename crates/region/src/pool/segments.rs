use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rustix::fd::OwnedFd;

use super::{
    Geometry, Loan,
    memory::{Exclusive, Memory},
    returns::Returns,
};
use crate::{Error, Options};

/// Segments that a pool has at most, at a time.
pub const MAX_SEGMENTS: usize = 128;

#[cfg(test)]
documented!(MAX_SEGMENTS);

/// A segment, as readers have to be told of it.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Its name: counting up, and never used again.
    pub id: u32,
    /// What it consists of.
    pub geometry: Geometry,
    /// The permission to map it read-only. The pool's own share of it is dropped with the segment.
    pub descriptor: &'a Arc<OwnedFd>,
}

/// What became of a segment since the caller asked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new: readers need its descriptor ([`Pool::segment`](super::Pool::segment)).
    Added(u32),
    /// It was given up: readers should unmap it.
    Removed(u32),
}

/// Where a chunk is, for the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Index in the table.
    pub(super) segment: u32,
    pub(super) chunk: u32,
}

/// A segment and what its owner believes of it.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) id: u32,
    pub(super) class: usize,
    pub(super) memory: Arc<Memory>,
    /// Bytes of its chunks.
    pub(super) len: usize,
    descriptor: Arc<OwnedFd>,
    /// Those that are not loaned. Chunks are kept here while readers have them, so that a send and the loan after it
    /// touch nothing shared.
    chunks: Box<[Option<Exclusive>]>,
    /// How much of each chunk may not be zero, in bytes.
    used: Box<[usize]>,
    free: u32,
    /// Sent from, ever.
    sent: bool,
    /// Loaned from since `trim` looked last.
    touched: bool,
    quiet_since: Option<Instant>,
}

impl Owned {
    pub(super) fn is_free(&self) -> bool {
        self.free == self.memory.geometry().chunks
    }

    pub(super) fn is_touched(&self) -> bool {
        self.touched
    }

    /// Whether all chunks have been free, and nothing loaned, for so long.
    pub(super) fn is_quiet(&mut self, now: Instant, quiet: Duration) -> bool {
        let touched = std::mem::take(&mut self.touched);
        if !self.is_free() {
            self.quiet_since = None;
            return false;
        }
        let since = match self.quiet_since {
            Some(since) if !touched => since,
            _ => *self.quiet_since.insert(now),
        };
        now.saturating_duration_since(since) >= quiet
    }

    pub(super) fn is_sent(&self) -> bool {
        self.sent
    }

    pub(super) fn describe(&self) -> Segment<'_> {
        Segment {
            id: self.id,
            geometry: self.memory.geometry(),
            descriptor: &self.descriptor,
        }
    }
}

/// The segments of a pool.
#[derive(Debug)]
pub(super) struct Table {
    /// Indices stay; there are never more than [`MAX_SEGMENTS`].
    segments: Vec<Option<Owned>>,
    /// Bytes of all their chunks.
    bytes: usize,
    next_id: u32,
    changes: Vec<Change>,
    returns: Arc<Returns>,
}

impl Table {
    pub(super) fn new() -> Table {
        Table {
            segments: Vec::with_capacity(MAX_SEGMENTS),
            bytes: 0,
            next_id: 0,
            changes: Vec::new(),
            returns: Arc::default(),
        }
    }

    pub(super) fn returns(&self) -> &Returns {
        &self.returns
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn next_id(&self) -> u32 {
        self.next_id
    }

    /// The ids of all that will be made begin with this one.
    pub(super) fn number_from(&mut self, id: u32) {
        self.next_id = id;
    }

    pub(super) fn is_full(&self) -> bool {
        self.next_id == u32::MAX || self.iter().count() == MAX_SEGMENTS
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Owned)> {
        let segments = (0..).zip(&self.segments);
        segments.filter_map(|(at, segment)| Some((at, segment.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Owned)> {
        let segments = (0..).zip(&mut self.segments);
        segments.filter_map(|(at, segment)| Some((at, segment.as_mut()?)))
    }

    /// Makes a segment; the table is not full. Its index.
    pub(super) fn create(
        &mut self,
        options: &Options,
        class: usize,
        geometry: Geometry,
    ) -> Result<u32, Error> {
        let (memory, chunks, descriptor) = Memory::create(options, geometry, &self.returns)?;
        let segment = Owned {
            id: self.next_id,
            class,
            memory,
            len: geometry.chunks as usize * geometry.chunk_size as usize,
            descriptor: Arc::new(descriptor),
            used: vec![0; chunks.len()].into(),
            chunks: chunks.into_iter().map(Some).collect(),
            free: geometry.chunks,
            sent: false,
            touched: true,
            quiet_since: None,
        };
        self.bytes += segment.len;
        self.next_id += 1;
        self.changes.push(Change::Added(segment.id));
        let vacant = self.segments.iter().position(Option::is_none);
        let at = vacant.unwrap_or_else(|| {
            self.segments.push(None);
            self.segments.len() - 1
        });
        self.segments[at] = Some(segment);
        Ok(at as u32)
    }

    /// Gives up a segment, which is free.
    pub(super) fn remove(&mut self, at: u32) {
        let Some(segment) = self.segments[at as usize].take() else {
            return;
        };
        debug_assert!(segment.is_free());
        self.bytes -= segment.len;
        let added = Change::Added(segment.id);
        match self.changes.iter().position(|&change| change == added) {
            // Nobody has heard of it.
            Some(at) => drop(self.changes.remove(at)),
            None => self.changes.push(Change::Removed(segment.id)),
        }
    }

    #[inline(always)]
    pub(super) fn get(&self, at: u32) -> &Owned {
        let segment = self.segments[at as usize].as_ref();
        segment.expect("a segment with a chunk in use stays")
    }

    #[inline(always)]
    fn get_mut(&mut self, at: u32) -> &mut Owned {
        let segment = self.segments[at as usize].as_mut();
        segment.expect("a segment with a chunk in use stays")
    }

    /// The segment that a loan is of.
    ///
    /// # Panics
    ///
    /// If the loan is another pool's.
    #[inline(always)]
    pub(super) fn of(&self, loan: &Loan) -> &Owned {
        let segment = self
            .segments
            .get(loan.place as usize)
            .and_then(Option::as_ref);
        let own = segment.filter(|segment| loan.chunk().is_in(&segment.memory));
        own.expect("the loan is another pool's")
    }

    /// Zeroes what may not be zero of a free chunk.
    #[cold]
    pub(super) fn zero(&mut self, place: Place) {
        let segment = self.get_mut(place.segment);
        let used = segment.used[place.chunk as usize];
        if let Some(chunk) = &mut segment.chunks[place.chunk as usize] {
            chunk.bytes_mut(used).fill(0);
        }
    }

    /// Lends a free chunk, of which the first `len` bytes may not be zero from now on.
    #[inline(always)]
    pub(super) fn lend(&mut self, place: Place, len: usize) -> Exclusive {
        let segment = self.get_mut(place.segment);
        segment.free -= 1;
        segment.touched = true;
        segment.used[place.chunk as usize] = len;
        let chunk = segment.chunks[place.chunk as usize].take();
        chunk.expect("a free chunk is not loaned")
    }

    /// Keeps a chunk that is sent, `used` bytes of which may not be zero, and says so in its word.
    #[inline]
    pub(super) fn send(&mut self, place: Place, chunk: Exclusive, sequence: u64, used: usize) {
        let segment = self.get_mut(place.segment);
        segment.chunks[place.chunk as usize] = Some(chunk);
        segment.used[place.chunk as usize] = used;
        segment.sent = true;
        let word = segment.memory.word(place.chunk);
        word.store(sequence, Ordering::Relaxed);
    }

    /// Takes back the loans of a class that were dropped unsent.
    pub(super) fn take_dropped(&mut self, class: usize, free: &mut Vec<Place>) {
        for (segment, owned) in self.iter_mut().filter(|(_, owned)| owned.class == class) {
            for dropped in owned.memory.take_dropped() {
                let chunk = dropped.chunk();
                free.push(Place { segment, chunk });
                owned.chunks[chunk as usize] = Some(dropped);
                owned.free += 1;
            }
        }
    }

    /// Takes back a chunk that was sent.
    #[inline]
    pub(super) fn take_sent(&mut self, place: Place) {
        self.get_mut(place.segment).free += 1;
    }

    pub(super) fn describe(&self) -> impl Iterator<Item = Segment<'_>> {
        self.iter().map(|(_, segment)| segment.describe())
    }

    pub(super) fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }
}

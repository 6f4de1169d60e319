//! Rings that a writer leaves to those who are slow.

use super::{
    RingWriter,
    layout::{self, HEADER},
    roster::{Joined, LEFT, Lingering, Reader},
    writer::Seen,
};
use crate::{
    primitive::{Ordering, fence},
    words::WordsMut,
};

/// A ring that the writer has left.
#[derive(Debug)]
pub(super) struct Past<M> {
    pub(super) ring: u32,
    pub(super) memory: M,
    /// Where it begins, and where it says in which ring the stream goes on.
    pub(super) base: u64,
    pub(super) end: u64,
    /// Only readers that were dismissed may read it, and nobody else will.
    aside: bool,
}

/// The first ring of all, when it is not the writer's.
pub(super) fn first_mut<M>(past: &mut [Past<M>], home: u32) -> &mut M {
    let first = past.iter_mut().find(|past| past.ring == home);
    &mut first.expect("the first ring stays").memory
}

/// A reader that was dismissed.
#[derive(Debug)]
pub(super) struct Dismissed<R> {
    pub(super) joined: Joined<R>,
    pub(super) stop: u64,
    /// Its position when last looked at.
    position: u64,
}

impl<R> Dismissed<R> {
    pub(super) fn new(lingering: Lingering<R>, before: &[Dismissed<R>]) -> Dismissed<R> {
        let Lingering { joined, stop } = lingering;
        let known = before.iter().find(|known| known.joined.id == joined.id);
        Dismissed {
            position: known.map_or(joined.start, |known| known.position),
            joined,
            stop,
        }
    }
}

/// A reader that is in the way of a message.
#[derive(Debug)]
pub struct Laggard<'a, R> {
    /// The reader.
    pub joined: &'a Joined<R>,
    /// Bytes of the stream that it has not released.
    pub behind: u64,
    /// How many rings, beyond the writer's, are kept for it now.
    pub rings: usize,
}

/// Where the stream leaves a ring, or would: the end of all for a reader that is [dismissed](RingWriter::dismiss).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The number of the ring.
    pub ring: u32,
    /// The position. There may be several rings that end at the same, one behind the other.
    pub position: u64,
}

/// What has become of a reader that was to be [dismissed](RingWriter::dismiss).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Dismissal {
    /// It is waited for no longer, or has left.
    Done,
    /// Likewise, but it may be in the writer's own ring, which must be left to it by a [`switch`](RingWriter::switch) now, before
    /// anything else is called.
    LeaveRing,
    /// It is a reader as before: it has come to that end meanwhile, and may have gone on from there before it was told.
    Passed,
}

impl<M: WordsMut, R: Reader> RingWriter<M, R> {
    #[cold]
    pub(super) fn first(&self) -> &M {
        let first = self.past.iter().find(|past| past.ring == self.home);
        &first.expect("the first ring stays").memory
    }

    /// The number of the ring that it writes in: at first, that of its [first](RingWriter::home) one.
    pub fn ring(&self) -> u32 {
        self.ring
    }

    /// The number of its first ring: 0, unless it [goes on](RingWriter::begin_at) where another writer stopped.
    pub fn home(&self) -> u32 {
        self.home
    }

    /// How many rings there are, its own included.
    pub fn rings(&self) -> usize {
        self.past.len() + 1
    }

    /// How many of them readers may come to that have not been dismissed.
    pub fn rings_in_use(&self) -> usize {
        self.past.iter().filter(|past| !past.aside).count() + 1
    }

    /// Sets those aside, but for the first, that only dismissed readers may be reading: their numbers. Others may unmap them; they are
    /// gone once those readers have left, and no [spare](RingWriter::spare) ones before.
    pub fn set_aside(&mut self) -> Vec<u32> {
        self.refresh(0);
        self.look_at_dismissed();
        let mut past = std::mem::take(&mut self.past);
        let mut aside = Vec::new();
        for one in &mut past {
            if one.ring != self.home
                && !one.aside
                && !self.is_read(one)
                && self.is_left_to_somebody(one)
            {
                one.aside = true;
                aside.push(one.ring);
            }
        }
        self.past = past;
        self.tell_rings();
        aside
    }

    /// Says where rings begin that somebody may start in.
    fn tell_rings(&self) {
        let past = self.past.iter().filter(|past| !past.aside);
        let bases = past.map(|past| (past.base, past.ring));
        let bases = bases.chain([(self.base, self.ring)]).collect();
        self.roster.set_rings(bases);
    }

    /// The readers that are in the way of a payload of `len` bytes, as of the last [`reserve`](RingWriter::reserve).
    pub fn laggards(&self, len: usize) -> impl Iterator<Item = Laggard<'_, R>> {
        let needed = layout::furthest_end(self.position, len) + HEADER;
        let released = needed.saturating_sub(self.capacity);
        self.readers_before(released)
    }

    /// Every reader that has not left, and how far behind it is, as of the last look at them.
    pub fn standings(&self) -> impl Iterator<Item = Laggard<'_, R>> {
        self.readers_before(u64::MAX)
    }

    fn readers_before(&self, position: u64) -> impl Iterator<Item = Laggard<'_, R>> {
        let slow = self
            .readers
            .iter()
            .filter(move |seen| seen.position < position && seen.joined.reader.cursor() != LEFT);
        slow.map(|seen| Laggard {
            joined: &seen.joined,
            behind: self.position.saturating_sub(seen.position),
            rings: self.kept_behind(seen.position),
        })
    }

    /// How many rings, beyond the writer's, are kept for a reader.
    pub fn rings_behind(&self, id: u64) -> usize {
        let seen = self.readers.iter().find(|seen| seen.joined.id == id);
        seen.map_or(0, |seen| self.kept_behind(seen.position))
    }

    fn kept_behind(&self, position: u64) -> usize {
        let past = self.past.iter();
        past.filter(|past| past.end >= position && past.base < past.end)
            .count()
    }

    /// Looks for a ring that nobody reads any more, of those that it has left: the first of all, if it is one.
    pub fn spare(&mut self) -> Option<u32> {
        self.free_rings().min()
    }

    /// The same, of those that can be [given up](RingWriter::give_up).
    pub fn spare_beside_first(&mut self) -> Option<u32> {
        let home = self.home;
        self.free_rings().find(|&ring| ring != home)
    }

    fn free_rings(&mut self) -> impl Iterator<Item = u32> {
        self.refresh(0);
        self.look_at_dismissed();
        let mut past = std::mem::take(&mut self.past);
        past.retain(|past| !past.aside || self.is_needed(past));
        self.past = past;
        let past = self.past.iter().filter(|past| !past.aside);
        let free = past.filter(|past| !self.is_needed(past));
        free.map(|past| past.ring)
    }

    /// Whether anybody may be reading a ring that it has left.
    pub fn is_spilled(&mut self) -> bool {
        self.free_rings().count() < self.past.len()
    }

    /// Whether nothing has been written in this ring.
    pub fn is_fresh(&self) -> bool {
        self.position == self.base
    }

    /// Whether anybody may be reading a ring, or looking for what comes behind it.
    fn is_needed(&self, past: &Past<M>) -> bool {
        self.is_read(past) || self.is_left_to_somebody(past)
    }

    /// The same, of those who go on behind it, now or when they come.
    fn is_read(&self, past: &Past<M>) -> bool {
        // At its end, a reader has still to see where the stream goes on.
        let reads =
            |seen: &Seen<R>| seen.position <= past.end && seen.joined.reader.cursor() != LEFT;
        let history = self.history.as_ref();
        self.readers.iter().any(reads)
            || history.is_some_and(|history| history.kept().position < past.end)
    }

    /// The same, of those who were dismissed.
    fn is_left_to_somebody(&self, past: &Past<M>) -> bool {
        let mut gone = self.dismissed.iter();
        gone.any(|gone| gone.position <= past.end && past.end <= gone.stop)
    }

    fn look_at_dismissed(&mut self) {
        for gone in &mut self.dismissed {
            let position = match gone.joined.reader.cursor() {
                LEFT => u64::MAX,
                cursor => gone.joined.start.saturating_add(cursor),
            };
            gone.position = gone.position.max(position);
        }
        // Pairs with the readers' Release stores of their cursors.
        fence(Ordering::Acquire);
    }

    /// Goes on in another ring of the same capacity, with the next record. The one that it leaves stays as it is, for those
    /// who have not read it, and so does what is in it; all room of the other one is free.
    ///
    /// `ring` is the number of the other one: of a [`spare`](RingWriter::spare) one, or of a new one, whose `memory` is given then.
    /// Readers must have been told of it, since they find nothing but its number.
    ///
    /// A writer that leaves more than 64 rings at one position, without having written in them, is taken for one that leads its
    /// readers in circles.
    ///
    /// # Panics
    ///
    /// If the capacity is another, or the ring is none that it has left and is not free.
    pub fn switch(&mut self, ring: u32, memory: Option<M>) {
        let memory = memory.unwrap_or_else(|| {
            let at = self.past.iter().position(|past| past.ring == ring);
            let past = self.past.remove(at.expect("a ring that was left"));
            assert!(!self.is_needed(&past), "ring {ring} is still read");
            past.memory
        });
        assert_eq!(memory.capacity(), self.capacity, "a ring of another size");
        let left = Past {
            ring: std::mem::replace(&mut self.ring, ring),
            memory: std::mem::replace(&mut self.memory, memory),
            base: std::mem::replace(&mut self.base, self.position),
            end: self.position,
            aside: false,
        };
        self.past.push(left);
        // Nothing is there for those who come.
        self.memory.store(self.position, 0);
        self.tell_rings();
        if self.laps.bound() != u64::MAX {
            // Who was overtaken in a ring that is given up later, or does not know this one, finds where it is.
            self.export(self.position + HEADER);
        }
        // Pairs with the readers' loads of it: the 0 above is there.
        let left = self.past.last_mut().expect("pushed above");
        left.memory
            .store_release(left.end, layout::switch(self.ring));
        self.room = self.position + self.capacity;
        self.limit = self.room.min(self.laps.bound());
    }

    /// Gives up a ring that nobody reads any more, and that is not the first; `None` if it is none. Readers may unmap it.
    pub fn give_up(&mut self, ring: u32) -> Option<M> {
        let at = self
            .past
            .iter()
            .position(|past| past.ring == ring && ring != self.home && !self.is_needed(past))?;
        let past = self.past.remove(at);
        self.tell_rings();
        Some(past.memory)
    }

    /// The end of the ring that a reader is in, as of the last look at it: where it would end if it was
    /// [dismissed](RingWriter::dismiss) now. `None` if it is no reader.
    pub fn end_of(&self, id: u64) -> Option<End> {
        let seen = self.readers.iter().find(|seen| seen.joined.id == id)?;
        // If it is at the very end of one, it may be in the next, or on its way to it.
        let past = self.past.iter().filter(|past| past.end > seen.position);
        let past = past.min_by_key(|past| past.end);
        Some(match past {
            Some(past) => End {
                ring: past.ring,
                position: past.end,
            },
            None => End {
                ring: self.ring,
                position: self.position,
            },
        })
    }

    /// Waits for a reader no longer, which ends [here](RingWriter::end_of), and must have been told so before this call. What it may be
    /// reading is not written again until it has [left](super::Roster::leave): all of the ring that it is in. Before it goes on
    /// into another ring, it exports its cursor, fences (`SeqCst`), and looks whether it was to end there.
    ///
    /// One that has got there [by then](Dismissal::Passed) is waited for as before: what it was told holds for it as long as it has not
    /// gone on, and means nothing to it after that.
    pub fn dismiss(&mut self, id: u64, end: End) -> Dismissal {
        // Pairs with the reader's fence between its cursor and its look whether it was dismissed: it is seen here to be at that end,
        // or knows.
        fence(Ordering::SeqCst);
        self.take_roster();
        let Some(at) = self.readers.iter().position(|seen| seen.joined.id == id) else {
            return Dismissal::Done;
        };
        let Seen { joined, position } = &self.readers[at];
        let position = match joined.reader.cursor() {
            LEFT => return Dismissal::Done,
            cursor => joined.start.wrapping_add(cursor).min(self.position),
        }
        .max(*position);
        // Nobody has gone on from the writer's own ring.
        let here = end.ring == self.ring;
        if !here && position >= end.position {
            return Dismissal::Passed;
        }
        self.roster.dismiss(id, end.position);
        self.take_roster();
        if let Some(gone) = self.dismissed.iter_mut().find(|gone| gone.joined.id == id) {
            gone.position = position;
        }
        match here {
            true => Dismissal::LeaveRing,
            false => Dismissal::Done,
        }
    }

    /// The word to show to readers before sleeping until a ring that it has left is free, as [`want`](RingWriter::want) is
    /// for room: where the slowest of them has passed the end of one. `None` if it has left none that is read.
    pub fn want_ring(&self) -> Option<u64> {
        let needed = self.past.iter().filter(|past| {
            let waits = |seen: &&Seen<R>| seen.position <= past.end;
            self.readers.iter().find(waits).is_some()
        });
        let end = needed.map(|past| past.end).min()?;
        Some((end + HEADER) | layout::WAITING)
    }
}

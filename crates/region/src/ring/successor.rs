//! A writer that goes on where another one stops.

use super::{
    RingWriter,
    layout::{self, HEADER},
    roster::Reader,
};
use crate::words::WordsMut;

impl<M: WordsMut, R: Reader> RingWriter<M, R> {
    /// Gives its first ring, in which nothing has been written, another number than 0: one that no reader knows.
    ///
    /// # Panics
    ///
    /// If something was written, or it has left the ring.
    pub fn numbered(mut self, ring: u32) -> RingWriter<M, R> {
        assert!(
            self.is_fresh() && self.past.is_empty(),
            "a ring that is in use keeps its number"
        );
        self.home = ring;
        self.ring = ring;
        self.roster.set_rings(vec![(self.base, ring)]);
        self
    }

    /// Goes on where another writer has [stopped](RingWriter::hand_over): at its position, before record `sequence`. Before
    /// anything is written, and before there are readers; those of the other one are [adopted](super::Roster::adopt) then. They have
    /// been told of this ring, and find its number where the other one's ends.
    ///
    /// # Panics
    ///
    /// If something was written, or the position is no multiple of 8, or so large that a lap from there is none.
    pub fn begin_at(&mut self, position: u64, sequence: u64) {
        assert!(
            self.sequence == 0 && self.past.is_empty() && self.history.is_none(),
            "a writer that has begun"
        );
        assert!(
            position % 8 == 0 && position <= u64::MAX / 2,
            "{position} is no position"
        );
        self.position = position;
        self.sequence = sequence;
        self.base = position;
        self.slowest = position;
        self.memory.store(position, 0);
        self.roster.begin_at(position, sequence, self.ring);
        if self.laps.bound() != u64::MAX {
            // Who knows no more of the other one's rings than that they end finds where this one is.
            self.export(position + HEADER);
        }
        self.room = position + self.capacity;
        self.limit = self.room.min(self.laps.bound());
    }

    /// Writes nothing more: the stream goes on in another writer's first ring, which has this number, and of which readers have been
    /// told. Where it [begins](RingWriter::begin_at): the position, and how many records there were before. All rings stay as they
    /// are for as long as somebody has them mapped.
    pub fn hand_over(&mut self, ring: u32) -> (u64, u64) {
        let (position, sequence) = (self.position, self.sequence);
        if self.laps.bound() != u64::MAX {
            // As for a `switch`: who was overtaken finds where it goes on. Nothing is overwritten any more.
            self.export_in(ring, 0);
        }
        // Pairs with the readers' loads of it: this ring is whole.
        self.memory.store_release(position, layout::switch(ring));
        // There is no room for more, and never will be.
        self.capacity = 0;
        self.room = 0;
        self.limit = 0;
        (position, sequence)
    }
}

//! Rings that are left to subscribers who are slow.

use std::time::{Duration, Instant};

use memlane_region::{Options, Shared, page_size, ring::RingWriter};

use super::{Publisher, peer::Peer};
use crate::{Error, protocol::MAX_RINGS};

/// How rings are made, and how many are kept for one subscriber.
#[derive(Debug)]
pub(super) struct Spill {
    options: Options,
    ring_bytes: usize,
    /// Beyond the ring that is written.
    rings: usize,
    /// The id of the last one made.
    last: u32,
    /// When one was last left.
    left: Option<Instant>,
    /// One of those that there may be is to be a successor's.
    reserved: bool,
}

impl Spill {
    pub(super) fn new(
        options: Options,
        ring_bytes: usize,
        spill_bytes: usize,
    ) -> Result<Spill, Error> {
        // One that is written, and one that is free.
        let most = MAX_RINGS - 2;
        let rings = spill_bytes / ring_bytes;
        if (rings == 0 && spill_bytes != 0) || rings > most {
            let why = format!(
                "expected 0, or from 1 to {most} times ring_bytes ({ring_bytes}), got {spill_bytes}; for more, make the ring larger"
            );
            return Err(Error::Option {
                what: "spill_bytes",
                why,
            });
        }
        Ok(Spill {
            options,
            ring_bytes,
            rings,
            last: 0,
            left: None,
            reserved: false,
        })
    }

    /// How many may be kept for one subscriber, beyond the one that is written.
    pub(super) fn rings(&self) -> usize {
        self.rings
    }

    pub(super) fn ring_bytes(&self) -> usize {
        self.ring_bytes
    }

    /// The next id is this one: those before it are other publishers'.
    pub(super) fn number_from(&mut self, next: u32) {
        self.last = next.saturating_sub(1);
    }

    /// What to show to subscribers who are in the way, beside the room that is wanted: that they are done with a ring.
    pub(super) fn wanted(&self, writer: &RingWriter<Shared, Peer>) -> Option<u64> {
        match self.rings {
            0 => None,
            _ => writer.want_ring(),
        }
    }
}

impl Publisher {
    /// A ring to go on in: one that nobody reads, or a new one. None if the kernel is short of something, or there are as many as
    /// there may be: what is held up waits.
    pub(super) fn another_ring(&mut self) -> Option<(u32, Option<Shared>)> {
        match self.writer.spare() {
            Some(spare) => Some((spare, None)),
            None => self.make_ring(),
        }
    }

    /// Goes on in another ring, and leaves this one to those who read it.
    pub(super) fn leave_ring(&mut self, (ring, memory): (u32, Option<Shared>)) {
        self.writer.switch(ring, memory);
        self.spill.left = Some(Instant::now());
        self.stats.spills += 1;
    }

    /// Does not go on in it after all.
    pub(super) fn forgo_ring(&mut self, (ring, memory): (u32, Option<Shared>)) {
        if memory.is_some() {
            self.control.remove_ring(ring);
        }
    }

    /// How many rings there are that somebody may have who has not been dropped, and one that is kept for a successor.
    fn rings_in_use(&self) -> usize {
        self.writer.rings_in_use() + usize::from(self.spill.reserved)
    }

    /// An id for a ring, which no other has.
    pub(super) fn next_ring_id(&mut self) -> Option<u32> {
        self.spill.last = self.spill.last.checked_add(1)?;
        Some(self.spill.last)
    }

    /// Whether one of those that there may be is kept for a successor.
    pub(super) fn spill_reserve(&mut self, reserved: bool) {
        self.spill.reserved = reserved;
    }

    fn make_ring(&mut self) -> Option<(u32, Option<Shared>)> {
        let id = self.spill.last.checked_add(1)?;
        if self.rings_in_use() >= MAX_RINGS {
            self.set_rings_aside();
            if self.rings_in_use() >= MAX_RINGS {
                return None;
            }
        }
        let options = self.spill.options.clone();
        let made = Shared::create(options, page_size(), self.spill.ring_bytes);
        let (memory, descriptor) = made.ok()?;
        self.spill.last = id;
        self.control.add_ring(id, descriptor);
        Some((id, Some(memory)))
    }

    /// Those that are kept for subscribers who were dropped are not for anybody else: all others forget them.
    pub(super) fn set_rings_aside(&mut self) {
        for ring in self.writer.set_aside() {
            self.control.remove_ring(ring);
        }
    }

    /// Gives up the rings that were left, if nobody reads any of them any more, but for the first.
    pub(super) fn give_rings_back(&mut self) {
        if self.writer.rings() > 1 && !self.writer.is_spilled() {
            self.give_up_rings();
        }
    }

    /// Gives up the rings that nobody reads any more, if none has been left for so long: how many bytes that were.
    pub(super) fn trim_rings(&mut self, now: Instant, quiet: Duration) -> usize {
        let left = self.spill.left;
        let busy = left.is_some_and(|left| now.saturating_duration_since(left) < quiet);
        if busy || self.writer.rings() == 1 {
            return 0;
        }
        let before = self.ring_bytes();
        let home = self.writer.home();
        if self.writer.spare() == Some(home) && !self.writer.is_fresh() {
            // Back to where it began: all others can go, as soon as they are read.
            self.writer.switch(home, None);
        }
        self.give_up_rings();
        before - self.ring_bytes()
    }

    /// Gives up the rings that nobody reads any more, but for the first.
    pub(super) fn give_up_rings(&mut self) {
        while let Some(ring) = self.writer.spare_beside_first() {
            if self.writer.give_up(ring).is_none() {
                return;
            }
            self.control.remove_ring(ring);
        }
    }
}

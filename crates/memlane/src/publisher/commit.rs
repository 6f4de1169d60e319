//! From room to a message that is read: written in the ring or in the pool, committed, and told to those who sleep.

use memlane_region::pool::{ChunkRef, Loan, Unsent};
use memlane_transport::Fds;

use super::{
    Publisher, Reservation,
    room::{Need, NoRoomInTime, QUIET},
};

impl Publisher {
    #[inline]
    pub(super) fn place(
        &mut self,
        len: usize,
        room: impl Fn(&mut Publisher, Need) -> Result<(), NoRoomInTime>,
    ) -> Result<Reservation<'_>, NoRoomInTime> {
        let mut loan = None;
        self.make_place(len, &mut loan, room)?;
        Ok(self.placed(len, loan))
    }

    /// Makes room for a message, in the ring or, with the loan, in the pool. A loan that is there already is that of an
    /// earlier call.
    #[inline(always)]
    pub(super) fn make_place(
        &mut self,
        len: usize,
        loan: &mut Option<Loan>,
        room: impl Fn(&mut Publisher, Need) -> Result<(), NoRoomInTime>,
    ) -> Result<(), NoRoomInTime> {
        if len < self.inline_end {
            return room(self, Need::Ring(len));
        }
        if loan.is_none() {
            *loan = Some(self.loan_by(len, |publisher| publisher.make_ready(len, &room))?);
        }
        // Now, so that committing it cannot fail.
        room(self, Need::Ring(ChunkRef::LEN))
    }

    #[inline(always)]
    pub(super) fn placed(&mut self, len: usize, loan: Option<Loan>) -> Reservation<'_> {
        match loan {
            None => Reservation::in_ring(self, len),
            Some(loan) => Reservation::in_chunk(self, loan),
        }
    }

    #[inline]
    pub(super) fn put(
        &mut self,
        message: &[u8],
        room: impl Fn(&mut Publisher, Need) -> Result<(), NoRoomInTime>,
    ) -> Result<(), NoRoomInTime> {
        let mut place = self.place(message.len(), room)?;
        place.copy_from_slice(message);
        place.commit();
        Ok(())
    }

    #[inline(always)]
    pub(super) fn loan_by<E>(
        &mut self,
        len: usize,
        make_ready: impl FnOnce(&mut Publisher) -> Result<(), E>,
    ) -> Result<Loan, E> {
        self.trim_at -= 1;
        if self.trim_at == 0 || !self.pool.is_ready(len) {
            make_ready(self)?;
        }
        Ok(self.pool.loan_ready(len))
    }

    /// Looks for a free chunk, or makes one; `room` is as patient as one likes.
    #[cold]
    pub(super) fn make_ready(
        &mut self,
        len: usize,
        room: impl Fn(&mut Publisher, Need) -> Result<(), NoRoomInTime>,
    ) -> Result<(), NoRoomInTime> {
        if self.trim_at == 0 {
            self.trim(QUIET);
        }
        room(self, Need::Chunk(len))
    }

    /// Copies a message in, and attaches descriptors to it.
    pub(super) fn put_with(
        &mut self,
        message: &[u8],
        attachments: &Fds,
        room: impl Fn(&mut Publisher, Need) -> Result<(), NoRoomInTime>,
    ) -> Result<(), NoRoomInTime> {
        let mut place = self.place(message.len(), &room)?;
        place.copy_from_slice(message);
        place.attach_by(attachments, room)?;
        place.commit();
        Ok(())
    }

    /// Sends a loan with attachments; it comes back if there is no room.
    pub(super) fn put_chunk_with(
        &mut self,
        loan: Loan,
        attachments: &Fds,
        room: impl Fn(&mut Publisher, Need) -> Result<(), NoRoomInTime>,
    ) -> Result<(), (NoRoomInTime, Loan)> {
        let attached = room(self, Need::Ring(ChunkRef::LEN));
        match attached.and_then(|()| self.attach_next(attachments, None, room)) {
            Ok(tag) => {
                let sent = self.put_attached_chunk(loan, tag);
                debug_assert!(sent.is_ok(), "it was reserved");
                Ok(())
            }
            Err(error) => Err((error, loan)),
        }
    }

    /// Sends a loan, if there is room for its record.
    #[inline]
    pub(super) fn put_chunk(&mut self, loan: Loan) -> Result<(), Loan> {
        self.put_attached_chunk(loan, None)
    }

    /// [`put_chunk`](Publisher::put_chunk), with what has been attached under this tag, if anything.
    #[inline]
    pub(super) fn put_attached_chunk(&mut self, loan: Loan, tag: Option<u16>) -> Result<(), Loan> {
        let asked = loan.capacity();
        if let Some(segment) = self.pool.unsent_segment(&loan) {
            self.control.add(&segment);
        }
        match self.pool.send_with(loan, tag, &mut self.writer) {
            Ok(_) => {
                if tag.is_some() {
                    self.attached();
                }
                self.committed();
                // Subscribers have the message by now: time to look for what they are done with.
                self.pool.prepare(asked, &mut self.writer);
                Ok(())
            }
            Err(Unsent { loan, .. }) => Err(loan),
        }
    }

    #[inline(always)]
    pub(super) fn commit(&mut self, len: usize) {
        self.writer.commit(len);
        self.committed();
    }

    /// Sends a message that is these words and then this payload, if there is room for it in the ring, and nothing else is to be
    /// seen to: all that most messages of lanes with headers need.
    #[inline(always)]
    pub(crate) fn send_at_once<const N: usize>(
        &mut self,
        header: [u64; N],
        payload: &[u8],
    ) -> bool {
        let len = payload.len().saturating_add(8 * N);
        if len >= self.inline_end || self.ended || self.writer.reserve(len).is_err() {
            return false;
        }
        for (at, word) in header.iter().enumerate() {
            self.writer.write(8 * at, &word.to_ne_bytes());
        }
        self.writer.write(8 * N, payload);
        self.commit(len);
        true
    }

    /// [`commit`](Publisher::commit), with what has been attached under this tag.
    #[cold]
    pub(super) fn commit_attached(&mut self, len: usize, tag: u16) {
        self.writer.commit_attached(len, tag);
        self.attached();
        self.committed();
    }

    /// After a commit: wakes whoever sleeps.
    #[inline(always)]
    pub(super) fn committed(&mut self) {
        self.stats.messages += 1;
        if self.batch.is_some() {
            self.batch = Some(true);
            return;
        }
        self.ring();
        if self.wanting {
            self.disarm();
        }
    }

    #[inline(always)]
    pub(super) fn ring(&mut self) {
        // Between the commit and the looks at roster and armed flags.
        self.writer.fence(self.fences);
        if self.writer.sync() {
            self.roster_changed();
        }
        if self.sleepers && self.wake_sleepers() {
            self.barrier_moved();
        }
    }

    /// Rings whoever sleeps. Whether the barrier has moved between this side and a subscriber.
    #[inline(always)]
    pub(super) fn wake_sleepers(&mut self) -> bool {
        let mut moved = false;
        for joined in self.writer.readers() {
            if let Some(look) = joined.reader.wake() {
                self.stats.rings += u64::from(look.ring);
                moved |= look.moved;
            }
        }
        moved
    }

    /// Wakes whoever sleeps and has not been woken for the messages of a batch.
    pub(super) fn ring_for_batch(&mut self) {
        if self.batch == Some(true) {
            self.batch = Some(false);
            self.ring();
            if self.wanting {
                self.disarm();
            }
        }
    }

    #[cold]
    pub(super) fn roster_changed(&mut self) {
        if self.to_receiver && self.writer.readers().next().is_none() {
            self.ended = true;
            self.inline_end = 0;
        }
        self.sleepers = self.writer.readers().any(|joined| joined.reader.sleeps());
        self.count_fences();
        // What was left to one that has gone, perhaps.
        self.give_rings_back();
        // The fence before may have been the cheap one.
        self.writer.fence(self.fences);
    }

    pub(super) fn count_fences(&mut self) {
        self.fences = self.writer.readers().any(|joined| joined.reader.fences());
    }

    #[cold]
    pub(super) fn barrier_moved(&mut self) {
        self.count_fences();
        if self.fences {
            // The looks before may have been made without a fence. What moves during these has had it.
            self.writer.fence(true);
            if self.wake_sleepers() {
                self.count_fences();
            }
        }
    }
}

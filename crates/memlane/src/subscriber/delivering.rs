//! The message that was found, given out.

use memlane_region::{
    pool::ChunkRef,
    ring::{Carried, Record},
};

use super::{
    Message, Next, NoMessage, Subscriber, Trust, Why, attachments::Attached, elsewhere::Place,
};
use crate::ChunkError;

impl<T: Trust> Subscriber<T> {
    #[inline(always)]
    pub(crate) fn deliver(
        &mut self,
        found: Result<Next, NoMessage>,
    ) -> Result<Message<'_, T>, NoMessage> {
        match found? {
            Next::InRing(len) => Ok(self.in_ring(len)),
            Next::Noted => self.deliver_noted(),
            Next::Taken => self.deliver_taken(),
        }
    }

    #[inline(never)]
    fn deliver_noted(&mut self) -> Result<Message<'_, T>, NoMessage> {
        match self.chunks.noted() {
            Record::Inline(len) => Ok(self.in_ring(len)),
            Record::Chunk(chunk) => self.deliver_chunk(chunk),
            Record::Attached { tag, message } => self.deliver_attached(tag, message),
        }
    }

    #[cold]
    fn deliver_attached(
        &mut self,
        tag: u16,
        message: Carried,
    ) -> Result<Message<'_, T>, NoMessage> {
        let position = self.ring.position();
        let fds = self.chunks.attached(position, tag, &self.link);
        if let (Err(_), Some(reason)) = (&fds, self.chunks.evicted()) {
            // It was not told of them any more.
            let reason = reason.clone();
            self.leave_dropped();
            return Err(Why::Disconnected(reason).into());
        }
        self.tell_taken();
        if self.chunks.is_broken() {
            // For want of descriptors, say. The publisher does not wait for it any more, and may be writing where this message is.
            self.ring.stop();
            if let (true, Err(error)) = (T::TRUSTED, &fds) {
                let why = error.to_string();
                self.leave_dropped();
                return Err(Why::Chunk(ChunkError { why }).into());
            }
        }
        let (len, place) = match message {
            Carried::Inline(len) => (len, Place::Ring),
            Carried::Chunk(chunk) => self.find_chunk(chunk)?,
        };
        let attached = Attached::new(fds, T::TRUSTED);
        Ok(self.elsewhere(len, place, Some(attached)))
    }

    /// Tells the publisher with how many notices of attachments this subscriber is done.
    pub(super) fn tell_taken(&mut self) {
        if let Some(done) = self.chunks.attachments.untold(self.position()) {
            self.ring.page().took(done);
        }
    }

    fn deliver_chunk(&mut self, found: ChunkRef) -> Result<Message<'_, T>, NoMessage> {
        let (len, place) = self.find_chunk(found)?;
        Ok(self.elsewhere(len, place, None))
    }

    /// The next message, of this length, and more than a payload in the ring.
    fn elsewhere(
        &mut self,
        len: usize,
        place: Place,
        attached: Option<Box<Attached>>,
    ) -> Message<'_, T> {
        let sequence = self.first.wrapping_add(self.stats.messages);
        self.stats.messages += 1;
        self.elsewhere.set(place, 0, attached);
        Message::elsewhere(&mut self.ring, len, sequence, &mut self.elsewhere)
    }

    fn find_chunk(&mut self, found: ChunkRef) -> Result<(usize, Place), NoMessage> {
        let position = self.ring.position();
        if !self.chunks.has(found.segment, position, &self.link) {
            if let Some(reason) = self.chunks.evicted().cloned() {
                // It was not told of it any more.
                self.leave_dropped();
                return Err(Why::Disconnected(reason).into());
            }
            if self.chunks.is_broken() {
                self.leave_dropped();
            }
        }
        let chunk = self.chunks.resolve(found);
        let chunk = chunk.map_err(Why::Chunk)?;
        Ok((chunk.len(), Place::Chunk(chunk.keep())))
    }

    fn deliver_taken(&mut self) -> Result<Message<'_, T>, NoMessage> {
        let given = self.lossy.as_mut().and_then(|lossy| lossy.give(T::TRUSTED));
        let (len, sequence, elsewhere) = given.expect("taken a moment ago");
        self.stats.messages += 1;
        self.missed_last = elsewhere.missed;
        Ok(Message::elsewhere(&mut self.ring, len, sequence, elsewhere))
    }
}

//! A lane that is one of two, and whose messages begin with a header.

use std::{os::fd::OwnedFd, sync::Arc};

use memlane_region::{
    Remote,
    pool::ChunkRef,
    ring::{Carried, Record},
};
use memlane_signaling::{WaitPolicy, Woken};
use memlane_transport::Link;

use super::{Next, NoMessage, Subscriber, SubscriberBuilder, Trust, Why};
use crate::Overflow;

impl<T: Trust> SubscriberBuilder<T> {
    /// With what is not a lane's, but its end's, as another one has it.
    pub(crate) fn like<U: Trust>(mut self, other: SubscriberBuilder<U>) -> SubscriberBuilder<T> {
        self.wait = other.wait;
        self.access = other.access;
        self.timeout = other.timeout;
        self.expects = other.expects;
        self.max_senders = other.max_senders;
        self.liveliness = other.liveliness;
        // Every request counts, and every reply.
        self.overflow = Overflow::Block;
        self
    }
}

impl<T: Trust> Subscriber<T> {
    /// The link, which the other lane has, too.
    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// The publisher's process, as far as it is known.
    pub(crate) fn process(&self) -> Option<&OwnedFd> {
        self.process.as_ref()
    }

    /// The publisher's region whose page has its words.
    pub(crate) fn memory(&self) -> &Remote {
        self.ring.page().publisher()
    }

    /// Whether the publisher is known to be gone; some of its messages may be left.
    #[inline(always)]
    pub(crate) fn is_gone(&self) -> bool {
        self.life.gone
    }

    pub(crate) fn polls(&self) -> bool {
        self.pacer.policy() == WaitPolicy::Poll
    }

    /// Asks the kernel now whether the publisher lives. If it cannot say, it is asked again.
    #[cold]
    pub(crate) fn ask(&mut self) {
        let _ = self.look_for_death();
    }

    /// Makes the descriptor readable once more, if a loop of the user's waits for it: nothing was found, and there is more to look
    /// at. Also for loops that are told of edges.
    #[cold]
    pub(crate) fn look_again(&mut self) {
        let (Some(sleep), Some(watching)) = (&mut self.sleep, &mut self.watched) else {
            return;
        };
        watching.not_ready(sleep, &self.link);
        if let Ok(Some(Woken::Gone)) = sleep.waiter.take(&mut sleep.doorbell) {
            self.bury();
        }
        self.stay_ready();
    }

    /// Copies the message that was found from `offset` on, as much as there is and `dst` holds, and leaves it where it is; its
    /// length.
    #[inline]
    pub(crate) fn peek(
        &mut self,
        found: Next,
        offset: usize,
        dst: &mut [u8],
    ) -> Result<usize, NoMessage> {
        let len = match found {
            Next::InRing(len) => len,
            Next::Noted => match self.chunks.noted() {
                // What it has attached, which nobody who plays by the rules does here, stays on the link.
                Record::Inline(len)
                | Record::Attached {
                    message: Carried::Inline(len),
                    ..
                } => len,
                Record::Chunk(chunk)
                | Record::Attached {
                    message: Carried::Chunk(chunk),
                    ..
                } => return self.peek_chunk(chunk, offset, dst),
            },
            Next::Taken => unreachable!("this lane is not overwritten"),
        };
        let copied = len.saturating_sub(offset).min(dst.len());
        self.ring.read(offset, &mut dst[..copied]);
        Ok(len)
    }

    #[inline(never)]
    fn peek_chunk(
        &mut self,
        chunk: ChunkRef,
        offset: usize,
        dst: &mut [u8],
    ) -> Result<usize, NoMessage> {
        let position = self.ring.position();
        let _ = self.chunks.has(chunk.segment, position, &self.link);
        let chunk = self.chunks.resolve(chunk);
        let chunk = chunk.map_err(Why::Chunk)?;
        let copied = chunk.len().saturating_sub(offset).min(dst.len());
        chunk.read(offset, &mut dst[..copied]);
        Ok(chunk.len())
    }

    /// The words at the beginning of a payload in the ring that was found, if it is long enough.
    #[inline(always)]
    pub(crate) fn header<const N: usize>(&self, len: usize) -> Option<[u64; N]> {
        let mut words = [0; N];
        (len >= 8 * N).then(|| {
            for (at, word) in words.iter_mut().enumerate() {
                let mut bytes = [0; 8];
                self.ring.read(8 * at, &mut bytes);
                *word = u64::from_ne_bytes(bytes);
            }
            words
        })
    }

    /// Releases the message that was found.
    #[inline]
    pub(crate) fn skip(&mut self) {
        self.stats.messages += 1;
        self.ring.release();
    }
}

//! A lane that is one of two, and whose messages begin with a header.

use std::{os::fd::OwnedFd, sync::Arc};

use memlane_region::{Remote, ring::Carried};
use memlane_signaling::{WaitPolicy, Woken};
use memlane_transport::Link;

use super::{Next, NoMessage, Subscriber, SubscriberBuilder, Trust};
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

    /// The next record if there is one, and no question asked.
    #[inline(always)]
    pub(crate) fn try_poll(&mut self) -> Result<Option<Next>, NoMessage> {
        self.poll()
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
        match found {
            // What it has attached, which nobody who plays by the rules does here, stays on the link.
            Next::InRing(len) | Next::Attached(_, Carried::Inline(len)) => {
                let copied = len.saturating_sub(offset).min(dst.len());
                self.ring.read(offset, &mut dst[..copied]);
                Ok(len)
            }
            Next::InChunk(chunk) | Next::Attached(_, Carried::Chunk(chunk)) => {
                let position = self.ring.position();
                let _ = self.chunks.has(chunk.segment, position, &self.link);
                let chunk = self.chunks.resolve(chunk);
                let chunk = chunk.map_err(NoMessage::Chunk)?;
                let copied = chunk.len().saturating_sub(offset).min(dst.len());
                chunk.read(offset, &mut dst[..copied]);
                Ok(chunk.len())
            }
            Next::Taken => unreachable!("this lane is not overwritten"),
        }
    }

    /// Releases the message that was found.
    #[inline]
    pub(crate) fn skip(&mut self) {
        self.stats.messages += 1;
        self.ring.release();
    }
}

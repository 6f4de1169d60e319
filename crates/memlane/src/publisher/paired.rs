//! A lane that is one of two: its one subscriber has the other one's publisher.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
};

use memlane_signaling::WaitPolicy;
use memlane_transport::Link;

use super::{Publisher, PublisherBuilder};
use crate::{
    Error,
    protocol::{Farewell, Greeting, Refusal},
};

impl PublisherBuilder {
    /// One that has a single subscriber in all its life, by [`join`](Publisher::join). Its control work is done while it waits
    /// for room, and by [`drive`](Publisher::drive).
    pub(crate) fn for_one(mut self) -> Result<Publisher, Error> {
        self.max_subscribers = 1;
        self.driven = true;
        let mut publisher = self.unbound()?;
        publisher.to_receiver = true;
        Ok(publisher)
    }

    /// With what is not a lane's, but its end's, as another one has it.
    pub(crate) fn like(mut self, other: &PublisherBuilder) -> PublisherBuilder {
        self.wait = other.wait;
        self.carries = other.carries.clone();
        self
    }
}

impl Publisher {
    /// Makes the other side's reader the subscriber. The link is that of the other lane, too.
    pub(crate) fn join(
        &mut self,
        greeting: Greeting,
        link: Arc<Link>,
        process: Option<OwnedFd>,
    ) -> Result<(), Refusal> {
        self.control.join(greeting, link, process)?;
        // What has joined may leave before the first message, which is told from one that has not joined yet by this.
        self.writer.fence(true);
        if self.writer.sync() {
            self.roster_changed();
        }
        Ok(())
    }

    /// Hangs up, with a word on why.
    pub(crate) fn hang_up(&self, farewell: &Farewell) {
        self.control.close(farewell);
    }

    /// Shows a word to the subscriber, in the region's page.
    pub(crate) fn show(&self, offset: usize, word: u64) {
        let shown = self.writer.memory().word(offset);
        shown.store(word, Ordering::Relaxed);
    }

    /// Nobody waits for room any more that a call has asked for.
    pub(crate) fn abandon_room(&mut self) {
        self.forget_room();
    }

    /// Whether it has found no room since it last had some, and waits to be told of it.
    pub(crate) fn is_wanting(&self) -> bool {
        self.wanting
    }

    pub(crate) fn polls(&self) -> bool {
        self.pacer.policy() == WaitPolicy::Poll
    }
}

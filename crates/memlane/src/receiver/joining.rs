//! Clients on their way to become senders.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use memlane_transport::{Link, Listener};
use rustix::event::epoll::EventFlags;

use super::gather::{Gather, OTHERS};
use crate::{
    Error, Subscriber, SubscriberBuilder, Trust,
    accepting::{self, Spare},
    process_of,
    protocol::{Greeting, Refusal},
    subscriber::{Awaits, Meeting},
};

/// So many links may be without a lane at a time; the oldest is dropped for a newer one.
const MAX_JOINING: usize = 64;
/// Token of the listener; those of links follow.
const LISTENER: u64 = OTHERS;
/// Edge-triggered: a connection that cannot be accepted, for want of memory, does not spin.
const ACCEPT: EventFlags = EventFlags::IN.union(EventFlags::ET);

/// Accepts links, and sees them through their handshakes.
#[derive(Debug)]
pub(crate) struct Joining<T: Trust> {
    listener: Option<Listener>,
    /// For the listener.
    spare: Spare,
    /// Nobody is let in for now: another process may be listening.
    paused: bool,
    pub(crate) builder: SubscriberBuilder<T>,
    /// Who is to come, and who turns them away.
    awaits: Awaits,
    /// By token, and so the oldest first.
    links: BTreeMap<u64, Meeting<T>>,
    last: u64,
    pub(crate) refused: u64,
}

impl<T: Trust> Joining<T> {
    pub(crate) fn new(
        builder: SubscriberBuilder<T>,
        awaits: Awaits,
        listener: Option<Listener>,
    ) -> Joining<T> {
        Joining {
            listener,
            spare: Spare::default(),
            paused: false,
            builder,
            awaits,
            links: BTreeMap::new(),
            last: LISTENER,
            refused: 0,
        }
    }

    pub(crate) fn listen(&mut self, gather: &Gather<T>) -> std::io::Result<()> {
        match &self.listener {
            Some(listener) => {
                self.spare.keep();
                gather.watch_other(listener, LISTENER, ACCEPT)
            }
            None => Ok(()),
        }
    }

    /// Nobody is let in until it is to go on.
    pub(crate) fn paused(mut self) -> Joining<T> {
        self.paused = true;
        self
    }

    /// Another listener for the same clients, if it has one.
    pub(crate) fn listener(&self) -> Result<Option<Listener>, Error> {
        let listener = self.listener.as_ref();
        Ok(listener.map(Listener::try_clone).transpose()?)
    }

    /// Lets nobody in from now on who has not been accepted by then: they wait. Whoever waits is accepted first, since a receiver
    /// that moves again and again, and is never idle, would accept nobody.
    pub(crate) fn pause(&mut self, gather: &mut Gather<T>) {
        self.accept(gather);
        if let (false, Some(listener)) = (self.paused, &self.listener) {
            gather.forget_other(listener);
        }
        self.paused = true;
    }

    /// Lets clients in again, those who wait at once.
    pub(crate) fn resume(&mut self, gather: &mut Gather<T>) -> std::io::Result<()> {
        if !std::mem::replace(&mut self.paused, false) {
            return Ok(());
        }
        if let Some(listener) = &self.listener {
            listener.announce_again();
        }
        self.listen(gather)?;
        self.accept(gather);
        Ok(())
    }

    /// Lets nobody in any more: another does.
    pub(crate) fn retire(&mut self) {
        self.listener = None;
        self.spare = Spare::default();
    }

    /// Sees to the handshakes that have begun, and adds the lanes that come of them; whether there are more.
    pub(crate) fn finish_begun(&mut self, gather: &mut Gather<T>) -> bool {
        let tokens: Vec<u64> = self.links.keys().copied().collect();
        for token in tokens {
            if let Some((subscriber, _)) = self.handle(gather, token) {
                self.refused += u64::from(gather.add(subscriber).is_err());
            }
        }
        !self.links.is_empty()
    }

    /// What tells when there is more to see to.
    pub(crate) fn begun(&self) -> impl Iterator<Item = &Meeting<T>> {
        self.links.values()
    }

    /// One of its sources has something: a lane, if one is finished, and the greeting of the client that offered it, if it
    /// was one.
    pub(crate) fn handle(
        &mut self,
        gather: &mut Gather<T>,
        token: u64,
    ) -> Option<(Subscriber<T>, Option<Greeting>)> {
        if token == LISTENER {
            self.accept(gather);
            return None;
        }
        // One that was dropped meanwhile has no link.
        let link = self.links.get_mut(&token)?;
        let joined = link.advance().transpose()?.ok();
        let client = link.take_client();
        self.forget(gather, token);
        self.refused += u64::from(joined.is_none());
        Some((joined?, client))
    }

    pub(crate) fn accept(&mut self, gather: &mut Gather<T>) {
        if self.paused {
            return;
        }
        let Some(listener) = self.listener.take() else {
            return;
        };
        let max = self.builder.max_senders;
        let builder = match self.awaits {
            Awaits::Client(_) => "ServerBuilder",
            _ => "SubscriberBuilder",
        };
        let mut spare = std::mem::take(&mut self.spare);
        let accepted = accepting::accept(&listener, &mut spare, builder, |link| {
            if gather.places() >= max {
                let why = match self.awaits {
                    Awaits::Client(_) => {
                        format!("the server has {max} clients, and takes no more")
                    }
                    _ => format!("the receiver has {max} senders, and takes no more"),
                };
                accepting::refuse(&link, Refusal::Pattern { why });
                self.refused += 1;
                return;
            }
            let begun = process_of(&link)
                .map_err(Error::os("watch a sender's process"))
                .and_then(|process| self.begin(gather, link, process));
            if begun.is_err() {
                self.refused += 1;
            }
        });
        self.spare = spare;
        self.refused += accepted.refused;
        if accepted.more {
            let _ = gather.rewatch_other(&listener, LISTENER, ACCEPT);
        }
        self.listener = Some(listener);
    }

    /// Begins a handshake.
    pub(crate) fn begin(
        &mut self,
        gather: &mut Gather<T>,
        link: Link,
        process: Option<OwnedFd>,
    ) -> Result<(), Error> {
        if self.links.len() >= MAX_JOINING {
            if let Some(oldest) = self.links.keys().next().copied() {
                self.forget(gather, oldest);
                self.refused += 1;
            }
        }
        let meeting = Meeting::over(self.builder.clone(), link, process, self.awaits)?;
        self.last += 1;
        gather
            .watch_other(&meeting, self.last, EventFlags::IN)
            .map_err(Error::os("watch a link"))?;
        self.links.insert(self.last, meeting);
        gather.joining = self.links.len();
        Ok(())
    }

    fn forget(&mut self, gather: &mut Gather<T>, token: u64) {
        if let Some(meeting) = self.links.remove(&token) {
            gather.forget_other(&meeting);
            gather.joining = self.links.len();
        }
    }
}

//! Many lanes that move to another process: the end of whoever goes on.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use memlane_transport::{Error as LinkError, Link};
use rustix::event::epoll::EventFlags;

use super::{
    gather::{ARRIVALS, Gather, Key},
    leaving::{Handed, PATIENCE, Said},
};
use crate::{Connecting, Error, Overflow, Subscriber, SubscriberBuilder, Ticket, Trust};

/// Token of the link to whoever leaves; those of lanes follow.
const PREDECESSOR: u64 = ARRIVALS;

/// So many tickets are taken in one go.
const MAX_TICKETS: usize = 16;

/// Lanes on their way here.
#[derive(Debug)]
pub(crate) struct Arriving<T: Trust> {
    builder: SubscriberBuilder<T>,
    /// To whoever leaves, until there is nothing more to come.
    link: Option<Link>,
    /// Those that have not begun yet, with their labels, by token.
    lanes: BTreeMap<u64, (Connecting<Subscriber<T>>, String)>,
    /// So many there may be in all.
    most: usize,
    last: u64,
    departed: bool,
    stays: bool,
    since: Instant,
}

impl<T: Trust> Arriving<T> {
    pub(crate) fn new(
        builder: &SubscriberBuilder<T>,
        most: usize,
        link: Link,
        gather: &Gather<T>,
    ) -> Result<Arriving<T>, Error> {
        gather
            .watch_other(&link, PREDECESSOR, EventFlags::IN)
            .map_err(Error::os("watch a link"))?;
        // One that is gone has left what it had to say.
        let _ = link.try_send(&Said::Arrives);
        Ok(Arriving {
            // Each waits for as long as its publisher takes: whoever has stopped may be continued.
            builder: builder.clone().timeout(Duration::MAX),
            link: Some(link),
            lanes: BTreeMap::new(),
            most,
            last: PREDECESSOR,
            departed: false,
            stays: false,
            since: Instant::now(),
        })
    }

    /// Whether whoever was there before receives no more, or is gone.
    pub(crate) fn has_departed(&self) -> bool {
        self.departed
    }

    /// Whether it has said that it goes on itself.
    pub(crate) fn stays(&self) -> bool {
        self.stays
    }

    /// Whether nothing more will come.
    pub(crate) fn is_over(&self) -> bool {
        self.link.is_none() && self.lanes.is_empty()
    }

    /// One of its sources has something: a lane, if one begins here, and its label.
    pub(crate) fn handle(
        &mut self,
        gather: &mut Gather<T>,
        token: u64,
    ) -> Option<(Subscriber<T>, String)> {
        if token == PREDECESSOR {
            self.take_tickets(gather);
            return None;
        }
        let (connecting, _) = self.lanes.get_mut(&token)?;
        let begun = connecting.try_finish().transpose()?;
        let (connecting, label) = self.lanes.remove(&token)?;
        gather.forget_other(&connecting);
        gather.arriving = self.lanes.len();
        Some((begun.ok()?, label))
    }

    /// Sees to all that has come, and adds the lanes that begin here; whether there are more.
    pub(crate) fn take(
        &mut self,
        gather: &mut Gather<T>,
        labels: &mut HashMap<Key, String>,
    ) -> bool {
        self.take_tickets(gather);
        let tokens: Vec<u64> = self.lanes.keys().copied().collect();
        for token in tokens {
            if let Some((lane, label)) = self.handle(gather, token) {
                if let Ok(key) = gather.add(lane) {
                    labels.insert(key, label);
                }
            }
        }
        !self.is_over()
    }

    /// Whether more may come that has not been long in coming.
    pub(crate) fn is_awaited(&self) -> bool {
        self.since.elapsed() < PATIENCE
    }

    /// What tells when there is more to see to.
    pub(crate) fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let lanes = self.lanes.values().map(|(lane, _)| lane.as_fd());
        lanes.chain(self.link.iter().map(AsFd::as_fd))
    }

    fn take_tickets(&mut self, gather: &mut Gather<T>) {
        for _ in 0..MAX_TICKETS {
            let Some(link) = &self.link else {
                return;
            };
            match link.try_recv() {
                Ok(Handed::Lane {
                    label,
                    lossy,
                    ticket,
                }) => {
                    if gather.places() < self.most {
                        // One that comes to nothing stays where it is, and that is heard there.
                        let _ = self.begin(gather, label, lossy, ticket);
                    }
                }
                Ok(Handed::Departs) => self.departed = true,
                Ok(Handed::Stays) => self.stays = true,
                Err(LinkError::WouldBlock) => return,
                Err(_) => {
                    gather.forget_other(link);
                    self.link = None;
                    self.departed = true;
                }
            }
        }
    }

    fn begin(
        &mut self,
        gather: &mut Gather<T>,
        label: String,
        lossy: bool,
        ticket: Ticket,
    ) -> Result<(), Error> {
        let builder = self.builder.clone();
        let builder = match (lossy, builder.overflow) {
            (true, _) => builder.overflow(Overflow::Overwrite),
            (false, Overflow::Overwrite) => builder.overflow(Overflow::Block),
            (false, _) => builder,
        };
        let connecting = builder.begin_arrival(ticket)?;
        self.last += 1;
        gather
            .watch_other(&connecting, self.last, EventFlags::IN)
            .map_err(Error::os("watch a link"))?;
        self.lanes.insert(self.last, (connecting, label));
        gather.arriving = self.lanes.len();
        Ok(())
    }
}

//! Subscribers of many publishers that move to another process, in the middle of their streams.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use memlane_transport::Link;
use serde::{Deserialize, Serialize};

use super::Subscriptions;
use crate::{
    Connecting, Error, Remains, Subscriber, SubscriberBuilder, Trust,
    connecting::Connects,
    error::NO_TICKET,
    protocol::VERSION,
    receiver::{
        arrival::{Arrival, Arrives, More, take},
        arriving::Arriving,
        leaving::Leaving,
        travel::{check_version, wait_until_awaited},
    },
};

/// The right to go on where [`Subscriptions`] stop, in whatever process has it ([`Subscriptions::ticket`]).
///
/// It can stand anywhere in a message of a [`Link`], to an end that [adopts](Link::adopting) links: whoever takes it trusts those who
/// have had it not to hold up its calls. Sending borrows it, as it does all descriptors: drop it once it has been sent, or
/// nobody notices when its taker dies.
///
/// Dropped everywhere, unused, it is void: everything [stays](Error::Stays).
#[derive(Debug, Serialize, Deserialize)]
pub struct SubscriptionsTicket {
    /// Of the protocol of those who have made it: first in all versions.
    version: u32,
    link: Box<Link>,
}

impl SubscriptionsTicket {
    /// Goes on where the others stop, with the options that are default: [`SubscriberBuilder::arrive_subscriptions`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn arrive(self) -> Result<Subscriptions, Error> {
        Subscriber::builder().arrive_subscriptions(self)
    }
}

impl<T: Trust> SubscriberBuilder<T> {
    /// Goes on where other subscriptions stop, in whatever process that is: with each publisher at its next message, under the
    /// label it had and a key of its own. Waits until the others [depart](Subscriptions::depart), or are gone, for as long as the
    /// [`timeout`](SubscriberBuilder::timeout) allows. Publishers come as they are departed from, the late ones with the calls
    /// that receive: whoever makes none keeps the others from departing. Options are this builder's own for each, whatever the other had, but that those are
    /// [overwritten](SubscriberBuilder::overflow) that were.
    ///
    /// # Errors
    ///
    /// [`Error::NotDeparted`] if they have not departed in time, and stay; [`Error::HungUp`] if it was said that they stay;
    /// [`Error::Version`]; [`Error::Os`] if resources are short. The ticket is void.
    pub fn arrive_subscriptions(
        self,
        ticket: SubscriptionsTicket,
    ) -> Result<Subscriptions<T>, Error> {
        self.begin_arrival_of_subscriptions(ticket)?.wait()
    }

    /// Begins to go on where other subscriptions stop, as [`arrive_subscriptions`](SubscriberBuilder::arrive_subscriptions) does,
    /// without waiting: for loops and tasks. Dropped before it has finished, it is as one that gives up, or, once it has been
    /// departed from, that dies.
    ///
    /// # Errors
    ///
    /// As there, as far as that is known at once.
    pub fn begin_arrival_of_subscriptions(
        self,
        ticket: SubscriptionsTicket,
    ) -> Result<Connecting<Subscriptions<T>>, Error> {
        let SubscriptionsTicket { version, link } = ticket;
        check_version(version)?;
        let waited = self.timeout;
        let mut subscriptions = self.subscriptions()?;
        let Subscriptions {
            gather,
            builder,
            arriving,
            ..
        } = &mut subscriptions;
        *arriving = Some(Box::new(Arriving::new(builder, usize::MAX, *link, gather)?));
        Arrival::begin(subscriptions, waited)
    }
}

impl<T: Trust> Arrives for Subscriptions<T> {
    fn watches(&self) -> &Arc<OwnedFd> {
        self.gather.descriptor()
    }

    fn take(&mut self) -> More {
        let Subscriptions {
            gather,
            labels,
            arriving,
            ..
        } = self;
        take(gather, labels, arriving)
    }

    fn begin(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

impl<T: Trust> Connects for Subscriptions<T> {
    type Begun = Arrival<Subscriptions<T>>;
}

impl<T: Trust> Subscriptions<T> {
    /// Makes a ticket, with which another process goes on exactly where these subscriptions stop, with each publisher. Nothing has
    /// changed by that: send the ticket to the other process, which [arrives](SubscriberBuilder::arrive_subscriptions); go on
    /// receiving here until that one [waits](Subscriptions::is_awaited); then [depart](Subscriptions::depart). It waits for
    /// nobody. There is one ticket at a time: one that was made before is void.
    ///
    /// What becomes of a publisher, or of one of the two processes, that dies or is stopped on the way is as with a
    /// [`Receiver`](crate::Receiver::ticket).
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: descriptors are short.
    pub fn ticket(&mut self) -> Result<SubscriptionsTicket, Error> {
        self.stay();
        let (ours, theirs) = Link::pair().map_err(Error::os("make a link"))?;
        let mut leaving = Leaving::new(ours);
        leaving.advance(&mut self.gather, &self.labels)?;
        self.leaving = Some(Box::new(leaving));
        Ok(SubscriptionsTicket {
            version: VERSION,
            link: Box::new(theirs),
        })
    }

    /// Whether a successor is there, and waits with every publisher for these to depart. To be called again and again: it passes on
    /// what publishers have answered. One that has not answered for 5 s is not waited for.
    ///
    /// # Errors
    ///
    /// [`Error::Stays`], once, if there will be none: whoever had the ticket is gone. These go on, and may make another ticket.
    pub fn is_awaited(&mut self) -> Result<bool, Error> {
        let Some(leaving) = &mut self.leaving else {
            return Ok(false);
        };
        if let Err(error) = leaving.advance(&mut self.gather, &self.labels) {
            self.leaving = None;
            return Err(error);
        }
        let more = self.arriving.as_ref();
        Ok(leaving.is_awaited() && !more.is_some_and(|more| more.is_awaited()))
    }

    /// Waits until a successor waits, no longer than `timeout`; whether one does. Nobody receives meanwhile.
    ///
    /// # Errors
    ///
    /// As [`is_awaited`](Subscriptions::is_awaited).
    pub fn wait_until_awaited(&mut self, timeout: Duration) -> Result<bool, Error> {
        wait_until_awaited(timeout, || self.is_awaited())
    }

    /// Takes back the ticket they have made: its holder is turned away. Whom they have departed from already is the
    /// successor's.
    pub fn stay(&mut self) {
        if let Some(mut leaving) = self.leaving.take() {
            leaving.stay(&mut self.gather);
        }
    }

    /// Stops, and leaves everything to whoever has the [ticket](Subscriptions::ticket), who goes on with the next message of each
    /// publisher. Each is left as soon as it agrees, whatever others do; all are waited for, for up to 5 s.
    ///
    /// # Errors
    ///
    /// [`Remains`], with those that could not be left: go on receiving, and depart again. One remains while attachments have
    /// come here of messages that have not been received; until it has been told that it has [ended](crate::Ended), if it is gone; if it
    /// does not answer; and if the successor does not take it. One that has not even confirmed in time what it was told is
    /// taken over when it goes on.
    ///
    /// All stay if no ticket was made, or its holder is gone: another may be made then.
    pub fn depart(mut self) -> Result<(), Box<Remains<Subscriptions<T>>>> {
        let Some(mut leaving) = self.leaving.take() else {
            return Err(Box::new(Remains {
                error: Error::stays(NO_TICKET),
                end: self,
            }));
        };
        let Subscriptions {
            gather,
            labels,
            arriving,
            ..
        } = &mut self;
        let departed = leaving.depart(gather, labels, None, arriving);
        self.labels.retain(|key, _| self.gather.get(*key).is_some());
        match departed {
            Ok(()) => Ok(()),
            Err(error) => {
                self.leaving = (!leaving.is_void()).then_some(leaving);
                Err(Box::new(Remains { error, end: self }))
            }
        }
    }

    /// Something has come of those who leave, or a publisher that was theirs.
    #[cold]
    pub(super) fn take_over(&mut self, token: u64) {
        let Some(arriving) = &mut self.arriving else {
            return;
        };
        if let Some((subscriber, label)) = arriving.handle(&mut self.gather, token) {
            if let Ok(key) = self.gather.add(subscriber) {
                self.labels.insert(key, label);
            }
        }
        if arriving.is_over() {
            self.arriving = None;
        }
    }
}

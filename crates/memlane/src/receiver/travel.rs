//! Receivers that move to another process, in the middle of a stream.

use std::{
    collections::HashMap,
    fmt,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use memlane_transport::{Link, Listener};
use rustix::event::{Timespec, poll};
use serde::{Deserialize, Serialize};

use super::{
    Receiver,
    arrival::{Arrival, Arrives, More, take},
    arriving::Arriving,
    gather::Gather,
    joining::Joining,
    leaving::Leaving,
};
use crate::{
    Connecting, Error, Subscriber, SubscriberBuilder, Trust, after,
    connecting::Connects,
    error::{NO_TICKET, Sides},
    protocol::VERSION,
    subscriber::Awaits,
};

/// Until a successor that comes is looked for again.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

/// The right to go on where a [`Receiver`] stops, in whatever process has it ([`Receiver::ticket`]).
///
/// It can stand anywhere in a message of a [`Link`], to an end that [adopts](Link::adopting) links: there is a listening socket
/// in it, with a name, and whoever takes it trusts those who have had it not to hold up its calls. Sending borrows it, as it does all
/// descriptors: drop it once it has been sent, or the receiver does not notice when its taker dies.
///
/// Dropped everywhere, unused, it is void: the receiver [stays](Error::Stays).
#[derive(Debug, Serialize, Deserialize)]
pub struct ReceiverTicket {
    /// Of the protocol of those who have made it: first in all versions.
    version: u32,
    link: Box<Link>,
    listener: Option<Box<Listener>>,
}

impl ReceiverTicket {
    /// Goes on where the receiver stops, with the options that are default: [`SubscriberBuilder::arrive_receiver`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn arrive(self) -> Result<Receiver, Error> {
        Subscriber::builder().arrive_receiver(self)
    }
}

/// An end that was to depart, and has not, or of many lanes not from all ([`Receiver::depart`],
/// [`Subscriptions::depart`](crate::Subscriptions::depart), [`WatchReceiver::depart`](crate::WatchReceiver::depart)).
pub struct Remains<E> {
    /// Why.
    pub error: Error,
    /// What is left, which goes on here.
    pub end: E,
}

impl<E> Remains<E> {
    pub(crate) fn map<F>(self, map: impl FnOnce(E) -> F) -> Remains<F> {
        Remains {
            error: self.error,
            end: map(self.end),
        }
    }
}

impl<E> fmt::Debug for Remains<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut remains = f.debug_struct("Remains");
        remains.field("error", &self.error).finish_non_exhaustive()
    }
}

impl<E> fmt::Display for Remains<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<E> std::error::Error for Remains<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// Refuses what those of another version have made.
pub(crate) fn check_version(version: u32) -> Result<(), Error> {
    match version {
        VERSION => Ok(()),
        other => Err(Sides::new("receiver", "successor").version(other)),
    }
}

/// Calls `is_awaited` until it is so, or the time is over.
pub(crate) fn wait_until_awaited(
    timeout: Duration,
    mut is_awaited: impl FnMut() -> Result<bool, Error>,
) -> Result<bool, Error> {
    let deadline = after(timeout);
    loop {
        if is_awaited()? {
            return Ok(true);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(false);
        }
        // Many have to say something, each over a link of its own.
        let _ = poll(&mut [], Some(&PAUSE));
    }
}

impl<T: Trust> SubscriberBuilder<T> {
    /// Goes on where another receiver stops, in whatever process that is: at its name, if it has one, and on all of its lanes,
    /// each at the next message. Waits until the other [departs](Receiver::depart), or is gone, for as long as the
    /// [`timeout`](SubscriberBuilder::timeout) allows; all that takes time is done before. Lanes come as they are departed from, the late ones
    /// with the calls that receive: whoever makes none keeps the other from departing. Options are this builder's own, whatever the other had:
    /// [`access`](SubscriberBuilder::access) among them.
    ///
    /// # Errors
    ///
    /// [`Error::NotDeparted`] if it has not departed in time, and stays; [`Error::HungUp`] if it has said that it stays;
    /// [`Error::Version`]; [`Error::Os`] if resources are short. The ticket is void.
    pub fn arrive_receiver(self, ticket: ReceiverTicket) -> Result<Receiver<T>, Error> {
        self.begin_arrival_of_receiver(ticket)?.wait()
    }

    /// Begins to go on where another receiver stops, as [`arrive_receiver`](SubscriberBuilder::arrive_receiver) does, without waiting: for
    /// loops and tasks. Dropped before it has finished, it is as one that gives up, or, once it has been departed from, that dies.
    ///
    /// # Errors
    ///
    /// As there, as far as that is known at once.
    pub fn begin_arrival_of_receiver(
        self,
        ticket: ReceiverTicket,
    ) -> Result<Connecting<Receiver<T>>, Error> {
        let ReceiverTicket {
            version,
            link,
            listener,
        } = ticket;
        check_version(version)?;
        let waited = self.timeout;
        let gather = Gather::new(self.wait).map_err(Error::os("create epoll"))?;
        let arriving = Arriving::new(&self, self.max_senders, *link, &gather)?;
        let listener = listener.map(|listener| listener.with_access(self.access.clone()));
        let joining = Joining::new(self, Awaits::Offer, listener).paused();
        let receiver = Receiver {
            gather,
            joining,
            stats: super::ReceiverStats::default(),
            last: None,
            leaving: None,
            arriving: Some(Box::new(arriving)),
        };
        Arrival::begin(receiver, waited)
    }
}

impl<T: Trust> Arrives for Receiver<T> {
    fn watches(&self) -> &Arc<OwnedFd> {
        self.gather.descriptor()
    }

    fn take(&mut self) -> More {
        let Receiver {
            gather, arriving, ..
        } = self;
        take(gather, &mut HashMap::new(), arriving)
    }

    fn begin(&mut self) -> Result<(), Error> {
        let resumed = self.joining.resume(&mut self.gather);
        resumed.map_err(Error::os("watch the listener"))
    }
}

impl<T: Trust> Connects for Receiver<T> {
    type Begun = Arrival<Receiver<T>>;
}

impl<T: Trust> Receiver<T> {
    /// Makes a ticket, with which another process goes on exactly where this receiver stops, on each lane and at its name.
    /// Nothing has changed by that, and senders go on at full speed all the while: send the ticket to the other process, which
    /// [arrives](SubscriberBuilder::arrive_receiver); go on receiving here until that one [waits](Receiver::is_awaited); then
    /// [depart](Receiver::depart). It waits for nobody.
    ///
    /// New senders are let in here until it departs, and there from then on; those that connect in between wait for that. There
    /// is one ticket at a time: one that was made before is void.
    ///
    /// If this process dies before it has departed, the other goes on at its name, and on those lanes that it has heard of, at the last
    /// cursor that was exported: it may get the last messages once more, those of an eighth of a ring at most. If the other dies
    /// before that, nothing has happened.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] or [`Error::Link`]: descriptors are short.
    ///
    /// ```
    /// use memlane::{Link, Publisher, ReceiverTicket, Subscriber};
    ///
    /// # let link = Link::pair()?;
    /// # let mut receiver = Subscriber::builder().unbound()?;
    /// # receiver.attach(link.0)?;
    /// # let sender = std::thread::spawn(move || Publisher::builder().over(link.1));
    /// # while receiver.senders() == 0 { let _ = receiver.try_recv(); }
    /// # let mut sender = sender.join().unwrap()?;
    /// # let (to_the_other, from_the_first) = Link::pair()?;
    /// sender.send(b"one")?;
    /// sender.send(b"two")?;
    /// assert_eq!(receiver.recv()?.to_vec(), b"one");
    /// to_the_other.send(&receiver.ticket()?)?;
    /// # let other = std::thread::spawn(move || {
    ///
    /// // in another process
    /// let ticket: ReceiverTicket = from_the_first.adopting().recv()?;
    /// let mut successor = ticket.arrive()?;
    /// assert_eq!(successor.recv()?.to_vec(), b"two");
    /// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    /// # });
    ///
    /// // in the first, whenever it likes
    /// receiver.depart()?;
    /// # other.join().unwrap().unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn ticket(&mut self) -> Result<ReceiverTicket, Error> {
        self.stay();
        let (ours, theirs) = Link::pair().map_err(Error::os("make a link"))?;
        let listener = self.joining.listener()?;
        let mut leaving = Leaving::new(ours);
        leaving.advance(&mut self.gather, &HashMap::new())?;
        self.leaving = Some(Box::new(leaving));
        Ok(ReceiverTicket {
            version: VERSION,
            link: Box::new(theirs),
            listener: listener.map(Box::new),
        })
    }

    /// Whether a successor is there, and waits at every lane for this receiver to depart: then whatever takes time has been done. To be
    /// called again and again: it passes on what senders have answered. One system call or two for each sender. A sender that has not
    /// answered for 5 s is not waited for.
    ///
    /// # Errors
    ///
    /// [`Error::Stays`], once, if there will be none: whoever had the ticket is gone. This receiver goes on, and may make
    /// another ticket.
    pub fn is_awaited(&mut self) -> Result<bool, Error> {
        let Some(leaving) = &mut self.leaving else {
            return Ok(false);
        };
        match leaving.advance(&mut self.gather, &HashMap::new()) {
            Ok(()) => {
                let more = self.arriving.as_ref();
                Ok(leaving.is_awaited() && !more.is_some_and(|more| more.is_awaited()))
            }
            Err(error) => {
                self.leaving = None;
                let resumed = self.joining.resume(&mut self.gather);
                resumed.map_err(Error::os("watch the listener"))?;
                Err(error)
            }
        }
    }

    /// Waits until a successor waits, no longer than `timeout`; whether one does. Nobody receives meanwhile.
    ///
    /// # Errors
    ///
    /// As [`is_awaited`](Receiver::is_awaited).
    pub fn wait_until_awaited(&mut self, timeout: Duration) -> Result<bool, Error> {
        wait_until_awaited(timeout, || self.is_awaited())
    }

    /// Takes back the ticket it has made: its holder is turned away, and this receiver stays. What it has departed from already
    /// is its successor's, its name included.
    pub fn stay(&mut self) {
        if let Some(mut leaving) = self.leaving.take() {
            leaving.stay(&mut self.gather);
            // Nobody else has the name if whoever had the ticket is gone.
            leaving.hear();
            match leaving.departs() && !leaving.is_void() {
                true => self.joining.retire(),
                // Where that fails, the next attempt to accept is by the way, as after any shortage.
                false => drop(self.joining.resume(&mut self.gather)),
            }
        }
    }

    /// Stops, and leaves its place to whoever has its [ticket](Receiver::ticket), who goes on with the next message of each
    /// sender. What is [held](crate::Message::hold) here stays held. Each lane is left as soon as its sender agrees, whatever others
    /// do; it waits for all, for up to 5 s.
    ///
    /// A receiver that is dropped with a ticket out departs from those lanes whose senders have answered by the last call of
    /// [`is_awaited`](Receiver::is_awaited), and the others end.
    ///
    /// # Errors
    ///
    /// [`Remains`], with the receiver, and of its lanes those that could not be left: go on receiving, and depart again. A lane
    /// remains while attachments have come here of messages that have not been received, and while there are messages of a sender that is gone;
    /// if its sender does not answer, because it is stopped, say; and if the successor does not take it (its options are
    /// others, say). A sender that has not even confirmed in time what it was told has its lane taken over when it goes on.
    ///
    /// All stay if no ticket was made, or its holder is gone: another may be made then.
    pub fn depart(mut self) -> Result<(), Box<Remains<Receiver<T>>>> {
        let Some(mut leaving) = self.leaving.take() else {
            return Err(Box::new(Remains {
                error: Error::stays(NO_TICKET),
                end: self,
            }));
        };
        self.joining.pause(&mut self.gather);
        let Receiver {
            gather,
            joining,
            arriving,
            ..
        } = &mut self;
        match leaving.depart(gather, &mut HashMap::new(), Some(joining), arriving) {
            Ok(()) => Ok(()),
            Err(error) => {
                if leaving.is_void() {
                    let _ = self.joining.resume(&mut self.gather);
                } else {
                    self.leaving = Some(leaving);
                }
                Err(Box::new(Remains { error, end: self }))
            }
        }
    }

    /// Something has come of those who leave, or of a lane that was theirs.
    #[cold]
    pub(super) fn take_over(&mut self, token: u64) {
        let Some(arriving) = &mut self.arriving else {
            return;
        };
        if let Some((lane, _)) = arriving.handle(&mut self.gather, token) {
            self.joining.refused += u64::from(self.gather.add(lane).is_err());
        }
        if arriving.has_departed() {
            let _ = self.joining.resume(&mut self.gather);
        }
        if arriving.is_over() {
            self.arriving = None;
        }
    }
}

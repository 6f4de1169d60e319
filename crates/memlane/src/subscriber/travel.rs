//! Subscribers that move to another process, in the middle of a stream.

use std::{
    fmt,
    time::{Duration, Instant},
};

use memlane_transport::{Address, Error as LinkError, Fd, FdRef, Link, dispose};
use serde::{Deserialize, Serialize};

use super::{
    Meeting, Subscriber, SubscriberBuilder, Trust,
    handshake::{Awaits, Handshake, Prepared, check_start, unless_gone},
    leaving::MAX_NOTICES,
    lossy::Lossy,
};
use crate::{
    Connecting, Error, Reason, after,
    error::{NO_TICKET, Sides},
    left, process_of,
    protocol::{PacketRef, VERSION, limits_of_subscriber},
};

/// For how long a subscriber waits for its publisher's control side to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no ticket to be had yet.
const ELSEWHERE: &str = "it has still to receive what was sent before its publisher has moved";

/// Whether a subscriber is about to move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Travel {
    #[default]
    Stays,
    /// A ticket has been given.
    Ticketed,
    /// It has told the publisher that it reads no more.
    Departed,
}

/// The right to go on where a subscriber stops, in whatever process has it ([`Subscriber::ticket`]).
///
/// It can stand anywhere in a message of a [`Link`]. Sending borrows it, as it does all descriptors: whoever still has it once it
/// has been sent can speak in its taker's name, and end what that one receives.
///
/// Dropped everywhere, unused, it is void: the subscriber [stays](Error::Stays), or, if it has departed, is gone.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ticket {
    /// Of the publisher's protocol: first in all versions.
    version: u32,
    /// The publisher has made it, and receives on its other end. Here nobody does: others may have it.
    socket: Fd,
    #[serde(with = "text")]
    address: Option<Address>,
}

/// An address in a message.
mod text {
    use memlane_transport::Address;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        address: &Option<Address>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let text = address.as_ref().map(ToString::to_string);
        text.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Address>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        let address = text.map(|address| address.parse()).transpose();
        address.map_err(D::Error::custom)
    }
}

impl Ticket {
    /// Goes on where the subscriber stops, with the options that are default: [`SubscriberBuilder::arrive`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn arrive(self) -> Result<Subscriber, Error> {
        Subscriber::builder().arrive(self)
    }

    pub(super) fn new(socket: Fd, address: Option<Address>) -> Ticket {
        Ticket {
            version: VERSION,
            socket,
            address,
        }
    }

    /// The link that it is good for, to whoever has given it: a publisher, or a sender.
    pub(super) fn open(self, them: &'static str) -> Result<(Passage, Option<Address>), Error> {
        let Ticket {
            version,
            socket,
            address,
        } = self;
        if version != VERSION {
            dispose(socket.into());
            return Err(Sides::new(them, "successor").version(version));
        }
        let (mut link, back) = Link::pair().map_err(Error::os("make a link"))?;
        link.send_over(socket.into())?;
        Ok((Passage { link, back }, address))
    }
}

/// A link of two sockets, of which the publisher still has to get one.
#[derive(Debug)]
pub(super) struct Passage {
    pub(super) link: Link,
    pub(super) back: Link,
}

/// Tells the publisher where to answer.
pub(super) fn send_back(link: &Link, back: &Link, timeout: Duration) -> Result<(), LinkError> {
    let link_back = FdRef::new(back);
    unless_gone(link.send_timeout(&PacketRef::Arrives { link: link_back }, timeout))
}

/// Tells the publisher something of a move.
pub(super) fn tell(
    link: &Link,
    packet: &PacketRef<'_>,
    deadline: Option<Instant>,
) -> Result<(), Error> {
    match link.send_timeout(packet, left(deadline)) {
        Err(error) if error.is_disconnected() => Err(Error::HungUp),
        Err(LinkError::TimedOut) => Err(Error::NoAnswer { waited: PATIENCE }),
        sent => Ok(sent?),
    }
}

impl<T: Trust> SubscriberBuilder<T> {
    /// Goes on where another subscriber stops, in whatever process that is: waits until it has
    /// [departed](Subscriber::depart), or is gone, for as long as the [`timeout`](SubscriberBuilder::timeout) allows; then the
    /// next message is the first that the other has not released. All that takes time is done before. Options are this
    /// builder's own, whatever the other had; but it is [overwritten](SubscriberBuilder::overflow) if the other is.
    ///
    /// # Errors
    ///
    /// [`Error::NotDeparted`] if it has not departed in time, and stays; [`Error::HungUp`] if it has said that it stays, or
    /// the publisher is gone; else as [`connect`](SubscriberBuilder::connect). The ticket is void.
    pub fn arrive(self, ticket: Ticket) -> Result<Subscriber<T>, Error> {
        let deadline = after(self.timeout);
        let (Passage { link, back }, address) = ticket.open("publisher")?;
        let link = link.with_limits(limits_of_subscriber(self.max_attachments));
        let prepared = Prepared::new(&self)?;
        prepared.send_opening(&link, left(deadline))?;
        send_back(&link, &back, left(deadline))?;
        drop(back);
        prepared.send_greeting(&link, Awaits::Welcome, left(deadline))?;
        // The publisher has made it.
        let process = process_of(&link).map_err(Error::os("watch the publisher's process"))?;
        let handshake = Handshake::new(self, prepared, link.into(), process).succeeding(true);
        let mut subscriber = handshake.complete(deadline)?;
        subscriber.address = address;
        Ok(subscriber)
    }

    /// Begins to go on where another subscriber stops, without waiting: for loops and tasks.
    ///
    /// # Errors
    ///
    /// As [`arrive`](SubscriberBuilder::arrive), as far as that is known at once.
    pub fn begin_arrival(self, ticket: Ticket) -> Result<Connecting<Subscriber<T>>, Error> {
        let (passage, address) = ticket.open("publisher")?;
        Meeting::succeeding(self, passage, address, Awaits::Welcome).map(Connecting::new)
    }
}

/// A subscriber that was to depart, and has not ([`Subscriber::depart`]).
pub struct Stays<T: Trust> {
    /// Why.
    pub error: Error,
    /// The subscriber, which goes on as if nothing had happened. None if the publisher has not answered in time: it does what
    /// it was told when it gets on.
    pub subscriber: Option<Subscriber<T>>,
}

impl<T: Trust> fmt::Debug for Stays<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stays")
            .field("error", &self.error)
            .field("subscriber", &self.subscriber.is_some())
            .finish()
    }
}

impl<T: Trust> fmt::Display for Stays<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<T: Trust> std::error::Error for Stays<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl<T: Trust> Subscriber<T> {
    /// Asks the publisher for a ticket, with which another process goes on exactly where this subscriber stops. Nothing has
    /// changed by that, and the publisher goes on at full speed all the while: send the ticket to the other process, which
    /// [arrives](SubscriberBuilder::arrive); go on receiving here until that one [waits](Subscriber::is_awaited); then
    /// [depart](Subscriber::depart). Or depart at once, and nobody receives until the other is there.
    ///
    /// Whoever has the ticket is admitted, whatever the publisher's [access rule](crate::PublisherBuilder::access) says. A
    /// subscriber has one at a time: one that it had before is void, whatever comes of this. It waits for the publisher's control
    /// side, as joining does, for up to 5 s.
    ///
    /// If this process dies before it has departed, the other goes on at the last cursor that was exported: it may get the
    /// last messages once more, those of an eighth of the ring at most. If the other dies before that, nothing has happened.
    ///
    /// # Errors
    ///
    /// [`Error::Stays`] if the publisher is short of resources, or has itself moved, and what it had sent before has not been received
    /// yet; [`Error::HungUp`] if it is gone; [`Error::NoAnswer`].
    ///
    /// ```
    /// use memlane::{Link, Publisher, Subscriber, Ticket};
    ///
    /// # let link = Link::pair()?;
    /// # let mut publisher = Publisher::builder().unbound()?;
    /// # publisher.attach(link.0)?;
    /// # let mut subscriber = Subscriber::builder().over(link.1)?;
    /// # let (to_the_other, from_the_first) = Link::pair()?;
    /// publisher.send(b"one")?;
    /// publisher.send(b"two")?;
    /// assert_eq!(subscriber.recv()?.to_vec(), b"one");
    /// to_the_other.send(&subscriber.ticket()?)?;
    /// # let other = std::thread::spawn(move || {
    ///
    /// // in another process
    /// let ticket: Ticket = from_the_first.recv()?;
    /// let mut successor = ticket.arrive()?;
    /// assert_eq!(successor.recv()?.to_vec(), b"two");
    /// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    /// # });
    ///
    /// // in the first, whenever it likes
    /// subscriber.depart()?;
    /// # other.join().unwrap().unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn ticket(&mut self) -> Result<Ticket, Error> {
        if self.chunks.is_over() {
            return Err(Error::HungUp);
        }
        if self.chunks.homes.is_ahead() {
            return Err(Error::stays(ELSEWHERE));
        }
        let deadline = after(PATIENCE);
        let number = self.chunks.moving.next();
        // One that comes too late is nobody's, and that of before is void.
        self.travel = Travel::Stays;
        self.tell(&PacketRef::Ticket { number }, deadline)?;
        let mut heard = 0;
        loop {
            if let Some(ticket) = self.take_ticket() {
                return Ok(ticket);
            }
            self.stays_not()?;
            self.hear_another(deadline, &mut heard)
                .inspect_err(|error| {
                    if matches!(error, Error::Stays { .. }) {
                        // It comes later, and is void by then.
                        let _ = self.link.try_send(&PacketRef::Stays);
                    }
                })?;
        }
    }

    /// The ticket that was asked for, once it has come.
    pub(super) fn take_ticket(&mut self) -> Option<Ticket> {
        let socket = self.chunks.moving.ticket.take()?;
        self.travel = Travel::Ticketed;
        Some(Ticket::new(socket, self.address.clone()))
    }

    /// Whether a successor has shaken hands, and waits for this subscriber to depart: then whatever takes time has been done.
    /// One system call.
    ///
    /// # Errors
    ///
    /// [`Error::Stays`], once, if there will be none: whoever had the ticket is gone, or was refused. This subscriber goes on,
    /// and may get another ticket. [`Error::HungUp`] if the publisher is gone: what it had committed is still to be received here.
    pub fn is_awaited(&mut self) -> Result<bool, Error> {
        let position = self.position();
        self.chunks.take_notices(&self.link, position);
        self.stays_not()?;
        if self.life.gone || self.chunks.is_over() || self.chunks.has_hung_up() {
            return Err(Error::HungUp);
        }
        Ok(self.chunks.moving.awaited)
    }

    /// Waits until a successor waits, no longer than `timeout`; whether one does. Nobody receives meanwhile.
    ///
    /// # Errors
    ///
    /// As [`is_awaited`](Subscriber::is_awaited).
    pub fn wait_until_awaited(&mut self, timeout: Duration) -> Result<bool, Error> {
        let deadline = after(timeout);
        let mut heard = 0;
        loop {
            if self.is_awaited()? {
                return Ok(true);
            }
            match self.hear_another(deadline, &mut heard) {
                Ok(()) => {}
                Err(Error::NoAnswer { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes back the ticket it has given: its holder is turned away, and this subscriber stays.
    ///
    /// # Errors
    ///
    /// [`Error::HungUp`] if the publisher is gone; [`Error::NoAnswer`].
    pub fn stay(&mut self) -> Result<(), Error> {
        if self.travel == Travel::Ticketed {
            self.tell(&PacketRef::Stays, after(PATIENCE))?;
            self.travel = Travel::Stays;
            self.chunks.moving.next();
        }
        Ok(())
    }

    /// Stops, and leaves its place to whoever has its [ticket](Subscriber::ticket), who goes on with the next message. What
    /// is [held](crate::Message::hold) here stays held. It waits until the publisher has taken note, for up to 5 s: when it
    /// returns, the lane is the successor's, or will be when that one arrives.
    ///
    /// A ticketed subscriber that is dropped departs, too, but does not hear whether there is anybody to go on.
    ///
    /// # Errors
    ///
    /// [`Stays`], with the subscriber, if there is no successor: no ticket was given, or its holder is gone; or the publisher is,
    /// and what it had committed is still to be received here. Or attachments have come here already of messages that have not
    /// been received: receive those first. The ticket is void then.
    pub fn depart(mut self) -> Result<(), Box<Stays<T>>> {
        match self.try_depart() {
            Ok(()) => Ok(()),
            Err(error @ Error::NoAnswer { .. }) => Err(Box::new(Stays {
                error,
                subscriber: None,
            })),
            Err(error) => {
                if self.travel == Travel::Departed {
                    self.return_from_departure();
                }
                // The publisher knows, unless it was not asked.
                let _ = self.stay();
                self.travel = Travel::Stays;
                Err(Box::new(Stays {
                    error,
                    subscriber: Some(self),
                }))
            }
        }
    }

    fn try_depart(&mut self) -> Result<(), Error> {
        if self.travel != Travel::Ticketed {
            return Err(Error::stays(NO_TICKET));
        }
        let deadline = after(PATIENCE);
        self.is_awaited()?;
        let departed = self.say_where()?;
        self.tell(&departed, deadline)?;
        self.travel = Travel::Departed;
        let mut heard = 0;
        while !self.chunks.moving.departed {
            self.stays_not()?;
            self.hear_another(deadline, &mut heard)?;
        }
        Ok(())
    }

    /// On the way out: whoever has the ticket goes on here.
    pub(super) fn set_off(&mut self) {
        if self.travel == Travel::Ticketed {
            if let Ok(departed) = self.say_where() {
                let _ = self.link.try_send(&departed);
            }
            self.travel = Travel::Departed;
        }
    }

    /// Its last word, once its cursor says the same.
    pub(super) fn say_where(&mut self) -> Result<PacketRef<'static>, Error> {
        self.ring.release_all();
        let position = match &self.lossy {
            None => self.ring.position(),
            Some(lossy) if lossy.has_taken() => {
                return Err(Error::stays("a message has been found and not received"));
            }
            Some(lossy) => lossy.position(),
        };
        let attachments = self.chunks.attachments.all_done(position);
        let attachments = attachments.ok_or_else(|| {
            Error::stays(
                "attachments have come here already of messages that have not been received",
            )
        })?;
        Ok(PacketRef::Departed {
            position,
            sequence: self.sequence(),
            attachments,
        })
    }

    /// Hears where to begin; false if that has not come in time.
    pub(super) fn begin(&mut self, timeout: Duration) -> Result<bool, Error> {
        let deadline = after(timeout);
        let mut heard = 0;
        loop {
            if let Some(begin) = self.chunks.moving.begin.take() {
                self.begin_at(begin)?;
                return Ok(true);
            }
            match self.hear_another(deadline, &mut heard) {
                Ok(()) => {}
                Err(Error::NoAnswer { .. }) => return Ok(false),
                Err(Error::HungUp) => {
                    return Err(match self.chunks.farewell(&self.link) {
                        Reason::Evicted { why } => Error::Refused { why },
                        _ => Error::HungUp,
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn begin_at(&mut self, (start, sequence, at): (u64, u64, u32)) -> Result<(), Error> {
        check_start(start, sequence)?;
        let ring = |id| self.chunks.rings.get(id);
        let ring = |id| ring(id).map_err(|why| Error::Welcome { why });
        let memory = ring(at)?;
        if let Some(lossy) = &mut self.lossy {
            let first = self.chunks.rings.first().ok_or(Error::HungUp)?;
            let other = (at != first.0).then(|| (at, memory.clone()));
            **lossy = Lossy::new(first, other, start, sequence, 0);
        }
        self.ring.begin_at(memory, start);
        self.chunks.reads = at;
        self.first = sequence;
        Ok(())
    }

    /// Whether the publisher has said that there is no move.
    pub(super) fn stays_not(&mut self) -> Result<(), Error> {
        match self.chunks.moving.stays.take() {
            Some(why) => {
                self.travel = Travel::Stays;
                Err(Error::stays(why))
            }
            None => Ok(()),
        }
    }

    fn tell(&self, packet: &PacketRef<'_>, deadline: Option<Instant>) -> Result<(), Error> {
        tell(&self.link, packet, deadline)
    }

    /// Waits for one more notice, of a publisher that may say one after the other for ever: no longer than until the deadline, and
    /// then takes what is there by then.
    fn hear_another(&mut self, deadline: Option<Instant>, heard: &mut usize) -> Result<(), Error> {
        *heard += 1;
        if *heard > MAX_NOTICES && left(deadline).is_zero() {
            return Err(Error::NoAnswer { waited: PATIENCE });
        }
        self.hear_notice(deadline)
    }

    /// Waits for one more notice.
    ///
    /// # Errors
    ///
    /// [`Error::Stays`]: the next is one of a publisher that is not heard yet.
    pub(super) fn hear_notice(&mut self, deadline: Option<Instant>) -> Result<(), Error> {
        if self.chunks.is_over() {
            return Err(Error::HungUp);
        }
        if self.chunks.homes.is_ahead() {
            return Err(Error::stays(ELSEWHERE));
        }
        match self.link.recv_timeout(left(deadline)) {
            Ok(notice) => {
                self.chunks.take(notice);
                Ok(())
            }
            Err(error) if error.is_disconnected() => Err(Error::HungUp),
            Err(LinkError::TimedOut) => Err(Error::NoAnswer { waited: PATIENCE }),
            Err(error) => {
                self.chunks.break_off(&self.link, &error);
                Err(error.into())
            }
        }
    }
}

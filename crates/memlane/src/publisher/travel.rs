//! Publishers that move to another process, in the middle of a stream: the end of those that move away.

use std::{
    fmt,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use memlane_signaling::gone;
use memlane_transport::{Error as LinkError, Fd, FdRef, Link};
use rustix::event::epoll;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    Publisher, PublisherBuilder,
    control::Control,
    passage::{Going, GreeterRef, HandsOverRef, Place},
    state::{Comes, Connection, State},
};
use crate::{Error, after, error::NO_TICKET, protocol::MAX_RINGS};

/// For how long a publisher waits for its successor to get to know those that came last.
const PATIENCE: Duration = Duration::from_secs(5);

/// For how long it waits for those who have departed from it and whose successors have not come, if they are overwritten: nobody waits
/// for them.
const GRACE: Duration = Duration::from_millis(100);

/// It looks again after so long, whatever it hears.
const PAUSE: Duration = Duration::from_millis(20);

/// The right to go on where a publisher stops, in whatever process has it ([`Publisher::ticket`]).
///
/// It can stand anywhere in a message of a [`Link`], to an end that [adopts](Link::adopting) links: whoever takes it goes on
/// over links that the other process made, and trusts it not to hold it up with those. Sending borrows it: drop it
/// once it has been sent, or the publisher does not notice when its taker dies.
///
/// Dropped everywhere, unused, it is void: the publisher [stays](Error::Stays).
#[derive(Debug)]
pub struct PublisherTicket(TicketLink);

/// On the way out nobody receives on it; on the way in it is a link, and nothing else.
#[derive(Debug)]
enum TicketLink {
    Given(Fd),
    Taken(Box<Link>),
}

impl Serialize for PublisherTicket {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            TicketLink::Given(link) => link.serialize(serializer),
            TicketLink::Taken(link) => link.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for PublisherTicket {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PublisherTicket, D::Error> {
        let link = Link::deserialize(deserializer)?;
        Ok(PublisherTicket(TicketLink::Taken(Box::new(link))))
    }
}

impl PublisherTicket {
    /// Goes on where the publisher stops, with the options that are default: [`PublisherBuilder::arrive`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn arrive(self) -> Result<Publisher, Error> {
        PublisherBuilder::default().arrive(self)
    }

    pub(super) fn into_link(self) -> Result<Link, Error> {
        match self.0 {
            TicketLink::Taken(link) => Ok(*link),
            TicketLink::Given(fd) => Link::from_fd(OwnedFd::from(fd))
                .map_err(|error| Error::os("make a ticket a link")(error.into())),
        }
    }
}

/// A publisher that was to depart, and has not ([`Publisher::depart`]).
pub struct PublisherStays {
    /// Why.
    pub error: Error,
    /// The publisher, which goes on as if nothing had happened. None if its successor died, or gave up, in the very moment in
    /// which it had departed: then its subscribers have received all that it had sent, and are disconnected.
    pub publisher: Option<Publisher>,
}

impl fmt::Debug for PublisherStays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublisherStays")
            .field("error", &self.error)
            .field("publisher", &self.publisher.is_some())
            .finish()
    }
}

impl fmt::Display for PublisherStays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for PublisherStays {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// Why a publisher has not departed.
enum Undeparted {
    Stays(Error),
    /// There is no way back.
    Lost(Error),
}

impl From<Error> for Undeparted {
    fn from(error: Error) -> Undeparted {
        Undeparted::Stays(error)
    }
}

impl Publisher {
    /// Makes a ticket, with which another process goes on exactly where this publisher stops: with its subscribers, which do not
    /// notice, and its name, if it has [bound](Publisher::bind) one; a [`Sender`](crate::Sender) with its receiver. Nothing has
    /// changed by that: send the ticket to the other process, which [arrives](PublisherBuilder::arrive), and go on sending
    /// here until that one [waits](Publisher::is_awaited); then [depart](Publisher::depart).
    ///
    /// A publisher has one ticket at a time: one that it had before is void. If this process dies before it has departed,
    /// it has died as any publisher; if the other does, nothing has happened.
    ///
    /// # Errors
    ///
    /// [`Error::Stays`] if subscribers have so many rings still to read ([`spill_bytes`](PublisherBuilder::spill_bytes)) that there
    /// can be no more; [`Error::HungUp`] from a sender whose receiver is gone; [`Error::Os`].
    ///
    /// ```
    /// use memlane::{Link, Publisher, PublisherTicket, Subscriber};
    ///
    /// # let link = Link::pair()?;
    /// let mut publisher = Publisher::builder().unbound()?;
    /// # publisher.attach(link.0)?;
    /// # let mut subscriber = Subscriber::builder().over(link.1)?;
    /// # let (to_the_other, from_the_first) = Link::pair()?;
    /// publisher.send(b"one")?;
    /// to_the_other.send(&publisher.ticket()?)?;
    /// # let other = std::thread::spawn(move || {
    ///
    /// // in another process
    /// let ticket: PublisherTicket = from_the_first.adopting().recv()?;
    /// let mut successor = ticket.arrive()?;
    /// successor.send(b"two")?;
    /// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    /// # });
    ///
    /// // in the first, whenever it likes
    /// while !publisher.is_awaited()? {
    ///     // send something
    /// }
    /// publisher.depart()?;
    ///
    /// // in a third
    /// assert_eq!(subscriber.recv()?.to_vec(), b"one");
    /// assert_eq!(subscriber.recv()?.to_vec(), b"two");
    /// # other.join().unwrap().unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn ticket(&mut self) -> Result<PublisherTicket, Error> {
        if self.ended {
            return Err(Error::HungUp);
        }
        if self.writer.rings_in_use() >= MAX_RINGS {
            self.set_rings_aside();
        }
        let left = self.writer.rings_in_use();
        if left >= MAX_RINGS {
            return Err(Error::stays(format!(
                "subscribers have {left} rings still to read, and there are {MAX_RINGS} at most"
            )));
        }
        let home = self
            .next_ring_id()
            .ok_or_else(|| Error::stays("there are no more rings"))?;
        let link = self
            .control
            .begin_to_leave(home, self.to_receiver)
            .map_err(Error::os("make a ticket"))?;
        self.spill_reserve(true);
        Ok(PublisherTicket(TicketLink::Given(link.into_fd().into())))
    }

    /// Whether a successor is there, and all subscribers know of it: then whatever takes time has been done, and it waits for this
    /// publisher to depart.
    ///
    /// # Errors
    ///
    /// [`Error::Stays`], once, if there will be none: whoever had the ticket is gone, or is of another kind; or a subscriber that is
    /// waited for has left so many notices unread that it cannot be told. This publisher goes on, and may give another ticket.
    pub fn is_awaited(&mut self) -> Result<bool, Error> {
        let driven = self.control.drive_if_driven();
        driven.map_err(Error::os("look for control events"))?;
        let ready = self.control.is_ready_to_leave(&mut self.control.state());
        if ready.is_err() {
            self.spill_reserve(false);
        }
        ready
    }

    /// Waits until a successor waits, no longer than `timeout`; whether one does. Nobody sends meanwhile.
    ///
    /// # Errors
    ///
    /// As [`is_awaited`](Publisher::is_awaited).
    pub fn wait_until_awaited(&mut self, timeout: Duration) -> Result<bool, Error> {
        let ready = self.wait_for_successor(after(timeout), |_, _| Ok(Some(())));
        match ready {
            Ok(ready) => Ok(ready.is_some()),
            Err(Undeparted::Stays(error) | Undeparted::Lost(error)) => {
                self.spill_reserve(false);
                Err(error)
            }
        }
    }

    /// Takes back the ticket it has given: its holder is turned away, and this publisher stays.
    pub fn stay(&mut self) {
        self.control.stay(&mut self.control.state(), None);
        self.control.state().stays = None;
        self.spill_reserve(false);
    }

    /// Stops, and leaves subscribers and name to whoever has its [ticket](Publisher::ticket). Subscribers receive what was sent
    /// here, and then what is sent there, wherever they are in the stream. What is [loaned](Publisher::loan) can be sent by nobody
    /// any more. It waits until that one is there, for up to 5 s.
    ///
    /// A publisher that is dropped with a ticket out does not depart: it closes.
    ///
    /// # Errors
    ///
    /// [`PublisherStays`], with the publisher, if there is no successor, or it is not ready in time; or if a subscriber is itself on its
    /// way between two processes, and not one that is overwritten: then the successor still waits, and it may depart later. Or attachments are half sent: the
    /// ticket is void then.
    pub fn depart(mut self) -> Result<(), Box<PublisherStays>> {
        match self.try_depart() {
            Ok(()) => Ok(()),
            Err(Undeparted::Stays(error)) => Err(Box::new(PublisherStays {
                error,
                publisher: Some(self),
            })),
            Err(Undeparted::Lost(error)) => Err(Box::new(PublisherStays {
                error,
                publisher: None,
            })),
        }
    }

    fn try_depart(&mut self) -> Result<(), Undeparted> {
        if self.control.state().leaving.is_none() {
            let why = self.control.state().stays.take();
            self.spill_reserve(false);
            return Err(Error::stays(why.unwrap_or_else(|| NO_TICKET.to_owned())).into());
        }
        // What nobody reads is not to count where this one has moved to.
        self.give_up_rings();
        let begun = Instant::now();
        let deadline = after(PATIENCE);
        let departed = self.wait_for_successor(deadline, |publisher, state| {
            if state.keeps_a_lossy_place() && begun.elapsed() < GRACE {
                return Ok(None);
            }
            publisher.hand_over(state, deadline).map(Some)
        });
        match departed {
            Ok(Some(())) => Ok(()),
            Ok(None) => Err(Error::stays(format!(
                "its successor has not been ready within {PATIENCE:?}"
            ))
            .into()),
            Err(error) => {
                if self.control.state().leaving.is_none() {
                    self.spill_reserve(false);
                }
                Err(error)
            }
        }
    }

    /// Waits until there is a successor that knows everybody, and does this then, before anything changes, unless that has still to
    /// wait. `None` if the deadline has passed before.
    fn wait_for_successor<V>(
        &mut self,
        deadline: Option<Instant>,
        mut then: impl FnMut(&mut Publisher, &mut State) -> Result<Option<V>, Undeparted>,
    ) -> Result<Option<V>, Undeparted> {
        let control = (*self.control).clone();
        loop {
            let driven = self.control.drive_if_driven();
            driven.map_err(Error::os("look for control events"))?;
            let mut state = control.state();
            if control.is_ready_to_leave(&mut state)? {
                if let Some(done) = then(self, &mut state)? {
                    return Ok(Some(done));
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
            // What the kernel has refused for now is tried again.
            let again = Some(Instant::now() + PAUSE);
            let again = deadline.into_iter().chain(again).min();
            if self.control.is_driven() {
                drop(state);
                self.await_control(again)
                    .map_err(Error::os("wait for the successor"))?;
            } else {
                control.await_change(state, again);
            }
        }
    }

    /// All that has to be done before there is no way back; and then that.
    fn hand_over(
        &mut self,
        state: &mut State,
        deadline: Option<Instant>,
    ) -> Result<(), Undeparted> {
        let control = (*self.control).clone();
        let Some(link) = state.leaving.as_ref().map(|leaving| leaving.link.clone()) else {
            return Err(Error::stays(NO_TICKET).into());
        };
        if state.keeps_a_place() {
            return Err(Error::stays("a subscriber is on its way between two processes").into());
        }
        // If it comes to nothing after these, all are this publisher's as before.
        if let Err(error) = control.send_ahead(state, &link, deadline) {
            control.stay(state, None);
            return Err(error.into());
        }
        let Some(leaving) = state.leaving.take() else {
            return Err(Error::stays(NO_TICKET).into());
        };
        // Whoever comes from now on is the successor's: it has been sent all who have come.
        let listener = state.listener.take();
        // Nobody of theirs can begin at the successor's with what this publisher says.
        control.void_tickets(state);
        let (position, sequence) = self.writer.hand_over(leaving.home);
        // No way back.
        self.inline_end = 0;
        self.ended = true;
        self.writer.fence(true);
        for peer in state.peers() {
            peer.wake();
        }
        let (chunks, segments) = self.pool.end();
        let departs = HandsOverRef::Departs(Place {
            position,
            sequence,
            chunks,
            segments,
            rings: self.next_ring_id().unwrap_or(u32::MAX),
            tag: state.last_tag,
        });
        let told = link.send_timeout(&departs, PATIENCE);
        if let Some(listener) = &listener {
            let _ = epoll::delete(&*control.epoll, listener);
        }
        let _ = epoll::delete(&*control.epoll, &link);
        control.let_go(state);
        drop(listener);
        told.map_err(|error| Undeparted::Lost(untold(error)))
    }
}

fn untold(error: LinkError) -> Error {
    Error::stays(format!("its successor cannot be told: {error}"))
}

impl Control {
    /// Sends all to the successor that is its own once the publisher has departed.
    fn send_ahead(
        &self,
        state: &State,
        link: &Link,
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        let send = |packet: HandsOverRef<'_>| {
            let left = deadline.map_or(PATIENCE, |at| at.saturating_duration_since(Instant::now()));
            link.send_timeout(&packet, left).map_err(untold)
        };
        for goer in self.goers(state) {
            if let Some(Err(LinkError::WouldBlock)) = goer.peer.with_link(Link::try_flush) {
                if !goer.peer.is_lossy() {
                    return Err(Error::stays("attachments of a message are half sent"));
                }
                let why = "it has not taken attachments that are half sent";
                goer.peer.fail(why.to_owned());
                continue;
            }
            // One that is gone is found so by the successor.
            let (sent, taken, counts) = goer.peer.in_flight();
            send(HandsOverRef::Going(Going {
                source: goer.source,
                sent,
                taken,
                counts,
            }))?;
        }
        for connection in state.links.values() {
            if let Connection::Greeting(greeter) = connection {
                if greeter.comes == Comes::ToSubscribe {
                    send(HandsOverRef::Greeter(GreeterRef {
                        link: &greeter.link,
                        process: greeter.process.as_ref().map(FdRef::new),
                        opened: greeter.opened,
                    }))?;
                }
            }
        }
        if let Some(listener) = &state.listener {
            send(HandsOverRef::Listener(listener))?;
        }
        match gone(link.as_fd(), None) {
            Ok(false) => Ok(()),
            _ => Err(Error::stays("its successor is gone")),
        }
    }

    /// No subscriber moves: all tickets are void.
    fn void_tickets(&self, state: &mut State) {
        let ticketed = state.links.iter().filter_map(|(source, connection)| {
            let Connection::Joined { place, .. } = connection else {
                return None;
            };
            place.successor().map(|_| *source)
        });
        for source in ticketed.collect::<Vec<_>>() {
            self.void_ticket(state, source, "its publisher moves to another process");
        }
    }

    /// Lets go of all links, which are another process's by now.
    fn let_go(&self, state: &mut State) {
        for (_, connection) in state.links.drain() {
            match connection {
                Connection::Greeting(greeter) => {
                    let _ = epoll::delete(&*self.epoll, &greeter.link);
                }
                Connection::Arriving { peer, process, .. } => {
                    self.detach(&peer, process.as_ref());
                }
                Connection::Joined {
                    id,
                    peer,
                    process,
                    place,
                } => {
                    let gone = peer.evicted() || peer.dismissed();
                    if place.is_own() && !gone {
                        peer.with_link(|link| epoll::delete(&*self.epoll, link));
                        if let Some(process) = &process {
                            let _ = epoll::delete(&*self.epoll, process);
                        }
                        peer.let_go();
                    } else {
                        self.detach(&peer, process.as_ref());
                    }
                    self.roster.leave(id);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use memlane_transport::Address;

    use super::*;
    use crate::Subscriber;

    /// A client comes while its publisher departs, which takes back a subscriber's ticket then: the successor serves it.
    #[test]
    fn who_comes_in_the_moment_of_a_move_is_the_successors() {
        let name = format!("memlane-moment-{}", std::process::id());
        let address = Address::abstract_name(name).unwrap();
        let patience = Duration::from_secs(60);
        let builder = Publisher::builder().driven();
        let mut publisher = builder.bind_to(&address).unwrap();
        let subscribe = || {
            let address = address.clone();
            std::thread::spawn(move || {
                let builder = Subscriber::builder().timeout(patience);
                builder.connect_to(&address).unwrap()
            })
        };
        let first = subscribe();
        publisher.wait_for_subscribers(1).unwrap();
        let mut first = first.join().unwrap();
        let asking = std::thread::spawn(move || {
            let ticket = first.ticket().unwrap();
            (first, ticket)
        });
        while !asking.is_finished() {
            publisher.drive().unwrap();
        }
        let (mut first, _void) = asking.join().unwrap();
        let ticket = publisher.ticket().unwrap();
        let successor = std::thread::spawn(move || {
            let builder = Publisher::builder().timeout(patience);
            builder.arrive(ticket).unwrap()
        });
        assert!(publisher.wait_until_awaited(patience).unwrap());
        // It has connected, and nobody has accepted it.
        let link = Link::connect(&address).unwrap();
        let control = (*publisher.control).clone();
        let mut state = control.state();
        let departed = publisher.hand_over(&mut state, after(patience));
        assert!(departed.is_ok());
        drop(state);
        drop(publisher);
        let mut successor = successor.join().unwrap();
        let builder = Subscriber::builder().timeout(patience);
        let mut late = builder.over(link).unwrap();
        successor.send(b"there").unwrap();
        for subscriber in [&mut first, &mut late] {
            assert_eq!(subscriber.recv().unwrap().to_vec(), b"there");
        }
    }
}

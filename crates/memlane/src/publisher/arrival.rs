//! A publisher on its way to where another one stops: what it hears and says, without waiting.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use memlane_transport::{Error as LinkError, FdRef, Link};
use rustix::{
    event::epoll::EventFlags,
    net::{Shutdown, shutdown},
};

use super::{
    Publisher, PublisherBuilder, PublisherTicket,
    arriving::{Arriving, nonsense},
    offering::Offering,
    passage::{HandsOver, LIMITS, TakesOverRef},
};
use crate::{
    Connecting, Error, after,
    connecting::{Attempts, Begun, Connects},
    error::Sides,
    protocol::{Opening, VERSION},
};

/// So many packets are heard in one go, before others of a loop have their turn.
const MAX_PACKETS: usize = 256;

impl PublisherBuilder {
    /// Goes on where another publisher stops, in whatever process that is: waits until it has
    /// [departed](Publisher::depart), for as long as the [`timeout`](PublisherBuilder::timeout) allows; then the first message sent
    /// here follows the last one sent there, for each of its subscribers, and new ones find this publisher behind its name. All that
    /// takes time is done before.
    ///
    /// What subscribers go by is as it was: the size of rings, how many attachments a message may have, whether they are
    /// [trusted](PublisherBuilder::trust_subscribers). All other options are this builder's own. A
    /// [history](PublisherBuilder::history) begins anew. A publisher that had connected ([`Sender`](crate::Sender)) goes on as one.
    ///
    /// # Errors
    ///
    /// [`Error::NotDeparted`] if it has not departed in time, and stays; [`Error::NotHandedOver`] if it has said that it stays, or has died;
    /// [`Error::Option`] if it carries something else; [`Error::Version`]; or resources are short. The ticket is void.
    pub fn arrive(self, ticket: PublisherTicket) -> Result<Publisher, Error> {
        self.begin_arrival(ticket)?.wait()
    }

    /// Begins to go on where another publisher stops, without waiting: for loops and tasks. Dropped before it has finished, it
    /// is as one that gives up: the other stays.
    ///
    /// # Errors
    ///
    /// As [`arrive`](PublisherBuilder::arrive), as far as that is known at once.
    ///
    /// ```
    /// use memlane::{Publisher, PublisherTicket};
    ///
    /// # let mut publisher = Publisher::builder().unbound()?;
    /// # let (to_the_other, from_the_first) = memlane::Link::pair()?;
    /// # to_the_other.send(&publisher.ticket()?)?;
    /// # let other = std::thread::spawn(move || publisher.depart().is_ok());
    /// # async_io::block_on(async {
    /// let ticket: PublisherTicket = from_the_first.adopting().recv()?;
    /// let arriving = Publisher::builder().begin_arrival(ticket)?;
    /// let mut publisher = arriving.finish().await?; // or in a loop of one's own: `try_finish`
    /// publisher.send(b"the next message").await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # assert!(other.join().unwrap());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn begin_arrival(self, ticket: PublisherTicket) -> Result<Connecting<Publisher>, Error> {
        let link = ticket.into_link()?.with_limits(LIMITS).adopting();
        let attempts = Attempts::new(after(self.timeout))?;
        attempts.watch(&link, EventFlags::IN | EventFlags::RDHUP)?;
        let mut arrival = Arrival {
            unsaid: VecDeque::from([Unsaid::Opening, Unsaid::Carries]),
            step: Step::Open,
            builder: self,
            link,
            attempts,
            over: false,
        };
        arrival.say()?;
        arrival.attempts.set_timer()?;
        Ok(Connecting::new(Coming::Arrives(Box::new(arrival))))
    }
}

/// A publisher on its way: to a receiver, or to where another one stops.
#[derive(Debug)]
pub enum Coming {
    Offers(Box<Offering>),
    Arrives(Box<Arrival>),
}

impl Begun for Coming {
    type End = Publisher;

    fn advance(&mut self) -> Result<Option<Publisher>, Error> {
        match self {
            Coming::Offers(offering) => offering.advance(),
            Coming::Arrives(arrival) => arrival.advance(),
        }
    }

    fn descriptor(&self) -> &Arc<OwnedFd> {
        match self {
            Coming::Offers(offering) => offering.descriptor(),
            Coming::Arrives(arrival) => arrival.descriptor(),
        }
    }
}

impl Connects for Publisher {
    type Begun = Coming;
}

/// A publisher that is to go on where another one stops.
#[derive(Debug)]
pub struct Arrival {
    builder: PublisherBuilder,
    link: Link,
    step: Step,
    /// For want of room, until there is some.
    unsaid: VecDeque<Unsaid>,
    /// Watches the link, too.
    attempts: Attempts,
    /// The time is over, and the other cannot depart any more: if it just has, that is there.
    over: bool,
}

/// What comes next.
#[derive(Debug)]
enum Step {
    /// To hear of which version the other is.
    Open,
    /// To agree on what subscribers go by.
    Meet,
    /// To get to know subscribers, until the other departs.
    Know(Box<Arriving>),
    Over,
}

/// What there is to say.
#[derive(Debug)]
enum Unsaid {
    Opening,
    Carries,
    Ring,
    Knows {
        source: u32,
        doorbell: Option<OwnedFd>,
    },
}

impl Arrival {
    fn advance(&mut self) -> Result<Option<Publisher>, Error> {
        // Looked at before what there is to hear: what has come in time counts.
        let late = self.attempts.look();
        let arrived = self.get_on(late).map_err(|error| match error {
            Error::Link(error) if error.is_disconnected() && self.over => Error::NotDeparted {
                waited: self.builder.timeout,
            },
            Error::Link(error) if error.is_disconnected() => Error::NotHandedOver,
            error => error,
        })?;
        match arrived {
            Some(_) => self.attempts.forget(&self.link),
            None => self.attempts.set_timer()?,
        }
        Ok(arrived)
    }

    fn get_on(&mut self, late: bool) -> Result<Option<Publisher>, Error> {
        self.say()?;
        for _ in 0..MAX_PACKETS {
            match self.hear() {
                Ok(None) => self.say()?,
                Err(Error::Link(LinkError::WouldBlock)) if late && !self.over => {
                    let _ = shutdown(self.link.as_fd(), Shutdown::Both);
                    self.over = true;
                }
                Err(Error::Link(LinkError::WouldBlock)) => return Ok(None),
                heard => return heard,
            }
        }
        // Whoever waits for edges is not told of what is left.
        self.attempts.later();
        Ok(None)
    }

    /// One packet: the publisher, once that has come of it.
    fn hear(&mut self) -> Result<Option<Publisher>, Error> {
        match &mut self.step {
            Step::Open => {
                let Opening { version } = self.link.try_recv()?;
                if version != VERSION {
                    return Err(Sides::new("publisher before it", "publisher").version(version));
                }
                self.step = Step::Meet;
            }
            Step::Meet => {
                let HandsOver::Terms(terms) = self.link.try_recv()? else {
                    return Err(nonsense(
                        "expected what subscribers go by, got something else",
                    ));
                };
                let arriving = Arriving::meet(self.builder.clone(), &terms, &self.link)?;
                self.step = Step::Know(Box::new(arriving));
                self.unsaid.push_back(Unsaid::Ring);
            }
            Step::Know(arriving) => match self.link.try_recv()? {
                HandsOver::Subscriber(subscriber) => {
                    let source = subscriber.source;
                    let known = arriving.get_to_know(subscriber).inspect_err(|error| {
                        let why = format!("its successor cannot take a subscriber: {error}");
                        let _ = self.link.try_send(&TakesOverRef::Refuses(&why));
                    });
                    let doorbell = known?;
                    self.unsaid.push_back(Unsaid::Knows { source, doorbell });
                }
                HandsOver::Departs(at) => {
                    if let Step::Know(arriving) = std::mem::replace(&mut self.step, Step::Over) {
                        return arriving.begin(at).map(Some);
                    }
                }
                heard => arriving.hear(heard)?,
            },
            Step::Over => {}
        }
        Ok(None)
    }

    /// Says what there is to say, as far as there is room.
    fn say(&mut self) -> Result<(), Error> {
        while let Some(next) = self.unsaid.front() {
            let said = match next {
                Unsaid::Opening => self.link.try_send(&Opening { version: VERSION }),
                Unsaid::Carries => {
                    let carries = TakesOverRef::Carries(self.builder.carries());
                    self.link.try_send(&carries)
                }
                Unsaid::Ring => match &self.step {
                    Step::Know(arriving) => {
                        let ring = TakesOverRef::Ring(FdRef::new(arriving.ring()));
                        self.link.try_send(&ring)
                    }
                    _ => Ok(()),
                },
                Unsaid::Knows { source, doorbell } => {
                    let doorbell = doorbell.as_ref().map(FdRef::new);
                    let source = *source;
                    self.link
                        .try_send(&TakesOverRef::Knows { source, doorbell })
                }
            };
            match said {
                Ok(()) => drop(self.unsaid.pop_front()),
                Err(LinkError::WouldBlock) => {
                    self.attempts.later();
                    break;
                }
                // What the other has said before is to be heard, and that it is gone: one of another version hangs up, and has said which;
                // one that departs does not wait for what is said of a subscriber that is gone.
                Err(error) if error.is_disconnected() => self.unsaid.clear(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn descriptor(&self) -> &Arc<OwnedFd> {
        self.attempts.descriptor()
    }
}

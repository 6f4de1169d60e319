//! Senders on their way to a receiver.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    task::{Wake, Waker},
    time::Instant,
};

use memlane_transport::{Address, Error as LinkError, Link};
use rustix::event::{EventfdFlags, epoll::EventFlags, eventfd};

use super::{Publisher, PublisherBuilder, arrival::Coming};
use crate::{
    Connecting, Error, after,
    connecting::{Attempts, Begun},
    names::address_of,
    pidfd_of, process_of,
};

impl PublisherBuilder {
    /// Connects to a queue of this user's ([`Receiver`](crate::Receiver)): a [`Sender`](crate::Sender). Its
    /// [`access`](PublisherBuilder::access) says whose it may be.
    ///
    /// # Errors
    ///
    /// [`Error`]: nobody receives there, or it may not be this user, or it carries something else, or resources are short.
    pub fn connect(self, service: &str) -> Result<Publisher, Error> {
        self.connect_to(&address_of(service)?)
    }

    /// Connects to a queue at an address of the user's choice.
    ///
    /// # Errors
    ///
    /// As [`connect`](PublisherBuilder::connect).
    pub fn connect_to(self, address: &Address) -> Result<Publisher, Error> {
        let deadline = after(self.timeout);
        let link = Link::connect_with(address, self.access.clone())?;
        let process = process_of(&link).map_err(Error::os("watch the receiver's process"))?;
        self.offer_until(link, process, deadline)
    }

    /// Sends over a link that was made elsewhere (inherited, or [`Link::pair`]), whose other end a receiver has or gets
    /// ([`Receiver::attach`](crate::Receiver::attach)). The link is the sender's from now on.
    ///
    /// # Errors
    ///
    /// As [`connect`](PublisherBuilder::connect).
    pub fn over(self, link: Link) -> Result<Publisher, Error> {
        let deadline = after(self.timeout);
        self.offer_until(link, None, deadline)
    }

    /// [`over`](PublisherBuilder::over), for a link whose other end a known process has: the receiver is gone when that process
    /// has ended, too, whoever else holds the link then. The pidfd is duplicated.
    ///
    /// # Errors
    ///
    /// As [`connect`](PublisherBuilder::connect); [`Error::Os`] if it is no pidfd.
    pub fn over_process(self, link: Link, process: impl AsFd) -> Result<Publisher, Error> {
        let deadline = after(self.timeout);
        let process = pidfd_of(process)?;
        self.offer_until(link, Some(process), deadline)
    }

    /// Begins to connect to a queue of this user's, without waiting: for loops and tasks.
    ///
    /// # Errors
    ///
    /// As [`connect`](PublisherBuilder::connect), as far as that is known at once.
    pub fn begin(self, service: &str) -> Result<Connecting<Publisher>, Error> {
        self.begin_at(&address_of(service)?)
    }

    /// Begins to connect to a queue at an address of the user's choice, without waiting.
    ///
    /// # Errors
    ///
    /// As [`begin`](PublisherBuilder::begin).
    pub fn begin_at(self, address: &Address) -> Result<Connecting<Publisher>, Error> {
        Offering::begin(self, Step::Connect(address.clone()))
    }

    /// Begins to send over a link that was made elsewhere, as [`over`](PublisherBuilder::over) does, without waiting.
    ///
    /// # Errors
    ///
    /// As [`begin`](PublisherBuilder::begin).
    pub fn begin_over(self, link: Link) -> Result<Connecting<Publisher>, Error> {
        Offering::begin(self, Step::Offer(Box::new(link)))
    }

    fn offer_until(
        self,
        link: Link,
        process: Option<OwnedFd>,
        deadline: Option<Instant>,
    ) -> Result<Publisher, Error> {
        let waited = self.timeout;
        let publisher = self.offer(link, process)?;
        match publisher.wait_for_offer(deadline)? {
            Some(outcome) => outcome.map(|()| publisher).map_err(no_receiver),
            None => Err(no_receiver(Error::NoAnswer { waited })),
        }
    }

    /// One that has offered its lane, and has no answer yet.
    fn offer(mut self, link: Link, process: Option<OwnedFd>) -> Result<Publisher, Error> {
        self.max_subscribers = 1;
        let mut publisher = self.unbound()?;
        publisher.to_receiver = true;
        let offered = publisher.control.offer(link, process);
        offered.map_err(|errno| Error::os("watch the link")(errno.into()))?;
        Ok(publisher)
    }
}

fn no_receiver(error: Error) -> Error {
    let idle = "busy elsewhere than in its recv calls, which are what lets senders in";
    error.nobody("sender", idle, |why| Error::NoReceiver { why })
}

/// A sender on its way.
#[derive(Debug)]
pub struct Offering {
    builder: PublisherBuilder,
    step: Step,
    /// Watches what tells of the answer, too.
    attempts: Attempts,
    /// Rung by the control thread, where that hears the answer.
    told: Arc<Told>,
}

/// What comes next.
#[derive(Debug)]
enum Step {
    /// A place in the receiver's backlog.
    Connect(Address),
    /// To offer the lane over this link, which was made elsewhere.
    Offer(Box<Link>),
    /// To hear the answer.
    Hear(Box<Publisher>),
    Over,
}

impl Offering {
    fn begin(builder: PublisherBuilder, step: Step) -> Result<Connecting<Publisher>, Error> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let told =
            eventfd(0, flags).map_err(|errno| Error::os("create an eventfd")(errno.into()))?;
        let mut offering = Offering {
            attempts: Attempts::new(after(builder.timeout))?,
            builder,
            step,
            told: Arc::new(Told(told)),
        };
        offering.attempts.watch(&offering.told.0, EventFlags::IN)?;
        offering.get_on()?;
        offering.attempts.set_timer()?;
        Ok(Connecting::new(Coming::Offers(Box::new(offering))))
    }

    /// As far as the lane is offered.
    fn get_on(&mut self) -> Result<(), Error> {
        let (link, process) = match std::mem::replace(&mut self.step, Step::Over) {
            Step::Connect(address) => {
                match Link::try_connect_with(&address, self.builder.access.clone()) {
                    Ok(link) => {
                        let process =
                            process_of(&link).map_err(Error::os("watch the receiver's process"))?;
                        (link, process)
                    }
                    Err(LinkError::WouldBlock | LinkError::Locked { .. }) => {
                        self.step = Step::Connect(address);
                        self.attempts.later();
                        return Ok(());
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Step::Offer(link) => (*link, None),
            step @ (Step::Hear(_) | Step::Over) => {
                self.step = step;
                return Ok(());
            }
        };
        let publisher = self.builder.clone().offer(link, process)?;
        if publisher.control.is_driven() {
            self.attempts
                .watch(&**publisher.control.epoll(), EventFlags::IN)?;
        }
        self.step = Step::Hear(Box::new(publisher));
        Ok(())
    }

    fn outcome(&mut self) -> Option<Result<(), Error>> {
        let Step::Hear(publisher) = &self.step else {
            return None;
        };
        if let Err(error) = publisher.drive() {
            return Some(Err(error));
        }
        publisher
            .control
            .poll_offer(&Waker::from(self.told.clone()))
    }
}

impl Begun for Offering {
    type End = Publisher;

    fn advance(&mut self) -> Result<Option<Publisher>, Error> {
        // Looked at before what there is to hear: what has come in time counts.
        let late = self.attempts.look();
        let _ = rustix::io::read(&self.told.0, &mut [0; 8]);
        self.get_on()?;
        match self.outcome() {
            Some(outcome) => outcome.map_err(no_receiver)?,
            None if late => {
                let waited = self.builder.timeout;
                return Err(no_receiver(Error::NoAnswer { waited }));
            }
            None => {
                self.attempts.set_timer()?;
                return Ok(None);
            }
        }
        let Step::Hear(publisher) = std::mem::replace(&mut self.step, Step::Over) else {
            return Ok(None);
        };
        self.attempts.forget(&**publisher.control.epoll());
        Ok(Some(*publisher))
    }

    fn descriptor(&self) -> &Arc<OwnedFd> {
        self.attempts.descriptor()
    }
}

/// An eventfd that is written to whoever is woken.
#[derive(Debug)]
struct Told(OwnedFd);

impl Wake for Told {
    fn wake(self: Arc<Told>) {
        // It cannot be full.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

//! A reader's handshake without waiting: a subscriber's, and that of the other ends that read.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use memlane_transport::{Address, Error as LinkError, Link};
use rustix::event::epoll::EventFlags;

use super::{
    Subscriber, SubscriberBuilder, Trust,
    handshake::{Awaits, Handshake, Prepared},
    travel::{Passage, send_back},
};
use crate::{
    Error, after,
    connecting::{Attempts, Begun, Connects, Later},
    process_of,
    protocol::{self, LIMITS, Server, Welcome, limits_of_subscriber},
};

/// A reader that is on its way: it connects, greets, and hears the answer.
#[derive(Debug)]
pub struct Meeting<T: Trust> {
    builder: SubscriberBuilder<T>,
    address: Option<Address>,
    /// The process at the other end of a link that was given, if it is known.
    given: Option<OwnedFd>,
    awaits: Awaits,
    /// The greeting of a client, which has come.
    client: Option<protocol::Greeting>,
    /// It came with a ticket.
    succeeds: bool,
    step: Step<T>,
    /// Watches the link, too, once there is an answer to hear.
    attempts: Attempts,
}

/// What comes next.
#[derive(Debug)]
enum Step<T: Trust> {
    /// A place in the publisher's backlog.
    Connect,
    /// To send what has not been sent of version and greeting.
    Greet(Box<Greeting>),
    /// To hear the answer.
    Hear(Box<Handshake<T>>),
    /// To hear where to begin.
    Begin(Box<Subscriber<T>>),
    /// Nothing more here. If there is still something to hear, what it has become [hears it](Meeting::advance_by).
    Over,
}

#[derive(Debug)]
struct Greeting {
    link: Arc<Link>,
    prepared: Prepared,
    /// The version has been sent.
    opened: bool,
    /// Where the publisher is to answer, if that does not go without saying, until it has been told.
    back: Option<Link>,
}

/// What is done with the greeting of a lane of this side's.
type Meets<'a, T> = dyn FnMut(Server, &Handshake<T>) -> Result<(), Error> + 'a;

impl<T: Trust> Meeting<T> {
    pub(crate) fn to(
        builder: SubscriberBuilder<T>,
        address: &Address,
        awaits: Awaits,
    ) -> Result<Meeting<T>, Error> {
        let mut meeting = Meeting::new(builder, Step::Connect)?;
        meeting.awaits = awaits;
        meeting.address = Some(address.clone());
        meeting.begin()?;
        Ok(meeting)
    }

    /// Over a link that was accepted, or made elsewhere: the process has its other end, as far as that is known.
    pub(crate) fn over(
        builder: SubscriberBuilder<T>,
        link: Link,
        process: Option<OwnedFd>,
        awaits: Awaits,
    ) -> Result<Meeting<T>, Error> {
        let mut meeting = Meeting::new(builder, Step::Over)?;
        meeting.given = process;
        meeting.awaits = awaits;
        meeting.meet(link, None)?;
        meeting.begin()?;
        Ok(meeting)
    }

    /// With a ticket.
    pub(super) fn succeeding(
        builder: SubscriberBuilder<T>,
        passage: Passage,
        address: Option<Address>,
        awaits: Awaits,
    ) -> Result<Meeting<T>, Error> {
        let mut meeting = Meeting::new(builder, Step::Over)?;
        meeting.succeeds = true;
        meeting.awaits = awaits;
        meeting.address = address;
        meeting.meet(passage.link, Some(passage.back))?;
        meeting.begin()?;
        Ok(meeting)
    }

    fn new(builder: SubscriberBuilder<T>, step: Step<T>) -> Result<Meeting<T>, Error> {
        let attempts = Attempts::new(after(builder.timeout))?;
        Ok(Meeting {
            builder,
            address: None,
            given: None,
            awaits: Awaits::Welcome,
            client: None,
            succeeds: false,
            step,
            attempts,
        })
    }

    /// Does what can be done at once. The answer is left for later: whoever waits before the first look is told of it.
    fn begin(&mut self) -> Result<(), Error> {
        if self.connect()?.is_ok() {
            let _ = self.greet()?;
        }
        self.attempts.set_timer()
    }

    /// The greeting of the client whose lane of requests is finished.
    pub(crate) fn take_client(&mut self) -> Option<protocol::Greeting> {
        self.client.take()
    }

    /// The lane, or why there is none; nothing as long as it would have to wait.
    pub(crate) fn advance(&mut self) -> Result<Option<Subscriber<T>>, Error> {
        let mut client = None;
        let found = self.advance_by(|meeting| {
            let mut keep = |met: Server, _: &Handshake<T>| {
                client = Some(met.greeting);
                Ok(())
            };
            meeting.hear(&mut keep)
        });
        self.client = client.or(self.client.take());
        found
    }

    /// The welcome, for an end that makes something else of it. Once the other side has greeted a lane of this one's, `meet` is
    /// called with that, before it is welcomed itself.
    pub(crate) fn advance_to_welcome(
        &mut self,
        mut meet: impl FnMut(Server, &Handshake<T>) -> Result<(), Error>,
    ) -> Result<Option<(Handshake<T>, Welcome)>, Error> {
        self.advance_by(|meeting| meeting.hear_welcome(&mut meet))
    }

    /// What `hear` hears, once it has connected and greeted, as long as there is time for that.
    pub(super) fn advance_by<V>(
        &mut self,
        hear: impl FnOnce(&mut Meeting<T>) -> Result<Option<V>, Error>,
    ) -> Result<Option<V>, Error> {
        // Looked at before what there is to hear: what has come in time counts.
        let late = self.attempts.look();
        let result = match self.connect()? {
            Ok(()) => match self.greet()? {
                Ok(()) => hear(self)?,
                Err(Later) => None,
            },
            Err(Later) => None,
        };
        if result.is_none() {
            if late {
                let waited = self.builder.timeout;
                return Err(match self.step {
                    Step::Begin(_) | Step::Over => Error::NotDeparted { waited },
                    _ => Error::NoAnswer { waited },
                });
            }
            self.attempts.set_timer()?;
        }
        Ok(result)
    }

    fn connect(&mut self) -> Result<Result<(), Later>, Error> {
        let (Step::Connect, Some(address)) = (&self.step, &self.address) else {
            return Ok(Ok(()));
        };
        match Link::try_connect_with(address, self.builder.access.clone()) {
            Ok(link) => self.meet(link, None).map(Ok),
            Err(LinkError::WouldBlock | LinkError::Locked { .. }) => Ok(Err(self.attempts.later())),
            Err(error) => Err(error.into()),
        }
    }

    fn meet(&mut self, link: Link, back: Option<Link>) -> Result<(), Error> {
        let limits = match self.awaits {
            // What comes has no attachments.
            Awaits::Server | Awaits::Latest => LIMITS,
            _ => limits_of_subscriber(self.builder.max_attachments),
        };
        let link = Arc::new(link.with_limits(limits).lingering());
        self.step = Step::Greet(Box::new(Greeting {
            link,
            prepared: Prepared::new(&self.builder)?,
            opened: false,
            back,
        }));
        Ok(())
    }

    fn greet(&mut self) -> Result<Result<(), Later>, Error> {
        let Step::Greet(greeting) = &mut self.step else {
            return Ok(Ok(()));
        };
        let Greeting {
            link,
            prepared,
            opened,
            back,
        } = &mut **greeting;
        let mut sent = Ok(());
        if !*opened {
            sent = prepared.send_opening(link, Duration::ZERO);
            *opened = sent.is_ok();
        }
        if let (Ok(()), Some(socket)) = (&sent, &*back) {
            sent = send_back(link, socket, Duration::ZERO);
            if sent.is_ok() {
                *back = None;
            }
        }
        let awaits = self.awaits;
        match sent.and_then(|()| prepared.send_greeting(link, awaits, Duration::ZERO)) {
            Ok(()) => {}
            Err(LinkError::TimedOut) => return Ok(Err(self.attempts.later())),
            Err(error) => return Err(error.into()),
        }
        let Step::Greet(greeting) = std::mem::replace(&mut self.step, Step::Over) else {
            unreachable!("looked at above")
        };
        let Greeting { link, prepared, .. } = *greeting;
        // Of a link that was made elsewhere, the kernel only says who made it.
        let process = match (self.given.take(), &self.address) {
            // The publisher has made the link of a ticket, too.
            (None, address) if address.is_some() || self.succeeds => {
                process_of(&link).map_err(Error::os("watch the process at the other end"))?
            }
            (given, _) => given,
        };
        let flags = EventFlags::IN | EventFlags::RDHUP;
        self.attempts.watch(&*link, flags)?;
        let builder = self.builder.clone();
        let handshake = Handshake::new(builder, prepared, link, process);
        let handshake = handshake.awaiting(awaits).succeeding(self.succeeds);
        self.step = Step::Hear(Box::new(handshake));
        Ok(Ok(()))
    }

    fn hear_welcome(
        &mut self,
        meet: &mut Meets<'_, T>,
    ) -> Result<Option<(Handshake<T>, Welcome)>, Error> {
        let Step::Hear(handshake) = &mut self.step else {
            return Ok(None);
        };
        let welcome = loop {
            match handshake.hear(Duration::ZERO) {
                Ok(None) => {
                    if let Some(met) = handshake.take_met() {
                        meet(met, handshake)?;
                    }
                }
                Ok(Some(welcome)) => break welcome,
                Err(Error::Link(LinkError::TimedOut)) => return Ok(None),
                Err(error) => return Err(error),
            }
        };
        let Step::Hear(handshake) = std::mem::replace(&mut self.step, Step::Over) else {
            unreachable!("looked at above")
        };
        // Before it may be closed: whoever watches may keep the epoll instance for longer.
        if !self.succeeds {
            self.attempts.forget(handshake.link());
        }
        Ok(Some((*handshake, welcome)))
    }

    fn hear(&mut self, meet: &mut Meets<'_, T>) -> Result<Option<Subscriber<T>>, Error> {
        if let Some((handshake, welcome)) = self.hear_welcome(meet)? {
            let mut subscriber = handshake.finish(welcome)?;
            subscriber.address = self.address.take();
            if !self.succeeds {
                return Ok(Some(subscriber));
            }
            self.step = Step::Begin(Box::new(subscriber));
        }
        let Step::Begin(subscriber) = &mut self.step else {
            return Ok(None);
        };
        if !subscriber.begin(Duration::ZERO)? {
            return Ok(None);
        }
        self.attempts.forget(&**subscriber.link());
        match std::mem::replace(&mut self.step, Step::Over) {
            Step::Begin(subscriber) => Ok(Some(*subscriber)),
            _ => unreachable!("looked at above"),
        }
    }

    /// Whether it came with a ticket: after the welcome it is to hear when to begin.
    pub(super) fn succeeds(&self) -> bool {
        self.succeeds
    }

    /// That has been heard: before the link may be closed.
    pub(super) fn has_begun(&self, link: &Link) {
        self.attempts.forget(link);
    }

    /// Where the other side is.
    pub(crate) fn address(&self) -> Option<&Address> {
        self.address.as_ref()
    }
}

impl<T: Trust> Begun for Meeting<T> {
    type End = Subscriber<T>;

    fn advance(&mut self) -> Result<Option<Subscriber<T>>, Error> {
        Meeting::advance(self)
    }

    fn descriptor(&self) -> &Arc<OwnedFd> {
        self.attempts.descriptor()
    }
}

impl<T: Trust> Connects for Subscriber<T> {
    type Begun = Meeting<T>;
}

impl<T: Trust> AsFd for Meeting<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor().as_fd()
    }
}

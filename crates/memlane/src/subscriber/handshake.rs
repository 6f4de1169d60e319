//! How a subscriber comes to be: what it brings along, what it hears, and what that has to be.

use std::{
    marker::PhantomData,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use memlane_region::{Remote, Shared, page_size, pool::MAX_SEGMENTS, ring::RingReader};
use memlane_signaling::{Backing, Doorbell, Pacer, Ringer, WaitPolicy, WrongDoorbell};
use memlane_transport::{Error as LinkError, FdRef, Link, dispose};
use rustix::time::Timespec;

use super::{
    Life, Subscriber, SubscriberBuilder, SubscriberStats, Travel, Trust, chunks::Chunks,
    lossy::Lossy, page::Page, signs::Signs, sleep::Sleep, watch,
};
use crate::{
    Error, Overflow, PayloadType,
    doorbells::{self, Bell},
    error::Sides,
    left,
    page::ALIVE,
    protocol::{
        DoorbellOfferRef, GreetingRef, MAX_RINGS, Opening, Packet, PacketRef, PublisherDoorbell,
        Refusal, Rings, Server, ServerRef, VERSION, Welcome, check_attachments,
    },
};

/// A position beyond this is nonsense: it would take centuries to get there.
const LAST_START: u64 = 1 << 62;

#[cfg(test)]
documented!(LAST_START);

/// No record is shorter, in bytes.
const HEADER: u64 = 8;

/// What a subscriber is told that meets another reader.
const RECEIVES: &str =
    "a receiver is there, which receives: connect a sender to it (Sender::connect)";

/// And one that meets a server.
const ANSWERS: &str =
    "a server is there, which answers requests: connect a client to it (Client::connect)";

/// What is expected before a welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaits {
    /// Nothing: the publisher is the one that listens.
    Welcome,
    /// The publisher has connected, and is still to say that it is one.
    Offer,
    /// So has a client, which is still to greet the lane of replies; it may have so many requests.
    Client(u32),
    /// The publisher is the client of this link, and its server is still to greet the lane of requests.
    Server,
    /// Nothing: it has a latest value, and no lane.
    Latest,
}

impl Awaits {
    /// What the other side is, and this one, as far as the user knows.
    fn sides(self) -> Sides {
        match self {
            Awaits::Welcome => Sides::new("publisher", "subscriber"),
            Awaits::Offer | Awaits::Latest => Sides::new("sender", "receiver"),
            Awaits::Client(_) => Sides::new("client", "server"),
            Awaits::Server => Sides::new("server", "client"),
        }
    }
}

/// A subscriber that has sent its greeting, and hears the publisher's answer.
#[derive(Debug)]
pub(crate) struct Handshake<T: Trust> {
    pub(super) builder: SubscriberBuilder<T>,
    pub(super) prepared: Prepared,
    pub(super) link: Arc<Link>,
    pub(crate) process: Option<OwnedFd>,
    /// The publisher's version has come, and is ours.
    opened: bool,
    awaits: Awaits,
    sides: Sides,
    /// Of the other side's subscriber, where there are two lanes: the lane of this side's publisher is to be welcomed with.
    met: Option<Server>,
    chunks: Chunks,
    segments: usize,
    /// It is to take another's place, and hears later where to begin.
    succeeds: bool,
}

impl<T: Trust> Handshake<T> {
    pub(crate) fn new(
        builder: SubscriberBuilder<T>,
        prepared: Prepared,
        link: Arc<Link>,
        process: Option<OwnedFd>,
    ) -> Handshake<T> {
        Handshake {
            chunks: Chunks::new(builder.max_pool_bytes, builder.max_ring_bytes),
            builder,
            prepared,
            link,
            process,
            opened: false,
            awaits: Awaits::Welcome,
            sides: Awaits::Welcome.sides(),
            met: None,
            segments: 0,
            succeeds: false,
        }
    }

    /// It is to take another's place.
    pub(super) fn succeeding(mut self, succeeds: bool) -> Handshake<T> {
        self.succeeds = succeeds;
        self
    }

    pub(crate) fn awaiting(mut self, awaits: Awaits) -> Handshake<T> {
        self.awaits = awaits;
        self.sides = awaits.sides();
        self
    }

    /// The greeting of the other side's subscriber, once, after it has come.
    pub(crate) fn take_met(&mut self) -> Option<Server> {
        self.met.take()
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Hears it all, and waits for that.
    pub(super) fn complete(mut self, deadline: Option<Instant>) -> Result<Subscriber<T>, Error> {
        loop {
            match self.hear(left(deadline)) {
                Ok(None) => {}
                Ok(Some(welcome)) => {
                    let (waited, succeeds) = (self.builder.timeout, self.succeeds);
                    let mut subscriber = self.finish(welcome)?;
                    if succeeds && !subscriber.begin(left(deadline))? {
                        return Err(Error::NotDeparted { waited });
                    }
                    return Ok(subscriber);
                }
                Err(Error::Link(LinkError::TimedOut)) => {
                    let waited = self.builder.timeout;
                    return Err(Error::NoAnswer { waited });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Hears one packet; the welcome is the last. If none comes in time, that is a link's [`LinkError::TimedOut`].
    pub(crate) fn hear(&mut self, timeout: Duration) -> Result<Option<Welcome>, Error> {
        if !self.opened {
            let Opening { version } = self.link.recv_timeout(timeout).map_err(unheard)?;
            if version != VERSION {
                return Err(self.sides.version(version));
            }
            self.opened = true;
            return Ok(None);
        }
        match self.link.recv_timeout(timeout).map_err(unheard)? {
            Packet::Offer if self.awaits == Awaits::Offer => {
                self.awaits = Awaits::Welcome;
                return Ok(None);
            }
            Packet::Client(greeting) if matches!(self.awaits, Awaits::Client(_)) => {
                self.awaits = Awaits::Welcome;
                let requests = 0;
                self.met = Some(Server { greeting, requests });
                return Ok(None);
            }
            Packet::Server(server) if self.awaits == Awaits::Server => {
                self.awaits = Awaits::Welcome;
                self.met = Some(server);
                return Ok(None);
            }
            Packet::Greeting(_) | Packet::Watch(_) | Packet::Offer | Packet::Client(_)
                if matches!(self.awaits, Awaits::Offer | Awaits::Client(_)) =>
            {
                let (why, expected) = match self.awaits {
                    Awaits::Client(_) => (ANSWERS, "a client"),
                    _ => (RECEIVES, "a sender"),
                };
                let why = why.to_owned();
                let _ = self
                    .link
                    .try_send(&PacketRef::Refused(Refusal::Pattern { why }));
                let why = format!("expected {expected}, got somebody else");
                return Err(Error::Refused { why });
            }
            Packet::Greeting(_) => {
                let why = RECEIVES.to_owned();
                return Err(Error::Refused { why });
            }
            Packet::Client(_) if self.awaits == Awaits::Server => {
                let why = "a client is there, which asks: one end has to be a server".to_owned();
                return Err(Error::Refused { why });
            }
            Packet::Server(_) => {
                let why = ANSWERS.to_owned();
                return Err(Error::Refused { why });
            }
            Packet::Welcome(welcome) if matches!(self.awaits, Awaits::Welcome | Awaits::Latest) => {
                return Ok(Some(welcome));
            }
            Packet::Segment(notice) if self.segments < MAX_SEGMENTS + MAX_RINGS => {
                self.chunks.take(notice);
            }
            Packet::Segment(_) => {
                let why = format!(
                    "expected notices of at most {MAX_SEGMENTS} segments and {MAX_RINGS} rings"
                );
                return Err(Error::Welcome { why });
            }
            Packet::Refused(refusal) => {
                return Err(Error::Refused {
                    why: refusal.told(self.sides.us).to_string(),
                });
            }
            Packet::Ticket { .. }
            | Packet::Departed { .. }
            | Packet::Stays
            | Packet::Arrives { .. } => {
                let why = "expected a welcome, got what a subscriber says".to_owned();
                return Err(Error::Welcome { why });
            }
            Packet::Welcome(_) | Packet::Offer | Packet::Client(_) | Packet::Watch(_) => {
                let why = "expected an offer before a welcome, and only from one that connects";
                return Err(Error::Welcome {
                    why: why.to_owned(),
                });
            }
        }
        self.segments += 1;
        Ok(None)
    }

    /// Checks the welcome; what it is of use for is mapped.
    pub(crate) fn finish(self, welcome: Welcome) -> Result<Subscriber<T>, Error> {
        let Handshake {
            builder,
            prepared,
            link,
            process,
            mut chunks,
            succeeds,
            ..
        } = self;
        // Who has waited for a publisher that has moved meanwhile has connected to the process that it has moved from.
        let process = process.filter(|_| welcome.home == 0 || succeeds);
        let Prepared {
            mine, mut offers, ..
        } = prepared;
        let carry_after = builder.membarrier.filter(|_| welcome.registered);
        let sleep = match offers.take(welcome.rings)? {
            Some(doorbell) => {
                let waiter = watch(&doorbell, &link, process.as_ref())
                    .map_err(Error::os("watch the publisher"))?;
                Some(Sleep::new(waiter, doorbell, carry_after))
            }
            None => None,
        };
        let (capacity, at, home) = (welcome.capacity, welcome.at, welcome.home);
        let (start, before, skip) = (welcome.start, welcome.sequence, welcome.skip);
        let (first, ringer) = examine(welcome, builder.max_ring_bytes, T::TRUSTED)?;
        // Of a ring that could be mapped: it is not that large.
        if skip > capacity / HEADER * MAX_RINGS as u64 {
            let why = format!("expected as many messages to skip as fit its rings, got {skip}");
            return Err(Error::Welcome { why });
        }
        chunks.rings.begin(home, first.clone(), capacity as usize);
        let memory = chunks.rings.get(at).map_err(|why| Error::Welcome { why })?;
        chunks.reads = at;
        let lossy = (builder.overflow == Overflow::Overwrite).then(|| {
            let other = (at != home).then(|| (at, memory.clone()));
            Box::new(Lossy::new(
                (home, first.clone()),
                other,
                start,
                before,
                skip,
            ))
        });
        let signs = Signs::new(builder.liveliness, first.load_word(ALIVE));
        let page = Page::new(mine, ringer, first, link.clone());
        chunks.holds = Some(page.holds().clone());
        let mut subscriber = Subscriber {
            ring: RingReader::new(memory, page, start),
            lossy,
            first: before + skip,
            signs,
            chunks,
            elsewhere: super::Elsewhere::default(),
            sleep,
            pacer: Pacer::new(builder.wait),
            link,
            process,
            life: Life {
                gone: false,
                misses: 0,
                asked: Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                },
            },
            stats: SubscriberStats::default(),
            missed_last: 0,
            caught_up: 0,
            spun: super::Spun::default(),
            address: None,
            watched: None,
            travel: Travel::default(),
            trust: PhantomData,
        };
        subscriber.skip_older(skip)?;
        Ok(subscriber)
    }
}

impl<T: Trust> Subscriber<T> {
    /// Releases what is older than it has asked for: all of it was there when it joined.
    fn skip_older(&mut self, messages: u64) -> Result<(), Error> {
        if self.lossy.is_some() {
            // It looks at the sequence of what it finds, at some messages each time. What it finds in the end it keeps, whether
            // that is a message or why there is none.
            for _ in 0..messages {
                let found = self.poll();
                if !matches!(found, Ok(None)) || self.may_sleep() {
                    break;
                }
            }
            return Ok(());
        }
        for skipped in 0..messages {
            if !matches!(self.poll(), Ok(Some(_))) {
                let why = format!("expected {messages} messages to skip, got {skipped}");
                return Err(Error::Welcome { why });
            }
            self.ring.release();
        }
        Ok(())
    }
}

fn unheard(error: LinkError) -> Error {
    match error {
        LinkError::Disconnected => Error::HungUp,
        error => Error::Link(error),
    }
}

/// What a subscriber brings along.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(super) mine: Shared,
    page: OwnedFd,
    pub(super) offers: Offers,
    trusts: bool,
    expects: Option<PayloadType>,
    overflow: Overflow,
    history: u64,
    attachments: u32,
}

impl Prepared {
    pub(crate) fn new<T: Trust>(builder: &SubscriberBuilder<T>) -> Result<Prepared, Error> {
        check_attachments(builder.max_attachments)?;
        let (mine, page) = Shared::create("memlane-control", page_size(), 0)?;
        let offers = Offers::new(builder.wait, T::TRUSTED)?;
        Ok(Prepared {
            mine,
            page,
            offers,
            trusts: T::TRUSTED,
            expects: builder.expects.clone(),
            overflow: builder.overflow,
            history: builder.history,
            attachments: builder.max_attachments as u32,
        })
    }

    /// Sends version and greeting, both at once, to a publisher of whatever version.
    pub(super) fn send(&self, link: &Link, deadline: Option<Instant>) -> Result<(), Error> {
        self.send_opening(link, left(deadline))?;
        Ok(self.send_greeting(link, Awaits::Welcome, left(deadline))?)
    }

    pub(crate) fn send_opening(&self, link: &Link, timeout: Duration) -> Result<(), LinkError> {
        unless_gone(link.send_timeout(&Opening { version: VERSION }, timeout))
    }

    /// What greets depends on who is to be met.
    pub(crate) fn send_greeting(
        &self,
        link: &Link,
        awaits: Awaits,
        timeout: Duration,
    ) -> Result<(), LinkError> {
        let greeting = GreetingRef {
            page: FdRef::new(&self.page),
            doorbell: self.offers.offer(),
            trusts: self.trusts,
            expects: self.expects.as_ref(),
            overflow: self.overflow,
            history: self.history,
            attachments: self.attachments,
        };
        let greets = match awaits {
            Awaits::Welcome | Awaits::Offer => PacketRef::Greeting(greeting),
            Awaits::Client(requests) => PacketRef::Server(ServerRef { greeting, requests }),
            Awaits::Server => PacketRef::Client(greeting),
            Awaits::Latest => PacketRef::Watch(greeting),
        };
        unless_gone(link.send_timeout(&greets, timeout))
    }
}

/// A publisher that hangs up before it has read everything has said why.
pub(super) fn unless_gone(sent: Result<(), LinkError>) -> Result<(), LinkError> {
    match sent {
        Err(error) if error.is_disconnected() => Ok(()),
        sent => sent,
    }
}

/// The doorbells a subscriber makes, of which the publisher chooses one.
#[derive(Debug)]
pub(super) struct Offers {
    socket: Option<(Doorbell, OwnedFd)>,
    eventfd: Option<(Doorbell, OwnedFd)>,
}

impl Offers {
    fn new(wait: WaitPolicy, trusted: bool) -> Result<Offers, Error> {
        let make = |wanted: bool, backing| {
            wanted
                .then(|| doorbells::make(backing))
                .transpose()
                .map_err(Error::os("make a doorbell"))
        };
        let sleeps = wait != WaitPolicy::Poll;
        Ok(Offers {
            socket: make(sleeps, Backing::Socket)?,
            eventfd: make(sleeps && trusted, Backing::EventFd)?,
        })
    }

    fn offer(&self) -> DoorbellOfferRef<'_> {
        DoorbellOfferRef {
            socket: self.socket.as_ref().map(|(_, end)| FdRef::new(end)),
            eventfd: self.eventfd.as_ref().map(|(_, end)| FdRef::new(end)),
        }
    }

    /// The one that the publisher will ring; the others are closed.
    pub(super) fn take(&mut self, rings: Rings) -> Result<Option<Doorbell>, Error> {
        let chosen = match rings {
            Rings::Nothing if self.socket.is_none() => return Ok(None),
            Rings::Nothing => None,
            Rings::Socket => self.socket.take(),
            Rings::EventFd => self.eventfd.take(),
        };
        match chosen {
            Some((doorbell, _)) => Ok(Some(doorbell)),
            None => Err(Error::Welcome {
                why: format!("expected one of the doorbells offered, got {rings:?}"),
            }),
        }
    }
}

/// Checks where the subscriber is to begin, before message `sequence`.
pub(super) fn check_start(start: u64, sequence: u64) -> Result<(), Error> {
    if start % 8 != 0 || start > LAST_START {
        let why = format!("expected a multiple of 8 up to 2^62 as the start, got {start}");
        return Err(Error::Welcome { why });
    }
    if sequence > start / HEADER {
        let why = format!(
            "expected at most a message for each {HEADER} bytes before the start at {start}, got {sequence}"
        );
        return Err(Error::Welcome { why });
    }
    Ok(())
}

/// Checks everything that came with a welcome.
fn examine(welcome: Welcome, quota: usize, trusted: bool) -> Result<(Remote, Option<Bell>), Error> {
    let capacity = usize::try_from(welcome.capacity).unwrap_or(usize::MAX);
    if capacity < page_size() {
        let why = format!("expected a ring of at least one page, got {capacity} bytes");
        return Err(Error::Welcome { why });
    }
    check_start(welcome.start, welcome.sequence)?;
    let memory = Remote::open(
        welcome.ring.into(),
        page_size(),
        capacity,
        quota.saturating_add(page_size()),
    )
    .map_err(|refused| {
        dispose(refused.descriptor);
        refused.error
    })?;
    let (end, backing) = match welcome.doorbell {
        PublisherDoorbell::None => return Ok((memory, None)),
        PublisherDoorbell::Socket(end) => (end, Backing::Socket),
        PublisherDoorbell::EventFd(end) if trusted => (end, Backing::EventFd),
        PublisherDoorbell::EventFd(end) => {
            drop(end);
            let why = "expected a socket as the publisher's doorbell, got an eventfd".to_owned();
            return Err(Error::Welcome { why });
        }
    };
    let ringer = Ringer::open(end.into(), backing).map_err(|wrong| {
        let WrongDoorbell { error, descriptor } = *wrong;
        dispose(descriptor);
        Error::Welcome {
            why: error.to_string(),
        }
    })?;
    Ok((memory, Some(Bell::new(ringer))))
}

use std::{
    marker::PhantomData,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use memlane_region::{Remote, Shared, page_size, pool::MAX_SEGMENTS, ring::RingReader};
use memlane_signaling::{Armed, Backing, Doorbell, Pacer, Ringer, WaitPolicy, WrongDoorbell};
use memlane_transport::{Access, Address, Error as LinkError, FdRef, Link, dispose};
use rustix::time::Timespec;

use super::{
    Life, Sleep, Subscriber, SubscriberStats, Trust,
    chunks::Chunks,
    page::Page,
    signs::Signs,
    trust::{Trusted, Untrusted},
    watch,
};
use crate::{
    Error, Payload, PayloadType, Typed, after,
    doorbells::{self, Bell},
    names::address_of,
    page::ALIVE,
    process_of,
    protocol::{
        Answer, DoorbellOfferRef, GreetingRef, LIMITS, Opening, PublisherDoorbell, Rings, VERSION,
        Welcome,
    },
};

/// Options of a [`Subscriber`].
#[derive(Clone, Debug)]
pub struct SubscriberBuilder<T: Trust = Untrusted> {
    wait: WaitPolicy,
    access: Access,
    timeout: Duration,
    liveliness: Option<Duration>,
    max_ring_bytes: usize,
    max_pool_bytes: usize,
    expects: Option<PayloadType>,
    trust: PhantomData<T>,
}

impl Default for SubscriberBuilder {
    fn default() -> SubscriberBuilder {
        SubscriberBuilder {
            wait: WaitPolicy::default(),
            access: Access::SameUser,
            timeout: Duration::from_secs(5),
            liveliness: None,
            max_ring_bytes: 1 << 30,
            max_pool_bytes: 1 << 30,
            expects: Some(PayloadType::bytes()),
            trust: PhantomData,
        }
    }
}

/// A position beyond this is nonsense: it would take centuries to get there.
const LAST_START: u64 = 1 << 62;

#[cfg(test)]
documented!(LAST_START);

impl<T: Trust> SubscriberBuilder<T> {
    /// How the subscriber waits for messages. Default: [`WaitPolicy::Adaptive`].
    pub fn wait(mut self, policy: WaitPolicy) -> SubscriberBuilder<T> {
        self.wait = policy;
        self
    }

    /// Whose service it may be. Default: [`Access::SameUser`].
    pub fn access(mut self, access: Access) -> SubscriberBuilder<T> {
        self.access = access;
        self
    }

    /// For how long to wait for the publisher's welcome. Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> SubscriberBuilder<T> {
        self.timeout = timeout;
        self
    }

    /// For how long the publisher may give no sign of life, neither a message nor
    /// [`assert_alive`](crate::Publisher::assert_alive), before [`recv`](Subscriber::recv) and
    /// [`recv_timeout`](Subscriber::recv_timeout) say so ([`Silent`](crate::RecvError::Silent)), and once more each time as
    /// much has passed. Default: for ever. A death is noticed at once in any case; this is for a publisher that hangs, or is
    /// stopped, which nobody but the user can tell from one that is slow or has nothing to say. The subscription goes on.
    ///
    /// Loops and tasks have timers of their own: see [`Subscriber::silence`].
    pub fn liveliness(mut self, limit: Duration) -> SubscriberBuilder<T> {
        self.liveliness = Some(limit);
        self
    }

    /// The largest ring it maps, in bytes. Default: 1 GiB.
    pub fn max_ring_bytes(mut self, bytes: usize) -> SubscriberBuilder<T> {
        self.max_ring_bytes = bytes;
        self
    }

    /// How much of the publisher's pool it maps at a time, in bytes. Default: 1 GiB. It has to be somewhat more than the
    /// [pool](crate::PublisherBuilder::pool_bytes), whose parts are unmapped later than given up; a message in what
    /// is over it cannot be received.
    pub fn max_pool_bytes(mut self, bytes: usize) -> SubscriberBuilder<T> {
        self.max_pool_bytes = bytes;
        self
    }

    /// Vouches for the publisher: messages are slices ([`Message`](crate::Message) derefs to `[u8]`), and it
    /// may be woken through an eventfd.
    ///
    /// # Safety
    ///
    /// The publisher's program must play by the rules: it must never write a record or a chunk again before
    /// every subscriber has released it. This crate's [`Publisher`](crate::Publisher) does so, for as long as nothing
    /// else in its process writes its memory. Nothing in this process can check or enforce it.
    ///
    /// ```
    /// # let link = memlane::Link::pair()?;
    /// # let mut publisher = memlane::Publisher::builder().unbound()?;
    /// # publisher.attach(link.0)?;
    /// // SAFETY: the publisher is this same program.
    /// let builder = unsafe { memlane::Subscriber::builder().trust_publisher() };
    /// let mut subscriber = builder.over(link.1)?;
    /// publisher.send(b"a frame")?;
    /// assert_eq!(&*subscriber.recv()?, b"a frame");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[allow(unsafe_code)]
    pub unsafe fn trust_publisher(self) -> SubscriberBuilder<Trusted> {
        SubscriberBuilder {
            wait: self.wait,
            access: self.access,
            timeout: self.timeout,
            liveliness: self.liveliness,
            max_ring_bytes: self.max_ring_bytes,
            max_pool_bytes: self.max_pool_bytes,
            expects: self.expects,
            trust: PhantomData,
        }
    }

    /// Makes it a subscriber to values ([`Typed`]), not bytes. Options come before.
    pub fn of<P: Payload>(self) -> Typed<SubscriberBuilder<T>, P> {
        Typed::<SubscriberBuilder<T>, P>::builder(self)
    }

    /// Takes the bytes of whatever the publisher carries: for recorders and the like. Default: a publisher that is
    /// [typed](crate::PublisherBuilder::of) refuses a subscriber that is not.
    pub fn any_payload(mut self) -> SubscriberBuilder<T> {
        self.expects = None;
        self
    }

    pub(crate) fn carrying(mut self, payload: PayloadType) -> SubscriberBuilder<T> {
        self.expects = Some(payload);
        self
    }

    pub(crate) fn carries(&self) -> Option<&PayloadType> {
        self.expects.as_ref()
    }

    /// Subscribes to a service of this user's.
    ///
    /// # Errors
    ///
    /// [`Error`]: nobody publishes there, or it may not be this user, or resources are short.
    pub fn connect(self, service: &str) -> Result<Subscriber<T>, Error> {
        self.connect_to(&address_of(service)?)
    }

    /// Subscribes to a service at an address of the user's choice.
    ///
    /// # Errors
    ///
    /// As [`connect`](SubscriberBuilder::connect).
    pub fn connect_to(self, address: &Address) -> Result<Subscriber<T>, Error> {
        let deadline = after(self.timeout);
        // Connected first: while the publisher wakes up for that, the rest is made (measured: 15 to 30 us sooner
        // than the other way round).
        let link = Link::connect_with(address, self.access.clone())?.with_limits(LIMITS);
        let prepared = Prepared::new(self.wait, T::TRUSTED)?;
        prepared.send(&link, self.expects.as_ref(), deadline)?;
        let process = process_of(&link).map_err(Error::os("watch the publisher's process"))?;
        let mut subscriber = self.finish(prepared, link, process, deadline)?;
        subscriber.address = Some(address.clone());
        Ok(subscriber)
    }

    /// Subscribes over a link that was made elsewhere (inherited, or [`Link::pair`]), whose other end a
    /// publisher has or gets ([`Publisher::attach`](crate::Publisher::attach)). The link is the subscriber's
    /// from now on. The publisher is gone when it hangs up, which takes every process that has its other end.
    ///
    /// # Errors
    ///
    /// As [`connect`](SubscriberBuilder::connect).
    pub fn over(self, link: Link) -> Result<Subscriber<T>, Error> {
        let link = link.with_limits(LIMITS);
        let deadline = after(self.timeout);
        let prepared = Prepared::new(self.wait, T::TRUSTED)?;
        prepared.send(&link, self.expects.as_ref(), deadline)?;
        self.finish(prepared, link, None, deadline)
    }

    /// Hears the publisher's answer.
    fn finish(
        self,
        prepared: Prepared,
        link: Link,
        process: Option<OwnedFd>,
        deadline: Option<Instant>,
    ) -> Result<Subscriber<T>, Error> {
        let Prepared {
            mine, mut offers, ..
        } = prepared;
        let waited = self.timeout;
        let silent = move |error| match error {
            LinkError::TimedOut => Error::NoAnswer { waited },
            error => Error::Link(error),
        };
        let Opening { version } = link.recv_timeout(left(deadline)).map_err(silent)?;
        if version != VERSION {
            return Err(Error::Version {
                publisher: version,
                subscriber: VERSION,
            });
        }
        let mut chunks = Chunks::new(self.max_pool_bytes);
        let mut segments = 0;
        let welcome = loop {
            let answer = link.recv_timeout::<Answer>(left(deadline));
            match answer.map_err(silent)? {
                Answer::Welcome(welcome) => break welcome,
                Answer::Segment(notice) if segments < MAX_SEGMENTS => chunks.take(notice),
                Answer::Segment(_) => {
                    let why = format!("expected notices of at most {MAX_SEGMENTS} segments");
                    return Err(Error::Welcome { why });
                }
                Answer::Refused(refusal) => {
                    return Err(Error::Refused {
                        why: refusal.to_string(),
                    });
                }
            }
            segments += 1;
        };
        let sleep = match offers.take(welcome.rings)? {
            Some(doorbell) => Some(Sleep {
                waiter: watch(&doorbell, &link, process.as_ref())
                    .map_err(Error::os("watch the publisher"))?,
                doorbell,
                armed: Armed::new(),
            }),
            None => None,
        };
        let (memory, start, ringer) = examine(welcome, self.max_ring_bytes, T::TRUSTED)?;
        let link = Arc::new(link);
        let page = Page::new(mine, ringer, memory.clone(), link.clone());
        let signs = Signs::new(self.liveliness, memory.load_word(ALIVE));
        Ok(Subscriber {
            ring: RingReader::new(memory, page, start),
            signs,
            chunks,
            sleep,
            pacer: Pacer::new(self.wait),
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
            caught_up: 0,
            address: None,
            watched: None,
            trust: PhantomData,
        })
    }
}

/// What is left of the time until a deadline; without one, all the time there is.
fn left(deadline: Option<Instant>) -> Duration {
    deadline.map_or(Duration::MAX, |deadline| {
        deadline.saturating_duration_since(Instant::now())
    })
}

/// What a subscriber brings along.
struct Prepared {
    mine: Shared,
    page: OwnedFd,
    offers: Offers,
    trusts: bool,
}

impl Prepared {
    fn new(wait: WaitPolicy, trusts: bool) -> Result<Prepared, Error> {
        let (mine, page) = Shared::create("memlane-control", page_size(), 0)?;
        let offers = Offers::new(wait, trusts)?;
        Ok(Prepared {
            mine,
            page,
            offers,
            trusts,
        })
    }

    /// Sends version and greeting, both at once, to a publisher of whatever version. One that hangs up before it
    /// has read everything has said why.
    fn send(
        &self,
        link: &Link,
        expects: Option<&PayloadType>,
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        let opening = Opening { version: VERSION };
        let greeting = GreetingRef {
            page: FdRef::new(&self.page),
            doorbell: self.offers.offer(),
            trusts: self.trusts,
            expects,
        };
        let sent = link
            .send_timeout(&opening, left(deadline))
            .and_then(|()| link.send_timeout(&greeting, left(deadline)));
        match sent {
            Err(error) if error.is_disconnected() => Ok(()),
            result => Ok(result?),
        }
    }
}

/// The doorbells a subscriber makes, of which the publisher chooses one.
struct Offers {
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
    fn take(&mut self, rings: Rings) -> Result<Option<Doorbell>, Error> {
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

/// Checks everything that came with a welcome.
fn examine(
    welcome: Welcome,
    quota: usize,
    trusted: bool,
) -> Result<(Remote, u64, Option<Bell>), Error> {
    let capacity = usize::try_from(welcome.capacity).unwrap_or(usize::MAX);
    if capacity < page_size() {
        let why = format!("expected a ring of at least one page, got {capacity} bytes");
        return Err(Error::Welcome { why });
    }
    if welcome.start % 8 != 0 || welcome.start > LAST_START {
        let why = format!(
            "expected a multiple of 8 up to 2^62 as the start, got {}",
            welcome.start
        );
        return Err(Error::Welcome { why });
    }
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
        PublisherDoorbell::None => return Ok((memory, welcome.start, None)),
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
    Ok((memory, welcome.start, Some(Bell::new(ringer))))
}

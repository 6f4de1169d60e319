use std::{
    marker::PhantomData,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use memlane_signaling::WaitPolicy;
use memlane_transport::{Access, Address, Link};

use super::{
    Meeting, Subscriber, Trust,
    handshake::{Awaits, Handshake, Prepared},
    trust::{Trusted, Untrusted},
};
use crate::{
    Connecting, Error, Overflow, Payload, PayloadType, Typed, after, names::address_of, pidfd_of,
    process_of, protocol::limits_of_subscriber,
};

/// Options of a [`Subscriber`].
#[derive(Debug)]
pub struct SubscriberBuilder<T: Trust = Untrusted> {
    pub(crate) wait: WaitPolicy,
    pub(crate) access: Access,
    pub(crate) timeout: Duration,
    pub(super) liveliness: Option<Duration>,
    pub(super) max_ring_bytes: usize,
    pub(super) max_pool_bytes: usize,
    pub(crate) expects: Option<PayloadType>,
    pub(crate) max_senders: usize,
    pub(super) membarrier: Option<u64>,
    pub(crate) overflow: Overflow,
    pub(super) history: u64,
    pub(super) max_attachments: usize,
    trust: PhantomData<T>,
}

impl<T: Trust> Clone for SubscriberBuilder<T> {
    fn clone(&self) -> SubscriberBuilder<T> {
        SubscriberBuilder {
            access: self.access.clone(),
            expects: self.expects.clone(),
            ..*self
        }
    }
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
            max_senders: 64,
            membarrier: None,
            overflow: Overflow::Block,
            history: 0,
            max_attachments: 16,
            trust: PhantomData,
        }
    }
}

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

    /// How much of the publisher's rings it maps, in bytes. Default: 1 GiB. There is one, unless others are slow and the publisher
    /// [spills](crate::PublisherBuilder::spill_bytes), or it [moves](crate::Publisher::ticket); a message in what is over this cannot be received.
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

    /// Offers to spare a publisher that [agrees](crate::PublisherBuilder::membarrier) the fence of each message (5 ns), in times
    /// when `messages` or more come between two sleeps: the subscriber then calls membarrier(2) before each sleep. Default:
    /// never.
    ///
    /// That call takes 0.4 us if no registered process runs on another core, and a few microseconds if one does (18 us between
    /// two cores of a virtual machine), which it interrupts, whoever's it is: it pays from 100 to 4000 messages for each sleep
    /// on. With 0 it is made before every sleep. If it is forbidden one day, the fence is the publisher's again.
    pub fn membarrier(mut self, messages: u64) -> SubscriberBuilder<T> {
        self.membarrier = Some(messages);
        self
    }

    /// What becomes of messages that have not been received when the publisher needs their room. Default: [`Overflow::Block`], it
    /// waits.
    ///
    /// One that is to be [dropped](Overflow::Disconnect) is so when as much is kept for it as the publisher
    /// [allows](crate::PublisherBuilder::spill_bytes), and it is in the way of the next message. The publisher may drop others, too
    /// ([`when_full`](crate::PublisherBuilder::when_full)).
    ///
    /// A subscriber that is [overwritten](Overflow::Overwrite) is never waited for, however slow it is, or stopped: it can be up to
    /// 7/8 of the publisher's ring behind without missing anything, and goes on where the publisher is once it was overtaken. Each
    /// message says how many were missed right before it; what was missed at the very end, [`stats`](Subscriber::stats) do. Short
    /// messages are copied when they are found, also those of a [trusted](SubscriberBuilder::trust_publisher) publisher, long ones
    /// are kept in the publisher's memory for as long as they are looked at: a subscriber that stops just then keeps that one, and
    /// what it [holds](crate::Message::hold).
    ///
    /// ```
    /// use memlane::{Overflow, Publisher, Subscriber};
    ///
    /// # let link = memlane::Link::pair()?;
    /// let mut publisher = Publisher::builder().ring_bytes(4096).unbound()?;
    /// # publisher.attach(link.0)?;
    /// let builder = Subscriber::builder().overflow(Overflow::Overwrite);
    /// // let mut subscriber = builder.connect("prices")?;
    /// # let mut subscriber = builder.over(link.1)?;
    /// for price in 0..1000_u64 {
    ///     publisher.send(&price.to_le_bytes())?; // waits for nobody
    /// }
    /// let message = subscriber.recv()?;
    /// assert!(message.missed() > 0);
    /// assert_eq!(message.to_vec(), message.sequence().to_le_bytes());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn overflow(mut self, overflow: Overflow) -> SubscriberBuilder<T> {
        self.overflow = overflow;
        self
    }

    /// Begins with up to so many messages that were sent before, as far as the publisher has
    /// [kept](crate::PublisherBuilder::history) them: the last ones, in order, and what comes after them, without a gap. Default: 0,
    /// with the next message. Whether there were any, [`Message::sequence`](crate::Message::sequence) tells.
    pub fn history(mut self, messages: u64) -> SubscriberBuilder<T> {
        self.history = messages;
        self
    }

    /// How many attachments of a message it takes, at most 1024. Default: 16. A publisher whose messages may have
    /// [more](crate::PublisherBuilder::max_attachments) refuses it. So many descriptor numbers should be left to this process
    /// (RLIMIT_NOFILE) beside what it keeps of earlier messages: where they are not, the message's
    /// [attachments](crate::Message::take_attachments) are an error that says so, and the lane ends with what has been sent by
    /// then.
    pub fn max_attachments(mut self, attachments: usize) -> SubscriberBuilder<T> {
        self.max_attachments = attachments;
        self
    }

    /// Vouches for the publisher: messages are slices ([`Message`](crate::Message) derefs to `[u8]`), it
    /// may be woken through an eventfd, and links in its [values](crate::Encoded) are taken as such.
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
            max_senders: self.max_senders,
            membarrier: self.membarrier,
            overflow: self.overflow,
            history: self.history,
            max_attachments: self.max_attachments,
            trust: PhantomData,
        }
    }

    /// Of a [`Receiver`](crate::Receiver): how many senders there may be at a time; more are refused. Default: 64. Each costs this
    /// process four descriptors, a page, and its ring.
    pub fn max_senders(mut self, senders: usize) -> SubscriberBuilder<T> {
        self.max_senders = senders;
        self
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
        let link = Link::connect_with(address, self.access.clone())?
            .with_limits(limits_of_subscriber(self.max_attachments))
            .lingering();
        let prepared = Prepared::new(&self)?;
        prepared.send(&link, deadline)?;
        let process = process_of(&link).map_err(Error::os("watch the publisher's process"))?;
        let handshake = Handshake::new(self, prepared, Arc::new(link), process);
        let mut subscriber = handshake.complete(deadline)?;
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
        self.over_with(link, None)
    }

    /// [`over`](SubscriberBuilder::over), for a link whose other end a known process has: the publisher is gone when that
    /// process has ended, too, whoever else holds the link then (its own children, say). The pidfd is duplicated: it
    /// may be a child's ([`Process`](crate::Process)), or a [`Peer`](crate::Peer)'s.
    ///
    /// ```no_run
    /// use memlane::{Command, Subscriber};
    ///
    /// let child = Command::new("camera").spawn()?;
    /// let mut frames = Subscriber::builder().over_process(child.link, &child.process)?;
    /// println!("{} bytes", frames.recv()?.len());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`connect`](SubscriberBuilder::connect); [`Error::Os`] if it is no pidfd.
    pub fn over_process(self, link: Link, process: impl AsFd) -> Result<Subscriber<T>, Error> {
        self.over_with(link, Some(pidfd_of(process)?))
    }

    fn over_with(self, link: Link, process: Option<OwnedFd>) -> Result<Subscriber<T>, Error> {
        let limits = limits_of_subscriber(self.max_attachments);
        let link = link.with_limits(limits).lingering();
        let deadline = after(self.timeout);
        let prepared = Prepared::new(&self)?;
        prepared.send(&link, deadline)?;
        Handshake::new(self, prepared, Arc::new(link), process).complete(deadline)
    }

    /// Begins to subscribe to a service of this user's, without waiting: for loops and tasks.
    ///
    /// # Errors
    ///
    /// As [`connect`](SubscriberBuilder::connect), as far as that is known at once.
    pub fn begin(self, service: &str) -> Result<Connecting<Subscriber<T>>, Error> {
        self.begin_at(&address_of(service)?)
    }

    /// Begins to subscribe to a service at an address of the user's choice, without waiting.
    ///
    /// # Errors
    ///
    /// As [`begin`](SubscriberBuilder::begin).
    pub fn begin_at(self, address: &Address) -> Result<Connecting<Subscriber<T>>, Error> {
        Meeting::to(self, address, Awaits::Welcome).map(Connecting::new)
    }

    /// Begins to subscribe over a link that was made elsewhere, as [`over`](SubscriberBuilder::over) does, without waiting.
    ///
    /// # Errors
    ///
    /// As [`begin`](SubscriberBuilder::begin).
    pub fn begin_over(self, link: Link) -> Result<Connecting<Subscriber<T>>, Error> {
        Meeting::over(self, link, None, Awaits::Welcome).map(Connecting::new)
    }
}

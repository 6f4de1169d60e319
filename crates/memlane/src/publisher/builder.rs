use std::time::Duration;

use memlane_region::{
    Options, Shared, page_size,
    pool::{Pool, PoolOptions},
    ring::{RingWriter, max_payload},
};
use memlane_signaling::{Pacer, WaitPolicy};
use memlane_transport::{Access, Address};

use super::{
    Publisher, PublisherStats,
    attachments::Attach,
    control::{Pattern, Terms},
    hosted::Hosted,
    lagging::{Ask, Decision, Laggards, Lagging, WhenFull},
    spill::Spill,
};
use crate::{
    Error, Payload, PayloadType, Typed, names::address_of, page::LAPS, protocol::check_attachments,
};

/// Messages of up to so many bytes go into the ring, if it takes them; of a ring of more than 512 KiB, those of up to an
/// eighth.
const INLINE: usize = 64 << 10;

/// Options of a [`Publisher`].
#[derive(Clone, Debug)]
pub struct PublisherBuilder {
    pub(super) ring_bytes: usize,
    spill_bytes: usize,
    when_full: WhenFull,
    ask: Option<Ask>,
    pub(super) history: usize,
    pool_bytes: usize,
    max_message: Option<usize>,
    zero: bool,
    memory: Options,
    pub(super) max_subscribers: usize,
    pub(super) wait: WaitPolicy,
    pub(super) trust: bool,
    pub(crate) access: Access,
    pub(super) driven: bool,
    pub(super) carries: PayloadType,
    membarrier: bool,
    pub(super) max_attachments: usize,
    attachments_in_flight: usize,
    pub(crate) timeout: Duration,
}

impl Default for PublisherBuilder {
    fn default() -> PublisherBuilder {
        PublisherBuilder {
            ring_bytes: 1 << 20,
            spill_bytes: 0,
            when_full: WhenFull::AsAsked,
            ask: None,
            history: 0,
            pool_bytes: 64 << 20,
            max_message: None,
            zero: false,
            memory: Options::new("memlane"),
            max_subscribers: 64,
            wait: WaitPolicy::default(),
            trust: false,
            access: Access::SameUser,
            driven: false,
            carries: PayloadType::bytes(),
            membarrier: false,
            max_attachments: 16,
            attachments_in_flight: 128,
            timeout: Duration::from_secs(5),
        }
    }
}

impl PublisherBuilder {
    /// Size of the ring, in bytes: a power of two, at least one page. Default: 1 MiB. All of it is allocated
    /// when the publisher is made. Messages of up to an eighth of it, or 64 KiB if that is more, are written into the
    /// ring, if they fit; longer ones into the [pool](PublisherBuilder::pool_bytes).
    pub fn ring_bytes(mut self, bytes: usize) -> PublisherBuilder {
        self.ring_bytes = bytes;
        self
    }

    /// How much is kept for a subscriber that is slow, beyond the ring, before it is in anybody's way, in bytes: from 1 to 62 times
    /// [`ring_bytes`](PublisherBuilder::ring_bytes). Default: 0, the publisher waits for it once the ring is full.
    ///
    /// A publisher that may spill leaves a full ring to those who have not read it, and goes on in another: memory is made when
    /// that is needed, in rings of [`ring_bytes`](PublisherBuilder::ring_bytes), as many as are in this. What is kept for one is kept for all, so
    /// that it is as much as the slowest one may have, and a free ring, however many are slow. Free ones are used in turn, and given
    /// back when a subscriber leaves, or by [`Publisher::trim`]. There are 64 rings at most, those that are kept for subscribers that
    /// were dropped and have not noticed included: beyond that, whoever is slow is waited for. Long messages are in the pool: one that waits for
    /// [that](PublisherBuilder::pool_bytes) waits for the slow, too.
    ///
    /// ```
    /// # let links = [memlane::Link::pair()?, memlane::Link::pair()?];
    /// use memlane::{Publisher, Subscriber};
    ///
    /// let mut publisher = Publisher::builder().ring_bytes(4096).spill_bytes(1 << 16).unbound()?;
    /// # let [mut fast, mut slow] = links.map(|(here, there)| {
    /// #     publisher.attach(here).unwrap();
    /// #     Subscriber::builder().over(there).unwrap()
    /// # });
    /// for number in 0..1000_u64 {
    ///     publisher.send(&number.to_le_bytes())?; // the slow one has read nothing yet
    ///     assert_eq!(fast.recv()?.to_vec(), number.to_le_bytes());
    /// }
    /// assert_eq!(slow.recv()?.to_vec(), 0_u64.to_le_bytes());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn spill_bytes(mut self, bytes: usize) -> PublisherBuilder {
        self.spill_bytes = bytes;
        self
    }

    /// What becomes of a subscriber that is in the way of a message, once as much is kept for it as
    /// [may be](PublisherBuilder::spill_bytes). Default: what it has asked for ([`WhenFull::AsAsked`]).
    ///
    /// One that is dropped is told why. What it has begun to read, up to a ring, and the long messages that this names, are left to
    /// it until its process has taken notice, or ended: until then it keeps its place among the
    /// [subscribers](PublisherBuilder::max_subscribers), and as much memory, which counts in no limit (of the pool, as
    /// much as [its limit](PublisherBuilder::pool_bytes) once more, however many are dropped).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # let link = memlane::Link::pair()?;
    /// use memlane::{Publisher, WhenFull};
    ///
    /// let after = Duration::from_millis(10);
    /// let builder = Publisher::builder().ring_bytes(4096);
    /// let mut publisher = builder.when_full(WhenFull::Disconnect { after }).unbound()?;
    /// # publisher.attach(link.0)?;
    /// # let mut slow = memlane::Subscriber::builder().over(link.1)?;
    /// for number in 0..1000_u64 {
    ///     publisher.send(&number.to_le_bytes())?; // waits for at most as long, once
    /// }
    /// let mut received = 0;
    /// let reason = loop {
    ///     match slow.recv() {
    ///         Ok(_) => received += 1,
    ///         Err(error) => break error,
    ///     }
    /// };
    /// assert!(received > 0);
    /// println!("{reason}"); // the publisher has dropped this subscriber: it was too slow: ...
    /// # assert!(reason.to_string().contains("it was too slow"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn when_full(mut self, when_full: WhenFull) -> PublisherBuilder {
        self.when_full = when_full;
        self
    }

    /// Decides about each subscriber that is in the way, in place of [`when_full`](PublisherBuilder::when_full) and of what it
    /// has asked for. It is called on the publisher's own thread, when a message finds no room, and every 10 ms or so while that is waited
    /// for; never while there is room. Clones of this builder share it, and only one of their publishers calls it at a time: it must not
    /// send on one of them.
    ///
    /// ```
    /// use memlane::{Decision, Publisher};
    /// # let the_recorder = Some(1);
    ///
    /// let builder = Publisher::builder().spill_bytes(16 << 20).on_lagging(move |lagging| {
    ///     if lagging.pid == the_recorder {
    ///         Decision::Spill // and wait for it, once that is used up
    ///     } else {
    ///         Decision::Disconnect
    ///     }
    /// });
    /// # builder.unbound()?;
    /// # Ok::<(), memlane::Error>(())
    /// ```
    pub fn on_lagging(
        mut self,
        decide: impl FnMut(&Lagging) -> Decision + Send + 'static,
    ) -> PublisherBuilder {
        self.ask = Some(Ask::new(decide));
        self
    }

    /// Keeps the last so many messages for subscribers who [ask](crate::SubscriberBuilder::history) for them: they begin with those, in
    /// order, and go on with what is sent then. Default: 0, everybody begins with the next message. Costs a store for each message, with
    /// and without subscribers.
    ///
    /// They are where they were sent: in seven eighths of the ring, and in the pool, as many of them as there is room for. Messages that
    /// are sent have it first: of long ones fewer are kept, down to none.
    ///
    /// ```
    /// # let link = memlane::Link::pair()?;
    /// use memlane::{Publisher, Subscriber};
    ///
    /// let mut publisher = Publisher::builder().history(3).unbound()?;
    /// for number in 0..10_u64 {
    ///     publisher.send(&number.to_le_bytes())?;
    /// }
    /// # publisher.attach(link.0)?;
    /// // let mut late = Subscriber::builder().history(2).connect("counter")?;
    /// # let mut late = Subscriber::builder().history(2).over(link.1)?;
    /// publisher.send(&10_u64.to_le_bytes())?;
    /// for number in 8..=10_u64 {
    ///     assert_eq!(late.recv()?.to_vec(), number.to_le_bytes());
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn history(mut self, messages: usize) -> PublisherBuilder {
        self.history = messages;
        self
    }

    /// How large the pool's chunks may become together, in bytes. Default: 64 MiB. Chunks are whole pages in quarter steps of
    /// powers of two (4, 8, 12, 16, 20, 24, 28, 32, 40, 48 KiB, ...). The pool begins with nothing, grows by what messages need
    /// that are too long for the ring, and gives memory back when that has not been used for a while
    /// ([`Publisher::trim`]).
    pub fn pool_bytes(mut self, bytes: usize) -> PublisherBuilder {
        self.pool_bytes = bytes;
        self
    }

    /// The longest message, in bytes, in the ring or in the pool. Default: a quarter of the pool. The pool must have room for
    /// one, and should have it for several: one being written, and those that subscribers have not released.
    pub fn max_message(mut self, bytes: usize) -> PublisherBuilder {
        self.max_message = Some(bytes);
        self
    }

    /// Zeroes the pool's memory before it is written again, so that subscribers find nothing behind a message that
    /// was not sent to them. Default: false; they can read leftovers of older messages of this publisher there.
    pub fn zero(mut self, zero: bool) -> PublisherBuilder {
        self.zero = zero;
        self
    }

    /// How ring and pool are made: huge pages, locked, dumped. Default: as [`Options`] have it. Their names are this one's,
    /// with `-ring` and `-pool`. All of it is touched when it is made.
    ///
    /// ```
    /// use memlane::{Publisher, region::{HugePages, Options}};
    ///
    /// let memory = Options::new("camera").huge_pages(HugePages::Transparent);
    /// let publisher = Publisher::builder().memory(memory).unbound()?;
    /// # Ok::<(), memlane::Error>(())
    /// ```
    pub fn memory(mut self, options: impl Into<Options>) -> PublisherBuilder {
        self.memory = options.into();
        self
    }

    /// How many subscribers there may be at a time; more are refused. Default: 64. Each costs this process up
    /// to five descriptors, six once it has moved to another process, and one page.
    pub fn max_subscribers(mut self, subscribers: usize) -> PublisherBuilder {
        self.max_subscribers = subscribers;
        self
    }

    /// How the publisher waits for room. Default: [`WaitPolicy::Adaptive`].
    pub fn wait(mut self, policy: WaitPolicy) -> PublisherBuilder {
        self.wait = policy;
        self
    }

    /// Trusts subscribers not to block this process, and wakes them through eventfds if they offer one (they
    /// do if they trust the publisher): up to a third cheaper than sockets. Whoever holds an eventfd can make
    /// a write to it block for ever. Memory stays safe either way.
    pub fn trust_subscribers(mut self) -> PublisherBuilder {
        self.trust = true;
        self
    }

    /// Who may subscribe to a bound service. Default: [`Access::SameUser`]. Others can only get to a directory of one's own
    /// choice (`$MEMLANE_DIR`, or [`Directory::at`](crate::Directory::at)): the runtime directory is closed to them.
    pub fn access(mut self, access: Access) -> PublisherBuilder {
        self.access = access;
        self
    }

    /// Leaves control work to the user's own loop, which calls [`Publisher::drive`] whenever
    /// [`Publisher::control_fd`] is readable. No thread is started then. Default: one control thread for all publishers of
    /// the process.
    pub fn driven(mut self) -> PublisherBuilder {
        self.driven = true;
        self
    }

    /// How many attachments a message may have, at most 1024. Default: 16. Subscribers that take
    /// [fewer](crate::SubscriberBuilder::max_attachments) are refused.
    pub fn max_attachments(mut self, attachments: usize) -> PublisherBuilder {
        self.max_attachments = attachments;
        self
    }

    /// How many attachments may be on their way to a subscriber that has not received their messages. Default: 128. A message
    /// for which there are too many waits, as one does for room in the ring; one that has more than this goes by itself. In no
    /// case are those of more than 64 messages on their way.
    ///
    /// The kernel counts the descriptors on their way of all processes of a *user*, and takes no more once they are more than
    /// the sender's RLIMIT_NOFILE: messages with attachments wait then until others are taken.
    ///
    /// What is decided about those who are slow ([`when_full`](PublisherBuilder::when_full), [`Overflow`](crate::Overflow)) is about
    /// room for messages: whoever takes no attachments is waited for, unless it is overwritten, whose messages come without.
    pub fn attachments_in_flight(mut self, descriptors: usize) -> PublisherBuilder {
        self.attachments_in_flight = descriptors;
        self
    }

    /// Makes it a publisher of values ([`Typed`]), not bytes. Options come before.
    ///
    /// ```
    /// use memlane::{Plain, Publisher};
    ///
    /// let mut publisher = Publisher::builder().of::<Plain<u64>>().unbound()?;
    /// publisher.send(&42)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn of<P: Payload>(self) -> Typed<PublisherBuilder, P> {
        Typed::<PublisherBuilder, P>::builder(self)
    }

    pub(crate) fn carrying(mut self, payload: PayloadType) -> PublisherBuilder {
        self.carries = payload;
        self
    }

    pub(crate) fn carries(&self) -> &PayloadType {
        &self.carries
    }

    /// Spares the fence of each message (5 ns; or of each batch) towards subscribers that offer to pay for it instead, when they
    /// go to sleep ([`SubscriberBuilder::membarrier`](crate::SubscriberBuilder::membarrier)): for streams of
    /// millions a second. Default: a fence for each message, unless all subscribers poll. Where the kernel or a seccomp filter
    /// has no membarrier(2), it stays at that.
    ///
    /// The process is registered for it for good: any process of the machine, of whatever user, can then interrupt its
    /// running threads, for a microsecond at a time (some more in a virtual machine), as often as it likes.
    pub fn membarrier(mut self) -> PublisherBuilder {
        self.membarrier = true;
        self
    }

    /// Binds a service by name: see [`Directory::current`](crate::Directory::current) for where its socket is.
    ///
    /// # Errors
    ///
    /// [`Error`]: the name is taken or none, or resources are short.
    pub fn bind(self, service: &str) -> Result<Publisher, Error> {
        self.bind_to(&address_of(service)?)
    }

    /// Binds a service at an address of the user's choice.
    ///
    /// # Errors
    ///
    /// [`Error`]: the address is taken, or resources are short.
    pub fn bind_to(self, address: &Address) -> Result<Publisher, Error> {
        let access = self.access.clone();
        // Made first: who connects finds everything ready.
        let publisher = self.unbound()?;
        publisher.control.bind(address, access)?;
        Ok(publisher)
    }

    /// For how long [`connect`](PublisherBuilder::connect) waits for the receiver's answer, and
    /// [`arrive`](PublisherBuilder::arrive) for the other publisher to depart. Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> PublisherBuilder {
        self.timeout = timeout;
        self
    }

    /// Makes a publisher without an address: subscribers come over links given to it
    /// ([`Publisher::attach`]).
    ///
    /// # Errors
    ///
    /// [`Error`], when an option is impossible or resources are short.
    pub fn unbound(self) -> Result<Publisher, Error> {
        self.made(None)
    }

    /// One that begins with nothing, or, where another stops, with a first ring of this id.
    pub(super) fn made(self, home: Option<u32>) -> Result<Publisher, Error> {
        let bytes = self.ring_bytes;
        if !bytes.is_power_of_two() || bytes < page_size() {
            let page = page_size();
            let why = format!("expected a power of two from {page} on, got {bytes}");
            return Err(Error::Option {
                what: "ring_bytes",
                why,
            });
        }
        check_attachments(self.max_attachments)?;
        let max_message = self.max_message.unwrap_or(self.pool_bytes / 4);
        let options = PoolOptions::new(self.pool_bytes)
            .max_loan(max_message)
            .memory(self.memory.with_suffix("-pool"))
            .zero(self.zero);
        let pool = Pool::new(options).map_err(|error| Error::Option {
            what: "pool_bytes and max_message",
            why: error.to_string(),
        })?;
        let options = self.memory.with_suffix("-ring").prefault(true);
        let spill = Spill::new(options.clone(), bytes, self.spill_bytes)?;
        let (memory, ring) = Shared::create(options, page_size(), bytes)?;
        let mut writer = RingWriter::with_laps(memory, LAPS);
        match home {
            Some(home) => writer = writer.numbered(home),
            None if self.history > 0 => writer.keep(self.history),
            None => {}
        }
        let roster = writer.roster().clone();
        let terms = Terms {
            ring,
            home: writer.home(),
            capacity: self.ring_bytes as u64,
            trust: self.trust,
            sleeps: self.wait != WaitPolicy::Poll,
            registered: self.membarrier && memlane_signaling::register(),
            max_subscribers: self.max_subscribers,
            waits: self.when_full == WhenFull::AsAsked && self.ask.is_none(),
            carries: self.carries,
            pattern: Pattern::Lane,
            max_attachments: self.max_attachments,
            attachments_in_flight: self.attachments_in_flight,
        };
        Ok(Publisher {
            inline_end: 1 + max_payload(bytes as u64)
                .min(INLINE.max(bytes / 8))
                .min(max_message),
            to_receiver: false,
            ended: false,
            trim_at: super::TRIM_EVERY,
            writer,
            pool,
            spill,
            laggards: Laggards::new(self.when_full, self.ask),
            sleepers: false,
            fences: false,
            wanting: false,
            watched: false,
            batch: None,
            wakes: None,
            wakes_loans: false,
            short: false,
            attach: Attach::default(),
            alive: 0,
            pacer: Pacer::new(self.wait),
            stats: PublisherStats::default(),
            control: Hosted::new(terms, roster, self.driven)?,
        })
    }
}

mod arrival;
mod arriving;
mod attachments;
mod builder;
mod commit;
mod control;
mod future;
mod handshake;
mod hosted;
mod lagging;
mod leaving;
mod moving;
mod offering;
mod paired;
mod passage;
mod peer;
mod reservation;
mod room;
mod sending;
mod short;
#[cfg(feature = "stream")]
mod sink;
mod spill;
mod state;
mod telling;
mod told;
mod travel;
mod wakes;
mod watch;

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use memlane_region::{Shared, pool::Pool, ring::RingWriter};
use memlane_signaling::{Pacer, WaitPolicy};
use memlane_transport::Link;

use attachments::Attach;
pub use builder::PublisherBuilder;
pub(crate) use control::Control;
use hosted::Hosted;
use lagging::Laggards;
pub use lagging::{Decision, Lagging, WhenFull};
use peer::Peer;
pub use reservation::Reservation;
use room::{Need, NoRoomInTime};
#[cfg(feature = "stream")]
pub use sink::Sending;
use spill::Spill;
pub use travel::{PublisherStays, PublisherTicket};
use wakes::Wakes;
pub use watch::{TooLong, WatchSender, WatchSenderBuilder};

use crate::{
    Error, NOW, after,
    page::ALIVE,
    pidfd_of,
    watched::{Watch, polls},
};

/// The writing end of a lane: sends messages to every subscriber.
///
/// Messages are bytes, of any length up to [`max_message`](Publisher::max_message), copied in
/// ([`send`](Publisher::send)) or written in place ([`reserve`](Publisher::reserve)). A message goes to those
/// who are subscribed when it is committed, in order, and is lost to nobody who does not
/// [ask for that](crate::SubscriberBuilder::overflow); with no subscribers it goes nowhere, at once.
///
/// Dropping the publisher closes the service and hangs up: [`close`](Publisher::close). Subscribers still receive what was
/// committed.
///
/// ```
/// # let link = memlane::Link::pair()?;
/// # let mut publisher = memlane::Publisher::builder().unbound()?;
/// # publisher.attach(link.0)?;
/// # let mut subscriber = memlane::Subscriber::builder().over(link.1)?;
/// // let mut publisher = Publisher::bind("camera")?;
/// let mut frame = publisher.reserve(640 * 480)?;
/// frame.fill(0x80);
/// frame.commit();
/// assert_eq!(subscriber.recv()?.len(), 640 * 480);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Publisher {
    /// Before everything else: what it tells subscribers at the end comes first.
    control: Hosted,
    writer: RingWriter<Shared, Peer>,
    pool: Pool,
    spill: Spill,
    laggards: Laggards,
    /// Messages shorter than this are written into the ring.
    inline_end: usize,
    /// Loans until the pool is looked through for what has been quiet.
    trim_at: u32,
    /// It has connected to a receiver, and whether that has gone.
    to_receiver: bool,
    ended: bool,
    /// Whether any subscriber may be asleep, so that commits must look.
    sleepers: bool,
    /// Whether any of those leaves the barrier to this side, so that there must be a full fence before that look.
    fences: bool,
    /// Whether subscribers are shown what it wants.
    wanting: bool,
    /// Whether calls that find no room see to it that the descriptor becomes readable.
    watched: bool,
    /// Inside of a batch, and whether it has a message.
    batch: Option<bool>,
    /// What wakes it, once it has waited or is watched, and whether dropped loans do.
    wakes: Option<Arc<Wakes>>,
    wakes_loans: bool,
    /// There was no descriptor for that, the last time.
    short: bool,
    attach: Attach,
    /// Signs of life that it has given.
    alive: u64,
    pacer: Pacer,
    stats: PublisherStats,
}

/// What a publisher has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherStats {
    /// Messages committed.
    pub messages: u64,
    /// Times a message had to wait for room.
    pub stalls: u64,
    /// Times room was made while such a wait spun: no sleep, and no ring by the subscriber.
    pub spins: u64,
    /// Times such a wait went to sleep.
    pub sleeps: u64,
    /// Times such a sleep ended for less room than was needed, or none.
    pub spurious: u64,
    /// Times a sleeping subscriber was rung: one system call each.
    pub rings: u64,
    /// Times it left a full ring to subscribers that are slow, and went on in another
    /// ([`PublisherBuilder::spill_bytes`]).
    pub spills: u64,
    /// Subscribers dropped: what they wrote made no sense, they have left too many notices of the pool unread, or they were too
    /// slow. They are told ([`Reason::Evicted`](crate::Reason::Evicted)).
    pub evicted: u64,
    /// Those of them that were too slow ([`PublisherBuilder::when_full`]).
    pub too_slow: u64,
    /// Subscribers that left, or died.
    pub left: u64,
    /// Subscribers whose place another has taken ([`Subscriber::ticket`](crate::Subscriber::ticket)).
    pub moved: u64,
    /// Clients that did not become subscribers: not admitted ([`PublisherBuilder::access`]), one too many, or of another
    /// version. Each was told why.
    pub refused: u64,
}

/// So many loans between two looks for memory that has been quiet.
const TRIM_EVERY: u32 = 4096;

impl Publisher {
    /// Binds a service of this user's and publishes on it, with the options of [`PublisherBuilder`].
    ///
    /// # Errors
    ///
    /// [`Error`]: the name is taken or none, or resources are short.
    pub fn bind(service: &str) -> Result<Publisher, Error> {
        Publisher::builder().bind(service)
    }

    /// Connects to a queue of this user's ([`Receiver`](crate::Receiver)), with the options of [`PublisherBuilder`]: a
    /// [`Sender`](crate::Sender).
    ///
    /// # Errors
    ///
    /// [`Error`]: nobody receives there, or it may not be this user, or resources are short.
    pub fn connect(service: &str) -> Result<Publisher, Error> {
        Publisher::builder().connect(service)
    }

    /// Options, all with defaults.
    pub fn builder() -> PublisherBuilder {
        PublisherBuilder::default()
    }

    /// Gives memory of the pool back that nobody has, and that has not been used for `quiet`, as far as calls of this
    /// could tell; how many bytes that was. A publisher that goes on sending long messages does so by itself, after 10 s
    /// or more; one that does not should call this every now and then. Memory goes back in segments of several chunks, none
    /// of which is in use. Rings that were left to slow subscribers ([`PublisherBuilder::spill_bytes`]), and that nobody reads
    /// any more, go with it. Subscribers unmap it when they next wait for a message.
    pub fn trim(&mut self, quiet: Duration) -> usize {
        let now = Instant::now();
        let mut given = self.pool.trim(now, quiet, &mut self.writer);
        self.control.announce(&mut self.pool);
        given += self.trim_rings(now, quiet);
        self.trim_at = TRIM_EVERY;
        given
    }

    /// How much memory the rings have now, in bytes: those that were left to slow subscribers included, and what is kept to
    /// be used next.
    pub fn ring_bytes(&self) -> usize {
        self.writer.rings() * self.spill.ring_bytes()
    }

    /// How much memory the pool has now, in bytes.
    pub fn pool_bytes(&self) -> usize {
        self.pool.bytes()
    }

    /// The longest message, in bytes ([`PublisherBuilder::max_message`]).
    pub fn max_message(&self) -> usize {
        self.pool.max_loan()
    }

    /// Waits until every subscriber has received, and released, all that was sent, no longer than `timeout`; whether they
    /// have. One that leaves or dies is not waited for, nor is one that is [overwritten](crate::Overflow::Overwrite). A subscriber says what it has released, at the latest, when it looks for
    /// the next message: one that never does so may be waited for in vain.
    ///
    /// Nothing is lost without it: subscribers receive what was committed after the publisher is gone, too. It is for who
    /// wants to know.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if waiting fails in the kernel (short of memory).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # let link = memlane::Link::pair()?;
    /// # let mut publisher = memlane::Publisher::builder().unbound()?;
    /// # publisher.attach(link.0)?;
    /// # let mut subscriber = memlane::Subscriber::builder().over(link.1)?;
    /// publisher.send(b"the last frame")?;
    /// # drop(subscriber.recv()?);
    /// if !publisher.drain(Duration::from_secs(1))? {
    ///     eprintln!("somebody is slow, and will read the rest later");
    /// }
    /// publisher.close();
    /// # assert!(matches!(
    /// #     subscriber.recv(),
    /// #     Err(memlane::RecvError::Disconnected { reason: memlane::Reason::Closed })
    /// # ));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn drain(&mut self, timeout: Duration) -> Result<bool, Error> {
        match self.room(Need::Drained, after(timeout)) {
            Ok(()) => Ok(true),
            Err(NoRoomInTime::Wait(error)) => Err(Error::os("wait for subscribers")(error)),
            Err(_) => Ok(false),
        }
    }

    /// Closes the service, hangs up on all subscribers, and tells them that this was in order: they receive what was
    /// committed, and then [`Disconnected`](crate::RecvError::Disconnected) with [`Reason::Closed`](crate::Reason::Closed).
    /// It waits for nobody.
    ///
    /// Dropping the publisher does the same; a thread that panics meanwhile says so
    /// ([`Reason::Panicked`](crate::Reason::Panicked)).
    pub fn close(self) {}

    /// How many attachments a message may have ([`PublisherBuilder::max_attachments`]).
    pub fn max_attachments(&self) -> usize {
        self.control.max_attachments()
    }

    /// How many subscribers there are. By the next line there may be more, or fewer.
    pub fn subscribers(&self) -> usize {
        self.control.subscribers()
    }

    /// Waits until there are at least `count` subscribers.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if there can never be so many; [`Error::Os`], only from a publisher that is
    /// [driven](PublisherBuilder::driven) and here drives itself.
    pub fn wait_for_subscribers(&self, count: usize) -> Result<(), Error> {
        self.wait_for(count, None).map(drop)
    }

    /// Waits until there are at least `count` subscribers, no longer than `timeout`; whether there are.
    ///
    /// # Errors
    ///
    /// As [`wait_for_subscribers`](Publisher::wait_for_subscribers).
    pub fn wait_for_subscribers_timeout(
        &self,
        count: usize,
        timeout: Duration,
    ) -> Result<bool, Error> {
        self.wait_for(count, after(timeout))
    }

    /// Takes a link that was made elsewhere (inherited, or [`Link::pair`]); the process at its other end
    /// subscribes with [`SubscriberBuilder::over`](crate::SubscriberBuilder::over). The link is the
    /// publisher's from now on, and closed when either side goes.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if it cannot be watched; it is closed then.
    pub fn attach(&self, link: Link) -> Result<(), Error> {
        self.control.attach(link, None)
    }

    /// [`attach`](Publisher::attach), for a link whose other end a known process has: its subscriber is gone when that
    /// process has ended, too, whoever else holds the link then (its own children, say). The pidfd is duplicated: it
    /// may be a child's ([`Process`](crate::Process)), or a [`Peer`](crate::Peer)'s.
    ///
    /// ```no_run
    /// # let publisher = memlane::Publisher::builder().unbound()?;
    /// let child = memlane::Command::new("viewer").spawn()?;
    /// publisher.attach_process(child.link, &child.process)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if it is no pidfd, or cannot be watched; the link is closed then.
    pub fn attach_process(&self, link: Link, process: impl AsFd) -> Result<(), Error> {
        self.control.attach(link, Some(pidfd_of(process)?))
    }

    /// Does what control work there is (accept, shake hands, bury), without waiting: for a publisher that is
    /// [driven](PublisherBuilder::driven), when its [`control_fd`](Publisher::control_fd) is readable. Others have a thread
    /// for it, and nothing to do here, unless they are [`Watched`](crate::Watched): then this is what makes the descriptor
    /// unreadable again.
    ///
    /// # Errors
    ///
    /// [`Error::Os`].
    pub fn drive(&self) -> Result<(), Error> {
        let driven = match &self.wakes {
            Some(wakes) if self.watched => self.control.take_wakes(wakes, Some(&NOW)),
            _ => self.control.drive_if_driven(),
        };
        driven.map_err(Error::os("look for control events"))
    }

    /// Readable when there is control work, for a publisher that is [driven](PublisherBuilder::driven); none for
    /// one that has a thread for it. It stays the publisher's.
    pub fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        self.control.fd()
    }

    /// Gives a sign of life, without a message, to subscribers that wait for one
    /// ([`SubscriberBuilder::liveliness`](crate::SubscriberBuilder::liveliness)). Costs one store. Nobody is woken for it:
    /// a subscriber looks when the time it allows has passed.
    pub fn assert_alive(&mut self) {
        self.alive += 1;
        let word = self.writer.memory().word(ALIVE);
        word.store(self.alive, Ordering::Relaxed);
    }

    /// Whether there is a fence for each message, or batch: some subscriber may sleep, and leaves it to this side
    /// ([`PublisherBuilder::membarrier`]). As of the last message.
    pub fn fences(&self) -> bool {
        self.fences
    }

    /// What it has done so far.
    pub fn stats(&self) -> PublisherStats {
        PublisherStats {
            evicted: self.control.evicted() + self.stats.too_slow,
            left: self.control.left(),
            moved: self.control.moved(),
            refused: self.control.refused(),
            ..self.stats
        }
    }
}

impl Watch for Publisher {
    fn watch(&mut self) -> Result<(), Error> {
        if self.pacer.policy() == WaitPolicy::Poll {
            return Err(polls());
        }
        // All that it takes, so that no call has to say later that it cannot tell when there is room.
        self.watch_loans()
            .and_then(|()| self.wakes()?.set_alarm(None))
            .map_err(Error::os("watch for what wakes the publisher"))?;
        self.watched = true;
        Ok(())
    }

    fn unwatch(&mut self) {
        self.watched = false;
        self.forget_room();
    }

    fn descriptor(&self) -> &Arc<OwnedFd> {
        let wakes = self.wakes.as_ref();
        wakes.expect("it is watched").descriptor()
    }
}

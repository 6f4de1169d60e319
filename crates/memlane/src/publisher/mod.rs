mod builder;
mod control;
mod peer;
mod reactor;

use std::{
    io,
    ops::{Deref, DerefMut},
    os::fd::BorrowedFd,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use memlane_region::{
    Shared,
    ring::{NoRoom, RingWriter},
};
use memlane_signaling::{Pacer, WaitPolicy, remaining};
use memlane_transport::Link;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

pub use builder::PublisherBuilder;
use control::Control;
use peer::Peer;
use reactor::Reactor;

use crate::{Error, SendError, SendTimeoutError, TrySendError, after, page::WANTED};

/// The writing end of a lane: sends messages to every subscriber.
///
/// Messages are bytes, of any length up to [`max_message`](Publisher::max_message), copied in
/// ([`send`](Publisher::send)) or written in place ([`reserve`](Publisher::reserve)). A message goes to those
/// who are subscribed when it is committed, in order, and is lost to nobody; with no subscribers it goes
/// nowhere, at once.
///
/// Dropping the publisher closes the service and hangs up. Subscribers still receive what was committed.
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
    writer: RingWriter<Shared, Peer>,
    /// Whether any subscriber may be asleep, so that commits must look.
    sleepers: bool,
    pacer: Pacer,
    stats: PublisherStats,
    control: Arc<Control>,
    /// Who runs the control side: the control thread, which knows this publisher by a number, or the user.
    reactor: Option<(Arc<Reactor>, u32)>,
    /// The process that made it.
    pid: u32,
}

/// What a publisher has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherStats {
    /// Messages committed.
    pub messages: u64,
    /// Times a message had to wait for room.
    pub stalls: u64,
    /// Times such a wait went to sleep.
    pub sleeps: u64,
    /// Times a sleeping subscriber was rung: one system call each.
    pub rings: u64,
    /// Subscribers dropped because what they wrote made no sense.
    pub evicted: u64,
}

/// Why there is no room, and waiting has come to its end.
enum NoRoomInTime {
    TooLarge { max: usize },
    TimedOut,
    Wait(io::Error),
}

impl Publisher {
    /// Binds a service of this user's and publishes on it, with the options of [`PublisherBuilder`].
    ///
    /// # Errors
    ///
    /// [`Error`]: the name is taken or none, or resources are short.
    pub fn bind(service: &str) -> Result<Publisher, Error> {
        Publisher::builder().bind(service)
    }

    /// Options, all with defaults.
    pub fn builder() -> PublisherBuilder {
        PublisherBuilder::default()
    }

    /// Copies a message in and sends it; waits for as long as the slowest subscriber leaves no room.
    ///
    /// Subscribers say what they have released every eighth of the ring, and whenever they find it empty: one
    /// that has released less and looks for no further message may be waited for.
    ///
    /// # Errors
    ///
    /// [`SendError`]; the message was not sent.
    #[inline]
    pub fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        if self.writer.append(message).is_ok() {
            self.committed();
            return Ok(());
        }
        self.room(message.len(), None)
            .map_err(|error| error.of(message.len()))?;
        self.put(message);
        Ok(())
    }

    /// Copies a message in and sends it, if there is room.
    ///
    /// # Errors
    ///
    /// [`TrySendError`]; the message was not sent.
    #[inline]
    pub fn try_send(&mut self, message: &[u8]) -> Result<(), TrySendError> {
        let appended = self.writer.append(message);
        appended.map_err(|no_room| refused(no_room, message.len()))?;
        self.committed();
        Ok(())
    }

    /// Copies a message in and sends it; waits for room no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]; the message was not sent.
    pub fn send_timeout(
        &mut self,
        message: &[u8],
        timeout: Duration,
    ) -> Result<(), SendTimeoutError> {
        self.room(message.len(), after(timeout))
            .map_err(|error| error.in_time(message.len()))?;
        self.put(message);
        Ok(())
    }

    /// Makes room for a message of up to `len` bytes, to be written in place and then committed; waits for as
    /// long as the slowest subscriber leaves none.
    ///
    /// # Errors
    ///
    /// [`SendError`].
    #[inline]
    pub fn reserve(&mut self, len: usize) -> Result<Reservation<'_>, SendError> {
        if self.writer.reserve(len).is_err() {
            self.room(len, None).map_err(|error| error.of(len))?;
        }
        Ok(Reservation {
            publisher: self,
            len,
        })
    }

    /// Makes room for a message of up to `len` bytes, to be written in place, if there is any.
    ///
    /// # Errors
    ///
    /// [`TrySendError`].
    #[inline]
    pub fn try_reserve(&mut self, len: usize) -> Result<Reservation<'_>, TrySendError> {
        let reserved = self.writer.reserve(len);
        reserved.map_err(|no_room| refused(no_room, len))?;
        Ok(Reservation {
            publisher: self,
            len,
        })
    }

    /// Makes room for a message of up to `len` bytes, to be written in place; waits for it no longer than
    /// `timeout`.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`].
    pub fn reserve_timeout(
        &mut self,
        len: usize,
        timeout: Duration,
    ) -> Result<Reservation<'_>, SendTimeoutError> {
        self.room(len, after(timeout))
            .map_err(|error| error.in_time(len))?;
        Ok(Reservation {
            publisher: self,
            len,
        })
    }

    /// The longest message, in bytes: seven eighths of the ring, less 16.
    pub fn max_message(&self) -> usize {
        self.writer.max_payload()
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
        self.control
            .attach(link)
            .map_err(io::Error::from)
            .map_err(Error::os("watch the link"))
    }

    /// Does what control work there is (accept, shake hands, bury), without waiting: for a publisher that is
    /// [driven](PublisherBuilder::driven), when its [`control_fd`](Publisher::control_fd) is readable. Others have a thread
    /// for it, and nothing to do here.
    ///
    /// # Errors
    ///
    /// [`Error::Os`].
    pub fn drive(&self) -> Result<(), Error> {
        if self.reactor.is_some() {
            return Ok(());
        }
        self.control
            .drive()
            .map_err(Error::os("look for control events"))
    }

    /// Readable when there is control work, for a publisher that is [driven](PublisherBuilder::driven); none for
    /// one that has a thread for it. It stays the publisher's.
    pub fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        self.reactor.is_none().then(|| self.control.epoll())
    }

    /// What it has done so far.
    pub fn stats(&self) -> PublisherStats {
        PublisherStats {
            evicted: self.control.evicted(),
            ..self.stats
        }
    }

    #[inline(always)]
    fn put(&mut self, message: &[u8]) {
        self.writer.write(0, message);
        self.commit(message.len());
    }

    #[inline(always)]
    fn commit(&mut self, len: usize) {
        self.writer.commit(len);
        self.committed();
    }

    /// After a commit: wakes whoever sleeps.
    #[inline(always)]
    fn committed(&mut self) {
        self.stats.messages += 1;
        // Between the commit and the looks at roster and armed flags.
        self.writer.fence(self.sleepers);
        if self.writer.sync() {
            self.roster_changed();
        }
        if self.sleepers {
            for joined in self.writer.readers() {
                self.stats.rings += u64::from(joined.reader.wake());
            }
        }
    }

    #[cold]
    fn roster_changed(&mut self) {
        self.sleepers = self.writer.readers().any(|joined| joined.reader.sleeps());
        // The fence before may have been the cheap one.
        self.writer.fence(self.sleepers);
    }

    /// Waits for room: spins, then sleeps, as the policy says.
    #[cold]
    fn room(&mut self, len: usize, deadline: Option<Instant>) -> Result<(), NoRoomInTime> {
        match self.writer.reserve(len) {
            Ok(()) => return Ok(()),
            Err(NoRoom::TooLarge { max }) => return Err(NoRoomInTime::TooLarge { max }),
            Err(NoRoom::Full) => self.stats.stalls += 1,
        }
        loop {
            let Publisher { pacer, writer, .. } = &mut *self;
            if pacer.spin(|| writer.reserve(len).ok()).is_some() {
                return Ok(());
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                // One that slept until now has not looked since.
                return self.writer.reserve(len).map_err(|_| NoRoomInTime::TimedOut);
            }
            if self.pacer.policy() == WaitPolicy::Poll {
                if self.reactor.is_none() {
                    self.control.drive().map_err(NoRoomInTime::Wait)?;
                }
                continue;
            }
            let wanted = self.writer.want(len);
            self.writer
                .memory()
                .word(WANTED)
                .store(wanted, Ordering::Relaxed);
            // The last look fences before it loads the cursors, and a subscriber between its export and its look
            // at what is wanted: it sees that, or its cursor is seen here.
            let result = match self.writer.reserve(len) {
                Ok(()) => Ok(true),
                Err(_) => self.sleep(deadline).map(|()| false),
            };
            self.writer
                .memory()
                .word(WANTED)
                .store(0, Ordering::Relaxed);
            if result.map_err(NoRoomInTime::Wait)? {
                return Ok(());
            }
        }
    }

    /// Sleeps until a subscriber has made room or left, or the deadline has passed.
    fn sleep(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.stats.sleeps += 1;
        let bells: Vec<_> = self
            .writer
            .readers()
            .filter_map(|joined| Some((joined, joined.reader.doorbell()?)))
            .collect();
        let mut sources: Vec<PollFd<'_>> = bells
            .iter()
            .map(|(_, bell)| PollFd::new(bell, PollFlags::IN | PollFlags::RDHUP))
            .collect();
        let epoll = self.control.epoll();
        if self.reactor.is_none() {
            sources.push(PollFd::from_borrowed_fd(epoll, PollFlags::IN));
        }
        poll_until(&mut sources, deadline)?;
        for ((joined, bell), source) in bells.iter().zip(&sources) {
            let events = source.revents();
            if events.intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR) {
                // Its end of the doorbell is gone: it has left, and whether or not its link says so too, there
                // is nothing more to be heard of it.
                self.writer.roster().leave(joined.id);
                joined.reader.hang_up();
            } else if events.contains(PollFlags::IN) {
                bell.drain();
            }
        }
        if self.reactor.is_none() {
            self.control.drive()?;
        }
        Ok(())
    }

    fn wait_for(&self, count: usize, deadline: Option<Instant>) -> Result<bool, Error> {
        let max = self.control.max_subscribers();
        if count > max {
            let why = format!("there can be at most {max}, and {count} are waited for");
            return Err(Error::Option {
                what: "max_subscribers",
                why,
            });
        }
        if self.reactor.is_some() {
            return Ok(self.control.wait_for_subscribers(count, deadline));
        }
        loop {
            self.drive()?;
            if self.subscribers() >= count {
                return Ok(true);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
            let mut sources = [PollFd::from_borrowed_fd(
                self.control.epoll(),
                PollFlags::IN,
            )];
            poll_until(&mut sources, deadline).map_err(Error::os("wait for subscribers"))?;
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // In a forked child everything it would undo is the parent's.
        if self.pid != std::process::id() {
            return;
        }
        if let Some((reactor, id)) = &self.reactor {
            reactor.remove(*id);
        }
        self.control.close();
    }
}

/// Room for one message, to be written in place. Its bytes are what older messages left there.
///
/// Dropped without [`commit`](Reservation::commit), nothing is sent.
#[derive(Debug)]
#[must_use = "nothing is sent unless it is committed"]
pub struct Reservation<'a> {
    publisher: &'a mut Publisher,
    len: usize,
}

impl Reservation<'_> {
    /// Sends the message.
    #[inline]
    pub fn commit(self) {
        self.publisher.commit(self.len);
    }

    /// Sends the first `len` bytes as the message; the rest costs nothing.
    ///
    /// # Panics
    ///
    /// If `len` is more than was reserved.
    #[inline]
    pub fn commit_first(self, len: usize) {
        assert!(
            len <= self.len,
            "{len} bytes of a reservation of {}",
            self.len
        );
        self.publisher.commit(len);
    }
}

impl Deref for Reservation<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.publisher.writer.payload(self.len)
    }
}

impl DerefMut for Reservation<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        self.publisher.writer.payload_mut(self.len)
    }
}

fn refused(no_room: NoRoom, len: usize) -> TrySendError {
    match no_room {
        NoRoom::Full => TrySendError::Full,
        NoRoom::TooLarge { max } => TrySendError::TooLarge { len, max },
    }
}

impl NoRoomInTime {
    fn of(self, len: usize) -> SendError {
        match self {
            NoRoomInTime::TooLarge { max } => SendError::TooLarge { len, max },
            NoRoomInTime::Wait(error) => SendError::Wait(error),
            NoRoomInTime::TimedOut => unreachable!("there was no deadline"),
        }
    }

    fn in_time(self, len: usize) -> SendTimeoutError {
        match self {
            NoRoomInTime::TooLarge { max } => SendTimeoutError::TooLarge { len, max },
            NoRoomInTime::Wait(error) => SendTimeoutError::Wait(error),
            NoRoomInTime::TimedOut => SendTimeoutError::TimedOut,
        }
    }
}

/// Waits for one of the sources, for a signal, or for the deadline.
fn poll_until(sources: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    match poll(sources, deadline.map(remaining).as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

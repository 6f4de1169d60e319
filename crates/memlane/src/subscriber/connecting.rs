//! Subscribing without waiting, in a loop of the user's or in a task.

use std::{
    future::poll_fn,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::Arc,
    task::{Poll, ready},
    time::{Duration, Instant},
};

use memlane_transport::{Address, Error as LinkError, Link};
use rustix::{
    event::epoll::{self, CreateFlags, EventData, EventFlags},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

use super::{
    Subscriber, SubscriberBuilder, Trust, Untrusted,
    handshake::{Awaits, Handshake, Prepared, left},
};
use crate::{
    Async, ControlThread, Error, Readiness, after, process_of,
    protocol::{self, limits_of_subscriber},
};

/// A subscription that has begun ([`SubscriberBuilder::begin`]): nothing here waits.
///
/// In a loop of one's own it is a descriptor, which is readable when [`try_finish`](Connecting::try_finish) may get on, or the
/// [time](SubscriberBuilder::timeout) is over; level-triggered or edge-triggered. In a task it is awaited
/// ([`finish`](Connecting::finish), or with the feature `tokio`, `memlane::tokio::Subscriber::finish`). Dropped, it hangs up, and the
/// publisher has no subscriber.
///
/// ```
/// use memlane::Subscriber;
/// use rustix::event::{PollFd, PollFlags, poll};
/// # let link = memlane::Link::pair()?;
/// # let publisher = memlane::Publisher::builder().unbound()?;
/// # publisher.attach(link.0)?;
///
/// // let mut connecting = Subscriber::builder().begin("camera")?;
/// # let mut connecting = Subscriber::builder().begin_over(link.1)?;
/// let subscriber = loop {
///     if let Some(subscriber) = connecting.try_finish()? {
///         break subscriber;
///     }
///     poll(&mut [PollFd::new(&connecting, PollFlags::IN)], None)?; // and whatever else there is to wait for
/// };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Connecting<T: Trust = Untrusted> {
    builder: SubscriberBuilder<T>,
    address: Option<Address>,
    /// The process that has connected, where the link was accepted.
    accepted: Option<OwnedFd>,
    awaits: Awaits,
    /// The greeting of a client, which has come.
    client: Option<protocol::Greeting>,
    /// It came with a ticket.
    succeeds: bool,
    deadline: Option<Instant>,
    step: Step<T>,
    /// When what no descriptor tells of is tried again, and how long after that.
    again: Option<Instant>,
    pause: Duration,
    timer: OwnedFd,
    /// Watches the timer and, once there is an answer to hear, the link.
    epoll: Arc<OwnedFd>,
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
    Over,
}

#[derive(Debug)]
struct Greeting {
    link: Arc<Link>,
    prepared: Prepared,
    /// The version has been sent.
    opened: bool,
}

/// Between two attempts at what no descriptor tells of: a place in a full backlog, a lock, the kernel's bound on descriptors
/// in flight.
const SHORTEST_PAUSE: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Not this time: there is nothing to do but to wait.
struct Later;

impl<T: Trust> Connecting<T> {
    pub(super) fn to(
        builder: SubscriberBuilder<T>,
        address: &Address,
    ) -> Result<Connecting<T>, Error> {
        let mut connecting = Connecting::new(builder, Step::Connect)?;
        connecting.address = Some(address.clone());
        connecting.begin()?;
        Ok(connecting)
    }

    pub(super) fn over(builder: SubscriberBuilder<T>, link: Link) -> Result<Connecting<T>, Error> {
        let mut connecting = Connecting::new(builder, Step::Over)?;
        connecting.meet(link)?;
        connecting.begin()?;
        Ok(connecting)
    }

    /// Over a link that was accepted: the process is the publisher's, which has connected, and says who it is.
    pub(crate) fn accepted(
        builder: SubscriberBuilder<T>,
        link: Link,
        process: Option<OwnedFd>,
        awaits: Awaits,
    ) -> Result<Connecting<T>, Error> {
        let mut connecting = Connecting::new(builder, Step::Over)?;
        connecting.accepted = process;
        connecting.awaits = awaits;
        connecting.meet(link)?;
        connecting.begin()?;
        Ok(connecting)
    }

    /// Over the link of a ticket.
    pub(super) fn succeeding(
        builder: SubscriberBuilder<T>,
        link: Link,
        address: Option<Address>,
    ) -> Result<Connecting<T>, Error> {
        let mut connecting = Connecting::new(builder, Step::Over)?;
        connecting.succeeds = true;
        connecting.address = address;
        connecting.meet(link)?;
        connecting.begin()?;
        Ok(connecting)
    }

    fn new(builder: SubscriberBuilder<T>, step: Step<T>) -> Result<Connecting<T>, Error> {
        let deadline = after(builder.timeout);
        let made = || -> io::Result<_> {
            let epoll = epoll::create(CreateFlags::CLOEXEC)?;
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            epoll::add(&epoll, &timer, EventData::new_u64(0), EventFlags::IN)?;
            Ok((Arc::new(epoll), timer))
        };
        let (epoll, timer) = made().map_err(Error::os("watch a link"))?;
        Ok(Connecting {
            builder,
            address: None,
            accepted: None,
            awaits: Awaits::Welcome,
            client: None,
            succeeds: false,
            deadline,
            step,
            again: None,
            pause: SHORTEST_PAUSE,
            timer,
            epoll,
        })
    }

    /// Does what can be done at once. The answer is left for later: whoever waits before the first look is told of it.
    fn begin(&mut self) -> Result<(), Error> {
        if self.connect()?.is_ok() {
            let _ = self.greet()?;
        }
        self.set_timer()
    }

    /// Gets on as far as that takes no waiting: the subscriber, once it is one.
    ///
    /// # Errors
    ///
    /// As [`SubscriberBuilder::connect`], and [`Error::NoAnswer`] once the time is over. It is over, then; drop it.
    ///
    /// # Panics
    ///
    /// If it is over: it has failed, or has given its subscriber.
    pub fn try_finish(&mut self) -> Result<Option<Subscriber<T>>, Error> {
        assert!(
            !matches!(self.step, Step::Over),
            "a subscription that is over was asked to finish"
        );
        let result = self.advance();
        if !matches!(result, Ok(None)) {
            self.step = Step::Over;
        }
        result
    }

    /// Finishes in a task, on any executor: it is woken by memlane's control thread, as [`Async::new`] says.
    ///
    /// # Cancellation
    ///
    /// Dropped while it is pending, it hangs up.
    ///
    /// # Errors
    ///
    /// As [`try_finish`](Connecting::try_finish) and [`Async::new`].
    ///
    /// ```
    /// # let link = memlane::Link::pair()?;
    /// # let mut publisher = memlane::Publisher::builder().unbound()?;
    /// # publisher.attach(link.0)?;
    /// # async_io::block_on(async {
    /// // let mut subscriber = memlane::Subscriber::builder().begin("camera")?.finish().await?;
    /// # let mut subscriber = memlane::Subscriber::builder().begin_over(link.1)?.finish().await?;
    /// # publisher.send(b"a frame")?;
    /// println!("{} bytes", subscriber.recv().await?.len());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn finish(self) -> Result<Async<Subscriber<T>>, Error> {
        self.finish_with(ControlThread::new).await
    }

    /// Finishes in a task, which is woken by what `readiness` makes, as [`Async::with`] says: it is called twice, for the
    /// handshake and for the subscriber.
    ///
    /// # Cancellation
    ///
    /// As [`finish`](Connecting::finish).
    ///
    /// # Errors
    ///
    /// As [`try_finish`](Connecting::try_finish) and [`Async::with`].
    pub async fn finish_with<R: Readiness>(
        mut self,
        mut readiness: impl FnMut(Arc<OwnedFd>) -> io::Result<R>,
    ) -> Result<Async<Subscriber<T>, R>, Error> {
        let watch = Error::os("watch a link in a runtime");
        let mut ready = readiness(self.epoll.clone()).map_err(watch)?;
        let finished = poll_fn(|cx| {
            loop {
                if let Some(finished) = self.try_finish().transpose() {
                    return Poll::Ready(finished);
                }
                if let Err(error) = ready!(ready.poll_readable(cx)) {
                    return Poll::Ready(Err(Error::os("wait for the publisher")(error)));
                }
            }
        });
        let subscriber = finished.await?;
        drop(ready);
        Async::with(subscriber, readiness)
    }

    /// The greeting of the client whose lane of requests is finished.
    pub(crate) fn take_client(&mut self) -> Option<protocol::Greeting> {
        self.client.take()
    }

    fn advance(&mut self) -> Result<Option<Subscriber<T>>, Error> {
        // Whatever the timer was set to, this is what it was set for.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        // Looked at before what there is to hear: what has come in time counts.
        let late = self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline);
        let result = match self.connect()? {
            Ok(()) => match self.greet()? {
                Ok(()) => self.hear()?,
                Err(Later) => None,
            },
            Err(Later) => None,
        };
        if result.is_none() {
            if late {
                let waited = self.builder.timeout;
                return Err(match self.step {
                    Step::Begin(_) => Error::NotDeparted { waited },
                    _ => Error::NoAnswer { waited },
                });
            }
            self.set_timer()?;
        }
        Ok(result)
    }

    fn connect(&mut self) -> Result<Result<(), Later>, Error> {
        let (Step::Connect, Some(address)) = (&self.step, &self.address) else {
            return Ok(Ok(()));
        };
        match Link::try_connect_with(address, self.builder.access.clone()) {
            Ok(link) => self.meet(link).map(Ok),
            Err(LinkError::WouldBlock | LinkError::Locked { .. }) => Ok(Err(self.later())),
            Err(error) => Err(error.into()),
        }
    }

    fn meet(&mut self, link: Link) -> Result<(), Error> {
        let limits = limits_of_subscriber(self.builder.max_attachments);
        let link = Arc::new(link.with_limits(limits));
        self.step = Step::Greet(Box::new(Greeting {
            link,
            prepared: Prepared::new(&self.builder)?,
            opened: false,
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
        } = &mut **greeting;
        let mut sent = Ok(());
        if !*opened {
            sent = prepared.send_opening(link, Duration::ZERO);
            *opened = sent.is_ok();
        }
        let awaits = self.awaits;
        match sent.and_then(|()| prepared.send_greeting(link, awaits, Duration::ZERO)) {
            Ok(()) => {}
            Err(LinkError::TimedOut) => return Ok(Err(self.later())),
            Err(error) => return Err(error.into()),
        }
        let Step::Greet(greeting) = std::mem::replace(&mut self.step, Step::Over) else {
            unreachable!("looked at above")
        };
        let Greeting { link, prepared, .. } = *greeting;
        // Of a link that was made elsewhere, the kernel only says who made it.
        let process = match (self.accepted.take(), &self.address) {
            // The publisher has made the link of a ticket, too.
            (None, address) if address.is_some() || self.succeeds => {
                process_of(&link).map_err(Error::os("watch the publisher's process"))?
            }
            (accepted, _) => accepted,
        };
        let flags = EventFlags::IN | EventFlags::RDHUP;
        epoll::add(&*self.epoll, &*link, EventData::new_u64(1), flags)
            .map_err(|errno| Error::os("watch a link")(errno.into()))?;
        let builder = self.builder.clone();
        let handshake = Handshake::new(builder, prepared, link, process);
        let handshake = handshake.awaiting(awaits).succeeding(self.succeeds);
        self.step = Step::Hear(Box::new(handshake));
        Ok(Ok(()))
    }

    fn hear(&mut self) -> Result<Option<Subscriber<T>>, Error> {
        if let Step::Hear(handshake) = &mut self.step {
            let welcome = loop {
                match handshake.hear(Duration::ZERO) {
                    Ok(None) => {}
                    Ok(Some(welcome)) => break welcome,
                    Err(Error::Link(LinkError::TimedOut)) => return Ok(None),
                    Err(error) => return Err(error),
                }
            };
            let Step::Hear(mut handshake) = std::mem::replace(&mut self.step, Step::Over) else {
                unreachable!("looked at above")
            };
            // Before it may be closed: whoever watches may keep the epoll instance for longer.
            if !self.succeeds {
                let _ = epoll::delete(&*self.epoll, handshake.link());
            }
            self.client = handshake.take_met().map(|met| met.greeting);
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
        let _ = epoll::delete(&*self.epoll, &**subscriber.link());
        match std::mem::replace(&mut self.step, Step::Over) {
            Step::Begin(subscriber) => Ok(Some(*subscriber)),
            _ => unreachable!("looked at above"),
        }
    }

    fn later(&mut self) -> Later {
        self.again = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Later
    }

    /// Readable at the deadline, or when it is time to try again.
    fn set_timer(&mut self) -> Result<(), Error> {
        let next = self.again.take().into_iter().chain(self.deadline).min();
        let Some(next) = next else {
            return Ok(());
        };
        // Zero would stop the timer.
        let left = left(Some(next)).max(Duration::from_nanos(1));
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)
            .map(drop)
            .map_err(|errno| Error::os("set a timer")(errno.into()))
    }
}

impl<T: Trust> AsFd for Connecting<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl<T: Trust> AsRawFd for Connecting<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

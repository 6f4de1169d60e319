//! Connecting without waiting, in a loop of the user's or in a task.

use std::{
    future::poll_fn,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::Arc,
    task::{Poll, ready},
    time::{Duration, Instant},
};

use rustix::{
    event::{
        PollFd, PollFlags,
        epoll::{self, CreateFlags, EventData, EventFlags},
        poll,
    },
    io::Errno,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

use crate::{Async, ControlThread, Error, Readiness, Subscriber, left, watched::End};

/// An end that has begun to connect (`begin`, `begin_at` and `begin_over` of its builder), or to arrive where another one stops
/// (`begin_arrival` and its like): nothing here waits.
///
/// In a loop of one's own it is a descriptor, which is readable when [`try_finish`](Connecting::try_finish) may get on, or the
/// time that the builder allows is over; level-triggered or edge-triggered. In a task it is awaited
/// ([`finish`](Connecting::finish), or with the feature `tokio`, `memlane::tokio::Subscriber::finish` and its like). Dropped, it
/// hangs up, and nobody has connected.
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
pub struct Connecting<E: Connects = Subscriber> {
    /// None once it is over.
    begun: Option<E::Begun>,
    descriptor: Arc<OwnedFd>,
}

/// An end that connects: a [`Subscriber`], a [`Sender`](crate::Sender), a [`Client`](crate::Client) or a
/// [`WatchReceiver`](crate::WatchReceiver); or that arrives where another one stops: a [`Publisher`](crate::Publisher), a
/// [`Receiver`](crate::Receiver) or [`Subscriptions`](crate::Subscriptions), too.
pub trait Connects: End + Sized {
    /// One on its way.
    #[doc(hidden)]
    type Begun: Begun<End = Self>;
}

/// What an end does to connect.
pub trait Begun {
    type End;

    /// Gets on as far as that takes no waiting: the end, once it is there.
    fn advance(&mut self) -> Result<Option<Self::End>, Error>;

    /// Readable when it may get on; always the same.
    fn descriptor(&self) -> &Arc<OwnedFd>;
}

impl<E: Connects> Connecting<E> {
    pub(crate) fn new(begun: E::Begun) -> Connecting<E> {
        let descriptor = begun.descriptor().clone();
        let begun = Some(begun);
        Connecting { begun, descriptor }
    }

    /// Gets on as far as that takes no waiting: the end, once it has connected.
    ///
    /// # Errors
    ///
    /// As the builder's `connect`, or `arrive`; [`Error::NoAnswer`], [`Error::NoReceiver`], [`Error::NoServer`] or
    /// [`Error::NotDeparted`] once the time is over. It is over, then; drop it.
    ///
    /// # Panics
    ///
    /// If it is over: it has failed, or has given its end.
    pub fn try_finish(&mut self) -> Result<Option<E>, Error> {
        let begun = self.begun.as_mut();
        let begun = begun.expect("expected one that is not over, got one that has finished");
        let result = begun.advance();
        if !matches!(result, Ok(None)) {
            self.begun = None;
        }
        result
    }

    /// Finishes on this thread, and waits.
    ///
    /// # Errors
    ///
    /// As [`try_finish`](Connecting::try_finish).
    pub(crate) fn wait(mut self) -> Result<E, Error> {
        loop {
            if let Some(end) = self.try_finish()? {
                return Ok(end);
            }
            match poll(&mut [PollFd::new(&self, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::os("wait for the other end")(errno.into())),
            }
        }
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
    pub async fn finish(self) -> Result<Async<E>, Error> {
        self.finish_with(ControlThread::new).await
    }

    /// Finishes in a task, which is woken by what `readiness` makes, as [`Async::with`] says: it is called twice, for the
    /// handshake and for the end.
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
    ) -> Result<Async<E, R>, Error> {
        let watch = Error::os("watch a link in a runtime");
        let mut ready = readiness(self.descriptor.clone()).map_err(watch)?;
        let finished = poll_fn(|cx| {
            loop {
                if let Some(finished) = self.try_finish().transpose() {
                    return Poll::Ready(finished);
                }
                if let Err(error) = ready!(ready.poll_readable(cx)) {
                    return Poll::Ready(Err(Error::os("wait for the other end")(error)));
                }
            }
        });
        let end = finished.await?;
        drop(ready);
        Async::with(end, readiness)
    }
}

impl<E: Connects> AsFd for Connecting<E> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl<E: Connects> AsRawFd for Connecting<E> {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// When to try again, and until when.
#[derive(Debug)]
pub(crate) struct Attempts {
    deadline: Option<Instant>,
    /// When what no descriptor tells of is tried again, and how long after that.
    again: Option<Instant>,
    pause: Duration,
    timer: OwnedFd,
    /// Watches the timer and what is waited for.
    epoll: Arc<OwnedFd>,
}

/// Not this time: there is nothing to do but to wait.
pub(crate) struct Later;

/// Between two attempts at what no descriptor tells of: a place in a full backlog, a lock, the kernel's bound on descriptors
/// in flight.
const SHORTEST_PAUSE: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

impl Attempts {
    pub(crate) fn new(deadline: Option<Instant>) -> Result<Attempts, Error> {
        let made = || -> io::Result<_> {
            let epoll = epoll::create(CreateFlags::CLOEXEC)?;
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            epoll::add(&epoll, &timer, EventData::new_u64(0), EventFlags::IN)?;
            Ok((Arc::new(epoll), timer))
        };
        let (epoll, timer) = made().map_err(Error::os("watch a link"))?;
        Ok(Attempts {
            deadline,
            again: None,
            pause: SHORTEST_PAUSE,
            timer,
            epoll,
        })
    }

    /// Begins another look, whatever the timer was set for. Whether the time is over.
    pub(crate) fn look(&mut self) -> bool {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// The time is over then, and not before.
    pub(crate) fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    pub(crate) fn later(&mut self) -> Later {
        self.again = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Later
    }

    /// Readable at the deadline, or when it is time to try again.
    pub(crate) fn set_timer(&mut self) -> Result<(), Error> {
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

    /// Readable with that, too.
    pub(crate) fn watch(&self, source: impl AsFd, flags: EventFlags) -> Result<(), Error> {
        epoll::add(&*self.epoll, source, EventData::new_u64(1), flags)
            .map_err(|errno| Error::os("watch a link")(errno.into()))
    }

    /// Not any more: before it may be closed.
    pub(crate) fn forget(&self, source: impl AsFd) {
        let _ = epoll::delete(&*self.epoll, source);
    }

    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.epoll
    }
}

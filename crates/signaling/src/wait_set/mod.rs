//! Many sources, one wait.

mod events;
mod interest;
mod registration;
mod registry;
mod timers;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{
        EventfdFlags, Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
        eventfd,
    },
    io::Errno,
};

pub use self::{
    events::{Event, Events, Ready},
    interest::{Interest, Readiness, Trigger},
    registration::{AddError, Registration},
    registry::{Key, Pending, Registry},
    timers::Timer,
};
use self::{
    events::{Findings, Found},
    timers::Timers,
};
use crate::remaining;

/// Waits for many sources at once: everything that is a descriptor, timers, and other threads.
///
/// | source | how |
/// |---|---|
/// | a lane's end | `set.add(&Watched::new(subscriber)?, Interest::READABLE)`, with `memlane::Watched` |
/// | a link, a listener | [`Interest::READABLE`]; [`Interest::HANG_UP`] to learn of the end alone |
/// | a [`Doorbell`](crate::Doorbell) | [`Trigger::Edge`], and [`woken`](crate::Doorbell::woken) each time; or by level, and [`drain`](crate::Doorbell::drain) |
/// | a process's death | its pidfd, [`Interest::READABLE`]: from the moment it has ended, reaped or not |
/// | a time | [`timer`](WaitSet::timer) |
/// | another thread | [`notify`](WaitSet::notify) |
/// | signals | see [below](#signals) |
/// | anything else that poll(2) takes | what it says it is ready for |
///
/// ```
/// use std::{io::Read, os::unix::net::UnixStream, time::Duration};
/// use memlane_signaling::{Events, Interest, WaitSet};
///
/// let (mut here, mut there) = UnixStream::pair()?;
/// here.set_nonblocking(true)?;
///
/// let set = WaitSet::new()?;
/// let incoming = set.add(&here, Interest::READABLE)?;
/// let clock = set.timer()?;
/// clock.set_every(Duration::from_millis(5))?;
///
/// let (mut events, mut ticks, mut heard) = (Events::default(), 0, Vec::new());
/// while heard.is_empty() {
///     for event in set.wait(&mut events, None)? {
///         if event.key() == clock.key() {
///             ticks += event.expirations();
///             # use std::io::Write;
///             there.write_all(b"here I am")?;
///         } else if event.key() == incoming.key() {
///             let mut buffer = [0; 64];
///             let count = here.read(&mut buffer)?;
///             heard.extend_from_slice(&buffer[..count]);
///         }
///     }
/// }
/// assert!(ticks >= 1 && heard.starts_with(b"here I am"));
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # What is promised
///
/// - **Nothing is lost.** A source that is ready when a wait begins, or becomes so meanwhile, ends a wait; what a loop does not
///   take ([`Ready`]) is reported by the next.
/// - **Nothing is made up.** What is reported is of a source that is there: one that was removed is not reported, not even by
///   a wait that had found it before, and its key never comes again. A source may be reported that turns out to have nothing,
///   since others may have taken it meanwhile: use calls that do not block.
/// - **Nobody is left out.** Each wait reports a source once, and [`Events::capacity`] sources at most. The kernel goes on with
///   those that were not reported: of `n` ready sources each is reported within `(n + 2) / capacity` waits, rounded up, and one more (the set's own
///   timer and bell take places, too),
///   however often another one becomes ready. Timers and notifications are looked at in every wait, whatever else is ready.
///   How much to take from one source before turning to the next is the loop's to say: what is left of a level-triggered one
///   is reported again.
/// - **Many sources.** A wait costs by what is ready, not by what is there.
/// - **Several threads** may wait, add, remove, set timers and notify at the same time. Level-triggered sources may be reported
///   to several of them, so share work by [`Trigger::OneShot`] or [`Trigger::Edge`]. A wait may report a new source before the
///   [`add`](WaitSet::add) of another thread has returned its key.
///
/// Each source takes a descriptor of the set's own, see [`Registration`].
///
/// # Lanes
///
/// A lane's end that is watched sleeps in the set, not by itself, and does not spin before. A loop that wants something of the
/// latency of spinning looks at its lanes (`try_recv`: a system call each time that it finds nothing) for some microseconds
/// before each wait, with a [`Pacer`](crate::Pacer). While that finds something no wait is needed; and when it has not, the
/// wait finds what came in between, because the descriptor of a lane's end is readable from the next message on, once a
/// `try_recv` has found nothing. docs/waiting.md has such a loop.
///
/// # Signals
///
/// A signal handler that writes to a socket, as of [signal-hook](https://docs.rs/signal-hook), works in every program:
///
/// ```
/// use std::{io::Read, os::unix::net::UnixStream};
/// use memlane_signaling::{Events, Interest, WaitSet};
/// use signal_hook::{consts::SIGUSR1, low_level::{pipe, raise}};
///
/// let (mut caught, write) = UnixStream::pair()?;
/// caught.set_nonblocking(true)?;
/// pipe::register(SIGUSR1, write)?;
///
/// let set = WaitSet::new()?;
/// let signals = set.add(&caught, Interest::READABLE)?;
/// raise(SIGUSR1)?;
///
/// let mut events = Events::default();
/// let event = set.wait(&mut events, None)?.next().unwrap();
/// assert_eq!(event.key(), signals.key());
/// assert_eq!(caught.read(&mut [0; 64])?, 1); // one byte a signal
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// A signalfd(2) is a source like any other, too. But its signals have to be blocked in *every* thread, before the first one
/// starts, or the kernel gives them to a thread that has not; and processes that are started later inherit that they are
/// blocked, unless they are made to unblock them. That is for a program to decide, so it is not done here.
///
/// # Other loops
///
/// A set is itself a descriptor ([`AsFd`]), readable while there is something to report: it can be a source of another set, or
/// of any loop. After it was readable, wait with a time of zero.
///
/// # Whom to add
///
/// To add a descriptor asks its file whether it is ready. One of unknown kind that an untrusted peer has sent can make that
/// call wait for ever (FUSE): check what it is first (`memlane_transport::Typed`).
#[derive(Debug)]
pub struct WaitSet {
    shared: Arc<Shared>,
}

/// No key is like these: its generation is odd.
const TIMER: u64 = 0;
const NOTICE: u64 = 1;

#[derive(Debug)]
struct Shared {
    /// Before all that it watches.
    epoll: OwnedFd,
    registry: Registry,
    timers: Mutex<Timers>,
    pending: Pending,
    /// An eventfd: rung for what is pending, and for what was put back.
    bell: OwnedFd,
    returned: Mutex<Vec<Found>>,
}

impl WaitSet {
    /// A set without sources. It takes two descriptors, and a third with the first timer.
    ///
    /// # Errors
    ///
    /// The kernel's, when descriptors or memory are short.
    pub fn new() -> io::Result<WaitSet> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &bell, EventData::new_u64(NOTICE), EventFlags::IN)?;
        Ok(WaitSet {
            shared: Arc::new(Shared {
                epoll,
                registry: Registry::default(),
                timers: Mutex::default(),
                pending: Pending::new(),
                bell,
                returned: Mutex::default(),
            }),
        })
    }

    /// Adds a source, level-triggered. `source` stays the caller's, and may even be closed before the [`Registration`] is.
    ///
    /// # Errors
    ///
    /// [`AddError`], and nothing was added.
    pub fn add(&self, source: impl AsFd, interest: Interest) -> Result<Registration, AddError> {
        self.add_with(source, interest, Trigger::Level)
    }

    /// Adds a source that is to be reported at other times.
    ///
    /// # Errors
    ///
    /// As [`add`](WaitSet::add).
    pub fn add_with(
        &self,
        source: impl AsFd,
        interest: Interest,
        trigger: Trigger,
    ) -> Result<Registration, AddError> {
        Registration::new(&self.shared, source.as_fd(), interest, trigger)
    }

    /// Makes a timer, which is not set yet.
    ///
    /// # Errors
    ///
    /// The kernel's, when descriptors or memory are short: the first timer of a set takes a descriptor, all others none.
    pub fn timer(&self) -> io::Result<Timer> {
        Timer::new(&self.shared)
    }

    /// Waits until a source is ready, a timer expires, somebody notifies, or this much time has passed. None is for ever, zero
    /// not at all; there is no lower limit to what can be told apart.
    ///
    /// Signals do not end it.
    ///
    /// # Errors
    ///
    /// The kernel's; none is known.
    #[doc(alias = "epoll_pwait2")]
    pub fn wait<'a>(
        &'a self,
        events: &'a mut Events,
        timeout: Option<Duration>,
    ) -> io::Result<Ready<'a>> {
        if timeout == Some(Duration::ZERO) {
            return self.shared.wait(events, Until::Now);
        }
        // One so far away that no clock can tell it is none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.wait_until(events, deadline)
    }

    /// Waits as [`wait`](WaitSet::wait) does, until a point in time.
    ///
    /// # Errors
    ///
    /// As [`wait`](WaitSet::wait).
    pub fn wait_until<'a>(
        &'a self,
        events: &'a mut Events,
        deadline: Option<Instant>,
    ) -> io::Result<Ready<'a>> {
        self.shared
            .wait(events, deadline.map_or(Until::Ever, Until::Then))
    }

    /// Ends a wait: one that is under way, or else the next. Notifications that come before one has ended it join it.
    ///
    /// What was done before a notification is seen by the thread whose wait it ends. To have *all* threads stop: set a flag,
    /// notify, and let each that sees the flag notify once more before it goes.
    pub fn notify(&self) {
        self.shared.notify();
    }

    /// What notifies, for whoever shall not have the set.
    pub fn notifier(&self) -> Notifier {
        Notifier {
            shared: self.shared.clone(),
        }
    }
}

/// The set, in another loop.
impl AsFd for WaitSet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.epoll.as_fd()
    }
}

/// Ends waits of a [`WaitSet`] from elsewhere. Does nothing once the set is gone.
#[derive(Clone, Debug)]
pub struct Notifier {
    shared: Arc<Shared>,
}

impl Notifier {
    /// As [`WaitSet::notify`].
    pub fn notify(&self) {
        self.shared.notify();
    }
}

#[derive(Clone, Copy)]
enum Until {
    Now,
    Then(Instant),
    Ever,
}

impl Shared {
    fn timers(&self) -> MutexGuard<'_, Timers> {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn returned(&self) -> MutexGuard<'_, Vec<Found>> {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self) {
        if self.pending.raise() {
            self.ring();
        }
    }

    fn ring(&self) {
        // Never full: each ring is read before many come.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Leaves what a loop did not take to the next wait of anyone.
    fn put_back(&self, left: impl Iterator<Item = Found>) {
        self.returned().extend(left);
        // Second: whoever reads the bell looks afterwards. A thread that sleeps may be the only one that goes on.
        self.ring();
    }

    fn take_returned(&self, findings: &mut Findings, room: usize) {
        let mut returned = self.returned();
        let count = room.min(returned.len());
        for found in returned.drain(..count) {
            findings.add_returned(found);
        }
        if !returned.is_empty() {
            self.ring();
        }
    }

    /// Reads the bell, and then looks at what it may have been rung for ([`Pending`] says why in this order). Whether there was
    /// a notification.
    fn take_notice(&self, findings: &mut Findings, room: usize) -> bool {
        if rustix::io::read(&self.bell, &mut [0; 8]).is_err() {
            // Another thread has read it, or it has not been rung yet.
            return false;
        }
        self.take_returned(findings, room);
        self.pending.take()
    }

    fn wait<'a>(&'a self, events: &'a mut Events, until: Until) -> io::Result<Ready<'a>> {
        const NOW: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let Events { raw, findings } = events;
        findings.clear();
        self.take_returned(findings, raw.len());
        loop {
            let timeout = match until {
                // There is something already; the kernel is asked what else there is.
                _ if !findings.is_empty() => Some(NOW),
                Until::Now => Some(NOW),
                Until::Then(deadline) => Some(remaining(deadline)),
                Until::Ever => None,
            };
            let room = raw.len() - findings.len().min(raw.len());
            let ready: &[epoll::Event] = if room == 0 {
                &[]
            } else {
                match epoll::wait(&self.epoll, &mut raw[..room], timeout.as_ref()) {
                    Err(Errno::INTR) => continue,
                    Err(error) => {
                        // What was taken over from another wait is for the next.
                        self.put_back(findings.drain());
                        return Err(error.into());
                    }
                    Ok((ready, _)) => ready,
                }
            };
            // Timers and notifications do not queue behind sources: a flood has no say in when they are looked at.
            let mut notice = self.pending.is_raised();
            for event in ready {
                // Copied out: the event is a packed struct.
                let (token, flags) = (event.data.u64(), event.flags);
                match token {
                    TIMER => {}
                    NOTICE => notice = true,
                    _ => findings.add(Found::source(token, flags)),
                }
            }
            let room = raw.len() - findings.len().min(raw.len());
            let notified = notice && self.take_notice(findings, room);
            let expired = self.timers().expire(raw.len(), |found| findings.add(found));
            if let Err(error) = expired {
                self.put_back(findings.drain());
                return Err(error);
            }
            // One that was removed a moment ago, by another thread, is no reason to return.
            let found = findings.any_holds(self);
            let timed_out = !notified
                && !found
                && match until {
                    Until::Now => true,
                    // Coarse clocks may wake a little early.
                    Until::Then(deadline) => Instant::now() >= deadline,
                    Until::Ever => false,
                };
            if notified || found || timed_out {
                findings.resume();
                return Ok(Ready {
                    shared: self,
                    findings,
                    notified,
                    timed_out,
                });
            }
            findings.clear();
        }
    }
}

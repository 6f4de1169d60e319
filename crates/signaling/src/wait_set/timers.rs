use std::{
    collections::{BTreeSet, HashMap},
    fmt, io,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::{
        Timespec,
        epoll::{self, EventData, EventFlags},
    },
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create,
        timerfd_settime,
    },
};

use super::{Key, Shared, TIMER, events::Found};
use crate::remaining;

/// A timer of a [`WaitSet`](crate::WaitSet), made by [`WaitSet::timer`](crate::WaitSet::timer). It reports under its
/// [key](Timer::key) when its time has come; never before, and at most once in each wait.
///
/// An expiry that nobody has taken from a [`Ready`](crate::Ready) yet is taken back when the timer is set anew, cancelled, or
/// dropped.
pub struct Timer {
    shared: Arc<Shared>,
    key: Key,
}

impl Timer {
    pub(super) fn new(shared: &Arc<Shared>) -> io::Result<Timer> {
        let mut timers = shared.timers();
        if timers.clock.is_none() {
            timers.clock = Some(clock(&shared.epoll)?);
        }
        let key = shared.registry.insert();
        timers.all.insert(key, State::default());
        Ok(Timer {
            shared: shared.clone(),
            key,
        })
    }

    /// Under which it reports.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Sets it to report once, at that time, or at once if that has passed. Whatever it was set to before is forgotten.
    ///
    /// # Errors
    ///
    /// The kernel's; none is known.
    pub fn set(&self, deadline: Instant) -> io::Result<()> {
        self.shared.timers().set(self.key, Some(deadline), None)
    }

    /// Sets it to report once, that much later. A time so long that no clock can tell it is never.
    ///
    /// # Errors
    ///
    /// As [`set`](Timer::set).
    pub fn set_after(&self, time: Duration) -> io::Result<()> {
        let deadline = Instant::now().checked_add(time);
        self.shared.timers().set(self.key, deadline, None)
    }

    /// Sets it to report again and again. Periods that pass while nobody waits are counted
    /// ([`Event::expirations`](crate::Event::expirations)) and reported together; the rhythm stays that of the first one.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a period of zero.
    pub fn set_every(&self, period: Duration) -> io::Result<()> {
        if period.is_zero() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "expected a period above zero for a timer, got 0",
            ));
        }
        let deadline = Instant::now().checked_add(period);
        self.shared.timers().set(self.key, deadline, Some(period))
    }

    /// It does not report any more, until it is set again.
    pub fn cancel(&self) {
        // Nothing is armed for it, so nothing can fail.
        let _ = self.shared.timers().set(self.key, None, None);
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut timers = self.shared.timers();
        if let Some(State {
            deadline: Some(deadline),
            ..
        }) = timers.all.remove(&self.key)
        {
            timers.queue.remove(&(deadline, self.key));
        }
        self.shared.registry.remove(self.key);
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").field("key", &self.key).finish()
    }
}

const NANOS_PER_SEC: u128 = 1_000_000_000;

/// All timers of a set, behind one timerfd in its epoll.
///
/// The other way, to end each wait at the earliest deadline, has every thread that waits woken whenever an earlier one comes,
/// wakes later (epoll_wait has the slack of its thread, 50 us as a rule; a timerfd has none), and does not show in the
/// descriptor of the set. It would save a system call each time that the earliest deadline changes.
#[derive(Debug, Default)]
pub(super) struct Timers {
    /// From the first timer on.
    clock: Option<OwnedFd>,
    /// What the timerfd is set to. It may be a deadline that was cancelled: that wakes once, and nobody is told.
    armed: Option<Instant>,
    queue: BTreeSet<(Instant, Key)>,
    all: HashMap<Key, State>,
}

#[derive(Debug, Default)]
struct State {
    deadline: Option<Instant>,
    period: Option<Duration>,
    /// How often it was set: what expired of an earlier setting is not reported.
    setting: u64,
}

/// Level-triggered and never read: setting it makes it unreadable.
fn clock(epoll: &OwnedFd) -> io::Result<OwnedFd> {
    let clock = timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
    )?;
    epoll::add(epoll, &clock, EventData::new_u64(TIMER), EventFlags::IN)?;
    Ok(clock)
}

impl Timers {
    fn set(
        &mut self,
        key: Key,
        deadline: Option<Instant>,
        period: Option<Duration>,
    ) -> io::Result<()> {
        let Some(state) = self.all.get_mut(&key) else {
            return Ok(());
        };
        if let Some(before) = state.deadline {
            self.queue.remove(&(before, key));
        }
        *state = State {
            deadline,
            period,
            setting: state.setting + 1,
        };
        let Some(deadline) = deadline else {
            return Ok(());
        };
        self.queue.insert((deadline, key));
        if self.armed.is_none_or(|armed| deadline < armed) {
            self.arm(Some(deadline))?;
        }
        Ok(())
    }

    /// Whether what expired is still to be reported.
    pub(super) fn holds(&self, key: Key, setting: u64) -> bool {
        self.all
            .get(&key)
            .is_some_and(|state| state.setting == setting)
    }

    /// Takes what has expired, `room` timers at most, and sets the timerfd to what comes next.
    pub(super) fn expire(&mut self, room: usize, mut report: impl FnMut(Found)) -> io::Result<()> {
        let Some(armed) = self.armed else {
            return Ok(());
        };
        // The timerfd never fires early: it was set to a time from a moment after `armed` was compared with the clock.
        let now = Instant::now();
        if now < armed {
            return Ok(());
        }
        for _ in 0..room {
            let Some(&(deadline, key)) = self.queue.first() else {
                break;
            };
            if deadline > now {
                break;
            }
            self.queue.pop_first();
            let Some(state) = self.all.get_mut(&key) else {
                continue;
            };
            let mut expirations = 1;
            state.deadline = state.period.and_then(|period| {
                let late = (now - deadline).as_nanos();
                let period = period.as_nanos();
                expirations += (late / period) as u64;
                let rest = period - late % period;
                let rest =
                    Duration::new((rest / NANOS_PER_SEC) as u64, (rest % NANOS_PER_SEC) as u32);
                now.checked_add(rest)
            });
            if let Some(next) = state.deadline {
                self.queue.insert((next, key));
            }
            report(Found::timer(key, state.setting, expirations));
        }
        let next = self.queue.first().map(|&(deadline, _)| deadline);
        self.arm(next)
    }

    /// Sets the timerfd.
    fn arm(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let never = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut value = deadline.map_or(never, remaining);
        if deadline.is_some() && value == never {
            // 0 would be never.
            value.tv_nsec = 1;
        }
        if let Some(clock) = &self.clock {
            let setting = Itimerspec {
                it_interval: never,
                it_value: value,
            };
            timerfd_settime(clock, TimerfdTimerFlags::empty(), &setting)?;
            self.armed = deadline;
        }
        Ok(())
    }
}

//! What wakes a publisher that waits for room: one descriptor, whoever may have made some.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use memlane_signaling::Doorbell;
use rustix::{
    event::{
        EventfdFlags, Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
        eventfd,
    },
    io::Errno,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create,
        timerfd_settime,
    },
};

/// Watches the doorbells of all subscribers, and what else there is to wait for. Made when a publisher first waits, or is
/// watched.
#[derive(Debug)]
pub(super) struct Wakes {
    epoll: Arc<OwnedFd>,
    /// Written to when a subscriber has left. No other process has it.
    left: OwnedFd,
    /// Readable once a loan was dropped; of the publisher's pool, once it is watched.
    loans: OnceLock<Arc<OwnedFd>>,
    /// Readable at a time; made when there first is one.
    alarm: OnceLock<OwnedFd>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// The subscriber with this source number has rung, or has closed its end of the doorbell.
    Subscriber { source: u32, hung_up: bool },
    /// Somebody has left, or a loan was dropped.
    Other,
    /// There is control work.
    Control,
}

/// So many events are taken in one go.
const BATCH: usize = 64;

/// Beyond all source numbers.
const LEFT: u64 = 1 << 32;
const LOANS: u64 = 2 << 32;
const CONTROL: u64 = 3 << 32;
const ALARM: u64 = 4 << 32;

impl Wakes {
    pub(super) fn new() -> io::Result<Wakes> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let left = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &left, EventData::new_u64(LEFT), EventFlags::IN)?;
        let epoll = Arc::new(epoll);
        let (loans, alarm) = (OnceLock::new(), OnceLock::new());
        Ok(Wakes {
            epoll,
            left,
            loans,
            alarm,
        })
    }

    /// Edge-triggered: what a subscriber has sent is drained now and then, and its hang-up is heard once.
    pub(super) fn add(&self, doorbell: &Doorbell, source: u32) -> io::Result<()> {
        let data = EventData::new_u64(source.into());
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&*self.epoll, doorbell, data, flags)?)
    }

    /// To be called before the doorbell is closed, and once the subscriber is no longer a reader: the publisher may be
    /// asleep for want of the room that it held.
    pub(super) fn remove(&self, doorbell: &Doorbell) {
        let _ = epoll::delete(&*self.epoll, doorbell);
        self.tell();
    }

    /// Makes the descriptor readable, and lets those know who wait for edges.
    pub(super) fn tell(&self) {
        // It cannot be full: the publisher empties it whenever it wakes, and it takes 2^64 of them.
        let _ = rustix::io::write(&self.left, &1_u64.to_ne_bytes());
    }

    /// Watches what becomes readable when a loan is dropped.
    pub(super) fn add_loans(&self, loans: &Arc<OwnedFd>) -> io::Result<()> {
        let data = EventData::new_u64(LOANS);
        epoll::add(&*self.epoll, &**loans, data, EventFlags::IN)?;
        self.loans.get_or_init(|| loans.clone());
        Ok(())
    }

    /// Makes the descriptor readable at this time, or at none, in place of the one before.
    pub(super) fn set_alarm(&self, at: Option<Instant>) -> io::Result<()> {
        if self.alarm.get().is_none() {
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            epoll::add(
                &*self.epoll,
                &timer,
                EventData::new_u64(ALARM),
                EventFlags::IN,
            )?;
            let _ = self.alarm.set(timer);
        }
        let Some(alarm) = self.alarm.get() else {
            return Ok(());
        };
        let left = at.map_or(Duration::ZERO, |at| {
            // Zero stops it.
            let left = at.saturating_duration_since(Instant::now());
            left.max(Duration::from_nanos(1))
        });
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            },
        };
        timerfd_settime(alarm, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    /// Watches the control side of a driven publisher.
    pub(super) fn add_control(&self, control: BorrowedFd<'_>) -> io::Result<()> {
        let data = EventData::new_u64(CONTROL);
        Ok(epoll::add(&*self.epoll, control, data, EventFlags::IN)?)
    }

    /// Waits until something happens, a signal comes, or the time is over; takes what has happened. Whether there may be more.
    pub(super) fn wait(
        &self,
        timeout: Option<&Timespec>,
        mut happened: impl FnMut(Wake),
    ) -> io::Result<bool> {
        let mut events = [MaybeUninit::uninit(); BATCH];
        let ready = match epoll::wait(&*self.epoll, &mut events, timeout) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        for event in &*ready {
            let source = event.data.u64();
            happened(match source {
                CONTROL => Wake::Control,
                LOANS => {
                    if let Some(loans) = self.loans.get() {
                        let _ = rustix::io::read(loans, &mut [0; 8]);
                    }
                    Wake::Other
                }
                ALARM => {
                    if let Some(alarm) = self.alarm.get() {
                        let _ = rustix::io::read(alarm, &mut [0; 8]);
                    }
                    Wake::Other
                }
                LEFT => {
                    let _ = rustix::io::read(&self.left, &mut [0; 8]);
                    Wake::Other
                }
                _ => {
                    let ended = EventFlags::HUP | EventFlags::RDHUP | EventFlags::ERR;
                    // Copied out: the event is a packed struct.
                    let flags = event.flags;
                    Wake::Subscriber {
                        source: source as u32,
                        hung_up: flags.intersects(ended),
                    }
                }
            });
        }
        Ok(ready.len() == BATCH)
    }

    /// Readable when something has happened.
    pub(super) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.epoll
    }
}

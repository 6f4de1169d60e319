//! The newest value of another process.

use std::{
    future::poll_fn,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, atomic::AtomicU64},
    task::{Poll, ready},
    time::{Duration, Instant},
};

use memlane_region::{
    Remote, Shared,
    latest::{LatestReader, ReadError, Update},
};
use memlane_signaling::{Pacer, Woken, gone};
use memlane_transport::{Address, Link, dispose};
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::{
    Untrusted, Watching,
    handshake::{Handshake, Prepared},
    moving::Moving,
    sleep::Sleep,
    travel::Travel,
    watch as watch_all,
    watch_builder::WatchReceiverBuilder,
};
use crate::{
    Async, Error, Readiness, Reason, after,
    page::SUBSCRIBER_ARMED,
    protocol::{PublisherDoorbell, Welcome},
    watched::{Watch, polls},
};

/// Sees the newest value that a [`WatchSender`](crate::WatchSender) has, and waits for a newer one.
///
/// A value is copied whole, or not at all, and is never older than the one that was read before. How many were missed is told by
/// their [numbers](Update::sequence).
///
/// When the sender is gone, its last value can still be read.
#[derive(Debug)]
pub struct WatchReceiver {
    pub(super) reader: LatestReader<Remote>,
    /// Its own page, which says whether it sleeps.
    mine: Shared,
    /// Before the doorbell and the link: it must not outlive what it watches.
    sleep: Option<Sleep>,
    pacer: Pacer,
    pub(super) link: Arc<Link>,
    process: Option<OwnedFd>,
    /// Why there is no sender any more.
    pub(super) ended: Option<Reason>,
    /// The clock when the kernel was last asked whether it lives.
    asked: Timespec,
    /// Where it was, to clear the name if it died there.
    pub(super) address: Option<Address>,
    watched: Option<Watching>,
    copy: Vec<u8>,
    stats: WatchReceiverStats,
    pub(super) travel: Travel,
    /// What the sender has said of that.
    pub(super) moving: Moving,
    /// The process that made it: in a forked child it has nothing to say.
    pub(super) pid: u32,
}

/// What a receiver has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WatchReceiverStats {
    /// Times it went to sleep for want of a newer value.
    pub sleeps: u64,
    /// Times it was rung awake.
    pub wakeups: u64,
}

/// There is no value, or no newer one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The sender is gone, and its last value has been read.
    #[error("{}; its last value has been read", reason.of("the sender", "this receiver"))]
    Disconnected {
        /// Why.
        reason: Reason,
    },
    /// The value cannot be read: the sender overtakes whoever tries, or does not keep to the rules.
    #[error(transparent)]
    Value(#[from] ReadError),
    /// There was no newer value in time.
    #[error("there was no newer value in time")]
    TimedOut,
    /// Waiting failed in the kernel (short of memory).
    #[error("cannot wait for a newer value: {0}")]
    Wait(io::Error),
}

/// Checks what came with the welcome of a latest value.
fn open(welcome: Welcome, max_len: usize) -> Result<LatestReader<Remote>, Error> {
    // A sender that never waits has none to ring.
    match welcome.doorbell {
        PublisherDoorbell::None => {}
        PublisherDoorbell::Socket(end) | PublisherDoorbell::EventFd(end) => dispose(end.into()),
    }
    let len = usize::try_from(welcome.capacity).unwrap_or(usize::MAX);
    if len > max_len {
        dispose(welcome.ring.into());
        let why = format!(
            "its values have up to {len} bytes, and this receiver takes at most {max_len} (WatchReceiverBuilder::max_len)"
        );
        return Err(Error::NoSender { why });
    }
    // That of the longest value, which has been looked at.
    LatestReader::open(welcome.ring.into(), len, usize::MAX).map_err(|refused| {
        dispose(refused.descriptor);
        refused.error.into()
    })
}

impl WatchReceiver {
    pub(super) fn new(
        handshake: Handshake<Untrusted>,
        welcome: Welcome,
        max_len: usize,
    ) -> Result<WatchReceiver, Error> {
        let Handshake {
            builder,
            prepared,
            link,
            process,
            ..
        } = handshake;
        let Prepared {
            mine, mut offers, ..
        } = prepared;
        let sleep = match offers.take(welcome.rings)? {
            Some(doorbell) => {
                let waiter = watch_all(&doorbell, &link, process.as_ref())
                    .map_err(Error::os("watch the sender"))?;
                Some(Sleep::new(waiter, doorbell, None))
            }
            None => None,
        };
        let reader = open(welcome, max_len)?;
        Ok(WatchReceiver {
            reader,
            mine,
            sleep,
            pacer: Pacer::new(builder.wait),
            link,
            process,
            ended: None,
            asked: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            address: None,
            watched: None,
            copy: Vec::new(),
            stats: WatchReceiverStats::default(),
            travel: Travel::default(),
            moving: Moving::default(),
            pid: std::process::id(),
        })
    }

    /// Watches a service of this user's, with the options of [`WatchReceiverBuilder`].
    ///
    /// # Errors
    ///
    /// [`Error::NoSender`]: nobody watched answers there, or something else, or for other payloads; [`Error`].
    pub fn connect(service: &str) -> Result<WatchReceiver, Error> {
        WatchReceiver::builder().connect(service)
    }

    /// Options, all with defaults.
    pub fn builder() -> WatchReceiverBuilder {
        WatchReceiverBuilder::default()
    }

    /// A copy of the newest value; none before the first. It counts as read.
    ///
    /// # Errors
    ///
    /// [`WatchError::Value`].
    pub fn get(&mut self) -> Result<Option<Vec<u8>>, WatchError> {
        let mut value = vec![0; self.reader.max_len()];
        let update = self.get_into(&mut value)?;
        Ok(update.map(|update| {
            value.truncate(update.len);
            value
        }))
    }

    /// Copies the newest value to the beginning of `dst`: which one it is, and its length; none before the first. It counts as
    /// read. Nothing is allocated.
    ///
    /// # Errors
    ///
    /// [`WatchError::Value`]; also if `dst` is shorter than the value, which then does not count as read.
    #[inline]
    pub fn get_into(&mut self, dst: &mut [u8]) -> Result<Option<Update>, WatchError> {
        Ok(self.reader.read(dst)?)
    }

    /// Gives the newest value to `read`, in a buffer of this receiver's.
    pub(crate) fn get_with<R>(
        &mut self,
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>, WatchError> {
        self.copy.resize(self.reader.max_len(), 0);
        let update = self.reader.read(&mut self.copy)?;
        Ok(update.map(|update| read(&self.copy[..update.len])))
    }

    /// Whether there is a newer value than the one that was read last. One load, of a line that a quiet sender leaves alone.
    #[inline]
    pub fn is_changed(&self) -> bool {
        self.reader.changed()
    }

    /// Waits until there is a newer value than the one that was read last; returns at once if there is.
    ///
    /// # Errors
    ///
    /// [`WatchError::Disconnected`] once the sender is gone and its last value has been read; [`WatchError::Wait`].
    ///
    /// ```
    /// # let link = memlane::Link::pair()?;
    /// # let mut pose = memlane::WatchSender::builder().unbound()?;
    /// # pose.attach(link.0)?;
    /// # pose.send(b"north")?;
    /// # let mut seen = memlane::WatchReceiver::builder().over(link.1)?;
    /// seen.changed()?;
    /// println!("{:?}", seen.get()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn changed(&mut self) -> Result<(), WatchError> {
        match self.is_changed() {
            true => Ok(()),
            false => self.wait(None),
        }
    }

    /// Waits until there is a newer value than the one that was read last, no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// [`WatchError::TimedOut`], and as [`changed`](WatchReceiver::changed).
    pub fn changed_timeout(&mut self, timeout: Duration) -> Result<(), WatchError> {
        match self.is_changed() {
            true => Ok(()),
            false => self.wait(after(timeout)),
        }
    }

    /// Whether there is a newer value than the one that was read last. Unlike [`is_changed`](WatchReceiver::is_changed) it looks
    /// whether the sender lives, once in a tick of the coarse clock; and where the receiver is
    /// [watched](crate::Watched), a `false` makes the descriptor unreadable until there is one.
    ///
    /// # Errors
    ///
    /// [`WatchError::Disconnected`] once the sender is gone and its last value has been read.
    pub fn try_changed(&mut self) -> Result<bool, WatchError> {
        if self.is_changed() {
            return Ok(true);
        }
        if self.watched.is_some() {
            return self.await_change();
        }
        let now = clock_gettime(ClockId::MonotonicCoarse);
        if now != self.asked || self.ended.is_some() {
            self.asked = now;
            self.look_for_death()?;
        }
        self.rest()
    }

    /// The number of the value that was read last: 0 before the first.
    pub fn sequence(&self) -> u64 {
        self.reader.sequence()
    }

    /// The longest value there can be, in bytes.
    pub fn max_len(&self) -> usize {
        self.reader.max_len()
    }

    /// What it has done so far.
    pub fn stats(&self) -> WatchReceiverStats {
        self.stats
    }

    /// What there is, of one that found nothing newer.
    fn rest(&mut self) -> Result<bool, WatchError> {
        match &self.ended {
            None => Ok(false),
            // What was written before its end is there now, or never will be.
            Some(_) if self.reader.changed() => Ok(true),
            Some(reason) => Err(WatchError::Disconnected {
                reason: reason.clone(),
            }),
        }
    }

    fn look_for_death(&mut self) -> Result<(), WatchError> {
        let process = self.process.as_ref().map(AsFd::as_fd);
        if self.ended.is_none() && gone(self.link.as_fd(), process).map_err(WatchError::Wait)? {
            self.bury();
        }
        Ok(())
    }

    #[cold]
    fn bury(&mut self) {
        self.take_notices();
        self.end(Reason::Died);
    }

    /// There is no sender any more, for this reason, unless there has been another.
    #[cold]
    pub(super) fn end(&mut self, reason: Reason) {
        if self.ended.is_none() {
            self.ended = Some(reason);
            if let Some(address) = &self.address {
                let _ = memlane_transport::remove_stale(address);
            }
        }
    }

    fn armed(mine: &Shared) -> &AtomicU64 {
        mine.word(SUBSCRIBER_ARMED)
    }

    /// A loop of the user's waits for the descriptor: either there is a newer value after all, or the descriptor is not readable
    /// before there is one.
    fn await_change(&mut self) -> Result<bool, WatchError> {
        let (Some(sleep), Some(watching)) = (&mut self.sleep, &mut self.watched) else {
            return Ok(false);
        };
        watching.not_ready(sleep, &self.link);
        match sleep.waiter.take(&mut sleep.doorbell) {
            Ok(Some(Woken::Rung)) => self.stats.wakeups += 1,
            Ok(Some(Woken::Gone)) => self.bury(),
            _ => {}
        }
        if self.ended.is_some() {
            return self.rest();
        }
        let Some(sleep) = &mut self.sleep else {
            return Ok(false);
        };
        sleep.arm(Self::armed(&self.mine), self.reader.sequence());
        // Once more: the sender may have looked at the flag before it was set.
        let changed = self.reader.changed();
        if changed {
            self.stay_ready();
        } else {
            self.stats.sleeps += 1;
        }
        Ok(changed)
    }

    /// Makes the descriptor readable, if a loop of the user's waits for it, until nothing newer was seen.
    fn stay_ready(&mut self) {
        if let (Some(sleep), Some(watching)) = (&mut self.sleep, &mut self.watched) {
            sleep.disarm(Self::armed(&self.mine));
            watching.ready |= sleep.waiter.ready(&*self.link).is_ok();
        }
    }

    #[cold]
    fn wait(&mut self, deadline: Option<Instant>) -> Result<(), WatchError> {
        if let (Some(sleep), Some(watching)) = (&self.sleep, &mut self.watched) {
            watching.not_ready(sleep, &self.link);
        }
        let waited = self.wait_until(deadline);
        self.stay_ready();
        waited
    }

    fn wait_until(&mut self, deadline: Option<Instant>) -> Result<(), WatchError> {
        loop {
            if self.ended.is_some() {
                return self.rest().map(drop);
            }
            let WatchReceiver { pacer, reader, .. } = &mut *self;
            if pacer.spin(|| reader.changed().then_some(())).is_some() {
                return Ok(());
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(WatchError::TimedOut);
            }
            let Some(sleep) = &mut self.sleep else {
                self.look_for_death()?;
                continue;
            };
            sleep.arm(Self::armed(&self.mine), self.reader.sequence());
            // Once more: the sender may have looked at the flag before it was set.
            let woken = if self.reader.changed() {
                // It may have been rung for this sleep all the same, and no wait counts that ring.
                sleep.doorbell.woken();
                Ok(Woken::TimedOut)
            } else {
                self.stats.sleeps += 1;
                let since = Instant::now();
                let woken = sleep.waiter.wait(&mut sleep.doorbell, deadline);
                let met = matches!(woken, Ok(Woken::Rung));
                self.pacer.slept(since.elapsed(), met);
                woken
            };
            sleep.disarm(Self::armed(&self.mine));
            match woken.map_err(WatchError::Wait)? {
                Woken::Rung => self.stats.wakeups += 1,
                Woken::Gone => self.bury(),
                Woken::TimedOut => {}
            }
            if self.reader.changed() {
                return Ok(());
            }
        }
    }
}

impl Watch for WatchReceiver {
    fn watch(&mut self) -> Result<(), Error> {
        if self.sleep.is_none() {
            return Err(polls());
        }
        self.watched = Some(Watching { ready: false });
        self.stay_ready();
        Ok(())
    }

    fn unwatch(&mut self) {
        if let (Some(sleep), Some(_)) = (&mut self.sleep, self.watched.take()) {
            sleep.disarm(Self::armed(&self.mine));
            let _ = sleep.waiter.not_ready(&*self.link);
        }
    }

    fn descriptor(&self) -> &Arc<OwnedFd> {
        let sleep = self.sleep.as_ref();
        sleep.expect("it is watched").waiter.descriptor()
    }
}

impl<R: Readiness> Async<WatchReceiver, R> {
    /// Waits until there is a newer value than the one that was read last.
    ///
    /// Dropped while it is pending, it has changed nothing.
    ///
    /// # Errors
    ///
    /// As [`WatchReceiver::changed`].
    pub async fn changed(&mut self) -> Result<(), WatchError> {
        poll_fn(|cx| {
            ready!(self.readiness.poll_proceed(cx));
            loop {
                match self.end.try_changed() {
                    Ok(false) => {}
                    changed => return Poll::Ready(changed.map(drop)),
                }
                if let Err(error) = ready!(self.readiness.poll_readable(cx)) {
                    return Poll::Ready(Err(WatchError::Wait(error)));
                }
            }
        })
        .await
    }
}

//! Room for a message, in the ring or in the pool: at once, or by waiting for subscribers.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use memlane_region::{
    Shared,
    pool::{Pool, PoolError},
    ring::{NoRoom, RingWriter},
};
use memlane_signaling::{WaitPolicy, remaining};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{Publisher, attachments::Attach, control::Control, peer::Peer, wakes::Wakes};
use crate::{
    Error, NOW, SendError, SendTimeoutError, TrySendError,
    page::{A_SLOT, WANTED},
};

/// What a message needs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Need {
    /// So many bytes in the ring.
    Ring(usize),
    /// A free chunk for so many bytes.
    Chunk(usize),
    /// That all subscribers can be told of attachments, and are, of the message for which there is room in the ring. So many bytes
    /// of it may be written there already.
    Attachments(Option<usize>),
    /// No message: that every subscriber has released all there were.
    Drained,
}

/// Why there is no room.
pub(super) enum NoRoomInTime {
    /// Not yet.
    Full,
    TooLarge {
        max: usize,
    },
    Loaned {
        bytes: usize,
    },
    TooManyAttachments {
        count: usize,
        max: usize,
    },
    /// One of them cannot be passed.
    Attachment(io::Error),
    TimedOut,
    /// The receiver is gone.
    Disconnected,
    Memory(memlane_region::Error),
    Wait(io::Error),
}

/// Looks for room, once.
#[inline]
fn look(
    writer: &mut RingWriter<Shared, Peer>,
    pool: &mut Pool,
    control: &Control,
    attach: &mut Attach,
    need: Need,
) -> Result<(), NoRoomInTime> {
    match need {
        Need::Attachments(_) => attach.look(control, writer.position()),
        Need::Ring(len) => match writer.reserve(len) {
            Ok(()) => Ok(()),
            Err(NoRoom::Full) => Err(NoRoomInTime::Full),
            Err(NoRoom::TooLarge { max }) => Err(NoRoomInTime::TooLarge { max }),
        },
        Need::Drained if writer.is_drained() => Ok(()),
        Need::Drained => Err(NoRoomInTime::Full),
        Need::Chunk(len) => {
            let ready = pool.make_ready(len, writer);
            if pool.has_changes() {
                control.announce(pool);
            }
            ready.map_err(|error| match error {
                PoolError::TooLarge { max, .. } => NoRoomInTime::TooLarge { max },
                // Nobody but this process could give anything back: waiting might never end.
                PoolError::Exhausted {
                    held: 0, loaned, ..
                } => NoRoomInTime::Loaned { bytes: loaned },
                // What subscribers have of this size will do.
                PoolError::Os(error) if is_out_of_numbers(&error) && pool.sent(len) > 0 => {
                    NoRoomInTime::Full
                }
                PoolError::Os(error) => NoRoomInTime::Memory(error),
                _ => NoRoomInTime::Full,
            })
        }
    }
}

/// Whether it is for want of descriptors, of this process or of all.
fn is_out_of_numbers(error: &memlane_region::Error) -> bool {
    match error {
        memlane_region::Error::Os { source, .. } => {
            let errno = Errno::from_io_error(source);
            errno.is_some_and(|errno| errno == Errno::MFILE || errno == Errno::NFILE)
        }
        _ => false,
    }
}

impl Publisher {
    /// Room, if there is any now.
    #[inline]
    pub(super) fn look(&mut self, need: Need) -> Result<(), NoRoomInTime> {
        if self.ended && !matches!(need, Need::Drained) {
            return Err(NoRoomInTime::Disconnected);
        }
        let Publisher {
            writer,
            pool,
            control,
            attach,
            ..
        } = self;
        look(writer, pool, control, attach, need)
    }

    /// Room, if there is any now, or is once those who are in the way have been seen to.
    #[inline]
    fn look_and_make_way(&mut self, need: Need) -> Result<(), NoRoomInTime> {
        match self.look(need) {
            Err(NoRoomInTime::Full) if self.make_way(need) => self.look(need),
            found => found,
        }
    }

    /// Room, if there is any now. If not, and the publisher is watched, its descriptor becomes readable when there may be.
    #[inline]
    pub(super) fn now(&mut self, need: Need) -> Result<(), NoRoomInTime> {
        match self.look_and_make_way(need) {
            Err(NoRoomInTime::Full) => {
                // Whoever is to make room may sleep beside what a batch has sent so far.
                self.ring_for_batch();
                match self.watched {
                    true => self.arm_until_again(need),
                    false => Err(NoRoomInTime::Full),
                }
            }
            // What is found in the ring is waited for until the commit; no commit says that a loan was had.
            Ok(()) if self.wanting && matches!(need, Need::Chunk(_) | Need::Attachments(_)) => {
                self.disarm();
                Ok(())
            }
            found => found,
        }
    }

    /// Room, now or by waiting for subscribers.
    #[inline]
    pub(super) fn room(
        &mut self,
        need: Need,
        deadline: Option<Instant>,
    ) -> Result<(), NoRoomInTime> {
        match self.look_and_make_way(need) {
            Err(NoRoomInTime::Full) => self.wait(need, deadline),
            found => found,
        }
    }

    /// Waits for room: spins, then sleeps, as the policy says.
    #[cold]
    fn wait(&mut self, need: Need, deadline: Option<Instant>) -> Result<(), NoRoomInTime> {
        self.ring_for_batch();
        self.stats.stalls += u64::from(!matches!(need, Need::Drained));
        let mut slept = false;
        loop {
            let Publisher {
                pacer,
                writer,
                pool,
                control,
                attach,
                ..
            } = &mut *self;
            let found = pacer.spin(|| match look(writer, pool, control, attach, need) {
                Err(NoRoomInTime::Full) => None,
                found => Some(found),
            });
            if let Some(found) = found {
                self.stats.spins += u64::from(!slept);
                return found;
            }
            if self.make_way(need) {
                continue;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                // One that slept until now has not looked since.
                self.forget_room();
                return match self.look(need) {
                    Err(NoRoomInTime::Full) => Err(NoRoomInTime::TimedOut),
                    found => found,
                };
            }
            if self.pacer.policy() == WaitPolicy::Poll {
                if matches!(need, Need::Attachments(_)) {
                    // Nobody is to ring for it, but some have to be told.
                    self.wanting = true;
                    self.want(A_SLOT);
                    self.await_attachments();
                }
                let driven = self.control.drive_if_driven();
                driven.map_err(NoRoomInTime::Wait)?;
                continue;
            }
            let found = match self.arm(need) {
                Err(NoRoomInTime::Full) => {
                    self.stats.sleeps += 1;
                    self.stats.spurious += u64::from(slept);
                    slept = true;
                    let again = self.again(need);
                    let timeout = deadline.into_iter().chain(again).min().map(remaining);
                    let since = Instant::now();
                    let woken = match self.short {
                        true => self.control.await_rings(self.control.is_driven(), timeout),
                        false => self.take_wakes(timeout.as_ref()),
                    };
                    self.pacer.slept(since.elapsed(), deadline.is_none());
                    woken.map_err(NoRoomInTime::Wait).err().map(Err)
                }
                found => Some(found),
            };
            self.disarm();
            if let Some(found) = found {
                return found;
            }
        }
    }

    /// When those who are in the way are to be looked at again, or what the kernel has refused is to be tried again.
    fn again(&mut self, need: Need) -> Option<Instant> {
        let again = match need {
            Need::Attachments(_) => self.await_attachments(),
            _ => None,
        };
        self.laggards.again().into_iter().chain(again).min()
    }

    /// The same, and the descriptor becomes readable, too, when those who are in the way are to be looked at again.
    #[cold]
    fn arm_until_again(&mut self, need: Need) -> Result<(), NoRoomInTime> {
        let found = self.arm(need);
        if !matches!(found, Err(NoRoomInTime::Full)) {
            return found;
        }
        if let Some(again) = self.again(need) {
            let wakes = self.wakes().map_err(NoRoomInTime::Wait)?;
            wakes.set_alarm(Some(again)).map_err(NoRoomInTime::Wait)?;
            self.laggards.alarm = true;
        }
        found
    }

    /// Shows subscribers what is wanted, and looks once more: if there is still no room, whoever makes some rings.
    #[cold]
    fn arm(&mut self, need: Need) -> Result<(), NoRoomInTime> {
        if self.watched {
            // What has rung until now is seen by the look below.
            self.take_wakes(Some(&NOW)).map_err(NoRoomInTime::Wait)?;
        }
        // Of one that is watched they are there.
        self.short = self.prepare_to_sleep(need).is_err();
        let found = loop {
            self.wanting = true;
            let wanted = self.wanted(need);
            self.want(wanted);
            match need {
                Need::Chunk(_) if !self.short => self.pool.await_loans(),
                // A loan that is dropped makes no room here; a message's own may be, if it is given up for now.
                Need::Ring(_) | Need::Drained | Need::Attachments(_) | Need::Chunk(_) => {
                    self.pool.await_no_loans();
                }
            }
            // This look fences before it loads cursors and slots, and a subscriber between its store of either and
            // its look at what is wanted: it sees that, or its store is seen here.
            match self.look(need) {
                // What makes way for it is less than room, and was wanted above, too.
                Err(NoRoomInTime::Full) if self.make_way(need) => {}
                // The look found records passed whose chunks are held: nobody will pass them again.
                Err(NoRoomInTime::Full) if self.wanted(need) != wanted => {}
                found => break found,
            }
        };
        if !matches!(found, Err(NoRoomInTime::Full)) {
            self.disarm();
        }
        found
    }

    /// Nothing is wanted any more.
    #[cold]
    pub(super) fn disarm(&mut self) {
        self.wanting = false;
        self.pool.await_no_loans();
        self.want(0);
        if std::mem::take(&mut self.laggards.alarm) {
            if let Some(wakes) = &self.wakes {
                // If this fails, it rings for nothing.
                let _ = wakes.set_alarm(None);
            }
        }
        if self.watched {
            // Whoever rang for it need not be heard. If this fails, the descriptor stays readable for nothing.
            let _ = self.take_wakes(Some(&NOW));
        }
    }

    /// Nobody waits for room any more. In a forked child everything it would undo is the parent's.
    pub(super) fn forget_room(&mut self) {
        if self.wanting && self.control.is_ours() {
            self.disarm();
        }
    }

    /// What wakes it, made if need be.
    pub(super) fn wakes(&mut self) -> io::Result<Arc<Wakes>> {
        if self.wakes.is_none() {
            self.wakes = Some(self.control.wakes(self.control.is_driven())?);
        }
        Ok(self.wakes.clone().expect("made above"))
    }

    /// What a sleep takes, made if need be: a publisher that never waits has no descriptors for it.
    fn prepare_to_sleep(&mut self, need: Need) -> io::Result<()> {
        match need {
            Need::Chunk(_) => self.watch_loans(),
            Need::Ring(_) | Need::Drained | Need::Attachments(_) => self.wakes().map(drop),
        }
    }

    /// Lets dropped loans wake it.
    pub(super) fn watch_loans(&mut self) -> io::Result<()> {
        if !self.wakes_loans {
            let wakes = self.wakes()?;
            wakes.add_loans(self.pool.dropped_loans()?)?;
            self.wakes_loans = true;
        }
        Ok(())
    }

    /// What to show to subscribers.
    fn wanted(&self, need: Need) -> u64 {
        match need {
            Need::Ring(len) => match self.spill.wanted(&self.writer) {
                Some(ring) => ring.min(self.writer.want(len)),
                None => self.writer.want(len),
            },
            Need::Drained => self.writer.want_drained(),
            Need::Chunk(_) => self.pool.want().unwrap_or(A_SLOT),
            Need::Attachments(_) => A_SLOT,
        }
    }

    fn want(&self, wanted: u64) {
        let word = self.writer.memory().word(WANTED);
        word.store(wanted, Ordering::Relaxed);
    }

    fn take_wakes(&mut self, timeout: Option<&Timespec>) -> io::Result<()> {
        let wakes = self.wakes()?;
        self.control.take_wakes(&wakes, timeout)
    }

    /// Waits for what comes of an offer; none if that takes too long.
    pub(super) fn wait_for_offer(
        &self,
        deadline: Option<Instant>,
    ) -> Result<Option<Result<(), Error>>, Error> {
        if !self.control.is_driven() {
            return Ok(self.control.wait_for_offer(deadline));
        }
        let outcome = || self.control.offer_outcome();
        self.drive_until(deadline, "wait for the receiver", outcome)
    }

    /// Waits until there is control work for a driven publisher, or the deadline has passed.
    pub(super) fn await_control(&self, deadline: Option<Instant>) -> io::Result<()> {
        let mut sources = [PollFd::new(self.control.epoll(), PollFlags::IN)];
        poll_until(&mut sources, deadline)
    }

    /// Whether there can ever be so many subscribers.
    pub(super) fn check_count(&self, count: usize) -> Result<(), Error> {
        let max = self.control.max_subscribers();
        if count <= max {
            return Ok(());
        }
        Err(Error::Option {
            what: "max_subscribers",
            why: format!("there can be at most {max}, and {count} are waited for"),
        })
    }

    pub(super) fn wait_for(&self, count: usize, deadline: Option<Instant>) -> Result<bool, Error> {
        self.check_count(count)?;
        if !self.control.is_driven() {
            return Ok(self.control.wait_for_subscribers(count, deadline));
        }
        let enough = || (self.subscribers() >= count).then_some(());
        let enough = self.drive_until(deadline, "wait for subscribers", enough);
        if let (true, Some(wakes)) = (self.watched && self.wanting, &self.wakes) {
            // Whoever has rung for room was heard here, where nobody looks for it.
            wakes.tell();
        }
        Ok(enough?.is_some())
    }

    /// Does the control work of a driven publisher until `look` finds something. `None` if the deadline passed first.
    fn drive_until<V>(
        &self,
        deadline: Option<Instant>,
        what: &'static str,
        look: impl Fn() -> Option<V>,
    ) -> Result<Option<V>, Error> {
        loop {
            self.drive()?;
            if let Some(found) = look() {
                return Ok(Some(found));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
            let mut sources = [PollFd::new(self.control.epoll(), PollFlags::IN)];
            poll_until(&mut sources, deadline).map_err(Error::os(what))?;
        }
    }
}

impl NoRoomInTime {
    pub(super) fn forever(self, len: usize) -> SendError {
        match self {
            NoRoomInTime::TooLarge { max } => SendError::TooLarge { len, max },
            NoRoomInTime::Disconnected => SendError::Disconnected,
            NoRoomInTime::Loaned { bytes } => SendError::Loaned { len, bytes },
            NoRoomInTime::TooManyAttachments { count, max } => {
                SendError::TooManyAttachments { count, max }
            }
            NoRoomInTime::Attachment(error) => SendError::Attachment(error),
            NoRoomInTime::Memory(error) => SendError::Memory(error),
            NoRoomInTime::Wait(error) => SendError::Wait(error),
            NoRoomInTime::Full | NoRoomInTime::TimedOut => unreachable!("there was no deadline"),
        }
    }

    pub(super) fn at_once(self, len: usize) -> TrySendError {
        match self {
            NoRoomInTime::TooLarge { max } => TrySendError::TooLarge { len, max },
            NoRoomInTime::Disconnected => TrySendError::Disconnected,
            NoRoomInTime::Loaned { bytes } => TrySendError::Loaned { len, bytes },
            NoRoomInTime::TooManyAttachments { count, max } => {
                TrySendError::TooManyAttachments { count, max }
            }
            NoRoomInTime::Attachment(error) => TrySendError::Attachment(error),
            NoRoomInTime::Memory(error) => TrySendError::Memory(error),
            // Nothing waits here.
            NoRoomInTime::Full | NoRoomInTime::TimedOut | NoRoomInTime::Wait(_) => {
                TrySendError::Full
            }
        }
    }

    pub(super) fn in_time(self, len: usize) -> SendTimeoutError {
        match self {
            NoRoomInTime::TooLarge { max } => SendTimeoutError::TooLarge { len, max },
            NoRoomInTime::Disconnected => SendTimeoutError::Disconnected,
            NoRoomInTime::Loaned { bytes } => SendTimeoutError::Loaned { len, bytes },
            NoRoomInTime::TooManyAttachments { count, max } => {
                SendTimeoutError::TooManyAttachments { count, max }
            }
            NoRoomInTime::Attachment(error) => SendTimeoutError::Attachment(error),
            NoRoomInTime::Memory(error) => SendTimeoutError::Memory(error),
            NoRoomInTime::Wait(error) => SendTimeoutError::Wait(error),
            NoRoomInTime::Full | NoRoomInTime::TimedOut => SendTimeoutError::TimedOut,
        }
    }
}

/// How long memory of the pool stays unused before it goes back, unless [`Publisher::trim`] says otherwise.
pub(super) const QUIET: Duration = Duration::from_secs(10);

/// Waits for one of the sources, for a signal, or for the deadline.
fn poll_until(sources: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    match poll(sources, deadline.map(remaining).as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

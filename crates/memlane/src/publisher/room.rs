//! Room for a message, in the ring or in the pool: at once, or by waiting for subscribers.

use std::{
    io,
    os::fd::OwnedFd,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use memlane_region::{
    Shared,
    pool::{Pool, PoolError},
    ring::{Joined, NoRoom, RingWriter},
};
use memlane_signaling::{WaitPolicy, remaining};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use super::{Publisher, control::Control, peer::Peer};
use crate::{Error, SendError, SendTimeoutError, TrySendError, page::WANTED};

/// The word of a publisher that waits for a hold slot: no cursor ever gets there.
const A_SLOT: u64 = u64::MAX;

#[cfg(test)]
documented!(A_SLOT);

/// What a message needs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Need {
    /// So many bytes in the ring.
    Ring(usize),
    /// A free chunk for so many bytes.
    Chunk(usize),
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
    TimedOut,
    Memory(memlane_region::Error),
    Wait(io::Error),
}

/// Looks for room, once.
#[inline]
fn look(
    writer: &mut RingWriter<Shared, Peer>,
    pool: &mut Pool,
    control: &Control,
    need: Need,
) -> Result<(), NoRoomInTime> {
    match need {
        Need::Ring(len) => match writer.reserve(len) {
            Ok(()) => Ok(()),
            Err(NoRoom::Full) => Err(NoRoomInTime::Full),
            Err(NoRoom::TooLarge { max }) => Err(NoRoomInTime::TooLarge { max }),
        },
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
                PoolError::Os(error) => NoRoomInTime::Memory(error),
                _ => NoRoomInTime::Full,
            })
        }
    }
}

impl Publisher {
    /// Room, if there is any now.
    #[inline]
    pub(super) fn look(&mut self, need: Need) -> Result<(), NoRoomInTime> {
        look(&mut self.writer, &mut self.pool, &self.control, need)
    }

    /// Room, now or by waiting for subscribers.
    #[inline]
    pub(super) fn room(
        &mut self,
        need: Need,
        deadline: Option<Instant>,
    ) -> Result<(), NoRoomInTime> {
        match self.look(need) {
            Err(NoRoomInTime::Full) => self.wait(need, deadline),
            found => found,
        }
    }

    /// Waits for room: spins, then sleeps, as the policy says.
    #[cold]
    fn wait(&mut self, need: Need, deadline: Option<Instant>) -> Result<(), NoRoomInTime> {
        self.stats.stalls += 1;
        loop {
            let Publisher {
                pacer,
                writer,
                pool,
                control,
                ..
            } = &mut *self;
            let found = pacer.spin(|| match look(writer, pool, control, need) {
                Err(NoRoomInTime::Full) => None,
                found => Some(found),
            });
            if let Some(found) = found {
                return found;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                // One that slept until now has not looked since.
                return match self.look(need) {
                    Err(NoRoomInTime::Full) => Err(NoRoomInTime::TimedOut),
                    found => found,
                };
            }
            if self.pacer.policy() == WaitPolicy::Poll {
                if self.reactor.is_none() {
                    self.control.drive().map_err(NoRoomInTime::Wait)?;
                }
                continue;
            }
            let wanted = self.wanted(need);
            self.want(wanted);
            // Before the look: one that leaves during it has rung for good by the time it is no longer among the
            // readers. One that joins has nothing yet.
            let readers: Vec<_> = self.writer.readers().cloned().collect();
            let loans = match need {
                Need::Ring(_) => Ok(None),
                Need::Chunk(_) => self.pool.await_loans(),
            };
            // The last look fences before it loads cursors and slots, and a subscriber between its store of either and
            // its look at what is wanted: it sees that, or its store is seen here.
            let found = match (loans, self.look(need)) {
                // The look found records passed whose chunks are held: nobody will pass them again.
                (_, Err(NoRoomInTime::Full)) if self.wanted(need) != wanted => None,
                (Ok(loans), Err(NoRoomInTime::Full)) => {
                    let slept = self.sleep(&readers, loans.as_deref(), deadline);
                    slept.err().map(|error| Err(NoRoomInTime::Wait(error)))
                }
                (Err(error), Err(NoRoomInTime::Full)) => Some(Err(NoRoomInTime::Wait(error))),
                (_, found) => Some(found),
            };
            self.pool.await_no_loans();
            self.want(0);
            if let Some(found) = found {
                return found;
            }
        }
    }

    /// What to show to subscribers.
    fn wanted(&self, need: Need) -> u64 {
        match need {
            Need::Ring(len) => self.writer.want(len),
            Need::Chunk(_) => self.pool.want().unwrap_or(A_SLOT),
        }
    }

    fn want(&self, wanted: u64) {
        let word = self.writer.memory().word(WANTED);
        word.store(wanted, Ordering::Relaxed);
    }

    /// Sleeps until one of these subscribers has made room or left, a loan was dropped, or the deadline has passed.
    fn sleep(
        &mut self,
        readers: &[Joined<Peer>],
        loans: Option<&OwnedFd>,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        self.stats.sleeps += 1;
        let bells: Vec<_> = readers
            .iter()
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
        sources.extend(loans.map(|loans| PollFd::new(loans, PollFlags::IN)));
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

    pub(super) fn wait_for(&self, count: usize, deadline: Option<Instant>) -> Result<bool, Error> {
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

impl NoRoomInTime {
    pub(super) fn forever(self, len: usize) -> SendError {
        match self {
            NoRoomInTime::TooLarge { max } => SendError::TooLarge { len, max },
            NoRoomInTime::Loaned { bytes } => SendError::Loaned { len, bytes },
            NoRoomInTime::Memory(error) => SendError::Memory(error),
            NoRoomInTime::Wait(error) => SendError::Wait(error),
            NoRoomInTime::Full | NoRoomInTime::TimedOut => unreachable!("there was no deadline"),
        }
    }

    pub(super) fn at_once(self, len: usize) -> TrySendError {
        match self {
            NoRoomInTime::TooLarge { max } => TrySendError::TooLarge { len, max },
            NoRoomInTime::Loaned { bytes } => TrySendError::Loaned { len, bytes },
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
            NoRoomInTime::Loaned { bytes } => SendTimeoutError::Loaned { len, bytes },
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

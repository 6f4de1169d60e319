mod attachments;
mod builder;
mod chunks;
mod connecting;
mod elsewhere;
mod gathered;
mod handshake;
mod held;
mod homes;
mod leaving;
mod lossy;
mod message;
mod page;
mod paired;
mod rings;
mod signs;
mod sleep;
#[cfg(feature = "stream")]
mod stream;
#[cfg(test)]
mod tests;
mod travel;
mod trust;
mod watch;

use std::{
    io,
    marker::PhantomData,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use memlane_region::{
    Remote,
    pool::ChunkRef,
    ring::{Carried, Corrupt, Look, LossyError, Record, RingReader},
};
use memlane_signaling::{Backing, Doorbell, Pacer, Waiter, Woken};
use memlane_transport::{Address, Link};
use rustix::{
    event::{PollFd, PollFlags, poll},
    time::{ClockId, Timespec, clock_gettime},
};

use attachments::Attached;
pub use builder::SubscriberBuilder;
use chunks::Chunks;
pub(crate) use connecting::Meeting;
use elsewhere::{Elsewhere, Place};
pub(crate) use gathered::Arming;
pub(crate) use handshake::{Awaits, Handshake, left};
pub use held::Held;
use lossy::Lossy;
pub use message::Message;
use page::Page;
use signs::Signs;
use sleep::Sleep;
#[cfg(feature = "stream")]
pub use stream::Messages;
use travel::Travel;
pub use travel::{Stays, Ticket};
pub use trust::{Trust, Trusted, Untrusted};
pub use watch::{WatchError, WatchReceiver, WatchReceiverBuilder, WatchReceiverStats};

use crate::{
    ChunkError, Error, Reason, RecvError, RecvTimeoutError, TryRecvError, after,
    protocol::MAX_RINGS,
    receiving::{Finding, Receiving},
    watched::{Watch, polls},
};

/// A reading end of a lane: receives every message from the moment it subscribed.
///
/// Messages are read in place and released when they are dropped. A subscriber that is slow makes the
/// publisher wait once the ring is full, unless it is to be [overwritten](SubscriberBuilder::overflow) then; one that is
/// dropped, or dies, holds nothing up.
///
/// When the publisher is gone, in order or by dying, what it had committed is still received, and then comes
/// [`RecvError::Disconnected`], with the [`Reason`].
#[derive(Debug)]
pub struct Subscriber<T: Trust = Untrusted> {
    ring: RingReader<Remote, Page>,
    /// What reads in place of the ring's reader, which has the page then, and never finds anything: it is overwritten.
    lossy: Option<Box<Lossy>>,
    chunks: Chunks,
    elsewhere: Elsewhere,
    /// Before the doorbell and the link: it must not outlive what it watches.
    sleep: Option<Sleep>,
    pacer: Pacer,
    link: Arc<Link>,
    /// The publisher's process, unless it is this one.
    process: Option<OwnedFd>,
    life: Life,
    signs: Signs,
    stats: SubscriberStats,
    /// How many messages there were before it subscribed.
    first: u64,
    /// Messages missed right before the one received last.
    missed_last: u64,
    /// Messages received when the ring was last found empty by one who waits.
    caught_up: u64,
    spun: Spun,
    /// Where the publisher was, to clear the name if it died there.
    address: Option<Address>,
    watched: Option<Watching>,
    travel: Travel,
    trust: PhantomData<T>,
}

/// How a loop of the user's waits for it.
#[derive(Debug)]
struct Watching {
    /// The descriptor has been made readable, since there may be messages that nobody will ring for.
    ready: bool,
}

impl Watching {
    fn not_ready(&mut self, sleep: &Sleep, link: &Link) {
        if self.ready && sleep.waiter.not_ready(link).is_ok() {
            self.ready = false;
        }
    }
}

/// What has come of the spin of a wait that has begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Spun {
    /// It has not spun, or what it has found is received.
    #[default]
    Not,
    InVain,
    /// There is something, which is still to be found.
    Met,
}

/// What is known of the publisher's life.
#[derive(Debug)]
struct Life {
    gone: bool,
    /// Empty-handed calls of `try_recv`, and the clock when the kernel was last asked.
    misses: u32,
    asked: Timespec,
}

/// What a subscriber has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriberStats {
    /// Messages received.
    pub messages: u64,
    /// Messages missed, by one that is [overwritten](crate::Overflow::Overwrite): as of the last call that looked for one, the end
    /// included. With those received they are all that were sent since it subscribed.
    pub missed: u64,
    /// Times a message came while it spun: no sleep, and no ring by the publisher.
    pub spins: u64,
    /// Times it went to sleep for want of a message; of one that is watched or in a task, times it found none.
    pub sleeps: u64,
    /// Times it was rung awake.
    pub wakeups: u64,
    /// Times it was rung, and there was no message: for what the publisher has given up of its pool, by a publisher that
    /// rings for fun, or when a ring had been overtaken by its message.
    pub spurious: u64,
    /// Times it carried the barrier: one membarrier(2) each ([`SubscriberBuilder::membarrier`]).
    pub barriers: u64,
}

/// So many messages without an empty ring between them are a stream, ...
const STREAM: u64 = 8;
/// ... and its publisher gets so many pauses to get ahead (some 30 to 170 ns, by processor). In a ping-pong, which
/// finds the ring empty after each message, there are none.
const HEAD_START: u32 = 4;

/// For so long a publisher may be dying.
const DYING: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// The next message, which is found, and will be found again until it is given out.
#[derive(Clone, Copy, Debug)]
pub enum Next {
    /// In the ring: its length.
    InRing(usize),
    /// More than that: it is [noted](Chunks::noted).
    Noted,
    /// Taken from a ring that does not wait.
    Taken,
}

/// No message. As small as can be: what is found goes through registers, and this is what may be in its place.
#[derive(Debug)]
pub enum NoMessage {
    /// In time.
    TimedOut,
    Because(Box<Why>),
}

/// Why there is none.
#[derive(Debug)]
pub enum Why {
    Disconnected(Reason),
    Corrupt(Corrupt),
    Anchor(LossyError),
    Chunk(ChunkError),
    Silent(Duration),
    Wait(io::Error),
}

impl Subscriber {
    /// Subscribes to a service of this user's, with the options of [`SubscriberBuilder`].
    ///
    /// # Errors
    ///
    /// [`Error`]: nobody publishes there, or it may not be this user, or resources are short.
    pub fn connect(service: &str) -> Result<Subscriber, Error> {
        Subscriber::builder().connect(service)
    }

    /// Options, all with defaults.
    pub fn builder() -> SubscriberBuilder {
        SubscriberBuilder::default()
    }
}

impl<T: Trust> Subscriber<T> {
    /// Receives the next message; waits for it as long as there is a publisher.
    ///
    /// # Errors
    ///
    /// [`RecvError`]. After `Disconnected` and `Corrupt` no call will receive anything.
    #[inline]
    pub fn recv(&mut self) -> Result<Message<'_, T>, RecvError> {
        match self.payload() {
            Some(len) => Ok(self.in_ring(len)),
            None => match self.spin() {
                Some(len) => Ok(self.in_ring(len)),
                None => self.recv_other(),
            },
        }
    }

    #[inline(never)]
    fn recv_other(&mut self) -> Result<Message<'_, T>, RecvError> {
        let found = self.find_or_wait(None);
        self.deliver(found).map_err(NoMessage::forever)
    }

    /// The length of the next message, if that is there and nothing but a payload in the ring.
    #[inline(always)]
    pub(crate) fn payload(&mut self) -> Option<usize> {
        match self.lossy.is_none().then(|| self.ring.look()) {
            Some(Look::Payload(len)) => Some(len),
            _ => None,
        }
    }

    #[inline(always)]
    pub(crate) fn in_ring(&mut self, len: usize) -> Message<'_, T> {
        let sequence = self.first.wrapping_add(self.stats.messages);
        self.stats.messages += 1;
        Message::in_ring(&mut self.ring, len, sequence)
    }

    /// Receives the next message if there is one.
    ///
    /// In a loop of your own, call [`std::hint::spin_loop`] after each [`TryRecvError::Empty`]: polling the line
    /// that the publisher is about to write slows it down. A publisher's death is noticed within eight
    /// calls and one tick of the coarse clock (1 to 10 ms).
    ///
    /// # Errors
    ///
    /// [`TryRecvError`].
    #[inline]
    pub fn try_recv(&mut self) -> Result<Message<'_, T>, TryRecvError> {
        match self.payload() {
            Some(len) => Ok(self.in_ring(len)),
            None => self.try_recv_other(),
        }
    }

    #[inline(never)]
    fn try_recv_other(&mut self) -> Result<Message<'_, T>, TryRecvError> {
        match self.find() {
            Ok(Some(found)) => self.deliver(Ok(found)).map_err(NoMessage::at_once),
            Ok(None) => Err(TryRecvError::Empty),
            Err(error) => Err(error.at_once()),
        }
    }

    /// Receives the next message; waits for it no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError`].
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Message<'_, T>, RecvTimeoutError> {
        let found = self.next(|| after(timeout));
        self.deliver(found).map_err(NoMessage::in_time)
    }

    /// For how long the publisher has given no sign of life, neither a message nor
    /// [`assert_alive`](crate::Publisher::assert_alive), as far as calls of this could tell: for loops with a timer of
    /// their own. At first, since the subscription.
    pub fn silence(&mut self) -> Duration {
        let alive = self.ring.page().alive();
        self.signs.silence(self.heard(), alive)
    }

    /// Where its publisher is, or was.
    pub(crate) fn address(&self) -> Option<&Address> {
        self.address.as_ref()
    }

    /// Messages that are signs of life.
    fn heard(&self) -> u64 {
        self.stats.messages.wrapping_add(self.missed())
    }

    fn missed(&self) -> u64 {
        self.lossy.as_ref().map_or(0, |lossy| lossy.missed())
    }

    /// How many messages its publisher had sent before the next one, as far as this subscriber has got
    /// ([`Message::sequence`]).
    pub fn sequence(&self) -> u64 {
        match &self.lossy {
            None => self.first.wrapping_add(self.stats.messages),
            Some(lossy) => lossy.sequence(),
        }
    }

    /// How many messages were missed right before the one received last ([`Message::missed`]): for typed lanes, whose messages
    /// are values.
    pub fn missed_last(&self) -> u64 {
        self.missed_last
    }

    /// What it has done so far.
    pub fn stats(&self) -> SubscriberStats {
        let sleep = self.sleep.as_ref();
        SubscriberStats {
            missed: self.missed(),
            barriers: sleep.map_or(0, |sleep| sleep.armed().barriers()),
            ..self.stats
        }
    }

    /// What its publisher rings to wake it: an eventfd if each trusts the other, else a socket; none if it polls.
    pub fn doorbell(&self) -> Option<Backing> {
        self.sleep.as_ref().map(|sleep| sleep.doorbell.backing())
    }

    /// Whether it carries the barrier now ([`SubscriberBuilder::membarrier`]), and spares its publisher a fence for each
    /// message.
    pub fn carries_barrier(&self) -> bool {
        let sleep = self.sleep.as_ref();
        sleep.is_some_and(|sleep| sleep.armed().carries())
    }

    #[inline(always)]
    pub(crate) fn deliver(
        &mut self,
        found: Result<Next, NoMessage>,
    ) -> Result<Message<'_, T>, NoMessage> {
        match found? {
            Next::InRing(len) => Ok(self.in_ring(len)),
            Next::Noted => self.deliver_noted(),
            Next::Taken => self.deliver_taken(),
        }
    }

    #[inline(never)]
    fn deliver_noted(&mut self) -> Result<Message<'_, T>, NoMessage> {
        match self.chunks.noted() {
            Record::Inline(len) => Ok(self.in_ring(len)),
            Record::Chunk(chunk) => self.deliver_chunk(chunk),
            Record::Attached { tag, message } => self.deliver_attached(tag, message),
        }
    }

    #[cold]
    fn deliver_attached(
        &mut self,
        tag: u16,
        message: Carried,
    ) -> Result<Message<'_, T>, NoMessage> {
        let position = self.ring.position();
        let fds = self.chunks.attached(position, tag, &self.link);
        if let (Err(_), Some(reason)) = (&fds, self.chunks.evicted()) {
            // It was not told of them any more.
            let reason = reason.clone();
            self.leave_dropped();
            return Err(Why::Disconnected(reason).into());
        }
        self.tell_taken();
        if self.chunks.is_broken() {
            // For want of descriptors, say. The publisher does not wait for it any more, and may be writing where this message is.
            self.ring.stop();
            if let (true, Err(error)) = (T::TRUSTED, &fds) {
                let why = error.to_string();
                self.leave_dropped();
                return Err(Why::Chunk(ChunkError { why }).into());
            }
        }
        let (len, place) = match message {
            Carried::Inline(len) => (len, Place::Ring),
            Carried::Chunk(chunk) => self.find_chunk(chunk)?,
        };
        let attached = Attached::new(fds, T::TRUSTED);
        Ok(self.elsewhere(len, place, Some(attached)))
    }

    /// Where it is in the stream.
    fn position(&self) -> u64 {
        match &self.lossy {
            None => self.ring.position(),
            Some(lossy) => lossy.position(),
        }
    }

    /// Tells the publisher with how many notices of attachments this subscriber is done.
    fn tell_taken(&mut self) {
        if let Some(done) = self.chunks.attachments.untold(self.position()) {
            self.ring.page().took(done);
        }
    }

    fn deliver_chunk(&mut self, found: ChunkRef) -> Result<Message<'_, T>, NoMessage> {
        let (len, place) = self.find_chunk(found)?;
        Ok(self.elsewhere(len, place, None))
    }

    /// The next message, of this length, and more than a payload in the ring.
    fn elsewhere(
        &mut self,
        len: usize,
        place: Place,
        attached: Option<Box<Attached>>,
    ) -> Message<'_, T> {
        let sequence = self.first.wrapping_add(self.stats.messages);
        self.stats.messages += 1;
        self.elsewhere.set(place, 0, attached);
        Message::elsewhere(&mut self.ring, len, sequence, &mut self.elsewhere)
    }

    fn find_chunk(&mut self, found: ChunkRef) -> Result<(usize, Place), NoMessage> {
        let position = self.ring.position();
        if !self.chunks.has(found.segment, position, &self.link) {
            if let Some(reason) = self.chunks.evicted().cloned() {
                // It was not told of it any more.
                self.leave_dropped();
                return Err(Why::Disconnected(reason).into());
            }
            if self.chunks.is_broken() {
                self.leave_dropped();
            }
        }
        let chunk = self.chunks.resolve(found);
        let chunk = chunk.map_err(Why::Chunk)?;
        Ok((chunk.len(), Place::Chunk(chunk.keep())))
    }

    fn deliver_taken(&mut self) -> Result<Message<'_, T>, NoMessage> {
        let given = self.lossy.as_mut().and_then(|lossy| lossy.give(T::TRUSTED));
        let (len, sequence, elsewhere) = given.expect("taken a moment ago");
        self.stats.messages += 1;
        self.missed_last = elsewhere.missed;
        Ok(Message::elsewhere(&mut self.ring, len, sequence, elsewhere))
    }

    /// What comes next, if it is there. Exports what was released, if it is not.
    #[inline(always)]
    fn poll(&mut self) -> Result<Option<Next>, NoMessage> {
        next(
            &mut self.ring,
            &mut self.lossy,
            &mut self.chunks,
            &self.link,
        )
    }

    /// Whether one that has found nothing may sleep, once it is armed: nothing at all was there, and not just nothing that had
    /// not been overwritten by the time it was copied.
    #[inline]
    fn may_sleep(&self) -> bool {
        self.lossy.as_ref().is_none_or(|lossy| lossy.is_empty())
    }

    /// The next message, if there is one.
    #[inline]
    pub(crate) fn find(&mut self) -> Result<Option<Next>, NoMessage> {
        match self.poll() {
            Ok(None) => self.found_nothing(),
            found => found,
        }
    }

    /// The ring is empty. Once in a while, asks the kernel whether the publisher lives.
    #[inline]
    fn found_nothing(&mut self) -> Result<Option<Next>, NoMessage> {
        if self.watched.is_some() {
            return self.await_ring();
        }
        self.life.misses = self.life.misses.wrapping_add(1);
        if self.life.misses % 8 != 0 && !self.life.gone {
            return Ok(None);
        }
        let now = clock_gettime(ClockId::MonotonicCoarse);
        if now == self.life.asked && !self.life.gone {
            return Ok(None);
        }
        self.life.asked = now;
        self.take_notices();
        self.look_for_death()?;
        if self.life.gone {
            self.rest()
        } else {
            Ok(None)
        }
    }

    /// Unmaps what the publisher has given up, and takes attachments of messages that did not come about, if it waits for that.
    /// What is new can wait until a message is in it.
    fn take_notices(&mut self) {
        if !self.chunks.is_empty() || self.ring.page().is_awaited() {
            self.chunks.take_notices(&self.link, self.position());
            self.tell_taken();
            if self.chunks.is_broken() {
                // The publisher does not wait for it any more.
                self.ring.stop();
            }
        }
    }

    #[cold]
    fn look_for_death(&mut self) -> Result<(), NoMessage> {
        self.settle();
        if !self.life.gone && self.is_publisher_gone().map_err(Why::Wait)? {
            self.bury();
        }
        Ok(())
    }

    /// The publisher is gone. What it committed before that is in the ring: what is not there now never
    /// will be. `None` if there is more to look at than one look takes.
    fn rest(&mut self) -> Result<Option<Next>, NoMessage> {
        match self.poll() {
            // It was that of the process from which the publisher has moved.
            Ok(None) if self.settle() && !self.life.gone => Ok(None),
            Ok(None) if self.may_sleep() => {
                let stranded = self.lossy.as_ref().and_then(|lossy| lossy.stranded());
                let why = match stranded {
                    Some(error) => Why::Chunk(error.clone()),
                    None => {
                        let reason = self.chunks.farewell(&self.link);
                        if matches!(reason, Reason::Evicted { .. }) || self.chunks.is_broken() {
                            self.leave_dropped();
                        }
                        Why::Disconnected(reason)
                    }
                };
                Err(why.into())
            }
            found => found,
        }
    }

    /// The publisher goes on without this subscriber, which has had all that it will get: what was left to it is given back, but
    /// for what it holds, or another goes on from.
    #[cold]
    fn leave_dropped(&mut self) {
        if self.lossy.is_some() {
            // It is in nobody's way, and what it finds it may still read.
            return;
        }
        self.ring.stop();
        if self.ring.page().holds().taken() == 0 {
            self.link.hang_up();
        } else if self.travel == Travel::Stays {
            self.ring.leave();
        }
    }

    #[cold]
    fn bury(&mut self) {
        if self.settle() && !self.life.gone {
            return;
        }
        self.life.gone = true;
        self.clear_name();
    }

    /// A publisher that was killed left its socket's name; the first to notice clears it.
    fn clear_name(&self) {
        if let (true, Some(address)) = (self.life.gone, &self.address) {
            let _ = memlane_transport::remove_stale(address);
        }
    }

    /// The name is still there. The link of a dying process may end a moment before its listener does; once its pidfd is
    /// readable, both have (do_exit: exit_files and exit_task_work come before exit_notify).
    fn clear_name_of_the_dead(&self) {
        let (true, Some(Address::Path(name)), Some(process)) =
            (self.life.gone, &self.address, &self.process)
        else {
            return;
        };
        if name.exists() {
            let _ = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&DYING));
            self.clear_name();
        }
    }

    /// The ring is empty, and a loop of the user's waits for the descriptor. Either there is a message after all, or the
    /// descriptor is not readable before there is one.
    fn await_ring(&mut self) -> Result<Option<Next>, NoMessage> {
        let (Some(sleep), Some(watching)) = (&mut self.sleep, &mut self.watched) else {
            return Ok(None);
        };
        // Where the kernel fails to do one of these, the descriptor stays readable.
        watching.not_ready(sleep, &self.link);
        let mut in_vain = false;
        match sleep.waiter.take(&mut sleep.doorbell) {
            Ok(Some(Woken::Rung)) => {
                self.stats.wakeups += 1;
                in_vain = sleep.since() == self.stats.messages;
            }
            Ok(Some(Woken::Gone)) => self.bury(),
            _ => {}
        }
        if self.life.gone {
            let found = self.rest();
            if let Ok(None) = found {
                self.stay_ready();
            }
            return found;
        }
        match self.arm() {
            Ok(Arming::Armed) => {
                self.stats.spurious += u64::from(in_vain);
                Ok(None)
            }
            armed => {
                // There may be more than this one, and nobody rings for what came before it was armed.
                self.stay_ready();
                Ok(match armed? {
                    Arming::Found(next) => Some(next),
                    Arming::Armed | Arming::Overtaken => None,
                })
            }
        }
    }

    /// Makes the descriptor readable, if a loop of the user's waits for it, until the ring has been seen empty.
    #[cold]
    fn stay_ready(&mut self) {
        if let (Some(sleep), Some(watching)) = (&mut self.sleep, &mut self.watched) {
            sleep.disarm(self.ring.page().armed());
            watching.ready |= sleep.waiter.ready(&*self.link).is_ok();
        }
    }

    /// Spins, as the policy says, for a payload in a ring that is empty. The first part of a wait, kept apart from the rest of it
    /// so that what is found comes in registers. If it is in vain, the wait goes on from there.
    #[inline(never)]
    fn spin(&mut self) -> Option<usize> {
        if self.spun != Spun::Not || self.lossy.is_some() || self.life.gone {
            return None;
        }
        if !self.ring.is_empty() {
            // Nobody has to wait for it: a pacer would learn from that what is not so, or yield before it looks.
            return self.payload();
        }
        // Before it waits for more: the publisher may be waiting for just that.
        self.ring.release_all();
        self.give_head_start();
        let Subscriber { pacer, ring, .. } = self;
        let found = pacer.spin(|| match ring.look() {
            Look::Nothing => None,
            found => Some(found),
        });
        match found {
            Some(Look::Payload(len)) => {
                self.stats.spins += 1;
                Some(len)
            }
            Some(_) => {
                self.spun = Spun::Met;
                None
            }
            None => {
                self.spun = Spun::InVain;
                None
            }
        }
    }

    /// On the heels of a stream: looking at once would take the line from the publisher before it has filled it.
    #[inline(always)]
    fn give_head_start(&mut self) {
        if self.stats.messages - self.caught_up >= STREAM {
            for _ in 0..HEAD_START {
                std::hint::spin_loop();
            }
        }
        self.caught_up = self.stats.messages;
    }

    /// The length of the next message, if that is nothing but a payload in the ring, and is there or comes before a wait would
    /// sleep.
    #[inline(always)]
    pub(crate) fn next_payload(&mut self) -> Option<usize> {
        self.payload().or_else(|| self.spin())
    }

    /// The next message, which is found; waits for it until a deadline, which is computed if there is none at once.
    #[inline(always)]
    pub(crate) fn next(
        &mut self,
        deadline: impl FnOnce() -> Option<Instant>,
    ) -> Result<Next, NoMessage> {
        match self.payload() {
            Some(len) => Ok(Next::InRing(len)),
            None => {
                let deadline = deadline();
                match self.spin() {
                    Some(len) => Ok(Next::InRing(len)),
                    None => self.find_or_wait(deadline),
                }
            }
        }
    }

    #[inline(never)]
    fn find_or_wait(&mut self, deadline: Option<Instant>) -> Result<Next, NoMessage> {
        match self.poll() {
            Ok(Some(found)) => {
                let spun = std::mem::take(&mut self.spun);
                self.stats.spins += u64::from(spun == Spun::Met);
                Ok(found)
            }
            _ => self.wait(deadline),
        }
    }

    /// Waits for a message: spins, unless it has, then sleeps, as the policy says.
    #[cold]
    fn wait(&mut self, deadline: Option<Instant>) -> Result<Next, NoMessage> {
        if let (Some(sleep), Some(watching)) = (&self.sleep, &mut self.watched) {
            // Made readable for a loop, the waiter would never sleep.
            watching.not_ready(sleep, &self.link);
        }
        let found = self.wait_until(deadline);
        self.stay_ready();
        found
    }

    fn wait_until(&mut self, deadline: Option<Instant>) -> Result<Next, NoMessage> {
        self.give_head_start();
        loop {
            if self.life.gone {
                if let Some(found) = self.rest().transpose() {
                    return found;
                }
            }
            let Subscriber {
                pacer,
                ring,
                lossy,
                chunks,
                link,
                spun,
                ..
            } = &mut *self;
            let found = match std::mem::take(spun) {
                Spun::InVain => None,
                _ => pacer.spin(|| next(ring, lossy, chunks, link).transpose()),
            };
            match found {
                Some(found) => {
                    self.stats.spins += 1;
                    return found;
                }
                None if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                    return Err(NoMessage::TimedOut);
                }
                None => {}
            }
            let deadline = if self.signs.matter() {
                let alive = self.ring.page().alive();
                let heard = self.heard();
                if let Some(silence) = self.signs.too_long(heard, alive) {
                    return Err(Why::Silent(silence).into());
                }
                deadline.into_iter().chain(self.signs.deadline()).min()
            } else {
                deadline
            };
            let Some(sleep) = &mut self.sleep else {
                self.take_notices();
                self.look_for_death()?;
                continue;
            };
            sleep.arm(self.ring.page().armed(), self.stats.messages);
            // Armed before: whoever gives something up from now on, or waits for something, rings. Where nothing is mapped,
            // nothing can be given up.
            self.take_notices();
            // Exports what was released, too: the publisher may be waiting for just that.
            let woken = match self.poll() {
                Ok(None) if self.may_sleep() => {
                    self.stats.sleeps += 1;
                    let since = Instant::now();
                    let Some(sleep) = &mut self.sleep else {
                        continue;
                    };
                    let woken = sleep.waiter.wait(&mut sleep.doorbell, deadline);
                    let met = matches!(woken, Ok(Woken::Rung));
                    self.pacer.slept(since.elapsed(), met);
                    woken.map_err(Why::Wait)
                }
                _ => {
                    // It may have been rung for this sleep all the same, and no wait counts that ring.
                    if let Some(sleep) = &mut self.sleep {
                        sleep.doorbell.woken();
                    }
                    Ok(Woken::TimedOut)
                }
            };
            if let Some(sleep) = &mut self.sleep {
                sleep.disarm(self.ring.page().armed());
            }
            let woken = woken?;
            match woken {
                Woken::Rung => self.stats.wakeups += 1,
                Woken::Gone => self.bury(),
                Woken::TimedOut => {}
            }
            // Spinning again would be in vain if it was not rung for a message, and is not needed if it was.
            if let Some(found) = self.poll().transpose() {
                return found;
            }
            self.stats.spurious += u64::from(woken == Woken::Rung);
        }
    }
}

impl<T: Trust> Finding for Subscriber<T> {
    type Found = Next;

    fn find(&mut self) -> Result<Option<Next>, NoMessage> {
        Subscriber::find(self)
    }
}

impl<T: Trust> Receiving for Subscriber<T> {
    type Trust = T;

    fn deliver(&mut self, found: Result<Next, NoMessage>) -> Result<Message<'_, T>, NoMessage> {
        Subscriber::deliver(self, found)
    }
}

impl<T: Trust> Watch for Subscriber<T> {
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
            sleep.disarm(self.ring.page().armed());
            let _ = sleep.waiter.not_ready(&*self.link);
        }
    }

    fn descriptor(&self) -> &Arc<OwnedFd> {
        let sleep = self.sleep.as_ref();
        sleep.expect("it is watched").waiter.descriptor()
    }
}

impl<T: Trust> Drop for Subscriber<T> {
    fn drop(&mut self) {
        let holds = self.ring.page().holds();
        if !holds.page().is_mine() {
            return;
        }
        self.clear_name_of_the_dead();
        if let Some(lossy) = &mut self.lossy {
            lossy.forget();
        }
        if self.travel != Travel::Stays {
            // Whoever goes on is to find its cursor.
            self.set_off();
        } else if holds.taken() > 0 {
            // What is held keeps the link, and so this subscriber's place among the others.
            self.ring.leave();
        }
    }
}

fn watch(doorbell: &Doorbell, link: &Link, process: Option<&OwnedFd>) -> io::Result<Waiter> {
    let waiter = Waiter::new(doorbell)?;
    waiter.watch_link(link)?;
    if let Some(pidfd) = process {
        waiter.watch_process(pidfd)?;
    }
    Ok(waiter)
}

/// What comes next in a ring, or in one that does not wait.
#[inline(always)]
fn next(
    ring: &mut RingReader<Remote, Page>,
    lossy: &mut Option<Box<Lossy>>,
    chunks: &mut Chunks,
    link: &Link,
) -> Result<Option<Next>, NoMessage> {
    if lossy.is_none() {
        match ring.look() {
            Look::Payload(len) => return Ok(Some(Next::InRing(len))),
            Look::Nothing => return Ok(None),
            Look::Other => {}
        }
    }
    next_of_others(ring, lossy, chunks, link)
}

/// What comes next where that is more than a payload in a ring. Kept apart from the hot path, which would move the many forms of
/// it through memory.
#[inline(never)]
fn next_of_others(
    ring: &mut RingReader<Remote, Page>,
    lossy: &mut Option<Box<Lossy>>,
    chunks: &mut Chunks,
    link: &Link,
) -> Result<Option<Next>, NoMessage> {
    if let Some(lossy) = lossy {
        let found = lossy.poll(chunks, link, ring.page().holds());
        if let Some(home) = chunks.homes.come() {
            ring.page_mut().settle(*home);
        }
        return found;
    }
    match ring.poll_record() {
        Ok(None) if ring.ends() => go_on(ring, chunks, link),
        Ok(None) => Ok(None),
        Ok(Some(record)) => Ok(Some(chunks.note(record))),
        Err(corrupt) => Err(Why::Corrupt(corrupt).into()),
    }
}

/// What comes next where a ring ends: it is in another. That may end there and then, if its publisher has moved on at once.
#[cold]
fn go_on(
    ring: &mut RingReader<Remote, Page>,
    chunks: &mut Chunks,
    link: &Link,
) -> Result<Option<Next>, NoMessage> {
    for _ in 0..MAX_RINGS {
        let Some(following) = ring.switched() else {
            return Ok(None);
        };
        // If that is another publisher's, what is the other's goes before more of this one's comes.
        chunks.take_ring(following, link, ring.position());
        chunks.come_to(following);
        // After that has said where this reader is: a publisher that goes on without it, and did not know by then, has said so.
        chunks.take_all(link, ring.position()).map_err(Why::Chunk)?;
        if let Some(done) = chunks.attachments.untold(ring.position()) {
            ring.page().took(done);
        }
        if let Some(reason) = chunks.ended(ring.position()) {
            ring.stop();
            if ring.page().holds().taken() == 0 {
                // What was left to this reader is the publisher's again.
                link.hang_up();
            } else if chunks.is_broken() {
                ring.leave();
            }
            return Err(Why::Disconnected(reason).into());
        }
        ring.follow(chunks.ring(following).map_err(Why::Chunk)?);
        chunks.reads = following;
        if let Some(home) = chunks.homes.come() {
            ring.page_mut().settle(*home);
        }
        match ring.poll_record() {
            Ok(None) if ring.ends() => {}
            Ok(None) => return Ok(None),
            Ok(Some(record)) => return Ok(Some(chunks.note(record))),
            Err(corrupt) => return Err(Why::Corrupt(corrupt).into()),
        }
    }
    Ok(None)
}

impl From<Why> for NoMessage {
    #[cold]
    fn from(why: Why) -> NoMessage {
        NoMessage::Because(Box::new(why))
    }
}

impl From<LossyError> for NoMessage {
    fn from(error: LossyError) -> NoMessage {
        NoMessage::from(match error {
            LossyError::Header(corrupt) => Why::Corrupt(corrupt),
            anchor => Why::Anchor(anchor),
        })
    }
}

impl NoMessage {
    /// Why there is none, if it is not that none came in time.
    pub(crate) fn cause(&self) -> Option<&Why> {
        match self {
            NoMessage::TimedOut => None,
            NoMessage::Because(why) => Some(why),
        }
    }

    pub(crate) fn why(self) -> Option<Why> {
        match self {
            NoMessage::TimedOut => None,
            NoMessage::Because(why) => Some(*why),
        }
    }

    #[cold]
    pub(crate) fn forever(self) -> RecvError {
        match self.why().expect("there was no deadline") {
            Why::Disconnected(reason) => RecvError::Disconnected { reason },
            Why::Corrupt(corrupt) => RecvError::Corrupt(corrupt),
            Why::Anchor(error) => RecvError::Anchor(error),
            Why::Chunk(error) => RecvError::Chunk(error),
            Why::Silent(silence) => RecvError::Silent { silence },
            Why::Wait(error) => RecvError::Wait(error),
        }
    }

    pub(crate) fn at_once(self) -> TryRecvError {
        match self.why() {
            Some(Why::Disconnected(reason)) => TryRecvError::Disconnected { reason },
            Some(Why::Corrupt(corrupt)) => TryRecvError::Corrupt(corrupt),
            Some(Why::Anchor(error)) => TryRecvError::Anchor(error),
            Some(Why::Chunk(error)) => TryRecvError::Chunk(error),
            // Nothing waits here: the kernel could not say whether the publisher lives, and is asked again.
            Some(Why::Wait(_) | Why::Silent(_)) | None => TryRecvError::Empty,
        }
    }

    pub(crate) fn in_time(self) -> RecvTimeoutError {
        match self.why() {
            None => RecvTimeoutError::TimedOut,
            Some(Why::Disconnected(reason)) => RecvTimeoutError::Disconnected { reason },
            Some(Why::Corrupt(corrupt)) => RecvTimeoutError::Corrupt(corrupt),
            Some(Why::Anchor(error)) => RecvTimeoutError::Anchor(error),
            Some(Why::Chunk(error)) => RecvTimeoutError::Chunk(error),
            Some(Why::Silent(silence)) => RecvTimeoutError::Silent { silence },
            Some(Why::Wait(error)) => RecvTimeoutError::Wait(error),
        }
    }
}

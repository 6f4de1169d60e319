mod attachments;
mod builder;
mod chunks;
mod connecting;
mod delivering;
mod elsewhere;
mod finding;
mod gathered;
mod handshake;
mod held;
mod homes;
mod leaving;
mod life;
mod lossy;
mod message;
mod moving;
mod nothing;
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
mod waiting;
mod watch;
mod watch_builder;
mod watch_travel;

use std::{io, marker::PhantomData, os::fd::OwnedFd, sync::Arc, time::Duration};

use memlane_region::{
    Remote,
    ring::{Look, RingReader},
};
use memlane_signaling::{Backing, Doorbell, Pacer, Waiter, Woken};
use memlane_transport::{Address, Link};
use rustix::time::{ClockId, clock_gettime};

pub use builder::SubscriberBuilder;
use chunks::Chunks;
pub(crate) use connecting::Meeting;
use elsewhere::Elsewhere;
pub(crate) use finding::Next;
use finding::next;
pub(crate) use gathered::Arming;
pub(crate) use handshake::{Awaits, Handshake};
pub use held::Held;
use life::Life;
use lossy::Lossy;
pub use message::Message;
pub(crate) use nothing::{NoMessage, Why};
use page::Page;
use signs::Signs;
use sleep::Sleep;
#[cfg(feature = "stream")]
pub use stream::Messages;
use travel::Travel;
pub use travel::{Stays, Ticket};
pub use trust::{Trust, Trusted, Untrusted};
use waiting::Spun;
pub use watch::{WatchError, WatchReceiver, WatchReceiverStats};
pub use watch_builder::WatchReceiverBuilder;
pub use watch_travel::WatchTicket;

use crate::{
    Error, RecvError, RecvTimeoutError, TryRecvError, after,
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
/// [`RecvError::Disconnected`], with the [`Reason`](crate::Reason).
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
        match self.next_payload() {
            Some(len) => Ok(self.in_ring(len)),
            None => self.recv_other(),
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

    /// Where it is in the stream.
    fn position(&self) -> u64 {
        match &self.lossy {
            None => self.ring.position(),
            Some(lossy) => lossy.position(),
        }
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
    /// not been overwritten by the time it was copied, or nothing in as many rings as one look goes through.
    #[inline]
    fn may_sleep(&self) -> bool {
        match &self.lossy {
            None => !self.ring.ends(),
            Some(lossy) => lossy.is_empty(),
        }
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

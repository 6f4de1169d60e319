//! Waiting for a message: first it spins, then it sleeps.

use std::time::Instant;

use memlane_region::ring::Look;
use memlane_signaling::Woken;

use super::{Next, NoMessage, Subscriber, Trust, Why, finding::next};

/// So many messages without an empty ring between them are a stream, ...
const STREAM: u64 = 8;
/// ... and its publisher gets so many pauses to get ahead (some 30 to 170 ns, by processor). In a ping-pong, which
/// finds the ring empty after each message, there are none.
const HEAD_START: u32 = 4;

/// What has come of the spin of a wait that has begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Spun {
    /// It has not spun, or what it has found is received.
    #[default]
    Not,
    InVain,
    /// There is something, which is still to be found.
    Met,
}

impl<T: Trust> Subscriber<T> {
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

    /// Spins, as the policy says, for a payload in a ring that is empty. The first part of a wait, kept apart from the rest of it
    /// so that what is found comes in registers. If it is in vain, the wait goes on from there.
    #[inline(never)]
    pub(super) fn spin(&mut self) -> Option<usize> {
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
    pub(super) fn find_or_wait(&mut self, deadline: Option<Instant>) -> Result<Next, NoMessage> {
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
                    // However late it has come to look: calls that never sleep would not learn that nothing more will come.
                    return self.found_nothing()?.ok_or(NoMessage::TimedOut);
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

//! A lane among others, whose reader looks at all of them before it sleeps.

use memlane_region::ring::{Carried, Record};
use memlane_signaling::{Waiter, Woken};

use super::{Next, NoMessage, Subscriber, Trust, Why};

/// What came of seeing to it that the next message rings.
#[derive(Debug)]
pub(crate) enum Arming {
    Armed,
    /// There is one now.
    Found(Next),
    /// It is not armed: the reader was overtaken while it looked, and has to look again.
    Overtaken,
}

impl<T: Trust> Subscriber<T> {
    /// What it is woken through; none if it polls.
    pub(crate) fn waiter(&self) -> Option<&Waiter> {
        self.sleep.as_ref().map(|sleep| &sleep.waiter)
    }

    /// Whether no record waits: one load.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        match &self.lossy {
            None => self.ring.is_empty(),
            Some(lossy) => lossy.is_empty(),
        }
    }

    /// Says what has been released. Whether it is to be received from as ever: it is waited for, and its publisher lives, as far as
    /// is known.
    #[inline]
    pub(crate) fn release_all(&mut self) -> bool {
        self.ring.release_all();
        self.lossy.is_none() && !self.life.gone
    }

    /// The next record, if there is one. Asks the kernel nothing, but, now and then, where it is never woken.
    #[inline]
    pub(crate) fn look(&mut self) -> Result<Option<Next>, NoMessage> {
        match self.poll() {
            Ok(None) if self.sleep.is_none() => self.found_nothing(),
            Ok(None) if self.life.gone => self.rest(),
            Ok(Some(next)) => self.checked(next).map(Some),
            found => found,
        }
    }

    /// A message, in a chunk only if that can be had: who gathers lanes lets go of one that has others, before it is to be
    /// delivered.
    #[inline]
    fn checked(&mut self, next: Next) -> Result<Next, NoMessage> {
        let Next::Noted = next else {
            return Ok(next);
        };
        let (Record::Chunk(chunk)
        | Record::Attached {
            message: Carried::Chunk(chunk),
            ..
        }) = self.chunks.noted()
        else {
            return Ok(next);
        };
        let position = self.ring.position();
        let _ = self.chunks.has(chunk.segment, position, &self.link);
        match self.chunks.resolve(chunk) {
            Ok(_) => Ok(next),
            Err(error) => Err(Why::Chunk(error).into()),
        }
    }

    /// Sees to it that the next message rings. One that has come by now is found instead.
    pub(crate) fn arm(&mut self) -> Result<Arming, NoMessage> {
        if self.life.gone {
            return Ok(match self.rest()? {
                Some(next) => Arming::Found(next),
                None => Arming::Overtaken,
            });
        }
        if let Some(sleep) = &mut self.sleep {
            sleep.arm(self.ring.page().armed(), self.stats.messages);
        }
        self.take_notices();
        let found = self.poll();
        match found {
            Ok(None) if self.may_sleep() => {
                self.stats.sleeps += 1;
                return Ok(Arming::Armed);
            }
            _ => self.disarm(),
        }
        Ok(match found? {
            Some(next) => Arming::Found(self.checked(next)?),
            None => Arming::Overtaken,
        })
    }

    pub(crate) fn disarm(&mut self) {
        if let Some(sleep) = &mut self.sleep {
            sleep.disarm(self.ring.page().armed());
            // It may have been rung all the same, and nobody has to take that ring before the next sleep: uncounted, rings
            // would fill the doorbell.
            sleep.doorbell.woken();
        }
    }

    /// It is looked at before it was rung, and stays armed: the ring that comes for that is left to be taken, but counted by now. It
    /// may be armed again before.
    pub(crate) fn leave_armed(&mut self) {
        if let Some(sleep) = &mut self.sleep {
            sleep.doorbell.left();
        }
    }

    /// Takes what made its waiter readable.
    pub(crate) fn take_ring(&mut self) {
        let Some(sleep) = &mut self.sleep else {
            return;
        };
        match sleep.waiter.take(&mut sleep.doorbell) {
            Ok(Some(Woken::Rung)) => self.stats.wakeups += 1,
            Ok(Some(Woken::Gone)) => self.bury(),
            // Nothing, or what the kernel cannot say now: it stays readable then.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::Arming;
    use crate::{Link, Publisher, Subscriber, WaitPolicy};

    /// As a lane among others is, whose message is seen before its ring.
    #[test]
    fn rings_that_nobody_takes_do_not_fill_the_doorbell() {
        let (ours, theirs) = Link::pair().unwrap();
        let mut publisher = Publisher::builder().unbound().unwrap();
        publisher.attach(ours).unwrap();
        let builder = Subscriber::builder().wait(WaitPolicy::Block);
        let mut lane = builder.over(theirs).unwrap();
        let mut round = |lane: &mut Subscriber| {
            assert!(matches!(lane.arm().unwrap(), Arming::Armed));
            publisher.send(b"a message").unwrap();
        };
        for _ in 0..1000 {
            round(&mut lane);
            let record = lane.look().unwrap().unwrap();
            drop(lane.deliver(Ok(record)).unwrap());
            lane.disarm();
        }
        lane.take_ring();
        round(&mut lane);
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let waiter = lane.waiter().unwrap().descriptor().clone();
        let mut rung = [PollFd::new(&*waiter, PollFlags::IN)];
        assert_eq!(poll(&mut rung, Some(&now)).unwrap(), 1);
        assert_eq!(publisher.stats().rings, 1001);
    }
}

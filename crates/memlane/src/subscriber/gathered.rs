//! A lane among others, whose reader looks at all of them before it sleeps.

use memlane_region::ring::Record;
use memlane_signaling::{Waiter, Woken};

use super::{NoMessage, Subscriber, Trust};

impl<T: Trust> Subscriber<T> {
    /// What it is woken through; none if it polls.
    pub(crate) fn waiter(&self) -> Option<&Waiter> {
        self.sleep.as_ref().map(|sleep| &sleep.waiter)
    }

    /// Whether no record waits: one load.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// The next record, if there is one. Asks the kernel nothing, but, now and then, where it is never woken.
    #[inline]
    pub(crate) fn look(&mut self) -> Result<Option<Record>, NoMessage> {
        match self.ring.poll_record() {
            Ok(None) if self.sleep.is_none() => self.missed(),
            Ok(None) if self.life.gone => self.rest().map(Some),
            found => found.map_err(NoMessage::Corrupt),
        }
    }

    /// Sees to it that the next message rings. One that has come by now is found instead.
    pub(crate) fn arm(&mut self) -> Result<Option<Record>, NoMessage> {
        if self.life.gone {
            return self.rest().map(Some);
        }
        if let Some(sleep) = &mut self.sleep {
            sleep.arm(self.ring.page().armed(), self.stats.messages);
        }
        self.take_notices();
        match self.ring.poll_record() {
            Ok(None) => {
                self.stats.sleeps += 1;
                Ok(None)
            }
            found => {
                self.disarm();
                found.map_err(NoMessage::Corrupt)
            }
        }
    }

    pub(crate) fn disarm(&mut self) {
        if let Some(sleep) = &mut self.sleep {
            sleep.disarm(self.ring.page().armed());
            // It may have been rung all the same, and nobody has to take that ring before the next sleep: uncounted, rings
            // would fill the doorbell.
            sleep.doorbell.woken();
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
            assert!(lane.arm().unwrap().is_none());
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

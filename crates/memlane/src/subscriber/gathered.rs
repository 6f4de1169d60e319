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

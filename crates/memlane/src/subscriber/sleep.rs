//! What it takes to sleep.

use std::sync::atomic::AtomicU64;

use memlane_signaling::{Armed, Doorbell, Waiter};

/// Absent where the policy is to poll.
#[derive(Debug)]
pub(super) struct Sleep {
    /// Before what it watches.
    pub(super) waiter: Waiter,
    pub(super) doorbell: Doorbell,
    armed: Armed,
    /// After so many messages without a sleep it carries the barrier; none if the publisher does, always.
    carry_after: Option<u64>,
    /// Messages received when it was last armed.
    since: u64,
}

impl Sleep {
    pub(super) fn new(waiter: Waiter, doorbell: Doorbell, carry_after: Option<u64>) -> Sleep {
        Sleep {
            waiter,
            doorbell,
            armed: match carry_after {
                Some(_) => Armed::registered(),
                None => Armed::new(),
            },
            carry_after,
            since: 0,
        }
    }

    /// Announces a sleep, `messages` after the first.
    #[inline]
    pub(super) fn arm(&mut self, word: &AtomicU64, messages: u64) {
        let run = messages - self.since;
        self.since = messages;
        // The next run will be like this one. If it is not, what that costs was saved before: at least `after` fences for at
        // most two calls, this one and the one that takes it back.
        let carry = self.carry_after.is_some_and(|after| run >= after);
        self.armed.arm_by(word, carry);
    }

    pub(super) fn disarm(&mut self, word: &AtomicU64) {
        self.armed.disarm(word);
    }

    /// Messages received when it was last armed.
    pub(super) fn since(&self) -> u64 {
        self.since
    }

    pub(super) fn armed(&self) -> &Armed {
        &self.armed
    }
}

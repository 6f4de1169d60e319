//! Whether the publisher shows signs of life, which is not whether it lives.

use std::time::{Duration, Instant};

/// What was heard of the publisher, and when.
#[derive(Debug)]
pub(super) struct Signs {
    /// Messages received, and the publisher's own count of its signs.
    seen: (u64, u64),
    at: Instant,
    /// For how long it may be silent.
    limit: Option<Duration>,
}

impl Signs {
    pub(super) fn new(limit: Option<Duration>, alive: u64) -> Signs {
        Signs {
            seen: (0, alive),
            at: Instant::now(),
            limit,
        }
    }

    /// Whether there is a limit.
    pub(super) fn matter(&self) -> bool {
        self.limit.is_some()
    }

    /// For how long there has been no sign, as far as calls of this could tell.
    pub(super) fn silence(&mut self, messages: u64, alive: u64) -> Duration {
        if self.seen != (messages, alive) {
            self.seen = (messages, alive);
            self.at = Instant::now();
        }
        self.at.elapsed()
    }

    /// When the silence will have lasted too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.at.checked_add(self.limit?)
    }

    /// The silence, if it has lasted too long; from then on it is measured anew.
    pub(super) fn too_long(&mut self, messages: u64, alive: u64) -> Option<Duration> {
        let limit = self.limit?;
        let silence = self.silence(messages, alive);
        (silence >= limit).then(|| {
            self.at = Instant::now();
            silence
        })
    }
}

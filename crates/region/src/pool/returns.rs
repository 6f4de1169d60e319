//! How an owner that sleeps learns of loans that were dropped.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    fd::OwnedFd,
};

use crate::primitive::{AtomicU64, Ordering, fence};

/// Shared by a pool and everything it loans.
#[derive(Debug)]
pub(super) struct Returns {
    /// Whether the owner may be asleep: 1 or 0.
    watched: AtomicU64,
    /// An eventfd, once there was a reason to have one.
    bell: OnceLock<Arc<OwnedFd>>,
}

impl Default for Returns {
    fn default() -> Returns {
        Returns {
            watched: AtomicU64::new(0),
            bell: OnceLock::new(),
        }
    }
}

impl Returns {
    /// After the bit of a loan was set.
    pub(super) fn returned(&self) {
        // Pairs with the one in `watch`: the owner's next look sees the bit, or this sees that it watches.
        fence(Ordering::SeqCst);
        if self.watched.load(Ordering::Relaxed) != 0 {
            if let Some(bell) = self.bell.get() {
                // It cannot be full: nobody adds more than one at a time, and the owner empties it.
                let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
            }
        }
    }

    /// What is readable once a loan has been dropped while the owner watches.
    pub(super) fn bell(&self) -> io::Result<&Arc<OwnedFd>> {
        match self.bell.get() {
            Some(bell) => Ok(bell),
            None => {
                let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                Ok(self.bell.get_or_init(|| Arc::new(made)))
            }
        }
    }

    /// The owner watches from now on.
    pub(super) fn watch(&self) {
        self.watched.store(1, Ordering::Relaxed);
        // Pairs with the one in `returned`.
        fence(Ordering::SeqCst);
    }

    /// Nobody watches any more. What has rung is forgotten: a look comes before the next sleep.
    pub(super) fn ignore(&self) {
        if self.watched.load(Ordering::Relaxed) != 0 {
            self.watched.store(0, Ordering::Relaxed);
            if let Some(bell) = self.bell.get() {
                let _ = rustix::io::read(bell, &mut [0; 8]);
            }
        }
    }
}

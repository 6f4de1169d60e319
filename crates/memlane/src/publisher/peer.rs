use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use memlane_region::{Remote, ring};
use memlane_signaling::{Doorbell, Ringer, Rung};
use memlane_transport::Link;

use crate::{
    page::{CURSOR, SUBSCRIBER_ARMED},
    process_of,
};

/// One subscriber, as its publisher sees it. Shared by the hot side (cursor, doorbells) and the control side
/// (link).
#[derive(Debug)]
pub(super) struct Peer {
    /// The subscriber's control page.
    page: Remote,
    /// Wakes the subscriber; none if it never sleeps.
    ringer: Option<Ringer>,
    rung: Rung,
    /// Wakes this publisher when it waits for room; none if it never sleeps.
    doorbell: Option<Doorbell>,
    link: Link,
    /// The process at the other end, unless it is this one.
    process: Option<OwnedFd>,
    evicted: AtomicBool,
}

impl Peer {
    pub(super) fn new(
        page: Remote,
        ringer: Option<Ringer>,
        doorbell: Option<Doorbell>,
        link: Link,
    ) -> Peer {
        let process = process_of(&link);
        Peer {
            page,
            ringer,
            rung: Rung::new(),
            doorbell,
            link,
            process,
            evicted: AtomicBool::new(false),
        }
    }

    /// Whether it may be asleep, so that commits have to look at its armed flag.
    pub(super) fn sleeps(&self) -> bool {
        self.ringer.is_some()
    }

    /// Wakes it if it sleeps. After a commit and a full fence.
    #[inline(always)]
    pub(super) fn wake(&self) -> bool {
        let Some(ringer) = &self.ringer else {
            return false;
        };
        let due = self.rung.due(self.page.load_word(SUBSCRIBER_ARMED));
        if due {
            ringer.ring();
        }
        due
    }

    pub(super) fn doorbell(&self) -> Option<&Doorbell> {
        self.doorbell.as_ref()
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    pub(super) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.process.as_ref().map(AsFd::as_fd)
    }

    /// Ends the link, which tells the subscriber, and the control side too.
    pub(super) fn hang_up(&self) {
        let _ = rustix::net::shutdown(self.link.as_fd(), rustix::net::Shutdown::Both);
    }

    pub(super) fn evicted(&self) -> bool {
        self.evicted.load(Ordering::Relaxed)
    }
}

impl ring::Reader for Peer {
    #[inline(always)]
    fn cursor(&self) -> u64 {
        self.page.load_word(CURSOR)
    }

    fn corrupt(&self, _found: u64) {
        self.evicted.store(true, Ordering::Relaxed);
        self.hang_up();
    }
}

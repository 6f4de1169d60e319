use std::sync::atomic::{AtomicU64, Ordering};

use memlane_region::{Remote, Shared, ring::CursorPage};

use crate::{
    doorbells::Bell,
    page::{CURSOR, SUBSCRIBER_ARMED, WANTED},
};

/// This subscriber's control page, and what wakes the publisher that reads it.
#[derive(Debug)]
pub(super) struct Page {
    mine: Shared,
    /// None if the publisher never sleeps.
    ringer: Option<Bell>,
}

impl Page {
    pub(super) fn new(mine: Shared, ringer: Option<Bell>) -> Page {
        Page { mine, ringer }
    }

    pub(super) fn armed(&self) -> &AtomicU64 {
        self.mine.word(SUBSCRIBER_ARMED)
    }
}

impl CursorPage<Remote> for Page {
    #[inline(always)]
    fn export(&mut self, cursor: u64) {
        self.mine.word(CURSOR).store(cursor, Ordering::Release);
    }

    #[inline(always)]
    fn writer_sleeps(&self) -> bool {
        self.ringer.is_some()
    }

    #[inline(always)]
    fn wanted(&self, writer: &Remote) -> u64 {
        if self.writer_sleeps() {
            writer.load_word(WANTED)
        } else {
            0
        }
    }

    #[cold]
    fn wake(&mut self) {
        if let Some(ringer) = &self.ringer {
            ringer.ring();
        }
    }
}

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering, fence},
};

use memlane_region::{
    Remote, Shared,
    pool::{HoldPage, Holds},
    ring::CursorPage,
};
use memlane_transport::Link;

use super::homes::Home;
use crate::{
    doorbells::Bell,
    page::{A_SLOT, ALIVE, CURSOR, HOLDS, HOLDS_USED, SUBSCRIBER_ARMED, TAKEN, WANTED},
};

/// This subscriber's control page, and what wakes the publisher that reads it.
#[derive(Debug)]
pub(super) struct Page {
    mine: Arc<Shared>,
    /// None if the publisher never sleeps.
    ringer: Option<Arc<Bell>>,
    /// The first ring's region, whose page has the publisher's words.
    publisher: Remote,
    /// What is added to its count of its signs of life: publishers before it have counted, too.
    alive: u64,
    holds: Arc<Holds<Slots>>,
}

/// What everything depends on that is held of the publisher's pool, beyond the subscriber's own life: the hold slots,
/// and the link, by which it counts as one.
#[derive(Debug)]
pub(super) struct Slots {
    mine: Arc<Shared>,
    /// Whom they tell, and where that says what it wants: another one once the publisher has moved.
    publisher: Mutex<(Option<Arc<Bell>>, Remote)>,
    _link: Arc<Link>,
    /// The process that made it: in a forked child its page is not there, and nothing of it is the child's to release.
    pid: u32,
}

impl Page {
    pub(super) fn new(
        mine: Shared,
        ringer: Option<Bell>,
        publisher: Remote,
        link: Arc<Link>,
    ) -> Page {
        let mine = Arc::new(mine);
        let ringer = ringer.map(Arc::new);
        let slots = Slots {
            mine: mine.clone(),
            publisher: Mutex::new((ringer.clone(), publisher.clone())),
            _link: link,
            pid: std::process::id(),
        };
        Page {
            mine,
            ringer,
            publisher,
            alive: 0,
            holds: Arc::new(Holds::new(slots)),
        }
    }

    pub(super) fn armed(&self) -> &AtomicU64 {
        self.mine.word(SUBSCRIBER_ARMED)
    }

    /// How often the publisher has said that it is alive, by coming included.
    pub(super) fn alive(&self) -> u64 {
        self.alive.wrapping_add(self.publisher.load_word(ALIVE))
    }

    pub(super) fn publisher(&self) -> &Remote {
        &self.publisher
    }

    /// Whether the publisher waits until something is given up that its cursors say nothing of.
    pub(super) fn is_awaited(&self) -> bool {
        self.publisher.load_word(WANTED) == A_SLOT
    }

    /// Says with how many notices of attachments this subscriber is done, and wakes a publisher that waits for it.
    pub(super) fn took(&self, notices: u64) {
        self.mine.word(TAKEN).store(notices, Ordering::Release);
        if let Some(ringer) = &self.ringer {
            // Pairs with the fence of a publisher between what it wants and its last look: it sees this count, or its word is
            // seen here.
            fence(Ordering::SeqCst);
            if self.is_awaited() {
                ringer.ring();
            }
        }
    }

    pub(super) fn holds(&self) -> &Arc<Holds<Slots>> {
        &self.holds
    }

    /// Tells another publisher from now on, which goes on where the one before has stopped.
    #[cold]
    pub(super) fn settle(&mut self, home: Home) {
        let ringer = home.ringer.map(Arc::new);
        self.alive = self.alive().wrapping_add(1);
        *self.holds.page().publisher() = (ringer.clone(), home.memory.clone());
        self.ringer = ringer;
        self.publisher = home.memory;
        if let Some(ringer) = &self.ringer {
            // Pairs with the fence of a publisher between what it wants and its last look: it sees what this reader has given
            // up so far, which has told the other one, or its word is seen here.
            fence(Ordering::SeqCst);
            if self.publisher.load_word(WANTED) != 0 {
                ringer.ring();
            }
        }
    }
}

impl Slots {
    fn publisher(&self) -> MutexGuard<'_, (Option<Arc<Bell>>, Remote)> {
        self.publisher
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is the process that made it.
    pub(super) fn is_mine(&self) -> bool {
        self.pid == std::process::id()
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
    fn wanted(&self, _: &Remote) -> u64 {
        if self.writer_sleeps() {
            self.publisher.load_word(WANTED)
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

impl HoldPage for Slots {
    fn store(&self, slot: usize, sequence: u64) {
        if !self.is_mine() {
            return;
        }
        let word = self.mine.word(HOLDS + 8 * slot);
        word.store(sequence, Ordering::Release);
        if sequence == 0 {
            let (ringer, publisher) = &*self.publisher();
            if let Some(ringer) = ringer {
                // Pairs with the fence of a publisher between what it wants and its last look: it sees this slot, or its
                // word is seen here.
                fence(Ordering::SeqCst);
                if publisher.load_word(WANTED) != 0 {
                    ringer.ring();
                }
            }
        }
    }

    fn raise(&self, slots: u64) {
        self.mine
            .word(HOLDS_USED)
            .fetch_max(slots, Ordering::Release);
    }
}

//! Readers of a pool for tests, with control pages of their own regions.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
};

use memlane_region::{
    HeapWords, Remote, Shared, page_size,
    pool::{Change, HoldPage, Holder, Holds, NOTHING, Pool, PoolReader},
    ring::{CursorPage, Joined, Reader, RingReader, RingWriter},
};

/// Bytes of a control page: the cursor, and the first hold slot.
const CURSOR: usize = 64;
pub(crate) const SLOTS: usize = 512;
/// How many slots were ever used.
pub(crate) const USED: usize = 504;

/// A ring on the heap, and whoever reads it.
pub(crate) type Ring = RingWriter<HeapWords, Theirs>;

/// A control page, for the reader whose it is.
#[derive(Clone, Debug)]
pub(crate) struct Mine(pub(crate) Arc<Shared>);

impl Mine {
    pub(crate) fn create(name: &'static str) -> (Mine, OwnedFd) {
        let (page, descriptor) = Shared::create(name, 1, 0).unwrap();
        (Mine(Arc::new(page)), descriptor)
    }

    /// Says anything.
    pub(crate) fn lie(&self, cursor: u64) {
        self.0.word(CURSOR).store(cursor, Ordering::Release);
    }
}

impl<M> CursorPage<M> for Mine {
    fn export(&mut self, cursor: u64) {
        self.lie(cursor);
    }

    fn writer_sleeps(&self) -> bool {
        false
    }

    fn wanted(&self, _: &M) -> u64 {
        0
    }

    fn wake(&mut self) {}
}

impl HoldPage for Mine {
    fn store(&self, slot: usize, sequence: u64) {
        let word = self.0.word(SLOTS + 8 * slot);
        word.store(sequence, Ordering::Release);
    }

    fn raise(&self, slots: u64) {
        self.0.word(USED).fetch_max(slots, Ordering::Release);
    }
}

/// The same page, for the writer.
#[derive(Debug)]
pub(crate) struct Theirs {
    page: Remote,
    lossy: bool,
}

impl Theirs {
    pub(crate) fn open(descriptor: OwnedFd, lossy: bool) -> Theirs {
        let page = Remote::open(descriptor, page_size(), 0, 1 << 20).unwrap();
        Theirs { page, lossy }
    }
}

impl Reader for Theirs {
    fn cursor(&self) -> u64 {
        self.page.load_word(CURSOR)
    }

    fn corrupt(&self, _: u64) {}
}

impl Holder for Theirs {
    fn released(&self, start: u64) -> u64 {
        if self.lossy {
            return NOTHING;
        }
        start.wrapping_add(self.cursor())
    }

    fn slots(&self) -> u64 {
        self.page.load_word(USED)
    }

    fn slot(&self, slot: usize) -> u64 {
        self.page.load_word(SLOTS + 8 * slot)
    }
}

/// A reader in this process.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) lossy: bool,
    pub(crate) joined: Joined<Theirs>,
    pub(crate) ring: RingReader<HeapWords, Mine>,
    pub(crate) holds: Arc<Holds<Mine>>,
    pub(crate) chunks: PoolReader,
}

impl Side {
    pub(crate) fn join(
        name: &'static str,
        pool: &Pool,
        ring: &Ring,
        words: &HeapWords,
        lossy: bool,
    ) -> Side {
        let (mine, descriptor) = Mine::create(name);
        let theirs = Arc::new(Theirs::open(descriptor, lossy));
        let joined = ring.roster().join(theirs).unwrap();
        let mut side = Side {
            lossy,
            ring: RingReader::new(words.map(), mine.clone(), joined.start),
            joined,
            holds: Arc::new(Holds::new(mine)),
            chunks: PoolReader::new(1 << 40),
        };
        let all: Vec<_> = pool.segments().map(|s| Change::Added(s.id)).collect();
        side.follow(pool, &all);
        side
    }

    /// Maps and unmaps what the owner says.
    pub(crate) fn follow(&mut self, pool: &Pool, changes: &[Change]) {
        for change in changes {
            match *change {
                Change::Added(id) => {
                    let segment = pool.segment(id).expect("it was just made");
                    let descriptor = segment.descriptor.as_fd().try_clone_to_owned().unwrap();
                    self.chunks
                        .insert(id, descriptor, segment.geometry)
                        .unwrap();
                }
                Change::Removed(id) => assert!(self.chunks.remove(id)),
            }
        }
    }
}

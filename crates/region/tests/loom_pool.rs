//! The protocols between the owner of a pool and its readers, under every interleaving and every outcome of a load
//! that the memory model allows: the real [`Ledger`], [`Holds`] and ring, over words on the heap.
//!
//! Each chunk has a cell: reading the chunk reads it, and whoever uses the chunk again writes it, so that loom
//! reports two such accesses unless one happens before the other. Each model has counterparts that break one
//! rule and must be caught.
#![cfg(memlane_loom)]

use std::{panic, sync::Arc};

use loom::{
    cell::UnsafeCell,
    sync::atomic::{AtomicU64, Ordering, fence},
    thread,
};
use memlane_region::{
    HeapWords,
    pool::{
        ChunkRef, HoldPage, Holder, Holders, Holds, Ledger, NOTHING, Pool, PoolError, PoolOptions,
    },
    ring::{CursorPage, Joined, Reader, Record, RingReader, RingWriter},
};

/// The rules that a model can break, on the side of the control page.
#[derive(Clone, Copy)]
struct Rules {
    lossy: bool,
    export: Ordering,
    release: Ordering,
}

const LOSSLESS: Rules = Rules {
    lossy: false,
    export: Ordering::Release,
    release: Ordering::Release,
};

const LOSSY: Rules = Rules {
    lossy: true,
    ..LOSSLESS
};

/// A control page. The other slots are never taken.
struct Page {
    rules: Rules,
    cursor: AtomicU64,
    used: AtomicU64,
    slots: [AtomicU64; 2],
}

impl Page {
    fn new(rules: Rules) -> Arc<Page> {
        Arc::new(Page {
            rules,
            cursor: AtomicU64::new(0),
            used: AtomicU64::new(0),
            slots: [AtomicU64::new(0), AtomicU64::new(0)],
        })
    }
}

impl Holder for Page {
    fn released(&self, start: u64) -> u64 {
        if self.rules.lossy {
            return NOTHING;
        }
        start.wrapping_add(self.cursor.load(Ordering::Relaxed))
    }

    fn slots(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn slot(&self, slot: usize) -> u64 {
        self.slots[slot].load(Ordering::Relaxed)
    }
}

/// The page, for its owner.
struct Mine(Arc<Page>);

impl HoldPage for Mine {
    fn store(&self, slot: usize, sequence: u64) {
        self.0.slots[slot].store(sequence, self.0.rules.release);
    }

    fn raise(&self, slots: u64) {
        self.0.used.fetch_max(slots, self.0.rules.release);
    }
}

impl<M> CursorPage<M> for Mine {
    fn export(&mut self, cursor: u64) {
        self.0.cursor.store(cursor, self.0.rules.export);
    }

    fn writer_sleeps(&self) -> bool {
        false
    }

    fn wanted(&self, _: &M) -> u64 {
        0
    }

    fn wake(&mut self) {
        unreachable!("the writer of these models never sleeps");
    }
}

impl Reader for Page {
    fn cursor(&self) -> u64 {
        self.cursor.load(Ordering::Relaxed)
    }

    fn corrupt(&self, found: u64) {
        panic!("an honest reader was dropped for its cursor {found}");
    }
}

/// Readers that all start at 0.
struct Readers(Vec<Arc<Page>>);

impl Holders for Readers {
    type Holder = Page;

    fn joined(&mut self) -> impl Iterator<Item = (u64, &Page)> {
        self.0.iter().map(|page| (0, &**page))
    }
}

/// A segment: words, and what stands for the chunks.
struct Chunks {
    words: [AtomicU64; 2],
    cells: [UnsafeCell<()>; 2],
}

// SAFETY: a cell holds nothing; loom checks the accesses to it.
unsafe impl Send for Chunks {}
// SAFETY: as above.
unsafe impl Sync for Chunks {}

impl Chunks {
    fn new() -> Arc<Chunks> {
        Arc::new(Chunks {
            words: [AtomicU64::new(0), AtomicU64::new(0)],
            cells: [UnsafeCell::new(()), UnsafeCell::new(())],
        })
    }

    fn read(&self, chunk: usize) {
        self.cells[chunk].with(|_| ());
    }

    fn write(&self, chunk: usize) {
        self.cells[chunk].with_mut(|_| ());
    }

    fn word(&self, chunk: usize) -> u64 {
        self.words[chunk].load(Ordering::Relaxed)
    }

    /// The owner's look: whatever is free is written.
    fn look(&self, ledger: &mut Ledger<usize>, readers: &mut impl Holders) -> usize {
        let mut freed = Vec::new();
        let retire = |chunk: usize| self.words[chunk].store(0, Ordering::Relaxed);
        ledger.look(0, readers, retire, |chunk| freed.push(chunk));
        freed.iter().for_each(|&chunk| self.write(chunk));
        freed.len()
    }
}

fn check(bound: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = bound;
    builder.check(model);
}

fn is_caught(model: impl Fn() + panic::UnwindSafe) {
    assert!(
        panic::catch_unwind(model).is_err(),
        "loom found no violation"
    );
}

/// What a reader does with a chunk that it was sent.
#[derive(Clone, Copy)]
enum Takes {
    /// A hold, then the cursor, then it reads.
    HoldFirst,
    /// The cursor, then a hold, which is too late.
    ExportFirst,
    /// It reads, then the cursor, without a hold.
    Borrow,
    /// Announces, and reads if the word is right.
    Announce,
    /// Announces, but does not fence before it looks at the word.
    AnnounceWithoutFence,
}

fn take(takes: Takes, mine: Mine, holds: &Arc<Holds<Mine>>, chunks: &Chunks, n: usize) {
    let mut mine = mine;
    let sequence = n as u64 + 1;
    let mut export = || <Mine as CursorPage<HeapWords>>::export(&mut mine, 64 * sequence);
    match takes {
        Takes::HoldFirst => {
            let hold = holds.hold(sequence).unwrap();
            export();
            chunks.read(n);
            drop(hold);
        }
        Takes::ExportFirst => {
            export();
            let hold = holds.hold(sequence).unwrap();
            chunks.read(n);
            drop(hold);
        }
        Takes::Borrow => {
            chunks.read(n);
            export();
        }
        Takes::Announce => {
            if let Ok(hold) = holds.announce(sequence, || chunks.word(n)) {
                chunks.read(n);
                drop(hold);
            }
        }
        Takes::AnnounceWithoutFence => {
            let hold = holds.hold(sequence).unwrap();
            if chunks.word(n) == sequence {
                chunks.read(n);
            }
            drop(hold);
        }
    }
}

/// So many chunks have been sent to each reader, 64 bytes apart. Readers take them; the owner looks meanwhile, and
/// once they are done finds all of them free.
fn model(readers: &'static [(Takes, Rules)], sent: usize, looks: usize, bound: Option<usize>) {
    check(bound, move || {
        let chunks = Chunks::new();
        let mut ledger = Ledger::new();
        for n in 0..sent {
            chunks.write(n);
            chunks.words[n].store(n as u64 + 1, Ordering::Relaxed);
            ledger.send(n, n as u64 + 1, 64 * n as u64);
        }
        let mut pages = Readers(Vec::new());
        let mut threads = Vec::new();
        for &(takes, rules) in readers {
            let page = Page::new(rules);
            pages.0.push(page.clone());
            let chunks = chunks.clone();
            threads.push(thread::spawn(move || {
                let holds = Arc::new(Holds::new(Mine(page.clone())));
                for n in 0..sent {
                    take(takes, Mine(page.clone()), &holds, &chunks, n);
                }
                assert_eq!(holds.taken(), 0);
            }));
        }
        let freed: usize = (0..looks)
            .map(|_| chunks.look(&mut ledger, &mut pages))
            .sum();
        threads.into_iter().for_each(|t| t.join().unwrap());
        let rest: usize = (0..sent)
            .map(|_| chunks.look(&mut ledger, &mut pages))
            .sum();
        assert_eq!(freed + rest, sent);
    });
}

#[test]
fn a_borrowed_chunk_is_held_until_the_cursor_passes() {
    model(&[(Takes::Borrow, LOSSLESS)], 2, 2, None);
}

#[test]
fn a_chunk_is_held_beyond_its_record() {
    model(&[(Takes::HoldFirst, LOSSLESS)], 1, 2, None);
}

/// The second chunk is named by the slot that named the first.
#[test]
fn a_slot_is_used_again() {
    model(&[(Takes::HoldFirst, LOSSLESS)], 2, 2, Some(4));
}

#[test]
fn two_lossless_readers() {
    let readers = &[(Takes::HoldFirst, LOSSLESS), (Takes::Borrow, LOSSLESS)];
    model(readers, 1, 1, Some(3));
}

#[test]
fn an_announced_chunk_is_held() {
    model(&[(Takes::Announce, LOSSY)], 1, 2, None);
}

#[test]
fn announced_chunks_one_after_the_other() {
    model(&[(Takes::Announce, LOSSY)], 2, 2, Some(3));
}

#[test]
fn a_lossy_reader_beside_a_lossless_one() {
    let readers = &[(Takes::Announce, LOSSY), (Takes::HoldFirst, LOSSLESS)];
    model(readers, 1, 1, Some(3));
}

#[test]
fn caught_a_cursor_before_the_hold() {
    is_caught(|| model(&[(Takes::ExportFirst, LOSSLESS)], 1, 1, None));
}

#[test]
fn caught_a_relaxed_cursor() {
    const RELAXED: Rules = Rules {
        export: Ordering::Relaxed,
        ..LOSSLESS
    };
    is_caught(|| model(&[(Takes::Borrow, RELAXED)], 1, 1, None));
    // The cursor may be seen before the slot, too.
    is_caught(|| model(&[(Takes::HoldFirst, RELAXED)], 1, 1, None));
}

#[test]
fn caught_a_relaxed_release_of_a_slot() {
    const RELAXED: Rules = Rules {
        release: Ordering::Relaxed,
        ..LOSSLESS
    };
    is_caught(|| model(&[(Takes::HoldFirst, RELAXED)], 1, 2, None));
}

#[test]
fn caught_an_announcement_without_a_fence() {
    is_caught(|| model(&[(Takes::AnnounceWithoutFence, LOSSY)], 1, 1, None));
}

/// Readers as they were when the owner began.
struct Stale(Vec<Joined<Page>>);

impl Holders for Stale {
    type Holder = Page;

    fn joined(&mut self) -> impl Iterator<Item = (u64, &Page)> {
        let joined = self.0.iter();
        joined.map(|joined| (joined.start, &*joined.reader))
    }
}

/// A reader joins and takes what it finds while the owner sends, looks, and sends into what is free.
fn joining(rules: Rules, stale: bool) {
    check(Some(3), move || {
        let chunks = Chunks::new();
        let words = HeapWords::new(128);
        let mut writer: RingWriter<HeapWords, Page> = RingWriter::new(words.map());
        let roster = writer.roster().clone();
        let theirs = chunks.clone();
        let thread = thread::spawn(move || {
            let page = Page::new(rules);
            let start = roster.join(page.clone()).unwrap().start;
            let holds = Arc::new(Holds::new(Mine(page.clone())));
            let mut reader = RingReader::new(words, Mine(page), start);
            let Some(Record::Chunk(found)) = reader.poll_record().unwrap() else {
                return;
            };
            let chunk = found.chunk as usize;
            if !rules.lossy {
                theirs.read(chunk);
            } else if let Ok(hold) = holds.announce(found.sequence, || theirs.word(chunk)) {
                theirs.read(chunk);
                drop(hold);
            }
            reader.release();
        });
        let mut ledger = Ledger::new();
        let send = |writer: &mut RingWriter<_, _>, ledger: &mut Ledger<_>, sequence| {
            chunks.words[0].store(sequence, Ordering::Relaxed);
            ledger.send(0, sequence, writer.position());
            let named = ChunkRef {
                segment: 0,
                chunk: 0,
                sequence,
                len: 1,
            };
            writer.append_chunk(named).unwrap();
        };
        chunks.write(0);
        writer.sync();
        let mut before = Stale(writer.readers().cloned().collect());
        send(&mut writer, &mut ledger, 1);
        if stale {
            chunks.look(&mut ledger, &mut before);
        } else if chunks.look(&mut ledger, &mut writer) == 1 {
            send(&mut writer, &mut ledger, 2);
        }
        thread.join().unwrap();
    });
}

#[test]
fn a_lossless_reader_joins() {
    joining(LOSSLESS, false);
}

#[test]
fn a_lossy_reader_joins() {
    joining(LOSSY, false);
}

#[test]
fn caught_readers_of_before() {
    is_caught(|| joining(LOSSLESS, true));
    is_caught(|| joining(LOSSY, true));
}

/// A loan that is dropped by another thread is not loaned again before that thread is done with it.
#[test]
fn a_loan_dropped_elsewhere() {
    check(None, || {
        let chunks = Chunks::new();
        let page = memlane_region::page_size();
        let mut pool = Pool::new(PoolOptions::new(page).max_loan(page)).unwrap();
        let loan = pool.loan(1, &mut ()).unwrap();
        let theirs = chunks.clone();
        let thread = thread::spawn(move || {
            theirs.write(0);
            drop(loan);
        });
        match pool.loan(1, &mut ()) {
            Ok(_) => chunks.write(0),
            Err(PoolError::Exhausted { loaned, .. }) => assert_eq!(loaned, page),
            Err(error) => panic!("{error}"),
        }
        thread.join().unwrap();
        assert!(pool.loan(1, &mut ()).is_ok());
        fence(Ordering::SeqCst);
    });
}

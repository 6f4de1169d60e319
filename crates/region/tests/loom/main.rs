//! The ring's protocols under every interleaving and every outcome of a load that the memory model allows
//! (loom, within the bounds said below): the code is the real one, over [`HeapWords`].
//!
//! ```text
//! RUSTFLAGS="--cfg memlane_loom" cargo test -p memlane-region --test loom --release
//! ```
//!
//! Values never repeat, so that a stale word is told from a new one. That does not show a read which a later
//! write overtakes (loom runs instructions in program order), so every word has a cell beside it: reading
//! payload reads the cell, writing payload or headers writes it, and loom reports two such accesses unless one
//! happens before the other. Polling a header touches no cell: it may race, by design.
//!
//! Preemptions are bounded per execution where a model says so; the choice of which store a load sees is always
//! exhaustive. Each model has counterparts that break one rule and must be caught.
#![cfg(memlane_loom)]

#[path = "../support/model.rs"]
mod model;
mod places;

use std::sync::Arc;

use loom::{
    cell::UnsafeCell,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};
use memlane_region::{
    HeapWords, Words, WordsMut,
    ring::{CursorPage, Dismissal, NoRoom, Reader, RingReader, RingWriter},
};
use model::model;

/// The smallest ring.
const CAPACITY: usize = 128;

/// The rules of the ring that a model can break, on the side of its memory and of the control pages.
#[derive(Clone, Copy)]
struct Rules {
    commit: Ordering,
    export: Ordering,
    /// Whether the cells are watched: without them only what a reader sees can show a violation.
    cells: bool,
}

const HONEST: Rules = Rules {
    commit: Ordering::Release,
    export: Ordering::Release,
    cells: true,
};

const RELAXED_COMMIT: Rules = Rules {
    commit: Ordering::Relaxed,
    cells: false,
    ..HONEST
};

const RELAXED_EXPORT: Rules = Rules {
    export: Ordering::Relaxed,
    ..HONEST
};

/// Words on the heap, with a cell each that shows races.
struct Memory {
    words: HeapWords,
    cells: Arc<[UnsafeCell<()>]>,
    rules: Rules,
}

// SAFETY: a cell holds nothing; loom checks the accesses to it.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(rules: Rules) -> Memory {
        Memory {
            words: HeapWords::new(CAPACITY),
            cells: (0..CAPACITY / 8).map(|_| UnsafeCell::new(())).collect(),
            rules,
        }
    }

    fn map(&self) -> Memory {
        Memory {
            words: self.words.map(),
            cells: self.cells.clone(),
            rules: self.rules,
        }
    }

    fn cells(&self, position: u64, len: usize) -> impl Iterator<Item = &UnsafeCell<()>> {
        let first = position as usize / 8;
        let last = (position as usize + len).div_ceil(8);
        let watched = if self.rules.cells { first..last } else { 0..0 };
        watched.map(|word| &self.cells[word % self.cells.len()])
    }

    fn written(&self, position: u64, len: usize) {
        self.cells(position, len)
            .for_each(|cell| cell.with_mut(|_| ()));
    }
}

impl Words for Memory {
    fn capacity(&self) -> u64 {
        self.words.capacity()
    }

    fn load(&self, position: u64) -> u64 {
        self.words.load(position)
    }

    fn read(&self, position: u64, offset: usize, dst: &mut [u8]) {
        self.words.read(position, offset, dst);
        self.cells(position + offset as u64, dst.len())
            .for_each(|cell| cell.with(|_| ()));
    }

    fn load_control(&self, offset: usize) -> u64 {
        self.words.load_control(offset)
    }
}

impl WordsMut for Memory {
    fn store(&mut self, position: u64, value: u64) {
        self.written(position, 8);
        self.words.store(position, value);
    }

    fn store_release(&mut self, position: u64, value: u64) {
        self.written(position, 8);
        match self.rules.commit {
            Ordering::Release => self.words.store_release(position, value),
            _ => self.words.store(position, value),
        }
    }

    fn write(&mut self, position: u64, offset: usize, src: &[u8]) {
        self.written(position + offset as u64, src.len());
        self.words.write(position, offset, src);
    }

    fn store_control(&mut self, offset: usize, value: u64) {
        self.words.store_control(offset, value);
    }
}

/// A control page. Nobody sleeps in these models: they yield.
struct Page {
    cursor: AtomicU64,
    export: Ordering,
}

struct Export(Arc<Page>);

impl<M> CursorPage<M> for Export {
    fn export(&mut self, cursor: u64) {
        self.0.cursor.store(cursor, self.0.export);
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

type Writer = RingWriter<Memory, Page>;
type Side = RingReader<Memory, Export>;
type Roster = memlane_region::ring::Roster<Page>;

/// Joins a reader: its name, its start, itself.
fn join(roster: &Roster, memory: Memory) -> (u64, u64, Side) {
    let page = Arc::new(Page {
        cursor: AtomicU64::new(0),
        export: memory.rules.export,
    });
    let joined = roster.join(page.clone()).unwrap();
    let side = RingReader::new(memory, Export(page), joined.start);
    (joined.id, joined.start, side)
}

/// How message `n` looks.
#[derive(Clone, Copy)]
enum Messages {
    /// Two words, one word, in turn: records of 32 and 16 bytes.
    Short,
    /// 48 bytes, of which the first and last word are used: a record fills half of the ring, and with the
    /// header after it, one is all that fits.
    Half,
    /// 64 bytes, used likewise: one fits only once the one before has been released, whose first word its last
    /// word falls on.
    Large,
}

impl Messages {
    fn len(self, n: u64) -> usize {
        match self {
            Messages::Short if n % 2 == 0 => 16,
            Messages::Short => 8,
            Messages::Half => 48,
            Messages::Large => 64,
        }
    }

    /// Where the words of message `n` are, and what they say.
    fn words(self, n: u64) -> impl Iterator<Item = (usize, u64)> {
        let last = self.len(n) - 8;
        let second = (last > 0).then_some((last, n << 8 | 2));
        [(0, n << 8 | 1)].into_iter().chain(second)
    }

    fn try_send(self, writer: &mut Writer, n: u64) -> bool {
        match writer.reserve(self.len(n)) {
            Err(NoRoom::Full) => return false,
            result => result.unwrap(),
        }
        for (offset, word) in self.words(n) {
            writer.write(offset, &word.to_ne_bytes());
        }
        writer.commit(self.len(n));
        true
    }

    fn send(self, writer: &mut Writer, n: u64) {
        while !self.try_send(writer, n) {
            thread::yield_now();
        }
    }

    /// Reads message `n`, which a poll has found, and compares it.
    fn check(self, side: &Side, n: u64) {
        for (offset, expected) in self.words(n) {
            let mut word = [0; 8];
            side.read(offset, &mut word);
            let found = u64::from_ne_bytes(word);
            assert_eq!(found, expected, "torn: byte {offset} of message {n}");
        }
    }

    fn try_receive(self, side: &mut Side, n: u64) -> bool {
        let Some(len) = side.poll().expect("an honest ring") else {
            return false;
        };
        assert_eq!(len, self.len(n), "length of message {n}");
        self.check(side, n);
        side.release();
        true
    }

    fn receive(self, side: &mut Side, n: u64) {
        while !self.try_receive(side, n) {
            thread::yield_now();
        }
    }
}

/// A writer whose memory follows these rules.
fn writer(rules: Rules) -> (Writer, Arc<Roster>) {
    let writer = Writer::new(Memory::new(rules));
    let roster = writer.roster().clone();
    (writer, roster)
}

/// One writer, one reader, a ring that is nearly full when they start. What the writer sends then fits only as
/// the reader goes on, and wraps. At most 4 preemptions.
fn one_reader(rules: Rules) {
    model(Some(4), move || {
        let (mut writer, roster) = writer(rules);
        let (_, _, mut side) = join(&roster, writer.memory().map());
        for n in 0..4 {
            assert!(Messages::Short.try_send(&mut writer, n));
        }
        assert!(!Messages::Short.try_send(&mut writer, 4));
        let reader = thread::spawn(move || {
            for n in 0..7 {
                Messages::Short.receive(&mut side, n);
            }
            assert_eq!(side.poll(), Ok(None));
        });
        for n in 4..7 {
            Messages::Short.send(&mut writer, n);
        }
        reader.join().unwrap();
    });
}

#[test]
fn one_reader_gets_what_was_sent() {
    one_reader(HONEST);
}

#[test]
#[should_panic(expected = "torn")]
fn one_reader_of_relaxed_commits() {
    one_reader(RELAXED_COMMIT);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn one_reader_with_a_relaxed_cursor() {
    one_reader(RELAXED_EXPORT);
}

/// Two readers; the slower one of any moment holds the writer up. Nobody waits for anybody here, since loom may
/// run two threads that wait for a third one for ever: all do what they can, and the rest is done when
/// they are back. At most 3 preemptions.
fn two_readers(rules: Rules) {
    const MESSAGES: u64 = 3;
    model(Some(3), move || {
        let (mut writer, roster) = writer(rules);
        let sides = [(); 2].map(|()| join(&roster, writer.memory().map()).2);
        assert!(Messages::Large.try_send(&mut writer, 0));
        let readers = sides.map(|mut side| {
            thread::spawn(move || {
                let mut next = 0;
                for _ in 0..2 {
                    next += u64::from(Messages::Large.try_receive(&mut side, next));
                }
                (side, next)
            })
        });
        let mut sent = 1;
        for _ in 0..MESSAGES {
            sent += u64::from(Messages::Large.try_send(&mut writer, sent));
        }
        let mut readers = readers.map(|reader| reader.join().unwrap());
        loop {
            for (side, next) in &mut readers {
                while Messages::Large.try_receive(side, *next) {
                    *next += 1;
                }
                assert_eq!(*next, sent);
            }
            if sent >= MESSAGES {
                break;
            }
            assert!(
                Messages::Large.try_send(&mut writer, sent),
                "no room for message {sent}"
            );
            sent += 1;
        }
    });
}

#[test]
fn two_readers_get_what_was_sent() {
    two_readers(HONEST);
}

#[test]
#[should_panic(expected = "torn")]
fn two_readers_of_relaxed_commits() {
    two_readers(RELAXED_COMMIT);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn two_readers_with_relaxed_cursors() {
    two_readers(RELAXED_EXPORT);
}

/// A reader joins while the writer, which nobody holds up until then, appends two laps. It gets all that
/// follow its start, whole; the writer does not overrun it. At most 4 preemptions.
fn join_under_way(rules: Rules) {
    const LAST: u64 = 3;
    model(Some(4), move || {
        let (mut writer, roster) = writer(rules);
        let memory = writer.memory().map();
        let reader = thread::spawn(move || {
            let (_, start, mut side) = join(&roster, memory);
            assert_eq!(start % 64, 0, "not the start of a record");
            for n in start / 64..=LAST {
                Messages::Half.receive(&mut side, n);
            }
            assert_eq!(side.poll(), Ok(None));
        });
        for n in 0..=LAST {
            Messages::Half.send(&mut writer, n);
        }
        reader.join().unwrap();
    });
}

#[test]
fn a_late_reader_gets_every_record_from_its_start() {
    join_under_way(HONEST);
}

#[test]
#[should_panic(expected = "torn")]
fn a_late_reader_of_relaxed_commits() {
    join_under_way(RELAXED_COMMIT);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_late_reader_with_a_relaxed_cursor() {
    join_under_way(RELAXED_EXPORT);
}

/// A reader that joins and finds the ring empty will sleep; a writer that commits wakes those it sees. Either
/// the writer sees the reader after its commit, or the reader starts after it: no wake-up is lost.
/// Exhaustive.
fn join_or_see(fence: bool) {
    model(None, move || {
        let (mut writer, roster) = writer(HONEST);
        let memory = writer.memory().map();
        let reader = thread::spawn(move || join(&roster, memory).1);
        for n in 0..2 {
            Messages::Half.send(&mut writer, n);
            if fence {
                writer.fence(false);
            }
            let changed = writer.sync();
            let seen = writer.readers().count() == 1;
            assert!(!changed || seen, "the roster changed, but is empty");
            if seen {
                break;
            }
        }
        let start = reader.join().unwrap();
        assert!(start <= 128 && start % 64 == 0);
        assert!(
            writer.readers().count() == 1 || start == 128,
            "lost wake-up"
        );
    });
}

#[test]
fn a_commit_sees_the_reader_or_the_reader_starts_after_it() {
    join_or_see(true);
}

#[test]
#[should_panic(expected = "lost wake-up")]
fn a_commit_without_a_fence_misses_a_reader() {
    join_or_see(false);
}

/// A reader that holds the writer up leaves, in the middle of a record: the writer gets room, after the last
/// byte that the reader read. Exhaustive.
fn leave_when_full(leaves_early: bool) {
    model(None, move || {
        let (mut writer, roster) = writer(HONEST);
        let (id, _, mut side) = join(&roster, writer.memory().map());
        assert!(Messages::Half.try_send(&mut writer, 0));
        assert!(!Messages::Half.try_send(&mut writer, 1));
        let reader = thread::spawn(move || {
            assert_eq!(side.poll(), Ok(Some(48)));
            if leaves_early {
                assert!(roster.leave(id));
            }
            Messages::Half.check(&side, 0);
            assert!(roster.leave(id) != leaves_early);
        });
        for n in 1..4 {
            Messages::Half.send(&mut writer, n);
        }
        reader.join().unwrap();
        assert_eq!(writer.readers().count(), 0);
    });
}

#[test]
fn a_reader_that_leaves_makes_room() {
    leave_when_full(false);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_reader_that_leaves_and_reads_on() {
    leave_when_full(true);
}

/// One reader leaves while another one joins, and the writer is at work: the one that stays gets everything
/// from its start. At most 3 preemptions.
#[test]
fn one_leaves_and_one_joins() {
    const LAST: u64 = 2;
    model(Some(3), move || {
        let (mut writer, roster) = writer(HONEST);
        let (id, _, _) = join(&roster, writer.memory().map());
        assert!(Messages::Half.try_send(&mut writer, 0));
        let leaver = thread::spawn({
            let roster = roster.clone();
            move || assert!(roster.leave(id))
        });
        let memory = writer.memory().map();
        let joiner = thread::spawn(move || {
            let (_, start, mut side) = join(&roster, memory);
            let first = start / 64;
            let received = Messages::Half.try_receive(&mut side, first);
            (side, first + u64::from(received))
        });
        let mut sent = 1;
        for _ in 0..LAST {
            sent += u64::from(Messages::Half.try_send(&mut writer, sent));
        }
        leaver.join().unwrap();
        let (mut side, mut next) = joiner.join().unwrap();
        while sent <= LAST || next < sent {
            if next < sent {
                assert!(
                    Messages::Half.try_receive(&mut side, next),
                    "message {next} is lost"
                );
                next += 1;
            } else {
                assert_eq!(side.poll(), Ok(None));
                assert!(
                    Messages::Half.try_send(&mut writer, sent),
                    "no room for message {sent}"
                );
                sent += 1;
            }
        }
    });
}

/// The reader is a ring behind for as long as the writer finds another one for it: the second, and the first again once it
/// has gone on. It gets every record, from whichever. At most 3 preemptions.
fn switch_under_way(rules: Rules) {
    const LAST: u64 = 3;
    model(Some(3), move || {
        let (mut writer, roster) = writer(rules);
        let rings = [writer.memory().map(), Memory::new(rules)];
        let (_, _, mut side) = join(&roster, rings[0].map());
        let second = rings[1].map();
        assert!(Messages::Half.try_send(&mut writer, 0));
        let reader = thread::spawn(move || {
            for n in 0..=LAST {
                while !Messages::Half.try_receive(&mut side, n) {
                    match side.switched() {
                        Some(ring) => drop(side.follow(rings[ring as usize].map())),
                        None => thread::yield_now(),
                    }
                }
            }
        });
        let mut second = Some(second);
        for n in 1..=LAST {
            while !Messages::Half.try_send(&mut writer, n) {
                match (writer.spare(), second.take()) {
                    (Some(spare), _) => writer.switch(spare, None),
                    (None, Some(second)) => writer.switch(1, Some(second)),
                    (None, None) => thread::yield_now(),
                }
            }
        }
        reader.join().unwrap();
    });
}

#[test]
fn a_reader_follows_from_ring_to_ring() {
    switch_under_way(HONEST);
}

#[test]
#[should_panic(expected = "torn")]
fn a_reader_of_relaxed_switches() {
    switch_under_way(RELAXED_COMMIT);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_ring_that_is_used_again_by_relaxed_cursors() {
    switch_under_way(RELAXED_EXPORT);
}

/// What it is told that is to end with the first ring.
const FIRST: u64 = 1;

/// A reader is dismissed while it may be going on from the first ring to the second: it is told first, and looks whether it
/// was before it goes on, so that what it reads is left to it. Exhaustive.
fn dismiss_at_a_switch(looks: bool) {
    model(None, move || {
        let (mut writer, roster) = writer(HONEST);
        let second = Memory::new(HONEST);
        let (id, _, mut side) = join(&roster, writer.memory().map());
        assert!(Messages::Half.try_send(&mut writer, 0));
        writer.switch(1, Some(second.map()));
        assert!(Messages::Half.try_send(&mut writer, 1));
        let told = Arc::new(AtomicU64::new(0));
        let reader = thread::spawn({
            let told = told.clone();
            move || {
                assert!(Messages::Half.try_receive(&mut side, 0));
                assert_eq!(side.poll(), Ok(None));
                assert_eq!(side.switched(), Some(1));
                // As a look at the link: what was said before the fence is there.
                if looks && told.load(Ordering::Relaxed) == FIRST {
                    return;
                }
                side.follow(second);
                Messages::Half.receive(&mut side, 1);
            }
        });
        writer.sync();
        let end = writer.end_of(id).unwrap();
        assert_eq!(end.ring, 0);
        told.store(FIRST, Ordering::Relaxed);
        match writer.dismiss(id, end) {
            Dismissal::Done => {
                for n in 2..4 {
                    assert!(Messages::Half.try_send(&mut writer, n), "no room");
                }
            }
            // It is waited for as before, whichever ring it is in.
            Dismissal::Passed => {
                Messages::Half.try_send(&mut writer, 2);
                Messages::Half.try_send(&mut writer, 3);
            }
            Dismissal::LeaveRing => unreachable!("it was in the first ring"),
        }
        reader.join().unwrap();
    });
}

#[test]
fn a_dismissed_reader_reads_what_is_left_to_it() {
    dismiss_at_a_switch(true);
}

#[test]
#[should_panic]
fn a_dismissed_reader_that_does_not_look() {
    dismiss_at_a_switch(false);
}

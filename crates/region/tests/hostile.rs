//! Peers that write nonsense: a reader survives any memory, and a writer any cursor.
#![cfg(not(memlane_loom))]

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use memlane_region::{
    HeapWords, Words, WordsMut,
    ring::{LEFT, RingReader, RingWriter, Roster, end, max_payload},
};
use proptest::{collection::vec, prelude::*};
use support::{Heap, HeapPage, Numbers, Place, Regions, held, payload};

/// The header of a record of `advance` bytes, `slack` of which are behind the payload.
fn header(advance: u64, slack: u64) -> u64 {
    advance | 1 << 32 | slack << 40
}

/// A word such as a hostile writer might choose: plausible headers, headers just beyond, and noise.
fn word(numbers: &mut Numbers, capacity: u64) -> u64 {
    let slack = numbers.below(80);
    let advance = 8 * (1 + numbers.below(capacity / 8));
    match numbers.below(10) {
        0 | 1 => 0,
        2..6 => header(advance, slack),
        6 => header(capacity - 8, slack),
        7 => header(capacity + 8 * numbers.below(8), slack),
        8 => header(u64::from(u32::MAX) & !7, 0),
        _ => numbers.next(),
    }
}

/// Takes one step as an honest reader would, and checks what can be checked whatever the memory says. The
/// length of the record, or `None` if the ring is empty or corrupt.
fn step<M: Words>(side: &mut RingReader<M, HeapPage>, numbers: &mut Numbers) -> Option<usize> {
    let capacity = side.memory().capacity();
    let max = capacity as usize - 16;
    let len = match side.poll() {
        Ok(None) => return None,
        Ok(Some(len)) => len,
        Err(corrupt) => {
            assert_eq!(corrupt.max, capacity - 8);
            assert!(corrupt.header != 0 && corrupt.header != header(corrupt.max, 0));
            assert_ne!(corrupt.to_string(), "");
            return None;
        }
    };
    assert!(len <= max, "{len} bytes in a ring for {max}");
    // Surrounded by bytes that must stay as they are.
    let mut copy = vec![0xA5; len + 32];
    side.read(0, &mut copy[16..16 + len]);
    let from = numbers.below(len as u64 + 1) as usize;
    let part = numbers.below((len - from) as u64 + 1) as usize;
    side.read(from, &mut copy[16..16 + part]);
    assert!(
        copy[..16]
            .iter()
            .chain(&copy[16 + len..])
            .all(|&byte| byte == 0xA5)
    );

    let before = side.position();
    side.release();
    let advanced = side.position().wrapping_sub(before);
    assert!(
        advanced % 8 == 0 && advanced >= 8 + len as u64 && advanced <= 8 + len as u64 + 71,
        "{advanced} bytes on"
    );
    Some(len)
}

fn start() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        0..1u64 << 20,
        (0..300u64).prop_map(|back| u64::MAX - back),
        any::<u64>()
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Memory that is different at every look, and a start that the peer made up.
    #[test]
    fn memory_that_flips(shift in 7..13usize, start in start(), seed: u64, flips in 0..8u64) {
        let mut numbers = Numbers(seed);
        let mut words = HeapWords::new(1 << shift);
        let capacity = words.capacity();
        for at in (0..capacity).step_by(8) {
            words.store(at, word(&mut numbers, capacity));
        }
        let mut side = RingReader::new(words.map(), HeapPage::default(), start);
        for _ in 0..100 {
            step(&mut side, &mut numbers);
            for _ in 0..flips {
                words.store(numbers.next(), word(&mut numbers, capacity));
            }
        }
    }

    /// What is read at any place is what lies there, modulo the ring, and nothing beside it.
    #[test]
    fn reads_stay_in_the_ring(shift in 7..11usize, start in start(), seed: u64, len: prop::sample::Index) {
        let mut numbers = Numbers(seed);
        let mut words = HeapWords::new(1 << shift);
        let capacity = words.capacity();
        let bytes: Vec<u8> = (0..capacity / 8)
            .flat_map(|at| {
                let word = numbers.next();
                words.store(8 * at, word);
                word.to_ne_bytes()
            })
            .collect();
        let len = len.index(max_payload(capacity) + 1);
        let base = start & !7;
        let advance = (8 + len as u64).next_multiple_of(8);
        words.store(base, header(advance, advance - 8 - len as u64));
        let mut side = RingReader::new(words.map(), HeapPage::default(), start);
        prop_assert_eq!(side.poll(), Ok(Some(len)));
        let mut copy = vec![0; len];
        side.read(0, &mut copy);
        for (at, byte) in copy.iter().enumerate() {
            let place = base.wrapping_add(8 + at as u64) % capacity;
            prop_assert_eq!(*byte, bytes[place as usize]);
        }
    }
}

/// A header that is no header is corrupt for ever, and the cursor stays where it was.
#[test]
fn corrupt_is_final() {
    let right = header(16, 0);
    for header in [
        1,
        2 << 32 | 16,
        header(256, 0),
        header(0, 0),
        header(8, 8),
        1 << 63 | header(16, 0),
        u64::MAX,
    ] {
        let mut words = HeapWords::new(256);
        let mut side = RingReader::new(words.map(), HeapPage::default(), 0);
        words.store(0, header);
        // Whatever is there later: another wrong header, nothing, or a right one.
        for later in [header, 3, 0, right] {
            let corrupt = side.poll().unwrap_err();
            assert_eq!(
                (corrupt.position, corrupt.header, corrupt.max),
                (0, header, 248)
            );
            words.store(0, later);
        }
        assert_eq!(side.position(), 0);
    }
}

/// Ends the other thread when this one is done, or has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The region's owner scribbles over it as fast as it can, while its reader polls and reads.
#[test]
fn a_writer_that_scribbles() {
    const NAME: &str = "scribbled";
    for shift in [12, 16] {
        let capacity = 1 << shift;
        let mut place = Regions::new(NAME, capacity);
        let mut mine = place.writer();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = Stop(&stop);
            scope.spawn(|| {
                let mut numbers = Numbers(shift);
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..64 {
                        mine.store(numbers.next() & !7, word(&mut numbers, capacity as u64));
                    }
                }
            });
            let mut numbers = Numbers(!shift);
            let (mut records, mut stuck) = (0, 0);
            let mut start = u64::MAX - 1000;
            while records < 1000 || stuck < 100 {
                // Stuck at a word that is empty or corrupt: another reader, somewhere else.
                let mut side = RingReader::new(place.open(), HeapPage::default(), start);
                for _ in 0..100 {
                    match step(&mut side, &mut numbers) {
                        Some(_) => records += 1,
                        None => stuck += 1,
                    }
                }
                start = numbers.next();
            }
        });
    }
    assert_eq!(held(NAME), (0, 0));
}

/// A ring in which every word is a header: each step takes one record of no bytes and moves on by one word.
#[test]
fn a_ring_of_headers() {
    let mut words = HeapWords::new(128);
    (0..16).for_each(|at| words.store(8 * at, header(8, 0)));
    let mut side = RingReader::new(words, HeapPage::default(), 0);
    for n in 1..1000 {
        assert_eq!(side.poll(), Ok(Some(0)));
        side.release();
        assert_eq!(side.position(), 8 * n);
    }
}

/// A reader that plays by the rules, beside one that does not.
struct Honest {
    side: RingReader<HeapWords, HeapPage>,
    page: HeapPage,
    next: u64,
}

impl Honest {
    fn join(place: &Heap, roster: &Roster<HeapPage>, next: u64) -> Honest {
        let (words, page, peer) = place.reader();
        let start = roster.join(peer).unwrap().start;
        let side = RingReader::new(words, page.clone(), start);
        Honest { side, page, next }
    }

    fn drain(&mut self) {
        while let Some(len) = self.side.poll().expect("an honest ring") {
            let mut copy = vec![0; len];
            self.side.read(0, &mut copy);
            assert_eq!(copy, payload(self.next, len), "record {}", self.next);
            self.side.release();
            self.next += 1;
        }
    }
}

/// A writer and its readers: honest, hostile, honest.
struct Lane {
    place: Heap,
    writer: RingWriter<HeapWords, HeapPage>,
    sent: u64,
    position: u64,
    honest: Vec<Honest>,
    hostile: HeapPage,
}

const CAPACITY: u64 = 256;

impl Lane {
    /// The hostile reader joins after `before` records, that is, not always at 0.
    fn new(before: u64) -> Lane {
        let mut place = Heap::new(CAPACITY as usize);
        let writer = RingWriter::new(place.writer());
        let roster = writer.roster().clone();
        let first = Honest::join(&place, &roster, 0);
        let hostile = HeapPage::default();
        let mut lane = Lane {
            place,
            writer,
            sent: 0,
            position: 0,
            honest: vec![first],
            hostile: hostile.clone(),
        };
        lane.pump(before);
        roster.join(Arc::new(hostile)).unwrap();
        let sent = lane.sent;
        lane.honest.push(Honest::join(&lane.place, &roster, sent));
        lane
    }

    fn try_send(&mut self) -> bool {
        let len = (self.sent * 7 % 50) as usize;
        if self.writer.reserve(len).is_err() {
            return false;
        }
        Heap::fill(&mut self.writer, &payload(self.sent, len), false);
        self.writer.commit(len);
        self.position = end(self.position, len);
        self.sent += 1;
        true
    }

    /// Sends so many records while the honest readers read, as far as the hostile one lets it.
    fn pump(&mut self, records: u64) -> bool {
        (0..records).all(|_| {
            self.honest.iter_mut().for_each(Honest::drain);
            self.try_send()
        })
    }

    /// The hostile reader has been dropped for this cursor, once; the lane works.
    fn assert_dropped(&mut self, found: u64) {
        assert!(self.pump(200), "held up");
        assert_eq!(self.hostile.verdict.get(), (1, found));
        self.assert_lives(2);
    }

    /// The hostile reader says that it has left: it holds nothing up, and stays listed until it is taken off.
    fn assert_left(&mut self) {
        assert!(self.pump(200), "held up");
        assert_eq!(self.hostile.verdict.get(), (0, 0));
        self.assert_lives(3);
    }

    fn assert_lives(&mut self, readers: usize) {
        self.honest.iter_mut().for_each(Honest::drain);
        assert_eq!(self.writer.roster().len(), readers);
        self.writer.sync();
        assert_eq!(self.writer.readers().count(), readers);
        for honest in &self.honest {
            assert_eq!(honest.next, self.sent);
            assert_eq!(honest.page.verdict.get(), (0, 0));
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Cursor {
    /// Between the last one and what was written.
    Fine(prop::sample::Index),
    Beyond(u64),
    Back(u64),
    Any(u64),
}

impl Cursor {
    fn get(self, last: u64, written: u64) -> u64 {
        match self {
            Cursor::Fine(index) => last + index.index((written - last) as usize + 1) as u64,
            Cursor::Beyond(by) => written.wrapping_add(by),
            Cursor::Back(by) => last.wrapping_sub(by),
            Cursor::Any(cursor) => cursor,
        }
    }
}

fn cursor() -> impl Strategy<Value = Cursor> {
    prop_oneof![
        9 => any::<prop::sample::Index>().prop_map(Cursor::Fine),
        1 => (1..600u64).prop_map(Cursor::Beyond),
        1 => (1..600u64).prop_map(Cursor::Back),
        1 => any::<u64>().prop_map(Cursor::Any),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any cursor, whenever the writer looks: it either names a position that the writer has been at and the
    /// reader has not gone back from, or the reader is dropped.
    #[test]
    fn cursors_that_jump(before in 0..40u64, cursors in vec(cursor(), 1..20)) {
        let mut lane = Lane::new(before);
        let start = lane.position;
        let mut last = 0;
        prop_assert!(!lane.pump(200), "the hostile reader holds the writer up");
        for cursor in cursors {
            let written = lane.position - start;
            let cursor = cursor.get(last, written);
            lane.hostile.cursor.store(cursor, Ordering::Relaxed);
            if cursor == LEFT {
                lane.assert_left();
                return Ok(());
            }
            if cursor < last || cursor > written {
                lane.assert_dropped(cursor);
                return Ok(());
            }
            prop_assert!(!lane.pump(200));
            lane.assert_lives(3);
            prop_assert_eq!(lane.hostile.verdict.get(), (0, 0));
            last = cursor;
        }
    }
}

#[test]
fn cursors_one_beyond_and_one_back() {
    for before in [0, 1, 13] {
        let mut lane = Lane::new(before);
        let start = lane.position;
        assert!(!lane.pump(200), "the hostile reader holds the writer up");
        // All there is, to the byte; then one more.
        let all = lane.position - start;
        lane.hostile.cursor.store(all, Ordering::Relaxed);
        assert!(lane.try_send());
        assert_eq!(lane.hostile.verdict.get(), (0, 0));
        assert!(!lane.pump(200));
        lane.hostile.cursor.store(all - 1, Ordering::Relaxed);
        lane.assert_dropped(all - 1);

        let mut lane = Lane::new(before);
        let start = lane.position;
        assert!(!lane.pump(200));
        let beyond = lane.position - start + 1;
        lane.hostile.cursor.store(beyond, Ordering::Relaxed);
        lane.assert_dropped(beyond);
    }
}

/// The one cursor beyond everything that is no lie.
#[test]
fn a_cursor_that_has_left() {
    let mut lane = Lane::new(1);
    assert!(!lane.pump(200), "the hostile reader holds the writer up");
    lane.hostile.cursor.store(LEFT, Ordering::Relaxed);
    lane.assert_left();
}

/// What a reader once released stays released, also when others come and go in between.
#[test]
fn cursors_that_go_back_behind_a_change_of_the_roster() {
    let mut lane = Lane::new(5);
    let start = lane.position;
    assert!(!lane.pump(200));
    let all = lane.position - start;
    lane.hostile.cursor.store(all, Ordering::Relaxed);
    assert!(!lane.pump(200));
    let roster = lane.writer.roster().clone();
    let sent = lane.sent;
    lane.honest.push(Honest::join(&lane.place, &roster, sent));
    lane.hostile.cursor.store(all - 8, Ordering::Relaxed);
    assert!(lane.pump(200), "held up");
    assert_eq!(lane.hostile.verdict.get(), (1, all - 8));
    lane.assert_lives(3);
}

/// The look at which a reader is dropped counts all the others: none of them is overrun.
#[test]
fn a_liar_beside_slow_readers() {
    for liar in 0..3 {
        let mut place = Heap::new(CAPACITY as usize);
        let mut writer = RingWriter::<_, HeapPage>::new(place.writer());
        let roster = writer.roster().clone();
        let hostile = HeapPage::default();
        let mut slow = Vec::new();
        for at in 0..3 {
            if at == liar {
                roster.join(Arc::new(hostile.clone())).unwrap();
            } else {
                slow.push(Honest::join(&place, &roster, 0));
            }
        }
        let mut sent = 0;
        let mut fill = |writer: &mut RingWriter<_, _>| {
            while writer.reserve(20).is_ok() {
                Heap::fill(writer, &payload(sent, 20), false);
                writer.commit(20);
                sent += 1;
            }
            sent
        };
        let full = fill(&mut writer);
        // One of the honest readers goes on, the other one stays behind; the liar is ahead of everything.
        slow[liar % 2].drain();
        hostile.cursor.store(u64::MAX - 1, Ordering::Relaxed);
        assert_eq!(fill(&mut writer), full, "somebody is overrun");
        assert_eq!(hostile.verdict.get(), (1, u64::MAX - 1));
        slow.iter_mut().for_each(Honest::drain);
        assert!(fill(&mut writer) > full);
        slow.iter_mut().for_each(Honest::drain);
    }
}

/// All lie: all go, each is told once, and the writer works on alone.
#[test]
fn every_reader_lies() {
    let mut place = Heap::new(CAPACITY as usize);
    let mut writer = RingWriter::<_, HeapPage>::new(place.writer());
    let pages: Vec<HeapPage> = (0..5).map(|_| HeapPage::default()).collect();
    for page in &pages {
        // Before it joins, even.
        page.cursor.store(u64::MAX - 1, Ordering::Relaxed);
        writer.roster().join(Arc::new(page.clone())).unwrap();
    }
    for _ in 0..10 {
        writer.reserve(200).unwrap();
        writer.commit(200);
    }
    for page in &pages {
        assert_eq!(page.verdict.get(), (1, u64::MAX - 1));
    }
    assert!(writer.roster().is_empty());
    assert_eq!(writer.readers().count(), 0);
}

/// The same over real regions: the page of a reader is its own to write, whatever it writes.
#[test]
fn a_control_page_that_lies() {
    const NAME: &str = "lying-page";
    {
        let mut place = Regions::new(NAME, 4096);
        let mut writer = RingWriter::new(place.writer());
        let (theirs, page, peer) = place.reader();
        let joined = writer.roster().join(peer.clone()).unwrap();
        let side = RingReader::new(theirs, page, joined.start);
        side.page().cursor_word().store(1 << 50, Ordering::Relaxed);
        for _ in 0..10 {
            writer.reserve(1000).unwrap();
            writer.commit(1000);
        }
        assert_eq!(peer.verdict.get(), (1, 1 << 50));
        assert!(!writer.roster().leave(joined.id));
    }
    assert_eq!(held(NAME), (0, 0));
}

//! The protocol between a writer and readers that it does not wait for, under every interleaving and every outcome of a
//! load that the memory model allows, within the bounds said below: the real ring, over [`HeapWords`].
//!
//! Here everything races, by design: what counts is that a copy is never taken for a message if it is none, and that the
//! counts are exact. Values never repeat, so that a stale word is told from a new one. Each rule has a counterpart
//! without it, which must be caught.
#![cfg(memlane_loom)]

#[path = "support/model.rs"]
mod model;

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

use loom::{
    sync::atomic::{AtomicU64, Ordering, fence},
    thread,
};
use memlane_region::{
    HeapWords, Words, WordsMut,
    ring::{
        CursorPage, LAP_WORDS, LEFT, LossyReader, NoRoom, Polled, Reader, Record, RingReader,
        RingWriter, Taken,
    },
};
use model::model;

/// The smallest ring.
const CAPACITY: usize = 128;

/// Words of the header.
const BOUND: usize = 0;
const ANCHORS: usize = 8;

/// Which rule is broken.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rules {
    Honest,
    /// The bound is looked at before the copy, not behind it.
    BoundBeforeCopy,
    /// The bound is not looked at when the header is 0.
    BlindToNothing,
    /// The bound is not looked at when the header is none.
    BlindToNonsense,
    /// The bound is exported behind what is written beyond it.
    BoundBehindBytes,
    /// The number of anchors is not looked at again.
    AnchorUnchecked,
}

/// Words on the heap, of which the first and the last of a payload are used.
struct Memory {
    words: HeapWords,
    rules: Rules,
    /// The last header that was loaded, the bound at that time, and the number of anchors that was loaded first.
    header: Cell<u64>,
    bound: Cell<u64>,
    anchors: Cell<Option<u64>>,
    /// A bound that is not exported yet.
    late: RefCell<Option<u64>>,
}

impl Memory {
    fn new(rules: Rules) -> Memory {
        Memory::over(HeapWords::with_header(LAP_WORDS, CAPACITY), rules)
    }

    fn over(words: HeapWords, rules: Rules) -> Memory {
        Memory {
            words,
            rules,
            header: Cell::new(0),
            bound: Cell::new(0),
            anchors: Cell::new(None),
            late: RefCell::new(None),
        }
    }

    fn map(&self) -> Memory {
        Memory::over(self.words.map(), self.rules)
    }
}

impl Words for Memory {
    fn capacity(&self) -> u64 {
        self.words.capacity()
    }

    fn load(&self, position: u64) -> u64 {
        let header = self.words.load(position);
        self.header.set(header);
        if self.rules == Rules::BoundBeforeCopy {
            fence(Ordering::Acquire);
            self.bound.set(self.words.load_control(BOUND));
        }
        header
    }

    fn read(&self, position: u64, offset: usize, dst: &mut [u8]) {
        let (first, rest) = dst.split_at_mut(8);
        self.words.read(position, offset, first);
        if let Some(last) = rest.len().checked_sub(8) {
            self.words
                .read(position, offset + 8 + last, &mut rest[last..]);
        }
    }

    fn load_control(&self, offset: usize) -> u64 {
        let header = self.header.get();
        match (self.rules, offset) {
            (Rules::BoundBeforeCopy, BOUND) => self.bound.get(),
            (Rules::BlindToNothing, BOUND) if header == 0 => 0,
            (Rules::BlindToNonsense, BOUND) if header >> 32 & 0xff != 1 => 0,
            (Rules::AnchorUnchecked, ANCHORS) => match self.anchors.take() {
                Some(anchors) => anchors,
                None => {
                    let anchors = self.words.load_control(ANCHORS);
                    self.anchors.set(Some(anchors));
                    anchors
                }
            },
            _ => self.words.load_control(offset),
        }
    }
}

impl WordsMut for Memory {
    fn store(&mut self, position: u64, value: u64) {
        self.words.store(position, value);
    }

    fn store_release(&mut self, position: u64, value: u64) {
        self.words.store_release(position, value);
        if let Some(bound) = self.late.take() {
            self.words.store_control(BOUND, bound);
        }
    }

    fn write(&mut self, position: u64, offset: usize, src: &[u8]) {
        self.words.write(position, offset, src);
    }

    fn store_control(&mut self, offset: usize, value: u64) {
        if self.rules == Rules::BoundBehindBytes && offset == BOUND {
            *self.late.borrow_mut() = Some(value);
        } else {
            self.words.store_control(offset, value);
        }
    }
}

/// A reader as the writer has it.
enum Known {
    Lossy,
    Lossless(AtomicU64),
}

impl Reader for Known {
    fn cursor(&self) -> u64 {
        match self {
            Known::Lossy => LEFT,
            Known::Lossless(cursor) => cursor.load(Ordering::Relaxed),
        }
    }

    fn corrupt(&self, found: u64) {
        panic!("an honest reader was dropped for its cursor {found}");
    }
}

/// The page of a lossless one.
struct Page(Arc<Known>);

impl CursorPage<Memory> for Page {
    fn export(&mut self, value: u64) {
        if let Known::Lossless(cursor) = &*self.0 {
            cursor.store(value, Ordering::Release);
        }
    }

    fn writer_sleeps(&self) -> bool {
        false
    }

    fn wanted(&self, _: &Memory) -> u64 {
        0
    }

    fn wake(&mut self) {
        unreachable!("the writer of these models never sleeps");
    }
}

type Writer = RingWriter<Memory, Known>;
type Side = LossyReader<Memory>;
type Roster = memlane_region::ring::Roster<Known>;

fn writer(rules: Rules) -> (Writer, Arc<Roster>) {
    let writer = Writer::with_laps(Memory::new(rules), 0);
    let roster = writer.roster().clone();
    (writer, roster)
}

fn join(roster: &Roster, memory: Memory) -> Side {
    let joined = roster.join(Arc::new(Known::Lossy)).unwrap();
    Side::new(memory, 0, joined.start, joined.sequence)
}

/// How long a payload is.
#[derive(Clone, Copy)]
enum Messages {
    /// 48 bytes: a record is half of the ring, so that headers fall on headers.
    Half,
    /// 64 bytes: the last word of one falls on the first of the one before.
    Large,
    /// 80 bytes: the last word of one falls on the header of the one before the last.
    Larger,
}

impl Messages {
    fn len(self) -> usize {
        match self {
            Messages::Half => 48,
            Messages::Large => 64,
            Messages::Larger => 80,
        }
    }

    fn try_send(self, writer: &mut Writer, n: u64) -> bool {
        match writer.reserve(self.len()) {
            Err(NoRoom::Full) => return false,
            result => result.unwrap(),
        }
        writer.write(0, &(n << 8 | 1).to_ne_bytes());
        writer.write(self.len() - 8, &(n << 8 | 2).to_ne_bytes());
        writer.commit(self.len());
        true
    }

    fn send(self, writer: &mut Writer, n: u64) {
        assert!(self.try_send(writer, n), "a lossy reader holds up nobody");
    }

    fn check(self, bytes: &[u8], n: u64) {
        let last = self.len() - 8;
        for (offset, expected) in [(0, n << 8 | 1), (last, n << 8 | 2)] {
            let word = bytes[offset..offset + 8].try_into().unwrap();
            let found = u64::from_ne_bytes(word);
            assert_eq!(found, expected, "torn: byte {offset} of message {n}");
        }
    }

    /// Whether a message was taken, which is compared.
    fn poll(self, side: &mut Side) -> bool {
        let mut bytes = [0; 80];
        let (before, missed) = (side.sequence(), side.missed());
        let polled = side.poll(&mut bytes).expect("an honest ring");
        let taken = match polled {
            Polled::Message(Taken {
                sequence, record, ..
            }) => {
                assert_eq!(record, Record::Inline(self.len()), "torn: a header");
                self.check(&bytes, sequence);
                1
            }
            Polled::Empty | Polled::Overtaken => 0,
            Polled::Longer(len) => panic!("torn: {len} bytes"),
            Polled::Switch(ring) => panic!("torn: the end of a ring, before ring {ring}"),
        };
        let now = before + taken + (side.missed() - missed);
        assert_eq!(side.sequence(), now, "miscounted");
        taken == 1
    }

    /// Reads on until there is nothing: that is `sent` messages.
    fn finish(self, side: &mut Side, sent: u64) {
        while self.poll(side) {}
        assert_eq!(side.sequence(), sent, "asleep for ever, or miscounted");
        assert!(side.is_empty());
    }
}

/// The writer overtakes a reader while it polls, `sent` messages in all, after `before` of them.
fn overtaken(messages: Messages, rules: Rules, preemptions: usize, before: u64, sent: u64) {
    model(Some(preemptions), move || {
        let (mut writer, roster) = writer(rules);
        let mut side = join(&roster, writer.memory().map());
        for n in 0..before {
            messages.send(&mut writer, n);
        }
        let reader = thread::spawn(move || {
            messages.poll(&mut side);
            messages.poll(&mut side);
            side
        });
        for n in before..sent {
            messages.send(&mut writer, n);
        }
        let mut side = reader.join().unwrap();
        messages.finish(&mut side, sent);
    });
}

/// At most 3 preemptions.
#[test]
fn an_overtaken_reader_takes_nothing_for_a_message_that_is_none() {
    overtaken(Messages::Half, Rules::Honest, 3, 1, 3);
}

/// At most 2 preemptions.
#[test]
fn nor_where_payloads_fall_on_one_another() {
    overtaken(Messages::Large, Rules::Honest, 2, 1, 4);
}

/// At most 3 preemptions.
#[test]
fn nor_where_they_fall_on_headers() {
    overtaken(Messages::Larger, Rules::Honest, 3, 1, 3);
}

#[test]
#[should_panic(expected = "torn")]
fn who_looks_at_the_bound_before_copying_takes_a_torn_one() {
    overtaken(Messages::Half, Rules::BoundBeforeCopy, 3, 1, 3);
}

#[test]
#[should_panic(expected = "torn")]
fn a_bound_behind_the_bytes_lets_torn_ones_through() {
    overtaken(Messages::Large, Rules::BoundBehindBytes, 3, 1, 2);
}

#[test]
#[should_panic(expected = "asleep for ever")]
fn who_believes_a_header_of_0_is_asleep_for_ever() {
    overtaken(Messages::Half, Rules::BlindToNothing, 3, 1, 2);
}

#[test]
#[should_panic(expected = "an honest ring")]
fn who_believes_a_wrong_header_calls_an_honest_ring_corrupt() {
    overtaken(Messages::Larger, Rules::BlindToNonsense, 3, 1, 3);
}

#[test]
#[should_panic(expected = "an honest ring")]
fn who_does_not_look_twice_at_the_anchors_goes_anywhere() {
    overtaken(Messages::Half, Rules::AnchorUnchecked, 3, 2, 5);
}

/// A reader joins while the writer overtakes whoever is there: it starts where a record does, with the right number,
/// and counts right from there. At most 3 preemptions.
#[test]
fn a_late_reader_counts_from_its_start() {
    const SENT: u64 = 3;
    model(Some(3), move || {
        let (mut writer, roster) = writer(Rules::Honest);
        let memory = writer.memory().map();
        let reader = thread::spawn(move || {
            let mut side = join(&roster, memory);
            assert_eq!(side.position(), side.sequence() * 64);
            Messages::Half.poll(&mut side);
            side
        });
        for n in 0..SENT {
            Messages::Half.send(&mut writer, n);
        }
        let mut side = reader.join().unwrap();
        Messages::Half.finish(&mut side, SENT);
    });
}

/// A reader that goes to sleep is woken, or has seen that there is something: its wake-up is not lost, be the header
/// that it looks at overwritten or not. Exhaustive.
fn sleep(rules: Rules) {
    model(None, move || {
        let (mut writer, roster) = writer(rules);
        let side = join(&roster, writer.memory().map());
        let armed = Arc::new(AtomicU64::new(0));
        let reader = thread::spawn({
            let armed = armed.clone();
            move || {
                armed.store(1, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                side.is_empty()
            }
        });
        let mut rung = false;
        for n in 0..2 {
            Messages::Half.send(&mut writer, n);
            writer.fence(true);
            rung |= armed.load(Ordering::Relaxed) != 0;
        }
        let sleeps = reader.join().unwrap();
        assert!(!sleeps || rung, "asleep for ever");
    });
}

#[test]
fn a_sleeping_reader_is_woken() {
    sleep(Rules::Honest);
}

#[test]
#[should_panic(expected = "asleep for ever")]
fn who_looks_at_the_header_alone_is_not() {
    sleep(Rules::BlindToNothing);
}

/// A lossy reader beside a lossless one, which alone holds the writer up, and gets everything. At most 2 preemptions.
#[test]
fn a_lossless_reader_beside_a_lossy_one() {
    const SENT: u64 = 3;
    model(Some(2), move || {
        let (mut writer, roster) = writer(Rules::Honest);
        let mut lossy = join(&roster, writer.memory().map());
        let known = Arc::new(Known::Lossless(AtomicU64::new(0)));
        let start = roster.join(known.clone()).unwrap().start;
        let mut lossless = RingReader::new(writer.memory().map(), Page(known), start);
        Messages::Half.send(&mut writer, 0);
        let receive = |side: &mut RingReader<Memory, Page>, n| {
            let Some(len) = side.poll().expect("an honest ring") else {
                return false;
            };
            let mut bytes = [0; 48];
            side.read(0, &mut bytes[..len]);
            Messages::Half.check(&bytes, n);
            side.release();
            true
        };
        let reader = thread::spawn(move || {
            let received = u64::from(receive(&mut lossless, 0));
            (lossless, received)
        });
        let other = thread::spawn(move || {
            Messages::Half.poll(&mut lossy);
            lossy
        });
        let mut sent = 1;
        for _ in 1..SENT {
            sent += u64::from(Messages::Half.try_send(&mut writer, sent));
        }
        let (mut lossless, mut received) = reader.join().unwrap();
        let mut lossy = other.join().unwrap();
        assert!(sent <= received + 1, "overrun");
        while sent < SENT || received < sent {
            if received < sent {
                assert!(receive(&mut lossless, received), "{received} is lost");
                received += 1;
            } else {
                assert_eq!(lossless.poll(), Ok(None));
                Messages::Half.send(&mut writer, sent);
                sent += 1;
            }
        }
        Messages::Half.finish(&mut lossy, SENT);
    });
}

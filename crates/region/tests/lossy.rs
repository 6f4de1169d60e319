//! A reader that holds nobody up: overtaken while it sleeps, behind a writer that lies, and with a pool.
#![cfg(not(memlane_loom))]

mod support;

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use memlane_region::{
    HeapWords, Words, WordsMut,
    pool::{self, Change, ChunkRef, HoldError, Holds, NOTHING, Pool, PoolOptions, PoolReader},
    ring::{
        self, LAP_WORDS, LEFT, LossyError, LossyReader, Polled, Record, RingWriter, Taken,
        max_payload,
    },
};
use proptest::prelude::*;
use support::{
    HeapPage, Known, LAPS, Numbers, Place, Regions, held, payload,
    pool::{Mine, Theirs},
};

type Writer = RingWriter<HeapWords, Known<HeapPage>>;

/// Words of the header, from `LAPS` on.
const BOUND: usize = LAPS;
const ANCHORS: usize = LAPS + 8;
const ANCHOR: [usize; 2] = [LAPS + 16, LAPS + 40];
const ANCHOR_SEQUENCE: usize = LAPS + 24;
const ANCHOR_RING: usize = LAPS + 32;

fn words(capacity: usize) -> HeapWords {
    HeapWords::with_header(LAPS + LAP_WORDS, capacity)
}

fn lane(capacity: usize) -> (Writer, LossyReader<HeapWords>) {
    let words = words(capacity);
    let writer = Writer::with_laps(words.map(), LAPS);
    let joined = writer.roster().join(Arc::new(Known::Lossy)).unwrap();
    let reader = LossyReader::new(words, LAPS, joined.start, joined.sequence);
    (writer, reader)
}

fn taken(reader: &mut LossyReader<HeapWords>, buffer: &mut [u8]) -> Taken {
    match reader.poll(buffer) {
        Ok(Polled::Message(taken)) => taken,
        found => panic!("expected a message, found {found:?}"),
    }
}

/// Where the writer has overtaken and become idle, the header of an overtaken reader may be 0 for ever.
#[test]
fn an_overtaken_reader_does_not_fall_asleep() {
    let (mut writer, mut reader) = lane(4096);
    // A lap of zeroes, in records that begin where the reader is not.
    writer.append(&[0; 3000]).unwrap();
    while writer.position() < 3 * 4096 {
        writer.append(&[0; 1000]).unwrap();
    }
    assert_eq!(reader.memory().load(reader.position()), 0);
    assert!(!reader.is_empty());
    let mut buffer = [1; 1000];
    let first = taken(&mut reader, &mut buffer);
    assert_eq!(first.sequence, first.missed);
    assert_eq!(buffer, [0; 1000]);
    while reader.sequence() < writer.sequence() {
        assert_eq!(taken(&mut reader, &mut buffer).missed, 0);
    }
    assert!(reader.is_empty());
    assert_eq!(reader.poll(&mut buffer), Ok(Polled::Empty));
}

/// The last message that a writer begins may never be committed: what is missed by it is counted all the same.
#[test]
fn overtaken_by_a_message_that_does_not_come() {
    let (mut writer, mut reader) = lane(4096);
    for _ in 0..40 {
        writer.append(&[3; 80]).unwrap();
    }
    let sent = writer.sequence();
    writer.reserve(1000).unwrap();
    writer.write(0, &[4; 1000]);
    assert!(!reader.is_empty());
    let mut buffer = [0; 1000];
    assert_eq!(reader.poll(&mut buffer), Ok(Polled::Empty));
    assert!(reader.is_empty());
    assert_eq!((reader.sequence(), reader.missed()), (sent, sent));
    writer.commit(1000);
    let last = taken(&mut reader, &mut buffer);
    assert_eq!((last.sequence, last.missed), (sent, sent));
    assert_eq!(buffer, [4; 1000]);
}

/// The buffer is too short: the message is still there, and nothing is written.
#[test]
fn a_longer_message_waits_for_a_longer_buffer() {
    let (mut writer, mut reader) = lane(4096);
    writer.append(&[5; 100]).unwrap();
    let mut buffer = [0; 100];
    assert_eq!(reader.poll(&mut buffer[..99]), Ok(Polled::Longer(100)));
    assert_eq!(reader.poll(&mut []), Ok(Polled::Longer(100)));
    assert_eq!(buffer, [0; 100]);
    assert_eq!(taken(&mut reader, &mut buffer).record, Record::Inline(100));
    assert_eq!(buffer, [5; 100]);
}

/// The same, of every message, when the ring is so short that the next one always overwrites it.
#[test]
fn one_message_fills_the_ring() {
    let (mut writer, mut reader) = lane(4096);
    let len = max_payload(4096);
    let mut buffer = vec![0; len];
    for n in 0..20 {
        writer.append(&payload(n, len)).unwrap();
        if n % 3 == 0 {
            let missed = if n == 0 { 0 } else { 2 };
            let found = taken(&mut reader, &mut buffer);
            assert_eq!((found.sequence, found.missed), (n, missed));
            assert!(buffer == payload(n, len));
        }
    }
}

#[test]
#[should_panic]
fn a_header_without_room_for_the_words() {
    Writer::with_laps(HeapWords::with_header(LAP_WORDS, 4096), 8);
}

/// Each lie about where to go on is found out, once, and for ever.
#[test]
fn anchors_that_make_no_sense() {
    let start = (4096 + 64, 100);
    // A position, a sequence, and whether that may be.
    let anchors = [
        (4096 + 128, 101, true),
        (4096 + 128, 108, true),
        (4096 + 128, 109, false),
        (4096 + 128, 100, false),
        (4096 + 128, 99, false),
        (4096 + 128, 0, false),
        (4096 + 128, u64::MAX, false),
        (4096 + 127, 101, false),
        (4096 + 64, 100, false),
        (4096 + 64, 101, false),
        (4096, 99, false),
        (0, 0, false),
        (1 << 40, 101, false),
        (1 << 40, 1 << 30, true),
        (1 << 40, 1 << 38, false),
        (!7, 1 << 60, true),
        (!7, u64::MAX, false),
        (u64::MAX, 1 << 60, false),
    ];
    for (position, sequence, right) in anchors {
        for anchors in [0, 1, u64::MAX] {
            let mut mine = words(4096);
            mine.store_control(BOUND, start.0 + 4096 + 8);
            mine.store_control(ANCHORS, anchors);
            mine.store_control(ANCHOR[anchors as usize & 1], position);
            mine.store_control(ANCHOR[anchors as usize & 1] + 8, sequence);
            let mut reader = LossyReader::new(mine.map(), LAPS, start.0, start.1);
            let corrupt = LossyError::Anchor {
                position: start.0,
                sequence: start.1,
                found_position: position,
                found_sequence: sequence,
            };
            let found = reader.poll(&mut []);
            if right {
                assert_eq!(found, Ok(Polled::Empty), "{position} {sequence}");
                assert_eq!(reader.position(), position);
                assert_eq!(reader.missed(), sequence - start.1);
            } else {
                assert_eq!(found, Err(corrupt), "{position} {sequence}");
                // Whatever is there later.
                mine.store_control(BOUND, 0);
                assert_eq!(reader.poll(&mut []), Err(corrupt));
                assert_eq!((reader.position(), reader.missed()), (start.0, 0));
            }
        }
    }
}

/// A header that is none is corrupt where it was not overwritten, and nothing where it was.
#[test]
fn headers_that_make_no_sense() {
    for header in [1, 16, 4 << 32 | 16, 1 << 32 | 4096, 2 << 32 | 16, u64::MAX] {
        let mut mine = words(4096);
        mine.store(0, header);
        let mut reader = LossyReader::new(mine.map(), LAPS, 0, 0);
        let Err(LossyError::Header(corrupt)) = reader.poll(&mut [0; 64]) else {
            panic!("{header:#x} is a header");
        };
        assert_eq!((corrupt.position, corrupt.header), (0, header));
        mine.store(0, 0);
        assert_eq!(reader.poll(&mut [0; 64]), Err(LossyError::Header(corrupt)));

        let mut mine = words(4096);
        mine.store(0, header);
        mine.store_control(BOUND, 4097);
        mine.store_control(ANCHOR[0], 8);
        mine.store_control(ANCHOR[0] + 8, 1);
        let mut reader = LossyReader::new(mine.map(), LAPS, 0, 0);
        assert_eq!(reader.poll(&mut [0; 64]), Ok(Polled::Empty));
        assert_eq!((reader.position(), reader.missed()), (8, 1));
    }
}

/// Memory whose words for lossy readers are different at every look.
struct Restless {
    words: HeapWords,
    looks: std::cell::Cell<u64>,
    anchors: fn(u64) -> u64,
}

impl Words for Restless {
    fn capacity(&self) -> u64 {
        self.words.capacity()
    }

    fn load(&self, position: u64) -> u64 {
        self.words.load(position)
    }

    fn read(&self, position: u64, offset: usize, dst: &mut [u8]) {
        self.words.read(position, offset, dst);
    }

    fn load_control(&self, offset: usize) -> u64 {
        self.looks.set(self.looks.get() + 1);
        assert!(self.looks.get() < 500, "a loop without end");
        match offset {
            BOUND => u64::MAX,
            ANCHORS => (self.anchors)(self.looks.get()),
            ANCHOR_SEQUENCE => self.looks.get() / 2,
            ANCHOR_RING => 0,
            _ => self.looks.get() * 8,
        }
    }
}

/// A writer that is always further, or whose words are never the same twice, makes a poll say so, not go on for ever.
#[test]
fn a_writer_that_never_lets_one_read() {
    let restless = |anchors| Restless {
        words: words(4096),
        looks: Default::default(),
        anchors,
    };
    let mut reader = LossyReader::new(restless(|look| look), LAPS, 0, 0);
    assert_eq!(reader.poll(&mut [0; 64]), Ok(Polled::Overtaken));
    assert_eq!((reader.position(), reader.missed()), (0, 0));
    assert!(!reader.is_empty());

    // Every anchor is a little further than the last: each is missed, all are counted.
    let mut reader = LossyReader::new(restless(|_| 0), LAPS, 0, 0);
    assert_eq!(reader.poll(&mut [0; 64]), Ok(Polled::Overtaken));
    assert!(reader.position() > 0 && reader.missed() > 0);
    assert_eq!(reader.missed(), reader.sequence());
}

/// A word that a hostile writer may store in the header.
fn lie(numbers: &mut Numbers, capacity: u64) -> u64 {
    match numbers.below(6) {
        0 => numbers.next(),
        1 => u64::MAX - numbers.below(64),
        2 | 3 => numbers.below(64),
        _ => 8 * numbers.below(capacity),
    }
}

/// A word in the ring, often nearly a header.
fn word(numbers: &mut Numbers, capacity: u64) -> u64 {
    match numbers.below(6) {
        0 => numbers.next(),
        1 => 0,
        2 => 2 << 32 | 32,
        _ => 1 << 32 | (8 * numbers.below(capacity / 4)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any memory, different at every look, and any start: each poll returns, in bounds, with positions and sequences
    /// that only go forward.
    #[test]
    fn any_memory_is_read_or_refused(shift in 7..13usize, start: u64, sequence: u64, seed: u64, flips in 0..8u64) {
        let mut numbers = Numbers(seed);
        let mut mine = words(1 << shift);
        let capacity = mine.capacity();
        for at in (0..capacity).step_by(8) {
            mine.store(at, word(&mut numbers, capacity));
        }
        let start = start >> (start % 64);
        let mut reader = LossyReader::new(mine.map(), LAPS, start, sequence >> 1);
        let mut buffer = vec![0; max_payload(capacity)];
        for _ in 0..100 {
            let before = (reader.sequence(), reader.missed());
            let room = numbers.below(buffer.len() as u64 + 1) as usize;
            let found = reader.poll(&mut buffer[..room]);
            let (now, missed) = (reader.sequence(), reader.missed());
            prop_assert!(now >= before.0 && missed >= before.1);
            let one = matches!(found, Ok(Polled::Message(_)));
            prop_assert_eq!(now - before.0, missed - before.1 + u64::from(one));
            if let Ok(Polled::Message(Taken { record: Record::Inline(len), .. })) = found {
                prop_assert!(len <= room);
            }
            if let Ok(Polled::Longer(len)) = found {
                prop_assert!(len > room);
            }
            reader.is_empty();
            for _ in 0..flips {
                mine.store(numbers.next(), word(&mut numbers, capacity));
                let control = LAPS + 8 * numbers.below(8) as usize;
                mine.store_control(control, lie(&mut numbers, capacity));
            }
        }
    }
}

/// Ends the other thread when this one is done, or has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The region's owner scribbles over ring and header as fast as it can, while its reader polls.
#[test]
fn a_writer_that_scribbles() {
    const NAME: &str = "lossy-scribbled";
    let capacity = 4096;
    let mut place = Regions::new(NAME, capacity);
    let mut mine = place.writer();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            let mut numbers = Numbers(1);
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..64 {
                    mine.store(numbers.next() & !7, word(&mut numbers, capacity as u64));
                    let control = LAPS + 8 * numbers.below(8) as usize;
                    mine.store_control(control, lie(&mut numbers, capacity as u64));
                }
            }
        });
        let mut numbers = Numbers(2);
        let mut buffer = vec![0; max_payload(capacity as u64)];
        let (mut messages, mut missed, mut refused) = (0, 0, 0);
        while messages < 300 || missed < 300 || refused < 300 {
            let start = lie(&mut numbers, capacity as u64);
            let mut reader = LossyReader::new(place.open(), LAPS, start, 0);
            for _ in 0..100 {
                match reader.poll(&mut buffer) {
                    Ok(Polled::Message(_)) => messages += 1,
                    Ok(_) => {}
                    Err(_) => {
                        refused += 1;
                        break;
                    }
                }
            }
            missed += u64::from(reader.missed() > 0);
        }
    });
    drop((mine, place));
    assert_eq!(held(NAME), (0, 0));
}

/// A lossy reader with a page for its hold slots, as the writer has it.
struct Holder(Theirs);

impl ring::Reader for Holder {
    fn cursor(&self) -> u64 {
        LEFT
    }

    fn corrupt(&self, _: u64) {}
}

impl pool::Holder for Holder {
    fn released(&self, _: u64) -> u64 {
        NOTHING
    }

    fn slots(&self) -> u64 {
        self.0.slots()
    }

    fn slot(&self, slot: usize) -> u64 {
        self.0.slot(slot)
    }
}

/// A pool whose chunks come and go faster than a lossy reader can have them all: those it gets are whole, the others
/// are counted.
#[test]
fn chunks_are_held_or_missed() {
    const NAME: &str = "lossy-chunks";
    {
        let words = words(4096);
        let mut ring = RingWriter::with_laps(words.map(), LAPS);
        let mut pool = Pool::new(PoolOptions::new(24 * 4096).max_loan(4096).memory(NAME)).unwrap();
        let (page, descriptor) = Mine::create(NAME);
        let theirs = Arc::new(Holder(Theirs::open(descriptor, true)));
        let joined = ring.roster().join(theirs).unwrap();
        let mut reader = LossyReader::new(words, LAPS, joined.start, joined.sequence);
        let holds = Arc::new(Holds::new(page));
        let mut chunks = PoolReader::new(1 << 30);
        let mut kept = Vec::new();
        let mut numbers = Numbers(9);
        let (mut received, mut gone) = (0, 0);
        for n in 0..5000u64 {
            let mut loan = pool.loan(2000, &mut ring).unwrap();
            loan.copy_from_slice(&payload(n, 2000));
            let sent: ChunkRef = pool.send(loan, &mut ring).unwrap();
            assert_eq!(sent.sequence, n + 1);
            for change in pool.take_changes() {
                if let Change::Added(id) = change {
                    let segment = pool.segment(id).unwrap();
                    let descriptor = segment.descriptor.as_fd().try_clone_to_owned().unwrap();
                    chunks.insert(id, descriptor, segment.geometry).unwrap();
                }
            }
            // Now and then everything, or a few; in between it is asleep.
            let most = match numbers.below(200) {
                0 => 1000,
                1..40 => numbers.below(4),
                _ => 0,
            };
            for _ in 0..most {
                let Polled::Message(taken) = reader.poll(&mut []).unwrap() else {
                    break;
                };
                let Record::Chunk(found) = taken.record else {
                    panic!("{taken:?}");
                };
                assert_eq!(found.sequence, taken.sequence + 1);
                match chunks.resolve(found).unwrap().announce(&holds) {
                    Ok(held) => {
                        received += 1;
                        if numbers.below(8) == 0 {
                            kept.push((taken.sequence, held));
                        } else {
                            drop(held);
                        }
                    }
                    Err(HoldError::Gone { .. }) => {
                        gone += 1;
                        reader.forgo(taken);
                    }
                    Err(error) => panic!("{error}"),
                }
                if kept.len() > 10 {
                    let at = numbers.below(kept.len() as u64) as usize;
                    kept.swap_remove(at);
                }
            }
            for (sequence, held) in &kept {
                let mut copy = vec![0; 2000];
                held.chunk().read(0, &mut copy);
                assert!(copy == payload(*sequence, 2000), "message {sequence}");
            }
        }
        assert!(received > 100 && gone > 100, "{received} and {gone}");
        while let Ok(Polled::Message(taken)) = reader.poll(&mut []) {
            reader.forgo(taken);
        }
        assert_eq!(received + reader.missed(), 5000);
    }
    assert_eq!(held(NAME), (0, 0));
}

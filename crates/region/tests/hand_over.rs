//! Writers that go on where others stop, and readers that follow.

mod support;

use std::{collections::HashMap, sync::Arc};

use memlane_region::{
    HeapWords,
    ring::{
        From, LAP_WORDS, LossyReader, NoRoom, NoSuccession, Polled, Record, RingReader, RingWriter,
    },
};
use support::{HeapPage, Known, LAPS};

const CAPACITY: usize = 256;

type Writer = RingWriter<HeapWords, Known<HeapPage>>;

/// Rings by their numbers, the one writer there is now, and what it has written.
struct Lane {
    rings: HashMap<u32, HeapWords>,
    writer: Writer,
    /// First rings of writers.
    homes: Vec<u32>,
    last: u32,
    sent: u64,
}

struct Side {
    ring: RingReader<HeapWords, HeapPage>,
    peer: HeapPage,
    start: u64,
    next: u64,
}

struct Lossy {
    reader: LossyReader<HeapWords>,
    next: u64,
    start: (u64, u64),
}

fn memory() -> HeapWords {
    HeapWords::with_header(LAPS + LAP_WORDS, CAPACITY)
}

impl Lane {
    fn new() -> Lane {
        let first = memory();
        Lane {
            rings: HashMap::from([(0, first.map())]),
            writer: Writer::with_laps(first, LAPS),
            homes: vec![0],
            last: 0,
            sent: 0,
        }
    }

    fn join(&self) -> Side {
        let peer = HeapPage::default();
        let known = Known::Lossless(Arc::new(peer.clone()));
        let joined = self.writer.roster().join(Arc::new(known)).unwrap();
        let words = self.rings[&joined.ring].map();
        Side {
            ring: RingReader::new(words, peer.clone(), joined.start),
            peer,
            start: joined.start,
            next: joined.sequence,
        }
    }

    fn join_lossy(&self) -> Lossy {
        let joined = self.writer.roster().join(Arc::new(Known::Lossy)).unwrap();
        let home = self.writer.home();
        let (start, sequence) = (joined.start, joined.sequence);
        let mut reader =
            LossyReader::new(self.rings[&home].map(), LAPS, start, sequence).numbered(home);
        if joined.ring != home {
            reader = reader.starting_in(joined.ring, self.rings[&joined.ring].map());
        }
        Lossy {
            reader,
            next: sequence,
            start: (start, sequence),
        }
    }

    /// Until it is full, or so many.
    fn send(&mut self, messages: u64) {
        for _ in 0..messages {
            match self.writer.append(&self.sent.to_le_bytes()) {
                Ok(()) => self.sent += 1,
                Err(error) => return assert_eq!(error, NoRoom::Full),
            }
        }
    }

    fn spill(&mut self) {
        if !self.writer.is_fresh() {
            self.last += 1;
            let ring = memory();
            self.rings.insert(self.last, ring.map());
            self.writer.switch(self.last, Some(ring));
        }
    }

    /// Another writer goes on.
    fn hand_over(&mut self, sides: &[Side], lossy: &[Lossy]) {
        self.last += 1;
        let ring = memory();
        self.rings.insert(self.last, ring.map());
        self.homes.push(self.last);
        let mut successor = Writer::with_laps(ring, LAPS).numbered(self.last);
        let (position, sequence) = self.writer.hand_over(self.last);
        assert_eq!(sequence, self.sent);
        assert_eq!(self.writer.append(&[]), Err(NoRoom::Full));
        successor.begin_at(position, sequence);
        for side in sides {
            let known = Known::Lossless(Arc::new(side.peer.clone()));
            successor.roster().adopt(Arc::new(known), side.start, 0);
        }
        for lossy in lossy {
            let (start, sequence) = lossy.start;
            let known = Arc::new(Known::Lossy);
            successor.roster().adopt(known, start, sequence);
        }
        assert_eq!(successor.roster().begun(), position);
        self.writer = successor;
    }

    fn take(&self, side: &mut Side) -> bool {
        loop {
            if side.ring.poll().unwrap().is_some() {
                let mut copy = [0; 8];
                side.ring.read(0, &mut copy);
                side.ring.release();
                assert_eq!(u64::from_le_bytes(copy), side.next);
                side.next += 1;
                return true;
            }
            match side.ring.switched() {
                Some(ring) => drop(side.ring.follow(self.rings[&ring].map())),
                None => return false,
            }
        }
    }

    fn take_lossy(&self, lossy: &mut Lossy) -> bool {
        let mut copy = [0; 8];
        loop {
            match lossy.reader.poll(&mut copy).unwrap() {
                Polled::Message(taken) => {
                    assert_eq!(taken.record, Record::Inline(8));
                    assert_eq!(u64::from_le_bytes(copy), taken.sequence);
                    assert_eq!(taken.sequence, lossy.next + taken.missed);
                    lossy.next = taken.sequence + 1;
                    return true;
                }
                // To one that it has been in before, the memory is the same.
                Polled::Switch(ring) if ring != 0 && self.homes.contains(&ring) => {
                    lossy.reader.follow_home(self.rings[&ring].map());
                }
                Polled::Switch(ring) => {
                    let memory = (ring != 0).then(|| self.rings[&ring].map());
                    lossy.reader.follow(memory);
                }
                Polled::Empty => return false,
                Polled::Overtaken => {}
                Polled::Longer(len) => panic!("{len} bytes"),
            }
        }
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }
}

/// Lossless ones have all, wherever they are when it happens, and lossy ones know what they have missed.
#[test]
fn readers_follow_from_writer_to_writer() {
    for seed in 1..40 {
        let (mut lane, mut dice) = (Lane::new(), Dice(seed));
        let mut sides = vec![lane.join(), lane.join()];
        let mut lossy = vec![lane.join_lossy(), lane.join_lossy()];
        for round in 0..300 {
            lane.send(dice.below(20));
            if dice.below(4) == 0 {
                lane.spill();
                lane.send(dice.below(5));
            }
            for side in &mut sides {
                for _ in 0..dice.below(12) {
                    lane.take(side);
                }
            }
            for lossy in &mut lossy {
                for _ in 0..dice.below(12) {
                    lane.take_lossy(lossy);
                }
            }
            if dice.below(3) == 0 {
                lane.hand_over(&sides, &lossy);
            }
            if round % 50 == 49 {
                sides.push(lane.join());
                lossy.push(lane.join_lossy());
            }
        }
        for side in &mut sides {
            while lane.take(side) {}
            assert_eq!(side.next, lane.sent);
            assert_eq!(side.peer.verdict.get(), (0, 0));
        }
        for lossy in &mut lossy {
            while lane.take_lossy(lossy) {}
            assert_eq!(lossy.reader.sequence(), lane.sent);
        }
        assert!(lane.writer.is_drained());
    }
}

/// Who has still to read what is another writer's can be succeeded by nobody here, who would not find it.
#[test]
fn a_place_in_another_writers_ring_is_none() {
    let mut lane = Lane::new();
    let mut side = lane.join();
    lane.send(3);
    lane.hand_over(std::slice::from_ref(&side), &[]);
    let id = lane.writer.roster().joined(0).unwrap().id;
    let successor = || Arc::new(Known::Lossless(Arc::new(HeapPage::default())));
    let roster = lane.writer.roster().clone();
    let refused = roster.succeed(id, successor(), From::Cursor(None), false);
    assert!(matches!(refused, Err(NoSuccession::Elsewhere)));
    while lane.take(&mut side) {}
    side.ring.release_all();
    let at = lane.writer.position();
    let joined = roster.succeed(id, successor(), From::Cursor(Some(3)), false);
    assert_eq!(joined.unwrap().start, at);
}

#[test]
#[should_panic(expected = "a writer that has begun")]
fn a_writer_begins_once() {
    let mut lane = Lane::new();
    lane.send(1);
    lane.writer.begin_at(64, 1);
}

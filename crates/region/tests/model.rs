//! Random operations on a ring against a model of it: a queue per reader, and the layout's arithmetic done
//! the slow way.
#![cfg(not(memlane_loom))]

mod support;

use std::{collections::VecDeque, sync::Arc};

use memlane_region::ring::{NoRoom, Reader, RingReader, RingWriter};
use proptest::{collection::vec, prelude::*, sample::Index, test_runner::TestCaseError};
use support::{Heap, Place, ReaderOf, Regions, held, payload};

/// Where a length comes from; most are small, so that rings hold several records.
#[derive(Clone, Copy, Debug)]
enum Len {
    Small(usize),
    Part(Index),
    Max,
    OneAbove,
    Absurd,
}

impl Len {
    fn get(self, max: usize) -> usize {
        match self {
            Len::Small(len) => len,
            Len::Part(index) => index.index(max + 1),
            Len::Max => max,
            Len::OneAbove => max + 1,
            Len::Absurd => usize::MAX,
        }
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Append {
        len: Len,
        in_place: bool,
        insist: bool,
    },
    /// Reserves, and commits at most as much.
    Shorten {
        reserved: Len,
        committed: Index,
    },
    /// Reserves, and changes its mind.
    Reserve(Len),
    Poll {
        reader: Index,
        records: usize,
        offsets: Vec<(Index, Index)>,
    },
    Join,
    Leave(Index),
    Sync,
    Want(bool),
}

fn len() -> impl Strategy<Value = Len> {
    prop_oneof![
        6 => (0..130usize).prop_map(Len::Small),
        3 => any::<Index>().prop_map(Len::Part),
        1 => Just(Len::Max),
        1 => Just(Len::OneAbove),
        1 => Just(Len::Absurd),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let offsets = vec(any::<(Index, Index)>(), 0..3);
    prop_oneof![
        10 => (len(), any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(len, in_place, insist)| Append { len, in_place, insist }),
        4 => (len(), any::<Index>())
            .prop_map(|(reserved, committed)| Shorten { reserved, committed }),
        1 => len().prop_map(Reserve),
        12 => (any::<Index>(), 1..5usize, offsets)
            .prop_map(|(reader, records, offsets)| Poll { reader, records, offsets }),
        1 => Just(Join),
        1 => any::<Index>().prop_map(Leave),
        1 => Just(Sync),
        1 => any::<bool>().prop_map(Want),
    ]
}

/// Where a record ends, by the words of [`memlane_region::ring::end`]: one multiple of 8 after the other.
fn end(position: u64, len: usize) -> u64 {
    let total = 8 + len as u64;
    let align = [8, 16, 32, 64].into_iter().find(|&align| align >= total);
    let mut end = position + total.next_multiple_of(8);
    while total <= 64 && end % align.unwrap() != 0 {
        end += 8;
    }
    end
}

/// The last byte that a record of up to `len` bytes, and the header after it, may touch, plus one.
fn room(position: u64, len: usize) -> u64 {
    let ends = (0..=len.min(56)).map(|shorter| end(position, shorter));
    ends.max().unwrap().max(end(position, len)) + 8
}

struct Side<P: Place> {
    id: u64,
    start: u64,
    position: u64,
    queue: VecDeque<(u64, usize)>,
    ring: ReaderOf<P>,
    peer: Arc<P::Peer>,
}

struct Model<P: Place> {
    place: P,
    writer: RingWriter<P::Mine, P::Peer>,
    capacity: u64,
    position: u64,
    sequence: u64,
    wanted: u64,
    readers: Vec<Side<P>>,
}

type Tested = Result<(), TestCaseError>;

impl<P: Place> Model<P> {
    fn new(mut place: P, capacity: usize) -> Model<P> {
        Model {
            writer: RingWriter::new(place.writer()),
            place,
            capacity: capacity as u64,
            position: 0,
            sequence: 0,
            wanted: 0,
            readers: Vec::new(),
        }
    }

    fn run(&mut self, operation: &Operation) -> Tested {
        match operation {
            Operation::Append {
                len,
                in_place,
                insist,
            } => {
                let len = len.get(self.max());
                if self.reserve(len)? {
                    self.commit(len, *in_place);
                } else if *insist && len <= self.max() {
                    self.drain()?;
                    prop_assert!(self.reserve(len)?, "{len} bytes do not fit an empty ring");
                    self.commit(len, *in_place);
                }
            }
            Operation::Shorten {
                reserved,
                committed,
            } => {
                let reserved = reserved.get(self.max());
                if self.reserve(reserved)? {
                    self.commit(committed.index(reserved + 1), false);
                }
            }
            Operation::Reserve(len) => {
                self.reserve(len.get(self.max()))?;
            }
            Operation::Poll {
                reader,
                records,
                offsets,
            } => {
                if !self.readers.is_empty() {
                    let reader = reader.index(self.readers.len());
                    for _ in 0..*records {
                        self.poll(reader, offsets)?;
                    }
                }
            }
            Operation::Join => {
                if self.readers.len() < 4 {
                    self.join()?;
                }
            }
            Operation::Leave(reader) => {
                if !self.readers.is_empty() {
                    let left = self.readers.swap_remove(reader.index(self.readers.len()));
                    prop_assert!(self.writer.roster().leave(left.id));
                    prop_assert!(!self.writer.roster().leave(left.id));
                }
            }
            Operation::Sync => {
                self.writer.sync();
                prop_assert_eq!(self.writer.readers().count(), self.readers.len());
                prop_assert!(!self.writer.sync());
            }
            Operation::Want(wanted) => {
                self.wanted = if *wanted { self.writer.want(8) } else { 0 };
                self.place.want(&self.writer, self.wanted);
            }
        }
        prop_assert_eq!(self.writer.roster().len(), self.readers.len());
        Ok(())
    }

    fn max(&self) -> usize {
        self.writer.max_payload()
    }

    /// True if the model has room too: the two agree, or this fails.
    fn reserve(&mut self, len: usize) -> Result<bool, TestCaseError> {
        let exported = self
            .readers
            .iter()
            .map(|side| side.start + side.peer.cursor());
        let limit = exported.min().unwrap_or(self.position) + self.capacity;
        let max = (self.capacity - self.capacity / 8) as usize - 16;
        let expected = if len > max {
            Err(NoRoom::TooLarge { max })
        } else if room(self.position, len) > limit {
            Err(NoRoom::Full)
        } else {
            Ok(())
        };
        prop_assert_eq!(self.writer.reserve(len), expected, "{} bytes", len);
        Ok(expected.is_ok())
    }

    fn commit(&mut self, len: usize, in_place: bool) {
        P::fill(&mut self.writer, &payload(self.sequence, len), in_place);
        self.writer.commit(len);
        self.position = end(self.position, len);
        for side in &mut self.readers {
            side.queue.push_back((self.sequence, len));
        }
        self.sequence += 1;
    }

    fn join(&mut self) -> Tested {
        let (memory, page, peer) = self.place.reader();
        let joined = self.writer.roster().join(peer.clone()).unwrap();
        prop_assert_eq!(joined.start, self.position, "the next record");
        prop_assert!(self.readers.iter().all(|side| side.id != joined.id));
        self.readers.push(Side {
            id: joined.id,
            start: joined.start,
            position: joined.start,
            queue: VecDeque::new(),
            ring: RingReader::new(memory, page, joined.start),
            peer,
        });
        Ok(())
    }

    /// Takes one record, whole and in parts, if there is one.
    fn poll(&mut self, reader: usize, offsets: &[(Index, Index)]) -> Tested {
        let side = &mut self.readers[reader];
        let next = side.queue.pop_front();
        prop_assert_eq!(side.ring.is_empty(), next.is_none());
        prop_assert_eq!(side.ring.poll(), Ok(next.map(|(_, len)| len)));
        let Some((sequence, len)) = next else {
            // An empty poll exports everything.
            prop_assert_eq!(side.start + side.peer.cursor(), side.position);
            return Ok(());
        };
        let expected = payload(sequence, len);
        let mut read = vec![0; len];
        side.ring.read(0, &mut read);
        prop_assert!(read == expected, "record {} of {} bytes", sequence, len);
        for (from, to) in offsets {
            let from = from.index(len + 1);
            let part = &mut read[..to.index(len - from + 1)];
            part.fill(0);
            side.ring.read(from, part);
            prop_assert!(
                *part == expected[from..from + part.len()],
                "{} at {}",
                part.len(),
                from
            );
        }
        let (exported, wakes) = (side.start + side.peer.cursor(), P::wakes(&side.peer));
        side.ring.release();
        side.position = end(side.position, len);
        prop_assert_eq!(side.ring.position(), side.position);
        let lag = side.position - side.start - side.peer.cursor();
        let wanted = self.wanted & !7;
        let reached = self.wanted != 0 && exported < wanted && wanted <= side.position;
        prop_assert!(
            lag == 0 || (lag < self.capacity / 8 && !reached),
            "{} not exported",
            lag
        );
        prop_assert_eq!(P::wakes(&side.peer) - wakes, u64::from(reached));
        Ok(())
    }

    fn drain(&mut self) -> Tested {
        for reader in 0..self.readers.len() {
            for _ in 0..=self.readers[reader].queue.len() {
                self.poll(reader, &[])?;
            }
        }
        Ok(())
    }

    /// Whatever happened before, the longest record gets through to every reader in the end.
    fn finish(&mut self) -> Tested {
        self.drain()?;
        prop_assert!(self.reserve(self.max())?);
        self.commit(self.max(), true);
        self.drain()
    }
}

fn run<P: Place>(place: P, capacity: usize, operations: &[Operation]) -> Tested {
    let mut model = Model::new(place, capacity);
    model.join()?;
    for operation in operations {
        model.run(operation)?;
    }
    model.finish()
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(250))]

    #[test]
    fn on_the_heap(shift in 7..12usize, operations in vec(operation(), 1..300)) {
        run(Heap::new(1 << shift), 1 << shift, &operations)?;
    }
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn in_regions(shift in 12..17usize, operations in vec(operation(), 1..200)) {
        run(Regions::new("ring-model", 1 << shift), 1 << shift, &operations)?;
        prop_assert_eq!(held("ring-model"), (0, 0));
    }
}

/// Every length follows every position, in the smallest ring and thousands of laps.
#[test]
fn many_laps() {
    for capacity in [128, 256] {
        let mut model = Model::new(Heap::new(capacity), capacity);
        model.join().unwrap();
        model.join().unwrap();
        for round in 0..20 * model.max() {
            for reader in 0..2 {
                model.poll(reader, &[]).unwrap();
            }
            let len = round * 29 % (model.max() + 1);
            while !model.reserve(len).unwrap() {
                model.drain().unwrap();
            }
            model.commit(len, false);
        }
        assert!(model.position > 500 * capacity as u64);
        model.finish().unwrap();
    }
}

/// A record that was reserved over a cache line and committed below ends later than it would have: the room
/// for that is reserved too, or the zero after it would fall on a record that was not read yet.
#[test]
fn a_shorter_record_may_end_later() {
    let mut model = Model::new(Heap::new(128), 128);
    model.join().unwrap();
    for len in [0, 24] {
        assert!(model.reserve(len).unwrap());
        model.commit(len, false);
    }
    model.poll(0, &[]).unwrap();
    model.poll(0, &[]).unwrap();
    model.poll(0, &[]).unwrap();
    assert!(model.reserve(8).unwrap());
    model.commit(8, false);
    // From here a record of 57 bytes ends before the unread one, and one of 56 bytes on it.
    if model.reserve(57).unwrap() {
        model.commit(56, false);
    }
    model.finish().unwrap();
}

/// What the smallest ring says it takes, it takes, wherever the last record ended.
#[test]
fn the_longest_record_fits_every_empty_ring() {
    for capacity in [128, 256] {
        for len in 0..=capacity - capacity / 8 - 16 {
            for lead in 0..9 {
                let mut model = Model::new(Heap::new(capacity), capacity);
                model.join().unwrap();
                for _ in 0..lead {
                    assert!(model.reserve(0).unwrap());
                    model.commit(0, false);
                }
                model.drain().unwrap();
                assert!(
                    model.reserve(len).unwrap(),
                    "{len} bytes after {lead} words"
                );
            }
        }
    }
}

#[test]
#[should_panic(expected = "holds nothing")]
fn rings_below_128_bytes() {
    RingWriter::<_, support::HeapPage>::new(memlane_region::HeapWords::new(64));
}

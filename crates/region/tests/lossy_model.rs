//! Random operations on a ring with lossless and lossy readers, against a model that knows of every message whether
//! it is still there: by the words of docs/memory-layout.md, done the slow way.
#![cfg(not(memlane_loom))]

mod support;

use std::{collections::VecDeque, sync::Arc};

use memlane_region::{
    Words,
    pool::ChunkRef,
    ring::{LossyReader, NoRoom, Polled, Record, RingReader, RingWriter, Taken, max_payload},
};
use proptest::{collection::vec, prelude::*, sample::Index, test_runner::TestCaseError};
use support::{Heap, Known, LAPS, Place, ReaderOf, Regions, held, payload};

#[derive(Clone, Debug)]
enum Operation {
    /// Writes a message, or reserves as much and commits at most that, or nothing.
    Append(usize),
    Shorten(usize, Option<Index>),
    AppendChunk([u64; 3]),
    /// A whole lap of messages of this length.
    Lap(usize),
    /// A lossless reader takes so many messages.
    Receive(Index, usize),
    /// A lossy reader takes so many messages, into so long a buffer, and forgoes the last one.
    Poll {
        reader: Index,
        messages: usize,
        buffer: Option<usize>,
        forgo: bool,
    },
    Join {
        lossy: bool,
    },
    Leave {
        lossy: bool,
        reader: Index,
    },
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0..130usize, 2 => 0..4000usize, 1 => Just(usize::MAX)]
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let index = any::<Index>;
    let buffer = prop::option::weighted(0.2, 0..200usize);
    prop_oneof![
        12 => len().prop_map(Append),
        4 => (len(), any::<Option<Index>>()).prop_map(|(len, to)| Shorten(len, to)),
        2 => any::<[u64; 3]>().prop_map(AppendChunk),
        2 => len().prop_map(Lap),
        6 => (index(), 1..8usize).prop_map(|(reader, messages)| Receive(reader, messages)),
        10 => (index(), 1..6usize, buffer, prop::bool::weighted(0.1))
            .prop_map(|(reader, messages, buffer, forgo)| Poll { reader, messages, buffer, forgo }),
        1 => prop::bool::weighted(0.7).prop_map(|lossy| Join { lossy }),
        1 => (any::<bool>(), index()).prop_map(|(lossy, reader)| Leave { lossy, reader }),
    ]
}

#[derive(Clone, Copy, Debug)]
enum Sent {
    Inline(usize),
    Chunk(ChunkRef),
}

struct Lossless<P: Place> {
    id: u64,
    start: u64,
    queue: VecDeque<(u64, Sent)>,
    ring: ReaderOf<P>,
    peer: Arc<P::Peer>,
}

struct Lossy<P: Place> {
    id: u64,
    position: u64,
    sequence: u64,
    /// Since the last message, and since it joined.
    missed: (u64, u64),
    ring: LossyReader<P::Theirs>,
}

struct Model<P: Place> {
    place: P,
    writer: RingWriter<P::Mine, Known<P::Peer>>,
    capacity: u64,
    position: u64,
    bound: u64,
    /// Position and sequence of the last anchor.
    anchor: (u64, u64),
    /// Where each message begins.
    sent: Vec<(u64, Sent)>,
    lossless: Vec<Lossless<P>>,
    lossy: Vec<Lossy<P>>,
}

type Tested = Result<(), TestCaseError>;

/// Where a record ends, by the words of [`memlane_region::ring::end`].
fn end(position: u64, len: usize) -> u64 {
    let total = 8 + len as u64;
    let align = match total {
        ..=64 => total.next_power_of_two(),
        _ => 8,
    };
    (position + total).next_multiple_of(align)
}

impl<P: Place> Model<P> {
    fn new(mut place: P, capacity: u64) -> Model<P> {
        Model {
            writer: RingWriter::with_laps(place.writer(), LAPS),
            place,
            capacity,
            position: 0,
            bound: 0,
            anchor: (0, 0),
            sent: Vec::new(),
            lossless: Vec::new(),
            lossy: Vec::new(),
        }
    }

    fn run(&mut self, operation: &Operation) -> Tested {
        let max = max_payload(self.capacity);
        match operation {
            Operation::Append(len) => {
                self.append((*len).min(max))?;
            }
            Operation::Shorten(reserved, committed) => {
                let reserved = (*reserved).min(max);
                let shorter = (0..=reserved.min(56)).map(|len| end(self.position, len));
                let furthest = shorter.max().unwrap().max(end(self.position, reserved));
                if self.expect(furthest + 8, |writer| writer.reserve(reserved))? {
                    if let Some(committed) = committed {
                        let len = committed.index(reserved + 1);
                        let payload = payload(self.sent.len() as u64, len);
                        self.writer.write(0, &payload);
                        self.writer.commit(len);
                        self.committed(Sent::Inline(len), len);
                    }
                }
            }
            Operation::AppendChunk(words) => {
                let chunk = ChunkRef::from_words(*words);
                let needed = end(self.position, 24) + 8;
                if self.expect(needed, |writer| writer.append_chunk(chunk))? {
                    self.committed(Sent::Chunk(chunk), 24);
                }
            }
            Operation::Lap(len) => {
                let until = self.position + self.capacity;
                while self.position < until && self.append((*len).min(max))? {}
            }
            Operation::Receive(reader, messages) => {
                if !self.lossless.is_empty() {
                    let reader = reader.index(self.lossless.len());
                    for _ in 0..*messages {
                        receive(&mut self.lossless[reader])?;
                    }
                }
            }
            Operation::Poll {
                reader,
                messages,
                buffer,
                forgo,
            } => {
                if !self.lossy.is_empty() {
                    let reader = reader.index(self.lossy.len());
                    let mut last = None;
                    for _ in 0..*messages {
                        last = self.poll(reader, buffer.unwrap_or(max))?;
                    }
                    if let Some(taken) = last.filter(|_| *forgo) {
                        let lossy = &mut self.lossy[reader];
                        lossy.ring.forgo(taken);
                        lossy.missed.0 += taken.missed + 1;
                        lossy.missed.1 += 1;
                    }
                }
            }
            Operation::Join { lossy } => self.join(*lossy)?,
            Operation::Leave { lossy, reader } => {
                let id = match lossy {
                    true if !self.lossy.is_empty() => {
                        let reader = reader.index(self.lossy.len());
                        self.lossy.swap_remove(reader).id
                    }
                    false if !self.lossless.is_empty() => {
                        let reader = reader.index(self.lossless.len());
                        self.lossless.swap_remove(reader).id
                    }
                    _ => return Ok(()),
                };
                prop_assert!(self.writer.roster().leave(id));
            }
        }
        prop_assert_eq!(self.writer.position(), self.position);
        prop_assert_eq!(self.writer.sequence(), self.sent.len() as u64);
        Ok(())
    }

    fn append(&mut self, len: usize) -> Result<bool, TestCaseError> {
        let payload = payload(self.sent.len() as u64, len);
        let needed = end(self.position, len) + 8;
        let appended = self.expect(needed, |writer| writer.append(&payload))?;
        if appended {
            self.committed(Sent::Inline(len), len);
        }
        Ok(appended)
    }

    /// Whether there is room for what needs the bytes before `needed`: only lossless readers are in the way. And what
    /// is exported before it is used.
    fn expect(
        &mut self,
        needed: u64,
        act: impl FnOnce(&mut RingWriter<P::Mine, Known<P::Peer>>) -> Result<(), NoRoom>,
    ) -> Result<bool, TestCaseError> {
        let cursors = self.lossless.iter();
        let slowest =
            cursors.map(|side| side.start + memlane_region::ring::Reader::cursor(&*side.peer));
        let limit = slowest.min().unwrap_or(self.position) + self.capacity;
        let fits = needed <= limit;
        let expected = if fits { Ok(()) } else { Err(NoRoom::Full) };
        prop_assert_eq!(act(&mut self.writer), expected);
        if fits && needed > self.bound {
            self.bound = (needed + self.capacity / 8).min(self.position + self.capacity);
            self.anchor = (self.position, self.sent.len() as u64);
        }
        prop_assert_eq!(self.writer.memory().load_control(LAPS), self.bound);
        Ok(fits)
    }

    fn committed(&mut self, sent: Sent, len: usize) {
        for side in &mut self.lossless {
            side.queue.push_back((self.sent.len() as u64, sent));
        }
        self.sent.push((self.position, sent));
        self.position = end(self.position, len);
    }

    fn join(&mut self, lossy: bool) -> Tested {
        let (memory, page, peer) = self.place.reader();
        let known = if lossy {
            Known::Lossy
        } else {
            Known::Lossless(peer.clone())
        };
        let full = self.lossy.len() + self.lossless.len() == 5;
        if full {
            return Ok(());
        }
        let joined = self.writer.roster().join(Arc::new(known)).unwrap();
        prop_assert_eq!(joined.start, self.position);
        prop_assert_eq!(joined.sequence, self.sent.len() as u64);
        let (id, start) = (joined.id, joined.start);
        if lossy {
            self.lossy.push(Lossy {
                id,
                position: start,
                sequence: joined.sequence,
                missed: (0, 0),
                ring: LossyReader::new(memory, LAPS, start, joined.sequence),
            });
        } else {
            self.lossless.push(Lossless {
                id,
                start,
                queue: VecDeque::new(),
                ring: RingReader::new(memory, page, start),
                peer,
            });
        }
        Ok(())
    }

    fn poll(&mut self, reader: usize, buffer: usize) -> Result<Option<Taken>, TestCaseError> {
        let lossy = &mut self.lossy[reader];
        let overtaken = self.bound > lossy.position + self.capacity;
        let nothing = !overtaken && lossy.sequence == self.sent.len() as u64;
        prop_assert_eq!(lossy.ring.is_empty(), nothing);
        if overtaken {
            let missed = self.anchor.1 - lossy.sequence;
            prop_assert!(missed > 0);
            lossy.missed.0 += missed;
            lossy.missed.1 += missed;
            (lossy.position, lossy.sequence) = self.anchor;
        }
        let mut bytes = vec![0; buffer];
        let polled = lossy.ring.poll(&mut bytes);
        let next = self.sent.get(lossy.sequence as usize).copied();
        let began = lossy.position;
        let record = match next {
            None => {
                prop_assert_eq!(polled, Ok(Polled::Empty));
                prop_assert_eq!(lossy.ring.missed(), lossy.missed.1);
                return Ok(None);
            }
            Some((_, Sent::Inline(len))) if len > buffer => {
                prop_assert_eq!(polled, Ok(Polled::Longer(len)));
                return Ok(None);
            }
            Some((position, Sent::Inline(len))) => {
                prop_assert_eq!(position, lossy.position);
                let said = payload(lossy.sequence, len);
                prop_assert!(bytes[..len] == said, "message {}", lossy.sequence);
                lossy.position = end(position, len);
                Record::Inline(len)
            }
            Some((position, Sent::Chunk(chunk))) => {
                lossy.position = end(position, 24);
                Record::Chunk(chunk)
            }
        };
        let taken = Taken {
            sequence: lossy.sequence,
            missed: std::mem::take(&mut lossy.missed.0),
            record,
            position: began,
        };
        prop_assert_eq!(polled, Ok(Polled::Message(taken)));
        lossy.sequence += 1;
        prop_assert_eq!(lossy.ring.sequence(), lossy.sequence);
        prop_assert_eq!(lossy.ring.position(), lossy.position);
        prop_assert_eq!(lossy.ring.missed(), lossy.missed.1);
        Ok(Some(taken))
    }

    /// Who reads on gets to the end, and nobody is in the way of the longest message then.
    fn finish(&mut self) -> Tested {
        for side in &mut self.lossless {
            while receive(side)? {}
        }
        prop_assert!(self.append(max_payload(self.capacity))?);
        for reader in 0..self.lossy.len() {
            while self.poll(reader, max_payload(self.capacity))?.is_some() {}
            prop_assert!(self.lossy[reader].ring.is_empty());
            prop_assert_eq!(self.lossy[reader].sequence, self.sent.len() as u64);
        }
        Ok(())
    }
}

fn receive<P: Place>(side: &mut Lossless<P>) -> Result<bool, TestCaseError> {
    let next = side.queue.pop_front();
    let found = side.ring.poll_record().unwrap();
    match (next, found) {
        (None, None) => return Ok(false),
        (Some((sequence, Sent::Inline(sent))), Some(Record::Inline(len))) => {
            let mut bytes = vec![0; len];
            side.ring.read(0, &mut bytes);
            prop_assert_eq!(len, sent);
            prop_assert!(bytes == payload(sequence, len), "message {}", sequence);
        }
        (Some((_, Sent::Chunk(sent))), Some(Record::Chunk(chunk))) => {
            prop_assert_eq!(chunk, sent);
        }
        (next, found) => prop_assert!(false, "expected {next:?}, found {found:?}"),
    }
    side.ring.release();
    Ok(true)
}

fn run<P: Place>(place: P, capacity: usize, operations: &[Operation]) -> Tested {
    let mut model = Model::new(place, capacity as u64);
    model.join(true)?;
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
    #![proptest_config(cases(300))]

    #[test]
    fn on_the_heap(shift in 7..12usize, operations in vec(operation(), 1..300)) {
        run(Heap::new(1 << shift), 1 << shift, &operations)?;
    }
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn in_regions(shift in 12..17usize, operations in vec(operation(), 1..200)) {
        run(Regions::new("lossy-model", 1 << shift), 1 << shift, &operations)?;
        prop_assert_eq!(held("lossy-model"), (0, 0));
    }
}

/// Every length follows every position, in the smallest rings; a reader that comes now and then, at any distance.
#[test]
fn many_laps() {
    for capacity in [128, 256] {
        let mut model = Model::new(Heap::new(capacity), capacity as u64);
        model.join(true).unwrap();
        model.join(true).unwrap();
        let max = max_payload(capacity as u64);
        for round in 0..20 * max {
            assert!(model.append(round * 29 % (max + 1)).unwrap());
            model.poll(0, max).unwrap();
            if round % 7 == 0 || round % 11 == 0 {
                model.poll(1, max).unwrap();
            }
        }
        model.finish().unwrap();
        assert!(model.lossy[1].missed.1 > 0);
    }
}

/// With records of up to *r* bytes a reader can be 7/8 of the capacity less *r* behind, and has missed nothing.
#[test]
fn how_far_behind_a_reader_may_be() {
    for len in [0, 8, 56, 57, 200, 1000] {
        for start in [0, 8, 1000, 4088] {
            let mut model = Model::new(Heap::new(4096), 4096);
            while model.position < start {
                assert!(model.append(0).unwrap());
            }
            model.join(true).unwrap();
            while end(model.position, len) <= start + 4096 / 8 * 7 - end(0, len) {
                assert!(model.append(len).unwrap());
            }
            for sequence in model.lossy[0].sequence..model.sent.len() as u64 {
                let taken = model.poll(0, len).unwrap().unwrap();
                assert_eq!((taken.sequence, taken.missed), (sequence, 0));
            }
        }
    }
}

//! Rings that a writer leaves to slow readers, against a model: a queue per reader, and who may be where.
#![cfg(not(memlane_loom))]

mod support;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
};

use memlane_region::{
    HeapWords, WordsMut,
    ring::{
        Corrupt, Dismissal, End, LAP_WORDS, LEFT, LossyReader, NoRoom, Polled, Reader, Record,
        RingReader, RingWriter,
    },
};
use proptest::{collection::vec, prelude::*, sample::Index, test_runner::TestCaseError};
use support::{HeapPage, Known, LAPS, Numbers, payload};

type Writer = RingWriter<HeapWords, Known<HeapPage>>;

/// The header of a ring's end, as documented.
fn switch(ring: u64) -> u64 {
    ring | 3 << 32
}

/// All the rings of a writer, as whoever is told of them has them.
struct Rings {
    capacity: usize,
    made: u32,
    words: HashMap<u32, HeapWords>,
    /// Those that nobody goes to but who was dismissed.
    aside: Vec<u32>,
}

impl Rings {
    fn new(capacity: usize) -> Rings {
        let first = HeapWords::with_header(LAPS + LAP_WORDS, capacity);
        Rings {
            capacity,
            made: 1,
            words: HashMap::from([(0, first)]),
            aside: Vec::new(),
        }
    }

    fn get(&self, ring: u32) -> HeapWords {
        self.words[&ring].map()
    }

    fn make(&mut self) -> u32 {
        let ring = self.made;
        self.made += 1;
        let words = HeapWords::new(self.capacity);
        self.words.insert(ring, words);
        ring
    }
}

struct Side {
    id: u64,
    ring: RingReader<HeapWords, HeapPage>,
    peer: HeapPage,
    queue: VecDeque<(u64, usize)>,
    /// The number of the ring that it reads.
    at: u32,
    /// Where it was told to end.
    told: Option<End>,
    /// It was dismissed when so many were in the queue: it gets no more of them.
    dismissed: bool,
    /// It has come to that end.
    over: bool,
}

struct Lossy {
    id: u64,
    reader: LossyReader<HeapWords>,
    /// The next message, if none is missed.
    next: u64,
}

struct Model {
    rings: Rings,
    writer: Writer,
    /// The length of each message.
    lengths: Vec<usize>,
    sides: Vec<Side>,
    lossy: Vec<Lossy>,
    /// Switches, and the most rings that there were.
    switches: u64,
    most: usize,
    /// Of those, the ones from rings in which nothing was written.
    empty: usize,
    history: u64,
}

type Tested = Result<(), TestCaseError>;

impl Model {
    fn new(capacity: usize, history: usize) -> Model {
        let rings = Rings::new(capacity);
        let mut writer = Writer::with_laps(rings.get(0), LAPS);
        if history > 0 {
            writer.keep(history);
        }
        Model {
            rings,
            writer,
            lengths: Vec::new(),
            sides: Vec::new(),
            lossy: Vec::new(),
            switches: 0,
            most: 1,
            empty: 0,
            history: history as u64,
        }
    }

    fn join(&mut self, history: u64) -> Tested {
        let peer = HeapPage::default();
        let known = Arc::new(Known::Lossless(Arc::new(peer.clone())));
        let joined = self.writer.roster().join_behind(known, history).unwrap();
        let sent = self.lengths.len() as u64;
        let first = joined.sequence + joined.skip;
        let expected = history.min(self.history).min(sent);
        prop_assert!(sent - first <= history);
        if self.writer.kept() >= expected {
            prop_assert_eq!(sent - first, expected);
        }
        let mut side = Side {
            id: joined.id,
            ring: RingReader::new(self.rings.get(joined.ring), peer.clone(), joined.start),
            peer,
            queue: (joined.sequence..sent)
                .map(|sequence| (sequence, self.lengths[sequence as usize]))
                .collect(),
            at: joined.ring,
            told: None,
            dismissed: false,
            over: false,
        };
        for _ in 0..joined.skip {
            self.rings.take(&mut side)?;
        }
        self.sides.push(side);
        Ok(())
    }

    fn join_lossy(&mut self) {
        let joined = self.writer.roster().join(Arc::new(Known::Lossy)).unwrap();
        let mut reader = LossyReader::new(self.rings.get(0), LAPS, joined.start, joined.sequence);
        if joined.ring != 0 {
            reader = reader.starting_in(joined.ring, self.rings.get(joined.ring));
        }
        self.lossy.push(Lossy {
            id: joined.id,
            reader,
            next: joined.sequence,
        });
    }

    /// Appends; if readers are in the way, leaves the ring to them if none has more than `budget` then, or dismisses those
    /// that have.
    fn append(&mut self, len: usize, budget: usize, dismiss: bool) -> Result<bool, TestCaseError> {
        let len = len.min(self.writer.max_payload());
        let text = payload(self.lengths.len() as u64, len);
        match self.writer.append(&text) {
            Ok(()) => {}
            Err(NoRoom::TooLarge { .. }) => prop_assert!(false, "too large"),
            Err(NoRoom::Full) => {
                let over: Vec<u64> = self
                    .writer
                    .laggards(len)
                    .filter(|slow| slow.rings + 1 > budget)
                    .map(|slow| slow.joined.id)
                    .collect();
                prop_assert!(self.writer.laggards(len).next().is_some());
                if !over.is_empty() && !dismiss {
                    return Ok(false);
                }
                let mut must_switch = false;
                for id in &over {
                    let side = self.sides.iter_mut().find(|side| side.id == *id).unwrap();
                    let end = self.writer.end_of(*id).unwrap();
                    side.told = Some(end);
                    side.dismissed = true;
                    must_switch |= match self.writer.dismiss(*id, end) {
                        Dismissal::Done => false,
                        Dismissal::LeaveRing => true,
                        Dismissal::Passed => return Err(TestCaseError::fail("it was not there")),
                    };
                }
                if over.is_empty() || must_switch || self.writer.laggards(len).next().is_some() {
                    self.switch();
                }
                prop_assert_eq!(self.writer.append(&text), Ok(()));
            }
        }
        let sequence = self.lengths.len() as u64;
        self.lengths.push(len);
        for side in self.sides.iter_mut().filter(|side| !side.dismissed) {
            side.queue.push_back((sequence, len));
        }
        Ok(true)
    }

    /// Dismisses a reader that is in nobody's way, and reads so many messages between being told so and the writer's last look.
    fn drop_one(&mut self, at: usize, times: usize) -> Tested {
        let id = self.sides[at].id;
        let fresh = self.writer.is_fresh();
        self.writer.sync();
        let Some(end) = self.writer.end_of(id) else {
            return Ok(());
        };
        if self.sides[at].dismissed || fresh && self.empty >= 32 {
            return Ok(());
        }
        self.sides[at].told = Some(end);
        for _ in 0..times {
            self.poll(at)?;
        }
        match self.writer.dismiss(id, end) {
            Dismissal::Done => {}
            Dismissal::LeaveRing => self.switch(),
            Dismissal::Passed => {
                if self.sides[at].over {
                    self.leave(at);
                }
                return Ok(());
            }
        }
        self.sides[at].dismissed = true;
        Ok(())
    }

    fn switch(&mut self) {
        self.empty += usize::from(self.writer.is_fresh());
        match self.writer.spare() {
            Some(spare) => self.writer.switch(spare, None),
            None => {
                let ring = self.rings.make();
                self.writer.switch(ring, Some(self.rings.get(ring)));
            }
        }
        self.switches += 1;
        self.most = self.most.max(self.writer.rings());
    }

    fn give_up(&mut self) {
        if self.switches % 2 == 0 {
            self.rings.aside.extend(self.writer.set_aside());
        }
        self.writer.spare();
        let known: Vec<u32> = self.rings.words.keys().copied().collect();
        for ring in known {
            if self.writer.give_up(ring).is_some() {
                self.rings.words.remove(&ring);
            }
        }
    }

    fn poll(&mut self, side: usize) -> Tested {
        let side = &mut self.sides[side];
        self.rings.take(side)
    }

    fn poll_lossy(&mut self, at: usize) -> Tested {
        let lossy = &mut self.lossy[at];
        let mut buffer = vec![0; self.rings.capacity];
        for _ in 0..64 {
            match lossy.reader.poll(&mut buffer).unwrap() {
                Polled::Empty => {
                    prop_assert_eq!(lossy.reader.sequence(), self.lengths.len() as u64);
                    return Ok(());
                }
                Polled::Message(taken) => {
                    prop_assert_eq!(taken.sequence, lossy.next + taken.missed);
                    lossy.next = taken.sequence + 1;
                    let Record::Inline(len) = taken.record else {
                        return Err(TestCaseError::fail("a chunk"));
                    };
                    prop_assert_eq!(len, self.lengths[taken.sequence as usize]);
                    prop_assert!(buffer[..len] == payload(taken.sequence, len));
                    return Ok(());
                }
                Polled::Switch(ring) => match self.rings.words.get(&ring) {
                    Some(_) if ring == 0 => lossy.reader.follow(None),
                    Some(words) => lossy.reader.follow(Some(words.map())),
                    // Given up: the next poll finds another.
                    None => {}
                },
                other => prop_assert!(false, "{other:?}"),
            }
        }
        Err(TestCaseError::fail("it never gets anywhere"))
    }

    fn leave(&mut self, at: usize) {
        let side = self.sides.swap_remove(at);
        assert!(self.writer.roster().leave(side.id));
    }

    fn finish(&mut self) -> Tested {
        for at in 0..self.sides.len() {
            while !self.sides[at].queue.is_empty() && !self.sides[at].over {
                self.poll(at)?;
            }
        }
        for at in 0..self.lossy.len() {
            while self.lossy[at].reader.sequence() < self.lengths.len() as u64 {
                self.poll_lossy(at)?;
            }
        }
        for side in std::mem::take(&mut self.sides) {
            self.writer.roster().leave(side.id);
        }
        self.give_up();
        // One is free, and others may have what is kept.
        let most = 2 + 2 * usize::from(self.history > 0);
        prop_assert!(self.writer.rings() <= most, "{} rings", self.writer.rings());
        Ok(())
    }
}

impl Rings {
    /// Takes the next message of a reader, if there is one.
    fn take(&self, side: &mut Side) -> Tested {
        if side.over {
            return Ok(());
        }
        let found = side.ring.poll().unwrap();
        if found.is_none() {
            if let Some(ring) = side.ring.switched() {
                let position = side.ring.position();
                let here = End {
                    ring: side.at,
                    position,
                };
                if side.told == Some(here) {
                    side.over = true;
                    return Ok(());
                }
                let words = self.words.get(&ring);
                prop_assert!(words.is_some(), "ring {} is gone", ring);
                prop_assert!(side.dismissed || !self.aside.contains(&ring));
                side.ring.follow(words.unwrap().map());
                side.at = ring;
                return self.take(side);
            }
        }
        let next = side.queue.pop_front();
        prop_assert_eq!(found, next.map(|(_, len)| len));
        if let Some((sequence, len)) = next {
            let mut read = vec![0; len];
            side.ring.read(0, &mut read);
            prop_assert!(read == payload(sequence, len), "message {}", sequence);
            side.ring.release();
        }
        prop_assert_eq!(side.peer.verdict.get().0, 0);
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Append { len: usize, dismiss: bool },
    Drop { side: Index, times: usize },
    Poll { side: Index, times: usize },
    PollLossy { reader: Index, times: usize },
    Join { history: u64 },
    JoinLossy,
    Leave(Index),
    GiveUp,
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    prop_oneof![
        20 => (prop_oneof![3 => 0..60usize, 1 => 0..600usize], prop::bool::weighted(0.2))
            .prop_map(|(len, dismiss)| Append { len, dismiss }),
        16 => (any::<Index>(), 1..6usize).prop_map(|(side, times)| Poll { side, times }),
        4 => (any::<Index>(), 1..4usize).prop_map(|(reader, times)| PollLossy { reader, times }),
        1 => (0..12u64).prop_map(|history| Join { history }),
        1 => Just(JoinLossy),
        1 => any::<Index>().prop_map(Leave),
        1 => (any::<Index>(), 0..6usize).prop_map(|(side, times)| Drop { side, times }),
        1 => Just(GiveUp),
    ]
}

fn run(
    capacity: usize,
    budget: usize,
    history: usize,
    operations: &[Operation],
) -> Result<u64, TestCaseError> {
    let mut model = Model::new(capacity, history);
    model.join(0)?;
    let mut dismissed = 0;
    for operation in operations {
        match operation {
            Operation::Append { len, dismiss } => {
                model.append(*len, budget, *dismiss)?;
                let now = model.sides.iter().filter(|side| side.dismissed).count();
                dismissed = dismissed.max(now);
                // One that is written in, what each has at most, and what is free by now.
                let kept = 2 * usize::from(history > 0);
                prop_assert!(
                    model.writer.rings() <= 2 + budget + kept + 2 * dismissed + model.empty
                );
            }
            Operation::Drop { side, times } => {
                if !model.sides.is_empty() {
                    model.drop_one(side.index(model.sides.len()), *times)?;
                }
                let now = model.sides.iter().filter(|side| side.dismissed).count();
                dismissed = dismissed.max(now);
            }
            Operation::Poll { side, times } => {
                for _ in 0..*times {
                    if !model.sides.is_empty() {
                        model.poll(side.index(model.sides.len()))?;
                    }
                }
            }
            Operation::PollLossy { reader, times } => {
                for _ in 0..*times {
                    if !model.lossy.is_empty() {
                        model.poll_lossy(reader.index(model.lossy.len()))?;
                    }
                }
            }
            Operation::Join { history } if model.sides.len() < 5 => model.join(*history)?,
            Operation::Join { .. } => {}
            Operation::JoinLossy if model.lossy.len() < 3 => model.join_lossy(),
            Operation::JoinLossy => {
                let left = model.lossy.pop().unwrap();
                model.writer.roster().leave(left.id);
            }
            Operation::Leave(side) => {
                if !model.sides.is_empty() {
                    model.leave(side.index(model.sides.len()));
                }
            }
            Operation::GiveUp => model.give_up(),
        }
    }
    model.finish()?;
    Ok(model.switches)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whoever_is_slow_gets_all_of_it_or_is_told_where_it_ends(
        shift in 7..11usize,
        budget in 0..4usize,
        history in 0..9usize,
        operations in vec(operation(), 1..400),
    ) {
        run(1 << shift, budget, history, &operations)?;
    }
}

/// A reader that is a ring and more behind all the time, and one that is not.
#[test]
fn two_rings_are_used_in_turn_for_ever() {
    let mut model = Model::new(1024, 0);
    model.join(0).unwrap();
    model.join(0).unwrap();
    let mut numbers = Numbers(7);
    for _ in 0..200_000 {
        let len = numbers.below(100) as usize;
        while !model.append(len, 1, false).unwrap() {
            model.poll(0).unwrap();
        }
        model.poll(1).unwrap();
    }
    assert!(model.switches > 1000, "{} switches", model.switches);
    assert!(model.most <= 3, "{} rings", model.most);
    model.finish().unwrap();
}

#[test]
fn a_ring_that_is_still_read_is_no_spare() {
    let mut model = Model::new(128, 0);
    model.join(0).unwrap();
    model.append(40, 1, false).unwrap();
    model.switch();
    assert_eq!(model.writer.spare(), None);
    model.poll(0).unwrap();
    // It has read all of it, and has still to see that it ends.
    model.sides[0].ring.poll().unwrap();
    assert_eq!(model.writer.spare(), None);
    model.append(40, 1, false).unwrap();
    model.poll(0).unwrap();
    model.poll(0).unwrap();
    assert_eq!(model.writer.spare(), Some(0));
}

/// Who was told to end, and had gone on by then, goes on for good.
#[test]
fn one_that_has_gone_on_is_no_laggard_any_more() {
    let mut model = Model::new(128, 0);
    model.join(0).unwrap();
    model.join(0).unwrap();
    model.append(40, 1, false).unwrap();
    model.append(40, 1, false).unwrap();
    model.append(40, 1, false).unwrap();
    assert_eq!(model.switches, 1);
    let end = model.writer.end_of(model.sides[0].id).unwrap();
    assert_eq!(end.ring, 0);
    assert_eq!(
        model.writer.dismiss(model.sides[0].id, end),
        Dismissal::Done
    );
    model.leave(0);
    for _ in 0..3 {
        model.poll(0).unwrap();
    }
    // At the end of its ring it has been told by now, or has gone on.
    assert_eq!(
        model.writer.dismiss(model.sides[0].id, end),
        Dismissal::Passed
    );
    model.sides[0].told = Some(end);
    for _ in 0..8 {
        assert!(model.append(40, 9, false).unwrap());
    }
    assert!(model.switches > 2);
    for _ in 0..8 {
        model.poll(0).unwrap();
    }
    assert!(model.sides[0].queue.is_empty());
}

/// One that has released all there is, in a ring just begun, ends there; others do not notice.
#[test]
fn a_ring_is_left_with_nothing_in_it() {
    let mut model = Model::new(128, 0);
    model.join_lossy();
    for _ in 0..30 {
        model.join(0).unwrap();
    }
    for _ in 0..30 {
        assert!(model.writer.is_fresh());
        model.drop_one(0, 0).unwrap();
        let dropped = model.sides.remove(0);
        assert!(dropped.dismissed);
        model.sides.push(dropped);
    }
    assert_eq!((model.empty, model.writer.rings()), (30, 31));
    model.join(0).unwrap();
    model.append(8, 0, false).unwrap();
    for at in 0..31 {
        model.poll(at).unwrap();
        assert_eq!(model.sides[at].over, at < 30);
    }
    model.poll_lossy(0).unwrap();
    model.finish().unwrap();
}

#[test]
#[should_panic(expected = "a ring of another size")]
fn rings_are_of_one_size() {
    let mut model = Model::new(128, 0);
    model.append(8, 0, false).unwrap();
    model.writer.switch(1, Some(HeapWords::new(256)));
}

/// Two rings that lead to one another have no end: neither kind of reader looks for one.
#[test]
fn rings_without_records_are_corrupt() {
    let mut first = HeapWords::with_header(LAPS + LAP_WORDS, 128);
    let mut second = HeapWords::new(128);
    first.store(0, switch(1));
    second.store(0, switch(0));
    let mut reader = RingReader::new(first.map(), HeapPage::default(), 0);
    // A publisher leaves some in a row, if it goes on without those who are there. What leads to a later one does not count.
    for turn in 0..129 {
        assert_eq!(reader.poll(), Ok(None));
        assert_eq!(reader.switched(), Some(1 - turn % 2));
        reader.follow(if turn % 2 == 0 {
            second.map()
        } else {
            first.map()
        });
    }
    let corrupt = Corrupt {
        position: 0,
        header: switch(0),
        max: 120,
    };
    assert_eq!(reader.poll(), Err(corrupt));
    assert_eq!(reader.poll_record(), Err(corrupt));
    assert_eq!(reader.switched(), None);

    let mut reader = LossyReader::new(first.map(), LAPS, 0, 0);
    assert_eq!(reader.poll(&mut []), Ok(Polled::Switch(1)));
    // Whoever does not know it asks again.
    assert_eq!(reader.poll(&mut []), Ok(Polled::Switch(1)));
    assert!(!reader.is_empty());
    for turn in 0..129 {
        assert_eq!(reader.poll(&mut []), Ok(Polled::Switch(1 - turn % 2)));
        reader.follow((turn % 2 == 0).then(|| second.map()));
    }
    assert_eq!(reader.poll(&mut []), Err(corrupt.into()));
}

/// What a reader that was dismissed has is left to it, until it has left.
#[test]
fn a_dismissed_reader_keeps_its_ring() {
    let mut model = Model::new(128, 0);
    model.join(0).unwrap();
    model.append(40, 0, false).unwrap();
    model.append(40, 0, false).unwrap();
    assert!(!model.append(40, 0, false).unwrap());
    assert!(model.append(40, 0, true).unwrap());
    assert_eq!(model.writer.roster().len(), 0);
    assert_eq!(model.writer.roster().lingering(), 1);
    for _ in 0..100 {
        assert!(model.append(40, 0, false).unwrap());
    }
    assert_eq!(model.switches, 1);
    assert_eq!(model.writer.spare(), None);
    for _ in 0..3 {
        model.poll(0).unwrap();
    }
    assert!(model.sides[0].over);
    assert!(model.sides[0].queue.is_empty());
    model.leave(0);
    assert_eq!(model.writer.spare(), Some(0));
    assert_eq!(model.writer.roster().lingering(), 0);
}

/// A reader whose cursor is anything is no danger to the others, dismissed or not.
/// Whatever else it is asked: what it had not said of its cursor by then would take that back.
#[test]
fn who_has_left_stays_away() {
    for more in [0, 1] {
        let words = HeapWords::with_header(LAPS + LAP_WORDS, 1024);
        let mut writer: RingWriter<_, HeapPage> = RingWriter::new(words.map());
        let page = HeapPage::default();
        let mut reader = RingReader::new(words.map(), page.clone(), 0);
        for number in 0..=more {
            writer.append(&payload(number, 8)).unwrap();
        }
        assert_eq!(reader.poll(), Ok(Some(8)));
        reader.release();
        assert_eq!(page.cursor(), 0);
        // Of the one behind, if there is one, nothing is heard.
        let _ = reader.poll();
        reader.stop();
        reader.leave();
        reader.release_all();
        assert_eq!(reader.poll(), Ok(None));
        let _ = reader.look();
        reader.release();
        assert_eq!(page.cursor(), LEFT);
    }
}

#[test]
fn cursors_of_the_dismissed_may_say_anything() {
    for cursor in [0, 1, 1 << 40, u64::MAX - 8, LEFT] {
        let mut model = Model::new(128, 0);
        model.join(0).unwrap();
        model.join(0).unwrap();
        while model.append(8, 0, false).unwrap() {
            model.poll(1).unwrap();
        }
        assert!(model.append(8, 0, true).unwrap());
        model.sides[0].peer.cursor.store(cursor, Ordering::Relaxed);
        for _ in 0..100 {
            assert!(model.append(8, 1, false).unwrap());
            model.poll(1).unwrap();
        }
        model.sides.remove(0);
        model.poll(0).unwrap();
        model.finish().unwrap();
    }
}

/// The last messages, and the live ones behind them, whatever came before.
#[test]
fn a_history_is_what_was_asked_for_and_what_fits() {
    let mut model = Model::new(1024, 5);
    for sent in 0..200 {
        for asked in [0, 1, 3, 5, 9] {
            model.join(asked).unwrap();
            let got = model.sides[0].queue.len() as u64;
            assert_eq!(got, asked.min(5).min(sent), "{asked} of {sent}");
            model.leave(0);
        }
        assert!(model.append(sent as usize % 50, 0, false).unwrap());
    }
    // Of long ones fewer fit.
    for _ in 0..20 {
        assert!(model.append(500, 0, false).unwrap());
    }
    model.join(5).unwrap();
    assert_eq!(model.sides[0].queue.len(), 1);
    model.finish().unwrap();
}

#[test]
fn what_is_kept_can_be_given_up() {
    let mut model = Model::new(1024, 8);
    for _ in 0..20 {
        model.append(8, 0, false).unwrap();
    }
    let mut kept = Vec::new();
    while model.writer.forget() {
        kept.push(model.writer.kept());
    }
    assert_eq!(kept, [4, 2, 1, 0]);
    assert!(Reader::cursor(&HeapPage::default()) == 0);
}

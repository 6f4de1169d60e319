//! Readers that take the place of others.

mod support;

use std::sync::atomic::Ordering;

use memlane_region::ring::{From, NoRoom, NoSuccession, RingReader, RingWriter};
use support::{Heap, HeapPage, Place};

const CAPACITY: usize = 256;

struct Lane {
    place: Heap,
    writer: RingWriter<memlane_region::HeapWords, HeapPage>,
    sent: u64,
}

type Side = RingReader<memlane_region::HeapWords, HeapPage>;

impl Lane {
    fn new() -> Lane {
        let mut place = Heap::new(CAPACITY);
        let writer = RingWriter::new(place.writer());
        Lane {
            place,
            writer,
            sent: 0,
        }
    }

    fn join(&mut self) -> (u64, Side, HeapPage) {
        let (words, page, peer) = self.place.reader();
        let joined = self.writer.roster().join(peer).unwrap();
        let side = RingReader::new(words, page.clone(), joined.start);
        (joined.id, side, page)
    }

    fn succeed(&mut self, id: u64, stays: bool) -> Result<(u64, Side, HeapPage), NoSuccession> {
        let (words, page, peer) = self.place.reader();
        let joined = self
            .writer
            .roster()
            .succeed(id, peer, From::Cursor(None), stays)?;
        let side = RingReader::new(words, page.clone(), joined.start);
        Ok((joined.id, side, page))
    }

    /// Until it is full, if anybody holds it up.
    fn fill(&mut self) {
        for _ in 0..CAPACITY {
            match self.writer.append(&self.sent.to_le_bytes()) {
                Ok(()) => self.sent += 1,
                Err(error) => return assert_eq!(error, NoRoom::Full),
            }
        }
    }
}

fn take(side: &mut Side) -> Option<u64> {
    let len = side.poll().unwrap()?;
    let mut copy = [0; 8];
    side.read(0, &mut copy[..len]);
    side.release();
    Some(u64::from_le_bytes(copy))
}

/// Nothing is lost or doubled between one and the next, however far they get, and in a ring that is always full.
#[test]
fn each_goes_on_where_the_other_stops() {
    let mut lane = Lane::new();
    let (mut id, mut side, _) = lane.join();
    let mut next = 0;
    for round in 0..1000 {
        lane.fill();
        for _ in 0..round % 7 {
            if let Some(number) = take(&mut side) {
                assert_eq!(number, next);
                next += 1;
            }
        }
        // Whether or not the writer has looked at the one before.
        if round % 3 != 0 {
            lane.fill();
        }
        side.release_all();
        let before = id;
        let (other, successor, _) = lane.succeed(id, round % 2 == 0).unwrap();
        (id, side) = (other, successor);
        assert_eq!(lane.writer.roster().len(), 1 + (round as usize + 1) % 2);
        assert_eq!(lane.writer.roster().leave(before), round % 2 == 0);
    }
    assert_eq!(lane.writer.roster().len(), 1);
    assert!(next > 1000, "{next}");
}

/// One that stays listed is neither waited for nor asked for its cursor.
#[test]
fn one_that_was_succeeded_holds_nobody_up() {
    let mut lane = Lane::new();
    let (id, mut side, page) = lane.join();
    lane.fill();
    assert_eq!(take(&mut side), Some(0));
    side.release_all();
    let (_, mut successor, _) = lane.succeed(id, true).unwrap();
    page.cursor.store(u64::MAX / 2, Ordering::Relaxed);
    for number in 1..1000 {
        lane.fill();
        assert_eq!(take(&mut successor), Some(number));
    }
    assert_eq!(page.verdict.get(), (0, 0));
    lane.writer.sync();
    assert_eq!(lane.writer.readers().count(), 1);
    assert_eq!(lane.writer.roster().len(), 2);
}

#[test]
fn there_is_nobody_to_succeed() {
    let mut lane = Lane::new();
    let (id, side, page) = lane.join();
    lane.fill();
    drop(side);
    // It has left, ...
    page.cursor.store(u64::MAX, Ordering::Relaxed);
    assert!(matches!(lane.succeed(id, false), Err(NoSuccession::Gone)));
    // ... says nonsense, ...
    for found in [1 << 40, 4, u64::MAX - 8, CAPACITY as u64 * 2] {
        page.cursor.store(found, Ordering::Relaxed);
        let end = lane.succeed(id, false).map(drop);
        let corrupt = matches!(end, Err(NoSuccession::Corrupt { found: said }) if said == found);
        assert!(corrupt, "{end:?}");
    }
    // ... is succeeded by another, or is not there.
    page.cursor.store(0, Ordering::Relaxed);
    lane.succeed(id, true).unwrap();
    assert!(matches!(lane.succeed(id, false), Err(NoSuccession::Gone)));
    assert!(lane.writer.roster().leave(id));
    assert!(matches!(lane.succeed(id, false), Err(NoSuccession::Gone)));
    assert!(matches!(lane.succeed(99, false), Err(NoSuccession::Gone)));
}

/// A cursor that goes back is one, whoever has the place by then.
#[test]
fn a_successor_does_not_begin_before_what_the_writer_has_seen() {
    let mut lane = Lane::new();
    let (id, mut side, page) = lane.join();
    for number in 0..100 {
        lane.fill();
        assert_eq!(take(&mut side), Some(number));
    }
    side.release_all();
    lane.fill();
    page.cursor.store(8, Ordering::Relaxed);
    let (_, _, of_successor) = lane.succeed(id, true).unwrap();
    lane.fill();
    assert_eq!(of_successor.verdict.get().0, 1);
    // All of its kind.
    assert_eq!(lane.writer.roster().len(), 0);
    let sent = lane.sent;
    assert!(lane.writer.append(&sent.to_le_bytes()).is_ok());
}

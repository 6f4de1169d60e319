//! A ring in real regions, with real threads at random paces: every byte of every record arrives, in order.
#![cfg(not(memlane_loom))]

mod support;

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use memlane_region::{
    Shared,
    ring::{NoRoom, RingReader, RingWriter, Roster},
};
use support::{Numbers, Peer, Place, ReaderOf, Regions, held, payload, want};

const NAME: &str = "ring-threads";

/// How long record `n` is: mostly small, sometimes nothing, sometimes all the ring takes.
fn len(n: u64, max: usize) -> usize {
    let mut numbers = Numbers(!n);
    let bound = match numbers.below(64) {
        0 => return max,
        1..4 => max as u64 / 2,
        4..20 => 300,
        20..24 => return 0,
        _ => 70,
    };
    numbers.below(bound) as usize
}

/// Sometimes lets the others go first, sometimes for long.
fn dawdle(numbers: &mut Numbers) {
    match numbers.below(64) {
        0 => (0..numbers.below(20)).for_each(|_| thread::yield_now()),
        1..8 => (0..numbers.below(2000)).for_each(|_| std::hint::spin_loop()),
        _ => {}
    }
}

/// Takes and checks the next record, if there is one.
fn receive(side: &mut ReaderOf<Regions>, next: &mut u64, max: usize) -> ControlFlow<()> {
    let Some(found) = side.poll().expect("an honest ring") else {
        return ControlFlow::Break(());
    };
    let expected = payload(*next, len(*next, max));
    assert_eq!(found, expected.len(), "length of record {next}");
    let mut copy = vec![0; found];
    // In two parts, wherever they meet.
    let middle = (*next as usize * 13) % (found + 1);
    side.read(middle, &mut copy[middle..]);
    side.read(0, &mut copy[..middle]);
    assert!(copy == expected, "record {next} of {found} bytes");
    side.release();
    *next += 1;
    ControlFlow::Continue(())
}

/// The threads of one lane.
struct Lane<'a> {
    place: &'a Regions,
    roster: &'a Roster<Peer>,
    max: usize,
    records: u64,
    /// Where each record starts, plus one: 0 until it is known. A reader that joins at a position learns from
    /// here which record that is.
    starts: &'a [AtomicU64],
    failed: &'a AtomicBool,
}

/// Tells the other threads of a lane that this one panicked, so that none waits for it.
struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

impl Lane<'_> {
    /// Lets the others go first. Only here does a thread wait.
    fn pause(&self) {
        assert!(
            !self.failed.load(Ordering::Relaxed),
            "another thread failed"
        );
        thread::yield_now();
    }

    fn join(&self) -> (u64, u64, ReaderOf<Regions>) {
        let (theirs, page, peer) = self.place.reader();
        let joined = self.roster.join(peer).unwrap();
        let side = RingReader::new(theirs, page, joined.start);
        (joined.id, joined.start, side)
    }

    fn write(&self, writer: &mut RingWriter<Shared, Peer>) {
        let _alarm = Alarm(self.failed);
        let mut numbers = Numbers(0);
        let mut position = 0;
        for n in 0..self.records {
            dawdle(&mut numbers);
            let payload = payload(n, len(n, self.max));
            // Published by the commit, like the record itself.
            self.starts[n as usize].store(position + 1, Ordering::Relaxed);
            while let Err(no_room) = writer.reserve(payload.len()) {
                assert_eq!(no_room, NoRoom::Full);
                want(writer, writer.want(payload.len()));
                self.pause();
            }
            want(writer, 0);
            Regions::fill(writer, &payload, n % 2 == 0);
            writer.commit(payload.len());
            position = memlane_region::ring::end(position, payload.len());
        }
        self.starts[self.records as usize].store(position + 1, Ordering::Release);
    }

    /// From the first record to the last.
    fn read(&self, mut side: ReaderOf<Regions>, seed: u64) {
        let _alarm = Alarm(self.failed);
        let mut numbers = Numbers(seed);
        let mut next = 0;
        while next < self.records {
            dawdle(&mut numbers);
            if receive(&mut side, &mut next, self.max).is_break() {
                self.pause();
            }
        }
        assert_eq!(side.poll(), Ok(None));
    }

    /// Joins, reads some, and leaves, until the last record was written. How many records it has read.
    fn come_and_go(&self) -> u64 {
        let _alarm = Alarm(self.failed);
        let mut numbers = Numbers(9);
        let (mut total, mut from) = (0, 0);
        let ended = || self.starts[self.records as usize].load(Ordering::Acquire) != 0;
        while !ended() && !self.failed.load(Ordering::Relaxed) {
            let (id, start, mut side) = self.join();
            let mut next = None;
            for _ in 0..numbers.below(200) {
                dawdle(&mut numbers);
                if side.is_empty() {
                    self.pause();
                    continue;
                }
                // The starts of a committed record and of those before it are known.
                let next = next.get_or_insert_with(|| {
                    assert!(side.poll().unwrap().is_some());
                    let known = self.starts[from..].iter();
                    let at = known.map(|start| start.load(Ordering::Relaxed));
                    from += at.take_while(|&at| at != 0 && at < start + 1).count();
                    assert_eq!(self.starts[from].load(Ordering::Relaxed), start + 1);
                    from as u64
                });
                assert!(receive(&mut side, next, self.max).is_continue());
                total += 1;
            }
            assert!(self.roster.leave(id));
        }
        total
    }
}

fn run(capacity: usize, records: u64) {
    let mut place = Regions::new(NAME, capacity);
    let mut writer = RingWriter::new(place.writer());
    let roster = writer.roster().clone();
    let starts: Vec<AtomicU64> = (0..=records).map(|_| AtomicU64::new(0)).collect();
    let lane = Lane {
        place: &place,
        roster: &roster,
        max: writer.max_payload(),
        records,
        starts: &starts,
        failed: &AtomicBool::new(false),
    };
    let (_, _, first) = lane.join();
    let (_, _, second) = lane.join();
    let came = thread::scope(|scope| {
        scope.spawn(|| lane.read(first, 1));
        scope.spawn(|| lane.read(second, 2));
        let guest = scope.spawn(|| lane.come_and_go());
        lane.write(&mut writer);
        guest.join().unwrap()
    });
    println!("{capacity} bytes: {records} records, the guest read {came}");
    assert_eq!(roster.len(), 2);
    writer.sync();
    for joined in writer.readers() {
        assert_eq!(joined.reader.verdict.get(), (0, 0));
    }
}

#[test]
fn every_byte_arrives_in_order() {
    run(4096, 8_000);
    run(1 << 16, 6_000);
    assert_eq!(held(NAME), (0, 0));
}

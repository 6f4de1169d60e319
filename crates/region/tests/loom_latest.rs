//! Models of the latest-value cell: the real writer and reader over [`HeapWords`], under every outcome of a load
//! that the memory model allows. Each model has counterparts that break one rule and must be caught.
//!
//! The writer comes round to the slot that a reader copies from: that takes four updates, so preemptions are
//! bounded.
#![cfg(memlane_loom)]

#[path = "support/model.rs"]
mod model;

use std::sync::Arc;

use loom::{
    sync::{
        Condvar, Mutex,
        atomic::{AtomicU64, Ordering, fence},
    },
    thread,
};
use memlane_region::{
    HeapWords, Words, WordsMut,
    latest::{LatestReader, LatestWriter, ReadError, Watcher},
};
use model::model;

const LEN: usize = 16;
/// Four slots of 128 bytes.
const CAPACITY: usize = 512;

/// Rules of the cell that its memory can break.
#[derive(Clone, Copy, PartialEq)]
enum Rules {
    Honest,
    /// The word of a complete update is stored `Relaxed`.
    RelaxedCommit,
    /// Nothing says that a slot is being written again.
    Unannounced,
}

struct Memory {
    words: HeapWords,
    rules: Rules,
}

impl Memory {
    fn new(rules: Rules) -> Memory {
        Memory {
            words: HeapWords::new(CAPACITY),
            rules,
        }
    }

    fn map(&self) -> Memory {
        Memory {
            words: self.words.map(),
            rules: self.rules,
        }
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
    }

    fn load_control(&self, offset: usize) -> u64 {
        self.words.load_control(offset)
    }
}

impl WordsMut for Memory {
    fn store(&mut self, position: u64, value: u64) {
        if self.rules != Rules::Unannounced || position % 128 != 0 {
            self.words.store(position, value);
        }
    }

    fn store_release(&mut self, position: u64, value: u64) {
        if self.rules == Rules::RelaxedCommit {
            self.words.store(position, value);
        } else {
            self.words.store_release(position, value);
        }
    }

    fn write(&mut self, position: u64, offset: usize, src: &[u8]) {
        self.words.write(position, offset, src);
    }

    fn store_control(&mut self, offset: usize, value: u64) {
        self.words.store_control(offset, value);
    }
}

/// A reader that sleeps, or none that does.
struct Sleeper {
    armed: AtomicU64,
    rings: Mutex<u64>,
    rung: Condvar,
}

impl Sleeper {
    fn new() -> Arc<Sleeper> {
        Arc::new(Sleeper {
            armed: AtomicU64::new(0),
            rings: Mutex::new(0),
            rung: Condvar::new(),
        })
    }
}

impl Watcher for Sleeper {
    fn wake(&self) {
        if self.armed.load(Ordering::Relaxed) != 0 {
            *self.rings.lock().unwrap() += 1;
            self.rung.notify_one();
        }
    }
}

type Writer = LatestWriter<Memory, Sleeper>;

fn value(sequence: u64) -> [u8; LEN] {
    let mut value = [0; LEN];
    value[..8].copy_from_slice(&sequence.to_ne_bytes());
    value[8..].copy_from_slice(&(sequence * 3).to_ne_bytes());
    value
}

fn write(writer: &mut Writer) {
    let next = writer.sequence() + 1;
    assert_eq!(writer.write(&value(next)[..length(next)]), Ok(next));
}

/// Lengths alternate, so that one of another update shows.
fn length(sequence: u64) -> usize {
    if sequence % 8 < 4 { LEN } else { LEN - 1 }
}

/// The sequence number of what the reader gets, which must be whole.
fn read(reader: &mut LatestReader<Memory>) -> Option<u64> {
    let mut bytes = [0; LEN];
    match reader.read(&mut bytes) {
        Ok(None) => Some(0),
        Ok(Some(update)) => {
            assert_eq!(update.len, length(update.sequence), "torn");
            let expected = value(update.sequence);
            assert_eq!(bytes[..update.len], expected[..update.len], "torn");
            Some(update.sequence)
        }
        Err(ReadError::Unstable { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// A reader reads twice while the writer comes round, beginning `before` updates into the cell's life. Before that,
/// it has read once, and will look at all slots, or twice, and will look at the next slot only.
fn come_round(rules: Rules, preemptions: usize, before: u64, updates: u64, reads: u64) {
    model(Some(preemptions), move || {
        let memory = Memory::new(rules);
        let mut reader = LatestReader::new(memory.map(), LEN);
        let mut writer = Writer::new(memory, LEN);
        for _ in 0..before {
            write(&mut writer);
        }
        for _ in 0..reads {
            assert_eq!(read(&mut reader), Some(before));
        }
        let reading = thread::spawn(move || {
            let mut last = before;
            for _ in 0..2 {
                let found = read(&mut reader);
                assert!(found.is_none_or(|found| found >= last), "went back");
                last = found.unwrap_or(last);
            }
            reader
        });
        for _ in 0..updates {
            write(&mut writer);
        }
        let mut reader = reading.join().unwrap();
        assert_eq!(read(&mut reader), Some(before + updates));
        assert!(!reader.changed());
    });
}

#[test]
fn a_value_is_whole_while_the_writer_comes_round() {
    come_round(Rules::Honest, 3, 1, 4, 2);
}

#[test]
fn a_value_is_whole_for_a_reader_that_looks_at_all_slots() {
    come_round(Rules::Honest, 3, 1, 4, 1);
}

#[test]
fn a_value_is_whole_from_the_first_on() {
    come_round(Rules::Honest, 3, 0, 3, 1);
}

#[test]
#[should_panic(expected = "torn")]
fn with_a_relaxed_commit_it_is_torn() {
    come_round(Rules::RelaxedCommit, 2, 1, 4, 2);
}

#[test]
#[should_panic(expected = "torn")]
fn unannounced_it_is_torn() {
    come_round(Rules::Unannounced, 2, 1, 4, 2);
}

/// A reader joins while the writer is at work, and waits until it has seen the last update. A lost wake-up is a
/// deadlock.
fn wait_for_changes(looks_again: bool) {
    const LAST: u64 = 2;
    model(Some(3), move || {
        let memory = Memory::new(Rules::Honest);
        let mut reader = LatestReader::new(memory.map(), LEN);
        let mut writer = Writer::new(memory, LEN);
        let roster = writer.roster().clone();
        let waiting = thread::spawn(move || {
            let sleeper = Sleeper::new();
            let start = roster.join(sleeper.clone()).unwrap().sequence;
            // Of four slots, no fewer than these updates have to be visible.
            assert!(read(&mut reader).is_none_or(|found| found >= start));
            let mut sleeps = 0;
            while reader.sequence() < LAST {
                sleeps += 1;
                sleeper.armed.store(sleeps, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                if !(looks_again && reader.changed()) {
                    let mut rings = sleeper.rings.lock().unwrap();
                    while *rings == 0 {
                        rings = sleeper.rung.wait(rings).unwrap();
                    }
                    *rings = 0;
                }
                sleeper.armed.store(0, Ordering::Relaxed);
                read(&mut reader);
            }
        });
        for _ in 0..LAST {
            write(&mut writer);
        }
        waiting.join().unwrap();
    });
}

#[test]
fn no_wake_up_is_lost() {
    wait_for_changes(true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_a_second_look_one_is() {
    wait_for_changes(false);
}

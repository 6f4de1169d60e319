//! Models of a writer that sleeps for want of room and readers that wake it: the real `want`, `release` and `poll`.
//! A lost wake-up is a deadlock, and loom reports it.
#![cfg(memlane_loom)]

use std::{panic, sync::Arc};

use loom::{
    sync::{
        Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};
use memlane_region::{
    HeapWords,
    ring::{CursorPage, NoRoom, Reader, RingReader, RingWriter},
};

/// The smallest ring. A record of 48 bytes takes half of it, and the next header more than that.
const CAPACITY: usize = 128;
const LEN: usize = 48;

/// What a writer and its readers share beside the ring.
struct Room {
    wanted: AtomicU64,
    rings: Mutex<u64>,
    rung: Condvar,
}

struct Page {
    cursor: AtomicU64,
    room: Arc<Room>,
}

struct Export(Arc<Page>);

impl<M> CursorPage<M> for Export {
    fn export(&mut self, cursor: u64) {
        self.0.cursor.store(cursor, Ordering::Release);
    }

    fn writer_sleeps(&self) -> bool {
        true
    }

    fn wanted(&self, _: &M) -> u64 {
        self.0.room.wanted.load(Ordering::Relaxed)
    }

    fn wake(&mut self) {
        *self.0.room.rings.lock().unwrap() += 1;
        self.0.room.rung.notify_one();
    }
}

impl Reader for Page {
    fn cursor(&self) -> u64 {
        self.cursor.load(Ordering::Relaxed)
    }

    fn corrupt(&self, found: u64) {
        panic!("an honest reader was dropped for its cursor {found}");
    }
}

type Writer = RingWriter<HeapWords, Page>;

/// When a writer says what it waits for.
#[derive(Clone, Copy, PartialEq)]
enum Says {
    /// Before it looks for the last time.
    First,
    /// Afterwards, which is too late.
    Last,
}

/// Sends one message as a publisher does: if there is no room, says what it waits for, looks again, sleeps.
fn send(writer: &mut Writer, room: &Room, says: Says) {
    while let Err(no_room) = writer.reserve(LEN) {
        assert_eq!(no_room, NoRoom::Full);
        let want = |writer: &Writer| room.wanted.store(writer.want(LEN), Ordering::Relaxed);
        if says == Says::First {
            want(writer);
        }
        if writer.reserve(LEN).is_err() {
            if says == Says::Last {
                want(writer);
            }
            let mut rings = room.rings.lock().unwrap();
            while *rings == 0 {
                rings = room.rung.wait(rings).unwrap();
            }
            *rings = 0;
        }
        room.wanted.store(0, Ordering::Relaxed);
    }
    writer.commit(LEN);
}

/// The ring is full. Each reader looks so often for a message, and takes what it finds, while the writer sends
/// one more.
fn model(readers: usize, takes: usize, says: Says) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = (readers > 1).then_some(3);
    builder.check(move || {
        let room = Arc::new(Room {
            wanted: AtomicU64::new(0),
            rings: Mutex::new(0),
            rung: Condvar::new(),
        });
        let words = HeapWords::new(CAPACITY);
        let mut sides: Vec<RingReader<HeapWords, Export>> = Vec::new();
        let mut writer = Writer::new(words.map());
        for _ in 0..readers {
            let page = Arc::new(Page {
                cursor: AtomicU64::new(0),
                room: room.clone(),
            });
            let joined = writer.roster().join(page.clone()).unwrap();
            sides.push(RingReader::new(words.map(), Export(page), joined.start));
        }
        send(&mut writer, &room, Says::First);
        let threads: Vec<_> = sides
            .into_iter()
            .map(|mut side| {
                thread::spawn(move || {
                    for _ in 0..takes {
                        if side.poll().unwrap().is_some() {
                            side.release();
                        }
                    }
                })
            })
            .collect();
        send(&mut writer, &room, says);
        threads.into_iter().for_each(|t| t.join().unwrap());
    });
}

#[test]
fn a_release_wakes_the_writer() {
    model(1, 1, Says::First);
}

/// The second look of the reader may find the ring empty, or the second message.
#[test]
fn a_release_and_an_empty_poll() {
    model(1, 2, Says::First);
}

#[test]
fn the_slower_of_two_readers_wakes_the_writer() {
    model(2, 1, Says::First);
}

/// The model can fail.
#[test]
fn a_wake_up_is_lost_if_the_writer_looks_first() {
    let outcome = panic::catch_unwind(|| model(1, 1, Says::Last));
    assert!(outcome.is_err(), "loom found no lost wake-up");
}

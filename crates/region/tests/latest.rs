//! The latest-value cell: what a reader gets, over the heap and over real regions, from honest writers and from
//! others.

mod support;

use std::{
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use memlane_region::{
    Error, HeapWords, Shared, Words, WordsMut,
    latest::{LatestReader, LatestWriter, ReadError, TooLong, Update, Watcher, ring_len},
    page_size,
    ring::{From, LEFT, NoSuccession, Reader},
};
use proptest::prelude::*;
use support::{Numbers, held, payload};
use zerocopy::{FromBytes, Immutable, IntoBytes};

fn cell(name: &'static str, max_len: usize) -> (LatestWriter, LatestReader, OwnedFd) {
    let (writer, descriptor) = LatestWriter::create(name, max_len).unwrap();
    let reader = open(&descriptor, max_len);
    (writer, reader, descriptor)
}

fn open(descriptor: &OwnedFd, max_len: usize) -> LatestReader {
    let copy = descriptor.as_fd().try_clone_to_owned().unwrap();
    LatestReader::open(copy, max_len, 1 << 30).unwrap()
}

fn read(reader: &mut LatestReader<impl Words>) -> Option<(u64, Vec<u8>)> {
    let mut value = vec![0xee; reader.max_len()];
    let Update { sequence, len } = reader.read(&mut value).unwrap()?;
    value.truncate(len);
    Some((sequence, value))
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Abandon(usize),
    Read(usize),
}

fn steps(max_len: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..=max_len).prop_map(Step::Write),
        1 => (0..=max_len).prop_map(Step::Abandon),
        3 => (0..3_usize).prop_map(Step::Read),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// Three readers that look now and then get what was written last, whole, and know whether it is new.
    #[test]
    fn readers_get_what_was_written_last((max_len, steps) in (0..300_usize).prop_flat_map(|max| (Just(max), steps(max)))) {
        let (mut writer, _, descriptor) = cell("latest-model", max_len);
        let mut readers: Vec<_> = (0..3).map(|_| (open(&descriptor, max_len), 0)).collect();
        let (mut last, mut value) = (0, None);
        for step in steps {
            match step {
                Step::Write(len) => {
                    last += 1;
                    let bytes = payload(last, len);
                    let written = if last % 2 == 0 {
                        writer.write(&bytes)
                    } else {
                        writer.write_with(len, |dst| dst.copy_from_slice(&bytes))
                    };
                    prop_assert_eq!(written, Ok(last));
                    value = Some(bytes);
                }
                Step::Abandon(len) => {
                    let fill = |dst: &mut [u8]| { dst.fill(0xdd); std::panic::resume_unwind(Box::new(())) };
                    let outcome = catch_unwind(AssertUnwindSafe(|| writer.write_with(len, fill)));
                    prop_assert!(outcome.is_err());
                }
                Step::Read(of) => {
                    let (reader, seen) = &mut readers[of];
                    prop_assert_eq!(reader.changed(), *seen != last);
                    prop_assert_eq!(read(reader), value.clone().map(|value| (last, value)));
                    prop_assert!(!reader.changed());
                    prop_assert_eq!(reader.sequence(), last);
                    *seen = last;
                }
            }
        }
    }

    /// Whatever is in the memory, a reader gets a value of a possible length, or an error, and never goes back.
    #[test]
    fn any_memory_is_read_or_refused(words in proptest::collection::vec((0..64_u64, any::<u64>(), any::<bool>()), 1..200)) {
        let mut memory = HeapWords::new(512);
        let mut reader = LatestReader::new(memory.map(), 100);
        let mut last = 0;
        for (at, value, plausible) in words {
            memory.store(at * 8, if plausible { value % 128 } else { value });
            reader.changed();
            match reader.read(&mut [0; 100]) {
                Ok(found) => {
                    let found = found.map_or(0, |update| { assert!(update.len <= 100); update.sequence });
                    prop_assert!(found >= last);
                    last = found;
                }
                Err(ReadError::Corrupt { len, max: 100 }) => prop_assert!(len > 100),
                Err(error) => prop_assert!(matches!(error, ReadError::Unstable { .. }), "{}", error),
            }
        }
    }
}

/// A writer that stopped for ever, in the middle of an update: the one before stays, for those who come now, too.
#[test]
fn an_update_that_was_begun_changes_nothing() {
    let (mut writer, mut reader, descriptor) = cell("latest-begun", 4096);
    let begin = |writer: &mut LatestWriter| {
        let fill = |dst: &mut [u8]| {
            dst.fill(0xdd);
            std::panic::resume_unwind(Box::new(()));
        };
        assert!(catch_unwind(AssertUnwindSafe(|| writer.write_with(4096, fill))).is_err());
    };
    begin(&mut writer);
    assert_eq!(read(&mut reader), None);
    for number in 1..=9 {
        writer.write(&payload(number, 4096)).unwrap();
        begin(&mut writer);
        for _ in 0..3 {
            let expected = Some((number, payload(number, 4096)));
            assert_eq!(read(&mut reader), expected);
            assert_eq!(read(&mut open(&descriptor, 4096)), expected);
            assert!(!reader.changed());
        }
    }
}

#[test]
fn lengths_are_checked_on_both_sides() {
    let (mut writer, mut reader, descriptor) = cell("latest-lengths", 10);
    let too_long = Err(TooLong { len: 11, max: 10 });
    assert_eq!(writer.write(&[0; 11]), too_long);
    assert_eq!(writer.write_with(11, |_| panic!("called")), too_long);
    assert_eq!(read(&mut reader), None);
    assert_eq!(writer.write(&[]), Ok(1));
    assert_eq!(read(&mut reader), Some((1, vec![])));
    writer.write(&[7; 10]).unwrap();
    let expected = Err(ReadError::Length {
        expected: 9,
        found: 10,
    });
    // It does not count as read, however often.
    for _ in 0..3 {
        assert_eq!(reader.read(&mut [0; 9]), expected);
        assert!(reader.changed());
    }
    assert_eq!(read(&mut reader), Some((2, vec![7; 10])));
    assert_eq!(read(&mut reader), Some((2, vec![7; 10])));
    assert_eq!(reader.read(&mut [0; 9]), expected);

    let refused = LatestReader::open(descriptor, 5000, 1 << 30).unwrap_err();
    assert!(matches!(refused.error, Error::Size { .. }), "{refused}");
    let refused = LatestReader::open(refused.descriptor, usize::MAX, 1 << 30).unwrap_err();
    assert!(matches!(refused.error, Error::Length { .. }), "{refused}");
    let refused = LatestReader::open(refused.descriptor, 10, page_size()).unwrap_err();
    assert!(matches!(refused.error, Error::Quota { .. }), "{refused}");
}

#[derive(Debug, PartialEq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Pose {
    x: f64,
    y: f64,
    frame: u32,
    flags: u32,
}

#[test]
fn values_have_types() {
    let (mut writer, mut reader, _) = cell("latest-types", 64);
    assert_eq!(reader.read_value::<Pose>(), Ok(None));
    let pose = |frame| Pose {
        x: 1.5,
        y: -2.0,
        frame,
        flags: 7,
    };
    for number in 1..=6 {
        assert_eq!(writer.write_value(&pose(number)), Ok(number.into()));
        for _ in 0..3 {
            let found = reader.read_value::<Pose>();
            assert_eq!(found, Ok(Some((number.into(), pose(number)))));
        }
    }
    let expected = |expected| {
        Err(ReadError::Length {
            expected,
            found: 24,
        })
    };
    assert_eq!(reader.read_value::<u64>(), expected(8).map(|()| None));
    writer.write_value(&pose(7)).unwrap();
    assert_eq!(reader.read_value::<[u64; 4]>(), expected(32).map(|()| None));
    assert!(reader.changed());
    assert_eq!(reader.read_value::<Pose>(), Ok(Some((7, pose(7)))));
}

/// Who goes on where another has been takes what that one has read for known, and all that is newer for new.
#[test]
fn a_reader_goes_on_where_another_has_been() {
    let (mut writer, mut reader, descriptor) = cell("latest-goes-on", 100);
    for number in 0..12 {
        let seen = reader.sequence();
        for written in number..number + number % 4 {
            // It is the same whether that was before it came, or after.
            let mut successor = open(&descriptor, 100);
            successor.begin_at(seen);
            assert_eq!(successor.sequence(), seen);
            assert_eq!(successor.changed(), writer.sequence() > seen);
            writer.write(&payload(written, 50)).unwrap();
            assert!(successor.changed());
            let expected = (writer.sequence(), payload(written, 50));
            assert_eq!(read(&mut successor), Some(expected));
            assert!(!successor.changed());
        }
        // What is known can be looked at again.
        let newest = read(&mut reader);
        let mut successor = open(&descriptor, 100);
        successor.begin_at(reader.sequence());
        assert!(!successor.changed());
        assert_eq!(read(&mut successor), newest);
    }
    // A number that there is not, however great.
    for number in [writer.sequence() + 1, 1 << 62, u64::MAX] {
        let mut successor = open(&descriptor, 100);
        successor.begin_at(number);
        successor.changed();
        let error = successor.read(&mut [0; 100]);
        assert!(
            matches!(error, Err(ReadError::Unstable { .. })),
            "{error:?}"
        );
    }
}

/// One that may sleep.
#[derive(Debug, Default)]
struct Sleeper {
    woken: AtomicBool,
}

impl Watcher for Sleeper {
    fn wake(&self) {
        self.woken.store(true, Ordering::Relaxed);
    }
}

impl Reader for Sleeper {
    fn cursor(&self) -> u64 {
        LEFT
    }

    fn corrupt(&self, found: u64) {
        panic!("it has no cursor, and says {found}");
    }
}

/// Its place is another's, which is woken from then on, and told what was read last. What it can have read is what was written.
#[test]
fn one_that_sleeps_is_succeeded() {
    let (mut writer, _) = LatestWriter::<Shared, Sleeper>::create("latest-succeeded", 8).unwrap();
    for value in 0..5_u64 {
        writer.write_value(&value).unwrap();
    }
    let roster = writer.roster().clone();
    let mut id = roster.join(Arc::default()).unwrap().id;
    // It may have read less than there was when it came, and a value that is just being written.
    for seen in [0, 3, 5, 6] {
        let successor = Arc::<Sleeper>::default();
        let joined = roster.succeed(id, successor.clone(), From::Seen(seen), false);
        let joined = joined.unwrap();
        assert_eq!((joined.sequence, roster.len()), (seen, 1));
        id = joined.id;
        assert!(!successor.woken.load(Ordering::Relaxed));
    }
    let refused = roster.succeed(id, Arc::default(), From::Seen(7), false);
    let refused = refused.unwrap_err();
    assert!(
        matches!(refused, NoSuccession::Corrupt { found: 7 }),
        "{refused}"
    );
    // Those who stay are woken, too, until they leave.
    let stays = roster.joined(id).unwrap();
    let next = roster
        .succeed(id, Arc::default(), From::Seen(6), true)
        .unwrap();
    writer.write_value(&6_u64).unwrap();
    for sleeper in [&stays, &next] {
        assert!(sleeper.reader.woken.load(Ordering::Relaxed));
    }
    assert!(roster.leave(stays.id) && roster.leave(next.id) && roster.is_empty());
}

/// The sequence number in every word, and a length that goes with it.
fn stamp(sequence: u64, dst: &mut [u8]) {
    for (at, chunk) in dst.chunks_mut(8).enumerate() {
        let word = (sequence ^ (at as u64) << 40).to_ne_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

fn never_torn<M: WordsMut + Send, N: Words + Send>(
    memory: M,
    max_len: usize,
    readers: Vec<N>,
    updates: u64,
) {
    let length = |sequence: u64| 1 + Numbers(sequence).below(max_len as u64) as usize;
    let mut writer = LatestWriter::<_>::new(memory, max_len);
    let stop = AtomicBool::new(false);
    let total = std::thread::scope(|scope| {
        let readers: Vec<_> = readers
            .into_iter()
            .map(|memory| {
                scope.spawn(|| {
                    let mut reader = LatestReader::new(memory, max_len);
                    let (mut value, mut expected) = (vec![0; max_len], vec![0; max_len]);
                    let (mut last, mut count, mut over) = (0, 0_u64, false);
                    // The last one is always seen.
                    while !over || reader.changed() {
                        over = stop.load(Ordering::Acquire);
                        match reader.read(&mut value) {
                            Ok(None) => assert_eq!(last, 0),
                            Ok(Some(Update { sequence, len })) => {
                                assert!(sequence >= last, "went back");
                                assert_eq!(len, length(sequence));
                                stamp(sequence, &mut expected[..len]);
                                assert_eq!(value[..len], expected[..len], "torn");
                                count += u64::from(sequence != last);
                                last = sequence;
                            }
                            Err(error) => assert!(matches!(error, ReadError::Unstable { .. })),
                        }
                    }
                    assert_eq!(last, updates);
                    count
                })
            })
            .collect();
        let mut value = vec![0; max_len];
        for sequence in 1..=updates {
            let value = &mut value[..length(sequence)];
            stamp(sequence, value);
            assert_eq!(writer.write(value), Ok(sequence));
        }
        stop.store(true, Ordering::Release);
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .sum::<u64>()
    });
    println!("{max_len} bytes: {updates} updates, {total} seen");
}

#[test]
fn never_torn_over_regions() {
    for (max_len, updates) in [
        (8, 500_000),
        (48, 500_000),
        (64, 500_000),
        (1000, 100_000),
        (100_000, 2000),
    ] {
        let ring = ring_len(max_len).unwrap();
        let (memory, descriptor) = Shared::create("latest-torn", 1, ring).unwrap();
        let readers = (0..2)
            .map(|_| {
                let copy = descriptor.as_fd().try_clone_to_owned().unwrap();
                memlane_region::Remote::open(copy, page_size(), ring, 1 << 30).unwrap()
            })
            .collect();
        never_torn(memory, max_len, readers, updates);
    }
    assert_eq!(held("latest-torn"), (0, 0));
}

/// Every access is an atomic here, so that Miri can watch.
#[test]
fn never_torn_over_the_heap() {
    let updates = if cfg!(miri) { 60 } else { 100_000 };
    let memory = HeapWords::new(1024);
    let readers = (0..2).map(|_| memory.map()).collect();
    never_torn(memory, 200, readers, updates);
}

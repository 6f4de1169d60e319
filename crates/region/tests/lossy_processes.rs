//! Readers that hold nobody up, in processes of their own: overtaken at random, over and over. None of them ever takes a
//! torn message, and each counts exactly what it missed.
//!
//! `MEMLANE_LAPS` says how often the writer goes around, if that is to be more often than by default.
#![cfg(not(memlane_loom))]

mod support;

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use memlane_region::{
    Remote, Shared, page_size,
    ring::{LossyReader, Polled, Record, RingReader, RingWriter, Taken, max_payload},
};
use rustix::process::{Signal, set_parent_process_death_signal};
use support::{
    HeapPage, Known, LAPS, Numbers, held,
    process::{Link, Other, role},
};

const NAME: &str = "lossy-processes";
const KILLED: &str = "lossy-killed";
const CAPACITY: usize = 4096;
const LAPS_BY_DEFAULT: u64 = 60_000;

type Writer = RingWriter<Shared, Known<HeapPage>>;

/// Word `at` of message `sequence`. Many are 0: where one falls on a header, that looks as if there were no record.
fn word(sequence: u64, at: u64) -> u64 {
    let mixed =
        sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ at.wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
    let mixed = mixed ^ mixed >> 29;
    match mixed % 8 {
        0..3 => 0,
        // Looks like a header.
        3 => 1 << 32 | mixed >> 53 << 3,
        _ => mixed,
    }
}

fn fill(sequence: u64, words: u64, message: &mut [u8]) {
    for (at, bytes) in (0..words).zip(message.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word(sequence, at).to_ne_bytes());
    }
}

/// Is busy elsewhere, for a random time, now and then.
fn dawdle(numbers: &mut Numbers, seldom: u64, most: Duration) {
    if numbers.below(seldom) == 0 {
        let until = Instant::now() + most.mul_f64(numbers.below(1000) as f64 / 1000.0);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    }
}

/// Appends a message of a random length, in one of the ways there are. False if a lossless reader is in the way.
fn send(writer: &mut Writer, numbers: &mut Numbers) -> bool {
    let sequence = writer.sequence();
    let words = match numbers.below(64) {
        0 => numbers.below(CAPACITY as u64 / 8 * 7 / 8 - 2),
        _ => numbers.below(40),
    };
    let len = 8 * words as usize;
    let mut message = [0; CAPACITY];
    if numbers.below(2) == 0 {
        fill(sequence, words, &mut message[..len]);
        return writer.append(&message[..len]).is_ok();
    }
    if writer.reserve(len).is_err() {
        return false;
    }
    fill(sequence, words, writer.payload_mut(len));
    writer.commit(len);
    true
}

fn u64_of(bytes: &[u8]) -> u64 {
    u64::from_ne_bytes(bytes.try_into().expect("8 bytes"))
}

fn open(link: &Link) -> Remote {
    let ring = link.hear().1.expect("a ring");
    Remote::open(ring, page_size(), CAPACITY, 1 << 20).unwrap()
}

/// Not a test: what other processes do.
#[test]
fn other_process() {
    let Some((role, link)) = role() else { return };
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    match &*role {
        "reader" => read(&link),
        "writer" => write(&link),
        role => panic!("{role}?"),
    }
}

/// What a reader has seen.
#[derive(Default)]
struct Count {
    taken: u64,
    missed: u64,
    overtaken: u64,
}

/// Takes what there is, as far as it gets, and checks it; whether there was nothing in the end.
fn take(reader: &mut LossyReader<Remote>, buffer: &mut [u8], count: &mut Count) -> bool {
    let before = reader.missed();
    let found = reader.poll(buffer).expect("an honest writer");
    count.overtaken += u64::from(reader.missed() > before);
    match found {
        Polled::Message(Taken {
            sequence,
            missed,
            record: Record::Inline(len),
            ..
        }) => {
            count.missed += missed;
            assert_eq!(sequence, count.taken + count.missed, "miscounted");
            count.taken += 1;
            for (at, bytes) in (0..).zip(buffer[..len].chunks(8)) {
                let (found, said) = (u64_of(bytes), word(sequence, at));
                assert_eq!(found, said, "torn: word {at} of message {sequence}");
            }
            false
        }
        Polled::Overtaken => false,
        Polled::Empty => true,
        found => panic!("torn: {found:?}"),
    }
}

/// Reads at a pace that changes; whenever the writer says how many there were so far and waits, reads on until that many
/// are accounted for, and there is nothing.
fn read(link: &Link) {
    let mut reader = LossyReader::new(open(link), LAPS, 0, 0);
    let mut buffer = vec![0; max_payload(CAPACITY as u64)];
    let mut numbers = Numbers(std::process::id().into());
    let mut count = Count::default();
    link.tell(b"ready", None);
    loop {
        // The writer is at it until something comes.
        while !link.has_word() {
            for _ in 0..64 {
                take(&mut reader, &mut buffer, &mut count);
                dawdle(&mut numbers, 16, Duration::from_micros(20));
            }
        }
        let (said, _) = link.hear();
        if said.is_empty() {
            break;
        }
        while !take(&mut reader, &mut buffer, &mut count) {}
        assert!(reader.is_empty());
        assert_eq!(reader.sequence(), u64_of(&said), "asleep for ever");
        assert_eq!(count.taken + reader.missed(), u64_of(&said));
        let answer = [count.taken, reader.missed(), count.overtaken];
        link.tell(&answer.map(u64::to_ne_bytes).concat(), None);
    }
}

fn ring(name: &'static str) -> (Writer, OwnedFd) {
    let (memory, ring) = Shared::create(name, page_size(), CAPACITY).unwrap();
    (RingWriter::with_laps(memory, LAPS), ring)
}

fn start_reader(writer: &Writer, ring: &OwnedFd) -> Other {
    let joined = writer.roster().join(Arc::new(Known::Lossy)).unwrap();
    assert_eq!((joined.start, joined.sequence), (0, 0));
    let other = Other::spawn("reader");
    other.link().tell(b"ring", Some(ring.as_fd()));
    assert_eq!(other.link().hear().0, b"ready");
    other
}

/// Waits until a reader has all that was sent so far: how many it has taken, how many missed, how often it was overtaken.
fn ask(other: &Other, sent: u64) -> [u64; 3] {
    other.link().tell(&sent.to_ne_bytes(), None);
    let (answer, _) = other.link().hear();
    assert_eq!(answer.len(), 24, "the reader has failed");
    let answer = [0, 8, 16].map(|at| u64_of(&answer[at..at + 8]));
    assert_eq!(answer[0] + answer[1], sent);
    answer
}

/// Two lossy readers, and sometimes a lossless one here that alone can hold up the writer.
#[test]
fn never_torn_and_all_are_counted() {
    let laps = std::env::var("MEMLANE_LAPS").map_or(LAPS_BY_DEFAULT, |laps| {
        laps.parse().expect("MEMLANE_LAPS is a number")
    });
    let (mut writer, ring) = ring(NAME);
    let readers = [(); 2].map(|()| start_reader(&writer, &ring));
    let mut numbers = Numbers(4);
    let mut said = [[0; 3]; 2];
    while writer.position() < laps * CAPACITY as u64 {
        // For a while at full speed, or with breaks, and then not at all.
        let seldom = 1 << numbers.below(16);
        let until = writer.position() + CAPACITY as u64 * numbers.below(2000);
        while writer.position() < until {
            assert!(send(&mut writer, &mut numbers));
            dawdle(&mut numbers, seldom, Duration::from_micros(20));
        }
        assert_eq!(beside_a_lossless_one(&mut writer, &ring, &mut numbers), 200);
        said = [0, 1].map(|at| ask(&readers[at], writer.sequence()));
    }
    for [taken, missed, overtaken] in said {
        println!("taken {taken}, missed {missed}, overtaken {overtaken} times");
        assert!(taken > 0 && missed > 0 && overtaken > 0);
    }
    readers.into_iter().for_each(Other::finish);
    drop((writer, ring));
    assert_eq!(held(NAME), (0, 0));
}

/// Sends 200 messages with a lossless reader there, which has to get them all: how many it got.
fn beside_a_lossless_one(writer: &mut Writer, ring: &OwnedFd, numbers: &mut Numbers) -> u64 {
    let page = HeapPage::default();
    let peer = Arc::new(Known::Lossless(Arc::new(page.clone())));
    let joined = writer.roster().join(peer).unwrap();
    let ring = ring.try_clone().unwrap();
    let memory = Remote::open(ring, page_size(), CAPACITY, 1 << 20).unwrap();
    let mut reader = RingReader::new(memory, page, joined.start);
    let mut buffer = [0; CAPACITY];
    let mut received = 0;
    let mut receive = || {
        while let Some(len) = reader.poll().unwrap() {
            reader.read(0, &mut buffer[..len]);
            for (at, bytes) in (0..).zip(buffer[..len].chunks(8)) {
                assert_eq!(u64_of(bytes), word(joined.sequence + received, at));
            }
            reader.release();
            received += 1;
        }
        received
    };
    for _ in 0..200 {
        while !send(writer, numbers) {
            receive();
        }
    }
    let received = receive();
    assert!(writer.roster().leave(joined.id));
    received
}

/// Writes until it is killed.
fn write(link: &Link) {
    let (mut writer, ring) = ring(KILLED);
    writer.roster().join(Arc::new(Known::Lossy)).unwrap();
    link.tell(b"ring", Some(ring.as_fd()));
    let mut numbers = Numbers(std::process::id().into());
    loop {
        assert!(send(&mut writer, &mut numbers));
    }
}

/// Whatever it was about to do: what it had committed is read, or counted as missed, and then there is nothing.
#[test]
fn a_writer_is_killed() {
    let mut numbers = Numbers(5);
    let mut count = Count::default();
    for _ in 0..30 {
        let writer = Other::spawn("writer");
        let mut reader = LossyReader::new(open(writer.link()), LAPS, 0, 0);
        let mut buffer = vec![0; max_payload(CAPACITY as u64)];
        count = Count {
            overtaken: count.overtaken,
            ..Count::default()
        };
        let polls = numbers.below(20_000);
        for _ in 0..polls {
            take(&mut reader, &mut buffer, &mut count);
            dawdle(&mut numbers, 16, Duration::from_micros(20));
        }
        writer.kill();
        // At most what fits the ring.
        let left = (0..=CAPACITY / 8).find(|_| take(&mut reader, &mut buffer, &mut count));
        assert!(left.is_some(), "there is no end");
        assert!(reader.is_empty());
        assert_eq!(count.taken + reader.missed(), reader.sequence());
    }
    assert!(count.overtaken > 0);
    assert_eq!(held(KILLED), (0, 0));
}

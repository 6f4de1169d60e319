//! The latest-value cell between processes: never torn, never a lost wake-up, whatever happens to readers, and no
//! harm from a writer that writes nonsense.

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering, fence},
    },
    time::{Duration, Instant},
};

use memlane_region::{
    Remote, Shared, WordsMut,
    latest::{LatestReader, LatestWriter, ReadError, Update, Watcher, ring_len},
    page_size,
};
use memlane_signaling::{Armed, Backing, Doorbell, Ringer, Rung, Waiter, Woken};
use memlane_tests::{Dice, PATIENCE, Part, Role, Scene, alive, play, wait_asleep};
use memlane_transport::Fd;
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[
    ("poller", poller),
    ("sleeper", sleeper),
    ("echo", echo),
    ("scribbler", scribbler),
];

#[test]
fn other_process() {
    play(ROLES);
}

/// What a reader that sleeps gives to the writer.
#[derive(Debug, Serialize, Deserialize)]
struct Offer {
    page: Fd,
    doorbell: Fd,
}

/// Byte of the armed flag in a reader's control page.
const ARMED: usize = 0;

/// A reader that sleeps, as the writer has it.
#[derive(Debug)]
struct Peer {
    page: Remote,
    ringer: Ringer,
    rung: Rung,
    rings: AtomicU64,
}

impl Peer {
    fn accept(offer: Offer) -> Arc<Peer> {
        Arc::new(Peer {
            page: Remote::open(offer.page.into(), page_size(), 0, 1 << 20).expect("a page"),
            ringer: Ringer::open(offer.doorbell.into(), Backing::Socket).expect("a doorbell"),
            rung: Rung::new(),
            rings: AtomicU64::new(0),
        })
    }
}

impl Watcher for Peer {
    fn wake(&self) {
        if self.rung.due(self.page.load_word(ARMED)) {
            self.ringer.ring();
            self.rings.fetch_add(1, Ordering::Relaxed);
        }
    }
}

type Writer = LatestWriter<Shared, Peer>;

/// The reader's side of waiting.
struct Sleep {
    page: Shared,
    armed: Armed,
    doorbell: Doorbell,
    waiter: Waiter,
}

impl Sleep {
    fn new() -> (Sleep, Offer) {
        let (page, descriptor) = Shared::create("latest-page", 1, 0).expect("a page");
        let (doorbell, end) = Doorbell::new(Backing::Socket).expect("a doorbell");
        let offer = Offer {
            page: descriptor.into(),
            doorbell: end.into(),
        };
        let sleep = Sleep {
            page,
            armed: Armed::new(),
            waiter: Waiter::new(&doorbell).expect("a waiter"),
            doorbell,
        };
        (sleep, offer)
    }

    /// Until there is a newer value than the one read last. The time is only there to fail in.
    fn until_changed(&mut self, reader: &LatestReader) {
        while !reader.changed() {
            self.armed.arm(self.page.word(ARMED));
            if !reader.changed() {
                let deadline = Instant::now() + PATIENCE / 2;
                let woken = self.waiter.wait(&mut self.doorbell, Some(deadline));
                assert_eq!(woken.expect("a wait"), Woken::Rung, "a lost wake-up");
            }
            self.armed.disarm(self.page.word(ARMED));
        }
    }
}

/// How long the value of an update is: up to what the cell takes, and often short.
fn length(sequence: u64, max_len: usize) -> usize {
    let mixed = sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
    let most = if sequence.is_multiple_of(4) {
        max_len
    } else {
        max_len.min(200)
    };
    8 + (mixed as usize) % (most - 7)
}

/// Every word of a value says which update it is of, and where in it.
fn stamp(sequence: u64, value: &mut [u8]) {
    for (at, chunk) in value.chunks_mut(8).enumerate() {
        let word = (sequence ^ (at as u64) << 44).to_ne_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

fn write(writer: &mut Writer) -> u64 {
    let sequence = writer.sequence() + 1;
    let len = length(sequence, writer.max_len());
    writer
        .write_with(len, |value| stamp(sequence, value))
        .expect("a length that fits")
}

/// Reads and checks; none if the writer is too fast. The buffer's other half is for comparison.
fn read(reader: &mut LatestReader, buffer: &mut [u8]) -> Option<u64> {
    let (value, expected) = buffer.split_at_mut(reader.max_len());
    let before = reader.sequence();
    match reader.read(value) {
        Ok(None) => Some(0),
        Ok(Some(Update { sequence, len })) => {
            assert!(sequence >= before, "back from {before} to {sequence}");
            assert_eq!(len, length(sequence, value.len()), "torn");
            stamp(sequence, &mut expected[..len]);
            assert_eq!(value[..len], expected[..len], "torn: update {sequence}");
            Some(sequence)
        }
        Err(ReadError::Unstable { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

fn duplicate(cell: &Fd) -> Fd {
    cell.as_fd()
        .try_clone_to_owned()
        .expect("a descriptor")
        .into()
}

fn open(cell: Fd, max_len: usize) -> LatestReader {
    LatestReader::open(cell.into(), max_len, 1 << 30).expect("a cell")
}

/// Reads without a pause until the last update; says how many it saw.
fn poller(role: &Role) {
    let (max_len, last): (usize, u64) = role.hear();
    let mut reader = open(role.hear(), max_len);
    let mut buffer = vec![0; 2 * max_len];
    role.tell(&());
    let (mut seen, mut reads) = (0_u64, 0_u64);
    while reader.sequence() < last {
        let before = reader.sequence();
        let found = read(&mut reader, &mut buffer);
        seen += u64::from(found.is_some_and(|found| found != before));
        reads += 1;
        if reads.is_multiple_of(4096) {
            alive();
        }
    }
    role.tell(&seen);
}

/// Sleeps until the next change, until the last update.
fn sleeper(role: &Role) {
    let (max_len, last): (usize, u64) = role.hear();
    let mut reader = open(role.hear(), max_len);
    let mut buffer = vec![0; 2 * max_len];
    let (mut sleep, offer) = Sleep::new();
    role.tell(&offer);
    drop(offer);
    let start: u64 = role.hear();
    let mut seen = 0_u64;
    while reader.sequence() < last {
        if reader.sequence() >= start {
            sleep.until_changed(&reader);
        }
        seen += u64::from(read(&mut reader, &mut buffer).is_some());
        if seen.is_multiple_of(1024) {
            alive();
        }
    }
    role.tell(&seen);
}

/// Starts a reader that sleeps, and takes it into the roster.
fn start_sleeper(
    scene: &Scene,
    writer: &Writer,
    descriptor: &Fd,
    last: u64,
) -> (memlane_tests::Child, Arc<Peer>, u64) {
    let child = scene.spawn("sleeper", &(writer.max_len(), last));
    child.tell(descriptor);
    let peer = Peer::accept(child.hear());
    let joined = writer.roster().join(peer.clone()).expect("a place");
    child.tell(&joined.sequence);
    (child, peer, joined.id)
}

fn make(max_len: usize) -> (Writer, Fd) {
    let (writer, descriptor) = Writer::create("latest", max_len).expect("a cell");
    (writer, descriptor.into())
}

/// Millions of updates, of a few bytes and of more than 64 KiB; readers that look, readers that sleep, one that is
/// killed, one that is stopped. The last update is seen by everyone who is left.
#[test]
fn never_torn_and_the_last_is_seen() {
    for (max_len, last) in [
        (8, 2_000_000),
        (64, 2_000_000),
        (1000, 500_000),
        (100_000, 30_000),
    ] {
        let scene = Scene::new();
        let (mut writer, descriptor) = make(max_len);
        let pollers: Vec<_> = (0..2)
            .map(|_| {
                let child = scene.spawn("poller", &(max_len, last));
                child.tell(&descriptor);
                child.hear::<()>();
                child
            })
            .collect();
        let sleepers: Vec<_> = (0..2)
            .map(|_| start_sleeper(&scene, &writer, &descriptor, last))
            .collect();
        let (killed, _, killed_id) = start_sleeper(&scene, &writer, &descriptor, last);
        let (stopped, stopped_peer, _) = start_sleeper(&scene, &writer, &descriptor, last);
        let mut killed = Some(killed);
        let rings = |peer: &Peer| peer.rings.load(Ordering::Relaxed);
        let mut rings_before = 0;
        let mut dice = Dice::new();
        while writer.sequence() < last {
            let sequence = write(&mut writer);
            if sequence == last / 3 {
                killed.take().expect("once").kill_and_reap();
            } else if sequence == last / 2 {
                assert!(writer.roster().leave(killed_id));
                // In the middle of a wait, if the writer holds still for long enough.
                wait_asleep(stopped.id(), stopped.id());
                stopped.stop();
                rings_before = rings(&stopped_peer);
            } else if sequence.is_multiple_of(4096) {
                alive();
                dice.dally(20_000);
            }
        }
        // At most one ring for the sleep in which it was stopped, not one for each update.
        let rings_since = rings(&stopped_peer) - rings_before;
        assert!(rings_since <= 1, "{rings_since} rings for one sleep");
        stopped.go_on();
        let seen: Vec<u64> = pollers.iter().map(|poller| poller.hear()).collect();
        let woken: Vec<u64> = sleepers.iter().map(|(child, ..)| child.hear()).collect();
        assert!(stopped.hear::<u64>() > 0);
        println!("{max_len} bytes, {last} updates: {seen:?} seen, {woken:?} wake-ups");
        pollers.into_iter().for_each(memlane_tests::Child::finish);
        sleepers.into_iter().for_each(|(child, ..)| child.finish());
        stopped.finish();
    }
}

/// Writes as many updates as it gets, in turn.
fn echo(role: &Role) {
    let (max_len, rounds): (usize, u64) = role.hear();
    let mut reader = open(role.hear(), max_len);
    let mut buffer = vec![0; 2 * max_len];
    let (mut writer, descriptor) = make(max_len);
    let (mut sleep, offer) = Sleep::new();
    role.tell(&descriptor);
    role.tell(&offer);
    drop((descriptor, offer));
    let peer = Peer::accept(role.hear());
    writer.roster().join(peer).expect("a place");
    role.tell(&());
    for round in 1..=rounds {
        sleep.until_changed(&reader);
        assert_eq!(read(&mut reader, &mut buffer), Some(round));
        write(&mut writer);
        if round.is_multiple_of(1024) {
            alive();
        }
    }
    role.hear::<()>();
}

/// Each change is waited for by the other side, which then makes the next: one lost wake-up, and both sleep.
#[test]
fn no_wake_up_is_lost() {
    const ROUNDS: u64 = 200_000;
    let max_len = 64;
    let scene = Scene::new();
    let (mut writer, descriptor) = make(max_len);
    let child = scene.spawn("echo", &(max_len, ROUNDS));
    child.tell(&descriptor);
    let mut reader = open(child.hear(), max_len);
    let peer = Peer::accept(child.hear());
    writer.roster().join(peer.clone()).expect("a place");
    let (mut sleep, offer) = Sleep::new();
    child.tell(&offer);
    drop(offer);
    child.hear::<()>();
    let mut buffer = vec![0; 2 * max_len];
    let mut dice = Dice::new();
    for round in 1..=ROUNDS {
        write(&mut writer);
        if round.is_multiple_of(8) {
            // To meet the other side at every point on its way to sleep.
            dice.dally(400);
        }
        sleep.until_changed(&reader);
        assert_eq!(read(&mut reader, &mut buffer), Some(round));
        if round.is_multiple_of(1024) {
            alive();
        }
    }
    println!(
        "{ROUNDS} rounds, {} rings",
        peer.rings.load(Ordering::Relaxed)
    );
    child.tell(&());
    child.finish();
}

/// Writes nonsense all over the cell, some of it close to sense, until it is told to stop.
fn scribbler(role: &Role) {
    let max_len: usize = role.hear();
    let ring = ring_len(max_len).expect("a length");
    let (mut memory, descriptor) = Shared::create("latest", 1, ring).expect("a region");
    role.tell(&Fd::from(descriptor));
    let mut dice = Dice::new();
    let words = ring as u64 / 8;
    let mut sequence = 1_u64;
    while role.has_said::<()>().is_none() {
        for _ in 0..10_000 {
            // Half of it where words and lengths are.
            let slot = dice.below(4) * (max_len as u64 + 16).next_multiple_of(128);
            let (at, sense) = match dice.below(4) {
                0 => {
                    sequence += dice.below(3);
                    (slot, sequence << 1 | u64::from(dice.below(4) == 0))
                }
                1 => (slot + 8, dice.below(max_len as u64 + 2)),
                _ => (dice.below(words) * 8, dice.below(1 << 20)),
            };
            let value = match dice.below(20_000) {
                0 => dice.below(u64::MAX),
                1 => u64::MAX - dice.below(4),
                _ => sense,
            };
            memory.store(at, value);
            if dice.below(4) == 0 {
                fence(Ordering::SeqCst);
            }
        }
        alive();
    }
}

/// Readers of such a cell get values of possible lengths or errors, for as long as they care to look.
#[test]
fn a_hostile_writer_is_survived() {
    for max_len in [8, 64, 100_000] {
        let scene = Scene::new();
        let child = scene.spawn("scribbler", &max_len);
        let cell: Fd = child.hear();
        let mut value = vec![0; max_len];
        let (mut values, mut unstable, mut corrupt, mut other) = (0, 0, 0, 0);
        // Numbers run away soon: new readers begin at 0. On a busy machine it takes a while until both sides run at once.
        let rounds = if max_len > 1000 { 300 } else { 3000 };
        for round in 0.. {
            if round >= rounds && values > 0 && unstable + corrupt > 0 {
                break;
            }
            let mut reader = open(duplicate(&cell), max_len);
            for _ in 0..20 {
                let before = reader.sequence();
                reader.changed();
                match reader.read(&mut value) {
                    Ok(found) => {
                        let (sequence, len) = found.map_or((0, 0), |u| (u.sequence, u.len));
                        assert!(sequence >= before && len <= max_len);
                        values += 1;
                    }
                    Err(ReadError::Unstable { .. }) => unstable += 1,
                    Err(ReadError::Corrupt { len, max }) => {
                        assert!(len > max as u64 && max == max_len);
                        corrupt += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
                match reader.read_value::<[u8; 8]>() {
                    Ok(_) => values += 1,
                    Err(_) => other += 1,
                }
            }
            alive();
        }
        println!(
            "{max_len} bytes: {values} values, {unstable} unstable, {corrupt} corrupt, {other} other"
        );
        child.tell(&());
        child.finish();
    }
}

/// A wait that is over before it began, and one that nothing ends.
#[test]
fn time_passes_for_those_who_wait() {
    let _scene = Scene::new();
    let (mut writer, descriptor) = make(64);
    let mut reader = open(descriptor, 64);
    let (mut sleep, offer) = Sleep::new();
    let joined = writer.roster().join(Peer::accept(offer)).expect("a place");
    write(&mut writer);
    sleep.until_changed(&reader);
    assert_eq!(read(&mut reader, &mut [0; 128]), Some(1));
    let soon = Some(Instant::now() + Duration::from_millis(2));
    sleep.armed.arm(sleep.page.word(ARMED));
    let woken = sleep
        .waiter
        .wait(&mut sleep.doorbell, soon)
        .expect("a wait");
    assert_eq!(woken, Woken::TimedOut);
    assert!(writer.roster().leave(joined.id));
    write(&mut writer);
    assert_eq!(joined.reader.rings.load(Ordering::Relaxed), 0);
}

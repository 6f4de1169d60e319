//! A pool with readers in other processes: one that is killed while it holds chunks, and one that writes whatever it
//! likes into its page.
#![cfg(not(memlane_loom))]

mod support;

use std::{
    env,
    fs::File,
    io::{BufRead, BufReader, Read},
    os::fd::{AsRawFd, OwnedFd},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use memlane_region::{
    Remote, Shared, page_size,
    pool::{Change, Geometry, Holds, Pool, PoolError, PoolOptions, PoolReader},
    ring::{Joined, Record, RingReader, RingWriter},
};
use rustix::process::{Signal, set_parent_process_death_signal};
use support::{
    Numbers, held, payload,
    pool::{Mine, SLOTS, Theirs, USED},
};

const NAME: &str = "pool-processes";
const ROLE: &str = "MEMLANE_TEST_ROLE";
const LEN: usize = 5000;
const CHUNK: usize = 8192;
const CAPACITY: usize = 4096;

/// One test at a time: they count descriptors and mappings of the same name.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A descriptor of another process of this user.
fn descriptor(process: u32, number: i32) -> OwnedFd {
    let path = format!("/proc/{process}/fd/{number}");
    File::open(path)
        .expect("a descriptor of another process")
        .into()
}

/// Another process that reads the ring, and its page.
struct Other {
    process: Child,
    output: BufReader<ChildStdout>,
    page: i32,
}

impl Other {
    /// It hears of the ring, and of every segment that the pool has now.
    fn start(role: &str, ring: &OwnedFd, pool: &Pool) -> Other {
        let mut orders = format!("{role} {} {}", std::process::id(), ring.as_raw_fd());
        for segment in pool.segments() {
            let Geometry { chunks, chunk_size } = segment.geometry;
            let number = segment.descriptor.as_raw_fd();
            orders += &format!(" {} {number} {chunks} {chunk_size}", segment.id);
        }
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["other_process", "--exact", "--nocapture"])
            .env(ROLE, orders)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let page = heard(&mut output, "page ").parse().unwrap();
        Other {
            process,
            output,
            page,
        }
    }

    fn join(&self, ring: &RingWriter<Shared, Theirs>) -> Joined<Theirs> {
        let page = descriptor(self.process.id(), self.page);
        ring.roster()
            .join(Arc::new(Theirs::open(page, false)))
            .unwrap()
    }

    /// Waits for a line.
    fn hears(&mut self, what: &str) {
        heard(&mut self.output, what);
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// The rest of the next line that says this.
fn heard(output: &mut impl BufRead, what: &str) -> String {
    loop {
        let mut line = String::new();
        assert!(
            output.read_line(&mut line).unwrap() > 0,
            "expected {what:?}, got the end"
        );
        if let Some(at) = line.find(what) {
            return line[at + what.len()..].trim().to_owned();
        }
    }
}

/// Not a test: what other processes do.
#[test]
fn other_process() {
    let Ok(orders) = env::var(ROLE) else { return };
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let mut orders = orders.split(' ');
    let role = orders.next().unwrap().to_owned();
    let mut numbers = orders.map(|number| number.parse::<u64>().unwrap());
    let mut next = || numbers.next();
    let owner = next().unwrap() as u32;
    let ring = descriptor(owner, next().unwrap() as i32);
    let ring = Remote::open(ring, page_size(), CAPACITY, 1 << 20).unwrap();
    let mut chunks = PoolReader::new(1 << 30);
    while let Some(id) = next() {
        let segment = descriptor(owner, next().unwrap() as i32);
        let geometry = Geometry {
            chunks: next().unwrap() as u32,
            chunk_size: next().unwrap(),
        };
        chunks.insert(id as u32, segment, geometry).unwrap();
    }
    // A new page, whose descriptor stays open until the end.
    let (page, kept) = Mine::create(NAME);
    println!("page {}", kept.as_raw_fd());
    match &*role {
        "holder" => hold(ring, page, &chunks),
        "hostile" => scribble(&page, &chunks),
        role => panic!("{role}?"),
    }
    // Until it is killed, or whoever started it is gone.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Holds three of the first six messages beyond their records, releases three, and keeps the seventh's record.
fn hold(ring: Remote, page: Mine, chunks: &PoolReader) {
    let holds = Arc::new(Holds::new(page.clone()));
    let mut reader = RingReader::new(ring, page, 0);
    let mut held = Vec::new();
    while held.len() < 7 {
        let Some(Record::Chunk(found)) = reader.poll_record().unwrap() else {
            std::thread::yield_now();
            continue;
        };
        let chunk = chunks.resolve(found).unwrap();
        let mut copy = vec![0; chunk.len()];
        chunk.read(0, &mut copy);
        assert!(copy == payload(found.sequence, LEN));
        held.push((found.sequence % 2 == 0).then(|| chunk.hold(&holds).unwrap()));
        if held.len() < 7 {
            reader.release();
        }
    }
    println!("holding");
    std::mem::forget(held);
}

/// Writes into its own page whatever might do harm, and releases what it released before, over and over.
fn scribble(page: &Mine, chunks: &PoolReader) {
    assert!(!chunks.is_empty());
    println!("scribbling");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
            done.store(true, Ordering::Relaxed);
        });
        let mut numbers = Numbers(7);
        while !done.load(Ordering::Relaxed) {
            let slot = numbers.below(64) as usize;
            let value = match numbers.below(8) {
                0 => u64::MAX - numbers.below(3),
                1 => numbers.next(),
                2..4 => 0,
                _ => numbers.below(5000),
            };
            page.0
                .word(SLOTS + 8 * slot)
                .store(value, Ordering::Relaxed);
            match numbers.below(16) {
                0 => page.lie(numbers.next()),
                1 => page.lie(u64::MAX),
                2..6 => page.lie(32 * numbers.below(5000)),
                6 => page.0.word(USED).store(numbers.next(), Ordering::Relaxed),
                7..10 => page.0.word(USED).store(64, Ordering::Relaxed),
                _ => {}
            }
        }
    });
}

/// The owner's side, and an honest reader in the same process.
struct Lane {
    descriptor: OwnedFd,
    ring: RingWriter<Shared, Theirs>,
    pool: Pool,
    sent: u64,
}

impl Lane {
    fn new(chunks: usize) -> Lane {
        let (memory, descriptor) = Shared::create(NAME, 1, CAPACITY).unwrap();
        let mut ring = RingWriter::new(memory);
        let options = PoolOptions::new(chunks * CHUNK + (256 << 10)).max_loan(CHUNK);
        let mut pool = Pool::new(options.memory(NAME)).unwrap();
        // All segments there will ever be, so that nobody has to be told of others.
        let mut loans = Vec::new();
        while let Ok(loan) = pool.loan(LEN, &mut ring) {
            loans.push(loan);
        }
        assert!(loans.len() >= chunks);
        Lane {
            descriptor,
            ring,
            pool,
            sent: 0,
        }
    }

    /// Sends a message, if there is a chunk.
    fn send(&mut self) -> Result<(), PoolError> {
        let mut loan = self.pool.loan(LEN, &mut self.ring)?;
        loan.copy_from_slice(&payload(self.sent + 1, LEN));
        if self.pool.send(loan, &mut self.ring).is_ok() {
            self.sent += 1;
        }
        Ok(())
    }

    fn segments(&self) -> PoolReader {
        let mut chunks = PoolReader::new(1 << 30);
        for segment in self.pool.segments() {
            let descriptor = segment.descriptor.try_clone().unwrap();
            chunks
                .insert(segment.id, descriptor, segment.geometry)
                .unwrap();
        }
        chunks
    }

    fn free(&mut self) -> usize {
        let mut loans = Vec::new();
        while let Ok(loan) = self.pool.loan(LEN, &mut self.ring) {
            loans.push(loan);
        }
        loans.len()
    }
}

#[test]
fn a_reader_is_killed_while_it_holds() {
    let _alone = alone();
    let mut lane = Lane::new(16);
    let all = lane.free();
    let mut other = Other::start("holder", &lane.descriptor, &lane.pool);
    let joined = other.join(&lane.ring);
    assert_eq!(joined.start, 0);
    (0..8).for_each(|_| lane.send().unwrap());
    other.hears("holding");
    // Three in slots; two whose records are not released.
    assert_eq!(lane.pool.held_by(joined.start, &*joined.reader).chunks, 5);
    assert_eq!(lane.free(), all - 5);
    drop(other);
    // The kernel has told the owner, who takes the reader out of the roster.
    assert_eq!(lane.free(), all - 5);
    lane.ring.roster().leave(joined.id);
    assert_eq!(lane.free(), all);
    drop((lane, joined));
    assert_eq!(held(NAME), (0, 0));
}

/// Another process does its worst; an honest reader reads and holds what was sent, all the same.
#[test]
fn a_hostile_reader_harms_nobody_else() {
    let _alone = alone();
    let mut lane = Lane::new(48);
    let all = lane.free();
    let (mine, page) = Mine::create(NAME);
    let honest = lane
        .ring
        .roster()
        .join(Arc::new(Theirs::open(page, false)))
        .unwrap();
    let memory = Remote::open(
        lane.descriptor.try_clone().unwrap(),
        page_size(),
        CAPACITY,
        1 << 20,
    )
    .unwrap();
    let holds = Arc::new(Holds::new(mine.clone()));
    let mut reader = RingReader::new(memory, mine, honest.start);
    let chunks = lane.segments();
    assert!(
        lane.pool
            .take_changes()
            .iter()
            .all(|change| matches!(change, Change::Added(_)))
    );

    let mut other = Other::start("hostile", &lane.descriptor, &lane.pool);
    other.hears("scribbling");
    let mut hostile = other.join(&lane.ring);
    let mut numbers = Numbers(1);
    let mut held_ones = Vec::new();
    let (mut received, mut exhausted, mut evicted) = (0, 0, 0);
    while lane.sent < 5000 {
        if lane.send().is_err() {
            exhausted += 1;
            let theirs = lane.pool.held_by(hostile.start, &*hostile.reader);
            assert!(theirs.chunks <= all);
        }
        // Whoever is taken out of the roster for its cursor, or holds up the ring, comes again.
        if numbers.below(50) == 0 || lane.ring.roster().len() == 1 {
            lane.ring.roster().leave(hostile.id);
            hostile = other.join(&lane.ring);
            evicted += 1;
        }
        if numbers.below(3) == 0 {
            continue;
        }
        while let Some(found) = reader.poll_record().unwrap() {
            let Record::Chunk(found) = found else {
                panic!("{found:?}")
            };
            received += 1;
            assert_eq!(found.sequence, received);
            let chunk = chunks.resolve(found).unwrap();
            if numbers.below(4) == 0 && held_ones.len() < 16 {
                held_ones.push((found.sequence, chunk.hold(&holds).unwrap()));
            }
            let mut copy = vec![0; LEN];
            chunk.read(0, &mut copy);
            assert!(copy == payload(found.sequence, LEN), "message {received}");
            reader.release();
        }
        if !held_ones.is_empty() && numbers.below(2) == 0 {
            let (sequence, hold) =
                held_ones.swap_remove(numbers.below(held_ones.len() as u64) as usize);
            let mut copy = vec![0; LEN];
            hold.chunk().read(0, &mut copy);
            assert!(copy == payload(sequence, LEN), "held message {sequence}");
        }
    }
    assert!(evicted > 0);
    println!("{exhausted} times exhausted, {evicted} times evicted");
    drop(other);
    lane.ring.roster().leave(hostile.id);
    held_ones.clear();
    while reader.poll_record().unwrap().is_some() {
        reader.release();
    }
    assert_eq!(lane.free(), all);
    drop((lane, reader, chunks, honest, hostile, holds, held_ones));
    assert_eq!(held(NAME), (0, 0));
}

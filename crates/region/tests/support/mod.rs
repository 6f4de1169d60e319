//! Ends of a ring for tests: over the heap, and over real regions as two processes would have them.
#![allow(dead_code)] // no test uses all of it

pub(crate) mod pool;
pub(crate) mod process;

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use memlane_region::{
    HeapWords, Remote, Shared, Words, WordsMut, page_size,
    ring::{CursorPage, LAP_WORDS, LEFT, Reader, RingReader, RingWriter},
};

/// What [`Reader::corrupt`] was told.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    calls: AtomicU64,
    found: AtomicU64,
}

impl Verdict {
    fn record(&self, found: u64) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.found.store(found, Ordering::Relaxed);
    }

    /// How often it was called, and the cursor it was told last.
    pub(crate) fn get(&self) -> (u64, u64) {
        (
            self.calls.load(Ordering::Relaxed),
            self.found.load(Ordering::Relaxed),
        )
    }
}

/// A control page on the heap, as its owner and as the writer have it.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeapPage {
    pub(crate) cursor: Arc<AtomicU64>,
    pub(crate) wanted: Arc<AtomicU64>,
    /// How often the writer was woken.
    pub(crate) wakes: Arc<AtomicU64>,
    pub(crate) verdict: Arc<Verdict>,
}

impl<M> CursorPage<M> for HeapPage {
    fn export(&mut self, cursor: u64) {
        self.cursor.store(cursor, Ordering::Release);
    }

    fn writer_sleeps(&self) -> bool {
        true
    }

    fn wanted(&self, _: &M) -> u64 {
        self.wanted.load(Ordering::Relaxed)
    }

    fn wake(&mut self) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
    }
}

impl Reader for HeapPage {
    fn cursor(&self) -> u64 {
        self.cursor.load(Ordering::Relaxed)
    }

    fn corrupt(&self, found: u64) {
        self.verdict.record(found);
    }
}

/// Byte of the writer's header where it says that it waits for room.
const WANTED: usize = 0;
/// Byte of the writer's header from which on it tells lossy readers how far it is.
pub(crate) const LAPS: usize = 64;
/// Byte of a control page where its cursor is.
const CURSOR: usize = 64;

/// A control page of its own region.
#[derive(Debug)]
pub(crate) struct ControlPage {
    page: Shared,
    wakes: Arc<AtomicU64>,
}

impl ControlPage {
    /// The word that the writer believes, for tests that lie to it.
    pub(crate) fn cursor_word(&self) -> &AtomicU64 {
        self.page.word(CURSOR)
    }
}

impl CursorPage<Remote> for ControlPage {
    fn export(&mut self, cursor: u64) {
        self.page.word(CURSOR).store(cursor, Ordering::Release);
    }

    fn writer_sleeps(&self) -> bool {
        true
    }

    fn wanted(&self, writer: &Remote) -> u64 {
        writer.load_word(WANTED)
    }

    fn wake(&mut self) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
    }
}

/// A reader as the writer has it: the control page, received.
#[derive(Debug)]
pub(crate) struct Peer {
    page: Remote,
    wakes: Arc<AtomicU64>,
    pub(crate) verdict: Verdict,
}

impl Reader for Peer {
    fn cursor(&self) -> u64 {
        self.page.load_word(CURSOR)
    }

    fn corrupt(&self, found: u64) {
        self.verdict.record(found);
    }
}

/// A reader of either kind, as the writer has it.
#[derive(Debug)]
pub(crate) enum Known<P> {
    Lossless(Arc<P>),
    Lossy,
}

impl<P: Reader> Reader for Known<P> {
    fn cursor(&self) -> u64 {
        match self {
            Known::Lossless(peer) => peer.cursor(),
            Known::Lossy => LEFT,
        }
    }

    fn corrupt(&self, found: u64) {
        match self {
            Known::Lossless(peer) => peer.corrupt(found),
            Known::Lossy => panic!("a lossy reader has no cursor, but was dropped for {found}"),
        }
    }
}

/// Where a ring lies in a test.
pub(crate) trait Place {
    type Mine: WordsMut;
    type Theirs: Words;
    type Page: CursorPage<Self::Theirs>;
    type Peer: Reader;

    /// The memory for the one writer.
    fn writer(&mut self) -> Self::Mine;

    /// What one more reader has (the ring and its page), and what the writer gets from it.
    fn reader(&self) -> (Self::Theirs, Self::Page, Arc<Self::Peer>);

    /// Writes the payload of the record being written.
    fn fill(writer: &mut RingWriter<Self::Mine, Self::Peer>, payload: &[u8], in_place: bool);

    /// Says what the writer waits for; 0 if it no longer does.
    fn want(&self, writer: &RingWriter<Self::Mine, Self::Peer>, wanted: u64);

    /// How often this reader woke the writer.
    fn wakes(peer: &Self::Peer) -> u64;
}

/// A reader in such a place.
pub(crate) type ReaderOf<P> = RingReader<<P as Place>::Theirs, <P as Place>::Page>;

/// On the heap.
#[derive(Debug)]
pub(crate) struct Heap {
    words: HeapWords,
    wanted: Arc<AtomicU64>,
}

impl Heap {
    pub(crate) fn new(capacity: usize) -> Heap {
        Heap {
            words: HeapWords::with_header(LAPS + LAP_WORDS, capacity),
            wanted: Arc::default(),
        }
    }
}

impl Place for Heap {
    type Mine = HeapWords;
    type Theirs = HeapWords;
    type Page = HeapPage;
    type Peer = HeapPage;

    fn writer(&mut self) -> HeapWords {
        self.words.map()
    }

    fn reader(&self) -> (HeapWords, HeapPage, Arc<HeapPage>) {
        let page = HeapPage {
            wanted: self.wanted.clone(),
            ..HeapPage::default()
        };
        (self.words.map(), page.clone(), Arc::new(page))
    }

    fn fill(writer: &mut RingWriter<HeapWords, HeapPage>, payload: &[u8], _: bool) {
        // In two parts, the second at a word.
        let (first, second) = payload.split_at((payload.len() / 2) & !7);
        writer.write(0, first);
        writer.write(first.len(), second);
    }

    fn want(&self, _: &RingWriter<HeapWords, HeapPage>, wanted: u64) {
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    fn wakes(peer: &HeapPage) -> u64 {
        peer.wakes.load(Ordering::Relaxed)
    }
}

/// In regions: the writer's, and one per reader, each mapped by both sides.
#[derive(Debug)]
pub(crate) struct Regions {
    name: &'static str,
    capacity: usize,
    mine: Option<Shared>,
    descriptor: OwnedFd,
}

impl Regions {
    pub(crate) fn new(name: &'static str, capacity: usize) -> Regions {
        let (mine, descriptor) = Shared::create(name, 1, capacity).unwrap();
        Regions {
            name,
            capacity,
            mine: Some(mine),
            descriptor,
        }
    }

    /// The writer's region, as one more receiver of its descriptor maps it.
    pub(crate) fn open(&self) -> Remote {
        let descriptor = self.descriptor.as_fd().try_clone_to_owned().unwrap();
        Remote::open(descriptor, page_size(), self.capacity, 1 << 30).unwrap()
    }
}

impl Place for Regions {
    type Mine = Shared;
    type Theirs = Remote;
    type Page = ControlPage;
    type Peer = Peer;

    fn writer(&mut self) -> Shared {
        self.mine.take().expect("a ring has one writer")
    }

    fn reader(&self) -> (Remote, ControlPage, Arc<Peer>) {
        let (page, descriptor) = Shared::create(self.name, 1, 0).unwrap();
        let wakes = Arc::new(AtomicU64::new(0));
        let peer = Peer {
            wakes: wakes.clone(),
            page: Remote::open(descriptor, page_size(), 0, 1 << 20).unwrap(),
            verdict: Verdict::default(),
        };
        (self.open(), ControlPage { page, wakes }, Arc::new(peer))
    }

    fn fill(writer: &mut RingWriter<Shared, Peer>, payload: &[u8], in_place: bool) {
        if in_place {
            writer.payload_mut(payload.len()).copy_from_slice(payload);
        } else {
            let (first, second) = payload.split_at((payload.len() / 2) & !7);
            writer.write(0, first);
            writer.write(first.len(), second);
        }
    }

    fn want(&self, writer: &RingWriter<Shared, Peer>, wanted: u64) {
        want(writer, wanted);
    }

    fn wakes(peer: &Peer) -> u64 {
        peer.wakes.load(Ordering::Relaxed)
    }
}

/// Says in the writer's region what it waits for; 0 if it no longer does.
pub(crate) fn want(writer: &RingWriter<Shared, Peer>, wanted: u64) {
    let word = writer.memory().word(WANTED);
    word.store(wanted, Ordering::Relaxed);
}

/// Descriptors and mappings this process has of regions called `name`.
pub(crate) fn held(name: &str) -> (usize, usize) {
    let name = format!("/memfd:{name} ");
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    let descriptors = descriptors
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with(&name));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mappings = maps.lines().filter(|line| line.contains(&name));
    (descriptors.count(), mappings.count())
}

/// Numbers that look random and are the same every time (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The payload of the record with this sequence number: neighbours, and records a lap apart, differ.
pub(crate) fn payload(sequence: u64, len: usize) -> Vec<u8> {
    let mut numbers = Numbers(sequence);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&numbers.next().to_ne_bytes());
    }
    bytes.truncate(len);
    bytes
}

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    io::ErrorKind,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use memlane::{Address, Publisher, PublisherBuilder, Watched};

use crate::{Census, Policy, alive, shortage::allow_enough, watchdog::Watchdog};

/// One test at a time: all count the descriptors of one process.
static STAGE: Mutex<()> = Mutex::new(());
static SCENES: AtomicU32 = AtomicU32::new(0);

/// A test with its own runtime directory. To be declared first, so that it is dropped last: then everything must
/// be as it was.
#[derive(Debug)]
pub struct Scene {
    before: Census,
    directory: PathBuf,
    in_dev_shm: BTreeSet<OsString>,
    _watchdog: Watchdog,
    _stage: MutexGuard<'static, ()>,
}

impl Scene {
    /// Waits for its turn and begins.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Scene {
        Scene::after(|| {})
    }

    /// Waits for its turn, makes what is there for good, and begins.
    pub fn after(prepare: impl FnOnce()) -> Scene {
        let stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
        prepare();
        allow_enough();
        alive();
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        let directory = new_directory();
        // As the first to use the directory would.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(directory.join("memlane"))
            .expect("a runtime directory");
        Scene {
            before: Census::take(),
            directory,
            in_dev_shm: in_dev_shm(),
            _watchdog: Watchdog::start(name),
            _stage: stage,
        }
    }

    /// `$XDG_RUNTIME_DIR` of its processes; this one has its own.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where a service of that name is in this scene.
    pub fn address(&self, service: &str) -> Address {
        Address::path(self.directory.join("memlane").join(service)).expect("an address")
    }

    /// The names of services that are there.
    pub fn services(&self) -> Vec<String> {
        listing(&self.directory.join("memlane"))
            .into_iter()
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.before.settle();
            let names: Vec<_> = listing(&self.directory).into_iter().collect();
            assert_eq!(names, ["memlane"], "left in the runtime directory");
            assert_eq!(self.services(), [""; 0], "left in the runtime directory");
            let new: Vec<_> = in_dev_shm().difference(&self.in_dev_shm).cloned().collect();
            assert!(new.is_empty(), "left in /dev/shm: {new:?}");
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A process that was killed may have left one, and there are others of its number: earlier ones, and those in other namespaces.
fn new_directory() -> PathBuf {
    loop {
        let number = SCENES.fetch_add(1, Ordering::Relaxed);
        let name = format!("memlane-test-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => return directory,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => panic!("a runtime directory, {}: {error}", directory.display()),
        }
    }
}

fn listing(directory: &Path) -> BTreeSet<OsString> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .collect()
}

/// Other programs have things in there, and may at any time.
fn in_dev_shm() -> BTreeSet<OsString> {
    let mut names = listing(Path::new("/dev/shm"));
    names.retain(|name| name.to_string_lossy().contains("memlane"));
    names
}

/// A publisher without an address, with the ring that tests like: one that is full soon.
pub fn unbound(ring_bytes: usize) -> PublisherBuilder {
    Publisher::builder().ring_bytes(ring_bytes)
}

/// A publisher with the descriptors that one makes when it first sleeps.
///
/// # Panics
///
/// If they cannot be made.
pub fn ready_to_sleep(publisher: Publisher, policy: Policy) -> Publisher {
    match policy {
        Policy::Poll => publisher,
        _ => Watched::new(publisher).expect("descriptors").into_inner(),
    }
}

/// Chance, with a seed that a failed test shows.
#[derive(Debug)]
pub struct Dice {
    state: u64,
}

impl Dice {
    /// Seeded by the clock, or by `MEMLANE_SEED`.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Dice {
        let seed = match std::env::var("MEMLANE_SEED") {
            Ok(seed) => seed.parse().expect("MEMLANE_SEED is a number"),
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(1, |time| time.as_nanos() as u64),
        };
        println!("MEMLANE_SEED={seed}");
        Dice { state: seed | 1 }
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 16) % end
    }

    /// One of these.
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize].clone()
    }

    /// Spins for up to so many turns: to be somewhere else each time.
    pub fn dally(&mut self, turns: u64) {
        for _ in 0..self.below(turns) {
            std::hint::spin_loop();
        }
    }
}

/// So many rounds of a game: more, by `MEMLANE_PING_PONGS`, for a long run. (A wake-up that is lost one time in a million is
/// lost.)
///
/// # Panics
///
/// If that is no number.
pub fn rounds(otherwise: u64) -> u64 {
    match std::env::var("MEMLANE_PING_PONGS") {
        Ok(rounds) => rounds
            .parse()
            .expect("MEMLANE_PING_PONGS is a number of ping-pongs"),
        Err(_) => otherwise,
    }
}

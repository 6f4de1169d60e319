use std::{
    fmt,
    fs::{self, ReadDir},
    io::{BufRead, BufReader},
    time::Instant,
};

use memlane::Publisher;
use rustix::{
    io::Errno,
    process::{WaitId, WaitIdOptions, waitid},
};

use crate::{PATIENCE, alive};

/// What this process holds: descriptors, mapped regions, children.
#[derive(Clone, PartialEq, Eq)]
pub struct Census {
    descriptors: Vec<String>,
    regions: Vec<String>,
    children: bool,
}

impl Census {
    /// Counts.
    pub fn take() -> Census {
        let mut descriptors: Vec<String> = fs::read_dir("/proc/self/fd")
            .map(targets)
            .unwrap_or_default();
        descriptors.sort();
        let maps = fs::File::open("/proc/self/maps").expect("/proc");
        let mut regions: Vec<String> = BufReader::new(maps)
            .lines()
            .map_while(Result::ok)
            .filter_map(|line| Some(line[line.find("memfd:")?..].to_owned()))
            .collect();
        regions.sort();
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let children = !matches!(waitid(WaitId::All, options), Err(Errno::CHILD));
        Census {
            descriptors,
            regions,
            children,
        }
    }

    /// Counts when the control side of a publisher has nothing in its hands: a subscriber may have its welcome before
    /// the publisher has closed what came with the greeting.
    pub fn beside(publisher: &Publisher) -> Census {
        // Asks the control side, which answers when it is done.
        publisher
            .wait_for_subscribers(0)
            .expect("there are never fewer");
        Census::take()
    }

    /// How many descriptors there are.
    pub fn descriptors(&self) -> usize {
        self.descriptors.len()
    }

    /// How many mappings of memfds there are; a ring takes two.
    pub fn regions(&self) -> usize {
        self.regions.len()
    }

    /// Waits until this process holds again what it held then: the control thread lets go of a subscriber, and a
    /// thread of its own of a refused descriptor, a little later than the test learns of it.
    #[track_caller]
    pub fn settle(&self) {
        alive();
        let start = Instant::now();
        loop {
            let now = Census::take();
            if now == *self {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "something was left behind\n  before: {self:?}\n  now: {now:?}"
            );
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// What the descriptors are, without the numbers that tell one socket from the other. The descriptor of the
/// listing itself is in every listing. What a thread that starts for another test has open for a moment is in none (glibc asks a file
/// of /sys for the number of processors).
fn targets(listing: ReadDir) -> Vec<String> {
    listing
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|target| !target.starts_with("/sys"))
        .map(|target| {
            let target = target.to_string_lossy().into_owned();
            match target.split_once(":[") {
                Some((kind @ ("socket" | "pipe"), _)) => kind.to_owned(),
                _ => target,
            }
        })
        .collect()
}

impl fmt::Debug for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} descriptors {:?}, {} mappings {:?}, children: {}",
            self.descriptors.len(),
            self.descriptors,
            self.regions.len(),
            self.regions,
            self.children
        )
    }
}

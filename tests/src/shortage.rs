//! Processes that are short of descriptors, and tests that take many.

use std::{fs, os::fd::OwnedFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As few descriptors are left to this process as are given, while this lives.
#[derive(Debug)]
pub struct Shortage {
    before: Rlimit,
    _fillers: Vec<OwnedFd>,
}

impl Shortage {
    /// None is left.
    #[expect(clippy::new_without_default, reason = "it changes the process")]
    pub fn new() -> Shortage {
        Shortage::but(0)
    }

    /// So many are left.
    pub fn but(spare: u64) -> Shortage {
        let descriptors = fs::read_dir("/proc/self/fd").expect("/proc").flatten();
        let numbers = descriptors.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let highest: u64 = numbers.max().expect("descriptors");
        let before = getrlimit(Resource::Nofile);
        let limit = |current| {
            let current = Some(current);
            setrlimit(Resource::Nofile, Rlimit { current, ..before }).expect("a lower limit");
        };
        limit(highest + 1);
        let mut fillers = Vec::new();
        // Numbers below the limit are all that count.
        while let Ok(filler) = rustix::io::dup(std::io::stdin()) {
            fillers.push(filler);
        }
        limit(highest + 1 + spare);
        Shortage {
            before,
            _fillers: fillers,
        }
    }

    /// One more is left.
    pub fn relent(&mut self) {
        let current = getrlimit(Resource::Nofile).current;
        let current = current.map(|limit| limit + 1);
        let before = self.before;
        setrlimit(Resource::Nofile, Rlimit { current, ..before }).expect("a lower limit");
    }
}

impl Drop for Shortage {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.before).expect("the limit of before");
    }
}

/// What the tests with the most publishers and attachments take.
const ENOUGH: u64 = 1024;

/// Allows this process what tests take, where somebody has set a lower limit that may be raised.
pub(crate) fn allow_enough() {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(ENOUGH).min(ENOUGH);
    if limit.current.is_some_and(|current| current < most) {
        let current = Some(most);
        setrlimit(Resource::Nofile, Rlimit { current, ..limit }).expect("a higher limit");
    }
}

//! What the tests of this crate share.
#![allow(dead_code, unreachable_pub)]

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Tests count the descriptors of their process: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs a test that must leave as many descriptors as it found.
pub fn alone(test: impl FnOnce()) {
    let _guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = descriptors();
    test();
    assert_eq!(descriptors(), before, "descriptors leaked");
}

/// How many are open, but for what a thread that starts for another test has open for a moment (glibc asks a file of /sys for the
/// number of processors).
pub fn descriptors() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    targets.filter(|target| !target.starts_with("/sys")).count()
}

/// A moment from now.
pub fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(1))
}

/// What does not come within this time does not come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the kernel says that a thread of this process sleeps.
pub fn wait_asleep(thread: i32) {
    let start = Instant::now();
    loop {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
        // The name before the state is in parentheses, and may contain anything.
        if stat.rsplit(") ").next().unwrap().starts_with('S') {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "thread {thread} does not sleep");
        std::thread::yield_now();
    }
}

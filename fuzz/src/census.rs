//! What a run may leave open, and allocate.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Bytes that one allocation may have. Inputs are a few KiB, bodies made of them at most 64; serde reserves up to 1 MiB
/// for a sequence before its elements come, which a hash table rounds up.
const LARGEST: usize = 4 << 20;

/// The system's allocator, which aborts when asked for more than an input can justify.
///
/// So that a length that is believed is found also where the allocation would succeed.
#[derive(Debug)]
pub struct Frugal;

// SAFETY: all is done by the system's allocator, with the arguments as they came.
unsafe impl GlobalAlloc for Frugal {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

fn check(size: usize) {
    // A panic's backtrace reads the executable.
    if size > LARGEST && !std::thread::panicking() {
        eprintln!("an allocation of {size} bytes");
        std::process::abort();
    }
}

/// Room for all the descriptors that a run can have: they must not run out, which is another test's subject.
pub fn raise_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let most = maximum.map_or(1 << 16, |most| most.min(1 << 16));
    let limit = Rlimit {
        current: Some(most),
        maximum,
    };
    setrlimit(Resource::Nofile, limit).expect("the soft limit of descriptors can be raised");
}

/// Open descriptors.
pub fn count() -> usize {
    fs::read_dir("/proc/self/fd").expect("/proc").count()
}

/// Panics if other than `before` descriptors stay open. Refused ones may be closed on another thread a little later.
pub fn settled(before: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while count() != before {
        assert!(
            Instant::now() < deadline,
            "{before} descriptors before, and now: {:?}",
            open()
        );
        std::thread::sleep(Duration::from_micros(20));
    }
}

fn open() -> BTreeMap<String, String> {
    fs::read_dir("/proc/self/fd")
        .expect("/proc")
        .flatten()
        .map(|entry| {
            let what = fs::read_link(entry.path()).unwrap_or_default();
            (
                entry.file_name().display().to_string(),
                what.display().to_string(),
            )
        })
        .collect()
}

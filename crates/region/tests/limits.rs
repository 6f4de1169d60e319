//! Shortage is an error when a region is made: never a signal then, and never one at use.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use alone::{alone, within};
use memlane_region::{Error, Frozen, Limit, LiveView, Options, Region, Shared};
use rustix::{
    process::{Resource, Rlimit, setrlimit},
    thread::{CapabilitySet, capabilities, set_capabilities},
};

#[path = "support/alone.rs"]
mod alone;

const MIB: usize = 1 << 20;

fn limit(resource: Resource, value: usize) {
    let current = Some(value as u64);
    let maximum = rustix::process::getrlimit(resource).maximum;
    setrlimit(resource, Rlimit { current, maximum }).unwrap();
}

/// A field of /proc/self/status, in bytes.
fn status(field: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        * 1024
}

#[track_caller]
fn over(error: &Error, expected: Limit) -> u64 {
    match error {
        Error::Limit { limit, left, .. } if *limit == expected => *left,
        _ => panic!("expected {expected}, got {error}"),
    }
}

#[test]
fn file_size() {
    alone("file_size", || {
        // The signal would end this process.
        limit(Resource::Fsize, MIB);
        let error = Region::create("long", MIB + 1).unwrap_err();
        assert_eq!(over(&error, Limit::FileSize), MIB as u64);
        assert_eq!(
            error.to_string(),
            "a region of 1048577 bytes is over RLIMIT_FSIZE: 1048576 bytes are left"
        );
        over(
            &Shared::create("ring", 1, MIB).unwrap_err(),
            Limit::FileSize,
        );
        Region::create("fits", MIB).unwrap().fill(1);
    });
}

#[test]
fn address_space() {
    alone("address_space", || {
        limit(Resource::As, status("VmSize:") + 16 * MIB);
        let error = Region::create("long", 32 * MIB).unwrap_err();
        let left = over(&error, Limit::AddressSpace) as usize;
        assert!((8 * MIB..=16 * MIB).contains(&left), "{left}");
        // A ring takes twice its length.
        let error = Shared::create("ring", 1, 8 * MIB).unwrap_err();
        over(&error, Limit::AddressSpace);
        // No room to align it, which it does not need.
        let region = Region::create("fits", left - MIB).unwrap();
        // Frozen, it is mapped a second time.
        let rejected = region.freeze().unwrap_err();
        over(&rejected.error, Limit::AddressSpace);
        let mut region = rejected.region;
        region.fill(1);
        drop(region);
        Region::create("half", left / 2 - MIB)
            .unwrap()
            .freeze()
            .unwrap();
    });
}

#[test]
fn descriptors() {
    alone("descriptors", || {
        let open = fs::read_dir("/proc/self/fd").unwrap().count();
        limit(Resource::Nofile, open + 8);
        let mut regions = Vec::new();
        let error = loop {
            match Region::create("many", 1) {
                Ok(region) => regions.push(region),
                Err(error) => break error,
            }
        };
        assert!(regions.len() < 16);
        assert!(error.to_string().contains("Too many open files"), "{error}");
    });
}

#[test]
fn locked_memory() {
    alone("locked_memory", || {
        // Who has it is not limited.
        let mut sets = capabilities(None).unwrap();
        sets.effective -= CapabilitySet::IPC_LOCK;
        set_capabilities(None, sets).unwrap();
        let maximum = rustix::process::getrlimit(Resource::Memlock).maximum;
        if maximum.is_some_and(|maximum| maximum < 3 * MIB as u64) {
            return eprintln!("skipped: this process may lock {maximum:?} bytes at most");
        }
        limit(Resource::Memlock, 3 * MIB);
        let options = Options::new("locked").lock(true);

        let region = Region::create(&options, 2 * MIB).unwrap();
        assert_eq!(status("VmLck:"), 2 * MIB);
        let error = Region::create(&options, 2 * MIB).unwrap_err();
        assert_eq!(over(&error, Limit::LockedMemory), MIB as u64);
        let error = Shared::create(&options, 1, 2 * MIB).unwrap_err();
        over(&error, Limit::LockedMemory);

        // Through all its states, though two mappings would be over the limit.
        let frozen = region.freeze().unwrap();
        assert_eq!(status("VmLck:"), 2 * MIB);
        drop(frozen);
        let live = Region::create(&options, 2 * MIB).unwrap();
        let live = live.share_freezable().unwrap();
        let frozen = live.freeze().unwrap();
        assert_eq!(status("VmLck:"), 2 * MIB);
        // A receiver does as it likes.
        let fd = std::os::fd::AsFd::as_fd(&frozen)
            .try_clone_to_owned()
            .unwrap();
        let _other = Frozen::open(fd, 2 * MIB).unwrap();
        assert_eq!(status("VmLck:"), 2 * MIB);
        drop(frozen);
        // One image of the ring is enough.
        let _ring = Shared::create(&options, 1, MIB).unwrap();
        assert_eq!(status("VmLck:"), MIB + memlane_region::page_size());

        limit(Resource::Memlock, 0);
        over(
            &Region::create(&options, 1).unwrap_err(),
            Limit::LockedMemory,
        );
    });
}

#[test]
fn a_machine() {
    // More than any has. (fallocate alone would go on until the OOM killer comes.)
    let error = Region::create("all", 1 << 45).unwrap_err();
    assert!(over(&error, Limit::Memory) < 1 << 45);
    over(
        &Shared::create("all", 1, 1 << 45).unwrap_err(),
        Limit::Memory,
    );
}

/// A memory cgroup for a test, gone afterwards.
struct Cgroup(PathBuf);

impl Cgroup {
    /// Below this process's own cgroup or beside it, wherever memory is under control.
    fn new(name: &str, bytes: usize) -> Option<Cgroup> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = |controller: &str| {
            own.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                rest.strip_prefix(controller)?
                    .strip_prefix(":/")
                    .map(str::to_owned)
            })
        };
        let root = Path::new("/sys/fs/cgroup");
        let v1 =
            path("memory").map(|path| (root.join("memory").join(path), "memory.limit_in_bytes"));
        let v2 = path("").map(|path| (root.join(path), "memory.max"));
        let name = format!("memlane-{name}-{}", std::process::id());
        v1.into_iter().chain(v2).find_map(|(own, file)| {
            own.ancestors().take(2).find_map(|parent| {
                let cgroup = Cgroup(parent.join(&name));
                fs::create_dir(&cgroup.0).ok()?;
                fs::write(cgroup.0.join(file), bytes.to_string()).ok()?;
                // A file that does not limit anything is one on a tmpfs.
                fs::exists(cgroup.0.join("memory.stat"))
                    .ok()?
                    .then_some(cgroup)
            })
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Runs `body` alone in a memory cgroup of 64 MiB, in which nobody swaps.
fn in_cgroup(name: &str, body: impl FnOnce()) {
    if std::env::var("MEMLANE_TEST_CGROUP").is_ok() {
        return within(name, &[], body);
    }
    let unswapped = rustix::system::sysinfo().totalswap == 0;
    let cgroup = Cgroup::new(name, 64 * MIB)
        .filter(|cgroup| unswapped || fs::write(cgroup.0.join("memory.swap.max"), "0").is_ok());
    let Some(cgroup) = cgroup else {
        return eprintln!("skipped: no memory cgroup of one's own can be made here");
    };
    let join = format!(
        "echo $$ > {}/cgroup.procs && export MEMLANE_TEST_CGROUP=1 && exec \"$@\"",
        cgroup.0.display()
    );
    within(name, &["sh", "-c", &join, "sh"], body);
}

#[test]
fn cgroup() {
    in_cgroup("cgroup", || {
        // In one piece, and in pieces of less than a look, in the end.
        for len in [64 * MIB, 1 << 30] {
            let error = Region::create("large", len).unwrap_err();
            let left = over(&error, Limit::Cgroup);
            assert!(left < 64 << 20, "{left}");
        }
        over(
            &Shared::create("ring", 1, 64 * MIB).unwrap_err(),
            Limit::Cgroup,
        );
        let ready = Options::new("ready").prefault(true);
        let mut regions = Vec::new();
        let error = loop {
            match Region::create(&ready, 22 * MIB) {
                Ok(region) => regions.push(region),
                Err(error) => break error,
            }
        };
        over(&error, Limit::Cgroup);
        assert_eq!(regions.len(), 2);
        // What is there can be used, in every state.
        let frozen = regions.pop().unwrap().freeze().unwrap();
        let mut live = regions.pop().unwrap().share().unwrap();
        live.fill(1);
        assert!(frozen.iter().all(|&byte| byte == 0));
        let fd = std::os::fd::AsFd::as_fd(&live)
            .try_clone_to_owned()
            .unwrap();
        let view = LiveView::open(fd, 1 << 30).unwrap();
        let mut last = [0];
        view.read(22 * MIB - 1, &mut last);
        assert_eq!(last, [1]);
        drop((frozen, live, view));
        Region::create(&ready, 40 * MIB).unwrap();
    });
}

#[test]
fn huge_pages_in_a_cgroup() {
    in_cgroup("huge_pages_in_a_cgroup", || {
        use memlane_region::HugePages::Transparent;
        let huge = Options::new("huge").huge_pages(Transparent);
        over(&Region::create(&huge, 64 * MIB).unwrap_err(), Limit::Cgroup);
        Region::create(&huge, 48 * MIB).unwrap().fill(1);
    });
}

#[test]
fn what_can_be_reclaimed_is_left() {
    let directory = std::env::temp_dir();
    let statfs = rustix::fs::statfs(&directory).unwrap();
    if statfs.f_type as u64 == 0x0102_1994 {
        return eprintln!("skipped: {} is in memory itself", directory.display());
    }
    in_cgroup("what_can_be_reclaimed_is_left", || {
        let path = directory.join(format!("memlane-cache-{}", std::process::id()));
        let mut file = fs::File::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let mebibyte = vec![1; MIB];
        for _ in 0..48 {
            file.write_all(&mebibyte).unwrap();
        }
        file.sync_all().unwrap();
        Region::create("instead", 40 * MIB).unwrap().fill(1);
    });
}

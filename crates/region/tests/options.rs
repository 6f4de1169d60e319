//! What [`Options`] promise, as the kernel tells it.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
};

use memlane_region::{
    Error, Frozen, HugePages, LiveView, Options, PageKind, Quota, Region, Remote, Shared, Words,
    WordsMut, page_size,
};
use rustix::{
    fs::{FallocateFlags, MemfdFlags},
    mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap},
};

#[path = "support/alone.rs"]
mod alone;

const HUGE: usize = 2 << 20;
const QUOTA: usize = 1 << 30;

fn sent(region: &impl AsFd) -> OwnedFd {
    region.as_fd().try_clone_to_owned().unwrap()
}

/// The flags of the mappings of memfds named `name`, from /proc/self/smaps.
fn flags(name: &str) -> Vec<String> {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut inside, mut found) = (false, Vec::new());
    for line in smaps.lines() {
        if line.contains('/') {
            inside = line.contains(&format!("/memfd:{name} "));
        } else if line.starts_with(char::is_lowercase)
            || line.starts_with(|c: char| c.is_ascii_digit())
        {
            inside = false;
        }
        if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| inside) {
            found.push(flags.to_owned() + " ");
        }
    }
    found
}

#[test]
fn core_dumps() {
    for (name, dump) in [("dumped", true), ("kept-out", false)] {
        let options = Options::new(name).dump(dump);
        let region = Region::create(&options, 5000).unwrap();
        let (_ring, _) = Shared::create(&options, 1, 8192).unwrap();
        let expect = |mappings| {
            let flags = flags(name);
            assert_eq!(flags.len(), mappings, "{flags:?}");
            assert!(
                flags.iter().all(|flags| flags.contains(" dd ") != dump),
                "{flags:?}"
            );
        };
        // Of the ring, two images.
        expect(3);
        let frozen = region.freeze().unwrap();
        expect(3);
        drop(frozen);
        let live = Region::create(&options, 5000).unwrap();
        let _frozen = live.share_freezable().unwrap().freeze().unwrap();
        expect(3);
    }
}

/// What a child of fork(2) comes to that reads `address`: its exit status.
fn read_in_child(address: *const u8) -> i32 {
    // SAFETY: the child does nothing but read a byte, and exits or is killed; no lock, no allocation.
    unsafe {
        match libc::fork() {
            -1 => panic!("fork: {}", std::io::Error::last_os_error()),
            0 => {
                let none = libc::rlimit {
                    rlim_cur: 0,
                    rlim_max: 0,
                };
                libc::setrlimit(libc::RLIMIT_CORE, &none);
                libc::_exit(i32::from(address.read_volatile()))
            }
            child => {
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &mut status, 0), child);
                status
            }
        }
    }
}

#[test]
fn children_inherit_frozen_regions_alone() {
    // A child inherits what other threads are about to map, too.
    alone::alone("children_inherit_frozen_regions_alone", forks);
}

fn forks() {
    let killed = |address| {
        let status = read_in_child(address);
        assert_eq!(status & 0x7f, libc::SIGSEGV, "{status:#x}");
    };
    let mut region = Region::create("inherited", HUGE).unwrap();
    region[0] = 42;
    killed(region.as_ptr());
    let frozen = region.freeze().unwrap();
    let received = Frozen::open(sent(&frozen), QUOTA).unwrap();
    assert_eq!(read_in_child(frozen.as_ptr()) >> 8, 42);
    assert_eq!(read_in_child(received.as_ptr()) >> 8, 42);

    let live = Region::create("live", 1).unwrap().share().unwrap();
    killed(live.as_ptr());
    let view = LiveView::open(sent(&live), QUOTA).unwrap();
    // SAFETY: nobody writes; here for the address.
    killed(unsafe { view.bytes() }.as_ptr());
    let (ring, fd) = Shared::create("ring", 1, 8192).unwrap();
    killed(ring.bytes(0, 0, 1).as_ptr());
    killed(ring.bytes(4096, 4095, 2)[1..].as_ptr());
    let remote = Remote::open(fd, page_size(), 8192, QUOTA).unwrap();
    // SAFETY: nobody writes; here for the address.
    killed(unsafe { remote.bytes(0, 0, 1) }.as_ptr());
}

/// Where a region was in the parent, a child may have something else by the time it drops what it did not inherit.
#[test]
fn children_unmap_nothing_of_theirs() {
    alone::alone("children_unmap_nothing_of_theirs", || {
        let region = Region::create("dropped", 4096).unwrap();
        let at = region.as_ptr().cast_mut();
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: there is one thread that matters; the child touches only what it maps itself, where nothing is.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: as above; if it is unmapped, the child is killed by the store.
            unsafe {
                mmap_anonymous(at.cast(), 4096, prot, flags | MapFlags::FIXED).unwrap();
                drop(region);
                at.write_volatile(7);
                libc::_exit(0);
            }
        }
        let mut status = 0;
        // SAFETY: the status is written to a place of its type.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0, "{status:#x}");
    });
}

#[test]
fn locked() {
    let locked = |name: &str| {
        let flags = flags(name);
        flags.iter().filter(|flags| flags.contains(" lo ")).count()
    };
    let options = Options::new("locked").lock(true);
    let region = Region::create(&options, 5000).unwrap();
    assert_eq!(locked("locked"), 1);
    let frozen = region.freeze().unwrap();
    assert_eq!(locked("locked"), 1);
    drop(frozen);
    // With a descriptor of it in the wrong place, it stays what it was.
    let moved = Region::create(&options, 5000).unwrap().into_moved();
    assert_eq!(locked("locked"), 0);
    drop(moved);
}

/// Whether this kernel makes transparent huge pages of shared memory on demand (MADV_COLLAPSE).
fn collapses() -> bool {
    const COLLAPSE: i32 = 25;
    let size = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
    if !size.is_ok_and(|size| size.trim() == HUGE.to_string()) {
        return false;
    }
    let fd = rustix::fs::memfd_create("probe", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, HUGE as u64).unwrap();
    rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, HUGE as u64).unwrap();
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: a fresh range, in which an aligned huge page has room; nothing else uses it.
    unsafe {
        let (nothing, private) = (ProtFlags::empty(), MapFlags::PRIVATE);
        let base = mmap_anonymous(std::ptr::null_mut(), 2 * HUGE, nothing, private).unwrap();
        let at = (base as usize).next_multiple_of(HUGE) as *mut _;
        mmap(at, HUGE, prot, flags | MapFlags::FIXED, &fd, 0).unwrap();
        let done = libc::madvise(at, HUGE, COLLAPSE) == 0;
        munmap(base, 2 * HUGE).unwrap();
        done
    }
}

/// A region in transparent huge pages, unless this kernel makes none.
fn transparent(len: usize) -> Option<Region> {
    if !collapses() {
        eprintln!("skipped: this kernel makes no huge pages of shared memory on demand");
        return None;
    }
    let options = Options::new("huge").huge_pages(HugePages::Transparent);
    let region = Region::create(options, len).unwrap();
    let huge = len / HUGE * HUGE;
    assert_eq!(region.page_kind().unwrap(), PageKind::Transparent { huge });
    Some(region)
}

#[test]
fn transparent_huge_pages_in_every_state() {
    let len = 3 * HUGE + 5000;
    let Some(mut region) = transparent(len) else {
        return;
    };
    let expected = PageKind::Transparent { huge: 3 * HUGE };
    assert_eq!(region.page_kind().unwrap(), expected);
    assert_eq!(region.len(), len);
    assert!(region.iter().all(|&byte| byte == 0));
    region.fill(7);
    let mut live = region.share_freezable().unwrap();
    assert_eq!(live.page_kind().unwrap(), expected);
    live[len - 1] = 8;
    let view = LiveView::open(sent(&live), QUOTA).unwrap();
    view.read(0, &mut vec![0; len]);
    assert_eq!(view.page_kind().unwrap(), expected);
    let frozen = live.freeze().unwrap();
    assert_eq!(
        frozen.iter().map(|&byte| u64::from(byte)).sum::<u64>(),
        7 * len as u64 + 1
    );
    assert_eq!(frozen.page_kind().unwrap(), expected);
    let received = view.frozen().unwrap();
    assert_eq!(&received[..], &frozen[..]);
    assert_eq!(received.page_kind().unwrap(), expected);
}

#[test]
fn a_ring_in_transparent_huge_pages() {
    if !collapses() {
        return eprintln!("skipped: this kernel makes no huge pages of shared memory on demand");
    }
    let ring = 4 * HUGE;
    for asked in [HugePages::Transparent, HugePages::Hugetlb] {
        let options = Options::new("ring").huge_pages(asked).prefault(true);
        let (mut mine, fd) = Shared::create(options, 1, ring).unwrap();
        // What the first page, of control words, leaves of the second image does not fill four.
        assert_eq!(
            mine.page_kind().unwrap(),
            PageKind::Transparent { huge: 4 * HUGE }
        );
        let theirs = Remote::open(fd, page_size(), ring, QUOTA).unwrap();
        let end = ring as u64 - 8;
        mine.write(end, 0, &[1; 64]);
        let mut seen = [0; 64];
        theirs.read(end, 0, &mut seen);
        assert_eq!(seen, [1; 64]);
        theirs.read(0, 0, &mut vec![0; ring]);
        assert_eq!(
            theirs.page_kind().unwrap(),
            PageKind::Transparent { huge: 4 * HUGE }
        );
    }
}

#[test]
fn short_regions_have_small_pages() {
    for huge in [HugePages::Never, HugePages::Transparent] {
        let options = Options::new("short").huge_pages(huge);
        let mut region = Region::create(options, HUGE / 2).unwrap();
        region.fill(1);
        assert_eq!(region.page_kind().unwrap(), PageKind::Small);
    }
}

#[test]
fn truncated_huge_pages() {
    let Some(mut region) = transparent(4 * HUGE) else {
        return;
    };
    region.fill(3);
    region.truncate(HUGE + 1).unwrap();
    assert_eq!(
        region.page_kind().unwrap(),
        PageKind::Transparent { huge: HUGE }
    );
    let frozen = region.freeze().unwrap();
    assert_eq!(frozen.len(), HUGE + 1);
    assert!(frozen.iter().all(|&byte| byte == 3));
}

/// Lets the kernel make hugetlb pages as they are asked for, as long as this exists; other tests wait.
struct Pool {
    before: String,
    _lock: OwnedFd,
}

impl Pool {
    const SETTING: &'static str = "/proc/sys/vm/nr_overcommit_hugepages";

    /// Keeps it as it is.
    fn lock() -> Option<OwnedFd> {
        let lock = fs::File::open(Pool::SETTING).ok()?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        Some(lock.into())
    }

    /// With room for `pages` of the default size, which are there.
    fn of(pages: usize) -> Option<Pool> {
        let lock = Pool::lock()?;
        let before = fs::read_to_string(Pool::SETTING).ok()?;
        let allowed = before.trim().parse::<usize>().unwrap() + pages;
        if let Err(error) = fs::write(Pool::SETTING, allowed.to_string()) {
            eprintln!("skipped: cannot set {}: {error}", Pool::SETTING);
            return None;
        }
        let pool = Pool {
            before,
            _lock: lock,
        };
        let probe = rustix::fs::memfd_create("probe", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB);
        let probe = probe.and_then(|probe| {
            let len = pages as u64 * rustix::fs::fstatfs(&probe)?.f_bsize as u64;
            rustix::fs::ftruncate(&probe, len)?;
            rustix::fs::fallocate(&probe, FallocateFlags::empty(), 0, len)
        });
        if let Err(error) = probe {
            eprintln!("skipped: the kernel has no {pages} hugetlb pages: {error}");
            return None;
        }
        Some(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        fs::write(Pool::SETTING, &self.before).unwrap();
    }
}

#[test]
fn hugetlb_in_every_state() {
    let Some(_pool) = Pool::of(8) else {
        return;
    };
    let options = Options::new("hugetlb").huge_pages(HugePages::Hugetlb);
    let mut region = Region::create(&options, 1).unwrap();
    let PageKind::Hugetlb { page } = region.page_kind().unwrap() else {
        panic!("{region:?}");
    };
    assert_eq!(region.len(), page);
    region.fill(1);
    drop(region);

    let mut region = Region::create(options.clone().prefault(true).lock(true), page + 1).unwrap();
    assert_eq!(region.len(), 2 * page);
    region.fill(2);
    let received = |fd: OwnedFd| {
        // Only for those who want it.
        let refused = Frozen::open(fd, QUOTA).unwrap_err();
        assert!(
            matches!(refused.error, Error::FileSystem { .. }),
            "{refused}"
        );
        Frozen::open(refused.descriptor, Quota::new(QUOTA).hugetlb(true)).unwrap()
    };
    region.truncate(1).unwrap();
    assert_eq!(region.len(), page);
    let frozen = region.freeze().unwrap();
    assert_eq!(frozen.page_kind().unwrap(), PageKind::Hugetlb { page });
    let theirs = received(sent(&frozen));
    assert_eq!((theirs.len(), theirs[page - 1]), (page, 2));
    drop((frozen, theirs));

    let mut live = Region::create(&options, page)
        .unwrap()
        .share_freezable()
        .unwrap();
    let view = LiveView::open(sent(&live), Quota::new(QUOTA).hugetlb(true)).unwrap();
    live[page - 1] = 9;
    let mut seen = [0];
    view.read(page - 1, &mut seen);
    assert_eq!(seen, [9]);
    assert_eq!(view.page_kind().unwrap(), PageKind::Hugetlb { page });
    live.freeze().unwrap();
    assert_eq!(view.frozen().unwrap()[page - 1], 9);

    let copy = Frozen::copy_of(&options, b"copied").unwrap();
    assert_eq!((&copy[..6], copy.len()), (&b"copied"[..], page));
    drop(copy);
    let moved = Region::create(&options, page).unwrap().into_moved();
    let claimed = moved.claim(Quota::new(page).hugetlb(true)).unwrap();
    assert_eq!(claimed.len(), page);
}

#[test]
fn without_hugetlb_pages() {
    let fallback = match collapses() {
        true => PageKind::Transparent { huge: 2 * HUGE },
        false => PageKind::Small,
    };
    let check = |asked, len| {
        let options = Options::new("fallback").huge_pages(asked);
        let mut region = Region::create(options, len).unwrap();
        region.fill(1);
        assert_eq!(region.len(), len);
        assert_eq!(region.page_kind().unwrap(), fallback);
    };
    // A size that no machine has, and two that are none.
    for size in [1 << 13, 3 << 20, 0] {
        check(HugePages::HugetlbOf(size), 2 * HUGE + 1);
    }
    // None in the pool.
    let _lock = Pool::lock();
    let none = |setting| fs::read_to_string(setting).is_ok_and(|pages| pages.trim() == "0");
    if none(Pool::SETTING) && none("/proc/sys/vm/nr_hugepages") {
        check(HugePages::Hugetlb, 2 * HUGE + 1);
    }
}

//! Regions from state to state, and back where they could not go on.

use std::os::fd::{AsFd, OwnedFd};

use memlane_region::{Ended, Error, Frozen, LiveView, Moved, Options, Quota, Region};
use rustix::{
    fs::{Mode, OFlags, SealFlags},
    mm::{MapFlags, ProtFlags},
};

const QUOTA: usize = 1 << 20;

fn sent(region: &impl AsFd) -> OwnedFd {
    region.as_fd().try_clone_to_owned().unwrap()
}

/// A shared mapping of a page, read-only, through whatever descriptor; unmapped on drop.
struct Lingering(*mut std::ffi::c_void);

impl Lingering {
    fn of(fd: &OwnedFd) -> Lingering {
        // SAFETY: a fresh range, which nothing touches.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                4096,
                ProtFlags::READ,
                MapFlags::SHARED,
                fd,
                0,
            )
        };
        Lingering(base.unwrap())
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        // SAFETY: mapped by `of`, unmapped once.
        unsafe { rustix::mm::munmap(self.0, 4096).unwrap() };
    }
}

#[test]
fn new_regions_are_zero_and_writable() {
    for len in [1, 7, 4096, 4097, 1 << 20] {
        let mut region = Region::create(Options::new("zero").prefault(len > 4096), len).unwrap();
        assert_eq!(region.len(), len);
        assert!(region.iter().all(|&byte| byte == 0));
        region.fill(0xa5);
        let frozen = region.freeze().unwrap();
        assert_eq!(frozen.len(), len);
        assert!(frozen.iter().all(|&byte| byte == 0xa5));
    }
}

#[test]
fn lengths_that_no_region_has() {
    for len in [0, (1 << 46) + 1, usize::MAX] {
        let error = Region::create("never", len).unwrap_err();
        assert!(matches!(error, Error::Length { .. }), "{error}");
    }
    let mut region = Region::create("short", 10).unwrap();
    assert!(matches!(region.truncate(0), Err(Error::Length { .. })));
    region.truncate(20).unwrap();
    assert_eq!(region.len(), 10);
}

#[test]
fn names() {
    let longest = "n".repeat(249);
    Region::create(longest.clone(), 1).unwrap();
    for name in [longest + "n", "a\0b".to_owned()] {
        let error = Region::create(name.clone(), 1).unwrap_err();
        assert!(
            matches!(&error, Error::Name { name: found } if *found == name),
            "{error}"
        );
    }
}

#[test]
fn truncated_memory_goes_back() {
    let mut region = Region::create("long", 1 << 20).unwrap();
    region[..3].copy_from_slice(b"abc");
    region.truncate(3).unwrap();
    let frozen = region.freeze().unwrap();
    let stat = rustix::fs::fstat(&frozen).unwrap();
    assert_eq!((stat.st_size, stat.st_blocks), (3, 8));
    assert_eq!(&frozen[..], b"abc");
}

#[test]
fn frozen_regions_travel_and_outlive_their_maker() {
    let mine = Frozen::copy_of("frozen", b"for ever").unwrap();
    let clone = mine.clone();
    let theirs = Frozen::open(sent(&mine), QUOTA).unwrap();
    let again = Frozen::open(sent(&theirs), QUOTA).unwrap();
    drop((mine, theirs));
    assert_eq!(&clone[..], b"for ever");
    assert_eq!(&again[..], b"for ever");
}

#[test]
fn a_region_that_somebody_has_opened_is_given_back() {
    let mut region = Region::create("busy", 4096).unwrap();
    region[0] = 1;
    // By way of /proc, as another process of the same user could.
    let moved = region.into_moved();
    let stolen = sent(&moved);
    // SAFETY: what keeps it busy below never writes.
    let mut region = unsafe { moved.own(QUOTA) }.unwrap();
    let lingering = Lingering::of(&stolen);
    let rejected = region.freeze().unwrap_err();
    assert!(
        matches!(rejected.error, Error::Busy { len: 4096 }),
        "{rejected}"
    );
    region = rejected.region;
    region[1] = 2;
    drop(lingering);
    let frozen = region.freeze().unwrap();
    assert_eq!(&frozen[..3], &[1, 2, 0]);
}

#[test]
fn claims() {
    let claim = |moved: Moved| moved.claim(QUOTA);
    assert_eq!(
        &claim(Region::copy_of("moved", b"mine now").unwrap().into_moved()).unwrap()[..],
        b"mine now"
    );

    // The former owner kept a mapping: refused, and taken once it is gone.
    let moved = Region::copy_of("kept", &[3; 4096]).unwrap().into_moved();
    let kept = Lingering::of(&sent(&moved));
    let refused = claim(moved).unwrap_err();
    assert!(matches!(refused.error, Error::Busy { .. }), "{refused}");
    drop(kept);
    let frozen = claim(Moved::from(refused.descriptor)).unwrap();
    assert_eq!(frozen[0], 3);
    // What is frozen can be claimed again.
    claim(Moved::from(sent(&frozen))).unwrap();

    // Live for ever, or through a descriptor that is read-only.
    let live = Region::create("live", 4096).unwrap().share().unwrap();
    let refused = claim(Moved::from(sent(&live))).unwrap_err();
    assert!(
        matches!(refused.error, Error::Unsealable { .. }),
        "{refused}"
    );
    let live = Region::create("live", 4096)
        .unwrap()
        .share_freezable()
        .unwrap();
    let refused = claim(Moved::from(sent(&live))).unwrap_err();
    assert!(
        matches!(refused.error, Error::Unsealable { .. }),
        "{refused}"
    );

    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let refused = claim(Moved::from(reader)).unwrap_err();
    assert!(matches!(refused.error, Error::NotSharedMemory), "{refused}");
    let refused = Region::create("large", QUOTA + 1)
        .unwrap()
        .into_moved()
        .claim(QUOTA);
    assert!(matches!(refused.unwrap_err().error, Error::Quota { .. }));
}

#[test]
fn only_unsealed_regions_are_owned() {
    let frozen = Frozen::copy_of("frozen", b"x").unwrap();
    // SAFETY: it is refused.
    let refused = unsafe { Moved::from(sent(&frozen)).own(QUOTA) }.unwrap_err();
    assert!(
        matches!(refused.error, Error::Seals { required: 0, .. }),
        "{refused}"
    );
}

#[test]
fn live_regions_are_seen_and_not_frozen() {
    let mut live = Region::create("live", 8192).unwrap().share().unwrap();
    let view = LiveView::open(sent(&live), QUOTA).unwrap();
    let mut seen = [0; 5];
    for word in [b"first", b"later"] {
        live[4094..4099].copy_from_slice(word);
        view.read(4094, &mut seen);
        assert_eq!(&seen, word);
    }
    let rejected = view.frozen().unwrap_err();
    assert!(matches!(rejected.error, Error::Seals { .. }), "{rejected}");
    let rejected = live.freeze().unwrap_err();
    assert!(
        matches!(rejected.error, Error::Unsealable { .. }),
        "{rejected}"
    );
    let Ended::Live(mut live) = rejected.region else {
        panic!("{rejected:?}")
    };
    live[0] = 1;
    let refused = Frozen::open(sent(&live), QUOTA).unwrap_err();
    assert!(matches!(refused.error, Error::Seals { .. }), "{refused}");
}

#[test]
fn live_then_frozen() {
    let mut live = Region::create("live", 4096)
        .unwrap()
        .share_freezable()
        .unwrap();
    let view = LiveView::open(sent(&live), QUOTA).unwrap();
    live[0] = 9;
    let mine = live.freeze().unwrap();
    let theirs = view.frozen().unwrap();
    assert_eq!((mine[0], theirs[0]), (9, 9));
}

#[test]
fn a_reader_with_a_page_in_a_pipe_vetoes() {
    let mut live = Region::create("live", 4096)
        .unwrap()
        .share_freezable()
        .unwrap();
    live[0] = 9;
    // Not for children that other tests start.
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let view = sent(&live);
    let flags = rustix::pipe::SpliceFlags::empty();
    rustix::pipe::splice(&view, None, &write, None, 4096, flags).unwrap();
    let rejected = live.freeze().unwrap_err();
    assert!(matches!(rejected.error, Error::Busy { .. }), "{rejected}");
    let Ended::Unmapped(moved) = rejected.region else {
        panic!("{rejected:?}")
    };
    drop((read, write));
    assert_eq!(moved.claim(QUOTA).unwrap()[0], 9);
}

#[test]
fn a_reader_who_opens_it_anew_cannot_write() {
    let live = Region::create("live", 4096)
        .unwrap()
        .share_freezable()
        .unwrap();
    let path = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&live.as_fd())
    );
    let anew = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    assert!(rustix::io::pwrite(&anew, &[1], 0).is_err());
    assert!(rustix::fs::ftruncate(&anew, 0).is_err());
}

#[test]
#[should_panic(expected = "4 bytes from 4093 on are not in a region of 4096 bytes")]
fn reads_behind_the_end() {
    let live = Region::create("live", 4096).unwrap().share().unwrap();
    let view = LiveView::open(sent(&live), Quota::new(QUOTA)).unwrap();
    view.read(4093, &mut [0; 4]);
}

#[test]
fn a_frozen_region_needs_all_three_seals() {
    let seals = [SealFlags::WRITE, SealFlags::SHRINK, SealFlags::GROW];
    for subset in 0..7 {
        let moved = Region::copy_of("some", b"x").unwrap().into_moved();
        let fd = OwnedFd::from(moved);
        let chosen = (0..3).filter(|bit| subset & 1 << bit != 0);
        let chosen = chosen.fold(SealFlags::empty(), |all, bit| all | seals[bit]);
        rustix::fs::fcntl_add_seals(&fd, chosen).unwrap();
        let refused = Frozen::open(fd, QUOTA).unwrap_err();
        assert!(
            matches!(refused.error, Error::Seals { found, .. } if SealFlags::from_bits_retain(found) - SealFlags::EXEC == chosen),
            "{refused}"
        );
    }
}

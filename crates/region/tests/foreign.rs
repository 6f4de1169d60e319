//! Memory of other programs: what is taken, what is refused, and what copies in and out do on each kind.

mod support;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use memlane_region::{Error, Foreign, Frozen, Region, page_size};
use rustix::{
    fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags, ftruncate},
    io::{Errno, pwrite},
};

const LEN: usize = 3 * 4096;
const QUOTA: usize = 1 << 20;
const SEALS: [SealFlags; 5] = [
    SealFlags::SHRINK,
    SealFlags::GROW,
    SealFlags::WRITE,
    SealFlags::FUTURE_WRITE,
    SealFlags::SEAL,
];

fn memfd(len: usize, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("foreign", flags).unwrap();
    ftruncate(&fd, len as u64).unwrap();
    pwrite(&fd, b"theirs", 5).unwrap();
    rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
    fd
}

fn reopened(fd: &OwnedFd, how: OFlags) -> OwnedFd {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(path, how | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn read(foreign: &Foreign, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xaa; len];
    foreign.read_at(offset, &mut bytes).unwrap();
    bytes
}

fn errno(error: &Error) -> Option<i32> {
    match error {
        Error::Os { source, .. } => source.raw_os_error(),
        _ => None,
    }
}

#[test]
fn every_subset_of_the_seals() {
    for subset in 0..1 << SEALS.len() {
        let chosen: SealFlags = (0..SEALS.len())
            .filter(|bit| subset & 1 << bit != 0)
            .map(|bit| SEALS[bit])
            .collect();
        let foreign = Foreign::open(memfd(LEN, chosen), 0, LEN, QUOTA).unwrap();
        assert_eq!(read(&foreign, 5, 6), b"theirs", "{chosen:?}");
        // vm.memfd_noexec may have added EXEC.
        assert_eq!(foreign.seals().unwrap() & 0x1f, chosen.bits());
        let frozen = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        assert_eq!(foreign.is_frozen().unwrap(), chosen.contains(frozen));
        let written = foreign.write_at(4095, b"ours");
        if chosen.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
            let error = written.unwrap_err();
            assert_eq!(
                errno(&error),
                Some(Errno::PERM.raw_os_error()),
                "{chosen:?}: {error}"
            );
            assert_eq!(read(&foreign, 4095, 4), [0; 4]);
        } else {
            written.unwrap();
            assert_eq!(read(&foreign, 4094, 6), b"\0ours\0", "{chosen:?}");
        }
    }
}

#[test]
fn pipewire_buffers() {
    // One memfd, sealed so, with several buffers behind one another, of which each is announced by offset and length.
    let fd = memfd(LEN, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL);
    let page = page_size();
    for (offset, len) in [
        (0, 5000),
        (5000, 100),
        (page, page),
        (LEN - 1, 1),
        (4090, 4095),
    ] {
        let copy = fd.try_clone().unwrap();
        let buffer = Foreign::open(copy, offset as u64, len, QUOTA).unwrap();
        assert_eq!(buffer.len(), len);
        let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + offset) as u8).collect();
        buffer.write_at(0, &bytes).unwrap();
        assert_eq!(read(&buffer, 0, len), bytes);
        let mut there = vec![0; len];
        assert_eq!(rustix::io::pread(&fd, &mut there, offset as u64), Ok(len));
        assert_eq!(there, bytes);
        // The neighbours are out of reach.
        for (offset, len) in [
            (0, len + 1),
            (len, 1),
            (usize::MAX, 2),
            (1, usize::MAX >> 1),
        ] {
            let mut bytes = vec![0; len.min(LEN + 1)];
            for result in [
                buffer.read_at(offset, &mut bytes),
                buffer.write_at(offset, &bytes),
            ] {
                let outside = |available| available == buffer.len() as u64;
                assert!(
                    matches!(result, Err(Error::Outside { available, .. }) if outside(available)),
                    "{offset} {len}: {result:?}"
                );
            }
        }
        buffer.read_at(len, &mut []).unwrap();
        buffer.write_at(len, &[]).unwrap();
    }
}

#[test]
fn lies_about_the_length() {
    for (size, offset, len) in [
        (0, 0, 128 * 4096),
        (LEN, 0, LEN + 1),
        (LEN, 1, LEN),
        (LEN, LEN as u64, 1),
        (LEN, u64::MAX, 1),
        (LEN, u64::MAX - 1, 2),
        (LEN, i64::MAX as u64, 1),
    ] {
        let fd = memfd(0, SealFlags::empty());
        ftruncate(&fd, size as u64).unwrap();
        let refused = Foreign::open(fd, offset, len, QUOTA).unwrap_err();
        assert!(
            matches!(refused.error, Error::Size { expected, found }
                if found == size as u64 && expected == offset.saturating_add(len as u64)),
            "{refused}"
        );
    }
    let refused = Foreign::open(memfd(LEN, SealFlags::empty()), 0, 0, QUOTA).unwrap_err();
    assert!(matches!(refused.error, Error::Length { .. }), "{refused}");
    // Sparse, and longer than anybody's memory: what is announced is what counts.
    let fd = memfd(LEN, SealFlags::empty());
    ftruncate(&fd, 64 << 40).unwrap();
    let refused = Foreign::open(fd, 0, 64 << 40, QUOTA).unwrap_err();
    assert!(matches!(refused.error, Error::Quota { .. }), "{refused}");
    let far = 63 << 40;
    let foreign = Foreign::open(refused.descriptor, far, QUOTA, QUOTA).unwrap();
    foreign.write_at(QUOTA - 4, b"last").unwrap();
    assert_eq!(read(&foreign, QUOTA - 5, 5), b"\0last");
}

#[test]
fn memory_that_became_shorter() {
    let fd = memfd(LEN, SealFlags::empty());
    let peer = fd.try_clone().unwrap();
    let foreign = Foreign::open(fd, 4, LEN - 4, QUOTA).unwrap();
    foreign.write_at(0, &[1; LEN - 4]).unwrap();
    for size in [LEN - 1, 2 * 4096 + 5, 4096, 100, 4, 0] {
        ftruncate(&peer, size as u64).unwrap();
        let mut bytes = vec![2; LEN - 4];
        let error = foreign.read_at(0, &mut bytes).unwrap_err();
        let left = size.saturating_sub(4);
        assert!(
            matches!(error, Error::Short { offset: 0, expected, found }
                if expected == LEN as u64 - 4 && found == left as u64),
            "{size}: {error}"
        );
        assert_eq!(bytes, [vec![1; left], vec![2; LEN - 4 - left]].concat());
        // A page of which something is left takes what is written behind the end, as every mapping does.
        let error = foreign.write_at(0, &vec![1; LEN - 4]);
        let pages_left = size.next_multiple_of(page_size()).saturating_sub(4);
        match error {
            Ok(()) => assert!(pages_left >= LEN - 4),
            Err(Error::Short { found, .. }) => assert_eq!(found, pages_left as u64),
            Err(error) => panic!("{size}: {error}"),
        }
        // It has not become longer.
        assert_eq!(rustix::fs::fstat(&peer).unwrap().st_size as usize, size);
    }
    // Longer again: zeroes.
    ftruncate(&peer, LEN as u64).unwrap();
    assert_eq!(read(&foreign, 0, LEN - 4), vec![0; LEN - 4]);
}

#[test]
fn holes_read_as_zeroes_and_stay_holes() {
    let fd = memfd(LEN, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL);
    let peer = fd.try_clone().unwrap();
    let foreign = Foreign::open(fd, 0, LEN, QUOTA).unwrap();
    foreign.write_at(0, &[1; LEN]).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&peer, punch, 0, LEN as u64).unwrap();
    assert_eq!(read(&foreign, 0, LEN), vec![0; LEN]);
    assert_eq!(rustix::fs::fstat(&peer).unwrap().st_blocks, 0);
    foreign.write_at(4096, b"back").unwrap();
    assert_eq!(read(&foreign, 4096, 5), b"back\0");
}

#[test]
fn descriptors_for_one_direction() {
    let fd = memfd(LEN, SealFlags::SHRINK);
    let read_only = Foreign::open(reopened(&fd, OFlags::RDONLY), 0, LEN, QUOTA).unwrap();
    assert_eq!(read(&read_only, 5, 6), b"theirs");
    let error = read_only.write_at(0, b"x").unwrap_err();
    assert_eq!(errno(&error), Some(Errno::ACCESS.raw_os_error()), "{error}");
    let write_only = Foreign::open(reopened(&fd, OFlags::WRONLY), 0, LEN, QUOTA).unwrap();
    for result in [
        write_only.read_at(0, &mut [0]),
        write_only.write_at(0, b"x"),
    ] {
        assert!(matches!(result, Err(Error::Os { .. })), "{result:?}");
    }
}

#[test]
fn files_on_a_tmpfs_are_memory_and_others_are_not() {
    // As shm_open(3) makes them.
    let name = format!("/dev/shm/memlane-{}", std::process::id());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = rustix::fs::open(&name, flags, Mode::RUSR | Mode::WUSR).unwrap();
    rustix::fs::unlink(&name).unwrap();
    ftruncate(&fd, LEN as u64).unwrap();
    pwrite(&fd, b"theirs", 5).unwrap();
    let foreign = Foreign::open(fd, 0, LEN, QUOTA).unwrap();
    assert_eq!(foreign.seals().unwrap(), SealFlags::SEAL.bits());
    assert_eq!(read(&foreign, 5, 6), b"theirs");
    foreign.write_at(0, b"ours").unwrap();
    assert_eq!(read(&foreign, 0, 5), b"ours\0");

    let (pipe, _write) = rustix::pipe::pipe().unwrap();
    let exe = rustix::fs::open("/proc/self/exe", OFlags::RDONLY, Mode::empty()).unwrap();
    let path = rustix::fs::open("/dev/shm", OFlags::PATH, Mode::empty()).unwrap();
    for fd in [pipe, exe, path] {
        let number = fd.as_raw_fd();
        let refused = Foreign::open(fd, 0, 1, QUOTA).unwrap_err();
        assert!(matches!(refused.error, Error::NotSharedMemory), "{refused}");
        assert_eq!(refused.descriptor.as_raw_fd(), number);
    }
}

#[test]
fn huge_pages_are_refused() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
    let fd = match rustix::fs::memfd_create("foreign", flags) {
        Ok(fd) => fd,
        Err(error) => return eprintln!("skipped: no huge pages in this kernel, {error}"),
    };
    ftruncate(&fd, 1 << 30).unwrap();
    let refused = Foreign::open(fd, 0, LEN, QUOTA).unwrap_err();
    assert!(
        matches!(refused.error, Error::FileSystem { found: 0x9584_58f6 }),
        "{refused}"
    );
}

#[test]
fn what_is_frozen_can_be_had_without_copies() {
    let fd = memfd(LEN, SealFlags::empty());
    let peer = fd.try_clone().unwrap();
    let foreign = Foreign::open(fd, 0, LEN, QUOTA).unwrap();
    assert!(!foreign.is_frozen().unwrap());
    rustix::fs::fallocate(&peer, FallocateFlags::empty(), 0, LEN as u64).unwrap();
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&peer, seals).unwrap();
    assert!(foreign.is_frozen().unwrap());
    let frozen = Frozen::open(foreign.into_fd(), QUOTA).unwrap();
    assert_eq!(&frozen[5..11], b"theirs");
}

#[test]
fn made_for_others() {
    let before = support::held("made-for-others");
    let mine = Foreign::create("made-for-others", LEN).unwrap();
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    assert_eq!(mine.seals().unwrap() & 0x1f, seals.bits());
    let stat = rustix::fs::fstat(&mine).unwrap();
    assert_eq!(stat.st_mode & 0o777, 0o600);
    assert!(stat.st_blocks as usize * 512 >= LEN);
    assert_eq!(ftruncate(&mine, 0), Err(Errno::PERM));
    assert_eq!(ftruncate(&mine, 1 << 20), Err(Errno::PERM));
    pwrite(&mine, b"theirs", 1).unwrap();
    assert_eq!(read(&mine, 0, 8), b"\0theirs\0");
    mine.write_at(1, b"ours").unwrap();
    assert_eq!(read(&mine, 0, 8), b"\0oursrs\0");
    assert_eq!(
        support::held("made-for-others"),
        (before.0 + 1, before.1 + 1)
    );
    drop(mine);
    assert_eq!(support::held("made-for-others"), before);
    assert!(matches!(
        Foreign::create("none", 0),
        Err(Error::Length { .. })
    ));
}

#[test]
fn shared_with_programs_that_map_writable() {
    let mut region = Region::create("trusting", LEN).unwrap();
    region[0] = 1;
    // SAFETY: nobody writes to it but its maker while it is live.
    let mut live = unsafe { region.share_writable() }.unwrap();
    let peer = Foreign::open(live.as_fd().try_clone_to_owned().unwrap(), 0, LEN, QUOTA).unwrap();
    live[1] = 2;
    assert_eq!(read(&peer, 0, 3), [1, 2, 0]);
    let rejected = live.freeze().unwrap_err();
    assert!(
        matches!(rejected.error, Error::Unsealable { found } if found & 0x1f == 0x7),
        "{rejected}"
    );
    drop(rejected);
    // It was no empty promise.
    peer.write_at(0, &[3]).unwrap();
    assert_eq!(read(&peer, 0, 3), [3, 2, 0]);
}

//! Nobody but its creator can write, resize, punch or reseal a live region, and its creator can go on writing.

use std::{
    os::fd::{AsFd, AsRawFd},
    ptr,
    sync::atomic::Ordering,
};

use memlane_region::{Remote, Shared, Words, WordsMut, page_size};
use rustix::{
    fs::{FallocateFlags, Mode, OFlags, SealFlags},
    io::Errno,
    mm::{MapFlags, ProtFlags},
};

#[test]
fn every_other_way_to_write_is_closed() {
    let (mut mine, fd) = Shared::create("single-writer", 1, 4096).unwrap();

    // SAFETY: a mapping nobody uses; it is refused.
    let mapped = unsafe {
        rustix::mm::mmap(
            ptr::null_mut(),
            4096,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            &fd,
            0,
        )
    };
    assert_eq!(mapped.unwrap_err(), Errno::PERM);
    assert_eq!(rustix::io::pwrite(&fd, b"x", 0).unwrap_err(), Errno::PERM);
    assert_eq!(rustix::fs::ftruncate(&fd, 0).unwrap_err(), Errno::PERM);
    assert_eq!(
        rustix::fs::ftruncate(&fd, 1 << 20).unwrap_err(),
        Errno::PERM
    );
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(
        rustix::fs::fallocate(&fd, punch, 0, 4096).unwrap_err(),
        Errno::PERM
    );
    assert_eq!(
        rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE).unwrap_err(),
        Errno::PERM
    );

    // A read-only mapping cannot be turned into a writable one.
    // SAFETY: a fresh mapping, unmapped below, that nothing refers to.
    unsafe {
        let map = rustix::mm::mmap(
            ptr::null_mut(),
            4096,
            ProtFlags::READ,
            MapFlags::SHARED,
            &fd,
            0,
        )
        .unwrap();
        let writable = rustix::mm::mprotect(
            map,
            4096,
            rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE,
        );
        assert_eq!(writable.unwrap_err(), Errno::ACCESS);
        rustix::mm::munmap(map, 4096).unwrap();
    }

    // Nor does reopening give more than the descriptor has: the seals belong to the memory.
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let reopened = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    assert_eq!(
        rustix::io::pwrite(&reopened, b"x", 0).unwrap_err(),
        Errno::PERM
    );
    assert_eq!(rustix::fs::fstat(&fd).unwrap().st_mode & 0o777, 0o600);

    mine.word(0).store(1, Ordering::Relaxed);
    mine.store(8, 2);
    let theirs = Remote::open(fd, page_size(), 4096, 1 << 20).unwrap();
    assert_eq!((theirs.load_word(0), theirs.load(8)), (1, 2));
}

#[test]
fn the_ring_is_mapped_twice_in_a_row() {
    let (mut mine, fd) = Shared::create("mirror", 1, 4096).unwrap();
    let theirs = Remote::open(fd, page_size(), 4096, 1 << 20).unwrap();
    mine.write(4088, 0, b"0123456789abcdef");
    assert_eq!(mine.load(0).to_ne_bytes(), *b"89abcdef");
    let mut copy = [0; 16];
    theirs.read(4088, 0, &mut copy);
    assert_eq!(&copy, b"0123456789abcdef");
    theirs.read(4088 + 4096 * 7, 8, &mut copy[..8]);
    assert_eq!(&copy[..8], b"89abcdef");
    // SAFETY: the writer is this test, and it writes nothing meanwhile.
    assert_eq!(unsafe { theirs.bytes(4088, 3, 10) }, b"3456789abc");
}

#[test]
fn impossible_lengths_are_errors() {
    for ring in [1, 4095, 4097, 3 * 4096, 1 << 47] {
        let error = Shared::create("length", 1, ring).unwrap_err().to_string();
        assert!(error.contains("bytes is not possible"), "{error}");
    }
    assert!(Shared::create("length", usize::MAX, 0).is_err());
}

#[test]
#[should_panic(expected = "over the ring")]
fn borrows_end_with_the_ring() {
    let (mut mine, _fd) = Shared::create("bounds", 1, 4096).unwrap();
    mine.bytes_mut(0, 8, 4089);
}

#[test]
fn regions_leave_no_descriptor_and_no_mapping() {
    let count = |dir: &str| std::fs::read_dir(dir).unwrap().count();
    let maps = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines()
            .filter(|line| line.contains("memfd:leak-check"))
            .count()
    };
    for _ in 0..100 {
        let (mine, fd) = Shared::create("leak-check", 1, 8192).unwrap();
        assert!(maps() > 0);
        let duplicate = fd.as_fd().try_clone_to_owned().unwrap();
        drop(Remote::open(fd, page_size(), 8192, 1 << 20).unwrap());
        let refused = Remote::open(duplicate, page_size(), 4096, 1 << 20).unwrap_err();
        drop((mine, refused));
    }
    assert_eq!(maps(), 0);
    assert!(count("/proc/self/fd") < 50);
}

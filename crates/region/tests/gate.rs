//! What the receive gate refuses, and why it says so.

use std::os::fd::{AsFd, OwnedFd};

use memlane_region::{Error, Remote, page_size};
use rustix::{
    fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags},
    net::{AddressFamily, SocketType, socket},
};

const LIVE: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::FUTURE_WRITE)
    .union(SealFlags::SEAL);

fn memfd(len: u64, allocated: u64, seals: SealFlags) -> OwnedFd {
    let fd =
        rustix::fs::memfd_create("gate", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    if allocated > 0 {
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, allocated).unwrap();
    }
    rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
    fd
}

fn refused(fd: OwnedFd, ring: usize) -> Error {
    Remote::open(fd, page_size(), ring, 1 << 20)
        .expect_err("must be refused")
        .error
}

#[test]
fn descriptors_that_are_not_shared_memory() {
    let (read, write) = rustix::pipe::pipe().unwrap();
    let file = |path, flags| rustix::fs::open(path, flags, Mode::empty()).unwrap();
    let kinds: Vec<(&str, OwnedFd)> = vec![
        ("pipe, read end", read),
        ("pipe, write end", write),
        (
            "socket",
            socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap(),
        ),
        (
            "eventfd",
            rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap(),
        ),
        (
            "epoll",
            rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap(),
        ),
        ("device", file("/dev/zero", OFlags::RDWR)),
        ("directory", file("/", OFlags::RDONLY)),
        ("file", file("/proc/self/exe", OFlags::RDONLY)),
        ("O_PATH", file("/dev/zero", OFlags::PATH)),
        (
            "pidfd",
            rustix::process::pidfd_open(
                rustix::process::getpid(),
                rustix::process::PidfdFlags::empty(),
            )
            .unwrap(),
        ),
    ];
    for (kind, fd) in kinds {
        assert!(matches!(refused(fd, 0), Error::NotSharedMemory), "{kind}");
    }
}

#[test]
fn every_subset_of_the_seals_but_the_whole() {
    let seals = [
        SealFlags::SHRINK,
        SealFlags::GROW,
        SealFlags::FUTURE_WRITE,
        SealFlags::SEAL,
    ];
    for subset in 0..16 {
        let chosen = (0..4)
            .filter(|bit| subset & 1 << bit != 0)
            .map(|bit| seals[bit])
            .collect();
        let fd = memfd(page_size() as u64, page_size() as u64, chosen);
        let opened = Remote::open(fd, page_size(), 0, 1 << 20);
        match opened {
            Ok(_) => assert_eq!(chosen, LIVE),
            Err(refused) => assert!(
                matches!(refused.error, Error::Seals { .. }),
                "{chosen:?}: {refused}"
            ),
        }
    }
    // More seals than needed are welcome: vm.memfd_noexec adds F_SEAL_EXEC, and frozen memory is safer still.
    let page = page_size() as u64;
    Remote::open(
        memfd(page, page, LIVE | SealFlags::WRITE),
        page_size(),
        0,
        1 << 20,
    )
    .unwrap();
}

#[test]
fn sizes_that_are_not_as_announced() {
    let page = page_size() as u64;
    for len in [0, 1, page - 1, page + 1, 2 * page, 64 << 40] {
        let error = refused(memfd(len, 0, LIVE), 0);
        assert!(
            matches!(error, Error::Size { found, .. } if found == len),
            "{len}: {error}"
        );
    }
    // Never allocated: reading would charge the reader for it.
    let error = refused(memfd(2 * page, page, LIVE), page_size());
    assert!(
        matches!(error, Error::Sparse { found, .. } if found == page),
        "{error}"
    );
}

#[test]
fn announcements_that_make_no_sense() {
    let page = page_size();
    let fd = memfd(page as u64, page as u64, LIVE);
    let cases = [
        (page, 3 * page, 1 << 30),
        (page, 8, 1 << 30),
        (0, page, 1 << 30),
        (page + 1, page, 1 << 30),
        (page, 1 << 63, usize::MAX),
        (usize::MAX - page + 1, 1 << 63, usize::MAX),
        (page, 1 << 20, 1 << 20),
    ];
    for (header, ring, quota) in cases {
        let refused = Remote::open(
            fd.as_fd().try_clone_to_owned().unwrap(),
            header,
            ring,
            quota,
        )
        .unwrap_err();
        assert!(
            matches!(
                refused.error,
                Error::Length { .. } | Error::Quota { .. } | Error::Size { .. }
            ),
            "{header} {ring} {quota}: {refused}"
        );
    }
}

#[test]
fn huge_pages() {
    // F_GET_SEALS answers for hugetlb memfds, whose pages may not exist when they are touched.
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
    let Ok(fd) = rustix::fs::memfd_create("gate", flags) else {
        return eprintln!("skipped: this kernel has no hugetlb memfds");
    };
    let huge = 2 << 20;
    rustix::fs::ftruncate(&fd, huge).unwrap();
    rustix::fs::fcntl_add_seals(&fd, LIVE).unwrap();
    let refused = Remote::open(fd, page_size(), huge as usize, 1 << 30).unwrap_err();
    assert!(
        matches!(refused.error, Error::FileSystem { .. } | Error::Size { .. }),
        "{refused}"
    );
    let fd = rustix::fs::memfd_create("gate", flags).unwrap();
    rustix::fs::ftruncate(&fd, huge).unwrap();
    rustix::fs::fcntl_add_seals(&fd, LIVE).unwrap();
    let refused = Remote::open(fd, huge as usize, 0, 1 << 30).unwrap_err();
    assert!(
        matches!(refused.error, Error::FileSystem { found } if found == 0x9584_58f6),
        "{refused}"
    );
}

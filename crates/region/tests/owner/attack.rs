//! Everything an owner can do to memory it has given away.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use io_uring::{opcode, types};
use rustix::{
    fs::{FallocateFlags, Mode, OFlags, SealFlags},
    mm::{MapFlags, MprotectFlags, MremapFlags, ProtFlags},
    pipe::SpliceFlags,
};

use super::{LEN, Map, Owner, PAGE, Ring};

impl Owner {
    /// Tries all it has once. Whatever works, works; what does not is an error that nobody looks at.
    pub(crate) fn attack(&mut self) {
        for map in &mut self.maps {
            through(map, self.noise.as_fd());
        }
        for ring in &mut self.rings {
            by_ring(ring, self.noise.as_fd());
        }
        for (from, _) in &self.pipes {
            let flags = SpliceFlags::NONBLOCK;
            let _ = rustix::pipe::splice(from, None, &self.fd, Some(&mut 0), PAGE, flags);
        }
        by_call(self.fd.as_fd(), self.noise.as_fd());
        for fd in &self.descriptors {
            by_call(fd.as_fd(), self.noise.as_fd());
        }
        reopen_and_map(self.fd.as_fd(), self.noise.as_fd());
    }
}

/// Opens it anew, by the number it has in this process, or that of this thread.
pub(super) fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let (pid, fd) = (std::process::id(), fd.as_raw_fd());
    let open = |path: String| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    open(format!("/proc/{pid}/fd/{fd}")).or_else(|_| open(format!("/proc/thread-self/fd/{fd}")))
}

/// Opens it anew, and writes to it by all means there are.
pub(super) fn reopen_and_map(fd: BorrowedFd<'_>, noise: BorrowedFd<'_>) {
    if let Ok(fd) = reopen(fd, OFlags::RDWR) {
        by_call(fd.as_fd(), noise);
    }
}

/// By a mapping: its protection is raised, it is written, made longer, and its memory taken away.
fn through(map: &mut Map, noise: BorrowedFd<'_>) {
    let prot = MprotectFlags::READ | MprotectFlags::WRITE;
    // SAFETY: the mapping is nobody else's, and nothing refers to it. A range that could not be moved is where it was.
    unsafe {
        let _ = rustix::mm::mprotect(map.base, map.len, prot);
        map.poke(noise);
        fill(map);
        libc::madvise(map.base, PAGE, libc::MADV_REMOVE);
        if let Ok(base) = rustix::mm::mremap(map.base, map.len, 2 * map.len, MremapFlags::MAYMOVE) {
            map.base = rustix::mm::mremap(base, 2 * map.len, map.len, MremapFlags::empty())
                .expect("what was made longer can be made shorter");
        }
    }
    map.poke(noise);
}

/// By pages that were registered; the mapping they were registered by is gone.
fn by_ring(ring: &mut Ring, noise: BorrowedFd<'_>) {
    let fd = types::Fd(noise.as_raw_fd());
    let read = opcode::ReadFixed::new(fd, ring.base.cast(), LEN as u32, 0).build();
    // SAFETY: the kernel writes to pages that nothing in this program refers to.
    unsafe { ring.ring.submission().push(&read) }.unwrap();
    ring.ring.submit_and_wait(1).unwrap();
    assert_eq!(ring.ring.completion().count(), 1);
}

/// By system calls on a descriptor.
fn by_call(fd: BorrowedFd<'_>, noise: BorrowedFd<'_>) {
    let _ = rustix::io::pwrite(fd, &[0x33; 64], 256);
    let _ = rustix::io::write(fd, &[0x44; 64]);
    let _ = rustix::fs::sendfile(fd, noise, None, PAGE);
    let (read, write) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&write, &[0x55; 64]).unwrap();
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    let _ = rustix::pipe::splice(&read, None, fd, Some(&mut 0), 64, flags);
    let _ = rustix::fs::copy_file_range(noise, None, fd, Some(&mut 0), PAGE);
    for len in [0, 2 * LEN, LEN] {
        let _ = rustix::fs::ftruncate(fd, len as u64);
    }
    let keep = FallocateFlags::KEEP_SIZE;
    for how in [
        keep | FallocateFlags::PUNCH_HOLE,
        keep | FallocateFlags::ZERO_RANGE,
        FallocateFlags::COLLAPSE_RANGE,
        FallocateFlags::empty(),
    ] {
        let _ = rustix::fs::fallocate(fd, how, 0, PAGE as u64);
    }
    let _ = rustix::fs::fchmod(fd, Mode::from_raw_mode(0o777));
    let _ = rustix::fs::fcntl_add_seals(fd, SealFlags::EXEC);
    for flags in [MapFlags::SHARED, MapFlags::PRIVATE] {
        for prot in [ProtFlags::READ | ProtFlags::WRITE, ProtFlags::READ] {
            if let Ok(mut map) = Map::new(fd, prot, flags) {
                through(&mut map, noise);
            }
        }
    }
}

/// Fills holes by way of userfaultfd(2), where this process may use it.
fn fill(map: &Map) {
    const API: libc::c_ulong = 0xc018_aa3f;
    const REGISTER: libc::c_ulong = 0xc020_aa00;
    const COPY: libc::c_ulong = 0xc028_aa03;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: a new descriptor, or an error.
    let fd = match unsafe { libc::syscall(libc::SYS_userfaultfd, flags) } {
        -1 => return,
        // SAFETY: just made.
        fd => unsafe { OwnedFd::from_raw_fd(fd as i32) },
    };
    let source = [0x66_u64; PAGE / 8];
    let base = map.base.addr() as u64;
    // SAFETY: the structures are as long as the requests say (linux/userfaultfd.h), and the range is this owner's.
    unsafe {
        libc::ioctl(fd.as_raw_fd(), API, &mut [0xaa_u64, 0, 0]);
        libc::ioctl(
            fd.as_raw_fd(),
            REGISTER,
            &mut [base, map.len as u64, 1_u64, 0],
        );
        for at in (0..LEN as u64).step_by(PAGE) {
            let from = source.as_ptr().addr() as u64;
            libc::ioctl(
                fd.as_raw_fd(),
                COPY,
                &mut [base + at, from, PAGE as u64, 0, 0],
            );
        }
    }
}

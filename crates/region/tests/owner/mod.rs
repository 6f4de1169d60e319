//! A hostile owner of memory: it keeps ways to write to what it has given away, and uses them all.

mod attack;

use std::{
    ffi::c_void,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use io_uring::IoUring;
use rustix::{
    fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags},
    mm::{MapFlags, ProtFlags},
    net::{AddressFamily, SocketFlags, SocketType},
    pipe::SpliceFlags,
};

pub(crate) const PAGE: usize = 4096;
/// Length of the memory, as it is made.
pub(crate) const LEN: usize = 4 * PAGE;

/// Memory, and everything its owner has kept of it. What it kept goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Owner {
    fd: OwnedFd,
    /// Something to read that is different each time.
    noise: OwnedFd,
    maps: Vec<Map>,
    descriptors: Vec<OwnedFd>,
    pipes: Vec<(OwnedFd, OwnedFd)>,
    rings: Vec<Ring>,
    children: Vec<libc::pid_t>,
    storms: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

/// A mapping.
#[derive(Debug)]
struct Map {
    base: *mut c_void,
    len: usize,
}

// SAFETY: an address and a length; the memory is only given to system calls.
unsafe impl Send for Map {}

impl Map {
    /// Maps all of it, and what may come behind it.
    fn new(fd: impl AsFd, prot: ProtFlags, flags: MapFlags) -> rustix::io::Result<Map> {
        // SAFETY: a fresh range.
        let base = unsafe { rustix::mm::mmap(ptr::null_mut(), LEN, prot, flags, fd, 0)? };
        Ok(Map { base, len: LEN })
    }

    /// Writes to it by way of the kernel, which answers where a store would be a signal.
    fn poke(&self, noise: impl AsFd) {
        for at in (0..LEN).step_by(PAGE) {
            let page = self.base.wrapping_byte_add(at);
            // SAFETY: the range is a mapping of memory nothing in this program refers to; errors are welcome.
            unsafe { libc::read(noise.as_fd().as_raw_fd(), page, 64) };
            // As a debugger would.
            let mut value = [0xa5_u8; 64];
            let local = libc::iovec {
                iov_base: value.as_mut_ptr().cast(),
                iov_len: 64,
            };
            let remote = libc::iovec {
                iov_base: page.wrapping_byte_add(64),
                iov_len: 64,
            };
            // SAFETY: as above.
            unsafe { libc::process_vm_writev(libc::getpid(), &local, 1, &remote, 1, 0) };
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped once, unmapped once, and nothing refers to it.
        unsafe { rustix::mm::munmap(self.base, self.len).unwrap() };
    }
}

/// A ring with pages registered, the mapping they were registered by being gone.
struct Ring {
    ring: IoUring,
    base: *mut c_void,
}

// SAFETY: the address is one that nothing is mapped at, and is only given to the kernel.
unsafe impl Send for Ring {}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

/// One thing that an owner does before it gives its memory away.
pub(crate) type Move = (&'static str, fn(&mut Owner));

/// What it keeps.
pub(crate) const KEEP: &[Move] = &[
    ("map shared, writable", |o| {
        o.map(ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)
    }),
    ("map shared, read-only, by a writable descriptor", |o| {
        o.map(ProtFlags::READ, MapFlags::SHARED)
    }),
    ("map shared, read-only, by a read-only descriptor", |o| {
        let Some(fd) = o.reopen(OFlags::RDONLY) else {
            return;
        };
        o.maps
            .extend(Map::new(&fd, ProtFlags::READ, MapFlags::SHARED));
        o.descriptors.push(fd);
    }),
    ("map private, writable", |o| {
        o.map(ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
    }),
    ("open anew", |o| {
        let fd = o.reopen(OFlags::RDWR);
        o.descriptors.extend(fd);
    }),
    ("open anew and map", |o| {
        if let Some(fd) = o.reopen(OFlags::RDWR) {
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            o.maps.extend(Map::new(&fd, prot, MapFlags::SHARED));
        }
    }),
    ("splice a page into a pipe", |o| o.splice()),
    ("tee a page into another pipe", |o| {
        o.splice();
        let (read, write) = rustix::pipe::pipe().unwrap();
        if let Some((from, _)) = o.pipes.pop() {
            let _ = rustix::pipe::tee(&from, &write, PAGE, SpliceFlags::NONBLOCK);
        }
        o.pipes.push((read, write));
    }),
    ("vmsplice a page into a pipe", |o| {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        if let Ok(map) = Map::new(&o.fd, prot, MapFlags::SHARED) {
            let (read, write) = rustix::pipe::pipe().unwrap();
            let page = libc::iovec {
                iov_base: map.base,
                iov_len: PAGE,
            };
            // SAFETY: pages of a mapping that is nobody else's.
            unsafe { libc::vmsplice(write.as_raw_fd(), &page, 1, libc::SPLICE_F_NONBLOCK) };
            o.pipes.push((read, write));
        }
    }),
    ("send a page into a socket", |o| {
        let (read, write) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        let _ = rustix::fs::sendfile(&write, &o.fd, Some(&mut 0), PAGE);
        o.pipes.push((read, write));
    }),
    ("register pages with io_uring", |o| {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let Ok(ring) = IoUring::new(2) else { return };
        if let Ok(map) = Map::new(&o.fd, prot, MapFlags::SHARED) {
            let pages = libc::iovec {
                iov_base: map.base,
                iov_len: map.len,
            };
            // SAFETY: pages of a mapping that is nobody else's.
            if unsafe { ring.submitter().register_buffers(&[pages]) }.is_ok() {
                let base = map.base;
                o.rings.push(Ring { ring, base });
            }
        }
    }),
    ("fork a child with a mapping", |o| o.fork()),
];

/// What it does to the memory, and its seals.
pub(crate) const SPOIL: &[Move] = &[
    ("seal WRITE", |o| o.seal(SealFlags::WRITE)),
    ("seal SHRINK", |o| o.seal(SealFlags::SHRINK)),
    ("seal GROW", |o| o.seal(SealFlags::GROW)),
    ("seal FUTURE_WRITE", |o| o.seal(SealFlags::FUTURE_WRITE)),
    ("seal SEAL", |o| o.seal(SealFlags::SEAL)),
    ("seal EXEC", |o| o.seal(SealFlags::EXEC)),
    ("freeze", |o| {
        o.seal(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW)
    }),
    ("make it executable", |o| o.chmod(0o777)),
    ("make it private", |o| o.chmod(0o600)),
    ("punch a hole", |o| {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = rustix::fs::fallocate(&o.fd, punch, PAGE as u64, PAGE as u64);
    }),
    ("allocate behind the end", |o| {
        let keep = FallocateFlags::KEEP_SIZE;
        let _ = rustix::fs::fallocate(&o.fd, keep, LEN as u64, PAGE as u64);
    }),
    ("shorten", |o| o.resize(PAGE + 1)),
    ("empty", |o| o.resize(0)),
    ("lengthen", |o| o.resize(2 * LEN)),
    ("unmap", |o| o.maps.clear()),
    ("write for ever", |o| {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let map = Map::new(&o.fd, prot, MapFlags::SHARED).ok();
        o.storm(move |fd, noise| {
            let _ = rustix::io::pwrite(fd, &[0x5a; 64], 128);
            map.iter().for_each(|map| map.poke(noise));
        });
    }),
    ("map and write for ever", |o| {
        o.storm(attack::reopen_and_map);
    }),
    ("punch for ever", |o| {
        o.storm(|fd, _| {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = rustix::fs::fallocate(fd, punch, 0, PAGE as u64);
            let _ = rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, LEN as u64);
        });
    }),
    ("resize for ever", |o| {
        o.storm(|fd, _| {
            let _ = rustix::fs::ftruncate(fd, 0);
            let _ = rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, LEN as u64);
        });
    }),
];

impl Owner {
    /// Makes memory of four pages, executable or not, with something in it.
    pub(crate) fn new(name: &str, executable: bool) -> Owner {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::EXEC) {
            Ok(fd) if executable => fd,
            _ => rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL).unwrap(),
        };
        let bytes: Vec<u8> = (0..LEN).map(|at| at as u8 ^ (at >> 8) as u8).collect();
        assert_eq!(rustix::io::pwrite(&fd, &bytes, 0).unwrap(), LEN);
        let urandom = OFlags::RDONLY | OFlags::CLOEXEC;
        Owner {
            fd,
            noise: rustix::fs::open("/dev/urandom", urandom, Mode::empty()).unwrap(),
            maps: Vec::new(),
            descriptors: Vec::new(),
            pipes: Vec::new(),
            rings: Vec::new(),
            children: Vec::new(),
            storms: Vec::new(),
            stop: Arc::default(),
        }
    }

    /// Gives up what it kept, but for the descriptor it was made with.
    pub(crate) fn release(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for storm in self.storms.drain(..) {
            storm.join().unwrap();
        }
        self.stop.store(false, Ordering::Relaxed);
        for child in self.children.drain(..) {
            // SAFETY: a child of this process, not waited for yet.
            unsafe {
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, ptr::null_mut(), 0);
            }
        }
        for ring in self.rings.drain(..) {
            ring.ring.submitter().unregister_buffers().unwrap();
        }
        self.pipes.clear();
        self.maps.clear();
        self.descriptors.clear();
    }

    fn map(&mut self, prot: ProtFlags, flags: MapFlags) {
        self.maps.extend(Map::new(&self.fd, prot, flags));
    }

    fn seal(&mut self, seals: SealFlags) {
        let _ = rustix::fs::fcntl_add_seals(&self.fd, seals);
    }

    fn chmod(&mut self, mode: u32) {
        let _ = rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(mode));
    }

    fn resize(&mut self, len: usize) {
        let _ = rustix::fs::ftruncate(&self.fd, len as u64);
    }

    fn splice(&mut self) {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let flags = SpliceFlags::NONBLOCK;
        let _ = rustix::pipe::splice(&self.fd, Some(&mut 0), &write, None, PAGE, flags);
        self.pipes.push((read, write));
    }

    /// By way of /proc, of this thread or of this process.
    fn reopen(&self, flags: OFlags) -> Option<OwnedFd> {
        attack::reopen(self.fd.as_fd(), flags).ok()
    }

    /// A child that has a writable mapping, and writes to it until it is killed.
    fn fork(&mut self) {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let Ok(map) = Map::new(&self.fd, prot, MapFlags::SHARED) else {
            return;
        };
        let (noise, base) = (self.noise.as_raw_fd(), map.base);
        // SAFETY: the child calls nothing but what is allowed between fork and exec (signal-safety(7)), and it dies
        // with its parent.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: as above.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                loop {
                    libc::read(noise, base, 64);
                    libc::usleep(500);
                }
            }
        }
        assert!(child > 0);
        self.children.push(child);
    }

    /// Does something until it is told to stop, in a thread. Two at most, there being other tests.
    fn storm(&mut self, mut act: impl FnMut(BorrowedFd<'_>, BorrowedFd<'_>) + Send + 'static) {
        if self.storms.len() < 2 {
            let stop = self.stop.clone();
            let [fd, noise] = [&self.fd, &self.noise].map(|fd| fd.try_clone().unwrap());
            self.storms.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    act(fd.as_fd(), noise.as_fd());
                    std::thread::yield_now();
                }
            }));
        }
    }
}

impl AsFd for Owner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.release();
    }
}

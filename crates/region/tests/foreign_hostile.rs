//! Another process does to shared memory whatever it can while this one copies from and to it.

use std::{
    io::{BufRead, BufReader},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use memlane_region::{Error, Foreign, Frozen, LiveView};
use rustix::{
    fs::{FallocateFlags, MemfdFlags, ftruncate},
    mm::{MapFlags, ProtFlags, UserfaultfdFlags},
    process::{Signal, set_parent_process_death_signal},
};

const LEN: usize = 4 * 4096;
const ROLE: &str = "MEMLANE_TEST_ROLE";

/// The other process; killed with this.
struct Other(Child);

impl Other {
    /// This executable again, with the memory as its standard input.
    fn start(role: &str, memory: &OwnedFd) -> Other {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "other_process",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ROLE, role)
            .stdin(memory.try_clone().unwrap())
            .stdout(Stdio::piped());
        Other(command.spawn().unwrap())
    }

    /// Waits for it to say `word`; false if it says that it cannot.
    fn says(&mut self, word: &str) -> bool {
        let output = BufReader::new(self.0.stdout.take().unwrap());
        for line in output.lines() {
            let line = line.unwrap();
            if let Some(why) = line.strip_prefix("skipped: ") {
                eprintln!("skipped: {why}");
                return false;
            }
            if line == word {
                return true;
            }
        }
        panic!("the other process never said {word:?}");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn other_process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let memory = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    match role.as_str() {
        "resizer" => resize(&memory),
        "holder" => hold(&memory),
        role => panic!("no role {role:?}"),
    }
}

fn memfd() -> OwnedFd {
    let fd = rustix::fs::memfd_create("hostile", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, LEN as u64).unwrap();
    fd
}

/// Shortens, lengthens, punches and fills it, for ever.
fn resize(memory: &OwnedFd) {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for turn in 0_u64.. {
        let _ = rustix::io::pwrite(memory, &[0xff; LEN], 0);
        let _ = rustix::fs::fallocate(memory, punch, 4096, 8192);
        let _ = ftruncate(memory, turn.wrapping_mul(4999) % LEN as u64);
        let _ = ftruncate(memory, 0);
        let _ = ftruncate(memory, LEN as u64);
    }
}

#[test]
fn truncation_and_holes_never_fault() {
    let fd = memfd();
    let foreign = Foreign::open(fd.try_clone().unwrap(), 0, LEN, LEN).unwrap();
    let _other = Other::start("resizer", &fd);
    let mut bytes = [0; 6000];
    // Each has to be met, and 100,000 reads and as many writes have to be survived.
    let (mut accesses, mut short_reads, mut short_writes, mut zeroes, mut filled) = (0, 0, 0, 0, 0);
    while accesses < 100_000 || [short_reads, short_writes, zeroes, filled].contains(&0) {
        accesses += 1;
        let offset = accesses * 4801 % (LEN - bytes.len());
        match foreign.read_at(offset, &mut bytes) {
            Ok(()) => {
                assert!(bytes.iter().all(|byte| [0, 1, 0xff].contains(byte)));
                zeroes += usize::from(bytes[5000] == 0);
                filled += usize::from(bytes[5000] == 0xff);
            }
            Err(Error::Short {
                expected, found, ..
            }) => {
                assert!(expected == 6000 && found < expected);
                short_reads += 1;
            }
            Err(error) => panic!("{error}"),
        }
        match foreign.write_at(offset, &[1; 6000]) {
            Ok(()) => {}
            Err(Error::Short {
                expected, found, ..
            }) => {
                assert!(expected == 6000 && found < expected);
                short_writes += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn growth_that_is_announced_and_does_not_come() {
    let fd = memfd();
    let _other = Other::start("resizer", &fd);
    let mut descriptor = fd;
    for turn in 0..20_000 {
        // As after a `wl_shm_pool.resize`: a longer pool is a new import, which looks at the file.
        let refused = Foreign::open(descriptor, 0, LEN + 1 + turn, 1 << 20).unwrap_err();
        assert!(
            matches!(refused.error, Error::Size { found, .. } if found <= LEN as u64),
            "{refused}"
        );
        descriptor = refused.descriptor;
    }
}

/// Enters a write to the memory that does not end: its source is a page that this process does not provide.
fn hold(memory: &OwnedFd) {
    // SAFETY: a new descriptor.
    let pager = match unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC) } {
        Ok(pager) => pager,
        Err(error) => return println!("\nskipped: no userfaultfd for kernel faults, {error}"),
    };
    // SAFETY: a fresh mapping, which stays.
    let page = unsafe {
        let read_write = ProtFlags::READ | ProtFlags::WRITE;
        rustix::mm::mmap_anonymous(std::ptr::null_mut(), 4096, read_write, MapFlags::PRIVATE)
    };
    let page = page.unwrap() as usize;
    // `struct uffdio_api` and `struct uffdio_register` (linux/userfaultfd.h), and their ioctls.
    let mut api = [0xaa_u64, 0, 0];
    let mut register = [page as u64, 4096, 1, 0];
    // SAFETY: both are as long as the kernel has them.
    unsafe {
        assert_eq!(libc::ioctl(pager.as_raw_fd(), 0xc018_aa3f, &mut api), 0);
        assert_eq!(
            libc::ioctl(pager.as_raw_fd(), 0xc020_aa00, &mut register),
            0
        );
    }
    let memory = memory.as_raw_fd();
    // SAFETY: the page is mapped, and only the kernel looks at it.
    thread::spawn(move || unsafe { libc::pwrite(memory, page as *const _, 4096, 0) });
    // The fault: the write has begun.
    let mut event = [0; 32];
    assert_eq!(rustix::io::read(&pager, &mut event), Ok(32));
    println!("\nin the write");
    loop {
        thread::park();
    }
}

#[test]
fn a_write_that_does_not_end_holds_up_nobody() {
    let fd = memfd();
    let mut other = Other::start("holder", &fd);
    if !other.says("in the write") {
        return;
    }
    let (done, returned) = mpsc::channel();
    let copier = thread::spawn(move || {
        // What is asked of memory that is to be mapped waits for nobody either.
        let copy = || fd.try_clone().unwrap();
        let refused = Frozen::open(copy(), LEN).unwrap_err();
        assert!(matches!(refused.error, Error::Seals { .. }), "{refused}");
        let refused = LiveView::open(copy(), LEN).unwrap_err();
        assert!(matches!(refused.error, Error::Seals { .. }), "{refused}");
        let foreign = Foreign::open(fd, 0, LEN, LEN).unwrap();
        foreign.write_at(4000, &[5; 5000]).unwrap();
        let mut bytes = [0; 5002];
        foreign.read_at(3999, &mut bytes).unwrap();
        assert_eq!(bytes[..2], [0, 5]);
        assert_eq!(bytes[5000..], [5, 0]);
        assert!(!foreign.is_frozen().unwrap());
        drop(foreign);
        done.send(()).unwrap();
    });
    let outcome = returned.recv_timeout(Duration::from_secs(60));
    // Ends the write, and whoever waits for it.
    drop(other);
    copier.join().unwrap();
    outcome.expect("nothing here waits for the other process");
}

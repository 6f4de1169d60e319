//! A file whose server does not answer: FUSE, spoken by hand over /dev/fuse.
//!
//! The server is a process of its own, the test's executable run again, so a test file that uses it has
//!
//! ```ignore
//! #[test]
//! fn fuse_server() {
//!     common::fuse::serve();
//! }
//! ```
//!
//! Start other children first: one that is forked while the file is open has a copy, whose closing hangs its execve.
//!
//! Whoever enters the file sleeps until the server answers or dies: closing /dev/fuse ends the connection, and every request
//! with it (fuse_abort_conn). It dies with its [`Fuse`], when the test's end of the link closes, and by a watchdog. The mount
//! is never attached to a path; it goes with its last descriptor.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use memlane_transport::{Fd, Link};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::mount::{fsconfig_create, fsconfig_set_string, fsmount, fsopen};
use serde::{Deserialize, Serialize};

use super::{Reaped, child, parent, role};

const ROLE: &str = "fuse server";

/// The server ends by itself when the test has asked it nothing for so long; above the minute after which `until` gives up.
const WATCHDOG: Duration = Duration::from_secs(90);

/// `enum fuse_opcode` (linux/fuse.h): the requests that are told apart here.
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const BATCH_FORGET: u32 = 42;
    pub const STATX: u32 = 52;
}

/// What opening the file takes.
const OPENING: [u32; 3] = [op::INIT, op::LOOKUP, op::OPEN];
/// Requests that are not answered by anyone (linux/fuse.h).
const WITHOUT_ANSWER: [u32; 3] = [op::FORGET, op::BATCH_FORGET, op::INTERRUPT];

const ROOT: u64 = 1;
const FILE: u64 = 2;

/// A request that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// One of [`op`].
    pub op: u32,
    /// The thread that made it and, if it was not answered, sleeps in it. 0 for one made by the kernel itself.
    pub thread: u32,
}

#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Do not answer these from now on; answer all others, also those that wait already.
    Hang(HashSet<u32>),
    Requests,
}

/// The server, and its file opened for reading and writing.
#[derive(Debug)]
pub struct Fuse {
    server: Reaped,
    link: Link,
    file: OwnedFd,
}

impl Fuse {
    /// A file on which every request but opening hangs. `None`, said on stderr, where FUSE is not to be had; a panic if the
    /// environment has MEMLANE_REQUIRE_FUSE=1.
    pub fn start() -> Option<Fuse> {
        let (link, theirs) = Link::pair().unwrap();
        let server = Reaped::spawn(&mut child("fuse_server", ROLE, theirs));
        let mounted: Result<Fd, String> = link
            .recv()
            .expect("the test file needs `fuse_server`, see common::fuse");
        let mount = match mounted {
            Ok(mount) => OwnedFd::from(mount),
            Err(why) if std::env::var_os("MEMLANE_REQUIRE_FUSE").is_some_and(|set| set == "1") => {
                panic!("no FUSE, but MEMLANE_REQUIRE_FUSE=1: {why}")
            }
            Err(why) => {
                eprintln!("skipped: no FUSE, {why}");
                return None;
            }
        };
        let file = openat(
            &mount,
            "file",
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
        Some(Fuse { server, link, file })
    }

    /// The file. Closing any copy of it before the server is gone hangs, unless FLUSH is answered.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Answers every request, those that wait included, except these.
    pub fn hang_only(&self, ops: &[u32]) {
        self.link
            .send(&Order::Hang(ops.iter().copied().collect()))
            .unwrap();
        self.link.recv::<()>().unwrap();
    }

    /// What was asked of the file so far, in order, without what opening takes. It also says that the server still runs.
    pub fn requests(&self) -> Vec<Request> {
        self.link.send(&Order::Requests).unwrap();
        let mut requests: Vec<Request> = self.link.recv().expect("the server is gone");
        requests.retain(|request| {
            !OPENING.contains(&request.op) && !WITHOUT_ANSWER.contains(&request.op)
        });
        requests
    }

    /// Ends the server: all that wait in the file get ENOTCONN.
    pub fn kill(&mut self) {
        self.server.kill();
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // Before `file` is closed.
        let _ = self.server.0.kill();
        let _ = self.server.0.wait();
    }
}

/// The server's `main`, in the process that was made for it; elsewhere nothing.
pub fn serve() {
    if role().as_deref() != Some(ROLE) {
        return;
    }
    let link = parent();
    feed_watchdog();
    match mount() {
        Ok((device, mount)) => {
            link.send(&Ok::<Fd, String>(Fd::from(mount))).unwrap();
            Server::new(device).run(&link);
        }
        Err(why) => link.send(&Err::<Fd, String>(why)).unwrap(),
    }
}

fn feed_watchdog() {
    // SAFETY: no memory involved. SIGALRM's default action, which nobody here changes, ends the process (signal(7)).
    unsafe { libc::alarm(WATCHDOG.as_secs() as u32) };
}

/// /dev/fuse and a mount of it, at no path.
fn mount() -> Result<(File, OwnedFd), String> {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(|error| format!("opening /dev/fuse: {error}"))?;
    let user = rustix::process::geteuid().as_raw().to_string();
    let group = rustix::process::getegid().as_raw().to_string();
    let mounted = || -> Result<OwnedFd, Errno> {
        let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in [
            ("fd", device.as_raw_fd().to_string().as_str()),
            ("rootmode", "40000"),
            ("user_id", &user),
            ("group_id", &group),
        ] {
            fsconfig_set_string(&context, key, value)?;
        }
        fsconfig_create(&context)?;
        fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )
    };
    match mounted() {
        Ok(mount) => Ok((device, mount)),
        Err(error) => Err(format!("mounting: {error}")),
    }
}

/// `struct fuse_in_header`, what matters of it.
#[derive(Clone, Copy)]
struct Header {
    op: u32,
    unique: u64,
    node: u64,
    thread: u32,
}

impl Header {
    fn parse(bytes: &[u8]) -> Header {
        let u32_at = |at| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let u64_at = |at| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        Header {
            op: u32_at(4),
            unique: u64_at(8),
            node: u64_at(16),
            thread: u32_at(32),
        }
    }
}

struct Server {
    device: File,
    /// `None`: everything but opening.
    hang: Option<HashSet<u32>>,
    seen: Vec<Request>,
    waiting: Vec<Header>,
}

impl Server {
    fn new(device: File) -> Server {
        Server {
            device,
            hang: None,
            seen: Vec::new(),
            waiting: Vec::new(),
        }
    }

    /// Until the other end of `link` closes.
    fn run(&mut self, link: &Link) {
        // At least FUSE_MIN_READ_BUFFER, and a write of MAX_WRITE bytes with its headers.
        let mut buffer = vec![0; 64 << 10];
        loop {
            let mut fds = [
                PollFd::new(link, PollFlags::IN),
                PollFd::new(&self.device, PollFlags::IN),
            ];
            poll(&mut fds, None).unwrap();
            let [orders, requests] = fds.map(|fd| !fd.revents().is_empty());
            if requests {
                let size = self.device.read(&mut buffer).unwrap();
                self.request(&buffer[..size]);
            }
            if orders {
                feed_watchdog();
                match link.recv() {
                    Ok(Order::Hang(hang)) => {
                        self.hang = Some(hang);
                        for request in std::mem::take(&mut self.waiting) {
                            self.treat(request);
                        }
                        link.send(&()).unwrap();
                    }
                    Ok(Order::Requests) => link.send(&self.seen).unwrap(),
                    Err(_) => return,
                }
            }
        }
    }

    fn request(&mut self, bytes: &[u8]) {
        let request = Header::parse(bytes);
        self.seen.push(Request {
            op: request.op,
            thread: request.thread,
        });
        if !WITHOUT_ANSWER.contains(&request.op) {
            self.treat(request);
        }
    }

    fn treat(&mut self, request: Header) {
        let hangs = match &self.hang {
            None => !OPENING.contains(&request.op),
            Some(hang) => hang.contains(&request.op),
        };
        if hangs {
            self.waiting.push(request);
            return;
        }
        let (error, body) = match answer(&request) {
            Some(body) => (0, body),
            None => (-libc::ENOSYS, Vec::new()),
        };
        // `struct fuse_out_header`.
        let mut bytes = (16 + body.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(error.to_ne_bytes());
        bytes.extend(request.unique.to_ne_bytes());
        bytes.extend(body);
        // ENOENT: whoever asked was killed meanwhile.
        if let Err(error) = self.device.write_all(&bytes) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
        }
    }
}

/// The body of the answer; `None` for a request this file knows nothing of.
fn answer(request: &Header) -> Option<Vec<u8>> {
    const MAX_WRITE: u32 = 4096;
    Some(match request.op {
        // `struct fuse_init_out`: version 7.31, no read-ahead, no flags, default queue lengths, MAX_WRITE, and zeros.
        op::INIT => [u32s(&[7, 31, 0, 0, 0, MAX_WRITE]), vec![0; 40]].concat(),
        // `struct fuse_entry_out`: the file, its name valid for an hour, its attributes not at all.
        op::LOOKUP => [u64s(&[FILE, 0, 3600, 0, 0]), attributes(FILE)].concat(),
        // `struct fuse_attr_out`, valid not at all.
        op::GETATTR => [u64s(&[0, 0]), attributes(request.node)].concat(),
        // `struct fuse_open_out`; `struct fuse_kstatfs`.
        op::OPEN => vec![0; 16],
        op::STATFS => vec![0; 80],
        // The end of the file, for READ.
        op::READ | op::FLUSH | op::RELEASE => Vec::new(),
        _ => return None,
    })
}

/// `struct fuse_attr`: a file of a megabyte, or a directory.
fn attributes(node: u64) -> Vec<u8> {
    let mode = if node == ROOT { 0o040_755 } else { 0o100_666 };
    let sizes_and_times = u64s(&[node, 1 << 20, 1 << 11, 0, 0, 0]);
    let nanoseconds_and_mode = u32s(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0]);
    [sizes_and_times, nanoseconds_and_mode].concat()
}

fn u64s(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn u32s(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

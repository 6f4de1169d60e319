//! What the tests share: descriptors counted, children made of the test itself, a peer that speaks raw packets.
#![allow(dead_code, missing_docs, unreachable_pub, unused_imports)]

pub mod fuse;
mod kinds;

pub mod broker;
pub mod raw;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use memlane_transport::{Link, Listener};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use kinds::{Kinds, kinds};

/// This executable in a role, as a child that is born with a link.
pub fn worker(role: &str) -> memlane_transport::Command {
    memlane_transport::Command::new(std::env::current_exe().unwrap())
        .args([
            "other_process",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("MEMLANE_TEST_ROLE", role)
        .stdout(Stdio::null())
        .kill_on_drop(true)
}

/// One test at a time in this process, and as many descriptors after it as before.
pub fn alone() -> Alone {
    static ONE: Mutex<()> = Mutex::new(());
    let turn = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    allow_enough();
    Alone {
        before: descriptors(),
        _turn: turn,
    }
}

/// What most tests take; those with more say so.
const ENOUGH: u64 = 1024;

/// Allows this process as many descriptors as tests take, where somebody has set a lower limit that may be raised.
fn allow_enough() {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(ENOUGH).min(ENOUGH);
    if limit.current.is_some_and(|current| current < most) {
        let current = Some(most);
        setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
    }
}

pub struct Alone {
    before: BTreeMap<i32, String>,
    _turn: MutexGuard<'static, ()>,
}

impl Alone {
    /// Descriptors refused by a link may be closed by another thread a little later.
    pub fn settled(&self) {
        until("as many descriptors as before", || {
            descriptors() == self.before
        });
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while descriptors() != self.before {
            assert!(
                Instant::now() < deadline,
                "leaked: {:?}, before: {:?}",
                descriptors(),
                self.before
            );
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Open descriptors and what they are, but for what a thread that starts for another test has open for a moment (glibc asks a file of
/// /sys for the number of processors).
pub fn descriptors() -> BTreeMap<i32, String> {
    let mut open = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let number: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let target = match fs::read_link(entry.path()) {
            Ok(path) => path.display().to_string(),
            // Closed meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(_) => String::new(),
        };
        let passing = target.starts_with("/sys/");
        // The directory being read.
        if !passing && !target.ends_with("/fd") {
            open.insert(number, target);
        }
    }
    open
}

/// Waits for something that another thread or process does. Failing takes a minute, succeeding no longer than it must.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "still waiting for: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// This test's executable again, running only `test`, with `fd` as its standard input.
pub fn child(test: &str, role: &str, fd: impl Into<OwnedFd>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env("MEMLANE_TEST_ROLE", role);
    command.stdin(Stdio::from(fd.into())).stdout(Stdio::null());
    command
}

/// The role given to this process by [`child`], if it is one.
pub fn role() -> Option<String> {
    std::env::var("MEMLANE_TEST_ROLE").ok()
}

/// The link that [`child`] passed.
pub fn parent() -> Link {
    Link::from_fd(std::io::stdin().as_fd().try_clone_to_owned().unwrap()).unwrap()
}

/// A child that is killed with the test.
#[derive(Debug)]
pub struct Reaped(pub Child);

impl Reaped {
    pub fn spawn(command: &mut Command) -> Reaped {
        Reaped(command.spawn().unwrap())
    }

    /// Spawns it as a user that has nothing, if this process may do that and that user may run the file.
    pub fn spawn_as(user: u32, command: &mut Command) -> Option<Reaped> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can start a process of another user");
            return None;
        }
        match command.uid(user).gid(user).spawn() {
            Ok(process) => Some(Reaped(process)),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                eprintln!("skipped: uid {user} cannot run the test's executable, {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    pub fn succeed(&mut self) {
        assert!(
            self.0.wait().unwrap().success(),
            "the child failed, see above"
        );
    }

    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Turns this process, all its threads, into one of another user and with these groups. It must be root.
pub fn become_user(user: u32, groups: &[u32]) {
    // SAFETY: plain calls; the pointer has as many groups as are said. The C library changes every thread.
    let done = unsafe {
        libc::setgroups(groups.len(), groups.as_ptr()) == 0
            && libc::setresgid(user, user, user) == 0
            && libc::setresuid(user, user, user) == 0
    };
    assert!(done, "{}", std::io::Error::last_os_error());
}

/// The next client; a child that failed before it connected is not waited for for ever.
pub fn accept(listener: &Listener) -> Link {
    listener.accept_timeout(Duration::from_secs(60)).unwrap()
}

/// Sends bytes and descriptors as they are.
pub fn raw_send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let sent = sendmsg(
        socket,
        &[std::io::IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .unwrap();
    assert_eq!(sent, bytes.len());
}

/// A packet without fields.
pub fn frame(announced: u16, body: &[u8]) -> Vec<u8> {
    packet(announced, &[], body)
}

/// A packet: mark, version, number of descriptors, lengths, fields, body.
pub fn packet(announced: u16, fields: &[u8], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![b'm', 1];
    for word in [announced, fields.len() as u16, body.len() as u16] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(fields);
    bytes.extend(body);
    bytes
}

/// A file of its own: no two calls give the same inode.
pub fn memfd() -> OwnedFd {
    rustix::fs::memfd_create("memlane-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
}

/// Which file it is.
pub fn inode(fd: impl AsFd) -> (u64, u64) {
    let stat = rustix::fs::fstat(fd).unwrap();
    (stat.st_dev, stat.st_ino)
}

/// Waits until every writing end of the pipe is closed.
pub fn all_writers_closed(reader: impl AsFd) {
    let mut fds = [PollFd::new(&reader, PollFlags::empty())];
    let minute = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut fds, Some(&minute)).unwrap(), 1, "leaked");
    assert!(fds[0].revents().contains(PollFlags::HUP));
}

/// A directory of its own, removed with the value.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Directory {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        loop {
            let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let path =
                std::env::temp_dir().join(format!("memlane-test-{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => {
                    // Other users enter it, whatever the umask is.
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
                    return Directory(path);
                }
                // Of a process that was killed, or one of the same number in another namespace.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An abstract name of this process's own.
pub fn abstract_name(name: &str) -> memlane_transport::Address {
    memlane_transport::Address::abstract_name(format!("memlane-test-{}-{name}", std::process::id()))
        .unwrap()
}

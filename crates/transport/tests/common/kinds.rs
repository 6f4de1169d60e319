//! One descriptor of each kind that a peer may send in place of another.

use std::fs::File;
use std::net::TcpListener;
use std::ops::Deref;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use memlane_transport::Link;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

use super::Directory;
use super::fuse::Fuse;

/// Descriptors with their names. They are closed after the server of the one among them that hangs.
#[derive(Debug)]
pub struct Kinds {
    all: Vec<(&'static str, OwnedFd)>,
    fuse: Option<Fuse>,
}

impl Kinds {
    /// The server of the hung file, if FUSE is to be had.
    pub fn fuse(&self) -> Option<&Fuse> {
        self.fuse.as_ref()
    }

    /// Ends the server of the hung file, so that copies can be closed.
    pub fn kill_fuse(&mut self) {
        if let Some(fuse) = &mut self.fuse {
            fuse.kill();
        }
    }
}

impl Deref for Kinds {
    type Target = [(&'static str, OwnedFd)];

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl Drop for Kinds {
    fn drop(&mut self) {
        self.fuse = None;
    }
}

/// One of each. The test file needs a `fuse_server`, see [`fuse`](super::fuse); without FUSE the hung file is left out.
pub fn kinds() -> Kinds {
    let fuse = Fuse::start();
    let mut all: Vec<(&'static str, OwnedFd)> = Vec::new();
    let mut add = |name, fd: OwnedFd| all.push((name, fd));

    add("memfd that can be sealed", memfd(SealFlags::empty()));
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    add("sealed memfd", memfd(seals));
    match tmpfs_file() {
        Ok(file) => add("tmpfs file", file),
        Err(error) => eprintln!("skipped: tmpfs file, /dev/shm has none to give: {error}"),
    }
    add("regular file", regular_file());
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    add("pipe, reading end", reader);
    add("pipe, writing end", writer);
    add("eventfd", eventfd());
    add("timerfd", timerfd());
    add("epoll", epoll());
    add("signalfd", signalfd());
    add("inotify", inotify());
    add("pidfd", pidfd());
    add("Unix stream socket", UnixStream::pair().unwrap().0.into());
    add("Unix seqpacket socket", Link::pair().unwrap().0.into());
    add(
        "Unix datagram socket",
        UnixDatagram::unbound().unwrap().into(),
    );
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a loopback interface");
    add("TCP socket", tcp.into());
    add("O_PATH", open("/", OFlags::PATH));
    add("directory", open("/", OFlags::RDONLY | OFlags::DIRECTORY));
    add("/dev/null", open("/dev/null", OFlags::RDWR));
    if let Some(fuse) = &fuse {
        add("hung FUSE file", fuse.file().try_clone_to_owned().unwrap());
    }
    Kinds { all, fuse }
}

fn memfd(seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("memlane-test", flags).unwrap();
    rustix::fs::ftruncate(&fd, 4096).unwrap();
    rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
    fd
}

/// Without a name, like the memory of shm_open(3) after shm_unlink(3).
fn tmpfs_file() -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::open("/dev/shm", flags, Mode::RUSR | Mode::WUSR)?;
    // TMPFS_MAGIC (linux/magic.h).
    match rustix::fs::fstatfs(&fd)?.f_type {
        0x0102_1994 => Ok(fd),
        _ => Err(rustix::io::Errno::OPNOTSUPP),
    }
}

/// Of whatever file system holds temporary files; where that is a tmpfs, it is one more of those.
fn regular_file() -> OwnedFd {
    let directory = Directory::new();
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true);
    file.open(directory.join("file")).unwrap().into()
}

fn eventfd() -> OwnedFd {
    use rustix::event::EventfdFlags;
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn timerfd() -> OwnedFd {
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
    timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).unwrap()
}

fn epoll() -> OwnedFd {
    rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap()
}

fn signalfd() -> OwnedFd {
    // SAFETY: sigset_t is plain data; all zero is the empty set on Linux.
    let nothing: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: signalfd(2) only reads the set.
    let fd = unsafe { libc::signalfd(-1, &raw const nothing, libc::SFD_CLOEXEC) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: just made for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn inotify() -> OwnedFd {
    rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).unwrap()
}

fn pidfd() -> OwnedFd {
    use rustix::process::{PidfdFlags, getpid, pidfd_open};
    pidfd_open(getpid(), PidfdFlags::empty()).unwrap()
}

fn open(path: &str, flags: OFlags) -> OwnedFd {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

//! Closing descriptors whose kind nobody has checked.
//!
//! close(2) on a file of a hostile or dead FUSE or NFS server sleeps until that server answers, and not even SIGKILL ends the
//! sleep (THREATS A18). A descriptor that a peer sent and this process refuses is such a file until proven otherwise, so it
//! is not closed on the thread that refused it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::net::AddressFamily;

/// Threads that close at the same time.
pub const MAX_DISPOSERS: usize = 16;

/// Closes `fd` without ever waiting for a file system.
///
/// Shared memory (F_GET_SEALS answers) and Unix sockets are closed at once: neither can hang, and both questions are
/// answered by the kernel without asking the file's owner. Anything else is closed by one of at most [`MAX_DISPOSERS`]
/// threads that live as long as there is something to close.
///
/// When all of them hang, further descriptors wait in a queue and count against RLIMIT_NOFILE: a peer can fill the limit only
/// by breaking a link for each refused message, so limit how often one peer may reconnect. When no thread can be started,
/// descriptors wait until the next call. What still hangs when the process exits hangs the exit: keep peers that can serve
/// FUSE files (`/dev/fuse`, user namespaces) out of a trusted process's listener.
pub fn dispose(fd: OwnedFd) {
    if is_harmless(&fd) {
        drop(fd);
        return;
    }
    let mut disposer = disposer();
    disposer.queue.push_back(fd);
    // A thread takes one descriptor at a time: those that wait need a thread each, as the ones being closed may never end.
    if disposer.threads < MAX_DISPOSERS {
        let spawned = thread::Builder::new()
            .name("memlane-dispose".to_owned())
            .stack_size(128 << 10)
            .spawn(close_all);
        disposer.threads += usize::from(spawned.is_ok());
    }
}

fn is_harmless(fd: &OwnedFd) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok()
        || rustix::net::sockopt::socket_domain(fd.as_fd())
            .is_ok_and(|domain| domain == AddressFamily::UNIX)
}

struct Disposer {
    queue: VecDeque<OwnedFd>,
    threads: usize,
    /// The process that `threads` are counted in: a forked child has none of its parent's.
    process: u32,
}

static DISPOSER: Mutex<Disposer> = Mutex::new(Disposer {
    queue: VecDeque::new(),
    threads: 0,
    process: 0,
});

fn disposer() -> MutexGuard<'static, Disposer> {
    let mut disposer = DISPOSER.lock().unwrap_or_else(PoisonError::into_inner);
    let process = std::process::id();
    if disposer.process != process {
        disposer.process = process;
        disposer.threads = 0;
    }
    disposer
}

fn close_all() {
    loop {
        let mut disposer = disposer();
        let Some(fd) = disposer.queue.pop_front() else {
            disposer.threads -= 1;
            return;
        };
        drop(disposer);
        drop(fd);
    }
}

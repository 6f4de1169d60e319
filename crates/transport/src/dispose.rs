//! Closing descriptors that can make close(2) wait.
//!
//! close(2) on a file of a hostile or dead FUSE or NFS server sleeps until that server answers, and not even SIGKILL ends the
//! sleep (THREATS A18). A TCP socket whose peer takes nothing waits as long as SO_LINGER says, which is up to whoever set it
//! (socket(7)); and closing a *Unix* socket closes what is unread in its queue, where such a socket can be, sent by the
//! other end. So what came from a peer, and what a peer can send to, is not closed on the thread that is done with it.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, ReturnFlags, recv, recvmsg, sockopt,
};

/// Threads that close at the same time.
pub const MAX_DISPOSERS: usize = 16;

/// How long a thread waits for more to close.
const IDLE: Duration = Duration::from_millis(200);

/// Closes `fd` without ever waiting for a file system or a network.
///
/// Shared memory (F_GET_SEALS answers) is closed at once: it cannot hang, and the kernel answers without asking the file's
/// owner. Anything else is closed by one of at most [`MAX_DISPOSERS`] threads, which end when there has been nothing to
/// close for 200 ms. [`Link`](crate::Link)s, [`Receipt`](crate::Receipt)s and received [`Fd`](crate::Fd)s do this when they are dropped: the other end of a
/// link learns of it some microseconds later.
///
/// When all of them hang, links without anything unread are closed at once after all, and further descriptors wait in
/// a queue and count against RLIMIT_NOFILE. What a message brought is one job, so a peer gets there only by breaking or
/// leaving a link for each thread, or by sending descriptors that the receiver drops one by one: limit how often one may reconnect; a link that takes no descriptors at all ([`Limits::received_descriptors`](crate::Limits::received_descriptors)) cannot be used for it
/// from Linux 6.16 on. Where no thread can be started (a seccomp filter without clone(2)), Unix sockets are closed at once, and
/// what else there is waits for ever.
///
/// What still hangs when the process exits hangs the exit, and the execve(2) of a forked child, which closes its copies: keep
/// peers that can serve FUSE files (`/dev/fuse`, user namespaces) out of a trusted process's listener. A fork that does not
/// exec may inherit what waits to be closed, and the lock that a thread held: use links on one side of a fork only. Dropping
/// a link starts a thread, so a process that has to be single-threaded (unshare(2) of a user namespace) does that before.
pub fn dispose(fd: OwnedFd) {
    dispose_all(vec![fd]);
}

/// [`dispose`] for what came in one message: one thread at most hangs for it.
pub(crate) fn dispose_all(mut fds: Vec<OwnedFd>) {
    fds.retain(|fd| rustix::fs::fcntl_get_seals(fd).is_err());
    if !fds.is_empty() {
        enqueue(Closing { fds, done: None });
    }
}

/// [`dispose`], but returns only when it is closed, or after `timeout`, or when all the threads hang.
pub(crate) fn dispose_within(fd: OwnedFd, timeout: Duration) {
    let (done, closed) = mpsc::sync_channel(0);
    let begun = enqueue(Closing {
        fds: vec![fd],
        done: Some(done),
    });
    if begun {
        // Nothing is ever sent: the channel is closed with the descriptor.
        let _: Result<(), RecvTimeoutError> = closed.recv_timeout(timeout);
    }
}

struct Closing {
    /// Closed first: fields are dropped in this order.
    fds: Vec<OwnedFd>,
    /// Dropped to say that the descriptor is closed. There for sockets of this process's own.
    done: Option<SyncSender<()>>,
}

struct Disposer {
    queue: VecDeque<Closing>,
    threads: usize,
    /// Those of them that wait for something to close, or have been told of it.
    idle: usize,
    /// The process that `threads` are counted in: a forked child has none of its parent's.
    process: u32,
}

static DISPOSER: Mutex<Disposer> = Mutex::new(Disposer {
    queue: VecDeque::new(),
    threads: 0,
    idle: 0,
    process: 0,
});
static MORE: Condvar = Condvar::new();

fn disposer() -> MutexGuard<'static, Disposer> {
    let mut disposer = DISPOSER.lock().unwrap_or_else(PoisonError::into_inner);
    let process = std::process::id();
    if disposer.process != process {
        disposer.process = process;
        disposer.threads = 0;
        disposer.idle = 0;
    }
    disposer
}

/// Whether a thread closes it now.
fn enqueue(closing: Closing) -> bool {
    let mut disposer = disposer();
    // A thread takes one descriptor at a time: those that wait need a thread each, as the ones being closed may never end.
    if disposer.queue.len() < disposer.idle {
        disposer.queue.push_back(closing);
        MORE.notify_one();
        return true;
    }
    if disposer.threads < MAX_DISPOSERS {
        disposer.queue.push_back(closing);
        let spawned = thread::Builder::new()
            .name("memlane-dispose".to_owned())
            .stack_size(128 << 10)
            .spawn(close_all);
        if spawned.is_ok() {
            disposer.threads += 1;
            return true;
        }
        // A sandbox without threads, perhaps: a peer that is never hung up on would be worse than one that can delay this.
        let closing = disposer.queue.pop_back();
        if let Some(closing) = closing {
            if disposer.threads > 0 || !closing.fds.iter().all(is_unix_socket) {
                disposer.queue.push_back(closing);
            } else {
                drop(disposer);
                drop(closing);
            }
        }
        return false;
    }
    // Only of sockets that are this process's own: on one that a peer has, too, a look can hang (THREATS C5b).
    if closing.done.is_some() && closing.fds.iter().all(|fd| has_nothing_unread(fd.as_fd())) {
        // It could get something in this moment; but then its peer would have had to fill all the threads before.
        drop(disposer);
        drop(closing);
    } else {
        disposer.queue.push_back(closing);
    }
    false
}

/// The kernel answers without entering the file.
fn is_unix_socket(fd: &OwnedFd) -> bool {
    sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX)
}

/// Packets looked at: more than fit a send buffer of the usual size (THREATS A28).
const LOOKS: u32 = 512;

/// Whether nothing with descriptors is in the queue of a Unix socket, as far as can be seen: bytes are in front of what is
/// behind them. A hang-up and an empty packet look the same, and an empty packet can be in front of others.
fn has_nothing_unread(fd: BorrowedFd<'_>) -> bool {
    let mut byte = [0];
    for _ in 0..LOOKS {
        let mut into = [IoSliceMut::new(&mut byte)];
        // Without room for descriptors they are not installed, but told of (MSG_CTRUNC).
        let mut none = RecvAncillaryBuffer::default();
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        match recvmsg(fd, &mut into, &mut none, flags) {
            Err(Errno::AGAIN) => return true,
            Ok(found) if found.bytes == 0 && !found.flags.contains(ReturnFlags::CTRUNC) => {
                let _ = recv(fd, &mut byte, RecvFlags::DONTWAIT);
            }
            _ => return false,
        }
    }
    true
}

fn close_all() {
    let mut disposer = disposer();
    loop {
        if let Some(closing) = disposer.queue.pop_front() {
            drop(disposer);
            drop(closing);
            disposer = self::disposer();
            continue;
        }
        disposer.idle += 1;
        let (woken, waited) = MORE
            .wait_timeout(disposer, IDLE)
            .unwrap_or_else(PoisonError::into_inner);
        disposer = woken;
        disposer.idle -= 1;
        if waited.timed_out() && disposer.queue.is_empty() {
            disposer.threads -= 1;
            return;
        }
    }
}

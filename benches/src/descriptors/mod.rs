//! What it costs to pass descriptors: a link beside bare sendmsg(2) and recvmsg(2).
//!
//! A message is a number of eight bytes and some descriptors, the same memfds each time. The receiver owns
//! every descriptor that came and closes it. Both contenders run through the same loops, which know only
//! [`Outgoing`] and [`Incoming`]:
//!
//! * [`one_thread`]: one thread sends, receives and closes by turns, which is the cost of both ends and
//!   nothing else. [`split`] says how that cost divides.
//! * [`two_processes`]: a sender that never pauses, a receiver that counts.

pub mod bare;
pub mod link;
pub mod report;
pub mod two_processes;

use std::fmt;
use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use memlane_transport::Error;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The kinds of sockets that are measured.
pub const KINDS: &[Kind] = &[Kind::Seqpacket, Kind::Stream];

/// Descriptors in a message, as measured by default.
pub const COUNTS: &[usize] = &[0, 1, 4, 64, 253, 1000];

/// What a link is to reach at least, of the rate of the bare calls, where a message has descriptors and fits
/// one packet.
pub const TARGET: f64 = 0.95;

/// SCM_MAX_FD: more do not go with one sendmsg(2) (unix(7)).
pub const SCM_MAX_FD: usize = 253;

/// A kind of Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// SOCK_SEQPACKET.
    Seqpacket,
    /// SOCK_STREAM.
    Stream,
}

/// What passes the descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Contender {
    /// Bare calls that do not wait, and poll(2) when they would have to: what a link does.
    Bare,
    /// Bare calls that wait in the kernel. The same as the other where nothing ever waits.
    BareBlocking,
    /// `memlane_transport::Link`.
    Link,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seqpacket => "seqpacket",
            Self::Stream => "stream",
        })
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bare => "bare",
            Self::BareBlocking => "bare-blocking",
            Self::Link => "link",
        })
    }
}

/// What is measured at a time.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// The sockets.
    pub kind: Kind,
    /// What passes the descriptors.
    pub contender: Contender,
    /// Descriptors in each message.
    pub count: usize,
    /// Messages.
    pub messages: u64,
}

/// The sending end of a socket, with the descriptors that it sends.
pub trait Outgoing {
    /// Sends `number` and all descriptors, waiting while there is no room.
    ///
    /// # Errors
    ///
    /// Fails if the socket does, or if the contender cannot send that many descriptors.
    fn send(&mut self, number: u64) -> Result<()>;
}

/// The receiving end of a socket.
pub trait Incoming {
    /// Receives a message, waiting while there is none, keeps its descriptors, and returns its number.
    ///
    /// # Errors
    ///
    /// Fails if the socket does, if the other end is gone, or if something was lost.
    fn recv(&mut self) -> Result<u64>;

    /// Closes the descriptors of all messages received since the last call, and says how many there were.
    fn close(&mut self) -> usize;
}

/// Both ends of a new socket of a kind, close-on-exec.
///
/// # Errors
///
/// Fails if there is no descriptor left.
pub fn pair(kind: Kind) -> Result<(OwnedFd, OwnedFd)> {
    let kind = match kind {
        Kind::Seqpacket => SocketType::SEQPACKET,
        Kind::Stream => SocketType::STREAM,
    };
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).context("socketpair")
}

/// As many descriptors to send, each of a memfd of its own.
///
/// # Errors
///
/// Fails if there is no descriptor left.
pub fn memfds(count: usize) -> Result<Vec<OwnedFd>> {
    (0..count)
        .map(|_| memfd_create("memlane-bench", MemfdFlags::CLOEXEC).context("memfd_create"))
        .collect()
}

/// Allows this process, and those it starts, as many descriptors as it may allow itself.
///
/// # Errors
///
/// Fails if the kernel refuses.
pub fn raise_limit() -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).context("RLIMIT_NOFILE")
}

/// What a contender says when a message has more descriptors than it can send, if `error` is that.
pub fn refusal(error: &anyhow::Error) -> Option<String> {
    match error.downcast_ref() {
        Some(error @ Error::TooManyDescriptors { .. }) => Some(error.to_string()),
        _ => None,
    }
}

/// Sends, receives and closes by turns on this thread. Nanoseconds a message.
///
/// # Errors
///
/// Fails if the contender does, or if a message is not the one that was sent.
pub fn one_thread(task: &Task) -> Result<f64> {
    with_ends(task, alternate)
}

/// Nanoseconds a message, of one side each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Split {
    /// In sending.
    pub send: f64,
    /// In receiving.
    pub recv: f64,
    /// In closing what came.
    pub close: f64,
}

/// Messages that [`split`] sends before it receives them. They have to fit the socket.
const BATCH: u64 = 16;

/// As [`one_thread`], but many messages are sent, then all of them received, then all closed, with one
/// timestamp between: so the parts are told apart without a clock in them.
///
/// # Errors
///
/// As [`one_thread`].
pub fn split(task: &Task) -> Result<Split> {
    let Split { send, recv, close } = with_ends(task, in_batches)?;
    let messages = task.messages.next_multiple_of(BATCH) as f64;
    Ok(Split {
        send: send / messages,
        recv: recv / messages,
        close: close / messages,
    })
}

/// The loops of one thread, for ends of any type.
type Loop<T> = fn(&Task, &mut dyn Ends) -> Result<T>;

/// Both ends of a socket. Each method is a loop over the two, so that the calls in it are direct ones.
trait Ends {
    fn alternate(&mut self, task: &Task) -> Result<()>;
    fn send_all(&mut self, numbers: std::ops::Range<u64>) -> Result<()>;
    fn recv_all(&mut self, numbers: std::ops::Range<u64>) -> Result<()>;
    fn close_all(&mut self) -> usize;
}

impl<O: Outgoing, I: Incoming> Ends for (O, I) {
    fn alternate(&mut self, task: &Task) -> Result<()> {
        let (outgoing, incoming) = self;
        for number in 0..task.messages {
            outgoing.send(number)?;
            expect(incoming.recv()?, number)?;
            let closed = incoming.close();
            ensure!(closed == task.count, "{closed} descriptors came");
        }
        Ok(())
    }

    fn send_all(&mut self, mut numbers: std::ops::Range<u64>) -> Result<()> {
        numbers.try_for_each(|number| self.0.send(number))
    }

    fn recv_all(&mut self, mut numbers: std::ops::Range<u64>) -> Result<()> {
        numbers.try_for_each(|number| expect(self.1.recv()?, number))
    }

    fn close_all(&mut self) -> usize {
        self.1.close()
    }
}

fn alternate(task: &Task, ends: &mut dyn Ends) -> Result<f64> {
    let warm = Task {
        messages: task.messages / 10,
        ..*task
    };
    ends.alternate(&warm)?;
    let start = Instant::now();
    ends.alternate(task)?;
    Ok(start.elapsed().as_nanos() as f64 / task.messages as f64)
}

fn in_batches(task: &Task, ends: &mut dyn Ends) -> Result<Split> {
    let mut split = Split::default();
    // The first batch is not counted.
    for batch in 0..=task.messages.div_ceil(BATCH) {
        let numbers = batch * BATCH..(batch + 1) * BATCH;
        let begin = Instant::now();
        ends.send_all(numbers.clone())?;
        let sent = Instant::now();
        ends.recv_all(numbers)?;
        let received = Instant::now();
        let closed = ends.close_all();
        if batch == 0 {
            continue;
        }
        split.close += received.elapsed().as_nanos() as f64;
        split.recv += (received - sent).as_nanos() as f64;
        split.send += (sent - begin).as_nanos() as f64;
        ensure!(
            closed == task.count * BATCH as usize,
            "{closed} descriptors came"
        );
    }
    Ok(split)
}

fn with_ends<T>(task: &Task, run: Loop<T>) -> Result<T> {
    let (near, far) = pair(task.kind)?;
    let descriptors = memfds(task.count)?;
    match task.contender {
        Contender::Bare | Contender::BareBlocking => {
            let waiting = bare::Waiting::of(task.contender);
            let outgoing = bare::Outgoing::new(near, descriptors, waiting);
            run(task, &mut (outgoing, bare::Incoming::new(far, waiting)))
        }
        Contender::Link => {
            let outgoing = link::Outgoing::new(near, descriptors)?;
            run(task, &mut (outgoing, link::Incoming::new(far)?))
        }
    }
}

fn expect(number: u64, expected: u64) -> Result<()> {
    ensure!(
        number == expected,
        "message {number} came in the place of {expected}"
    );
    Ok(())
}

//! Owned shared memory and the descriptors that wake it, handed between Linux processes: messages without
//! copies and without system calls.
//!
//! One process binds a service and publishes:
//!
//! ```no_run
//! let mut publisher = memlane::Publisher::bind("camera")?;
//! publisher.wait_for_subscribers(1)?; // with nobody there, a message goes nowhere
//! publisher.send(b"a frame")?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! any number of others connect and receive every message from then on:
//!
//! ```no_run
//! let mut subscriber = memlane::Subscriber::connect("camera")?;
//! println!("{} bytes", subscriber.recv()?.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! One subscriber can have many publishers ([`Subscriptions`]).
//! Many processes send to one through a queue ([`Receiver`], [`Sender`]), or ask one ([`Client`], [`Server`]); where only the newest value
//! counts, it is watched ([`WatchSender`], [`WatchReceiver`]); parent and child need no name ([`Command`], [`parent`]).
//!
//! Between them lies a *lane*: a ring in a region that the publisher writes and the kernel lets nobody else write,
//! one control page of each subscriber's own, a doorbell each way, and the link (a Unix socket) over which they
//! met. While both sides are awake, a message costs no system call, no lock and no allocation.
//!
//! - **Lossless, unless asked for otherwise.** A publisher waits for its slowest subscriber ([`Publisher::send`]) or says so
//!   ([`Publisher::try_send`]). One that has left, or died, holds nothing up; nor does one that is to be overwritten
//!   ([`Overflow::Overwrite`]), which is told exactly how many messages it has missed.
//! - **Of any length.** What is too long for the ring lies in a pool of the publisher's, written and read in place
//!   ([`Publisher::reserve`], [`Publisher::loan`]), and can be kept ([`Message::hold`]).
//! - **Death comes from the kernel.** A killed publisher's committed messages are still delivered, then
//!   [`RecvError::Disconnected`], which says whether it closed the lane or died ([`Reason`]). Nobody is declared dead for
//!   being slow.
//! - **Nothing is left behind.** The memory has no name and goes with its last holder.
//! - **Nobody has to be trusted.** A subscriber can write nothing of the publisher's, a publisher nothing of the
//!   subscriber's; words in shared memory are checked when they are read, and payload is copied out, unless
//!   the user vouches for the publisher once ([`SubscriberBuilder::trust_publisher`]).
//!
//! - **Ends move.** A subscriber is carried on by another process, which gets exactly the next message ([`Subscriber::ticket`]); so is
//!   a receiver, with all its senders ([`Receiver::ticket`]); a publisher by another one, and its subscribers do not notice
//!   ([`Publisher::ticket`]).
//! - **Bytes, or types.** [`PublisherBuilder::of`] makes messages plain values, slices, or any serde type.
//!
//! Each end blocks, or is polled (`try_`); in a loop of one's own it is a descriptor ([`Watched`]), and in a task it is
//! awaited ([`Async`]).
//!
//! It runs on Linux 5.11 or newer.
//!
//! # Features
//! None is on by itself.
//! - `tokio`: `memlane::tokio`, lane ends in a tokio runtime, without a thread.
//! - `sandbox`: `memlane::sandbox`, and what it takes for [`Command`] to restrict a child to some files and system calls.
//! - `stream`: [`Async`] ends as `Stream` and `Sink`, as far as futures-core and futures-sink say what those are.
#![deny(unsafe_code)]

#[cfg(test)]
#[macro_use]
#[path = "../../region/src/documented.rs"]
mod documented;

mod accepting;
mod client;
mod connecting;
mod doorbells;
mod envelope;
mod error;
mod future;
mod names;
mod page;
mod payload;
mod protocol;
mod publisher;
mod reactor;
mod receiver;
mod receiving;
mod server;
mod subscriber;
mod subscriptions;
#[cfg(feature = "tokio")]
pub mod tokio;
mod watched;

pub use client::{
    Answer, Call, CallError, CallId, Client, ClientBuilder, ClientStats, Reply, SharedClient,
};
pub use connecting::{Connecting, Connects};
pub use error::{
    AttachmentError, ChunkError, Error, Reason, RecvError, RecvTimeoutError, SendError,
    SendTimeoutError, TryRecvError, TrySendError,
};
pub use future::{Async, ControlThread, Readiness};
#[doc(no_inline)]
pub use memlane_region as region;
pub use memlane_region::{
    latest::{ReadError, Update},
    pool::Loan,
    ring::{Corrupt, LossyError},
};
#[doc(no_inline)]
pub use memlane_signaling as signaling;
pub use memlane_signaling::{Backing, WaitPolicy};
#[doc(no_inline)]
pub use memlane_transport as transport;
#[cfg(feature = "sandbox")]
#[doc(no_inline)]
pub use memlane_transport::sandbox;
#[doc(no_inline)]
pub use memlane_transport::spawn;
pub use memlane_transport::{
    Access, Address, Child, Command, Fd, Fds, Link, Peer, Process, SpawnError, parent, parent_link,
};
pub use names::{Directory, Service, address_of, services};
pub use payload::{
    Answers, AsClient, AsPublisher, AsServer, Asked, Encoded, Payload, PayloadError, PayloadType,
    Plain, PlainMessage, PlainReservation, Receives, Slice, SliceMessage, SliceReservation, Typed,
    Values,
};
pub use protocol::Overflow;
#[cfg(feature = "stream")]
pub use publisher::Sending;
pub use publisher::{
    Decision, Lagging, Publisher, PublisherBuilder, PublisherStats, PublisherStays,
    PublisherTicket, Reservation, TooLong, WatchSender, WatchSenderBuilder, WhenFull,
};
pub use receiver::{Receiver, ReceiverStats, ReceiverTicket, Remains, gather::Key};
pub use server::{Answering, ReplyError, Request, Responder, Server, ServerBuilder, ServerStats};
#[cfg(feature = "stream")]
pub use subscriber::Messages;
pub use subscriber::{
    Held, Message, Stays, Subscriber, SubscriberBuilder, SubscriberStats, Ticket, Trust, Trusted,
    Untrusted, WatchError, WatchReceiver, WatchReceiverBuilder, WatchReceiverStats, WatchTicket,
};
pub use subscriptions::{Ended, Received, Subscriptions, SubscriptionsStats, SubscriptionsTicket};
pub use watched::{End, Watched};

/// The sending end of a queue: a [`Publisher`] that has connected to a [`Receiver`] ([`Publisher::connect`]).
pub type Sender = Publisher;

/// A pidfd of the process that connected a link, or accepted it, to learn of its death even where something else
/// holds a copy of the link. None if the kernel has no such thing, or if it is this process.
///
/// Not for links that were made elsewhere: of a pair, the kernel says who *made* it.
fn process_of(link: &Link) -> std::io::Result<Option<std::os::fd::OwnedFd>> {
    let peer = link.peer()?;
    if peer.pid() == Some(std::process::id()) {
        return Ok(None);
    }
    Ok(peer.into_pidfd())
}

/// Whether whoever has the other end of a link is gone, as far as either of its sockets tells, or the process.
fn is_gone(link: &Link, process: Option<&std::os::fd::OwnedFd>) -> std::io::Result<bool> {
    use std::os::fd::AsFd;
    if memlane_signaling::gone(link.as_fd(), process.map(AsFd::as_fd))? {
        return Ok(true);
    }
    link.sends_over()
        .map_or(Ok(false), |out| memlane_signaling::gone(out, None))
}

/// A pidfd of the user's own, who says that its process has the other end of a link.
fn pidfd_of(process: impl std::os::fd::AsFd) -> Result<std::os::fd::OwnedFd, Error> {
    use rustix::{
        io::Errno,
        process::{WaitId, WaitIdOptions, waitid},
    };
    let process = process.as_fd();
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match waitid(WaitId::PidFd(process), options) {
        // ECHILD: of a process that is no child, or has been waited for.
        Ok(_) | Err(Errno::CHILD) => process.try_clone_to_owned(),
        Err(error) => Err(error.into()),
    }
    .map_err(Error::os("watch the process: expected its pidfd"))
}

/// No time to wait.
const NOW: rustix::time::Timespec = rustix::time::Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// A deadline. One so far away that no clock can tell it is none.
fn after(timeout: std::time::Duration) -> Option<std::time::Instant> {
    std::time::Instant::now().checked_add(timeout)
}

/// What is left of the time until a deadline; without one, all the time there is.
fn left(deadline: Option<std::time::Instant>) -> std::time::Duration {
    deadline.map_or(std::time::Duration::MAX, |deadline| {
        deadline.saturating_duration_since(std::time::Instant::now())
    })
}

/// Both ends can be moved to the thread that uses them.
const _: () = {
    const fn can_be_sent<T: Send>() {}
    can_be_sent::<Publisher>();
    can_be_sent::<Subscriber>();
    can_be_sent::<Subscriber<Trusted>>();
    can_be_sent::<Client>();
    can_be_sent::<Server>();
    can_be_sent::<Responder>();
    can_be_sent::<Call>();
};

/// The examples of README.md and of docs, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
#[doc = include_str!("../../../docs/services.md")]
#[doc = include_str!("../../../docs/moving.md")]
struct Readme;

/// The examples of docs/waiting.md, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/waiting.md")]
struct Waiting;

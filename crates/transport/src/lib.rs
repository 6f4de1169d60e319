//! Unix sockets that carry typed messages and descriptors: SCM_RIGHTS without loss, leak or surprise.
//!
//! A [`Link`] connects two processes. Any serde value goes over it, with descriptors anywhere inside ([`Fd`], [`FdRef`],
//! or [`Typed`] ones, even whole links); a [`Listener`] makes links for those who know its [`Address`], and a [`Peer`] says who they
//! are. The other end may be broken or hostile: it can end its link and nothing else. No panic, no descriptor leaked, no
//! sleep in a file it serves, no memory or work beyond what its packet holds.
//!
//! ```
//! use std::io::Write;
//! use std::os::fd::OwnedFd;
//! use std::os::unix::net::UnixStream;
//!
//! use memlane_transport::{Fd, Link};
//!
//! let (left, right) = Link::pair()?;
//! let (reader, writer) = UnixStream::pair()?;
//! left.send(&("log", Fd::from(OwnedFd::from(writer))))?;
//!
//! let (name, fd): (String, Fd) = right.recv()?;
//! assert_eq!(name, "log");
//! let mut writer = UnixStream::from(OwnedFd::from(fd));
//! writer.write_all(b"hello")?;
//! drop(writer);
//! assert_eq!(std::io::read_to_string(reader)?, "hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What it does not do: queue in user space (a full link is [`Error::WouldBlock`]), or run an event loop. Everything
//! waitable is [`AsFd`](std::os::fd::AsFd), with a form that does not wait; with feature `tokio` it can be `.await`ed.
//!
//! | module | |
//! |---|---|
//! | [`frame`] | the bytes of a packet |
//! | [`codec`] | values to bytes and back, with limits |
//! | [`activation`] | sockets passed by a service manager |
//! | [`broker`] | introductions, for processes that cannot open sockets |
//! | [`hand_over`] | a process that is replaced while its service goes on |
//! | [`mod@spawn`] | children with a link to their parent |
//! | `sandbox` (feature `sandbox`) | what a child may do |
//! | `tokio` (feature `tokio`) | links, listeners and receipts that `.await` |
#![deny(unsafe_code)]

mod access;
pub mod activation;
mod address;
pub mod broker;
pub mod codec;
mod connect;
#[allow(unsafe_code)]
mod control;
mod dispose;
mod error;
mod fd;
pub mod frame;
pub mod hand_over;
mod ids;
mod limits;
mod link;
mod listener;
mod memory;
mod message;
mod obstacle;
mod peer;
mod process;
mod receipt;
#[cfg(feature = "sandbox")]
pub mod sandbox;
mod socket;
mod socket_file;
pub mod spawn;
#[allow(unsafe_code)]
mod sys;
#[cfg(feature = "tokio")]
pub mod tokio;
mod typed;
mod wait;

use std::time::Duration;

pub use access::{Access, Admitted};
pub use address::{Address, AddressError, MAX_NAME};
pub use connect::who_listens;
pub use dispose::{MAX_DISPOSERS, dispose};
pub use error::Error;
pub use fd::{Fd, FdRef, Fds, SharedFd, WeakFds};
pub use limits::Limits;
pub use link::{Link, Room};
pub use listener::Listener;
pub use peer::{Credentials, Peer};
pub use process::{Obstacle, Refusal, same_description, same_description_in, take_descriptor};
pub use receipt::Receipt;
pub use socket::{SocketKind, refuse_descriptors};
pub use socket_file::{is_in_use, remove_stale};
pub use spawn::{Child, Command, Process, SpawnError, parent, parent_link};
pub use typed::{EventFd, Kind, MemoryFd, StreamFd, Typed, WrongKind, kinds};

/// Descriptors that a packet may carry: SCM_MAX_FD (unix(7)). A message may have more.
const MAX_PACKET_DESCRIPTORS: usize = 253;

/// How long [`Link::connect`] waits for a place in a service's backlog.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Links and listeners are shared between threads; what they give out can move.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Link>();
    shared::<Listener>();
    shared::<Peer>();
    shared::<Access>();
    shared::<Fd>();
    shared::<SharedFd>();
    shared::<Fds>();
    shared::<FdRef<'static>>();
    shared::<Error>();
    const fn movable<T: Send>() {}
    movable::<broker::Broker>();
    movable::<broker::Client>();
};

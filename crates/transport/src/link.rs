//! A connected socket that carries typed messages.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, getpeername, shutdown, socketpair, sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::address::Address;
use crate::connect;
use crate::dispose::dispose;
use crate::error::Error;
use crate::frame;
use crate::peer::{Credentials, Peer};
use crate::wait::{self, Patience};
use crate::{Access, CONNECT_TIMEOUT, sys};

/// A connection between two processes: typed messages both ways, each with up to [`MAX_DESCRIPTORS`] descriptors in it.
///
/// A link is a SOCK_SEQPACKET socket: messages arrive whole, in order, once. All calls take `&self` and may be made from
/// several threads; each message goes to one of the receivers.
///
/// None of the calls depends on O_NONBLOCK, which belongs to the description and can be changed by whoever shares it
/// (THREATS A30); a link made here may have it set or not. SIGPIPE is never raised, received descriptors are close-on-exec.
///
/// # A link ends on the first broken rule
/// When a packet breaks the protocol ([`Error::ends_link`]), everything it brought is closed, the socket is shut down in
/// both directions, and every later call returns [`Error::Ended`] with the reason. Packets that were queued behind it are
/// discarded when the link is dropped.
///
/// # Whom to receive from
/// A holder of *this end's* socket can make a receive sleep in the kernel for ever, whatever the flags (THREATS C5b).
/// Receive only on ends made by this process, or inherited from a process it trusts with its liveness.
///
/// ```
/// use memlane_transport::Link;
///
/// let (left, right) = Link::pair()?;
/// left.send(&("frame", 7_u32))?;
/// let (what, number): (String, u32) = right.recv()?;
/// assert_eq!((what.as_str(), number), ("frame", 7));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// [`MAX_DESCRIPTORS`]: crate::MAX_DESCRIPTORS
pub struct Link {
    fd: OwnedFd,
    end: OnceLock<End>,
}

#[derive(Debug)]
enum End {
    /// The hang-up has been received.
    Disconnected,
    /// A packet broke the protocol; its error as text.
    Broken(Arc<str>),
}

impl Link {
    /// Two connected links, for two threads or for a parent and a child that inherits one.
    ///
    /// # Errors
    /// No descriptor numbers or memory left.
    #[doc(alias = "socketpair")]
    pub fn pair() -> io::Result<(Link, Link)> {
        let (left, right) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Link::new(left), Link::new(right)))
    }

    /// Connects to the service at `address`, waiting at most [`CONNECT_TIMEOUT`] for a place in its backlog, and accepts
    /// only a server of [the same user](Access::SameUser) or root.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when nobody listens there; the socket file of a dead process is removed on the way (see
    /// [`remove_stale`](crate::remove_stale)). [`Error::NotASocket`], [`Error::TimedOut`], [`Error::AccessDenied`],
    /// [`Error::Io`].
    pub fn connect(address: &Address) -> Result<Link, Error> {
        Link::connect_timeout(address, CONNECT_TIMEOUT)
    }

    /// [`connect`](Link::connect) with another limit for the time in the backlog's queue.
    ///
    /// # Errors
    /// As [`connect`](Link::connect).
    pub fn connect_timeout(address: &Address, timeout: Duration) -> Result<Link, Error> {
        connect::connect(address, Access::SameUser, timeout)
    }

    /// [`connect`](Link::connect) with a choice whose server is believed. An abstract name can be taken by anyone first.
    ///
    /// # Errors
    /// As [`connect`](Link::connect).
    pub fn connect_with(address: &Address, access: Access) -> Result<Link, Error> {
        connect::connect(address, access, CONNECT_TIMEOUT)
    }

    /// Takes an inherited descriptor as a link, and sets close-on-exec on it. See the type on whom to receive from.
    ///
    /// # Errors
    /// [`Error::WrongSocket`] when it is anything but a connected SOCK_SEQPACKET Unix socket; the descriptor is then given
    /// to [`dispose`].
    pub fn from_fd(fd: OwnedFd) -> Result<Link, Error> {
        let found = match unix_seqpacket(&fd) {
            Ok(()) => match sockopt::socket_acceptconn(&fd) {
                Ok(true) => Some("a listening one".to_owned()),
                // ENOTCONN; after a hang-up the name stays known.
                _ => getpeername(&fd)
                    .err()
                    .map(|error| format!("one that is not connected ({error})")),
            },
            Err(found) => Some(found),
        };
        if let Some(found) = found {
            dispose(fd);
            return Err(Error::WrongSocket {
                expected: "a connected SOCK_SEQPACKET Unix socket",
                found,
            });
        }
        fcntl_setfd(&fd, FdFlags::CLOEXEC)
            .map_err(|error| Error::io("setting close-on-exec", error))?;
        Ok(Link::new(fd))
    }

    pub(crate) fn new(fd: OwnedFd) -> Link {
        Link {
            fd,
            end: OnceLock::new(),
        }
    }

    /// The socket itself, for instance to hand it to a child. Its O_NONBLOCK may be set or not.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Sends `value`, waiting for room as long as it takes.
    ///
    /// Descriptors in it are borrowed: whatever the outcome they are still the value's. Once it returns, the kernel holds
    /// its own references, and the caller may close them. Room is short when the receiver is slow, when memory is, and when
    /// this *user* has more descriptors in flight than this process's RLIMIT_NOFILE (ETOOMANYREFS, possibly on other
    /// sockets and in other processes: THREATS A8); the call waits for all three, the latter two by retrying.
    ///
    /// # Errors
    /// [`Error::BodyTooLarge`], [`Error::TooManyDescriptors`], [`Error::Encode`]: nothing was sent and the link goes on.
    /// [`Error::Disconnected`]: nobody will read it; what the peer had sent can still be received.
    /// [`Error::Ended`], [`Error::Io`]; with EPERM the other end's socket takes no descriptors (SO_PASSRIGHTS, Linux 6.16).
    pub fn send<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), Error> {
        self.send_within(value, Patience::Forever)
    }

    /// [`send`](Link::send) without waiting.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] when there is no room; else as [`send`](Link::send).
    pub fn try_send<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), Error> {
        self.send_within(value, Patience::None)
    }

    /// [`send`](Link::send), waiting at most `timeout`.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when there was no room in time; else as [`send`](Link::send).
    pub fn send_timeout<T: Serialize + ?Sized>(
        &self,
        value: &T,
        timeout: Duration,
    ) -> Result<(), Error> {
        self.send_within(value, Patience::timeout(timeout))
    }

    /// Receives the next message, waiting as long as it takes. The descriptors in it are the caller's.
    ///
    /// # Errors
    /// [`Error::Disconnected`] when the peer is gone and everything it had sent was delivered.
    /// [`Error::Ended`] and every error that [ends the link](Error::ends_link); [`Error::Io`].
    pub fn recv<T: DeserializeOwned>(&self) -> Result<T, Error> {
        self.recv_within(Patience::Forever)
    }

    /// [`recv`](Link::recv) without waiting.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] when there is no message; else as [`recv`](Link::recv).
    pub fn try_recv<T: DeserializeOwned>(&self) -> Result<T, Error> {
        self.recv_within(Patience::None)
    }

    /// [`recv`](Link::recv), waiting at most `timeout`.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when no message came in time; else as [`recv`](Link::recv).
    pub fn recv_timeout<T: DeserializeOwned>(&self, timeout: Duration) -> Result<T, Error> {
        self.recv_within(Patience::timeout(timeout))
    }

    /// Who is at the other end, with a new pidfd: ask once and keep it. See [`Peer`] for what the answer means.
    ///
    /// # Errors
    /// No descriptor numbers left for the pidfd.
    pub fn peer(&self) -> io::Result<Peer> {
        Peer::of(self.as_fd())
    }

    /// Who is at the other end, without a pidfd: one system call, no descriptor.
    ///
    /// # Errors
    /// Those of getsockopt(2); none on a connected Unix socket.
    #[doc(alias = "SO_PEERCRED")]
    pub fn credentials(&self) -> io::Result<Credentials> {
        Credentials::of(self.as_fd())
    }

    fn send_within<T: Serialize + ?Sized>(
        &self,
        value: &T,
        patience: Patience,
    ) -> Result<(), Error> {
        self.check()?;
        let frame = frame::encode(value)?;
        let mut pause = Duration::from_micros(100);
        loop {
            let error = match sys::send(self.as_fd(), &frame.bytes, &frame.descriptors.fds) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match Errno::from_io_error(&error) {
                Some(Errno::AGAIN) => {
                    wait::ready(self.as_fd(), PollFlags::OUT, patience)?;
                }
                // The socket has room, so there is nothing to wait for but time, and the peer's end.
                Some(Errno::NOBUFS | Errno::NOMEM | Errno::TOOMANYREFS) => {
                    let left = patience.left(pause)?;
                    let found = wait::once(self.as_fd(), PollFlags::empty(), left)?;
                    if found.is_some_and(|found| found.contains(PollFlags::HUP)) {
                        return Err(Error::Disconnected);
                    }
                    pause = (pause * 2).min(Duration::from_millis(20));
                }
                Some(Errno::PIPE | Errno::CONNRESET) => return Err(Error::Disconnected),
                _ => return Err(Error::io("sending a message", error)),
            }
            self.check()?;
        }
    }

    fn recv_within<T: DeserializeOwned>(&self, patience: Patience) -> Result<T, Error> {
        let mut packet = sys::Packet::new();
        let mut resets = 0;
        loop {
            self.check()?;
            match sys::receive(self.as_fd(), &mut packet) {
                Ok(received) => return frame::decode(received).map_err(|error| self.end(error)),
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN) => {
                        wait::ready(self.as_fd(), PollFlags::IN, patience)?;
                    }
                    // The peer closed with messages of ours unread. The kernel says so once, *before* it gives out what the
                    // peer had sent (sock_error in __skb_try_recv_datagram).
                    Some(Errno::CONNRESET) if resets < 2 => resets += 1,
                    Some(Errno::CONNRESET) => return Err(self.end(Error::Disconnected)),
                    _ => return Err(Error::io("receiving a message", error)),
                },
            }
        }
    }

    /// Remembers an error that is final and hangs up.
    fn end(&self, error: Error) -> Error {
        let end = match &error {
            Error::Disconnected => End::Disconnected,
            error if error.ends_link() => End::Broken(describe(error).into()),
            _ => return error,
        };
        if self.end.set(end).is_ok() {
            // Fails when the peer is gone, which is as good.
            let _ = shutdown(&self.fd, Shutdown::Both);
        }
        error
    }

    fn check(&self) -> Result<(), Error> {
        match self.end.get() {
            None => Ok(()),
            Some(End::Disconnected) => Err(Error::Disconnected),
            Some(End::Broken(why)) => Err(Error::Ended {
                why: Arc::clone(why),
            }),
        }
    }
}

/// The error and what caused it, in a line.
fn describe(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Says what `fd` is, if it is no SOCK_SEQPACKET Unix socket. The kernel answers without asking the file's owner.
pub(crate) fn unix_seqpacket(fd: &OwnedFd) -> Result<(), String> {
    match sockopt::socket_domain(fd) {
        Ok(AddressFamily::UNIX) => {}
        Ok(domain) => return Err(format!("a socket of family {}", domain.as_raw())),
        Err(error) => return Err(format!("no socket ({error})")),
    }
    match sockopt::socket_type(fd) {
        Ok(SocketType::SEQPACKET) => Ok(()),
        Ok(kind) => Err(format!("a Unix socket of type {}", kind.as_raw())),
        Err(error) => Err(format!("a Unix socket of unknown type ({error})")),
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<Link> for OwnedFd {
    fn from(link: Link) -> OwnedFd {
        link.fd
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut link = f.debug_struct("Link");
        link.field("fd", &self.fd.as_raw_fd());
        if let Some(end) = self.end.get() {
            link.field("end", end);
        }
        link.finish()
    }
}

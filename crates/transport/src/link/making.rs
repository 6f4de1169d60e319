//! Where links come from.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, getpeername, socketpair, sockopt};

use super::Link;
use crate::address::Address;
use crate::connect;
use crate::dispose::dispose;
use crate::error::Error;
use crate::socket::{self, SocketKind};
use crate::wait::Patience;
use crate::{Access, CONNECT_TIMEOUT};

impl Link {
    /// Two connected links, for two threads or for a parent and a child that inherits one.
    ///
    /// # Errors
    /// No descriptor numbers or memory left.
    #[doc(alias = "socketpair")]
    pub fn pair() -> io::Result<(Link, Link)> {
        Link::pair_of(SocketKind::Packets)
    }

    /// [`pair`](Link::pair) with a choice of the socket's type.
    ///
    /// # Errors
    /// As [`pair`](Link::pair).
    pub fn pair_of(kind: SocketKind) -> io::Result<(Link, Link)> {
        let (left, right) = socketpair(
            AddressFamily::UNIX,
            kind.socket_type(),
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Link::new(left, kind), Link::new(right, kind)))
    }

    /// Connects to the service at `address`, waiting at most [`CONNECT_TIMEOUT`] for a place in its backlog, and accepts
    /// only a server of [the same user](Access::SameUser) or root. A service that does not admit this process hangs up: that
    /// is [`Error::Disconnected`] at the first receive.
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
        connect::connect(address, &Access::SameUser, Patience::timeout(timeout))
    }

    /// [`connect`](Link::connect) without waiting. No descriptor tells when a place becomes free: try again after a while.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] when the backlog is full, [`Error::Locked`] when the service may be about to start (another
    /// process has locked the directory of its socket file); else as [`connect`](Link::connect).
    pub fn try_connect(address: &Address) -> Result<Link, Error> {
        Link::try_connect_with(address, Access::SameUser)
    }

    /// [`try_connect`](Link::try_connect) with a choice whose server is believed.
    ///
    /// # Errors
    /// As [`try_connect`](Link::try_connect).
    pub fn try_connect_with(address: &Address, access: Access) -> Result<Link, Error> {
        connect::connect(address, &access, Patience::None)
    }

    /// [`connect`](Link::connect) with a choice whose server is believed. An abstract name can be taken by anyone first.
    ///
    /// # Errors
    /// As [`connect`](Link::connect).
    pub fn connect_with(address: &Address, access: Access) -> Result<Link, Error> {
        connect::connect(address, &access, Patience::timeout(CONNECT_TIMEOUT))
    }

    /// Takes an inherited descriptor as a link, and sets close-on-exec on it. See the type on whom to receive from.
    ///
    /// # Errors
    /// [`Error::WrongSocket`] when it is anything but a connected Unix socket of a [`SocketKind`]; the descriptor is then
    /// given to [`dispose`].
    pub fn from_fd(fd: OwnedFd) -> Result<Link, Error> {
        let kind = match connected(&fd) {
            Ok(kind) => kind,
            Err(found) => {
                dispose(fd);
                return Err(Error::WrongSocket {
                    expected: "a connected SOCK_SEQPACKET or SOCK_STREAM Unix socket",
                    found,
                });
            }
        };
        fcntl_setfd(&fd, FdFlags::CLOEXEC)
            .map_err(|error| Error::io("setting close-on-exec", error))?;
        Ok(Link::new(fd, kind))
    }

    /// Takes the standard input as a link, for a child that was started with its end there. It is /dev/null afterwards, so
    /// that no copy keeps the parent from seeing a hang-up, and the child's own children do not have it.
    ///
    /// # Errors
    /// [`Error::WrongSocket`] when it is no link, and then nothing has changed; [`Error::Io`], [`Error::DescriptorLimit`].
    ///
    /// ```no_run
    /// use std::os::fd::OwnedFd;
    /// use std::process::Command;
    ///
    /// use memlane_transport::Link;
    ///
    /// # let i_am_the_child = false;
    /// if i_am_the_child {
    ///     let parent = Link::inherited()?;
    ///     let greeting: String = parent.recv()?;
    ///     parent.send(&greeting.len())?;
    /// } else {
    ///     let (link, theirs) = Link::pair()?;
    ///     let mut child = Command::new("child")
    ///         .stdin(OwnedFd::from(theirs))
    ///         .spawn()?;
    ///     link.send("hello")?;
    ///     assert_eq!(link.recv::<usize>()?, 5);
    ///     child.wait()?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn inherited() -> Result<Link, Error> {
        let copy = io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| Error::io("taking the standard input as a link", source))?;
        let link = Link::from_fd(copy)?;
        crate::socket::leave_stdin()?;
        Ok(link)
    }
}

/// What kind of link `fd` can be, or what it is instead.
pub(super) fn connected(fd: &OwnedFd) -> Result<SocketKind, String> {
    let kind = socket::kind(fd)?;
    if sockopt::socket_acceptconn(fd) == Ok(true) {
        return Err("a listening one".to_owned());
    }
    // ENOTCONN; after a hang-up the name stays known.
    match getpeername(fd) {
        Ok(_) => Ok(kind),
        Err(error) => Err(format!("one that is not connected ({error})")),
    }
}

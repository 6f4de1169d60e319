//! Types of sockets that a link can be.

use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType};

use crate::error::Error;
use crate::sys;

/// What a link is made of. Messages, limits and errors are the same on both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SocketKind {
    /// SOCK_SEQPACKET: the kernel keeps packets whole and apart, one system call receives one.
    #[default]
    Packets,
    /// SOCK_STREAM: for sockets that something else makes, which can often make no other. A message takes two system calls
    /// to receive, and what is left of one that has begun must be [flushed](crate::Link::flush).
    Stream,
}

impl SocketKind {
    pub(crate) fn socket_type(self) -> SocketType {
        match self {
            SocketKind::Packets => SocketType::SEQPACKET,
            SocketKind::Stream => SocketType::STREAM,
        }
    }
}

/// Makes the kernel refuse descriptors to whoever sends to this Unix socket from now on (EPERM; SO_PASSRIGHTS, Linux 6.16), and
/// says whether the kernel can.
///
/// For sockets that a peer sends plain bytes to. Without it a descriptor may be in their queue, and reading or closing it can
/// make the reader wait for as long as its sender likes (see [`dispose`](crate::dispose)). All who share the socket are
/// concerned.
///
/// # Errors
/// EBADF, ENOTSOCK, EOPNOTSUPP: it is no Unix socket.
pub fn refuse_descriptors(socket: impl AsFd) -> std::io::Result<bool> {
    sys::identity::set_pass_rights(socket.as_fd(), false)
}

/// What kind `fd` is, or what it is instead. The kernel answers without asking the file's owner.
pub(crate) fn kind(fd: impl AsFd) -> Result<SocketKind, String> {
    match sys::socket_kind(fd) {
        Some((AddressFamily::UNIX, SocketType::SEQPACKET)) => Ok(SocketKind::Packets),
        Some((AddressFamily::UNIX, SocketType::STREAM)) => Ok(SocketKind::Stream),
        Some((AddressFamily::UNIX, kind)) => {
            Err(format!("a Unix socket of type {}", kind.as_raw()))
        }
        Some((family, _)) => Err(format!("a socket of family {}", family.as_raw())),
        None => Err("no socket".to_owned()),
    }
}

/// Device and inode: which socket it is. Never waits, as the socket is one's own.
pub(crate) fn identity(socket: impl AsFd) -> Option<(u64, u64)> {
    let stat = rustix::fs::fstat(socket).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

/// Puts /dev/null in place of the standard input, of which there is a copy.
pub(crate) fn leave_stdin() -> Result<(), Error> {
    std::fs::File::open("/dev/null")
        .and_then(|null| Ok(rustix::stdio::dup2_stdin(OwnedFd::from(null))?))
        .map_err(|source| Error::io("replacing the standard input", source))
}

//! Connecting to an address in bounded time.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{FileType, OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, socket_with};

use crate::access::Access;
use crate::address::Address;
use crate::error::Error;
use crate::link::Link;
use crate::obstacle::Wish;
use crate::peer::Credentials;
use crate::socket::SocketKind;
use crate::socket_file::{Found, LOCK_TIMEOUT, SocketFile, not_a_socket};
use crate::wait::Patience;

/// With [`Patience::None`], [`Error::WouldBlock`] says that the backlog is full, and [`Error::Locked`] that another process
/// is looking at a socket file that nobody seems to listen at.
pub(crate) fn connect(
    address: &Address,
    access: &Access,
    patience: Patience,
) -> Result<Link, Error> {
    let target = address.to_socket()?;
    let lock_timeout = match patience {
        Patience::None => Duration::ZERO,
        _ => LOCK_TIMEOUT,
    };
    let mut kind = SocketKind::Packets;
    for _ in 0..4 {
        match attempt(address, &target, kind, patience) {
            Ok(fd) => {
                let link = Link::new(fd, kind);
                access.admit_server(link.as_fd())?;
                return Ok(link);
            }
            // The service listens with a socket of the other type.
            Err(Attempt::Refused(Errno::PROTOTYPE)) if kind == SocketKind::Packets => {
                kind = SocketKind::Stream;
                continue;
            }
            Err(Attempt::Refused(Errno::PROTOTYPE)) => {
                return Err(Error::WrongSocket {
                    expected: "a SOCK_SEQPACKET or SOCK_STREAM socket at the address",
                    found: "one of another type".to_owned(),
                });
            }
            Err(Attempt::Failed(error)) => return Err(error),
            // Each type of socket has abstract names of its own (unix_abstract_hash, net/unix/af_unix.c), so nobody here says
            // nothing of the other type.
            Err(Attempt::Refused(_))
                if kind == SocketKind::Packets && address.as_path().is_none() =>
            {
                kind = SocketKind::Stream;
                continue;
            }
            Err(Attempt::Refused(Errno::NOENT)) => break,
            Err(Attempt::Refused(_)) => {}
        }
        // A file without a listener. The kernel refuses a connect to any file in the same way.
        let Some(path) = address.as_path() else { break };
        match SocketFile::lock(path, lock_timeout).and_then(|file| file.clear()) {
            // A server has come up since, or was between bind and listen: then taking the lock has waited for it.
            Ok(Found::Live) => {}
            Ok(Found::Other(found)) if found != FileType::Symlink => {
                return Err(not_a_socket(path, found));
            }
            Err(error @ Error::Locked { .. }) if lock_timeout.is_zero() => return Err(error),
            // Whether the file can be removed (its directory may be read-only) changes nothing for the caller.
            _ => break,
        }
    }
    Err(Error::NotRunning {
        address: address.clone(),
    })
}

enum Attempt {
    /// Nobody there, ENOENT or ECONNREFUSED; or EPROTOTYPE.
    Refused(Errno),
    Failed(Error),
}

/// Without waiting first: two system calls when the backlog has room, as it nearly always has. A full one is waited for
/// with the send timeout, which bounds a connect, too (unix_stream_connect uses sock_sndtimeo; socket(7)).
fn attempt(
    address: &Address,
    target: &SocketAddrUnix,
    kind: SocketKind,
    patience: Patience,
) -> Result<OwnedFd, Attempt> {
    const LONG: Duration = Duration::from_secs(3600);
    let failed = |doing, error| Attempt::Failed(Error::io(doing, error));
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, kind.socket_type(), flags, None)
        .map_err(|error| failed("making a socket", error))?;
    let mut waits = false;
    loop {
        match rustix::net::connect(&fd, target) {
            Ok(()) => {
                if waits {
                    set_socket_timeout(&fd, Timeout::Send, None)
                        .map_err(|error| failed("ending the bound of a connect", error))?;
                }
                return Ok(fd);
            }
            Err(error @ (Errno::NOENT | Errno::CONNREFUSED | Errno::PROTOTYPE)) => {
                return Err(Attempt::Refused(error));
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => {
                let doing = format!("connecting to {address}");
                return Err(Attempt::Failed(match address.as_path() {
                    Some(path) => Error::at_path(doing, path, Wish::Connect, error),
                    None => Error::io(doing, error),
                }));
            }
        }
        // The kernel rounds up to its ticks; zero would mean no limit.
        let left = patience
            .left(LONG)
            .map_err(Attempt::Failed)?
            .max(Duration::from_millis(1));
        set_socket_timeout(&fd, Timeout::Send, Some(left))
            .map_err(|error| failed("bounding a connect", error))?;
        if !waits {
            fcntl_setfl(&fd, OFlags::empty())
                .map_err(|error| failed("preparing to wait for a connect", error))?;
            waits = true;
        }
    }
}

/// Who listens at an address: the process that called listen(2) there. `None` if nobody does, or its backlog is full, or it
/// cannot be reached.
///
/// It takes a connection to be told, which is hung up on at once: the service sees a client that has come and gone. Never
/// waits.
#[must_use]
pub fn who_listens(address: &Address) -> Option<Credentials> {
    let target = address.to_socket().ok()?;
    [SocketKind::Packets, SocketKind::Stream]
        .into_iter()
        .find_map(|kind| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let fd = socket_with(AddressFamily::UNIX, kind.socket_type(), flags, None).ok()?;
            rustix::net::connect(&fd, &target).ok()?;
            Credentials::of(fd.as_fd()).ok()
        })
}

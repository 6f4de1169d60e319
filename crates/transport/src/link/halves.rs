//! Links that receive on one socket and send on another, and how links end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{Shutdown, SocketAddrAny, getpeername, getsockname, shutdown};

use super::{Link, making};
use crate::dispose::dispose;
use crate::error::Error;
use crate::fd::Fd;
use crate::socket::SocketKind;

impl Link {
    /// From now on it sends over another socket, one that the peer made, and receives on its own alone.
    ///
    /// For two who do not trust each other, where a third one has brought them together: nobody can hold up a call that only
    /// sends, so each makes a [pair](Link::pair), gives one end of it away, and receives on the other. [Who is
    /// there](Link::peer) is whoever made the socket. Its peer hears of its end by both; on this side [`AsFd`] is the socket it
    /// receives on, and [`sends_over`](Link::sends_over) tells of the other.
    ///
    /// # Errors
    /// [`Error::WrongSocket`] when it is anything but a connected SOCK_SEQPACKET Unix socket, or either end has a name: a
    /// service would take what is sent there for this process's own words. It is given to [`dispose`] then, and the link
    /// goes on as before.
    ///
    /// # Panics
    /// When a part of a message is still to be sent ([`is_between_messages`](Link::is_between_messages)).
    ///
    /// ```
    /// use memlane_transport::Link;
    ///
    /// // One has made a pair, and a third one has passed an end of it on.
    /// let (mut first, passed_on) = Link::pair()?;
    /// // The other sends over that, and receives elsewhere.
    /// let (mut second, back) = Link::pair()?;
    /// second.send_over(passed_on.into_fd())?;
    /// second.send(&7_u32)?;
    /// first.send_over(back.into_fd())?;
    /// assert_eq!(first.recv::<u32>()?, 7);
    /// first.send("seven")?;
    /// assert_eq!(second.recv::<String>()?, "seven");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_over(&mut self, socket: OwnedFd) -> Result<(), Error> {
        assert!(
            !self.outbox().has_begun(),
            "a link was given another socket in the middle of a message"
        );
        let found = match making::connected(&socket) {
            Ok(SocketKind::Packets) if is_nameless(&socket) => None,
            Ok(SocketKind::Packets) => Some("one with a name".to_owned()),
            Ok(SocketKind::Stream) => Some("a SOCK_STREAM one".to_owned()),
            Err(found) => Some(found),
        };
        if let Some(found) = found {
            dispose(socket);
            return Err(Error::WrongSocket {
                expected: "a connected SOCK_SEQPACKET Unix socket without a name at either end",
                found,
            });
        }
        fcntl_setfd(&socket, FdFlags::CLOEXEC)
            .map_err(|error| Error::io("setting close-on-exec", error))?;
        self.out = Some(Fd::socket(socket));
        Ok(())
    }

    /// The socket it sends over, if that is [another](Link::send_over) than the one it receives on.
    #[must_use]
    pub fn sends_over(&self) -> Option<BorrowedFd<'_>> {
        self.out.as_ref().map(AsFd::as_fd)
    }

    /// The socket it sends over, whichever that is.
    pub(crate) fn out(&self) -> BorrowedFd<'_> {
        self.sends_over().unwrap_or_else(|| self.as_fd())
    }

    /// Ends the link in both directions, for all who share it. What the peer has sent can still be received.
    pub fn hang_up(&self) {
        // Fails when the peer is gone, which is as good.
        let _ = shutdown(self.as_fd(), Shutdown::Both);
        if let Some(out) = self.sends_over() {
            let _ = shutdown(out, Shutdown::Both);
        }
    }

    /// Says that nothing more will be sent: the peer receives what was, and then that this is the end.
    pub fn end_sending(&self) {
        let _ = shutdown(self.out(), Shutdown::Write);
    }
}

/// Whether both ends are of a socket pair, and not of a connection to whoever listens.
fn is_nameless(socket: &OwnedFd) -> bool {
    // Nothing behind the family (unix(7)).
    let nameless = |name: SocketAddrAny| name.addr_len() as usize == size_of::<u16>();
    getsockname(socket).is_ok_and(nameless)
        && getpeername(socket).is_ok_and(|name| name.is_none_or(nameless))
}

//! Learning that the receiver has taken a message.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_oobinline;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

use crate::error::Error;
use crate::fd::Fd;
use crate::wait::{self, Patience};

/// Tells when the receiver holds the descriptors of a message; see [`Link::transfer`](crate::Link::transfer).
///
/// It is one end of a socket pair whose other end travels with the message. The receiving link sends a byte on it when the
/// message has been decoded and every descriptor in it has been taken; whatever else happens to the message (the receiver
/// dies, refuses it, hangs up with it unread), the kernel closes that end.
///
/// # What it does not tell
/// An acknowledgement says that the receiver had the descriptors at that moment, not that it is alive, nor that it did
/// anything with them. [`NotAcknowledged`](Error::NotAcknowledged) is final, and means that the receiver did not take the
/// message, *or* took it and died within the few instructions before the acknowledgement. A timed-out wait means nothing:
/// the message may still be taken, and the receipt can be waited for again. No protocol does better (the two generals'
/// problem); what has to happen exactly once needs a name of its own that both sides remember.
///
/// Readable (poll(2)) when there is an answer. Dropping it is allowed at any time and does not recall the message.
#[derive(Debug)]
pub struct Receipt {
    socket: Fd,
}

impl Receipt {
    /// A receipt, and the end to send with the message.
    pub(crate) fn pair() -> Result<(Receipt, OwnedFd), Error> {
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .and_then(|(socket, theirs)| {
            // An urgent byte (MSG_OOB) is an answer like any other. Left apart, it would make the socket readable without
            // there being anything to peek at (manage_oob, net/unix/af_unix.c), and a wait would spin.
            set_socket_oobinline(&socket, true)?;
            Ok((socket, theirs))
        })
        .map_err(|error| Error::io("making a receipt", error))?;
        let socket = Fd::socket(socket);
        Ok((Receipt { socket }, theirs))
    }

    /// Waits until the message has been taken.
    ///
    /// # Errors
    /// [`Error::NotAcknowledged`] when it never will be, [`Error::Io`].
    pub fn wait(&self) -> Result<(), Error> {
        self.wait_within(Patience::Forever)
    }

    /// [`wait`](Receipt::wait) without waiting.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] when there is no answer yet; else as [`wait`](Receipt::wait).
    pub fn try_wait(&self) -> Result<(), Error> {
        self.wait_within(Patience::None)
    }

    /// [`wait`](Receipt::wait), for at most `timeout`.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when there was no answer in time; else as [`wait`](Receipt::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<(), Error> {
        self.wait_within(Patience::timeout(timeout))
    }

    fn wait_within(&self, patience: Patience) -> Result<(), Error> {
        loop {
            let mut byte = [0];
            // The byte stays for the next time: an answer is an answer. This end is nobody else's, so that a receive on it
            // cannot be held up (THREATS C5b), and descriptors that come with a byte are not taken without a control buffer.
            let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
            match recv(&self.socket, &mut byte, flags) {
                Ok((0, _)) | Err(Errno::CONNRESET) => return Err(Error::NotAcknowledged),
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => {
                    wait::ready(self.as_fd(), PollFlags::IN, patience)?;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io("waiting for a receipt", error)),
            }
        }
    }
}

impl AsFd for Receipt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Receipt {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

//! What can leave on a link right now: for a sender that never waits and wants two links to take something, or none.

use std::time::Duration;

use rustix::event::PollFlags;
use rustix::net::sockopt;

use super::Link;
use super::outbox::{OVERHEAD, Stop};
use crate::error::Error;
use crate::sys;
use crate::wait;

/// Bytes of a socket's buffer, as the kernel counts them: with its own structures, some 800 for the smallest packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Room {
    /// All there are.
    pub size: usize,
    /// Those of what the peer has not received yet.
    pub taken: usize,
}

impl Room {
    /// How many packets those can be, at most.
    #[must_use]
    pub fn packets(self) -> usize {
        self.taken / OVERHEAD
    }

    /// Whether there is room for something beside so many bytes; of a buffer that is too small for that, beside a quarter of it.
    #[must_use]
    pub fn is_left_beside(self, bytes: usize) -> bool {
        self.taken.saturating_add(bytes.min(self.size / 4)) <= self.size
    }
}

impl Link {
    /// Whether the socket says that it has room (POLLOUT), with no message begun. Three quarters of the send buffer are
    /// then free (unix_writable, net/unix/af_unix.c), and only this end can fill them.
    pub(crate) fn has_room(&self) -> Result<bool, Error> {
        match self.advance(&mut None) {
            Ok(_) => {}
            Err(Stop::Full | Stop::Later) => return Ok(false),
            Err(Stop::Failed(error) | Stop::Torn(error)) => return Err(error),
        }
        let found = wait::once(self.out(), PollFlags::OUT, Duration::ZERO)?;
        Ok(found.is_some_and(|found| found.contains(PollFlags::OUT)))
    }

    /// The room of the socket it sends over, whichever that is. Of its own socket a link can make the buffer larger; that of
    /// [another](Link::send_over) it must not touch: who holds it can make setsockopt(2) sleep.
    ///
    /// # Errors
    /// The kernel's.
    pub fn room(&self) -> Result<Room, Error> {
        let asking = |error| Error::io("asking for a socket's room", error);
        let size = sockopt::socket_send_buffer_size(self.out()).map_err(asking)?;
        let taken = sys::unreceived(self.out())
            .map_err(|error| Error::io("asking what has been received", error))?;
        Ok(Room { size, taken })
    }

    /// Messages with descriptors that the peer may not have received yet: never fewer than there are.
    pub(crate) fn in_flight(&self) -> Result<usize, Error> {
        self.outbox().in_flight(self.out())
    }
}

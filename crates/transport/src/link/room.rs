//! What can leave on a link right now: for a sender that never waits and wants two links to take something, or none.

use std::time::Duration;

use rustix::event::PollFlags;
use rustix::net::sockopt;

use super::Link;
use super::outbox::Stop;
use crate::error::Error;
use crate::sys;
use crate::wait;

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

    /// Whether the socket it sends over, if that is [another's](Link::send_over), has so many bytes of room, as the kernel counts them,
    /// beside what the peer has not received yet. Of its own socket a link can make the buffer larger; that of another it must not
    /// touch: who holds it can make setsockopt(2) sleep.
    ///
    /// # Errors
    /// The kernel's.
    pub fn has_room_beside(&self, bytes: usize) -> Result<bool, Error> {
        let Some(out) = self.sends_over() else {
            return Ok(true);
        };
        let asking = |error| Error::io("asking for a socket's room", error);
        let size = sockopt::socket_send_buffer_size(out).map_err(asking)?;
        let queued = sys::unreceived(out)
            .map_err(|error| Error::io("asking what has been received", error))?;
        // Where buffers are as small as that, a part is left.
        Ok(queued.saturating_add(bytes.min(size / 4)) <= size)
    }

    /// Messages with descriptors that the peer may not have received yet: never fewer than there are.
    pub(crate) fn in_flight(&self) -> Result<usize, Error> {
        self.outbox().in_flight(self.out())
    }
}

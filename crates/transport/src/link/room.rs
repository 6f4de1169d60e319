//! What can leave on a link right now: for a sender that never waits and wants two links to take something, or none.

use std::time::Duration;

use rustix::event::PollFlags;

use super::Link;
use super::outbox::Stop;
use crate::error::Error;
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

    /// Messages with descriptors that the peer may not have received yet: never fewer than there are.
    pub(crate) fn in_flight(&self) -> Result<usize, Error> {
        self.outbox().in_flight(self.out())
    }
}

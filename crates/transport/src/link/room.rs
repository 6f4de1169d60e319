//! What can leave on a link right now: for a sender that never waits and wants two links to take something, or none.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::PollFlags;
use serde::Serialize;

use super::Link;
use super::outbox::Stop;
use crate::error::Error;
use crate::limits::Limits;
use crate::message::Outgoing;
use crate::wait::{self, Patience};

impl Link {
    /// Whether the socket says that it has room (POLLOUT), with no message begun. Three quarters of the send buffer are
    /// then free (unix_writable, net/unix/af_unix.c), and only this end can fill them.
    pub(crate) fn has_room(&self) -> Result<bool, Error> {
        match self.advance(&mut None) {
            Ok(_) => {}
            Err(Stop::Full | Stop::Later) => return Ok(false),
            Err(Stop::Failed(error) | Stop::Torn(error)) => return Err(error),
        }
        let found = wait::once(self.as_fd(), PollFlags::OUT, Duration::ZERO)?;
        Ok(found.is_some_and(|found| found.contains(PollFlags::OUT)))
    }

    /// Messages with descriptors that the peer may not have received yet: never fewer than there are.
    pub(crate) fn in_flight(&self) -> Result<usize, Error> {
        self.outbox().in_flight(self.as_fd())
    }

    /// [`try_send`](Link::try_send) with other limits than those for what comes in.
    pub(crate) fn try_send_with<T: Serialize + ?Sized>(
        &self,
        value: &T,
        limits: &Limits,
    ) -> Result<(), Error> {
        self.check()?;
        let message = Outgoing::new(value, None, limits, self.as_fd())?;
        self.send_message(message, Patience::None)
    }
}

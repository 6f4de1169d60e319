//! What a link has still to send.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::Error;
use crate::message::{Outgoing, Progress};
use crate::{Limits, sys};

/// The sending side of a link, one message at a time.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// A message of which a part has left.
    begun: Option<(Outgoing, Progress)>,
    /// Messages that have left, or never will: to be dropped when the lock is not held, as that can close descriptors.
    finished: Finished,
    flight: Flight,
}

/// The message that had begun before a call, and the one of the call.
pub(crate) type Finished = (Option<Outgoing>, Option<Outgoing>);

/// How much has left of what was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Whole,
    /// The rest follows with the next call.
    Part,
}

/// Why nothing more leaves now.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The socket will tell when there is room (POLLOUT).
    Full,
    /// Nothing will tell: try again after a while.
    Later,
    /// The message, or the one before, cannot be sent.
    Failed(Error),
    /// A message cannot be sent to its end, so that nothing can be sent behind it.
    Torn(Error),
}

impl Outbox {
    /// Sends a message, behind the one that has begun. Takes it as soon as a part of it has left: the rest follows with the
    /// next call.
    pub(crate) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        message: &mut Option<Outgoing>,
        limits: &Limits,
    ) -> Result<Sent, Stop> {
        self.flush(socket)?;
        let Some(next) = message.take() else {
            return Ok(Sent::Whole);
        };
        if next.carries_descriptors() {
            if let Err(stop) = self.flight.admit(socket, limits.max_in_flight()) {
                *message = Some(next);
                return Err(stop);
            }
        }
        let mut progress = Progress::default();
        let result = write(socket, &next, &mut progress);
        if next.carries_descriptors() && (result.is_ok() || progress != Progress::default()) {
            self.flight.left(next.size(), limits.max_in_flight());
        }
        match result {
            Ok(()) => {
                self.finished.1 = Some(next);
                Ok(Sent::Whole)
            }
            Err(stop) if progress == Progress::default() => {
                *message = Some(next);
                Err(stop)
            }
            Err(Stop::Full | Stop::Later) => {
                self.begun = Some((next, progress));
                Ok(Sent::Part)
            }
            Err(Stop::Failed(error) | Stop::Torn(error)) => {
                self.finished.1 = Some(next);
                Err(torn(error))
            }
        }
    }

    /// Sends what is left of the message that has begun.
    pub(crate) fn flush(&mut self, socket: BorrowedFd<'_>) -> Result<(), Stop> {
        let Some((message, progress)) = &mut self.begun else {
            return Ok(());
        };
        match write(socket, message, progress) {
            Err(stop @ (Stop::Full | Stop::Later)) => Err(stop),
            Ok(()) => {
                self.finished.0 = self.begun.take().map(|(message, _)| message);
                Ok(())
            }
            Err(Stop::Failed(error) | Stop::Torn(error)) => {
                self.finished.0 = self.begun.take().map(|(message, _)| message);
                Err(torn(error))
            }
        }
    }

    /// What is to be dropped now that the call is over.
    pub(crate) fn take_finished(&mut self) -> Finished {
        std::mem::take(&mut self.finished)
    }

    /// Messages with descriptors that the peer may not have received yet.
    pub(crate) fn in_flight(&mut self, socket: BorrowedFd<'_>) -> Result<usize, Error> {
        self.flight.count(socket)
    }

    /// Whether a message has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.is_some()
    }
}

/// Why a message does not go on of which a part has left. When the peer is gone, nothing is sent behind it anyway, and what the
/// peer had sent can still be received.
fn torn(error: Error) -> Stop {
    if error.is_disconnected() {
        Stop::Failed(error)
    } else {
        Stop::Torn(error)
    }
}

fn write(socket: BorrowedFd<'_>, message: &Outgoing, progress: &mut Progress) -> Result<(), Stop> {
    let result = message.send(progress, |bytes, fds| sys::send(socket, bytes, fds));
    result.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::AGAIN) => Stop::Full,
        Some(Errno::NOBUFS | Errno::NOMEM | Errno::TOOMANYREFS) => Stop::Later,
        Some(Errno::PIPE | Errno::CONNRESET) => Stop::Failed(Error::Disconnected),
        _ => Stop::Failed(Error::io("sending a message", error)),
    })
}

/// Messages with descriptors that the peer may not have received yet.
#[derive(Debug, Default)]
struct Flight {
    /// Bytes of each, oldest first.
    sizes: VecDeque<usize>,
}

/// The least that a packet costs in a socket's accounting, beside its bytes: the kernel counts its own structures, 768 bytes
/// on x86-64 (sk_buff and skb_shared_info, SKB_TRUESIZE).
pub(super) const OVERHEAD: usize = 512;

impl Flight {
    fn admit(&mut self, socket: BorrowedFd<'_>, limit: usize) -> Result<(), Stop> {
        if self.sizes.len() < limit || self.count(socket).map_err(Stop::Failed)? < limit {
            return Ok(());
        }
        // POLLOUT needs three quarters of the buffer to be free (unix_writable).
        let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::OUT)];
        match poll(&mut fds, Some(&Timespec::default())) {
            Ok(0) => Err(Stop::Full),
            _ => Err(Stop::Later),
        }
    }

    /// How many may still be there.
    fn count(&mut self, socket: BorrowedFd<'_>) -> Result<usize, Error> {
        let mut queued = sys::unreceived(socket)
            .map_err(|error| Error::io("asking what has been received", error))?;
        // A socket is a queue: those that can still be there are the last ones.
        let mut there = 0;
        for size in self.sizes.iter().rev() {
            if queued == 0 {
                break;
            }
            there += 1;
            queued = queued.saturating_sub(*size);
        }
        self.sizes.drain(..self.sizes.len() - there);
        Ok(there)
    }

    fn left(&mut self, size: usize, limit: usize) {
        // Each counts as less than it is, so that the estimate is never too low.
        self.sizes.push_back(size + OVERHEAD);
        if self.sizes.len() > limit {
            self.sizes.pop_front();
        }
    }
}

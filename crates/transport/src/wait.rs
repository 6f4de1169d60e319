//! Waiting for a descriptor, with a deadline.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::Error;

/// How long a call may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// Not at all: the `try_` forms.
    None,
    Until(Instant),
    Forever,
}

impl Patience {
    /// `timeout` from now. A time beyond the clock's range is for ever.
    pub(crate) fn timeout(timeout: Duration) -> Patience {
        Instant::now()
            .checked_add(timeout)
            .map_or(Patience::Forever, Patience::Until)
    }

    /// What is left, at most `longest`; an error when there is nothing left.
    pub(crate) fn left(self, longest: Duration) -> Result<Duration, Error> {
        match self {
            Patience::None => Err(Error::WouldBlock),
            Patience::Forever => Ok(longest),
            Patience::Until(deadline) => match deadline.saturating_duration_since(Instant::now()) {
                Duration::ZERO => Err(Error::TimedOut),
                left => Ok(left.min(longest)),
            },
        }
    }
}

/// Waits until `fd` reports one of `events`, or a hang-up or error, which poll(2) always reports.
///
/// The descriptor's O_NONBLOCK does not matter to poll, and a peer that shares the description can change it at any time.
pub(crate) fn ready(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    patience: Patience,
) -> Result<PollFlags, Error> {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    loop {
        let left = patience.left(DAY)?;
        if let Some(found) = once(fd, events, left)? {
            return Ok(found);
        }
    }
}

/// Waits for at most `pause`, and says what `fd` reported, if anything. A signal ends the wait early.
pub(crate) fn once(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    pause: Duration,
) -> Result<Option<PollFlags>, Error> {
    let timeout = Timespec {
        tv_sec: pause.as_secs() as i64,
        tv_nsec: i64::from(pause.subsec_nanos()) as _,
    };
    let mut fds = [PollFd::from_borrowed_fd(fd, events)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(0) | Err(Errno::INTR) => Ok(None),
        Ok(_) => Ok(Some(fds[0].revents())),
        Err(error) => Err(Error::io("waiting for a descriptor", error)),
    }
}

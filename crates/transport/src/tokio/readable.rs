//! Any descriptor, in tasks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;

use crate::Error;
use crate::sys::reactor::{self, Shared};

/// A descriptor in a tokio runtime, of which a task wants to know when it becomes readable.
///
/// Its O_NONBLOCK stays as it is.
#[derive(Debug)]
pub struct Readable {
    io: AsyncFd<Shared>,
}

impl Readable {
    /// Takes a descriptor into the runtime of the calling task. It is kept open for as long as this value lives.
    ///
    /// # Errors
    /// [`Error::Io`]: no memory, no epoll watches left for this user, or a file that cannot be waited for (epoll(7)).
    ///
    /// # Panics
    /// Outside a runtime, or in one without I/O.
    pub fn new(descriptor: impl Into<Arc<OwnedFd>>) -> Result<Readable, Error> {
        let io = reactor::register(Shared(descriptor.into()), Interest::READABLE)?;
        Ok(Readable { io })
    }

    /// Ready if the descriptor may have become readable since it last was ready; otherwise the task is woken when it does.
    /// Edge-triggered: look at the descriptor after this was ready, and until it has no more to give, before asking again.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = ready!(self.io.poll_read_ready(cx))?;
        guard.clear_ready();
        Poll::Ready(Ok(()))
    }
}

impl AsFd for Readable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.get_ref().0.as_fd()
    }
}

//! Listeners in tasks.

use std::os::fd::{AsFd, BorrowedFd};

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;
use ::tokio::task::coop::consume_budget;

use super::{Link, waiting};
use crate::sys::reactor;
use crate::{Address, Error};

/// A [`Listener`](crate::Listener) in a tokio runtime.
#[derive(Debug)]
pub struct Listener {
    io: AsyncFd<crate::Listener>,
}

impl Listener {
    /// Takes a listener into the runtime of the calling task.
    ///
    /// # Errors
    /// [`Error::Io`]: no memory, or no epoll watches left for this user (epoll(7)); the listener is dropped.
    ///
    /// # Panics
    /// Outside a runtime, or in one without I/O.
    pub fn new(listener: crate::Listener) -> Result<Listener, Error> {
        Ok(Listener {
            io: reactor::register(listener, Interest::READABLE)?,
        })
    }

    /// The listener itself, out of the runtime.
    #[must_use]
    pub fn into_inner(self) -> crate::Listener {
        self.io.into_inner()
    }

    /// The listener itself.
    #[must_use]
    pub fn get_ref(&self) -> &crate::Listener {
        self.io.get_ref()
    }

    /// Gives the next client's link, in the same runtime.
    ///
    /// # Cancellation
    /// Dropped while it is pending, it has taken no client: those who come wait in the backlog.
    ///
    /// # Errors
    /// As [`Listener::accept`](crate::Listener::accept), and as [`Link::new`], which hangs up on the client. None ends the
    /// listener; with [`Error::DescriptorLimit`] wait before accepting again, or the loop spins.
    pub async fn accept(&self) -> Result<Link, Error> {
        consume_budget().await;
        loop {
            let mut guard = self.io.readable().await.map_err(waiting)?;
            match self.get_ref().try_accept() {
                Err(Error::WouldBlock) => guard.clear_ready(),
                other => return Link::new(other?),
            }
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.get_ref().address()
    }
}

impl TryFrom<crate::Listener> for Listener {
    type Error = Error;

    /// [`Listener::new`].
    fn try_from(listener: crate::Listener) -> Result<Listener, Error> {
        Listener::new(listener)
    }
}

impl From<Listener> for crate::Listener {
    fn from(listener: Listener) -> crate::Listener {
        listener.into_inner()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.get_ref().as_fd()
    }
}

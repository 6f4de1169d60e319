//! Receipts in tasks.

use std::os::fd::{AsFd, BorrowedFd};

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;

use super::waiting;
use crate::Error;
use crate::sys::reactor;

/// A [`Receipt`](crate::Receipt) in a tokio runtime.
#[derive(Debug)]
pub struct Receipt {
    io: AsyncFd<crate::Receipt>,
}

impl Receipt {
    /// Takes a receipt into the runtime of the calling task.
    ///
    /// # Errors
    /// [`Error::Io`]: no memory, or no epoll watches left for this user (epoll(7)); the receipt is dropped.
    ///
    /// # Panics
    /// Outside a runtime, or in one without I/O.
    pub fn new(receipt: crate::Receipt) -> Result<Receipt, Error> {
        Ok(Receipt {
            io: reactor::register(receipt, Interest::READABLE)?,
        })
    }

    /// The receipt itself, out of the runtime.
    #[must_use]
    pub fn into_inner(self) -> crate::Receipt {
        self.io.into_inner()
    }

    /// The receipt itself.
    #[must_use]
    pub fn get_ref(&self) -> &crate::Receipt {
        self.io.get_ref()
    }

    /// Waits until the message has been taken. What has been answered stays so.
    ///
    /// # Errors
    /// As [`Receipt::wait`](crate::Receipt::wait).
    pub async fn wait(&self) -> Result<(), Error> {
        loop {
            let mut guard = self.io.readable().await.map_err(waiting)?;
            match self.get_ref().try_wait() {
                Err(Error::WouldBlock) => guard.clear_ready(),
                other => return other,
            }
        }
    }
}

impl TryFrom<crate::Receipt> for Receipt {
    type Error = Error;

    /// [`Receipt::new`].
    fn try_from(receipt: crate::Receipt) -> Result<Receipt, Error> {
        Receipt::new(receipt)
    }
}

impl From<Receipt> for crate::Receipt {
    fn from(receipt: Receipt) -> crate::Receipt {
        receipt.into_inner()
    }
}

impl AsFd for Receipt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.get_ref().as_fd()
    }
}

//! An exchange over a link.

use std::fmt;

use memlane_transport::{FdRef, Link};
use serde::{Serialize, Serializer};

use super::{Borrowed, Borrower, Buffer, Error, Lender, Lent, Retired, message::Loan};

/// As [`Event`](super::message::Event) is received.
#[derive(Serialize)]
enum Message<'a> {
    Known(Loan),
    New(Loan, FdRef<'a>),
    Retired(Loan),
}

/// Received as [`Arrival`](super::Arrival).
impl Serialize for Lent<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let message = match self.descriptor() {
            None => Message::Known(self.loan()),
            Some(fd) => Message::New(self.loan(), fd.into()),
        };
        message.serialize(serializer)
    }
}

/// Received as [`Arrival`](super::Arrival).
impl Serialize for Retired {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Message::Retired(self.0).serialize(serializer)
    }
}

impl Lent<'_> {
    /// Sends it, waiting for room as long as it takes ([`Link::send`]).
    ///
    /// # Errors
    ///
    /// [`Unsent`], with the buffer: it is not lent.
    pub fn send(self, link: &Link) -> Result<(), Box<Unsent>> {
        let sent = link.send(&self);
        self.settle(sent)
    }

    /// Sends it without waiting ([`Link::try_send`]).
    ///
    /// # Errors
    ///
    /// [`Unsent`], with the buffer: it is not lent.
    pub fn try_send(self, link: &Link) -> Result<(), Box<Unsent>> {
        let sent = link.try_send(&self);
        self.settle(sent)
    }

    fn settle(self, sent: Result<(), memlane_transport::Error>) -> Result<(), Box<Unsent>> {
        sent.map_err(|error| {
            let buffer = self.cancel();
            Box::new(Unsent { error, buffer })
        })
    }
}

/// A buffer that could not be sent, and why.
#[derive(Debug)]
pub struct Unsent {
    /// What the link said.
    pub error: memlane_transport::Error,
    /// The buffer, given back.
    pub buffer: Buffer,
}

impl fmt::Display for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Unsent {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl Lender {
    /// Waits for a buffer to come back. For other ways to wait: [`take_back`](Lender::take_back) what
    /// [`Link::try_recv`] gives.
    ///
    /// # Errors
    ///
    /// [`Error::Link`], or as [`take_back`](Lender::take_back).
    pub fn recv(&mut self, link: &Link) -> Result<Buffer, Error> {
        self.take_back(link.recv()?)
    }
}

impl Borrower {
    /// Waits for a region to be handed over. For other ways to wait: [`receive`](Borrower::receive) what
    /// [`Link::try_recv`] gives.
    ///
    /// # Errors
    ///
    /// [`Error::Link`], or as [`receive`](Borrower::receive).
    pub fn recv(&mut self, link: &Link) -> Result<Borrowed, Error> {
        loop {
            if let Some(borrowed) = self.receive(link.recv()?)? {
                return Ok(borrowed);
            }
        }
    }
}

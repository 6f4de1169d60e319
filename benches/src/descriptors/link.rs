//! Descriptors through a link.

use std::os::fd::OwnedFd;

use anyhow::Result;
use memlane_transport::{Fds, Link};

/// The sending end.
#[derive(Debug)]
pub struct Outgoing {
    link: Link,
    message: (u64, Fds),
}

impl Outgoing {
    /// Sends `descriptors` through `socket`.
    ///
    /// # Errors
    ///
    /// Fails if no link can be made of the socket.
    pub fn new(socket: OwnedFd, descriptors: Vec<OwnedFd>) -> Result<Self> {
        Ok(Self {
            link: Link::from_fd(socket)?,
            message: (0, Fds::from(descriptors)),
        })
    }
}

impl super::Outgoing for Outgoing {
    fn send(&mut self, number: u64) -> Result<()> {
        self.message.0 = number;
        Ok(self.link.send(&self.message)?)
    }
}

/// The receiving end.
#[derive(Debug)]
pub struct Incoming {
    link: Link,
    held: Vec<Fds>,
}

impl Incoming {
    /// Receives from `socket`.
    ///
    /// # Errors
    ///
    /// Fails if no link can be made of the socket.
    pub fn new(socket: OwnedFd) -> Result<Self> {
        Ok(Self {
            link: Link::from_fd(socket)?,
            held: Vec::new(),
        })
    }
}

impl super::Incoming for Incoming {
    fn recv(&mut self) -> Result<u64> {
        let (number, descriptors) = self.link.recv()?;
        self.held.push(descriptors);
        Ok(number)
    }

    fn close(&mut self) -> usize {
        let mut closed = 0;
        for descriptors in self.held.drain(..) {
            closed += descriptors.len();
            // Known to be memfds, as the other contender knows.
            drop(descriptors.into_vec());
        }
        closed
    }
}

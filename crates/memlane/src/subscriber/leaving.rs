//! A lane among others that moves to another process: what [`Subscriber::ticket`] and [`Subscriber::depart`] do, in steps that
//! do not wait.

use std::time::Instant;

use memlane_transport::Error as LinkError;

use super::{Subscriber, Ticket, Travel, Trust};
use crate::{Error, protocol::PacketRef};

/// So many notices are taken in one go.
pub(super) const MAX_NOTICES: usize = 1024;

impl<T: Trust> Subscriber<T> {
    /// Asks for a ticket. False if there is no room for that now, or the publisher has moved, and what was sent before is still to be
    /// received.
    ///
    /// # Errors
    ///
    /// Nobody is there to be asked.
    pub(crate) fn ask_for_ticket(&mut self) -> Result<bool, Error> {
        if self.chunks.is_over() {
            return Err(Error::HungUp);
        }
        if self.chunks.homes.is_ahead() {
            return Ok(false);
        }
        let number = self.chunks.moving.next();
        self.travel = Travel::Stays;
        self.say(&PacketRef::Ticket { number })
    }

    /// The ticket, if it has come by now. Attachments of messages that have not been received are not taken ahead of them.
    ///
    /// # Errors
    ///
    /// There is to be no move.
    pub(crate) fn given_ticket(&mut self) -> Result<Option<Ticket>, Error> {
        let position = self.position();
        self.chunks.take_notices(&self.link, position);
        self.stays_not()?;
        Ok(self.take_ticket())
    }

    /// Takes all that the publisher has said by now, what belongs to later messages included.
    ///
    /// # Errors
    ///
    /// It is gone; or it has moved, and what was sent before is still to be received.
    pub(crate) fn hear_out(&mut self) -> Result<(), Error> {
        for _ in 0..MAX_NOTICES {
            match self.hear_notice(Some(Instant::now())) {
                Ok(()) => {}
                Err(Error::NoAnswer { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Says its last word, if that can be said now. Whether it was.
    ///
    /// # Errors
    ///
    /// It cannot stop where it is; or nobody is there.
    pub(crate) fn begin_departure(&mut self) -> Result<bool, Error> {
        let departed = self.say_where()?;
        let said = self.say(&departed)?;
        if said {
            self.travel = Travel::Departed;
        }
        Ok(said)
    }

    /// Whether the publisher has confirmed that.
    ///
    /// # Errors
    ///
    /// It stays, and goes on as if nothing had happened.
    pub(crate) fn has_departed(&mut self) -> Result<bool, Error> {
        self.stays_not()?;
        Ok(self.chunks.moving.departed)
    }

    /// Its publisher is gone, and has not confirmed. What is left may be received twice, and never by nobody.
    pub(crate) fn return_from_departure(&mut self) {
        if self.chunks.evicted().is_some() {
            // Whether its place is its own is not known, and the publisher goes on.
            self.ring.stop();
        }
        self.travel = Travel::Stays;
    }

    /// Whether it holds up nobody.
    pub(crate) fn is_lossy(&self) -> bool {
        self.lossy.is_some()
    }

    /// There is to be no move.
    pub(crate) fn do_not_leave(&mut self) {
        if self.travel == Travel::Ticketed {
            // Or it is told when the ticket is gone.
            let _ = self.say(&PacketRef::Stays);
        }
        if self.travel != Travel::Departed {
            self.travel = Travel::Stays;
            self.chunks.moving.next();
        }
    }

    /// Whether there was room for it.
    fn say(&self, packet: &PacketRef<'_>) -> Result<bool, Error> {
        match self.link.try_send(packet) {
            Ok(()) => Ok(true),
            Err(LinkError::WouldBlock) => Ok(false),
            Err(error) if error.is_disconnected() => Err(Error::HungUp),
            Err(error) => Err(error.into()),
        }
    }
}

//! Receivers of a latest value that move to another process.
//!
//! The publisher's side of it is that of a [subscriber's move](super::travel). A value has no position: what goes on is the number of
//! the one that was read last.

use std::time::{Duration, Instant};

use memlane_transport::Error as LinkError;
use serde::{Deserialize, Serialize};

use super::{
    Meeting, WatchReceiver, WatchReceiverBuilder,
    handshake::Awaits,
    leaving::MAX_NOTICES,
    travel::{PATIENCE, Ticket, Travel, tell},
    watch_builder::Looking,
};
use crate::{
    Connecting, Error, Reason, Remains, after,
    error::NO_TICKET,
    left,
    protocol::{Notice, PacketRef},
};

/// No value has a greater number: it would take centuries to get there.
const LAST_NUMBER: u64 = 1 << 59;

/// The right to go on where a receiver stops, in whatever process has it ([`WatchReceiver::ticket`]).
///
/// It can stand anywhere in a message of a [`Link`](crate::Link). Sending borrows it, as it does all descriptors: whoever still has it
/// once it has been sent can speak in its taker's name, and end what that one sees.
///
/// Dropped everywhere, unused, it is void: the receiver [stays](Error::Stays), or, if it has departed, is gone.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WatchTicket(Ticket);

impl WatchTicket {
    /// Goes on where the receiver stops, with the options that are default: [`WatchReceiverBuilder::arrive`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn arrive(self) -> Result<WatchReceiver, Error> {
        WatchReceiver::builder().arrive(self)
    }
}

impl WatchReceiverBuilder {
    /// Goes on where another receiver stops, in whatever process that is: waits until it has
    /// [departed](WatchReceiver::depart), or is gone, for as long as the [`timeout`](WatchReceiverBuilder::timeout) allows. It sees the
    /// newest value, and takes for new what the other has not read; if that one was killed, any value. Options are this builder's
    /// own, whatever the other had.
    ///
    /// # Errors
    ///
    /// [`Error::NotDeparted`] if it has not departed in time, and stays; [`Error::HungUp`] if it has said that it stays, or
    /// the sender is gone; else as [`connect`](WatchReceiverBuilder::connect). The ticket is void.
    pub fn arrive(self, ticket: WatchTicket) -> Result<WatchReceiver, Error> {
        self.begin_arrival(ticket)?.wait()
    }

    /// Begins to go on where another receiver stops, without waiting: for loops and tasks.
    ///
    /// # Errors
    ///
    /// As [`arrive`](WatchReceiverBuilder::arrive), as far as that is known at once.
    pub fn begin_arrival(self, ticket: WatchTicket) -> Result<Connecting<WatchReceiver>, Error> {
        let WatchReceiverBuilder { lane, max_len } = self;
        let (passage, address) = ticket.0.open("sender")?;
        let meeting = Meeting::succeeding(lane, passage, address, Awaits::Latest)?;
        Ok(Connecting::new(Looking::new(meeting, max_len)))
    }
}

impl WatchReceiver {
    /// Asks the sender for a ticket, with which another process goes on where this receiver stops. Nothing has changed by that:
    /// send the ticket to the other process, which [arrives](WatchReceiverBuilder::arrive); go on here until that one
    /// [waits](WatchReceiver::is_awaited); then [depart](WatchReceiver::depart). Or depart at once.
    ///
    /// Whoever has the ticket is admitted, whatever the sender's [access rule](crate::WatchSenderBuilder::access) says, and however
    /// many receivers there are. A receiver has one at a time: one that it had before is void, whatever comes of this. It waits for the
    /// sender's control side, as connecting does, for up to 5 s.
    ///
    /// If this process dies before it has departed, the other goes on, and takes the newest value for one that has not been read. If
    /// the other dies before that, nothing has happened.
    ///
    /// # Errors
    ///
    /// [`Error::Stays`] if the sender is short of resources; [`Error::HungUp`] if it is gone; [`Error::NoAnswer`].
    ///
    /// ```
    /// use memlane::{Link, WatchReceiver, WatchSender, WatchTicket};
    ///
    /// # let link = Link::pair()?;
    /// # let mut pose = WatchSender::builder().unbound()?;
    /// # pose.attach(link.0)?;
    /// # let mut seen = WatchReceiver::builder().over(link.1)?;
    /// # let (to_the_other, from_the_first) = Link::pair()?;
    /// pose.send(b"north")?;
    /// assert_eq!(seen.get()?.as_deref(), Some(&b"north"[..]));
    /// to_the_other.send(&seen.ticket()?)?;
    /// # let other = std::thread::spawn(move || {
    ///
    /// // in another process
    /// let ticket: WatchTicket = from_the_first.recv()?;
    /// let mut seen = ticket.arrive()?;
    /// assert!(!seen.is_changed()); // the other has read it
    /// assert_eq!(seen.get()?.as_deref(), Some(&b"north"[..]));
    /// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    /// # });
    ///
    /// // in the first, whenever it likes
    /// seen.depart()?;
    /// # other.join().unwrap().unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn ticket(&mut self) -> Result<WatchTicket, Error> {
        if self.ended.is_some() {
            return Err(Error::HungUp);
        }
        if self.travel == Travel::Departed {
            return Err(Error::stays(
                "it has departed already, as soon as the sender takes note",
            ));
        }
        let deadline = after(PATIENCE);
        let number = self.moving.next();
        // One that comes too late is nobody's, and that of before is void.
        self.travel = Travel::Stays;
        tell(&self.link, &PacketRef::Ticket { number }, deadline)?;
        let mut heard = 0;
        loop {
            if let Some(socket) = self.moving.ticket.take() {
                self.travel = Travel::Ticketed;
                return Ok(WatchTicket(Ticket::new(socket, self.address.clone())));
            }
            self.stays_not()?;
            self.hear_another(deadline, &mut heard)?;
        }
    }

    /// Whether a successor has shaken hands, and waits for this receiver to depart: then whatever takes time has been done.
    /// One system call.
    ///
    /// # Errors
    ///
    /// [`Error::Stays`], once, if there will be none: whoever had the ticket is gone, or was refused. This receiver goes on,
    /// and may get another ticket. [`Error::HungUp`] if the sender is gone.
    pub fn is_awaited(&mut self) -> Result<bool, Error> {
        self.take_notices();
        self.stays_not()?;
        match self.ended {
            None => Ok(self.moving.awaited),
            Some(_) => Err(Error::HungUp),
        }
    }

    /// Waits until a successor waits, no longer than `timeout`; whether one does.
    ///
    /// # Errors
    ///
    /// As [`is_awaited`](WatchReceiver::is_awaited).
    pub fn wait_until_awaited(&mut self, timeout: Duration) -> Result<bool, Error> {
        let deadline = after(timeout);
        let mut heard = 0;
        loop {
            if self.is_awaited()? {
                return Ok(true);
            }
            match self.hear_another(deadline, &mut heard) {
                Ok(()) => {}
                Err(Error::NoAnswer { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes back the ticket it has given: its holder is turned away, and this receiver stays.
    ///
    /// # Errors
    ///
    /// [`Error::HungUp`] if the sender is gone; [`Error::NoAnswer`], also of one that was to [depart](WatchReceiver::depart) and came
    /// back for want of an answer: the sender does what it was told, which cannot be taken back.
    pub fn stay(&mut self) -> Result<(), Error> {
        match self.travel {
            Travel::Stays => return Ok(()),
            Travel::Ticketed => tell(&self.link, &PacketRef::Stays, after(PATIENCE))?,
            Travel::Departed => match self.is_awaited() {
                // The sender has said by now that there was nobody to go on.
                Err(Error::Stays { .. }) => {}
                Err(error) => return Err(error),
                Ok(_) => return Err(Error::NoAnswer { waited: PATIENCE }),
            },
        }
        self.travel = Travel::Stays;
        self.moving.next();
        Ok(())
    }

    /// Stops, and leaves its place to whoever has its [ticket](WatchReceiver::ticket), to whom what it has read is no news. It waits
    /// until the sender has taken note, for up to 5 s: when it returns, the place is the successor's, or will be when that one arrives.
    ///
    /// A ticketed receiver that is dropped departs, too, but does not hear whether there is anybody to go on.
    ///
    /// # Errors
    ///
    /// [`Remains`], with the receiver, if there is no successor: no ticket was given, or its holder is gone; or the sender is. The
    /// ticket is void then. But for [`Error::NoAnswer`]: the sender does what it was told when it gets on. What comes back can be read,
    /// and departs when it is asked again, or dropped.
    pub fn depart(mut self) -> Result<(), Box<Remains<WatchReceiver>>> {
        let Err(error) = self.try_depart() else {
            return Ok(());
        };
        if !matches!(error, Error::NoAnswer { .. }) {
            // The sender knows, unless it was not asked.
            let _ = self.stay();
            self.travel = Travel::Stays;
        }
        Err(Box::new(Remains { error, end: self }))
    }

    fn try_depart(&mut self) -> Result<(), Error> {
        let deadline = after(PATIENCE);
        match self.travel {
            Travel::Stays => return Err(Error::stays(NO_TICKET)),
            Travel::Ticketed => {
                self.is_awaited()?;
                tell(&self.link, &self.last_word(), deadline)?;
                self.travel = Travel::Departed;
            }
            Travel::Departed => {}
        }
        let mut heard = 0;
        while !self.moving.departed {
            self.stays_not()?;
            self.hear_another(deadline, &mut heard)?;
        }
        Ok(())
    }

    fn last_word(&self) -> PacketRef<'static> {
        PacketRef::Departed {
            position: 0,
            sequence: self.sequence(),
            attachments: 0,
        }
    }

    /// Hears that it may begin; false if that has not come.
    pub(super) fn begin(&mut self) -> Result<bool, Error> {
        self.take_notices();
        if let Some((_, sequence, _)) = self.moving.begin.take() {
            if sequence > LAST_NUMBER {
                let why = format!("expected the number of a value up to 2^59, got {sequence}");
                return Err(Error::Welcome { why });
            }
            self.reader.begin_at(sequence);
            return Ok(true);
        }
        match &self.ended {
            None => Ok(false),
            Some(Reason::Evicted { why }) => Err(Error::Refused { why: why.clone() }),
            Some(_) => Err(Error::HungUp),
        }
    }

    /// Whether the sender has said that there is no move.
    fn stays_not(&mut self) -> Result<(), Error> {
        match self.moving.stays.take() {
            Some(why) => {
                self.travel = Travel::Stays;
                Err(Error::stays(why))
            }
            None => Ok(()),
        }
    }

    /// Takes what the sender has said: of a move, or its last word.
    pub(super) fn take_notices(&mut self) {
        for _ in 0..MAX_NOTICES {
            if self.ended.is_some() {
                return;
            }
            match self.link.try_recv() {
                Ok(notice) => self.take(notice),
                Err(LinkError::WouldBlock) => return,
                Err(error) => self.break_off(&error),
            }
        }
    }

    /// Waits for one more notice, of a sender that may say one after the other for ever: no longer than until the deadline, and
    /// then takes what is there by then.
    fn hear_another(&mut self, deadline: Option<Instant>, heard: &mut usize) -> Result<(), Error> {
        if self.ended.is_some() {
            return Err(Error::HungUp);
        }
        *heard += 1;
        if *heard > MAX_NOTICES && left(deadline).is_zero() {
            return Err(Error::NoAnswer { waited: PATIENCE });
        }
        match self.link.recv_timeout(left(deadline)) {
            Ok(notice) => self.take(notice),
            Err(LinkError::TimedOut) => return Err(Error::NoAnswer { waited: PATIENCE }),
            Err(error) => {
                self.break_off(&error);
                if !error.is_disconnected() {
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, notice: Notice) {
        let other = match notice {
            Notice::Farewell(farewell) => return self.end(farewell.into()),
            notice => match self.moving.take(notice) {
                Ok(()) => return,
                Err(Notice::Added { .. } | Notice::Ring { .. }) => "memory".to_owned(),
                Err(other) => format!("{other:?}"),
            },
        };
        self.link.hang_up();
        let why = format!("expected a farewell, got {other}");
        self.end(Reason::Broken { why });
    }

    /// The link has ended by this.
    fn break_off(&mut self, error: &LinkError) {
        if error.is_disconnected() {
            return self.end(Reason::Died);
        }
        // The sender does not know yet: it would keep a place for this receiver, and ring it.
        self.link.hang_up();
        let why = error.to_string();
        self.end(Reason::Broken { why });
    }
}

impl Drop for WatchReceiver {
    fn drop(&mut self) {
        if self.travel == Travel::Ticketed && self.pid == std::process::id() {
            let _ = self.link.try_send(&self.last_word());
        }
    }
}

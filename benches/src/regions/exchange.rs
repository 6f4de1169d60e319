//! A buffer of [`memlane_region::exchange`] that goes to the other side and comes back. Its descriptor goes over a
//! link, once; after that, messages go over the link or over lanes.

use anyhow::{Context, Result};
use memlane::WaitPolicy;
use memlane_region::exchange::{Arrival, Borrowed, Borrower, Buffer, Lender, Return};
use memlane_transport::Link;

use super::{expect, slots};
use crate::candidate::trusting_lanes;
use crate::measure::ping_pong::{Game, measure_turns};
use crate::metrics::Metrics;
use crate::path::{Receiver, Sender};
use crate::worker::Session;

/// The initiator lends, the responder borrows.
struct Exchange<W> {
    way: W,
    lender: Lender,
    /// While it is here.
    buffer: Option<Buffer>,
    borrower: Borrower,
    number: u64,
}

/// How messages travel.
trait Way {
    fn lend(&mut self, lender: &mut Lender, buffer: Buffer) -> Result<()>;
    fn borrow(&mut self, borrower: &mut Borrower) -> Result<Borrowed>;
    fn give_back(&mut self, returned: Return) -> Result<()>;
    fn take_back(&mut self, lender: &mut Lender) -> Result<Buffer>;
}

impl Way for Link {
    fn lend(&mut self, lender: &mut Lender, buffer: Buffer) -> Result<()> {
        let len = buffer.len();
        Ok(lender.lend(buffer, len).send(self)?)
    }

    fn borrow(&mut self, borrower: &mut Borrower) -> Result<Borrowed> {
        Ok(borrower.recv(self)?)
    }

    fn give_back(&mut self, returned: Return) -> Result<()> {
        Ok(self.send(&returned)?)
    }

    fn take_back(&mut self, lender: &mut Lender) -> Result<Buffer> {
        Ok(lender.recv(self)?)
    }
}

/// Messages of plain data over lanes.
struct Lanes<S, R> {
    sender: S,
    receiver: R,
}

impl<S: Sender, R: Receiver> Way for Lanes<S, R> {
    #[inline]
    fn lend(&mut self, lender: &mut Lender, buffer: Buffer) -> Result<()> {
        let len = buffer.len();
        let lent = lender.lend(buffer, len);
        self.sender.send(&lent.to_bytes())
    }

    #[inline]
    fn borrow(&mut self, borrower: &mut Borrower) -> Result<Borrowed> {
        let mut message = [0; 64];
        let len = self.receiver.recv(&mut message)?;
        let arrival = Arrival::from_bytes(&message[..len])?;
        borrower.receive(arrival)?.context("a region is retired")
    }

    #[inline]
    fn give_back(&mut self, returned: Return) -> Result<()> {
        self.sender.send(&returned.to_bytes())
    }

    #[inline]
    fn take_back(&mut self, lender: &mut Lender) -> Result<Buffer> {
        let mut message = [0; 64];
        let len = self.receiver.recv(&mut message)?;
        Ok(lender.take_back(Return::from_bytes(&message[..len])?)?)
    }
}

impl<W: Way> Exchange<W> {
    fn over<V>(self, way: V) -> Exchange<V> {
        Exchange {
            way,
            lender: self.lender,
            buffer: self.buffer,
            borrower: self.borrower,
            number: self.number,
        }
    }
}

impl<W: Way> Game for Exchange<W> {
    #[inline]
    fn ping(&mut self) -> Result<()> {
        let mut buffer = self.buffer.take().context("the buffer is not here")?;
        slots::put(&mut buffer, self.number);
        self.way.lend(&mut self.lender, buffer)?;
        self.buffer = Some(self.way.take_back(&mut self.lender)?);
        self.number += 1;
        Ok(())
    }

    #[inline]
    fn pong(&mut self) -> Result<()> {
        let borrowed = self.way.borrow(&mut self.borrower)?;
        let (mut head, mut last) = ([0; 8], [0]);
        borrowed.read(0, &mut head);
        borrowed.read(borrowed.len() - 1, &mut last);
        expect(u64::from_ne_bytes(head), self.number)?;
        expect(last[0].into(), self.number & 0xff)?;
        self.number += 1;
        self.way.give_back(borrowed.give_back())
    }
}

fn new(session: &mut Session) -> Result<Exchange<Link>> {
    let way = Link::from_fd(session.take_descriptor()?)?;
    let size = session.task().size;
    let mut lender = Lender::new(size);
    let mut exchange = Exchange {
        way,
        buffer: Some(lender.create("memlane-bench", size)?),
        lender,
        borrower: Borrower::new(size),
        number: 0,
    };
    // The descriptor goes over.
    if session.role().is_initiator() {
        exchange.ping()?;
    } else {
        exchange.pong()?;
    }
    Ok(exchange)
}

/// Over a link.
///
/// # Errors
///
/// Fails if what is read is not what was written.
pub(crate) fn over_link(session: &mut Session) -> Result<Metrics> {
    let mut exchange = new(session)?;
    measure_turns(session, &mut exchange)
}

/// Over lanes.
///
/// # Errors
///
/// Fails if what is read is not what was written.
pub(crate) fn over_lanes(session: &mut Session) -> Result<Metrics> {
    let exchange = new(session)?;
    let (sender, receiver) = trusting_lanes(session, WaitPolicy::Poll)?;
    measure_turns(session, &mut exchange.over(Lanes { sender, receiver }))
}

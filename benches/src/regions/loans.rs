//! Messages in the pools of two publishers, one on each side, or of one publisher and its subscriber in one thread.

use anyhow::{Result, ensure};
use memlane::{Link, Loan, Message, Publisher, Subscriber, Trusted, Untrusted, WaitPolicy};

use super::{expect, read_all};
use crate::candidate::{self, both_ways};
use crate::measure::ping_pong::Game;
use crate::worker::Session;

/// How messages are read: copied out of what a publisher may be changing, or in place.
pub(crate) trait Terms: candidate::Terms {
    /// Reads every byte; they are in `copy` or in place.
    fn whole<'a>(message: &'a Message<'_, Self>, copy: &'a mut [u8]) -> &'a [u8];

    /// The eight bytes from `at` on.
    fn word(message: &Message<'_, Self>, at: usize) -> u64;

    /// The last byte.
    fn last(message: &Message<'_, Self>) -> u8;
}

impl Terms for Untrusted {
    #[inline]
    fn whole<'a>(message: &'a Message<'_, Self>, copy: &'a mut [u8]) -> &'a [u8] {
        let len = message.copy_to(copy);
        std::hint::black_box(&copy[..len])
    }

    #[inline]
    fn word(message: &Message<'_, Self>, at: usize) -> u64 {
        let mut word = [0; 8];
        message.read_at(at, &mut word);
        u64::from_ne_bytes(word)
    }

    #[inline]
    fn last(message: &Message<'_, Self>) -> u8 {
        let mut last = [0];
        message.read_at(message.len() - 1, &mut last);
        last[0]
    }
}

impl Terms for Trusted {
    #[inline]
    fn whole<'a>(message: &'a Message<'_, Self>, _: &'a mut [u8]) -> &'a [u8] {
        read_all(message);
        message
    }

    #[inline]
    fn word(message: &Message<'_, Self>, at: usize) -> u64 {
        u64::from_ne_bytes(message[at..at + 8].try_into().expect("eight bytes"))
    }

    #[inline]
    fn last(message: &Message<'_, Self>) -> u8 {
        message[message.len() - 1]
    }
}

/// One side's publisher, and its subscriber to the other one's.
pub(crate) struct Loans<T: Terms> {
    publisher: Publisher,
    subscriber: Subscriber<T>,
    size: usize,
    copy: Vec<u8>,
}

/// A message, and room for a copy of it.
pub(crate) struct Received<'a, T: Terms> {
    message: Message<'a, T>,
    copy: &'a mut [u8],
}

impl<T: Terms> Received<'_, T> {
    #[inline]
    pub(crate) fn whole(&mut self) -> &[u8] {
        T::whole(&self.message, self.copy)
    }

    #[inline]
    pub(crate) fn word(&self, at: usize) -> u64 {
        T::word(&self.message, at)
    }
}

impl<T: Terms> Loans<T> {
    /// With the other process.
    pub(crate) fn between(session: &Session, wait: WaitPolicy) -> Result<Self> {
        let (outgoing, incoming) = both_ways::<T>(session, wait)?;
        Ok(Self::new(session, outgoing.0, incoming.subscriber))
    }

    /// With itself.
    pub(crate) fn alone(session: &Session) -> Result<Self> {
        let (one, other) = Link::pair()?;
        let publisher = T::publisher().wait(WaitPolicy::Poll).unbound()?;
        publisher.attach(one)?;
        let subscriber = T::subscriber().wait(WaitPolicy::Poll).over(other)?;
        Ok(Self::new(session, publisher, subscriber))
    }

    fn new(session: &Session, publisher: Publisher, subscriber: Subscriber<T>) -> Self {
        let size = session.task().size;
        Self {
            publisher,
            subscriber,
            size,
            copy: vec![0; size],
        }
    }

    #[inline]
    pub(crate) fn loan(&mut self) -> Result<Loan> {
        Ok(self.publisher.loan(self.size)?)
    }

    #[inline]
    pub(crate) fn send(&mut self, loan: Loan) -> Result<()> {
        Ok(self.publisher.send_loan(loan)?)
    }

    /// Receives what the other side loaned, and releases it.
    #[inline]
    pub(crate) fn receive<R>(
        &mut self,
        read: impl FnOnce(&mut Received<'_, T>) -> Result<R>,
    ) -> Result<R> {
        let message = self.subscriber.recv()?;
        let len = message.len();
        ensure!(len == self.size, "{len} bytes came");
        let copy = &mut self.copy;
        read(&mut Received { message, copy })
    }

    #[inline]
    pub(crate) fn acknowledge(&mut self) -> Result<()> {
        Ok(self.publisher.send(&[0; 8])?)
    }

    #[inline]
    pub(crate) fn acknowledged(&mut self) -> Result<()> {
        let len = self.subscriber.recv()?.len();
        ensure!(len == 8, "{len} bytes came");
        Ok(())
    }
}

/// Each side loans and sends; only the ends are touched.
pub(crate) struct Touch<T: Terms> {
    loans: Loans<T>,
    number: u64,
}

impl<T: Terms> Touch<T> {
    pub(crate) fn new(session: &Session) -> Result<Self> {
        let loans = Loans::between(session, WaitPolicy::Poll)?;
        Ok(Self { loans, number: 0 })
    }

    #[inline]
    fn lend(&mut self) -> Result<()> {
        let mut loan = self.loans.loan()?;
        super::slots::put(&mut loan, self.number);
        self.loans.send(loan)
    }

    #[inline]
    fn borrow(&mut self) -> Result<()> {
        let number = self.number;
        self.loans.receive(|received| {
            expect(received.word(0), number)?;
            expect(T::last(&received.message).into(), number & 0xff)
        })
    }
}

impl<T: Terms> Game for Touch<T> {
    #[inline]
    fn ping(&mut self) -> Result<()> {
        self.lend()?;
        self.borrow()?;
        self.number += 1;
        Ok(())
    }

    #[inline]
    fn pong(&mut self) -> Result<()> {
        self.borrow()?;
        self.lend()?;
        self.number += 1;
        Ok(())
    }
}

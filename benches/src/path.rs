//! A message path as the loops see it: one end to send, one to receive, and payloads that cannot go wrong
//! unseen.

use std::hint::{self, black_box};

use anyhow::{Result, anyhow};
use rustix::thread::sched_yield;

/// The sending end of a path.
pub trait Sender {
    /// Hands over a copy of `payload`, waiting while there is no room.
    ///
    /// # Errors
    ///
    /// Fails if the path is broken.
    fn send(&mut self, payload: &[u8]) -> Result<()>;
}

/// The receiving end of a path.
pub trait Receiver {
    /// Copies the next message into `buffer` and says how long it is, waiting while there is none.
    ///
    /// # Errors
    ///
    /// Fails if the path is broken or the message does not fit.
    fn recv(&mut self, buffer: &mut [u8]) -> Result<usize>;
}

/// How a polling side behaves while there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spin {
    /// Looks again at once: the core belongs to this process.
    Hard,
    /// Gives the core away after [`Spin::PATIENCE`] looks: others share it.
    Yielding,
}

impl Spin {
    /// Empty looks before a yielding side gives its core away.
    pub const PATIENCE: u32 = 50;

    /// Polls until there is something, with a pause between looks. Without it the processor runs ahead of
    /// the loop, and has to take back what it read early each time the line changes: on some machines that
    /// doubles the latency of a ring.
    #[inline]
    pub fn until<T>(self, mut poll: impl FnMut() -> Option<T>) -> T {
        loop {
            for _ in 0..Self::PATIENCE {
                if let Some(found) = poll() {
                    return found;
                }
                hint::spin_loop();
            }
            if self == Self::Yielding {
                sched_yield();
            }
        }
    }
}

/// Messages to send: each differs from the one before it in every byte, and carries its number in the first
/// eight.
#[derive(Debug)]
pub struct Payloads {
    variants: [Vec<u8>; VARIANTS],
    turn: Turn,
}

/// The number of a message, and which of the variants it is.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    number: u64,
    variant: usize,
}

// Three, so that a ring whose length is a power of two does not meet the same bytes at the same place in
// every lap.
const VARIANTS: usize = 3;
const FILLS: [u8; VARIANTS] = [0x55, 0xaa, 0x33];

impl Turn {
    #[inline]
    fn next(self) -> Self {
        Self {
            number: self.number + 1,
            variant: if self.variant == VARIANTS - 1 {
                0
            } else {
                self.variant + 1
            },
        }
    }
}

impl Payloads {
    /// The smallest message that can carry its number.
    pub const MIN_LEN: usize = size_of::<u64>();

    /// Messages of `len` bytes, at least [`Payloads::MIN_LEN`].
    pub fn new(len: usize) -> Self {
        assert!(len >= Self::MIN_LEN);
        let mut payloads = Self {
            variants: FILLS.map(|fill| vec![fill; len]),
            turn: Turn::default(),
        };
        payloads.stamp(Turn::default());
        payloads
    }

    /// Bytes of each message.
    pub fn size(&self) -> usize {
        self.variants[0].len()
    }

    /// The next message.
    #[inline]
    pub fn advance(&mut self) -> &[u8] {
        let turn = self.turn;
        self.turn = turn.next();
        // The message after this one is stamped already, so that no copy has to wait for a store that it
        // has just overtaken.
        self.stamp(self.turn);
        &self.variants[turn.variant]
    }

    #[inline]
    fn stamp(&mut self, turn: Turn) {
        self.variants[turn.variant][..Self::MIN_LEN].copy_from_slice(&turn.number.to_ne_bytes());
    }
}

/// A private buffer into which messages are received whole, and in which they are checked.
#[derive(Debug)]
pub struct Inbox {
    buffer: Vec<u8>,
    turn: Turn,
}

impl Inbox {
    /// A buffer for messages of exactly `len` bytes.
    pub fn new(len: usize) -> Self {
        assert!(len >= Payloads::MIN_LEN);
        Self {
            buffer: vec![0; len],
            turn: Turn::default(),
        }
    }

    /// Receives the next message and returns it.
    ///
    /// # Errors
    ///
    /// Fails if the path does, or if the message is not the one [`Payloads`] made in this place.
    #[inline]
    pub fn receive(&mut self, receiver: &mut impl Receiver) -> Result<&[u8]> {
        let len = receiver.recv(&mut self.buffer)?;
        self.check(len)
    }

    /// Where the next message is to be put, to be [checked](Self::check) then.
    #[inline]
    pub fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// The message of `len` bytes that has been put into the buffer.
    ///
    /// # Errors
    ///
    /// Fails if it is not the one [`Payloads`] made in this place.
    #[inline]
    pub fn check(&mut self, len: usize) -> Result<&[u8]> {
        // Nothing below looks at the middle of the message; the copy must happen nevertheless.
        let message = black_box(self.buffer.as_slice());
        let (number, rest) = message
            .split_first_chunk()
            .expect("the buffer has room for a number");
        let is_expected = len == message.len()
            && u64::from_ne_bytes(*number) == self.turn.number
            && rest
                .last()
                .is_none_or(|&last| last == FILLS[self.turn.variant]);
        if !is_expected {
            return Err(self.unexpected(len));
        }
        self.turn = self.turn.next();
        Ok(message)
    }

    #[cold]
    fn unexpected(&self, len: usize) -> anyhow::Error {
        let start = &self.buffer[..len.min(16)];
        anyhow!(
            "message {} arrived with {len} bytes, the first of them {start:02x?}",
            self.turn.number
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Receives what `Payloads` makes, but sees some of it twice.
    struct Repeating(Payloads, u64);

    impl Receiver for Repeating {
        fn recv(&mut self, buffer: &mut [u8]) -> Result<usize> {
            let payload = self.0.advance();
            buffer.copy_from_slice(payload);
            self.1 += 1;
            if self.1 == 5 {
                buffer[..8].fill(0);
            }
            Ok(payload.len())
        }
    }

    #[test]
    fn a_wrong_message_is_noticed() {
        for len in [8, 9, 100] {
            let (mut inbox, mut receiver) = (Inbox::new(len), Repeating(Payloads::new(len), 0));
            for _ in 0..4 {
                inbox.receive(&mut receiver).unwrap();
            }
            let error = inbox.receive(&mut receiver).unwrap_err();
            assert!(
                error.to_string().starts_with("message 4 arrived"),
                "{error}"
            );
        }
    }

    #[test]
    fn neighbours_differ_in_every_byte_but_the_number() {
        let mut payloads = Payloads::new(64);
        let one = payloads.advance().to_vec();
        let other = payloads.advance();
        assert!(one[8..].iter().zip(&other[8..]).all(|(a, b)| a != b));
    }
}

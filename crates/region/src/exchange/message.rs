//! What the two ends tell one another: small plain data, and a descriptor when memory is new to the borrower.

use std::os::fd::OwnedFd;

use super::{Error, Moved};

/// A loan: which region, the how manieth of that region, and how many bytes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "transport", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Loan {
    pub(super) id: u32,
    /// Grows with each loan of an id, whatever region has it.
    pub(super) generation: u64,
    pub(super) used: u64,
}

/// What a lender says. In bytes (little-endian): id (4), kind (1), zeroes (3), generation (8), bytes used (8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Known = 0,
    New = 1,
    Retired = 2,
}

/// Bytes of a [`Lent`](super::Lent) or [`Retired`](super::Retired) message.
pub(super) const LENT: usize = 24;
/// Bytes of a [`Return`].
pub(super) const RETURN: usize = 16;

impl Loan {
    pub(super) fn to_bytes(self, kind: Kind) -> [u8; LENT] {
        let mut bytes = [0; LENT];
        bytes[..4].copy_from_slice(&self.id.to_le_bytes());
        bytes[4] = kind as u8;
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..].copy_from_slice(&self.used.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; LENT]) -> Option<(Loan, Kind)> {
        let [a, b, c, d, kind, 0, 0, 0, ..] = *bytes else {
            return None;
        };
        let kind = match kind {
            0 => Kind::Known,
            1 => Kind::New,
            2 => Kind::Retired,
            _ => return None,
        };
        let word = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let loan = Loan {
            id: u32::from_le_bytes([a, b, c, d]),
            generation: word(8)?,
            used: word(16)?,
        };
        Some((loan, kind))
    }
}

/// What a borrower gets from its lender, for [`Borrower::receive`](super::Borrower::receive): a region handed over, or
/// one that comes no more.
///
/// A link receives it as it is (feature `transport`). Elsewhere it is made of the sender's bytes.
#[derive(Debug)]
#[cfg_attr(feature = "transport", derive(serde::Deserialize))]
pub struct Arrival(pub(super) Event);

#[derive(Debug)]
#[cfg_attr(feature = "transport", derive(serde::Deserialize))]
pub(super) enum Event {
    Known(Loan),
    New(Loan, Moved),
    Retired(Loan),
}

impl Arrival {
    /// A message that came without a descriptor, over a lane for instance.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if these are not the 24 bytes of one; [`Error::Unknown`] if it is one of new memory, whose
    /// descriptor has to come with it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Arrival, Error> {
        match parse(bytes)? {
            (loan, Kind::Known) => Ok(Arrival(Event::Known(loan))),
            (loan, Kind::Retired) => Ok(Arrival(Event::Retired(loan))),
            (Loan { id, .. }, Kind::New) => Err(Error::Unknown { id }),
        }
    }

    /// A message of new memory, with the descriptor that came with it.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if these are not the 24 bytes of one, or the message comes with no descriptor; the descriptor
    /// is given back.
    pub fn with_descriptor(bytes: &[u8], descriptor: OwnedFd) -> Result<Arrival, (Error, OwnedFd)> {
        match parse(bytes) {
            Ok((loan, Kind::New)) => Ok(Arrival(Event::New(loan, descriptor.into()))),
            Ok(_) => Err((malformed("hand-over of new memory", bytes), descriptor)),
            Err(error) => Err((error, descriptor)),
        }
    }
}

fn parse(bytes: &[u8]) -> Result<(Loan, Kind), Error> {
    let sized = bytes.try_into().ok();
    sized
        .and_then(Loan::from_bytes)
        .ok_or_else(|| malformed("hand-over", bytes))
}

fn malformed(expected: &'static str, bytes: &[u8]) -> Error {
    Error::Malformed {
        expected,
        len: bytes.len(),
    }
}

/// A region on its way back to its owner, for [`Lender::take_back`](super::Lender::take_back). Plain data: over whatever
/// channel it travels, what it says is checked against the lender's own books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "transport", derive(serde::Serialize, serde::Deserialize))]
#[must_use = "the owner gets its region back only by this message"]
pub struct Return {
    pub(super) id: u32,
    pub(super) generation: u64,
}

impl Return {
    /// For channels that carry bytes. Little-endian: id (4), zeroes (4), generation (8).
    pub fn to_bytes(self) -> [u8; RETURN] {
        let mut bytes = [0; RETURN];
        bytes[..4].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..].copy_from_slice(&self.generation.to_le_bytes());
        bytes
    }

    /// The message in these bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if these are not the 16 bytes of one.
    pub fn from_bytes(bytes: &[u8]) -> Result<Return, Error> {
        match *bytes {
            [a, b, c, d, 0, 0, 0, 0, e, f, g, h, i, j, k, l] => Ok(Return {
                id: u32::from_le_bytes([a, b, c, d]),
                generation: u64::from_le_bytes([e, f, g, h, i, j, k, l]),
            }),
            _ => Err(malformed("return", bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::MAX_REGIONS;

    documented!(LENT, RETURN, MAX_REGIONS);
    documented!(Kind::Known, Kind::New, Kind::Retired);

    #[test]
    fn as_documented() {
        let document = include_str!("../../../../docs/memory-layout.md");
        let says = |what: &str, bytes: &[u8]| {
            let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let line = format!("{what:<32}{}\n", bytes.join(" "));
            assert!(document.contains(&line), "{line}");
        };
        let (id, generation) = (2, 3);
        let loan = Loan {
            id,
            generation,
            used: 4096,
        };
        says("New, id 2, loan 3, 4096 bytes:", &loan.to_bytes(Kind::New));
        let returned = Return { id, generation };
        says("Return, id 2, loan 3:", &returned.to_bytes());
    }
}

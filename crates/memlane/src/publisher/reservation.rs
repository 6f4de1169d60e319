use std::ops::{Deref, DerefMut};

use memlane_region::pool::Loan;

use super::Publisher;

/// Room for one message, to be written in place. Its bytes are what older messages left there.
///
/// Dropped without [`commit`](Reservation::commit), nothing is sent.
#[derive(Debug)]
#[must_use = "nothing is sent unless it is committed"]
pub struct Reservation<'a> {
    publisher: &'a mut Publisher,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// So many bytes in the ring.
    Ring(usize),
    /// And there is room for its record in the ring.
    Chunk(Loan),
}

impl<'a> Reservation<'a> {
    pub(super) fn in_ring(publisher: &'a mut Publisher, len: usize) -> Reservation<'a> {
        let place = Place::Ring(len);
        Reservation { publisher, place }
    }

    pub(super) fn in_chunk(publisher: &'a mut Publisher, loan: Loan) -> Reservation<'a> {
        let place = Place::Chunk(loan);
        Reservation { publisher, place }
    }

    /// Sends the message.
    #[inline]
    pub fn commit(self) {
        let len = self.len();
        self.commit_first(len);
    }

    /// Sends the first `len` bytes as the message; the rest costs nothing.
    ///
    /// # Panics
    ///
    /// If `len` is more than was reserved.
    #[inline]
    pub fn commit_first(self, len: usize) {
        assert!(
            len <= self.len(),
            "{len} bytes of a reservation of {}",
            self.len()
        );
        match self.place {
            Place::Ring(_) => self.publisher.commit(len),
            Place::Chunk(mut loan) => {
                loan.truncate(len);
                let sent = self.publisher.put_chunk(loan);
                debug_assert!(sent.is_ok(), "it was reserved");
            }
        }
    }

    /// How many bytes there are.
    #[inline]
    #[allow(clippy::len_without_is_empty)] // of the slice
    pub fn len(&self) -> usize {
        match &self.place {
            Place::Ring(len) => *len,
            Place::Chunk(loan) => loan.len(),
        }
    }
}

impl Deref for Reservation<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.place {
            Place::Ring(len) => self.publisher.writer.payload(*len),
            Place::Chunk(loan) => loan,
        }
    }
}

impl DerefMut for Reservation<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.place {
            Place::Ring(len) => self.publisher.writer.payload_mut(*len),
            Place::Chunk(loan) => loan,
        }
    }
}

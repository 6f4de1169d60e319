use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

use memlane_region::pool::Loan;
use memlane_transport::Fds;

use super::{
    Publisher,
    room::{Need, NoRoomInTime},
};
use crate::{SendError, SendTimeoutError, TrySendError, after};

/// Room for one message, to be written in place. Its bytes are what older messages left there.
///
/// Dropped without [`commit`](Reservation::commit), nothing is sent.
#[derive(Debug)]
#[must_use = "nothing is sent unless it is committed"]
pub struct Reservation<'a> {
    publisher: &'a mut Publisher,
    place: Place,
    /// Tag of what is attached, if anything.
    tag: Option<u16>,
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
        Reservation {
            publisher,
            place: Place::Ring(len),
            tag: None,
        }
    }

    pub(super) fn in_chunk(publisher: &'a mut Publisher, loan: Loan) -> Reservation<'a> {
        Reservation {
            publisher,
            place: Place::Chunk(loan),
            tag: None,
        }
    }

    /// Attaches descriptors to the message, in place of those that were attached before; waits for as long as some subscriber
    /// has too many [on their way](crate::PublisherBuilder::attachments_in_flight). Subscribers that have the message have
    /// descriptors of their own. What is attached to a message that is not committed comes to nothing.
    ///
    /// ```
    /// # let link = memlane::Link::pair()?;
    /// # let mut publisher = memlane::Publisher::builder().unbound()?;
    /// # publisher.attach(link.0)?;
    /// # let mut subscriber = memlane::Subscriber::builder().over(link.1)?;
    /// use memlane::Fds;
    ///
    /// let lens = std::fs::File::open("/dev/null")?; // or a DMA-BUF, a socket, an eventfd, ...
    /// let mut frame = publisher.reserve(640 * 480)?;
    /// frame.fill(0x80);
    /// frame.attach(&Fds::from(vec![lens.into()]))?;
    /// frame.commit();
    ///
    /// let mut frame = subscriber.recv()?;
    /// assert_eq!(frame.take_attachments()?.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SendError`]. The message has no attachments then, and can be committed without.
    pub fn attach(&mut self, attachments: &Fds) -> Result<(), SendError> {
        let len = self.len();
        self.attach_by(attachments, |publisher, need| publisher.room(need, None))
            .map_err(|error| error.forever(len))
    }

    /// [`attach`](Reservation::attach), if it can be done now.
    ///
    /// # Errors
    ///
    /// [`TrySendError`].
    pub fn try_attach(&mut self, attachments: &Fds) -> Result<(), TrySendError> {
        let len = self.len();
        self.attach_by(attachments, Publisher::now)
            .map_err(|error| error.at_once(len))
    }

    /// [`attach`](Reservation::attach), waiting no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`].
    pub fn attach_timeout(
        &mut self,
        attachments: &Fds,
        timeout: Duration,
    ) -> Result<(), SendTimeoutError> {
        let (len, deadline) = (self.len(), after(timeout));
        self.attach_by(attachments, |publisher, need| {
            publisher.room(need, deadline)
        })
        .map_err(|error| error.in_time(len))
    }

    pub(super) fn attach_by(
        &mut self,
        attachments: &Fds,
        room: impl Fn(&mut Publisher, Need) -> Result<(), NoRoomInTime>,
    ) -> Result<(), NoRoomInTime> {
        // One that fails may have told some subscribers of a new attempt, by which what they had is void.
        self.tag = None;
        let written = match &self.place {
            Place::Ring(len) => Some(*len),
            Place::Chunk(_) => None,
        };
        self.tag = self.publisher.attach_next(attachments, written, room)?;
        Ok(())
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
            Place::Ring(_) => match self.tag {
                None => self.publisher.commit(len),
                Some(tag) => self.publisher.commit_attached(len, tag),
            },
            Place::Chunk(mut loan) => {
                loan.truncate(len);
                let sent = self.publisher.put_attached_chunk(loan, self.tag);
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

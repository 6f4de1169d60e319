//! Sending: copied in, written in place, loaned, with attachments, in batches.

use std::time::Duration;

use memlane_region::pool::{ChunkRef, Loan};
use memlane_transport::Fds;

use super::{Publisher, Reservation, room::Need};
use crate::{SendError, SendTimeoutError, TrySendError, after};

impl Publisher {
    /// Copies a message in and sends it; waits for as long as the slowest subscriber leaves no room.
    ///
    /// Subscribers say what they have released every eighth of the ring, and whenever they find it empty: one
    /// that has released less and looks for no further message may be waited for.
    ///
    /// # Errors
    ///
    /// [`SendError`]; the message was not sent.
    #[inline]
    pub fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        let len = message.len();
        if len < self.inline_end && self.writer.append(message).is_ok() {
            self.committed();
            return Ok(());
        }
        self.put(message, |publisher, need| publisher.room(need, None))
            .map_err(|error| error.forever(len))
    }

    /// Copies a message in and sends it, if there is room.
    ///
    /// # Errors
    ///
    /// [`TrySendError`]; the message was not sent.
    #[inline]
    pub fn try_send(&mut self, message: &[u8]) -> Result<(), TrySendError> {
        let len = message.len();
        if len < self.inline_end && self.writer.append(message).is_ok() {
            self.committed();
            return Ok(());
        }
        self.put(message, Publisher::now)
            .map_err(|error| error.at_once(len))
    }

    /// Copies a message in and sends it; waits for room no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]; the message was not sent.
    pub fn send_timeout(
        &mut self,
        message: &[u8],
        timeout: Duration,
    ) -> Result<(), SendTimeoutError> {
        let deadline = after(timeout);
        self.put(message, |publisher, need| publisher.room(need, deadline))
            .map_err(|error| error.in_time(message.len()))
    }

    /// [`send`](Publisher::send), with descriptors attached to the message: files, sockets, DMA-BUFs, regions, whatever. Each
    /// subscriber gets descriptors of its own, in order with the bytes ([`Message::take_attachments`]); these stay here. It
    /// waits, too, for as long as some subscriber has too many
    /// [on their way](crate::PublisherBuilder::attachments_in_flight), or this user's processes have more than RLIMIT_NOFILE in all
    /// (unix(7), ETOOMANYREFS).
    ///
    /// Values that have descriptors in them need none of this: see [`Encoded`](crate::Encoded).
    ///
    /// [`Message::take_attachments`]: crate::Message::take_attachments
    ///
    /// ```
    /// # let link = memlane::Link::pair()?;
    /// # let mut publisher = memlane::Publisher::builder().unbound()?;
    /// # publisher.attach(link.0)?;
    /// # let mut subscriber = memlane::Subscriber::builder().over(link.1)?;
    /// use std::os::fd::{AsFd, OwnedFd};
    ///
    /// use memlane::{Fds, Link, region::{Frozen, Region}};
    ///
    /// let file = std::fs::File::open("/dev/null")?;
    /// let region = Region::copy_of("samples", b"frozen")?.freeze()?;
    /// let (ours, theirs) = Link::pair()?;
    /// let region = region.as_fd().try_clone_to_owned()?;
    /// let attachments: Fds = [file.into(), region, theirs.into()].into_iter().collect();
    /// publisher.send_with(b"three of them", &attachments)?;
    /// drop(attachments);
    ///
    /// let mut message = subscriber.recv()?;
    /// let mut received = message.take_attachments()?.into_fds().expect("nobody else has them").into_iter();
    /// let file = received.next().unwrap();
    /// let region = Frozen::open(received.next().unwrap().into(), 1 << 20)?; // verified, and then a &[u8]
    /// let link = Link::from_fd(received.next().unwrap().into())?; // of a publisher that is trusted with this thread's time
    /// assert_eq!(&*region, b"frozen");
    /// ours.send("hello")?;
    /// assert_eq!(link.recv::<String>()?, "hello");
    /// # drop(file);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SendError`]; the message was not sent.
    pub fn send_with(&mut self, message: &[u8], attachments: &Fds) -> Result<(), SendError> {
        self.put_with(message, attachments, |publisher, need| {
            publisher.room(need, None)
        })
        .map_err(|error| error.forever(message.len()))
    }

    /// [`send_with`](Publisher::send_with), if there is room. A call that tries it again should give the same attachments
    /// ([`Fds`], or a clone): subscribers that have been told of them already are not told twice.
    ///
    /// # Errors
    ///
    /// [`TrySendError`]; the message was not sent.
    pub fn try_send_with(&mut self, message: &[u8], attachments: &Fds) -> Result<(), TrySendError> {
        self.put_with(message, attachments, Publisher::now)
            .map_err(|error| error.at_once(message.len()))
    }

    /// [`send_with`](Publisher::send_with), waiting for room no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`]; the message was not sent.
    pub fn send_timeout_with(
        &mut self,
        message: &[u8],
        attachments: &Fds,
        timeout: Duration,
    ) -> Result<(), SendTimeoutError> {
        let deadline = after(timeout);
        self.put_with(message, attachments, |publisher, need| {
            publisher.room(need, deadline)
        })
        .map_err(|error| error.in_time(message.len()))
    }

    /// Makes room for a message of up to `len` bytes, to be written in place and then committed; waits for as
    /// long as the slowest subscriber leaves none.
    ///
    /// # Errors
    ///
    /// [`SendError`].
    #[inline]
    pub fn reserve(&mut self, len: usize) -> Result<Reservation<'_>, SendError> {
        if len < self.inline_end && self.writer.reserve(len).is_ok() {
            return Ok(Reservation::in_ring(self, len));
        }
        self.place(len, |publisher, need| publisher.room(need, None))
            .map_err(|error| error.forever(len))
    }

    /// Makes room for a message of up to `len` bytes, to be written in place, if there is any.
    ///
    /// # Errors
    ///
    /// [`TrySendError`].
    #[inline]
    pub fn try_reserve(&mut self, len: usize) -> Result<Reservation<'_>, TrySendError> {
        self.place(len, Publisher::now)
            .map_err(|error| error.at_once(len))
    }

    /// Makes room for a message of up to `len` bytes, to be written in place; waits for it no longer than
    /// `timeout`.
    ///
    /// # Errors
    ///
    /// [`SendTimeoutError`].
    pub fn reserve_timeout(
        &mut self,
        len: usize,
        timeout: Duration,
    ) -> Result<Reservation<'_>, SendTimeoutError> {
        let deadline = after(timeout);
        self.place(len, |publisher, need| publisher.room(need, deadline))
            .map_err(|error| error.in_time(len))
    }

    /// Loans `len` bytes of the pool, to be written by whoever has them, on any thread, and sent whenever that is
    /// done ([`send_loan`](Publisher::send_loan)): for several messages at a time, where
    /// [`reserve`](Publisher::reserve) is for one. Waits for as long as subscribers have all of the pool.
    ///
    /// A loan contains leftovers of older messages, unless the publisher [zeroes](crate::PublisherBuilder::zero). Dropped, it goes
    /// back to the pool.
    ///
    /// # Errors
    ///
    /// [`SendError`].
    ///
    /// ```
    /// # let link = memlane::Link::pair()?;
    /// # let mut publisher = memlane::Publisher::builder().unbound()?;
    /// # publisher.attach(link.0)?;
    /// # let mut subscriber = memlane::Subscriber::builder().over(link.1)?;
    /// let mut left = publisher.loan(1 << 20)?;
    /// let mut right = publisher.loan(1 << 20)?;
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| left.fill(1));
    ///     scope.spawn(|| right.fill(2));
    /// });
    /// publisher.send_loan(left)?;
    /// publisher.send_loan(right)?;
    /// let first = subscriber.recv()?.hold().expect("at most 64 are held");
    /// let second = subscriber.recv()?;
    /// assert_eq!((first.len(), second.len()), (1 << 20, 1 << 20));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn loan(&mut self, len: usize) -> Result<Loan, SendError> {
        self.loan_by(len, |publisher| {
            publisher
                .make_ready(len, |publisher, need| publisher.room(need, None))
                .map_err(|error| error.forever(len))
        })
    }

    /// Loans `len` bytes of the pool, if they can be had now.
    ///
    /// # Errors
    ///
    /// [`TrySendError`].
    #[inline]
    pub fn try_loan(&mut self, len: usize) -> Result<Loan, TrySendError> {
        self.loan_by(len, |publisher| {
            publisher
                .make_ready(len, Publisher::now)
                .map_err(|error| error.at_once(len))
        })
    }

    /// Sends a loan; waits for as long as the slowest subscriber leaves no room for its record in the ring.
    ///
    /// # Errors
    ///
    /// [`SendError`]; the loan goes back to the pool.
    ///
    /// # Panics
    ///
    /// If it is another publisher's.
    #[inline]
    pub fn send_loan(&mut self, loan: Loan) -> Result<(), SendError> {
        let len = loan.len();
        if self.ended {
            return Err(SendError::Disconnected);
        }
        match self.put_chunk(loan) {
            Ok(()) => Ok(()),
            Err(loan) => {
                self.room(Need::Ring(ChunkRef::LEN), None)
                    .map_err(|error| error.forever(len))?;
                let sent = self.put_chunk(loan);
                debug_assert!(sent.is_ok(), "it was reserved");
                Ok(())
            }
        }
    }

    /// Sends a loan, if there is room for its record in the ring.
    ///
    /// # Errors
    ///
    /// The loan, if there is none.
    ///
    /// # Panics
    ///
    /// If it is another publisher's.
    #[inline]
    pub fn try_send_loan(&mut self, loan: Loan) -> Result<(), Loan> {
        if self.ended {
            return Err(loan);
        }
        match self.put_chunk(loan) {
            Err(loan) if self.now(Need::Ring(ChunkRef::LEN)).is_ok() => self.put_chunk(loan),
            sent => sent,
        }
    }

    /// Sends a loan with attachments, as [`send_with`](Publisher::send_with) sends bytes.
    ///
    /// # Errors
    ///
    /// [`SendError`]; the loan goes back to the pool.
    ///
    /// # Panics
    ///
    /// If it is another publisher's.
    pub fn send_loan_with(&mut self, loan: Loan, attachments: &Fds) -> Result<(), SendError> {
        let len = loan.len();
        self.put_chunk_with(loan, attachments, |publisher, need| {
            publisher.room(need, None)
        })
        .map_err(|(error, _)| error.forever(len))
    }

    /// Sends a loan with attachments, if there is room.
    ///
    /// # Errors
    ///
    /// [`TrySendError`], and the loan.
    ///
    /// # Panics
    ///
    /// If it is another publisher's.
    pub fn try_send_loan_with(
        &mut self,
        loan: Loan,
        attachments: &Fds,
    ) -> Result<(), (TrySendError, Loan)> {
        let len = loan.len();
        self.put_chunk_with(loan, attachments, Publisher::now)
            .map_err(|(error, loan)| (error.at_once(len), loan))
    }

    /// Sends what the closure sends as one batch: each message can be read as soon as it is sent, but subscribers that
    /// sleep are rung once, at the end, or before a call in it waits for room or answers that there is none. It saves a fence
    /// for each message (5 ns), and with subscribers that keep falling asleep the wake-ups between.
    ///
    /// A batch in a batch is part of it. Do not exchange the publisher for another inside.
    ///
    /// ```
    /// # let link = memlane::Link::pair()?;
    /// # let mut publisher = memlane::Publisher::builder().unbound()?;
    /// # publisher.attach(link.0)?;
    /// # let mut subscriber = memlane::Subscriber::builder().over(link.1)?;
    /// publisher.batch(|publisher| {
    ///     for line in ["one", "two", "three"] {
    ///         publisher.send(line.as_bytes())?;
    ///     }
    ///     Ok::<(), memlane::SendError>(())
    /// })?;
    /// # for line in ["one", "two", "three"] {
    /// #     assert_eq!(subscriber.recv()?.to_vec(), line.as_bytes());
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn batch<R>(&mut self, send: impl FnOnce(&mut Publisher) -> R) -> R {
        /// Also when the closure panics.
        struct Batch<'a>(&'a mut Publisher);
        impl Drop for Batch<'_> {
            fn drop(&mut self) {
                self.0.ring_for_batch();
                self.0.batch = None;
            }
        }
        if self.batch.is_some() {
            return send(self);
        }
        self.batch = Some(false);
        send(Batch(self).0)
    }
}

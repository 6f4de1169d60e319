//! Sending in tasks.

use std::{
    future::poll_fn,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
};

use memlane_region::pool::{ChunkRef, Loan};
use memlane_transport::Fds;

use super::{
    Control, Publisher, Reservation,
    room::{Need, NoRoomInTime},
};
use crate::{Async, Error, Readiness, SendError};

impl<R: Readiness> Async<Publisher, R> {
    /// Copies a message in and sends it; waits for as long as the slowest subscriber leaves no room.
    ///
    /// Dropped while it is pending, it has sent nothing.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send`].
    pub async fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        let wanting = Wanting(self);
        poll_fn(|cx| wanting.0.poll_send(cx, message)).await
    }

    /// What [`send`](Async::send) does, for whoever writes futures of their own. One that gives up calls
    /// [`forget_room`](Async::forget_room).
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        message: &[u8],
    ) -> Poll<Result<(), SendError>> {
        let sent = ready!(self.poll_room(cx, |publisher| publisher.put(message, Publisher::now)));
        Poll::Ready(sent.map_err(|error| error.forever(message.len())))
    }

    /// [`send`](Async::send), with descriptors attached to the message ([`Publisher::send_with`]).
    ///
    /// Dropped while it is pending, it has sent nothing.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send_with`].
    pub async fn send_with(&mut self, message: &[u8], attachments: &Fds) -> Result<(), SendError> {
        let wanting = Wanting(self);
        let mut put =
            |publisher: &mut Publisher| publisher.put_with(message, attachments, Publisher::now);
        let sent = poll_fn(|cx| wanting.0.poll_room(cx, &mut put)).await;
        sent.map_err(|error| error.forever(message.len()))
    }

    /// Makes room for a message of up to `len` bytes, to be written in place and then committed; waits for as long as the
    /// slowest subscriber leaves none.
    ///
    /// # Errors
    ///
    /// As [`Publisher::reserve`].
    pub async fn reserve(&mut self, len: usize) -> Result<Reservation<'_>, SendError> {
        let mut loan = None;
        {
            let wanting = Wanting(self);
            let mut place =
                |publisher: &mut Publisher| publisher.make_place(len, &mut loan, Publisher::now);
            poll_fn(|cx| wanting.0.poll_room(cx, &mut place)).await
        }
        .map_err(|error| error.forever(len))?;
        Ok(self.end.placed(len, loan))
    }

    /// Loans `len` bytes of the pool, to be written by whoever has them and sent whenever that is done; waits for as long as
    /// subscribers have all of the pool.
    ///
    /// # Errors
    ///
    /// As [`Publisher::loan`].
    pub async fn loan(&mut self, len: usize) -> Result<Loan, SendError> {
        let wanting = Wanting(self);
        let mut loan = |publisher: &mut Publisher| {
            publisher.loan_by(len, |publisher| publisher.make_ready(len, Publisher::now))
        };
        let loan = poll_fn(|cx| wanting.0.poll_room(cx, &mut loan)).await;
        loan.map_err(|error| error.forever(len))
    }

    /// Sends a loan; waits for as long as the slowest subscriber leaves no room for its record in the ring.
    ///
    /// Dropped while it is pending, it has sent nothing, and the loan has gone back to the pool.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send_loan`].
    ///
    /// # Panics
    ///
    /// If it is another publisher's.
    pub async fn send_loan(&mut self, loan: Loan) -> Result<(), SendError> {
        let len = loan.len();
        {
            let wanting = Wanting(self);
            let mut room = |publisher: &mut Publisher| publisher.now(Need::Ring(ChunkRef::LEN));
            poll_fn(|cx| wanting.0.poll_room(cx, &mut room)).await
        }
        .map_err(|error| error.forever(len))?;
        let sent = self.end.put_chunk(loan);
        debug_assert!(sent.is_ok(), "there was room");
        Ok(())
    }

    /// Sends a loan with attachments ([`Publisher::send_loan_with`]).
    ///
    /// Dropped while it is pending, it has sent nothing, and the loan has gone back to the pool.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send_loan_with`].
    ///
    /// # Panics
    ///
    /// If it is another publisher's.
    pub async fn send_loan_with(&mut self, loan: Loan, attachments: &Fds) -> Result<(), SendError> {
        let len = loan.len();
        let mut loan = Some(loan);
        let wanting = Wanting(self);
        let mut put = |publisher: &mut Publisher| {
            let unsent = loan.take().expect("it comes back unless it is sent");
            publisher
                .put_chunk_with(unsent, attachments, Publisher::now)
                .map_err(|(error, unsent)| {
                    loan = Some(unsent);
                    error
                })
        };
        let sent = poll_fn(|cx| wanting.0.poll_room(cx, &mut put)).await;
        sent.map_err(|error| error.forever(len))
    }

    /// The control work of a [driven](crate::PublisherBuilder::driven) publisher, to be spawned on the user's executor, or
    /// polled beside what else there is: subscribers are let in by it while the publisher waits for nothing itself. With
    /// the feature `tokio`, `memlane::tokio::Publisher` has spawned it already.
    ///
    /// It ends if `readiness` fails, and at once if the publisher is not a driven one; drop it with the publisher.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if `readiness` cannot be made.
    pub fn driver<D: Readiness, F>(
        &self,
        readiness: F,
    ) -> Result<impl Future<Output = ()> + use<R, D, F>, Error>
    where
        F: FnOnce(Arc<OwnedFd>) -> io::Result<D>,
    {
        let driven = self.end.control.is_driven().then(|| {
            let readiness = readiness(self.end.control.epoll().clone())?;
            // The publisher's to keep: this may be dropped much later, by an executor that nobody runs.
            Ok((Arc::downgrade(&*self.end.control), readiness))
        });
        let driven = driven
            .transpose()
            .map_err(Error::os("watch a publisher in a runtime"))?;
        Ok(async {
            if let Some((control, readiness)) = driven {
                drive(control, readiness).await;
            }
        })
    }

    /// Waits until every subscriber has received, and released, all that was sent.
    ///
    /// # Errors
    ///
    /// As [`Publisher::drain`].
    pub async fn drain(&mut self) -> Result<(), Error> {
        let wanting = Wanting(self);
        let mut drained = |publisher: &mut Publisher| publisher.now(Need::Drained);
        match poll_fn(|cx| wanting.0.poll_room(cx, &mut drained)).await {
            Err(NoRoomInTime::Wait(error)) => Err(Error::os("wait for subscribers")(error)),
            _ => Ok(()),
        }
    }

    /// Waits until there are at least `count` subscribers.
    ///
    /// # Errors
    ///
    /// As [`Publisher::wait_for_subscribers`].
    pub async fn wait_for_subscribers(&mut self, count: usize) -> Result<(), Error> {
        /// Keeps no waker of a task that waits no more.
        struct Asking<'a, R: Readiness>(&'a mut Async<Publisher, R>);
        impl<R: Readiness> Drop for Asking<'_, R> {
            fn drop(&mut self) {
                self.0.end.control.forget_waiting();
            }
        }
        let asking = Asking(self);
        poll_fn(|cx| asking.0.poll_subscribers(cx, count)).await
    }

    fn poll_subscribers(&mut self, cx: &mut Context<'_>, count: usize) -> Poll<Result<(), Error>> {
        self.end.check_count(count)?;
        loop {
            self.end.drive()?;
            if self.end.control.poll_subscribers(cx, count) {
                return Poll::Ready(Ok(()));
            }
            if !self.end.control.is_driven() {
                return Poll::Pending;
            }
            ready!(self.readiness.poll_readable(cx)).map_err(Error::os("wait for subscribers"))?;
        }
    }

    /// Nobody waits for room any more that a pending [`poll_send`](Async::poll_send) has asked for: spares subscribers the
    /// wake-ups. Dropped futures do this by themselves.
    pub fn forget_room(&mut self) {
        self.end.forget_room();
    }

    fn poll_room<V>(
        &mut self,
        cx: &mut Context<'_>,
        mut now: impl FnMut(&mut Publisher) -> Result<V, NoRoomInTime>,
    ) -> Poll<Result<V, NoRoomInTime>> {
        ready!(self.readiness.poll_proceed(cx));
        loop {
            // Without room, it has shown what it wants: whoever makes some makes the descriptor readable.
            match now(&mut self.end) {
                Err(NoRoomInTime::Full) => {}
                found => return Poll::Ready(found),
            }
            if let Err(error) = ready!(self.readiness.poll_readable(cx)) {
                return Poll::Ready(Err(NoRoomInTime::Wait(error)));
            }
            // What rang has been heard, and a driven publisher's control work is done here.
        }
    }
}

async fn drive(control: Weak<Control>, mut readiness: impl Readiness) {
    // More than one batch leaves the descriptor readable, which is no edge.
    let mut more = false;
    poll_fn(|cx| {
        loop {
            if !more && ready!(readiness.poll_readable(cx)).is_err() {
                return Poll::Ready(());
            }
            let Some(control) = control.upgrade() else {
                return Poll::Ready(());
            };
            more = control.drive().is_ok_and(|more| more);
            if more {
                // Others have their turn first.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    })
    .await;
}

/// A future that may have asked for room.
struct Wanting<'a, R: Readiness>(&'a mut Async<Publisher, R>);

impl<R: Readiness> Drop for Wanting<'_, R> {
    fn drop(&mut self) {
        self.0.forget_room();
    }
}

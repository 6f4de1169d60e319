//! Any number of values, as they are in memory.

use std::{
    fmt,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    time::Duration,
};

use memlane_region::TypedBytes;
use memlane_transport::Fds;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{
    ALIGNMENT, AsPublisher, Payload, PayloadError, PayloadType, Receives, Typed,
    description::Encoding, sealed,
};
use crate::{
    Async, AttachmentError, Message, Publisher, Readiness, RecvError, RecvTimeoutError,
    Reservation, SendError, SendTimeoutError, Trust, Trusted, TryRecvError, TrySendError,
    receiving::Receiving,
};

/// A payload of slices of plain values ([`Plain`](super::Plain)), of any length, one slice a message.
///
/// Values are aligned to 8 bytes at most; types that take more, and those that have no size, do not compile.
pub struct Slice<T>(PhantomData<fn() -> T>);

impl<T> sealed::Sealed for Slice<T> {}

impl<T> Slice<T> {
    const FITS: () = {
        assert!(
            align_of::<T>() <= ALIGNMENT,
            "values of slices are aligned to 8 bytes at most"
        );
        assert!(size_of::<T>() > 0, "values of slices have a size");
    };
}

impl<T: 'static> Payload for Slice<T> {
    fn describe() -> PayloadType {
        const { Slice::<T>::FITS };
        PayloadType::of::<T>(Encoding::Slice {
            size: size_of::<T>() as u64,
            align: align_of::<T>() as u64,
        })
    }
}

impl<E: AsPublisher, T: IntoBytes + Immutable> Typed<E, Slice<T>> {
    /// Sends a copy of `values`; waits for as long as the slowest subscriber leaves no room.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send`].
    #[inline]
    pub fn send(&mut self, values: &[T]) -> Result<(), SendError> {
        self.publisher().send(values.as_bytes())
    }

    /// Sends a copy of `values`, if there is room.
    ///
    /// # Errors
    ///
    /// As [`Publisher::try_send`].
    #[inline]
    pub fn try_send(&mut self, values: &[T]) -> Result<(), TrySendError> {
        self.publisher().try_send(values.as_bytes())
    }

    /// Sends a copy of `values`; waits for room no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send_timeout`].
    pub fn send_timeout(
        &mut self,
        values: &[T],
        timeout: Duration,
    ) -> Result<(), SendTimeoutError> {
        self.publisher().send_timeout(values.as_bytes(), timeout)
    }

    /// Sends a copy of `values` with descriptors attached ([`Publisher::send_with`]).
    ///
    /// # Errors
    ///
    /// As [`Publisher::send_with`].
    pub fn send_with(&mut self, values: &[T], attachments: &Fds) -> Result<(), SendError> {
        self.publisher().send_with(values.as_bytes(), attachments)
    }

    /// Sends a copy of `values` with descriptors attached, if there is room ([`Publisher::try_send_with`]).
    ///
    /// # Errors
    ///
    /// As [`Publisher::try_send_with`].
    pub fn try_send_with(&mut self, values: &[T], attachments: &Fds) -> Result<(), TrySendError> {
        self.publisher()
            .try_send_with(values.as_bytes(), attachments)
    }

    /// Sends a copy of `values` with descriptors attached; waits for room no longer than `timeout`
    /// ([`Publisher::send_timeout_with`]).
    ///
    /// # Errors
    ///
    /// As [`Publisher::send_timeout_with`].
    pub fn send_timeout_with(
        &mut self,
        values: &[T],
        attachments: &Fds,
        timeout: Duration,
    ) -> Result<(), SendTimeoutError> {
        self.publisher()
            .send_timeout_with(values.as_bytes(), attachments, timeout)
    }
}

/// So many values are more bytes than any message has.
fn bytes_of<T>(count: usize) -> usize {
    count.saturating_mul(size_of::<T>())
}

impl<E: AsPublisher, T: FromBytes + IntoBytes + Immutable + KnownLayout> Typed<E, Slice<T>> {
    /// Makes room for up to `count` values, to be written in place and then committed; waits for as long as the slowest
    /// subscriber leaves none. They are what older messages left there.
    ///
    /// # Errors
    ///
    /// As [`Publisher::reserve`].
    #[inline]
    pub fn reserve(&mut self, count: usize) -> Result<SliceReservation<'_, T>, SendError> {
        let place = self.publisher().reserve(bytes_of::<T>(count))?;
        Ok(SliceReservation {
            place,
            values: PhantomData,
        })
    }

    /// Makes room for up to `count` values, to be written in place, if there is any.
    ///
    /// # Errors
    ///
    /// As [`Publisher::try_reserve`].
    #[inline]
    pub fn try_reserve(&mut self, count: usize) -> Result<SliceReservation<'_, T>, TrySendError> {
        let place = self.publisher().try_reserve(bytes_of::<T>(count))?;
        Ok(SliceReservation {
            place,
            values: PhantomData,
        })
    }

    /// Makes room for up to `count` values, to be written in place; waits for it no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// As [`Publisher::reserve_timeout`].
    pub fn reserve_timeout(
        &mut self,
        count: usize,
        timeout: Duration,
    ) -> Result<SliceReservation<'_, T>, SendTimeoutError> {
        let len = bytes_of::<T>(count);
        let place = self.publisher().reserve_timeout(len, timeout)?;
        Ok(SliceReservation {
            place,
            values: PhantomData,
        })
    }
}

impl<E: Receives, T: FromBytes + IntoBytes> Typed<E, Slice<T>> {
    /// Receives the next slice; waits for it as long as there is a publisher.
    ///
    /// # Errors
    ///
    /// Those of [`Subscriber::recv`](crate::Subscriber::recv), and [`PayloadError::Length`].
    #[inline]
    pub fn recv(&mut self) -> Result<SliceMessage<'_, T, E::Trust>, PayloadError<RecvError>> {
        SliceMessage::new(self.end_mut().recv().map_err(PayloadError::Lane)?)
    }

    /// Receives the next slice if there is one.
    ///
    /// # Errors
    ///
    /// Those of [`Subscriber::try_recv`](crate::Subscriber::try_recv), and [`PayloadError::Length`].
    #[inline]
    pub fn try_recv(
        &mut self,
    ) -> Result<SliceMessage<'_, T, E::Trust>, PayloadError<TryRecvError>> {
        SliceMessage::new(self.end_mut().try_recv().map_err(PayloadError::Lane)?)
    }

    /// Receives the next slice; waits for it no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// Those of [`Subscriber::recv_timeout`](crate::Subscriber::recv_timeout), and [`PayloadError::Length`].
    pub fn recv_timeout(
        &mut self,
        timeout: Duration,
    ) -> Result<SliceMessage<'_, T, E::Trust>, PayloadError<RecvTimeoutError>> {
        let message = self.end_mut().recv_timeout(timeout);
        SliceMessage::new(message.map_err(PayloadError::Lane)?)
    }
}

impl<R: Readiness, T: IntoBytes + Immutable> Typed<Async<Publisher, R>, Slice<T>> {
    /// Sends a copy of `values`; waits for as long as the slowest subscriber leaves no room.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send`].
    pub async fn send(&mut self, values: &[T]) -> Result<(), SendError> {
        self.get_mut().send(values.as_bytes()).await
    }

    /// Sends a copy of `values` with descriptors attached ([`Async::send_with`]).
    ///
    /// # Errors
    ///
    /// As [`Publisher::send_with`].
    pub async fn send_with(&mut self, values: &[T], attachments: &Fds) -> Result<(), SendError> {
        self.get_mut()
            .send_with(values.as_bytes(), attachments)
            .await
    }
}

impl<R: Readiness, T: FromBytes + IntoBytes + Immutable + KnownLayout>
    Typed<Async<Publisher, R>, Slice<T>>
{
    /// Makes room for up to `count` values, to be written in place and then committed; as [`Async::reserve`] does.
    ///
    /// # Errors
    ///
    /// As [`Publisher::reserve`].
    pub async fn reserve(&mut self, count: usize) -> Result<SliceReservation<'_, T>, SendError> {
        let place = self.get_mut().reserve(bytes_of::<T>(count)).await?;
        Ok(SliceReservation {
            place,
            values: PhantomData,
        })
    }
}

impl<E: Receiving, R: Readiness, T: FromBytes + IntoBytes> Typed<Async<E, R>, Slice<T>> {
    /// Receives the next slice; as [`Async::recv`] does.
    ///
    /// # Errors
    ///
    /// Those of [`Async::recv`], and [`PayloadError::Length`].
    pub async fn recv(&mut self) -> Result<SliceMessage<'_, T, E::Trust>, PayloadError<RecvError>> {
        let message = self.get_mut().recv().await;
        SliceMessage::new(message.map_err(PayloadError::Lane)?)
    }
}

/// Room for plain values, to be written in place. Dropped without [`commit`](SliceReservation::commit), nothing is sent.
#[must_use = "nothing is sent unless it is committed"]
pub struct SliceReservation<'a, T> {
    place: Reservation<'a>,
    values: PhantomData<fn() -> T>,
}

impl<T> SliceReservation<'_, T> {
    /// Sends the values.
    #[inline]
    pub fn commit(self) {
        self.place.commit();
    }

    /// Sends the first `count` values; the rest costs nothing.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    #[inline]
    pub fn commit_first(self, count: usize) {
        self.place.commit_first(bytes_of::<T>(count));
    }

    /// Attaches descriptors to the message ([`Reservation::attach`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn attach(&mut self, attachments: &Fds) -> Result<(), SendError> {
        self.place.attach(attachments)
    }

    /// Attaches descriptors to the message, if that can be done now ([`Reservation::try_attach`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_attach(&mut self, attachments: &Fds) -> Result<(), TrySendError> {
        self.place.try_attach(attachments)
    }

    /// Attaches descriptors to the message; waits no longer than `timeout` ([`Reservation::attach_timeout`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn attach_timeout(
        &mut self,
        attachments: &Fds,
        timeout: Duration,
    ) -> Result<(), SendTimeoutError> {
        self.place.attach_timeout(attachments, timeout)
    }

    fn count(&self) -> usize {
        self.place.len() / size_of::<T>()
    }
}

impl<T: FromBytes + Immutable + KnownLayout> Deref for SliceReservation<'_, T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        let values = self.place.view_slice(0, self.count());
        values.expect("of this size, and aligned to 8 bytes, which is enough")
    }
}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout> DerefMut for SliceReservation<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        let count = self.count();
        let values = self.place.view_slice_mut(0, count);
        values.expect("of this size, and aligned to 8 bytes, which is enough")
    }
}

impl<T> fmt::Debug for SliceReservation<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SliceReservation")
            .field("len", &self.count())
            .finish_non_exhaustive()
    }
}

/// A slice of plain values, in place, in the publisher's memory. Dropping it releases that memory to be written again.
///
/// Values are copied out; over a [`Trusted`] publisher it is a `&[T]` as well.
#[must_use = "a message is released when it is dropped"]
pub struct SliceMessage<'a, T, Tr: Trust = crate::Untrusted> {
    message: Message<'a, Tr>,
    values: PhantomData<fn() -> T>,
}

impl<'a, T, Tr: Trust> SliceMessage<'a, T, Tr> {
    #[inline(always)]
    pub(super) fn new<E: std::error::Error>(
        message: Message<'a, Tr>,
    ) -> Result<SliceMessage<'a, T, Tr>, PayloadError<E>> {
        if message.len() % size_of::<T>() == 0 {
            return Ok(SliceMessage {
                message,
                values: PhantomData,
            });
        }
        Err(PayloadError::Length {
            size: size_of::<T>(),
            multiple: true,
            len: message.len(),
        })
    }

    /// How many values there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.message.len() / size_of::<T>()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.message.is_empty()
    }

    /// How many messages its publisher had sent before it ([`Message::sequence`]).
    pub fn sequence(&self) -> u64 {
        self.message.sequence()
    }

    /// How many messages were missed right before it ([`Message::missed`]).
    pub fn missed(&self) -> u64 {
        self.message.missed()
    }

    /// The attachments of the message ([`Message::take_attachments`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn take_attachments(&mut self) -> Result<Fds, AttachmentError> {
        self.message.take_attachments()
    }
}

impl<T: FromBytes + IntoBytes, Tr: Trust> SliceMessage<'_, T, Tr> {
    /// Copies values into `dst`, all of them or as many as it holds; how many that was.
    #[inline]
    pub fn copy_to(&self, dst: &mut [T]) -> usize {
        let count = self.len().min(dst.len());
        self.message.copy_to(dst[..count].as_mut_bytes());
        count
    }

    /// A copy of one value; none behind the last.
    pub fn get(&self, index: usize) -> Option<T> {
        (index < self.len()).then(|| {
            let mut value = T::new_zeroed();
            self.message
                .read_at(index * size_of::<T>(), value.as_mut_bytes());
            value
        })
    }

    /// A copy of all of them.
    pub fn to_vec(&self) -> Vec<T> {
        let mut values = T::new_vec_zeroed(self.len()).expect("memory, as for any vector");
        self.copy_to(&mut values);
        values
    }
}

impl<T: FromBytes + Immutable + KnownLayout> Deref for SliceMessage<'_, T, Trusted> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        let values = self.message.view_slice(0, self.len());
        values.expect("of this size, and aligned to 8 bytes, which is enough")
    }
}

impl<T, Tr: Trust> fmt::Debug for SliceMessage<'_, T, Tr> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SliceMessage")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Slice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slice")
    }
}

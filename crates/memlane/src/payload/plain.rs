//! Values as they are in memory.

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

/// A payload of plain values, one a message, as they are in memory: no encoding, no decoding.
///
/// Which types are plain is zerocopy's to say: those for which every pattern of bits is a value, so that no publisher can
/// make an invalid one.
pub struct Plain<T>(PhantomData<fn() -> T>);

impl<T> sealed::Sealed for Plain<T> {}

impl<T: 'static> Payload for Plain<T> {
    fn describe() -> PayloadType {
        PayloadType::of::<T>(Encoding::Plain {
            size: size_of::<T>() as u64,
            align: align_of::<T>() as u64,
        })
    }
}

/// Values in place lie where messages do.
const fn is_aligned<T>() {
    assert!(
        align_of::<T>() <= ALIGNMENT,
        "in place, values are aligned to 8 bytes at most: send and receive copies of this type"
    );
}

impl<E: AsPublisher, T: IntoBytes + Immutable> Typed<E, Plain<T>> {
    /// Sends a copy of `value`; waits for as long as the slowest subscriber leaves no room.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send`].
    #[inline]
    pub fn send(&mut self, value: &T) -> Result<(), SendError> {
        self.publisher().send(value.as_bytes())
    }

    /// Sends a copy of `value`, if there is room.
    ///
    /// # Errors
    ///
    /// As [`Publisher::try_send`].
    #[inline]
    pub fn try_send(&mut self, value: &T) -> Result<(), TrySendError> {
        self.publisher().try_send(value.as_bytes())
    }

    /// Sends a copy of `value`; waits for room no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send_timeout`].
    pub fn send_timeout(&mut self, value: &T, timeout: Duration) -> Result<(), SendTimeoutError> {
        self.publisher().send_timeout(value.as_bytes(), timeout)
    }

    /// Sends a copy of `value` with descriptors attached ([`Publisher::send_with`]).
    ///
    /// # Errors
    ///
    /// As [`Publisher::send_with`].
    pub fn send_with(&mut self, value: &T, attachments: &Fds) -> Result<(), SendError> {
        self.publisher().send_with(value.as_bytes(), attachments)
    }

    /// Sends a copy of `value` with descriptors attached, if there is room ([`Publisher::try_send_with`]).
    ///
    /// # Errors
    ///
    /// As [`Publisher::try_send_with`].
    pub fn try_send_with(&mut self, value: &T, attachments: &Fds) -> Result<(), TrySendError> {
        self.publisher()
            .try_send_with(value.as_bytes(), attachments)
    }

    /// Sends a copy of `value` with descriptors attached; waits for room no longer than `timeout`
    /// ([`Publisher::send_timeout_with`]).
    ///
    /// # Errors
    ///
    /// As [`Publisher::send_timeout_with`].
    pub fn send_timeout_with(
        &mut self,
        value: &T,
        attachments: &Fds,
        timeout: Duration,
    ) -> Result<(), SendTimeoutError> {
        self.publisher()
            .send_timeout_with(value.as_bytes(), attachments, timeout)
    }
}

impl<E: AsPublisher, T: FromBytes + IntoBytes + Immutable + KnownLayout> Typed<E, Plain<T>> {
    /// Makes room for a value, to be written in place and then committed; waits for as long as the slowest subscriber leaves
    /// none. It is a `T` from the beginning: what an older message left there.
    ///
    /// Types with an alignment of more than 8 bytes do not compile here.
    ///
    /// # Errors
    ///
    /// As [`Publisher::reserve`].
    #[inline]
    pub fn reserve(&mut self) -> Result<PlainReservation<'_, T>, SendError> {
        const { is_aligned::<T>() };
        let place = self.publisher().reserve(size_of::<T>())?;
        Ok(PlainReservation {
            place,
            value: PhantomData,
        })
    }

    /// Makes room for a value, to be written in place, if there is any.
    ///
    /// # Errors
    ///
    /// As [`Publisher::try_reserve`].
    #[inline]
    pub fn try_reserve(&mut self) -> Result<PlainReservation<'_, T>, TrySendError> {
        const { is_aligned::<T>() };
        let place = self.publisher().try_reserve(size_of::<T>())?;
        Ok(PlainReservation {
            place,
            value: PhantomData,
        })
    }

    /// Makes room for a value, to be written in place; waits for it no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// As [`Publisher::reserve_timeout`].
    pub fn reserve_timeout(
        &mut self,
        timeout: Duration,
    ) -> Result<PlainReservation<'_, T>, SendTimeoutError> {
        const { is_aligned::<T>() };
        let place = self.publisher().reserve_timeout(size_of::<T>(), timeout)?;
        Ok(PlainReservation {
            place,
            value: PhantomData,
        })
    }
}

impl<E: Receives, T: FromBytes + IntoBytes> Typed<E, Plain<T>> {
    /// Receives the next value, a copy; waits for it as long as there is a publisher.
    ///
    /// # Errors
    ///
    /// Those of [`Subscriber::recv`](crate::Subscriber::recv), and [`PayloadError::Length`].
    #[inline]
    pub fn recv(&mut self) -> Result<T, PayloadError<RecvError>> {
        value(&self.end_mut().recv().map_err(PayloadError::Lane)?)
    }

    /// Receives the next value, a copy, if there is one.
    ///
    /// # Errors
    ///
    /// Those of [`Subscriber::try_recv`](crate::Subscriber::try_recv), and [`PayloadError::Length`].
    #[inline]
    pub fn try_recv(&mut self) -> Result<T, PayloadError<TryRecvError>> {
        value(&self.end_mut().try_recv().map_err(PayloadError::Lane)?)
    }

    /// Receives the next value, a copy; waits for it no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// Those of [`Subscriber::recv_timeout`](crate::Subscriber::recv_timeout), and [`PayloadError::Length`].
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<T, PayloadError<RecvTimeoutError>> {
        let message = self.end_mut().recv_timeout(timeout);
        value(&message.map_err(PayloadError::Lane)?)
    }
}

impl<E: Receives, T: FromBytes + IntoBytes> Typed<E, Plain<T>> {
    /// Receives the next value, a copy, and the [attachments](crate::Message::take_attachments) of its message; waits for it as
    /// long as there is a publisher.
    ///
    /// ```
    /// use memlane::{Plain, Publisher, Subscriber};
    ///
    /// # let link = memlane::Link::pair()?;
    /// let mut publisher = Publisher::builder().of::<Plain<u64>>().unbound()?;
    /// publisher.get_ref().attach(link.0)?;
    /// let mut subscriber = Subscriber::builder().of::<Plain<u64>>().over(link.1)?;
    /// let null = std::fs::File::open("/dev/null")?;
    /// publisher.send_with(&42, &vec![null.into()].into())?;
    /// let (value, attachments) = subscriber.recv_with()?;
    /// assert_eq!((value, attachments.len()), (42, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`recv`](Typed::recv), and [`PayloadError::Attachments`].
    pub fn recv_with(&mut self) -> Result<(T, Fds), PayloadError<RecvError>> {
        value_with(self.end_mut().recv().map_err(PayloadError::Lane)?)
    }

    /// [`recv_with`](Typed::recv_with), if there is a value.
    ///
    /// # Errors
    ///
    /// Those of [`try_recv`](Typed::try_recv), and [`PayloadError::Attachments`].
    pub fn try_recv_with(&mut self) -> Result<(T, Fds), PayloadError<TryRecvError>> {
        value_with(self.end_mut().try_recv().map_err(PayloadError::Lane)?)
    }

    /// [`recv_with`](Typed::recv_with), waiting no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// Those of [`recv_timeout`](Typed::recv_timeout), and [`PayloadError::Attachments`].
    pub fn recv_timeout_with(
        &mut self,
        timeout: Duration,
    ) -> Result<(T, Fds), PayloadError<RecvTimeoutError>> {
        let message = self.end_mut().recv_timeout(timeout);
        value_with(message.map_err(PayloadError::Lane)?)
    }
}

impl<E: Receives<Trust = Trusted>, T: FromBytes + Immutable + KnownLayout> Typed<E, Plain<T>> {
    /// Receives the next value, in place; waits for it as long as there is a publisher.
    ///
    /// Types with an alignment of more than 8 bytes do not compile here.
    ///
    /// # Errors
    ///
    /// Those of [`Subscriber::recv`](crate::Subscriber::recv), and [`PayloadError::Length`].
    #[inline]
    pub fn recv_ref(&mut self) -> Result<PlainMessage<'_, T>, PayloadError<RecvError>> {
        const { is_aligned::<T>() };
        let message = self.end_mut().recv().map_err(PayloadError::Lane)?;
        PlainMessage::new(message)
    }

    /// Receives the next value, in place, if there is one.
    ///
    /// # Errors
    ///
    /// Those of [`Subscriber::try_recv`](crate::Subscriber::try_recv), and [`PayloadError::Length`].
    pub fn try_recv_ref(&mut self) -> Result<PlainMessage<'_, T>, PayloadError<TryRecvError>> {
        const { is_aligned::<T>() };
        let message = self.end_mut().try_recv().map_err(PayloadError::Lane)?;
        PlainMessage::new(message)
    }

    /// Receives the next value, in place; waits for it no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// Those of [`Subscriber::recv_timeout`](crate::Subscriber::recv_timeout), and [`PayloadError::Length`].
    pub fn recv_timeout_ref(
        &mut self,
        timeout: Duration,
    ) -> Result<PlainMessage<'_, T>, PayloadError<RecvTimeoutError>> {
        const { is_aligned::<T>() };
        let message = self.end_mut().recv_timeout(timeout);
        PlainMessage::new(message.map_err(PayloadError::Lane)?)
    }
}

impl<R: Readiness, T: IntoBytes + Immutable> Typed<Async<Publisher, R>, Plain<T>> {
    /// Sends a copy of `value`; waits for as long as the slowest subscriber leaves no room.
    ///
    /// # Errors
    ///
    /// As [`Publisher::send`].
    pub async fn send(&mut self, value: &T) -> Result<(), SendError> {
        self.get_mut().send(value.as_bytes()).await
    }

    /// Sends a copy of `value` with descriptors attached ([`Async::send_with`]).
    ///
    /// # Errors
    ///
    /// As [`Publisher::send_with`].
    pub async fn send_with(&mut self, value: &T, attachments: &Fds) -> Result<(), SendError> {
        self.get_mut()
            .send_with(value.as_bytes(), attachments)
            .await
    }
}

impl<R: Readiness, T: FromBytes + IntoBytes + Immutable + KnownLayout>
    Typed<Async<Publisher, R>, Plain<T>>
{
    /// Makes room for a value, to be written in place and then committed; as [`Async::reserve`] does.
    ///
    /// # Errors
    ///
    /// As [`Publisher::reserve`].
    pub async fn reserve(&mut self) -> Result<PlainReservation<'_, T>, SendError> {
        const { is_aligned::<T>() };
        let place = self.get_mut().reserve(size_of::<T>()).await?;
        Ok(PlainReservation {
            place,
            value: PhantomData,
        })
    }
}

impl<E: Receiving<Trust = Trusted>, R: Readiness, T: FromBytes + Immutable + KnownLayout>
    Typed<Async<E, R>, Plain<T>>
{
    /// Receives the next value, in place; as [`Async::recv`] does.
    ///
    /// # Errors
    ///
    /// Those of [`Async::recv`], and [`PayloadError::Length`].
    pub async fn recv_ref(&mut self) -> Result<PlainMessage<'_, T>, PayloadError<RecvError>> {
        const { is_aligned::<T>() };
        let message = self.get_mut().recv().await;
        PlainMessage::new(message.map_err(PayloadError::Lane)?)
    }
}

impl<E: Receiving, R: Readiness, T: FromBytes + IntoBytes> Typed<Async<E, R>, Plain<T>> {
    /// Receives the next value, a copy; as [`Async::recv`] does.
    ///
    /// # Errors
    ///
    /// Those of [`Async::recv`], and [`PayloadError::Length`].
    pub async fn recv(&mut self) -> Result<T, PayloadError<RecvError>> {
        let message = self.get_mut().recv().await;
        value(&message.map_err(PayloadError::Lane)?)
    }

    /// Receives the next value, a copy, and the attachments of its message; as [`Async::recv`] does.
    ///
    /// # Errors
    ///
    /// Those of [`recv`](Typed::recv), and [`PayloadError::Attachments`].
    pub async fn recv_with(&mut self) -> Result<(T, Fds), PayloadError<RecvError>> {
        let message = self.get_mut().recv().await;
        value_with(message.map_err(PayloadError::Lane)?)
    }
}

fn check<T, E: std::error::Error>(len: usize) -> Result<(), PayloadError<E>> {
    if len == size_of::<T>() {
        return Ok(());
    }
    Err(PayloadError::Length {
        size: size_of::<T>(),
        multiple: false,
        len,
    })
}

#[inline(always)]
pub(super) fn value<T: FromBytes + IntoBytes, Tr: Trust, E: std::error::Error>(
    message: &Message<'_, Tr>,
) -> Result<T, PayloadError<E>> {
    check::<T, _>(message.len())?;
    let mut value = T::new_zeroed();
    message.copy_to(value.as_mut_bytes());
    Ok(value)
}

fn value_with<T: FromBytes + IntoBytes, Tr: Trust, E: std::error::Error>(
    mut message: Message<'_, Tr>,
) -> Result<(T, Fds), PayloadError<E>> {
    let value = value(&message)?;
    let attachments = message.take_attachments();
    Ok((value, attachments.map_err(PayloadError::Attachments)?))
}

/// Room for one plain value, to be written in place. Dropped without [`commit`](PlainReservation::commit), nothing is sent.
#[must_use = "nothing is sent unless it is committed"]
pub struct PlainReservation<'a, T> {
    place: Reservation<'a>,
    value: PhantomData<fn() -> T>,
}

impl<T> PlainReservation<'_, T> {
    /// Sends the value.
    #[inline]
    pub fn commit(self) {
        self.place.commit();
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
}

impl<T: FromBytes + Immutable + KnownLayout> Deref for PlainReservation<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        let value = self.place.view(0);
        value.expect("of its size, and aligned to 8 bytes, which is enough")
    }
}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout> DerefMut for PlainReservation<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        let value = self.place.view_mut(0);
        value.expect("of its size, and aligned to 8 bytes, which is enough")
    }
}

impl<T> fmt::Debug for PlainReservation<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainReservation").finish_non_exhaustive()
    }
}

/// A plain value, in place, in the memory of a publisher that the user vouches for. Dropping it releases that memory.
#[must_use = "a message is released when it is dropped"]
pub struct PlainMessage<'a, T> {
    message: Message<'a, Trusted>,
    value: PhantomData<fn() -> T>,
}

impl<'a, T> PlainMessage<'a, T> {
    fn new<E: std::error::Error>(
        message: Message<'a, Trusted>,
    ) -> Result<PlainMessage<'a, T>, PayloadError<E>> {
        check::<T, _>(message.len())?;
        Ok(PlainMessage {
            message,
            value: PhantomData,
        })
    }
}

impl<T> PlainMessage<'_, T> {
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

impl<T: FromBytes + Immutable + KnownLayout> Deref for PlainMessage<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        let value = self.message.view(0);
        value.expect("of its size, and aligned to 8 bytes, which is enough")
    }
}

impl<T> fmt::Debug for PlainMessage<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainMessage").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Plain<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plain")
    }
}

//! Values of any serde type.

use std::{fmt, marker::PhantomData, time::Duration};

use memlane_transport::codec::{self, EncodeError};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    AsPublisher, Payload, PayloadError, PayloadType, Receives, Typed, description::Encoding, sealed,
};
use crate::{
    Async, Message, Publisher, Readiness, RecvError, RecvTimeoutError, Reservation, SendError,
    SendTimeoutError, Trust, TryRecvError, TrySendError, receiving::Receiving,
};

/// A payload of values of any serde type, one a message, encoded straight into the lane and decoded within limits
/// ([`codec`]).
pub struct Encoded<T>(PhantomData<fn() -> T>);

impl<T> sealed::Sealed for Encoded<T> {}

impl<T: 'static> Payload for Encoded<T> {
    fn describe() -> PayloadType {
        PayloadType::of::<T>(Encoding::Encoded)
    }
}

/// So much room is made for a value before anybody knows how long it is. One that is longer is encoded twice.
const GUESS: usize = 256;

impl<E: AsPublisher, T: Serialize> Typed<E, Encoded<T>> {
    /// Encodes and sends `value`; waits for as long as the slowest subscriber leaves no room.
    ///
    /// # Errors
    ///
    /// Those of [`Publisher::send`], and [`PayloadError::Encode`].
    pub fn send(&mut self, value: &T) -> Result<(), PayloadError<SendError>> {
        put(self.publisher(), value, Publisher::reserve)
    }

    /// Encodes and sends `value`, if there is room.
    ///
    /// # Errors
    ///
    /// Those of [`Publisher::try_send`], and [`PayloadError::Encode`].
    pub fn try_send(&mut self, value: &T) -> Result<(), PayloadError<TrySendError>> {
        put(self.publisher(), value, Publisher::try_reserve)
    }

    /// Encodes and sends `value`; waits for room no longer than `timeout`, twice if it is long.
    ///
    /// # Errors
    ///
    /// Those of [`Publisher::send_timeout`], and [`PayloadError::Encode`].
    pub fn send_timeout(
        &mut self,
        value: &T,
        timeout: Duration,
    ) -> Result<(), PayloadError<SendTimeoutError>> {
        put(self.publisher(), value, |publisher, len| {
            publisher.reserve_timeout(len, timeout)
        })
    }
}

/// Encodes a value into the room that `reserve` makes.
fn put<T: Serialize, E: std::error::Error>(
    publisher: &mut Publisher,
    value: &T,
    reserve: impl for<'a> Fn(&'a mut Publisher, usize) -> Result<Reservation<'a>, E>,
) -> Result<(), PayloadError<E>> {
    let guess = GUESS.min(publisher.max_message());
    let mut room = guess;
    loop {
        let mut place = reserve(publisher, room).map_err(PayloadError::Lane)?;
        match codec::encode_into(value, &mut place) {
            Ok(len) => {
                place.commit_first(len);
                return Ok(());
            }
            // One whose length differs from one time to the next goes no further than that.
            Err(EncodeError::TooLarge { size, .. }) if room == guess => room = size,
            Err(error) => return Err(PayloadError::Encode(error)),
        }
    }
}

impl<E: Receives, T: DeserializeOwned> Typed<E, Encoded<T>> {
    /// Receives and decodes the next value; waits for it as long as there is a publisher.
    ///
    /// # Errors
    ///
    /// Those of [`Subscriber::recv`](crate::Subscriber::recv), and [`PayloadError::Decode`].
    pub fn recv(&mut self) -> Result<T, PayloadError<RecvError>> {
        let (subscriber, copy) = self.end_and_copy();
        value(subscriber.recv(), copy)
    }

    /// Receives and decodes the next value, if there is one.
    ///
    /// # Errors
    ///
    /// Those of [`Subscriber::try_recv`](crate::Subscriber::try_recv), and [`PayloadError::Decode`].
    pub fn try_recv(&mut self) -> Result<T, PayloadError<TryRecvError>> {
        let (subscriber, copy) = self.end_and_copy();
        value(subscriber.try_recv(), copy)
    }

    /// Receives and decodes the next value; waits for it no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// Those of [`Subscriber::recv_timeout`](crate::Subscriber::recv_timeout), and [`PayloadError::Decode`].
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<T, PayloadError<RecvTimeoutError>> {
        let (subscriber, copy) = self.end_and_copy();
        value(subscriber.recv_timeout(timeout), copy)
    }
}

impl<R: Readiness, T: Serialize> Typed<Async<Publisher, R>, Encoded<T>> {
    /// Encodes and sends `value`; waits for as long as the slowest subscriber leaves no room.
    ///
    /// # Errors
    ///
    /// Those of [`Publisher::send`], and [`PayloadError::Encode`].
    pub async fn send(&mut self, value: &T) -> Result<(), PayloadError<SendError>> {
        let limit = self.get_ref().get_ref().max_message();
        let (publisher, bytes) = self.end_and_copy();
        bytes.clear();
        codec::append(value, bytes, limit).map_err(PayloadError::Encode)?;
        publisher.send(bytes).await.map_err(PayloadError::Lane)
    }
}

impl<E: Receiving, R: Readiness, T: DeserializeOwned> Typed<Async<E, R>, Encoded<T>> {
    /// Receives and decodes the next value; as [`Async::recv`] does.
    ///
    /// # Errors
    ///
    /// Those of [`Async::recv`], and [`PayloadError::Decode`].
    pub async fn recv(&mut self) -> Result<T, PayloadError<RecvError>> {
        let (subscriber, copy) = self.end_and_copy();
        value(subscriber.recv().await, copy)
    }
}

/// Decodes a copy: what is checked must not change meanwhile.
pub(super) fn value<T: DeserializeOwned, Tr: Trust, E: std::error::Error>(
    message: Result<Message<'_, Tr>, E>,
    copy: &mut Vec<u8>,
) -> Result<T, PayloadError<E>> {
    let message = message.map_err(PayloadError::Lane)?;
    message.copy_into(copy);
    drop(message);
    let value = codec::decode(copy).map_err(PayloadError::Decode);
    forget_long(copy);
    value
}

/// One long value is no reason to keep so much memory.
pub(super) fn forget_long(copy: &mut Vec<u8>) {
    if copy.capacity() > KEPT {
        *copy = Vec::new();
    }
}

/// The longest copy that is kept, in bytes, so that the next value needs no allocation.
const KEPT: usize = 64 << 10;

impl<T> fmt::Debug for Encoded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encoded")
    }
}

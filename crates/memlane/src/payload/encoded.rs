//! Values of any serde type.

use std::{fmt, marker::PhantomData, time::Duration};

use memlane_transport::{
    Fds,
    codec::{self, EncodeError},
};
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
///
/// Values may have descriptors in them ([`Fd`](crate::Fd), [`Fds`], typed ones, regions), which are the message's
/// [attachments](Publisher::send_with): sending borrows them, who receives has descriptors of their own, of the kinds that the
/// type asks for. Links in values are taken as such only from a publisher that is
/// [trusted](crate::SubscriberBuilder::trust_publisher); others send them as [`Fd`](crate::Fd)s.
///
/// ```
/// use memlane::{Encoded, Fd, Publisher, Subscriber, region::{Frozen, Region}};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Scene {
///     name: String,
///     log: Fd,
///     samples: Frozen,
/// }
///
/// # let link = memlane::Link::pair()?;
/// let mut publisher = Publisher::builder().of::<Encoded<Scene>>().unbound()?;
/// publisher.get_ref().attach(link.0)?;
/// let mut subscriber = Subscriber::builder().of::<Encoded<Scene>>().over(link.1)?;
/// publisher.send(&Scene {
///     name: "one".to_owned(),
///     log: std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null")?).into(),
///     samples: Region::copy_of("samples", b"frozen")?.freeze()?,
/// })?;
/// let scene = subscriber.recv()?;
/// assert_eq!((&*scene.name, &*scene.samples), ("one", &b"frozen"[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
        put(
            self.publisher(),
            value,
            Publisher::reserve,
            |place, attachments| place.attach(attachments),
        )
    }

    /// Encodes and sends `value`, if there is room.
    ///
    /// # Errors
    ///
    /// Those of [`Publisher::try_send`], and [`PayloadError::Encode`].
    pub fn try_send(&mut self, value: &T) -> Result<(), PayloadError<TrySendError>> {
        put(
            self.publisher(),
            value,
            Publisher::try_reserve,
            |place, attachments| place.try_attach(attachments),
        )
    }

    /// Encodes and sends `value`; waits for room no longer than `timeout`, twice if it is long, and once more if it has
    /// descriptors.
    ///
    /// # Errors
    ///
    /// Those of [`Publisher::send_timeout`], and [`PayloadError::Encode`].
    pub fn send_timeout(
        &mut self,
        value: &T,
        timeout: Duration,
    ) -> Result<(), PayloadError<SendTimeoutError>> {
        put(
            self.publisher(),
            value,
            |publisher, len| publisher.reserve_timeout(len, timeout),
            |place, attachments| place.attach_timeout(attachments, timeout),
        )
    }
}

/// Encodes a value into the room that `reserve` makes.
fn put<T: Serialize, E: std::error::Error>(
    publisher: &mut Publisher,
    value: &T,
    reserve: impl for<'a> Fn(&'a mut Publisher, usize) -> Result<Reservation<'a>, E>,
    attach: impl for<'a> Fn(&mut Reservation<'a>, &Fds) -> Result<(), E>,
) -> Result<(), PayloadError<E>> {
    let most = publisher.max_attachments();
    let guess = GUESS.min(publisher.max_message());
    let mut room = guess;
    loop {
        let mut place = reserve(publisher, room).map_err(PayloadError::Lane)?;
        match codec::encode_carrying(value, &mut place, most) {
            Ok((len, descriptors)) => {
                if !descriptors.is_empty() {
                    attach(&mut place, &descriptors).map_err(PayloadError::Lane)?;
                }
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
        let most = publisher.get_ref().max_attachments();
        let descriptors = codec::append_carrying(value, bytes, limit, most);
        let descriptors = descriptors.map_err(PayloadError::Encode)?;
        let sent = publisher.send_with(bytes, &descriptors).await;
        sent.map_err(PayloadError::Lane)
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
    let mut message = message.map_err(PayloadError::Lane)?;
    let (descriptors, adopts) = message.take_attached().map_err(PayloadError::Attachments)?;
    message.copy_into(copy);
    drop(message);
    let value = codec::decode_carried(copy, descriptors, adopts).map_err(PayloadError::Decode);
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

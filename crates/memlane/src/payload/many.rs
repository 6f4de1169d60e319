//! Typed lanes of many publishers.

use std::time::Duration;

use serde::de::DeserializeOwned;
use zerocopy::{FromBytes, IntoBytes};

use super::{Encoded, Payload, PayloadError, Plain, Slice, SliceMessage, Typed, encoded, plain};
use crate::{
    Address, Async, Error, Key, Message, Readiness, Received, RecvError, RecvTimeoutError,
    Subscriber, SubscriberBuilder, Subscriptions, Trust, TryRecvError, Watched,
};

impl<T: Trust, P: Payload> Typed<SubscriberBuilder<T>, P> {
    /// Makes a subscriber of many publishers, of none so far ([`SubscriberBuilder::subscriptions`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn subscriptions(self) -> Result<Typed<Subscriptions<T>, P>, Error> {
        self.try_map(SubscriberBuilder::subscriptions)
    }
}

impl<T: Trust, P: Payload> Typed<Subscriptions<T>, P> {
    /// Subscribes to a service of this user's, too ([`Subscriptions::connect`]).
    ///
    /// # Errors
    ///
    /// As there; [`Error::Refused`] says what each side carries, if that differs.
    pub fn connect(&mut self, service: &str) -> Result<Key, Error> {
        self.get_mut().connect(service)
    }

    /// Subscribes to a service at an address of the user's choice, too.
    ///
    /// # Errors
    ///
    /// As [`connect`](Typed::connect).
    pub fn connect_to(&mut self, address: &Address) -> Result<Key, Error> {
        self.get_mut().connect_to(address)
    }

    /// Adds a subscriber ([`Subscriptions::add`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn add(&mut self, subscriber: Typed<Subscriber<T>, P>) -> Result<Key, Error> {
        self.get_mut().add(subscriber.into_inner())
    }

    /// Adds a subscriber, under a label of the user's ([`Subscriptions::add_as`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn add_as(
        &mut self,
        label: &str,
        subscriber: Typed<Subscriber<T>, P>,
    ) -> Result<Key, Error> {
        self.get_mut().add_as(label, subscriber.into_inner())
    }

    /// Takes a subscriber out again ([`Subscriptions::remove`]).
    pub fn remove(&mut self, key: Key) -> Option<Typed<Subscriber<T>, P>> {
        self.get_mut().remove(key).map(Typed::new)
    }
}

/// What comes of receiving from many.
type OfMany<M, E> = Result<Received<M>, E>;

fn plain_of<T: FromBytes + IntoBytes, Tr: Trust, E: std::error::Error>(
    received: OfMany<Message<'_, Tr>, E>,
) -> OfMany<T, PayloadError<E>> {
    let received = received.map_err(PayloadError::Lane)?;
    received.try_map(|message| plain::value(&message))
}

fn slice_of<T, Tr: Trust, E: std::error::Error>(
    received: OfMany<Message<'_, Tr>, E>,
) -> OfMany<SliceMessage<'_, T, Tr>, PayloadError<E>> {
    let received = received.map_err(PayloadError::Lane)?;
    received.try_map(SliceMessage::new)
}

fn decoded_of<T: DeserializeOwned, Tr: Trust, E: std::error::Error>(
    received: OfMany<Message<'_, Tr>, E>,
    copy: &mut Vec<u8>,
) -> OfMany<T, PayloadError<E>> {
    let received = received.map_err(PayloadError::Lane)?;
    received.try_map(|message| encoded::value(Ok(message), copy))
}

macro_rules! receives_from_many {
    ($end:ty) => {
        impl<Tr: Trust, T: FromBytes + IntoBytes> Typed<$end, Plain<T>> {
            /// Receives the next value, a copy, of whichever publisher, or is told that one has ended; waits for it.
            ///
            /// # Errors
            ///
            /// Those of [`Subscriptions::recv`], and [`PayloadError::Length`], of the publisher that is
            /// [`last`](Subscriptions::last).
            pub fn recv(&mut self) -> OfMany<T, PayloadError<RecvError>> {
                plain_of(self.end_mut().recv())
            }

            /// Receives the next value, a copy, or is told that a publisher has ended, if there is such a thing.
            ///
            /// # Errors
            ///
            /// Those of [`Subscriptions::try_recv`], and [`PayloadError::Length`].
            pub fn try_recv(&mut self) -> OfMany<T, PayloadError<TryRecvError>> {
                plain_of(self.end_mut().try_recv())
            }

            /// Receives the next value, a copy, or is told that a publisher has ended; waits no longer than `timeout`.
            ///
            /// # Errors
            ///
            /// Those of [`Subscriptions::recv_timeout`], and [`PayloadError::Length`].
            pub fn recv_timeout(
                &mut self,
                timeout: Duration,
            ) -> OfMany<T, PayloadError<RecvTimeoutError>> {
                plain_of(self.end_mut().recv_timeout(timeout))
            }
        }

        impl<Tr: Trust, T: FromBytes + IntoBytes> Typed<$end, Slice<T>> {
            /// Receives the next slice, of whichever publisher, or is told that one has ended; waits for it.
            ///
            /// # Errors
            ///
            /// Those of [`Subscriptions::recv`], and [`PayloadError::Length`], of the publisher that is
            /// [`last`](Subscriptions::last).
            pub fn recv(&mut self) -> OfMany<SliceMessage<'_, T, Tr>, PayloadError<RecvError>> {
                slice_of(self.end_mut().recv())
            }

            /// Receives the next slice, or is told that a publisher has ended, if there is such a thing.
            ///
            /// # Errors
            ///
            /// Those of [`Subscriptions::try_recv`], and [`PayloadError::Length`].
            pub fn try_recv(
                &mut self,
            ) -> OfMany<SliceMessage<'_, T, Tr>, PayloadError<TryRecvError>> {
                slice_of(self.end_mut().try_recv())
            }

            /// Receives the next slice, or is told that a publisher has ended; waits no longer than `timeout`.
            ///
            /// # Errors
            ///
            /// Those of [`Subscriptions::recv_timeout`], and [`PayloadError::Length`].
            pub fn recv_timeout(
                &mut self,
                timeout: Duration,
            ) -> OfMany<SliceMessage<'_, T, Tr>, PayloadError<RecvTimeoutError>> {
                slice_of(self.end_mut().recv_timeout(timeout))
            }
        }

        impl<Tr: Trust, T: DeserializeOwned> Typed<$end, Encoded<T>> {
            /// Receives and decodes the next value, of whichever publisher, or is told that one has ended; waits for it.
            ///
            /// # Errors
            ///
            /// Those of [`Subscriptions::recv`], and [`PayloadError::Decode`], of the publisher that is
            /// [`last`](Subscriptions::last).
            pub fn recv(&mut self) -> OfMany<T, PayloadError<RecvError>> {
                let (end, copy) = self.end_and_copy();
                decoded_of(end.recv(), copy)
            }

            /// Receives and decodes the next value, or is told that a publisher has ended, if there is such a thing.
            ///
            /// # Errors
            ///
            /// Those of [`Subscriptions::try_recv`], and [`PayloadError::Decode`].
            pub fn try_recv(&mut self) -> OfMany<T, PayloadError<TryRecvError>> {
                let (end, copy) = self.end_and_copy();
                decoded_of(end.try_recv(), copy)
            }

            /// Receives and decodes the next value, or is told that a publisher has ended; waits no longer than `timeout`.
            ///
            /// # Errors
            ///
            /// Those of [`Subscriptions::recv_timeout`], and [`PayloadError::Decode`].
            pub fn recv_timeout(
                &mut self,
                timeout: Duration,
            ) -> OfMany<T, PayloadError<RecvTimeoutError>> {
                let (end, copy) = self.end_and_copy();
                decoded_of(end.recv_timeout(timeout), copy)
            }
        }
    };
}

receives_from_many!(Subscriptions<Tr>);
receives_from_many!(Watched<Subscriptions<Tr>>);

impl<Tr: Trust, R: Readiness, T: FromBytes + IntoBytes>
    Typed<Async<Subscriptions<Tr>, R>, Plain<T>>
{
    /// Receives the next value, a copy, of whichever publisher, or is told that one has ended.
    ///
    /// # Errors
    ///
    /// Those of [`Subscriptions::recv`], and [`PayloadError::Length`].
    pub async fn recv(&mut self) -> OfMany<T, PayloadError<RecvError>> {
        plain_of(self.get_mut().recv().await)
    }
}

impl<Tr: Trust, R: Readiness, T: FromBytes + IntoBytes>
    Typed<Async<Subscriptions<Tr>, R>, Slice<T>>
{
    /// Receives the next slice, of whichever publisher, or is told that one has ended.
    ///
    /// # Errors
    ///
    /// Those of [`Subscriptions::recv`], and [`PayloadError::Length`].
    pub async fn recv(&mut self) -> OfMany<SliceMessage<'_, T, Tr>, PayloadError<RecvError>> {
        slice_of(self.get_mut().recv().await)
    }
}

impl<Tr: Trust, R: Readiness, T: DeserializeOwned> Typed<Async<Subscriptions<Tr>, R>, Encoded<T>> {
    /// Receives and decodes the next value, of whichever publisher, or is told that one has ended.
    ///
    /// # Errors
    ///
    /// Those of [`Subscriptions::recv`], and [`PayloadError::Decode`].
    pub async fn recv(&mut self) -> OfMany<T, PayloadError<RecvError>> {
        let (end, copy) = self.end_and_copy();
        decoded_of(end.recv().await, copy)
    }
}

//! Typed queues, whose receivers are told who sent what.

use std::time::Duration;

use serde::de::DeserializeOwned;
use zerocopy::{FromBytes, IntoBytes};

use super::{Encoded, PayloadError, Plain, Slice, SliceMessage, Typed, encoded, plain};
use crate::{
    Async, Key, Readiness, Receiver, RecvError, RecvTimeoutError, Trust, TryRecvError, Watched,
};

/// A value, and whose it is.
type Sent<V, E> = Result<(Key, V), PayloadError<E>>;

macro_rules! receives_from_senders {
    ($payload:ident, $value:ty, [$($bound:tt)+], |$message:ident, $copy:ident| $make:expr) => {
        receives_from_senders!(@blocking Receiver<Tr>, $payload, $value, [$($bound)+], |$message, $copy| $make);
        receives_from_senders!(@blocking Watched<Receiver<Tr>>, $payload, $value, [$($bound)+], |$message, $copy| $make);

        impl<Tr: Trust, R: Readiness, T: $($bound)+> Typed<Async<Receiver<Tr>, R>, $payload<T>> {
            /// Receives the next value, and whose it is ([`Receiver::recv_from`]).
            ///
            /// # Errors
            ///
            /// Those of there, and those of values, of the sender that is [`last`](Receiver::last).
            pub async fn recv_from(&mut self) -> Sent<$value, RecvError> {
                let ($message, $copy) = self.end_and_copy();
                let (key, $message) = $message.recv_from().await.map_err(PayloadError::Lane)?;
                let value = $make?;
                Ok((key, value))
            }
        }
    };
    (@blocking $end:ty, $payload:ident, $value:ty, [$($bound:tt)+], |$message:ident, $copy:ident| $make:expr) => {
        impl<Tr: Trust, T: $($bound)+> Typed<$end, $payload<T>> {
            /// Receives the next value, and whose it is; waits for it ([`Receiver::recv_from`]).
            ///
            /// # Errors
            ///
            /// Those of there, and those of values, of the sender that is [`last`](Receiver::last).
            pub fn recv_from(&mut self) -> Sent<$value, RecvError> {
                let ($message, $copy) = self.end_and_copy();
                let (key, $message) = $message.recv_from().map_err(PayloadError::Lane)?;
                let value = $make?;
                Ok((key, value))
            }

            /// Receives the next value, and whose it is, if there is one ([`Receiver::try_recv_from`]).
            ///
            /// # Errors
            ///
            /// Those of there, and those of values.
            pub fn try_recv_from(&mut self) -> Sent<$value, TryRecvError> {
                let ($message, $copy) = self.end_and_copy();
                let (key, $message) = $message.try_recv_from().map_err(PayloadError::Lane)?;
                let value = $make?;
                Ok((key, value))
            }

            /// Receives the next value, and whose it is; waits for it no longer than `timeout` ([`Receiver::recv_timeout_from`]).
            ///
            /// # Errors
            ///
            /// Those of there, and those of values.
            pub fn recv_timeout_from(&mut self, timeout: Duration) -> Sent<$value, RecvTimeoutError> {
                let ($message, $copy) = self.end_and_copy();
                let received = $message.recv_timeout_from(timeout);
                let (key, $message) = received.map_err(PayloadError::Lane)?;
                let value = $make?;
                Ok((key, value))
            }
        }
    };
}

receives_from_senders!(Plain, T, [FromBytes + IntoBytes], |message, _copy| {
    plain::value(&message)
});
receives_from_senders!(
    Slice,
    SliceMessage<'_, T, Tr>,
    [FromBytes + IntoBytes],
    |message, _copy| SliceMessage::new(message)
);
receives_from_senders!(Encoded, T, [DeserializeOwned], |message, copy| {
    encoded::value(Ok(message), copy)
});

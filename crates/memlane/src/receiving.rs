//! Receiving in tasks: from one publisher, or from many senders.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use crate::{
    Async, Key, Message, Readiness, Receiver, RecvError, Trust,
    subscriber::{NoMessage, Why},
    watched::End,
};

/// An end that looks for messages.
pub trait Finding: End {
    /// What was found, and is still where it was.
    type Found;

    /// What there is, without waiting. If that is nothing, its descriptor becomes readable when there may be something.
    fn find(&mut self) -> Result<Option<Self::Found>, NoMessage>;
}

/// An end that receives messages and nothing else: a [`Subscriber`](crate::Subscriber) or a [`Receiver`](crate::Receiver).
pub trait Receiving: Finding {
    /// Whether what it receives from is trusted.
    type Trust: Trust;

    /// The message that was found.
    fn deliver(
        &mut self,
        found: Result<Self::Found, NoMessage>,
    ) -> Result<Message<'_, Self::Trust>, NoMessage>;
}

impl<E: Receiving, R: Readiness> Async<E, R> {
    /// Receives the next message; waits for it as long as there is a publisher, or, of a receiver, for senders, which are let
    /// in by calls of this.
    ///
    /// Dropped while it is pending, it has received nothing.
    ///
    /// # Errors
    ///
    /// As [`Subscriber::recv`](crate::Subscriber::recv) or [`Receiver::recv`](crate::Receiver::recv).
    pub async fn recv(&mut self) -> Result<Message<'_, E::Trust>, RecvError> {
        let found = poll_fn(|cx| self.poll_found(cx)).await;
        E::deliver(&mut self.end, found).map_err(NoMessage::forever)
    }

    /// What [`recv`](Async::recv) does, for whoever writes futures of their own.
    pub fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Message<'_, E::Trust>, RecvError>> {
        let found = ready!(self.poll_found(cx));
        Poll::Ready(E::deliver(&mut self.end, found).map_err(NoMessage::forever))
    }
}

impl<T: Trust, R: Readiness> Async<Receiver<T>, R> {
    /// [`recv`](Async::recv), with the sender of the message ([`Receiver::recv_from`]).
    ///
    /// Dropped while it is pending, it has received nothing.
    ///
    /// # Errors
    ///
    /// As [`Receiver::recv`].
    pub async fn recv_from(&mut self) -> Result<(Key, Message<'_, T>), RecvError> {
        let found = poll_fn(|cx| self.poll_found(cx)).await;
        self.end.deliver_from(found).map_err(NoMessage::forever)
    }
}

impl<E: Finding, R: Readiness> Async<E, R> {
    pub(crate) fn poll_found(&mut self, cx: &mut Context<'_>) -> Poll<Result<E::Found, NoMessage>> {
        ready!(self.readiness.poll_proceed(cx));
        loop {
            // Empty-handed, it has armed what it receives from: whatever comes now makes the descriptor readable.
            if let Some(found) = E::find(&mut self.end).transpose() {
                return Poll::Ready(found);
            }
            if let Err(error) = ready!(self.readiness.poll_readable(cx)) {
                return Poll::Ready(Err(Why::Wait(error).into()));
            }
        }
    }
}

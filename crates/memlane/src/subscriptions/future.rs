//! Receiving from many publishers in tasks.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use super::{Received, Subscriptions};
use crate::{Async, Message, Readiness, RecvError, Trust, subscriber::NoMessage};

impl<T: Trust, R: Readiness> Async<Subscriptions<T>, R> {
    /// Receives the next message, of whichever publisher, or is told that one has ended; waits for it.
    ///
    /// Dropped while it is pending, it has received nothing. Publishers are added between calls
    /// ([`get_mut`](Async::get_mut)).
    ///
    /// # Errors
    ///
    /// As [`Subscriptions::recv`].
    pub async fn recv(&mut self) -> Result<Received<Message<'_, T>>, RecvError> {
        let found = poll_fn(|cx| self.poll_found(cx)).await;
        self.get_mut().give(found).map_err(NoMessage::forever)
    }

    /// What [`recv`](Async::recv) does, for whoever writes futures of their own.
    pub fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Received<Message<'_, T>>, RecvError>> {
        let found = ready!(self.poll_found(cx));
        Poll::Ready(self.get_mut().give(found).map_err(NoMessage::forever))
    }
}

//! Receiving in tasks.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use super::{Message, NoMessage, Subscriber, Trust};
use crate::{Async, Readiness, RecvError};

impl<T: Trust, R: Readiness> Async<Subscriber<T>, R> {
    /// Receives the next message; waits for it as long as there is a publisher.
    ///
    /// Dropped while it is pending, it has received nothing.
    ///
    /// # Errors
    ///
    /// As [`Subscriber::recv`].
    pub async fn recv(&mut self) -> Result<Message<'_, T>, RecvError> {
        let found = poll_fn(|cx| self.poll_found(cx)).await;
        self.end.deliver(found).map_err(NoMessage::forever)
    }

    /// What [`recv`](Async::recv) does, for whoever writes futures of their own.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message<'_, T>, RecvError>> {
        let found = ready!(self.poll_found(cx));
        Poll::Ready(self.end.deliver(found).map_err(NoMessage::forever))
    }

    fn poll_found(&mut self, cx: &mut Context<'_>) -> Poll<Result<super::Record, NoMessage>> {
        ready!(self.readiness.poll_proceed(cx));
        loop {
            // Empty-handed, it has armed the lane: whatever comes now makes the descriptor readable.
            if let Some(found) = self.end.find().transpose() {
                return Poll::Ready(found);
            }
            if let Err(error) = ready!(self.readiness.poll_readable(cx)) {
                return Poll::Ready(Err(NoMessage::Wait(error)));
            }
        }
    }
}

//! Receiving from many in tasks.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use super::{Key, NoMessage, Receiver, Record};
use crate::{Async, Message, Readiness, RecvError, Trust};

impl<T: Trust, R: Readiness> Async<Receiver<T>, R> {
    /// Receives the next message, of whichever sender; waits for it, and for senders.
    ///
    /// Dropped while it is pending, it has received nothing. Senders are let in by calls of this.
    ///
    /// # Errors
    ///
    /// As [`Receiver::recv`].
    pub async fn recv(&mut self) -> Result<Message<'_, T>, RecvError> {
        let next = poll_fn(|cx| self.poll_next(cx)).await;
        self.end.deliver(next).map_err(NoMessage::forever)
    }

    /// What [`recv`](Async::recv) does, for whoever writes futures of their own.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message<'_, T>, RecvError>> {
        let next = ready!(self.poll_next(cx));
        Poll::Ready(self.end.deliver(next).map_err(NoMessage::forever))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Key, Record), NoMessage>> {
        ready!(self.readiness.poll_proceed(cx));
        loop {
            // Empty-handed, it has armed its lanes: whatever comes now makes the descriptor readable.
            if let Some(next) = self.end.now().transpose() {
                return Poll::Ready(next);
            }
            if let Err(error) = ready!(self.readiness.poll_readable(cx)) {
                return Poll::Ready(Err(NoMessage::Wait(error)));
            }
        }
    }
}

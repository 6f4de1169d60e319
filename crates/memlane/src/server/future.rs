//! Answering in tasks.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use super::{Next, Patience, Request, Server};
use crate::{
    Async, Readiness, RecvError, Trust,
    receiver::gather::Gather,
    subscriber::{NoMessage, Why},
};

impl<T: Trust, R: Readiness> Async<Server<T>, R> {
    /// Receives the next request; waits for it, and for clients, which are let in by calls of this.
    ///
    /// Dropped while it is pending, it has received nothing. Replies wait for a client that leaves no room as long as
    /// [`ServerBuilder::reply_timeout`](super::ServerBuilder::reply_timeout) says, and hold up the task for as long.
    ///
    /// # Errors
    ///
    /// As [`Server::recv`].
    pub async fn recv(&mut self) -> Result<Request<'_, T>, RecvError> {
        let next = poll_fn(|cx| self.poll_next(cx)).await;
        next.and_then(|next| self.end.deliver(next))
            .map_err(NoMessage::forever)
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Next, NoMessage>> {
        ready!(self.readiness.poll_proceed(cx));
        loop {
            // Empty-handed, it has armed what it receives from: whatever comes now makes the descriptor readable.
            match self.end.next(Patience::Now, Gather::find) {
                Err(NoMessage::TimedOut) => {}
                found => return Poll::Ready(found),
            }
            if let Err(error) = ready!(self.readiness.poll_readable(cx)) {
                return Poll::Ready(Err(Why::Wait(error).into()));
            }
        }
    }
}

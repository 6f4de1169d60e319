//! Asking in tasks.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use super::{
    Answer, Call, CallError, CallId, Client, Reply,
    finding::{Found, Patience},
};
use crate::{Async, Readiness, Trust, after};

impl<T: Trust, R: Readiness> Async<Client<T>, R> {
    /// Sends a request, and waits for its reply.
    ///
    /// Dropped while it is pending, it has cancelled the request, if it had sent it.
    ///
    /// # Errors
    ///
    /// As [`Client::call`].
    pub async fn call(&mut self, request: &[u8]) -> Result<Reply<'_, T>, CallError> {
        let call = self.send(request).await?;
        self.wait(call).await
    }

    /// Sends a request, and goes on; waits for room in the lane.
    ///
    /// Dropped while it is pending, it has sent nothing.
    ///
    /// # Errors
    ///
    /// As [`Client::send`].
    pub async fn send(&mut self, request: &[u8]) -> Result<Call, CallError> {
        let sending = Sending(self);
        poll_fn(|cx| sending.0.poll_send(cx, request)).await
    }

    /// Sends a request, and waits for its reply no longer than `timeout`, room for the request included. The server is told: it
    /// does not begin with a request whose time is over.
    ///
    /// Dropped while it is pending, it has cancelled the request, if it had sent it.
    ///
    /// # Errors
    ///
    /// As [`Client::call_timeout`].
    pub async fn call_timeout(
        &mut self,
        request: &[u8],
        timeout: Duration,
    ) -> Result<Reply<'_, T>, CallError> {
        let call = self.send_timeout(request, timeout).await?;
        self.wait(call).await
    }

    /// Sends a request whose last reply must come within `timeout`; room for it is waited for as long at most.
    ///
    /// Dropped while it is pending, it has sent nothing.
    ///
    /// # Errors
    ///
    /// As [`Client::send_timeout`].
    pub async fn send_timeout(
        &mut self,
        request: &[u8],
        timeout: Duration,
    ) -> Result<Call, CallError> {
        let deadline = after(timeout);
        let sending = Sending(self);
        poll_fn(|cx| sending.0.poll_put(cx, request, deadline)).await
    }

    /// What [`send`](Async::send) does, for whoever writes futures of their own.
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        request: &[u8],
    ) -> Poll<Result<Call, CallError>> {
        self.poll_put(cx, request, None)
    }

    fn poll_put(
        &mut self,
        cx: &mut Context<'_>,
        request: &[u8],
        deadline: Option<Instant>,
    ) -> Poll<Result<Call, CallError>> {
        ready!(self.readiness.poll_proceed(cx));
        loop {
            // Without room, it has taken in what waits, and shown what it wants: either makes the descriptor readable.
            match self.end.put(request, deadline, Patience::Now) {
                Err(CallError::Full) => {}
                sent => return Poll::Ready(sent.map(|id| Call::new(id, &self.end.dropped))),
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Poll::Ready(Err(CallError::DeadlineExceeded));
            }
            if deadline.is_some() {
                self.end.set_alarm_before(deadline)?;
            }
            if let Err(error) = ready!(self.readiness.poll_readable(cx)) {
                return Poll::Ready(Err(CallError::Wait(error)));
            }
        }
    }

    /// Waits for the reply to a request.
    ///
    /// Dropped while it is pending, it has cancelled the request.
    ///
    /// # Errors
    ///
    /// As [`Client::wait`].
    pub async fn wait(&mut self, mut call: Call) -> Result<Reply<'_, T>, CallError> {
        let id = call.id();
        let found = poll_fn(|cx| self.poll_found(cx, Some(id))).await;
        call.over = true;
        self.end.only_of(id, found)
    }

    /// Waits for the next item of a stream; none once it has ended.
    ///
    /// Dropped while it is pending, it has received nothing.
    ///
    /// # Errors
    ///
    /// As [`Client::next`].
    pub async fn next(&mut self, call: &mut Call) -> Result<Option<Reply<'_, T>>, CallError> {
        if call.over {
            return Ok(None);
        }
        let id = call.id();
        let found = poll_fn(|cx| self.poll_found(cx, Some(id))).await;
        self.end.item_of(call, found)
    }

    /// Waits for whatever comes next, of any request: of which, and what.
    ///
    /// Dropped while it is pending, it has received nothing.
    ///
    /// # Errors
    ///
    /// As [`Client::recv`].
    pub async fn recv(&mut self) -> Result<(CallId, Answer<Reply<'_, T>>), CallError> {
        let (id, found) = poll_fn(|cx| self.poll_found(cx, None)).await?;
        Ok((id, self.end.answer(id, found)))
    }

    fn poll_found(
        &mut self,
        cx: &mut Context<'_>,
        wanted: Option<CallId>,
    ) -> Poll<Result<(CallId, Found), CallError>> {
        ready!(self.readiness.poll_proceed(cx));
        loop {
            // Empty-handed, it has armed what it receives from: whatever comes now makes the descriptor readable.
            match self.end.find(wanted, Patience::Task) {
                Err(CallError::Empty) => {}
                found => return Poll::Ready(found),
            }
            if let Err(error) = ready!(self.readiness.poll_readable(cx)) {
                return Poll::Ready(Err(CallError::Wait(error)));
            }
        }
    }
}

/// A future that may have asked for room.
struct Sending<'a, T: Trust, R: Readiness>(&'a mut Async<Client<T>, R>);

impl<T: Trust, R: Readiness> Drop for Sending<'_, T, R> {
    fn drop(&mut self) {
        self.0.end.forget_room();
    }
}

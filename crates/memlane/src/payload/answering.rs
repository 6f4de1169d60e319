//! Answers that are values.

use std::{
    fmt,
    future::poll_fn,
    io,
    marker::PhantomData,
    ops::Deref,
    task::Poll,
    time::{Duration, Instant},
};

use memlane_transport::Peer;

use super::{AsServer, PayloadError, Typed, Values};
#[cfg(doc)]
use crate::CallError;
use crate::{
    Answering, Async, Readiness, RecvError, RecvTimeoutError, ReplyError, Responder, Server, Trust,
    TryRecvError, Watched, after,
    server::{Next, PASSED, Patience},
    subscriber::NoMessage,
};

/// A request that is a value, which it derefs to; what answers it.
///
/// Dropped without an answer, it tells the client ([`CallError::Unanswered`]).
#[must_use = "a request that is dropped is left unanswered"]
pub struct Asked<'a, Q: Values, A: Values> {
    value: Q::Owned,
    answering: Answering<'a>,
    copy: &'a mut Vec<u8>,
    reply: PhantomData<fn() -> A>,
}

impl<Q: Values, A: Values> Asked<'_, Q, A> {
    /// Who asks ([`Request::peer`](crate::Request::peer)).
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn peer(&self) -> io::Result<Peer> {
        self.answering.peer()
    }

    /// When its client stops waiting, if it ever does.
    pub fn deadline(&self) -> Option<Instant> {
        self.answering.deadline()
    }

    /// Whether nobody waits for the answer any more ([`Request::is_cancelled`](crate::Request::is_cancelled)).
    pub fn is_cancelled(&self) -> bool {
        self.answering.is_cancelled()
    }

    /// Lets the server receive others before this one is answered.
    pub fn defer(self) -> (Q::Owned, Answers<A>) {
        let answers = Answers {
            responder: self.answering.defer(),
            reply: PhantomData,
        };
        (self.value, answers)
    }

    /// Sends the reply, the last one ([`Request::reply`](crate::Request::reply)).
    ///
    /// # Errors
    ///
    /// Those of there, and [`PayloadError::Encode`]. The request is left unanswered, then.
    #[inline]
    pub fn reply(self, reply: &A::Value) -> Result<(), PayloadError<ReplyError>> {
        let bytes = A::bytes(reply, self.copy, self.answering.max_reply());
        let bytes = bytes.map_err(PayloadError::widen)?;
        self.answering.reply(bytes).map_err(PayloadError::Lane)
    }

    /// Sends an item of a stream ([`Request::send`](crate::Request::send)).
    ///
    /// # Errors
    ///
    /// Those of there, and [`PayloadError::Encode`].
    pub fn send(&mut self, item: &A::Value) -> Result<(), PayloadError<ReplyError>> {
        let bytes = A::bytes(item, self.copy, self.answering.max_reply());
        let bytes = bytes.map_err(PayloadError::widen)?;
        self.answering.send(bytes).map_err(PayloadError::Lane)
    }

    /// Sends the reply, the last one, if there is room ([`Request::try_reply`](crate::Request::try_reply)).
    ///
    /// # Errors
    ///
    /// Those of there, and [`PayloadError::Encode`]. The request is still to be answered, unless it has been or its client is
    /// gone.
    pub fn try_reply(&mut self, reply: &A::Value) -> Result<(), PayloadError<ReplyError>> {
        let bytes = A::bytes(reply, self.copy, self.answering.max_reply());
        let bytes = bytes.map_err(PayloadError::widen)?;
        self.answering.try_reply(bytes).map_err(PayloadError::Lane)
    }

    /// Sends an item of a stream, if there is room ([`Request::try_send`](crate::Request::try_send)).
    ///
    /// # Errors
    ///
    /// Those of there, and [`PayloadError::Encode`].
    pub fn try_send(&mut self, item: &A::Value) -> Result<(), PayloadError<ReplyError>> {
        let bytes = A::bytes(item, self.copy, self.answering.max_reply());
        let bytes = bytes.map_err(PayloadError::widen)?;
        self.answering.try_send(bytes).map_err(PayloadError::Lane)
    }

    /// Ends a stream.
    ///
    /// # Errors
    ///
    /// [`ReplyError`].
    pub fn finish(self) -> Result<(), ReplyError> {
        self.answering.finish()
    }

    /// Tells the client that there is no reply, and why.
    ///
    /// # Errors
    ///
    /// [`ReplyError`].
    pub fn fail(self, why: &str) -> Result<(), ReplyError> {
        self.answering.fail(why)
    }
}

impl<Q: Values, A: Values> Deref for Asked<'_, Q, A> {
    type Target = Q::Owned;

    #[inline]
    fn deref(&self) -> &Q::Owned {
        &self.value
    }
}

impl<Q: Values, A: Values> fmt::Debug for Asked<'_, Q, A>
where
    Q::Owned: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked")
            .field("value", &self.value)
            .finish_non_exhaustive()
    }
}

/// A [`Responder`] of values.
#[must_use = "a responder that is dropped leaves its request unanswered"]
pub struct Answers<A> {
    responder: Responder,
    reply: PhantomData<fn() -> A>,
}

impl<A: Values> Answers<A> {
    /// Sends the reply, the last one ([`Responder::reply`]).
    ///
    /// # Errors
    ///
    /// Those of there, and [`PayloadError::Encode`]. The request is left unanswered, then.
    pub fn reply<E: AsServer, Q>(
        self,
        server: &mut Typed<E, (Q, A)>,
        reply: &A::Value,
    ) -> Result<(), PayloadError<ReplyError>> {
        let responder = self.responder;
        put(server, reply, |server, bytes| {
            responder.reply(server, bytes)
        })
    }

    /// Sends an item of a stream ([`Responder::send`]).
    ///
    /// # Errors
    ///
    /// Those of there, and [`PayloadError::Encode`].
    pub fn send<E: AsServer, Q>(
        &mut self,
        server: &mut Typed<E, (Q, A)>,
        item: &A::Value,
    ) -> Result<(), PayloadError<ReplyError>> {
        let responder = &mut self.responder;
        put(server, item, |server, bytes| responder.send(server, bytes))
    }

    /// Sends the reply, the last one, if there is room ([`Responder::try_reply`]).
    ///
    /// # Errors
    ///
    /// Those of there, and [`PayloadError::Encode`].
    pub fn try_reply<E: AsServer, Q>(
        &mut self,
        server: &mut Typed<E, (Q, A)>,
        reply: &A::Value,
    ) -> Result<(), PayloadError<ReplyError>> {
        let responder = &mut self.responder;
        put(server, reply, |server, bytes| {
            responder.try_reply(server, bytes)
        })
    }

    /// Sends an item of a stream, if there is room ([`Responder::try_send`]).
    ///
    /// # Errors
    ///
    /// Those of there, and [`PayloadError::Encode`].
    pub fn try_send<E: AsServer, Q>(
        &mut self,
        server: &mut Typed<E, (Q, A)>,
        item: &A::Value,
    ) -> Result<(), PayloadError<ReplyError>> {
        let responder = &mut self.responder;
        put(server, item, |server, bytes| {
            responder.try_send(server, bytes)
        })
    }

    /// Ends a stream ([`Responder::finish`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn finish<E: AsServer, Q>(self, server: &mut Typed<E, (Q, A)>) -> Result<(), ReplyError> {
        self.responder.finish(server.end_mut().as_server())
    }

    /// Tells the client that there is no reply, and why ([`Responder::fail`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn fail<E: AsServer, Q>(
        self,
        server: &mut Typed<E, (Q, A)>,
        why: &str,
    ) -> Result<(), ReplyError> {
        self.responder.fail(server.end_mut().as_server(), why)
    }

    /// Has the server tell the client that there is no reply, and why, when it next receives ([`Responder::post_failure`]).
    pub fn post_failure(self, why: impl Into<String>) {
        self.responder.post_failure(why);
    }

    /// Has the server send this reply, the last one, when it next receives ([`Responder::post`]).
    ///
    /// # Errors
    ///
    /// [`PayloadError::Encode`]. The request is left unanswered, then.
    pub fn post(self, reply: &A::Value) -> Result<(), PayloadError<ReplyError>> {
        let mut copy = Vec::new();
        let bytes = A::bytes(reply, &mut copy, usize::MAX).map_err(PayloadError::widen)?;
        self.responder.post(bytes);
        Ok(())
    }
}

impl<A> Answers<A> {
    /// Whether nobody waits for the answer any more ([`Responder::is_cancelled`]).
    pub fn is_cancelled(&self) -> bool {
        self.responder.is_cancelled()
    }

    /// The responder, whose replies are bytes.
    pub fn into_inner(self) -> Responder {
        self.responder
    }
}

/// Encodes a value, and has `put` send it.
fn put<E: AsServer, Q, A: Values>(
    server: &mut Typed<E, (Q, A)>,
    value: &A::Value,
    put: impl FnOnce(&mut Server<E::Trust>, &[u8]) -> Result<(), ReplyError>,
) -> Result<(), PayloadError<ReplyError>> {
    let (server, copy) = server.end_and_copy();
    let bytes = A::bytes(value, copy, usize::MAX).map_err(PayloadError::widen)?;
    put(server.as_server(), bytes).map_err(PayloadError::Lane)
}

impl<A> fmt::Debug for Answers<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Answers").field(&self.responder).finish()
    }
}

macro_rules! receives {
    ($server:ty) => {
        impl<T: Trust, Q: Values, A: Values> Typed<$server, (Q, A)> {
            /// Receives the next request; waits for it, and for clients ([`Server::recv`]). One that is no value is answered
            /// with a failure, and not seen.
            ///
            /// # Errors
            ///
            /// As there.
            pub fn recv(&mut self) -> Result<Asked<'_, Q, A>, RecvError> {
                let next = self.next_value(Patience::Forever, Server::next_forever);
                self.asked(next).map_err(NoMessage::forever)
            }

            /// Receives the next request, if there is one ([`Server::try_recv`]).
            ///
            /// # Errors
            ///
            /// As there.
            pub fn try_recv(&mut self) -> Result<Asked<'_, Q, A>, TryRecvError> {
                let next = self.next_value(Patience::Now, Server::next_now);
                self.asked(next).map_err(NoMessage::at_once)
            }

            /// Receives the next request; waits for it no longer than `timeout` ([`Server::recv_timeout`]).
            ///
            /// # Errors
            ///
            /// As there.
            pub fn recv_timeout(
                &mut self,
                timeout: Duration,
            ) -> Result<Asked<'_, Q, A>, RecvTimeoutError> {
                let deadline = after(timeout);
                let patience = Patience::until(deadline);
                let next = self.next_value(patience, |server| server.next_until(deadline));
                self.asked(next).map_err(NoMessage::in_time)
            }

            fn next_value(
                &mut self,
                patience: Patience,
                look: impl Fn(&mut Server<T>) -> Result<Next, NoMessage>,
            ) -> Result<(Next, Q::Owned), NoMessage> {
                let (server, copy) = self.end_and_copy();
                value_of::<Q, T>(server.as_server(), copy, patience, look)
            }

            fn asked(
                &mut self,
                next: Result<(Next, Q::Owned), NoMessage>,
            ) -> Result<Asked<'_, Q, A>, NoMessage> {
                let (server, copy) = self.end_and_copy();
                asked(server.as_server(), copy, next)
            }
        }
    };
}

receives!(Server<T>);
receives!(Watched<Server<T>>);

/// The next request that is a value.
fn value_of<Q: Values, T: Trust>(
    server: &mut Server<T>,
    copy: &mut Vec<u8>,
    patience: Patience,
    look: impl Fn(&mut Server<T>) -> Result<Next, NoMessage>,
) -> Result<(Next, Q::Owned), NoMessage> {
    let mut passed = 0;
    loop {
        let next = look(server)?;
        if let Some(value) = take_value::<Q, T>(server, copy, next)? {
            return Ok((next, value));
        }
        passed += 1;
        server.bear(passed, patience)?;
    }
}

/// The value that a request is. One that is none is answered.
fn take_value<Q: Values, T: Trust>(
    server: &mut Server<T>,
    copy: &mut Vec<u8>,
    next: Next,
) -> Result<Option<Q::Owned>, NoMessage> {
    let len = server.peek(next, &mut [])?;
    let read = |bytes: &mut [u8]| {
        let again = server.peek(next, bytes);
        debug_assert!(again.is_ok(), "it was there a moment ago");
    };
    match Q::value(len, copy, read) {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            let _ = server.deliver(next)?.fail(&error.to_string());
            Ok(None)
        }
    }
}

/// Lets other tasks go on.
async fn give_way() {
    let mut given = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn asked<'a, Q: Values, A: Values, T: Trust>(
    server: &'a mut Server<T>,
    copy: &'a mut Vec<u8>,
    next: Result<(Next, Q::Owned), NoMessage>,
) -> Result<Asked<'a, Q, A>, NoMessage> {
    let (next, value) = next?;
    Ok(Asked {
        value,
        answering: server.deliver(next)?.release(),
        copy,
        reply: PhantomData,
    })
}

impl<T: Trust, R: Readiness, Q: Values, A: Values> Typed<Async<Server<T>, R>, (Q, A)> {
    /// Receives the next request; waits for it, and for clients ([`Async::recv`]). One that is no value is answered with a
    /// failure, and not seen.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn recv(&mut self) -> Result<Asked<'_, Q, A>, RecvError> {
        let (server, copy) = self.end_and_copy();
        let mut passed = 0_u32;
        let next = loop {
            if passed >= PASSED {
                passed = 0;
                give_way().await;
            }
            passed += 1;
            let next = poll_fn(|cx| server.poll_next(cx)).await;
            let next = match next {
                Ok(next) => next,
                Err(error) => break Err(error),
            };
            match take_value::<Q, T>(&mut server.end, copy, next) {
                Ok(None) => {}
                Ok(Some(value)) => break Ok((next, value)),
                Err(error) => break Err(error),
            }
        };
        asked(&mut server.end, copy, next).map_err(NoMessage::forever)
    }
}

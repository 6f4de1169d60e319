//! Requests that are values, and their replies.

use std::time::Duration;

use super::{AsClient, PayloadError, Typed, Values};
use crate::{
    Answer, Async, Call, CallError, CallId, Client, Readiness, Reply, SharedClient, Trust,
};

/// The value that a reply is.
fn value<A: Values, T: Trust>(
    reply: &Reply<'_, T>,
    copy: &mut Vec<u8>,
) -> Result<A::Owned, PayloadError<CallError>> {
    A::value(reply.len(), copy, |bytes| reply.read_at(0, bytes)).map_err(PayloadError::widen)
}

/// What has come, as a value.
fn answer<A: Values, T: Trust>(
    answer: Answer<Reply<'_, T>>,
    copy: &mut Vec<u8>,
) -> Result<Answer<A::Owned>, PayloadError<CallError>> {
    Ok(match answer {
        Answer::Item(reply) => Answer::Item(value::<A, T>(&reply, copy)?),
        Answer::Last(reply) => Answer::Last(value::<A, T>(&reply, copy)?),
        Answer::End => Answer::End,
        Answer::Error(error) => Answer::Error(error),
    })
}

impl<E: AsClient, Q: Values, A: Values> Typed<E, (Q, A)> {
    /// Sends a request, and waits for its reply ([`Client::call`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    #[inline]
    pub fn call(&mut self, request: &Q::Value) -> Result<A::Owned, PayloadError<CallError>> {
        self.ask(request, |client, bytes| client.call(bytes))
    }

    /// Sends a request, and waits for its reply no longer than `timeout` ([`Client::call_timeout`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub fn call_timeout(
        &mut self,
        request: &Q::Value,
        timeout: Duration,
    ) -> Result<A::Owned, PayloadError<CallError>> {
        self.ask(request, |client, bytes| client.call_timeout(bytes, timeout))
    }

    #[inline(always)]
    fn ask(
        &mut self,
        request: &Q::Value,
        ask: impl for<'a> FnOnce(
            &'a mut Client<E::Trust>,
            &[u8],
        ) -> Result<Reply<'a, E::Trust>, CallError>,
    ) -> Result<A::Owned, PayloadError<CallError>> {
        let (client, copy) = self.end_and_copy();
        let client = client.as_client();
        let limit = client.max_request();
        let bytes = Q::bytes(request, copy, limit).map_err(PayloadError::widen)?;
        let reply = ask(client, bytes).map_err(PayloadError::Lane)?;
        value::<A, _>(&reply, copy)
    }

    /// Sends a request, and goes on ([`Client::send`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub fn send(&mut self, request: &Q::Value) -> Result<Call, PayloadError<CallError>> {
        self.put(request, |client, bytes| client.send(bytes))
    }

    /// Sends a request whose last reply must come within `timeout` ([`Client::send_timeout`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub fn send_timeout(
        &mut self,
        request: &Q::Value,
        timeout: Duration,
    ) -> Result<Call, PayloadError<CallError>> {
        self.put(request, |client, bytes| client.send_timeout(bytes, timeout))
    }

    /// Sends a request, if there is room ([`Client::try_send`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub fn try_send(&mut self, request: &Q::Value) -> Result<Call, PayloadError<CallError>> {
        self.put(request, |client, bytes| client.try_send(bytes))
    }

    fn put(
        &mut self,
        request: &Q::Value,
        send: impl FnOnce(&mut Client<E::Trust>, &[u8]) -> Result<Call, CallError>,
    ) -> Result<Call, PayloadError<CallError>> {
        let (client, copy) = self.end_and_copy();
        let client = client.as_client();
        let limit = client.max_request();
        let bytes = Q::bytes(request, copy, limit).map_err(PayloadError::widen)?;
        send(client, bytes).map_err(PayloadError::Lane)
    }

    /// Waits for the reply to a request ([`Client::wait`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub fn wait(&mut self, call: Call) -> Result<A::Owned, PayloadError<CallError>> {
        let (client, copy) = self.end_and_copy();
        let reply = client.as_client().wait(call);
        value::<A, _>(&reply.map_err(PayloadError::Lane)?, copy)
    }

    /// Waits for the next item of a stream; none once it has ended ([`Client::next`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values, after which it goes on.
    pub fn next(&mut self, call: &mut Call) -> Result<Option<A::Owned>, PayloadError<CallError>> {
        let (client, copy) = self.end_and_copy();
        let item = client.as_client().next(call);
        let item = item.map_err(PayloadError::Lane)?;
        item.map(|item| value::<A, _>(&item, copy)).transpose()
    }

    /// The next item of a stream, if it has come; none once it has ended ([`Client::try_next`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values, after which it goes on.
    pub fn try_next(
        &mut self,
        call: &mut Call,
    ) -> Result<Option<A::Owned>, PayloadError<CallError>> {
        let (client, copy) = self.end_and_copy();
        let item = client.as_client().try_next(call);
        let item = item.map_err(PayloadError::Lane)?;
        item.map(|item| value::<A, _>(&item, copy)).transpose()
    }

    /// Waits for the next item of a stream, no longer than `timeout`; none once it has ended ([`Client::next_timeout`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values, after which it goes on.
    pub fn next_timeout(
        &mut self,
        call: &mut Call,
        timeout: Duration,
    ) -> Result<Option<A::Owned>, PayloadError<CallError>> {
        let (client, copy) = self.end_and_copy();
        let item = client.as_client().next_timeout(call, timeout);
        let item = item.map_err(PayloadError::Lane)?;
        item.map(|item| value::<A, _>(&item, copy)).transpose()
    }

    /// Waits for whatever comes next, of any request ([`Client::recv`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub fn recv(&mut self) -> Result<(CallId, Answer<A::Owned>), PayloadError<CallError>> {
        let (client, copy) = self.end_and_copy();
        let came = client.as_client().recv();
        let (id, came) = came.map_err(PayloadError::Lane)?;
        Ok((id, answer::<A, _>(came, copy)?))
    }

    /// Whatever has come, of any request ([`Client::try_recv`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub fn try_recv(&mut self) -> Result<(CallId, Answer<A::Owned>), PayloadError<CallError>> {
        let (client, copy) = self.end_and_copy();
        let came = client.as_client().try_recv();
        let (id, came) = came.map_err(PayloadError::Lane)?;
        Ok((id, answer::<A, _>(came, copy)?))
    }

    /// Waits for whatever comes next, of any request, no longer than `timeout` ([`Client::recv_timeout`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub fn recv_timeout(
        &mut self,
        timeout: Duration,
    ) -> Result<(CallId, Answer<A::Owned>), PayloadError<CallError>> {
        let (client, copy) = self.end_and_copy();
        let came = client.as_client().recv_timeout(timeout);
        let (id, came) = came.map_err(PayloadError::Lane)?;
        Ok((id, answer::<A, _>(came, copy)?))
    }

    /// Cancels a request ([`Client::cancel`]).
    pub fn cancel(&mut self, call: impl Into<CallId>) {
        self.end_mut().as_client().cancel(call);
    }
}

impl<T: Trust, R: Readiness, Q: Values, A: Values> Typed<Async<Client<T>, R>, (Q, A)> {
    /// Sends a request, and waits for its reply ([`Async::call`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub async fn call(&mut self, request: &Q::Value) -> Result<A::Owned, PayloadError<CallError>> {
        let call = self.send(request).await?;
        self.wait(call).await
    }

    /// Sends a request, and goes on ([`Async::send`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub async fn send(&mut self, request: &Q::Value) -> Result<Call, PayloadError<CallError>> {
        let (client, copy) = self.end_and_copy();
        let limit = client.get_ref().max_request();
        let bytes = Q::bytes(request, copy, limit).map_err(PayloadError::widen)?;
        client.send(bytes).await.map_err(PayloadError::Lane)
    }

    /// Waits for the reply to a request ([`Async::wait`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub async fn wait(&mut self, call: Call) -> Result<A::Owned, PayloadError<CallError>> {
        let (client, copy) = self.end_and_copy();
        let reply = client.wait(call).await.map_err(PayloadError::Lane)?;
        value::<A, _>(&reply, copy)
    }

    /// Waits for the next item of a stream; none once it has ended ([`Async::next`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values, after which it goes on.
    pub async fn next(
        &mut self,
        call: &mut Call,
    ) -> Result<Option<A::Owned>, PayloadError<CallError>> {
        let (client, copy) = self.end_and_copy();
        let item = client.next(call).await.map_err(PayloadError::Lane)?;
        item.map(|item| value::<A, _>(&item, copy)).transpose()
    }

    /// Sends a request, and waits for its reply no longer than `timeout` ([`Async::call_timeout`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub async fn call_timeout(
        &mut self,
        request: &Q::Value,
        timeout: Duration,
    ) -> Result<A::Owned, PayloadError<CallError>> {
        let call = self.send_timeout(request, timeout).await?;
        self.wait(call).await
    }

    /// Sends a request whose last reply must come within `timeout` ([`Async::send_timeout`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub async fn send_timeout(
        &mut self,
        request: &Q::Value,
        timeout: Duration,
    ) -> Result<Call, PayloadError<CallError>> {
        let (client, copy) = self.end_and_copy();
        let limit = client.get_ref().max_request();
        let bytes = Q::bytes(request, copy, limit).map_err(PayloadError::widen)?;
        let sent = client.send_timeout(bytes, timeout).await;
        sent.map_err(PayloadError::Lane)
    }

    /// Waits for whatever comes next, of any request ([`Async::recv`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub async fn recv(&mut self) -> Result<(CallId, Answer<A::Owned>), PayloadError<CallError>> {
        let (client, copy) = self.end_and_copy();
        let (id, came) = client.recv().await.map_err(PayloadError::Lane)?;
        Ok((id, answer::<A, _>(came, copy)?))
    }

    /// Cancels a request ([`Client::cancel`]).
    pub fn cancel(&mut self, call: impl Into<CallId>) {
        self.get_mut().get_mut().cancel(call);
    }

    /// The client, for many tasks at once ([`Async::shared`]).
    pub fn shared(self) -> Typed<SharedClient<T, R>, (Q, A)> {
        Typed::new(self.into_inner().shared())
    }
}

impl<T: Trust, R: Readiness, Q: Values, A: Values> Typed<SharedClient<T, R>, (Q, A)> {
    /// Sends a request, and waits for its reply ([`SharedClient::call`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub async fn call(&self, request: &Q::Value) -> Result<A::Owned, PayloadError<CallError>> {
        let call = self.send(request).await?;
        self.wait(call).await
    }

    /// Sends a request, and waits for its reply no longer than `timeout` ([`SharedClient::call_timeout`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub async fn call_timeout(
        &self,
        request: &Q::Value,
        timeout: Duration,
    ) -> Result<A::Owned, PayloadError<CallError>> {
        let call = self.send_timeout(request, timeout).await?;
        self.wait(call).await
    }

    /// Sends a request, and goes on ([`SharedClient::send`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub async fn send(&self, request: &Q::Value) -> Result<Call, PayloadError<CallError>> {
        let mut copy = Vec::new();
        let bytes = self.bytes(request, &mut copy)?;
        let sent = self.get_ref().send(bytes).await;
        sent.map_err(PayloadError::Lane)
    }

    /// Sends a request whose last reply must come within `timeout` ([`SharedClient::send_timeout`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub async fn send_timeout(
        &self,
        request: &Q::Value,
        timeout: Duration,
    ) -> Result<Call, PayloadError<CallError>> {
        let mut copy = Vec::new();
        let bytes = self.bytes(request, &mut copy)?;
        let sent = self.get_ref().send_timeout(bytes, timeout).await;
        sent.map_err(PayloadError::Lane)
    }

    fn bytes<'a>(
        &self,
        request: &'a Q::Value,
        copy: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], PayloadError<CallError>> {
        let limit = self.get_ref().max_request();
        Q::bytes(request, copy, limit).map_err(PayloadError::widen)
    }

    /// Waits for the reply to a request ([`SharedClient::wait`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub async fn wait(&self, call: Call) -> Result<A::Owned, PayloadError<CallError>> {
        let reply = self.get_ref().wait(call).await;
        value::<A, _>(&reply.map_err(PayloadError::Lane)?, &mut Vec::new())
    }

    /// Waits for the next item of a stream; none once it has ended ([`SharedClient::next`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values, after which it goes on.
    pub async fn next(&self, call: &mut Call) -> Result<Option<A::Owned>, PayloadError<CallError>> {
        let item = self
            .get_ref()
            .next(call)
            .await
            .map_err(PayloadError::Lane)?;
        item.map(|item| value::<A, _>(&item, &mut Vec::new()))
            .transpose()
    }
}

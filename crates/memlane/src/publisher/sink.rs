//! Sending as a `Sink`.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_sink::Sink;

use super::Publisher;
use crate::{Async, Readiness, SendError};

/// A publisher that is a `Sink` of messages of type `M` (feature `stream`), made by [`Async::into_sink`].
///
/// It keeps one message, the last one that was given to it, until there is room: that one is sent before the next is taken, and by
/// a flush.
pub struct Sending<M, R: Readiness> {
    publisher: Async<Publisher, R>,
    message: Option<M>,
}

impl<R: Readiness> Async<Publisher, R> {
    /// The publisher as a `Sink`, for combinators: `send`, `send_all`, `forward`.
    ///
    /// ```
    /// # let link = memlane::Link::pair()?;
    /// # let publisher = memlane::Publisher::builder().unbound()?;
    /// # publisher.attach(link.0)?;
    /// # let subscriber = memlane::Subscriber::builder().over(link.1)?;
    /// use futures_util::{SinkExt, StreamExt, TryStreamExt, stream};
    /// use memlane::Async;
    ///
    /// # async_io::block_on(async {
    /// let lines = stream::iter(["one", "two"]).map(Ok);
    /// let mut sink = Async::new(publisher)?.into_sink();
    /// lines.forward(&mut sink).await?;
    /// drop(sink); // hangs up
    /// let received: Vec<Vec<u8>> = Async::new(subscriber)?.into_stream().try_collect().await?;
    /// assert_eq!(received, [b"one", b"two"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn into_sink<M: AsRef<[u8]>>(self) -> Sending<M, R> {
        Sending {
            publisher: self,
            message: None,
        }
    }
}

impl<M, R: Readiness> Sending<M, R> {
    /// The publisher.
    pub fn get_ref(&self) -> &Async<Publisher, R> {
        &self.publisher
    }

    /// The publisher, to send by other means. What has been given to the sink and has not been sent comes later.
    pub fn get_mut(&mut self) -> &mut Async<Publisher, R> {
        &mut self.publisher
    }

    /// The publisher, and the message that has not been sent.
    pub fn into_parts(mut self) -> (Async<Publisher, R>, Option<M>) {
        self.publisher.forget_room();
        (self.publisher, self.message)
    }
}

impl<M: AsRef<[u8]> + Unpin, R: Readiness + Unpin> Sink<M> for Sending<M, R> {
    type Error = SendError;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_flush(cx)
    }

    /// Panics if it is not ready.
    fn start_send(self: Pin<&mut Self>, message: M) -> Result<(), SendError> {
        let kept = self.get_mut().message.replace(message);
        assert!(
            kept.is_none(),
            "a message was given to a sink that was not ready"
        );
        Ok(())
    }

    /// A message that cannot be sent is dropped.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let this = self.get_mut();
        let Some(message) = &this.message else {
            return Poll::Ready(Ok(()));
        };
        let sent = ready!(this.publisher.poll_send(cx, message.as_ref()));
        this.message = None;
        Poll::Ready(sent)
    }

    /// Sends what it has. It hangs up when it is dropped.
    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_flush(cx)
    }
}

impl<M, R: Readiness> fmt::Debug for Sending<M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending")
            .field("publisher", &self.publisher)
            .field("full", &self.message.is_some())
            .finish()
    }
}

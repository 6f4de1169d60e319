//! Receiving as a `Stream`.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::{FusedStream, Stream};

use super::{Message, Subscriber, Trust};
use crate::{Async, Readiness, RecvError};

/// A subscriber that is a `Stream` of what the closure `F` makes of its messages (feature `stream`), made by
/// [`Async::into_stream`] or [`Async::into_stream_of`].
///
/// It ends when the publisher is gone and everything has been received. Any other error is an item, the last one.
///
/// Dropped, or left alone for as long as one likes, it has taken no message but those it has given.
pub struct Messages<T: Trust, R: Readiness, F> {
    subscriber: Async<Subscriber<T>, R>,
    over: bool,
    map: F,
}

impl<T: Trust, R: Readiness> Async<Subscriber<T>, R> {
    /// The subscriber as a `Stream` of copies of its messages.
    ///
    /// ```
    /// # let link = memlane::Link::pair()?;
    /// # let mut publisher = memlane::Publisher::builder().unbound()?;
    /// # publisher.attach(link.0)?;
    /// # let subscriber = memlane::Subscriber::builder().over(link.1)?;
    /// # publisher.send(b"a frame")?;
    /// # drop(publisher);
    /// use futures_util::TryStreamExt;
    ///
    /// # async_io::block_on(async {
    /// let mut frames = memlane::Async::new(subscriber)?.into_stream();
    /// while let Some(frame) = frames.try_next().await? {
    ///     println!("{} bytes", frame.len());
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[allow(clippy::type_complexity)]
    pub fn into_stream(self) -> Messages<T, R, fn(Message<'_, T>) -> Vec<u8>> {
        self.into_stream_of(|message| message.to_vec())
    }

    /// The subscriber as a `Stream` of what `map` makes of each message, in place: parsed, copied in part, or
    /// [kept](Message::hold).
    pub fn into_stream_of<V, F>(self, map: F) -> Messages<T, R, F>
    where
        F: FnMut(Message<'_, T>) -> V,
    {
        Messages {
            subscriber: self,
            over: false,
            map,
        }
    }
}

impl<T: Trust, R: Readiness, F> Messages<T, R, F> {
    /// The subscriber.
    pub fn get_ref(&self) -> &Async<Subscriber<T>, R> {
        &self.subscriber
    }

    /// The subscriber, to receive by other means.
    pub fn get_mut(&mut self) -> &mut Async<Subscriber<T>, R> {
        &mut self.subscriber
    }

    /// The subscriber.
    pub fn into_inner(self) -> Async<Subscriber<T>, R> {
        self.subscriber
    }
}

impl<T, R, F, V> Stream for Messages<T, R, F>
where
    T: Trust + Unpin,
    R: Readiness + Unpin,
    F: FnMut(Message<'_, T>) -> V + Unpin,
{
    type Item = Result<V, RecvError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        let error = match ready!(this.subscriber.poll_recv(cx)) {
            Ok(message) => return Poll::Ready(Some(Ok((this.map)(message)))),
            Err(error) => error,
        };
        this.over = true;
        Poll::Ready(match error {
            RecvError::Disconnected { .. } => None,
            error => Some(Err(error)),
        })
    }
}

impl<T, R, F, V> FusedStream for Messages<T, R, F>
where
    T: Trust + Unpin,
    R: Readiness + Unpin,
    F: FnMut(Message<'_, T>) -> V + Unpin,
{
    fn is_terminated(&self) -> bool {
        self.over
    }
}

impl<T: Trust, R: Readiness, F> fmt::Debug for Messages<T, R, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages")
            .field("subscriber", &self.subscriber.get_ref().stats())
            .field("over", &self.over)
            .finish()
    }
}

use std::{fmt, marker::PhantomData, time::Duration};

use crate::{
    End, Message, Publisher, Receiver, RecvError, RecvTimeoutError, Subscriber, Trust,
    TryRecvError, Watched,
};

/// An end of a lane that carries values of one kind: [`Plain`](super::Plain), [`Slice`](super::Slice) or
/// [`Encoded`](super::Encoded).
///
/// What is sent and received are values; all else that the end can do is behind [`get_ref`](Typed::get_ref) and
/// [`get_mut`](Typed::get_mut), where messages are bytes. That both sides carry the same is checked when they meet.
///
/// ```
/// use memlane::{Plain, Publisher, Subscriber, Typed};
/// use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
///
/// #[derive(Debug, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
/// #[repr(C)]
/// struct Point {
///     x: f32,
///     y: f32,
/// }
///
/// # let link = memlane::Link::pair()?;
/// # let builder = Publisher::builder();
/// // let mut publisher = Publisher::builder().of::<Plain<Point>>().bind("points")?;
/// # let mut publisher = builder.of::<Plain<Point>>().unbound()?;
/// # publisher.get_ref().attach(link.0)?;
/// // let mut subscriber = Subscriber::builder().of::<Plain<Point>>().connect("points")?;
/// # let mut subscriber = Subscriber::builder().of::<Plain<Point>>().over(link.1)?;
/// publisher.send(&Point { x: 1.0, y: 2.0 })?;
/// assert_eq!(subscriber.recv()?, Point { x: 1.0, y: 2.0 });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Any serde type, and slices, which are written and read in place:
///
/// ```
/// use memlane::{Encoded, Publisher, Slice, Subscriber};
///
/// # let link = memlane::Link::pair()?;
/// let mut publisher = Publisher::builder().of::<Encoded<Vec<String>>>().unbound()?;
/// publisher.get_ref().attach(link.0)?;
/// let mut subscriber = Subscriber::builder().of::<Encoded<Vec<String>>>().over(link.1)?;
/// publisher.send(&vec!["one".to_owned(), "two".to_owned()])?;
/// assert_eq!(subscriber.recv()?, ["one", "two"]);
///
/// # let link = memlane::Link::pair()?;
/// let mut publisher = Publisher::builder().of::<Slice<f32>>().unbound()?;
/// publisher.get_ref().attach(link.0)?;
/// let mut subscriber = Subscriber::builder().of::<Slice<f32>>().over(link.1)?;
/// let mut samples = publisher.reserve(48_000)?;
/// samples.fill(0.5);
/// samples.commit_first(100);
/// assert_eq!(subscriber.recv()?.to_vec(), [0.5; 100]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Typed<E, P> {
    end: E,
    /// Of values being encoded or decoded.
    copy: Vec<u8>,
    payload: PhantomData<fn() -> P>,
}

impl<E, P> Typed<E, P> {
    pub(super) fn new(end: E) -> Typed<E, P> {
        Typed {
            end,
            copy: Vec::new(),
            payload: PhantomData,
        }
    }

    /// The end, whose messages are bytes.
    pub fn get_ref(&self) -> &E {
        &self.end
    }

    /// The end, whose messages are bytes.
    pub fn get_mut(&mut self) -> &mut E {
        &mut self.end
    }

    /// The end, no longer typed.
    pub fn into_inner(self) -> E {
        self.end
    }

    /// The same in another form: [`Watched`], [`Async`](crate::Async).
    ///
    /// ```
    /// use memlane::{Async, Encoded, Publisher, Watched};
    ///
    /// let publisher = Publisher::builder().of::<Encoded<String>>().unbound()?;
    /// let mut publisher = publisher.try_map(Async::new)?;
    /// # async_io::block_on(async {
    /// publisher.send(&"a line".to_owned()).await
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The closure's.
    pub fn try_map<F, Er>(self, map: impl FnOnce(E) -> Result<F, Er>) -> Result<Typed<F, P>, Er> {
        Ok(Typed {
            end: map(self.end)?,
            copy: self.copy,
            payload: PhantomData,
        })
    }

    #[inline(always)]
    pub(super) fn end_mut(&mut self) -> &mut E {
        &mut self.end
    }

    #[inline(always)]
    pub(super) fn end_and_copy(&mut self) -> (&mut E, &mut Vec<u8>) {
        (&mut self.end, &mut self.copy)
    }
}

/// The same end, if that is one which has clones: a [`SharedClient`](crate::SharedClient).
impl<E: Clone, P> Clone for Typed<E, P> {
    fn clone(&self) -> Typed<E, P> {
        Typed::new(self.end.clone())
    }
}

impl<E: AsPublisher, P> Typed<E, P> {
    #[inline(always)]
    pub(super) fn publisher(&mut self) -> &mut Publisher {
        self.end.as_publisher()
    }
}

impl<E: fmt::Debug, P> fmt::Debug for Typed<E, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Typed").field(&self.end).finish()
    }
}

/// A [`Publisher`], or one in a loop.
pub trait AsPublisher {
    /// The publisher in it.
    fn as_publisher(&mut self) -> &mut Publisher;
}

impl AsPublisher for Publisher {
    #[inline(always)]
    fn as_publisher(&mut self) -> &mut Publisher {
        self
    }
}

impl AsPublisher for Watched<Publisher> {
    #[inline(always)]
    fn as_publisher(&mut self) -> &mut Publisher {
        self
    }
}

/// A [`Subscriber`] or a [`Receiver`], or one in a loop.
pub trait Receives {
    /// Whether its publisher is trusted.
    type Trust: Trust;

    /// Receives the next message; waits for it.
    ///
    /// # Errors
    ///
    /// As [`Subscriber::recv`] or [`Receiver::recv`].
    fn recv(&mut self) -> Result<Message<'_, Self::Trust>, RecvError>;

    /// Receives the next message if there is one.
    ///
    /// # Errors
    ///
    /// As [`Subscriber::try_recv`] or [`Receiver::try_recv`].
    fn try_recv(&mut self) -> Result<Message<'_, Self::Trust>, TryRecvError>;

    /// Receives the next message; waits for it no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// As [`Subscriber::recv_timeout`] or [`Receiver::recv_timeout`].
    fn recv_timeout(
        &mut self,
        timeout: Duration,
    ) -> Result<Message<'_, Self::Trust>, RecvTimeoutError>;
}

macro_rules! receives {
    ($end:ident) => {
        impl<T: Trust> Receives for $end<T> {
            type Trust = T;

            #[inline(always)]
            fn recv(&mut self) -> Result<Message<'_, T>, RecvError> {
                $end::recv(self)
            }

            #[inline(always)]
            fn try_recv(&mut self) -> Result<Message<'_, T>, TryRecvError> {
                $end::try_recv(self)
            }

            fn recv_timeout(
                &mut self,
                timeout: Duration,
            ) -> Result<Message<'_, T>, RecvTimeoutError> {
                $end::recv_timeout(self, timeout)
            }
        }
    };
}

receives!(Subscriber);
receives!(Receiver);

impl<E: End + Receives> Receives for Watched<E> {
    type Trust = E::Trust;

    #[inline(always)]
    fn recv(&mut self) -> Result<Message<'_, E::Trust>, RecvError> {
        E::recv(self)
    }

    #[inline(always)]
    fn try_recv(&mut self) -> Result<Message<'_, E::Trust>, TryRecvError> {
        E::try_recv(self)
    }

    fn recv_timeout(
        &mut self,
        timeout: Duration,
    ) -> Result<Message<'_, E::Trust>, RecvTimeoutError> {
        E::recv_timeout(self, timeout)
    }
}

//! Lane ends in a loop of the user's.

use std::{
    ops::{Deref, DerefMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::Arc,
};

use crate::{
    Client, Error, Publisher, Receiver, Server, Subscriber, Subscriptions, Trust, WatchReceiver,
};

/// An end of a lane that a loop waits for: epoll, poll(2), mio, GLib, a runtime.
///
/// It is the end that is in it, a [`Publisher`] or [`Subscriber`] or other, and a descriptor, which is readable when a `try_` call that found
/// nothing may find something now. For any kind of loop, level-triggered or edge-triggered, and whatever else shares it:
///
/// - *Subscriber*: readable as long as there may be messages, or if the publisher is gone. Receive one message or many
///   ([`try_recv`](Subscriber::try_recv)); the descriptor is readable until a call has answered
///   [`Empty`](crate::TryRecvError::Empty), and then not before the next message. At the start it is readable.
/// - *Publisher*: readable when there may be room after a call has answered [`Full`](crate::TrySendError::Full), and when a
///   [driven](crate::PublisherBuilder::driven) one has control work. Call [`drive`](Publisher::drive), and then what had found
///   no room. That is what the last call that answered `Full` wants; a message sent, or a loan had, since then ends that
///   wait: ask again for whatever is still to be sent before you wait.
/// - *Client*: readable when there may be a reply after a call has answered [`Empty`](crate::CallError::Empty), or the time of a
///   request is over, and when there may be room after one has answered [`Full`](crate::CallError::Full), as a publisher. A reply
///   that a call has come across on the way to another one, or to room, makes it readable once: in each turn, ask for all that
///   you wait for.
/// - *Server*, *Receiver*, *Subscriptions*: as a subscriber, and when there is somebody to be let in.
/// - *WatchReceiver*: readable when there may be a newer value, or the sender is gone, after
///   [`try_changed`](WatchReceiver::try_changed) has answered `false`.
///
/// It may be readable for nothing now and then. While both sides keep up, there is no system call: a subscriber makes one each
/// time it finds the ring empty, its publisher one to wake it.
///
/// Do not exchange the end in it for another: the descriptor belongs to the one it was made with.
///
/// The descriptor stays the lane's: take it out of a loop before this value is dropped. A
/// [`WaitSet`](crate::signaling::WaitSet) is a loop's wait that comes with memlane, and sees to that by itself.
///
/// ```
/// use memlane::{TryRecvError, Watched};
/// use rustix::event::{PollFd, PollFlags, poll};
/// # let link = memlane::Link::pair()?;
/// # let mut publisher = memlane::Publisher::builder().unbound()?;
/// # publisher.attach(link.0)?;
/// # let subscriber = memlane::Subscriber::builder().over(link.1)?;
/// # publisher.send(b"a frame")?;
/// # drop(publisher);
///
/// let mut subscriber = Watched::new(subscriber)?;
/// loop {
///     poll(&mut [PollFd::new(&subscriber, PollFlags::IN)], None)?;
///     match subscriber.try_recv() {
///         Ok(message) => println!("{} bytes", message.len()),
///         Err(TryRecvError::Empty) => {}
///         Err(TryRecvError::Disconnected { .. }) => break,
///         Err(error) => return Err(error.into()),
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Watched<E: End> {
    end: E,
}

impl<E: End> Watched<E> {
    /// Takes an end into a loop.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if it was told to [`Poll`](crate::WaitPolicy::Poll): the other side does not wake it then.
    /// [`Error::Os`] if descriptors are short: a publisher takes up to four more, a client six; none is needed
    /// later. The end is dropped.
    pub fn new(mut end: E) -> Result<Watched<E>, Error> {
        end.watch()?;
        Ok(Watched { end })
    }

    /// Takes the end out of the loop.
    pub fn into_inner(mut self) -> E {
        self.end.unwatch();
        self.end
    }
}

impl<E: End> Watched<E> {
    /// The descriptor, for whoever keeps it for longer than this value lives.
    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        self.end.descriptor()
    }
}

impl<E: End> Deref for Watched<E> {
    type Target = E;

    fn deref(&self) -> &E {
        &self.end
    }
}

impl<E: End> DerefMut for Watched<E> {
    fn deref_mut(&mut self) -> &mut E {
        &mut self.end
    }
}

impl<E: End> AsFd for Watched<E> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.descriptor().as_fd()
    }
}

impl<E: End> AsRawFd for Watched<E> {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// A [`Publisher`], a [`Subscriber`], a [`Receiver`], [`Subscriptions`], a [`Client`], a [`Server`] or a [`WatchReceiver`].
pub trait End: Watch {}

impl End for Publisher {}
impl<T: Trust> End for Subscriber<T> {}
impl<T: Trust> End for Receiver<T> {}
impl<T: Trust> End for Subscriptions<T> {}
impl<T: Trust> End for Client<T> {}
impl<T: Trust> End for Server<T> {}
impl End for WatchReceiver {}

/// What an end does for its watcher.
pub trait Watch {
    fn watch(&mut self) -> Result<(), Error>;
    fn unwatch(&mut self);
    /// After `watch`: always the same.
    fn descriptor(&self) -> &Arc<OwnedFd>;
}

/// One that only polls cannot be watched.
pub(crate) fn polls() -> Error {
    Error::Option {
        what: "wait",
        why: "expected a policy that sleeps for an end that is watched, got Poll".to_owned(),
    }
}

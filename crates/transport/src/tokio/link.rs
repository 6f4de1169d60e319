//! Links in tasks.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use ::tokio::io::unix::AsyncFd;
use ::tokio::io::{Interest, Ready};
use ::tokio::sync::Notify;
use ::tokio::task::coop::consume_budget;
use ::tokio::time::{Instant, sleep, timeout_at};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Receipt, waiting};
use crate::connect::connect;
use crate::link::Pause;
use crate::link::outbox::Stop;
use crate::message::Outgoing;
use crate::socket_file::LOCK_TIMEOUT;
use crate::sys::reactor;
use crate::wait::Patience;
use crate::{Access, Address, CONNECT_TIMEOUT, Credentials, Error, Peer};

/// A [`Link`](crate::Link) in a tokio runtime.
///
/// All calls take `&self`, and several tasks may make them at a time: each message goes to one of the receivers.
#[derive(Debug)]
pub struct Link {
    io: AsyncFd<crate::Link>,
    /// A message has been left in part by a sender that has been dropped: whoever receives sends the rest.
    abandoned: Notify,
}

impl Link {
    /// Takes a link into the runtime of the calling task. Its O_NONBLOCK stays as it is.
    ///
    /// # Errors
    /// [`Error::Io`]: no memory, or no epoll watches left for this user (epoll(7)), or the link [sends over another
    /// socket](crate::Link::send_over), which is not for tasks; the link is dropped.
    ///
    /// # Panics
    /// Outside a runtime, or in one without I/O.
    pub fn new(link: crate::Link) -> Result<Link, Error> {
        if link.sends_over().is_some() {
            let unsupported = std::io::Error::from(std::io::ErrorKind::Unsupported);
            return Err(Error::io("watching a link of two sockets", unsupported));
        }
        Ok(Link {
            io: reactor::register(link, Interest::READABLE | Interest::WRITABLE)?,
            abandoned: Notify::new(),
        })
    }

    /// Connects as [`Link::connect`](crate::Link::connect) does. A place in a full backlog is asked for again and again, up to
    /// 20 ms apart: the kernel has no way to wait for one but to block.
    ///
    /// # Errors
    /// As [`Link::connect`](crate::Link::connect), and as [`new`](Link::new).
    pub async fn connect(address: &Address) -> Result<Link, Error> {
        connect_within(address, Access::SameUser, CONNECT_TIMEOUT).await
    }

    /// [`connect`](Link::connect) with another limit for the time in the backlog's queue.
    ///
    /// # Errors
    /// As [`connect`](Link::connect).
    pub async fn connect_timeout(address: &Address, timeout: Duration) -> Result<Link, Error> {
        connect_within(address, Access::SameUser, timeout).await
    }

    /// [`connect`](Link::connect) with a choice whose server is believed.
    ///
    /// # Errors
    /// As [`connect`](Link::connect).
    pub async fn connect_with(address: &Address, access: Access) -> Result<Link, Error> {
        connect_within(address, access, CONNECT_TIMEOUT).await
    }

    /// The link itself, out of the runtime.
    #[must_use]
    pub fn into_inner(self) -> crate::Link {
        self.io.into_inner()
    }

    /// The link itself. What its `try_send` leaves in part is not sent by a `recv` that waits here already.
    #[must_use]
    pub fn get_ref(&self) -> &crate::Link {
        self.io.get_ref()
    }

    /// Sends `value` as [`Link::send`](crate::Link::send) does.
    ///
    /// # Cancellation
    /// A message of at most 253 descriptors on a SOCK_SEQPACKET link has not been sent when the future is dropped while it is
    /// pending. Any other may have begun to leave. It is then sent whole by the next calls on the link, a [`recv`](Link::recv)
    /// that waits included; whoever sends it again sends it twice. To know, use [`send_timeout`](Link::send_timeout), or
    /// keep the future and poll it later (`tokio::pin!`).
    ///
    /// # Errors
    /// As [`Link::send`](crate::Link::send).
    pub async fn send<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), Error> {
        let message = self.get_ref().encode(value, None)?;
        self.send_message(message, None).await
    }

    /// [`send`](Link::send), waiting at most `timeout`.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when there was no room in time, and nothing was sent; else as [`send`](Link::send).
    pub async fn send_timeout<T: Serialize + ?Sized>(
        &self,
        value: &T,
        timeout: Duration,
    ) -> Result<(), Error> {
        let message = self.get_ref().encode(value, None)?;
        self.send_message(message, Instant::now().checked_add(timeout))
            .await
    }

    /// Sends `value` with a [`Receipt`] as [`Link::transfer`](crate::Link::transfer) does. Waits for room, not for the answer.
    ///
    /// # Cancellation
    /// As [`send`](Link::send); the receipt is lost with the future.
    ///
    /// # Errors
    /// As [`Link::transfer`](crate::Link::transfer), and as [`new`](Link::new).
    pub async fn transfer<T: Serialize + ?Sized>(&self, value: &T) -> Result<Receipt, Error> {
        self.transfer_within(value, None).await
    }

    /// [`transfer`](Link::transfer), waiting at most `timeout` for room.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when there was no room in time, and nothing was sent; else as [`transfer`](Link::transfer).
    pub async fn transfer_timeout<T: Serialize + ?Sized>(
        &self,
        value: &T,
        timeout: Duration,
    ) -> Result<Receipt, Error> {
        self.transfer_within(value, Instant::now().checked_add(timeout))
            .await
    }

    /// Sends the rest of a message that left in part.
    ///
    /// # Errors
    /// As [`Link::flush`](crate::Link::flush).
    pub async fn flush(&self) -> Result<(), Error> {
        consume_budget().await;
        self.advance(&mut None).await
    }

    /// Receives the next message as [`Link::recv`](crate::Link::recv) does, and sends meanwhile what is left of a message
    /// that has begun.
    ///
    /// # Cancellation
    /// Dropped while it is pending, it has taken no message: what has come of one stays with the link.
    ///
    /// # Errors
    /// As [`Link::recv`](crate::Link::recv).
    pub async fn recv<T: DeserializeOwned>(&self) -> Result<T, Error> {
        // A peer that never stops sending must not keep this task from letting others run.
        consume_budget().await;
        let link = self.get_ref();
        let mut pause = Pause::new();
        loop {
            // Before the look at what has been left: it is told of what is left later.
            let mut abandoned = pin!(self.abandoned.notified());
            let (interest, pause) = match link.advance(&mut None) {
                Err(Stop::Full) => (Interest::READABLE | Interest::WRITABLE, None),
                Err(Stop::Later) => (Interest::READABLE, Some(pause.next())),
                // What the peer had sent before is still there to be received.
                Ok(_) | Err(Stop::Failed(Error::Disconnected)) => (Interest::READABLE, None),
                Err(Stop::Failed(error) | Stop::Torn(error)) => return Err(error),
            };
            let mut ready = pin!(self.io.ready(interest));
            let mut pause = pin!(pause.map(sleep));
            let guard = poll_fn(|cx| {
                if let Poll::Ready(guard) = ready.as_mut().poll(cx) {
                    return Poll::Ready(guard.map(Some));
                }
                let over = pause.as_mut().as_pin_mut();
                if over.is_some_and(|pause| pause.poll(cx).is_ready())
                    || abandoned.as_mut().poll(cx).is_ready()
                {
                    return Poll::Ready(Ok(None));
                }
                Poll::Pending
            });
            let Some(mut guard) = guard.await.map_err(waiting)? else {
                continue;
            };
            // Epoll tells of changes (EPOLLET), so readiness is given up only when the socket has been found without it since.
            if guard.ready().is_readable() {
                match link.take()? {
                    Some(value) => return Ok(value),
                    None => guard.clear_ready_matching(Ready::READABLE),
                }
            }
            if guard.ready().is_writable() {
                if let Err(Stop::Full) = link.advance(&mut None) {
                    guard.clear_ready_matching(Ready::WRITABLE);
                }
            }
        }
    }

    /// Who is at the other end; see [`Link::peer`](crate::Link::peer).
    ///
    /// # Errors
    /// As [`Link::peer`](crate::Link::peer).
    pub fn peer(&self) -> io::Result<Peer> {
        self.get_ref().peer()
    }

    /// Who is at the other end, without a pidfd; see [`Link::credentials`](crate::Link::credentials).
    ///
    /// # Errors
    /// As [`Link::credentials`](crate::Link::credentials).
    pub fn credentials(&self) -> io::Result<Credentials> {
        self.get_ref().credentials()
    }

    async fn transfer_within<T: Serialize + ?Sized>(
        &self,
        value: &T,
        deadline: Option<Instant>,
    ) -> Result<Receipt, Error> {
        let (receipt, theirs) = crate::Receipt::pair()?;
        let receipt = Receipt::new(receipt)?;
        let message = self.get_ref().encode(value, Some(theirs))?;
        self.send_message(message, deadline).await?;
        Ok(receipt)
    }

    async fn send_message(
        &self,
        message: Outgoing,
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        consume_budget().await;
        within(deadline, self.advance(&mut Some(message))).await?;
        let _rest = Rest(self);
        match within(deadline, self.advance(&mut None)).await {
            // It has begun to leave: the next call goes on with it.
            Err(Error::TimedOut) => Ok(()),
            other => other,
        }
    }

    /// Sends the message that has begun, then begins `message`, which is gone when it has.
    async fn advance(&self, message: &mut Option<Outgoing>) -> Result<(), Error> {
        let link = self.get_ref();
        let mut pause = Pause::new();
        let mut result = link.advance(message);
        loop {
            match result {
                Ok(_) => return Ok(()),
                Err(Stop::Full) => {
                    let mut guard = self.io.writable().await.map_err(waiting)?;
                    result = link.advance(message);
                    // Only now: before the guard, it may have been another readiness that was found to be none.
                    if let Err(Stop::Full) = result {
                        guard.clear_ready();
                    }
                }
                // Nothing tells. That the peer has gone is found by trying, too.
                Err(Stop::Later) => {
                    sleep(pause.next()).await;
                    result = link.advance(message);
                }
                Err(Stop::Failed(error) | Stop::Torn(error)) => return Err(error),
            }
        }
    }
}

/// Tells those who receive when a message has been left in part.
struct Rest<'a>(&'a Link);

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        if !self.0.get_ref().is_between_messages() {
            self.0.abandoned.notify_waiters();
        }
    }
}

async fn within<F>(deadline: Option<Instant>, future: F) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    match deadline {
        None => future.await,
        Some(deadline) => timeout_at(deadline, future)
            .await
            .unwrap_or(Err(Error::TimedOut)),
    }
}

async fn connect_within(
    address: &Address,
    access: Access,
    timeout: Duration,
) -> Result<Link, Error> {
    let start = Instant::now();
    let mut pause = Pause::new();
    loop {
        let limit = match connect(address, &access, Patience::None) {
            Err(Error::WouldBlock) if start.elapsed() >= timeout => return Err(Error::TimedOut),
            Err(Error::WouldBlock) => timeout,
            // Not known: nobody may be there. A service that starts holds the lock for some microseconds.
            Err(Error::Locked { .. }) if start.elapsed() >= LOCK_TIMEOUT => {
                return Err(Error::NotRunning {
                    address: address.clone(),
                });
            }
            Err(Error::Locked { .. }) => LOCK_TIMEOUT,
            other => return Link::new(other?),
        };
        sleep(pause.next().min(limit.saturating_sub(start.elapsed()))).await;
    }
}

impl TryFrom<crate::Link> for Link {
    type Error = Error;

    /// [`Link::new`].
    fn try_from(link: crate::Link) -> Result<Link, Error> {
        Link::new(link)
    }
}

impl From<Link> for crate::Link {
    fn from(link: Link) -> crate::Link {
        link.into_inner()
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.get_ref().as_fd()
    }
}

//! The end of a link to a broker that asks for introductions.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use super::Declined;
use super::wire::{CLIENT, FromBroker, Message, Version};
use crate::error::Error;
use crate::link::Link;
use crate::wait::Patience;

/// Introductions that others asked for, kept while [`Client::introduce`] waits for its answer. More are dropped, which
/// hangs up on who asked.
pub const MAX_KEPT: usize = 64;

/// How long a request that finds no room waits before it looks for what has come.
const PAUSE: Duration = Duration::from_millis(20);

/// A process that a [`Broker`](super::Broker) introduces to others.
///
/// All it ever needs of the kernel is to send, receive and poll on the socket it has, so it works under a seccomp
/// filter without `socket`, `connect` and `open`. On the links it gets, too, everything does but
/// [`transfer`](Link::transfer), which makes a pair of sockets, and [`EventFd`](crate::EventFd), which is checked with
/// readlink(2). A body beyond a packet needs memfd_create(2), and a dropped link a thread that closes it
/// ([`dispose`](crate::dispose)).
///
/// Whoever may ask for it can send it links as fast as it receives them: drop those that are not wanted, or
/// descriptor numbers run out.
///
/// Whoever only answers calls [`recv`](Client::recv). Whoever wants a link calls [`introduce`](Client::introduce),
/// which waits for the answer, or [`request`](Client::request), whose answer arrives like everything else.
///
/// Readable (poll(2)) when something has come *on the socket*. `introduce` may have kept arrivals that came before its
/// answer, so take all there is with [`try_recv`](Client::try_recv) before polling.
#[derive(Debug)]
pub struct Client {
    link: Link,
    next: u64,
    /// Requests without an answer, and whom they ask for.
    asked: HashMap<u64, String>,
    kept: VecDeque<Arrival>,
}

/// A request that was made with [`Client::request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(u64);

/// What comes from a broker. A link in it is this process's own, closed when dropped. Who is at its other end is
/// hostile until proven otherwise, but cannot get at this end.
#[derive(Debug)]
#[non_exhaustive]
pub enum Arrival {
    /// What was asked for.
    Accepted {
        /// The request.
        request: RequestId,
        /// Whom it asked for.
        name: String,
        /// Goes there.
        link: Link,
    },
    /// What was asked for and will not come.
    Declined {
        /// The request.
        request: RequestId,
        /// Whom it asked for.
        name: String,
        /// Why not.
        reason: Declined,
    },
    /// Somebody asked for this process.
    Introduced {
        /// Who, by the broker's word.
        name: String,
        /// Goes there.
        link: Link,
    },
}

impl Client {
    /// Takes the link to a broker that this process trusts with its liveness: what comes over it is taken for what it
    /// says.
    #[must_use]
    pub fn new(link: Link) -> Client {
        Client {
            link: link.with_limits(CLIENT).adopting(),
            next: 0,
            asked: HashMap::new(),
            kept: VecDeque::new(),
        }
    }

    /// Asks for `name` and waits for the link, as long as it takes. What comes before it is kept for
    /// [`recv`](Client::recv): all answers, and [`MAX_KEPT`] introductions.
    ///
    /// # Errors
    /// [`Error::Declined`]. [`Error::BodyTooLarge`] for a name that is longer than any. [`Error::Disconnected`]: the
    /// broker is gone. [`Error::Ended`], [`Error::Io`], and every error that [ends the link](Error::ends_link), among
    /// them [`Error::DescriptorsTruncated`] when this process has no descriptor numbers left.
    pub fn introduce(&mut self, name: &str) -> Result<Link, Error> {
        self.introduce_within(name, Patience::Forever)
    }

    /// [`introduce`](Client::introduce), waiting at most `timeout`.
    ///
    /// # Errors
    /// [`Error::TimedOut`]: a link that comes later is dropped, which hangs up on the other. Else as
    /// [`introduce`](Client::introduce).
    pub fn introduce_timeout(&mut self, name: &str, timeout: Duration) -> Result<Link, Error> {
        self.introduce_within(name, Patience::timeout(timeout))
    }

    /// Asks for `name`, without waiting for the answer, but for room as long as it takes.
    ///
    /// # Errors
    /// As [`introduce`](Client::introduce), but for [`Error::Declined`].
    pub fn request(&mut self, name: &str) -> Result<RequestId, Error> {
        self.request_within(name, Patience::Forever)
    }

    /// [`request`](Client::request) without waiting.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] when there is no room: a broker reads no requests of who does not read its answers. Else
    /// as [`request`](Client::request).
    pub fn try_request(&mut self, name: &str) -> Result<RequestId, Error> {
        self.request_within(name, Patience::None)
    }

    /// [`request`](Client::request), waiting at most `timeout`.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when there was no room in time, and nothing was sent; else as [`request`](Client::request).
    pub fn request_timeout(&mut self, name: &str, timeout: Duration) -> Result<RequestId, Error> {
        self.request_within(name, Patience::timeout(timeout))
    }

    /// Waits for the next answer or introduction, as long as it takes.
    ///
    /// # Errors
    /// [`Error::Disconnected`] when the broker is gone and everything it sent has been taken. [`Error::Ended`],
    /// [`Error::Io`] and every error that [ends the link](Error::ends_link), as with [`introduce`](Client::introduce).
    pub fn recv(&mut self) -> Result<Arrival, Error> {
        self.recv_within(Patience::Forever)
    }

    /// [`recv`](Client::recv) without waiting.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] when nothing has come; else as [`recv`](Client::recv).
    pub fn try_recv(&mut self) -> Result<Arrival, Error> {
        self.recv_within(Patience::None)
    }

    /// [`recv`](Client::recv), waiting at most `timeout`.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when nothing came in time; else as [`recv`](Client::recv).
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Arrival, Error> {
        self.recv_within(Patience::timeout(timeout))
    }

    fn recv_within(&mut self, patience: Patience) -> Result<Arrival, Error> {
        match self.kept.pop_front() {
            Some(arrival) => Ok(arrival),
            None => self.arrival(patience),
        }
    }

    fn introduce_within(&mut self, name: &str, patience: Patience) -> Result<Link, Error> {
        let own = self.request_within(name, patience)?;
        loop {
            match self.arrival(patience) {
                Ok(Arrival::Accepted { request, link, .. }) if request == own => return Ok(link),
                Ok(Arrival::Declined {
                    request,
                    name,
                    reason,
                }) if request == own => return Err(Error::Declined { name, reason }),
                Ok(other) => self.keep(other),
                Err(error) => {
                    self.asked.remove(&own.0);
                    return Err(error);
                }
            }
        }
    }

    fn request_within(&mut self, name: &str, patience: Patience) -> Result<RequestId, Error> {
        let request = self.next;
        let to = name.to_owned();
        let message = (Version, Message::Introduce { request, to });
        let mut sent = self.link.try_send(&message);
        loop {
            match sent {
                Err(Error::WouldBlock | Error::TimedOut) => {}
                other => {
                    other?;
                    self.next += 1;
                    self.asked.insert(request, name.to_owned());
                    return Ok(RequestId(request));
                }
            }
            let left = patience.left(PAUSE)?;
            // A broker reads no requests while its answers are not read: read them.
            match self.arrival(Patience::None) {
                Ok(arrival) => self.keep(arrival),
                Err(Error::WouldBlock) => {}
                Err(error) => return Err(error),
            }
            sent = self.link.send_timeout(&message, left);
        }
    }

    /// The next thing that comes over the link and concerns anybody.
    fn arrival(&mut self, patience: Patience) -> Result<Arrival, Error> {
        loop {
            match self.link.recv_within(patience)? {
                FromBroker::Introduced { from: name, link } => {
                    return Ok(Arrival::Introduced { name, link });
                }
                FromBroker::Accepted { request, link } => {
                    // Else it timed out, or was answered before.
                    if let Some(name) = self.asked.remove(&request) {
                        let request = RequestId(request);
                        return Ok(Arrival::Accepted {
                            request,
                            name,
                            link,
                        });
                    }
                }
                FromBroker::Declined { request, reason } => {
                    if let Some(name) = self.asked.remove(&request) {
                        let request = RequestId(request);
                        return Ok(Arrival::Declined {
                            request,
                            name,
                            reason,
                        });
                    }
                }
            }
        }
    }

    fn keep(&mut self, arrival: Arrival) {
        let is_unasked = |arrival: &Arrival| matches!(arrival, Arrival::Introduced { .. });
        let kept = self.kept.iter().filter(|kept| is_unasked(kept)).count();
        if kept < MAX_KEPT || !is_unasked(&arrival) {
            self.kept.push_back(arrival);
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> RawFd {
        self.link.as_raw_fd()
    }
}

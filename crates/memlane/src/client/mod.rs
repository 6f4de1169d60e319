//! The side that asks: requests with replies.

mod alarm;
mod builder;
mod calls;
mod error;
mod finding;
mod future;
mod reply;
mod sending;
mod shared;

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use alarm::Alarm;
pub use builder::ClientBuilder;
pub use calls::{Call, CallId};
use calls::{Calls, Dropped};
pub use error::CallError;
use finding::Patience;
pub use reply::{Answer, Reply};
pub use shared::SharedClient;

use crate::{Error, Publisher, Reason, Subscriber, Trust, Untrusted, after, watched::Watch};

/// Asks a [`Server`](crate::Server): requests of bytes, each with a reply, or a stream of them.
///
/// A request may wait for its reply ([`call`](Client::call)), or many be under way at a time ([`send`](Client::send)), whose
/// replies come in any order. Each lane is a ring in shared memory, one each way: while both sides are awake, a request and its
/// reply take no system call, no lock and no allocation.
///
/// A server that dies fails all that is under way at once ([`CallError::Disconnected`]). One that drops a request says so
/// ([`CallError::Unanswered`]).
///
/// ```
/// # let link = memlane::Link::pair()?;
/// # let answering = std::thread::spawn(move || {
/// #     let mut server = memlane::Server::builder().unbound().unwrap();
/// #     server.attach(link.0).unwrap();
/// #     let request = server.recv().unwrap();
/// #     let sum: u8 = request.to_vec().iter().sum();
/// #     request.reply(&[sum]).unwrap();
/// # });
/// use memlane::Client;
///
/// // let mut client = Client::connect("sum")?;
/// # let mut client = Client::builder().over(link.1)?;
/// let reply = client.call(&[1, 2, 3])?;
/// assert_eq!(reply.to_vec(), [6]);
/// # answering.join().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Client<T: Trust = Untrusted> {
    /// Before the subscriber: it says farewell on the link of both.
    pub(crate) publisher: Publisher,
    subscriber: Subscriber<T>,
    calls: Calls,
    dropped: Arc<Dropped>,
    /// Requests that were given up, and whose server could not be told yet.
    untold: Vec<CallId>,
    max_backlog: usize,
    /// Why there is no server any more.
    ended: Option<Reason>,
    /// Watches both lanes, for a loop of the user's.
    watched: Option<Arc<OwnedFd>>,
    alarm: Alarm,
    /// A loop of the user's is to look once more, though the lanes have nothing for it.
    news: bool,
    stats: ClientStats,
}

/// What a client has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientStats {
    /// Requests sent.
    pub requests: u64,
    /// Replies and items received that were awaited.
    pub replies: u64,
    /// Of these, those that came while others were waited for.
    pub stored: u64,
    /// Requests given up: cancelled, dropped, or over time.
    pub given_up: u64,
    /// Replies to nothing that was asked. An honest server sends none.
    pub strays: u64,
}

impl Client {
    /// Connects to a server of this user's, with the options of [`ClientBuilder`].
    ///
    /// # Errors
    ///
    /// [`Error::NoServer`]: nobody answers there, or something else, or for other payloads; [`Error`].
    pub fn connect(service: &str) -> Result<Client, Error> {
        Client::builder().connect(service)
    }

    /// Options, all with defaults.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }
}

impl<T: Trust> Client<T> {
    fn new(
        publisher: Publisher,
        subscriber: Subscriber<T>,
        limit: usize,
        max_backlog: usize,
    ) -> Client<T> {
        Client {
            publisher,
            subscriber,
            calls: Calls::new(limit),
            dropped: Arc::default(),
            untold: Vec::new(),
            max_backlog,
            ended: None,
            watched: None,
            alarm: Alarm::default(),
            news: false,
            stats: ClientStats::default(),
        }
    }

    /// Sends a request, and waits for its reply. Replies to others that come meanwhile are kept.
    ///
    /// # Errors
    ///
    /// [`CallError`]. The request is cancelled, if it has been sent.
    #[inline]
    pub fn call(&mut self, request: &[u8]) -> Result<Reply<'_, T>, CallError> {
        let id = match self.put_at_once(request) {
            Some(id) => id,
            None => self.put(request, None, Patience::Until(None))?,
        };
        self.only(id)
    }

    /// Sends a request, and waits for its reply no longer than `timeout`, room for the request included. The server is told: it
    /// does not begin with a request whose time is over.
    ///
    /// # Errors
    ///
    /// [`CallError`]; [`DeadlineExceeded`](CallError::DeadlineExceeded). The request is cancelled, if it has been sent.
    pub fn call_timeout(
        &mut self,
        request: &[u8],
        timeout: Duration,
    ) -> Result<Reply<'_, T>, CallError> {
        let deadline = after(timeout);
        let id = self
            .put(request, deadline, Patience::Until(deadline))
            .map_err(late)?;
        self.only(id)
    }

    /// Sends a request, and goes on: its reply is had by [`wait`](Client::wait), [`next`](Client::next) or
    /// [`recv`](Client::recv). Waits for room in the lane; replies that come meanwhile are kept.
    ///
    /// # Errors
    ///
    /// [`CallError`]; the request was not sent.
    ///
    /// ```
    /// # let link = memlane::Link::pair()?;
    /// # let answering = std::thread::spawn(move || {
    /// #     let mut server = memlane::Server::builder().unbound().unwrap();
    /// #     server.attach(link.0).unwrap();
    /// #     for _ in 0..2 {
    /// #         let request = server.recv().unwrap();
    /// #         let bytes = request.to_vec();
    /// #         request.reply(&bytes).unwrap();
    /// #     }
    /// # });
    /// # let mut client = memlane::Client::builder().over(link.1)?;
    /// let first = client.send(b"one")?;
    /// let second = client.send(b"two")?;
    /// assert_eq!(client.wait(second)?.to_vec(), b"two");
    /// assert_eq!(client.wait(first)?.to_vec(), b"one");
    /// # answering.join().unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send(&mut self, request: &[u8]) -> Result<Call, CallError> {
        let id = match self.put_at_once(request) {
            Some(id) => id,
            None => self.put(request, None, Patience::Until(None))?,
        };
        Ok(Call::new(id, &self.dropped))
    }

    /// Sends a request whose last reply must come within `timeout`; room for it is waited for as long at most.
    ///
    /// # Errors
    ///
    /// [`CallError`]; the request was not sent.
    pub fn send_timeout(&mut self, request: &[u8], timeout: Duration) -> Result<Call, CallError> {
        let deadline = after(timeout);
        let id = self
            .put(request, deadline, Patience::Until(deadline))
            .map_err(late)?;
        Ok(Call::new(id, &self.dropped))
    }

    /// Sends a request, if there is room.
    ///
    /// # Errors
    ///
    /// [`CallError::Full`], and others; the request was not sent.
    pub fn try_send(&mut self, request: &[u8]) -> Result<Call, CallError> {
        let id = self.put(request, None, Patience::Now)?;
        Ok(Call::new(id, &self.dropped))
    }

    /// Waits for the reply to a request.
    ///
    /// # Errors
    ///
    /// [`CallError`]. The request is cancelled, if it is still under way.
    pub fn wait(&mut self, mut call: Call) -> Result<Reply<'_, T>, CallError> {
        call.over = true;
        self.only(call.id())
    }

    /// Waits for the next item of a stream; none once it has ended. A single reply is a stream of one.
    ///
    /// # Errors
    ///
    /// [`CallError`]. After [`Backlog`](CallError::Backlog) and [`Wait`](CallError::Wait) it goes on, after others it is over.
    ///
    /// ```
    /// # let link = memlane::Link::pair()?;
    /// # let answering = std::thread::spawn(move || {
    /// #     let mut server = memlane::Server::builder().unbound().unwrap();
    /// #     server.attach(link.0).unwrap();
    /// let mut request = server.recv().unwrap();
    /// for line in ["one", "two"] {
    ///     request.send(line.as_bytes()).unwrap();
    /// }
    /// request.finish().unwrap();
    /// # });
    /// # let mut client = memlane::Client::builder().over(link.1)?;
    ///
    /// let mut lines = client.send(b"lines")?;
    /// while let Some(line) = client.next(&mut lines)? {
    ///     println!("{} bytes", line.len());
    /// }
    /// # answering.join().unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn next(&mut self, call: &mut Call) -> Result<Option<Reply<'_, T>>, CallError> {
        self.item(call, Patience::Until(None))
    }

    /// The next item of a stream, if it has come; none once the stream has ended.
    ///
    /// # Errors
    ///
    /// [`CallError::Empty`], and as [`next`](Client::next).
    pub fn try_next(&mut self, call: &mut Call) -> Result<Option<Reply<'_, T>>, CallError> {
        self.item(call, Patience::Now)
    }

    /// Waits for the next item of a stream, no longer than `timeout`; none once it has ended.
    ///
    /// # Errors
    ///
    /// [`CallError::TimedOut`], after which it goes on, and as [`next`](Client::next).
    pub fn next_timeout(
        &mut self,
        call: &mut Call,
        timeout: Duration,
    ) -> Result<Option<Reply<'_, T>>, CallError> {
        self.item(call, Patience::Until(after(timeout)))
    }

    /// Waits for whatever comes next, of any request: of which, and what.
    ///
    /// # Errors
    ///
    /// [`CallError`] if it concerns all of them; [`Unknown`](CallError::Unknown) if none is under way.
    pub fn recv(&mut self) -> Result<(CallId, Answer<Reply<'_, T>>), CallError> {
        let (id, found) = self.find(None, Patience::Until(None))?;
        Ok((id, self.answer(id, found)))
    }

    /// Whatever has come, of any request.
    ///
    /// # Errors
    ///
    /// [`CallError::Empty`], and as [`recv`](Client::recv).
    pub fn try_recv(&mut self) -> Result<(CallId, Answer<Reply<'_, T>>), CallError> {
        let (id, found) = self.find(None, Patience::Now)?;
        Ok((id, self.answer(id, found)))
    }

    /// Waits for whatever comes next, no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// [`CallError::TimedOut`], and as [`recv`](Client::recv).
    pub fn recv_timeout(
        &mut self,
        timeout: Duration,
    ) -> Result<(CallId, Answer<Reply<'_, T>>), CallError> {
        let (id, found) = self.find(None, Patience::Until(after(timeout)))?;
        Ok((id, self.answer(id, found)))
    }

    /// Cancels a request: nothing more comes of it, and the server is told. Dropping a [`Call`] does the same, with the next
    /// call of the client's.
    pub fn cancel(&mut self, call: impl Into<CallId>) {
        self.settle();
        self.give_up(call.into());
    }

    /// How many requests have no last reply, or one that has not been taken; those that were given up count until the server
    /// has said its last of them.
    pub fn outstanding(&self) -> usize {
        self.calls.len()
    }

    /// How many there can be, as the server allows.
    pub fn max_outstanding(&self) -> usize {
        self.calls.limit
    }

    /// The longest request, in bytes.
    pub fn max_request(&self) -> usize {
        self.publisher
            .max_message()
            .saturating_sub(crate::envelope::REQUEST_HEADER)
    }

    /// What it has done so far.
    pub fn stats(&self) -> ClientStats {
        self.stats
    }

    /// Nobody waits for room any more.
    fn forget_room(&mut self) {
        self.publisher.abandon_room();
    }

    /// Hangs up. What is under way is cancelled. Dropping the client does the same.
    pub fn close(self) {}
}

/// There was no room for it in time.
fn late(error: CallError) -> CallError {
    match error {
        CallError::TimedOut => CallError::DeadlineExceeded,
        error => error,
    }
}

impl From<&Call> for CallId {
    fn from(call: &Call) -> CallId {
        call.id()
    }
}

impl From<Call> for CallId {
    fn from(call: Call) -> CallId {
        call.detach()
    }
}

impl<T: Trust> Watch for Client<T> {
    fn watch(&mut self) -> Result<(), Error> {
        self.publisher.watch()?;
        if let Err(error) = self.subscriber.watch() {
            self.publisher.unwatch();
            return Err(error);
        }
        let mut watched = || -> std::io::Result<OwnedFd> {
            let both = epoll::create(CreateFlags::CLOEXEC)?;
            for (token, lane) in [self.publisher.descriptor(), self.subscriber.descriptor()]
                .into_iter()
                .enumerate()
            {
                let token = EventData::new_u64(token as u64);
                epoll::add(&both, &**lane, token, EventFlags::IN)?;
            }
            self.alarm.prepare(&both)?;
            Ok(both)
        };
        match watched() {
            Ok(watched) => {
                self.watched = Some(Arc::new(watched));
                Ok(())
            }
            Err(error) => {
                self.publisher.unwatch();
                self.subscriber.unwatch();
                Err(Error::os("watch a client's lanes")(error))
            }
        }
    }

    fn unwatch(&mut self) {
        if let Some(both) = self.watched.take() {
            self.alarm.stop(&both);
            for lane in [self.publisher.descriptor(), self.subscriber.descriptor()] {
                let _ = epoll::delete(&*both, &**lane);
            }
            self.publisher.unwatch();
            self.subscriber.unwatch();
        }
    }

    fn descriptor(&self) -> &Arc<OwnedFd> {
        self.watched.as_ref().expect("it is watched")
    }
}

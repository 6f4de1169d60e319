//! The side that answers.

mod builder;
mod caller;
mod error;
mod future;
#[cfg(test)]
mod hostile;
mod request;
mod responder;

use std::{
    io,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use memlane_signaling::WaitPolicy;
use memlane_transport::{Link, Listener};
use rustix::event::epoll::EventFlags;

pub use builder::ServerBuilder;
use caller::Caller;
pub use error::ReplyError;
pub use request::{Answering, Request};
pub use responder::Responder;
use responder::{Post, Posted};

use crate::{
    Error, PublisherBuilder, Reason, RecvError, RecvTimeoutError, Subscriber, Trust, TryRecvError,
    Untrusted, after,
    envelope::{CANCEL, CANCELLED, EXPIRED, REQUEST, REQUEST_HEADER, UNANSWERED, now, words},
    protocol::{Greeting, PacketRef, Refusal},
    receiver::{
        gather::{Found, Gather, Key},
        joining::Joining,
    },
    subscriber::{Awaits, Next as Record, NoMessage, Why},
    watched::{Watch, polls},
};

/// Answers the requests of any number of [`Client`](crate::Client)s.
///
/// Each client has a lane to the server and one back, so that no page has two writers, and a client that is slow, broken, hostile
/// or dead is nobody else's concern. Requests of one client come in its order, those of several by turns; they may be
/// answered in any order, later ([`Request::defer`]), and by streams ([`Request::send`]). Clients are let in by
/// [`recv`](Server::recv) and its like.
///
/// A request that was cancelled, or whose time is over, before it is received is passed over. So is what is left of a client that
/// has died, once that is known: the server looks when it sleeps, and every 1024 requests.
///
/// ```
/// # let link = memlane::Link::pair()?;
/// # let asking = std::thread::spawn(move || {
/// #     let mut client = memlane::Client::builder().over(link.1).unwrap();
/// #     assert_eq!(client.call(&[1, 2, 3]).unwrap().to_vec(), [6]);
/// # });
/// use memlane::Server;
///
/// // let mut server = Server::bind("sum")?;
/// # let mut server = Server::builder().unbound()?;
/// # server.attach(link.0)?;
/// loop {
///     let request = server.recv()?;
///     let sum: u8 = request.to_vec().iter().sum();
///     if let Err(error) = request.reply(&[sum]) {
///         eprintln!("{error}"); // that client is gone, say: others are not
///     }
/// #   break;
/// }
/// # asking.join().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Server<T: Trust = Untrusted> {
    /// By the index of their lane. Before the lanes: each says farewell on the link of both.
    callers: Vec<Option<Box<Caller>>>,
    gather: Gather<T>,
    joining: Joining<T>,
    replies: PublisherBuilder,
    max_requests: usize,
    reply_timeout: Duration,
    posted: Arc<Posted>,
    stats: ServerStats,
}

/// What a server has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStats {
    /// Requests received.
    pub requests: u64,
    /// Requests passed over because their time was over.
    pub expired: u64,
    /// Requests passed over because they had been cancelled.
    pub cancelled: u64,
    /// Requests passed over because their client had died.
    pub orphaned: u64,
    /// Times it went to sleep for want of a request.
    pub sleeps: u64,
    /// Times a client rang it awake.
    pub wakeups: u64,
    /// Clients that have left or died.
    pub left: u64,
    /// Clients that were dropped because what they wrote made no sense, or because they left no room for replies.
    pub evicted: u64,
    /// Those that have not become clients.
    pub refused: u64,
}

/// A request that was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Next {
    key: Key,
    record: Record,
    number: u64,
    deadline: u64,
}

/// How long a call waits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    Forever,
    Now,
    Until(Instant),
}

impl Patience {
    pub(crate) fn until(deadline: Option<Instant>) -> Patience {
        deadline.map_or(Patience::Forever, Patience::Until)
    }
}

/// So much that is no request for the user is seen to by a call whose time is over.
pub(crate) const PASSED: u32 = 1024;

/// Token of what is posted: no link's, and not the gathering's own.
const POSTED: u64 = u64::MAX - 1;

impl Server {
    /// Binds a service of this user's, with the options of [`ServerBuilder`].
    ///
    /// # Errors
    ///
    /// [`Error`]: the name is taken or none, or resources are short.
    pub fn bind(service: &str) -> Result<Server, Error> {
        Server::builder().bind(service)
    }

    /// Options, all with defaults.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }
}

impl<T: Trust> Server<T> {
    fn new(builder: ServerBuilder<T>, listener: Option<Listener>) -> Result<Server<T>, Error> {
        let ServerBuilder {
            requests,
            replies,
            max_requests,
            reply_timeout,
        } = builder;
        let gather = Gather::new(requests.wait).map_err(Error::os("create epoll"))?;
        let posted = Posted::new().map_err(Error::os("create an eventfd"))?;
        gather
            .watch_other(&posted.bell, POSTED, EventFlags::IN)
            .map_err(Error::os("watch an eventfd"))?;
        let mut joining = Joining::new(requests, Awaits::Client(max_requests as u32), listener);
        joining
            .listen(&gather)
            .map_err(Error::os("watch the listener"))?;
        Ok(Server {
            callers: Vec::new(),
            gather,
            joining,
            replies,
            max_requests,
            reply_timeout,
            posted: Arc::new(posted),
            stats: ServerStats::default(),
        })
    }

    /// Takes a link that was made elsewhere (inherited, or [`Link::pair`]); the process at its other end makes it a client
    /// ([`ClientBuilder::over`](crate::ClientBuilder::over)). The link is the server's from now on.
    ///
    /// # Errors
    ///
    /// [`Error`], if resources are short; it is closed then.
    pub fn attach(&mut self, link: Link) -> Result<(), Error> {
        self.joining.begin(&mut self.gather, link, None)
    }

    /// [`attach`](Server::attach), for a link whose other end a known process has: its client is gone when that process has
    /// ended, too, whoever else holds the link then. The pidfd is duplicated.
    ///
    /// # Errors
    ///
    /// As [`attach`](Server::attach); [`Error::Os`] if it is no pidfd.
    pub fn attach_process(
        &mut self,
        link: Link,
        process: impl std::os::fd::AsFd,
    ) -> Result<(), Error> {
        let process = crate::pidfd_of(process)?;
        self.joining.begin(&mut self.gather, link, Some(process))
    }

    /// Receives the next request, of whichever client; waits for it, and for clients.
    ///
    /// # Errors
    ///
    /// [`RecvError::Wait`]. Clients that leave, die or break the rules are no errors: see [`stats`](Server::stats).
    #[inline]
    pub fn recv(&mut self) -> Result<Request<'_, T>, RecvError> {
        match self.request_in_ring() {
            Some((key, len, number)) => {
                let caller = self.callers[key.index()].as_deref_mut();
                let caller = caller.expect("looked at a moment ago");
                let message = self.gather.in_ring(key, len);
                let answering = Answering::new(caller, &self.posted, number, 0, self.reply_timeout);
                Ok(Request::new(message, answering))
            }
            None => self.recv_any(),
        }
    }

    #[inline(never)]
    fn recv_any(&mut self) -> Result<Request<'_, T>, RecvError> {
        let next = self.next_forever();
        next.and_then(|next| self.deliver(next))
            .map_err(NoMessage::forever)
    }

    /// Receives the next request, if there is one. Lets clients in, too.
    ///
    /// # Errors
    ///
    /// [`TryRecvError::Empty`].
    pub fn try_recv(&mut self) -> Result<Request<'_, T>, TryRecvError> {
        let next = self.next_now();
        next.and_then(|next| self.deliver(next))
            .map_err(NoMessage::at_once)
    }

    /// Receives the next request; waits for it no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError::TimedOut`] and [`RecvTimeoutError::Wait`].
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Request<'_, T>, RecvTimeoutError> {
        let deadline = after(timeout);
        let next = self.next_until(deadline);
        next.and_then(|next| self.deliver(next))
            .map_err(NoMessage::in_time)
    }

    /// How many clients there are, as far as calls of [`recv`](Server::recv) have seen.
    pub fn clients(&self) -> usize {
        self.gather.len()
    }

    /// How many requests have been received and have no last reply yet.
    pub fn outstanding(&self) -> usize {
        let callers = self.callers.iter().flatten();
        callers.map(|caller| caller.outstanding).sum()
    }

    /// What it has done so far.
    pub fn stats(&self) -> ServerStats {
        ServerStats {
            sleeps: self.gather.stats.sleeps,
            wakeups: self.gather.stats.wakeups,
            refused: self.stats.refused + self.joining.refused,
            ..self.stats
        }
    }

    /// Closes the service, and tells all clients that this was in order: what is under way fails with
    /// [`Disconnected`](crate::CallError::Disconnected) and [`Reason::Closed`](crate::Reason::Closed), once they have received the
    /// replies that were sent. Dropping the server does the same.
    pub fn close(self) {}

    fn caller(&mut self, key: Key) -> Option<&mut Caller> {
        let caller = self.callers.get_mut(key.index())?.as_deref_mut()?;
        (caller.shared.key == key).then_some(caller)
    }

    /// The next request, by `look`, which is asked again after each thing that was none.
    #[inline]
    fn next(
        &mut self,
        patience: Patience,
        look: impl Fn(&mut Gather<T>) -> io::Result<Option<Found>>,
    ) -> Result<Next, NoMessage> {
        let mut passed = 0;
        loop {
            if let Some(posts) = self.posted.take() {
                self.send_posts(posts);
            }
            match look(&mut self.gather).map_err(Why::Wait)? {
                None => return Err(NoMessage::TimedOut),
                Some(Found::Record(key, record)) => {
                    if let Some(next) = self.examine(key, record) {
                        self.stats.requests += 1;
                        return Ok(next);
                    }
                }
                Some(Found::Ended(key, error)) => self.bury(key, &error),
                // What is posted is sent above.
                Some(Found::Other(POSTED)) => {}
                Some(Found::Other(token)) => self.handle(token),
            }
            passed += 1;
            self.bear(passed, patience)?;
        }
    }

    /// So much has been seen to by this call that was no request for the user: whatever clients flood their lanes with, it ends as
    /// it was told to.
    #[cold]
    pub(crate) fn bear(&mut self, passed: u32, patience: Patience) -> Result<(), NoMessage> {
        let over = match patience {
            _ if passed < PASSED => false,
            Patience::Forever => false,
            Patience::Now => true,
            Patience::Until(deadline) => Instant::now() >= deadline,
        };
        if !over {
            return Ok(());
        }
        self.gather.look_again();
        Err(NoMessage::TimedOut)
    }

    #[inline]
    pub(crate) fn next_forever(&mut self) -> Result<Next, NoMessage> {
        self.next(Patience::Forever, |gather| gather.wait(None))
    }

    pub(crate) fn next_now(&mut self) -> Result<Next, NoMessage> {
        self.next(Patience::Now, Gather::find)
    }

    pub(crate) fn next_until(&mut self, deadline: Option<Instant>) -> Result<Next, NoMessage> {
        let patience = Patience::until(deadline);
        self.next(patience, |gather| gather.wait(deadline))
    }

    /// Copies a request that was found and is still to be delivered, as much of it as `dst` holds; its length.
    pub(crate) fn peek(&mut self, next: Next, dst: &mut [u8]) -> Result<usize, NoMessage> {
        let lane = self.gather.lane(next.key).expect("found a moment ago");
        let len = lane.peek(next.record, REQUEST_HEADER, dst)?;
        Ok(len - REQUEST_HEADER)
    }

    #[inline]
    pub(crate) fn deliver(&mut self, next: Next) -> Result<Request<'_, T>, NoMessage> {
        let Next {
            key,
            record,
            number,
            deadline,
        } = next;
        let caller = self.callers[key.index()].as_deref_mut();
        let caller = caller.expect("examined a moment ago");
        let message = self.gather.deliver(key, record)?;
        let answering = Answering::new(caller, &self.posted, number, deadline, self.reply_timeout);
        Ok(Request::new(message, answering))
    }

    /// The next message, if that is a request without a deadline, to be answered: its client, its length, and its number. All that
    /// most requests need: whatever else there is or comes is left to [`next`](Server::next).
    #[inline(always)]
    fn request_in_ring(&mut self) -> Option<(Key, usize, u64)> {
        if self.posted.has_some() {
            return None;
        }
        let (key, len) = self.gather.next_payload()?;
        let lane = self.gather.lane(key)?;
        let [number, kind, deadline] = lane.header(len)?;
        let caller = self.callers[key.index()].as_deref_mut()?;
        let plain = kind == REQUEST && deadline == 0;
        let gone = lane.is_gone() || caller.shared.is_gone() || caller.shared.is_given_up(number);
        if !plain || gone || !caller.open(number) {
            return None;
        }
        self.stats.requests += 1;
        Some((key, len, number))
    }

    /// Whether a record is a request that is to be answered. What is not is seen to, and released.
    #[inline]
    fn examine(&mut self, key: Key, record: Record) -> Option<Next> {
        let mut header = [0; REQUEST_HEADER];
        let lane = self.gather.lane(key)?;
        let gone = lane.is_gone();
        let len = match lane.peek(record, 0, &mut header) {
            Ok(len) => len,
            Err(error) => {
                self.bury(key, &error);
                return None;
            }
        };
        let [number, kind, deadline] = words(&header);
        let caller = self.callers[key.index()].as_deref_mut()?;
        // Nothing of what it has left is of use to anybody.
        if gone || caller.shared.is_gone() {
            let over = caller.orphan();
            self.stats.orphaned += u64::from(kind == REQUEST);
            self.release(key);
            if over {
                self.bury(key, &Why::Disconnected(Reason::Died).into());
            }
            return None;
        }
        if len < REQUEST_HEADER || !matches!(kind, REQUEST | CANCEL) {
            caller.evict(format!(
                "expected a request of at least {REQUEST_HEADER} bytes, and of kind {REQUEST} or {CANCEL}, got one of {len} \
                 bytes and kind {kind}"
            ));
            self.release(key);
            return None;
        }
        if kind == CANCEL {
            caller.cancel(number);
            self.release(key);
            return None;
        }
        if !caller.open(number) {
            caller.evict_for(number);
            self.release(key);
            return None;
        }
        let deadline = caller.deadline(deadline);
        let expired = deadline != 0 && now() >= deadline;
        if expired || caller.shared.is_given_up(number) {
            self.pass_over(key, number, expired);
            return None;
        }
        Some(Next {
            key,
            record,
            number,
            deadline,
        })
    }

    fn release(&mut self, key: Key) {
        if let Some(lane) = self.gather.lane(key) {
            lane.skip();
        }
    }

    /// Nobody waits for the answer.
    #[cold]
    fn pass_over(&mut self, key: Key, number: u64, expired: bool) {
        let kind = if expired { EXPIRED } else { CANCELLED };
        self.stats.expired += u64::from(expired);
        self.stats.cancelled += u64::from(!expired);
        self.release(key);
        let timeout = self.reply_timeout;
        if let Some(caller) = self.caller(key) {
            caller.leave(number, kind, timeout);
        }
    }

    /// What responders have left, on whatever thread.
    #[cold]
    fn send_posts(&mut self, posts: Vec<Post>) {
        let timeout = self.reply_timeout;
        for Post {
            key,
            number,
            kind,
            payload,
        } in posts
        {
            let Some(caller) = self.caller(key) else {
                continue;
            };
            if let Err(error) = caller.put(number, kind, &payload, Some(timeout)) {
                if !error.is_final() {
                    caller.leave(number, UNANSWERED, timeout);
                }
            }
        }
    }

    #[cold]
    fn handle(&mut self, token: u64) {
        let Some((subscriber, client)) = self.joining.handle(&mut self.gather, token) else {
            return;
        };
        let welcomed = client.is_some_and(|client| self.welcome(subscriber, client).is_ok());
        self.stats.refused += u64::from(!welcomed);
    }

    /// Makes a client of one whose lane of requests is there.
    fn welcome(&mut self, subscriber: Subscriber<T>, client: Greeting) -> Result<(), Error> {
        let link = subscriber.link().clone();
        let short = |error: &Error| {
            let why = error.to_string();
            let refusal = PacketRef::Refused(Refusal::Resources { why });
            let _ = link.try_send(&refusal);
        };
        let process = || subscriber.process().map(OwnedFd::try_clone).transpose();
        let made = || -> Result<_, Error> {
            let processes = [process(), process()]
                .map(|process| process.map_err(Error::os("duplicate a pidfd")));
            let [first, second] = processes;
            Ok((self.replies.clone().for_one()?, first?, second?))
        };
        let (mut publisher, first, second) = made().inspect_err(short)?;
        let memory = subscriber.memory().clone();
        // Before it can send: the first request finds all there is.
        let key = self.gather.add(subscriber);
        let key = key
            .map_err(Error::os("watch a client's lane"))
            .inspect_err(short)?;
        if let Err(refusal) = publisher.join(client, link.clone(), first) {
            drop(self.gather.remove(key));
            return Err(Error::Refused {
                why: refusal.to_string(),
            });
        }
        let caller = Caller::new(publisher, key, memory, link, second, self.max_requests);
        if self.callers.len() <= key.index() {
            self.callers.resize_with(key.index() + 1, || None);
        }
        self.callers[key.index()] = Some(Box::new(caller));
        Ok(())
    }

    #[cold]
    fn bury(&mut self, key: Key, error: &NoMessage) {
        let caller = self.callers.get_mut(key.index()).and_then(Option::take);
        let evicted = caller.as_ref().is_some_and(|caller| caller.evicted)
            || !matches!(error.cause(), Some(Why::Disconnected(_)));
        self.stats.evicted += u64::from(evicted);
        self.stats.left += u64::from(!evicted);
        if let Some(mut caller) = caller {
            if let Some(Why::Corrupt(_) | Why::Chunk(_)) = error.cause() {
                caller.evict(reason(error));
            }
            caller.bury();
        }
        drop(self.gather.remove(key));
        // Its descriptors may be what a waiting client lacked.
        self.joining.accept(&mut self.gather);
    }
}

fn reason(error: &NoMessage) -> String {
    match error.cause() {
        Some(Why::Corrupt(corrupt)) => corrupt.to_string(),
        Some(Why::Chunk(error)) => error.to_string(),
        _ => String::new(),
    }
}

impl<T: Trust> Watch for Server<T> {
    fn watch(&mut self) -> Result<(), Error> {
        if self.gather.policy() == WaitPolicy::Poll {
            return Err(polls());
        }
        self.gather
            .watch()
            .map_err(Error::os("watch a server's lanes"))
    }

    fn unwatch(&mut self) {
        self.gather.unwatch();
    }

    fn descriptor(&self) -> &Arc<OwnedFd> {
        self.gather.descriptor()
    }
}

//! A client that many tasks call at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    task::{Context, Poll, Wake, Waker, ready},
    time::{Duration, Instant},
};

use super::{Call, CallError, CallId, Client, ClientStats, Reply, finding::Patience, late};
use crate::{Async, ControlThread, Readiness, Trust, Untrusted, after};

/// A [`Client`] that many tasks call at once, each for itself ([`Async::shared`]). Clones are the same client.
///
/// Replies are copies: those of others stay in nobody's way. No task is needed to run it: of those that wait, one looks for all.
///
/// # Cancellation
///
/// A future that is dropped before its reply has come has cancelled the request; one that had not sent it sends nothing.
///
/// ```
/// # let link = memlane::Link::pair()?;
/// # let answering = std::thread::spawn(move || {
/// #     let mut server = memlane::Server::builder().unbound().unwrap();
/// #     server.attach(link.0).unwrap();
/// #     for _ in 0..2 {
/// #         let request = server.recv().unwrap();
/// #         let sum: u8 = request.to_vec().iter().sum();
/// #         request.reply(&[sum]).unwrap();
/// #     }
/// # });
/// # async_io::block_on(async {
/// // let client = memlane::Client::builder().begin("sum")?.finish().await?.shared();
/// # let client = memlane::Client::builder().begin_over(link.1)?.finish().await?.shared();
/// let other = client.clone(); // for another task
/// let both = futures_util::future::join(client.call(&[1, 2]), other.call(&[3, 4]));
/// let (three, seven) = both.await;
/// assert_eq!((three?.to_vec(), seven?.to_vec()), (vec![3], vec![7]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # answering.join().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SharedClient<T: Trust = Untrusted, R: Readiness = ControlThread> {
    shared: Arc<Shared<T, R>>,
}

struct Shared<T: Trust, R: Readiness> {
    /// Locked by whoever looks, and never while anybody waits.
    client: Mutex<Async<Client<T>, R>>,
    waiting: Arc<Waiting>,
}

/// The tasks that wait. It is the waker that the client's descriptor knows, and wakes one of them, who looks for all.
#[derive(Default)]
struct Waiting(Mutex<Waiters>);

#[derive(Default)]
struct Waiters {
    last: u64,
    /// The oldest first.
    by_turn: BTreeMap<u64, Waiter>,
    /// Those among them that wait for replies.
    by_call: HashMap<CallId, u64>,
    /// Those that wait for room.
    for_room: BTreeSet<u64>,
    /// Somebody will be woken when there is something.
    watched: bool,
    /// All have been woken, since the server is gone.
    ended: bool,
}

struct Waiter {
    waker: Waker,
    wants: Wants,
}

#[derive(Clone, Copy)]
enum Wants {
    /// What comes of this call.
    Reply(CallId),
    /// Room for a request, or leave to send one, before that.
    Room(Option<Instant>),
}

impl<T: Trust, R: Readiness> Async<Client<T>, R> {
    /// The client, for many tasks at once.
    pub fn shared(mut self) -> SharedClient<T, R> {
        self.end.calls.note_stored();
        let shared = Shared {
            client: Mutex::new(self),
            waiting: Arc::default(),
        };
        SharedClient {
            shared: Arc::new(shared),
        }
    }
}

impl<T: Trust, R: Readiness> Clone for SharedClient<T, R> {
    fn clone(&self) -> SharedClient<T, R> {
        let shared = self.shared.clone();
        SharedClient { shared }
    }
}

impl<T: Trust, R: Readiness> SharedClient<T, R> {
    /// Sends a request, and waits for its reply. If the server has as many requests as it takes, it waits for its turn.
    ///
    /// # Errors
    ///
    /// As [`Client::call`].
    pub async fn call(&self, request: &[u8]) -> Result<Reply<'static, T>, CallError> {
        let call = self.send(request).await?;
        self.wait(call).await
    }

    /// Sends a request, and waits for its reply no longer than `timeout`, room for the request included. The server is told: it
    /// does not begin with a request whose time is over.
    ///
    /// # Errors
    ///
    /// As [`Client::call_timeout`].
    pub async fn call_timeout(
        &self,
        request: &[u8],
        timeout: Duration,
    ) -> Result<Reply<'static, T>, CallError> {
        let call = self.send_timeout(request, timeout).await?;
        self.wait(call).await
    }

    /// Sends a request, and goes on: its reply is had by [`wait`](SharedClient::wait) or [`next`](SharedClient::next), in any
    /// task. Waits for room in the lane, and for its turn.
    ///
    /// # Errors
    ///
    /// As [`Client::send`], without [`TooMany`](CallError::TooMany).
    pub async fn send(&self, request: &[u8]) -> Result<Call, CallError> {
        self.put(request, None).await
    }

    /// Sends a request whose last reply must come within `timeout`; room for it is waited for as long at most.
    ///
    /// # Errors
    ///
    /// As [`Client::send_timeout`], without [`TooMany`](CallError::TooMany).
    pub async fn send_timeout(&self, request: &[u8], timeout: Duration) -> Result<Call, CallError> {
        self.put(request, after(timeout)).await
    }

    async fn put(&self, request: &[u8], deadline: Option<Instant>) -> Result<Call, CallError> {
        let mut turn = Turn::new(&self.shared);
        poll_fn(|cx| {
            self.shared.poll(
                cx,
                &mut turn,
                Wants::Room(deadline),
                |client| match client.put(request, deadline, Patience::Now) {
                    Err(CallError::Full | CallError::TooMany { .. }) => match deadline {
                        Some(deadline) if Instant::now() >= deadline => {
                            Poll::Ready(Err(late(CallError::TimedOut)))
                        }
                        _ => Poll::Pending,
                    },
                    sent => Poll::Ready(sent.map(|id| Call::new(id, &client.dropped))),
                },
            )
        })
        .await
    }

    /// Waits for the reply to a request.
    ///
    /// # Errors
    ///
    /// As [`Client::wait`].
    pub async fn wait(&self, mut call: Call) -> Result<Reply<'static, T>, CallError> {
        let id = call.id();
        let mut turn = Turn::new(&self.shared);
        let reply = poll_fn(|cx| {
            self.shared.poll(cx, &mut turn, Wants::Reply(id), |client| {
                match client.find(Some(id), Patience::Task) {
                    Err(CallError::Empty) => Poll::Pending,
                    found => Poll::Ready(client.only_of(id, found).map(Reply::into_copy)),
                }
            })
        })
        .await;
        call.over = true;
        reply
    }

    /// Waits for the next item of a stream; none once it has ended.
    ///
    /// Dropped while it is pending, it has received nothing, and the stream goes on.
    ///
    /// # Errors
    ///
    /// As [`Client::next`].
    pub async fn next(&self, call: &mut Call) -> Result<Option<Reply<'static, T>>, CallError> {
        if call.over {
            return Ok(None);
        }
        let id = call.id();
        let mut turn = Turn::new(&self.shared);
        poll_fn(|cx| {
            self.shared.poll(cx, &mut turn, Wants::Reply(id), |client| {
                match client.find(Some(id), Patience::Task) {
                    Err(CallError::Empty) => Poll::Pending,
                    found => {
                        let item = client.item_of(call, found);
                        Poll::Ready(item.map(|item| item.map(Reply::into_copy)))
                    }
                }
            })
        })
        .await
    }

    /// How many requests have no last reply, or one that has not been taken ([`Client::outstanding`]).
    pub fn outstanding(&self) -> usize {
        self.shared.client().end.outstanding()
    }

    /// How many there can be, as the server allows.
    pub fn max_outstanding(&self) -> usize {
        self.shared.client().end.max_outstanding()
    }

    /// The longest request, in bytes.
    pub fn max_request(&self) -> usize {
        self.shared.client().end.max_request()
    }

    /// What it has done so far.
    pub fn stats(&self) -> ClientStats {
        self.shared.client().end.stats()
    }
}

impl<T: Trust, R: Readiness> Shared<T, R> {
    fn client(&self) -> MutexGuard<'_, Async<Client<T>, R>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a task waits for, by `look`; and what there is to do for others, by the way.
    fn poll<V>(
        &self,
        cx: &mut Context<'_>,
        turn: &mut Turn<'_, T, R>,
        wants: Wants,
        mut look: impl FnMut(&mut Client<T>) -> Poll<Result<V, CallError>>,
    ) -> Poll<Result<V, CallError>> {
        let mut client = self.client();
        ready!(client.readiness.poll_proceed(cx));
        let mut readable = false;
        let found = loop {
            let found = look(&mut client.end);
            if found.is_ready() {
                break found;
            }
            // Before the last look at the descriptor: from then on whoever looks for all knows of this one.
            turn.enter(wants, cx.waker());
            let waker = Waker::from(self.waiting.clone());
            match client
                .readiness
                .poll_readable(&mut Context::from_waker(&waker))
            {
                Poll::Ready(Ok(())) => {
                    self.waiting.locked().watched = false;
                    readable = true;
                }
                Poll::Ready(Err(error)) => break Poll::Ready(Err(CallError::Wait(error))),
                Poll::Pending => break Poll::Pending,
            }
        };
        let done = found.is_ready();
        let (woken, left) = self.serve_others(&mut client.end, turn, readable, done);
        // Without a lock: a waker can do anything.
        drop(client);
        drop(left);
        woken.into_iter().for_each(Waker::wake);
        found
    }

    /// Whom to wake: those whose replies have come, whose time is over, and who may send now. And what is left of this one, if it
    /// is done.
    fn serve_others(
        &self,
        client: &mut Client<T>,
        turn: &mut Turn<'_, T, R>,
        readable: bool,
        done: bool,
    ) -> (Vec<Waker>, Option<Waiter>) {
        let stored = client.calls.take_noted();
        let mut waiters = self.waiting.locked();
        let own = turn.number;
        let left = match (done, turn.number) {
            (true, Some(_)) => turn.number.take().and_then(|own| waiters.remove(own)),
            _ => None,
        };
        if waiters.by_turn.is_empty() {
            return (Vec::new(), left);
        }
        let mut numbers: Vec<u64> = Vec::new();
        let waits = |id: &CallId| waiters.by_call.get(id).copied();
        numbers.extend(stored.iter().filter_map(waits));
        let mut limit: Option<Instant> = None;
        if readable && (client.calls.has_deadlines() || !waiters.for_room.is_empty()) {
            let now = Instant::now();
            numbers.extend(client.calls.overdue(now).filter_map(|id| waits(&id)));
            for (number, deadline) in waiters.limits() {
                match deadline > now {
                    true => limit = limit.into_iter().chain([deadline]).min(),
                    false => numbers.push(number),
                }
            }
        } else {
            limit = waiters.limits().map(|(_, deadline)| deadline).min();
        }
        if readable || done {
            // One at a time, in the order in which they came: one that has sent wakes the next.
            let mut others = waiters.for_room.iter();
            numbers.extend(others.find(|number| Some(**number) != own));
        }
        if client.ended.is_some() && !std::mem::replace(&mut waiters.ended, true) {
            numbers.extend(waiters.by_turn.keys());
        }
        numbers.retain(|number| Some(*number) != own);
        let wakers = numbers
            .iter()
            .filter_map(|number| waiters.by_turn.get(number));
        let mut woken: Vec<Waker> = wakers.map(|waiter| waiter.waker.clone()).collect();
        if done {
            // It may have been the one who was woken to look for all.
            woken.extend(waiters.next_to_look());
        } else if limit.is_some() {
            // If this fails, the time is looked at with the next thing that comes.
            let _ = client.set_alarm_before(limit);
        }
        (woken, left)
    }
}

impl Waiting {
    fn locked(&self) -> MutexGuard<'_, Waiters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiters {
    fn insert(&mut self, number: u64, waiter: Waiter) -> Option<Waiter> {
        match waiter.wants {
            Wants::Reply(id) => drop(self.by_call.insert(id, number)),
            Wants::Room(_) => drop(self.for_room.insert(number)),
        }
        self.by_turn.insert(number, waiter)
    }

    fn remove(&mut self, number: u64) -> Option<Waiter> {
        let waiter = self.by_turn.remove(&number)?;
        match waiter.wants {
            Wants::Reply(id) => drop(self.by_call.remove(&id)),
            Wants::Room(_) => drop(self.for_room.remove(&number)),
        }
        Some(waiter)
    }

    /// Until when those wait for room that do not wait for ever.
    fn limits(&self) -> impl Iterator<Item = (u64, Instant)> + '_ {
        self.for_room
            .iter()
            .filter_map(|number| match self.by_turn.get(number)?.wants {
                Wants::Room(deadline) => Some((*number, deadline?)),
                Wants::Reply(_) => None,
            })
    }

    /// Who looks for all from now on, if nobody does.
    fn next_to_look(&mut self) -> Option<Waker> {
        if self.watched {
            return None;
        }
        let (_, waiter) = self.by_turn.first_key_value()?;
        Some(waiter.waker.clone())
    }
}

impl Wake for Waiting {
    fn wake(self: Arc<Waiting>) {
        let woken = {
            let mut waiters = self.locked();
            waiters.watched = false;
            waiters.next_to_look()
        };
        // Without a lock: a waker can do anything.
        if let Some(waker) = woken {
            waker.wake();
        }
    }
}

/// A task's place among those that wait, once it has to.
struct Turn<'a, T: Trust, R: Readiness> {
    shared: &'a Shared<T, R>,
    number: Option<u64>,
}

impl<'a, T: Trust, R: Readiness> Turn<'a, T, R> {
    fn new(shared: &'a Arc<Shared<T, R>>) -> Turn<'a, T, R> {
        let number = None;
        Turn { shared, number }
    }

    /// It waits, and so does the descriptor's waker, which is about to be told.
    fn enter(&mut self, wants: Wants, waker: &Waker) {
        let waker = waker.clone();
        let mut waiters = self.shared.waiting.locked();
        waiters.watched = true;
        let number = *self.number.get_or_insert_with(|| {
            waiters.last += 1;
            waiters.last
        });
        let before = waiters.insert(number, Waiter { waker, wants });
        drop(waiters);
        drop(before);
    }
}

/// A future that is dropped while it waits leaves what it was to do to others.
impl<T: Trust, R: Readiness> Drop for Turn<'_, T, R> {
    fn drop(&mut self) {
        let Some(number) = self.number else {
            return;
        };
        let mut waiters = self.shared.waiting.locked();
        let left = waiters.remove(number);
        let mut woken: Vec<Waker> = waiters.next_to_look().into_iter().collect();
        let wanted_room = matches!(&left, Some(left) if matches!(left.wants, Wants::Room(_)));
        let mut forgets = false;
        if wanted_room {
            let next = waiters.for_room.first();
            let next = next.and_then(|number| waiters.by_turn.get(number));
            forgets = next.is_none();
            woken.extend(next.map(|waiter| waiter.waker.clone()));
        }
        drop(waiters);
        if forgets {
            // Somebody may be looking, even further up on this thread: then the server rings for room that nobody needs.
            match self.shared.client.try_lock() {
                Ok(mut client) => client.end.forget_room(),
                Err(TryLockError::Poisoned(client)) => client.into_inner().end.forget_room(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        drop(left);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl<T: Trust, R: Readiness> fmt::Debug for SharedClient<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedClient").finish_non_exhaustive()
    }
}

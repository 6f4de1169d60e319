//! Requests that are answered later.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::event::{EventfdFlags, eventfd};

use super::{ReplyError, Server, caller::Shared};
use crate::{
    Trust,
    envelope::{END, FAILED, ITEM, LAST, UNANSWERED},
    receiver::gather::Key,
};

/// Answers a request later, when it and others have long been received ([`Request::defer`](super::Request::defer)). It can go to
/// other threads.
///
/// The thread that has the server answers directly ([`reply`](Responder::reply)); others post their answer
/// ([`post`](Responder::post)), which the server sends when it next receives. Dropped without an answer, it tells the client
/// ([`CallError::Unanswered`](crate::CallError::Unanswered)), just as late.
#[derive(Debug)]
#[must_use = "a responder that is dropped leaves its request unanswered"]
pub struct Responder {
    shared: Arc<Shared>,
    posted: Arc<Posted>,
    number: u64,
    over: bool,
}

impl Responder {
    pub(super) fn new(
        shared: &Arc<Shared>,
        posted: &Arc<Posted>,
        number: u64,
        over: bool,
    ) -> Responder {
        Responder {
            shared: shared.clone(),
            posted: posted.clone(),
            number,
            over,
        }
    }

    /// Whether nobody waits for the answer any more: the request was cancelled, its time is over for the client, or the client
    /// is gone. A load, and a system call once in a tick of the coarse clock (1 to 10 ms).
    pub fn is_cancelled(&self) -> bool {
        self.shared.is_cancelled(self.number)
    }

    /// Sends the reply, the last one. A client that leaves no room for it is waited for as long as
    /// [`ServerBuilder::reply_timeout`](super::ServerBuilder::reply_timeout) says, and then dropped.
    ///
    /// # Errors
    ///
    /// [`ReplyError`]. The request is left unanswered, then.
    pub fn reply<T: Trust>(
        mut self,
        server: &mut Server<T>,
        reply: &[u8],
    ) -> Result<(), ReplyError> {
        self.put(server, LAST, reply, false)
    }

    /// Sends the reply, the last one, if there is room.
    ///
    /// # Errors
    ///
    /// [`ReplyError`]. The request is still to be answered, unless it has been or its client is gone.
    pub fn try_reply<T: Trust>(
        &mut self,
        server: &mut Server<T>,
        reply: &[u8],
    ) -> Result<(), ReplyError> {
        self.put(server, LAST, reply, true)
    }

    /// Sends an item of a stream, which [`finish`](Responder::finish) ends.
    ///
    /// # Errors
    ///
    /// [`ReplyError`].
    pub fn send<T: Trust>(
        &mut self,
        server: &mut Server<T>,
        item: &[u8],
    ) -> Result<(), ReplyError> {
        self.put(server, ITEM, item, false)
    }

    /// Sends an item of a stream, if there is room.
    ///
    /// # Errors
    ///
    /// [`ReplyError`].
    pub fn try_send<T: Trust>(
        &mut self,
        server: &mut Server<T>,
        item: &[u8],
    ) -> Result<(), ReplyError> {
        self.put(server, ITEM, item, true)
    }

    /// Ends a stream.
    ///
    /// # Errors
    ///
    /// [`ReplyError`].
    pub fn finish<T: Trust>(mut self, server: &mut Server<T>) -> Result<(), ReplyError> {
        self.put(server, END, &[], false)
    }

    /// Tells the client that there is no reply, and why.
    ///
    /// # Errors
    ///
    /// [`ReplyError`].
    pub fn fail<T: Trust>(mut self, server: &mut Server<T>, why: &str) -> Result<(), ReplyError> {
        self.put(server, FAILED, why.as_bytes(), false)
    }

    /// Has the server send this reply, the last one, when it next receives; it is woken for that. From any thread. One that
    /// cannot be sent then (too long) leaves the request unanswered.
    pub fn post(mut self, reply: impl Into<Vec<u8>>) {
        self.hand_in(LAST, reply.into());
    }

    /// Has the server tell the client that there is no reply, and why, when it next receives. From any thread.
    pub fn post_failure(mut self, why: impl Into<String>) {
        self.hand_in(FAILED, why.into().into_bytes());
    }

    fn put<T: Trust>(
        &mut self,
        server: &mut Server<T>,
        kind: u64,
        payload: &[u8],
        at_once: bool,
    ) -> Result<(), ReplyError> {
        let timeout = (!at_once).then_some(server.reply_timeout);
        let caller = server.caller(self.shared.key);
        // Of another server, it would be anybody's.
        let Some(caller) = caller.filter(|caller| Arc::ptr_eq(&caller.shared, &self.shared)) else {
            self.over |= self.shared.is_gone();
            return Err(ReplyError::Disconnected);
        };
        let put = caller.put(self.number, kind, payload, timeout);
        self.over |= match &put {
            Ok(()) => kind != ITEM,
            Err(error) => error.is_final(),
        };
        put
    }

    fn hand_in(&mut self, kind: u64, payload: Vec<u8>) {
        self.over = true;
        self.posted.push(Post {
            key: self.shared.key,
            number: self.number,
            kind,
            payload,
        });
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.over && !self.shared.is_gone() {
            self.hand_in(UNANSWERED, Vec::new());
        }
    }
}

/// Answers from other threads, and what was dropped, until the server takes them. There is one at most for each request.
#[derive(Debug)]
pub(super) struct Posted {
    any: AtomicBool,
    posts: Mutex<Vec<Post>>,
    /// Readable while there are some.
    pub(super) bell: OwnedFd,
}

#[derive(Debug)]
pub(super) struct Post {
    pub(super) key: Key,
    pub(super) number: u64,
    pub(super) kind: u64,
    pub(super) payload: Vec<u8>,
}

impl Posted {
    pub(super) fn new() -> io::Result<Posted> {
        Ok(Posted {
            any: AtomicBool::new(false),
            posts: Mutex::default(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Whether there are some.
    #[inline(always)]
    pub(super) fn has_some(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    #[cold]
    fn push(&self, post: Post) {
        let mut posts = self.posts.lock().unwrap_or_else(PoisonError::into_inner);
        posts.push(post);
        if !self.any.swap(true, Ordering::Release) {
            // It cannot be full: it is emptied with the posts.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    /// All there are. One load where there are none.
    #[inline(always)]
    pub(super) fn take(&self) -> Option<Vec<Post>> {
        self.any.load(Ordering::Acquire).then(|| self.take_all())
    }

    #[cold]
    fn take_all(&self) -> Vec<Post> {
        let mut posts = self.posts.lock().unwrap_or_else(PoisonError::into_inner);
        self.any.store(false, Ordering::Relaxed);
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        std::mem::take(&mut *posts)
    }
}

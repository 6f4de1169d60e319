use std::{
    fmt, io,
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

use memlane_transport::Peer;

use super::{ReplyError, Responder, caller::Caller, responder::Posted};
use crate::{
    Message, Trust, Trusted, Untrusted,
    envelope::{CANCELLED, END, FAILED, ITEM, LAST, REPLY_HEADER, REQUEST_HEADER, UNANSWERED, now},
};

/// A request, in place, in the client's memory. It is released when it is dropped, answered or deferred.
///
/// Its bytes are copied out, as those of a [`Message`] are. Of [`Trusted`] clients it is a `&[u8]` as well.
///
/// Dropped without an answer, it tells the client ([`CallError::Unanswered`](crate::CallError::Unanswered)).
#[must_use = "a request that is dropped is left unanswered"]
pub struct Request<'a, T: Trust = Untrusted> {
    message: Message<'a, T>,
    answering: Answering<'a>,
}

/// What answers a [`Request`], without its bytes.
pub struct Answering<'a> {
    caller: &'a mut Caller,
    posted: &'a Arc<Posted>,
    number: u64,
    deadline: u64,
    timeout: Duration,
    over: bool,
}

impl<'a, T: Trust> Request<'a, T> {
    #[inline(always)]
    pub(super) fn new(message: Message<'a, T>, answering: Answering<'a>) -> Request<'a, T> {
        Request { message, answering }
    }

    /// Its length in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.message.len() - REQUEST_HEADER
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies it into `dst`, or as much of it as `dst` holds; how many bytes that was.
    #[inline]
    pub fn copy_to(&self, dst: &mut [u8]) -> usize {
        let len = self.len().min(dst.len());
        self.read_at(0, &mut dst[..len]);
        len
    }

    /// Copies `dst.len()` bytes from `offset` on.
    ///
    /// # Panics
    ///
    /// If the request ends before that.
    #[inline]
    pub fn read_at(&self, offset: usize, dst: &mut [u8]) {
        let offset = offset.saturating_add(REQUEST_HEADER);
        self.message.read_at(offset, dst);
    }

    /// A copy of it.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut copy = Vec::new();
        self.copy_into(&mut copy);
        copy
    }

    /// Replaces the contents of `copy` by a copy of it, without allocating where they fit.
    #[inline]
    pub fn copy_into(&self, copy: &mut Vec<u8>) {
        copy.resize(self.len(), 0);
        self.read_at(0, copy);
    }

    /// Who asks, as the kernel says: of a link that was made elsewhere, who made it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn peer(&self) -> io::Result<Peer> {
        self.answering.peer()
    }

    /// When its client stops waiting, if it ever does.
    pub fn deadline(&self) -> Option<Instant> {
        self.answering.deadline()
    }

    /// Whether nobody waits for the answer any more: the request was cancelled, or the client is gone. A load, and a system
    /// call once in a tick of the coarse clock (1 to 10 ms).
    pub fn is_cancelled(&self) -> bool {
        self.answering.is_cancelled()
    }

    /// Releases its bytes, and keeps what answers it.
    pub fn release(self) -> Answering<'a> {
        let Request { message, answering } = self;
        drop(message);
        answering
    }

    /// Releases its bytes, and lets the server receive others before this one is answered.
    pub fn defer(self) -> Responder {
        self.release().defer()
    }

    /// Sends the reply, the last one. A client that leaves no room for it is waited for as long as
    /// [`ServerBuilder::reply_timeout`](super::ServerBuilder::reply_timeout) says, and then dropped. Of a request that its client has
    /// given up, it does nothing.
    ///
    /// # Errors
    ///
    /// [`ReplyError`]. The request is left unanswered, then.
    #[inline]
    pub fn reply(self, reply: &[u8]) -> Result<(), ReplyError> {
        let mut answering = self.answering;
        answering.put(LAST, reply, false)
    }

    /// Sends the reply, the last one, if there is room.
    ///
    /// # Errors
    ///
    /// [`ReplyError`]. The request is still to be answered, unless it has been or its client is gone.
    pub fn try_reply(&mut self, reply: &[u8]) -> Result<(), ReplyError> {
        self.answering.put(LAST, reply, true)
    }

    /// Sends an item of a stream, which [`finish`](Request::finish) ends.
    ///
    /// # Errors
    ///
    /// [`ReplyError`].
    pub fn send(&mut self, item: &[u8]) -> Result<(), ReplyError> {
        self.answering.put(ITEM, item, false)
    }

    /// Sends an item of a stream, if there is room.
    ///
    /// # Errors
    ///
    /// [`ReplyError`].
    pub fn try_send(&mut self, item: &[u8]) -> Result<(), ReplyError> {
        self.answering.put(ITEM, item, true)
    }

    /// Ends a stream.
    ///
    /// # Errors
    ///
    /// [`ReplyError`].
    pub fn finish(self) -> Result<(), ReplyError> {
        let mut answering = self.answering;
        answering.put(END, &[], false)
    }

    /// Tells the client that there is no reply, and why.
    ///
    /// # Errors
    ///
    /// [`ReplyError`].
    pub fn fail(self, why: &str) -> Result<(), ReplyError> {
        let mut answering = self.answering;
        answering.put(FAILED, why.as_bytes(), false)
    }
}

impl<'a> Answering<'a> {
    #[inline(always)]
    pub(super) fn new(
        caller: &'a mut Caller,
        posted: &'a Arc<Posted>,
        number: u64,
        deadline: u64,
        timeout: Duration,
    ) -> Answering<'a> {
        Answering {
            caller,
            posted,
            number,
            deadline,
            timeout,
            over: false,
        }
    }

    /// As [`Request::peer`].
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn peer(&self) -> io::Result<Peer> {
        self.caller.shared.link.peer()
    }

    /// As [`Request::deadline`].
    pub fn deadline(&self) -> Option<Instant> {
        let deadline = Some(self.deadline).filter(|deadline| *deadline != 0)?;
        let left = Duration::from_nanos(deadline.saturating_sub(now()));
        Instant::now().checked_add(left)
    }

    pub(crate) fn max_reply(&self) -> usize {
        let max = self.caller.publisher.max_message();
        max.saturating_sub(REPLY_HEADER)
    }

    /// As [`Request::is_cancelled`].
    pub fn is_cancelled(&self) -> bool {
        self.caller.shared.is_cancelled(self.number)
    }

    /// As [`Request::defer`].
    pub fn defer(mut self) -> Responder {
        let over = std::mem::replace(&mut self.over, true);
        Responder::new(&self.caller.shared, self.posted, self.number, over)
    }

    /// As [`Request::reply`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn reply(mut self, reply: &[u8]) -> Result<(), ReplyError> {
        self.put(LAST, reply, false)
    }

    /// As [`Request::try_reply`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_reply(&mut self, reply: &[u8]) -> Result<(), ReplyError> {
        self.put(LAST, reply, true)
    }

    /// As [`Request::try_send`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_send(&mut self, item: &[u8]) -> Result<(), ReplyError> {
        self.put(ITEM, item, true)
    }

    /// As [`Request::send`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send(&mut self, item: &[u8]) -> Result<(), ReplyError> {
        self.put(ITEM, item, false)
    }

    /// As [`Request::finish`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn finish(mut self) -> Result<(), ReplyError> {
        self.put(END, &[], false)
    }

    /// As [`Request::fail`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn fail(mut self, why: &str) -> Result<(), ReplyError> {
        self.put(FAILED, why.as_bytes(), false)
    }

    #[inline]
    pub(super) fn put(
        &mut self,
        kind: u64,
        payload: &[u8],
        at_once: bool,
    ) -> Result<(), ReplyError> {
        if self.caller.put_at_once(self.number, kind, payload) {
            self.over |= kind != ITEM;
            return Ok(());
        }
        let timeout = (!at_once).then_some(self.timeout);
        let put = self.caller.put(self.number, kind, payload, timeout);
        self.over |= match &put {
            Ok(()) => kind != ITEM,
            Err(error) => error.is_final(),
        };
        put
    }

    /// Nobody has answered it.
    #[cold]
    fn leave(&mut self) {
        let cancelled = self.caller.shared.is_given_up(self.number);
        let kind = if cancelled { CANCELLED } else { UNANSWERED };
        self.caller.leave(self.number, kind, self.timeout);
    }
}

impl Drop for Answering<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.over {
            self.leave();
        }
    }
}

impl Deref for Request<'_, Trusted> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.message[REQUEST_HEADER..]
    }
}

impl<T: Trust> fmt::Debug for Request<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Answering<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answering")
            .field("number", &self.number)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

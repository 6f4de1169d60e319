use std::{fmt, ops::Deref};

use super::{CallError, CallId};
use crate::{Message, Trust, Trusted, Untrusted, envelope::REPLY_HEADER};

/// A reply, or an item of one that is a stream. One that was waited for is in place, in the server's memory, and is released
/// when it is dropped; one that came before its turn is a copy.
///
/// Its bytes are copied out, as those of a [`Message`] are. Of a [`Trusted`] server it is a `&[u8]` as well.
#[must_use = "a reply is released when it is dropped"]
pub struct Reply<'a, T: Trust = Untrusted> {
    place: Place<'a, T>,
    call: CallId,
    last: bool,
}

enum Place<'a, T: Trust> {
    Message(Message<'a, T>),
    Copy(Vec<u8>),
}

/// What has come of a request ([`Client::recv`](super::Client::recv)).
#[derive(Debug)]
pub enum Answer<R> {
    /// An item of a stream; more will come, or the end.
    Item(R),
    /// The reply, or the last item of a stream.
    Last(R),
    /// The end of a stream.
    End,
    /// There will be no reply.
    Error(CallError),
}

impl<'a, T: Trust> Reply<'a, T> {
    #[inline(always)]
    pub(super) fn in_place(message: Message<'a, T>, call: CallId, last: bool) -> Reply<'a, T> {
        let place = Place::Message(message);
        Reply { place, call, last }
    }

    pub(super) fn copy(payload: Vec<u8>, call: CallId, last: bool) -> Reply<'a, T> {
        let place = Place::Copy(payload);
        Reply { place, call, last }
    }

    /// A copy of it, if it is none, and not in the server's memory any more.
    pub fn into_copy(self) -> Reply<'static, T> {
        let payload = match self.place {
            Place::Copy(payload) => payload,
            Place::Message(_) => self.to_vec(),
        };
        Reply::copy(payload, self.call, self.last)
    }

    /// What it is a reply to.
    pub fn call(&self) -> CallId {
        self.call
    }

    /// Whether nothing more will come of that request. Of a stream, the end may be told apart from its last item: then no
    /// item is the last.
    pub fn is_last(&self) -> bool {
        self.last
    }

    /// Its length in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        match &self.place {
            Place::Message(message) => message.len() - REPLY_HEADER,
            Place::Copy(bytes) => bytes.len(),
        }
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
    /// If the reply ends before that.
    #[inline]
    pub fn read_at(&self, offset: usize, dst: &mut [u8]) {
        match &self.place {
            Place::Message(message) => message.read_at(offset.saturating_add(REPLY_HEADER), dst),
            Place::Copy(bytes) => dst.copy_from_slice(&bytes[offset..][..dst.len()]),
        }
    }

    /// A copy of it.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut copy = Vec::new();
        self.copy_into(&mut copy);
        copy
    }

    /// Replaces the contents of `copy` by a copy of it, without allocating where they fit.
    pub fn copy_into(&self, copy: &mut Vec<u8>) {
        copy.resize(self.len(), 0);
        self.read_at(0, copy);
    }
}

impl Deref for Reply<'_, Trusted> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.place {
            Place::Message(message) => &message[REPLY_HEADER..],
            Place::Copy(bytes) => bytes,
        }
    }
}

impl<T: Trust> fmt::Debug for Reply<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("call", &self.call)
            .field("len", &self.len())
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

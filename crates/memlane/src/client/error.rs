use std::io;

use memlane_region::ring::Corrupt;

use crate::{
    ChunkError, Reason, TrySendError,
    envelope::REQUEST_HEADER,
    subscriber::{NoMessage, Why},
};

/// No reply, or no request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The server is gone: it has closed, died, or dropped this client.
    #[error("{}", reason.of("the server", "this client"))]
    Disconnected {
        /// Why.
        reason: Reason,
    },
    /// The server says that it has failed, in its words.
    #[error("the server says: {}", why.escape_debug())]
    Failed {
        /// Its words.
        why: String,
    },
    /// The server has dropped the request without an answer.
    #[error("the server has dropped the request without an answer")]
    Unanswered,
    /// The time given for the reply has passed. The server is told, and what it still answers is dropped.
    #[error("there was no reply until the deadline")]
    DeadlineExceeded,
    /// The request was cancelled.
    #[error("the request was cancelled")]
    Cancelled,
    /// One reply was expected, and the server answers with a stream, which has been cancelled: send the request, and take the
    /// [next](super::Client::next) items.
    #[error("expected one reply, got a stream: send the request, and receive its items")]
    Stream,
    /// No such request is open: its last reply has been taken, it was given up, or it is another client's.
    #[error("no such request is open")]
    Unknown,
    /// Nothing has come yet.
    #[error("no reply waits")]
    Empty,
    /// Nothing has come in time. The request goes on.
    #[error("no reply came in time")]
    TimedOut,
    /// There is no room for the request in its lane: the server has not received enough.
    #[error("there is no room for the request: the server has not received enough")]
    Full,
    /// As many requests are without their last reply as the server allows.
    #[error(
        "{requests} requests have no last reply yet, and the server takes no more: receive some first"
    )]
    TooMany {
        /// How many the server allows.
        requests: usize,
    },
    /// Replies to other requests than the one that is waited for fill all the memory that this client sets apart for them
    /// ([`ClientBuilder::max_backlog`](super::ClientBuilder::max_backlog)): receive some of those first.
    #[error("replies to other requests fill {bytes} bytes: receive some of those first")]
    Backlog {
        /// Their size, in bytes.
        bytes: usize,
    },
    /// Longer than any request of this client.
    #[error(
        "a request of {len} bytes is too large: expected at most {max} (ClientBuilder::requests, PublisherBuilder::max_message)"
    )]
    TooLarge {
        /// Its length, in bytes.
        len: usize,
        /// The longest request, in bytes.
        max: usize,
    },
    /// The pool has to grow for the request, and the kernel refuses: short of memory or descriptors.
    #[error(transparent)]
    Memory(memlane_region::Error),
    /// The server wrote something that no server writes.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// The reply lies in memory of the server's that cannot be had.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// Waiting failed in the kernel (short of memory).
    #[error("cannot wait for the server: {0}")]
    Wait(io::Error),
}

impl CallError {
    /// A request could not be written.
    pub(super) fn unsent(error: TrySendError) -> CallError {
        let without = |len: usize| len.saturating_sub(REQUEST_HEADER);
        match error {
            TrySendError::Disconnected => CallError::Disconnected {
                reason: Reason::Died,
            },
            // Nobody loans from this pool.
            TrySendError::Full | TrySendError::Loaned { .. } => CallError::Full,
            TrySendError::TooLarge { len, max } => CallError::TooLarge {
                len: without(len),
                max: without(max),
            },
            TrySendError::Memory(error) => CallError::Memory(error),
            TrySendError::TooManyAttachments { .. } | TrySendError::Attachment(_) => {
                unreachable!("requests have none")
            }
        }
    }

    pub(super) fn unheard(error: NoMessage) -> CallError {
        let Some(why) = error.why() else {
            return CallError::TimedOut;
        };
        match why {
            Why::Disconnected(reason) => CallError::Disconnected { reason },
            Why::Corrupt(corrupt) => CallError::Corrupt(corrupt),
            Why::Chunk(error) => CallError::Chunk(error),
            // Of lanes that are overwritten, which this is none of.
            Why::Anchor(error) => CallError::Chunk(ChunkError {
                why: error.to_string(),
            }),
            Why::Silent(_) => CallError::TimedOut,
            Why::Wait(error) => CallError::Wait(error),
        }
    }
}

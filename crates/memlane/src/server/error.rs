use std::io;

use crate::{TrySendError, envelope::REPLY_HEADER};

/// The reply was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplyError {
    /// The client is gone: it has closed, died, broken the rules, or left no room for replies for too long.
    #[error("the client is gone")]
    Disconnected,
    /// There is no room for it: the client has not received enough. Only from the `try_` forms.
    #[error("there is no room for the reply: the client has not received enough")]
    Full,
    /// The request has had its last reply.
    #[error("the request has had its last reply")]
    Answered,
    /// Longer than any reply of this server.
    #[error(
        "a reply of {len} bytes is too large: expected at most {max} (ServerBuilder::replies, PublisherBuilder::max_message)"
    )]
    TooLarge {
        /// Its length, in bytes.
        len: usize,
        /// The longest reply, in bytes.
        max: usize,
    },
    /// The pool has to grow for it, and the kernel refuses: short of memory or descriptors.
    #[error(transparent)]
    Memory(memlane_region::Error),
    /// Waiting for room failed in the kernel (short of memory).
    #[error("cannot wait for room: {0}")]
    Wait(io::Error),
}

impl ReplyError {
    /// Whether nothing can be said of the request any more.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, ReplyError::Disconnected | ReplyError::Answered)
    }

    pub(super) fn unsent(error: TrySendError) -> ReplyError {
        let without = |len: usize| len.saturating_sub(REPLY_HEADER);
        match error {
            TrySendError::Disconnected => ReplyError::Disconnected,
            // Nobody loans from this pool.
            TrySendError::Full | TrySendError::Loaned { .. } => ReplyError::Full,
            TrySendError::TooLarge { len, max } => ReplyError::TooLarge {
                len: without(len),
                max: without(max),
            },
            TrySendError::Memory(error) => ReplyError::Memory(error),
            TrySendError::TooManyAttachments { .. } | TrySendError::Attachment(_) => {
                unreachable!("replies have none")
            }
        }
    }
}

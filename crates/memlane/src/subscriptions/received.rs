use crate::{RecvError, SubscriberStats, receiver::gather::Key};

/// What came from one of many publishers.
#[derive(Debug)]
pub enum Received<M> {
    /// A message, and whose it is.
    Message(Key, M),
    /// A publisher is gone. Nothing more will come under its key.
    Ended(Ended),
}

/// The end of one of many publishers. All that can be received of it has been.
#[derive(Debug)]
#[non_exhaustive]
pub struct Ended {
    /// The key that it had, which is never another one's.
    pub key: Key,
    /// The name of its service, its address, or what the user called it.
    pub label: String,
    /// Why: [`Disconnected`](RecvError::Disconnected), or what was wrong with it.
    pub reason: RecvError,
    /// What its subscriber has done, messages that were missed at the end included.
    pub stats: SubscriberStats,
}

impl<M> Received<M> {
    /// Whom it came from.
    pub fn from(&self) -> Key {
        match self {
            Received::Message(key, _) => *key,
            Received::Ended(ended) => ended.key,
        }
    }

    /// The message, if it is one.
    pub fn message(self) -> Option<M> {
        match self {
            Received::Message(_, message) => Some(message),
            Received::Ended(_) => None,
        }
    }

    pub(crate) fn try_map<N, E>(
        self,
        map: impl FnOnce(M) -> Result<N, E>,
    ) -> Result<Received<N>, E> {
        Ok(match self {
            Received::Message(key, message) => Received::Message(key, map(message)?),
            Received::Ended(ended) => Received::Ended(ended),
        })
    }
}

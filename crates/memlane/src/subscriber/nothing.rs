//! Why there is no message.

use std::{io, time::Duration};

use memlane_region::ring::{Corrupt, LossyError};

use crate::{ChunkError, Reason, RecvError, RecvTimeoutError, TryRecvError};

/// No message. As small as can be: what is found goes through registers, and this is what may be in its place.
#[derive(Debug)]
pub enum NoMessage {
    /// In time.
    TimedOut,
    Because(Box<Why>),
}

/// Why there is none.
#[derive(Debug)]
pub enum Why {
    Disconnected(Reason),
    Corrupt(Corrupt),
    Anchor(LossyError),
    Chunk(ChunkError),
    Silent(Duration),
    Wait(io::Error),
}

impl From<Why> for NoMessage {
    #[cold]
    fn from(why: Why) -> NoMessage {
        NoMessage::Because(Box::new(why))
    }
}

impl From<LossyError> for NoMessage {
    fn from(error: LossyError) -> NoMessage {
        NoMessage::from(match error {
            LossyError::Header(corrupt) => Why::Corrupt(corrupt),
            anchor => Why::Anchor(anchor),
        })
    }
}

impl NoMessage {
    /// Why there is none, if it is not that none came in time.
    pub(crate) fn cause(&self) -> Option<&Why> {
        match self {
            NoMessage::TimedOut => None,
            NoMessage::Because(why) => Some(why),
        }
    }

    pub(crate) fn why(self) -> Option<Why> {
        match self {
            NoMessage::TimedOut => None,
            NoMessage::Because(why) => Some(*why),
        }
    }

    #[cold]
    pub(crate) fn forever(self) -> RecvError {
        match self.why().expect("there was no deadline") {
            Why::Disconnected(reason) => RecvError::Disconnected { reason },
            Why::Corrupt(corrupt) => RecvError::Corrupt(corrupt),
            Why::Anchor(error) => RecvError::Anchor(error),
            Why::Chunk(error) => RecvError::Chunk(error),
            Why::Silent(silence) => RecvError::Silent { silence },
            Why::Wait(error) => RecvError::Wait(error),
        }
    }

    pub(crate) fn at_once(self) -> TryRecvError {
        match self.why() {
            Some(Why::Disconnected(reason)) => TryRecvError::Disconnected { reason },
            Some(Why::Corrupt(corrupt)) => TryRecvError::Corrupt(corrupt),
            Some(Why::Anchor(error)) => TryRecvError::Anchor(error),
            Some(Why::Chunk(error)) => TryRecvError::Chunk(error),
            // Nothing waits here: the kernel could not say whether the publisher lives, and is asked again.
            Some(Why::Wait(_) | Why::Silent(_)) | None => TryRecvError::Empty,
        }
    }

    pub(crate) fn in_time(self) -> RecvTimeoutError {
        match self.why() {
            None => RecvTimeoutError::TimedOut,
            Some(Why::Disconnected(reason)) => RecvTimeoutError::Disconnected { reason },
            Some(Why::Corrupt(corrupt)) => RecvTimeoutError::Corrupt(corrupt),
            Some(Why::Anchor(error)) => RecvTimeoutError::Anchor(error),
            Some(Why::Chunk(error)) => RecvTimeoutError::Chunk(error),
            Some(Why::Silent(silence)) => RecvTimeoutError::Silent { silence },
            Some(Why::Wait(error)) => RecvTimeoutError::Wait(error),
        }
    }
}

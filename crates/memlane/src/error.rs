use std::{
    fmt::{self, Display, Write},
    io,
};

use memlane_region::ring::{Corrupt, LossyError};

/// Why a service could not be bound, or a lane not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A service name that cannot be one.
    #[error("{name:?} is not a service name: {expected}")]
    Name {
        /// The name.
        name: String,
        /// What a name looks like.
        expected: &'static str,
    },
    /// The directory for the sockets of services is not fit for that.
    #[error("the directory {path} cannot hold service sockets: {why}")]
    RuntimeDirectory {
        /// The directory.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The link could not be made: nobody there, not allowed, address in use.
    #[error(transparent)]
    Link(#[from] memlane_transport::Error),
    /// Shared memory could not be made, or what the peer sent is not fit to be mapped.
    #[error(transparent)]
    Region(#[from] memlane_region::Error),
    /// The two ends are of different versions.
    #[error(
        "the {them} speaks version {theirs} of the protocol, this {us} version {ours}: update the {}",
        if theirs < ours { them } else { us }
    )]
    Version {
        /// What the other end is: a publisher, say.
        them: &'static str,
        /// Its version.
        theirs: u32,
        /// What this one is: a subscriber, say.
        us: &'static str,
        /// Its version.
        ours: u32,
    },
    /// The publisher hung up, or whoever this end was to be connected to, or to succeed: before there was a lane, or a move.
    #[error(
        "the other end hung up: it has ended, or many others came at once, or the ticket is void that was used; see whether it \
         runs, and try again, with another ticket if there was one"
    )]
    HungUp,
    /// The publisher turned this subscriber away.
    #[error("the publisher refused this subscriber: {}", Said(why))]
    Refused {
        /// Its reason, in its words.
        why: String,
    },
    /// There is no receiver to send to, or not for this sender.
    #[error("there is no receiver to send to: {}", Said(why))]
    NoReceiver {
        /// What is there, or what stands in the way.
        why: String,
    },
    /// There is no sender of latest values to watch, or not for this receiver.
    #[error("there is no sender to watch: {}", Said(why))]
    NoSender {
        /// What is there, or what stands in the way.
        why: String,
    },
    /// There is no server to call, or not for this client.
    #[error("there is no server to call: {}", Said(why))]
    NoServer {
        /// What is there, or what stands in the way.
        why: String,
    },
    /// The publisher did not answer in time ([`SubscriberBuilder::timeout`](crate::SubscriberBuilder::timeout)): it is
    /// stopped, or nobody drives it.
    #[error(
        "the publisher did not answer within {waited:?}: it is stopped, or, if a loop of its own is to drive it, does not"
    )]
    NoAnswer {
        /// How long was waited for it.
        waited: std::time::Duration,
    },
    /// The end that was to be succeeded has not departed in time
    /// ([`SubscriberBuilder::timeout`](crate::SubscriberBuilder::timeout),
    /// [`PublisherBuilder::timeout`](crate::PublisherBuilder::timeout)), and stays.
    #[error(
        "whoever was to be succeeded has not departed within {waited:?}: it goes on where it is"
    )]
    NotDeparted {
        /// How long was waited for it.
        waited: std::time::Duration,
    },
    /// An end does not move to another process: there is nobody to go on in its place.
    #[error("it stays where it is: {}", Said(why))]
    Stays {
        /// Why, in the publisher's words.
        why: String,
    },
    /// The publisher that was to be succeeded has hung up.
    #[error(
        "the publisher that was to be succeeded has hung up: it stays where it is, or it is gone"
    )]
    NotHandedOver,
    /// The publisher's welcome makes no sense.
    #[error("the publisher's welcome makes no sense: {why}")]
    Welcome {
        /// What was expected, and what came.
        why: String,
    },
    /// An option with an impossible value.
    #[error("{what}: {why}")]
    Option {
        /// Which.
        what: &'static str,
        /// What is possible.
        why: String,
    },
    /// The kernel refused something else: descriptors, threads, epoll.
    #[error("cannot {what}: {source}")]
    Os {
        /// The step that failed.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Another process's words, for people: no control characters, nor anything else that is not printed.
struct Said<'a>(&'a str);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '\'' | '"' => f.write_char(character),
            _ => write!(f, "{}", character.escape_debug()),
        })
    }
}

/// What the two ends of a link are, for errors to name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sides {
    pub(crate) them: &'static str,
    pub(crate) us: &'static str,
}

impl Sides {
    pub(crate) const fn new(them: &'static str, us: &'static str) -> Sides {
        Sides { them, us }
    }

    /// The other end is of that version.
    pub(crate) fn version(self, theirs: u32) -> Error {
        let Sides { them, us } = self;
        let ours = crate::protocol::VERSION;
        Error::Version {
            them,
            theirs,
            us,
            ours,
        }
    }
}

/// Why an end stays that departs.
pub(crate) const NO_TICKET: &str = "no ticket was given";

/// The same, and why nobody waits for one that has given a ticket.
pub(crate) const NO_HOLDER: &str = "nobody has its ticket any more";

impl Error {
    /// There is no move, and why.
    pub(crate) fn stays(why: impl Into<String>) -> Error {
        Error::Stays { why: why.into() }
    }

    /// What one that connects makes of what a subscriber would be told; `idle` says of the other end what it may be about if it
    /// does not answer.
    pub(crate) fn nobody(self, us: &str, idle: &str, nobody: fn(String) -> Error) -> Error {
        let why = match self {
            Error::Refused { why } => why,
            Error::HungUp => format!(
                "it hung up before it had taken this {us}: it has ended, or many others came at once; try again, or see whether \
                 it runs"
            ),
            Error::NoAnswer { waited } => {
                format!("it did not answer within {waited:?}: it is stopped, or {idle}")
            }
            Error::Welcome { why } => format!("its welcome makes no sense: {why}"),
            error => return error,
        };
        nobody(why)
    }

    pub(crate) fn os(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Os { what, source }
    }
}

/// The message was not sent, and never can be.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The receiver is gone; what had been sent it may not have received. Only from a [`Sender`](crate::Sender).
    #[error("the receiver is gone")]
    Disconnected,
    /// Longer than any message of this publisher
    /// ([`PublisherBuilder::max_message`](crate::PublisherBuilder::max_message)).
    #[error(
        "a message of {len} bytes is too large: expected at most {max} (PublisherBuilder::max_message)"
    )]
    TooLarge {
        /// Its length, in bytes.
        len: usize,
        /// The longest message, in bytes.
        max: usize,
    },
    /// All memory of the pool is loaned, so that no subscriber can give any back: send or drop a loan first.
    #[error(
        "no room for {len} bytes: {bytes} bytes of the pool are loaned, and nobody has received any of it: send or drop a loan \
         first, or make the pool larger (PublisherBuilder::pool_bytes)"
    )]
    Loaned {
        /// Length of the message, in bytes.
        len: usize,
        /// What is loaned, in bytes.
        bytes: usize,
    },
    /// The pool has to grow for it, and the kernel refuses: short of memory or descriptors.
    #[error(transparent)]
    Memory(memlane_region::Error),
    /// More attachments than any message of this publisher has
    /// ([`PublisherBuilder::max_attachments`](crate::PublisherBuilder::max_attachments)).
    #[error(
        "{count} attachments are too many: expected at most {max} (PublisherBuilder::max_attachments)"
    )]
    TooManyAttachments {
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// One of the attachments cannot be passed to another process (an io_uring).
    #[error("an attachment cannot be passed to another process: {0}")]
    Attachment(io::Error),
    /// Waiting for room failed in the kernel (short of memory).
    #[error("cannot wait for room: {0}")]
    Wait(io::Error),
}

/// The message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum TrySendError {
    /// The receiver is gone; what had been sent it may not have received. Only from a [`Sender`](crate::Sender).
    #[error("the receiver is gone")]
    Disconnected,
    /// The slowest subscriber, or the receiver, has not released enough yet.
    #[error("there is no room: what was sent before has not been received")]
    Full,
    /// Longer than any message of this publisher
    /// ([`PublisherBuilder::max_message`](crate::PublisherBuilder::max_message)).
    #[error(
        "a message of {len} bytes is too large: expected at most {max} (PublisherBuilder::max_message)"
    )]
    TooLarge {
        /// Its length, in bytes.
        len: usize,
        /// The longest message, in bytes.
        max: usize,
    },
    /// All memory of the pool is loaned, so that no subscriber can give any back: send or drop a loan first.
    #[error(
        "no room for {len} bytes: {bytes} bytes of the pool are loaned, and nobody has received any of it: send or drop a loan \
         first, or make the pool larger (PublisherBuilder::pool_bytes)"
    )]
    Loaned {
        /// Length of the message, in bytes.
        len: usize,
        /// What is loaned, in bytes.
        bytes: usize,
    },
    /// The pool has to grow for it, and the kernel refuses: short of memory or descriptors.
    #[error(transparent)]
    Memory(memlane_region::Error),
    /// More attachments than any message of this publisher has
    /// ([`PublisherBuilder::max_attachments`](crate::PublisherBuilder::max_attachments)).
    #[error(
        "{count} attachments are too many: expected at most {max} (PublisherBuilder::max_attachments)"
    )]
    TooManyAttachments {
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// One of the attachments cannot be passed to another process (an io_uring).
    #[error("an attachment cannot be passed to another process: {0}")]
    Attachment(io::Error),
}

/// The message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendTimeoutError {
    /// The receiver is gone; what had been sent it may not have received. Only from a [`Sender`](crate::Sender).
    #[error("the receiver is gone")]
    Disconnected,
    /// The slowest subscriber, or the receiver, did not release enough in time.
    #[error("there was no room until the time ran out")]
    TimedOut,
    /// Longer than any message of this publisher
    /// ([`PublisherBuilder::max_message`](crate::PublisherBuilder::max_message)).
    #[error(
        "a message of {len} bytes is too large: expected at most {max} (PublisherBuilder::max_message)"
    )]
    TooLarge {
        /// Its length, in bytes.
        len: usize,
        /// The longest message, in bytes.
        max: usize,
    },
    /// All memory of the pool is loaned, so that no subscriber can give any back: send or drop a loan first.
    #[error(
        "no room for {len} bytes: {bytes} bytes of the pool are loaned, and nobody has received any of it: send or drop a loan \
         first, or make the pool larger (PublisherBuilder::pool_bytes)"
    )]
    Loaned {
        /// Length of the message, in bytes.
        len: usize,
        /// What is loaned, in bytes.
        bytes: usize,
    },
    /// The pool has to grow for it, and the kernel refuses: short of memory or descriptors.
    #[error(transparent)]
    Memory(memlane_region::Error),
    /// More attachments than any message of this publisher has
    /// ([`PublisherBuilder::max_attachments`](crate::PublisherBuilder::max_attachments)).
    #[error(
        "{count} attachments are too many: expected at most {max} (PublisherBuilder::max_attachments)"
    )]
    TooManyAttachments {
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// One of the attachments cannot be passed to another process (an io_uring).
    #[error("an attachment cannot be passed to another process: {0}")]
    Attachment(io::Error),
    /// Waiting for room failed in the kernel (short of memory).
    #[error("cannot wait for room: {0}")]
    Wait(io::Error),
}

/// Why the other end is gone: a publisher, a server, or a sender of latest values.
///
/// All but [`Died`](Reason::Died) and [`Broken`](Reason::Broken) is its own word, on the link, before it hung up: to be
/// told to people, not to be relied upon.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("{}", self.of("it", "this end"))]
pub enum Reason {
    /// It was closed in order ([`Publisher::close`](crate::Publisher::close) and its like), or dropped.
    Closed,
    /// It was dropped by a thread that panicked.
    Panicked,
    /// It goes on without this end.
    Evicted {
        /// Its reason.
        why: String,
    },
    /// It hung up without a word, or its process is gone: killed, aborted, ended by exit(3) or execve(2).
    Died,
    /// It was hung up on, since what it said on the link made no sense.
    Broken {
        /// What was expected, and what came.
        why: String,
    },
    /// Of [`Subscriptions`](crate::Subscriptions): there is no publisher, of those that were added.
    NoPublisher,
}

impl Reason {
    /// Said of the other end, by this one.
    pub(crate) fn of<'a>(&'a self, them: &'a str, us: &'a str) -> impl fmt::Display + 'a {
        fmt_with(move |f| match self {
            Reason::Closed => write!(f, "{them} has closed the lane"),
            Reason::Panicked => write!(f, "{them} has panicked"),
            Reason::Evicted { why } => write!(f, "{them} has dropped {us}: {}", why.escape_debug()),
            Reason::Died => write!(f, "{them} has died"),
            Reason::Broken { why } => {
                write!(
                    f,
                    "{them} was hung up on, since what it said made no sense: {why}"
                )
            }
            Reason::NoPublisher => {
                f.write_str("there is no publisher: none was added, or all have ended")
            }
        })
    }

    /// To one that has received everything.
    fn to_subscriber(&self) -> impl fmt::Display + '_ {
        fmt_with(move |f| {
            self.of("the publisher", "this subscriber").fmt(f)?;
            match self {
                Reason::NoPublisher => Ok(()),
                _ => f.write_str("; what it had committed by then has been received"),
            }
        })
    }
}

/// What a function writes.
fn fmt_with(write: impl Fn(&mut fmt::Formatter<'_>) -> fmt::Result) -> impl fmt::Display {
    struct With<F>(F);
    impl<F: Fn(&mut fmt::Formatter<'_>) -> fmt::Result> fmt::Display for With<F> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            (self.0)(f)
        }
    }
    With(write)
}

/// No message was received.
#[derive(Debug, thiserror::Error)]
pub enum RecvError {
    /// The publisher is gone, and everything it had committed has been received.
    #[error("{}", reason.to_subscriber())]
    Disconnected {
        /// Why.
        reason: Reason,
    },
    /// The publisher wrote something that no publisher writes.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// The publisher says nonsense of how far it is, to a subscriber that was [overwritten](crate::Overflow::Overwrite).
    #[error(transparent)]
    Anchor(#[from] LossyError),
    /// The message lies in memory of the publisher's that cannot be had. It stays the next one, so that no other will
    /// come: drop the subscriber.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// The publisher has given no sign of life for as long as the user allows
    /// ([`SubscriberBuilder::liveliness`](crate::SubscriberBuilder::liveliness)). It is not dead, and the next call waits again.
    #[error("the publisher has given no sign of life for {silence:?}")]
    Silent {
        /// For how long.
        silence: std::time::Duration,
    },
    /// Waiting for a message failed in the kernel (short of memory). The next call may fare better.
    #[error("cannot wait for a message: {0}")]
    Wait(io::Error),
}

/// There is no message.
#[derive(Debug, thiserror::Error)]
pub enum TryRecvError {
    /// None yet.
    #[error("no message waits")]
    Empty,
    /// The publisher is gone, and everything it had committed has been received.
    #[error("{}", reason.to_subscriber())]
    Disconnected {
        /// Why.
        reason: Reason,
    },
    /// The publisher wrote something that no publisher writes.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// The publisher says nonsense of how far it is, to a subscriber that was [overwritten](crate::Overflow::Overwrite).
    #[error(transparent)]
    Anchor(#[from] LossyError),
    /// The message lies in memory of the publisher's that cannot be had. It stays the next one, so that no other will
    /// come: drop the subscriber.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
}

/// There is no message.
#[derive(Debug, thiserror::Error)]
pub enum RecvTimeoutError {
    /// None came in time.
    #[error("no message came in time")]
    TimedOut,
    /// The publisher is gone, and everything it had committed has been received.
    #[error("{}", reason.to_subscriber())]
    Disconnected {
        /// Why.
        reason: Reason,
    },
    /// The publisher wrote something that no publisher writes.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// The publisher says nonsense of how far it is, to a subscriber that was [overwritten](crate::Overflow::Overwrite).
    #[error(transparent)]
    Anchor(#[from] LossyError),
    /// The message lies in memory of the publisher's that cannot be had. It stays the next one, so that no other will
    /// come: drop the subscriber.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// The publisher has given no sign of life for as long as the user allows
    /// ([`SubscriberBuilder::liveliness`](crate::SubscriberBuilder::liveliness)). It is not dead, and the next call waits again.
    #[error("the publisher has given no sign of life for {silence:?}")]
    Silent {
        /// For how long.
        silence: std::time::Duration,
    },
    /// Waiting for a message failed in the kernel (short of memory). The next call may fare better.
    #[error("cannot wait for a message: {0}")]
    Wait(io::Error),
}

/// A message lies in memory of the publisher's that cannot be had: it was not announced, is refused, or makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message's memory cannot be had: {why}")]
pub struct ChunkError {
    /// What was expected, and what came.
    pub(crate) why: String,
}

/// The attachments of a message cannot be had. Its bytes can.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachmentError {
    /// They have not come. If the publisher plays by the rules, it sent the message before this subscriber was there, or, to one
    /// that is [overwritten](crate::Overflow::Overwrite), when that had too many on their way.
    #[error(
        "the message's attachments have not come: it was sent before this subscriber was there, or when too many were on their \
         way to it, or its publisher breaks the rules"
    )]
    Missing,
    /// What came could not be taken, and has ended the lane: of what the publisher sent by then, the rest is received, without
    /// attachments.
    #[error("the message's attachments could not be taken: {why}")]
    Refused {
        /// What was expected, and what came. Where this process is at its limit (RLIMIT_NOFILE), that.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_writes_to_no_terminal() {
        let why = "it's \"full\"\n\u{1b}[2J\u{202e}".to_owned();
        let text = Error::Refused { why }.to_string();
        assert!(
            text.ends_with("it's \"full\"\\n\\u{1b}[2J\\u{202e}"),
            "{text}"
        );
    }

    #[test]
    fn reasons_name_what_the_user_has() {
        let reason = || Reason::Evicted {
            why: "slow".to_owned(),
        };
        assert_eq!(reason().to_string(), "it has dropped this end: slow");
        assert_eq!(
            RecvError::Disconnected { reason: reason() }.to_string(),
            "the publisher has dropped this subscriber: slow; what it had committed by then has been received"
        );
        let nobody = Reason::NoPublisher;
        assert_eq!(
            TryRecvError::Disconnected { reason: nobody }.to_string(),
            "there is no publisher: none was added, or all have ended"
        );
        assert_eq!(
            crate::CallError::Disconnected { reason: reason() }.to_string(),
            "the server has dropped this client: slow"
        );
        assert_eq!(
            crate::WatchError::Disconnected {
                reason: Reason::Died
            }
            .to_string(),
            "the sender has died; its last value has been read"
        );
    }
}

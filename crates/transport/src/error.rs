//! The one error type of the crate.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::access::{Admitted, describe};
use crate::activation::ActivationError;
use crate::address::{Address, AddressError};
use crate::broker::Declined;
use crate::codec::{DecodeError, EncodeError};
use crate::obstacle::{Wish, explain};
use crate::peer::Credentials;
use crate::process::Refusal;

/// What can go wrong on a link or a listener.
///
/// Four groups share the type: outcomes a caller expects ([`WouldBlock`], [`TimedOut`], [`Disconnected`]), mistakes of
/// the sender found before anything was sent, packets that break the protocol (they end the link, see
/// [`ends_link`](Error::ends_link)), and what happens around addresses and other processes. Everything else is [`Io`].
///
/// [`WouldBlock`]: Error::WouldBlock
/// [`TimedOut`]: Error::TimedOut
/// [`Disconnected`]: Error::Disconnected
/// [`Io`]: Error::Io
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A `try_` call found nothing to receive, nobody to accept, or no room to send.
    #[error("the call would have to wait")]
    WouldBlock,
    /// A `_timeout` call reached its deadline, or a connect its own.
    #[error("the time allowed ran out")]
    TimedOut,
    /// The other end closed its socket, in order or by dying. Everything it had sent has been delivered.
    #[error("the other end has disconnected")]
    Disconnected,
    /// The link was ended earlier, because the other end broke the protocol, or because a message of this end had left in part
    /// and the kernel refused the rest.
    #[error("the link was ended: {why}")]
    Ended {
        /// The text of the error that ended it.
        why: Arc<str>,
    },

    /// The receiver has not taken a message that was sent with a receipt, and never will.
    #[error("the receiver went away or refused the message: it has not been acknowledged")]
    NotAcknowledged,

    /// A broker did not make an introduction.
    #[error("no introduction to {name:?}: {reason}")]
    Declined {
        /// Whom it was asked for.
        name: String,
        /// Why not.
        reason: Declined,
    },

    /// The encoded value is larger than the link's limit. Nothing was sent.
    #[error("the message takes {size} bytes encoded, the link's limit is {limit}")]
    BodyTooLarge {
        /// Bytes the value takes.
        size: usize,
        /// [`Limits::body`](crate::Limits::body).
        limit: usize,
    },
    /// The value carries more descriptors than the link's limit. Nothing was sent.
    #[error("the message carries {count} descriptors, the link's limit is {limit}")]
    TooManyDescriptors {
        /// Descriptors in the value.
        count: usize,
        /// [`Limits::descriptors`](crate::Limits::descriptors).
        limit: usize,
    },
    /// The value contains the very link it was to be sent on. Nothing was sent.
    #[error("a link cannot be sent on itself")]
    LinkInItself,
    /// The value refused to be encoded. Nothing was sent.
    #[error("the message cannot be encoded")]
    Encode(#[source] EncodeError),

    /// A packet without bytes arrived with descriptors: it looks like a hang-up and installs descriptors.
    #[error(
        "an empty packet came with {descriptors} descriptors; a message has at least its header"
    )]
    EmptyPacket {
        /// Descriptors that came, all closed.
        descriptors: usize,
    },
    /// The kernel could not install every descriptor of a packet (MSG_CTRUNC).
    #[error(
        "only {received} descriptors of a message arrived (announced: {}): this process has no descriptor \
         numbers left (RLIMIT_NOFILE), or a security module refused one",
        or_unknown(.announced)
    )]
    DescriptorsTruncated {
        /// What the header announced, if there was a header.
        announced: Option<u16>,
        /// Descriptors that came, all closed.
        received: usize,
    },
    /// A packet was larger than any may be, or says so.
    #[error("a packet is larger than the {limit} bytes that one may take")]
    PacketTooLarge {
        /// Bytes a packet may have.
        limit: usize,
    },
    /// A control message other than descriptors came along: someone set an option on this socket.
    #[error(
        "a control message of level {level}, type {kind} came where only descriptors (SCM_RIGHTS) may come"
    )]
    ForeignControl {
        /// `cmsg_level`.
        level: i32,
        /// `cmsg_type`.
        kind: i32,
    },
    /// The control buffer does not parse.
    #[error("the control messages of a packet do not parse: {0}")]
    MalformedControl(&'static str),
    /// A packet is too short for a header.
    #[error("a packet of {size} bytes is shorter than the {expected} bytes of a header")]
    ShortPacket {
        /// Bytes that came.
        size: usize,
        /// Bytes of a header.
        expected: usize,
    },
    /// A packet does not start with memlane's mark: the other end speaks something else.
    #[error(
        "a packet starts with byte {found:#04x}, not with {expected:#04x}: the other end does not speak memlane"
    )]
    NotMemlane {
        /// First byte that came.
        found: u8,
        /// The mark.
        expected: u8,
    },
    /// The other end speaks another version of the protocol.
    #[error(
        "the other end speaks protocol version {found}, this end version {expected}: update {}",
        older(found < expected)
    )]
    Version {
        /// Version that came.
        found: u8,
        /// Version spoken here.
        expected: u8,
    },
    /// A packet has another size than its header says.
    #[error("a packet announced {announced} bytes and has {received}")]
    PacketSize {
        /// Bytes of header, fields and body by the header.
        announced: usize,
        /// Bytes that came.
        received: usize,
    },
    /// A field of a packet makes no sense.
    #[error("field {tag:#04x} of a packet makes no sense: {what}")]
    MalformedField {
        /// Its tag.
        tag: u8,
        /// What is wrong.
        what: &'static str,
    },
    /// A packet has a field that this end does not know and must not ignore.
    #[error(
        "a packet has field {tag:#04x}, which must be understood and is not: the other end speaks a newer protocol"
    )]
    UnknownField {
        /// Its tag, below 0x80.
        tag: u8,
    },
    /// Descriptors came in the middle of a stream's packet.
    #[error(
        "{descriptors} descriptors came in the middle of a packet, where only its start may bring some"
    )]
    LateDescriptors {
        /// Descriptors that came, all closed.
        descriptors: usize,
    },
    /// The packets of a message do not add up.
    #[error("a message of several packets announced {announced} descriptors and has {received}")]
    Parts {
        /// Descriptors by its first packet.
        announced: usize,
        /// Descriptors that came, all closed.
        received: usize,
    },
    /// A message came with more descriptors than this end takes.
    #[error("a message came with {count} descriptors, this link takes {limit}")]
    PeerTooManyDescriptors {
        /// Announced, or come: all closed.
        count: usize,
        /// [`Limits::received_descriptors`](crate::Limits::received_descriptors) here.
        limit: usize,
    },
    /// A message came with a longer body than this end takes.
    #[error("a message came with a body of {size} bytes, this link takes {limit}")]
    PeerBodyTooLarge {
        /// Announced.
        size: u64,
        /// [`Limits::body`](crate::Limits::body) here.
        limit: usize,
    },
    /// A field speaks of a descriptor that did not come.
    #[error("a message announced {what} and came without that descriptor")]
    MissingService {
        /// What it would have been for.
        what: &'static str,
    },
    /// The descriptor that came as a receipt cannot be one.
    #[error("a message came with a receipt that is no Unix stream socket")]
    NotAReceipt,
    /// A descriptor is not of the kind that the message's type asks for.
    #[error(
        "a message came with a descriptor of the wrong kind: expected {expected}, found {found}"
    )]
    WrongDescriptor {
        /// The kind.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A link or listener came from a peer that this end does not take them from.
    #[error("a message came with a {what}, and this end does not adopt any from its peer")]
    NotAdopted {
        /// Link or listener.
        what: &'static str,
    },
    /// A packet came with another number of descriptors than its header says.
    #[error("a message announced {announced} descriptors and came with {received}")]
    DescriptorCount {
        /// What the header says.
        announced: u16,
        /// Descriptors that came, all closed.
        received: usize,
    },
    /// The message is complete and more descriptors came than its type has places for.
    #[error("a message came with {received} descriptors and its type takes {taken}")]
    SurplusDescriptors {
        /// Descriptors that came, all closed.
        received: usize,
        /// How many the type asked for.
        taken: usize,
    },
    /// The body names a descriptor that did not come.
    #[error("a message names descriptor {index} and came with {received}")]
    MissingDescriptor {
        /// Index in the body.
        index: u16,
        /// Descriptors that came, all closed.
        received: usize,
    },
    /// The body names one descriptor in two places.
    #[error("a message names descriptor {index} twice")]
    DescriptorTwice {
        /// Index in the body.
        index: u16,
    },
    /// The body does not decode as the type asked for.
    #[error("a message does not decode as {expected}")]
    Decode {
        /// Rust's name of the type asked for.
        expected: &'static str,
        /// What the decoder found.
        source: DecodeError,
    },

    /// The address cannot be one.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Nobody listens at the address. A name left behind by a dead process has been removed.
    #[error(
        "nobody listens at {address}: start the service, or, if it runs, see at which address it listens (each user and \
         container has a runtime directory of its own)"
    )]
    NotRunning {
        /// Where.
        address: Address,
    },
    /// Somebody is there already.
    #[error(
        "{address} is in use by {}: stop that first, or choose another address",
        or_somebody(.holder)
    )]
    AddressInUse {
        /// Where.
        address: Address,
        /// Who listens there, if it was asked ([`who_listens`](crate::who_listens)).
        holder: Option<Credentials>,
    },
    /// Modes of directories or of the socket keep this process out.
    #[error("{}: {why}", path.display())]
    Forbidden {
        /// The socket's path.
        path: PathBuf,
        /// What stands in the way, and what to do.
        why: String,
        /// How the kernel answered.
        source: io::Error,
    },
    /// The path is taken by something that is not a socket; it was left untouched.
    #[error("{} exists and is a {found}, not a socket; it was left untouched", path.display())]
    NotASocket {
        /// Where.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Another process keeps the directory of a path address locked.
    #[error(
        "directory {} stays locked (flock) by another process, which `lslocks` shows: end that, or use a directory that \
         nobody else can read",
        directory.display()
    )]
    Locked {
        /// The directory.
        directory: PathBuf,
    },
    /// The process at the other end is not one that the access rule admits.
    #[error("the other end is {}; {expected}", describe(found, groups))]
    AccessDenied {
        /// Who it is.
        found: Credentials,
        /// Its supplementary groups, where the rule had to ask for them.
        groups: Box<[u32]>,
        /// Whom the rule admits.
        expected: Admitted,
    },
    /// An inherited descriptor is not a connected (or listening) Unix socket of a [`SocketKind`](crate::SocketKind).
    #[error("expected {expected}, found {found}")]
    WrongSocket {
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// What a service manager passed could not be taken.
    #[error(transparent)]
    Activation(#[from] ActivationError),
    /// This process (RLIMIT_NOFILE), or the system, has no descriptor numbers left. A connection that was to be accepted stays
    /// in the backlog; a message whose descriptors were to be duplicated was not sent ([`Fds`](crate::Fds) need no numbers).
    #[error("no descriptor numbers are left; nothing was made, accepted, taken, or sent")]
    DescriptorLimit(#[source] io::Error),

    /// The kernel does not let this process at another one's descriptors.
    #[error(transparent)]
    NotPermitted(Box<Refusal>),
    /// The other process has no descriptor of that number.
    #[error("descriptor {number} is not open in the other process")]
    NotOpen {
        /// The number.
        number: i32,
    },
    /// The other process has ended, or had before this process could get hold of it.
    #[error("the other process has ended")]
    ProcessEnded,
    /// The other process has no number here: it lives in a pid namespace that is not visible from this one's, or the number
    /// cannot be asked for (that takes Linux 6.13, or /proc).
    #[error("the other process has no pid that this process knows, and kcmp takes pids")]
    ProcessInvisible,
    /// The descriptor that should name a process is not a pidfd.
    #[error("the descriptor given for a process is not a pidfd")]
    NotAPidfd,
    /// The kernel lacks the system call, or a seccomp filter says it does.
    #[error("{call} is not available here: it takes {needs}, and no seccomp filter that hides it")]
    Unsupported {
        /// The system call.
        call: &'static str,
        /// The kernel that has it.
        needs: &'static str,
        /// How the kernel answered.
        source: io::Error,
    },
    /// Any other failure of the operating system.
    #[error("{doing} failed")]
    Io {
        /// What was being done.
        doing: Cow<'static, str>,
        /// How the kernel answered.
        source: io::Error,
    },
}

impl Error {
    /// [`Error::Io`], or [`Error::Forbidden`] where the kernel says EACCES, or EPERM.
    pub(crate) fn at_path(
        doing: impl Into<Cow<'static, str>>,
        path: &Path,
        wish: Wish,
        error: Errno,
    ) -> Error {
        match error {
            Errno::ACCESS | Errno::PERM => Error::Forbidden {
                path: path.to_owned(),
                why: explain(path, wish),
                source: error.into(),
            },
            error => Error::io(doing, error),
        }
    }

    /// [`Error::Io`], or [`Error::DescriptorLimit`] where that is what the kernel says.
    pub(crate) fn io(doing: impl Into<Cow<'static, str>>, source: impl Into<io::Error>) -> Error {
        let source = source.into();
        match Errno::from_io_error(&source) {
            Some(Errno::MFILE | Errno::NFILE) => Error::DescriptorLimit(source),
            _ => Error::Io {
                doing: doing.into(),
                source,
            },
        }
    }

    /// Whether the link is over: the other end is gone, or the link was ended by this error or before.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.is_disconnected() || self.ends_link() || matches!(self, Error::Ended { .. })
    }

    /// Whether the other end is gone.
    #[must_use]
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Error::Disconnected)
    }

    /// Whether the same call may succeed later without anything being changed here: no room, nothing there yet, no
    /// descriptor numbers free, a directory locked for a moment, a busy broker.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Error::WouldBlock
                | Error::TimedOut
                | Error::DescriptorLimit(_)
                | Error::Locked { .. }
                | Error::Declined {
                    reason: Declined::Busy,
                    ..
                }
        )
    }

    /// Whether the error is a packet that broke the protocol, or that could not be taken whole because descriptor numbers
    /// ran out here: all it brought is closed, and the link is ended.
    #[must_use]
    pub fn ends_link(&self) -> bool {
        matches!(
            self,
            Error::EmptyPacket { .. }
                | Error::DescriptorsTruncated { .. }
                | Error::PacketTooLarge { .. }
                | Error::ForeignControl { .. }
                | Error::MalformedControl(_)
                | Error::ShortPacket { .. }
                | Error::NotMemlane { .. }
                | Error::Version { .. }
                | Error::DescriptorCount { .. }
                | Error::SurplusDescriptors { .. }
                | Error::MissingDescriptor { .. }
                | Error::DescriptorTwice { .. }
                | Error::PacketSize { .. }
                | Error::MalformedField { .. }
                | Error::UnknownField { .. }
                | Error::LateDescriptors { .. }
                | Error::Parts { .. }
                | Error::PeerTooManyDescriptors { .. }
                | Error::PeerBodyTooLarge { .. }
                | Error::MissingService { .. }
                | Error::NotAReceipt
                | Error::WrongDescriptor { .. }
                | Error::NotAdopted { .. }
                | Error::Decode { .. }
        )
    }
}

/// For callers that speak `io::Error`: the kind follows the variant, the error itself stays inside.
impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::WouldBlock | Error::Locked { .. } => io::ErrorKind::WouldBlock,
            Error::TimedOut => io::ErrorKind::TimedOut,
            Error::Disconnected | Error::Ended { .. } => io::ErrorKind::NotConnected,
            Error::NotAcknowledged => io::ErrorKind::BrokenPipe,
            Error::BodyTooLarge { .. }
            | Error::TooManyDescriptors { .. }
            | Error::LinkInItself
            | Error::Encode(_)
            | Error::Address(_) => io::ErrorKind::InvalidInput,
            Error::NotRunning { .. } => io::ErrorKind::ConnectionRefused,
            Error::AddressInUse { .. } => io::ErrorKind::AddrInUse,
            Error::NotASocket { .. } => io::ErrorKind::AlreadyExists,
            Error::AccessDenied { .. } | Error::Forbidden { .. } | Error::NotPermitted(_) => {
                io::ErrorKind::PermissionDenied
            }
            Error::NotOpen { .. } | Error::ProcessEnded => io::ErrorKind::NotFound,
            Error::NotAPidfd => io::ErrorKind::InvalidInput,
            Error::ProcessInvisible | Error::Unsupported { .. } => io::ErrorKind::Unsupported,
            Error::Io { source, .. } | Error::DescriptorLimit(source) => source.kind(),
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

fn older(other: bool) -> &'static str {
    if other { "the other end" } else { "this end" }
}

fn or_somebody(holder: &Option<Credentials>) -> String {
    holder.as_ref().map_or_else(
        || "a running process".to_owned(),
        |holder| describe(holder, &[]),
    )
}

fn or_unknown(announced: &Option<u16>) -> String {
    announced.map_or_else(|| "unknown".to_owned(), |count| count.to_string())
}

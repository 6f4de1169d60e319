//! What a broker and its clients say to one another; docs/wire-format.md has the bytes.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Declined, MAX_NAME};
use crate::dispose::dispose;
use crate::limits::Limits;
use crate::link::Link;

/// Version of what follows it.
const VERSION: u8 = 1;

/// Room for version, variant, number, and the longest name with its length.
const BODY: usize = 1 + 1 + 9 + 3 + MAX_NAME;

/// A broker gives links and takes no descriptors.
pub(super) const BROKER: Limits = Limits::new()
    .body(BODY)
    .descriptors(1)
    .received_descriptors(0);
/// A client takes links from its broker.
pub(super) const CLIENT: Limits = Limits::new().body(BODY).descriptors(1);

/// Every message of both directions, so that one from the wrong side is known for what it is and never taken for
/// another. The order is the format's.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// A client wants a link to another.
    Introduce { request: u64, to: String },
    /// It gets one.
    Accepted { request: u64, link: Link },
    /// It gets none.
    Declined { request: u64, reason: Declined },
    /// Another client asked for one to the receiver.
    Introduced { from: String, link: Link },
}

impl Message {
    /// Lets go of a link in it, without waiting for the close: whoever has its other end can send to it.
    pub(super) fn dispose(self) {
        match self {
            Message::Accepted { link, .. } | Message::Introduced { link, .. } => {
                dispose(link.into_fd());
            }
            Message::Introduce { .. } | Message::Declined { .. } => {}
        }
    }
}

/// The version, as a byte before each message.
#[derive(Debug)]
pub(super) struct Version;

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(VERSION)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Version, D::Error> {
        match u8::deserialize(deserializer)? {
            VERSION => Ok(Version),
            other => Err(D::Error::custom(format_args!(
                "the other end speaks version {other} of introductions, this end version {VERSION}"
            ))),
        }
    }
}

/// What a broker accepts.
#[derive(Debug, Deserialize)]
#[serde(try_from = "(Version, Message)")]
pub(super) struct Request {
    pub(super) request: u64,
    pub(super) to: String,
}

impl TryFrom<(Version, Message)> for Request {
    type Error = &'static str;

    fn try_from((Version, message): (Version, Message)) -> Result<Request, &'static str> {
        match message {
            Message::Introduce { request, to } => Ok(Request { request, to }),
            Message::Accepted { .. } | Message::Declined { .. } | Message::Introduced { .. } => {
                Err("a client sent what only its broker may")
            }
        }
    }
}

/// What a client accepts.
#[derive(Debug, Deserialize)]
#[serde(try_from = "(Version, Message)")]
pub(super) enum FromBroker {
    Accepted { request: u64, link: Link },
    Declined { request: u64, reason: Declined },
    Introduced { from: String, link: Link },
}

impl TryFrom<(Version, Message)> for FromBroker {
    type Error = &'static str;

    fn try_from((Version, message): (Version, Message)) -> Result<FromBroker, &'static str> {
        match message {
            Message::Accepted { request, link } => Ok(FromBroker::Accepted { request, link }),
            Message::Declined { request, reason } => Ok(FromBroker::Declined { request, reason }),
            Message::Introduced { from, link } => Ok(FromBroker::Introduced { from, link }),
            Message::Introduce { .. } => Err("a broker sent what only a client may"),
        }
    }
}

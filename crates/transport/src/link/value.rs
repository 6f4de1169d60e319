//! Links in messages.

use std::os::fd::AsRawFd;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Error as _, Serialize, Serializer};

use super::Link;
use crate::fd::{Adoption, Fault, Fd, adoption, fault, lend_socket, note_link};
use crate::socket;

/// A link travels as its socket. The sender's stays open, and whoever of the two receives next gets the next message: drop
/// the sender's when the receiver has it ([`Link::transfer`]). Limits and adoption stay behind: they are the holder's own.
/// No descriptor number is needed for it beside the link's own.
///
/// Refused while a message has left or come in part, which would be torn (see [`Link::is_between_messages`]), and on the
/// link itself; and of a link with [two sockets](Link::send_over).
impl Serialize for Link {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !self.is_between_messages() {
            return Err(S::Error::custom(format_args!(
                "the link with descriptor {} is in the middle of a message and cannot be sent",
                self.as_raw_fd()
            )));
        }
        if self.sends_over().is_some() {
            return Err(S::Error::custom(format_args!(
                "the link with descriptor {} sends over another socket and cannot be sent",
                self.as_raw_fd()
            )));
        }
        note_link(socket::identity(self));
        lend_socket(&self.fd, serializer)
    }
}

/// Only on a link that is [adopting](Link::adopting). Its limits are the default ones; where the sender's told the kernel to
/// refuse descriptors on this socket, it does so until [`with_limits`](Link::with_limits) tells it otherwise.
impl<'de> Deserialize<'de> for Link {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Link, D::Error> {
        let fd = Fd::deserialize(deserializer)?;
        if adoption() == Adoption::Refused {
            return Err(fault(Fault::Unadopted("link")));
        }
        let link = Link::from_fd(fd.into()).map_err(|error| {
            fault(Fault::Kind {
                expected: "a link",
                found: error.to_string(),
            })
        })?;
        Ok(link)
    }
}

//! Links in messages.

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Error as _, Serialize, Serializer};

use super::Link;
use crate::fd::{Adoption, Fault, Fd, FdRef, adoption, fault, note_link};
use crate::socket;

/// A link travels as its socket. The sender's stays open, and whoever of the two receives next gets the next message: drop
/// the sender's when the receiver has it ([`Link::transfer`]). Limits and adoption stay behind: they are the holder's own.
///
/// Refused while a message has left or come in part, which would be torn ([`Link::flush`] first, or receive it), and on
/// the link itself.
impl Serialize for Link {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !self.is_between_messages() {
            return Err(S::Error::custom(
                "a link in the middle of a message cannot be sent",
            ));
        }
        note_link(socket::identity(self));
        FdRef::new(self).serialize(serializer)
    }
}

/// Only on a link that is [adopting](Link::adopting).
impl<'de> Deserialize<'de> for Link {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Link, D::Error> {
        let fd = Fd::deserialize(deserializer)?;
        if adoption() == Adoption::Refused {
            return Err(fault(Fault::Unadopted("link")));
        }
        Link::from_fd(fd.into()).map_err(|error| {
            fault(Fault::Kind {
                expected: "a link",
                found: error.to_string(),
            })
        })
    }
}

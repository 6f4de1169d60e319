//! Regions as parts of a link's messages: in the body an index, beside it the descriptor (memlane-transport's `Fd`).

use std::os::fd::{AsFd, OwnedFd};

use memlane_transport::{Fd, FdRef, dispose};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{Error, Frozen, Live, LiveView, Moved, Refused, gate};

/// Bytes that a region may have to be taken out of a message: 1 GiB, none of it in huge pages.
///
/// It is address space that this bounds: the memory exists already, or the gate refuses it. A peer can send as many
/// regions as the link's limits allow it descriptors. Whoever wants other bounds receives a [`Moved`] or a
/// `memlane_transport::Fd` and opens that.
pub const MESSAGE_QUOTA: usize = 1 << 30;

/// Sent by reference, any number of times: the message keeps the memory until it has left. Received as [`Frozen`].
impl Serialize for Frozen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        FdRef::new(self).serialize(serializer)
    }
}

/// The permission to read is sent, any number of times. Received as [`LiveView`].
impl Serialize for Live {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        FdRef::new(self).serialize(serializer)
    }
}

/// Sent on: what can be read here can be read there. Received as [`LiveView`].
impl Serialize for LiveView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        FdRef::new(self).serialize(serializer)
    }
}

/// Sent by reference; drop it once it is sent, or the receiver has no region of its own. Received as [`Moved`].
///
/// One made of a descriptor that is not shared memory cannot be sent.
impl Serialize for Moved {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The message closes a duplicate, which never waits only where the file is memory.
        gate::seals(self.as_fd()).map_err(serde::ser::Error::custom)?;
        FdRef::new(self).serialize(serializer)
    }
}

/// Verified as by [`Frozen::open`], up to [`MESSAGE_QUOTA`]. What is refused is an error of the receive, and ends the link.
impl<'de> Deserialize<'de> for Frozen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Frozen, D::Error> {
        open(deserializer, |fd| Frozen::open(fd, MESSAGE_QUOTA))
    }
}

/// Verified as by [`LiveView::open`], up to [`MESSAGE_QUOTA`]. What is refused is an error of the receive, and ends the
/// link.
impl<'de> Deserialize<'de> for LiveView {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<LiveView, D::Error> {
        open(deserializer, |fd| LiveView::open(fd, MESSAGE_QUOTA))
    }
}

/// Shared memory, and nothing else is known of it: the rest is asked when it is [claimed](Moved::claim). Anything else is
/// an error of the receive, and ends the link.
impl<'de> Deserialize<'de> for Moved {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Moved, D::Error> {
        open(deserializer, |fd| match gate::seals(fd.as_fd()) {
            Ok(_) => Ok(Moved::from(fd)),
            Err(error) => Err(Refused::new(error, fd)),
        })
    }
}

/// Takes a descriptor out of the message. One that is refused is closed where waiting harms nobody.
fn open<'de, D: Deserializer<'de>, R>(
    deserializer: D,
    open: impl FnOnce(OwnedFd) -> Result<R, Box<Refused>>,
) -> Result<R, D::Error> {
    let fd = Fd::deserialize(deserializer)?;
    open(fd.into()).map_err(|refused| {
        let Refused { error, descriptor } = *refused;
        dispose(descriptor);
        D::Error::custom::<Error>(error)
    })
}

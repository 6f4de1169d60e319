//! Listeners in messages.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use super::{Listener, OwnFile};
use crate::fd::{Adoption, Fault, Fd, FdRef, adoption, fault};
use crate::{Access, Address};

/// Where a listener that is sent comes from.
#[derive(serde::Serialize, serde::Deserialize)]
enum Origin<P> {
    /// From outside, a service manager for instance: its file, and whom its clients see, are the affair of that.
    Inherited,
    /// Bound at a path.
    File(P),
    /// Bound at an abstract name.
    Name,
}

/// A listener travels as its socket, and with its file, if it has bound one. The sender's goes on listening, and whoever of
/// the two accepts first gets the next client. The file goes with the last process that holds the socket, in whatever
/// order they let go of it and however the sending ended: the sender may simply drop its own once the receiver has it
/// ([`Link::transfer`](crate::Link::transfer)), and a sender that panics before takes no file away from the receiver.
///
/// Connections in the backlog stay there: nobody is refused. [`hand_over`](crate::hand_over) is the whole procedure for a
/// process that is being replaced.
impl Serialize for Listener {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let origin = match (&self.file, self.bound) {
            (Some(file), _) => Origin::File(file.share()),
            (None, true) => Origin::Name,
            (None, false) => Origin::Inherited,
        };
        (FdRef::new(self), origin).serialize(serializer)
    }
}

/// Only on a link that is [adopting](crate::Link::adopting). Whom to admit and how much to take from them is the receiver's
/// own decision and does not travel: it admits [the same user](Access::SameUser), whatever the sender's did, until
/// [`with_access`](Listener::with_access), and has the default limits until [`with_limits`](Listener::with_limits).
///
/// From its first accept on, new clients see the receiver as their [`Peer`](crate::Peer), if a listener made here bound
/// the socket; one that a service manager passed goes on showing the manager.
impl<'de> Deserialize<'de> for Listener {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Listener, D::Error> {
        let (fd, origin) = <(Fd, Origin<PathBuf>)>::deserialize(deserializer)?;
        if adoption() == Adoption::Refused {
            return Err(fault(Fault::Unadopted("listener")));
        }
        let mut listener =
            Listener::from_fd(OwnedFd::from(fd), Access::SameUser).map_err(|error| {
                fault(Fault::Kind {
                    expected: "a listener",
                    found: error.to_string(),
                })
            })?;
        listener.bound = !matches!(origin, Origin::Inherited);
        listener.announced = AtomicBool::new(!listener.bound);
        if let Origin::File(path) = origin {
            // The socket knows the name it was bound to, relative to wherever that was.
            let bound = listener.address.as_path().and_then(|path| path.file_name());
            if bound.is_none() || bound != path.file_name() || !path.is_absolute() {
                return Err(fault(Fault::Kind {
                    expected: "a listener with its own file",
                    found: format!(
                        "one bound to {} with the file {}",
                        listener.address,
                        path.display()
                    ),
                }));
            }
            // Whoever goes to the file needs no current directory for it.
            if let Ok(address) = Address::path(&path) {
                listener.address = address;
            }
            listener.file = Some(OwnFile::received(path));
        }
        Ok(listener)
    }
}

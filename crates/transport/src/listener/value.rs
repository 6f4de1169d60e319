//! Listeners in messages.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use super::{Listener, OwnFile};
use crate::Access;
use crate::fd::{Adoption, Fault, Fd, FdRef, adoption, fault};
use crate::socket_file::{LOCK_TIMEOUT, SocketFile};

/// A listener travels as its socket, and with its file, if it has bound one: the receiver removes the file with its own
/// listener. The sender's goes on listening, and whoever of the two accepts first gets the next client; when the receiver
/// has it ([`Link::transfer`](crate::Link::transfer)), let go of it with [`release`](Listener::release), not by dropping it.
///
/// Connections in the backlog stay there: nobody is refused.
impl Serialize for Listener {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let file = self.file.as_ref().map(|file| &file.path);
        (FdRef::new(self), file).serialize(serializer)
    }
}

/// Only on a link that is [adopting](crate::Link::adopting). It admits [the same user](Access::SameUser), whatever the
/// sender's did, until [`with_access`](Listener::with_access); and its limits are the default ones.
impl<'de> Deserialize<'de> for Listener {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Listener, D::Error> {
        let (fd, path) = <(Fd, Option<PathBuf>)>::deserialize(deserializer)?;
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
        listener.file = path.and_then(own_file);
        Ok(listener)
    }
}

/// The file at `path`, if it is still there.
fn own_file(path: PathBuf) -> Option<OwnFile> {
    let identity = SocketFile::lock(&path, LOCK_TIMEOUT)
        .and_then(|file| file.identity())
        .ok()??;
    Some(OwnFile {
        path,
        identity,
        process: std::process::id(),
    })
}

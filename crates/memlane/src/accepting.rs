//! Listening for whoever is to be at the other end of a lane.

use memlane_transport::{Access, Address, Error as LinkError, Link, Listener, who_listens};

use crate::{
    Error,
    protocol::{Opening, PacketRef, Refusal, VERSION},
};

/// So many connections are accepted in one go, before others have their turn.
const MAX_ACCEPTS: usize = 64;

/// Listens at an address.
pub(crate) fn listen(address: &Address, access: Access) -> Result<Listener, Error> {
    Listener::bind_with(address, access).map_err(|error| match error {
        // So that the error can say who it is.
        LinkError::AddressInUse { address, .. } => Error::Link(LinkError::AddressInUse {
            holder: who_listens(&address),
            address,
        }),
        error => error.into(),
    })
}

/// What came of accepting.
pub(crate) struct Accepted {
    /// So many clients the access rule did not admit.
    pub(crate) denied: u64,
    /// There may be more: a flood waits for its next turn.
    pub(crate) more: bool,
}

/// Accepts whoever waits. Those whom the access rule does not admit are told, and that the builder of this name can admit others.
pub(crate) fn accept(listener: &Listener, builder: &str, mut meet: impl FnMut(Link)) -> Accepted {
    let mut denied = 0;
    for _ in 0..MAX_ACCEPTS {
        let deny = |link: &Link, error: &LinkError| {
            let why = format!("as it sees it, {error} ({builder}::access admits others)");
            refuse(link, Refusal::Access { why });
        };
        match listener.try_accept_or(deny) {
            // Whatever goes wrong afterwards, that one link is closed and the next has its turn.
            Ok(link) => meet(link),
            Err(LinkError::AccessDenied { .. }) => denied += 1,
            // A client that was gone before it was accepted is no reason to stop. Anything else (nobody there, short of
            // descriptors or memory) is tried again at the next event.
            Err(error) if error.is_disconnected() => {}
            Err(_) => {
                return Accepted {
                    denied,
                    more: false,
                };
            }
        }
    }
    Accepted { denied, more: true }
}

/// Turns a client away before anything was said: it finds that on the link after the hang-up.
pub(crate) fn refuse(link: &Link, refusal: Refusal) {
    let _ = link.try_send(&Opening { version: VERSION });
    let _ = link.try_send(&PacketRef::Refused(refusal));
}

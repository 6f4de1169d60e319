//! Listening for whoever is to be at the other end of a lane.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use memlane_transport::{Access, Address, Error as LinkError, Link, Listener, who_listens};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::{
    Error, NOW,
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

/// A handshake takes so many descriptors at a time: that of a server with a client, which is two lanes, takes the most, and an
/// access rule may want to see the process.
const HANDSHAKE: usize = 14;

/// A descriptor kept for the day when there is no other: whoever comes then is told so, and does not wait in the backlog for
/// something that nobody hears of.
#[derive(Debug, Default)]
pub(crate) struct Spare(Option<OwnedFd>);

impl Spare {
    /// Where there is none, whoever comes in a shortage waits until another comes after it.
    pub(crate) fn keep(&mut self) {
        if self.0.is_none() {
            self.0 = eventfd(0, EventfdFlags::CLOEXEC).ok();
        }
    }

    fn give(&mut self) {
        self.0 = None;
    }
}

/// Whether there are descriptors for a handshake.
fn room(listener: &Listener) -> io::Result<()> {
    let mut probes = [const { None }; HANDSHAKE];
    for probe in &mut probes {
        *probe = Some(listener.as_fd().try_clone_to_owned()?);
    }
    Ok(())
}

/// Whether somebody waits to be accepted.
fn has_client(listener: &Listener) -> bool {
    let found = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&NOW));
    !matches!(found, Ok(0))
}

/// What came of accepting.
pub(crate) struct Accepted {
    /// So many clients were turned away: the access rule did not admit them, or there are no descriptors for them.
    pub(crate) refused: u64,
    /// There may be more: a flood waits for its next turn.
    pub(crate) more: bool,
}

/// Accepts whoever waits. Those who are turned away are told why; whom the access rule did not admit, that the builder of this
/// name can admit others.
pub(crate) fn accept(
    listener: &Listener,
    spare: &mut Spare,
    builder: &str,
    mut meet: impl FnMut(Link),
) -> Accepted {
    let mut refused = 0;
    let mut more = true;
    for _ in 0..MAX_ACCEPTS {
        // Where nobody waits, as a rule when somebody has left, others of this process are not to find their descriptors gone for a
        // moment, nor the spare one to be lost to them.
        let waits = has_client(listener);
        let short = waits.then(|| room(listener).err()).flatten();
        if short.is_some() {
            spare.give();
        }
        let mut denied = false;
        let deny = |link: &Link, error: &LinkError| {
            denied = true;
            let refusal = match error {
                LinkError::AccessDenied { .. } => Refusal::Access {
                    why: format!("as it sees it, {error} ({builder}::access admits others)"),
                },
                error => Refusal::Resources {
                    why: error.to_string(),
                },
            };
            refuse(link, refusal);
        };
        let accepted = listener.try_accept_or(deny);
        let short = match accepted {
            // It has come just now.
            Ok(_) if !waits => room(listener).err(),
            _ => short,
        };
        match (accepted, short) {
            // Whatever goes wrong afterwards, that one link is closed and the next has its turn.
            (Ok(link), None) => meet(link),
            (Ok(link), Some(error)) => {
                let why = error.to_string();
                refuse(&link, Refusal::Resources { why });
                refused += 1;
            }
            (Err(_), _) if denied => refused += 1,
            // A client that was gone before it was accepted is no reason to stop. Anything else (nobody there, short of
            // memory, or of descriptors without a spare one) is tried again at the next event.
            (Err(error), _) if error.is_disconnected() => {}
            (Err(_), _) => {
                more = false;
                break;
            }
        }
    }
    spare.keep();
    Accepted { refused, more }
}

/// Turns a client away before anything was said: it finds that on the link after the hang-up.
pub(crate) fn refuse(link: &Link, refusal: Refusal) {
    let _ = link.try_send(&Opening { version: VERSION });
    let _ = link.try_send(&PacketRef::Refused(refusal));
}

//! Subscribers that move to another process: the place of one is kept until its successor has it.
//!
//! The publisher makes the socket on which it hears the successor, since it receives on none that a subscriber has made, and the
//! old end passes the other end on; so does the successor for the other direction. What the successor shakes hands over is
//! admitted as any subscriber is, and waits; it begins where the cursor of the old one is, once that one has departed or is
//! gone. Until then that cursor keeps the ring. Receivers of a latest value move in the same way; they keep nothing, and instead of a
//! cursor there is the number of the value that the old one has read last.

use std::{os::fd::OwnedFd, sync::Arc};

use memlane_region::ring::{From, LEFT, NoSuccession, Reader};
use memlane_transport::{Error as LinkError, FdRef, Link};
use rustix::event::epoll::EventFlags;

use super::{
    control::{Control, Pattern},
    peer::Peer,
    state::{Comes, Connection, State},
};
use crate::{
    error::NO_HOLDER,
    is_gone,
    protocol::{Farewell, NoticeRef, Packet, Refusal},
};

/// So many packets of a subscriber are read in one go, before others have their turn.
const MAX_PACKETS: usize = 4;

/// So many may still hold something whose place a subscriber has, the one after the other. Each costs what a subscriber costs.
const MAX_PREDECESSORS: usize = 16;

/// So many tickets may be on their way to a subscriber, as far as the kernel knows: whoever takes one asks for another. Each is a
/// descriptor, of which all that this user's processes send may only have so many on their way.
const MAX_TICKETS: usize = 8;

/// Whose a subscriber's place in the roster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Its own for good: another lane has its link, too, and hears what it says.
    Fixed,
    /// Its own. Whoever is to take it has this source, by the last ticket, of this number.
    Own { successor: Option<u32>, ticket: u32 },
    /// It has departed, or is gone, and its place is kept for the one with this source, who goes on from there.
    Kept {
        successor: u32,
        linked: bool,
        from: From,
    },
    /// Another's. What it holds of the pool keeps its link.
    Taken,
}

impl Default for Place {
    fn default() -> Place {
        Place::Own {
            successor: None,
            ticket: 0,
        }
    }
}

impl Place {
    pub(super) fn successor(self) -> Option<u32> {
        match self {
            Place::Own { successor, .. } => successor,
            Place::Kept { successor, .. } => Some(successor),
            Place::Fixed | Place::Taken => None,
        }
    }

    /// What its link is watched for.
    pub(super) fn events(self) -> EventFlags {
        match self {
            Place::Fixed => EventFlags::RDHUP,
            _ => EventFlags::IN | EventFlags::RDHUP,
        }
    }

    pub(super) fn is_own(self) -> bool {
        matches!(self, Place::Own { .. } | Place::Fixed)
    }

    /// Whether somebody else goes on where it stops.
    pub(super) fn is_kept(self) -> bool {
        self.successor().is_some()
    }
}

impl Control {
    /// Hears what a subscriber says, and whether it is gone.
    pub(super) fn hear(&self, state: &mut State, source: u32) {
        for _ in 0..MAX_PACKETS {
            let Some(Connection::Joined {
                peer,
                process,
                place,
                ..
            }) = state.links.get(&source)
            else {
                return;
            };
            let said = match place {
                Place::Fixed => |_: &Link| Err(LinkError::WouldBlock),
                _ => Link::try_recv::<Packet>,
            };
            let said = peer.with_link(|link| match said(link) {
                // Its process may have ended while something else has its link. What it has said before is there by now.
                Err(LinkError::WouldBlock) => match is_gone(link, process.as_ref()) {
                    Ok(true) => Some(said(link).ok()),
                    _ => None,
                },
                said => Some(said.ok()),
            });
            let late = peer.evicted() && matches!(said, Some(Some(Some(_))));
            if late && !peer.may_speak() {
                return self.ended(state, source);
            }
            match said.flatten() {
                None => return,
                // It hears no answer any more, and stays until it has closed the link.
                Some(Some(Packet::Ticket { .. } | Packet::Departed { .. })) if late => {}
                Some(Some(Packet::Ticket { number })) => self.give_ticket(state, source, number),
                Some(Some(Packet::Departed {
                    position,
                    sequence,
                    attachments,
                })) => self.departed(state, source, (position, sequence), attachments),
                Some(Some(Packet::Stays)) => self.stays(state, source),
                // The end, or what no subscriber says.
                Some(_) => return self.ended(state, source),
            }
        }
    }

    fn place(state: &mut State, source: u32) -> Option<(&Arc<Peer>, &mut Place)> {
        match state.links.get_mut(&source) {
            Some(Connection::Joined { peer, place, .. }) => Some((peer, place)),
            _ => None,
        }
    }

    /// Whether a successor, which is to be overwritten or not, may have the place of this subscriber.
    pub(super) fn compare_kinds(
        state: &mut State,
        predecessor: u32,
        lossy: bool,
    ) -> Result<(), Refusal> {
        let kind = |lossy| match lossy {
            true => "is overwritten",
            false => "is waited for",
        };
        match Control::place(state, predecessor) {
            Some((peer, _)) if peer.is_lossy() != lossy => Err(Refusal::Pattern {
                why: format!(
                    "expected a successor that {}, as the one before it, got one that {}",
                    kind(!lossy),
                    kind(lossy)
                ),
            }),
            _ => Ok(()),
        }
    }

    /// Makes the socket that a subscriber's successor sends on. One that it had before is void.
    fn give_ticket(&self, state: &mut State, source: u32, number: u32) {
        let Some((_, Place::Own { successor, ticket })) = Control::place(state, source) else {
            return;
        };
        *ticket = number;
        if let Some(before) = successor.take() {
            self.remove(state, before);
        }
        if let Err(why) = self.make_ticket(state, source, number) {
            if let Some((peer, _)) = Control::place(state, source) {
                peer.say(&NoticeRef::Stays { number, why: &why });
            }
        }
    }

    /// As far as that can be done now, or why it cannot.
    fn make_ticket(&self, state: &mut State, source: u32, number: u32) -> Result<(), String> {
        let before = match state.links.get(&source) {
            Some(Connection::Joined { id, .. }) => self.roster.predecessors(*id),
            _ => 0,
        };
        if before >= MAX_PREDECESSORS {
            return Err(format!(
                "expected at most {MAX_PREDECESSORS} that had its place before and still hold something, got {before}"
            ));
        }
        let unread = Control::place(state, source).map_or(0, |(peer, _)| peer.unread_tickets());
        if unread >= MAX_TICKETS {
            return Err(format!(
                "expected at most {MAX_TICKETS} tickets on their way to it, got another request"
            ));
        }
        let short = |error| format!("the publisher is short of resources: {error}");
        let (ours, theirs) = Link::pair().map_err(short)?;
        let successor = self.greet(state, ours, None, Comes::ToSucceed(source));
        let successor = successor.map_err(|errno| short(errno.into()))?;
        let Some((peer, place)) = Control::place(state, source) else {
            return Ok(());
        };
        *place = Place::Own {
            successor: Some(successor),
            ticket: number,
        };
        let link = FdRef::new(&theirs);
        // Whoever is gone needs none. What takes a descriptor may find no room where a word does: in the kernel's count of those
        // on their way, or behind attachments.
        if peer.gives_ticket(&NoticeRef::Ticket { number, link }) {
            return Ok(());
        }
        if let Some((_, Place::Own { successor, .. })) = Control::place(state, source) {
            *successor = None;
        }
        self.remove(state, successor);
        Err("there is no room for its ticket now".to_owned())
    }

    /// The subscriber does not move.
    fn stays(&self, state: &mut State, source: u32) {
        if let Some((_, Place::Own { successor, .. })) = Control::place(state, source) {
            if let Some(successor) = successor.take() {
                self.remove(state, successor);
            }
        }
    }

    /// The subscriber has exported its last cursor, and reads no more.
    fn departed(
        &self,
        state: &mut State,
        source: u32,
        (position, sequence): (u64, u64),
        attachments: u64,
    ) {
        let Some((_, Place::Own { successor, .. })) = Control::place(state, source) else {
            return;
        };
        // One that has hung up by now, too, if nobody has noticed yet: it is removed, which tells of it.
        if let Some(successor) = *successor {
            self.look_after(state, successor);
        }
        let Some((peer, place)) = Control::place(state, source) else {
            return;
        };
        let successor = match *place {
            Place::Own {
                successor: Some(successor),
                ..
            } => successor,
            Place::Own { ticket, .. } => {
                return peer.say(&NoticeRef::Stays {
                    number: ticket,
                    why: NO_HOLDER,
                });
            }
            Place::Fixed | Place::Kept { .. } | Place::Taken => return,
        };
        if peer.sent_attachments() != attachments {
            if let Place::Own { successor, ticket } = place {
                *successor = None;
                peer.say(&NoticeRef::Stays {
                    number: *ticket,
                    why: "attachments of messages that it has not received are on their way to it",
                });
            }
            return self.remove(state, successor);
        }
        if position < self.roster.begun() {
            // Its successor would need memory of the publisher before this one.
            self.void_ticket(
                state,
                source,
                "it has still to receive what was sent before its publisher has moved",
            );
            return;
        }
        let from = match (self.terms.pattern, peer.is_lossy()) {
            (Pattern::Latest, _) => From::Seen(sequence),
            (Pattern::Lane, false) => From::Cursor(Some(sequence)),
            (Pattern::Lane, true) => From::Said { position, sequence },
        };
        *place = Place::Kept {
            successor,
            linked: true,
            from,
        };
        // Told after its successor: if this process ends between the two, both have what comes next, and not neither.
        let peer = peer.clone();
        self.succeed(state, successor);
        peer.say(&NoticeRef::Departed);
    }

    /// A subscriber's ticket is void.
    pub(super) fn void_ticket(&self, state: &mut State, source: u32, why: &str) {
        if let Some((peer, Place::Own { successor, ticket })) = Control::place(state, source) {
            let Some(before) = successor.take() else {
                return;
            };
            let number = *ticket;
            peer.say(&NoticeRef::Stays { number, why });
            peer.wake_again();
            self.remove(state, before);
        }
    }

    /// Removes a successor that has hung up.
    fn look_after(&self, state: &mut State, source: u32) {
        let ended = |link: &Link, process: &Option<OwnedFd>| {
            matches!(is_gone(link, process.as_ref()), Ok(true))
        };
        let ended = match state.links.get(&source) {
            Some(Connection::Greeting(greeter)) => ended(&greeter.link, &greeter.process),
            Some(Connection::Arriving { peer, process, .. }) => {
                peer.with_link(|link| ended(link, process)) != Some(false)
            }
            _ => false,
        };
        if ended {
            self.remove(state, source);
        }
    }

    /// The subscriber is gone, unless another goes on in its place.
    pub(super) fn ended(&self, state: &mut State, source: u32) {
        let Some(Connection::Joined {
            peer,
            process,
            place,
            ..
        }) = state.links.get_mut(&source)
        else {
            return;
        };
        // Of one that was dismissed there is nothing to go on from.
        let successor = place.successor().filter(|_| !peer.dismissed());
        let Some(successor) = successor else {
            return self.remove(state, source);
        };
        let from = match *place {
            Place::Kept { from, .. } => from,
            _ if self.terms.pattern == Pattern::Latest => From::Seen(0),
            _ if peer.is_lossy() => From::Here,
            _ => From::Cursor(None),
        };
        *place = Place::Kept {
            successor,
            linked: false,
            from,
        };
        self.detach(peer, process.as_ref());
        self.succeed(state, successor);
    }

    /// The one to succeed a subscriber has this source from now on.
    pub(super) fn expect(state: &mut State, predecessor: u32, source: u32) {
        match Control::place(state, predecessor) {
            Some((_, Place::Own { successor, .. })) => *successor = Some(source),
            Some((_, Place::Kept { successor, .. })) => *successor = source,
            Some((_, Place::Fixed | Place::Taken)) | None => {}
        }
    }

    /// A successor has shaken hands.
    pub(super) fn arrived(&self, state: &mut State, source: u32, predecessor: u32) {
        match Control::place(state, predecessor) {
            Some((_, Place::Kept { .. })) => self.succeed(state, source),
            Some((peer, Place::Own { ticket, .. })) => {
                peer.say(&NoticeRef::Awaited { number: *ticket });
                // It may be asleep, and wants to know.
                peer.wake_again();
            }
            Some((_, Place::Fixed | Place::Taken)) | None => self.remove(state, source),
        }
    }

    /// Whoever was to succeed a subscriber does not.
    pub(super) fn orphan(&self, state: &mut State, predecessor: u32, source: u32, why: &str) {
        match Control::place(state, predecessor) {
            // Unless another has been promised its place since.
            Some((peer, Place::Own { successor, ticket })) if *successor == Some(source) => {
                *successor = None;
                let number = *ticket;
                peer.say(&NoticeRef::Stays { number, why });
                peer.wake_again();
            }
            Some((_, place @ Place::Kept { .. })) => {
                *place = Place::default();
                self.remove(state, predecessor);
            }
            _ => {}
        }
    }

    /// Puts a successor in the place that is kept for it, if it is there.
    fn succeed(&self, state: &mut State, source: u32) {
        let Some(Connection::Arriving {
            peer, predecessor, ..
        }) = state.links.get(&source)
        else {
            return;
        };
        let (peer, predecessor) = (peer.clone(), *predecessor);
        let Some(Connection::Joined {
            id,
            peer: other,
            place,
            ..
        }) = state.links.get_mut(&predecessor)
        else {
            return;
        };
        let Place::Kept { linked, from, .. } = *place else {
            return;
        };
        match self.roster.succeed(*id, peer.clone(), from, linked) {
            Ok(joined) => {
                *place = Place::Taken;
                let begun = peer.try_say(&NoticeRef::Begin {
                    start: joined.start,
                    sequence: joined.sequence,
                    at: joined.ring,
                });
                if peer.is_behind() {
                    self.watch_joined(&peer, source, Place::default(), true);
                }
                if let Some(Connection::Arriving { process, .. }) = state.links.remove(&source) {
                    let connection = Connection::Joined {
                        id: joined.id,
                        peer,
                        process,
                        place: Place::default(),
                    };
                    state.links.insert(source, connection);
                }
                if !linked {
                    self.remove(state, predecessor);
                }
                // It may be waiting to attach something.
                if let Some(wakes) = &state.wakes {
                    wakes.tell();
                }
                if !begun {
                    self.remove(state, source);
                }
            }
            Err(error) => {
                *place = Place::default();
                match (&error, other.cursor()) {
                    // The publisher's sending side has just dropped it for that.
                    (NoSuccession::Gone, found) if found != LEFT && !other.dismissed() => {
                        other.corrupt(found);
                    }
                    (NoSuccession::Corrupt { found }, _) => other.corrupt(*found),
                    _ => {}
                }
                let why = error.to_string();
                peer.farewell(&Farewell::Evicted { why });
                self.remove(state, source);
                self.remove(state, predecessor);
            }
        }
    }
}

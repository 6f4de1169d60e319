//! What subscribers are told of the memory of their publisher.

use std::os::fd::OwnedFd;

use memlane_region::pool::{self, Change, Pool};
use rustix::event::epoll::{self, EventFlags};

use super::{
    control::Control,
    moving::Place,
    peer::Peer,
    state::{Connection, Ring, Segment, State},
};
use crate::protocol::NoticeRef;

impl Control {
    /// Tells every subscriber of a segment, before the first message in it is sent. What is loaned and dropped is no
    /// business of theirs: so no segment's notice waits on a link without a message that needs it.
    #[cold]
    pub(super) fn add(&self, added: &pool::Segment<'_>) {
        let mut state = self.state();
        if state.segments.iter().any(|known| known.id == added.id) {
            return;
        }
        let segment = Segment {
            id: added.id,
            geometry: added.geometry,
            memory: added.descriptor.clone().into(),
        };
        self.tell(&state, &segment.notice());
        state.segments.push(segment);
    }

    /// Tells every subscriber of a ring, before the publisher goes on in it.
    pub(super) fn add_ring(&self, id: u32, memory: OwnedFd) {
        let mut state = self.state();
        let memory = memory.into();
        let ring = Ring { id, memory };
        self.tell(&state, &ring.notice());
        state.rings.push(ring);
    }

    /// Tells every subscriber that a ring is given up.
    pub(super) fn remove_ring(&self, id: u32) {
        let mut state = self.state();
        state.rings.retain(|ring| ring.id != id);
        self.tell(&state, &NoticeRef::RingRemoved { id });
        // One that sleeps would keep the memory for as long.
        state.peers().for_each(|peer| peer.wake_again());
    }

    /// Tells every subscriber. A link that has no room for it is watched until it has, if its subscriber is one that nobody waits
    /// for.
    fn tell(&self, state: &State, notice: &NoticeRef<'_>) {
        for (source, connection) in &state.links {
            match connection {
                Connection::Joined { peer, place, .. } if place.is_own() => {
                    if peer.tell(notice) {
                        self.watch_joined(peer, *source, *place, true);
                    }
                }
                // One that has heard nothing yet has room.
                Connection::Arriving { peer, .. } => {
                    peer.tell(notice);
                }
                Connection::Joined { .. } | Connection::Greeting(_) => {}
            }
        }
    }

    /// Watches a link for what its subscriber says, for its end, and for room if there is more to say: edge-triggered, since what it
    /// has room for may not be enough.
    pub(super) fn watch_joined(&self, peer: &Peer, source: u32, place: Place, for_room: bool) {
        let flags = match for_room {
            true => place.events() | EventFlags::OUT | EventFlags::ET,
            false => place.events(),
        };
        peer.with_link(|link| match link.sends_over() {
            None => epoll::modify(&*self.epoll, link, self.token(source), flags),
            Some(out) => {
                let room = (EventFlags::OUT | EventFlags::ET) & flags;
                epoll::modify(&*self.epoll, out, self.token(source), room)
            }
        });
    }

    /// Tells a subscriber that has fallen behind what it has not been told. It is woken then: it may wait for just that.
    pub(super) fn tell_rest(&self, state: &State, source: u32) {
        let Some(Connection::Joined { peer, place, .. }) = state.links.get(&source) else {
            return;
        };
        if peer.is_behind() && !peer.catch_up(state.parts()) {
            self.watch_joined(peer, source, *place, false);
            peer.wake_again();
        }
    }

    /// Tells every subscriber what has been given up that they know of.
    pub(super) fn announce(&self, pool: &mut Pool) {
        let mut state = self.state();
        for change in pool.take_changes() {
            let Change::Removed(id) = change else {
                continue;
            };
            let known = state.segments.len();
            state.segments.retain(|segment| segment.id != id);
            if state.segments.len() == known {
                continue;
            }
            self.tell(&state, &NoticeRef::Removed { id });
            // One that sleeps would keep the memory for as long.
            state.peers().for_each(|peer| peer.wake_again());
        }
    }
}

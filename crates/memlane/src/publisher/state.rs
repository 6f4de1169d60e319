//! What the control side of a publisher knows: its links, what subscribers have to know of its memory, and who waits.

use std::{collections::HashMap, os::fd::OwnedFd, sync::Arc, task::Waker, time::Instant};

use memlane_region::pool::Geometry;
use memlane_transport::{Link, Listener, SharedFd};

use super::{
    attachments::Attaching, control::LISTENER, leaving::Leaving, moving::Place, peer::Peer,
    told::Part, wakes::Wakes,
};
use crate::{Error, accepting::Spare, protocol::NoticeRef};

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) listener: Option<Listener>,
    /// For the listener.
    pub(super) spare: Spare,
    pub(super) links: HashMap<u32, Connection>,
    pub(super) last_source: u32,
    /// Of the publisher's pool, as subscribers know it.
    pub(super) segments: Vec<Segment>,
    /// The publisher's rings, but for the first, as subscribers know them.
    pub(super) rings: Vec<Ring>,
    /// What wakes the publisher when it waits for room; none before it has.
    pub(super) wakes: Option<Arc<Wakes>>,
    /// What subscribers are told, or have been, of the attachments of the next message.
    pub(super) attaching: Option<Attaching>,
    /// Tag of the last one.
    pub(super) last_tag: u16,
    /// The task that waits for subscribers.
    pub(super) waiting: Option<Waker>,
    /// Why the link on which this publisher has offered its lane has come to nothing.
    pub(super) failed: Option<Error>,
    /// It is about to move to another process; and why it is not any more.
    pub(super) leaving: Option<Leaving>,
    pub(super) stays: Option<String>,
}

/// A segment that every subscriber has been told of.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: u32,
    pub(super) geometry: Geometry,
    pub(super) memory: SharedFd,
}

impl Segment {
    pub(super) fn notice(&self) -> NoticeRef<'_> {
        NoticeRef::Added {
            id: self.id,
            chunks: self.geometry.chunks,
            chunk_size: self.geometry.chunk_size,
            memory: &self.memory,
        }
    }
}

/// A ring that every subscriber has been told of.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) id: u32,
    pub(super) memory: SharedFd,
}

impl Ring {
    pub(super) fn notice(&self) -> NoticeRef<'_> {
        NoticeRef::Ring {
            id: self.id,
            memory: &self.memory,
        }
    }
}

impl State {
    /// What subscribers have to know of the publisher's memory, and how they are told.
    pub(super) fn parts(&self) -> impl Iterator<Item = (Part, NoticeRef<'_>)> + Clone {
        let rings = self.rings.iter();
        let segments = self.segments.iter();
        let rings = rings.map(|ring| (Part::Ring(ring.id), ring.notice()));
        rings.chain(segments.map(|segment| (Part::Segment(segment.id), segment.notice())))
    }

    /// The subscribers that have not departed, and those that are about to take the place of one.
    pub(super) fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.links
            .values()
            .filter_map(|connection| match connection {
                Connection::Joined { peer, place, .. } => place.is_own().then_some(peer),
                Connection::Arriving { peer, .. } => Some(peer),
                Connection::Greeting(_) => None,
            })
    }

    /// Whether one that is waited for has departed, and its successor is not there yet.
    pub(super) fn keeps_a_place(&self) -> bool {
        self.keeps_place_of(|peer| !peer.is_lossy())
    }

    /// Whether one that is overwritten has.
    pub(super) fn keeps_a_lossy_place(&self) -> bool {
        self.keeps_place_of(Peer::is_lossy)
    }

    fn keeps_place_of(&self, one: impl Fn(&Peer) -> bool) -> bool {
        self.links.values().any(|connection| match connection {
            Connection::Joined { peer, place, .. } => {
                let kept = !place.is_own() && place.is_kept();
                kept && one(peer) && !peer.dismissed()
            }
            _ => false,
        })
    }

    /// A number that no connection has, and none had lately.
    pub(super) fn next_source(&mut self) -> u32 {
        loop {
            self.last_source = self.last_source.wrapping_add(1);
            if self.last_source != LISTENER && !self.links.contains_key(&self.last_source) {
                return self.last_source;
            }
        }
    }
}

#[derive(Debug)]
pub(super) enum Connection {
    Greeting(Box<Greeter>),
    Joined {
        id: u64,
        peer: Arc<Peer>,
        /// Tells of its death where something else holds a copy of its link.
        process: Option<OwnedFd>,
        place: Place,
    },
    /// It has shaken hands, and waits for the place of the subscriber with this source.
    Arriving {
        peer: Arc<Peer>,
        process: Option<OwnedFd>,
        predecessor: u32,
    },
}

/// A link whose subscriber has not introduced itself yet.
#[derive(Debug)]
pub(super) struct Greeter {
    pub(super) link: Arc<Link>,
    /// The process that connected; of a link that was made elsewhere, whose maker is not its user, the one that was given.
    pub(super) process: Option<OwnedFd>,
    pub(super) since: Instant,
    /// Its version has come, and is ours.
    pub(super) opened: bool,
    pub(super) comes: Comes,
}

/// How a link came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comes {
    /// It was accepted, or given to this side.
    ToSubscribe,
    /// This side has connected, and offered its lane.
    Offered,
    /// It is that of another lane as well, the other way.
    Shared,
    /// This side has made it, for whoever takes the place of the subscriber with this source, and sends on it. What is
    /// said to that one goes over a socket that it brings along.
    ToSucceed(u32),
}

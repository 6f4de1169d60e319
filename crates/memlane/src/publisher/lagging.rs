//! Subscribers that are in the way: what becomes of them, and of those who wait for them.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use memlane_region::ring::{Dismissal, End, Joined, Laggard};

use super::{Publisher, peer::Peer, room::Need};
use crate::Overflow;

/// What becomes of a subscriber that is in the way of a message, once as much is kept for it as may be
/// ([`PublisherBuilder::when_full`](crate::PublisherBuilder::when_full)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// What it has asked for ([`SubscriberBuilder::overflow`](crate::SubscriberBuilder::overflow)): the publisher waits for it, and
    /// with it all others do, unless it is to be dropped at once.
    #[default]
    AsAsked,
    /// The publisher waits for it, and drops it after this long, whatever it has asked for. One that asks to be dropped at once
    /// is.
    Disconnect {
        /// How long it is waited for.
        after: Duration,
    },
}

/// What a callback decides about a subscriber that is in the way
/// ([`PublisherBuilder::on_lagging`](crate::PublisherBuilder::on_lagging)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// To wait for it, with everybody else, until it is asked about again.
    Wait,
    /// To keep for it what it has not read, and go on, as far as
    /// [`spill_bytes`](crate::PublisherBuilder::spill_bytes) allows; to wait, where that is used up, or the pool is.
    Spill,
    /// To drop it, and go on. It is told so: it receives what it has begun to read, and then
    /// [`Disconnected`](crate::RecvError::Disconnected).
    Disconnect,
}

/// A subscriber that is in the way of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lagging {
    /// A number that no other subscriber of this publisher has, or had.
    pub subscriber: u64,
    /// The process that connected; of a link that was made elsewhere, the one that made it.
    pub pid: Option<u32>,
    /// What it has asked for.
    pub overflow: Overflow,
    /// Bytes of the ring's stream that it has not released, by its own word, which lags by up to an eighth of the ring.
    pub behind: u64,
    /// Bytes of rings, beyond the one that is written, that are kept for it.
    pub spilled: usize,
    /// Bytes of the pool that it has.
    pub pool: usize,
    /// For how long the publisher has been held up by it now.
    pub waited: Duration,
}

impl fmt::Display for Lagging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lagging {
            behind,
            spilled,
            pool,
            waited,
            ..
        } = self;
        write!(
            f,
            "it was too slow: {behind} bytes behind, with {spilled} bytes of spill and {pool} bytes of the pool, and waited for \
             {waited:?}"
        )
    }
}

/// A callback is asked about the same subscriber at most so often, while the publisher waits for it.
const ASK_EVERY: Duration = Duration::from_millis(10);

type Decide = dyn FnMut(&Lagging) -> Decision + Send;

/// The user's own word.
#[derive(Clone)]
pub(super) struct Ask(Arc<Mutex<Decide>>);

impl Ask {
    pub(super) fn new(ask: impl FnMut(&Lagging) -> Decision + Send + 'static) -> Ask {
        Ask(Arc::new(Mutex::new(ask)))
    }

    fn ask(&self, lagging: &Lagging) -> Decision {
        (self.0.lock().unwrap_or_else(PoisonError::into_inner))(lagging)
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FnMut(&Lagging) -> Decision")
    }
}

/// Who is in the way, and what is to be done about it.
#[derive(Debug)]
pub(super) struct Laggards {
    when_full: WhenFull,
    ask: Option<Ask>,
    /// As of the last time that there was no room.
    known: Vec<Known>,
    /// When they are to be looked at again, whatever happens.
    again: Option<Instant>,
    /// The descriptor is to become readable then.
    pub(super) alarm: bool,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    id: u64,
    since: Instant,
    /// The publisher's position then: it has been held up for as long as it is there.
    position: u64,
    /// When the callback was asked last, and what it said.
    asked: Option<(Instant, Decision)>,
}

/// One of them.
struct Slow {
    peer: Arc<Peer>,
    lagging: Lagging,
    /// Another ring may be kept for it.
    may_spill: bool,
}

impl Laggards {
    pub(super) fn new(when_full: WhenFull, ask: Option<Ask>) -> Laggards {
        Laggards {
            when_full,
            ask,
            known: Vec::new(),
            again: None,
            alarm: false,
        }
    }

    /// Whether nobody but they themselves has a say.
    fn are_as_asked(&self) -> bool {
        self.ask.is_none() && self.when_full == WhenFull::AsAsked
    }

    pub(super) fn again(&self) -> Option<Instant> {
        self.again
    }

    /// For how long each of these has held up a publisher that is at this position.
    fn recognize(&mut self, slow: &mut [Slow], position: u64, now: Instant) {
        let before = std::mem::take(&mut self.known);
        for Slow { lagging, .. } in slow {
            let id = lagging.subscriber;
            let known = before
                .iter()
                .find(|known| known.id == id && known.position == position);
            let known = known.copied().unwrap_or(Known {
                id,
                since: now,
                position,
                asked: None,
            });
            lagging.waited = now.saturating_duration_since(known.since);
            self.known.push(known);
        }
    }

    fn decide(&mut self, slow: &Slow, now: Instant) -> Decision {
        let Slow {
            lagging, may_spill, ..
        } = slow;
        let known = self.known.iter_mut();
        let known = known
            .into_iter()
            .find(|known| known.id == lagging.subscriber);
        let mut decision = match (&self.ask, known) {
            (Some(ask), Some(known)) => match known.asked {
                Some((at, decision)) if now < at + ASK_EVERY => decision,
                _ => known.asked.insert((now, ask.ask(lagging))).1,
            },
            _ if *may_spill => Decision::Spill,
            _ if lagging.overflow == Overflow::Disconnect => Decision::Disconnect,
            _ => match self.when_full {
                WhenFull::AsAsked => Decision::Wait,
                WhenFull::Disconnect { after } if lagging.waited >= after => Decision::Disconnect,
                WhenFull::Disconnect { after } => {
                    // None is later than there are times.
                    if let Some(at) = now.checked_add(after - lagging.waited) {
                        self.look_again(at);
                    }
                    Decision::Wait
                }
            },
        };
        if decision == Decision::Spill && !may_spill {
            decision = Decision::Wait;
        }
        if self.ask.is_some() && decision == Decision::Wait {
            self.look_again(now + ASK_EVERY);
        }
        decision
    }

    fn look_again(&mut self, at: Instant) {
        self.again = Some(self.again.map_or(at, |again| again.min(at)));
    }
}

impl Publisher {
    /// There is no room, as a look has just found: does about those who are in the way what is to be done. Whether there may be room
    /// now.
    #[cold]
    #[inline(never)]
    pub(super) fn make_way(&mut self, need: Need) -> bool {
        self.laggards.again = None;
        if matches!(need, Need::Chunk(_)) && self.writer.forget() {
            // What is kept for those who may come gives way to what is sent.
            return true;
        }
        if self.spill.rings() == 0 && self.laggards.are_as_asked() && !self.anyone_asks() {
            return false;
        }
        let mut slow = match need {
            Need::Ring(len) => self.in_the_way(len),
            Need::Chunk(_) => self.in_the_way_of_the_pool(),
            Need::Attachments(_) => self.in_the_way_of_attachments(),
            Need::Drained => return false,
        };
        if slow.is_empty() {
            return false;
        }
        let now = Instant::now();
        let position = self.writer.position();
        self.laggards.recognize(&mut slow, position, now);
        let mut waits = false;
        let mut dropped = Vec::new();
        for slow in slow {
            match self.laggards.decide(&slow, now) {
                Decision::Wait => waits = true,
                Decision::Spill => {}
                Decision::Disconnect => dropped.push(slow),
            }
        }
        let any = !dropped.is_empty();
        if any && !self.drop_laggards_beside(need, &dropped) {
            self.laggards.look_again(now + ASK_EVERY);
            return false;
        }
        match need {
            // As a rule the ring of those who were dropped has been left.
            Need::Ring(len) if !waits && self.writer.reserve(len).is_err() => {
                let Some(ring) = self.another_ring() else {
                    self.laggards.look_again(now + ASK_EVERY);
                    return false;
                };
                self.leave_ring(ring);
                true
            }
            _ => any,
        }
    }

    /// Whether any subscriber is to be dropped at once.
    fn anyone_asks(&self) -> bool {
        let mut readers = self.writer.readers();
        readers.any(|joined| joined.reader.overflow() == Overflow::Disconnect)
    }

    fn slow(&self, slow: &Laggard<'_, Peer>, may_spill: bool) -> Slow {
        let Joined {
            id, start, reader, ..
        } = slow.joined;
        Slow {
            peer: reader.clone(),
            may_spill,
            lagging: self
                .describe(*id, reader, *start)
                .behind(slow.behind, slow.rings * self.spill.ring_bytes()),
        }
    }

    fn in_the_way(&self, len: usize) -> Vec<Slow> {
        let rings = self.spill.rings();
        let laggards = self.writer.laggards(len);
        laggards
            .map(|slow| self.slow(&slow, slow.rings < rings))
            .collect()
    }

    /// Those who have what the pool would have next, by their cursors or in slots.
    fn in_the_way_of_the_pool(&mut self) -> Vec<Slow> {
        // For a look at the cursors: there was room in the ring, so that nobody may have looked for long.
        self.writer.is_drained();
        let readers = self.writer.standings();
        let slow = readers.filter(|slow| {
            let Joined { start, reader, .. } = slow.joined;
            self.pool.is_held_up_by(*start, &**reader)
        });
        slow.map(|slow| self.slow(&slow, false)).collect()
    }

    /// Those who have not taken attachments of messages before. More rings are of no help to them.
    fn in_the_way_of_attachments(&mut self) -> Vec<Slow> {
        // For a look at the cursors, too.
        self.writer.is_drained();
        let peers = self.control.in_the_way_of_attachments();
        let readers = self.writer.standings();
        let slow = readers.filter(|slow| {
            let reader = &slow.joined.reader;
            peers.iter().any(|peer| Arc::ptr_eq(peer, reader))
        });
        slow.map(|slow| self.slow(&slow, false)).collect()
    }

    /// Goes on without these. What is written of the message that waits for them is found in whichever ring that leads to.
    fn drop_laggards_beside(&mut self, need: Need, slow: &[Slow]) -> bool {
        let Need::Attachments(Some(written)) = need else {
            return self.drop_laggards(slow);
        };
        let before = self.writer.ring();
        let text = self.writer.payload(written).to_vec();
        let dropped = self.drop_laggards(slow);
        if self.writer.ring() != before {
            let room = self.writer.reserve(written);
            debug_assert!(room.is_ok(), "nothing is in the way in a ring just begun");
            self.writer.payload_mut(written).copy_from_slice(&text);
        }
        dropped
    }

    fn describe(&self, id: u64, peer: &Peer, start: u64) -> Lagging {
        Lagging {
            subscriber: id,
            pid: peer.pid(),
            overflow: peer.overflow(),
            behind: 0,
            spilled: 0,
            pool: self.pool.held_by(start, peer).bytes,
            waited: Duration::ZERO,
        }
    }

    /// Goes on without these, and leaves them what they may be reading. False if that cannot be now.
    fn drop_laggards(&mut self, slow: &[Slow]) -> bool {
        // Each ends with the ring that it reads. If that is the one which is written, it is left, be it empty.
        let here = self.writer.ring();
        let mut ends = slow.iter().filter_map(|slow| self.end_of(slow));
        let ring = match ends.any(|end| end.ring == here) {
            false => None,
            true => match self.another_ring() {
                None => return false,
                ring => ring,
            },
        };
        let (mut any, mut leave) = (false, false);
        for slow in slow {
            // It has left, or has come this far since.
            let Some(end) = self
                .end_of(slow)
                .filter(|end| end.ring != here || ring.is_some())
            else {
                any = true;
                continue;
            };
            let Slow { peer, lagging, .. } = slow;
            if peer.dismiss_absent() {
                // Nobody reads what is kept here.
                self.writer.roster().leave(lagging.subscriber);
                self.stats.too_slow += 1;
                any = true;
                continue;
            }
            // Told first: it looks for that before it goes on into another ring.
            if !peer.dismiss(lagging.to_string(), end) {
                continue;
            }
            match self.writer.dismiss(lagging.subscriber, end) {
                Dismissal::Done => {}
                Dismissal::LeaveRing => leave = true,
                Dismissal::Passed => {
                    // Unless it ends there, it may be in nobody's way by now.
                    peer.retain();
                    any = true;
                    continue;
                }
            }
            self.stats.too_slow += 1;
            any = true;
        }
        match ring {
            Some(ring) if leave => self.leave_ring(ring),
            Some(ring) => self.forgo_ring(ring),
            None => {}
        }
        // Whoever sleeps before the end of its ring sees it now, and will not be rung for anything else.
        self.writer.fence(true);
        for Slow { peer, .. } in slow {
            peer.wake_again();
        }
        any
    }
}

impl Publisher {
    fn end_of(&self, slow: &Slow) -> Option<End> {
        self.writer.end_of(slow.lagging.subscriber)
    }
}

impl Lagging {
    fn behind(self, behind: u64, spilled: usize) -> Lagging {
        Lagging {
            behind,
            spilled,
            ..self
        }
    }
}

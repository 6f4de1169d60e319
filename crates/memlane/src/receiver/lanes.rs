//! The lanes of one reader, and whose turn it is.

use std::collections::VecDeque;

use super::gather::{Armed, Found, Heed, Key};
use crate::{Subscriber, Trust, subscriber::Arming};

/// So many messages of one lane in a row, while others have some.
const TURN: u32 = 16;

#[derive(Debug)]
pub(super) struct Lanes<T: Trust> {
    pub(super) slots: Vec<Option<Lane<T>>>,
    /// Places without a lane.
    pub(super) free: Vec<u32>,
    /// Of the next lane.
    pub(super) generation: u32,
    /// In turn. Keys of lanes that are gone are left in the queues until their turn comes.
    pub(super) hot: VecDeque<Key>,
    /// Messages received from the first of them in this turn.
    pub(super) served: u32,
    /// The next one to be glanced at first, those that are hot by now among them.
    pub(super) armed: VecDeque<Key>,
}

#[derive(Debug)]
pub(super) struct Lane<T: Trust> {
    pub(super) subscriber: Subscriber<T>,
    pub(super) key: Key,
    pub(super) armed: bool,
    /// Its key is among the armed.
    pub(super) queued: bool,
}

impl<T: Trust> Default for Lanes<T> {
    fn default() -> Lanes<T> {
        Lanes {
            slots: Vec::new(),
            free: Vec::new(),
            generation: 0,
            hot: VecDeque::new(),
            served: 0,
            armed: VecDeque::new(),
        }
    }
}

impl<T: Trust> Lanes<T> {
    pub(super) fn place(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        })
    }

    #[inline]
    pub(super) fn get(&mut self, key: Key) -> Option<&mut Lane<T>> {
        let lane = self.slots.get_mut(key.index())?.as_mut()?;
        (lane.key == key).then_some(lane)
    }

    /// Looks at every hot lane once, and at one that is armed.
    #[inline]
    pub(super) fn find(&mut self, heed: Heed) -> Option<Found> {
        self.glance(heed);
        for _ in 0..self.hot.len() {
            if self.served >= TURN {
                self.turn();
            }
            let key = *self.hot.front()?;
            let Some(lane) = self.get(key) else {
                self.hot.pop_front();
                self.served = 0;
                continue;
            };
            match lane.subscriber.look() {
                Ok(None) => self.turn(),
                Ok(Some(record)) => {
                    self.served += 1;
                    return Some(Found::Record(key, record));
                }
                Err(error) => return Some(Found::Ended(key, error)),
            }
        }
        None
    }

    /// The next payload in the ring of the lane whose turn it is, if there is one.
    #[inline(always)]
    pub(super) fn payload(&mut self) -> Option<(Key, usize)> {
        self.glance(Heed::Looks);
        if self.served >= TURN {
            self.turn();
        }
        let key = *self.hot.front()?;
        let len = self.get(key)?.subscriber.payload()?;
        self.served += 1;
        Some((key, len))
    }

    /// Says what has been released of hot lanes; whether one of them is to be looked at more closely.
    pub(super) fn release_all(&mut self) -> bool {
        let Lanes { slots, hot, .. } = self;
        hot.iter().any(|key| {
            let lane = slots.get_mut(key.index()).and_then(Option::as_mut);
            lane.is_none_or(|lane| !lane.subscriber.release_all())
        })
    }

    /// Whether a hot lane has something, or one that is armed: a load for each. What that is, [`find`](Lanes::find) says, which is
    /// not to be moved through memory for each look of a spin.
    #[inline]
    pub(super) fn glimpse(&mut self) -> bool {
        self.glance(Heed::Looks);
        let Lanes { slots, hot, .. } = self;
        let has_some = |key: &Key| {
            let lane = slots.get(key.index()).and_then(Option::as_ref);
            lane.is_some_and(|lane| !lane.subscriber.is_empty())
        };
        hot.iter().any(has_some)
    }

    #[inline]
    pub(super) fn turn(&mut self) {
        self.served = 0;
        if self.hot.len() > 1 {
            self.hot.rotate_left(1);
        }
    }

    /// Looks at one armed lane: it may have a message that its ring has not told of yet.
    #[inline]
    pub(super) fn glance(&mut self, heed: Heed) {
        let Some(key) = self.armed.pop_front() else {
            return;
        };
        let Some(lane) = self.get(key) else {
            return;
        };
        if !lane.armed {
            lane.queued = false;
        } else if lane.subscriber.is_empty() {
            self.armed.push_back(key);
        } else {
            lane.queued = false;
            self.heat(key, heed);
        }
    }

    /// An armed lane is hot from now on.
    #[cold]
    pub(super) fn heat(&mut self, key: Key, heed: Heed) {
        if let Some(lane) = self.get(key) {
            lane.armed = false;
            match heed {
                Heed::Looks => lane.subscriber.disarm(),
                Heed::Rings => lane.subscriber.leave_armed(),
            }
            self.hot.push_back(key);
        }
    }

    pub(super) fn rung(&mut self, key: Key) {
        let Some(lane) = self.get(key) else {
            return;
        };
        // A late ring of a lane that is hot by now is taken, too, or it would be told of for ever.
        lane.subscriber.take_ring();
        if lane.armed {
            self.heat(key, Heed::Looks);
        }
    }

    /// Arms every lane that is hot. A message that one of them has after all leaves it hot, and those behind it.
    pub(super) fn arm(&mut self) -> Armed {
        self.served = 0;
        while let Some(key) = self.hot.front().copied() {
            let Some(lane) = self.get(key) else {
                self.hot.pop_front();
                continue;
            };
            match lane.subscriber.arm() {
                Ok(Arming::Armed) => {
                    lane.armed = true;
                    let queued = std::mem::replace(&mut lane.queued, true);
                    self.hot.pop_front();
                    if !queued {
                        self.armed.push_back(key);
                    }
                }
                Ok(Arming::Found(record)) => return Armed::Found(Found::Record(key, record)),
                Ok(Arming::Overtaken) => return Armed::Overtaken,
                Err(error) => return Armed::Found(Found::Ended(key, error)),
            }
        }
        Armed::All
    }
}

//! Which requests have been sent, and what has come of them that nobody has taken yet.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use crate::envelope::{ITEM, PLACE_BITS, place};

/// Names a request of a client, and never another one of the same client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub(crate) u64);

/// A request that was sent, and whose reply is awaited. Dropped before it has come, the request is cancelled: the
/// server is told by the next call of the client's, whatever it is.
#[derive(Debug)]
#[must_use = "a call that is dropped is cancelled"]
pub struct Call {
    id: CallId,
    dropped: Arc<Dropped>,
    pub(super) over: bool,
}

impl Call {
    pub(super) fn new(id: CallId, dropped: &Arc<Dropped>) -> Call {
        let dropped = dropped.clone();
        let over = false;
        Call { id, dropped, over }
    }

    /// Its name.
    pub fn id(&self) -> CallId {
        self.id
    }

    /// Only its name, which cancels nothing when it is dropped: for whoever receives
    /// [whatever comes](super::Client::recv).
    pub fn detach(mut self) -> CallId {
        self.over = true;
        self.id
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.over {
            self.dropped.push(self.id);
        }
    }
}

/// Calls that were dropped, on whatever thread.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    any: AtomicBool,
    ids: Mutex<Vec<CallId>>,
}

impl Dropped {
    fn push(&self, id: CallId) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.push(id);
        self.any.store(true, Ordering::Release);
    }

    /// Those since the last time. One load where there are none.
    #[inline(always)]
    pub(super) fn take(&self) -> Option<Vec<CallId>> {
        self.any.load(Ordering::Acquire).then(|| {
            let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
            self.any.store(false, Ordering::Relaxed);
            std::mem::take(&mut *ids)
        })
    }
}

/// All requests without a last reply, by their place.
#[derive(Debug)]
pub(super) struct Calls {
    places: Vec<Place>,
    free: Vec<u16>,
    /// So many the server takes.
    pub(super) limit: usize,
    /// What was stored, in the order in which it came; entries of what has been taken since are left in it.
    arrived: VecDeque<CallId>,
    stored: usize,
    pub(super) bytes: usize,
    /// How many are awaited, and how many of those have a deadline.
    open: usize,
    deadlines: usize,
    /// Of whom something was stored since this was looked at last, if anybody looks at it.
    noted: Option<Vec<CallId>>,
}

#[derive(Debug)]
struct Place {
    id: CallId,
    state: State,
    deadline: Option<Instant>,
    stored: VecDeque<Stored>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Its replies are awaited.
    Open,
    /// Nobody waits, and the server has not said its last yet.
    GivenUp,
    /// The last reply is stored.
    Answered,
}

/// A reply that came while another one was waited for.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) kind: u64,
    pub(super) payload: Vec<u8>,
}

/// What to do with a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is awaited.
    Awaited,
    /// Nobody waits for it any more.
    GivenUp,
    /// There is no such request, or it had its last reply.
    Stray,
}

/// What is counted for each reply that is stored, beside its bytes.
const OVERHEAD: usize = 64;

impl Calls {
    pub(super) fn new(limit: usize) -> Calls {
        Calls {
            places: Vec::new(),
            free: Vec::new(),
            limit,
            arrived: VecDeque::new(),
            stored: 0,
            bytes: 0,
            open: 0,
            deadlines: 0,
            noted: None,
        }
    }

    /// From now on it is noted of whom something is stored.
    pub(super) fn note_stored(&mut self) {
        self.noted.get_or_insert_default();
    }

    /// Of whom something was stored since the last time.
    pub(super) fn take_noted(&mut self) -> Vec<CallId> {
        self.noted.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn has_deadlines(&self) -> bool {
        self.deadlines > 0
    }

    /// Those that are awaited, and whose time is over.
    pub(super) fn overdue(&self, now: Instant) -> impl Iterator<Item = CallId> + '_ {
        let places = match self.deadlines {
            0 => &[],
            _ => &self.places[..],
        };
        let late = move |found: &&Place| found.deadline.is_some_and(|deadline| now >= deadline);
        places.iter().filter(late).map(|found| found.id)
    }

    /// A number for a request; none if there are as many as can be.
    #[inline]
    pub(super) fn open(&mut self, deadline: Option<Instant>) -> Option<CallId> {
        let at = match self.free.pop() {
            Some(at) => usize::from(at),
            None if self.places.len() < self.limit => self.grow(),
            None => return None,
        };
        let found = &mut self.places[at];
        found.id = CallId((found.id.0 | ((1 << PLACE_BITS) - 1)).wrapping_add(1) | at as u64);
        found.state = State::Open;
        found.deadline = deadline;
        self.open += 1;
        self.deadlines += usize::from(deadline.is_some());
        Some(found.id)
    }

    #[cold]
    fn grow(&mut self) -> usize {
        self.places.push(Place {
            id: CallId(0),
            state: State::Free,
            deadline: None,
            stored: VecDeque::new(),
        });
        self.places.len() - 1
    }

    #[inline(always)]
    fn get(&mut self, id: CallId) -> Option<&mut Place> {
        let found = self.places.get_mut(place(id.0))?;
        (found.id == id && found.state != State::Free).then_some(found)
    }

    /// How many have no last reply, or one that nobody has taken.
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether its replies are awaited, or stored.
    pub(super) fn is_open(&mut self, id: CallId) -> bool {
        self.get(id)
            .is_some_and(|found| found.state != State::GivenUp)
    }

    /// Whether its replies are awaited, for as long as it takes, and none of any request is stored.
    #[inline(always)]
    pub(super) fn is_awaited_only(&mut self, id: CallId) -> bool {
        self.stored == 0
            && self
                .get(id)
                .is_some_and(|found| found.state == State::Open && found.deadline.is_none())
    }

    pub(super) fn deadline(&mut self, id: CallId) -> Option<Instant> {
        self.get(id)?.deadline
    }

    /// The earliest of all that are awaited.
    pub(super) fn earliest(&self) -> Option<(Instant, CallId)> {
        if self.deadlines == 0 {
            return None;
        }
        let open = self
            .places
            .iter()
            .filter(|found| found.state == State::Open);
        open.filter_map(|found| Some((found.deadline?, found.id)))
            .min()
    }

    /// The earliest after that time of all that are awaited.
    #[inline]
    pub(super) fn next_deadline(&self, after: Option<Instant>) -> Option<Instant> {
        if self.deadlines == 0 {
            return None;
        }
        let open = self
            .places
            .iter()
            .filter(|found| found.state == State::Open);
        let deadlines = open.filter_map(|found| found.deadline);
        deadlines
            .filter(|deadline| after.is_none_or(|after| *deadline > after))
            .min()
    }

    /// Whether none is awaited, and nothing stored.
    pub(super) fn is_idle(&self) -> bool {
        self.open == 0 && self.stored == 0
    }

    /// What becomes of a reply.
    #[inline]
    pub(super) fn meet(&mut self, id: CallId) -> Fate {
        match self.get(id).map(|found| found.state) {
            Some(State::Open) => Fate::Awaited,
            Some(State::GivenUp) => Fate::GivenUp,
            _ => Fate::Stray,
        }
    }

    /// The last reply to it has come, and is taken.
    #[inline]
    pub(super) fn close(&mut self, id: CallId) {
        let Some(found) = self.get(id) else {
            return;
        };
        let had = usize::from(found.deadline.take().is_some());
        let open = usize::from(found.state == State::Open);
        found.state = State::Free;
        self.open -= open;
        self.deadlines -= had;
        self.free.push(place(id.0) as u16);
        if self.stored > 0 {
            self.forget(id);
        }
    }

    /// Drops what is stored of it.
    #[cold]
    fn forget(&mut self, id: CallId) {
        let stored = std::mem::take(&mut self.places[place(id.0)].stored);
        self.stored -= stored.len();
        self.bytes -= stored.iter().map(Stored::weight).sum::<usize>();
    }

    /// Nobody waits for it any more. Whether its server is to be told.
    pub(super) fn give_up(&mut self, id: CallId) -> bool {
        match self.meet(id) {
            Fate::Awaited => {}
            // Its last reply is here already; or it was given up before.
            Fate::Stray => {
                self.close(id);
                return false;
            }
            Fate::GivenUp => return false,
        }
        let Some(found) = self.get(id) else {
            return false;
        };
        found.state = State::GivenUp;
        let had = usize::from(found.deadline.take().is_some());
        self.open -= 1;
        self.deadlines -= had;
        self.forget(id);
        true
    }

    /// Keeps a reply for later.
    pub(super) fn store(&mut self, id: CallId, stored: Stored) {
        let (last, weight) = (stored.kind != ITEM, stored.weight());
        let Some(found) = self.get(id) else {
            return;
        };
        found.stored.push_back(stored);
        if last && found.state == State::Open {
            found.state = State::Answered;
            let had = usize::from(found.deadline.take().is_some());
            self.open -= 1;
            self.deadlines -= had;
        }
        self.stored += 1;
        self.bytes += weight;
        if let Some(noted) = &mut self.noted {
            noted.push(id);
        }
        if self.arrived.len() >= 2 * self.stored + 64 {
            self.forget_taken();
        }
        self.arrived.push_back(id);
    }

    /// Leaves as many entries of each request as there are replies to it, the newest ones.
    #[cold]
    fn forget_taken(&mut self) {
        let places = &self.places;
        let mut left: Vec<usize> = places.iter().map(|found| found.stored.len()).collect();
        let mut kept = VecDeque::with_capacity(self.stored);
        for id in self.arrived.iter().rev() {
            let at = place(id.0);
            if places[at].id == *id && left[at] > 0 {
                left[at] -= 1;
                kept.push_front(*id);
            }
        }
        self.arrived = kept;
    }

    /// What has been kept of a request, or of the one whose reply came first.
    #[inline]
    pub(super) fn take(&mut self, id: Option<CallId>) -> Option<(CallId, Stored)> {
        if self.stored == 0 {
            return None;
        }
        let id = match id {
            Some(id) => id,
            None => loop {
                let id = self.arrived.pop_front()?;
                if self.get(id).is_some_and(|found| !found.stored.is_empty()) {
                    break id;
                }
            },
        };
        let stored = self.get(id)?.stored.pop_front()?;
        self.stored -= 1;
        self.bytes -= stored.weight();
        if self.stored == 0 {
            self.arrived.clear();
        }
        if stored.kind != ITEM {
            self.close(id);
        }
        Some((id, stored))
    }
}

impl Stored {
    fn weight(&self) -> usize {
        self.payload.len() + OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(kind: u64, byte: u8) -> Stored {
        let payload = vec![byte; 3];
        Stored { kind, payload }
    }

    #[test]
    fn numbers_are_never_used_again() {
        let mut calls = Calls::new(2);
        let first = calls.open(None).unwrap();
        let second = calls.open(None).unwrap();
        assert_eq!((place(first.0), place(second.0)), (0, 1));
        assert!(calls.open(None).is_none());
        calls.close(first);
        let third = calls.open(None).unwrap();
        assert!(place(third.0) == 0 && third != first);
        assert_eq!(calls.meet(first), Fate::Stray);
        assert_eq!(calls.meet(third), Fate::Awaited);
        assert_eq!(calls.meet(CallId(0)), Fate::Stray);
        assert_eq!(calls.meet(CallId(u64::MAX)), Fate::Stray);
    }

    #[test]
    fn what_is_given_up_keeps_its_place_until_the_server_has_said_its_last() {
        let mut calls = Calls::new(1);
        let first = calls.open(None).unwrap();
        calls.store(first, stored(ITEM, 1));
        assert!(calls.give_up(first) && !calls.give_up(first));
        assert_eq!((calls.bytes, calls.meet(first)), (0, Fate::GivenUp));
        assert!(calls.open(None).is_none());
        calls.close(first);
        assert!(calls.open(None).is_some());
    }

    #[test]
    fn stored_replies_come_in_order() {
        let mut calls = Calls::new(9);
        let [first, second] = [(); 2].map(|()| calls.open(None).unwrap());
        for (id, kind, byte) in [
            (first, ITEM, 1),
            (second, ITEM, 2),
            (first, ITEM, 3),
            (second, crate::envelope::LAST, 4),
        ] {
            calls.store(id, stored(kind, byte));
        }
        let mut take = |id| {
            let (id, stored) = calls.take(id)?;
            Some((id, stored.payload[0]))
        };
        assert_eq!(take(Some(second)), Some((second, 2)));
        assert_eq!(take(None), Some((first, 1)));
        assert_eq!(take(None), Some((second, 4)));
        assert_eq!(take(Some(second)), None);
        assert_eq!(take(None), Some((first, 3)));
        assert_eq!(take(None), None);
        assert_eq!((calls.len(), calls.bytes, calls.arrived.len()), (1, 0, 0));
    }

    #[test]
    fn what_was_taken_by_name_does_not_pile_up() {
        let mut calls = Calls::new(9);
        let [first, second] = [(); 2].map(|()| calls.open(None).unwrap());
        calls.store(first, stored(ITEM, 1));
        for _ in 0..10_000 {
            calls.store(second, stored(ITEM, 2));
            assert!(calls.take(Some(second)).is_some());
        }
        assert!(calls.arrived.len() <= 128);
        assert_eq!(calls.take(None).unwrap().0, first);
    }

    #[test]
    fn the_earliest_deadline_is_known() {
        let mut calls = Calls::new(9);
        let now = Instant::now();
        assert_eq!(calls.earliest(), None);
        let ids = [3_u64, 1, 2].map(|s| {
            let deadline = now + std::time::Duration::from_secs(s);
            calls.open(Some(deadline)).unwrap()
        });
        assert_eq!(calls.earliest().unwrap().1, ids[1]);
        calls.close(ids[1]);
        assert_eq!(calls.earliest().unwrap().1, ids[2]);
        assert!(calls.give_up(ids[2]));
        assert_eq!(calls.earliest().unwrap().1, ids[0]);
        calls.close(ids[0]);
        assert_eq!(calls.earliest(), None);
    }
}

//! The control side of a publisher: accepts subscribers, shakes hands, and notices that they are gone. None of
//! it runs on the hot path.

use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Waker},
    time::Instant,
};

use memlane_region::ring::Roster;
use memlane_transport::{Link, Listener};
use rustix::{
    event::{
        Timespec,
        epoll::{self, EventData, EventFlags},
    },
    io::Errno,
};

use super::{
    moving::Place,
    peer::Peer,
    state::{Comes, Connection, State},
    wakes::{Wake, Wakes},
};
use crate::{Error, NOW, PayloadType, accepting, process_of, protocol::Farewell};

/// So many events are handled in one go.
const BATCH: usize = 64;

/// Source number of the listener; links count from 1.
pub(super) const LISTENER: u32 = 0;

/// What every subscriber is told, and what it may do.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) ring: OwnedFd,
    /// Its id.
    pub(super) home: u32,
    pub(super) capacity: u64,
    /// Subscribers are trusted not to block this process.
    pub(super) trust: bool,
    /// The publisher may sleep when the ring is full, and needs to be rung then.
    pub(super) sleeps: bool,
    /// Subscribers may carry the barrier: this process is registered.
    pub(super) registered: bool,
    pub(super) max_subscribers: usize,
    /// Subscribers that ask for it are waited for, however long that takes.
    pub(super) waits: bool,
    /// What its messages are.
    pub(super) carries: PayloadType,
    pub(super) pattern: Pattern,
    /// So many attachments they have, at most.
    pub(super) max_attachments: usize,
    /// So many descriptors may be on their way to a subscriber.
    pub(super) attachments_in_flight: usize,
}

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Messages.
    Lane,
    /// The newest value alone: in place of a ring there is a cell, whose capacity is that of a value.
    Latest,
}

impl Pattern {
    /// What whoever expects something else is told.
    pub(super) fn says(self) -> &'static str {
        match self {
            Pattern::Lane => {
                "a publisher is there, which sends: subscribe to it (Subscriber::connect)"
            }
            Pattern::Latest => "a latest value is there: watch it (WatchReceiver::connect)",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Control {
    pub(super) epoll: Arc<OwnedFd>,
    pub(super) id: u32,
    pub(super) terms: Terms,
    pub(super) roster: Arc<Roster<Peer>>,
    pub(super) state: Mutex<State>,
    /// Notified when a subscriber joins or leaves.
    pub(super) changed: Condvar,
    /// Subscribers dropped because what they wrote made no sense, or they took no notices.
    pub(super) evicted: AtomicU64,
    /// Other subscribers that are no more.
    pub(super) left: AtomicU64,
    /// Those whose place another has taken.
    pub(super) moved: AtomicU64,
    /// Clients that have not become subscribers.
    pub(super) refused: AtomicU64,
}

impl Control {
    pub(super) fn new(
        epoll: Arc<OwnedFd>,
        id: u32,
        terms: Terms,
        roster: Arc<Roster<Peer>>,
    ) -> Control {
        Control {
            epoll,
            id,
            terms,
            roster,
            state: Mutex::default(),
            changed: Condvar::new(),
            evicted: AtomicU64::new(0),
            left: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn token(&self, source: u32) -> EventData {
        EventData::new_u64(u64::from(self.id) << 32 | u64::from(source))
    }

    pub(super) fn watch(
        &self,
        fd: impl AsFd,
        source: u32,
        flags: EventFlags,
    ) -> rustix::io::Result<()> {
        epoll::add(&*self.epoll, fd, self.token(source), flags)
    }

    /// Starts to accept. Edge-triggered: a connection that cannot be accepted, for want of memory, is looked at again when
    /// another comes, and does not spin meanwhile.
    pub(super) fn listen(&self, listener: Listener) -> rustix::io::Result<()> {
        // Locked first: the edge of a client that has connected already comes at once, and only once.
        let mut state = self.state();
        self.watch(&listener, LISTENER, EventFlags::IN | EventFlags::ET)?;
        state.spare.keep();
        state.listener = Some(listener);
        Ok(())
    }

    /// Takes a link that somebody else made; its other end is a subscriber's, in that process if one is given.
    pub(super) fn attach(&self, link: Link, process: Option<OwnedFd>) -> rustix::io::Result<()> {
        let greeted = self.greet(&mut self.state(), link, process, Comes::ToSubscribe);
        self.wake_waiting();
        greeted.map(drop)
    }

    /// Offers the lane to the receiver at the other end of a link, which this side has made.
    pub(super) fn offer(&self, link: Link, process: Option<OwnedFd>) -> rustix::io::Result<()> {
        let greeted = self.greet(&mut self.state(), link, process, Comes::Offered);
        greeted.map(drop)
    }

    /// What has come of an offer; `None` as long as nothing has.
    pub(super) fn offer_outcome(&self) -> Option<Result<(), Error>> {
        Control::outcome(&mut self.state(), &self.roster)
    }

    /// The same, for one who is woken, as long as it is nothing, when that may have changed.
    pub(super) fn poll_offer(&self, waker: &Waker) -> Option<Result<(), Error>> {
        let waker = waker.clone();
        let mut state = self.state();
        let outcome = Control::outcome(&mut state, &self.roster);
        let before = match outcome {
            Some(_) => state.waiting.take(),
            None => state.waiting.replace(waker),
        };
        drop(state);
        drop(before);
        outcome
    }

    fn outcome(state: &mut State, roster: &Roster<Peer>) -> Option<Result<(), Error>> {
        if !roster.is_empty() {
            Some(Ok(()))
        } else if let Some(error) = state.failed.take() {
            Some(Err(error))
        } else {
            state.links.is_empty().then_some(Err(Error::HungUp))
        }
    }

    /// Waits for what comes of an offer. `None` if the deadline passed first.
    pub(super) fn wait_for_offer(&self, deadline: Option<Instant>) -> Option<Result<(), Error>> {
        self.wait_for(deadline, |state| Control::outcome(state, &self.roster))
    }

    /// Watches a link: for its hang-up on both of its sockets, if it has two.
    pub(super) fn watch_link(
        &self,
        link: &Link,
        source: u32,
        flags: EventFlags,
    ) -> rustix::io::Result<()> {
        self.watch(link, source, flags)?;
        match link.sends_over() {
            Some(out) => self.watch(out, source, EventFlags::empty()),
            None => Ok(()),
        }
    }

    /// Before it may be closed: a copy of a descriptor elsewhere would keep it registered.
    pub(super) fn forget_link(&self, link: &Link) {
        let _ = epoll::delete(&*self.epoll, link);
        if let Some(out) = link.sends_over() {
            let _ = epoll::delete(&*self.epoll, out);
        }
    }

    /// What wakes the publisher, made if need be. A look for room must come before it is waited on.
    #[cold]
    pub(super) fn wakes(&self, driven: bool) -> std::io::Result<Arc<Wakes>> {
        let mut state = self.state();
        if let Some(wakes) = &state.wakes {
            return Ok(wakes.clone());
        }
        let wakes = Wakes::new()?;
        for (source, connection) in &state.links {
            if let Connection::Joined { peer, .. } | Connection::Arriving { peer, .. } = connection
            {
                if let Some(doorbell) = peer.doorbell() {
                    wakes.add(doorbell, *source)?;
                }
            }
        }
        if driven {
            wakes.add_control(self.epoll.as_fd())?;
        }
        let wakes = Arc::new(wakes);
        state.wakes = Some(wakes.clone());
        Ok(wakes)
    }

    /// Waits until a subscriber has made room or left, a loan was dropped, or the time is over; takes what has happened,
    /// and does the control work of a driven publisher.
    pub(super) fn take_wakes(
        &self,
        wakes: &Wakes,
        timeout: Option<&Timespec>,
    ) -> std::io::Result<()> {
        let mut driven = Ok(false);
        let mut more = wakes.wait(timeout, |wake| match wake {
            Wake::Subscriber { source, hung_up } => self.rung(source, hung_up),
            Wake::Control => driven = self.drive(),
            Wake::Other => {}
        })?;
        more |= driven?;
        if more {
            // What is left makes the descriptor readable as before, which is news to nobody who waits for edges.
            wakes.tell();
        }
        Ok(())
    }

    /// Takes the ring of a subscriber. One that has closed its end of the doorbell has left, and whether or not its link
    /// says so too, there is nothing more to be heard of it.
    pub(super) fn rung(&self, source: u32, hung_up: bool) {
        let state = self.state();
        let (peer, reader) = match state.links.get(&source) {
            Some(Connection::Joined {
                id, peer, place, ..
            }) => (peer, (!place.is_kept()).then_some(*id)),
            Some(Connection::Arriving { peer, .. }) => (peer, None),
            _ => return,
        };
        if hung_up {
            if let Some(id) = reader {
                self.roster.leave(id);
            }
            peer.hang_up();
        } else if let Some(doorbell) = peer.doorbell() {
            doorbell.drain();
        }
    }

    pub(super) fn subscribers(&self) -> usize {
        self.roster.len()
    }

    pub(super) fn max_attachments(&self) -> usize {
        self.terms.max_attachments
    }

    pub(super) fn max_subscribers(&self) -> usize {
        self.terms.max_subscribers
    }

    pub(super) fn evicted(&self) -> u64 {
        self.settled(&self.evicted)
    }

    /// A count of those who are no more, once nobody is just being taken out: whoever has seen that there is one subscriber less
    /// finds it counted, and the other way round.
    fn settled(&self, count: &AtomicU64) -> u64 {
        let _state = self.state();
        count.load(Ordering::Relaxed)
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(super) fn moved(&self) -> u64 {
        self.settled(&self.moved)
    }

    pub(super) fn left(&self) -> u64 {
        self.settled(&self.left)
    }

    /// Waits until there are `count` subscribers. False if the deadline passed first.
    pub(super) fn wait_for_subscribers(&self, count: usize, deadline: Option<Instant>) -> bool {
        let enough = self.wait_for(deadline, |_| (self.roster.len() >= count).then_some(()));
        enough.is_some()
    }

    /// Waits for what `look` finds, which looks whenever a subscriber has joined or left. `None` if the deadline passed first.
    fn wait_for<V>(
        &self,
        deadline: Option<Instant>,
        mut look: impl FnMut(&mut State) -> Option<V>,
    ) -> Option<V> {
        let mut state = self.state();
        loop {
            if let Some(found) = look(&mut state) {
                return Some(found);
            }
            state = match deadline {
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.checked_duration_since(Instant::now())?;
                    self.changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            }
        }
    }

    /// Waits until a subscriber, or a successor, has something to say, or the deadline has passed.
    pub(super) fn await_change(&self, state: MutexGuard<'_, State>, deadline: Option<Instant>) {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        drop(match left {
            None => self.changed.wait(state),
            Some(left) => self
                .changed
                .wait_timeout(state, left)
                .map(|(state, _)| state)
                .map_err(|error| PoisonError::new(error.into_inner().0)),
        });
    }

    /// Whether there are `count` subscribers. If not, the task is woken when that may have changed, instead of the one that
    /// asked before.
    pub(super) fn poll_subscribers(&self, cx: &mut Context<'_>, count: usize) -> bool {
        let waker = cx.waker().clone();
        let mut state = self.state();
        let enough = self.roster.len() >= count;
        let before = if enough {
            state.waiting.take()
        } else {
            state.waiting.replace(waker)
        };
        drop(state);
        drop(before);
        enough
    }

    /// No task waits for subscribers any more.
    pub(super) fn forget_waiting(&self) {
        let forgotten = self.state().waiting.take();
        drop(forgotten);
    }

    /// Wakes that task. Without a lock: a waker can do anything.
    pub(crate) fn wake_waiting(&self) {
        let waiting = self.state().waiting.take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    pub(super) fn epoll(&self) -> &Arc<OwnedFd> {
        &self.epoll
    }

    /// Handles what has happened, without waiting: for an epoll instance of this publisher's own. What is more
    /// than one batch leaves the instance readable; whether there may be more.
    pub(crate) fn drive(&self) -> std::io::Result<bool> {
        let mut events = [MaybeUninit::uninit(); BATCH];
        match epoll::wait(&*self.epoll, &mut events, Some(&NOW)) {
            Ok((ready, _)) => {
                for event in &*ready {
                    self.handle(event.data.u64() as u32);
                }
                self.wake_waiting();
                Ok(ready.len() == BATCH)
            }
            Err(Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Handles what happened to one source.
    pub(crate) fn handle(&self, source: u32) {
        let mut state = self.state();
        match state.links.get(&source) {
            None if source == LISTENER => self.accept(&mut state),
            None if Control::is_successor(&state, source) => self.hear_successor(&mut state),
            // Removed by an event before this one.
            None => {}
            Some(Connection::Greeting(_)) => self.shake_hands(&mut state, source),
            Some(Connection::Joined { .. }) => {
                self.tell_rest(&state, source);
                self.hear(&mut state, source);
            }
            // It has nothing more to say.
            Some(Connection::Arriving { .. }) => self.remove(&mut state, source),
        }
    }

    fn accept(&self, state: &mut State) {
        let Some(listener) = state.listener.take() else {
            return;
        };
        let mut spare = std::mem::take(&mut state.spare);
        let accepted = accepting::accept(&listener, &mut spare, "PublisherBuilder", |link| {
            if let Ok(process) = process_of(&link) {
                let _ = self.greet(state, link, process, Comes::ToSubscribe);
            }
        });
        state.spare = spare;
        self.refused.fetch_add(accepted.refused, Ordering::Relaxed);
        if accepted.more {
            let flags = EventFlags::IN | EventFlags::ET;
            let _ = epoll::modify(&*self.epoll, &listener, self.token(LISTENER), flags);
        }
        state.listener = Some(listener);
    }

    /// Lets go of a link, and of the subscriber behind it.
    pub(super) fn remove(&self, state: &mut State, source: u32) {
        let Some(connection) = state.links.remove(&source) else {
            return;
        };
        match &connection {
            Connection::Greeting(greeter) => {
                self.forget_link(&greeter.link);
                match greeter.comes {
                    Comes::ToSubscribe | Comes::Shared => {}
                    Comes::Offered => self.changed.notify_all(),
                    Comes::ToSucceed(predecessor) => {
                        self.orphan(
                            state,
                            predecessor,
                            source,
                            "whoever had its ticket has hung up",
                        );
                    }
                }
            }
            Connection::Arriving {
                peer,
                process,
                predecessor,
            } => {
                self.detach(peer, process.as_ref());
                self.silence(state, peer);
                self.orphan(state, *predecessor, source, "its successor has hung up");
            }
            Connection::Joined {
                id,
                peer,
                process,
                place,
            } => {
                self.detach(peer, process.as_ref());
                self.roster.leave(*id);
                self.silence(state, peer);
                // Of those that were dismissed, the publisher has counted.
                let gone = match place {
                    Place::Taken => &self.moved,
                    _ if peer.evicted() => &self.evicted,
                    _ => &self.left,
                };
                gone.fetch_add(u64::from(!peer.dismissed()), Ordering::Relaxed);
                if let Some(successor) = place.successor() {
                    self.remove(state, successor);
                }
                self.changed.notify_all();
            }
        }
        drop(connection);
        // Its descriptors may be what a waiting client lacked.
        self.accept(state);
    }

    /// Closes the link of a subscriber, after which there are no events of it.
    pub(super) fn detach(&self, peer: &Peer, process: Option<&OwnedFd>) {
        peer.with_link(|link| self.forget_link(link));
        if let Some(process) = process {
            let _ = epoll::delete(&*self.epoll, process);
        }
        peer.close();
    }

    /// Listens to its doorbell no more. After it has left the roster: the publisher may be waiting for the room it held.
    fn silence(&self, state: &State, peer: &Peer) {
        if let (Some(wakes), Some(doorbell)) = (&state.wakes, peer.doorbell()) {
            wakes.remove(doorbell);
        }
    }

    /// Stops listening, and hangs up on everyone, with a word on why.
    pub(super) fn close(&self, farewell: &Farewell) {
        let mut state = self.state();
        if let Some(listener) = state.listener.take() {
            let _ = epoll::delete(&*self.epoll, &listener);
        }
        if let Some(leaving) = state.leaving.take() {
            let _ = epoll::delete(&*self.epoll, &leaving.link);
        }
        state.peers().for_each(|peer| peer.farewell(farewell));
        let sources: Vec<u32> = state.links.keys().copied().collect();
        for source in sources {
            self.remove(&mut state, source);
        }
    }
}

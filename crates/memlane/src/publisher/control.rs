//! The control side of a publisher: accepts subscribers, shakes hands, and notices that they are gone. None of
//! it runs on the hot path.

use std::{
    collections::HashMap,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};

use memlane_region::{
    Remote, page_size,
    pool::{self, Change, Geometry, Pool},
    ring::Roster,
};
use memlane_signaling::{Backing, Ringer};
use memlane_transport::{Error as LinkError, Fd, FdRef, Link, Listener, dispose};
use rustix::{
    event::{
        Timespec,
        epoll::{self, EventData, EventFlags},
    },
    io::Errno,
};

use super::{
    peer::Peer,
    wakes::{Wake, Wakes},
};
use crate::{
    Error, PayloadType,
    doorbells::{self, Bell},
    process_of,
    protocol::{
        DoorbellOffer, Farewell, Greeting, LIMITS, NoticeRef, Opening, Packet, PacketRef,
        PublisherDoorbellRef, Refusal, Rings, VERSION, WelcomeRef,
    },
};

/// A link that has not greeted after this long makes room for others.
const GREETING_TIME: Duration = Duration::from_secs(5);
/// So many links may be without a greeting at a time; the oldest is dropped for a newer one.
const MAX_GREETING: usize = 64;

/// So many connections are accepted in one go, before the others have their turn.
const MAX_ACCEPTS: usize = 64;

/// So many events are handled in one go.
const BATCH: usize = 64;

/// Source number of the listener; links count from 1.
const LISTENER: u32 = 0;

/// What every subscriber is told, and what it may do.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) ring: OwnedFd,
    pub(super) capacity: u64,
    /// Subscribers are trusted not to block this process.
    pub(super) trust: bool,
    /// The publisher may sleep when the ring is full, and needs to be rung then.
    pub(super) sleeps: bool,
    /// Subscribers may carry the barrier: this process is registered.
    pub(super) registered: bool,
    pub(super) max_subscribers: usize,
    /// What its messages are.
    pub(super) carries: PayloadType,
}

#[derive(Debug)]
pub(crate) struct Control {
    epoll: Arc<OwnedFd>,
    id: u32,
    terms: Terms,
    roster: Arc<Roster<Peer>>,
    state: Mutex<State>,
    /// Notified when a subscriber joins or leaves.
    changed: Condvar,
    /// Subscribers dropped because what they wrote made no sense, or they took no notices.
    evicted: AtomicU64,
    /// Other subscribers that are no more.
    left: AtomicU64,
    /// Clients that have not become subscribers.
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    listener: Option<Listener>,
    links: HashMap<u32, Connection>,
    last_source: u32,
    /// Of the publisher's pool, as subscribers know it.
    segments: Vec<Segment>,
    /// What wakes the publisher when it waits for room; none before it has.
    wakes: Option<Arc<Wakes>>,
    /// The task that waits for subscribers.
    waiting: Option<Waker>,
    /// Why the link on which this publisher has offered its lane has come to nothing.
    failed: Option<Error>,
}

/// A segment that every subscriber has been told of.
#[derive(Debug)]
struct Segment {
    id: u32,
    geometry: Geometry,
    memory: Arc<OwnedFd>,
}

impl Segment {
    fn notice(&self) -> NoticeRef<'_> {
        NoticeRef::Added {
            id: self.id,
            chunks: self.geometry.chunks,
            chunk_size: self.geometry.chunk_size,
            memory: FdRef::new(&*self.memory),
        }
    }
}

impl State {
    /// The subscribers.
    fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.links
            .values()
            .filter_map(|connection| match connection {
                Connection::Joined { peer, .. } => Some(peer),
                Connection::Greeting(_) => None,
            })
    }

    /// A number that no connection has, and none had lately.
    fn next_source(&mut self) -> u32 {
        loop {
            self.last_source = self.last_source.wrapping_add(1);
            if self.last_source != LISTENER && !self.links.contains_key(&self.last_source) {
                return self.last_source;
            }
        }
    }
}

#[derive(Debug)]
enum Connection {
    Greeting(Box<Greeter>),
    Joined {
        id: u64,
        peer: Arc<Peer>,
        /// Tells of its death where something else holds a copy of its link.
        process: Option<OwnedFd>,
    },
}

/// A link whose subscriber has not introduced itself yet.
#[derive(Debug)]
struct Greeter {
    link: Link,
    /// The process that connected; of a link that was made elsewhere, whose maker is not its user, the one that was given.
    process: Option<OwnedFd>,
    since: Instant,
    /// Its version has come, and is ours.
    opened: bool,
    /// This side has connected, and offered its lane.
    offered: bool,
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
            refused: AtomicU64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn token(&self, source: u32) -> EventData {
        EventData::new_u64(u64::from(self.id) << 32 | u64::from(source))
    }

    fn watch(&self, fd: impl AsFd, source: u32, flags: EventFlags) -> rustix::io::Result<()> {
        epoll::add(&*self.epoll, fd, self.token(source), flags)
    }

    /// Starts to accept. Edge-triggered: a connection that cannot be accepted for want of descriptors is
    /// looked at again when another comes or a subscriber leaves, and does not spin meanwhile.
    pub(super) fn listen(&self, listener: Listener) -> rustix::io::Result<()> {
        // Locked first: the edge of a client that has connected already comes at once, and only once.
        let mut state = self.state();
        self.watch(&listener, LISTENER, EventFlags::IN | EventFlags::ET)?;
        state.listener = Some(listener);
        Ok(())
    }

    /// Takes a link that somebody else made; its other end is a subscriber's, in that process if one is given.
    pub(super) fn attach(&self, link: Link, process: Option<OwnedFd>) -> rustix::io::Result<()> {
        let greeted = self.greet(&mut self.state(), link, process, false);
        self.wake_waiting();
        greeted
    }

    /// Offers the lane to the receiver at the other end of a link, which this side has made.
    pub(super) fn offer(&self, link: Link, process: Option<OwnedFd>) -> rustix::io::Result<()> {
        self.greet(&mut self.state(), link, process, true)
    }

    /// What has come of an offer; `None` as long as nothing has.
    pub(super) fn offer_outcome(&self) -> Option<Result<(), Error>> {
        Control::outcome(&mut self.state(), &self.roster)
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
        let mut state = self.state();
        loop {
            if let Some(outcome) = Control::outcome(&mut state, &self.roster) {
                return Some(outcome);
            }
            let left = match deadline {
                None => Duration::MAX,
                Some(deadline) => deadline.checked_duration_since(Instant::now())?,
            };
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

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
            memory: added.descriptor.clone(),
        };
        state.peers().for_each(|peer| peer.tell(&segment.notice()));
        state.segments.push(segment);
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
            for peer in state.peers() {
                peer.tell(&NoticeRef::Removed { id });
                // One that sleeps would keep the memory for as long.
                peer.wake_again();
            }
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
            if let Connection::Joined { peer, .. } = connection {
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
    fn rung(&self, source: u32, hung_up: bool) {
        let state = self.state();
        let Some(Connection::Joined { id, peer, .. }) = state.links.get(&source) else {
            return;
        };
        if hung_up {
            self.roster.leave(*id);
            peer.hang_up();
        } else if let Some(doorbell) = peer.doorbell() {
            doorbell.drain();
        }
    }

    pub(super) fn subscribers(&self) -> usize {
        self.roster.len()
    }

    pub(super) fn max_subscribers(&self) -> usize {
        self.terms.max_subscribers
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(super) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Waits until there are `count` subscribers. False if the deadline passed first.
    pub(super) fn wait_for_subscribers(&self, count: usize, deadline: Option<Instant>) -> bool {
        let mut state = self.state();
        loop {
            if self.roster.len() >= count {
                return true;
            }
            state = match deadline {
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                        return false;
                    };
                    self.changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            }
        }
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
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match epoll::wait(&*self.epoll, &mut events, Some(&now)) {
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
            // Removed by an event before this one.
            None => {}
            Some(Connection::Greeting(_)) => self.shake_hands(&mut state, source),
            // Joined links are watched for their end alone.
            Some(Connection::Joined { .. }) => self.remove(&mut state, source),
        }
    }

    fn accept(&self, state: &mut State) {
        let Some(listener) = state.listener.take() else {
            return;
        };
        for accepted in 0.. {
            if accepted == MAX_ACCEPTS {
                // A flood waits for its next turn; this asks for one.
                let flags = EventFlags::IN | EventFlags::ET;
                let _ = epoll::modify(&*self.epoll, &listener, self.token(LISTENER), flags);
                break;
            }
            match listener.try_accept_or(|link, error| self.turn_away(link, error)) {
                // Whatever went wrong afterwards, that one link is closed and the next has its turn.
                Ok(link) => {
                    if let Ok(process) = process_of(&link) {
                        let _ = self.greet(state, link, process, false);
                    }
                }
                Err(LinkError::WouldBlock) => break,
                Err(LinkError::AccessDenied { .. }) => {}
                // A client that was gone before it was accepted is no reason to stop. Anything else (short of
                // descriptors or memory) is tried again at the next event.
                Err(error) if error.is_disconnected() => {}
                Err(_) => break,
            }
        }
        state.listener = Some(listener);
    }

    /// Tells a client that the access rule does not admit why it is hung up on.
    fn turn_away(&self, link: &Link, error: &LinkError) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let why = format!("as it sees it, {error} (PublisherBuilder::access admits others)");
        let _ = link.try_send(&Opening { version: VERSION });
        let _ = link.try_send(&PacketRef::Refused(Refusal::Access { why }));
    }

    /// Waits for the greeting of a new link; on one that this side has made, it offers its lane first.
    fn greet(
        &self,
        state: &mut State,
        link: Link,
        process: Option<OwnedFd>,
        offered: bool,
    ) -> rustix::io::Result<()> {
        self.prune(state);
        let link = link.with_limits(LIMITS);
        let source = state.next_source();
        self.watch(&link, source, EventFlags::IN | EventFlags::RDHUP)?;
        let opening = Opening { version: VERSION };
        // One that cannot be told the version will not be told anything: the link ends, and that is noticed.
        let _ = link.try_send(&opening);
        if offered {
            let _ = link.try_send(&PacketRef::Offer);
        }
        let greeter = Greeter {
            link,
            process,
            since: Instant::now(),
            opened: false,
            offered,
        };
        state
            .links
            .insert(source, Connection::Greeting(Box::new(greeter)));
        // Most clients have greeted by the time they are accepted.
        self.shake_hands(state, source);
        Ok(())
    }

    /// Drops links that have not greeted in time, and the oldest where there are too many.
    fn prune(&self, state: &mut State) {
        let now = Instant::now();
        let mut waiting: Vec<(Instant, u32)> = state
            .links
            .iter()
            .filter_map(|(source, connection)| match connection {
                Connection::Greeting(greeter) => Some((greeter.since, *source)),
                Connection::Joined { .. } => None,
            })
            .collect();
        waiting.sort_unstable();
        let surplus = (waiting.len() + 1).saturating_sub(MAX_GREETING);
        for (at, (since, source)) in waiting.into_iter().enumerate() {
            if at < surplus || now.duration_since(since) > GREETING_TIME {
                self.remove(state, source);
            }
        }
    }

    /// Reads the greeting, if it is there, and answers it.
    fn shake_hands(&self, state: &mut State, source: u32) {
        let Some(Connection::Greeting(greeter)) = state.links.get_mut(&source) else {
            return;
        };
        if !greeter.opened {
            match greeter.link.try_recv::<Opening>() {
                Ok(opening) if opening.version == VERSION => greeter.opened = true,
                Err(LinkError::WouldBlock) => return,
                // Of another version, which it can tell from ours, or no subscriber at all.
                other => {
                    let refused = u64::from(other.is_ok());
                    self.refused.fetch_add(refused, Ordering::Relaxed);
                    if let (Ok(Opening { version }), true) = (other, greeter.offered) {
                        state.failed = Some(Error::Version {
                            publisher: VERSION,
                            subscriber: version,
                        });
                    }
                    return self.remove(state, source);
                }
            }
        }
        let greeting = match greeter.link.try_recv::<Packet>() {
            Err(LinkError::WouldBlock) => return,
            Ok(Packet::Greeting(greeting)) => greeting,
            Ok(Packet::Offer) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                let why =
                    "a publisher is there, which sends: subscribe to it (Subscriber::connect)"
                        .to_owned();
                let refusal = Refusal::Pattern { why };
                let _ = greeter.link.try_send(&PacketRef::Refused(refusal));
                return self.remove(state, source);
            }
            Ok(Packet::Refused(refusal)) => {
                if greeter.offered {
                    let why = refusal.to_string();
                    state.failed = Some(Error::NoReceiver { why });
                }
                return self.remove(state, source);
            }
            _ => return self.remove(state, source),
        };
        let Some(Connection::Greeting(greeter)) = state.links.remove(&source) else {
            return;
        };
        // Deleted first, since a refused link is closed. Events of it that are on their way name a source that
        // is no more.
        let _ = epoll::delete(&*self.epoll, &greeter.link);
        let offered = greeter.offered;
        match self.admit(state, greeting, *greeter) {
            Err(refusal) if offered => {
                let why = format!("this publisher refused its greeting: {refusal}");
                state.failed = Some(Error::NoReceiver { why });
                self.changed.notify_all();
            }
            _ => {}
        }
    }

    /// Makes a greeted link a subscriber, or tells it why not.
    fn admit(
        &self,
        state: &mut State,
        greeting: Greeting,
        greeter: Greeter,
    ) -> Result<(), Refusal> {
        let Greeter { link, process, .. } = greeter;
        let refuse = |link: &Link, refusal: Refusal| {
            self.refused.fetch_add(1, Ordering::Relaxed);
            let _ = link.try_send(&PacketRef::Refused(refusal.clone()));
            Err(refusal)
        };
        let short = |error: std::io::Error| Refusal::Resources {
            why: error.to_string(),
        };
        if let Err(refusal) = self.compare(greeting.expects.as_ref()) {
            return refuse(&link, refusal);
        }
        let (page, ringer, rings) = match self.examine(greeting.page, greeting.doorbell) {
            Ok(examined) => examined,
            Err(refusal) => return refuse(&link, refusal),
        };
        // An eventfd only where trust is mutual: `remove` writes to it, and a subscriber that holds it could make
        // that write block for ever.
        let backing = if greeting.trusts && self.terms.trust {
            Backing::EventFd
        } else {
            Backing::Socket
        };
        let made = self.terms.sleeps.then(|| doorbells::make(backing));
        let (doorbell, end) = match made.transpose() {
            Ok(made) => made.unzip(),
            Err(error) => return refuse(&link, short(error)),
        };
        // A source of its own: only its end is of interest now.
        let source = state.next_source();
        let watched = self
            .watch(&link, source, EventFlags::RDHUP)
            .and_then(|()| match &process {
                Some(process) => self.watch(process, source, EventFlags::IN),
                None => Ok(()),
            });
        if let Err(errno) = watched {
            let _ = epoll::delete(&*self.epoll, &link);
            return refuse(&link, short(errno.into()));
        }
        let peer = Arc::new(Peer::new(
            page,
            ringer,
            doorbell,
            link,
            self.terms.registered,
        ));
        let woken = match (&state.wakes, peer.doorbell()) {
            (Some(wakes), Some(doorbell)) => wakes.add(doorbell, source),
            _ => Ok(()),
        };
        // Before it joins: a message in one of them may be sent the moment after, by a thread that does not wait for this.
        let told = state.segments.iter().all(|segment| {
            let notice = PacketRef::Segment(segment.notice());
            peer.with_link(|link| link.try_send(&notice).is_ok()) == Some(true)
        });
        let joined = match woken {
            Ok(()) if told => self.roster.join(peer.clone()),
            Ok(()) => Err(std::io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error),
        };
        let mut refused = Ok(());
        let answered = match &joined {
            Ok(joined) => peer.with_link(|link| {
                link.try_send(&PacketRef::Welcome(WelcomeRef {
                    ring: FdRef::new(&self.terms.ring),
                    capacity: self.terms.capacity,
                    start: joined.start,
                    rings,
                    doorbell: match (&end, backing) {
                        (None, _) => PublisherDoorbellRef::None,
                        (Some(end), Backing::Socket) => {
                            PublisherDoorbellRef::Socket(FdRef::new(end))
                        }
                        (Some(end), Backing::EventFd) => {
                            PublisherDoorbellRef::EventFd(FdRef::new(end))
                        }
                    },
                    registered: self.terms.registered,
                }))
                .is_ok()
            }),
            Err(error) => peer.with_link(|link| {
                let why = error.to_string();
                refused = refuse(link, Refusal::Resources { why });
                false
            }),
        };
        let id = joined.map_or(u64::MAX, |joined| joined.id);
        state
            .links
            .insert(source, Connection::Joined { id, peer, process });
        if answered == Some(true) {
            self.changed.notify_all();
        } else {
            self.remove(state, source);
        }
        refused
    }

    /// Whether what is carried is what a subscriber expects.
    fn compare(&self, expects: Option<&PayloadType>) -> Result<(), Refusal> {
        let carries = &self.terms.carries;
        match expects {
            Some(expects) if expects != carries => Err(Refusal::Payload {
                carries: carries.to_string(),
                expects: expects.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Checks everything that came with a greeting.
    fn examine(
        &self,
        page: Fd,
        offer: DoorbellOffer,
    ) -> Result<(Remote, Option<Bell>, Rings), Refusal> {
        let subscribers = self.roster.len();
        if subscribers >= self.terms.max_subscribers {
            return Err(Refusal::Full {
                subscribers: subscribers as u32,
            });
        }
        let page = Remote::open(page.into(), page_size(), 0, page_size()).map_err(|refused| {
            dispose(refused.descriptor);
            Refusal::Page {
                why: refused.error.to_string(),
            }
        })?;
        let (end, backing, rings) = match (offer.socket, offer.eventfd) {
            (socket, Some(eventfd)) if self.terms.trust => {
                // Who is trusted with an eventfd is trusted not to have filled the socket with what makes a close wait;
                // another thread for it would take longer than the whole greeting.
                drop(socket.map(OwnedFd::from));
                (eventfd, Backing::EventFd, Rings::EventFd)
            }
            (Some(socket), _) => (socket, Backing::Socket, Rings::Socket),
            (None, None) => return Ok((page, None, Rings::Nothing)),
            (None, Some(_)) => {
                let why = "expected a socket, since this publisher does not trust its subscribers; got an eventfd";
                return Err(Refusal::Doorbell {
                    why: why.to_owned(),
                });
            }
        };
        match Ringer::open(end.into(), backing) {
            Ok(ringer) => Ok((page, Some(Bell::new(ringer)), rings)),
            Err(wrong) => {
                dispose(wrong.descriptor);
                Err(Refusal::Doorbell {
                    why: wrong.error.to_string(),
                })
            }
        }
    }

    /// Lets go of a link, and of the subscriber behind it.
    fn remove(&self, state: &mut State, source: u32) {
        let Some(connection) = state.links.remove(&source) else {
            return;
        };
        // Deleted before anything is closed: a copy of the descriptor elsewhere would keep it registered.
        match &connection {
            Connection::Greeting(greeter) => {
                let _ = epoll::delete(&*self.epoll, &greeter.link);
                if greeter.offered {
                    self.changed.notify_all();
                }
            }
            Connection::Joined { id, peer, process } => {
                peer.with_link(|link| epoll::delete(&*self.epoll, link));
                if let Some(process) = process {
                    let _ = epoll::delete(&*self.epoll, process);
                }
                self.roster.leave(*id);
                peer.close();
                if let (Some(wakes), Some(doorbell)) = (&state.wakes, peer.doorbell()) {
                    wakes.remove(doorbell);
                }
                let gone = match peer.evicted() {
                    true => &self.evicted,
                    false => &self.left,
                };
                gone.fetch_add(1, Ordering::Relaxed);
                self.changed.notify_all();
            }
        }
        drop(connection);
        // Its descriptors may be what a waiting client lacked.
        self.accept(state);
    }

    /// Stops listening, and hangs up on everyone, with a word on why.
    pub(super) fn close(&self, farewell: &Farewell) {
        let mut state = self.state();
        if let Some(listener) = state.listener.take() {
            let _ = epoll::delete(&*self.epoll, &listener);
        }
        state.peers().for_each(|peer| peer.farewell(farewell));
        let sources: Vec<u32> = state.links.keys().copied().collect();
        for source in sources {
            self.remove(&mut state, source);
        }
    }
}

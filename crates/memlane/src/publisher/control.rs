//! The control side of a publisher: accepts subscribers, shakes hands, and notices that they are gone. None of
//! it runs on the hot path.

use std::{
    collections::HashMap,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use memlane_region::{Remote, page_size, ring::Roster};
use memlane_signaling::{Backing, Doorbell, Ringer};
use memlane_transport::{Error as LinkError, Fd, FdRef, Link, Listener, dispose};
use rustix::{
    event::{
        Timespec,
        epoll::{self, EventData, EventFlags},
    },
    io::Errno,
};

use super::peer::Peer;
use crate::protocol::{
    AnswerRef, DoorbellOffer, Greeting, PublisherDoorbellRef, Refusal, Rings, VERSION, WelcomeRef,
};

/// A link that has not greeted after this long makes room for others.
const GREETING_TIME: Duration = Duration::from_secs(5);
/// So many links may be without a greeting at a time; the oldest is dropped for a newer one.
const MAX_GREETING: usize = 64;

/// So many connections are accepted in one go, before the others have their turn.
const MAX_ACCEPTS: usize = 64;

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
    pub(super) max_subscribers: usize,
}

#[derive(Debug)]
pub(super) struct Control {
    epoll: Arc<OwnedFd>,
    id: u32,
    terms: Terms,
    roster: Arc<Roster<Peer>>,
    state: Mutex<State>,
    /// Notified when a subscriber joins or leaves.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    listener: Option<Listener>,
    links: HashMap<u32, Connection>,
    last_source: u32,
    evicted: u64,
}

#[derive(Debug)]
enum Connection {
    Greeting { link: Link, since: Instant },
    Joined { id: u64, peer: Arc<Peer> },
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
        self.watch(&listener, LISTENER, EventFlags::IN | EventFlags::ET)?;
        self.state().listener = Some(listener);
        Ok(())
    }

    /// Takes a link that somebody else made; its other end is a subscriber's.
    pub(super) fn attach(&self, link: Link) -> rustix::io::Result<()> {
        self.greet(&mut self.state(), link)
    }

    pub(super) fn subscribers(&self) -> usize {
        self.roster.len()
    }

    pub(super) fn evicted(&self) -> u64 {
        self.state().evicted
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

    pub(super) fn epoll(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Handles what has happened, without waiting: for an epoll instance of this publisher's own.
    pub(super) fn drive(&self) -> std::io::Result<()> {
        let mut events = [MaybeUninit::uninit(); 64];
        loop {
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let ready = match epoll::wait(&*self.epoll, &mut events, Some(&now)) {
                Err(Errno::INTR) => continue,
                result => result?.0,
            };
            if ready.is_empty() {
                return Ok(());
            }
            for event in &*ready {
                self.handle(event.data.u64() as u32);
            }
        }
    }

    /// Handles what happened to one source.
    pub(super) fn handle(&self, source: u32) {
        let mut state = self.state();
        match state.links.get(&source) {
            None if source == LISTENER => self.accept(&mut state),
            // Removed by an event before this one.
            None => {}
            Some(Connection::Greeting { .. }) => self.shake_hands(&mut state, source),
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
            match listener.try_accept() {
                // Whatever went wrong afterwards, that one link is closed and the next has its turn.
                Ok(link) => drop(self.greet(state, link)),
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

    /// Waits for the greeting of a new link.
    fn greet(&self, state: &mut State, link: Link) -> rustix::io::Result<()> {
        let now = Instant::now();
        let mut waiting: Vec<(Instant, u32)> = state
            .links
            .iter()
            .filter_map(|(source, connection)| match connection {
                Connection::Greeting { since, .. } => Some((*since, *source)),
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
        loop {
            state.last_source = state.last_source.wrapping_add(1);
            if state.last_source != LISTENER && !state.links.contains_key(&state.last_source) {
                break;
            }
        }
        let source = state.last_source;
        self.watch(&link, source, EventFlags::IN | EventFlags::RDHUP)?;
        state
            .links
            .insert(source, Connection::Greeting { link, since: now });
        // Most clients have greeted by the time they are accepted.
        self.shake_hands(state, source);
        Ok(())
    }

    /// Reads the greeting, if it is there, and answers it.
    fn shake_hands(&self, state: &mut State, source: u32) {
        let Some(Connection::Greeting { link, .. }) = state.links.get(&source) else {
            return;
        };
        let greeting = match link.try_recv::<Greeting>() {
            Err(LinkError::WouldBlock) => return,
            Err(_) => return self.remove(state, source),
            Ok(greeting) => greeting,
        };
        let Some(Connection::Greeting { link, .. }) = state.links.remove(&source) else {
            return;
        };
        // Deleted first, since a refused link is closed. Once joined, only its end is of interest.
        let _ = epoll::delete(&*self.epoll, &link);
        let Some((id, peer)) = self.admit(greeting, link) else {
            return;
        };
        let watched = self
            .watch(peer.link(), source, EventFlags::RDHUP)
            .and_then(|()| match peer.pidfd() {
                Some(pidfd) => self.watch(pidfd, source, EventFlags::IN),
                None => Ok(()),
            });
        state.links.insert(source, Connection::Joined { id, peer });
        if watched.is_err() {
            return self.remove(state, source);
        }
        self.changed.notify_all();
    }

    /// Makes a greeted link a subscriber, or tells it why not.
    fn admit(&self, greeting: Greeting, link: Link) -> Option<(u64, Arc<Peer>)> {
        let refuse = |link: &Link, refusal| {
            let _ = link.try_send(&AnswerRef::Refused(refusal));
            None
        };
        let short = |error: std::io::Error| Refusal::Resources {
            why: error.to_string(),
        };
        let backing = if greeting.trusts {
            Backing::EventFd
        } else {
            Backing::Socket
        };
        let (page, ringer, rings) =
            match self.examine(greeting.version, greeting.page, greeting.doorbell) {
                Ok(examined) => examined,
                Err(refusal) => return refuse(&link, refusal),
            };
        let made = self.terms.sleeps.then(|| Doorbell::new(backing));
        let (doorbell, end) = match made.transpose() {
            Ok(made) => made.unzip(),
            Err(error) => return refuse(&link, short(error)),
        };
        let peer = Arc::new(Peer::new(page, ringer, doorbell, link));
        let joined = match self.roster.join(peer.clone()) {
            Ok(joined) => joined,
            Err(error) => return refuse(peer.link(), short(error)),
        };
        let welcome = WelcomeRef {
            ring: FdRef::new(&self.terms.ring),
            capacity: self.terms.capacity,
            start: joined.start,
            rings,
            doorbell: match (&end, backing) {
                (None, _) => PublisherDoorbellRef::None,
                (Some(end), Backing::Socket) => PublisherDoorbellRef::Socket(FdRef::new(end)),
                (Some(end), Backing::EventFd) => PublisherDoorbellRef::EventFd(FdRef::new(end)),
            },
        };
        // An answer that cannot be sent leaves a link that ends at once, and `remove` does the rest.
        if peer.link().try_send(&AnswerRef::Welcome(welcome)).is_err() {
            peer.hang_up();
        }
        Some((joined.id, peer))
    }

    /// Checks everything that came with a greeting.
    fn examine(
        &self,
        version: u32,
        page: Fd,
        offer: DoorbellOffer,
    ) -> Result<(Remote, Option<Ringer>, Rings), Refusal> {
        if version != VERSION {
            return Err(Refusal::Version { publisher: VERSION });
        }
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
            (_, Some(eventfd)) if self.terms.trust => (eventfd, Backing::EventFd, Rings::EventFd),
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
            Ok(ringer) => Ok((page, Some(ringer), rings)),
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
            Connection::Greeting { link, .. } => drop(epoll::delete(&*self.epoll, link)),
            Connection::Joined { id, peer } => {
                let _ = epoll::delete(&*self.epoll, peer.link());
                if let Some(pidfd) = peer.pidfd() {
                    let _ = epoll::delete(&*self.epoll, pidfd);
                }
                // The writer may be asleep for want of the room that this subscriber held.
                self.roster.leave(*id);
                if let Some(doorbell) = peer.doorbell() {
                    doorbell.wake_for_good();
                }
                state.evicted += u64::from(peer.evicted());
                self.changed.notify_all();
            }
        }
        drop(connection);
        // Its descriptors may be what a waiting client lacked.
        self.accept(state);
    }

    /// Hangs up on everyone and stops listening.
    pub(super) fn close(&self) {
        let mut state = self.state();
        if let Some(listener) = state.listener.take() {
            let _ = epoll::delete(&*self.epoll, &listener);
        }
        let sources: Vec<u32> = state.links.keys().copied().collect();
        for source in sources {
            self.remove(&mut state, source);
        }
    }
}

//! A publisher that is about to move to another process, on the control side: who has its ticket gets to know every subscriber,
//! and every subscriber that one's first ring, before anything changes.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use memlane_region::ring::Joined;
use memlane_signaling::{Backing, gone};
use memlane_transport::{Error as LinkError, Fd, FdRef, Link};
use rustix::event::epoll::{self, EventFlags};

use super::{
    control::Control,
    moving::Place,
    passage::{self, HandsOverRef, LIMITS, LinkRef, SubscriberRef, TakesOver},
    peer::Peer,
    state::{Connection, State},
};
use crate::{
    Error,
    error::NO_HOLDER,
    protocol::{NoticeRef, Opening, VERSION},
};

/// So many packets of a successor are read in one go, before others have their turn.
const MAX_PACKETS: usize = 16;

/// A move that is prepared.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) link: Arc<Link>,
    source: u32,
    /// The id of the successor's first ring.
    pub(super) home: u32,
    to_receiver: bool,
    /// The successor's version has come, and what it carries.
    opened: bool,
    met: bool,
    /// Its first ring.
    memory: Option<Fd>,
    /// Subscribers that it has been told of, and those of them that know its ring.
    told: HashSet<u32>,
    ready: HashSet<u32>,
}

/// A subscriber that moves along.
pub(super) struct Goer<'a> {
    pub(super) source: u32,
    pub(super) peer: &'a Arc<Peer>,
    process: Option<&'a OwnedFd>,
    joined: Joined<Peer>,
}

impl Control {
    /// Makes the link of a successor. One that there was before is void.
    pub(super) fn begin_to_leave(&self, home: u32, to_receiver: bool) -> io::Result<Link> {
        let mut state = self.state();
        self.stay(&mut state, None);
        state.stays = None;
        let (ours, theirs) = Link::pair()?;
        let link = Arc::new(ours.with_limits(LIMITS));
        let source = state.next_source();
        self.watch(&link, source, EventFlags::IN | EventFlags::RDHUP)?;
        // There is room.
        let _ = link.try_send(&Opening { version: VERSION });
        state.leaving = Some(Leaving {
            link,
            source,
            home,
            to_receiver,
            opened: false,
            met: false,
            memory: None,
            told: HashSet::new(),
            ready: HashSet::new(),
        });
        Ok(theirs)
    }

    /// The subscribers that move along: all who read on, and are not about to be dropped.
    pub(super) fn goers<'a>(&'a self, state: &'a State) -> impl Iterator<Item = Goer<'a>> {
        let joined = state.links.iter().filter_map(|(source, connection)| {
            let Connection::Joined {
                id,
                peer,
                process,
                place: Place::Own { .. },
            } = connection
            else {
                return None;
            };
            Some((*source, *id, peer, process.as_ref()))
        });
        joined.filter_map(|(source, id, peer, process)| {
            let stays = peer.evicted() || peer.dismissed() || peer.has_left();
            let joined = (!stays).then(|| self.roster.joined(id)).flatten()?;
            Some(Goer {
                source,
                peer,
                process,
                joined,
            })
        })
    }

    /// Whether this is the source of a successor's link.
    pub(super) fn is_successor(state: &State, source: u32) -> bool {
        state
            .leaving
            .as_ref()
            .is_some_and(|leaving| leaving.source == source)
    }

    /// Hears what the successor says.
    pub(super) fn hear_successor(&self, state: &mut State) {
        for _ in 0..MAX_PACKETS {
            let Some(leaving) = &mut state.leaving else {
                return;
            };
            if !leaving.opened {
                match leaving.link.try_recv::<Opening>() {
                    Ok(Opening { version: VERSION }) => leaving.opened = true,
                    Err(LinkError::WouldBlock) => return,
                    Ok(Opening { version }) => {
                        let why = format!(
                            "its successor is of version {version}, and this publisher of version {VERSION}"
                        );
                        return self.stay(state, Some(why));
                    }
                    Err(_) => return self.stay(state, Some(NO_HOLDER.to_owned())),
                }
                continue;
            }
            match leaving.link.try_recv::<TakesOver>() {
                Ok(TakesOver::Carries(carries)) if !leaving.met => {
                    leaving.met = true;
                    if carries != self.terms.carries {
                        let why = format!(
                            "its successor would carry {carries}, and it carries {}",
                            self.terms.carries
                        );
                        // Who hears it is told, too.
                        let _ = leaving.link.try_send(&self.terms_of(leaving));
                        return self.stay(state, Some(why));
                    }
                    let sent = leaving.link.try_send(&self.terms_of(leaving));
                    if sent.is_err() {
                        return self.stay(state, Some(NO_HOLDER.to_owned()));
                    }
                }
                Ok(TakesOver::Ring(memory)) if leaving.met && leaving.memory.is_none() => {
                    leaving.memory = Some(memory);
                }
                Ok(TakesOver::Knows { source, doorbell }) => {
                    self.tell_home(state, source, doorbell.as_ref());
                }
                Ok(TakesOver::Refuses(why)) => return self.stay(state, Some(why)),
                Err(LinkError::WouldBlock) => break,
                Ok(TakesOver::Carries(_) | TakesOver::Ring(_)) | Err(_) => {
                    return self.stay(state, Some(NO_HOLDER.to_owned()));
                }
            }
        }
        self.introduce(state);
        self.changed.notify_all();
    }

    fn terms_of(&self, leaving: &Leaving) -> HandsOverRef<'static> {
        HandsOverRef::Terms(passage::Terms {
            capacity: self.terms.capacity,
            home: leaving.home,
            carries: self.terms.carries.clone(),
            max_attachments: self.terms.max_attachments as u32,
            trusts: self.terms.trust,
            to_receiver: leaving.to_receiver,
        })
    }

    /// Tells the successor of subscribers that it does not know, as long as there is room.
    fn introduce(&self, state: &mut State) {
        let Some(leaving) = &state.leaving else {
            return;
        };
        if leaving.memory.is_none() {
            return;
        }
        let mut told = Vec::new();
        let mut failed = None;
        for goer in self.goers(state) {
            if leaving.told.contains(&goer.source) {
                continue;
            }
            match goer.introduce(&leaving.link) {
                Ok(()) => told.push(goer.source),
                Err(LinkError::WouldBlock) => break,
                Err(error) if error.is_disconnected() => {
                    failed = Some(NO_HOLDER.to_owned());
                    break;
                }
                Err(error) => {
                    failed = Some(format!(
                        "its successor cannot be told of a subscriber: {error}"
                    ));
                    break;
                }
            }
        }
        if let Some(leaving) = &mut state.leaving {
            leaving.told.extend(told);
            if leaving.told.len() > 2 * state.links.len() + MAX_PACKETS {
                // Many have left since.
                leaving
                    .told
                    .retain(|source| state.links.contains_key(source));
                leaving
                    .ready
                    .retain(|source| state.links.contains_key(source));
            }
        }
        if failed.is_some() {
            self.stay(state, failed);
        }
    }

    /// Tells a subscriber of the successor's ring: that one knows it.
    fn tell_home(&self, state: &mut State, source: u32, doorbell: Option<&Fd>) {
        let Some(leaving) = &state.leaving else {
            return;
        };
        let Some(memory) = &leaving.memory else {
            return;
        };
        // Once, and only of those that it was told of.
        if !leaving.told.contains(&source) || leaving.ready.contains(&source) {
            return;
        }
        let id = leaving.home;
        let peer = self.goers(state).find(|goer| goer.source == source);
        let Some(peer) = peer.map(|goer| goer.peer.clone()) else {
            return;
        };
        if self.terms.waits && peer.holds_up_moves() {
            let who = peer.pid().map_or_else(
                || "a subscriber".to_owned(),
                |pid| format!("the subscriber of process {pid}"),
            );
            let why = format!(
                "{who} has left so many notices unread that it cannot be told of a successor"
            );
            return self.stay(state, Some(why));
        }
        let home = NoticeRef::Home {
            id,
            memory,
            doorbell,
        };
        // One that has fallen behind knows less than it has to.
        let behind = peer.is_behind() && peer.catch_up(state.parts());
        if behind || (peer.tell(&home) && !peer.evicted()) {
            peer.fail("it has left too many notices unread to follow its publisher".to_owned());
        }
        if let Some(leaving) = &mut state.leaving {
            leaving.ready.insert(source);
        }
    }

    /// Whether the successor knows everybody, and everybody its ring; why there is no move, if it has come to that.
    pub(super) fn is_ready_to_leave(&self, state: &mut State) -> Result<bool, Error> {
        self.introduce(state);
        if let Some(why) = state.stays.take() {
            return Err(Error::stays(why));
        }
        let Some(leaving) = &state.leaving else {
            return Ok(false);
        };
        let all = leaving.memory.is_some()
            && self
                .goers(state)
                .all(|goer| leaving.ready.contains(&goer.source));
        // Nobody has said so yet, perhaps.
        if all && !matches!(gone(leaving.link.as_fd(), None), Ok(false)) {
            self.stay(state, Some(NO_HOLDER.to_owned()));
            let why = state.stays.take().unwrap_or_default();
            return Err(Error::stays(why));
        }
        Ok(all)
    }

    /// There is no move, and this is why, unless the publisher knows.
    pub(super) fn stay(&self, state: &mut State, why: Option<String>) {
        let Some(leaving) = state.leaving.take() else {
            return;
        };
        let _ = epoll::delete(&*self.epoll, &leaving.link);
        for (source, connection) in &state.links {
            if let (Connection::Joined { peer, place, .. }, true) =
                (connection, leaving.ready.contains(source))
            {
                if peer.withdraw(leaving.home) {
                    self.watch_joined(peer, *source, *place, true);
                }
                peer.wake_again();
            }
        }
        state.stays = why;
        self.changed.notify_all();
    }
}

impl Goer<'_> {
    fn introduce(&self, to: &Link) -> Result<(), LinkError> {
        let Some((page, ringer)) = self.peer.descriptors() else {
            return Ok(());
        };
        let doorbell = ringer.map(|ringer| {
            let eventfd = ringer.backing() == Backing::EventFd;
            (FdRef::new(ringer), eventfd)
        });
        let introduced = self.peer.with_link(|link| {
            let out = link.sends_over();
            to.try_send(&HandsOverRef::Subscriber(SubscriberRef {
                source: self.source,
                link: match out.is_some() && link.is_between_messages() {
                    true => LinkRef::Half(FdRef::new(link)),
                    // In the middle of a message it is refused.
                    false => LinkRef::Whole(link),
                },
                page: FdRef::new(page),
                doorbell,
                process: self.process.map(FdRef::new),
                overflow: self.peer.overflow(),
                start: self.joined.start,
                sequence: self.joined.sequence,
                out: out.map(FdRef::from),
            }))
        });
        introduced.unwrap_or(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use memlane_region::{Shared, page_size};

    use super::*;
    use crate::{Overflow, Publisher, Subscriber, publisher::passage::TakesOverRef};

    /// There is no room on its link for the news that a successor's ring is none: it hears that, and all else, once it looks.
    #[test]
    fn one_that_cannot_be_told_that_there_is_no_move_is_told_later() {
        let mut publisher = Publisher::builder().ring_bytes(page_size());
        publisher = publisher.pool_bytes(1 << 20);
        let mut publisher = publisher.unbound().unwrap();
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        let lossy = Subscriber::builder().overflow(Overflow::Overwrite);
        let mut lossy = lossy.over(theirs).unwrap();
        let ticket = publisher.ticket().unwrap();
        let successor = ticket.into_link().unwrap().with_limits(LIMITS).adopting();
        successor.send(&Opening { version: VERSION }).unwrap();
        let carries = TakesOverRef::Carries(&publisher.control.terms.carries);
        successor.send(&carries).unwrap();
        let (_memory, ring) = Shared::create("home", page_size(), page_size()).unwrap();
        successor
            .send(&TakesOverRef::Ring(FdRef::new(&ring)))
            .unwrap();
        let _opening: Opening = successor.recv().unwrap();
        let _terms: passage::HandsOver = successor.recv().unwrap();
        let passage::HandsOver::Subscriber(subscriber) = successor.recv().unwrap() else {
            panic!("there is one");
        };
        let knows = TakesOverRef::Knows {
            source: subscriber.source,
            doorbell: None,
        };
        successor.send(&knows).unwrap();
        let patience = Duration::from_secs(60);
        assert!(publisher.wait_until_awaited(patience).unwrap());
        let state = publisher.control.state();
        let peer = state.peers().next().unwrap().clone();
        drop(state);
        // No more fits.
        let other = NoticeRef::RingRemoved { id: 1 << 30 };
        while peer.try_say(&other) {}
        publisher.stay();
        assert!(peer.is_behind());
        let since = Instant::now();
        loop {
            publisher.try_reserve(200_000).unwrap().commit();
            if lossy.try_recv().is_ok() && !peer.is_behind() {
                break;
            }
            assert!(since.elapsed() < patience, "it hears nothing");
            std::thread::yield_now();
        }
        assert!(publisher.ticket().is_ok());
        assert_eq!(publisher.stats().evicted, 0);
    }
}

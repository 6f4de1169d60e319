//! How links become subscribers: versions, greetings, and what came with them.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use memlane_region::{Remote, page_size};
use memlane_signaling::{Backing, Ringer};
use memlane_transport::{Error as LinkError, Fd, FdRef, Link, dispose};
use rustix::event::epoll::EventFlags;

use super::{
    control::{Control, Pattern},
    moving::Place,
    peer::Peer,
    state::{Comes, Connection, Greeter, State},
};
use crate::{
    Error, Overflow, PayloadType,
    doorbells::{self, Bell},
    error::Sides,
    process_of,
    protocol::{
        DoorbellOffer, Greeting, Opening, Packet, PacketRef, PublisherDoorbellRef, Refusal, Rings,
        VERSION, WelcomeRef, limits_of_publisher,
    },
};

/// A control page, and its descriptor, if that is kept.
type Page = (Remote, Option<OwnedFd>);

/// A link that has not greeted after this long makes room for others.
const GREETING_TIME: Duration = Duration::from_secs(5);
/// So many links may be without a greeting at a time; the oldest is dropped for a newer one.
pub(super) const MAX_GREETING: usize = 64;

impl Control {
    /// Waits for the greeting of a new link; on one that this side has made, it offers its lane first.
    pub(super) fn greet(
        &self,
        state: &mut State,
        link: Link,
        process: Option<OwnedFd>,
        comes: Comes,
    ) -> rustix::io::Result<u32> {
        self.prune(state);
        let limits = limits_of_publisher(self.terms.max_attachments);
        let link = Arc::new(link.with_limits(limits));
        let source = state.next_source();
        self.watch(&link, source, EventFlags::IN | EventFlags::RDHUP)?;
        // A successor is told when it has said where.
        if !matches!(comes, Comes::ToSucceed(_)) {
            // One that cannot be told the version will not be told anything: the link ends, and that is noticed.
            let _ = link.try_send(&Opening { version: VERSION });
        }
        if comes == Comes::Offered {
            let _ = link.try_send(&PacketRef::Offer);
        }
        let greeter = Greeter {
            link,
            process,
            since: Instant::now(),
            opened: false,
            comes,
        };
        state
            .links
            .insert(source, Connection::Greeting(Box::new(greeter)));
        // Most clients have greeted by the time they are accepted.
        self.shake_hands(state, source);
        Ok(source)
    }

    /// Drops links that have not greeted in time, and the oldest where there are too many. Those of successors are as many as
    /// there are subscribers at most, and may be on their way for longer.
    fn prune(&self, state: &mut State) {
        let now = Instant::now();
        let mut waiting: Vec<(Instant, u32)> = state
            .links
            .iter()
            .filter_map(|(source, connection)| match connection {
                Connection::Greeting(greeter) if !matches!(greeter.comes, Comes::ToSucceed(_)) => {
                    Some((greeter.since, *source))
                }
                _ => None,
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
    pub(super) fn shake_hands(&self, state: &mut State, source: u32) {
        let Some(Connection::Greeting(greeter)) = state.links.get_mut(&source) else {
            return;
        };
        if !greeter.opened {
            match greeter.link.try_recv::<Opening>() {
                Ok(opening) if opening.version == VERSION => greeter.opened = true,
                Err(LinkError::WouldBlock) => return,
                // Of another version, which it can tell from ours, or no subscriber at all.
                other => {
                    let comes = greeter.comes;
                    let refused = u64::from(other.is_ok());
                    self.refused.fetch_add(refused, Ordering::Relaxed);
                    match (other, comes) {
                        (Ok(Opening { version }), Comes::Offered) => {
                            state.failed = Some(Sides::new("receiver", "sender").version(version));
                        }
                        (Ok(Opening { version }), Comes::ToSucceed(predecessor)) => {
                            let why = format!(
                                "its successor is of version {version}, and this publisher of version {VERSION}"
                            );
                            self.orphan(state, predecessor, source, &why);
                        }
                        _ => {}
                    }
                    return self.remove(state, source);
                }
            }
        }
        let answered = !matches!(greeter.comes, Comes::ToSucceed(_));
        if !answered && greeter.link.sends_over().is_none() {
            let arrives = match greeter.link.try_recv::<Packet>() {
                Err(LinkError::WouldBlock) => return,
                Ok(Packet::Arrives { link }) => Arc::get_mut(&mut greeter.link)
                    .is_some_and(|greeter| greeter.send_over(link.into()).is_ok()),
                _ => false,
            };
            if !arrives {
                return self.remove(state, source);
            }
            // It has made the socket that it is answered on.
            greeter.process = process_of(&greeter.link).unwrap_or_default();
            let _ = greeter.link.try_send(&Opening { version: VERSION });
        }
        let greeting = match greeter.link.try_recv::<Packet>() {
            Err(LinkError::WouldBlock) => return,
            Ok(Packet::Greeting(greeting)) if self.terms.pattern == Pattern::Lane => greeting,
            Ok(Packet::Watch(greeting)) if self.terms.pattern == Pattern::Latest => greeting,
            Ok(Packet::Greeting(_) | Packet::Watch(_) | Packet::Offer | Packet::Client(_)) => {
                return self.turn_away(state, source, self.terms.pattern.says());
            }
            Ok(Packet::Refused(refusal)) => {
                if greeter.comes == Comes::Offered {
                    let why = refusal.told("sender").to_string();
                    state.failed = Some(Error::NoReceiver { why });
                }
                return self.remove(state, source);
            }
            Ok(Packet::Server(_)) => {
                let why = "a server is there, which answers requests: call it (Client::connect)";
                if greeter.comes == Comes::Offered {
                    state.failed = Some(Error::NoReceiver {
                        why: why.to_owned(),
                    });
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
        self.forget_link(&greeter.link);
        let comes = greeter.comes;
        match self.admit(state, greeting, *greeter) {
            Err(refusal) if comes == Comes::Offered => {
                let why = match refusal {
                    Refusal::Payload { carries, expects } => {
                        format!("the receiver expects {expects}, and this sender carries {carries}")
                    }
                    Refusal::Attachments { carries, takes } => format!(
                        "the receiver takes at most {takes} attachments of a message, and this sender's have up to {carries} \
                         (max_attachments on either side)"
                    ),
                    refusal => format!("this sender refused the receiver's greeting: {refusal}"),
                };
                state.failed = Some(Error::NoReceiver { why });
                self.changed.notify_all();
            }
            Err(refusal) => {
                if let Comes::ToSucceed(predecessor) = comes {
                    let why = format!("its successor was refused: {refusal}");
                    self.orphan(state, predecessor, source, &why);
                }
            }
            Ok(()) => {}
        }
    }

    /// Refuses a link whose other end is no counterpart of this one.
    fn turn_away(&self, state: &mut State, source: u32, why: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        if let Some(Connection::Greeting(greeter)) = state.links.get(&source) {
            let why = why.to_owned();
            let refusal = Refusal::Pattern { why };
            let _ = greeter.link.try_send(&PacketRef::Refused(refusal));
        }
        self.remove(state, source);
    }

    /// Makes the greeting of whoever is at the other end of this link a subscriber, or tells it why not.
    pub(super) fn join(
        &self,
        greeting: Greeting,
        link: Arc<Link>,
        process: Option<OwnedFd>,
    ) -> Result<(), Refusal> {
        let greeter = Greeter {
            link,
            process,
            since: Instant::now(),
            opened: true,
            comes: Comes::Shared,
        };
        self.admit(&mut self.state(), greeting, greeter)
    }

    /// Makes a greeted link a subscriber, or tells it why not.
    fn admit(
        &self,
        state: &mut State,
        greeting: Greeting,
        greeter: Greeter,
    ) -> Result<(), Refusal> {
        let Greeter {
            link,
            process,
            comes,
            ..
        } = greeter;
        let predecessor = match comes {
            Comes::ToSucceed(predecessor) => Some(predecessor),
            Comes::ToSubscribe | Comes::Offered | Comes::Shared => None,
        };
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
        let (carries, takes) = (self.terms.max_attachments as u32, greeting.attachments);
        if takes < carries {
            return refuse(&link, Refusal::Attachments { carries, takes });
        }
        // Those that were dismissed have their place until they are gone: they may keep memory.
        let subscribers = self.roster.len() + self.roster.lingering();
        if predecessor.is_none() && subscribers >= self.terms.max_subscribers {
            let subscribers = subscribers as u32;
            return refuse(&link, Refusal::Full { subscribers });
        }
        let is_lane = self.terms.pattern == Pattern::Lane;
        if let (Some(predecessor), true) = (predecessor, is_lane) {
            let lossy = greeting.overflow == Overflow::Overwrite;
            if let Err(refusal) = Control::compare_kinds(state, predecessor, lossy) {
                return refuse(&link, refusal);
            }
        }
        let moves = comes != Comes::Shared;
        // The page of a receiver goes nowhere: what has a latest value does not move.
        let keep = moves && is_lane;
        let (page, ringer, rings) = match self.examine(greeting.page, greeting.doorbell, keep) {
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
        let place = match moves {
            true => Place::default(),
            false => Place::Fixed,
        };
        let source = state.next_source();
        let watched =
            self.watch_link(&link, source, place.events())
                .and_then(|()| match &process {
                    Some(process) => self.watch(process, source, EventFlags::IN),
                    None => Ok(()),
                });
        if let Err(errno) = watched {
            self.forget_link(&link);
            return refuse(&link, short(errno.into()));
        }
        let peer = Arc::new(Peer::new(
            page,
            greeting.overflow,
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
        let told = state.parts().all(|(_, notice)| {
            let notice = PacketRef::Segment(notice);
            peer.with_link(|link| link.try_send(&notice).is_ok()) == Some(true)
        });
        peer.begin(state.parts().map(|(part, _)| part));
        let joined = match woken {
            // One that is to succeed another joins when that one has departed.
            Ok(()) if told && predecessor.is_some() => Ok(None),
            Ok(()) if told => self
                .roster
                .join_behind(peer.clone(), greeting.history)
                .map(Some),
            Ok(()) => Err(std::io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error),
        };
        let mut refused = Ok(());
        // A successor is told later.
        let (start, sequence, at, skip) = match &joined {
            Ok(Some(joined)) => (joined.start, joined.sequence, joined.ring, joined.skip),
            _ => (0, 0, self.terms.home, 0),
        };
        let answered = match &joined {
            Ok(_) => peer.with_link(|link| {
                link.try_send(&PacketRef::Welcome(WelcomeRef {
                    ring: FdRef::new(&self.terms.ring),
                    capacity: self.terms.capacity,
                    start,
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
                    sequence,
                    at,
                    skip,
                    home: self.terms.home,
                }))
                .is_ok()
            }),
            Err(error) => peer.with_link(|link| {
                let why = error.to_string();
                refused = refuse(link, Refusal::Resources { why });
                false
            }),
        };
        // A message that is about to be committed is its first.
        let answered = answered == Some(true) && state.attach_to(&peer);
        let connection = match predecessor {
            Some(predecessor) => Connection::Arriving {
                peer,
                process,
                predecessor,
            },
            None => Connection::Joined {
                id: joined.ok().flatten().map_or(u64::MAX, |joined| joined.id),
                peer,
                process,
                place,
            },
        };
        state.links.insert(source, connection);
        if let Some(predecessor) = predecessor {
            Control::expect(state, predecessor, source);
        }
        if !answered {
            self.remove(state, source);
        } else if let Some(predecessor) = predecessor {
            self.arrived(state, source, predecessor);
        } else {
            self.changed.notify_all();
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
        keep: bool,
    ) -> Result<(Page, Option<Bell>, Rings), Refusal> {
        let page = OwnedFd::from(page);
        let kept = keep.then(|| page.try_clone()).transpose();
        let opened = Remote::open(page, page_size(), 0, page_size());
        let page = match (opened, kept) {
            (Ok(page), Ok(kept)) => (page, kept),
            (Ok(_), Err(error)) => {
                return Err(Refusal::Resources {
                    why: error.to_string(),
                });
            }
            (Err(refused), kept) => {
                if let Ok(Some(kept)) = kept {
                    dispose(kept);
                }
                dispose(refused.descriptor);
                return Err(Refusal::Page {
                    why: refused.error.to_string(),
                });
            }
        };
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
}

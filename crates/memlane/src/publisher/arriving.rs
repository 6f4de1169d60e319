//! A publisher that goes on where another one stops, in another process.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use memlane_region::{Remote, page_size, ring::TAGS};
use memlane_signaling::{Backing, Doorbell, Ringer, gone};
use memlane_transport::{Link, Listener, dispose};
use rustix::event::epoll::EventFlags;

use super::{
    Publisher, PublisherBuilder,
    attachments::Flight,
    control::Control,
    handshake::MAX_GREETING,
    moving::Place,
    passage::{self, Going, HandsOver, Subscriber, TakesOverRef, Terms},
    peer::Peer,
    state::{Comes, Connection, Greeter, State},
};
use crate::{
    Error,
    doorbells::{self, Bell},
    protocol::{NoticeRef, limits_of_publisher},
};

/// Positions beyond this are nonsense.
const LAST_POSITION: u64 = 1 << 62;

/// So many subscribers are not looked through for those that have left.
const LOOK_AT: usize = 64;

/// A subscriber of the publisher before, as it will be this one's.
#[derive(Debug)]
struct Known {
    peer: Arc<Peer>,
    process: Option<OwnedFd>,
    start: u64,
    sequence: u64,
}

/// It is there, and hears who its subscribers are.
#[derive(Debug)]
pub(super) struct Arriving {
    publisher: Publisher,
    history: usize,
    access: memlane_transport::Access,
    known: HashMap<u32, Known>,
    /// So many are looked through for those that have left since.
    look_at: usize,
    /// Of those the ones that come along, and what is on its way to them.
    going: HashMap<u32, Flight>,
    greeters: Vec<passage::Greeter>,
    listener: Option<Listener>,
}

pub(super) fn nonsense(why: impl Into<String>) -> Error {
    Error::Welcome { why: why.into() }
}

/// What is on its way to a subscriber, if that makes sense.
fn flight(going: &Going) -> Result<Flight, Error> {
    let Going {
        sent,
        taken,
        counts,
        ..
    } = going;
    if sent.checked_sub(*taken) != Some(counts.len() as u64) {
        return Err(nonsense(format!(
            "expected each of the notices of attachments from {taken} to {sent}, got {}",
            counts.len()
        )));
    }
    let counts = counts.iter().map(|count| *count as usize);
    Ok(Flight::of(*sent, *taken, counts.collect()))
}

/// Whether the place where the one before stops makes sense for a publisher whose first ring has this id.
fn check(at: &passage::Place, home: u32) -> Result<(), Error> {
    if at.position % 8 != 0 || at.position > LAST_POSITION || at.sequence > at.position / 8 {
        return Err(nonsense(format!(
            "expected a position up to 2^62, and at most a message for each 8 bytes before it, got {} and {}",
            at.position, at.sequence
        )));
    }
    if at.chunks > at.sequence || at.tag >= TAGS {
        return Err(nonsense(format!(
            "expected at most {} messages in the pool, and a tag below {TAGS}, got {} and {}",
            at.sequence, at.chunks, at.tag
        )));
    }
    if at.rings <= home {
        return Err(nonsense(format!(
            "expected ids for rings behind {home}, got {}",
            at.rings
        )));
    }
    Ok(())
}

impl Arriving {
    /// Makes what subscribers are to go by as the one before, at the other end of the link, has it.
    pub(super) fn meet(
        builder: PublisherBuilder,
        terms: &Terms,
        link: &Link,
    ) -> Result<Arriving, Error> {
        if terms.home == 0 {
            return Err(nonsense(
                "expected a number for the successor's ring, got that of the first of all",
            ));
        }
        if terms.carries != *builder.carries() {
            let why = format!(
                "expected one of a publisher that carries {}, got one that carries {}",
                builder.carries(),
                terms.carries
            );
            return Err(Error::Option {
                what: "ticket",
                why,
            });
        }
        let (history, access) = (builder.history, builder.access.clone());
        let made = builder.succeeding(terms);
        let publisher = made.inspect_err(|error| {
            let why = format!("its successor could not be made: {error}");
            let _ = link.try_send(&TakesOverRef::Refuses(&why));
        })?;
        Ok(Arriving {
            publisher,
            history,
            access,
            known: HashMap::new(),
            look_at: LOOK_AT,
            going: HashMap::new(),
            greeters: Vec::new(),
            listener: None,
        })
    }

    /// Its first ring.
    pub(super) fn ring(&self) -> &OwnedFd {
        &self.publisher.control.terms.ring
    }

    /// Takes a subscriber of the one before: what that is to ring.
    pub(super) fn get_to_know(&mut self, subscriber: Subscriber) -> Result<Option<OwnedFd>, Error> {
        let source = subscriber.source;
        self.forget_those_gone();
        let (known, doorbell) = self.know(subscriber)?;
        self.known.insert(source, known);
        Ok(doorbell)
    }

    /// Takes all else that moves along.
    pub(super) fn hear(&mut self, said: HandsOver) -> Result<(), Error> {
        match said {
            // One that it was not told of is gone by now.
            HandsOver::Going(going) if !self.known.contains_key(&going.source) => {}
            HandsOver::Going(going) => {
                self.going.insert(going.source, flight(&going)?);
            }
            HandsOver::Greeter(_) if self.greeters.len() == MAX_GREETING => {
                return Err(nonsense(format!(
                    "expected at most {MAX_GREETING} links without a greeting, got more"
                )));
            }
            HandsOver::Greeter(greeter) => self.greeters.push(greeter),
            HandsOver::Listener(listener) => self.listener = Some(listener),
            HandsOver::Terms(_) | HandsOver::Subscriber(_) | HandsOver::Departs(_) => {
                return Err(nonsense("expected a subscriber, got terms"));
            }
        }
        Ok(())
    }

    /// Lets go of subscribers that have left the one before: it may be a long time until that departs.
    fn forget_those_gone(&mut self) {
        if self.known.len() < self.look_at {
            return;
        }
        self.known.retain(|_, known| {
            let ended = known.peer.with_link(|link| gone(link.as_fd(), None));
            !matches!(ended, Some(Ok(true)))
        });
        self.look_at = LOOK_AT.max(2 * self.known.len());
    }

    /// Takes what it needs to know of a subscriber, which hears nothing of it; and what that is to ring.
    fn know(&self, subscriber: Subscriber) -> Result<(Known, Option<OwnedFd>), Error> {
        let Subscriber {
            mut link,
            page,
            doorbell,
            process,
            overflow,
            start,
            sequence,
            out,
            ..
        } = subscriber;
        if let Some(out) = out {
            link.send_over(out.into())?;
        }
        let terms = &self.publisher.control.terms;
        let page = OwnedFd::from(page);
        let kept = page.try_clone().map_err(Error::os("keep a page"))?;
        let page = Remote::open(page, page_size(), 0, page_size()).map_err(|refused| {
            dispose(refused.descriptor);
            refused.error
        })?;
        let ringer = doorbell.map(|(end, eventfd)| {
            let backing = match eventfd {
                true => Backing::EventFd,
                false => Backing::Socket,
            };
            Ringer::open(end.into(), backing)
        });
        let ringer = ringer.transpose().map_err(|wrong| {
            dispose(wrong.descriptor);
            Error::os("take a doorbell")(wrong.error)
        })?;
        let made = terms.sleeps.then(|| doorbells::make(Backing::Socket));
        let made: Option<(Doorbell, OwnedFd)> =
            made.transpose().map_err(Error::os("make a doorbell"))?;
        let (doorbell, end) = made.unzip();
        let peer = Peer::new(
            (page, Some(kept)),
            overflow,
            ringer.map(Bell::new),
            doorbell,
            Arc::new(link.with_limits(limits_of_publisher(terms.max_attachments))),
            terms.registered,
        );
        let known = Known {
            peer: Arc::new(peer),
            process: process.map(OwnedFd::from),
            start,
            sequence,
        };
        Ok((known, end))
    }

    /// The one before has departed: all this is this publisher's.
    pub(super) fn begin(self, at: passage::Place) -> Result<Publisher, Error> {
        let Arriving {
            mut publisher,
            history,
            access,
            mut known,
            going,
            greeters,
            listener,
            ..
        } = self;
        check(&at, publisher.control.terms.home)?;
        publisher.writer.begin_at(at.position, at.sequence);
        if history > 0 {
            publisher.writer.keep(history);
        }
        publisher.pool.begin_at(at.chunks, at.segments);
        publisher.spill.number_from(at.rings);
        let control = (*publisher.control).clone();
        let mut state = control.state();
        state.last_tag = at.tag;
        for (source, flight) in going {
            if let Some(known) = known.remove(&source) {
                control.adopt(&mut state, known, flight, (at.rings, at.segments));
            }
        }
        for greeter in greeters {
            control.adopt_greeter(&mut state, greeter);
        }
        drop(state);
        publisher.writer.fence(true);
        if publisher.writer.sync() {
            publisher.roster_changed();
        }
        if let Some(listener) = listener {
            control
                .listen(listener.with_access(access))
                .map_err(|errno| Error::os("watch the listener")(errno.into()))?;
        }
        Ok(publisher)
    }
}

impl Control {
    /// Makes a subscriber of the publisher before this one its own. If that cannot be, it is told why.
    fn adopt(
        &self,
        state: &mut State,
        known: Known,
        flight: Flight,
        (rings, segments): (u32, u32),
    ) {
        let Known {
            peer,
            process,
            start,
            sequence,
        } = known;
        *peer.flight() = flight;
        let (source, place) = (state.next_source(), Place::default());
        let watched = peer.with_link(|link| self.watch_link(link, source, place.events()));
        let watched = watched.unwrap_or(Ok(())).and_then(|()| match &process {
            Some(process) => self.watch(process, source, EventFlags::IN),
            None => Ok(()),
        });
        let id = match watched {
            Ok(()) => self.roster.adopt(peer.clone(), start, sequence).id,
            Err(_) => u64::MAX,
        };
        let connection = Connection::Joined {
            id,
            peer: peer.clone(),
            process,
            place,
        };
        state.links.insert(source, connection);
        if let Err(errno) = watched {
            peer.evict(format!("it cannot be watched: {errno}"));
            return self.remove(state, source);
        }
        let moved = NoticeRef::Moved {
            home: self.terms.home,
            rings,
            segments,
        };
        if peer.tell(&moved) {
            self.watch_joined(&peer, source, place, true);
        }
    }

    /// Goes on with a client that was about to become a subscriber.
    fn adopt_greeter(&self, state: &mut State, greeter: passage::Greeter) {
        let passage::Greeter {
            link,
            process,
            opened,
        } = greeter;
        let link = link.with_limits(limits_of_publisher(self.terms.max_attachments));
        let source = state.next_source();
        if self
            .watch(&link, source, EventFlags::IN | EventFlags::RDHUP)
            .is_err()
        {
            return;
        }
        let greeter = Greeter {
            link: Arc::new(link),
            process: process.map(OwnedFd::from),
            since: Instant::now(),
            opened,
            comes: Comes::ToSubscribe,
        };
        state
            .links
            .insert(source, Connection::Greeting(Box::new(greeter)));
        self.shake_hands(state, source);
    }
}

impl PublisherBuilder {
    /// With what subscribers go by as another publisher has it; its ring is to follow the other one's.
    fn succeeding(mut self, terms: &Terms) -> Result<Publisher, Error> {
        self.ring_bytes = usize::try_from(terms.capacity).unwrap_or(usize::MAX);
        self.max_attachments = terms.max_attachments as usize;
        self.trust = terms.trusts;
        if terms.to_receiver {
            self.max_subscribers = 1;
        }
        let mut publisher = self.made(Some(terms.home))?;
        publisher.to_receiver = terms.to_receiver;
        Ok(publisher)
    }
}

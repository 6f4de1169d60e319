//! Introductions: processes that cannot open sockets get links to one another from a broker that holds a link to each.
//!
//! A sandboxed process has the one link that it was started with, and no `socket`, `connect` or `open`. Its parent is
//! the [`Broker`], which admits it under a name. A [`Client`] asks for another by name; where the broker's policy
//! allows it, each of the two gets one end of a new [pair](Link::pair), with the other's name. From then on they talk
//! without the broker, also when it is gone.
//!
//! ```
//! use memlane_transport::broker::{Arrival, Broker, Client, Event};
//!
//! let mut broker = Broker::new(|from, to| from == "renderer" && to == "cache")?;
//! // To be inherited by children; here both are this process.
//! let mut renderer = Client::new(broker.admit("renderer")?);
//! let mut cache = Client::new(broker.admit("cache")?);
//!
//! let request = renderer.request("cache")?;
//! let events = broker.drive()?;
//! assert!(matches!(&events[..], [Event::Introduced { from, to }] if from == "renderer" && to == "cache"));
//!
//! let Arrival::Accepted { request: answered, link: to_cache, .. } = renderer.recv()? else { panic!() };
//! assert_eq!(answered, request);
//! let Arrival::Introduced { name, link: to_renderer } = cache.recv()? else { panic!() };
//! assert_eq!(name, "renderer");
//! to_cache.send("hello")?;
//! assert_eq!(to_renderer.recv::<String>()?, "hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Names are names
//! A name opens nothing: who asks is told by the connection a request comes in on, never by what it says, and the
//! broker decides about each introduction (THREATS D3). A name that nobody has and one that the policy does not let the
//! asker have are answered alike, [`Declined::Unknown`]; the policy is asked first, so that not even the time it takes
//! tells them apart where it says no.
//!
//! # Whom it costs what
//! The broker trusts no client. It takes no descriptors from them, never waits for one, keeps nothing for them but what
//! their sockets hold, and closes a link on the first message that breaks the protocol, one that only a broker may send
//! included. A client that does not read its answers is not read from until it does. At most [`MAX_UNREAD`]
//! introductions wait for a client that does not read; one asker gets at most half of what the others leave, and is
//! [`Declined::Busy`] beyond. Each [`drive`](Broker::drive) does a bounded amount of work for each client that has
//! requests, in turn.
//!
//! A client trusts its broker as it trusts its parent, and those it is introduced to not at all.
//!
//! # What two sides know
//! An introduction is sent to the one asked for, then to the one who asked, each of them found to have room before. So
//! both have it or none, but for what nobody can see beforehand: either may die before it receives, and the kernel may
//! refuse the second message for want of memory or because the user has too many descriptors in flight (ETOOMANYREFS).
//! The other then has a link that has hung up ([`Error::Disconnected`]); and the asker that is still there is answered.

mod client;
mod member;
mod wire;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFlags, Timespec};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::link::Link;
use crate::socket::{self, SocketKind};
use crate::wait::{self, Patience};
pub use client::{Arrival, Client, MAX_KEPT, RequestId};
use member::{Member, Token};
use wire::{Message, Request};

/// Bytes that a name may have.
pub const MAX_NAME: usize = 255;

/// Introductions that may wait for a client to read them. The kernel counts them by memory, so that fewer may be let
/// in, never more.
pub const MAX_UNREAD: usize = 32;

/// Clients served in one [`Broker::drive`].
const ROUND: usize = 64;

/// Requests of a client served in one round.
const BURST: usize = 8;

type Policy = Box<dyn FnMut(&str, &str) -> bool + Send>;

/// Introduces its clients to one another; see the [module](self).
///
/// It is driven by its owner: whenever [its descriptor](AsFd) is readable, [`drive`](Broker::drive) serves what there
/// is. Dropping it hangs up on all clients; the links between them stay.
pub struct Broker {
    epoll: OwnedFd,
    policy: Policy,
    members: HashMap<Token, Member>,
    tokens: HashMap<Arc<str>, Token>,
    next: Token,
}

/// Why there is no introduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Declined {
    /// Nobody has that name, or nobody that the asker may know of.
    #[error("nobody known by that name")]
    Unknown,
    /// Not now: one of the two has not read earlier introductions, or the broker is out of descriptor numbers or
    /// memory. Ask again later.
    #[error("one of the two has introductions waiting, or the broker is short of resources")]
    Busy,
}

/// What happened in a [`Broker::drive`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Both ends of a new link are on their way.
    Introduced {
        /// Who asked.
        from: String,
        /// For whom.
        to: String,
    },
    /// A request was declined.
    Declined {
        /// Who asked.
        from: String,
        /// For whom: whatever the client wrote.
        to: String,
        /// What it was told.
        reason: Declined,
        /// What stood in the way in this process or the kernel, if anything did.
        error: Option<Error>,
    },
    /// A client has hung up. Its name is free.
    Left {
        /// Who.
        name: String,
    },
    /// A client broke the protocol and has been hung up on. Its name is free.
    Expelled {
        /// Who.
        name: String,
        /// How.
        error: Error,
    },
}

/// Why a client cannot be admitted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdmitError {
    /// The name is empty or too long.
    #[error("a client's name has 1 to {MAX_NAME} bytes, this one has {length}")]
    Name {
        /// Bytes it has.
        length: usize,
    },
    /// Another client has the name, and has not left.
    #[error("a client named {name:?} is there already")]
    Taken {
        /// The name.
        name: String,
    },
    /// The link is a stream, which may take a message in part.
    #[error("a broker's links are sequenced-packet sockets, this one is a stream")]
    Stream,
    /// No descriptor numbers, or no memory left.
    #[error("admitting a client failed")]
    Io(#[from] std::io::Error),
}

/// Why a request is declined, and what only the broker's owner is told.
struct Refusal {
    reason: Declined,
    error: Option<Error>,
}

impl From<Declined> for Refusal {
    fn from(reason: Declined) -> Refusal {
        Refusal {
            reason,
            error: None,
        }
    }
}

impl Refusal {
    fn busy(error: Error) -> Refusal {
        Refusal {
            reason: Declined::Busy,
            error: Some(error),
        }
    }
}

impl Broker {
    /// A broker without clients. `policy` is asked about each introduction, with the name of who asks and the name
    /// asked for, which may be nobody's.
    ///
    /// # Errors
    /// No descriptor numbers or memory left.
    pub fn new(policy: impl FnMut(&str, &str) -> bool + Send + 'static) -> std::io::Result<Broker> {
        Ok(Broker {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            policy: Box::new(policy),
            members: HashMap::new(),
            tokens: HashMap::new(),
            next: 0,
        })
    }

    /// Admits a client under `name`, and gives its end of the link: for a child to inherit
    /// (`Stdio::from(OwnedFd::from(link))`), where a [`Client`] takes it. The client has left when every copy of that
    /// end is closed, so keep none.
    ///
    /// # Errors
    /// The name is no name or taken; no descriptor numbers or memory left.
    pub fn admit(&mut self, name: &str) -> Result<Link, AdmitError> {
        let (ours, theirs) = Link::pair()?;
        self.admit_link(name, ours)?;
        Ok(theirs)
    }

    /// [`admit`](Broker::admit) over a link that is there, for instance one that this process accepted. This end of it
    /// must have been made by this process: see [`Link`] on whom to receive from.
    ///
    /// # Errors
    /// As [`admit`](Broker::admit), and [`AdmitError::Stream`]. The link is closed.
    pub fn admit_link(&mut self, name: &str, link: Link) -> Result<(), AdmitError> {
        if !(1..=MAX_NAME).contains(&name.len()) {
            return Err(AdmitError::Name { length: name.len() });
        }
        if socket::kind(&link) != Ok(SocketKind::Packets) {
            return Err(AdmitError::Stream);
        }
        let name: Arc<str> = name.into();
        let Entry::Vacant(place) = self.tokens.entry(Arc::clone(&name)) else {
            return Err(AdmitError::Taken {
                name: name.as_ref().into(),
            });
        };
        let token = self.next;
        let member = Member::new(name, link);
        let data = EventData::new_u64(token);
        epoll::add(&self.epoll, &member.link, data, member.watched)
            .map_err(std::io::Error::from)?;
        place.insert(token);
        self.members.insert(token, member);
        self.next += 1;
        Ok(())
    }

    /// Hangs up on a client, and says whether there was one. Its name is free; links it was given stay.
    pub fn dismiss(&mut self, name: &str) -> bool {
        let token = self.tokens.get(name).copied();
        let member = token.and_then(|token| self.take(token));
        member.map(Member::hang_up).is_some()
    }

    /// Names of the clients, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tokens.keys().map(AsRef::as_ref)
    }

    /// Serves what is there, without waiting, and says what happened: a bounded number of requests, in turn. What is
    /// more leaves the descriptor readable.
    ///
    /// # Errors
    /// [`Error::Io`] from epoll. What a client does is never an error here, but an [`Event`].
    pub fn drive(&mut self) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        let mut ready = [MaybeUninit::uninit(); ROUND];
        // Those that still have something are queued behind all others (ep_send_events, fs/eventpoll.c), so that more
        // than a round of them take turns.
        match epoll::wait(&self.epoll, &mut ready, Some(&Timespec::default())) {
            Ok((ready, _)) => {
                for event in ready {
                    let flags = event.flags;
                    self.serve(event.data.u64(), flags, &mut events);
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io("asking which clients have requests", error)),
        }
        Ok(events)
    }

    /// [`drive`](Broker::drive), after waiting at most `timeout` for something to do.
    ///
    /// # Errors
    /// As [`drive`](Broker::drive). That the time ran out is none: nothing happened.
    pub fn drive_timeout(&mut self, timeout: Duration) -> Result<Vec<Event>, Error> {
        let patience = Patience::timeout(timeout);
        match wait::ready(self.as_fd(), PollFlags::IN, patience) {
            Ok(_) => self.drive(),
            Err(Error::TimedOut) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn serve(&mut self, token: Token, flags: EventFlags, events: &mut Vec<Event>) {
        // One that has hung up wants no answers any more.
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            return self.remove(token, Error::Disconnected, events);
        }
        for _ in 0..BURST {
            // Removed by an event before this one, or while it was served.
            let Some(member) = self.members.get_mut(&token) else {
                return;
            };
            match member.request() {
                Ok(Some(request)) => self.answer(token, &request, events),
                Ok(None) => break,
                Err(error) => return self.remove(token, error, events),
            }
        }
        if let Err(error) = self.watch(token) {
            self.remove(token, error, events);
        }
    }

    /// Waits for what the client is due.
    fn watch(&mut self, token: Token) -> Result<(), Error> {
        let Some(member) = self.members.get_mut(&token) else {
            return Ok(());
        };
        if member.watched != member.due {
            let data = EventData::new_u64(token);
            epoll::modify(&self.epoll, &member.link, data, member.due)
                .map_err(|error| Error::io("watching a client", error))?;
            member.watched = member.due;
        }
        Ok(())
    }

    fn answer(&mut self, asker: Token, request: &Request, events: &mut Vec<Event>) {
        let Some(member) = self.members.get(&asker) else {
            return;
        };
        let from = Arc::clone(&member.name);
        let result = if (self.policy)(&from, &request.to) {
            self.introduce(asker, &from, request, events)
        } else {
            Err(Declined::Unknown.into())
        };
        let (from, to) = (from.as_ref().to_owned(), request.to.clone());
        let Err(Refusal { reason, error }) = result else {
            events.push(Event::Introduced { from, to });
            return;
        };
        events.push(Event::Declined {
            from,
            to,
            reason,
            error,
        });
        let request = request.request;
        let answer = Message::Declined { request, reason };
        let sent = self
            .members
            .get(&asker)
            .map_or(Ok(()), |member| member.send(&answer));
        // There was room: the kernel has no memory, or the client is gone. Better no link than one that waits for ever.
        if let Err(error) = sent {
            self.remove(asker, error, events);
        }
    }

    fn introduce(
        &mut self,
        asker: Token,
        from: &str,
        request: &Request,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let to = self.tokens.get(request.to.as_str()).copied();
        let to = to.filter(|to| *to != asker).ok_or(Declined::Unknown)?;
        for token in [asker, to] {
            let member = self.members.get_mut(&token).ok_or(Declined::Unknown)?;
            if !member.has_place_for(asker).map_err(Refusal::busy)? {
                return Err(Declined::Busy.into());
            }
        }
        let (near, far) =
            Link::pair().map_err(|error| Refusal::busy(Error::io("making a pair", error)))?;
        let introduced = Message::Introduced {
            from: from.to_owned(),
            link: far,
        };
        let accepted = Message::Accepted {
            request: request.request,
            link: near,
        };
        let mut result = Ok(());
        for (token, message) in [(to, introduced), (asker, accepted)] {
            if result.is_ok() {
                result = self.hand_over(token, asker, &message, events);
            }
            message.dispose();
        }
        result
    }

    fn hand_over(
        &mut self,
        token: Token,
        asker: Token,
        message: &Message,
        events: &mut Vec<Event>,
    ) -> Result<(), Refusal> {
        let member = self.members.get_mut(&token).ok_or(Declined::Unknown)?;
        match member.introduce(asker, message) {
            Ok(()) => Ok(()),
            Err(error @ Error::Disconnected) => {
                self.remove(token, error, events);
                Err(Declined::Unknown.into())
            }
            Err(error) => Err(Refusal::busy(error)),
        }
    }

    fn remove(&mut self, token: Token, error: Error, events: &mut Vec<Event>) {
        let Some(member) = self.take(token) else {
            return;
        };
        let name = member.name.as_ref().to_owned();
        member.hang_up();
        events.push(match error {
            Error::Disconnected => Event::Left { name },
            error => Event::Expelled { name, error },
        });
    }

    fn take(&mut self, token: Token) -> Option<Member> {
        let member = self.members.remove(&token)?;
        self.tokens.remove(&member.name);
        // Before the close: were there another copy of the socket, the registration would stay.
        let _ = epoll::delete(&self.epoll, &member.link);
        Some(member)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        for (_, member) in self.members.drain() {
            member.hang_up();
        }
    }
}

impl AsFd for Broker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl AsRawFd for Broker {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker")
            .field("fd", &self.epoll.as_raw_fd())
            .field("clients", &self.tokens.keys())
            .finish_non_exhaustive()
    }
}

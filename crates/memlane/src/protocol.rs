//! What publisher and subscriber say to each other on the link, once, before the ring is all they need.
//!
//! Each side sends its version first, in a packet of its own that will never change. If they agree, the
//! subscriber's next packet is a greeting, with its control page and its doorbell; the publisher welcomes it, with
//! the ring and a doorbell of its own, or refuses it. After that the link carries notices of the publisher's pool, and is
//! there to hang up.
//!
//! A subscriber that is to move to another process asks for a socket, over which its successor speaks to the publisher. That one
//! brings along the socket over which the publisher answers, shakes hands as any subscriber does, and then waits for where to
//! begin.
//!
//! With a queue it is the publisher that connects, and says so; the receiver greets it as any subscriber would.
//!
//! Of a client and a server each is both: two lanes, one each way, over one link. Each greets the other's publisher, and
//! welcomes the other's subscriber. After that each side's notices are of the lane that it writes.

use std::fmt;

use memlane_region::pool::MAX_SEGMENTS;
use memlane_transport::{Fd, FdRef, Fds, Limits, SharedFd};
use serde::{Deserialize, Serialize};

use crate::{Error, PayloadType, Reason};

/// Version of everything in this file and of the memory layout.
pub(crate) const VERSION: u32 = 4;

/// Rings that a publisher has at most, at a time.
pub(crate) const MAX_RINGS: usize = 64;

/// Descriptors of any packet but attachments.
const DESCRIPTORS: usize = 4;

/// No message has more attachments: their indices fit the body of a packet.
pub(crate) const MAX_ATTACHMENTS: usize = 1024;

/// So many notices of attachments are on their way to a subscriber at a time. What they take of a socket's buffer leaves room
/// for others.
pub(crate) const MAX_ATTACHED: usize = 64;

/// More than any of these packets takes, and all that a stranger can make this process read. A welcome and two notices
/// of as many segments and rings as there can be (those that were there when it came, and those made since) can be on their way
/// at a time, of which the sender's estimate is up to half too high; and notices of attachments.
pub(crate) const LIMITS: Limits = Limits::new()
    .body(4096)
    .descriptors(DESCRIPTORS)
    .in_flight(4 * (MAX_SEGMENTS + MAX_RINGS) + MAX_ATTACHED);

/// Whether messages can have so many attachments.
pub(crate) fn check_attachments(attachments: usize) -> Result<(), Error> {
    if attachments <= MAX_ATTACHMENTS {
        return Ok(());
    }
    Err(Error::Option {
        what: "max_attachments",
        why: format!("expected at most {MAX_ATTACHMENTS}, got {attachments}"),
    })
}

/// Those of a subscriber, which takes messages with so many attachments.
pub(crate) const fn limits_of_subscriber(attachments: usize) -> Limits {
    LIMITS.descriptors(if attachments > DESCRIPTORS {
        attachments
    } else {
        DESCRIPTORS
    })
}

/// Those of a publisher, whose messages have so many.
pub(crate) const fn limits_of_publisher(attachments: usize) -> Limits {
    limits_of_subscriber(attachments).received_descriptors(DESCRIPTORS)
}

/// First packet, in each direction.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Opening {
    pub(crate) version: u32,
}

/// What a reader brings along.
#[derive(Debug, Serialize)]
pub(crate) struct GreetingRef<'a> {
    /// Its control page, one page.
    pub(crate) page: FdRef<'a>,
    pub(crate) doorbell: DoorbellOfferRef<'a>,
    /// It trusts the publisher not to block it: the publisher's doorbell may be an eventfd.
    pub(crate) trusts: bool,
    /// What messages have to be; none if they may be anything.
    pub(crate) expects: Option<&'a PayloadType>,
    pub(crate) overflow: Overflow,
    /// With how many messages it would like to begin that were sent before.
    pub(crate) history: u64,
    /// So many attachments of a message it takes, at most.
    pub(crate) attachments: u32,
}

/// What becomes of messages that a subscriber has not received when its publisher needs their room
/// ([`SubscriberBuilder::overflow`](crate::SubscriberBuilder::overflow)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Overflow {
    /// The publisher waits: nothing is lost.
    #[default]
    Block,
    /// They are overwritten: the subscriber holds nobody up, and is told exactly how many it has missed
    /// ([`Message::missed`](crate::Message::missed)).
    Overwrite,
    /// The subscriber is dropped, and told so: it receives what it has begun to read, all of it whole, and then
    /// [`Disconnected`](crate::RecvError::Disconnected), with [`Reason::Evicted`](crate::Reason::Evicted).
    Disconnect,
}

/// The doorbells that wake a subscriber: none if it never sleeps. The publisher takes the eventfd if it
/// trusts the subscriber, the socket if not.
#[derive(Debug, Serialize)]
pub(crate) struct DoorbellOfferRef<'a> {
    pub(crate) socket: Option<FdRef<'a>>,
    pub(crate) eventfd: Option<FdRef<'a>>,
}

/// [`GreetingRef`], received.
#[derive(Debug, Deserialize)]
pub(crate) struct Greeting {
    pub(crate) page: Fd,
    pub(crate) doorbell: DoorbellOffer,
    pub(crate) trusts: bool,
    pub(crate) expects: Option<PayloadType>,
    pub(crate) overflow: Overflow,
    pub(crate) history: u64,
    pub(crate) attachments: u32,
}

#[derive(Debug, Deserialize)]
pub(crate) struct DoorbellOffer {
    pub(crate) socket: Option<Fd>,
    pub(crate) eventfd: Option<Fd>,
}

/// What follows the openings, until a lane is made.
#[derive(Debug, Serialize)]
pub(crate) enum PacketRef<'a> {
    Welcome(WelcomeRef<'a>),
    Refused(Refusal),
    /// Before a welcome, of each segment and each ring that there is: a subscriber can receive as soon as it has joined.
    Segment(NoticeRef<'a>),
    /// From a reader to its publisher, whichever of the two has connected.
    Greeting(GreetingRef<'a>),
    /// From a publisher that has connected: it offers its lane to a receiver, which greets it.
    Offer,
    /// From a client that has connected: it offers a lane of requests, and greets that of the replies.
    Client(GreetingRef<'a>),
    /// From a server: it greets the lane of requests, and offers one of replies.
    Server(ServerRef<'a>),
    /// From a reader that watches a latest value, to its writer.
    Watch(GreetingRef<'a>),
    /// From a subscriber: asks for a link of a successor's, in place of one that it had before. It has a number of its choice.
    Ticket {
        number: u32,
    },
    /// From a subscriber: the last. Whoever has the link goes on where its cursor is, or, if it is overwritten, at the
    /// position it says. So many notices of attachments it has taken from the link.
    Departed {
        position: u64,
        sequence: u64,
        attachments: u64,
    },
    /// From a subscriber: it does not move.
    Stays,
    /// From a successor, after its opening: where it receives what the publisher says, which has said nothing until then.
    Arrives {
        link: FdRef<'a>,
    },
}

#[derive(Debug, Serialize)]
pub(crate) struct ServerRef<'a> {
    pub(crate) greeting: GreetingRef<'a>,
    /// So many requests of a client may be without an answer at a time.
    pub(crate) requests: u32,
}

#[derive(Debug, Serialize)]
pub(crate) struct WelcomeRef<'a> {
    pub(crate) ring: FdRef<'a>,
    pub(crate) capacity: u64,
    /// Position of the subscriber's first message.
    pub(crate) start: u64,
    /// Which of the offered doorbells the publisher will ring.
    pub(crate) rings: Rings,
    /// What to ring when the publisher waits for room.
    pub(crate) doorbell: PublisherDoorbellRef<'a>,
    /// The publisher's process is registered: the subscriber may carry the barrier.
    pub(crate) registered: bool,
    /// How many messages there were before that position.
    pub(crate) sequence: u64,
    /// The id of the ring in which the start is: the first one's, or one that there was a notice of.
    pub(crate) at: u32,
    /// How many messages from the start on are older than it has asked for, and not for it.
    pub(crate) skip: u64,
    /// The id of the first ring.
    pub(crate) home: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Rings {
    Nothing,
    Socket,
    EventFd,
}

#[derive(Debug, Serialize)]
pub(crate) enum PublisherDoorbellRef<'a> {
    None,
    Socket(FdRef<'a>),
    EventFd(FdRef<'a>),
}

/// [`PacketRef`], received.
#[derive(Debug, Deserialize)]
pub(crate) enum Packet {
    Welcome(Welcome),
    Refused(Refusal),
    Segment(Notice),
    Greeting(Greeting),
    Offer,
    Client(Greeting),
    Server(Server),
    Watch(Greeting),
    Ticket {
        number: u32,
    },
    Departed {
        position: u64,
        sequence: u64,
        attachments: u64,
    },
    Stays,
    Arrives {
        link: Fd,
    },
}

/// [`ServerRef`], received.
#[derive(Debug, Deserialize)]
pub(crate) struct Server {
    pub(crate) greeting: Greeting,
    pub(crate) requests: u32,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) ring: Fd,
    pub(crate) capacity: u64,
    pub(crate) start: u64,
    pub(crate) rings: Rings,
    pub(crate) doorbell: PublisherDoorbell,
    pub(crate) registered: bool,
    pub(crate) sequence: u64,
    pub(crate) at: u32,
    pub(crate) skip: u64,
    pub(crate) home: u32,
}

#[derive(Debug, Deserialize)]
pub(crate) enum PublisherDoorbell {
    None,
    Socket(Fd),
    EventFd(Fd),
}

/// Later packets, from the publisher: what becomes of its pool and its rings, what messages have beside their bytes, and why it
/// hangs up. A notice of a segment or a ring is sent before the first record, or the first end of a ring, that names it, that of
/// attachments before the record of their message.
#[derive(Debug, Serialize)]
pub(crate) enum NoticeRef<'a> {
    Added {
        id: u32,
        chunks: u32,
        chunk_size: u64,
        /// Sent without a duplicate: there may be no descriptor left for one.
        memory: &'a SharedFd,
    },
    /// Nothing will name it any more.
    Removed { id: u32 },
    /// The last one, before the publisher hangs up.
    Farewell(&'a Farewell),
    /// Another ring, of the first one's capacity.
    Ring { id: u32, memory: &'a SharedFd },
    /// No ring's end will name it any more.
    RingRemoved { id: u32 },
    /// Of the message whose record begins at this position, if its header has this tag.
    Attachments {
        position: u64,
        tag: u16,
        fds: &'a Fds,
    },
    /// The link that was asked for.
    Ticket { number: u32, link: FdRef<'a> },
    /// The successor has shaken hands, and waits.
    Awaited { number: u32 },
    /// The successor has the lane, or will when it comes.
    Departed,
    /// There is no successor with that number: nothing has changed.
    Stays { number: u32, why: &'a str },
    /// To a successor: the lane is its own, from the record at this position on, before which there were so many, in the
    /// ring with this id.
    Begin { start: u64, sequence: u64, at: u32 },
    /// The first ring of another publisher, which may go on where this one stops: its id, and what to ring when that one waits
    /// for room (a socket). With the ring's end that names it, the link is that publisher's.
    Home {
        id: u32,
        memory: &'a Fd,
        doorbell: Option<&'a Fd>,
    },
    /// That publisher has begun: rings with lesser ids than `rings`, but for this one, and segments with lesser ids than `segments`
    /// are of no use to whoever has come to this one.
    Moved {
        home: u32,
        rings: u32,
        segments: u32,
    },
}

/// [`NoticeRef`], received.
#[derive(Debug, Deserialize)]
pub(crate) enum Notice {
    Added {
        id: u32,
        chunks: u32,
        chunk_size: u64,
        memory: Fd,
    },
    Removed {
        id: u32,
    },
    Farewell(Farewell),
    Ring {
        id: u32,
        memory: Fd,
    },
    RingRemoved {
        id: u32,
    },
    Attachments {
        position: u64,
        tag: u16,
        fds: Fds,
    },
    Ticket {
        number: u32,
        link: Fd,
    },
    Awaited {
        number: u32,
    },
    Departed,
    Stays {
        number: u32,
        why: String,
    },
    Begin {
        start: u64,
        sequence: u64,
        at: u32,
    },
    Home {
        id: u32,
        memory: Fd,
        doorbell: Option<Fd>,
    },
    Moved {
        home: u32,
        rings: u32,
        segments: u32,
    },
}

/// Why a publisher hangs up. Nothing depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Farewell {
    Closed,
    Panicked,
    Evicted {
        why: String,
    },
    /// The same, once it comes to the end of this ring, which is at this position. If it has gone on from there, nothing has changed.
    Dismissed {
        why: String,
        ring: u32,
        end: u64,
    },
}

impl From<Farewell> for Reason {
    fn from(farewell: Farewell) -> Reason {
        match farewell {
            Farewell::Closed => Reason::Closed,
            Farewell::Panicked => Reason::Panicked,
            Farewell::Evicted { why } | Farewell::Dismissed { why, .. } => Reason::Evicted { why },
        }
    }
}

/// Why a publisher turned a subscriber away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    Full {
        subscribers: u32,
    },
    Page {
        why: String,
    },
    Doorbell {
        why: String,
    },
    Resources {
        why: String,
    },
    Access {
        why: String,
    },
    /// It expects something else than what is carried.
    Payload {
        carries: String,
        expects: String,
    },
    /// The other side is no counterpart of it.
    Pattern {
        why: String,
    },
    /// Messages may have more attachments than it takes.
    Attachments {
        carries: u32,
        takes: u32,
    },
}

impl Refusal {
    /// To whom it is told: a subscriber, or what the user knows it as.
    pub(crate) fn told<'a>(&'a self, us: &'a str) -> impl fmt::Display + 'a {
        Told { refusal: self, us }
    }
}

struct Told<'a> {
    refusal: &'a Refusal,
    us: &'a str,
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.us;
        match self.refusal {
            Refusal::Full { subscribers } => {
                write!(f, "it has {subscribers} {us}s, and takes no more")
            }
            Refusal::Payload { carries, expects } => {
                write!(f, "it carries {carries}; this {us} expects {expects}")
            }
            Refusal::Pattern { why } => f.write_str(why),
            Refusal::Attachments { carries, takes } => write!(
                f,
                "its messages have up to {carries} attachments; this {us} takes at most {takes} (max_attachments on either side)"
            ),
            Refusal::Page { why } => write!(f, "control page: {why}"),
            Refusal::Doorbell { why } => write!(f, "doorbell: {why}"),
            Refusal::Resources { why } => write!(f, "it is short of resources: {why}"),
            Refusal::Access { why } => {
                write!(f, "its access rule does not admit this process: {why}")
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.told("subscriber").fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use memlane_transport::Link;
    use rustix::net::RecvFlags;

    use super::*;
    use crate::{Payload, Plain};

    documented!(VERSION, MAX_RINGS);

    /// The document has this line, with the body that is sent.
    fn says<T: Serialize>(what: &str, message: &T) {
        let (here, there) = Link::pair().unwrap();
        here.send(message).unwrap();
        let mut packet = [0; 64];
        let (_, len) = rustix::net::recv(there.as_fd(), &mut packet, RecvFlags::empty()).unwrap();
        // Eight bytes of header, and no fields.
        let body: Vec<_> = packet[8..len].iter().map(|b| format!("{b:02x}")).collect();
        let line = format!("\n{what:<64}{}\n", body.join(" "));
        let document = include_str!("../../../docs/wire-format.md");
        assert!(document.contains(&line), "{line}");
    }

    #[test]
    fn as_documented() {
        let fd: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let one = || FdRef::new(&fd);
        let shared = SharedFd::from(fd.try_clone().unwrap());
        says("opening: version 4", &Opening { version: VERSION });

        let bytes = PayloadType::bytes();
        let point = Plain::<[u32; 2]>::describe();
        let greets = |socket: bool, eventfd: bool, trusts, expects, more| {
            let (overflow, history, attachments) = more;
            GreetingRef {
                page: one(),
                doorbell: DoorbellOfferRef {
                    socket: socket.then(one),
                    eventfd: eventfd.then(one),
                },
                trusts,
                expects,
                overflow,
                history,
                attachments,
            }
        };
        let greeting = |what, socket, eventfd, trusts, expects, more| {
            let greeting = greets(socket, eventfd, trusts, expects, more);
            says(what, &PacketRef::Greeting(greeting));
        };
        let what = "greeting: page, no doorbell, no trust, anything, overwrite, 16";
        greeting(
            what,
            false,
            false,
            false,
            None,
            (Overflow::Overwrite, 0, 16),
        );
        let what = "greeting: page, no doorbell, no trust, anything, disconnect, 16";
        greeting(
            what,
            false,
            false,
            false,
            None,
            (Overflow::Disconnect, 0, 16),
        );
        let what = "greeting: page, no doorbell, no trust, anything, 9 of history";
        greeting(what, false, false, false, None, (Overflow::Block, 9, 0));
        let block = |attachments| (Overflow::Block, 0, attachments);
        let what = "greeting: page, socket, no trust, bytes, nothing attached";
        greeting(what, true, false, false, Some(&bytes), block(0));
        let what = "greeting: page, socket, eventfd, trust, plain [u32; 2], 16 att.";
        greeting(what, true, true, true, Some(&point), block(16));

        let welcome =
            |what, capacity, (start, sequence, at, skip, home), rings, doorbell, registered| {
                let welcome = WelcomeRef {
                    ring: one(),
                    capacity,
                    start,
                    rings,
                    doorbell,
                    registered,
                    sequence,
                    at,
                    skip,
                    home,
                };
                says(what, &PacketRef::Welcome(welcome));
            };
        welcome(
            "welcome: 1 MiB, start 0, socket rung, no doorbell",
            1 << 20,
            (0, 0, 0, 0, 0),
            Rings::Socket,
            PublisherDoorbellRef::None,
            false,
        );
        welcome(
            "welcome: 4 KiB, start 4096 (64), skip 5, nothing rung, socket",
            4096,
            (4096, 64, 0, 5, 0),
            Rings::Nothing,
            PublisherDoorbellRef::Socket(one()),
            false,
        );
        welcome(
            "welcome: start 8 (1) in ring 3 behind 2, eventfds, registered",
            1 << 16,
            (8, 1, 3, 0, 2),
            Rings::EventFd,
            PublisherDoorbellRef::EventFd(one()),
            true,
        );

        let refused = |what, refusal| says(what, &PacketRef::Refused(refusal));
        let why = || "no".to_owned();
        let full = Refusal::Full { subscribers: 64 };
        refused("refused: full, 64 subscribers", full);
        refused(
            "refused: control page, \"no\"",
            Refusal::Page { why: why() },
        );
        refused(
            "refused: doorbell, \"no\"",
            Refusal::Doorbell { why: why() },
        );
        refused(
            "refused: resources, \"no\"",
            Refusal::Resources { why: why() },
        );
        refused(
            "refused: payload, carries \"no\", expects \"no\"",
            Refusal::Payload {
                carries: why(),
                expects: why(),
            },
        );

        refused("refused: access, \"no\"", Refusal::Access { why: why() });

        let pattern = Refusal::Pattern { why: why() };
        refused("refused: pattern, \"no\"", pattern);
        let attachments = Refusal::Attachments {
            carries: 16,
            takes: 4,
        };
        refused("refused: attachments, carries 16, takes 4", attachments);
        says("offer", &PacketRef::Offer);
        let greeting = greets(true, false, false, Some(&bytes), block(16));
        let what = "client: page, socket, no trust, bytes";
        says(what, &PacketRef::Client(greeting));
        let greeting = greets(true, false, false, Some(&bytes), block(16));
        let requests = 1024;
        let what = "server: page, socket, no trust, bytes, 1024 requests";
        says(what, &PacketRef::Server(ServerRef { greeting, requests }));
        let greeting = greets(true, false, false, Some(&bytes), block(16));
        let what = "watch: page, socket, no trust, bytes";
        says(what, &PacketRef::Watch(greeting));

        let added = NoticeRef::Added {
            id: 0,
            chunks: 4,
            chunk_size: 256 << 10,
            memory: &shared,
        };
        says("added: segment 0, 4 chunks of 256 KiB", &added);
        says("segment: as below", &PacketRef::Segment(added));
        says("removed: segment 300", &NoticeRef::Removed { id: 300 });
        let memory = &shared;
        says("ring: 1", &NoticeRef::Ring { id: 1, memory });
        says("ring removed: 1", &NoticeRef::RingRemoved { id: 1 });

        let number = 300;
        says("ticket 300, asked for", &PacketRef::Ticket { number });
        let departed = PacketRef::Departed {
            position: 4096,
            sequence: 64,
            attachments: 2,
        };
        says("departed: at 4096 (64), two attachments", &departed);
        says("stays", &PacketRef::Stays);
        says("arrives", &PacketRef::Arrives { link: one() });
        let given = NoticeRef::Ticket {
            number,
            link: one(),
        };
        says("ticket 300, given", &given);
        says("awaited, with ticket 300", &NoticeRef::Awaited { number });
        says("departed, confirmed", &NoticeRef::Departed);
        let stays = NoticeRef::Stays { number, why: "no" };
        says("stays, for ticket 300 \"no\"", &stays);
        let begin = NoticeRef::Begin {
            start: 4096,
            sequence: 64,
            at: 3,
        };
        says("begin: at 4096 (64), in ring 3", &begin);
        let shared = Fd::from(fd.try_clone().unwrap());
        let home = |doorbell| NoticeRef::Home {
            id: 5,
            memory: &shared,
            doorbell,
        };
        says("home: ring 5, no doorbell", &home(None));
        says("home: ring 5, socket", &home(Some(&shared)));
        let moved = NoticeRef::Moved {
            home: 5,
            rings: 7,
            segments: 3,
        };
        says("moved: to ring 5, rings from 7, segments from 3", &moved);

        let farewell = |what, farewell| says(what, &NoticeRef::Farewell(&farewell));
        farewell("farewell: closed", Farewell::Closed);
        farewell("farewell: panicked", Farewell::Panicked);
        farewell(
            "farewell: evicted, \"no\"",
            Farewell::Evicted { why: why() },
        );
        let (ring, end) = (3, 4096);
        let dismissed = Farewell::Dismissed {
            why: why(),
            ring,
            end,
        };
        farewell("farewell: dismissed, \"no\", ring 3, at 4096", dismissed);

        let fds = (0..2)
            .map(|_| fd.try_clone().unwrap())
            .collect::<memlane_transport::Fds>();
        let attachments = NoticeRef::Attachments {
            position: 4096,
            tag: 3,
            fds: &fds,
        };
        says("attachments: at 4096, tag 3, two of them", &attachments);
    }
}

//! What a publisher and the one that is to go on in its place say to each other, over the link of a ticket.

use memlane_transport::{Fd, FdRef, Limits, Link, Listener};
use serde::{Deserialize, Serialize};

use crate::{Overflow, PayloadType};

/// More than any of these packets takes. All may wait to be read.
pub(super) const LIMITS: Limits = Limits::new().body(1 << 14).descriptors(8).in_flight(512);

/// What they have to agree on.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Terms {
    /// Bytes of each ring.
    pub(super) capacity: u64,
    /// The id of the successor's first ring.
    pub(super) home: u32,
    pub(super) carries: PayloadType,
    pub(super) max_attachments: u32,
    /// Subscribers are trusted not to block the publisher.
    pub(super) trusts: bool,
    /// It has connected to a receiver.
    pub(super) to_receiver: bool,
}

/// From the old one.
#[derive(Debug, Serialize)]
pub(super) enum HandsOverRef<'a> {
    Terms(Terms),
    Subscriber(SubscriberRef<'a>),
    Greeter(GreeterRef<'a>),
    Going(Going),
    Listener(&'a Listener),
    /// The last. It takes no descriptors, so that nothing it needs can be short.
    Departs(Place),
}

/// [`HandsOverRef`], received.
#[derive(Debug, Deserialize)]
pub(super) enum HandsOver {
    Terms(Terms),
    Subscriber(Subscriber),
    Greeter(Greeter),
    Going(Going),
    Listener(Listener),
    Departs(Place),
}

/// One that is there.
#[derive(Debug, Serialize)]
pub(super) struct SubscriberRef<'a> {
    /// What it is called from here on.
    pub(super) source: u32,
    pub(super) link: LinkRef<'a>,
    pub(super) page: FdRef<'a>,
    /// What it is woken by, and whether that is an eventfd.
    pub(super) doorbell: Option<(FdRef<'a>, bool)>,
    pub(super) process: Option<FdRef<'a>>,
    pub(super) overflow: Overflow,
    /// Where it began, before so many messages.
    pub(super) start: u64,
    pub(super) sequence: u64,
    /// What is said to it goes over this, where that is not its link: it has moved itself.
    pub(super) out: Option<FdRef<'a>>,
}

/// What is received on; both are read as a link.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum LinkRef<'a> {
    Whole(&'a Link),
    Half(FdRef<'a>),
}

/// [`SubscriberRef`], received.
#[derive(Debug, Deserialize)]
pub(super) struct Subscriber {
    pub(super) source: u32,
    pub(super) link: Link,
    pub(super) page: Fd,
    pub(super) doorbell: Option<(Fd, bool)>,
    pub(super) process: Option<Fd>,
    pub(super) overflow: Overflow,
    pub(super) start: u64,
    pub(super) sequence: u64,
    pub(super) out: Option<Fd>,
}

/// A client that has not greeted yet, or not all the way.
#[derive(Debug, Serialize)]
pub(super) struct GreeterRef<'a> {
    pub(super) link: &'a Link,
    pub(super) process: Option<FdRef<'a>>,
    /// Its version has come.
    pub(super) opened: bool,
}

/// [`GreeterRef`], received.
#[derive(Debug, Deserialize)]
pub(super) struct Greeter {
    pub(super) link: Link,
    pub(super) process: Option<Fd>,
    pub(super) opened: bool,
}

/// Where the stream goes on, in the successor's ring.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) position: u64,
    pub(super) sequence: u64,
    /// How many messages were in the pool, and the ids of the first segment and the first ring that may be made.
    pub(super) chunks: u64,
    pub(super) segments: u32,
    pub(super) rings: u32,
    /// Of the last attachments.
    pub(super) tag: u16,
}

/// A subscriber that has been [told of](Subscriber), and what is on its way to it: so many notices of attachments were sent, and so
/// many it has taken; the others have so many descriptors each.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Going {
    pub(super) source: u32,
    pub(super) sent: u64,
    pub(super) taken: u64,
    pub(super) counts: Vec<u32>,
}

/// From the one that is to go on.
#[derive(Debug, Serialize)]
pub(super) enum TakesOverRef<'a> {
    /// What it carries.
    Carries(&'a PayloadType),
    /// Its first ring.
    Ring(FdRef<'a>),
    /// It knows a subscriber, which is to ring this.
    Knows {
        source: u32,
        doorbell: Option<FdRef<'a>>,
    },
    /// It does not go on.
    Refuses(&'a str),
}

/// [`TakesOverRef`], received.
#[derive(Debug, Deserialize)]
pub(super) enum TakesOver {
    Carries(PayloadType),
    Ring(Fd),
    Knows { source: u32, doorbell: Option<Fd> },
    Refuses(String),
}

//! The protocol of a lane, spoken by hand: what the packets look like, as anybody may send and read them.

use std::{
    os::fd::AsFd,
    thread::{self, JoinHandle},
};

use memlane_transport::{Access, Address, Fd, FdRef, Fds, Listener};
use serde::{Deserialize, Serialize};

/// The version of the protocol that these tests know.
pub const VERSION: u32 = 4;

/// In a subscriber's control page: its cursor.
pub const CURSOR: usize = 0;
/// In a subscriber's control page: its armed flag.
pub const ARMED: usize = 128;
/// In a subscriber's control page: how many notices of attachments it has taken.
pub const TAKEN: usize = 256;
/// In the first page of the publisher's region: what it waits for, 0 if it does not.
pub const WANTED: usize = 0;

/// The header of a record of `advance` bytes up to the next header, with `len` bytes of payload.
pub fn header(advance: u64, len: u64) -> u64 {
    advance | 1 << 32 | (advance - 8 - len) << 40
}

/// The same of a message with attachments that are known by this tag.
pub fn attached(header: u64, tag: u16) -> u64 {
    header | 1 << 48 | u64::from(tag) << 49
}

/// What a header says: the bytes up to the next.
pub fn advance(header: u64) -> u64 {
    u64::from(header as u32)
}

/// First packet, in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Opening {
    pub version: u32,
}

/// Somebody who listens there, and is of the next version: to whoever connects next, who is told so, and is of ours.
pub fn of_the_future(address: &Address) -> JoinHandle<()> {
    let listener = Listener::bind_with(address, Access::SameUser).expect("a listener");
    thread::spawn(move || {
        let link = listener.accept().expect("a client");
        let version = VERSION + 1;
        link.send(&Opening { version }).expect("room");
        let opening: Opening = link.recv().expect("its version");
        assert_eq!(opening.version, VERSION);
    })
}

/// That a packet is a greeting.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello(u32);

impl Hello {
    /// Of a receiver of a latest value.
    pub const WATCH: Hello = Hello(7);
}

impl Default for Hello {
    fn default() -> Hello {
        Hello(3)
    }
}

/// Second packet, from the subscriber.
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Greeting {
    pub hello: Hello,
    pub page: Fd,
    pub doorbell: Offer,
    pub trusts: bool,
    /// Encoding (0: bytes; others have fields that are not here), name, version. None if messages may be anything.
    pub expects: Option<(u32, String, u32)>,
    pub overflow: Overflow,
    pub history: u64,
    /// How many attachments of a message it takes.
    pub attachments: u32,
}

impl Greeting {
    /// Of a subscriber that is waited for, trusts nobody, and takes anything, from the next message on.
    pub fn new(page: Fd, doorbell: Offer) -> Greeting {
        Greeting {
            hello: Hello::default(),
            page,
            doorbell,
            trusts: false,
            expects: None,
            overflow: Overflow::Block,
            history: 0,
            attachments: 16,
        }
    }
}

/// What becomes of what it has not read in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Overflow {
    #[default]
    Block,
    Overwrite,
    Disconnect,
}

/// The doorbells that wake the subscriber.
#[derive(Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Offer {
    pub socket: Option<Fd>,
    pub eventfd: Option<Fd>,
}

/// Second packet, from the publisher.
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Answer {
    Welcome(Welcome),
    Refused(Refusal),
}

/// The ring, and where to begin.
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Welcome {
    pub ring: Fd,
    pub capacity: u64,
    pub start: u64,
    pub rings: Rings,
    pub doorbell: Bell,
    pub registered: bool,
    pub sequence: u64,
    pub at: u32,
    pub skip: u64,
    pub home: u32,
}

impl Welcome {
    /// To a ring that nothing has been written in yet, from a publisher that rings sockets and never sleeps.
    pub fn new(ring: Fd, capacity: u64) -> Welcome {
        Welcome {
            ring,
            capacity,
            start: 0,
            rings: Rings::Socket,
            doorbell: Bell::None,
            registered: false,
            sequence: 0,
            at: 0,
            skip: 0,
            home: 0,
        }
    }
}

/// Which doorbell of the subscriber's will be rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Rings {
    Nothing,
    Socket,
    EventFd,
}

/// The doorbell that wakes the publisher.
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Bell {
    None,
    Socket(Fd),
    EventFd(Fd),
}

/// Why a subscriber was turned away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Refusal {
    Full { subscribers: u32 },
    Page { why: String },
    Doorbell { why: String },
    Resources { why: String },
    Access { why: String },
}

/// Later packets, from the publisher.
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Notice {
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

/// What a subscriber says that moves.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Asks(u32);

/// What a successor says after its opening: where it hears the publisher.
pub fn arrives(link: &impl AsFd) -> (u32, FdRef<'_>) {
    (11, FdRef::new(link))
}

#[allow(missing_docs)]
impl Asks {
    pub const TICKET: (Asks, u32) = (Asks(8), 1);
    pub const STAYS: Asks = Asks(10);

    pub fn departed(position: u64, sequence: u64) -> (Asks, u64, u64, u64) {
        (Asks(9), position, sequence, 0)
    }
}

/// Why a publisher hangs up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Farewell {
    Closed,
    Panicked,
    Evicted { why: String },
    Dismissed { why: String, ring: u32, end: u64 },
}

//! Successors and publishers that do not play by the rules, or by others.

use std::{
    fs::File,
    io::Read,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::atomic::Ordering,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use memlane::{
    Error, Link, Publisher, PublisherTicket, RecvError, RecvTimeoutError, Subscriber,
    region::{Shared, WordsMut, page_size},
};
use memlane_tests::{
    Dice, PATIENCE, Scene, alive, attachments, wait_until,
    wire::{
        Answer, CURSOR, Greeting, Notice, Opening, Overflow, TAKEN, VERSION, WANTED, Welcome,
        header,
    },
};
use memlane_transport::Fd;
use serde::{Deserialize, Serialize};

use crate::death::attached;

/// What a successor says, by hand.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Says {
    Carries(Type),
    Ring(Fd),
    Knows(u32, Option<Fd>),
    #[allow(dead_code)]
    Refuses(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Type {
    pub(crate) encoding: u32,
    pub(crate) name: String,
    pub(crate) version: u32,
}

pub(crate) fn bytes() -> Says {
    Says::Carries(Type {
        encoding: 0,
        name: String::new(),
        version: 0,
    })
}

/// A link with a ticket's other end, on which one says what one likes.
fn by_hand(publisher: &mut Publisher) -> Link {
    let (to, from) = Link::pair().unwrap();
    to.send(&publisher.ticket().unwrap()).unwrap();
    from.adopting().recv::<Link>().unwrap()
}

fn stays(publisher: &mut Publisher) -> String {
    loop {
        match publisher.is_awaited() {
            Ok(false) => alive(),
            Ok(true) => panic!("nobody is there"),
            Err(Error::Stays { why }) => return why,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_successor_that_makes_no_sense_is_hung_up_on() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = attached();
    let link = by_hand(&mut publisher);
    link.send(&Opening { version: 77 }).unwrap();
    let why = stays(&mut publisher);
    assert!(why.contains("version 77"), "{why}");

    let link = by_hand(&mut publisher);
    link.send(&Opening { version: VERSION }).unwrap();
    link.send("nonsense").unwrap();
    println!("{}", stays(&mut publisher));

    let link = by_hand(&mut publisher);
    link.send(&Opening { version: VERSION }).unwrap();
    link.send(&Says::Carries(Type {
        encoding: 3,
        name: "something else".to_owned(),
        version: 0,
    }))
    .unwrap();
    let why = stays(&mut publisher);
    assert!(why.contains("something else"), "{why}");

    // Nobody is there any more, once it is taken back.
    let link = by_hand(&mut publisher);
    publisher.stay();
    let Opening { version: VERSION } = link.recv().unwrap() else {
        panic!("of another version");
    };
    assert!(link.recv::<String>().unwrap_err().is_disconnected());
    let error = publisher.depart().unwrap_err();
    let mut publisher = error.publisher.unwrap();
    publisher.send(b"goes on").unwrap();
    assert_eq!(subscriber.recv().unwrap().to_vec(), b"goes on");
}

/// What it passes off as a ring is none, or its doorbell is none: subscribers see that, and go on as long as the publisher does.
#[test]
fn a_hostile_successor_is_as_a_hostile_publisher() {
    let _scene = Scene::new();
    let memory = || Fd::from(memlane_tests::memfd_with(b"no ring"));
    let ring = || {
        let made = memlane::region::Shared::create("ring", 4096, 4096);
        Fd::from(made.unwrap().1)
    };
    type Make = fn() -> Fd;
    let makes: [(Make, Option<Make>); 2] = [(memory, None), (ring, Some(memory))];
    for (memory, doorbell) in makes {
        let (mut publisher, mut subscriber) = attached();
        let link = by_hand(&mut publisher);
        link.send(&Opening { version: VERSION }).unwrap();
        link.send(&bytes()).unwrap();
        link.send(&Says::Ring(memory())).unwrap();
        // Of a subscriber that there is none of, and of all there may be, more than once.
        for _ in 0..2 {
            for source in 0..20 {
                let doorbell = doorbell.map(|make| make());
                let _ = link.send(&Says::Knows(source, doorbell));
            }
            wait_until("it hears", || publisher.is_awaited().is_ok());
        }
        assert!(publisher.wait_until_awaited(PATIENCE).unwrap());
        publisher.send(b"before").unwrap();
        publisher.depart().unwrap();
        assert_eq!(subscriber.recv().unwrap().to_vec(), b"before");
        let error = subscriber.recv().unwrap_err();
        assert!(matches!(error, RecvError::Chunk(_)), "{error}");
        println!("{error}");
        drop(link);
    }
}

/// What a publisher says to its successor, by hand.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Hands {
    Terms {
        capacity: u64,
        home: u32,
        carries: Type,
        max_attachments: u32,
        trusts: bool,
        to_receiver: bool,
    },
    Subscriber {
        source: u32,
        link: Fd,
        page: Fd,
        doorbell: Option<(Fd, bool)>,
        process: Option<Fd>,
        overflow: Overflow,
        start: u64,
        sequence: u64,
        out: Option<Fd>,
    },
    #[allow(dead_code)]
    Greeter,
    Going {
        source: u32,
        sent: u64,
        taken: u64,
        counts: Vec<u32>,
    },
    #[allow(dead_code)]
    Listener,
    Departs(Place),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) position: u64,
    pub(crate) sequence: u64,
    pub(crate) chunks: u64,
    pub(crate) segments: u32,
    pub(crate) rings: u32,
    pub(crate) tag: u16,
}

/// After 64 bytes, in ring 0, with 4 messages; the successor's ring is 1.
fn place() -> Place {
    Place {
        position: 64,
        sequence: 4,
        chunks: 1,
        segments: 1,
        rings: 2,
        tag: 0,
    }
}

/// A publisher by hand, which has one subscriber and moves.
struct Old {
    link: Link,
    subscriber: Link,
    page: Shared,
    successor: JoinHandle<Result<Publisher, Error>>,
}

impl Old {
    fn new(home: u32) -> Old {
        Old::whose_successor_waits(home, PATIENCE)
    }

    fn whose_successor_waits(home: u32, timeout: Duration) -> Old {
        let (link, ticket) = Link::pair().unwrap();
        let (to, from) = Link::pair().unwrap();
        to.send(&ticket).unwrap();
        drop(ticket);
        let successor = std::thread::spawn(move || {
            let ticket: PublisherTicket = from.adopting().recv().unwrap();
            Publisher::builder().timeout(timeout).arrive(ticket)
        });
        let _ = link.send(&Opening { version: VERSION });
        let Says::Carries(carries) = bytes() else {
            unreachable!("it does");
        };
        let _ = link.send(&Hands::Terms {
            capacity: page_size() as u64,
            home,
            carries,
            max_attachments: 16,
            trusts: false,
            to_receiver: false,
        });
        let (subscriber, ours) = Link::pair().unwrap();
        let (page, descriptor) = Shared::create("test-page", page_size(), 0).unwrap();
        let _ = link.send(&Hands::Subscriber {
            source: 3,
            link: Fd::from(OwnedFd::from(ours)),
            page: descriptor.into(),
            doorbell: None,
            process: None,
            overflow: Overflow::Block,
            start: 0,
            sequence: 0,
            out: None,
        });
        Old {
            link,
            subscriber,
            page,
            successor,
        }
    }

    fn going(&self, sent: u64, taken: u64, counts: Vec<u32>) {
        let source = 3;
        let _ = self.link.send(&Hands::Going {
            source,
            sent,
            taken,
            counts,
        });
    }

    /// What its successor makes of where it stops, which does not panic.
    fn departs(self, place: &Place) -> Result<(Publisher, Link, Shared), String> {
        let _ = self.link.send(&Hands::Departs(place.clone()));
        let arrived = self.successor.join().unwrap();
        let arrived = arrived.map_err(|error| error.to_string())?;
        Ok((arrived, self.subscriber, self.page))
    }
}

/// What a publisher says of where it stops is looked at before anything is built on it.
#[test]
fn a_publisher_that_hands_over_nonsense_has_no_successor() {
    let _scene = Scene::new();
    let old = Old::new(1);
    old.going(5, 3, vec![1, 2]);
    let (mut publisher, subscriber, page) = old.departs(&place()).unwrap();
    // All that was on its way, and all there is.
    page.word(TAKEN).store(5, Ordering::Release);
    page.word(CURSOR).store(64, Ordering::Release);
    let attached = attachments(0, 3);
    publisher.send_with(b"the next", &attached).unwrap();
    assert_eq!(publisher.stats().evicted, 0);
    drop((publisher, subscriber, page));

    let counts: [(u64, u64, Vec<u32>); 4] = [
        (5, 3, vec![]),
        (5, 3, vec![1, 2, 3]),
        (3, 5, vec![]),
        (u64::MAX, 0, vec![1]),
    ];
    for (sent, taken, counts) in counts {
        let old = Old::new(1);
        old.going(sent, taken, counts);
        let why = old.departs(&place()).err().unwrap();
        assert!(why.contains("notices of attachments"), "{why}");
    }
    let places = [
        Place {
            position: 63,
            ..place()
        },
        Place {
            position: 1 << 63,
            ..place()
        },
        Place {
            sequence: 9,
            ..place()
        },
        Place {
            chunks: 5,
            ..place()
        },
        Place {
            chunks: u64::MAX,
            ..place()
        },
        Place {
            tag: u16::MAX,
            ..place()
        },
        Place {
            rings: 1,
            ..place()
        },
    ];
    for place in places {
        let old = Old::new(1);
        old.going(0, 0, vec![]);
        let why = old.departs(&place).err().unwrap();
        assert!(why.contains("makes no sense"), "{place:?}: {why}");
    }
    // The number of the ring in which all begin is nobody's else.
    let why = Old::new(0).departs(&place()).err().unwrap();
    assert!(why.contains("makes no sense"), "{why}");
}

/// A successor's time may be over in the moment in which the one before departs: that one knows, or the other has arrived.
#[test]
fn who_has_departed_has_a_successor() {
    let _scene = Scene::new();
    let mut dice = Dice::new();
    let mut outcomes = [0, 0];
    for round in 0..400 {
        alive();
        let timeout = Duration::from_millis(3);
        let began = Instant::now();
        let old = Old::whose_successor_waits(1, timeout);
        old.going(0, 0, vec![]);
        let when = timeout + Duration::from_micros(dice.below(800));
        while began.elapsed() < when {
            std::hint::spin_loop();
        }
        let departed = old.link.send(&Hands::Departs(place())).is_ok();
        let arrived = old.successor.join().unwrap();
        outcomes[usize::from(departed)] += 1;
        assert_eq!(arrived.is_ok(), departed, "round {round}");
    }
    println!("{outcomes:?}");
}

/// Who goes on may be of another version than who stops.
#[test]
fn of_another_version() {
    let _scene = Scene::new();
    let (old, ticket) = Link::pair().unwrap();
    old.send(&Opening { version: 77 }).unwrap();
    let (to, from) = Link::pair().unwrap();
    to.send(&ticket).unwrap();
    let ticket: PublisherTicket = from.adopting().recv().unwrap();
    drop(to);
    let error = ticket.arrive().unwrap_err();
    assert!(
        matches!(
            error,
            Error::Version {
                theirs: 77,
                ours: VERSION,
                ..
            }
        ),
        "{error}"
    );
}

/// The publisher's side of a lane, by hand: a ring of one page, to which one subscriber comes.
struct Lane {
    link: Link,
    ring: Shared,
    subscriber: Subscriber,
}

fn ring_of(len: usize) -> (Shared, Fd) {
    let (ring, descriptor) = Shared::create("test-ring", page_size(), len).unwrap();
    (ring, descriptor.into())
}

impl Lane {
    fn new() -> Lane {
        let (link, theirs) = Link::pair().unwrap();
        let (ring, descriptor) = ring_of(page_size());
        let subscriber = std::thread::scope(|scope| {
            let subscriber = scope.spawn(|| Subscriber::builder().timeout(PATIENCE).over(theirs));
            link.send(&Opening { version: VERSION }).unwrap();
            assert_eq!(link.recv::<Opening>().unwrap().version, VERSION);
            let _greeting: Greeting = link.recv().unwrap();
            let welcome = Welcome::new(descriptor, page_size() as u64);
            link.send(&Answer::Welcome(welcome)).unwrap();
            subscriber.join().unwrap().unwrap()
        });
        Lane {
            link,
            ring,
            subscriber,
        }
    }

    fn home(&self, id: u32, memory: Fd, doorbell: Option<Fd>) {
        let home = Notice::Home {
            id,
            memory,
            doorbell,
        };
        self.link.send(&home).unwrap();
    }

    fn refused(&mut self) -> String {
        let error = self.subscriber.recv().unwrap_err();
        assert!(matches!(error, RecvError::Chunk(_)), "{error}");
        error.to_string()
    }
}

/// The header of a ring's end.
pub(crate) fn switch(ring: u32) -> u64 {
    u64::from(ring) | 3 << 32
}

#[test]
fn rings_and_doorbells_of_successors_that_are_none() {
    let _scene = Scene::new();
    let page = page_size();
    let null = || Fd::from(OwnedFd::from(File::open("/dev/null").unwrap()));
    let cases: [(Fd, Option<Fd>, &str); 4] = [
        (null(), None, "ring 7"),
        (ring_of(2 * page).1, None, "ring 7"),
        (ring_of(page).1, Some(null()), "as a doorbell"),
        (ring_of(page).1, Some(ring_of(page).1), "as a doorbell"),
    ];
    for (memory, doorbell, expected) in cases {
        let mut lane = Lane::new();
        lane.home(7, memory, doorbell);
        lane.ring.store_release(0, switch(7));
        for _ in 0..2 {
            let text = lane.refused();
            assert!(text.contains(expected), "{text}");
        }
    }
    // The first once more, one twice, and more than there can be.
    let mut lane = Lane::new();
    for id in [0, 7, 7] {
        lane.home(id, ring_of(page).1, None);
    }
    (8..80).for_each(|id| lane.home(id, ring_of(page).1, None));
    // What is said of them is of no consequence where they are not heard.
    for home in [0, 7, u32::MAX] {
        let (rings, segments) = (u32::MAX, u32::MAX);
        let moved = Notice::Moved {
            home,
            rings,
            segments,
        };
        lane.link.send(&moved).unwrap();
    }
    lane.ring.store_release(0, header(16, 8));
    assert_eq!(lane.subscriber.recv().unwrap().len(), 8);
    lane.ring.store_release(16, switch(75));
    let text = lane.refused();
    assert!(text.contains("at most 64 rings"), "{text}");
}

/// A way from ring to ring has an end, and no way back.
#[test]
fn successors_without_end() {
    let _scene = Scene::new();
    let page = page_size();
    let mut lane = Lane::new();
    let mut rings = Vec::new();
    for id in 1..=60 {
        let (mut ring, memory) = ring_of(page);
        lane.home(id, memory, None);
        ring.store_release(0, switch(id + 1));
        rings.push(ring);
    }
    lane.ring.store_release(0, switch(1));
    let text = lane.refused();
    assert!(
        text.contains("expected a ring that was announced, got 61"),
        "{text}"
    );

    let mut lane = Lane::new();
    let (mut ring, memory) = ring_of(page);
    lane.home(9, memory, None);
    ring.store_release(0, switch(0));
    lane.ring.store_release(0, switch(9));
    let error = lane.subscriber.recv().unwrap_err();
    assert!(matches!(error, RecvError::Corrupt(_)), "{error}");
}

/// From the switch on it is the successor that is rung, and its memory that is read; that of the other is given up once both have said so.
#[test]
fn the_successor_is_heard_and_rung() {
    let _scene = Scene::new();
    let page = page_size();
    let mut lane = Lane::new();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let (mut ring, memory) = ring_of(page);
    lane.home(3, memory, Some(Fd::from(OwnedFd::from(theirs))));
    lane.ring.store_release(0, header(16, 8));
    lane.ring.store_release(16, switch(3));
    // It waits for what was given up in the other's ring, and for what is next.
    ring.word(WANTED).store(16 | 1, Ordering::Relaxed);
    let rung = |ours: &mut UnixStream| ours.read(&mut [0; 8]).unwrap_or(0);
    assert_eq!(lane.subscriber.recv().unwrap().len(), 8);
    assert_eq!(rung(&mut ours), 0);
    let wait = Duration::from_millis(1);
    let empty = lane.subscriber.recv_timeout(wait).unwrap_err();
    assert!(matches!(empty, RecvTimeoutError::TimedOut), "{empty}");
    assert!(rung(&mut ours) > 0);
    ring.word(WANTED).store(32 | 1, Ordering::Relaxed);
    ring.store_release(16, header(16, 8));
    assert_eq!(lane.subscriber.recv().unwrap().len(), 8);
    assert!(lane.subscriber.recv_timeout(wait).is_err());
    assert!(rung(&mut ours) > 0);
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.matches("memfd:test-ring").count()
    };
    // Each twice in a row, beside the page. Of this process's own there are two.
    let before = mapped();
    let moved = Notice::Moved {
        home: 3,
        rings: 4,
        segments: 0,
    };
    lane.link.send(&moved).unwrap();
    assert!(lane.subscriber.recv_timeout(wait).is_err());
    assert!(mapped() < before, "{before}");
}

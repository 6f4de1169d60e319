//! Subscribers and publishers that are broken or mean harm, and speak the protocol by hand. Each can end its own lane;
//! everyone else gets every message, nobody hangs or panics, and nothing leaks.

use std::{
    fs::File,
    io::{self, Write},
    net::UdpSocket,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    sync::atomic::{AtomicU64, Ordering, fence},
    time::Duration,
};

use memlane::{Address, Error, Link, RecvError, RecvTimeoutError, Subscriber, TryRecvError};
use memlane_region::{Remote, Shared, Words, WordsMut, page_size, ring};
use memlane_signaling::{Backing, Doorbell, WaitPolicy};
use memlane_tests::{
    Census, PATIENCE, Part, Policy, Role, Scene, Steady, Stream, Wish, alive, play, ready_to_sleep,
    steady, unbound, wait_until,
    wire::{
        ARMED, Answer, Asks, Bell, CURSOR, Greeting, Notice, Offer, Opening, Refusal, Rings,
        VERSION, WANTED, Welcome, advance, header,
    },
};
use memlane_transport::{Error as LinkError, Fd, Listener};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    fs::{FallocateFlags, MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_setfl},
    net::{RecvFlags, SendFlags},
};
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[("villain", villain), ("rogue", rogue), ("steady", steady)];

#[test]
fn other_process() {
    play(ROLES);
}

const LONGEST: usize = 600;

// ---- what a villain shows instead of the real thing ----

fn memfd(len: usize, allocate: bool, seals: SealFlags) -> Fd {
    let fd = rustix::fs::memfd_create("villain", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .expect("a memfd");
    rustix::fs::ftruncate(&fd, len as u64).expect("a size");
    if allocate && len > 0 {
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, len as u64).expect("memory");
    }
    fcntl_add_seals(&fd, seals).expect("seals");
    fd.into()
}

const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::FUTURE_WRITE)
    .union(SealFlags::SEAL);

fn page() -> (Shared, Fd) {
    let (page, fd) = Shared::create("villain", page_size(), 0).expect("a page");
    (page, fd.into())
}

fn pipe() -> Fd {
    let (_, end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    end.into()
}

fn an_eventfd() -> Fd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .expect("an eventfd")
        .into()
}

fn null() -> Fd {
    OwnedFd::from(File::open("/dev/null").expect("/dev/null")).into()
}

fn copy(fd: &impl AsFd) -> Fd {
    fd.as_fd().try_clone_to_owned().expect("a copy").into()
}

fn stream_socket() -> Fd {
    OwnedFd::from(UnixStream::pair().expect("a pair").0).into()
}

// ---- hostile subscribers ----

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Villainy {
    // Refused, with a reason.
    OldVersion,
    PageUnsealed,
    PageHalfSealed,
    PageTooLarge,
    PageEmpty,
    PageSparse,
    PageNoMemory,
    PageIsAPipe,
    PageIsASocket,
    BellIsAPipe,
    BellIsAFile,
    BellIsUdp,
    BellIsADatagram,
    BellIsAnEventfd,
    BellIsNoEventfd,
    // Hung up on.
    Garbage,
    AnotherMagic,
    HalfAGreeting,
    Oversized,
    Empty,
    SurplusDescriptors,
    Floods,
    GreetsTwice,
    AsksForTicketsUnread,
    // Evicted.
    CursorBeyond,
    CursorBack,
    CursorMax,
    CursorRandom,
    DepartsBeyond,
    DepartsBefore,
    // A nuisance, no more.
    Flips,
    NeverDrains,
    BellOfAListener,
    BellUnconnected,
    RingsForEver,
    AsksForTickets,
    Wavers,
    ShutsItsBell,
    // Dropped once the publisher wants to be woken by it.
    ClosesItsBell,
    ClosesItsBellLate,
    LeavesTheTrap,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Outcome {
    Refused(Refusal),
    HungUp,
    /// It is in, and makes trouble until it is told to stop.
    Joined,
    /// It has done what it wanted.
    Done,
}

fn hung_up(link: &Link) {
    let mut end = [PollFd::new(link, PollFlags::RDHUP)];
    let patience = rustix::event::Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    let ready = poll(&mut end, Some(&patience)).expect("poll");
    assert_eq!(ready, 1, "was not hung up on");
}

/// Says it again and again.
fn until_hung_up(link: &Link, what: &impl Serialize) {
    while !matches!(link.try_send(what), Err(error) if error.is_disconnected()) {}
}

/// A subscriber by hand.
struct Joined {
    link: Link,
    ring: Remote,
    mine: Shared,
    ringer: Option<OwnedFd>,
    start: u64,
    sequence: u64,
    position: u64,
    /// Its cursor is not to be the truth.
    lies: bool,
}

/// Joins by hand, as an honest subscriber would, but for the doorbells.
fn join(link: Link, offer: Offer, trusts: bool) -> Result<(Joined, Option<Fd>), Outcome> {
    let (mine, page) = page();
    greet(&link, page, offer, trusts)?;
    match link.recv_timeout(PATIENCE) {
        Ok(Answer::Welcome(welcome)) => {
            let capacity = welcome.capacity as usize;
            let ring = Remote::open(welcome.ring.into(), page_size(), capacity, usize::MAX);
            let (ringer, eventfd) = match welcome.doorbell {
                Bell::None => (None, None),
                Bell::Socket(end) => (Some(end.into()), None),
                Bell::EventFd(end) => (None, Some(end)),
            };
            let joined = Joined {
                link,
                ring: ring.expect("the ring"),
                mine,
                ringer,
                start: welcome.start,
                sequence: welcome.sequence,
                position: welcome.start,
                lies: false,
            };
            Ok((joined, eventfd))
        }
        Ok(Answer::Refused(refusal)) => Err(Outcome::Refused(refusal)),
        Err(error) => panic!("no answer: {error}"),
    }
}

/// Says a version, and hears the other side's.
fn open(link: &Link, version: u32) -> Opening {
    link.send_timeout(&Opening { version }, PATIENCE)
        .expect("room");
    link.recv_timeout(PATIENCE).expect("an opening")
}

fn greet(link: &Link, page: Fd, doorbell: Offer, trusts: bool) -> Result<(), Outcome> {
    let greeting = Greeting {
        trusts,
        ..Greeting::new(page, doorbell)
    };
    link.send_timeout(&greeting, PATIENCE)
        .map_err(|_| Outcome::HungUp)
}

impl Joined {
    /// The link of a successor.
    fn ticket(&self) -> Link {
        self.link
            .send_timeout(&Asks::TICKET, PATIENCE)
            .expect("room");
        loop {
            let said = self.link.recv_timeout(PATIENCE).expect("a notice");
            if let Notice::Ticket { link, .. } = said {
                return Link::from_fd(link.into()).expect("a link");
            }
        }
    }

    /// How far it is from this message, if there is one, to the next.
    fn poll(&self) -> Option<u64> {
        let header = self.ring.load(self.position);
        fence(Ordering::Acquire);
        (header != 0).then(|| advance(header))
    }

    /// Releases what was found, and says so.
    fn release(&mut self, advance: u64) {
        self.position += advance;
        if !self.lies {
            let cursor = self.position - self.start;
            self.word(CURSOR).store(cursor, Ordering::SeqCst);
        }
        fence(Ordering::SeqCst);
        if self.ring.load_word(WANTED) != 0 {
            self.ring_the_publisher();
        }
    }

    fn ring_the_publisher(&self) {
        if let Some(ringer) = &self.ringer {
            let _ = rustix::net::send(ringer, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }

    /// Receives what there is.
    fn drain(&mut self) {
        while let Some(advance) = self.poll() {
            self.release(advance);
        }
    }

    /// Receives so many messages.
    fn read(&mut self, messages: u64) {
        for _ in 0..messages {
            let mut found = None;
            wait_until("a message", || {
                found = self.poll();
                found.is_some()
            });
            self.release(found.expect("just seen"));
        }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        self.mine.word(offset)
    }
}

fn villain(role: &Role) {
    let (address, villainy): (String, Villainy) = role.hear();
    let address: Address = address.parse().expect("an address");
    let link = Link::connect(&address).expect("the publisher");
    let outcome = misbehave(role, link, villainy).unwrap_or_else(|outcome| outcome);
    role.tell(&outcome);
}

fn refused(link: Link, page: Fd, offer: Offer) -> Result<Outcome, Outcome> {
    greet(&link, page, offer, false)?;
    match link.recv_timeout::<Answer>(PATIENCE) {
        Ok(Answer::Refused(refusal)) => {
            hung_up(&link);
            Ok(Outcome::Refused(refusal))
        }
        other => panic!("{other:?}"),
    }
}

fn socket_offer(fd: Fd) -> Offer {
    Offer {
        socket: Some(fd),
        eventfd: None,
    }
}

fn raw(link: &Link, bytes: &[u8]) -> Result<Outcome, Outcome> {
    rustix::net::send(link, bytes, SendFlags::NOSIGNAL).expect("room");
    hung_up(link);
    Ok(Outcome::HungUp)
}

/// Makes trouble until the parent has seen enough.
fn until_stopped(role: &Role, mut trouble: impl FnMut()) -> Outcome {
    role.tell(&Outcome::Joined);
    while role.has_said::<()>().is_none() {
        for _ in 0..64 {
            trouble();
        }
        alive();
    }
    Outcome::Done
}

fn misbehave(role: &Role, link: Link, villainy: Villainy) -> Result<Outcome, Outcome> {
    use Villainy::*;
    let none = Offer::default();
    let size = page_size();
    let version = if villainy == OldVersion { 77 } else { VERSION };
    assert_eq!(open(&link, version).version, VERSION);
    match villainy {
        OldVersion => {
            hung_up(&link);
            Ok(Outcome::HungUp)
        }
        PageUnsealed => refused(link, memfd(size, true, SealFlags::empty()), none),
        PageHalfSealed => refused(
            link,
            memfd(size, true, SealFlags::GROW | SealFlags::SHRINK),
            none,
        ),
        PageTooLarge => refused(link, memfd(2 * size, true, SEALS), none),
        PageEmpty => refused(link, memfd(0, true, SEALS), none),
        PageSparse => refused(link, memfd(size, false, SEALS), none),
        PageNoMemory => refused(link, null(), none),
        PageIsAPipe => refused(link, pipe(), none),
        PageIsASocket => refused(link, stream_socket(), none),
        BellIsAPipe => refused(link, page().1, socket_offer(pipe())),
        BellIsAFile => refused(link, page().1, socket_offer(null())),
        BellIsUdp => {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            refused(link, page().1, socket_offer(OwnedFd::from(socket).into()))
        }
        BellIsADatagram => {
            let (socket, _) = UnixDatagram::pair().expect("a pair");
            refused(link, page().1, socket_offer(OwnedFd::from(socket).into()))
        }
        // To a publisher that does not trust.
        BellIsAnEventfd => {
            let offer = Offer {
                socket: None,
                eventfd: Some(an_eventfd()),
            };
            refused(link, page().1, offer)
        }
        // To one that does.
        BellIsNoEventfd => {
            let offer = Offer {
                socket: None,
                eventfd: Some(pipe()),
            };
            refused(link, page().1, offer)
        }
        Garbage => raw(&link, &[0xa5; 300]),
        AnotherMagic => raw(&link, b"GET / HTTP/1.1\r\n\r\n"),
        HalfAGreeting => raw(&link, b"m\x01\x00\x00\x01"),
        Oversized => raw(&link, &[b'm'; 40_000]),
        // An empty packet looks like an end, and is taken for one.
        Empty => raw(&link, &[]),
        SurplusDescriptors => {
            #[derive(Serialize)]
            struct More(Greeting, Vec<Fd>);
            let more = More(
                Greeting::new(page().1, none),
                (0..200).map(|_| null()).collect(),
            );
            link.send_timeout(&more, PATIENCE).expect("room");
            hung_up(&link);
            Ok(Outcome::HungUp)
        }
        CursorBeyond | CursorBack | CursorMax | CursorRandom => {
            let (mut joined, _) = join(link, none, false)?;
            joined.lies = true;
            let lie = match villainy {
                CursorBeyond => 1 << 40,
                CursorBack => {
                    joined.lies = false;
                    // Far enough for the publisher to have seen it.
                    joined.read(2000);
                    joined.lies = true;
                    8
                }
                CursorMax => u64::MAX - 1,
                _ => 0x9E37_79B9_7F4A_7C15,
            };
            joined.word(CURSOR).store(lie, Ordering::SeqCst);
            joined.ring_the_publisher();
            hung_up(&joined.link);
            Ok(Outcome::HungUp)
        }
        Flips => {
            let (bell, end) = Doorbell::new(Backing::Socket).expect("a doorbell");
            let (mut joined, _) = join(link, socket_offer(end.into()), false)?;
            let mut armed = 0;
            Ok(until_stopped(role, || {
                armed += 1;
                joined.word(ARMED).store(armed, Ordering::SeqCst);
                joined.drain();
                bell.drain();
            }))
        }
        // The doorbell takes no more rings, and the flag says that each is wanted.
        NeverDrains => {
            let (bell, end) = UnixStream::pair().expect("a pair");
            end.set_nonblocking(true).expect("a flag");
            while (&end).write(&[0; 4096]).is_ok() {}
            let (mut joined, _) = join(link, socket_offer(copy(&end)), false)?;
            let mut armed = u64::MAX;
            let outcome = until_stopped(role, || {
                armed -= 1;
                joined.word(ARMED).store(armed, Ordering::SeqCst);
                joined.drain();
            });
            drop(bell);
            Ok(outcome)
        }
        BellOfAListener | BellUnconnected => {
            let path = std::env::temp_dir().join(format!("villain-{}", std::process::id()));
            let bell: OwnedFd = if villainy == BellOfAListener {
                let listener = UnixListener::bind(&path).expect("a listener");
                std::fs::remove_file(&path).expect("its name");
                listener.into()
            } else {
                rustix::net::socket(
                    rustix::net::AddressFamily::UNIX,
                    rustix::net::SocketType::STREAM,
                    None,
                )
                .expect("a socket")
            };
            let (mut joined, _) = join(link, socket_offer(bell.into()), false)?;
            let mut armed = 0;
            Ok(until_stopped(role, || {
                armed += 1;
                joined.word(ARMED).store(armed, Ordering::SeqCst);
                joined.drain();
            }))
        }
        // Of packets and descriptors, on a link that nobody reads any more.
        Floods => {
            let (joined, _) = join(link, none, false)?;
            let packets = vec![null(), null()];
            until_hung_up(&joined.link, &packets);
            Ok(Outcome::HungUp)
        }
        GreetsTwice => {
            let (joined, _) = join(link, none, false)?;
            let (_second, page) = page();
            let _ = greet(&joined.link, page, Offer::default(), true);
            hung_up(&joined.link);
            Ok(Outcome::HungUp)
        }
        // With a successor that waits, and is not to be fooled.
        DepartsBeyond | DepartsBefore => {
            let (mut joined, _) = join(link, none, false)?;
            joined.read(2000);
            let successor = joined.ticket();
            let (_page, page) = page();
            open(&successor, VERSION);
            greet(&successor, page, Offer::default(), false)?;
            let _welcome: Answer = successor.recv_timeout(PATIENCE).expect("a welcome");
            let lie = if villainy == DepartsBeyond {
                1 << 40
            } else {
                8
            };
            joined.word(CURSOR).store(lie, Ordering::SeqCst);
            // Unless the publisher has seen the lie before.
            let _ = {
                let departed = Asks::departed(0, joined.sequence);
                joined.link.send_timeout(&departed, PATIENCE)
            };
            joined.ring_the_publisher();
            hung_up(&successor);
            if villainy == DepartsBeyond {
                hung_up(&joined.link);
            }
            Ok(Outcome::HungUp)
        }
        AsksForTickets => {
            let (mut joined, _) = join(link, none, false)?;
            Ok(until_stopped(role, || {
                drop(joined.ticket());
                joined.drain();
            }))
        }
        // Until what it is answered finds no room.
        AsksForTicketsUnread => {
            let (joined, _) = join(link, none, false)?;
            until_hung_up(&joined.link, &Asks::TICKET);
            Ok(Outcome::HungUp)
        }
        // With a ticket in its hand, which comes to nothing.
        Wavers => {
            let (mut joined, _) = join(link, none, false)?;
            Ok(until_stopped(role, || {
                let ticket = joined.ticket();
                for _ in 0..2 {
                    let stays = Asks::STAYS;
                    joined.link.send_timeout(&stays, PATIENCE).expect("room");
                }
                let departed = Asks::departed(0, 0);
                joined.link.send_timeout(&departed, PATIENCE).expect("room");
                hung_up(&ticket);
                joined.drain();
            }))
        }
        RingsForEver => {
            let (mut joined, _) = join(link, none, false)?;
            Ok(until_stopped(role, || {
                joined.ring_the_publisher();
                joined.drain();
            }))
        }
        // Keeps the link, and never receives anything.
        ClosesItsBell | ClosesItsBellLate | ShutsItsBell => {
            let (mut joined, _) = join(link, none, false)?;
            if villainy == ClosesItsBellLate {
                wait_until("the publisher sleeps", || {
                    joined.ring.load_word(WANTED) != 0
                });
            }
            // Shut for writing, the publisher's end reads as ended, without a hang-up.
            if let (ShutsItsBell, Some(ringer)) = (villainy, &joined.ringer) {
                rustix::net::shutdown(ringer, rustix::net::Shutdown::Write).expect("a socket");
            } else {
                joined.ringer = None;
            }
            hung_up(&joined.link);
            Ok(Outcome::HungUp)
        }
        // Says that it trusts, to be given an eventfd if there are any to be had; makes it one on which a write
        // blocks, keeps it, and leaves.
        LeavesTheTrap => {
            let (joined, eventfd) = join(link, none, true)?;
            let Some(eventfd) = eventfd else {
                return Ok(Outcome::Done);
            };
            let full = (u64::MAX - 1).to_ne_bytes();
            rustix::io::write(&eventfd, &full).expect("a write");
            fcntl_setfl(&eventfd, OFlags::empty()).expect("a flag");
            drop(joined);
            role.tell(&Outcome::Joined);
            role.hear::<()>();
            Ok(Outcome::Done)
        }
    }
}

/// A publisher with two honest subscribers, the villains one after the other, and what the publisher then has to
/// say.
fn among_honest_ones(
    policy: Policy,
    trusting: bool,
    villainies: &[Villainy],
    mut act: impl FnMut(Villainy, &memlane_tests::Child, &Stream, &[Steady]),
) -> u64 {
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut builder = unbound(1 << 14).wait(policy.into());
    if trusting {
        builder = builder.trust_subscribers();
    }
    let publisher = ready_to_sleep(builder.bind_to(&address).unwrap(), policy);
    let honest = [Policy::Block, Policy::Adaptive].map(|policy| {
        let wish = Wish {
            policy,
            trusting: false,
        };
        Steady::start(&scene, &address, wish, LONGEST)
    });
    let base = Census::beside(&publisher);
    let stream = Stream::start(publisher, LONGEST);
    for villainy in villainies {
        let orders = (address.to_string(), villainy);
        let villain = scene.spawn("villain", &orders);
        act(*villainy, &villain, &stream, &honest);
        villain.finish();
        for honest in &honest {
            honest.advance(200);
        }
    }
    base.settle();
    let publisher = stream.stop();
    assert_eq!(publisher.subscribers(), 2, "the honest ones");
    let evicted = publisher.stats().evicted;
    let sent = publisher.stats().messages;
    drop(publisher);
    for honest in honest {
        assert_eq!(honest.finish(), (sent, sent));
    }
    evicted
}

#[test]
fn greetings_that_are_refused() {
    use Villainy::*;
    let expected = |villainy| match villainy {
        PageUnsealed => "got one sealed with nothing",
        PageHalfSealed => "got one sealed with SHRINK|GROW",
        PageTooLarge => "got one of",
        PageEmpty => "bytes, got one of 0",
        PageSparse => "allocated, found 0",
        PageNoMemory | PageIsAPipe | PageIsASocket => "not shared memory",
        BellIsAPipe | BellIsAFile => "expected a Unix stream socket as a doorbell",
        BellIsUdp | BellIsADatagram => "got a socket of",
        BellIsAnEventfd => "got an eventfd",
        BellIsNoEventfd => "expected an eventfd as a doorbell, got pipe",
        _ => unreachable!(),
    };
    for trusting in [false, true] {
        let last = if trusting {
            BellIsNoEventfd
        } else {
            BellIsAnEventfd
        };
        let villainies = [
            PageUnsealed,
            PageHalfSealed,
            PageTooLarge,
            PageEmpty,
            PageSparse,
            PageNoMemory,
            PageIsAPipe,
            PageIsASocket,
            BellIsAPipe,
            BellIsAFile,
            BellIsUdp,
            BellIsADatagram,
            last,
        ];
        let evicted = among_honest_ones(
            Policy::Adaptive,
            trusting,
            &villainies,
            |villainy, villain, _, _| {
                let Outcome::Refused(refusal) = villain.hear() else {
                    panic!("{villainy:?} was not refused");
                };
                let text = format!("{refusal:?}").replace("found one of", "got one of");
                assert!(text.contains(expected(villainy)), "{villainy:?}: {text}");
            },
        );
        assert_eq!(evicted, 0);
    }
}

#[test]
fn greetings_that_are_none() {
    use Villainy::*;
    let villainies = [
        OldVersion,
        Garbage,
        AnotherMagic,
        HalfAGreeting,
        Oversized,
        Empty,
        SurplusDescriptors,
        Floods,
        GreetsTwice,
        AsksForTicketsUnread,
    ];
    for policy in Policy::ALL {
        among_honest_ones(policy, false, &villainies, |villainy, villain, _, _| {
            let outcome: Outcome = villain.hear();
            assert_eq!(outcome, Outcome::HungUp, "{villainy:?}");
        });
    }
}

#[test]
fn cursors_that_make_no_sense() {
    use Villainy::*;
    let villainies = [
        CursorBeyond,
        CursorBack,
        CursorMax,
        CursorRandom,
        DepartsBeyond,
        DepartsBefore,
    ];
    for policy in Policy::ALL {
        let evicted = among_honest_ones(policy, false, &villainies, |villainy, villain, _, _| {
            let outcome: Outcome = villain.hear();
            assert_eq!(outcome, Outcome::HungUp, "{villainy:?}");
        });
        assert_eq!(evicted, 6);
    }
}

#[test]
fn nuisances() {
    use Villainy::*;
    let villainies = [
        Flips,
        NeverDrains,
        BellOfAListener,
        BellUnconnected,
        RingsForEver,
        AsksForTickets,
        Wavers,
    ];
    for policy in Policy::ALL {
        let evicted = among_honest_ones(
            policy,
            false,
            &villainies,
            |villainy, villain, _, honest| {
                let outcome: Outcome = villain.hear();
                assert_eq!(outcome, Outcome::Joined, "{villainy:?}");
                for honest in honest {
                    honest.advance(1000);
                }
                villain.tell(&());
                let outcome: Outcome = villain.hear();
                assert_eq!(outcome, Outcome::Done, "{villainy:?}");
            },
        );
        assert_eq!(evicted, 0);
    }
}

/// The publisher sleeps, and the one it waits for has closed what it would ring: there is nothing to wait for.
#[test]
fn a_doorbell_closed_while_the_publisher_sleeps() {
    for policy in Policy::SLEEPY {
        let villainies = [
            Villainy::ClosesItsBell,
            Villainy::ClosesItsBellLate,
            Villainy::ShutsItsBell,
        ]
        .repeat(3);
        among_honest_ones(policy, false, &villainies, |_, villain, _, _| {
            assert_eq!(villain.hear::<Outcome>(), Outcome::HungUp);
        });
    }
}

/// A doorbell that the publisher's own side writes to when a subscriber leaves must not be one that the subscriber
/// can block.
#[test]
fn a_doorbell_that_is_a_trap() {
    for policy in Policy::SLEEPY {
        let villainies = [Villainy::LeavesTheTrap; 5];
        among_honest_ones(policy, false, &villainies, |_, villain, _, honest| {
            if villain.hear::<Outcome>() == Outcome::Joined {
                // The publisher asks the control side now and then, so it stops if that hangs.
                honest[0].advance(1000);
                villain.tell(&());
                assert_eq!(villain.hear::<Outcome>(), Outcome::Done);
            }
        });
    }
}

/// Hundreds connect and never say anything: the oldest make room for the newest, and whoever does speak is served.
#[test]
fn silent_connections() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let publisher = unbound(1 << 14).bind_to(&address).unwrap();
    let publisher = ready_to_sleep(publisher, Policy::Adaptive);
    let wish = Wish {
        policy: Policy::Block,
        trusting: false,
    };
    let honest = Steady::start(&scene, &address, wish, LONGEST);
    let base = Census::beside(&publisher);
    let stream = Stream::start(publisher, LONGEST);
    let mut silent = Vec::new();
    for round in 0..6 {
        for _ in 0..100 {
            silent.push(Link::connect(&address).expect("the publisher"));
        }
        let newcomer = wish.connect(&address).expect("a place beside the silent");
        drop(newcomer);
        honest.advance(100);
        // Two descriptors of each are here, the publisher's and the villain's.
        wait_until("the oldest were dropped", || {
            Census::take().descriptors() <= base.descriptors() + silent.len() + 64
        });
        assert_eq!(silent.len(), 100 * (round + 1));
    }
    drop(silent);
    base.settle();
    let publisher = stream.stop();
    let sent = publisher.stats().messages;
    drop(publisher);
    assert_eq!(honest.finish(), (sent, sent));
}

// ---- hostile publishers ----

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Roguery {
    RingUnsealed,
    RingTooSmall,
    RingSparse,
    RingIsAFile,
    RingIsAPipe,
    CapacityMax,
    CapacityHuge,
    CapacityOdd,
    CapacityTiny,
    CapacityZero,
    StartOdd,
    StartMax,
    StartHuge,
    RingsUnoffered,
    RingsNothing,
    BellIsAPipe,
    BellIsUdp,
    BellIsAnEventfd,
    Refuses,
    RefusesTheVersion,
    HangsUp,
    HangsUpUnread,
    Silent,
    Garbage,
    Surplus,
    TalksTwice,
}

/// Answers one greeting, badly.
fn rogue(role: &Role) {
    let address: String = role.hear();
    let listener = Listener::bind(&address.parse().expect("an address")).expect("a listener");
    role.tell(&());
    while let Some(roguery) = role.hear::<Option<Roguery>>() {
        let link = listener.accept().expect("a subscriber");
        deceive(role, &link, roguery);
        drop(link);
        role.tell(&());
    }
}

const CAPACITY: usize = 1 << 14;

fn a_ring() -> (Shared, Fd) {
    let (ring, fd) = Shared::create("rogue", page_size(), CAPACITY).expect("a ring");
    (ring, fd.into())
}

fn deceive(role: &Role, link: &Link, roguery: Roguery) {
    use Roguery::*;
    if roguery == HangsUpUnread {
        return;
    }
    let version = if roguery == RefusesTheVersion {
        9
    } else {
        VERSION
    };
    assert_eq!(open(link, version).version, VERSION);
    let _: Greeting = link.recv_timeout(PATIENCE).expect("a greeting");
    let len = page_size() + CAPACITY;
    let mut welcome = Welcome::new(a_ring().1, CAPACITY as u64);
    match roguery {
        RingUnsealed => welcome.ring = memfd(len, true, SealFlags::SHRINK),
        RingTooSmall => welcome.ring = memfd(len - page_size(), true, SEALS),
        RingSparse => welcome.ring = memfd(len, false, SEALS),
        RingIsAFile => welcome.ring = null(),
        RingIsAPipe => welcome.ring = pipe(),
        CapacityMax => welcome.capacity = u64::MAX,
        CapacityHuge => welcome.capacity = 1 << 40,
        CapacityOdd => welcome.capacity = 3 * page_size() as u64,
        CapacityTiny => welcome.capacity = 64,
        CapacityZero => welcome.capacity = 0,
        StartOdd => welcome.start = 12,
        StartMax => welcome.start = u64::MAX,
        StartHuge => welcome.start = 1 << 63,
        RingsUnoffered => welcome.rings = Rings::EventFd,
        RingsNothing => welcome.rings = Rings::Nothing,
        BellIsAPipe => welcome.doorbell = Bell::Socket(pipe()),
        BellIsUdp => {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            welcome.doorbell = Bell::Socket(OwnedFd::from(socket).into());
        }
        BellIsAnEventfd => welcome.doorbell = Bell::EventFd(an_eventfd()),
        Refuses => {
            let why = "it does not like you".to_owned();
            let answer = Answer::Refused(Refusal::Resources { why });
            return link.send(&answer).expect("room");
        }
        HangsUp | HangsUpUnread | RefusesTheVersion => return,
        Silent => return role.hear(),
        Garbage => {
            rustix::net::send(link, &[7; 100], SendFlags::NOSIGNAL).expect("room");
            return;
        }
        Surplus => {
            return link
                .send(&(Answer::Welcome(welcome), vec![null(), null()]))
                .expect("room");
        }
        TalksTwice => {
            link.send(&Answer::Welcome(welcome)).expect("room");
            for _ in 0..20 {
                let _ = link.try_send(&null());
            }
            return role.hear();
        }
    }
    link.send(&Answer::Welcome(welcome)).expect("room");
}

#[test]
fn welcomes_that_make_no_sense() {
    use Roguery::*;
    use memlane_region::Error as RegionError;
    let scene = Scene::new();
    let address = scene.address("lane");
    let rogue = scene.spawn("rogue", &address.to_string());
    rogue.hear::<()>();
    let base = Census::take();
    let all = [
        RingUnsealed,
        RingTooSmall,
        RingSparse,
        RingIsAFile,
        RingIsAPipe,
        CapacityMax,
        CapacityHuge,
        CapacityOdd,
        CapacityTiny,
        CapacityZero,
        StartOdd,
        StartMax,
        StartHuge,
        RingsUnoffered,
        RingsNothing,
        BellIsAPipe,
        BellIsUdp,
        BellIsAnEventfd,
        Refuses,
        RefusesTheVersion,
        HangsUp,
        HangsUpUnread,
        Garbage,
        Surplus,
    ];
    for roguery in all {
        for _ in 0..3 {
            rogue.tell(&Some(roguery));
            let error = Subscriber::builder()
                .wait(WaitPolicy::Block)
                .timeout(PATIENCE)
                .connect_to(&address)
                .expect_err("a welcome that makes sense");
            let fits = match roguery {
                RingUnsealed => matches!(error, Error::Region(RegionError::Seals { .. })),
                RingTooSmall => matches!(error, Error::Region(RegionError::Size { .. })),
                RingSparse => matches!(error, Error::Region(RegionError::Sparse { .. })),
                RingIsAFile | RingIsAPipe => {
                    matches!(error, Error::Region(RegionError::NotSharedMemory))
                }
                CapacityMax | CapacityOdd => {
                    matches!(error, Error::Region(RegionError::Length { .. }))
                }
                CapacityHuge => matches!(error, Error::Region(RegionError::Quota { .. })),
                CapacityTiny | CapacityZero | StartOdd | StartMax | StartHuge | RingsUnoffered
                | RingsNothing | BellIsAPipe | BellIsUdp | BellIsAnEventfd => {
                    matches!(error, Error::Welcome { .. })
                }
                Refuses => {
                    error.to_string()
                        == "the publisher refused this subscriber: it is short of resources: it does not like you"
                }
                RefusesTheVersion => {
                    let text = format!(
                        "the publisher speaks version 9 of the protocol, this subscriber version {VERSION}: \
                         update the subscriber"
                    );
                    error.to_string() == text
                }
                HangsUp | HangsUpUnread => matches!(error, Error::HungUp),
                Garbage => matches!(error, Error::Link(LinkError::NotMemlane { .. })),
                Surplus => matches!(error, Error::Link(_)),
                Silent | TalksTwice => unreachable!(),
            };
            assert!(fits, "{roguery:?}: {error:?}");
            rogue.hear::<()>();
        }
    }
    // One that never answers: the caller says for how long to wait.
    rogue.tell(&Some(Silent));
    let error = Subscriber::builder()
        .timeout(Duration::from_millis(50))
        .connect_to(&address)
        .unwrap_err();
    assert!(matches!(error, Error::NoAnswer { .. }), "{error:?}");
    rogue.tell(&());
    rogue.hear::<()>();
    // One that goes on talking after its welcome is not listened to.
    rogue.tell(&Some(TalksTwice));
    let mut subscriber = Subscriber::builder()
        .wait(WaitPolicy::Block)
        .connect_to(&address)
        .unwrap();
    assert!(matches!(
        subscriber.recv_timeout(Duration::from_millis(20)),
        Err(RecvTimeoutError::TimedOut)
    ));
    rogue.tell(&());
    assert!(matches!(
        subscriber.recv(),
        Err(RecvError::Disconnected { .. })
    ));
    drop(subscriber);
    rogue.hear::<()>();
    base.settle();
    rogue.tell(&None::<Roguery>);
    rogue.finish();
}

/// A quota is the caller's to set.
#[test]
fn a_ring_over_the_quota() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let publisher = unbound(1 << 16).bind_to(&address).unwrap();
    let error = Subscriber::builder()
        .max_ring_bytes(1 << 15)
        .connect_to(&address)
        .unwrap_err();
    assert!(error.to_string().contains("quota"), "{error}");
    wait_until("it is let go of", || publisher.subscribers() == 0);
}

/// Headers that no honest publisher writes, in a ring that is otherwise in order: an error, in whichever way they
/// are met, and the same error from then on.
#[test]
fn corrupt_rings() {
    let _scene = Scene::new();
    let capacity = CAPACITY as u64;
    let headers = [
        1,
        8,
        // Longer than the ring, to no word, to nowhere.
        header(capacity, capacity - 8),
        header(1 << 31, 8),
        header(20, 8),
        1 << 32,
        // More padding than there is, or than record.
        header(512, 8),
        0xff << 40 | 1 << 32 | 16,
        // No such kind, and bits that mean nothing.
        header(16, 8) ^ 3 << 32,
        header(16, 8) | 2 << 48,
        header(16, 8) | 1 << 63,
        u64::MAX,
    ];
    for policy in Policy::ALL {
        for (at, bad) in headers.into_iter().enumerate() {
            for start in [0, 8, CAPACITY as u64 - 8, (1 << 62) - 64] {
                let (mut memory, fd) = a_ring();
                let (here, there) = Link::pair().unwrap();
                let connecting = std::thread::spawn(move || {
                    Wish {
                        policy,
                        trusting: false,
                    }
                    .over(there)
                    .unwrap()
                });
                open(&here, VERSION);
                let greeting: Greeting = here.recv_timeout(PATIENCE).unwrap();
                here.send(&Answer::Welcome(Welcome {
                    start,
                    rings: if policy == Policy::Poll {
                        Rings::Nothing
                    } else {
                        Rings::Socket
                    },
                    ..Welcome::new(fd, CAPACITY as u64)
                }))
                .unwrap();
                let memlane_tests::AnySubscriber::Untrusting(mut subscriber) =
                    connecting.join().unwrap()
                else {
                    unreachable!()
                };
                // One message that is in order, then the header that is not.
                memory.write(start, 8, b"in order");
                let next = ring::end(start, 8);
                memory.store(next, bad);
                memory.store_release(start, header(next - start, 8));
                assert_eq!(subscriber.recv().unwrap().to_vec(), b"in order");
                for form in at..at + 4 {
                    let corrupt = match form % 3 {
                        0 => match subscriber.recv() {
                            Err(RecvError::Corrupt(corrupt)) => corrupt,
                            other => panic!("{other:?}"),
                        },
                        1 => match subscriber.try_recv() {
                            Err(TryRecvError::Corrupt(corrupt)) => corrupt,
                            other => panic!("{other:?}"),
                        },
                        _ => match subscriber.recv_timeout(PATIENCE) {
                            Err(RecvTimeoutError::Corrupt(corrupt)) => corrupt,
                            other => panic!("{other:?}"),
                        },
                    };
                    assert_eq!((corrupt.header, corrupt.position), (bad, next));
                }
                // Corrupt wins over the end: there is no telling what else is wrong.
                drop((here, greeting));
                assert!(matches!(subscriber.recv(), Err(RecvError::Corrupt(_))));
            }
        }
    }
}

/// A publisher that changes what it has committed: lengths and contents are read once, whatever they are by then.
#[test]
fn rings_that_change_under_the_reader() {
    let _scene = Scene::new();
    let (mut memory, fd) = a_ring();
    let (here, there) = Link::pair().unwrap();
    let connecting = std::thread::spawn(move || {
        Subscriber::builder()
            .wait(WaitPolicy::Poll)
            .over(there)
            .unwrap()
    });
    open(&here, VERSION);
    let greeting: Greeting = here.recv_timeout(PATIENCE).unwrap();
    here.send(&Answer::Welcome(Welcome {
        rings: Rings::Nothing,
        ..Welcome::new(fd, CAPACITY as u64)
    }))
    .unwrap();
    let mut subscriber = connecting.join().unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut word = 1_u64;
            let memory = &mut memory;
            while !stop.load(Ordering::Relaxed) {
                for position in (0..CAPACITY as u64).step_by(8) {
                    word = word.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
                    // Lengths that are fine, mostly: all positions may be headers.
                    let len = (word >> 33) % 300;
                    memory.store(position, header(8 + len.next_multiple_of(8), len));
                }
            }
        });
        let mut copy = Vec::new();
        for _ in 0..50_000 {
            match subscriber.recv_timeout(PATIENCE) {
                Ok(message) => {
                    let len = message.len();
                    assert!(len < 300);
                    message.copy_into(&mut copy);
                    assert_eq!((message.len(), copy.len()), (len, len));
                }
                Err(error) => panic!("{error}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(greeting);
}

/// A publisher that rings without end keeps its subscriber awake, and from nothing else; one that never rings is
/// waited for.
#[test]
fn publishers_that_ring_without_end() {
    let _scene = Scene::new();
    let (mut memory, fd) = a_ring();
    let (here, there) = Link::pair().unwrap();
    let connecting = std::thread::spawn(move || {
        Subscriber::builder()
            .wait(WaitPolicy::Block)
            .over(there)
            .unwrap()
    });
    open(&here, VERSION);
    let greeting: Greeting = here.recv_timeout(PATIENCE).unwrap();
    let bell: OwnedFd = greeting.doorbell.socket.unwrap().into();
    here.send(&Answer::Welcome(Welcome::new(fd, CAPACITY as u64)))
        .unwrap();
    let mut subscriber = connecting.join().unwrap();
    let mut rings = 0;
    let mut ring_all = |bell: &OwnedFd| loop {
        match rustix::net::send(bell, &[1; 64], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => rings += 1,
            Err(rustix::io::Errno::AGAIN) => break,
            Err(error) => panic!("{}", io::Error::from(error)),
        }
    };
    ring_all(&bell);
    for _ in 0..20 {
        assert!(matches!(
            subscriber.recv_timeout(Duration::from_millis(1)),
            Err(RecvTimeoutError::TimedOut)
        ));
        ring_all(&bell);
    }
    memory.write(0, 8, b"message!");
    memory.store_release(0, header(16, 8));
    ring_all(&bell);
    assert_eq!(subscriber.recv().unwrap().to_vec(), b"message!");
    // What it cost: a full doorbell wakes nobody any more, until the subscriber drains it, after 64 wake-ups.
    let stats = subscriber.stats();
    println!("{rings} rings for nothing, {stats:?}");
    assert!((1..=stats.wakeups).contains(&stats.spurious));
    assert!(stats.wakeups <= rings && stats.wakeups <= stats.sleeps + 1);
    let mut sink = [0; 16];
    let back = rustix::net::recv(&bell, &mut sink, RecvFlags::DONTWAIT);
    assert!(back.is_err(), "nothing comes back from a doorbell");
    drop(here);
    assert!(matches!(
        subscriber.recv(),
        Err(RecvError::Disconnected { .. })
    ));
}

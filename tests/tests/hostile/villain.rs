//! A hostile subscriber, in a process of its own.

use std::{
    io::Write,
    net::UdpSocket,
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    sync::atomic::Ordering,
};

use memlane::{Address, Link};
use memlane_region::page_size;
use memlane_signaling::{Backing, Doorbell};
use memlane_tests::{
    PATIENCE, Role, alive, wait_until,
    wire::{
        ARMED, Answer, Asks, CURSOR, Greeting, Offer, Opening, Refusal, VERSION, WANTED, arrives,
    },
};
use memlane_transport::{Fd, Listener};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{OFlags, SealFlags, fcntl_setfl},
    net::{SendFlags, sockopt},
};
use serde::{Deserialize, Serialize};

use crate::{
    by_hand::{greet, join, open},
    props::{SEALS, an_eventfd, copy, memfd, null, page, pipe, stream_socket},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Villainy {
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
    AsksForTicketsElsewhere,
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
    ArrivesNowhere,
    Wavers,
    ShutsItsBell,
    // Dropped once the publisher wants to be woken by it.
    ClosesItsBell,
    ClosesItsBellLate,
    LeavesTheTrap,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
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

pub(crate) fn villain(role: &Role) {
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
            let successor = joined.successor();
            let (_page, page) = page();
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
        // With what nobody can be answered over, or ought to be, or twice.
        ArrivesNowhere => {
            let (mut joined, _) = join(link, none, false)?;
            let name = format!("memlane-nowhere-{}", std::process::id());
            let address = Address::abstract_name(name).expect("a name");
            let listener = Listener::bind(&address).expect("a name");
            let mut round = 0;
            Ok(until_stopped(role, || {
                round += 1;
                if round % 6 == 0 {
                    let successor = joined.successor();
                    let (_other, back) = Link::pair().expect("a pair");
                    let _ = successor.try_send(&arrives(&back));
                    hung_up(&successor);
                } else {
                    let ticket = joined.ticket();
                    let nowhere = match round % 6 {
                        1 => null(),
                        2 => stream_socket(),
                        3 => copy(&listener),
                        4 => OwnedFd::from(Link::connect(&address).expect("a client")).into(),
                        // It would hear itself.
                        _ => copy(&ticket),
                    };
                    let opening = Opening { version: VERSION };
                    ticket.send_timeout(&opening, PATIENCE).expect("room");
                    let _ = ticket.try_send(&arrives(&nowhere));
                    hung_up(&ticket);
                    while listener.try_accept().is_ok() {}
                }
                joined.drain();
            }))
        }
        // Until what it is answered finds no room.
        AsksForTicketsUnread => {
            let (joined, _) = join(link, none, false)?;
            until_hung_up(&joined.link, &Asks::TICKET);
            Ok(Outcome::HungUp)
        }
        // The publisher sends over a socket that is the villain's, too. It could sleep with its lock, and wait for a publisher that
        // wants it to be another.
        AsksForTicketsElsewhere => {
            let (mut joined, _) = join(link, none, false)?;
            let (successor, back) = joined.successor_and_its_back();
            let size = || sockopt::socket_send_buffer_size(&back).expect("a socket");
            let before = size();
            let (_page, page) = page();
            greet(&successor, page, Offer::default(), false)?;
            let _welcome: Answer = successor.recv_timeout(PATIENCE).expect("a welcome");
            joined.drain();
            let departed = Asks::departed(joined.position, joined.sequence);
            joined.link.send_timeout(&departed, PATIENCE).expect("room");
            until_hung_up(&successor, &Asks::TICKET);
            assert_eq!(size(), before);
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

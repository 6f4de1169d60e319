//! Tickets of another version, and those at their links.

use std::{fs::File, os::fd::OwnedFd, thread};

use memlane::{
    Error, Link, Publisher, Receiver, ReceiverTicket, Subscriber, SubscriptionsTicket, Ticket,
    TryRecvError,
};
use memlane_region::{Shared, page_size};
use memlane_tests::{
    PATIENCE, Scene, number, wait_until,
    wire::{Answer, Greeting, Notice, Opening, VERSION, Welcome},
};
use memlane_transport::Fd;
use rustix::net::{SendFlags, send as send_bytes};

use crate::{expect, lane, message, send, send_until_full, successors::RawTicket};

/// Before and after this one, and some that will never be.
const OTHERS: [u32; 4] = [VERSION - 1, VERSION + 1, 0, u32::MAX];

/// That it is told so, and both versions.
#[track_caller]
fn is_of_version<T>(outcome: Result<T, Error>, version: u32) {
    match outcome.map(drop) {
        Err(Error::Version { theirs, ours, .. }) => assert_eq!((theirs, ours), (version, VERSION)),
        other => panic!("{other:?}"),
    }
}

/// At the link of a ticket: the old end is told which version whoever came is of, and goes on.
#[test]
fn a_successor_of_another_version() {
    let _scene = Scene::new();
    let (mut publisher, mut old) = lane();
    let (mut sent, mut refused) = (0, 0);
    for version in OTHERS {
        for departs in [false, true] {
            send(&mut publisher, sent..sent + 2);
            expect(&mut old, sent..sent + 1);
            let (to, from) = Link::pair().unwrap();
            to.send(&old.ticket().unwrap()).unwrap();
            let (_, socket, _): RawTicket = from.recv().unwrap();
            let successor = Link::from_fd(socket.into()).unwrap();
            successor.send(&Opening { version }).unwrap();
            // It may have been hung up on by now.
            let _ = successor.send(&(11_u32, "where one of the future is answered"));
            refused += 1;
            wait_until("it is refused", || publisher.stats().refused == refused);
            let why = if departs {
                let stays = old.depart().unwrap_err();
                old = stays.subscriber.unwrap();
                stays.error.to_string()
            } else {
                loop {
                    match old.is_awaited() {
                        Ok(awaited) => assert!(!awaited),
                        Err(error) => break error.to_string(),
                    }
                }
            };
            let expected = format!(
                "it stays where it is: its successor is of version {version}, and this publisher of version {VERSION}"
            );
            assert_eq!(why, expected);
            expect(&mut old, sent + 1..sent + 2);
            sent += 2;
        }
    }
    let stats = publisher.stats();
    let counts = (
        publisher.subscribers(),
        stats.moved,
        stats.left,
        stats.refused,
    );
    assert_eq!(counts, (1, 0, 0, 8));
    // Packets have a version of their own: of one with another nothing is known.
    let (to, from) = Link::pair().unwrap();
    to.send(&old.ticket().unwrap()).unwrap();
    let (_, socket, _): RawTicket = from.recv().unwrap();
    let packet = [b'm', 9, 0, 0, 0, 0, 1, 0, 2];
    send_bytes(OwnedFd::from(socket), &packet, SendFlags::NOSIGNAL).unwrap();
    let stays = old.depart().unwrap_err();
    assert!(matches!(stays.error, Error::Stays { .. }), "{stays}");
    let mut old = stays.subscriber.unwrap();
    send(&mut publisher, sent..sent + 1);
    expect(&mut old, sent..sent + 1);
}

/// The place of one that has departed is free, if whoever comes is of another version.
#[test]
fn a_successor_of_another_version_when_it_is_its_turn() {
    let _scene = Scene::new();
    for version in OTHERS {
        let (mut publisher, mut old) = lane();
        let (to, from) = Link::pair().unwrap();
        to.send(&old.ticket().unwrap()).unwrap();
        let (_, socket, _): RawTicket = from.recv().unwrap();
        let successor = Link::from_fd(socket.into()).unwrap();
        old.depart().unwrap();
        let next = send_until_full(&mut publisher, 0);
        successor.send(&Opening { version }).unwrap();
        send(&mut publisher, next..1000);
        assert_eq!(publisher.subscribers(), 0);
    }
}

/// A ticket says which version its publisher is of; whoever is at its other end may be of another one all the same.
#[test]
fn a_publisher_of_another_version() {
    let _scene = Scene::new();
    let (to, from) = Link::pair().unwrap();
    for version in OTHERS {
        let (mut publisher, socket) = Link::pair().unwrap();
        let socket = Fd::from(socket.into_fd());
        to.send(&(VERSION, &socket, None::<String>)).unwrap();
        drop(socket);
        let ticket: Ticket = from.recv().unwrap();
        let arriving = thread::spawn(move || {
            let builder = Subscriber::builder().timeout(PATIENCE);
            builder.arrive(ticket)
        });
        let opening: Opening = publisher.recv_timeout(PATIENCE).unwrap();
        assert_eq!(opening.version, VERSION);
        let (_, back): (u32, Fd) = publisher.recv_timeout(PATIENCE).unwrap();
        publisher.send_over(back.into()).unwrap();
        publisher.send(&Opening { version }).unwrap();
        is_of_version(arriving.join().unwrap(), version);

        let null = Fd::from(OwnedFd::from(File::open("/dev/null").unwrap()));
        to.send(&(version, null, None::<String>)).unwrap();
        let ticket: Ticket = from.recv().unwrap();
        is_of_version(ticket.arrive(), version);
    }
}

/// The tickets of many lanes.
#[test]
fn those_who_had_many_lanes_are_of_another_version() {
    let _scene = Scene::new();
    let (to, from) = Link::pair().unwrap();
    let from = from.adopting();
    for version in OTHERS {
        let (ours, theirs) = Link::pair().unwrap();
        to.send(&(version, &theirs)).unwrap();
        drop(theirs);
        let ticket: SubscriptionsTicket = from.recv().unwrap();
        is_of_version(ticket.arrive(), version);
        assert!(ours.recv::<u8>().unwrap_err().is_disconnected());

        let (ours, theirs) = Link::pair().unwrap();
        to.send(&(version, &theirs, None::<()>)).unwrap();
        drop(theirs);
        let ticket: ReceiverTicket = from.recv().unwrap();
        is_of_version(ticket.arrive(), version);
        assert!(ours.recv::<u8>().unwrap_err().is_disconnected());
    }
}

/// One lane's ticket is of another version: it does not come, its publisher is hung up on, and the others come.
#[test]
fn a_lane_of_another_version_among_others() {
    let _scene = Scene::new();
    let (mut publisher, mut old) = lane();
    send(&mut publisher, 0..10);
    expect(&mut old, 0..5);
    let (ours, theirs) = Link::pair().unwrap();
    let (to, from) = Link::pair().unwrap();
    to.send(&(VERSION, &theirs, None::<()>)).unwrap();
    drop(theirs);
    let ticket: ReceiverTicket = from.adopting().recv().unwrap();
    let arriving = thread::spawn(move || {
        let builder = Receiver::builder().timeout(PATIENCE);
        builder.arrive_receiver(ticket)
    });
    // What whoever leaves says: lanes, and that it departs.
    let (other, socket) = Link::pair().unwrap();
    let foreign = (VERSION + 1, Fd::from(socket.into_fd()), None::<String>);
    ours.send(&(0_u32, "label", false, foreign)).unwrap();
    ours.send(&(0_u32, "label", false, old.ticket().unwrap()))
        .unwrap();
    assert!(old.wait_until_awaited(PATIENCE).unwrap());
    old.depart().unwrap();
    ours.send(&1_u32).unwrap();
    let mut receiver = arriving.join().unwrap().unwrap();
    assert!(other.recv::<u8>().unwrap_err().is_disconnected());
    for expected in 5..10 {
        let message = receiver.recv_timeout(PATIENCE).unwrap().to_vec();
        assert_eq!(number(&message), expected);
    }
    assert_eq!(receiver.senders(), 1);
}

/// A sender that speaks another version to the successor keeps its own lane from moving, which remains.
#[test]
fn a_sender_of_another_version() {
    let _scene = Scene::new();
    let mut old = Receiver::builder().unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    old.attach(ours).unwrap();
    let good = thread::spawn(move || Publisher::builder().over(theirs).unwrap());
    let (ours, theirs) = Link::pair().unwrap();
    old.attach(ours).unwrap();
    let other = thread::spawn(move || {
        let opening = Opening { version: VERSION };
        theirs.send(&opening).unwrap();
        theirs.send(&4_u32).unwrap();
        let _: Opening = theirs.recv_timeout(PATIENCE).unwrap();
        let _: Greeting = theirs.recv_timeout(PATIENCE).unwrap();
        let (_ring, descriptor) = Shared::create("by-hand", page_size(), page_size()).unwrap();
        let welcome = Welcome::new(descriptor.into(), page_size() as u64);
        theirs.send(&Answer::Welcome(welcome)).unwrap();
        let (_, number): (u32, u32) = theirs.recv_timeout(PATIENCE).unwrap();
        let (mut successor, link) = Link::pair().unwrap();
        let link = link.into_fd().into();
        theirs.send(&Notice::Ticket { number, link }).unwrap();
        assert_eq!(
            successor.recv_timeout::<Opening>(PATIENCE).unwrap(),
            opening
        );
        let (_, back): (u32, Fd) = successor.recv_timeout(PATIENCE).unwrap();
        successor.send_over(back.into()).unwrap();
        let version = VERSION + 1;
        successor.send(&Opening { version }).unwrap();
        // It hangs up.
        let _: Greeting = successor.recv_timeout(PATIENCE).unwrap();
        let end = successor.recv_timeout::<u8>(PATIENCE).unwrap_err();
        assert!(end.is_disconnected(), "{end}");
        let why = "its successor has hung up".to_owned();
        theirs.send(&Notice::Stays { number, why }).unwrap();
        theirs
    });
    wait_until("both are there", || {
        assert!(matches!(old.try_recv(), Err(TryRecvError::Empty)));
        old.senders() == 2
    });
    let mut good = good.join().unwrap();
    let (to, from) = Link::pair().unwrap();
    to.send(&old.ticket().unwrap()).unwrap();
    drop(to);
    let arriving = thread::spawn(move || {
        let ticket: ReceiverTicket = from.adopting().recv().unwrap();
        ticket.arrive().unwrap()
    });
    let remains = old.depart().unwrap_err();
    assert_eq!(
        remains.to_string(),
        "it stays where it is: its successor has hung up"
    );
    assert_eq!(remains.end.senders(), 1);
    let mut new = arriving.join().unwrap();
    good.send(&message(7)).unwrap();
    let received = new.recv_timeout(PATIENCE).unwrap().to_vec();
    assert_eq!(received, message(7));
    drop(other.join().unwrap());
}

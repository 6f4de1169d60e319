//! Senders, receivers and successors that do not play by the rules.

use std::{
    fs::File,
    os::fd::OwnedFd,
    sync::atomic::Ordering,
    thread::{self, JoinHandle},
    time::Duration,
};

use memlane::{
    Error, Link, ReadError, Reason, WatchError, WatchReceiver, WatchSender, WatchTicket,
    region::{Shared, latest::ring_len, page_size},
};
use memlane_tests::{
    PATIENCE, Scene, alive, wait_until,
    wire::{
        Answer, Asks, CURSOR, Farewell, Greeting, Hello, Notice, Offer, Opening, Overflow, Rings,
        VERSION, Welcome, arrives,
    },
};
use memlane_transport::Fd;
use serde::Serialize;

use crate::{pair, wait_until_it_stays};

/// What a ticket is in a message.
type Raw = (u32, Fd, Option<String>);

fn opening() -> Opening {
    Opening { version: VERSION }
}

/// Says what a sender says to whoever joins. Nothing has been written.
fn welcome(link: &Link) -> Shared {
    let (memory, cell) = Shared::create("by-hand", page_size(), ring_len(24).unwrap()).unwrap();
    let welcome = Welcome {
        rings: Rings::Socket,
        ..Welcome::new(cell.into(), 24)
    };
    link.send(&opening()).unwrap();
    link.send(&Answer::Welcome(welcome)).unwrap();
    memory
}

/// A sender by hand, and its receiver, to whom it has said all it has to say when that one asks.
fn sender_by_hand() -> (Link, Shared, WatchReceiver) {
    let (ours, theirs) = Link::pair().unwrap();
    let memory = welcome(&ours);
    let receiver = WatchReceiver::builder().over(theirs).unwrap();
    let _: Opening = ours.recv().unwrap();
    let _: Greeting = ours.recv().unwrap();
    (ours, memory, receiver)
}

fn null() -> Fd {
    OwnedFd::from(File::open("/dev/null").unwrap()).into()
}

/// The first ticket that its receiver asks for is good for this.
fn give(link: &Link, receiver: &mut WatchReceiver, ticket: Fd) -> WatchTicket {
    let number = 1;
    let link_of = Notice::Ticket {
        number,
        link: ticket,
    };
    link.send(&link_of).unwrap();
    receiver.ticket().unwrap()
}

#[test]
fn tickets_that_are_none() {
    let _scene = Scene::new();
    let (link, _memory, mut receiver) = sender_by_hand();
    let ticket = give(&link, &mut receiver, null());
    let error = ticket.arrive().unwrap_err().to_string();
    assert!(error.contains("expected a connected"), "{error}");
    let (to, from) = Link::pair().unwrap();
    to.send(&(VERSION + 1, null(), None::<String>)).unwrap();
    let ticket: WatchTicket = from.recv().unwrap();
    let error = ticket.arrive().unwrap_err();
    let theirs = matches!(error, Error::Version { theirs, .. } if theirs == VERSION + 1);
    assert!(theirs, "{error}");
    // One that was not asked for, or is late, is none.
    link.send(&Notice::Ticket {
        number: 7,
        link: null(),
    })
    .unwrap();
    assert!(!receiver.is_awaited().unwrap());
}

/// A sender that says one thing after the other holds nobody up for longer than they would wait.
#[test]
fn a_sender_that_does_not_stop_talking() {
    let _scene = Scene::new();
    let (link, _memory, mut receiver) = sender_by_hand();
    let villain = thread::spawn(move || {
        let number = u32::MAX;
        let talk = || while link.send(&Notice::Awaited { number }).is_ok() {};
        thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(talk))));
    });
    for _ in 0..20 {
        let awaited = receiver.wait_until_awaited(Duration::from_millis(2));
        assert!(!awaited.unwrap());
        let changed = receiver.changed_timeout(Duration::from_millis(2));
        assert!(matches!(changed, Err(WatchError::TimedOut)), "{changed:?}");
        alive();
    }
    let error = receiver.ticket().unwrap_err();
    assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
    drop(receiver);
    villain.join().unwrap();
}

/// What is no notice of a move, and no farewell.
#[test]
fn nonsense_beside_a_move() {
    let _scene = Scene::new();
    let (link, _memory, mut receiver) = sender_by_hand();
    link.send(&Notice::Removed { id: 3 }).unwrap();
    assert!(matches!(receiver.is_awaited(), Err(Error::HungUp)));
    let error = receiver.changed().unwrap_err();
    let broken = matches!(&error, WatchError::Disconnected { reason: Reason::Broken { why } }
        if why == "expected a farewell, got Removed { id: 3 }");
    assert!(broken, "{error}");
    assert!(link.recv::<Opening>().unwrap_err().is_disconnected());
    // What cannot be read as a notice is no better.
    let (link, _memory, mut receiver) = sender_by_hand();
    link.send("nonsense").unwrap();
    assert!(matches!(receiver.is_awaited(), Err(Error::HungUp)));
    let end = link.recv_timeout::<Opening>(PATIENCE).unwrap_err();
    assert!(end.is_disconnected(), "{end}");
    let error = receiver.changed().unwrap_err();
    let broken = matches!(&error, WatchError::Disconnected { reason } if matches!(reason, Reason::Broken { .. }));
    assert!(broken, "{error}");
    // Nor does it help to say it before an end.
    let (link, _memory, mut receiver) = sender_by_hand();
    link.send(&Notice::Awaited { number: 0 }).unwrap();
    link.send(&Notice::Departed).unwrap();
    link.send(&Notice::Farewell(Farewell::Closed)).unwrap();
    drop(link);
    let error = receiver.changed().unwrap_err();
    let closed = matches!(&error, WatchError::Disconnected { reason } if *reason == Reason::Closed);
    assert!(closed, "{error}");
}

/// A successor of a sender by hand, which has said these things to it beside its welcome.
fn succeed(says: &[Notice]) -> Result<WatchReceiver, Error> {
    let (link, _memory, mut receiver) = sender_by_hand();
    let (mut ours, theirs) = Link::pair().unwrap();
    let ticket = give(&link, &mut receiver, OwnedFd::from(theirs).into());
    let arriving = thread::spawn(move || ticket.arrive());
    let _: Opening = ours.recv().unwrap();
    let (11, back) = ours.recv::<(u32, Fd)>().unwrap() else {
        panic!("it does not say where it is to be answered");
    };
    ours.send_over(back.into()).unwrap();
    let _: Greeting = ours.recv().unwrap();
    let _memory = welcome(&ours);
    for notice in says {
        ours.send(notice).unwrap();
    }
    arriving.join().unwrap()
}

#[test]
fn beginnings_that_make_no_sense() {
    let _scene = Scene::new();
    let begin = |sequence| Notice::Begin {
        start: u64::MAX,
        sequence,
        at: u32::MAX,
    };
    for number in [(1 << 59) + 1, u64::MAX] {
        let error = succeed(&[begin(number)]).unwrap_err();
        let expected = format!("expected the number of a value up to 2^59, got {number}");
        assert!(error.to_string().contains(&expected), "{error}");
    }
    // That of a value which there is not: there is none to be seen, and the calls return.
    let mut receiver = succeed(&[Notice::Awaited { number: 3 }, begin(77)]).unwrap();
    assert_eq!(receiver.sequence(), 77);
    assert!(!receiver.is_changed());
    let error = receiver.get().unwrap_err();
    assert!(
        matches!(error, WatchError::Value(ReadError::Unstable { .. })),
        "{error}"
    );
    drop(receiver);
    let why = || "no".to_owned();
    let error = succeed(&[Notice::Farewell(Farewell::Evicted { why: why() })]).unwrap_err();
    assert!(matches!(error, Error::NoSender { why } if why == "no"));
    for nonsense in [
        Notice::Farewell(Farewell::Closed),
        Notice::RingRemoved { id: 1 },
    ] {
        let error = succeed(&[nonsense, begin(0)]).unwrap_err();
        assert!(matches!(error, Error::HungUp), "{error}");
    }
}

/// A receiver by hand.
fn receiver_by_hand(sender: &WatchSender, overflow: Overflow) -> (Link, Shared) {
    let (ours, theirs) = Link::pair().unwrap();
    sender.attach(theirs).unwrap();
    let (page, descriptor) = Shared::create("by-hand", page_size(), 0).unwrap();
    ours.send(&opening()).unwrap();
    ours.send(&Greeting {
        hello: Hello::WATCH,
        overflow,
        ..Greeting::new(descriptor.into(), Offer::default())
    })
    .unwrap();
    let _: Opening = ours.recv().unwrap();
    let Answer::Welcome(_) = ours.recv().unwrap() else {
        panic!("it is refused");
    };
    (ours, page)
}

/// Asks for a ticket by hand, and goes on with it by the rules.
fn ticket_by_hand(link: &Link) -> JoinHandle<Result<WatchReceiver, Error>> {
    link.send(&Asks::TICKET).unwrap();
    let Notice::Ticket { number: 1, link } = link.recv_timeout(PATIENCE).unwrap() else {
        panic!("it gets no ticket");
    };
    let (to, from) = Link::pair().unwrap();
    let raw: Raw = (VERSION, link, None);
    to.send(&raw).unwrap();
    let ticket: WatchTicket = from.recv().unwrap();
    thread::spawn(move || ticket.arrive())
}

fn awaited(link: &Link) {
    let said = link.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(said, Notice::Awaited { number: 1 }), "{said:?}");
}

#[track_caller]
fn hears_that_it_stays(link: &Link, expected: &str) {
    let said = link.recv_timeout(PATIENCE).unwrap();
    let stays = matches!(&said, Notice::Stays { why, .. } if why.contains(expected));
    assert!(stays, "{said:?}");
}

#[test]
fn departures_that_make_no_sense() {
    let _scene = Scene::new();
    let mut sender = WatchSender::builder().unbound().unwrap();
    sender.send(b"one").unwrap();
    // Nobody is to go on.
    let (link, _page) = receiver_by_hand(&sender, Overflow::Block);
    link.send(&Asks::departed(0, 1)).unwrap();
    hears_that_it_stays(&link, "nobody has its ticket");
    // There are no attachments.
    let arriving = ticket_by_hand(&link);
    awaited(&link);
    link.send(&(9_u32, 0_u64, 1_u64, 1_u64)).unwrap();
    hears_that_it_stays(&link, "attachments");
    assert!(matches!(arriving.join().unwrap(), Err(Error::HungUp)));
    // What it has read was not written. Its successor ends with it; nobody else does.
    let mut other = crate::receiver(&sender, WatchReceiver::builder());
    for number in [3, 1 << 40, u64::MAX] {
        let (link, _page) = receiver_by_hand(&sender, Overflow::Block);
        let arriving = ticket_by_hand(&link);
        awaited(&link);
        link.send(&Asks::departed(7, number)).unwrap();
        let error = arriving.join().unwrap().unwrap_err();
        let expected = format!("expected a place up to what was written, got {number}");
        assert!(error.to_string().contains(&expected), "{error}");
        wait_until("it is hung up on", || sender.receivers() == 2);
    }
    sender.send(b"two").unwrap();
    other.changed().unwrap();
    assert_eq!(other.get().unwrap().unwrap(), b"two");
    assert_eq!(sender.moved(), 0);
    drop(link);
    wait_until("the first one is gone", || sender.receivers() == 1);
}

/// Whatever is in its page, and whatever it has asked for: its place is a place.
#[test]
fn pages_and_kinds_that_mean_nothing() {
    let _scene = Scene::new();
    let mut sender = WatchSender::builder().unbound().unwrap();
    sender.send(b"one").unwrap();
    for overflow in [Overflow::Block, Overflow::Overwrite, Overflow::Disconnect] {
        for departs in [true, false] {
            let (link, page) = receiver_by_hand(&sender, overflow);
            page.word(CURSOR).store(u64::MAX, Ordering::Relaxed);
            let arriving = ticket_by_hand(&link);
            awaited(&link);
            if departs {
                link.send(&Asks::departed(u64::MAX, 1)).unwrap();
                let said = link.recv_timeout(PATIENCE).unwrap();
                assert!(matches!(said, Notice::Departed), "{said:?}");
            }
            drop(link);
            let mut receiver = arriving.join().unwrap().unwrap();
            assert_eq!(receiver.sequence(), u64::from(departs));
            assert_eq!(receiver.is_changed(), !departs);
            assert_eq!(receiver.get().unwrap().unwrap(), b"one");
        }
    }
    wait_until("nobody is left", || sender.receivers() == 0);
    assert_eq!(sender.moved(), 6);
}

#[test]
fn receivers_that_say_what_they_should_not() {
    let _scene = Scene::new();
    let mut sender = WatchSender::builder().unbound().unwrap();
    fn says(sender: &WatchSender, what: &impl Serialize) {
        let (link, _page) = receiver_by_hand(sender, Overflow::Block);
        link.send(what).unwrap();
        wait_until("it is hung up on", || sender.receivers() == 0);
        assert!(link.recv::<Opening>().unwrap_err().is_disconnected());
    }
    says(&sender, &99_u32);
    says(&sender, &opening());
    says(&sender, &"nonsense");
    // Until what it is answered finds no room.
    let (link, _page) = receiver_by_hand(&sender, Overflow::Block);
    while link.send_timeout(&Asks::TICKET, PATIENCE).is_ok() {
        alive();
    }
    wait_until("it is hung up on", || sender.receivers() == 0);
    sender.send(b"one").unwrap();
}

/// The link of a successor, which has said where it is answered.
fn successor_by_hand(receiver: &mut WatchReceiver) -> Link {
    let (to, from) = Link::pair().unwrap();
    to.send(&receiver.ticket().unwrap()).unwrap();
    let (_, socket, _): Raw = from.recv().unwrap();
    let (mut link, back) = Link::pair().unwrap();
    link.send_over(socket.into()).unwrap();
    link.send(&opening()).unwrap();
    link.send(&arrives(&back)).unwrap();
    link
}

#[test]
fn a_successor_that_makes_no_sense_is_hung_up_on() {
    let _scene = Scene::new();
    let (mut sender, mut receiver) = pair();
    let page = || Shared::create("by-hand", page_size(), 0).unwrap().1;
    // A subscriber.
    let link = successor_by_hand(&mut receiver);
    let greeting = Greeting::new(page().into(), Offer::default());
    link.send(&greeting).unwrap();
    let stays = wait_until_it_stays(&mut receiver);
    println!("{stays}");
    drop(link);
    // One with a page that is none.
    let link = successor_by_hand(&mut receiver);
    link.send(&Greeting {
        hello: Hello::WATCH,
        ..Greeting::new(null(), Offer::default())
    })
    .unwrap();
    let stays = wait_until_it_stays(&mut receiver);
    assert!(stays.contains("control page"), "{stays}");
    // One that says nothing more, and one that says nonsense.
    let link = successor_by_hand(&mut receiver);
    assert!(
        !receiver
            .wait_until_awaited(Duration::from_millis(2))
            .unwrap()
    );
    link.send("nonsense").unwrap();
    println!("{}", wait_until_it_stays(&mut receiver));
    // And one that speaks when it has been welcomed.
    let link = successor_by_hand(&mut receiver);
    link.send(&Greeting {
        hello: Hello::WATCH,
        ..Greeting::new(page().into(), Offer::default())
    })
    .unwrap();
    assert!(receiver.wait_until_awaited(PATIENCE).unwrap());
    link.send("nonsense").unwrap();
    println!("{}", wait_until_it_stays(&mut receiver));
    sender.send(b"goes on").unwrap();
    receiver.changed().unwrap();
    assert_eq!(receiver.get().unwrap().unwrap(), b"goes on");
    assert_eq!((sender.receivers(), sender.moved()), (1, 0));
}

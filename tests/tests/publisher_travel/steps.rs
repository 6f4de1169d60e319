//! Publishers that move while the other one is killed, or stopped, at each step of what the two say to one another: by hand, so that it
//! gets exactly as far.

use std::{
    io::Write,
    os::{fd::OwnedFd, unix::net::UnixStream},
    thread,
    time::Duration,
};

use memlane::{Error, Link, Publisher, PublisherTicket, Reason, RecvTimeoutError, Subscriber};
use memlane_region::{Shared, WordsMut, page_size};
use memlane_tests::{
    Child, PATIENCE, Role, Scene, alive, check, fill,
    wire::{Answer, Greeting, Notice, Opening, Overflow, VERSION, Welcome, header},
};
use memlane_transport::{Error as LinkError, Fd};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    death::attached,
    hostile::{Hands, Place, Says, bytes, switch},
};

/// Message `number`, of 8 bytes.
fn message(number: u64) -> [u8; 8] {
    let mut message = [0; 8];
    fill(number, &mut message);
    message
}

#[track_caller]
fn expect(subscriber: &mut Subscriber, number: u64) {
    check(number, &subscriber.recv_timeout(PATIENCE).unwrap().to_vec());
}

#[track_caller]
fn ends(subscriber: &mut Subscriber, reason: &Reason) {
    match subscriber.recv_timeout(PATIENCE).map(drop) {
        Err(RecvTimeoutError::Disconnected { reason: found }) => assert_eq!(found, *reason),
        other => panic!("{other:?}"),
    }
}

// ---- the successor ----

/// How far it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Comes {
    /// It has the ticket.
    Ticketed,
    /// It has said its version,
    Opened,
    /// what it carries,
    Carried,
    /// what its first ring is,
    Made,
    /// and that it knows the subscriber: it is awaited.
    Awaited,
}

const COMES: [Comes; 5] = [
    Comes::Ticketed,
    Comes::Opened,
    Comes::Carried,
    Comes::Made,
    Comes::Awaited,
];

/// Gets that far; once it goes on, it says how many messages came before its first.
pub(crate) fn successor(role: &Role) {
    let (link, until): (Link, Comes) = role.hear();
    let hear = || link.recv_timeout::<Hands>(PATIENCE).unwrap();
    role.halt(Comes::Ticketed, until);
    link.send(&Opening { version: VERSION }).unwrap();
    role.halt(Comes::Opened, until);
    link.send(&bytes()).unwrap();
    role.halt(Comes::Carried, until);
    let opening: Opening = link.recv_timeout(PATIENCE).unwrap();
    assert_eq!(opening.version, VERSION);
    let Hands::Terms { capacity, .. } = hear() else {
        panic!("expected terms");
    };
    let (_ring, descriptor) = Shared::create("by-hand", page_size(), capacity as usize).unwrap();
    link.send(&Says::Ring(descriptor.into())).unwrap();
    role.halt(Comes::Made, until);
    // Whose link it keeps.
    let subscriber = hear();
    let Hands::Subscriber { source, .. } = subscriber else {
        panic!("expected a subscriber");
    };
    link.send(&Says::Knows(source, None)).unwrap();
    role.halt(Comes::Awaited, until);
    let Hands::Going { .. } = hear() else {
        panic!("expected what goes along");
    };
    let Hands::Departs(at) = hear() else {
        panic!("expected where it stops");
    };
    role.tell(&at.sequence);
    role.hear::<()>();
}

/// A publisher that moves there, whose successor has come that far, and its subscriber.
struct Leaving {
    publisher: Publisher,
    subscriber: Subscriber,
    child: Child,
    step: Comes,
    sent: u64,
}

impl Leaving {
    fn start(scene: &Scene, step: Comes) -> Leaving {
        let (mut publisher, subscriber) = attached();
        let ticket = publisher.ticket().unwrap();
        let child = scene.spawn("successor by hand", &(&ticket, step));
        drop(ticket);
        child.hear::<()>();
        Leaving {
            publisher,
            subscriber,
            child,
            step,
            sent: 0,
        }
    }

    /// They go on, whoever is to come.
    fn converse(&mut self) {
        for _ in 0..20 {
            self.publisher.send(&message(self.sent)).unwrap();
            expect(&mut self.subscriber, self.sent);
            self.sent += 1;
        }
    }
}

/// One that is killed before its turn changes nothing; after that, it is a publisher that has died.
#[test]
fn a_successor_that_is_killed() {
    let scene = Scene::new();
    for step in COMES {
        let mut leaving = Leaving::start(&scene, step);
        leaving.converse();
        leaving.child.kill();
        let why = loop {
            match leaving.publisher.is_awaited() {
                Ok(_) => thread::yield_now(),
                Err(Error::Stays { why }) => break why,
                Err(error) => panic!("{step:?}: {error}"),
            }
        };
        assert!(why.contains("nobody has its ticket"), "{step:?}: {why}");
        leaving.converse();
        let Leaving {
            publisher,
            mut subscriber,
            child,
            sent,
            ..
        } = leaving;
        child.kill_and_reap();
        let stays = publisher.depart().unwrap_err();
        let mut publisher = stays.publisher.unwrap();
        // And to another it moves.
        let ticket = publisher.ticket().unwrap();
        let arriving = thread::spawn(move || ticket.arrive().unwrap());
        publisher.depart().unwrap();
        let mut other = arriving.join().unwrap();
        other.send(&message(sent)).unwrap();
        expect(&mut subscriber, sent);
        other.close();
        ends(&mut subscriber, &Reason::Closed);
    }
    let mut leaving = Leaving::start(&scene, Comes::Awaited);
    leaving.converse();
    leaving.publisher.send(&message(leaving.sent)).unwrap();
    leaving.child.tell(&());
    leaving.publisher.depart().unwrap();
    assert_eq!(leaving.child.hear::<u64>(), leaving.sent + 1);
    leaving.child.kill_and_reap();
    expect(&mut leaving.subscriber, leaving.sent);
    ends(&mut leaving.subscriber, &Reason::Died);
}

/// One that is stopped holds nobody up, unless it is departed to, which is not done for 5 s (hence all steps at once). When it goes on,
/// so does the move.
#[test]
fn a_successor_that_is_stopped() {
    let scene = Scene::new();
    let all = COMES.map(|step| Leaving::start(&scene, step));
    thread::scope(|scope| {
        for leaving in all {
            scope.spawn(move || stopped(leaving));
        }
    });
}

fn stopped(mut leaving: Leaving) {
    leaving.child.stop();
    leaving.converse();
    let step = leaving.step;
    let awaits = leaving.step == Comes::Awaited;
    // What it has said may not have been heard.
    let short = Duration::from_millis(if awaits { 60_000 } else { 5 });
    let awaited = leaving.publisher.wait_until_awaited(short).unwrap();
    assert_eq!(awaited, awaits, "{step:?}");
    if !awaits {
        let stays = leaving.publisher.depart().unwrap_err();
        alive();
        assert!(matches!(stays.error, Error::Stays { .. }), "{stays}");
        assert!(stays.to_string().contains("not been ready"), "{stays}");
        leaving.publisher = stays.publisher.unwrap();
        leaving.converse();
        leaving.child.go_on();
        leaving.child.tell(&());
        assert!(leaving.publisher.wait_until_awaited(PATIENCE).unwrap());
        leaving.converse();
    }
    let Leaving {
        publisher,
        mut subscriber,
        child,
        sent,
        ..
    } = leaving;
    publisher.depart().unwrap();
    let empty = subscriber.recv_timeout(Duration::from_millis(5)).map(drop);
    assert!(
        matches!(empty, Err(RecvTimeoutError::TimedOut)),
        "{step:?}: {empty:?}"
    );
    if awaits {
        child.go_on();
        child.tell(&());
    }
    assert_eq!(child.hear::<u64>(), sent, "{step:?}");
    child.kill_and_reap();
    ends(&mut subscriber, &Reason::Died);
}

// ---- the one before ----

/// How far it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Goes {
    /// It has said its version,
    Opened,
    /// what subscribers go by,
    Agreed,
    /// and who they are.
    Introduced,
    /// It has told the subscriber of the other's ring,
    Told,
    /// and the other what is on its way.
    Going,
    /// Its ring ends, and goes on in the other's,
    Switched,
    /// to whom it has said so.
    Departed,
}

const GOES: [Goes; 7] = [
    Goes::Opened,
    Goes::Agreed,
    Goes::Introduced,
    Goes::Told,
    Goes::Going,
    Goes::Switched,
    Goes::Departed,
];

/// Bytes of a message, with its header, in the ring.
const RECORD: u64 = 16;

/// Has a subscriber, sends one message to it, and gets that far. If its successor is gone before its turn, it sends another. It says
/// whether it has got that far, and once it goes on, that it is done.
pub(crate) fn predecessor(role: &Role) {
    let (subscriber, successor, until): (Link, Link, Goes) = role.hear();
    subscriber.send(&Opening { version: VERSION }).unwrap();
    let _: Opening = subscriber.recv_timeout(PATIENCE).unwrap();
    let greeting: Greeting = subscriber.recv_timeout(PATIENCE).unwrap();
    let bell = UnixStream::from(OwnedFd::from(greeting.doorbell.socket.unwrap()));
    let (mut ring, descriptor) = Shared::create("by-hand", page_size(), page_size()).unwrap();
    let welcome = Welcome::new(descriptor.into(), page_size() as u64);
    subscriber.send(&Answer::Welcome(welcome)).unwrap();
    send(&mut ring, &bell, 0);
    let mut reached = false;
    let mut halt = |at| {
        if at == until {
            reached = true;
            role.tell(&true);
            role.hear::<()>();
        }
    };
    let page = greeting.page;
    if let Err(error) = depart(&mut halt, &subscriber, &successor, page, &bell, &mut ring) {
        assert!(error.is_disconnected(), "{error}");
        if !reached {
            return role.tell(&false);
        }
        send(&mut ring, &bell, 1);
    }
    role.tell(&());
    role.hear::<()>();
}

fn send(ring: &mut Shared, mut bell: &UnixStream, number: u64) {
    ring.write(number * RECORD, 8, &message(number));
    ring.store_release(number * RECORD, header(RECORD, 8));
    bell.write_all(&[1]).unwrap();
}

/// Unless the successor is gone.
fn depart(
    halt: &mut impl FnMut(Goes),
    subscriber: &Link,
    successor: &Link,
    page: Fd,
    mut bell: &UnixStream,
    ring: &mut Shared,
) -> Result<(), LinkError> {
    fn hear<T: DeserializeOwned>(successor: &Link) -> Result<T, LinkError> {
        successor.recv_timeout(PATIENCE)
    }
    successor.send(&Opening { version: VERSION })?;
    halt(Goes::Opened);
    let Says::Carries(carries) = bytes() else {
        unreachable!("it does");
    };
    successor.send(&Hands::Terms {
        capacity: page_size() as u64,
        home: 1,
        carries,
        max_attachments: 16,
        trusts: false,
        to_receiver: false,
    })?;
    halt(Goes::Agreed);
    hear::<Opening>(successor)?;
    hear::<Says>(successor)?;
    let Says::Ring(memory) = hear(successor)? else {
        panic!("expected a ring");
    };
    let copy = |fd: std::io::Result<OwnedFd>| Fd::from(fd.unwrap());
    let source = 3;
    successor.send(&Hands::Subscriber {
        source,
        link: copy(std::os::fd::AsFd::as_fd(subscriber).try_clone_to_owned()),
        page,
        doorbell: Some((copy(bell.try_clone().map(OwnedFd::from)), false)),
        process: None,
        overflow: Overflow::Block,
        start: 0,
        sequence: 0,
        out: None,
    })?;
    halt(Goes::Introduced);
    let Says::Knows(3, doorbell) = hear(successor)? else {
        panic!("expected that it knows the subscriber");
    };
    subscriber.send(&Notice::Home {
        id: 1,
        memory,
        doorbell,
    })?;
    halt(Goes::Told);
    successor.send(&Hands::Going {
        source,
        sent: 0,
        taken: 0,
        counts: vec![],
    })?;
    halt(Goes::Going);
    // It is there, or has it said that it is not?
    match successor.try_recv::<Says>() {
        Err(LinkError::WouldBlock) => {}
        Err(error) => return Err(error),
        Ok(says) => panic!("{says:?}"),
    }
    ring.store_release(RECORD, switch(1));
    bell.write_all(&[1]).unwrap();
    halt(Goes::Switched);
    // From here on there is no way back.
    let _ = successor.send(&Hands::Departs(Place {
        position: RECORD,
        sequence: 1,
        chunks: 0,
        segments: 0,
        rings: 2,
        tag: 0,
    }));
    halt(Goes::Departed);
    Ok(())
}

/// A publisher that moves here, and gets that far, and its subscriber, which has its message.
fn arriving(scene: &Scene, step: Goes) -> (Child, Subscriber, PublisherTicket) {
    let (ours, theirs) = Link::pair().unwrap();
    let (link, ticket) = Link::pair().unwrap();
    let orders = (theirs, link, step);
    let child = scene.spawn("predecessor by hand", &orders);
    drop(orders);
    let builder = Subscriber::builder().timeout(PATIENCE);
    let mut subscriber = builder.over(ours).unwrap();
    expect(&mut subscriber, 0);
    let (to, from) = Link::pair().unwrap();
    to.send(&ticket).unwrap();
    drop(ticket);
    (child, subscriber, from.adopting().recv().unwrap())
}

/// One that is killed is a publisher that has died, unless it has said its last word: then nobody notices.
#[test]
fn a_predecessor_that_is_killed() {
    let scene = Scene::new();
    for step in GOES {
        let (child, mut subscriber, ticket) = arriving(&scene, step);
        let arrives = thread::spawn(move || {
            let builder = Publisher::builder().timeout(PATIENCE);
            builder.arrive(ticket)
        });
        assert!(child.hear::<bool>());
        child.kill_and_reap();
        let arrived = arrives.join().unwrap();
        if step < Goes::Departed {
            let error = arrived.unwrap_err();
            assert!(matches!(error, Error::NotHandedOver), "{step:?}: {error}");
            ends(&mut subscriber, &Reason::Died);
        } else {
            let mut publisher = arrived.unwrap();
            publisher.send(&message(1)).unwrap();
            expect(&mut subscriber, 1);
            publisher.close();
            ends(&mut subscriber, &Reason::Closed);
        }
    }
}

/// One that is stopped is waited for as long as its successor is told to; then it stays, unless it has ended its ring (then nobody has the
/// lane, and both are told), or said its last word (then nobody notices).
#[test]
fn a_predecessor_that_is_stopped() {
    let scene = Scene::new();
    for step in GOES {
        let mut timeout = Duration::from_millis(50);
        // On a busy machine it is not as far as that in time.
        while !is_stopped(&scene, step, timeout) {
            timeout *= 2;
        }
    }
}

/// False if its successor's time was over before it had got so far.
fn is_stopped(scene: &Scene, step: Goes, timeout: Duration) -> bool {
    let (child, mut subscriber, ticket) = arriving(scene, step);
    let departed = step == Goes::Departed;
    let timeout = if departed { PATIENCE } else { timeout };
    let arrives = thread::spawn(move || Publisher::builder().timeout(timeout).arrive(ticket));
    if !child.hear::<bool>() {
        child.finish();
        arrives.join().unwrap().unwrap_err();
        return false;
    }
    child.stop();
    let arrived = arrives.join().unwrap();
    if departed {
        let mut publisher = arrived.unwrap();
        for number in 1..10 {
            publisher.send(&message(number)).unwrap();
            expect(&mut subscriber, number);
        }
        child.go_on();
        child.kill_and_reap();
        publisher.send(&message(10)).unwrap();
        expect(&mut subscriber, 10);
        publisher.close();
        ends(&mut subscriber, &Reason::Closed);
        return true;
    }
    let error = arrived.unwrap_err();
    assert!(
        matches!(error, Error::NotDeparted { .. }),
        "{step:?}: {error}"
    );
    let empty = subscriber.recv_timeout(Duration::from_millis(2)).map(drop);
    assert!(
        matches!(empty, Err(RecvTimeoutError::TimedOut)),
        "{step:?}: {empty:?}"
    );
    child.go_on();
    child.tell(&());
    child.hear::<()>();
    if step < Goes::Switched {
        expect(&mut subscriber, 1);
    }
    child.kill_and_reap();
    ends(&mut subscriber, &Reason::Died);
    true
}

//! Receivers that move while somebody dies, is stopped, or means harm.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use memlane::{
    Address, Error, Link, Publisher, Receiver, ReceiverTicket, RecvTimeoutError, Remains,
    SendTimeoutError, Sender, Subscriber, TryRecvError,
};
use memlane_region::{Shared, page_size};
use memlane_tests::{
    Child, Dice, PATIENCE, Role, Scene, alive, check, departing, fill, play, wait_until,
    wire::{Greeting, Opening, VERSION, Welcome},
};
use memlane_transport::Fd;
use serde::{Deserialize, Serialize};

#[test]
fn other_process() {
    play(&[
        ("predecessor", predecessor),
        ("successor", successor),
        ("sender", sender),
    ]);
}

// ---- a receiver, and those who send to it ----

/// Message `number` of a sender.
fn message(name: u64, number: u64) -> [u8; 24] {
    let mut message = [0; 24];
    message[..8].copy_from_slice(&name.to_ne_bytes());
    fill(number, &mut message[8..]);
    message
}

/// The next message of each sender; those that begin here begin anywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ledger(std::collections::BTreeMap<u64, (u64, u64)>);

impl Ledger {
    fn note(&mut self, message: &[u8]) {
        let name = u64::from_ne_bytes(message[..8].try_into().unwrap());
        let number = memlane_tests::number(&message[8..]);
        let (_, next) = self.0.entry(name).or_insert((number, number));
        check(*next, &message[8..]);
        *next += 1;
    }

    fn next(&self, name: u64) -> Option<u64> {
        Some(self.0.get(&name)?.1)
    }

    fn first(&self, name: u64) -> Option<u64> {
        Some(self.0.get(&name)?.0)
    }

    /// Receives what there is.
    fn empty(&mut self, receiver: &mut Receiver) {
        while let Ok(message) = receiver.try_recv() {
            self.note(&message.to_vec());
        }
    }

    fn receive_until(&mut self, receiver: &mut Receiver, enough: impl Fn(&Ledger) -> bool) {
        while !enough(self) {
            self.note(&receiver.recv_timeout(PATIENCE).unwrap().to_vec());
        }
    }
}

/// A sender on a thread of its own, which ends when its receiver is gone, or it is told to stop.
struct Stream {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, bool)>,
}

impl Stream {
    fn start(mut sender: Sender, name: u64) -> Stream {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                match sender.send_timeout(&message(name, number), PATIENCE) {
                    Ok(()) => number += 1,
                    Err(SendTimeoutError::Disconnected) => return (number, false),
                    Err(error) => panic!("{name}, {number}: {error}"),
                }
                alive();
                std::thread::sleep(Duration::from_micros(20));
            }
            (number, true)
        });
        Stream { stop, thread }
    }

    /// How many it has sent, and whether it still had a receiver.
    fn stop(self) -> (u64, bool) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn connect(address: &Address) -> Sender {
    let builder = Publisher::builder().ring_bytes(4096);
    builder.connect_to(address).unwrap()
}

/// A receiver with so many senders, all in this process.
fn queue(address: Option<&Address>, senders: usize) -> (Receiver, Vec<Sender>) {
    let builder = Subscriber::builder();
    let mut receiver = match address {
        Some(address) => builder.bind_to(address).unwrap(),
        None => builder.unbound().unwrap(),
    };
    let links: Vec<_> = (0..senders)
        .map(|_| {
            let (ours, theirs) = Link::pair().unwrap();
            receiver.attach(ours).unwrap();
            theirs
        })
        .collect();
    let connecting = std::thread::spawn(|| {
        let over = |link| Publisher::builder().ring_bytes(4096).over(link).unwrap();
        links.into_iter().map(over).collect::<Vec<_>>()
    });
    wait_until("all are there", || {
        assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
        receiver.senders() == senders
    });
    (receiver, connecting.join().unwrap())
}

/// Moves to this same process, the way it goes between two.
fn arrive(ticket: ReceiverTicket) -> JoinHandle<Result<Receiver, Error>> {
    let (to, from) = Link::pair().unwrap();
    to.send(&ticket).unwrap();
    drop(ticket);
    std::thread::spawn(move || {
        let ticket: ReceiverTicket = from.adopting().recv().unwrap();
        let builder = Subscriber::builder().timeout(PATIENCE);
        builder.arrive_receiver(ticket)
    })
}

/// Departs while its successor goes on, until no more lanes are left than are to stay, whatever time that takes. The successor, and
/// what is left.
fn depart(
    receiver: Receiver,
    arrives: impl FnOnce() -> Receiver,
    ledger: &mut Ledger,
    stay: usize,
) -> (Receiver, Option<Box<Remains<Receiver>>>) {
    let begun = Instant::now();
    let mut goes_on = |successor: &mut Receiver| ledger.empty(successor);
    let mut moved = departing(receiver, Receiver::depart, arrives, &mut goes_on);
    loop {
        match moved {
            (successor, Ok(())) => return (successor, None),
            (successor, Err(remains)) if remains.end.senders() <= stay => {
                return (successor, Some(remains));
            }
            (successor, Err(remains)) => {
                assert!(begun.elapsed() < PATIENCE, "{remains}");
                moved = departing(remains.end, Receiver::depart, || successor, &mut goes_on);
            }
        }
    }
}

// ---- killed ----

/// Lets senders in, and moves to whoever is at the other end of a link, unless it is killed before.
fn predecessor(role: &Role) {
    let (address, senders, to): (String, usize, Link) = role.hear();
    let address: Address = address.parse().unwrap();
    let mut receiver = Subscriber::builder().bind_to(&address).unwrap();
    role.tell(&());
    let mut ledger = Ledger::default();
    while receiver.senders() < senders {
        if let Ok(message) = receiver.recv_timeout(Duration::from_millis(1)) {
            ledger.note(&message.to_vec());
        }
    }
    let mut dice = Dice::new();
    for _ in 0..dice.below(100) {
        ledger.note(&receiver.recv().unwrap().to_vec());
    }
    let ticket = receiver.ticket().unwrap();
    role.tell(&());
    // The other may have been killed by now.
    let _ = to.send(&ticket);
    drop(ticket);
    if dice.below(2) == 0 {
        loop {
            match receiver.is_awaited() {
                Ok(true) | Err(Error::Stays { .. }) => break,
                Ok(false) => ledger.note(&receiver.recv().unwrap().to_vec()),
                Err(error) => panic!("{error}"),
            }
        }
    }
    let mut left = loop {
        match receiver.depart() {
            Ok(()) => break None,
            Err(remains) => {
                receiver = remains.end;
                ledger.empty(&mut receiver);
                let why = remains.error.to_string();
                if why.contains("gone") || why.contains("no ticket") {
                    break Some(receiver);
                }
            }
        }
    };
    role.tell(&(left.is_none(), ledger.clone()));
    // Those it has kept it goes on with, until it has received what had been sent when it is told to stop.
    if let Some(receiver) = &mut left {
        while role.has_said::<()>().is_none() {
            alive();
            if let Ok(message) = receiver.recv_timeout(Duration::from_millis(1)) {
                ledger.note(&message.to_vec());
            }
        }
        ledger.empty(receiver);
    } else {
        let () = role.hear();
    }
    role.tell(&ledger);
}

/// Takes the place of a predecessor, and receives until it is told to stop.
fn successor(role: &Role) {
    let from: Link = role.hear();
    role.tell(&());
    let builder = Subscriber::builder().timeout(PATIENCE);
    // Or it was killed before.
    let receiver = match from.adopting().recv::<ReceiverTicket>() {
        Ok(ticket) => builder.arrive_receiver(ticket).ok(),
        Err(_) => None,
    };
    role.tell(&receiver.is_some());
    let mut ledger = Ledger::default();
    let Some(mut receiver) = receiver else {
        return role.tell(&ledger);
    };
    let mut over = false;
    loop {
        match receiver.recv_timeout(Duration::from_millis(10)) {
            Ok(message) => ledger.note(&message.to_vec()),
            Err(RecvTimeoutError::TimedOut) if over => break,
            Err(RecvTimeoutError::TimedOut) => over = role.has_said::<()>().is_some(),
            Err(error) => panic!("{error}"),
        }
        alive();
    }
    role.tell(&ledger);
}

const SENDERS: usize = 3;

/// Whoever is killed, and whenever: each sender's messages come in order, at one place after the other, and nobody hangs. Whose
/// receiver has died with its lane is told so, and can connect again.
#[test]
fn killed_at_any_moment() {
    let scene = Scene::new();
    let mut dice = Dice::new();
    let (mut moved, mut ended) = (0, 0);
    for round in 0..30 {
        let address = scene.address(&format!("jobs-{round}"));
        let (to, from) = Link::pair().unwrap();
        let orders = (address.to_string(), SENDERS, to);
        let predecessor = scene.spawn("predecessor", &orders);
        let successor = scene.spawn("successor", &from);
        drop((orders, from));
        let () = predecessor.hear();
        let connect = |name| Stream::start(connect(&address), name);
        let streams: Vec<_> = (0..SENDERS as u64).map(connect).collect();
        let () = successor.hear();
        let () = predecessor.hear();
        dice.dally(300_000);
        let (old, new);
        if round % 2 == 0 {
            predecessor.kill();
            let said: Option<(bool, Ledger)> = predecessor.hear_if_alive();
            predecessor.kill_and_reap();
            let arrived: bool = successor.hear();
            if arrived {
                // It is at the name.
                let mut sender = connect_again(&address);
                sender.send(&message(99, 0)).unwrap();
            }
            for stream in &streams {
                wait_until("it gets on, or hears that it does not", || {
                    stream.thread.is_finished() || arrived
                });
            }
            let counts: Vec<_> = streams.into_iter().map(Stream::stop).collect();
            if arrived {
                successor.tell(&());
            }
            new = successor.hear::<Ledger>();
            successor.finish();
            if arrived {
                assert_eq!(new.next(99), Some(1));
            }
            for (name, (sent, alive)) in counts.iter().enumerate() {
                let name = name as u64;
                if let (Some((true, old)), true) = (&said, *alive) {
                    // It was left in order: not one is missing, or comes twice.
                    assert_eq!(
                        new.first(name).unwrap_or(*sent),
                        old.next(name).unwrap_or(0)
                    );
                    moved += 1;
                }
                match alive {
                    true => assert_eq!(new.next(name).unwrap_or(*sent), *sent),
                    false => ended += 1,
                }
            }
        } else {
            successor.kill();
            let (departed, _): (bool, Ledger) = predecessor.hear();
            successor.kill_and_reap();
            // Those who have their receiver still get on, and it has its name.
            let mut again = None;
            if !departed {
                let mut sender = connect_again(&address);
                sender.send(&message(99, 0)).unwrap();
                again = Some(sender);
            }
            let counts: Vec<_> = streams.into_iter().map(Stream::stop).collect();
            predecessor.tell(&());
            old = predecessor.hear::<Ledger>();
            drop(again);
            predecessor.finish();
            for (name, (sent, alive)) in counts.iter().enumerate() {
                let name = name as u64;
                match alive {
                    // Or its lane has gone with the other, and it has not noticed.
                    true if !departed => assert!(old.next(name).unwrap_or(0) <= *sent),
                    true => moved += 1,
                    false => ended += 1,
                }
            }
            if !departed {
                assert_eq!(old.next(99), Some(1));
            }
        }
        // Of one that was killed before there was anybody else.
        let _ = memlane::transport::remove_stale(&address);
    }
    println!("{moved} lanes moved, {ended} ended");
}

/// Connects where there may be nobody for a moment, or one that is just dying.
fn connect_again(address: &Address) -> Sender {
    loop {
        let builder = Publisher::builder().ring_bytes(4096);
        match builder.connect_to(address) {
            Ok(sender) => return sender,
            Err(error) => println!("{error}"),
        }
        alive();
        std::thread::sleep(Duration::from_millis(1));
    }
}

// ---- stopped ----

/// Sends so many at each word.
fn sender(role: &Role) {
    let (address, name): (String, u64) = role.hear();
    let mut sender = connect(&address.parse().unwrap());
    let mut number = 0;
    while let Some(more) = role.hear::<Option<u64>>() {
        for _ in 0..more {
            sender.send(&message(name, number)).unwrap();
            number += 1;
        }
        role.tell(&());
    }
}

struct Sending(Child);

impl Sending {
    fn start(scene: &Scene, address: &Address, name: u64) -> Sending {
        Sending(scene.spawn("sender", &(address.to_string(), name)))
    }

    fn send(&self, messages: u64) {
        self.0.tell(&Some(messages));
        let () = self.0.hear();
    }

    fn finish(self) {
        self.0.tell(&None::<u64>);
        self.0.finish();
    }
}

/// A stopped sender keeps its own lane from moving, and nobody else's; continued, it has lost nothing.
#[test]
fn a_sender_that_is_stopped() {
    let scene = Scene::new();
    let address = scene.address("jobs");
    let mut receiver = Subscriber::builder().bind_to(&address).unwrap();
    let senders: Vec<_> = (0..SENDERS as u64)
        .map(|name| Sending::start(&scene, &address, name))
        .collect();
    let mut ledger = Ledger::default();
    wait_until("all are there", || {
        ledger.empty(&mut receiver);
        receiver.senders() == SENDERS
    });
    senders.iter().for_each(|sender| sender.send(10));
    ledger.receive_until(&mut receiver, |ledger| ledger.next(0) == Some(5));

    // Before it has given a ticket.
    senders[1].0.stop();
    let arriving = arrive(receiver.ticket().unwrap());
    let arrives = || arriving.join().unwrap().unwrap();
    let (mut successor, remains) = depart(receiver, arrives, &mut ledger, 1);
    let remains = remains.expect("the stopped one's");
    assert!(matches!(remains.error, Error::Stays { .. }), "{remains}");
    let mut rest = remains.end;
    assert_eq!(rest.senders(), 1);
    for name in [0, 2] {
        senders[name].send(10);
        ledger.receive_until(&mut successor, |ledger| {
            ledger.next(name as u64) == Some(20)
        });
    }
    // What it has sent is here, and nowhere else.
    ledger.receive_until(&mut rest, |ledger| ledger.next(1) == Some(10));
    assert!(matches!(rest.try_recv(), Err(TryRecvError::Empty)));
    // New ones are let in there.
    let again = address.clone();
    let connecting = std::thread::spawn(move || connect(&again));
    wait_until("another is let in", || {
        ledger.empty(&mut successor);
        successor.senders() == 3
    });
    drop(connecting.join().unwrap());
    senders[1].0.go_on();
    senders[1].send(7);
    ledger.empty(&mut rest);
    let (mut successor, remains) = depart(rest, || successor, &mut ledger, 0);
    assert!(remains.is_none());
    senders[1].send(3);
    ledger.receive_until(&mut successor, |ledger| ledger.next(1) == Some(20));

    // With a ticket that has been passed on.
    let mut receiver = successor;
    let arriving = arrive(receiver.ticket().unwrap());
    assert!(receiver.wait_until_awaited(PATIENCE).unwrap());
    senders[2].0.stop();
    alive();
    // Nobody reads there before it has done what it was told.
    receiver.depart().unwrap_or_else(|remains| {
        assert_eq!(remains.end.senders(), 0, "{remains}");
    });
    let mut successor = arriving.join().unwrap().unwrap();
    senders[0].send(10);
    ledger.receive_until(&mut successor, |ledger| ledger.next(0) == Some(30));
    senders[2].0.go_on();
    senders[2].send(10);
    ledger.receive_until(&mut successor, |ledger| ledger.next(2) == Some(30));
    senders.into_iter().for_each(Sending::finish);
    wait_until("all have left", || {
        ledger.empty(&mut successor);
        successor.senders() == 0
    });
    assert_eq!(ledger.next(1), Some(20));
}

#[test]
fn an_old_end_that_is_stopped_or_a_new_one() {
    let scene = Scene::new();
    let address = scene.address("jobs");
    let (mut receiver, mut senders) = queue(Some(&address), 2);
    let mut ledger = Ledger::default();
    senders[0].send(&message(0, 0)).unwrap();
    // Nobody departs.
    let ticket = receiver.ticket().unwrap();
    let builder = Subscriber::builder().timeout(Duration::from_millis(50));
    let end = builder.arrive_receiver(ticket);
    assert!(matches!(end, Err(Error::NotDeparted { .. })), "{end:?}");
    let stays = receiver.is_awaited().unwrap_err();
    assert!(stays.to_string().contains("is gone"), "{stays}");
    let remains = receiver.depart().unwrap_err();
    assert!(remains.to_string().contains("no ticket was given"));
    let mut receiver = remains.end;
    ledger.receive_until(&mut receiver, |ledger| ledger.next(0) == Some(1));

    // Nobody comes: a process that is stopped with the ticket on its way.
    let (to, from) = Link::pair().unwrap();
    let child = scene.spawn("successor", &from);
    drop(from);
    let () = child.hear();
    child.stop();
    let ticket = receiver.ticket().unwrap();
    to.send(&ticket).unwrap();
    drop(ticket);
    assert!(
        !receiver
            .wait_until_awaited(Duration::from_millis(10))
            .unwrap()
    );
    senders[1].send(&message(1, 0)).unwrap();
    let remains = receiver.depart().unwrap_err();
    assert!(remains.to_string().contains("nobody has come"), "{remains}");
    let mut receiver = remains.end;
    assert_eq!(receiver.senders(), 2);
    ledger.receive_until(&mut receiver, |ledger| ledger.next(1) == Some(1));
    // Once it is gone, everything is as before, and whoever connects is let in.
    child.kill_and_reap();
    drop(to);
    let mut receiver = receiver.depart().unwrap_err().end;
    let connecting = std::thread::spawn(move || connect(&address));
    wait_until("another is let in", || {
        ledger.empty(&mut receiver);
        receiver.senders() == 3
    });
    senders.push(connecting.join().unwrap());

    // Taken back.
    let arriving = arrive(receiver.ticket().unwrap());
    assert!(receiver.wait_until_awaited(PATIENCE).unwrap());
    receiver.stay();
    assert!(matches!(arriving.join().unwrap(), Err(Error::HungUp)));
    // And then it moves after all.
    let arriving = arrive(receiver.ticket().unwrap());
    let arrives = || arriving.join().unwrap().unwrap();
    let (mut successor, remains) = depart(receiver, arrives, &mut ledger, 0);
    assert!(remains.is_none());
    for (name, sender) in senders.iter_mut().enumerate() {
        sender.send(&message(10 + name as u64, 0)).unwrap();
    }
    ledger.receive_until(&mut successor, |ledger| ledger.0.len() == 5);
}

#[test]
fn a_ticket_of_another_version() {
    let _scene = Scene::new();
    let (to, from) = Link::pair().unwrap();
    let (link, _other) = Link::pair().unwrap();
    #[derive(Serialize)]
    struct Foreign {
        version: u32,
        link: Link,
        listener: Option<()>,
    }
    let (version, listener) = (5, None);
    to.send(&Foreign {
        version,
        link,
        listener,
    })
    .unwrap();
    let ticket: ReceiverTicket = from.adopting().recv().unwrap();
    let error = ticket.arrive().unwrap_err();
    let theirs = matches!(error, Error::Version { theirs: 5, .. });
    assert!(theirs, "{error}");
}

// ---- hostile ----

/// How a sender by hand misbehaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Villainy {
    /// It does not answer.
    Silent,
    /// Its ticket is none.
    NoTicket,
    /// Nobody is behind its ticket.
    DeadTicket,
    /// It says that somebody waits, and does not confirm.
    Lies,
    /// It hangs up when it is asked.
    HangsUp,
    /// It says that there is no move, each time.
    Stays,
}

/// Greets by hand, as a sender that has connected, and misbehaves until it is hung up on.
fn villain(link: Link, villainy: Villainy) {
    let opening = Opening { version: VERSION };
    link.send(&opening).unwrap();
    link.send(&4_u32).unwrap();
    let _: Opening = link.recv().unwrap();
    let _: Greeting = link.recv().unwrap();
    let (_region, ring) = Shared::create("villain", page_size(), page_size()).unwrap();
    let welcome = Welcome::new(Fd::from(ring), page_size() as u64);
    link.send(&(0_u32, welcome)).unwrap();
    let null = Fd::from(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
    while let Ok((8_u32, number)) = link.recv::<(u32, u32)>() {
        let told = match villainy {
            Villainy::Silent => Ok(()),
            Villainy::NoTicket => link.send(&(6_u32, number, &null)),
            Villainy::DeadTicket => {
                let (_dropped, theirs) = Link::pair().unwrap();
                link.send(&(6_u32, number, &theirs))
            }
            Villainy::Lies => {
                let (_mine, theirs) = Link::pair().unwrap();
                let _ = link.send(&(6_u32, number, &theirs));
                let _ = link.send(&(7_u32, number));
                // The last word is not confirmed.
                let _: Result<(u32, u64, u64, u64), _> = link.recv();
                let _: Result<u8, _> = link.recv();
                return;
            }
            Villainy::HangsUp => return,
            Villainy::Stays => link.send(&(9_u32, number, "no")),
        };
        // It may have been hung up on meanwhile.
        if told.is_err() {
            return;
        }
    }
}

/// One who departs before anybody has come, and nobody comes, has its name still.
#[test]
fn a_name_that_nobody_takes() {
    let scene = Scene::new();
    let address = scene.address("queue");
    let (mut receiver, mut senders) = queue(Some(&address), 1);
    let ticket = receiver.ticket().unwrap();
    let remains = receiver.depart().unwrap_err();
    assert!(remains.to_string().contains("in time"), "{remains}");
    let mut receiver = remains.end;
    drop(ticket);
    let arriving = arrive(receiver.ticket().unwrap());
    let arrives = || arriving.join().unwrap().unwrap();
    let mut ledger = Ledger::default();
    let (mut successor, remains) = depart(receiver, arrives, &mut ledger, 0);
    assert!(remains.is_none());
    senders[0].send(&message(0, 0)).unwrap();
    let connecting = std::thread::spawn(move || {
        let mut sender = connect_again(&address);
        sender.send(&message(1, 0)).unwrap();
        sender
    });
    ledger.receive_until(&mut successor, |ledger| {
        ledger.next(0) == Some(1) && ledger.next(1) == Some(1)
    });
    drop(connecting.join().unwrap());
}

#[test]
fn a_hostile_sender_holds_up_nobody_else() {
    let _scene = Scene::new();
    for villainy in [
        Villainy::Silent,
        Villainy::NoTicket,
        Villainy::DeadTicket,
        Villainy::Lies,
        Villainy::HangsUp,
        Villainy::Stays,
    ] {
        let (mut receiver, mut senders) = queue(None, 2);
        let (ours, theirs) = Link::pair().unwrap();
        receiver.attach(ours).unwrap();
        let villain = std::thread::spawn(move || villain(theirs, villainy));
        let mut ledger = Ledger::default();
        wait_until("all are there", || {
            ledger.empty(&mut receiver);
            receiver.senders() == 3
        });
        let mut number = 0;
        let mut send = |senders: &mut Vec<Sender>| {
            for (name, sender) in senders.iter_mut().enumerate() {
                sender.send(&message(name as u64, number)).unwrap();
            }
            number += 1;
        };
        send(&mut senders);
        let arriving = arrive(receiver.ticket().unwrap());
        let arrives = || arriving.join().unwrap().unwrap();
        let gone = matches!(villainy, Villainy::Lies | Villainy::HangsUp);
        let stay = usize::from(!gone);
        let (mut successor, rest) = depart(receiver, arrives, &mut ledger, stay);
        send(&mut senders);
        ledger.receive_until(&mut successor, |ledger| {
            ledger.next(0) == Some(2) && ledger.next(1) == Some(2)
        });
        let left = rest.as_ref().map_or(0, |rest| rest.end.senders());
        assert_eq!(left, stay, "{villainy:?}");
        alive();
        drop(rest);
        drop(successor);
        villain.join().unwrap();
    }
}

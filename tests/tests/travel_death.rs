//! Subscribers that move while somebody dies, or is stopped.

use std::{
    os::fd::OwnedFd,
    thread::{self, JoinHandle},
    time::Duration,
};

use memlane::{Error, Link, Publisher, Reason, RecvError, Subscriber, Ticket, WhenFull};
use memlane_region::{Shared, page_size};
use memlane_tests::{
    Child, Dice, PATIENCE, Role, Scene, Stream, alive, fill, number, play, unbound, wait_until,
    wire::{Greeting, Opening, VERSION, Welcome},
};
use memlane_transport::{Error as LinkError, Fd};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

#[test]
fn other_process() {
    play(&[
        ("predecessor", predecessor),
        ("successor", successor),
        ("publisher", publisher),
    ]);
}

/// What passes between those who move.
#[derive(Debug, Serialize, Deserialize)]
struct Pass {
    ticket: Ticket,
}

/// Subscribes, and moves to whoever is at the other end of a link, unless it is killed before.
fn predecessor(role: &Role) {
    let (link, to): (Link, Link) = role.hear();
    let mut subscriber = Subscriber::builder().over(link).unwrap();
    let mut dice = Dice::new();
    let first = number(&subscriber.recv().unwrap().to_vec());
    let mut next = first + 1;
    let receive = |subscriber: &mut Subscriber, next: &mut u64, messages: u64| {
        for _ in 0..messages {
            assert_eq!(number(&subscriber.recv().unwrap().to_vec()), *next);
            *next += 1;
        }
    };
    receive(&mut subscriber, &mut next, dice.below(100));
    let ticket = subscriber.ticket().unwrap();
    role.tell(&());
    // The other may have been killed by now; then the ticket is gone, too.
    let _ = to.send(&Pass { ticket });
    let departed = match dice.below(2) {
        0 => Some(subscriber.depart()),
        _ => loop {
            match subscriber.is_awaited() {
                Ok(true) => break Some(subscriber.depart()),
                Ok(false) => receive(&mut subscriber, &mut next, 1),
                Err(Error::Stays { .. }) => break None,
                Err(error) => panic!("{error}"),
            }
        },
    };
    if let Some(Ok(())) = departed {
        role.tell(&Some(next));
    } else {
        role.tell(&None::<u64>);
    }
    let () = role.hear();
    unreachable!("it is killed");
}

/// Takes the place of a predecessor, and says where it begins; receives until the publisher closes.
fn successor(role: &Role) {
    let from: Link = role.hear();
    role.tell(&());
    // Or it was killed before.
    let Ok(Pass { ticket }) = from.recv() else {
        return role.tell(&None::<(u64, u64)>);
    };
    let builder = Subscriber::builder().timeout(PATIENCE);
    let Ok(mut subscriber) = builder.arrive(ticket) else {
        role.tell(&None::<(u64, u64)>);
        return;
    };
    let mut begun = None;
    loop {
        match subscriber.recv() {
            Ok(message) => {
                let number = number(&message.to_vec());
                let (_, next) = begun.get_or_insert((number, number));
                assert_eq!(number, *next);
                *next += 1;
            }
            Err(RecvError::Disconnected { .. }) => break,
            Err(error) => panic!("{error}"),
        }
        alive();
    }
    role.tell(&begun);
}

struct Stage {
    predecessor: Child,
    successor: Child,
    stream: Stream,
}

impl Stage {
    fn set(scene: &Scene) -> Stage {
        let publisher = unbound(4096).unbound().unwrap();
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        let (to, from) = Link::pair().unwrap();
        let predecessor = scene.spawn("predecessor", &(theirs, to));
        let successor = scene.spawn("successor", &from);
        drop(from);
        publisher.wait_for_subscribers(1).unwrap();
        Stage {
            predecessor,
            successor,
            stream: Stream::start(publisher, 100),
        }
    }
}

/// Whoever is killed, and whenever: the publisher goes on, and whoever lives has what it ought to have.
#[test]
fn killed_at_any_moment() {
    let scene = Scene::new();
    let mut dice = Dice::new();
    let (mut moved, mut taken_over, mut stayed) = (0, 0, 0);
    for round in 0..40 {
        let Stage {
            predecessor,
            successor,
            stream,
        } = Stage::set(&scene);
        let () = successor.hear();
        let () = predecessor.hear();
        dice.dally(300_000);
        if round % 2 == 0 {
            predecessor.kill();
            // It may have said where it has stopped before.
            let said: Option<Option<u64>> = predecessor.hear_if_alive();
            predecessor.kill_and_reap();
            // Somebody reads: the other, or nobody has to.
            let goal = stream.sent() + 1000;
            wait_until("the publisher gets on", || stream.sent() > goal);
            drop(stream.stop());
            // It has begun where the other stopped or, if that one was killed, no later.
            let begun: Option<(u64, u64)> = successor.hear();
            match (said.flatten(), begun) {
                (Some(next), begun) => {
                    assert_eq!(begun.map(|(first, _)| first), Some(next));
                    moved += 1;
                }
                (None, begun) => {
                    // With a ticket on its way when its sender died, there was none to take.
                    taken_over += u64::from(begun.is_some());
                }
            }
            successor.finish();
        } else {
            successor.kill();
            let said: Option<u64> = predecessor.hear();
            successor.kill_and_reap();
            match said {
                Some(_) => moved += 1,
                // It is still there, and does not read here.
                None => stayed += 1,
            }
            predecessor.kill_and_reap();
            let goal = stream.sent() + 1000;
            wait_until("the publisher gets on", || stream.sent() > goal);
            let publisher = stream.stop();
            wait_until("nobody is left", || publisher.subscribers() == 0);
        }
    }
    println!("{moved} moved, {taken_over} taken over, {stayed} stayed");
}

/// Sends numbers, of 8 bytes each.
fn send(publisher: &mut Publisher, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let mut message = [0; 8];
        fill(number, &mut message);
        publisher.send(&message).unwrap();
    }
}

#[track_caller]
fn expect(subscriber: &mut Subscriber, numbers: std::ops::Range<u64>) {
    for expected in numbers {
        let message = subscriber.recv_timeout(PATIENCE).unwrap().to_vec();
        assert_eq!(number(&message), expected);
    }
}

fn lane() -> (Publisher, Subscriber) {
    let (ours, theirs) = Link::pair().unwrap();
    let publisher = unbound(4096).unbound().unwrap();
    publisher.attach(ours).unwrap();
    (publisher, Subscriber::builder().over(theirs).unwrap())
}

fn wait_until_it_stays(subscriber: &mut Subscriber) -> String {
    loop {
        match subscriber.is_awaited() {
            Ok(awaited) => assert!(!awaited),
            Err(error) => return error.to_string(),
        }
    }
}

#[test]
fn who_has_given_a_ticket_in_vain_stays() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = lane();
    send(&mut publisher, 0..20);
    expect(&mut subscriber, 0..5);
    let no_ticket = subscriber.depart().unwrap_err();
    assert!(no_ticket.to_string().contains("no ticket was given"));
    let mut subscriber = no_ticket.subscriber.unwrap();
    expect(&mut subscriber, 5..6);
    drop(subscriber.ticket().unwrap());
    let stays = wait_until_it_stays(&mut subscriber);
    assert!(stays.contains("ticket has hung up"), "{stays}");
    let void = subscriber.depart().unwrap_err();
    let mut subscriber = void.subscriber.unwrap();
    expect(&mut subscriber, 6..7);
    // Another ticket makes the first one void, and a third one both.
    let first = subscriber.ticket().unwrap();
    let second = subscriber.ticket().unwrap();
    assert!(matches!(first.arrive(), Err(Error::HungUp)));
    subscriber.stay().unwrap();
    assert!(matches!(second.arrive(), Err(Error::HungUp)));
    expect(&mut subscriber, 7..8);
    // One that expects something else is refused, and nothing has happened.
    let ticket = subscriber.ticket().unwrap();
    let builder = Subscriber::builder().of::<memlane::Plain<u64>>();
    let refused = builder.arrive(ticket).unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    let stays = wait_until_it_stays(&mut subscriber);
    assert!(stays.contains("refused"), "{stays}");
    expect(&mut subscriber, 8..20);
    assert_eq!(publisher.subscribers(), 1);
    let stats = publisher.stats();
    assert_eq!((stats.moved, stats.evicted, stats.left), (0, 0, 0));
}

/// Whoever keeps a ticket hears nothing by it, and does not keep its taker's place.
#[test]
fn a_copy_of_a_ticket() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = lane();
    send(&mut publisher, 0..20);
    expect(&mut subscriber, 0..5);
    let kept = subscriber.ticket().unwrap();
    let (to, from) = Link::pair().unwrap();
    to.send(&kept).unwrap();
    let ticket: Ticket = from.recv().unwrap();
    subscriber.depart().unwrap();
    let mut successor = ticket.arrive().unwrap();
    expect(&mut successor, 5..10);
    let (_, socket, _): (u32, Fd, Option<String>) = {
        to.send(&kept).unwrap();
        from.recv().unwrap()
    };
    let copy = Link::from_fd(socket.into()).unwrap();
    assert!(matches!(copy.try_recv::<u8>(), Err(LinkError::WouldBlock)));
    drop(copy);
    drop(successor);
    wait_until("its place is free", || publisher.subscribers() == 0);
    let stats = publisher.stats();
    assert_eq!((stats.moved, stats.evicted, stats.left), (1, 0, 1));
    drop(kept);
}

#[test]
fn a_ticket_of_another_version_and_one_of_nothing() {
    let _scene = Scene::new();
    let (to, from) = Link::pair().unwrap();
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    to.send(&(5_u32, Fd::from(null()), None::<String>)).unwrap();
    let ticket: Ticket = from.recv().unwrap();
    let error = ticket.arrive().unwrap_err();
    let theirs = matches!(error, Error::Version { theirs: 5, .. });
    assert!(theirs, "{error}");
    to.send(&(4_u32, Fd::from(null()), None::<String>)).unwrap();
    let ticket: Ticket = from.recv().unwrap();
    let error = ticket.arrive().unwrap_err().to_string();
    assert!(error.contains("expected a connected"), "{error}");
}

/// What is held stays held, and holds up nobody.
#[test]
fn what_is_held_stays_behind() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let builder = Publisher::builder().ring_bytes(4096).pool_bytes(64 << 10);
    let mut publisher = builder.unbound().unwrap();
    publisher.attach(ours).unwrap();
    let mut subscriber = Subscriber::builder().over(theirs).unwrap();
    publisher.send(&[1; 8000]).unwrap();
    publisher.send(&[2; 8000]).unwrap();
    let held = subscriber.recv().unwrap().hold().unwrap();
    let ticket = subscriber.ticket().unwrap();
    subscriber.depart().unwrap();
    let mut successor = ticket.arrive().unwrap();
    for round in 3..100_u8 {
        assert_eq!(successor.recv().unwrap().to_vec(), [round - 1; 8000]);
        publisher.send(&[round; 8000]).unwrap();
        assert_eq!(held.to_vec(), [1; 8000]);
    }
    assert_eq!(publisher.subscribers(), 2);
    drop(held);
    wait_until("the first one's place is free", || {
        publisher.subscribers() == 1
    });
    assert_eq!(successor.recv().unwrap().to_vec(), [99; 8000]);
    let stats = publisher.stats();
    assert_eq!((stats.moved, stats.evicted, stats.left), (1, 0, 0));
}

/// However often a lane moves while all who had it hold something, it costs its publisher only so much.
#[test]
fn those_who_had_a_lane_and_hold_something_are_counted() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let builder = Publisher::builder().ring_bytes(4096).pool_bytes(1 << 20);
    let mut publisher = builder.unbound().unwrap();
    publisher.attach(ours).unwrap();
    let mut subscriber = Subscriber::builder().over(theirs).unwrap();
    let mut held = Vec::new();
    let refused = loop {
        assert!(held.len() < 30, "there is no end to it");
        publisher.send(&[7; 8000]).unwrap();
        held.push(subscriber.recv().unwrap().hold().unwrap());
        match subscriber.ticket() {
            Ok(ticket) => {
                subscriber.depart().unwrap();
                subscriber = ticket.arrive().unwrap();
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::Stays { .. }), "{refused}");
    assert!(refused.to_string().contains("at most 16"), "{refused}");
    assert_eq!((held.len(), publisher.subscribers()), (17, 17));
    // It goes on, and moves again when some of them are gone.
    drop(held);
    wait_until("their places are free", || publisher.subscribers() == 1);
    let ticket = subscriber.ticket().unwrap();
    subscriber.depart().unwrap();
    let mut successor = ticket.arrive().unwrap();
    publisher.send(&[8; 8000]).unwrap();
    assert_eq!(successor.recv().unwrap().to_vec(), [8; 8000]);
}

/// A publisher that says one thing after the other holds nobody up for longer than they would wait.
#[test]
fn a_publisher_that_does_not_stop_talking() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let villain = std::thread::spawn(move || {
        ours.send(&Opening { version: VERSION }).unwrap();
        let _: Opening = ours.recv().unwrap();
        let _: Greeting = ours.recv().unwrap();
        let (_region, ring) = Shared::create("villain", page_size(), page_size()).unwrap();
        let welcome = Welcome::new(Fd::from(ring), page_size() as u64);
        ours.send(&(0_u32, welcome)).unwrap();
        let talk = || while ours.send(&(7_u32, u32::MAX)).is_ok() {};
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(talk))));
    });
    let mut subscriber = Subscriber::builder().over(theirs).unwrap();
    for _ in 0..20 {
        let awaited = subscriber.wait_until_awaited(Duration::from_millis(2));
        assert!(!awaited.unwrap());
        alive();
    }
    let error = subscriber.ticket().unwrap_err();
    assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
    drop(subscriber);
    villain.join().unwrap();
}

/// Somebody else has copies of the successor's sockets: its process is what counts, before and after it has the lane.
#[test]
fn a_killed_successor_whose_sockets_live_on() {
    let scene = Scene::new();
    for departs in [false, true] {
        let publisher = unbound(4096).unbound().unwrap();
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        let mut subscriber = Subscriber::builder().over(theirs).unwrap();
        let (to, from) = Link::pair().unwrap();
        let successor = scene.spawn("successor", &from);
        drop(from);
        let ticket = subscriber.ticket().unwrap();
        to.send(&Pass { ticket }).unwrap();
        assert!(subscriber.wait_until_awaited(PATIENCE).unwrap());
        let copies = successor.copies_of_its_sockets();
        assert!(!copies.is_empty());
        if departs {
            subscriber.depart().unwrap();
            successor.kill();
            wait_until("its place is free", || publisher.subscribers() == 0);
        } else {
            successor.kill();
            wait_until("nobody waits", || subscriber.is_awaited().is_err());
            assert_eq!(publisher.subscribers(), 1);
        }
        successor.kill_and_reap();
        drop(copies);
    }
}

#[test]
fn a_publisher_that_is_gone() {
    let _scene = Scene::new();
    // Before anything has moved: the rest is received here.
    let (mut publisher, mut subscriber) = lane();
    send(&mut publisher, 0..20);
    expect(&mut subscriber, 0..5);
    let ticket = subscriber.ticket().unwrap();
    drop(publisher);
    assert!(matches!(ticket.arrive(), Err(Error::HungUp)));
    let stays = subscriber.depart().unwrap_err();
    let mut subscriber = stays.subscriber.unwrap();
    expect(&mut subscriber, 5..20);
    assert!(matches!(subscriber.ticket(), Err(Error::HungUp)));
    let end = subscriber.recv().unwrap_err();
    let RecvError::Disconnected { reason } = end else {
        panic!("{end}");
    };
    assert_eq!(reason, Reason::Closed);
    // After that: there.
    let (mut publisher, mut subscriber) = lane();
    send(&mut publisher, 0..20);
    expect(&mut subscriber, 0..5);
    let ticket = subscriber.ticket().unwrap();
    subscriber.depart().unwrap();
    let mut successor = ticket.arrive().unwrap();
    drop(publisher);
    expect(&mut successor, 5..20);
    assert!(matches!(
        successor.recv(),
        Err(RecvError::Disconnected {
            reason: Reason::Closed
        })
    ));
}

/// The place is kept for a ticket, and the publisher waits for whoever has it.
#[test]
fn a_ticket_that_nobody_uses() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = lane();
    send(&mut publisher, 0..10);
    expect(&mut subscriber, 0..5);
    let ticket = subscriber.ticket().unwrap();
    // Dropped is departed.
    drop(subscriber);
    let mut sent = 10;
    while publisher.try_send(&[0; 8]).is_ok() {
        sent += 1;
    }
    assert!(sent < 4096 / 16 + 10);
    assert_eq!(publisher.subscribers(), 1);
    drop(ticket);
    publisher.send(&[0; 8]).unwrap();
    wait_until("its place is free", || publisher.subscribers() == 0);
    assert_eq!(publisher.stats().left, 1);
}

/// In another process: a publisher that sends on demand.
fn publisher(role: &Role) {
    let link: Link = role.hear();
    let mut publisher = unbound(4096).unbound().unwrap();
    publisher.attach(link).unwrap();
    publisher.wait_for_subscribers(1).unwrap();
    let mut next = 0;
    loop {
        let numbers: u64 = role.hear();
        if numbers == 0 {
            break;
        }
        send(&mut publisher, next..next + numbers);
        next += numbers;
        role.tell(&());
    }
}

#[test]
fn a_publisher_that_is_stopped_or_killed() {
    let scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let child = scene.spawn("publisher", &theirs);
    drop(theirs);
    let mut subscriber = Subscriber::builder().over(ours).unwrap();
    child.tell(&20_u64);
    let () = child.hear();
    expect(&mut subscriber, 0..5);
    let first = subscriber.ticket().unwrap();
    child.stop();
    alive();
    assert!(matches!(subscriber.ticket(), Err(Error::NoAnswer { .. })));
    expect(&mut subscriber, 5..6);
    let builder = Subscriber::builder().timeout(Duration::from_millis(100));
    let end = builder.arrive(first);
    assert!(matches!(end, Err(Error::NoAnswer { .. })), "{end:?}");
    child.signal(Signal::CONT);
    // The ticket that was asked for comes late, and is void by now.
    let ticket = subscriber.ticket().unwrap();
    child.tell(&5_u64);
    let () = child.hear();
    expect(&mut subscriber, 6..10);
    let arriving = std::thread::spawn(|| ticket.arrive());
    assert!(subscriber.wait_until_awaited(PATIENCE).unwrap());
    expect(&mut subscriber, 10..11);
    subscriber.depart().unwrap();
    let mut subscriber = arriving.join().unwrap().unwrap();
    expect(&mut subscriber, 11..12);
    child.kill();
    child.kill_and_reap();
    expect(&mut subscriber, 12..25);
    assert!(matches!(
        subscriber.recv(),
        Err(RecvError::Disconnected {
            reason: Reason::Died
        })
    ));
}

/// What is asked of a publisher that answers late makes void what there was: nobody has the second ticket, and nobody can have it.
#[test]
fn a_publisher_that_answers_late() {
    let _scene = Scene::new();
    let mut publisher = unbound(4096).driven().unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let joining = thread::spawn(|| Subscriber::builder().over(theirs).unwrap());
    let mut subscriber = driving(&mut publisher, joining);
    let asking = thread::spawn(|| (subscriber.ticket().unwrap(), subscriber));
    let (first, mut subscriber) = driving(&mut publisher, asking);
    assert!(matches!(subscriber.ticket(), Err(Error::NoAnswer { .. })));
    alive();
    let departing = thread::spawn(|| subscriber.depart());
    let stays = driving(&mut publisher, departing).unwrap_err();
    assert!(matches!(stays.error, Error::Stays { .. }), "{stays}");
    let mut subscriber = stays.subscriber.unwrap();
    publisher.send(&1_u64.to_le_bytes()).unwrap();
    assert_eq!(subscriber.recv().unwrap().to_vec(), 1_u64.to_le_bytes());
    let arriving = thread::spawn(|| first.arrive());
    assert!(driving(&mut publisher, arriving).is_err());
}

/// What another thread comes to, which waits for a publisher that a loop of this one's drives meanwhile.
fn driving<T>(publisher: &mut Publisher, acting: JoinHandle<T>) -> T {
    wait_until("it has been answered", || {
        publisher.drive().unwrap();
        acting.is_finished()
    });
    acting.join().unwrap()
}

/// Whoever asks again and again whether to depart is told that there is nobody to depart from.
#[test]
fn nobody_waits_at_a_publisher_that_is_gone() {
    let scene = Scene::new();
    for killed in [false, true] {
        let (ours, theirs) = Link::pair().unwrap();
        let child = scene.spawn("publisher", &theirs);
        drop(theirs);
        let mut subscriber = Subscriber::builder().over(ours).unwrap();
        child.tell(&20_u64);
        let () = child.hear();
        let ticket = subscriber.ticket().unwrap();
        assert!(!subscriber.is_awaited().unwrap());
        match killed {
            true => child.kill_and_reap(),
            false => {
                child.tell(&0_u64);
                child.finish();
            }
        }
        wait_until("it hears", || subscriber.is_awaited().is_err());
        let gone = subscriber.is_awaited();
        assert!(matches!(gone, Err(Error::HungUp)), "{gone:?}");
        expect(&mut subscriber, 0..20);
        drop(ticket);
    }
}

/// A stopped old end keeps its place; a stopped successor does not get one that is not departed from.
#[test]
fn an_old_end_that_does_not_depart() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = lane();
    send(&mut publisher, 0..20);
    expect(&mut subscriber, 0..5);
    let ticket = subscriber.ticket().unwrap();
    let builder = Subscriber::builder().timeout(Duration::from_millis(50));
    let end = builder.arrive(ticket);
    assert!(matches!(end, Err(Error::NotDeparted { .. })), "{end:?}");
    let stays = subscriber.depart().unwrap_err();
    assert!(matches!(stays.error, Error::Stays { .. }), "{stays}");
    let mut subscriber = stays.subscriber.unwrap();
    expect(&mut subscriber, 5..20);
    // In a task.
    let ticket = subscriber.ticket().unwrap();
    let builder = Subscriber::builder();
    let connecting = builder.begin_arrival(ticket).unwrap();
    assert!(subscriber.wait_until_awaited(PATIENCE).unwrap());
    send(&mut publisher, 20..22);
    expect(&mut subscriber, 20..21);
    subscriber.depart().unwrap();
    let received = memlane_tests::block_on(async {
        let mut subscriber = connecting.finish().await.unwrap();
        number(&subscriber.recv().await.unwrap().to_vec())
    });
    assert_eq!(received, 21);
}

/// Whoever has a ticket and does not use it is no more waited for than one that does not read.
#[test]
fn a_ticket_that_nobody_uses_is_dropped() {
    let _scene = Scene::new();
    for departs in [false, true] {
        let (ours, theirs) = Link::pair().unwrap();
        let at_once = WhenFull::Disconnect {
            after: Duration::ZERO,
        };
        let mut publisher = unbound(4096).when_full(at_once).unbound().unwrap();
        publisher.attach(ours).unwrap();
        let mut subscriber = Subscriber::builder().over(theirs).unwrap();
        let ticket = subscriber.ticket().unwrap();
        match departs {
            true => subscriber.depart().unwrap(),
            false => drop(subscriber),
        }
        for _ in 0..2000 {
            publisher.send_timeout(&[0; 8], PATIENCE).unwrap();
        }
        assert_eq!(publisher.subscribers(), 0);
        let refused = ticket.arrive().unwrap_err();
        let text = refused.to_string();
        let refused = matches!(refused, Error::Refused { .. } | Error::HungUp);
        assert!(refused, "{text}");
        let stats = publisher.stats();
        let counts = (stats.too_slow, stats.moved, stats.evicted, stats.left);
        assert_eq!(counts, (1, 0, 1, 0));
    }
}

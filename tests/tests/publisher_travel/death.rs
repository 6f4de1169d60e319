//! Publishers that move while somebody dies, or is stopped, or does not play by the rules.

use std::time::Duration;

use memlane::{
    Address, Error, Link, Publisher, PublisherTicket, Subscriber, TryRecvError, Watched,
};
use memlane_tests::{
    Child, Dice, PATIENCE, Role, Scene, alive, check, fill, number, thread_id, unbound,
};
use memlane_transport::remove_stale;
use rustix::{event::epoll, process::Signal};
use serde::{Deserialize, Serialize};

fn send(publisher: &mut Publisher, next: &mut u64, messages: u64) {
    for _ in 0..messages {
        let mut message = [0; 40];
        fill(*next, &mut message);
        publisher.send_timeout(&message, PATIENCE).unwrap();
        *next += 1;
    }
}

/// When a predecessor departs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Departs {
    /// When it is told to.
    Told,
    /// As soon as it can be, over and over if need be; in the midst of messages.
    Soon,
}

/// Binds, says so, and moves to whoever is at the other end of a link, unless it is killed before. What it has sent.
pub(crate) fn predecessor(role: &Role) {
    let (address, to, departs): (String, Link, Departs) = role.hear();
    let address: Address = address.parse().unwrap();
    let mut publisher = unbound(4096).bind_to(&address).unwrap();
    role.tell(&());
    let subscribers: usize = role.hear();
    publisher.wait_for_subscribers(subscribers).unwrap();
    let mut dice = Dice::new();
    let mut next = 0;
    send(&mut publisher, &mut next, dice.below(100));
    to.send(&publisher.ticket().unwrap()).unwrap();
    role.tell(&());
    if departs == Departs::Told {
        let () = role.hear();
    }
    let departed = loop {
        match publisher.is_awaited() {
            Ok(true) => break publisher.depart(),
            Ok(false) => {
                // A subscriber may be stopped.
                let mut message = [0; 40];
                fill(next, &mut message);
                next += u64::from(publisher.try_send(&message).is_ok());
            }
            Err(error) => {
                role.tell(&Err::<u64, String>(error.to_string()));
                break Ok(());
            }
        }
    };
    departed.unwrap();
    let _ = to.send(&next);
    role.tell(&Ok::<u64, String>(next));
    let () = role.hear();
}

/// Goes on, and says where; sends until it is told to stop, or killed.
pub(crate) fn successor(role: &Role) {
    let from: Link = role.hear();
    let from = from.adopting();
    role.tell(&());
    let ticket: PublisherTicket = from.recv().unwrap();
    let arrived = Publisher::builder().timeout(PATIENCE).arrive(ticket);
    let mut publisher = match arrived {
        Ok(publisher) => publisher,
        Err(error) => return role.tell(&Err::<u64, String>(error.to_string())),
    };
    let Ok(mut next) = from.recv::<u64>() else {
        return role.tell(&Err::<u64, String>("where was not said".to_owned()));
    };
    role.tell(&Ok::<u64, String>(next));
    while role.has_said::<()>().is_none() {
        send(&mut publisher, &mut next, 1);
        alive();
    }
    role.tell(&next);
}

/// Receives all there is, in order; how much that was, and the end of it.
pub(crate) fn subscriber(role: &Role) {
    let (address, watched): (String, bool) = role.hear();
    let subscriber = Subscriber::builder().timeout(PATIENCE);
    let mut subscriber = subscriber.connect_to(&address.parse().unwrap()).unwrap();
    role.tell(&thread_id());
    role.tell(&match watched {
        true => receive_watched(Watched::new(subscriber).unwrap()),
        false => receive_all(&mut subscriber),
    });
}

/// The same, in a loop that is told of edges.
fn receive_watched(mut subscriber: Watched<Subscriber>) -> (u64, String) {
    let loops = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let edges = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&loops, &subscriber, epoll::EventData::new_u64(0), edges).unwrap();
    let mut next = 0;
    loop {
        match subscriber.try_recv() {
            Ok(message) => {
                check(next, &message.to_vec());
                next += 1;
            }
            Err(TryRecvError::Empty) => {
                let mut events = [std::mem::MaybeUninit::uninit(); 4];
                epoll::wait(&loops, &mut events, None).unwrap();
                alive();
            }
            Err(error) => return (next, error.to_string()),
        }
    }
}

fn receive_all(subscriber: &mut Subscriber) -> (u64, String) {
    let mut next = 0;
    loop {
        match subscriber.recv_timeout(PATIENCE) {
            Ok(message) => {
                let message = message.to_vec();
                check(next, &message);
                next += 1;
            }
            Err(error) => return (next, error.to_string()),
        }
        alive();
    }
}

/// Two that move, and two that subscribe by name, so that they watch the process that was there.
struct Stage {
    predecessor: Child,
    successor: Child,
    subscribers: Vec<(Child, u32)>,
    address: Address,
}

impl Stage {
    fn set(scene: &Scene, departs: Departs) -> Stage {
        let address = scene.address("lane");
        let (to, from) = Link::pair().unwrap();
        let predecessor = scene.spawn("predecessor", &(address.to_string(), to, departs));
        let () = predecessor.hear();
        let successor = scene.spawn("successor", &from);
        let () = successor.hear();
        let subscribers = [false, true].into_iter().map(|watched| {
            let child = scene.spawn("subscriber", &(address.to_string(), watched));
            let thread = child.hear();
            (child, thread)
        });
        let subscribers: Vec<_> = subscribers.collect();
        predecessor.tell(&subscribers.len());
        let () = predecessor.hear();
        Stage {
            predecessor,
            successor,
            subscribers,
            address,
        }
    }

    /// What subscribers have had, which is the same for all, and how it ended.
    fn received(subscribers: Vec<(Child, u32)>) -> (u64, String) {
        let ends: Vec<(u64, String)> = subscribers.iter().map(|(child, _)| child.hear()).collect();
        for (child, _) in subscribers {
            child.finish();
        }
        assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
        ends[0].clone()
    }
}

const DIED: &str = "the publisher has died; what it had committed by then has been received";

#[test]
fn a_successor_that_dies_before_the_switch_changes_nothing() {
    let scene = Scene::new();
    let stage = Stage::set(&scene, Departs::Told);
    stage.successor.kill_and_reap();
    stage.predecessor.tell(&());
    let stays: Result<u64, String> = stage.predecessor.hear();
    assert!(stays.unwrap_err().contains("nobody has its ticket"));
    let sent: u64 = stage.predecessor.hear::<Result<u64, String>>().unwrap();
    stage.predecessor.tell(&());
    stage.predecessor.finish();
    let (received, end) = Stage::received(stage.subscribers);
    assert_eq!(received, sent);
    assert!(!end.contains("died"), "{end}");
}

#[test]
fn a_successor_that_dies_after_the_switch_has_sent_what_it_has() {
    let scene = Scene::new();
    let stage = Stage::set(&scene, Departs::Soon);
    let next: u64 = stage.successor.hear::<Result<u64, String>>().unwrap();
    let sent: u64 = stage.predecessor.hear::<Result<u64, String>>().unwrap();
    assert_eq!(next, sent);
    stage.predecessor.tell(&());
    stage.predecessor.finish();
    std::thread::sleep(Duration::from_millis(20));
    stage.successor.kill_and_reap();
    let (received, end) = Stage::received(stage.subscribers);
    assert!(received >= sent, "{received} of {sent}");
    assert!(end.contains("died"), "{end}");
    let _ = remove_stale(&stage.address);
}

#[test]
fn a_predecessor_that_dies_before_the_switch_is_a_publisher_that_has_died() {
    let scene = Scene::new();
    let stage = Stage::set(&scene, Departs::Told);
    stage.predecessor.kill_and_reap();
    let failed: Result<u64, String> = stage.successor.hear();
    println!("{}", failed.unwrap_err());
    stage.successor.finish();
    let (_, end) = Stage::received(stage.subscribers);
    assert!(end.contains("died"), "{end}");
    let _ = remove_stale(&stage.address);
}

#[test]
fn nobody_notices_that_a_predecessor_is_gone() {
    let scene = Scene::new();
    let stage = Stage::set(&scene, Departs::Soon);
    stage.successor.hear::<Result<u64, String>>().unwrap();
    stage.predecessor.hear::<Result<u64, String>>().unwrap();
    stage.predecessor.kill_and_reap();
    // Those who come find the successor behind the name.
    let mut late = Subscriber::builder().connect_to(&stage.address).unwrap();
    let first = number(&late.recv_timeout(PATIENCE).unwrap().to_vec());
    for next in first + 1..first + 1000 {
        check(next, &late.recv_timeout(PATIENCE).unwrap().to_vec());
    }
    drop(late);
    stage.successor.tell(&());
    let sent: u64 = stage.successor.hear();
    stage.successor.finish();
    let (received, end) = Stage::received(stage.subscribers);
    assert_eq!(received, sent);
    assert!(!end.contains("died"), "{end}");
}

#[test]
fn a_subscriber_that_is_stopped_all_the_while_follows() {
    let scene = Scene::new();
    let stage = Stage::set(&scene, Departs::Told);
    let (stopped, _) = &stage.subscribers[0];
    stopped.stop();
    stage.predecessor.tell(&());
    stage.successor.hear::<Result<u64, String>>().unwrap();
    stage.predecessor.hear::<Result<u64, String>>().unwrap();
    stage.predecessor.kill_and_reap();
    stopped.signal(Signal::CONT);
    std::thread::sleep(Duration::from_millis(20));
    stage.successor.tell(&());
    let sent: u64 = stage.successor.hear();
    stage.successor.finish();
    let (received, end) = Stage::received(stage.subscribers);
    assert_eq!(received, sent);
    assert!(!end.contains("died"), "{end}");
}

#[test]
fn a_stopped_successor_holds_nobody_up() {
    let scene = Scene::new();
    let (mut publisher, mut receiver) = attached();
    let (to, from) = Link::pair().unwrap();
    let child = scene.spawn("successor", &from);
    drop(from);
    let () = child.hear();
    child.stop();
    to.send(&publisher.ticket().unwrap()).unwrap();
    let mut next = 0;
    for _ in 0..100 {
        assert!(!publisher.is_awaited().unwrap());
        send(&mut publisher, &mut next, 1);
        check(next - 1, &receiver.recv().unwrap().to_vec());
    }
    child.signal(Signal::CONT);
    assert!(publisher.wait_until_awaited(PATIENCE).unwrap());
    publisher.depart().unwrap();
    to.send(&next).unwrap();
    assert_eq!(child.hear::<Result<u64, String>>(), Ok(next));
    check(next, &receiver.recv().unwrap().to_vec());
    child.kill_and_reap();
    let rest = loop {
        match receiver.recv() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(rest.to_string(), DIED);
}

#[test]
fn a_stopped_predecessor_stays() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let (to, from) = Link::pair().unwrap();
    let orders = (address.to_string(), to, Departs::Told);
    let predecessor = scene.spawn("predecessor", &orders);
    drop(orders);
    let () = predecessor.hear();
    predecessor.tell(&0_usize);
    let ticket: PublisherTicket = from.adopting().recv().unwrap();
    let () = predecessor.hear();
    predecessor.stop();
    let builder = Publisher::builder().timeout(Duration::from_millis(20));
    let error = builder.arrive(ticket).unwrap_err();
    assert!(matches!(error, Error::NotDeparted { .. }), "{error}");
    predecessor.signal(Signal::CONT);
    predecessor.tell(&());
    let stays: Result<u64, String> = predecessor.hear();
    assert!(stays.unwrap_err().contains("nobody has its ticket"));
    // It is where it was.
    let mut subscriber = Subscriber::builder().connect_to(&address).unwrap();
    predecessor.tell(&());
    predecessor.finish();
    assert!(!receive_all(&mut subscriber).1.contains("died"));
}

/// Whoever is killed whenever: subscribers have a stream without a gap, as far as it goes.
#[test]
fn deaths_at_any_moment() {
    let scene = Scene::new();
    let mut dice = Dice::new();
    let mut outcomes = [0; 4];
    for round in 0..40 {
        alive();
        let stage = Stage::set(&scene, Departs::Soon);
        std::thread::sleep(Duration::from_micros(dice.below(3000)));
        let victim = dice.below(3);
        let mut subscribers = stage.subscribers;
        match victim {
            0 => stage.predecessor.kill(),
            1 => stage.successor.kill(),
            _ => {
                let (killed, _) = subscribers.pop().unwrap();
                killed.kill_and_reap();
            }
        }
        let arrived = stage.successor.hear_if_alive::<Result<u64, String>>();
        let arrived = matches!(arrived, Some(Ok(_)));
        if arrived && victim != 1 {
            stage.successor.tell(&());
            let sent: u64 = stage.successor.hear();
            stage.successor.finish();
            let (received, end) = Stage::received(subscribers);
            assert_eq!(
                (received, end.contains("died")),
                (sent, false),
                "round {round}: {end}"
            );
            outcomes[0] += 1;
        } else if victim == 1 {
            let departed = stage.predecessor.hear::<Result<u64, String>>();
            let sent = match departed {
                Ok(sent) => sent,
                Err(_) => stage.predecessor.hear::<Result<u64, String>>().unwrap(),
            };
            drop(stage.successor);
            stage.predecessor.tell(&());
            let (received, _) = Stage::received(subscribers);
            assert!(received >= sent, "round {round}: {received} of {sent}");
            outcomes[1] += 1;
        } else {
            drop(stage.successor);
            let (_, end) = Stage::received(subscribers);
            assert!(end.contains("died"), "round {round}: {end}");
            outcomes[2] += 1;
        }
        drop(stage.predecessor);
        let _ = remove_stale(&stage.address);
    }
    println!("{outcomes:?}");
}

/// A publisher and a subscriber of this process.
pub(crate) fn attached() -> (Publisher, Subscriber) {
    let publisher = unbound(4096).unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let subscriber = Subscriber::builder().over(theirs).unwrap();
    (publisher, subscriber)
}

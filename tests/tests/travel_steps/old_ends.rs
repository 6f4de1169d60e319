//! The old end of a subscriber's lane.

use std::sync::atomic::Ordering;

use memlane::{Error, Link, Publisher, Subscriber, Ticket};
use memlane_region::{Shared, page_size};
use memlane_tests::{
    Child, PATIENCE, Role, Scene, unbound, wait_until,
    wire::{Answer, Asks, CURSOR, Greeting, Notice, Offer, Opening, VERSION},
};
use serde::{Deserialize, Serialize};

use crate::{FATES, Fate, RECORD, expect, send, send_until_full, successors, wait_for_counts};

/// How far it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Step {
    /// It has asked for a ticket.
    Asked,
    /// It has passed it on.
    Given,
    /// It has said that it receives no more.
    Departed,
}

/// So many messages it has received, and released.
const RECEIVED: u64 = 5;

/// Subscribes, receives, and moves that far; the ticket is its parent's. Once it goes on it says whether it has departed.
pub(crate) fn old_end(role: &Role) {
    let (link, until): (Link, Step) = role.hear();
    link.send(&Opening { version: VERSION }).unwrap();
    let (page, descriptor) = Shared::create("by-hand", page_size(), 0).unwrap();
    let greeting = Greeting::new(descriptor.into(), Offer::default());
    link.send(&greeting).unwrap();
    let opening: Opening = link.recv_timeout(PATIENCE).unwrap();
    assert_eq!(opening.version, VERSION);
    // With the publisher's doorbell, which is not to hang up.
    let Answer::Welcome(_welcome) = link.recv_timeout(PATIENCE).unwrap() else {
        panic!("it is refused");
    };
    role.hear::<()>();
    let position = RECEIVED * RECORD;
    page.word(CURSOR).store(position, Ordering::Release);
    link.send(&Asks::TICKET).unwrap();
    role.halt(Step::Asked, until);
    let given = link.recv_timeout(PATIENCE).unwrap();
    let Notice::Ticket { link: socket, .. } = given else {
        panic!("{given:?}");
    };
    role.tell(&(VERSION, &socket, None::<String>));
    drop(socket);
    role.halt(Step::Given, until);
    link.send(&Asks::departed(position, RECEIVED)).unwrap();
    role.halt(Step::Departed, until);
    loop {
        match link.recv_timeout(PATIENCE).unwrap() {
            Notice::Awaited { .. } => {}
            Notice::Departed => break role.tell(&true),
            Notice::Stays { .. } => break role.tell(&false),
            other => panic!("{other:?}"),
        }
    }
    role.hear::<()>();
}

/// One that is about to move, and its publisher, which has sent ten messages.
fn start(scene: &Scene, step: Step) -> (Publisher, Child) {
    let (ours, theirs) = Link::pair().unwrap();
    let mut publisher = unbound(4096).unbound().unwrap();
    publisher.attach(ours).unwrap();
    let child = scene.spawn("old end", &(&theirs, step));
    drop(theirs);
    publisher.wait_for_subscribers(1).unwrap();
    send(&mut publisher, 0..10);
    child.tell(&());
    (publisher, child)
}

/// Nobody has its ticket: its place is its own, and free when it is gone.
#[test]
fn one_that_falls_before_it_has_a_ticket() {
    let scene = Scene::new();
    for fate in FATES {
        let (mut publisher, child) = start(&scene, Step::Asked);
        child.hear::<()>();
        let mut next = 10;
        if fate == Fate::Stopped {
            child.stop();
            next = send_until_full(&mut publisher, next);
            child.go_on();
            child.tell(&());
            let ticket: Ticket = child.hear();
            assert!(child.hear::<bool>());
            let mut successor = ticket.arrive().unwrap();
            expect(&mut successor, RECEIVED..next);
        }
        child.kill_and_reap();
        send(&mut publisher, next..1000);
        wait_until("its place is free", || publisher.subscribers() == 0);
        wait_for_counts(&publisher, u64::from(fate == Fate::Stopped), 1);
    }
}

/// The successor, there before or not, begins where the old end is: when that is gone, or has said that it departs, whether it runs or
/// not. Not before.
#[test]
fn one_that_falls_after_it_has_passed_its_ticket_on() {
    let scene = Scene::new();
    for step in [Step::Given, Step::Departed] {
        for fate in FATES {
            for before in [true, false] {
                let (mut publisher, child) = start(&scene, step);
                let ticket: Ticket = child.hear();
                child.hear::<()>();
                let short = std::time::Duration::from_millis(20);
                let stays = (step, fate) == (Step::Given, Fate::Stopped);
                let timeout = if stays { short } else { PATIENCE };
                let arrive = move || Subscriber::builder().timeout(timeout).arrive(ticket);
                let mut arrive = Some(arrive);
                let early = before.then(|| std::thread::spawn(arrive.take().unwrap()));
                match fate {
                    Fate::Killed => child.kill(),
                    Fate::Stopped => child.stop(),
                }
                // It may have to wait for that.
                let sending = std::thread::spawn(move || {
                    send(&mut publisher, 10..20);
                    publisher
                });
                let arrived = match early {
                    Some(early) => early.join().unwrap(),
                    None => arrive.take().unwrap()(),
                };
                let mut publisher = sending.join().unwrap();
                let case = format!("{step:?}, {fate:?}, {before}");
                if stays {
                    // On a busy machine its time may have been over before it was welcome.
                    assert!(
                        matches!(
                            arrived,
                            Err(Error::NotDeparted { .. } | Error::NoAnswer { .. })
                        ),
                        "{case}: {arrived:?}"
                    );
                    // It finds that it stays when it goes on.
                    child.go_on();
                    child.tell(&());
                    assert!(!child.hear::<bool>(), "{case}");
                    assert_eq!(publisher.subscribers(), 1);
                    child.kill_and_reap();
                    send(&mut publisher, 20..1000);
                    continue;
                }
                let mut successor = arrived.unwrap();
                expect(&mut successor, RECEIVED..20);
                if fate == Fate::Stopped {
                    child.go_on();
                    child.tell(&());
                    assert!(child.hear::<bool>(), "{case}");
                }
                child.kill_and_reap();
                // It is the successor that is waited for.
                let next = send_until_full(&mut publisher, 20);
                expect(&mut successor, 20..next);
                drop(successor);
                send(&mut publisher, next..1000);
                wait_until("its place is free", || publisher.subscribers() == 0);
                wait_for_counts(&publisher, 1, 1);
            }
        }
    }
}

/// Old and successor are killed, in whatever order: the place is free.
#[test]
fn both_are_killed() {
    let scene = Scene::new();
    for step in [Step::Given, Step::Departed] {
        for other in successors::STEPS {
            for first in [true, false] {
                let (mut publisher, old) = start(&scene, step);
                let ticket: Ticket = old.hear();
                old.hear::<()>();
                let successor = successors::start(&scene, ticket, other);
                let next = send_until_full(&mut publisher, 10);
                let victims = match first {
                    true => [old, successor],
                    false => [successor, old],
                };
                let sending = std::thread::spawn(move || {
                    send(&mut publisher, next..1000);
                    publisher
                });
                victims.into_iter().for_each(Child::kill_and_reap);
                let publisher = sending.join().unwrap();
                wait_until("the place is free", || publisher.subscribers() == 0);
                assert_eq!(publisher.stats().evicted, 0);
            }
        }
    }
}

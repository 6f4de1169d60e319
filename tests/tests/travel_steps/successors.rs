//! The successor of a subscriber.

use memlane::{Error, Link, Subscriber, Ticket};
use memlane_region::{Shared, page_size};
use memlane_tests::{
    Child, PATIENCE, Role, Scene, wait_until,
    wire::{Answer, Greeting, Notice, Offer, Opening, VERSION, arrives},
};
use memlane_transport::Fd;
use serde::{Deserialize, Serialize};

use crate::{FATES, Fate, RECORD, expect, lane, send, send_until_full, wait_for_counts};

/// How far it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// It has the ticket.
    Ticketed,
    /// It has said its version,
    Opened,
    /// where it is answered,
    Arrived,
    /// and what it brings along, and is welcome.
    Welcomed,
}

pub(crate) const STEPS: [Step; 4] = [Step::Ticketed, Step::Opened, Step::Arrived, Step::Welcomed];

/// A ticket, as it is on a link.
pub(crate) type RawTicket = (u32, Fd, Option<String>);

/// Takes a ticket and gets that far; once it goes on, it says how many messages came before its first.
pub(crate) fn successor(role: &Role) {
    let ((version, socket, _), until): (RawTicket, Step) = role.hear();
    assert_eq!(version, VERSION);
    let (mut link, back) = Link::pair().unwrap();
    link.send_over(socket.into()).unwrap();
    let (_page, descriptor) = Shared::create("by-hand", page_size(), 0).unwrap();
    role.halt(Step::Ticketed, until);
    link.send(&Opening { version: VERSION }).unwrap();
    role.halt(Step::Opened, until);
    link.send(&arrives(&back)).unwrap();
    role.halt(Step::Arrived, until);
    let greeting = Greeting::new(descriptor.into(), Offer::default());
    link.send(&greeting).unwrap();
    let opening: Opening = link.recv_timeout(PATIENCE).unwrap();
    assert_eq!(opening.version, VERSION);
    // With the publisher's doorbell, which is not to hang up.
    let Answer::Welcome(_welcome) = link.recv_timeout(PATIENCE).unwrap() else {
        panic!("it is refused");
    };
    role.halt(Step::Welcomed, until);
    let begin = link.recv_timeout(PATIENCE).unwrap();
    let Notice::Begin {
        start, sequence, ..
    } = begin
    else {
        panic!("{begin:?}");
    };
    assert_eq!(start, RECORD * sequence);
    role.tell(&sequence);
    role.hear::<()>();
}

/// Starts one with this ticket, which has come that far when this returns.
pub(crate) fn start(scene: &Scene, ticket: Ticket, step: Step) -> Child {
    let child = scene.spawn("successor", &(&ticket, step));
    drop(ticket);
    child.hear::<()>();
    child
}

/// Before the old end departs: nothing has happened, whoever is killed; and nobody waits for one that is stopped.
#[test]
fn a_successor_that_falls_before_it_is_its_turn() {
    let scene = Scene::new();
    for step in STEPS {
        for fate in FATES {
            let (mut publisher, mut old) = lane();
            send(&mut publisher, 0..10);
            expect(&mut old, 0..5);
            let child = start(&scene, old.ticket().unwrap(), step);
            match fate {
                Fate::Killed => {
                    child.kill_and_reap();
                    let why = loop {
                        match old.is_awaited() {
                            Ok(_) => std::thread::yield_now(),
                            Err(Error::Stays { why }) => break why,
                            Err(error) => panic!("{step:?}: {error}"),
                        }
                    };
                    assert!(why.contains("hung up"), "{step:?}: {why}");
                    let stays = old.depart().unwrap_err();
                    assert!(matches!(stays.error, Error::Stays { .. }), "{stays}");
                    old = stays.subscriber.unwrap();
                    expect(&mut old, 5..10);
                    // Another may come, and get further.
                    let ticket = old.ticket().unwrap();
                    let arriving = std::thread::spawn(move || ticket.arrive().unwrap());
                    old.depart().unwrap();
                    let mut other = arriving.join().unwrap();
                    send(&mut publisher, 10..20);
                    expect(&mut other, 10..20);
                    wait_until("the old one is gone", || publisher.subscribers() == 1);
                    wait_for_counts(&publisher, 1, 0);
                }
                Fate::Stopped => {
                    child.stop();
                    for round in 0..100 {
                        send(&mut publisher, 10 + round..11 + round);
                        expect(&mut old, 5 + round..6 + round);
                        let awaited = old.is_awaited().unwrap();
                        assert!(!awaited || step == Step::Welcomed, "{step:?}");
                    }
                    child.go_on();
                    child.tell(&());
                    assert!(old.wait_until_awaited(PATIENCE).unwrap(), "{step:?}");
                    expect(&mut old, 105..107);
                    old.depart().unwrap();
                    assert_eq!(child.hear::<u64>(), 107, "{step:?}");
                    child.kill_and_reap();
                    send(&mut publisher, 110..1000);
                    wait_until("its place is free", || publisher.subscribers() == 0);
                    wait_for_counts(&publisher, 1, 1);
                }
            }
        }
    }
}

/// After the old end has departed: the place of one that is killed is free, and one that is stopped is waited for as a subscriber that
/// does not read.
#[test]
fn a_successor_that_falls_when_it_is_its_turn() {
    let scene = Scene::new();
    for step in STEPS {
        for fate in FATES {
            let (mut publisher, mut old) = lane();
            send(&mut publisher, 0..10);
            expect(&mut old, 0..5);
            let child = start(&scene, old.ticket().unwrap(), step);
            if fate == Fate::Stopped {
                child.stop();
            }
            old.depart().unwrap();
            let next = send_until_full(&mut publisher, 10);
            assert!(next > 10, "{step:?}");
            wait_until("the old one is gone", || publisher.subscribers() == 1);
            if fate == Fate::Stopped {
                child.go_on();
                child.tell(&());
                assert_eq!(child.hear::<u64>(), 5, "{step:?}");
                assert_eq!(send_until_full(&mut publisher, next), next);
            }
            child.kill_and_reap();
            send(&mut publisher, next..1000);
            wait_until("its place is free", || publisher.subscribers() == 0);
            let begun = fate == Fate::Stopped || step == Step::Welcomed;
            wait_for_counts(&publisher, u64::from(begun), 1);
        }
    }
}

/// Another copy of its ticket is void, and the old end stays.
#[test]
fn the_ticket_of_one_that_was_killed_is_of_no_use() {
    let scene = Scene::new();
    let (mut publisher, mut old) = lane();
    send(&mut publisher, 0..10);
    let ticket = old.ticket().unwrap();
    let child = scene.spawn("successor", &(&ticket, Step::Welcomed));
    child.hear::<()>();
    assert!(old.wait_until_awaited(PATIENCE).unwrap());
    child.kill_and_reap();
    let builder = Subscriber::builder().timeout(PATIENCE);
    let error = builder.arrive(ticket).unwrap_err();
    assert!(matches!(error, Error::HungUp), "{error}");
    expect(&mut old, 0..10);
}

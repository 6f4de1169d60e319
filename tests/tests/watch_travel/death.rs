//! Receivers that move while somebody dies, or is stopped.

use std::{thread, time::Duration};

use memlane::{Error, Link, Reason, WatchError, WatchReceiver, WatchSender, WatchTicket};
use memlane_tests::{
    Dice, PATIENCE, Role, Scene, alive, check, fill, thread_id, wait_asleep, wait_until,
};
use serde::{Deserialize, Serialize};

use crate::{pair, receiver, wait_until_it_stays};

/// What passes between those who move.
#[derive(Debug, Serialize, Deserialize)]
struct Pass {
    ticket: WatchTicket,
}

/// Sees the newest value, which is whole; its number.
fn look(receiver: &mut WatchReceiver) -> u64 {
    let mut value = [0; 100];
    let update = receiver.get_into(&mut value).unwrap().unwrap();
    check(update.sequence, &value[..update.len]);
    update.sequence
}

fn send(sender: &mut WatchSender) -> u64 {
    let mut value = [0; 100];
    let number = sender.sequence() + 1;
    fill(number, &mut value);
    sender.send(&value).unwrap()
}

/// Watches, and moves to whoever is at the other end of a link, unless it is killed before.
pub(crate) fn predecessor(role: &Role) {
    let (link, to): (Link, Link) = role.hear();
    let mut receiver = WatchReceiver::builder().over(link).unwrap();
    let mut dice = Dice::new();
    let mut last = 0;
    for _ in 0..1 + dice.below(20) {
        receiver.changed_timeout(PATIENCE).unwrap();
        last = look(&mut receiver);
    }
    let ticket = receiver.ticket().unwrap();
    role.tell(&());
    // The other may have been killed by now; then the ticket is gone, too.
    let _ = to.send(&Pass { ticket });
    let departed = match dice.below(2) {
        0 => receiver.depart().is_ok(),
        _ => loop {
            match receiver.is_awaited() {
                Ok(true) => break receiver.depart().is_ok(),
                Ok(false) => {
                    receiver.changed_timeout(PATIENCE).unwrap();
                    last = look(&mut receiver);
                }
                Err(Error::Stays { .. }) => break false,
                Err(error) => panic!("{error}"),
            }
        },
    };
    role.tell(&departed.then_some(last));
    let () = role.hear();
    unreachable!("it is killed");
}

/// Takes the place of a predecessor, and says what is known there, and what it has seen in the end, when the sender has closed.
pub(crate) fn successor(role: &Role) {
    let (from, timeout): (Link, u64) = role.hear();
    role.tell(&thread_id());
    // Or it was killed before.
    let Ok(Pass { ticket }) = from.recv() else {
        return role.tell(&None::<(u64, u64)>);
    };
    let builder = WatchReceiver::builder().timeout(Duration::from_millis(timeout));
    let mut receiver = match builder.arrive(ticket) {
        Ok(receiver) => receiver,
        Err(error) => {
            println!("{error}");
            return role.tell(&None::<(u64, u64)>);
        }
    };
    let known = receiver.sequence();
    let mut last = known;
    loop {
        match receiver.changed() {
            Ok(()) => {
                let seen = look(&mut receiver);
                assert!(seen > last);
                last = seen;
            }
            Err(WatchError::Disconnected { .. }) => break,
            Err(error) => panic!("{error}"),
        }
        alive();
    }
    role.tell(&Some((known, last)));
}

/// Whoever is killed, and whenever: the sender does not know, and whoever lives sees what it ought to see.
#[test]
fn killed_at_any_moment() {
    let scene = Scene::new();
    let mut dice = Dice::new();
    let (mut moved, mut taken_over, mut stayed) = (0, 0, 0);
    for round in 0..40 {
        let mut sender = WatchSender::builder().unbound().unwrap();
        let (ours, theirs) = Link::pair().unwrap();
        sender.attach(ours).unwrap();
        let (to, from) = Link::pair().unwrap();
        let predecessor = scene.spawn("predecessor", &(theirs, to));
        let successor = scene.spawn("successor", &(from, PATIENCE.as_millis() as u64));
        let _thread: u32 = successor.hear();
        while predecessor.has_said::<()>().is_none() {
            send(&mut sender);
            alive();
        }
        for _ in 0..dice.below(50) {
            send(&mut sender);
            dice.dally(2000);
        }
        if round % 2 == 0 {
            predecessor.kill();
            // It may have said what it has seen before.
            let said: Option<Option<u64>> = predecessor.hear_if_alive();
            let said = said.flatten();
            predecessor.kill_and_reap();
            if said.is_some() {
                // Before the sender closes: it may have departed with nobody there yet.
                wait_until("the other is there", || sender.moved() == 1);
            }
            send(&mut sender);
            let sent = send(&mut sender);
            sender.close();
            let arrived: Option<(u64, u64)> = successor.hear();
            match (said, arrived) {
                (Some(seen), Some((known, last))) => {
                    assert_eq!((known, last), (seen, sent));
                    moved += 1;
                }
                (Some(seen), None) => panic!("{seen} was seen, and nobody goes on"),
                // Of one that has said nothing, nothing is known; unless it had just departed.
                (None, Some((known, last))) => {
                    println!("{known} was known");
                    assert_eq!(last, sent);
                    taken_over += 1;
                }
                // With a ticket on its way when its sender died, there was none to take.
                (None, None) => {}
            }
            successor.finish();
        } else {
            successor.kill();
            let said: Option<u64> = loop {
                send(&mut sender);
                if let Some(said) = predecessor.has_said() {
                    break said;
                }
            };
            successor.kill_and_reap();
            match said {
                Some(_) => moved += 1,
                None => stayed += 1,
            }
            predecessor.kill_and_reap();
            wait_until("nobody is left", || sender.receivers() == 0);
            send(&mut sender);
        }
    }
    println!("{moved} moved, {taken_over} taken over, {stayed} stayed");
}

#[test]
fn who_has_given_a_ticket_in_vain_stays() {
    let _scene = Scene::new();
    let (mut sender, mut receiver) = pair();
    send(&mut sender);
    assert_eq!(look(&mut receiver), 1);
    let no_ticket = receiver.depart().unwrap_err();
    assert!(no_ticket.to_string().contains("no ticket was given"));
    let mut receiver = no_ticket.end;
    drop(receiver.ticket().unwrap());
    let stays = wait_until_it_stays(&mut receiver);
    assert!(stays.contains("ticket has hung up"), "{stays}");
    let mut receiver = receiver.depart().unwrap_err().end;
    // One that departs before it has heard of that does not, either.
    drop(receiver.ticket().unwrap());
    let void = receiver.depart().unwrap_err();
    assert!(matches!(void.error, Error::Stays { .. }), "{void}");
    let mut receiver = void.end;
    // Another ticket makes the first one void, and a third one both.
    let first = receiver.ticket().unwrap();
    let second = receiver.ticket().unwrap();
    assert!(matches!(first.arrive(), Err(Error::HungUp)));
    receiver.stay().unwrap();
    assert!(matches!(second.arrive(), Err(Error::HungUp)));
    send(&mut sender);
    receiver.changed().unwrap();
    assert_eq!(look(&mut receiver), 2);
    assert_eq!((sender.receivers(), sender.moved()), (1, 0));
}

/// Its place is kept for whoever has the ticket, and the sender goes on.
#[test]
fn a_ticket_that_nobody_uses() {
    let _scene = Scene::new();
    for departs in [false, true] {
        let (mut sender, mut receiver) = pair();
        send(&mut sender);
        look(&mut receiver);
        let ticket = receiver.ticket().unwrap();
        match departs {
            true => receiver.depart().unwrap(),
            false => drop(receiver),
        }
        for _ in 0..1000 {
            send(&mut sender);
        }
        assert_eq!((sender.receivers(), sender.moved()), (1, 0));
        drop(ticket);
        wait_until("its place is free", || sender.receivers() == 0);
        assert_eq!(sender.moved(), 0);
    }
}

/// A sender that has closed leaves its last value to whoever is there.
#[test]
fn a_sender_that_is_gone() {
    let _scene = Scene::new();
    let (mut sender, mut receiver) = pair();
    send(&mut sender);
    let ticket = receiver.ticket().unwrap();
    send(&mut sender);
    drop(sender);
    assert!(matches!(ticket.arrive(), Err(Error::HungUp)));
    let remains = receiver.depart().unwrap_err();
    assert!(matches!(remains.error, Error::HungUp), "{remains}");
    let mut receiver = remains.end;
    assert!(matches!(receiver.ticket(), Err(Error::HungUp)));
    let waited = receiver.wait_until_awaited(PATIENCE);
    assert!(matches!(waited, Err(Error::HungUp)), "{waited:?}");
    receiver.changed().unwrap();
    assert_eq!(look(&mut receiver), 2);
    let end = receiver.changed().unwrap_err();
    let closed = matches!(&end, WatchError::Disconnected { reason } if *reason == Reason::Closed);
    assert!(closed, "{end}");
    // After the move: there.
    let (mut sender, mut receiver) = pair();
    send(&mut sender);
    look(&mut receiver);
    let ticket = receiver.ticket().unwrap();
    receiver.depart().unwrap();
    let mut successor = ticket.arrive().unwrap();
    send(&mut sender);
    sender.close();
    successor.changed().unwrap();
    assert_eq!(look(&mut successor), 2);
    let end = successor.changed().unwrap_err();
    let closed = matches!(&end, WatchError::Disconnected { reason } if *reason == Reason::Closed);
    assert!(closed, "{end}");
}

/// In another process: a sender that sends on demand.
pub(crate) fn sender(role: &Role) {
    let link: Link = role.hear();
    let mut sender = WatchSender::builder().unbound().unwrap();
    sender.attach(link).unwrap();
    while role.hear() {
        role.tell(&send(&mut sender));
    }
    role.tell(&(sender.receivers(), sender.moved()));
}

#[test]
fn a_sender_that_is_stopped_or_killed() {
    let scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let child = scene.spawn("sender", &theirs);
    drop(theirs);
    let mut receiver = WatchReceiver::builder().over(ours).unwrap();
    let sends = || {
        child.tell(&true);
        child.hear::<u64>()
    };
    sends();
    assert_eq!(look(&mut receiver), 1);
    let first = receiver.ticket().unwrap();
    child.stop();
    let unanswered = receiver.ticket();
    assert!(matches!(unanswered, Err(Error::NoAnswer { .. })));
    alive();
    assert_eq!(look(&mut receiver), 1);
    let builder = WatchReceiver::builder().timeout(Duration::from_millis(100));
    let end = builder.arrive(first).unwrap_err();
    assert!(matches!(end, Error::NoSender { .. }), "{end}");
    child.go_on();
    // The ticket that was asked for comes late, and is void by now.
    let ticket = receiver.ticket().unwrap();
    sends();
    child.stop();
    assert_eq!(look(&mut receiver), 2);
    // It has said that it departs, and does when it is heard.
    let remains = receiver.depart().unwrap_err();
    alive();
    assert!(matches!(remains.error, Error::NoAnswer { .. }), "{remains}");
    let mut receiver = remains.end;
    assert_eq!(look(&mut receiver), 2);
    let departed = receiver.ticket().unwrap_err();
    assert!(matches!(departed, Error::Stays { .. }), "{departed}");
    child.go_on();
    receiver.depart().unwrap();
    let mut receiver = ticket.arrive().unwrap();
    assert!(!receiver.is_changed());
    sends();
    receiver.changed().unwrap();
    assert_eq!(look(&mut receiver), 3);
    child.tell(&false);
    assert_eq!(child.hear::<(usize, u64)>(), (1, 1));
    child.kill();
    child.reap();
    let end = receiver.changed().unwrap_err();
    assert!(matches!(end, WatchError::Disconnected { .. }), "{end}");
    assert_eq!(look(&mut receiver), 3);
}

/// Has somebody do something that waits for a sender, which a loop of this process's drives meanwhile.
fn driving<T: Send>(sender: &WatchSender, act: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let acting = scope.spawn(act);
        wait_until("it has been answered", || {
            sender.drive().unwrap();
            acting.is_finished()
        });
        acting.join().unwrap()
    })
}

/// What was said to it cannot be taken back, and what was asked of it makes void what there was.
#[test]
fn a_sender_that_answers_late() {
    let _scene = Scene::new();
    let sender = WatchSender::builder().driven().unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    sender.attach(ours).unwrap();
    let receiver = driving(&sender, || WatchReceiver::builder().over(theirs));
    let mut receiver = receiver.unwrap();
    let first = driving(&sender, || receiver.ticket()).unwrap();
    let unanswered = receiver.ticket();
    assert!(matches!(unanswered, Err(Error::NoAnswer { .. })));
    alive();
    // Nobody has the second ticket, and nobody can have it: it must not depart.
    let remains = driving(&sender, || receiver.depart()).unwrap_err();
    assert!(matches!(remains.error, Error::Stays { .. }), "{remains}");
    let mut receiver = remains.end;
    assert!(driving(&sender, || first.arrive()).is_err());

    let ticket = driving(&sender, || receiver.ticket()).unwrap();
    let remains = receiver.depart().unwrap_err();
    assert!(matches!(remains.error, Error::NoAnswer { .. }), "{remains}");
    alive();
    let mut receiver = remains.end;
    let late = receiver.stay().unwrap_err();
    assert!(matches!(late, Error::NoAnswer { .. }), "{late}");
    driving(&sender, || receiver.depart()).unwrap();
    let _successor = driving(&sender, || ticket.arrive()).unwrap();
    assert_eq!(sender.moved(), 1);
}

/// Whoever asks again and again whether to depart is told that there is nobody to depart from.
#[test]
fn nobody_waits_at_a_sender_that_is_gone() {
    let scene = Scene::new();
    for killed in [false, true] {
        let (ours, theirs) = Link::pair().unwrap();
        let child = scene.spawn("sender", &theirs);
        drop(theirs);
        let mut receiver = WatchReceiver::builder().over(ours).unwrap();
        let ticket = receiver.ticket().unwrap();
        assert!(!receiver.is_awaited().unwrap());
        match killed {
            true => child.kill_and_reap(),
            false => {
                child.tell(&false);
                let _: (usize, u64) = child.hear();
                child.finish();
            }
        }
        wait_until("it hears", || receiver.is_awaited().is_err());
        let gone = receiver.is_awaited();
        assert!(matches!(gone, Err(Error::HungUp)), "{gone:?}");
        drop(ticket);
    }
}

/// A stopped old end keeps its place; a stopped successor does not hold up the sender.
#[test]
fn ends_that_are_stopped() {
    let scene = Scene::new();
    let mut sender = WatchSender::builder().unbound().unwrap();
    let mut old = receiver(&sender, WatchReceiver::builder());
    send(&mut sender);
    look(&mut old);
    let ticket = old.ticket().unwrap();
    let builder = WatchReceiver::builder().timeout(Duration::from_millis(50));
    let end = builder.arrive(ticket);
    assert!(matches!(end, Err(Error::NotDeparted { .. })), "{end:?}");
    let remains = old.depart().unwrap_err();
    assert!(matches!(remains.error, Error::Stays { .. }), "{remains}");
    let mut old = remains.end;
    send(&mut sender);
    assert_eq!(look(&mut old), 2);

    drop(old);
    for stopped_before in [true, false] {
        let mut sender = WatchSender::builder().unbound().unwrap();
        let mut old = receiver(&sender, WatchReceiver::builder());
        send(&mut sender);
        let (to, from) = Link::pair().unwrap();
        let other = scene.spawn("successor", &(from, PATIENCE.as_millis() as u64));
        let thread: u32 = other.hear();
        let ticket = old.ticket().unwrap();
        if stopped_before {
            other.stop();
            to.send(&Pass { ticket }).unwrap();
        } else {
            to.send(&Pass { ticket }).unwrap();
            assert!(old.wait_until_awaited(PATIENCE).unwrap());
            wait_asleep(other.id(), thread);
            other.stop();
        }
        let seen = look(&mut old);
        old.depart().unwrap();
        for _ in 0..1000 {
            send(&mut sender);
        }
        wait_until("the old one is gone", || sender.receivers() == 1);
        other.go_on();
        wait_until("it has begun", || sender.moved() == 1);
        let sent = send(&mut sender);
        sender.close();
        let begun: Option<(u64, u64)> = other.hear();
        assert_eq!(begun, Some((seen, sent)));
        other.finish();
    }
}

/// What one that was killed has seen nobody knows: to its successor any value is new.
#[test]
fn an_old_end_that_is_killed_leaves_everything_to_see() {
    let scene = Scene::new();
    let mut sender = WatchSender::builder().unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    sender.attach(ours).unwrap();
    let (to, from) = Link::pair().unwrap();
    let predecessor = scene.spawn("predecessor", &(theirs, to));
    while predecessor.has_said::<()>().is_none() {
        send(&mut sender);
        alive();
    }
    let Pass { ticket } = from.recv().unwrap();
    // Either is right: it has departed by now, or has not.
    predecessor.kill_and_reap();
    let mut successor = ticket.arrive().unwrap();
    if successor.sequence() == 0 {
        successor.changed().unwrap();
    }
    assert_eq!(look(&mut successor), sender.sequence());
    send(&mut sender);
    successor.changed().unwrap();
    assert_eq!(look(&mut successor), sender.sequence());
    wait_until("one is left", || sender.receivers() == 1);
}

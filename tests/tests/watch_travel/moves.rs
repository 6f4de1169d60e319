//! Moves under load, of receivers that sleep, in loops and in tasks, and of values.

use std::{thread, time::Duration};

use memlane::{
    Encoded, Error, Link, Plain, ReadError, WatchError, WatchReceiver, WatchSender, WatchTicket,
    Watched,
};
use memlane_tests::{
    Child, Dice, PATIENCE, Policy, Role, Route, Scene, alive, block_on, check, circle, fill,
    thread_id, wait_asleep, wait_until, who_has_it,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::{pair, receiver, wait_until_it_stays};

type Passed = memlane_tests::Passed<WatchTicket, u64>;

/// Values have this number of bytes at most.
const LONGEST: usize = 200;

/// What a process of the circle does with a receiver it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    policy: Policy,
    /// It says of each value that it has seen it, and the next one comes after that.
    answers: bool,
}

/// Looks at the newest value: it is whole, and no older than what was seen before.
fn look(receiver: &mut WatchReceiver, last: &mut u64) {
    let mut value = [0; LONGEST];
    match receiver.get_into(&mut value) {
        Ok(None) => assert_eq!(*last, 0),
        Ok(Some(update)) => {
            assert!(update.sequence >= *last, "{} < {last}", update.sequence);
            check(update.sequence, &value[..update.len]);
            *last = update.sequence;
        }
        // By a sender that is too fast for this once.
        Err(WatchError::Value(ReadError::Unstable { .. })) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Watches a few values.
fn watch(role: &Role, receiver: &mut WatchReceiver, last: &mut u64, part: Part, values: u64) {
    for _ in 0..values {
        receiver.changed_timeout(PATIENCE).unwrap();
        let before = *last;
        look(receiver, last);
        if part.answers {
            // Exactly the next one, and once.
            assert_eq!(*last, before + 1);
            assert!(!receiver.is_changed());
            role.tell(&*last);
        }
    }
}

/// Has a receiver for a while, again and again.
pub(crate) fn traveller(role: &Role) {
    let Route {
        from,
        to,
        kind: part,
    }: Route<Part> = role.hear();
    let mut dice = Dice::new();
    let mut kept = None;
    loop {
        alive();
        let (ticket, moves) = match from.recv().unwrap() {
            Passed::Ticket(ticket, moves) => (ticket, moves),
            Passed::Next(_) => unreachable!("it follows a ticket"),
            Passed::End => break,
        };
        let builder = WatchReceiver::builder().wait(part.policy.into());
        let mut receiver = builder.timeout(PATIENCE).arrive(ticket).unwrap();
        let Passed::Next(mut last) = from.recv().unwrap() else {
            unreachable!("it follows a ticket")
        };
        // What the other has seen is known here, and nothing else.
        assert_eq!(receiver.sequence(), last);
        let values = |dice: &mut Dice, most| match part.answers {
            true => dice.below(3),
            false => dice.below(most),
        };
        if dice.below(4) == 0 && !part.answers {
            look(&mut receiver, &mut last);
        }
        if moves == 0 {
            kept = Some((receiver, last));
            break;
        }
        watch(role, &mut receiver, &mut last, part, values(&mut dice, 10));
        let ticket = receiver.ticket().unwrap();
        watch(role, &mut receiver, &mut last, part, values(&mut dice, 3));
        to.send(&Passed::Ticket(ticket, moves - 1)).unwrap();
        match dice.below(3) {
            0 => {}
            1 => watch(role, &mut receiver, &mut last, part, values(&mut dice, 20)),
            _ if part.answers => assert!(receiver.wait_until_awaited(PATIENCE).unwrap()),
            _ => {
                while !receiver.is_awaited().unwrap() {
                    watch(role, &mut receiver, &mut last, part, 1);
                }
            }
        }
        receiver.depart().unwrap();
        to.send(&Passed::Next(last)).unwrap();
    }
    // Once around the circle, if the others do not know yet.
    let _ = to.send(&Passed::End);
    if !part.answers {
        role.tell(&kept.is_some());
    }
    if let Some((mut receiver, mut last)) = kept {
        loop {
            match receiver.changed() {
                Ok(()) => {
                    look(&mut receiver, &mut last);
                    if part.answers {
                        role.tell(&last);
                    }
                }
                Err(WatchError::Disconnected { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
        if !part.answers {
            role.tell(&last);
        }
    }
}

/// Sets a receiver of this sender's on its way.
fn start(scene: &Scene, sender: &WatchSender, parts: &[Part], moves: u64) -> Vec<Child> {
    let mut receiver = receiver(sender, WatchReceiver::builder());
    circle(scene, parts, |first| {
        let ticket = receiver.ticket().unwrap();
        first.send(&Passed::Ticket(ticket, moves - 1)).unwrap();
        receiver.depart().unwrap();
        first.send(&Passed::Next(0)).unwrap();
    })
}

fn send(sender: &mut WatchSender, number: u64) {
    let mut value = [0; LONGEST];
    let len = 8 + (number % (LONGEST as u64 - 8)) as usize;
    fill(number, &mut value[..len]);
    assert_eq!(sender.send(&value[..len]).unwrap(), number);
}

/// There is one place, and it is always taken.
#[test]
fn ten_thousand_moves_under_a_running_sender() {
    const MOVES: u64 = 10_000;
    let scene = Scene::new();
    let builder = WatchSender::builder().max_receivers(1);
    let mut sender = builder.unbound().unwrap();
    let parts = [Policy::Adaptive, Policy::Block, Policy::Adaptive].map(|policy| Part {
        policy,
        answers: false,
    });
    let children = start(&scene, &sender, &parts, MOVES);
    let mut sent = 0;
    while sender.moved() < MOVES {
        sent += 1;
        send(&mut sender, sent);
        if sent % 8 == 0 {
            alive();
            thread::sleep(Duration::from_micros(30));
        }
    }
    let kept: Vec<bool> = children.iter().map(Child::hear).collect();
    let last = who_has_it(&kept);
    println!("{sent} values");
    sender.close();
    assert_eq!(children[last].hear::<u64>(), sent);
    children.into_iter().for_each(Child::finish);
}

/// A value is sent when the one before it has been seen: by whoever is there, once, however many moves there are in between. One that
/// sleeps is woken.
#[test]
fn each_value_is_seen_once_wherever_the_receiver_is() {
    const MOVES: u64 = 3_000;
    let scene = Scene::new();
    let mut sender = WatchSender::builder().unbound().unwrap();
    let parts = [Policy::Block, Policy::Adaptive].map(|policy| Part {
        policy,
        answers: true,
    });
    let children = start(&scene, &sender, &parts, MOVES);
    let mut sent = 0;
    while sender.moved() < MOVES {
        sent += 1;
        send(&mut sender, sent);
        let mut seen = None;
        while seen.is_none() {
            seen = children.iter().find_map(Child::has_said::<u64>);
            std::hint::spin_loop();
        }
        assert_eq!(seen, Some(sent));
        alive();
    }
    println!("{sent} values");
    assert!(sent > MOVES / 2);
    sender.close();
    for child in children {
        child.finish();
    }
}

/// What the old one has read is no news to its successor, and what it has not read is, whenever that was sent.
#[test]
fn what_was_read_is_no_news() {
    let _scene = Scene::new();
    let (mut sender, mut receiver) = pair();
    let mut dice = Dice::new();
    let (mut sent, mut seen) = (0, 0);
    for round in 0..500 {
        for _ in 0..dice.below(3) {
            sent += 1;
            send(&mut sender, sent);
        }
        if dice.below(2) == 0 {
            look(&mut receiver, &mut seen);
            assert_eq!(seen, sent);
        }
        let ticket = receiver.ticket().unwrap();
        // Before it departs, and after.
        for _ in 0..dice.below(2) {
            sent += 1;
            send(&mut sender, sent);
        }
        match round % 3 {
            0 => drop(receiver),
            _ => receiver.depart().unwrap(),
        }
        for _ in 0..dice.below(2) {
            sent += 1;
            send(&mut sender, sent);
        }
        receiver = ticket.arrive().unwrap();
        assert_eq!(receiver.sequence(), seen);
        assert_eq!(receiver.is_changed(), sent > seen);
        assert_eq!(receiver.try_changed().unwrap(), sent > seen);
        wait_until("the old one is gone", || sender.receivers() == 1);
        assert_eq!(sender.moved(), round + 1);
    }
    look(&mut receiver, &mut seen);
    assert_eq!(seen, sent);
}

/// What there is of a service, its name and its rule of access, is of no concern to one that comes with a ticket.
#[test]
fn by_name() {
    let scene = Scene::new();
    let address = scene.address("pose");
    let builder = WatchSender::builder().max_receivers(1);
    let mut sender = builder.bind_to(&address).unwrap();
    let mut receiver = WatchReceiver::builder().connect_to(&address).unwrap();
    send(&mut sender, 1);
    let full = WatchReceiver::builder().connect_to(&address).unwrap_err();
    assert!(full.to_string().contains("takes no more"), "{full}");
    for _ in 0..3 {
        let ticket = receiver.ticket().unwrap();
        receiver.depart().unwrap();
        receiver = ticket.arrive().unwrap();
    }
    let mut last = 0;
    look(&mut receiver, &mut last);
    assert_eq!(last, 1);
    sender.close();
    let end = receiver.changed().unwrap_err();
    assert!(matches!(end, WatchError::Disconnected { .. }), "{end}");
}

#[test]
fn in_a_loop_and_in_a_task() {
    let _scene = Scene::new();
    let (mut sender, mut receiver) = pair();
    send(&mut sender, 1);
    let mut last = 0;
    look(&mut receiver, &mut last);
    let readable = |receiver: &Watched<WatchReceiver>| {
        let now = Timespec::default();
        poll(&mut [PollFd::new(receiver, PollFlags::IN)], Some(&now)).unwrap() == 1
    };
    let mut receiver = Watched::new(receiver).unwrap();
    for round in 2..100 {
        let ticket = receiver.ticket().unwrap();
        let mut connecting = WatchReceiver::builder().begin_arrival(ticket).unwrap();
        wait_until("the handshake is done", || {
            assert!(connecting.try_finish().unwrap().is_none());
            receiver.is_awaited().unwrap()
        });
        receiver.into_inner().depart().unwrap();
        let arrived = loop {
            poll(&mut [PollFd::new(&connecting, PollFlags::IN)], None).unwrap();
            if let Some(arrived) = connecting.try_finish().unwrap() {
                break arrived;
            }
        };
        drop(connecting);
        receiver = Watched::new(arrived).unwrap();
        assert!(!receiver.try_changed().unwrap() && !readable(&receiver));
        send(&mut sender, round);
        assert!(readable(&receiver) && receiver.try_changed().unwrap());
        look(&mut receiver, &mut last);
        assert_eq!(last, round);
    }
    let mut receiver = receiver.into_inner();
    let ticket = receiver.ticket().unwrap();
    let connecting = WatchReceiver::builder().begin_arrival(ticket).unwrap();
    receiver.depart().unwrap();
    let me = thread_id();
    let sending = thread::spawn(move || {
        wait_asleep(std::process::id(), me);
        send(&mut sender, 100);
        sender
    });
    block_on(async {
        let mut receiver = connecting.finish().await.unwrap();
        receiver.changed().await.unwrap();
        look(receiver.get_mut(), &mut last);
    });
    assert_eq!(last, 100);
    drop(sending.join().unwrap());
}

#[test]
fn values_are_compared_again() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let sender = WatchSender::builder().of::<Encoded<Vec<String>>>();
    let mut sender = sender.version(3).unbound().unwrap();
    sender.attach(ours).unwrap();
    let typed = || WatchReceiver::builder().of::<Encoded<Vec<String>>>();
    let mut receiver = typed().version(3).over(theirs).unwrap();
    sender.send(&vec!["one".to_owned()]).unwrap();
    assert_eq!(receiver.get().unwrap().unwrap(), ["one"]);

    let ticket = receiver.ticket().unwrap();
    let refused = typed().version(4).arrive(ticket).unwrap_err();
    assert!(matches!(refused, Error::NoSender { .. }), "{refused}");
    assert!(refused.to_string().contains("version 4"), "{refused}");
    let stays = wait_until_it_stays(receiver.get_mut());
    assert!(stays.contains("refused"), "{stays}");
    let remains = receiver.depart().unwrap_err();
    assert!(matches!(remains.error, Error::Stays { .. }), "{remains}");
    let mut receiver = remains.end;
    let ticket = receiver.ticket().unwrap();
    let short = WatchReceiver::builder().max_len(100);
    let short = short.of::<Encoded<Vec<String>>>().version(3);
    let refused = short.arrive(ticket).unwrap_err();
    assert!(refused.to_string().contains("at most 100"), "{refused}");
    wait_until_it_stays(receiver.get_mut());

    let ticket = receiver.ticket().unwrap();
    receiver.stay().unwrap();
    let taken_back = typed().version(3).arrive(ticket).unwrap_err();
    assert!(matches!(taken_back, Error::HungUp), "{taken_back}");
    let ticket = receiver.ticket().unwrap();
    let arriving = thread::spawn(move || typed().version(3).arrive(ticket).unwrap());
    assert!(receiver.wait_until_awaited(PATIENCE).unwrap());
    receiver.depart().unwrap();
    let mut receiver = arriving.join().unwrap();
    assert!(!receiver.try_changed().unwrap());
    assert_eq!(receiver.get().unwrap().unwrap(), ["one"]);
    sender.send(&vec!["two".to_owned()]).unwrap();
    receiver.changed().unwrap();
    assert_eq!(receiver.get().unwrap().unwrap(), ["two"]);

    let (ours, theirs) = Link::pair().unwrap();
    let sender = WatchSender::builder().of::<Plain<u64>>();
    let mut sender = sender.unbound().unwrap();
    sender.attach(ours).unwrap();
    let plain = || WatchReceiver::builder().of::<Plain<u64>>();
    let mut receiver = plain().over(theirs).unwrap();
    let ticket = receiver.ticket().unwrap();
    receiver.depart().unwrap();
    let connecting = plain().begin_arrival(ticket).unwrap();
    sender.send(&7).unwrap();
    block_on(async {
        let mut receiver = connecting.finish().await.unwrap();
        receiver.changed().await.unwrap();
        assert_eq!(receiver.get().unwrap(), Some(7));
    });
}

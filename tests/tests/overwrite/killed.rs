//! Either side is killed.

use memlane::{Reason, RecvError, TryRecvError};
use memlane_tests::{Dice, PATIENCE, Policy, Role, Scene, alive, unbound, wait_until};

use crate::{
    lane::{LONGEST, RING, overwritten, send},
    reader::Count,
};

/// Receives a few messages, keeps those that are long, and waits to be killed.
pub(crate) fn keeper(role: &Role) {
    let address: String = role.hear();
    let builder = overwritten(Policy::Block);
    let mut subscriber = builder.connect_to(&address.parse().unwrap()).unwrap();
    role.tell(&());
    let mut held = Vec::new();
    while held.len() < 3 {
        let message = subscriber.recv().unwrap();
        if message.len() == LONGEST {
            held.push(message.hold().unwrap());
        }
    }
    role.tell(&());
    let message = loop {
        match subscriber.recv() {
            Ok(message) if message.len() < LONGEST => {}
            last => break last,
        }
    };
    role.tell(&());
    let () = role.hear();
    drop(message);
    unreachable!("it is killed");
}

/// Killed while it keeps chunks, and has one in its hands: all of them are the publisher's again, whose pool has no others.
#[test]
fn one_that_is_killed_gives_everything_back() {
    let scene = Scene::new();
    let address = scene.address("prices");
    let builder = unbound(RING).pool_bytes(8 * LONGEST.next_multiple_of(4096));
    let mut publisher = builder.bind_to(&address).unwrap();
    for _ in 0..5 {
        let child = scene.spawn("keeper", &address.to_string());
        let () = child.hear();
        // Four of eight are kept in the end, and the others go round.
        for _ in 0..2 {
            while child.has_said::<()>().is_none() {
                publisher.try_send(&[7; LONGEST]).unwrap();
                alive();
            }
        }
        for _ in 0..1000 {
            publisher.try_send(&[8; LONGEST]).unwrap();
        }
        child.kill_and_reap();
        wait_until("its death is noticed", || publisher.subscribers() == 0);
        let loans: Vec<_> = (0..8).map(|_| publisher.try_loan(LONGEST)).collect();
        assert!(loans.iter().all(Result::is_ok), "{loans:?}");
    }
}

/// Sends until it is killed.
pub(crate) fn publisher(role: &Role) {
    let address: String = role.hear();
    let builder = unbound(RING).pool_bytes(4 << 20);
    let mut publisher = builder.bind_to(&address.parse().unwrap()).unwrap();
    role.tell(&());
    publisher.wait_for_subscribers(1).unwrap();
    let mut buffer = vec![0; LONGEST];
    for number in 0.. {
        send(&mut publisher, number, &mut buffer);
        if number == 1000 {
            role.tell(&());
        }
        if number.is_multiple_of(1024) {
            alive();
        }
    }
}

/// Whatever it was about to do: what it had committed is received or counted, and then comes the end.
#[test]
fn a_publisher_is_killed() {
    let scene = Scene::new();
    let address = scene.address("prices");
    let mut dice = Dice::new();
    for round in 0..12 {
        let child = scene.spawn("publisher", &address.to_string());
        let () = child.hear();
        let policy = Policy::ALL[round % 3];
        let mut subscriber = overwritten(policy).connect_to(&address).unwrap();
        let () = child.hear();
        let (mut count, mut copy) = (Count::default(), Vec::new());
        for _ in 0..dice.below(5_000) {
            count.note(&subscriber.recv_timeout(PATIENCE).unwrap(), &mut copy);
            if dice.below(64) == 0 {
                dice.dally(100_000);
            }
        }
        child.kill_and_reap();
        let reason = loop {
            match subscriber.recv() {
                Ok(message) => count.note(&message, &mut copy),
                Err(RecvError::Disconnected { reason }) => break reason,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(reason, Reason::Died);
        let stats = subscriber.stats();
        assert_eq!(stats.messages, count.received);
        assert_eq!(stats.messages + stats.missed, subscriber.sequence());
        assert!(subscriber.sequence() > 1000);
        assert!(matches!(
            subscriber.try_recv(),
            Err(TryRecvError::Disconnected { .. })
        ));
    }
}

//! Readers that sleep are woken, and told of silence.

use std::time::Duration;

use memlane::{Address, Link, RecvError};
use memlane_tests::{Dice, PATIENCE, Policy, Role, Scene, alive, rounds, unbound, wait_asleep};

use crate::{
    lane::{bind, overwritten},
    one_process::pair,
};

/// Answers each message.
pub(crate) fn echo(role: &Role) {
    let (address, policy): (String, Policy) = role.hear();
    let address: Address = address.parse().unwrap();
    let builder = unbound(4096).wait(policy.into());
    let back = scene_sibling(&address);
    let mut publisher = builder.bind_to(&back).unwrap();
    let mut subscriber = overwritten(policy).connect_to(&address).unwrap();
    role.tell(&());
    publisher.wait_for_subscribers(1).unwrap();
    while let Ok(message) = subscriber.recv() {
        assert_eq!(message.missed(), 0);
        let bytes = message.to_vec();
        drop(message);
        alive();
        publisher.try_send(&bytes).unwrap();
    }
}

fn scene_sibling(address: &Address) -> Address {
    format!("{address}-back").parse().unwrap()
}

/// Both ends of a ping-pong sleep: each message finds the other one asleep, or about to be.
#[test]
fn no_wake_up_is_lost() {
    let scene = Scene::new();
    for policy in Policy::SLEEPY {
        let (mut publisher, address) = bind(&scene, policy);
        let child = scene.spawn("echo", &(address.to_string(), policy));
        let () = child.hear();
        let back = scene_sibling(&address);
        let mut subscriber = overwritten(policy).connect_to(&back).unwrap();
        publisher.wait_for_subscribers(1).unwrap();
        let mut dice = Dice::new();
        for number in 0..rounds(20_000) {
            dice.dally(200);
            publisher.try_send(&number.to_le_bytes()).unwrap();
            let answer = subscriber.recv_timeout(PATIENCE).unwrap();
            assert_eq!(answer.to_vec(), number.to_le_bytes());
            assert_eq!((answer.sequence(), answer.missed()), (number, 0));
        }
        assert!(subscriber.stats().sleeps > 0);
        drop(publisher);
        assert!(matches!(
            subscriber.recv(),
            Err(RecvError::Disconnected { .. })
        ));
        child.finish();
    }
}

/// One that sleeps is woken by the next message, and by the end.
#[test]
fn one_that_sleeps_is_woken() {
    let _scene = Scene::new();
    for _ in 0..20 {
        let (mut publisher, mut subscriber) = pair();
        let (tells, told) = std::sync::mpsc::channel();
        let sleeper = std::thread::spawn(move || {
            tells.send(memlane_tests::thread_id()).unwrap();
            assert_eq!(subscriber.recv().unwrap().to_vec(), b"a message");
            tells.send(memlane_tests::thread_id()).unwrap();
            assert!(subscriber.recv().is_err());
        });
        wait_asleep(std::process::id(), told.recv().unwrap());
        publisher.try_send(b"a message").unwrap();
        wait_asleep(std::process::id(), told.recv().unwrap());
        drop(publisher);
        sleeper.join().unwrap();
    }
}

/// The silence of a publisher is told of, and messages that are missed are signs of life.
#[test]
fn silence_is_told_of() {
    let _scene = Scene::new();
    let (here, there) = Link::pair().unwrap();
    let mut publisher = unbound(4096).unbound().unwrap();
    publisher.attach(here).unwrap();
    let builder = overwritten(Policy::Block).liveliness(Duration::from_millis(5));
    let mut subscriber = builder.over(there).unwrap();
    assert!(matches!(subscriber.recv(), Err(RecvError::Silent { .. })));
    for _ in 0..1000 {
        publisher.try_send(&[0; 100]).unwrap();
    }
    while subscriber.try_recv().is_ok() {}
    assert!(matches!(subscriber.recv(), Err(RecvError::Silent { .. })));
}

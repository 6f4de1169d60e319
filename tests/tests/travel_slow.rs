//! Subscribers that move beside what becomes of attachments, of the slow, and of a history; and whose successor is stopped.

use std::time::Duration;

use memlane::{
    Error, Link, Overflow, Publisher, PublisherBuilder, SendTimeoutError, Subscriber, Ticket,
    WhenFull,
};
use memlane_tests::{
    Child, Dice, PATIENCE, Role, Scene, alive, attachments, check, check_attachments, fill, play,
    thread_id, unbound, wait_asleep,
};

#[test]
fn other_process() {
    play(&[("successor", successor)]);
}

fn message(number: u64) -> Vec<u8> {
    let mut message = vec![0; 100];
    fill(number, &mut message);
    message
}

/// How many attachments a message has, where they have some.
fn attached(number: u64) -> usize {
    match number % 3 {
        0 => 1 + number as usize % 2,
        _ => 0,
    }
}

fn receive(subscriber: &mut Subscriber, number: u64) {
    let mut message = subscriber.recv_timeout(PATIENCE).unwrap();
    check(number, &message.to_vec());
    if message.has_attachments() {
        check_attachments(
            number,
            attached(number),
            message.take_attachments().unwrap(),
        );
    }
}

/// Takes the place of a ticket that is good, and receives to the end.
fn successor(role: &Role) {
    let () = role.hear();
    role.tell(&thread_id());
    loop {
        let ticket: Ticket = role.hear();
        let arrived = Subscriber::builder().timeout(PATIENCE).arrive(ticket);
        role.tell(&arrived.is_ok());
        let Ok(mut subscriber) = arrived else {
            continue;
        };
        let mut number: u64 = role.hear();
        let end = loop {
            alive();
            match subscriber.recv() {
                Err(error) => break error.to_string(),
                Ok(mut message) => {
                    check(number, &message.to_vec());
                    if message.has_attachments() {
                        let fds = message.take_attachments().unwrap();
                        check_attachments(number, attached(number), fds);
                    }
                }
            }
            number += 1;
        };
        role.tell(&(number, end));
        return;
    }
}

fn lane(builder: PublisherBuilder, overflow: Overflow) -> (Publisher, Subscriber) {
    let publisher = builder.unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let builder = Subscriber::builder().overflow(overflow);
    (publisher, builder.over(theirs).unwrap())
}

fn start(scene: &Scene) -> Child {
    let other = scene.spawn("successor", &());
    other.hear::<u32>();
    other
}

/// Messages with attachments, at full speed, while a subscriber moves: each has its own, in order, and none is missing. An end
/// that has not received what is on its way to it stays, and tries again.
#[test]
fn attachments_under_load() {
    const MESSAGES: u64 = 600;
    let scene = Scene::new();
    let mut dice = Dice::new();
    let mut stayed = 0;
    for _ in 0..20 {
        let (mut publisher, mut subscriber) = lane(unbound(1 << 14), Overflow::Block);
        let other = start(&scene);
        let sending = std::thread::spawn(move || {
            for number in 0..MESSAGES {
                alive();
                let fds = attachments(number, attached(number));
                publisher.send_with(&message(number), &fds).unwrap();
            }
            publisher
        });
        let mut number = 0;
        loop {
            for _ in 0..dice.below(20) {
                if number < MESSAGES {
                    receive(&mut subscriber, number);
                    number += 1;
                }
            }
            other.tell(&subscriber.ticket().unwrap());
            match subscriber.depart() {
                Ok(()) => break,
                Err(stays) => {
                    assert!(
                        matches!(stays.error, Error::Stays { .. }),
                        "{}",
                        stays.error
                    );
                    subscriber = stays.subscriber.unwrap();
                    assert!(!other.hear::<bool>());
                    stayed += 1;
                }
            }
        }
        assert!(other.hear::<bool>());
        other.tell(&number);
        drop(sending.join().unwrap());
        assert_eq!(other.hear::<(u64, String)>().0, MESSAGES);
        other.finish();
    }
    println!("{stayed} times it stayed");
}

/// One that is dropped for being slow moves, or is dropped on the way: nobody waits for it, and whoever has it receives without a gap
/// until it is told.
#[test]
fn one_that_may_be_dropped() {
    const MESSAGES: u64 = 2_000;
    let scene = Scene::new();
    let mut dice = Dice::new();
    let (mut moved, mut dropped) = (0, 0);
    for round in 0..20 {
        let builder = unbound(1 << 12);
        let after = Duration::ZERO;
        let (builder, overflow) = match round % 2 {
            0 => (builder, Overflow::Disconnect),
            _ => (
                builder.when_full(WhenFull::Disconnect { after }),
                Overflow::Block,
            ),
        };
        let (mut publisher, mut subscriber) = lane(builder, overflow);
        let other = start(&scene);
        let mut sent = 0;
        let mut send = |messages: u64| {
            for number in sent..sent + messages {
                let sent = publisher.send_timeout(&message(number), PATIENCE);
                sent.expect("nobody is waited for");
            }
            sent += messages;
        };
        // What fits the ring.
        let first = dice.below(20);
        send(first);
        let read = dice.below(first + 1);
        (0..read).for_each(|number| receive(&mut subscriber, number));
        other.tell(&subscriber.ticket().unwrap());
        send([0, 5, 200][dice.below(3) as usize]);
        let departed = subscriber.depart();
        let arrived: bool = other.hear();
        if arrived {
            assert!(departed.is_ok());
            other.tell(&read);
            send(MESSAGES);
            let disconnected = publisher.stats().too_slow;
            publisher.close();
            let (number, end) = other.hear::<(u64, String)>();
            if number == sent {
                assert!(end.contains("closed"), "{end}");
            } else {
                assert!(end.contains("it was too slow"), "{end}");
                assert_eq!(disconnected, 1);
                dropped += 1;
            }
            moved += 1;
            other.finish();
        } else {
            send(MESSAGES);
            assert_eq!(publisher.stats().too_slow, 1);
            other.kill_and_reap();
            dropped += 1;
        }
    }
    println!("{moved} moved, {dropped} dropped");
    assert!(moved > 0 && dropped > 0);
}

/// Who has begun with a history goes on in it elsewhere.
#[test]
fn one_that_came_late() {
    let scene = Scene::new();
    for read in [0, 1, 7, 10, 12] {
        let mut publisher = unbound(1 << 14).history(10).unbound().unwrap();
        (0..100).for_each(|number| publisher.send(&message(number)).unwrap());
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        let mut subscriber = Subscriber::builder().history(10).over(theirs).unwrap();
        (100..110).for_each(|number| publisher.send(&message(number)).unwrap());
        (90..90 + read).for_each(|number| receive(&mut subscriber, number));
        let other = start(&scene);
        other.tell(&subscriber.ticket().unwrap());
        subscriber.depart().unwrap();
        assert!(other.hear::<bool>());
        other.tell(&(90 + read));
        (110..300).for_each(|number| publisher.send(&message(number)).unwrap());
        publisher.close();
        assert_eq!(other.hear::<(u64, String)>().0, 300);
        other.finish();
    }
}

/// A successor that is stopped, before it has come or after, is as a subscriber that does not read: waited for, and nothing is lost.
#[test]
fn a_successor_that_is_stopped() {
    let scene = Scene::new();
    for has_come in [false, true] {
        let (mut publisher, mut subscriber) = lane(unbound(1 << 12), Overflow::Block);
        let other = scene.spawn("successor", &());
        let thread: u32 = other.hear();
        publisher.send(&message(0)).unwrap();
        receive(&mut subscriber, 0);
        let ticket = subscriber.ticket().unwrap();
        if has_come {
            other.tell(&ticket);
            while !subscriber.is_awaited().unwrap() {
                std::thread::yield_now();
            }
            wait_asleep(other.id(), thread);
        }
        other.stop();
        if !has_come {
            other.tell(&ticket);
        }
        drop(ticket);
        subscriber.depart().unwrap();
        let mut sent = 1;
        let full = loop {
            let short = Duration::from_millis(5);
            match publisher.send_timeout(&message(sent), short) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(full, SendTimeoutError::TimedOut), "{full:?}");
        assert!(sent > 10);
        other.go_on();
        assert!(other.hear::<bool>());
        other.tell(&1_u64);
        for number in sent..sent + 500 {
            publisher.send(&message(number)).unwrap();
        }
        publisher.close();
        assert_eq!(other.hear::<(u64, String)>().0, sent + 500);
        other.finish();
    }
}

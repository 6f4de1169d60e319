//! What follows a publisher that moves: subscribers of all kinds, attachments, what is held.

use std::time::{Duration, Instant};

use memlane::{
    Encoded, Error, Link, Overflow, Publisher, PublisherBuilder, Reason, RecvError, Subscriber,
    SubscriberBuilder, TryRecvError, WaitPolicy,
};
use memlane_tests::{
    Dice, PATIENCE, Scene, alive, attachments, check, check_attachments, fill, unbound,
};

/// A publisher, and subscribers of it in this process.
fn attached(builder: PublisherBuilder) -> (Publisher, Subscriber) {
    let publisher = builder.unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let subscriber = Subscriber::builder().over(theirs).unwrap();
    (publisher, subscriber)
}

/// Moves a publisher to another one in this process.
pub(crate) fn moved(mut publisher: Publisher, builder: PublisherBuilder) -> Publisher {
    let ticket = publisher.ticket().unwrap();
    let other = std::thread::spawn(move || builder.timeout(PATIENCE).arrive(ticket).unwrap());
    publisher.depart().unwrap();
    other.join().unwrap()
}

#[test]
fn the_next_message_is_the_successors() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = attached(unbound(4096));
    publisher.send(b"one").unwrap();
    let mut publisher = moved(publisher, unbound(1 << 16));
    assert_eq!(publisher.subscribers(), 1);
    publisher.send(b"two").unwrap();
    assert_eq!(subscriber.recv().unwrap().to_vec(), b"one");
    let message = subscriber.recv().unwrap();
    assert_eq!((message.sequence(), message.to_vec()), (1, b"two".to_vec()));
    drop(message);
    assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
    // More than a ring: it is heard of what is released.
    for number in 0..1000_u64 {
        publisher.send(&number.to_le_bytes()).unwrap();
        assert_eq!(subscriber.recv().unwrap().to_vec(), number.to_le_bytes());
    }
    drop(publisher);
    let Err(RecvError::Disconnected { reason }) = subscriber.recv() else {
        panic!("the publisher is gone");
    };
    assert_eq!(reason, Reason::Closed);
}

/// A subscriber of a publisher in this process.
pub(crate) fn subscribe(publisher: &Publisher, builder: SubscriberBuilder) -> Subscriber {
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    builder.over(theirs).unwrap()
}

#[test]
fn attachments_move_along() {
    let _scene = Scene::new();
    let builder = || unbound(1 << 14).attachments_in_flight(1000);
    let mut publisher = builder().unbound().unwrap();
    let mut readers = [WaitPolicy::Block, WaitPolicy::Poll]
        .map(|policy| subscribe(&publisher, Subscriber::builder().wait(policy)));
    let lossy = Subscriber::builder().overflow(Overflow::Overwrite);
    let mut lossy = subscribe(&publisher, lossy);
    let (mut dice, mut sent, mut received, mut accounted) = (Dice::new(), 0_u64, [0, 0], 0);
    let attached = |number: u64| (number % 4) as usize;
    let receive = |subscriber: &mut Subscriber, received: &mut u64| {
        let mut message = subscriber.recv().unwrap();
        check(*received, &message.to_vec());
        let fds = message.take_attachments().unwrap();
        check_attachments(*received, attached(*received), fds);
        *received += 1;
    };
    for _ in 0..200 {
        alive();
        for _ in 0..dice.below(6) {
            let mut message = [0; 40];
            fill(sent, &mut message);
            let fds = attachments(sent, attached(sent));
            publisher.send_with(&message, &fds).unwrap();
            sent += 1;
        }
        for (reader, received) in readers.iter_mut().zip(&mut received) {
            for _ in 0..dice.below(6).min(sent - *received) {
                receive(reader, received);
            }
            // So many notices are on their way at most.
            while sent - *received > 40 {
                receive(reader, received);
            }
        }
        for _ in 0..dice.below(6) {
            let Ok(mut message) = lossy.try_recv() else {
                break;
            };
            assert_eq!(message.sequence(), accounted + message.missed());
            accounted = message.sequence() + 1;
            match message.take_attachments() {
                // It goes without them if there is no room for them.
                Ok(fds) if fds.is_empty() => {}
                Ok(fds) => check_attachments(accounted - 1, attached(accounted - 1), fds),
                Err(_) => {}
            }
        }
        publisher = moved(publisher, builder());
    }
    for (reader, received) in readers.iter_mut().zip(&mut received) {
        while *received < sent {
            receive(reader, received);
        }
    }
    assert_eq!(publisher.stats().evicted, 0);
}

/// What is held of one publisher is nothing to the next, and stays as it is.
#[test]
fn what_is_held_stays_as_it_is() {
    let _scene = Scene::new();
    let builder = || unbound(4096).pool_bytes(1 << 18);
    let mut publisher = builder().unbound().unwrap();
    let mut subscriber = subscribe(&publisher, Subscriber::builder());
    let mut held = std::collections::VecDeque::new();
    let long = |number: u64| {
        let mut message = vec![0; 10_000];
        fill(number, &mut message);
        message
    };
    let mut next = 0;
    for _ in 0..50 {
        alive();
        for _ in 0..5 {
            publisher.send_timeout(&long(next), PATIENCE).unwrap();
            let message = subscriber.recv().unwrap();
            if next % 5 == 0 {
                held.push_back((next, message.hold().ok().unwrap()));
            }
            next += 1;
        }
        for (number, message) in &held {
            check(*number, &message.to_vec());
        }
        if held.len() > 10 {
            held.pop_front();
        }
        publisher = moved(publisher, builder());
    }
    // All that it holds of this publisher's, and no room for more: dropping some of it wakes who waits.
    held.clear();
    while publisher.try_send(&long(next)).is_ok() {
        let message = subscriber.recv().unwrap();
        held.push_back((next, message.hold().ok().unwrap()));
        next += 1;
    }
    let sender = std::thread::spawn(move || {
        publisher.send_timeout(&long(next), PATIENCE).unwrap();
        publisher
    });
    std::thread::sleep(Duration::from_millis(10));
    held.pop_front();
    check(next, &subscriber.recv().unwrap().to_vec());
    drop(sender.join().unwrap());
    drop(held);
}

#[test]
fn a_subscriber_moves_once_it_has_come_to_its_publisher() {
    let _scene = Scene::new();
    let mut publisher = unbound(4096).unbound().unwrap();
    let mut subscriber = subscribe(&publisher, Subscriber::builder());
    publisher.send(b"before").unwrap();
    // A ticket that it has when its publisher departs is void.
    let _void = subscriber.ticket().unwrap();
    let mut publisher = moved(publisher, unbound(4096));
    publisher.send(b"after").unwrap();
    let stays = subscriber.depart().unwrap_err();
    assert!(
        stays.to_string().contains("moves to another process"),
        "{stays}"
    );
    let mut subscriber = stays.subscriber.unwrap();
    for _ in 0..3 {
        let early = subscriber.ticket().unwrap_err();
        assert!(
            early.to_string().contains("has still to receive"),
            "{early}"
        );
    }
    assert_eq!(subscriber.recv().unwrap().to_vec(), b"before");
    assert_eq!(subscriber.recv().unwrap().to_vec(), b"after");
    let ticket = subscriber.ticket().unwrap();
    subscriber.depart().unwrap();
    let mut subscriber = ticket.arrive().unwrap();
    publisher.send(b"there").unwrap();
    let mut publisher = moved(publisher, unbound(4096));
    publisher.send(b"and on").unwrap();
    assert_eq!(subscriber.recv().unwrap().to_vec(), b"there");
    assert_eq!(subscriber.recv().unwrap().to_vec(), b"and on");
}

/// Nothing is sent between, so that each leaves a ring in which nothing is; and whoever looks then comes to the last.
#[test]
fn many_moves_without_a_message() {
    let _scene = Scene::new();
    let mut publisher = unbound(4096).unbound().unwrap();
    let mut subscriber = subscribe(&publisher, Subscriber::builder());
    let lossy = Subscriber::builder().overflow(Overflow::Overwrite);
    let mut lossy = subscribe(&publisher, lossy);
    let mut next = 0_u64;
    for round in 0..200 {
        publisher = moved(publisher, unbound(4096));
        if round % 50 == 49 {
            publisher.send(&next.to_le_bytes()).unwrap();
            for subscriber in [&mut subscriber, &mut lossy] {
                assert_eq!(subscriber.recv().unwrap().to_vec(), next.to_le_bytes());
            }
            next += 1;
        }
    }
}

/// Nobody waits for one that is overwritten, nor for its successor.
#[test]
fn an_overwritten_one_that_has_departed_for_nobody_holds_up_no_move() {
    let _scene = Scene::new();
    let mut publisher = unbound(4096).unbound().unwrap();
    let mut other = subscribe(&publisher, Subscriber::builder());
    let lossy = || Subscriber::builder().overflow(Overflow::Overwrite);
    let mut overwritten = subscribe(&publisher, lossy());
    publisher.send(b"one").unwrap();
    let ticket = overwritten.ticket().unwrap();
    overwritten.depart().unwrap();
    let mut publisher = moved(publisher, unbound(4096));
    publisher.send(b"two").unwrap();
    let refused = lossy().arrive(ticket).unwrap_err();
    assert!(matches!(refused, Error::HungUp), "{refused}");
    for message in [b"one", b"two"] {
        assert_eq!(other.recv().unwrap().to_vec(), message);
    }
    assert_eq!(publisher.subscribers(), 1);
}

#[test]
fn sixty_four_subscribers_follow() {
    let _scene = Scene::new();
    let mut publisher = unbound(1 << 14).unbound().unwrap();
    let mut subscribers: Vec<_> = (0..64)
        .map(|_| subscribe(&publisher, Subscriber::builder()))
        .collect();
    for round in 0..5_u64 {
        publisher.send(&round.to_le_bytes()).unwrap();
        publisher = moved(publisher, unbound(1 << 14));
        assert_eq!(publisher.subscribers(), 64);
    }
    for round in 0..5_u64 {
        for subscriber in &mut subscribers {
            assert_eq!(subscriber.recv().unwrap().to_vec(), round.to_le_bytes());
        }
    }
}

/// One that is too slow for the successor is dropped there, and told; one that spills keeps what it has not read for it.
#[test]
fn slow_ones_are_seen_to_where_the_publisher_is() {
    let _scene = Scene::new();
    let mut publisher = unbound(4096).unbound().unwrap();
    let dropped = Subscriber::builder().overflow(Overflow::Disconnect);
    let mut dropped = subscribe(&publisher, dropped);
    publisher.send(&0_u64.to_le_bytes()).unwrap();
    let mut publisher = moved(publisher, unbound(4096));
    for number in 1..2000_u64 {
        publisher
            .send_timeout(&number.to_le_bytes(), PATIENCE)
            .unwrap();
    }
    assert_eq!(publisher.stats().too_slow, 1);
    let mut next = 0_u64;
    let reason = loop {
        match dropped.recv() {
            Ok(message) => {
                assert_eq!(message.to_vec(), next.to_le_bytes());
                next += 1;
            }
            Err(RecvError::Disconnected { reason }) => break reason,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(matches!(reason, Reason::Evicted { .. }), "{reason}");
    // It ends with the ring that the successor was writing, which was left to it: what came before that is nobody's to write any more.
    assert!((2..2000).contains(&next), "{next}");
    drop(dropped);

    let mut slow = subscribe(&publisher, Subscriber::builder());
    let mut publisher = moved(publisher, unbound(4096).spill_bytes(1 << 16));
    for number in 0..2000_u64 {
        publisher
            .send_timeout(&number.to_le_bytes(), PATIENCE)
            .unwrap();
    }
    assert!(publisher.stats().spills > 0);
    let mut publisher = moved(publisher, unbound(4096));
    publisher.send(&2000_u64.to_le_bytes()).unwrap();
    for number in 0..=2000_u64 {
        assert_eq!(slow.recv().unwrap().to_vec(), number.to_le_bytes());
    }
}

/// One that is overwritten may fall behind with what it is told while its publisher waits to depart: nobody tells it the rest then.
#[test]
fn one_that_has_not_been_told_all_follows() {
    let _scene = Scene::new();
    let builder = unbound(4096).pool_bytes(1 << 20).max_message(800_000);
    let mut publisher = builder.spill_bytes(4 * 4096).unbound().unwrap();
    let mut slow = subscribe(&publisher, Subscriber::builder());
    let lossy = Subscriber::builder().overflow(Overflow::Overwrite);
    let mut lossy = subscribe(&publisher, lossy);
    let ticket = publisher.ticket().unwrap();
    let other = std::thread::spawn(|| {
        let builder = unbound(4096).timeout(PATIENCE);
        builder.arrive(ticket).unwrap()
    });
    assert!(publisher.wait_until_awaited(PATIENCE).unwrap());
    // Memory comes and goes, until there is no room for more of that on the link.
    for _ in 0..300 {
        for len in [20_000, 200_000, 400_000, 800_000] {
            publisher.try_reserve(len).unwrap().commit();
            drop(slow.recv().unwrap());
        }
        assert!(matches!(slow.try_recv(), Err(TryRecvError::Empty)));
        publisher.trim(Duration::ZERO);
        alive();
    }
    for _ in 0..100 {
        publisher.send(&[1; 100]).unwrap();
    }
    assert!(publisher.stats().spills > 0);
    publisher.depart().unwrap();
    let mut publisher = other.join().unwrap();
    publisher.send(b"there").unwrap();
    for _ in 0..100 {
        assert_eq!(slow.recv().unwrap().to_vec(), [1; 100]);
    }
    assert_eq!(slow.recv().unwrap().to_vec(), b"there");
    // What it was not told of it has missed.
    while lossy.recv_timeout(PATIENCE).unwrap().to_vec() != b"there" {}
    assert_eq!(lossy.sequence(), slow.sequence());
}

/// Rings of a publisher that has moved are mapped by whoever has not come to its successor, read or not: all are never more than
/// subscribers take, and who is overwritten makes room.
#[test]
fn rings_of_both_are_no_more_than_there_may_be() {
    let _scene = Scene::new();
    let builder = || unbound(4096).spill_bytes(60 * 4096);
    let mut publisher = builder().unbound().unwrap();
    let mut subscriber = subscribe(&publisher, Subscriber::builder());
    let (mut sent, mut received) = (0_u64, 0);
    let fill = |publisher: &mut Publisher, rings: u64, from: u64| {
        let mut number = from;
        for _ in 0..rings * 50 {
            let message = [number.to_le_bytes(); 8].concat();
            number += u64::from(publisher.try_send(&message).is_ok());
        }
        number - from
    };
    let mut receive = |subscriber: &mut Subscriber, end: u64| {
        while received < end {
            let message = subscriber.recv().unwrap().to_vec();
            assert_eq!(message[..8], received.to_le_bytes());
            received += 1;
        }
    };
    let none = |subscriber: &mut Subscriber| {
        assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
    };
    for unread in [20, 0, 2000] {
        alive();
        let lossy = Subscriber::builder().overflow(Overflow::Overwrite);
        let mut lossy = subscribe(&publisher, lossy);
        sent += fill(&mut publisher, 40, sent);
        assert!(publisher.stats().spills > 20);
        receive(&mut subscriber, sent - unread);
        if unread == 0 {
            none(&mut subscriber);
        }
        publisher = moved(publisher, builder());
        if unread == 2000 {
            // It has come, and is not counted as one that has rings of the other.
            sent += fill(&mut publisher, 1, sent);
            receive(&mut subscriber, sent);
            none(&mut subscriber);
        }
        sent += fill(&mut publisher, 80, sent);
        receive(&mut subscriber, sent);
        none(&mut subscriber);
        // Nobody has counted what this one has, which hears of all of them before it reads any.
        assert!(!lossy.is_awaited().unwrap());
        while lossy.sequence() < sent {
            drop(lossy.recv_timeout(PATIENCE).unwrap());
        }
    }
}

/// So is the memory of messages: who comes from one to the other has let go of the first's before it takes the second's.
#[test]
fn pools_of_both_are_no_more_than_one() {
    let _scene = Scene::new();
    let builder = || unbound(1 << 14).pool_bytes(4 << 20).max_message(1 << 20);
    let mut publisher = builder().unbound().unwrap();
    let builder_of_one = Subscriber::builder().max_pool_bytes(6 << 20);
    let mut subscriber = subscribe(&publisher, builder_of_one);
    let mut sent = 0;
    let fill = |publisher: &mut Publisher, sent: &mut u64| {
        loop {
            let mut message = vec![0; 200_000];
            fill(*sent, &mut message);
            if publisher.try_send(&message).is_err() {
                break;
            }
            *sent += 1;
        }
    };
    fill(&mut publisher, &mut sent);
    assert!(publisher.pool_bytes() > 3 << 20);
    let mut publisher = moved(publisher, builder());
    fill(&mut publisher, &mut sent);
    assert!(publisher.pool_bytes() > 3 << 20);
    for number in 0..sent {
        check(number, &subscriber.recv().unwrap().to_vec());
    }
}

/// Also where one looks at notices while it is in the midst of the first's: the second's are not taken before they are of use.
#[test]
fn what_a_successor_says_waits_until_it_is_heard() {
    let _scene = Scene::new();
    let builder = || {
        let builder = unbound(1 << 14).spill_bytes(40 << 14);
        builder.pool_bytes(4 << 20).max_message(1 << 20)
    };
    let mut publisher = builder().unbound().unwrap();
    let builder_of_one = Subscriber::builder().max_pool_bytes(6 << 20);
    let mut subscriber = subscribe(&publisher, builder_of_one);
    let mut sent = 0;
    let fill = |publisher: &mut Publisher, sent: &mut u64| {
        for len in [5000; 100].into_iter().chain([200_000; 100]) {
            let mut message = vec![0; len];
            fill(*sent, &mut message);
            *sent += u64::from(publisher.try_send(&message).is_ok());
        }
    };
    fill(&mut publisher, &mut sent);
    assert!(publisher.pool_bytes() > 3 << 20);
    assert!(publisher.stats().spills > 20);
    let mut publisher = moved(publisher, builder());
    fill(&mut publisher, &mut sent);
    assert!(publisher.pool_bytes() > 3 << 20);
    assert!(publisher.stats().spills > 20);
    for number in 0..sent {
        assert!(!subscriber.is_awaited().unwrap());
        check(number, &subscriber.recv().unwrap().to_vec());
    }
    drop(publisher);
    assert!(matches!(
        subscriber.recv(),
        Err(RecvError::Disconnected {
            reason: Reason::Closed
        })
    ));
}

/// A successor counts its signs of life anew: as many as the one before gave are news all the same.
#[test]
fn signs_of_life_of_the_successor_are_new() {
    let _scene = Scene::new();
    for overflow in [Overflow::Block, Overflow::Overwrite] {
        let mut publisher = unbound(4096).unbound().unwrap();
        let mut subscriber = subscribe(&publisher, Subscriber::builder().overflow(overflow));
        publisher.assert_alive();
        let _ = subscriber.silence();
        let mut publisher = moved(publisher, unbound(4096));
        assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
        let moved = Instant::now();
        publisher.assert_alive();
        assert!(subscriber.silence() <= moved.elapsed());
    }
}

#[test]
fn driven_ones_and_values() {
    let _scene = Scene::new();
    let builder = || Publisher::builder().driven().of::<Encoded<(u64, String)>>();
    let mut publisher = builder().unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let joining = std::thread::spawn(|| {
        let builder = Subscriber::builder().of::<Encoded<(u64, String)>>();
        builder.over(theirs).unwrap()
    });
    publisher.wait_for_subscribers(1).unwrap();
    let mut subscriber = joining.join().unwrap();
    for round in 0..20 {
        publisher.send(&(round, "value".to_owned())).unwrap();
        let ticket = publisher.ticket().unwrap();
        let other = std::thread::spawn(move || builder().arrive(ticket).unwrap());
        while !publisher.is_awaited().unwrap() {
            std::thread::yield_now();
        }
        publisher.depart().unwrap();
        publisher = other.join().unwrap();
        assert_eq!(subscriber.recv().unwrap(), (round, "value".to_owned()));
    }
    // Of something else.
    let ticket = publisher.ticket().unwrap();
    let other = std::thread::spawn(|| Publisher::builder().arrive(ticket).unwrap_err());
    let stays = publisher.depart().unwrap_err();
    let error = other.join().unwrap();
    assert!(matches!(error, Error::Option { .. }), "{error}");
    assert!(stays.to_string().contains("encoded"), "{stays}");
    let mut publisher = stays.publisher.unwrap();
    publisher.send(b"bytes").unwrap();
    // A subscriber of values finds no such value in it.
    assert!(subscriber.recv().is_err());
}

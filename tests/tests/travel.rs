//! Subscribers that move from process to process, in the middle of a stream.

use std::time::Duration;

use memlane::{Link, Overflow, Publisher, Subscriber, Ticket, TrySendError};
use memlane_tests::{
    Child, Dice, PATIENCE, Policy, Role, Route, Scene, Stream, alive, attachments, check,
    check_attachments, circle, fill, play, unbound, who_has_it,
};

#[test]
fn other_process() {
    play(&[("traveller", traveller)]);
}

type Passed = memlane_tests::Passed<Ticket, u64>;

/// Receives a few messages, and checks each.
fn receive(subscriber: &mut Subscriber, next: &mut u64, messages: u64) {
    for _ in 0..messages {
        let message = subscriber.recv_timeout(PATIENCE).unwrap().to_vec();
        check(*next, &message);
        *next += 1;
    }
}

/// Has a subscriber for a while, again and again.
fn traveller(role: &Role) {
    let Route {
        from,
        to,
        kind: policy,
    }: Route<Policy> = role.hear();
    let mut dice = Dice::new();
    let mut kept = None;
    loop {
        alive();
        let (ticket, moves) = match from.recv().unwrap() {
            Passed::Ticket(ticket, moves) => (ticket, moves),
            Passed::Next(_) => unreachable!("it follows a ticket"),
            Passed::End => break,
        };
        let builder = Subscriber::builder().wait(policy.into());
        let mut subscriber = builder.timeout(PATIENCE).arrive(ticket).unwrap();
        let Passed::Next(mut next) = from.recv().unwrap() else {
            unreachable!("it follows a ticket")
        };
        receive(&mut subscriber, &mut next, dice.below(20));
        if moves == 0 {
            kept = Some((subscriber, next));
            break;
        }
        let ticket = subscriber.ticket().unwrap();
        receive(&mut subscriber, &mut next, dice.below(3));
        to.send(&Passed::Ticket(ticket, moves - 1)).unwrap();
        match dice.below(3) {
            0 => {}
            1 => receive(&mut subscriber, &mut next, dice.below(20)),
            _ => {
                while !subscriber.is_awaited().unwrap() {
                    receive(&mut subscriber, &mut next, 1);
                }
            }
        }
        subscriber.depart().unwrap();
        to.send(&Passed::Next(next)).unwrap();
    }
    // Once around the circle, if the others do not know yet.
    let _ = to.send(&Passed::End);
    if let Some((mut subscriber, mut next)) = kept {
        role.tell(&true);
        while let Ok(message) = subscriber.recv() {
            check(next, &message.to_vec());
            next += 1;
        }
        role.tell(&next);
    } else {
        role.tell(&false);
        role.tell(&0_u64);
    }
}

/// Processes in a circle, among which a subscriber moves.
struct Circle {
    children: Vec<Child>,
}

impl Circle {
    /// Starts them, and sets a subscriber of this publisher's on its way.
    fn start(scene: &Scene, publisher: &Publisher, policies: &[Policy], moves: u64) -> Circle {
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        let mut subscriber = Subscriber::builder().over(theirs).unwrap();
        let children = circle(scene, policies, |first| {
            let ticket = subscriber.ticket().unwrap();
            first.send(&Passed::Ticket(ticket, moves - 1)).unwrap();
            subscriber.depart().unwrap();
            first.send(&Passed::Next(0)).unwrap();
        });
        Circle { children }
    }

    /// Waits until all moves are made.
    fn arrived(&self) {
        let kept: Vec<bool> = self.children.iter().map(Child::hear).collect();
        who_has_it(&kept);
    }

    /// How many messages were received in all, once the publisher has closed.
    fn finish(self) -> u64 {
        let mut received = 0;
        for child in self.children {
            received += child.hear::<u64>();
            child.finish();
        }
        received
    }
}

/// With nobody in its way but those who move, the publisher finds room for every message at once.
#[test]
fn ten_thousand_moves_under_a_running_publisher() {
    let scene = Scene::new();
    let mut publisher = unbound(1 << 20).unbound().unwrap();
    let policies = [Policy::Adaptive, Policy::Block, Policy::Adaptive];
    let circle = Circle::start(&scene, &publisher, &policies, 10_000);
    let moves = 10_000;
    let (mut sent, mut full) = (0, 0);
    while publisher.stats().moved < moves {
        let mut message = [0; 40];
        fill(sent, &mut message);
        match publisher.try_send(&message) {
            Ok(()) => sent += 1,
            Err(TrySendError::Full) => {
                full += 1;
                std::thread::sleep(Duration::from_micros(100));
            }
            Err(error) => panic!("message {sent}: {error}"),
        }
        if sent % 8 == 0 {
            alive();
            std::thread::sleep(Duration::from_micros(30));
        }
    }
    circle.arrived();
    let stats = publisher.stats();
    println!("{sent} messages, {full} times full, {stats:?}");
    assert_eq!((stats.moved, stats.evicted), (moves, 0));
    drop(publisher);
    assert_eq!(circle.finish(), sent);
}

/// In a small ring that is always full, with messages in the pool.
#[test]
fn moves_in_a_full_ring() {
    let scene = Scene::new();
    let publisher = unbound(4096).pool_bytes(1 << 20).unbound().unwrap();
    let policies = [Policy::Block, Policy::Adaptive];
    let circle = Circle::start(&scene, &publisher, &policies, 2000);
    let stream = Stream::start(publisher, 20_000);
    circle.arrived();
    let publisher = stream.stop();
    let stats = publisher.stats();
    println!("{stats:?}");
    assert_eq!((stats.moved, stats.evicted), (2000, 0));
    drop(publisher);
    assert_eq!(circle.finish(), stats.messages);
}

/// In rings that the publisher leaves to it, and goes on in others.
#[test]
fn moves_from_ring_to_ring() {
    let scene = Scene::new();
    let builder = unbound(4096).spill_bytes(32 << 10).pool_bytes(1 << 20);
    let publisher = builder.unbound().unwrap();
    let policies = [Policy::Block, Policy::Adaptive];
    let circle = Circle::start(&scene, &publisher, &policies, 1000);
    let stream = Stream::start(publisher, 1000);
    circle.arrived();
    let publisher = stream.stop();
    let stats = publisher.stats();
    println!("{stats:?}");
    assert_eq!((stats.moved, stats.evicted), (1000, 0));
    assert!(stats.spills > 100);
    drop(publisher);
    assert_eq!(circle.finish(), stats.messages);
}

/// One that is overwritten goes on where it was, and knows what it has missed.
#[test]
fn an_overwritten_one() {
    let _scene = Scene::new();
    let mut publisher = unbound(4096).unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let lossy = || Subscriber::builder().overflow(Overflow::Overwrite);
    let mut subscriber = lossy().over(theirs).unwrap();
    let mut dice = Dice::new();
    let (mut sent, mut accounted) = (0_u64, 0);
    for round in 0..200 {
        for _ in 0..dice.below(400) {
            publisher.send(&sent.to_le_bytes()).unwrap();
            sent += 1;
        }
        for _ in 0..dice.below(300) {
            let Ok(message) = subscriber.try_recv() else {
                break;
            };
            let number = u64::from_le_bytes(message.to_vec().try_into().unwrap());
            assert_eq!(number, message.sequence());
            assert_eq!(number, accounted + message.missed());
            accounted = number + 1;
        }
        let ticket = subscriber.ticket().unwrap();
        // One that would be waited for has no business here.
        if round == 100 {
            let refused = Subscriber::builder().arrive(ticket).unwrap_err();
            assert!(refused.to_string().contains("is overwritten"), "{refused}");
            while subscriber.is_awaited().is_ok() {}
            continue;
        }
        subscriber.depart().unwrap();
        subscriber = lossy().arrive(ticket).unwrap();
        assert_eq!(subscriber.sequence(), accounted);
    }
    // Dropped by a process that died, it would begin with the next message.
    let stats = publisher.stats();
    assert_eq!((stats.moved, stats.evicted, stats.left), (199, 0, 0));
}

/// What a successor takes beside messages is up to its own options, and as much as what others take.
#[test]
fn a_successor_of_attachments() {
    let _scene = Scene::new();
    let mut publisher = unbound(4096).max_attachments(40).unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let takes = |attachments| Subscriber::builder().max_attachments(attachments);
    let mut subscriber = takes(40).over(theirs).unwrap();
    for number in 0..20 {
        let count = 1 + 13 * (number as usize % 4);
        let fds = attachments(number, count);
        publisher.send_with(&number.to_le_bytes(), &fds).unwrap();
        let mut message = subscriber.recv().unwrap();
        assert_eq!(message.to_vec(), number.to_le_bytes());
        check_attachments(number, count, message.take_attachments().unwrap());
        drop(message);
        let ticket = subscriber.ticket().unwrap();
        if number == 10 {
            let refused = takes(39).arrive(ticket).unwrap_err();
            assert!(refused.to_string().contains("attachments"), "{refused}");
            while subscriber.is_awaited().is_ok() {}
            continue;
        }
        subscriber.depart().unwrap();
        subscriber = takes(40).arrive(ticket).unwrap();
    }
    let stats = publisher.stats();
    assert_eq!((stats.moved, stats.evicted, stats.left), (19, 0, 0));
}

//! Publishers that move among processes, under streams.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use memlane::{Link, Overflow, Publisher, PublisherBuilder, PublisherTicket, Subscriber};
use memlane_tests::{
    Child, Dice, PATIENCE, Policy, Role, Route, Scene, Steady, Wish, alive, check, circle, fill,
    length, number, ready_to_sleep, who_has_it,
};
use serde::{Deserialize, Serialize};

type Passed = memlane_tests::Passed<PublisherTicket, u64>;

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Kind {
    policy: Policy,
    longest: usize,
    spill_bytes: usize,
}

impl Kind {
    fn builder(self) -> PublisherBuilder {
        let builder = Publisher::builder().wait(self.policy.into());
        let builder = builder.spill_bytes(self.spill_bytes).pool_bytes(1 << 20);
        builder.timeout(PATIENCE)
    }
}

/// Sends a few messages.
fn send(publisher: &mut Publisher, next: &mut u64, messages: u64, longest: usize) {
    let mut buffer = vec![0; longest.max(8)];
    for _ in 0..messages {
        let message = &mut buffer[..length(*next, longest).max(8)];
        fill(*next, message);
        publisher.send_timeout(message, PATIENCE).unwrap();
        *next += 1;
    }
}

/// Gives a publisher on: sends all the while.
fn pass_on(
    mut publisher: Publisher,
    next: &mut u64,
    kind: Kind,
    to: &Link,
    moves: u64,
    dice: &mut Dice,
) {
    let ticket = publisher.ticket().unwrap();
    send(&mut publisher, next, dice.below(3), kind.longest);
    to.send(&Passed::Ticket(ticket, moves)).unwrap();
    match dice.below(3) {
        0 => {}
        1 => send(&mut publisher, next, dice.below(20), kind.longest),
        _ => {
            while !publisher.is_awaited().unwrap() {
                send(&mut publisher, next, 1, kind.longest);
            }
        }
    }
    publisher.depart().unwrap();
    to.send(&Passed::Next(*next)).unwrap();
}

/// Has a publisher for a while, again and again.
pub(crate) fn traveller(role: &Role) {
    let route: Route<Kind> = role.hear();
    let (from, to, kind) = (route.from.adopting(), route.to, route.kind);
    let mut dice = Dice::new();
    let mut kept = None;
    loop {
        alive();
        let (ticket, moves) = match from.recv().unwrap() {
            Passed::Ticket(ticket, moves) => (ticket, moves),
            Passed::Next(_) => unreachable!("it follows a ticket"),
            Passed::End => break,
        };
        let mut publisher = kind.builder().arrive(ticket).unwrap();
        let Passed::Next(mut next) = from.recv().unwrap() else {
            unreachable!("it follows a ticket")
        };
        send(&mut publisher, &mut next, dice.below(20), kind.longest);
        if moves == 0 {
            kept = Some((publisher, next));
            break;
        }
        pass_on(publisher, &mut next, kind, &to, moves - 1, &mut dice);
    }
    // Once around the circle, if the others do not know yet.
    let _ = to.send(&Passed::End);
    role.tell(&kept.is_some());
    let () = role.hear();
    let evicted = kept
        .as_ref()
        .map(|(publisher, _)| publisher.stats().evicted);
    assert!(evicted.is_none_or(|evicted| evicted == 0));
    role.tell(&kept.as_ref().map(|(_, next)| *next));
}

/// Processes in a circle, among which a publisher moves.
struct Circle {
    children: Vec<Child>,
}

impl Circle {
    /// Starts them, and sets a publisher on its way.
    fn start(scene: &Scene, publisher: Publisher, next: u64, kinds: &[Kind], moves: u64) -> Circle {
        let mut next = next;
        let children = circle(scene, kinds, |first| {
            let dice = &mut Dice::new();
            pass_on(publisher, &mut next, kinds[0], first, moves - 1, dice);
        });
        Circle { children }
    }

    /// Waits until all moves are made.
    fn arrived(&self) {
        let kept: Vec<bool> = self.children.iter().map(Child::hear).collect();
        who_has_it(&kept);
    }

    /// The publisher closes: how many messages were sent in all.
    fn finish(self) -> u64 {
        self.children.iter().for_each(|child| child.tell(&()));
        let sent: Vec<Option<u64>> = self.children.iter().map(Child::hear).collect();
        self.children.into_iter().for_each(Child::finish);
        sent.into_iter().flatten().next().unwrap()
    }
}

/// Subscribes by name, again and again, and receives some messages each time: in order, whichever process sends.
pub(crate) fn newcomer(role: &Role) {
    let address: String = role.hear();
    let address = address.parse().unwrap();
    let (mut subscribed, mut dice) = (0_u64, Dice::new());
    while role.has_said::<()>().is_none() {
        alive();
        let builder = Subscriber::builder().timeout(PATIENCE);
        let mut subscriber = builder.connect_to(&address).unwrap();
        subscribed += 1;
        let mut expected = None;
        for _ in 0..dice.below(20) {
            let Ok(message) = subscriber.recv_timeout(Duration::from_millis(50)) else {
                break;
            };
            let message = message.to_vec();
            let expected = expected.get_or_insert_with(|| number(&message));
            check(*expected, &message);
            *expected += 1;
        }
    }
    role.tell(&subscribed);
}

/// A lossless reader that sleeps, one that spins, one that is overwritten, and one that comes and goes.
fn travel(kinds: &[Kind], moves: u64, ring_bytes: usize) {
    let scene = Scene::new();
    let address = scene.address("lane");
    let builder = kinds[0].builder().ring_bytes(ring_bytes);
    let publisher = builder.bind_to(&address).unwrap();
    let publisher = ready_to_sleep(publisher, kinds[0].policy);
    let longest = kinds[0].longest;
    let wish = |policy, trusting| Wish { policy, trusting };
    let readers = [wish(Policy::Block, false), wish(Policy::Adaptive, true)]
        .map(|wish| Steady::start(&scene, &address, wish, longest));
    let lossy = Subscriber::builder().overflow(Overflow::Overwrite);
    let mut lossy = lossy.connect_to(&address).unwrap();
    let newcomer = scene.spawn("newcomer", &address.to_string());
    publisher.wait_for_subscribers(3).unwrap();

    let (done, over) = (Arc::new(AtomicBool::new(false)), Duration::from_millis(20));
    let stop = done.clone();
    let overwritten = std::thread::spawn(move || {
        let mut accounted = 0;
        loop {
            match lossy.recv_timeout(over) {
                Ok(message) => {
                    assert_eq!(message.sequence(), accounted + message.missed());
                    check(message.sequence(), &message.to_vec());
                    accounted = message.sequence() + 1;
                }
                Err(memlane::RecvTimeoutError::TimedOut) => {}
                Err(memlane::RecvTimeoutError::Disconnected { reason }) => {
                    assert!(stop.load(Ordering::Relaxed), "{reason:?}");
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        (lossy.sequence(), lossy.stats())
    });
    let circle = Circle::start(&scene, publisher, 0, kinds, moves);
    circle.arrived();
    newcomer.tell(&());
    let subscribed: u64 = newcomer.hear();
    newcomer.finish();
    done.store(true, Ordering::Relaxed);
    let sent = circle.finish();
    for reader in readers {
        assert_eq!(reader.finish(), (sent, sent));
    }
    let (sequence, stats) = overwritten.join().unwrap();
    println!("{sent} messages, {subscribed} newcomers, overwritten: {stats:?}");
    assert_eq!(sequence, sent);
    assert_eq!(stats.messages + stats.missed, sent);
}

#[test]
fn three_thousand_moves_among_three_processes() {
    let kind = |policy| Kind {
        policy,
        longest: 200,
        spill_bytes: 0,
    };
    travel(
        &[
            kind(Policy::Adaptive),
            kind(Policy::Block),
            kind(Policy::Poll),
        ],
        3000,
        1 << 14,
    );
}

#[test]
fn moves_in_a_full_ring_with_messages_in_the_pool() {
    let kind = |policy| Kind {
        policy,
        longest: 20_000,
        spill_bytes: 0,
    };
    travel(&[kind(Policy::Block), kind(Policy::Adaptive)], 1000, 4096);
}

#[test]
fn moves_of_one_that_spills() {
    let kind = |policy| Kind {
        policy,
        longest: 1000,
        spill_bytes: 1 << 16,
    };
    travel(
        &[
            kind(Policy::Block),
            kind(Policy::Adaptive),
            kind(Policy::Block),
        ],
        1000,
        4096,
    );
}

//! Many lanes in this process.

use std::thread;

use memlane::{Key, Link, Overflow, Publisher, Subscriber, SubscriberBuilder, Subscriptions};
use memlane_tests::{Dice, PATIENCE, Policy, unbound};

pub(crate) fn builder(policy: Policy, overflow: Overflow) -> SubscriberBuilder {
    Subscriber::builder()
        .wait(policy.into())
        .overflow(overflow)
        .timeout(PATIENCE)
}

pub(crate) const BOTH: [Overflow; 2] = [Overflow::Block, Overflow::Overwrite];

/// A publisher in this process, and a subscriber to it.
pub(crate) fn pair(policy: Policy, overflow: Overflow) -> (Publisher, Subscriber) {
    let (here, there) = Link::pair().unwrap();
    let publisher = unbound(4096).pool_bytes(1 << 20).unbound().unwrap();
    publisher.attach(here).unwrap();
    (publisher, builder(policy, overflow).over(there).unwrap())
}

/// So many of them in this process, every second one overwritten.
pub(crate) fn many(policy: Policy, count: usize) -> (Subscriptions, Vec<(Key, Publisher)>) {
    let mut subscriptions = builder(policy, Overflow::Block).subscriptions().unwrap();
    let publishers = (0..count).map(|at| {
        let (publisher, subscriber) = pair(policy, BOTH[at % 2]);
        let label = format!("number {at}");
        (subscriptions.add_as(&label, subscriber).unwrap(), publisher)
    });
    let publishers = publishers.collect();
    (subscriptions, publishers)
}

/// Sends so many messages, each through one of them and with the number that it has there; how many went through each.
pub(crate) fn send_in_turns<const N: usize>(
    mut publishers: Vec<(Key, Publisher)>,
    messages: u64,
) -> thread::JoinHandle<[u64; N]> {
    thread::spawn(move || {
        let mut dice = Dice::new();
        let mut sent = [0_u64; N];
        for _ in 0..messages {
            let at = dice.below(N as u64) as usize;
            publishers[at].1.send(&sent[at].to_le_bytes()).unwrap();
            sent[at] += 1;
            dice.dally(2_000);
        }
        sent
    })
}

//! What there is on both sides, and how messages look.

use memlane::{Address, Overflow, Publisher, Subscriber, SubscriberBuilder};
use memlane_tests::{PATIENCE, Policy, Scene, fill, length, unbound};

/// The longest message: one that lies in the pool.
pub(crate) const LONGEST: usize = 20_000;
pub(crate) const RING: usize = 16 << 10;

/// As those of a [`Stream`].
pub(crate) fn len(number: u64) -> usize {
    length(number, LONGEST).max(8)
}

pub(crate) fn overwritten(policy: Policy) -> SubscriberBuilder {
    Subscriber::builder()
        .overflow(Overflow::Overwrite)
        .wait(policy.into())
        .timeout(PATIENCE)
}

pub(crate) fn bind(scene: &Scene, policy: Policy) -> (Publisher, Address) {
    let address = scene.address("prices");
    let builder = unbound(RING).pool_bytes(4 << 20).wait(policy.into());
    (builder.bind_to(&address).unwrap(), address)
}

pub(crate) fn send(publisher: &mut Publisher, number: u64, buffer: &mut [u8]) {
    let message = &mut buffer[..len(number)];
    fill(number, message);
    // Nobody is waited for: there is always room.
    publisher.try_send(message).unwrap();
}

//! A publisher that ends in every way.

use memlane::Publisher;
use memlane_tests::{Child, End, PATIENCE, Role, Scene, fill, unbound};

/// Of the ring, and every seventh of the pool.
pub(crate) fn length(number: u64) -> usize {
    if number % 7 == 6 { 20_000 } else { 50 }
}

/// Sends so many messages when it is told to, and ends as it is told to.
pub(crate) fn publisher(role: &Role) {
    let (address, driven): (String, bool) = role.hear();
    let mut builder = unbound(1 << 14);
    if driven {
        builder = builder.driven();
    }
    let mut publisher = builder
        .bind_to(&address.parse().expect("an address"))
        .expect("a publisher");
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("a subscriber");
    let (messages, end): (u64, End) = role.hear();
    let mut buffer = vec![0; 20_000];
    for number in 0..messages {
        let message = &mut buffer[..length(number)];
        fill(number, message);
        publisher.send(message).expect("room");
    }
    role.tell(&());
    if end == End::DrainAndClose {
        assert!(publisher.drain(PATIENCE).expect("a wait"));
    }
    end.come(role, publisher, Publisher::close);
}

pub(crate) fn start(scene: &Scene, driven: bool) -> Child {
    let address = scene.address("lane").to_string();
    let child = scene.spawn("publisher", &(address, driven));
    child.hear::<()>();
    child
}

/// Has it send and end. What it had committed by then is all there is.
pub(crate) fn end(child: &Child, messages: u64, end: End) {
    child.tell(&(messages, end));
    child.hear::<()>();
    if end == End::Killed {
        child.kill();
    }
}

//! Subscribers and receivers that move while one of those who take part is killed, stopped, or of another version, at each step of
//! what they say to one another.
//!
//! Whoever that is is another process, and speaks by hand ([`memlane_tests::wire`]), so that it gets exactly as far as the test wants.

mod old_ends;
mod publishers;
mod receivers;
mod senders;
mod subscriptions;
mod successors;
mod versions;

use std::ops::Range;

use memlane::{Link, Publisher, SendTimeoutError, Subscriber};
use memlane_tests::{PATIENCE, fill, number, play, unbound, wait_until};

#[test]
fn other_process() {
    play(&[
        ("old end", old_ends::old_end),
        ("publisher", publishers::publisher),
        ("receiver", receivers::old_end),
        ("receiver's successor", receivers::successor),
        ("sender", senders::sender),
        ("successor", successors::successor),
    ]);
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Killed,
    Stopped,
}

const FATES: [Fate; 2] = [Fate::Killed, Fate::Stopped];

/// Bytes of a message, with its header, in the ring.
const RECORD: u64 = 16;

fn lane() -> (Publisher, Subscriber) {
    let (ours, theirs) = Link::pair().unwrap();
    let publisher = unbound(4096).unbound().unwrap();
    publisher.attach(ours).unwrap();
    let subscriber = Subscriber::builder().timeout(PATIENCE);
    (publisher, subscriber.over(theirs).unwrap())
}

/// Message `number`, of 8 bytes.
fn message(number: u64) -> [u8; 8] {
    let mut message = [0; 8];
    fill(number, &mut message);
    message
}

/// Sends these, for which there is room now or soon.
#[track_caller]
fn send(publisher: &mut Publisher, numbers: Range<u64>) {
    for number in numbers {
        publisher.send_timeout(&message(number), PATIENCE).unwrap();
    }
}

/// Sends until there is no room, which does not change; the next number.
#[track_caller]
fn send_until_full(publisher: &mut Publisher, mut next: u64) -> u64 {
    let short = std::time::Duration::from_millis(2);
    loop {
        match publisher.send_timeout(&message(next), short) {
            Ok(()) => next += 1,
            Err(SendTimeoutError::TimedOut) => return next,
            Err(error) => panic!("{error}"),
        }
    }
}

#[track_caller]
fn expect(subscriber: &mut Subscriber, numbers: Range<u64>) {
    for expected in numbers {
        let message = subscriber.recv_timeout(PATIENCE).unwrap().to_vec();
        assert_eq!(number(&message), expected);
    }
}

/// Waits until so many subscribers are known to have moved, and to have left; nobody was evicted.
#[track_caller]
fn wait_for_counts(publisher: &Publisher, moved: u64, left: u64) {
    wait_until("they are counted", || {
        let stats = publisher.stats();
        assert!(stats.moved <= moved && stats.left <= left, "{stats:?}");
        (stats.moved, stats.left) == (moved, left)
    });
    assert_eq!(publisher.stats().evicted, 0);
}

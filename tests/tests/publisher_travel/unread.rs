//! Moves behind the back of subscribers who take no notices.

use std::time::Duration;

use memlane::{
    Decision, Error, Overflow, Publisher, PublisherBuilder, Reason, RecvError, Subscriber,
    TryRecvError, WaitPolicy, WhenFull,
};
use memlane_tests::{PATIENCE, Scene, alive, unbound};

use crate::followers::{moved, subscribe};

/// Who looks at nothing all the while, as one that is stopped, finds its way through all of them, without more rings at a time than it takes.
#[test]
fn a_hundred_moves_behind_the_back_of_a_subscriber() {
    let _scene = Scene::new();
    let mut publisher = unbound(4096).unbound().unwrap();
    let lossy = Subscriber::builder().overflow(Overflow::Overwrite);
    let polls = Subscriber::builder().wait(WaitPolicy::Poll);
    let mut subscribers = [Subscriber::builder(), lossy, polls].map(|builder| {
        let builder = builder.max_ring_bytes(3 * 4096);
        subscribe(&publisher, builder)
    });
    for first in [&b"before"[..], b"and again"] {
        publisher.send(first).unwrap();
        for _ in 0..100 {
            publisher = moved(publisher, unbound(4096));
        }
        publisher.send(b"after").unwrap();
        for subscriber in &mut subscribers {
            for message in [first, b"after"] {
                assert_eq!(subscriber.recv().unwrap().to_vec(), message);
            }
        }
    }
    assert_eq!(publisher.stats().evicted, 0);
}

/// Moves as often as that is possible, up to so often, with a message each time: the publisher, how often, and why no more.
fn move_often(
    mut publisher: Publisher,
    builder: impl Fn() -> PublisherBuilder,
    most: u64,
) -> (Publisher, u64, Option<String>) {
    for moves in 0..most {
        publisher.send(&moves.to_le_bytes()).unwrap();
        let ticket = publisher.ticket().unwrap();
        let builder = builder().timeout(PATIENCE);
        let other = std::thread::spawn(move || builder.arrive(ticket));
        let departed = publisher.depart();
        let arrived = other.join().unwrap();
        if let Err(stays) = departed {
            assert!(matches!(arrived, Err(Error::NotHandedOver)));
            let why = stays.to_string();
            return (stays.publisher.unwrap(), moves, Some(why));
        }
        publisher = arrived.unwrap();
    }
    (publisher, most, None)
}

/// One that is waited for, and takes no notices, is not lost by moves: its publisher stays until it has taken some.
#[test]
fn a_publisher_stays_rather_than_lose_a_subscriber_that_it_waits_for() {
    let _scene = Scene::new();
    let publisher = unbound(4096).unbound().unwrap();
    let mut subscriber = subscribe(&publisher, Subscriber::builder());
    let mut other = subscribe(&publisher, Subscriber::builder());
    let mut before = publisher;
    for _ in 0..2 {
        let (mut publisher, moves, why) = move_often(before, || unbound(4096), 1000);
        let why = why.unwrap();
        assert!(
            why.contains("has left so many notices unread"),
            "after {moves}: {why}"
        );
        assert!(moves >= 100, "{moves}");
        // However often it tries.
        for _ in 0..5 {
            let (stays, moves, why) = move_often(publisher, || unbound(4096), 1);
            assert_eq!((moves, why.is_some()), (0, true));
            publisher = stays;
        }
        publisher.send(b"there").unwrap();
        for subscriber in [&mut subscriber, &mut other] {
            for number in (0..=moves).chain([0; 5]) {
                assert_eq!(subscriber.recv().unwrap().to_vec(), number.to_le_bytes());
            }
            assert_eq!(subscriber.recv().unwrap().to_vec(), b"there");
            assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
            assert!(!subscriber.is_awaited().unwrap());
        }
        assert_eq!(publisher.stats().evicted, 0);
        before = publisher;
    }
}

/// One that is not waited for holds up no moves, whoever has said so.
#[test]
fn who_is_not_waited_for_does_not_keep_a_publisher_from_moving() {
    let _scene = Scene::new();
    let drops = || {
        let after = Duration::from_secs(3600);
        unbound(4096).when_full(WhenFull::Disconnect { after })
    };
    let asks = || unbound(4096).on_lagging(|_| Decision::Wait);
    let kinds: [(&dyn Fn() -> PublisherBuilder, _); 4] = [
        (&|| unbound(4096), Overflow::Disconnect),
        (&|| unbound(4096), Overflow::Overwrite),
        (&drops, Overflow::Block),
        (&asks, Overflow::Block),
    ];
    for (builder, overflow) in kinds {
        alive();
        let publisher = builder().unbound().unwrap();
        let slow = Subscriber::builder().overflow(overflow);
        let mut slow = subscribe(&publisher, slow);
        let (publisher, moves, why) = move_often(publisher, builder, 250);
        assert_eq!((moves, why), (250, None));
        drop(publisher);
        let (mut received, mut next) = (0, 0);
        let reason = loop {
            match slow.recv() {
                Ok(message) => {
                    assert_eq!(message.to_vec(), u64::to_le_bytes(next + message.missed()));
                    next += message.missed() + 1;
                    received += 1;
                }
                Err(RecvError::Disconnected { reason }) => break reason,
                Err(error) => panic!("{error}"),
            }
        };
        assert!(matches!(reason, Reason::Evicted { .. }), "{reason}");
        assert!(received >= 100, "{overflow:?}: {received}");
    }
}

//! Subscribers that wait in every way, and hear of the end.

use std::time::Duration;

use memlane::{
    Async, Link, Publisher, Reason, RecvError, RecvTimeoutError, Subscriber, TryRecvError,
    WaitPolicy, Watched,
};
use memlane_tests::{End, PATIENCE, Scene, block_on, check, thread_id, wait_asleep};
use rustix::event::{PollFd, PollFlags, poll};

use crate::publisher::{end, length, start};

/// How a subscriber waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    Asleep,
    Adaptive,
    Polling,
    InTime,
    InNoTime,
    Looking,
    Watched,
    WatchedInNoTime,
    InATask,
}

const WAITS: [Waits; 9] = [
    Waits::Asleep,
    Waits::Adaptive,
    Waits::Polling,
    Waits::InTime,
    Waits::InNoTime,
    Waits::Looking,
    Waits::Watched,
    Waits::WatchedInNoTime,
    Waits::InATask,
];

impl Waits {
    fn policy(self) -> WaitPolicy {
        match self {
            Waits::Adaptive => WaitPolicy::Adaptive,
            Waits::Polling => WaitPolicy::Poll,
            _ => WaitPolicy::Block,
        }
    }

    /// Receives up to the end: how many messages, and why it ended.
    fn receive_all(self, mut subscriber: Subscriber) -> (u64, Reason) {
        let mut received = 0;
        let mut take = |message: &[u8]| {
            assert_eq!(message.len(), length(received));
            check(received, message);
            received += 1;
        };
        let reason = match self {
            Waits::Asleep | Waits::Adaptive | Waits::Polling => loop {
                match subscriber.recv() {
                    Ok(message) => take(&message.to_vec()),
                    Err(RecvError::Disconnected { reason }) => break reason,
                    Err(error) => panic!("{error}"),
                }
            },
            Waits::InTime => loop {
                match subscriber.recv_timeout(PATIENCE) {
                    Ok(message) => take(&message.to_vec()),
                    Err(RecvTimeoutError::Disconnected { reason }) => break reason,
                    Err(error) => panic!("{error}"),
                }
            },
            Waits::InNoTime => loop {
                match subscriber.recv_timeout(Duration::ZERO) {
                    Ok(message) => take(&message.to_vec()),
                    Err(RecvTimeoutError::TimedOut) => std::thread::yield_now(),
                    Err(RecvTimeoutError::Disconnected { reason }) => break reason,
                    Err(error) => panic!("{error}"),
                }
            },
            Waits::Looking => loop {
                match subscriber.try_recv() {
                    Ok(message) => take(&message.to_vec()),
                    Err(TryRecvError::Empty) => std::thread::yield_now(),
                    Err(TryRecvError::Disconnected { reason }) => break reason,
                    Err(error) => panic!("{error}"),
                }
            },
            Waits::Watched => {
                let mut subscriber = Watched::new(subscriber).expect("it sleeps");
                loop {
                    poll(&mut [PollFd::new(&subscriber, PollFlags::IN)], None).expect("poll");
                    match subscriber.try_recv() {
                        Ok(message) => take(&message.to_vec()),
                        Err(TryRecvError::Empty) => {}
                        Err(TryRecvError::Disconnected { reason }) => break reason,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            Waits::WatchedInNoTime => {
                let mut subscriber = Watched::new(subscriber).expect("it sleeps");
                loop {
                    match subscriber.recv_timeout(Duration::ZERO) {
                        Ok(message) => take(&message.to_vec()),
                        Err(RecvTimeoutError::TimedOut) => std::thread::yield_now(),
                        Err(RecvTimeoutError::Disconnected { reason }) => break reason,
                        Err(error) => panic!("{error}"),
                    }
                    // Whoever waits for it would miss nothing.
                    poll(&mut [PollFd::new(&subscriber, PollFlags::IN)], None).expect("poll");
                }
            }
            Waits::InATask => {
                let mut subscriber = Async::new(subscriber).expect("it sleeps");
                block_on(async {
                    loop {
                        match subscriber.recv().await {
                            Ok(message) => take(&message.to_vec()),
                            Err(RecvError::Disconnected { reason }) => break reason,
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            }
        };
        (received, reason)
    }
}

fn connect(scene: &Scene, waits: Waits) -> Subscriber {
    Subscriber::builder()
        .wait(waits.policy())
        .connect_to(&scene.address("lane"))
        .expect("a publisher")
}

/// The end comes while the subscriber waits for it, with nothing or with messages before it.
#[test]
fn every_end_for_one_who_waits() {
    for messages in [0, 20] {
        for how in End::ALL {
            for waits in WAITS {
                let scene = Scene::new();
                let child = start(&scene, messages == 20);
                let subscriber = connect(&scene, waits);
                let (id, ids) = std::sync::mpsc::channel();
                let found = std::thread::scope(|scope| {
                    let receiving = scope.spawn(move || {
                        id.send(thread_id()).expect("the test");
                        waits.receive_all(subscriber)
                    });
                    let thread = ids.recv().expect("an id");
                    if waits == Waits::Asleep {
                        wait_asleep(std::process::id(), thread);
                    }
                    end(&child, messages, how);
                    receiving.join().expect("a subscriber")
                });
                assert_eq!(found, (messages, how.reason()), "{how:?}, {waits:?}");
                how.reap(child);
            }
        }
    }
}

/// The end has come before the subscriber looks: everything is in the ring, in the pool, and on the link.
#[test]
fn every_end_for_one_who_looks_later() {
    for how in End::ALL {
        // Nobody can read everything before it looks.
        if how == End::DrainAndClose {
            continue;
        }
        for waits in WAITS {
            let scene = Scene::new();
            let child = start(&scene, false);
            let subscriber = connect(&scene, waits);
            end(&child, 20, how);
            how.reap(child);
            let found = waits.receive_all(subscriber);
            assert_eq!(found, (20, how.reason()), "{how:?}, {waits:?}");
        }
    }
}

/// However often one asks.
#[test]
fn the_reason_stays() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let publisher = Publisher::builder().unbound().unwrap();
    publisher.attach(ours).unwrap();
    let mut subscriber = Subscriber::builder().over(theirs).unwrap();
    publisher.close();
    for _ in 0..3 {
        let error = subscriber.recv().map(drop).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the publisher has closed the lane; what it had committed by then has been received"
        );
        assert!(matches!(
            subscriber.try_recv().map(drop),
            Err(TryRecvError::Disconnected {
                reason: Reason::Closed
            })
        ));
        assert!(matches!(
            subscriber.recv_timeout(PATIENCE).map(drop),
            Err(RecvTimeoutError::Disconnected {
                reason: Reason::Closed
            })
        ));
    }
}

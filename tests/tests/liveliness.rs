//! Signs of life, where the user asks for them: who hangs is told from who has nothing to say, and neither is dead.

use std::time::{Duration, Instant};

use memlane::{RecvError, RecvTimeoutError, Subscriber, TryRecvError, WaitPolicy};
use memlane_region::page_size;
use memlane_tests::{PATIENCE, Part, Policy, Role, Scene, alive, play, unbound};
use rustix::process::Signal;

const ROLES: &[(&str, Part)] = &[("publisher", publisher)];
const LIMIT: Duration = Duration::from_millis(20);

#[test]
fn other_process() {
    play(ROLES);
}

/// Sends a message each time it is told to.
fn publisher(role: &Role) {
    let address: String = role.hear();
    let mut publisher = unbound(page_size())
        .bind_to(&address.parse().expect("an address"))
        .expect("a publisher");
    role.tell(&());
    while role.hear() {
        publisher.send(b"a frame").expect("room");
    }
}

/// A publisher that is stopped is silent, again and again, and no more than that: it goes on where it was.
#[test]
fn a_stopped_publisher_is_silent() {
    for policy in Policy::ALL {
        let scene = Scene::new();
        let address = scene.address("lane");
        let child = scene.spawn("publisher", &address.to_string());
        child.hear::<()>();
        let mut subscriber = Subscriber::builder()
            .wait(policy.into())
            .liveliness(LIMIT)
            .connect_to(&address)
            .expect("the publisher");
        child.stop();
        for _ in 0..3 {
            match subscriber.recv() {
                Err(RecvError::Silent { silence }) => assert!(silence >= LIMIT),
                other => panic!("{:?}", other.map(|message| message.len())),
            }
            alive();
        }
        // The time a call may take comes first where it is shorter.
        let short = subscriber.recv_timeout(LIMIT / 20);
        assert!(matches!(
            short.map(drop),
            Err(RecvTimeoutError::TimedOut | RecvTimeoutError::Silent { .. })
        ));
        assert!(matches!(
            subscriber.recv_timeout(PATIENCE).map(drop),
            Err(RecvTimeoutError::Silent { .. })
        ));
        // A look never waits, and so never says so.
        assert!(matches!(
            subscriber.try_recv().map(drop),
            Err(TryRecvError::Empty)
        ));
        child.signal(Signal::CONT);
        child.tell(&true);
        loop {
            match subscriber.recv() {
                Ok(message) => break assert_eq!(message.to_vec(), b"a frame"),
                Err(RecvError::Silent { .. }) => alive(),
                Err(error) => panic!("{error}"),
            }
        }
        child.tell(&false);
        child.finish();
        // Dead is dead, however short the time was.
        let end = loop {
            match subscriber.recv() {
                Err(RecvError::Silent { .. }) => alive(),
                end => break end.map(drop),
            }
        };
        assert!(
            matches!(end, Err(RecvError::Disconnected { .. })),
            "{end:?}"
        );
    }
}

/// Messages are signs of life, and so is saying so; neither is a time that passed.
#[test]
fn what_is_a_sign_of_life() {
    let _scene = Scene::new();
    let mut publisher = unbound(page_size()).unbound().unwrap();
    let (here, there) = memlane::Link::pair().unwrap();
    publisher.attach(here).unwrap();
    let mut subscriber = Subscriber::builder()
        .wait(WaitPolicy::Block)
        .liveliness(LIMIT)
        .over(there)
        .unwrap();
    assert!(matches!(
        subscriber.recv().map(drop),
        Err(RecvError::Silent { .. })
    ));
    let silence = subscriber.silence();
    assert!(subscriber.silence() >= silence);

    let before = Instant::now();
    publisher.assert_alive();
    assert!(subscriber.silence() <= before.elapsed());
    assert!(matches!(
        subscriber.recv().map(drop),
        Err(RecvError::Silent { .. })
    ));

    // Told while it waits: the limit counts from there. A sign before that, or the silence before would count if this thread is held up.
    publisher.assert_alive();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let before = Instant::now();
            let silent = subscriber.recv().map(drop);
            assert!(matches!(silent, Err(RecvError::Silent { .. })));
            before.elapsed()
        });
        let began = Instant::now();
        while began.elapsed() < 3 * LIMIT {
            publisher.assert_alive();
            std::thread::yield_now();
        }
        assert!(waiting.join().unwrap() >= LIMIT);
    });

    publisher.send(b"one").unwrap();
    drop(subscriber.recv().unwrap());
    let before = Instant::now();
    publisher.send(b"two").unwrap();
    drop(subscriber.try_recv().unwrap());
    assert!(subscriber.silence() <= before.elapsed());
}

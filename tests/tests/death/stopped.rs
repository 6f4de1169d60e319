//! Either side is stopped, which is not dead.

use std::time::Duration;

use memlane::{RecvTimeoutError, SendTimeoutError, Subscriber, TryRecvError, TrySendError};
use memlane_region::{Remote, page_size};
use memlane_tests::{Policy, Scene, Steady, fill, length, thread_id, unbound, wait_asleep};
use memlane_transport::Fd;
use rustix::process::Signal;

use crate::{
    chance::{LONGEST, untrusting},
    publishers::Plan,
};

/// Slow is not dead: a stopped subscriber holds the publisher up for as long as it likes, and loses nothing.
#[test]
fn a_stopped_subscriber() {
    for policy in Policy::ALL {
        let scene = Scene::new();
        let address = scene.address("lane");
        let mut publisher = unbound(page_size() << 2)
            .wait(policy.into())
            .bind_to(&address)
            .unwrap();
        let slow = Steady::start(&scene, &address, untrusting(Policy::Block), LONGEST);
        let other = Steady::start(&scene, &address, untrusting(Policy::Adaptive), LONGEST);
        slow.stop();
        let message = |number| {
            let mut message = vec![0; length(number, LONGEST).max(8)];
            fill(number, &mut message);
            message
        };
        let mut next = 0;
        // Until it is full when the other has caught up.
        let mut full = false;
        loop {
            match publisher.try_send(&message(next)) {
                Ok(()) => (next, full) = (next + 1, false),
                Err(TrySendError::Full) if full => break,
                Err(TrySendError::Full) => {
                    other.catch_up(next);
                    full = true;
                }
                Err(error) => panic!("{error}"),
            }
        }
        let short = Duration::from_millis(20);
        for _ in 0..3 {
            match publisher.send_timeout(&[0; LONGEST], short) {
                Err(SendTimeoutError::TimedOut) => {}
                other => panic!("{other:?}, {:?}", publisher.stats()),
            }
            match publisher.reserve_timeout(LONGEST, short).map(drop) {
                Err(SendTimeoutError::TimedOut) => {}
                other => panic!("{other:?}, {:?}", publisher.stats()),
            }
            match publisher.try_reserve(LONGEST).map(drop) {
                Err(TrySendError::Full) => {}
                other => panic!("{other:?}, {:?}", publisher.stats()),
            }
        }
        assert_eq!(publisher.subscribers(), 2, "slow is not dead");
        let (id, ids) = std::sync::mpsc::channel();
        let mut publisher = std::thread::scope(|scope| {
            let blocked = scope.spawn(move || {
                id.send(thread_id()).unwrap();
                publisher.send(&message(next)).expect("room");
                publisher
            });
            let thread = ids.recv().unwrap();
            if policy == Policy::Block {
                wait_asleep(std::process::id(), thread);
            }
            assert!(!blocked.is_finished());
            slow.child().signal(Signal::CONT);
            blocked.join().unwrap()
        });
        for number in next + 1..next + 1000 {
            publisher.send(&message(number)).unwrap();
        }
        let sent = next + 1000;
        assert_eq!(publisher.stats().messages, sent);
        assert_eq!(publisher.subscribers(), 2);
        drop(publisher);
        assert_eq!(slow.finish(), (sent, sent));
        assert_eq!(other.finish(), (sent, sent));
    }
}

/// A stopped publisher is not dead either.
#[test]
fn a_stopped_publisher() {
    for policy in Policy::ALL {
        let scene = Scene::new();
        let plan = Plan {
            policy: Policy::Adaptive,
            ring_bytes: page_size(),
            trusting: false,
            driven: false,
            subscribers: 1,
            bound: true,
            links: Vec::new(),
        };
        let child = scene.spawn("publisher", &plan);
        let page: Fd = child.hear();
        let committed = Remote::open(page.into(), page_size(), 0, page_size()).unwrap();
        let address = scene.address("lane");
        let mut subscriber = Subscriber::builder()
            .wait(policy.into())
            .connect_to(&address)
            .unwrap();
        child.stop();
        let mut count = 0;
        let mut time_outs = 0;
        while time_outs < 3 {
            match subscriber.recv_timeout(Duration::from_millis(20)) {
                Ok(_) => count += 1,
                Err(RecvTimeoutError::TimedOut) => time_outs += 1,
                Err(error) => panic!("slow is not dead: {error}"),
            }
        }
        assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
        child.signal(Signal::CONT);
        while count < 2000 {
            drop(subscriber.recv().expect("a message"));
            count += 1;
        }
        child.kill_and_reap();
        while subscriber.recv().is_ok() {
            count += 1;
        }
        assert!((committed.load_word(0)..=committed.load_word(0) + 1).contains(&count));
    }
}

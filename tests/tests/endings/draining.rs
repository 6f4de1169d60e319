//! Publishers that wait until everything is received.

use std::time::Duration;

use memlane::{Async, Link, Publisher, Reason, RecvError, Subscriber};
use memlane_region::page_size;
use memlane_tests::{
    Child, PATIENCE, Policy, Role, Scene, alive, block_on, thread_id, unbound, wait_asleep,
    wait_until,
};

use crate::publisher::length;

/// Receives so many messages, then as many more as it is told to, and looks for another each time, as everybody does who
/// receives in a loop.
pub(crate) fn reader(role: &Role) {
    let (address, policy): (String, Policy) = role.hear();
    let mut subscriber = Subscriber::builder()
        .wait(policy.into())
        .connect_to(&address.parse().expect("an address"))
        .expect("a publisher");
    role.tell(&());
    loop {
        let more: u64 = role.hear();
        if more == 0 {
            break;
        }
        for _ in 0..more {
            drop(subscriber.recv().expect("a message"));
        }
        drop(subscriber.try_recv());
        role.tell(&());
    }
}

/// `drain` tells whether all have received everything; it waits for those who have not, and for nobody who is gone.
#[test]
fn draining() {
    for policy in Policy::ALL {
        for driven in [false, true] {
            let scene = Scene::new();
            let address = scene.address("lane");
            let mut builder = unbound(1 << 14).wait(policy.into());
            if driven {
                builder = builder.driven();
            }
            let mut publisher = builder.bind_to(&address).unwrap();
            assert!(publisher.drain(Duration::ZERO).unwrap(), "nobody is there");
            let readers: Vec<Child> = [Policy::Block, Policy::Poll]
                .into_iter()
                .map(|policy| scene.spawn("reader", &(address.to_string(), policy)))
                .collect();
            publisher.wait_for_subscribers(2).unwrap();
            readers.iter().for_each(|reader| reader.hear());
            assert!(publisher.drain(Duration::ZERO).unwrap(), "nothing was sent");
            for number in 0..10 {
                publisher.send(&vec![1; length(number)]).unwrap();
            }
            assert!(!publisher.drain(Duration::from_millis(5)).unwrap());
            readers[0].tell(&10_u64);
            readers[0].hear::<()>();
            readers[1].tell(&8_u64);
            readers[1].hear::<()>();
            assert!(!publisher.drain(Duration::from_millis(5)).unwrap());
            let stalls = publisher.stats().stalls;
            readers[1].tell(&1_u64);
            assert!(publisher.drain(PATIENCE).unwrap());
            readers[1].hear::<()>();
            assert_eq!(publisher.stats().stalls, stalls, "no message has waited");

            publisher.send(b"another").unwrap();
            readers[0].tell(&1_u64);
            readers[0].hear::<()>();
            let (id, ids) = std::sync::mpsc::channel();
            std::thread::scope(|scope| {
                let publisher = &mut publisher;
                let draining = scope.spawn(move || {
                    id.send(thread_id()).unwrap();
                    publisher.drain(PATIENCE).unwrap()
                });
                let thread = ids.recv().unwrap();
                if policy == Policy::Block {
                    wait_asleep(std::process::id(), thread);
                }
                readers[1].kill();
                assert!(draining.join().unwrap());
            });
            let mut readers = readers.into_iter();
            let first = readers.next().unwrap();
            readers.next().unwrap().kill_and_reap();
            wait_until("the dead is counted", || {
                publisher.drive().unwrap();
                publisher.stats().left == 1
            });
            first.tell(&0_u64);
            first.finish();
            wait_until("the other is, too", || {
                publisher.drive().unwrap();
                publisher.stats().left == 2
            });
            assert_eq!(publisher.stats().evicted, 0);
            alive();
        }
    }
}

#[test]
fn draining_in_a_task() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let publisher = unbound(page_size()).unbound().unwrap();
    publisher.attach(ours).unwrap();
    let mut subscriber = Subscriber::builder().over(theirs).unwrap();
    let mut publisher = Async::new(publisher).unwrap();
    block_on(async {
        publisher.drain().await.unwrap();
        publisher.send(b"one").await.unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                drop(subscriber.recv().unwrap());
                assert!(matches!(
                    subscriber.recv().map(drop),
                    Err(RecvError::Disconnected {
                        reason: Reason::Closed
                    })
                ));
            });
            block_on(publisher.drain()).unwrap();
            assert_eq!(publisher.get_ref().stats().left, 0);
            drop(publisher);
        });
    });
}

/// Receives what there is once it is told to, and says how much that was, and why there is no more.
pub(crate) fn late_reader(role: &Role) {
    let address: String = role.hear();
    let subscriber = Subscriber::builder().connect_to(&address.parse().expect("an address"));
    let mut subscriber = subscriber.expect("a publisher");
    role.tell(&());
    let mut received = 0_u64;
    let reason = loop {
        match subscriber.recv() {
            Ok(_) => received += 1,
            Err(RecvError::Disconnected { reason }) => break format!("{reason:?}"),
            Err(error) => panic!("{error}"),
        }
    };
    role.tell(&(received, reason));
}

/// However a publisher ends, whoever is stopped then has everything that it had committed when it goes on, and the reason. One that
/// drains does not wait for it any longer than it wants to.
#[test]
fn who_is_stopped_at_the_end() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let ends: [(fn(Publisher), Reason); 3] = [
        (Publisher::close, Reason::Closed),
        (drop, Reason::Closed),
        (panics, Reason::Panicked),
    ];
    for (end, reason) in ends {
        let mut publisher = unbound(1 << 14).bind_to(&address).unwrap();
        let reader = scene.spawn("late reader", &address.to_string());
        publisher.wait_for_subscribers(1).unwrap();
        reader.hear::<()>();
        reader.stop();
        let sent = 40;
        for number in 0..sent {
            publisher.send(&vec![1; length(number)]).unwrap();
        }
        assert!(!publisher.drain(Duration::from_millis(5)).unwrap());
        end(publisher);
        reader.go_on();
        let said: (u64, String) = reader.hear();
        assert_eq!(said, (sent, format!("{reason:?}")));
        reader.finish();
    }
}

fn panics(publisher: Publisher) {
    let panicking = std::thread::spawn(move || {
        let _publisher = publisher;
        std::panic::resume_unwind(Box::new("as it is told"));
    });
    panicking.join().unwrap_err();
}

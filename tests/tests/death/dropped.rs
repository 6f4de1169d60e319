//! Either side is dropped.

use memlane_region::{page_size, ring::max_payload};
use memlane_tests::{
    Census, Policy, Received, Role, Scene, Wish, ready_to_sleep, thread_id, unbound, wait_asleep,
    wait_until,
};

use crate::chance::untrusting;

pub(crate) fn orderly_publisher(role: &Role) {
    let policy: Policy = role.hear();
    let mut publisher = unbound(page_size())
        .wait(policy.into())
        .bind("lane")
        .expect("a publisher");
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("a subscriber");
    for number in 0..1000_u64 {
        publisher.send(&number.to_le_bytes()).expect("room");
    }
    drop(publisher);
    role.tell(&());
    // Alive, but no publisher any more.
    role.hear::<()>();
}

/// A publisher that is dropped hangs up, though its process lives; what it sent is received.
#[test]
fn a_dropped_publisher() {
    for policy in Policy::ALL {
        let scene = Scene::new();
        let child = scene.spawn("orderly publisher", &policy);
        child.hear::<()>();
        let mut subscriber = untrusting(policy).connect(&scene.address("lane")).unwrap();
        let mut message = Vec::new();
        for number in 0..1000_u64 {
            subscriber.recv(&mut message).unwrap();
            assert_eq!(message, number.to_le_bytes());
        }
        for _ in 0..3 {
            let end = subscriber.recv(&mut message);
            assert!(matches!(end, Ok(Received::Disconnected(_))), "{end:?}");
        }
        child.hear::<()>();
        assert_eq!(scene.services(), [""; 0]);
        child.tell(&());
        child.finish();
    }
}

/// A dropped subscriber, in the middle of a stream or with the publisher waiting for it, costs nobody anything.
#[test]
fn dropped_subscribers() {
    for driven in [false, true] {
        for policy in Policy::ALL {
            for trusting in [false, true] {
                let scene = Scene::new();
                let address = scene.address("lane");
                let mut builder = unbound(page_size()).wait(policy.into());
                if driven {
                    builder = builder.driven();
                }
                let mut publisher = ready_to_sleep(builder.bind_to(&address).unwrap(), policy);
                let base = Census::take();
                for round in 0..20 {
                    std::thread::scope(|scope| {
                        let joining = scope.spawn(|| Wish { policy, trusting }.connect(&address));
                        publisher.wait_for_subscribers(1).unwrap();
                        let mut subscriber = joining.join().unwrap().unwrap();
                        while publisher.try_send(&[1; 300]).is_ok() {}
                        let (id, ids) = std::sync::mpsc::channel();
                        let publisher = &mut publisher;
                        let sending = scope.spawn(move || {
                            id.send(thread_id()).unwrap();
                            // Room for this one comes only with the end of the subscriber.
                            let len = max_payload(page_size() as u64);
                            publisher.send(&vec![2; len]).expect("room");
                        });
                        let thread = ids.recv().unwrap();
                        if policy == Policy::Block && round % 2 == 0 {
                            wait_asleep(std::process::id(), thread);
                        }
                        let mut message = Vec::new();
                        for _ in 0..round % 4 {
                            subscriber.recv(&mut message).unwrap();
                        }
                        drop(subscriber);
                        sending.join().unwrap();
                    });
                    wait_until("it is let go of", || {
                        publisher.drive().unwrap();
                        publisher.subscribers() == 0
                    });
                }
                base.settle();
                assert_eq!(publisher.stats().evicted, 0);
            }
        }
    }
}

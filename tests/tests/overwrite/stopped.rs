//! One that is stopped for so long that all of its publisher's memory is other memory.

use std::time::Duration;

use memlane::{Link, Reason, RecvError, Subscriber};
use memlane_tests::{PATIENCE, Policy, Scene, alive, unbound, wait_until};

use crate::lane::overwritten;

/// Its publisher's memory comes and goes, thousands of times, and it takes no notice: nobody waits for it, it is not dropped, and
/// it goes on where the publisher is.
#[test]
fn one_that_is_stopped_for_very_long_goes_on() {
    let _scene = Scene::new();
    for driven in [false, true] {
        let (here, there) = Link::pair().unwrap();
        let builder = unbound(4096).pool_bytes(1 << 20).max_message(800_000);
        let builder = if driven { builder.driven() } else { builder };
        let builder = builder.spill_bytes(2 * 4096);
        let mut publisher = builder.unbound().unwrap();
        publisher.attach(here).unwrap();
        let mut subscriber = std::thread::scope(|scope| {
            let connecting = scope.spawn(|| overwritten(Policy::Block).over(there));
            publisher.wait_for_subscribers(1).unwrap();
            connecting.join().unwrap().unwrap()
        });
        let mut sent = 0;
        for _ in 0..500 {
            // A laggard comes, is left a ring or two, and goes.
            let (here, there) = Link::pair().unwrap();
            publisher.attach(here).unwrap();
            let laggard = std::thread::scope(|scope| {
                let builder = Subscriber::builder().timeout(PATIENCE);
                let connecting = scope.spawn(|| builder.over(there));
                publisher.wait_for_subscribers(2).unwrap();
                connecting.join().unwrap().unwrap()
            });
            for _ in 0..50 {
                publisher.try_send(&[2; 100]).unwrap();
                sent += 1;
            }
            drop(laggard);
            wait_until("the laggard is gone", || {
                publisher.drive().unwrap();
                publisher.subscribers() == 1
            });
            for len in [20_000, 200_000, 400_000, 800_000] {
                let mut frame = publisher.try_reserve(len).unwrap();
                frame[..3].fill(1);
                frame.commit();
                sent += 1;
            }
            publisher.trim(Duration::ZERO);
            alive();
        }
        assert!(publisher.stats().spills >= 100, "{:?}", publisher.stats());
        if !driven {
            // It hears of where it is to go on while nothing more is sent, awake or asleep.
            for _ in 0..10 {
                publisher.try_send(b"the last ones").unwrap();
                sent += 1;
            }
            while subscriber.sequence() < sent {
                drop(subscriber.recv_timeout(PATIENCE).unwrap());
            }
        }
        // It hears of what there is, and receives that.
        let mut long = 0;
        while long < 100 {
            for len in [20_000, 800_000] {
                let mut frame = publisher.try_reserve(len).unwrap();
                frame[..3].fill(1);
                frame.commit();
                sent += 1;
                publisher.drive().unwrap();
            }
            alive();
            while let Ok(message) = subscriber.try_recv() {
                if message.len() >= 20_000 {
                    let mut first = [0; 3];
                    message.copy_to(&mut first);
                    assert_eq!(first, [1; 3]);
                    long += 1;
                }
            }
        }
        let stats = publisher.stats();
        assert_eq!((stats.evicted, stats.stalls), (0, 0));
        drop(publisher);
        while subscriber.recv().is_ok() {}
        assert!(matches!(
            subscriber.recv(),
            Err(RecvError::Disconnected {
                reason: Reason::Closed
            })
        ));
        let stats = subscriber.stats();
        assert_eq!(stats.messages + stats.missed, sent);
    }
}

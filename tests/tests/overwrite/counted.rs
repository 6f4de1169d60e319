//! Readers of all kinds, at any pace: each message is received or counted.

use memlane::{Subscriber, TryRecvError, TrySendError};
use memlane_tests::{Dice, Policy, Scene, Steady, Stream, Wish, alive, fill, rounds, unbound};

use crate::{
    lane::{LONGEST, RING, bind, len, send},
    reader::{Count, Orders, Way},
};

/// Two readers of each kind in turn, and sometimes nobody's pace is the same. The number of messages grows with
/// `MEMLANE_PING_PONGS`.
#[test]
fn everything_is_received_or_counted_and_nothing_is_torn() {
    let scene = Scene::new();
    let messages = rounds(200_000);
    let mut dice = Dice::new();
    let mut all = Count::default();
    for way in [
        Way::Recv,
        Way::TryRecv,
        Way::Timeout,
        Way::Watched,
        Way::Task,
    ] {
        let (mut publisher, address) = bind(&scene, Policy::Adaptive);
        let readers: Vec<_> = [(false, 16), (true, 1024)]
            .into_iter()
            .map(|(trusting, seldom)| {
                let orders = Orders {
                    address: address.to_string(),
                    policy: match way {
                        Way::TryRecv => Policy::Poll,
                        _ => dice.pick(&Policy::SLEEPY),
                    },
                    trusting,
                    way,
                    seldom,
                };
                scene.spawn("reader", &orders)
            })
            .collect();
        for reader in &readers {
            assert_eq!(reader.hear::<u64>(), 0);
        }
        let mut buffer = vec![0; LONGEST];
        for number in 0..messages {
            send(&mut publisher, number, &mut buffer);
            if number.is_multiple_of(4096) {
                alive();
                dice.dally(200_000);
            }
        }
        assert_eq!(publisher.stats().stalls, 0);
        drop(publisher);
        for reader in readers {
            let count: Count = reader.hear();
            println!("{way:?}: {count:?}");
            assert_eq!(count.received + count.missed, messages);
            assert!(count.received > 0);
            all.missed += count.missed;
            reader.finish();
        }
    }
    assert!(all.missed > 0);
}

/// One that is overwritten is stopped, in whatever it does, while another one, which is waited for, goes on: over many laps.
#[test]
fn one_that_is_stopped_slows_nobody() {
    let scene = Scene::new();
    for round in 0..4 {
        let (publisher, address) = bind(&scene, Policy::Adaptive);
        let stream = Stream::start(publisher, LONGEST);
        let wish = Wish {
            policy: Policy::Adaptive,
            trusting: false,
        };
        let steady = Steady::start(&scene, &address, wish, LONGEST);
        let orders = Orders {
            address: address.to_string(),
            policy: Policy::SLEEPY[round % 2],
            trusting: false,
            way: [Way::Recv, Way::Watched][round / 2],
            seldom: 1 << 40,
        };
        let child = scene.spawn("reader", &orders);
        let first: u64 = child.hear();
        child.stop();
        steady.advance(20_000);
        child.go_on();
        steady.advance(5_000);
        let publisher = stream.stop();
        let sent = publisher.stats().messages;
        assert_eq!((publisher.stats().evicted, publisher.stats().left), (0, 0));
        drop(publisher);
        let count: Count = child.hear();
        assert_eq!(count.first, first);
        assert_eq!(count.next(), sent);
        assert!(count.missed > 0);
        child.finish();
        steady.finish();
    }
}

/// The publisher leaves its ring to one that is slow, and goes on in another, over and over: those that are overwritten go with
/// it, or are overtaken on the way, and count as ever.
#[test]
fn across_rings_that_are_left() {
    let scene = Scene::new();
    let messages = rounds(100_000);
    let address = scene.address("prices");
    let builder = unbound(RING).pool_bytes(4 << 20).spill_bytes(4 * RING);
    let mut publisher = builder.bind_to(&address).unwrap();
    let readers = [(Way::Recv, 64), (Way::Watched, 1024), (Way::TryRecv, 4)];
    let readers = readers.map(|(way, seldom)| {
        let orders = Orders {
            address: address.to_string(),
            policy: Policy::Adaptive,
            trusting: false,
            way,
            seldom,
        };
        let child = scene.spawn("reader", &orders);
        assert_eq!(child.hear::<u64>(), 0);
        child
    });
    let mut laggard = Subscriber::builder()
        .wait(Policy::Block.into())
        .connect_to(&address)
        .unwrap();
    let (mut dice, mut count, mut copy) = (Dice::new(), Count::default(), Vec::new());
    let mut buffer = vec![0; LONGEST];
    for number in 0..messages {
        let message = &mut buffer[..len(number)];
        fill(number, message);
        while let Err(error) = publisher.try_send(message) {
            assert!(matches!(error, TrySendError::Full), "{error}");
            for _ in 0..=dice.below(2_000) {
                match laggard.try_recv() {
                    Ok(message) => count.note(&message, &mut copy),
                    Err(TryRecvError::Empty) => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        if number.is_multiple_of(1024) {
            alive();
            dice.dally(200_000);
        }
    }
    let stats = publisher.stats();
    assert!(stats.spills > 100, "{stats:?}");
    drop(publisher);
    while let Ok(message) = laggard.recv() {
        count.note(&message, &mut copy);
    }
    assert_eq!((count.received, count.missed), (messages, 0));
    for reader in readers {
        let count: Count = reader.hear();
        println!("{count:?}");
        assert_eq!(count.received + count.missed, messages);
        reader.finish();
    }
}

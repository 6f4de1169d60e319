//! What a program sees of it: counts, messages that are kept, values, queues.

use std::time::Duration;

use memlane::{
    Encoded, Link, Plain, Publisher, Reason, RecvError, Slice, Subscriber, TryRecvError,
    TrySendError,
};
use memlane_tests::{PATIENCE, Policy, Scene, trusting, unbound, wait_until};

use crate::{
    lane::{LONGEST, overwritten, send},
    reader::Count,
};

/// A pair in this process.
pub(crate) fn pair() -> (Publisher, Subscriber) {
    let (here, there) = Link::pair().unwrap();
    let publisher = unbound(4096).pool_bytes(4 << 20).unbound().unwrap();
    publisher.attach(here).unwrap();
    (publisher, overwritten(Policy::Block).over(there).unwrap())
}

#[test]
fn one_that_keeps_up_misses_nothing() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = pair();
    assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
    let (mut count, mut copy) = (Count::default(), Vec::new());
    let mut buffer = vec![0; LONGEST];
    for number in 0..2_000 {
        send(&mut publisher, number, &mut buffer);
        count.note(&subscriber.try_recv().unwrap(), &mut copy);
    }
    assert_eq!(count.missed, 0);
    assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
}

#[test]
fn what_is_missed_at_the_very_end_is_counted() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = pair();
    for _ in 0..1000 {
        publisher.try_send(&[0; 100]).unwrap();
    }
    // All is overwritten but the last lap.
    let first = subscriber.try_recv().unwrap();
    assert_eq!(first.missed(), first.sequence());
    drop(first);
    let before = subscriber.stats();
    assert_eq!(before.missed, subscriber.missed_last());
    while subscriber.try_recv().is_ok() {}
    // A chunk that is used again before anybody has looked: it is missed, and no message tells.
    publisher.try_send(&[1; LONGEST]).unwrap();
    drop(publisher);
    loop {
        match subscriber.recv() {
            Ok(message) => assert_eq!(message.missed(), 0),
            Err(RecvError::Disconnected { reason }) => {
                assert_eq!(reason, Reason::Closed);
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let stats = subscriber.stats();
    assert_eq!(stats.messages + stats.missed, 1001);
    assert_eq!(subscriber.sequence(), 1001);
}

/// What is kept stays as it is, whatever the publisher sends; all but one of the slots can keep something.
#[test]
fn messages_are_held() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = pair();
    let mut held = Vec::new();
    for number in 0..63_u8 {
        publisher.try_send(&[number; LONGEST]).unwrap();
        held.push(subscriber.recv().unwrap().hold().unwrap());
    }
    publisher.try_send(&[63; LONGEST]).unwrap();
    let message = subscriber.recv().unwrap().hold().unwrap_err();
    assert_eq!(message.to_vec(), [63; LONGEST]);
    drop(message);
    // A short one is a copy.
    publisher.try_send(&[64; 10]).unwrap();
    held.push(subscriber.recv().unwrap().hold().unwrap());
    for _ in 0..1000 {
        publisher.try_send(&[65; LONGEST]).unwrap();
        assert_eq!(subscriber.recv().unwrap().len(), LONGEST);
    }
    held.remove(0);
    publisher.try_send(&[66; LONGEST]).unwrap();
    held.push(subscriber.recv().unwrap().hold().unwrap());
    // They outlive both ends.
    drop((publisher, subscriber));
    let numbers = (1..63).chain([64, 66]);
    for (held, number) in held.iter().zip(numbers) {
        let len = if number == 64 { 10 } else { LONGEST };
        assert_eq!(held.to_vec(), vec![number; len]);
    }
    assert_eq!(held.len(), 64);
}

/// Beside one that is waited for, on the same lane: that one gets everything, and is waited for.
#[test]
fn both_kinds_on_one_lane() {
    let _scene = Scene::new();
    let (mut publisher, mut overwritten) = pair();
    let (here, there) = Link::pair().unwrap();
    publisher.attach(here).unwrap();
    let mut lossless = Subscriber::builder()
        .wait(Policy::Block.into())
        .over(there)
        .unwrap();
    let mut received = 0;
    for number in 0..10_000_u64 {
        while let Err(error) = publisher.try_send(&number.to_le_bytes()) {
            assert!(matches!(error, TrySendError::Full), "{error}");
            let message = lossless.try_recv().unwrap();
            assert_eq!((message.sequence(), message.missed()), (received, 0));
            assert_eq!(message.to_vec(), received.to_le_bytes());
            received += 1;
        }
    }
    // Of one that is overwritten nothing is waited for, even to drain.
    assert!(!publisher.drain(Duration::from_millis(1)).unwrap());
    for number in received..10_000 {
        assert_eq!(lossless.try_recv().unwrap().to_vec(), number.to_le_bytes());
    }
    assert!(matches!(lossless.try_recv(), Err(TryRecvError::Empty)));
    assert!(publisher.drain(PATIENCE).unwrap());
    let message = overwritten.try_recv().unwrap();
    assert!(message.missed() > 9_000);
    assert_eq!(message.to_vec(), message.sequence().to_le_bytes());
}

#[test]
fn values_of_all_kinds() {
    let _scene = Scene::new();
    let builder = || trusting(overwritten(Policy::Block));

    let (here, there) = Link::pair().unwrap();
    let mut publisher = unbound(4096).of::<Plain<[u64; 4]>>().unbound().unwrap();
    publisher.attach(here).unwrap();
    let mut subscriber = builder().of::<Plain<[u64; 4]>>().over(there).unwrap();
    for number in 0..1000 {
        publisher.try_send(&[number; 4]).unwrap();
    }
    let first = *subscriber.recv_ref().unwrap();
    assert_eq!(first, [subscriber.get_ref().missed_last(); 4]);
    assert!(first[0] > 0);
    publisher.try_send(&[1000; 4]).unwrap();
    assert_eq!(subscriber.recv().unwrap(), [first[0] + 1; 4]);
    assert_eq!(subscriber.get_ref().missed_last(), 0);

    let (here, there) = Link::pair().unwrap();
    let mut publisher = unbound(4096).of::<Slice<u64>>().unbound().unwrap();
    publisher.attach(here).unwrap();
    let mut subscriber = builder().of::<Slice<u64>>().over(there).unwrap();
    for number in 0..1000 {
        publisher.try_send(&[number; 3]).unwrap();
    }
    let values = subscriber.recv().unwrap();
    assert!(values.missed() > 0);
    assert_eq!(*values, [values.sequence(); 3]);
    drop(values);
    while subscriber.try_recv().is_ok() {}
    publisher.try_send(&[7; 10_000]).unwrap();
    let values = subscriber.recv().unwrap();
    assert_eq!(*values, [7; 10_000]);

    let (here, there) = Link::pair().unwrap();
    let mut publisher = unbound(4096).of::<Encoded<String>>().unbound().unwrap();
    publisher.attach(here).unwrap();
    let mut subscriber = builder().of::<Encoded<String>>().over(there).unwrap();
    for number in 0..1000 {
        publisher.try_send(&format!("number {number}")).unwrap();
    }
    let first = subscriber.recv().unwrap();
    let missed = subscriber.get_ref().missed_last();
    assert!(missed > 0);
    assert_eq!(first, format!("number {missed}"));
}

/// A queue whose receiver does not hold its senders up.
#[test]
fn a_queue_that_overwrites() {
    let _scene = Scene::new();
    let mut receiver = overwritten(Policy::Block).unbound().unwrap();
    let (here, there) = Link::pair().unwrap();
    receiver.attach(here).unwrap();
    let sending = std::thread::spawn(move || {
        let mut sender = unbound(4096).over(there).unwrap();
        for number in 0..10_000_u64 {
            sender.try_send(&number.to_le_bytes()).unwrap();
        }
        sender
    });
    let mut sending = Some(sending);
    let (mut next, mut sender) = (0, None);
    while next < 10_000 {
        let message = receiver.recv().unwrap();
        if let Some(sending) = sending.take() {
            // It goes on while nobody receives.
            sender = Some(sending.join().unwrap());
        }
        next += message.missed();
        assert_eq!(message.sequence(), next);
        assert_eq!(message.to_vec(), next.to_le_bytes());
        next += 1;
    }
    drop(sender);
    wait_until("the sender has left", || {
        assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
        receiver.senders() == 0
    });
}

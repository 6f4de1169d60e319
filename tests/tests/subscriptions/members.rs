//! Subscribers come, go, and are of all kinds.

use std::{thread, time::Duration};

use memlane::{
    Async, Encoded, Link, Overflow, PayloadError, Plain, Reason, Received, RecvError,
    RecvTimeoutError, Slice, Subscriber, Subscriptions, TryRecvError, Watched,
};
use memlane_region::{Shared, WordsMut, page_size};
use memlane_tests::{
    Dice, PATIENCE, Policy, Scene, unbound,
    wire::{Answer, Greeting, Opening, VERSION, Welcome, header},
};

use crate::lanes::{BOTH, builder, many, pair};

/// Taken out, a subscriber goes on at its next message; added again, too.
#[test]
fn subscribers_come_and_go() {
    let _scene = Scene::new();
    let (mut subscriptions, mut publishers) = many(Policy::Block, 4);
    let mut dice = Dice::new();
    let mut next = [0_u64; 4];
    let mut sent = [0_u64; 4];
    for _ in 0..2_000 {
        let at = dice.below(4) as usize;
        for _ in 0..dice.below(4) {
            publishers[at].1.send(&sent[at].to_le_bytes()).unwrap();
            sent[at] += 1;
        }
        // Everybody is armed, now and then.
        let mut received = dice.below(20);
        while received > 0 {
            match subscriptions.try_recv() {
                Ok(Received::Message(from, message)) => {
                    let at = publishers.iter().position(|(key, _)| *key == from).unwrap();
                    assert_eq!(message.to_vec(), next[at].to_le_bytes());
                    next[at] += 1;
                }
                Err(TryRecvError::Empty) => break,
                other => panic!("{other:?}"),
            }
            received -= 1;
        }
        if received > 0 {
            let waited = subscriptions.recv_timeout(Duration::from_micros(1));
            assert!(matches!(waited, Err(RecvTimeoutError::TimedOut)));
        }
        let at = dice.below(4) as usize;
        let key = publishers[at].0;
        let mut subscriber = subscriptions.remove(key).unwrap();
        assert!(subscriptions.remove(key).is_none() && subscriptions.get(key).is_none());
        assert_eq!((subscriptions.len(), subscriptions.label(key)), (3, None));
        if dice.below(2) == 0 {
            while next[at] < sent[at] {
                let message = subscriber.recv().unwrap();
                assert_eq!(message.to_vec(), next[at].to_le_bytes());
                next[at] += 1;
            }
        }
        publishers[at].0 = subscriptions.add(subscriber).unwrap();
        assert_ne!(publishers[at].0, key);
        let rest = next.iter().zip(sent).map(|(next, sent)| sent - next);
        if rest.max().unwrap() > 40 {
            while let Ok(Received::Message(from, message)) = subscriptions.try_recv() {
                let at = publishers.iter().position(|(key, _)| *key == from).unwrap();
                assert_eq!(message.to_vec(), next[at].to_le_bytes());
                next[at] += 1;
            }
        }
    }
}

#[test]
fn what_cannot_be_waited_for_is_an_error() {
    let _scene = Scene::new();
    let mut subscriptions = Subscriptions::new().unwrap();
    assert!(matches!(
        subscriptions.try_recv(),
        Err(TryRecvError::Disconnected {
            reason: Reason::NoPublisher
        })
    ));
    assert!(matches!(
        subscriptions.recv_timeout(PATIENCE),
        Err(RecvTimeoutError::Disconnected { .. })
    ));
    let (_publisher, polls) = pair(Policy::Poll, Overflow::Block);
    let error = subscriptions.add(polls).unwrap_err();
    assert_eq!(
        error.to_string(),
        "wait: expected a subscriber that is woken, to be waited for with others, got one that polls"
    );
    assert!(subscriptions.is_empty());
    let error = subscriptions.connect("nobody-is-there").unwrap_err();
    assert!(matches!(error, memlane::Error::Link(_)), "{error}");
    // One that polls can have both.
    let (mut subscriptions, _publishers) = many(Policy::Poll, 2);
    let (_publisher, sleeps) = pair(Policy::Block, Overflow::Block);
    let key = subscriptions.add(sleeps).unwrap();
    assert!(matches!(subscriptions.try_recv(), Err(TryRecvError::Empty)));
    assert!(subscriptions.silence(key).is_some());
    assert_eq!(subscriptions.keys().count(), 3);
    assert_eq!(subscriptions.get(key).unwrap().stats().messages, 0);
    assert_eq!(subscriptions.last(), None);
}

#[test]
fn values_of_all_kinds() {
    let _scene = Scene::new();
    let builder = || builder(Policy::Block, Overflow::Overwrite);

    let (here, there) = Link::pair().unwrap();
    let mut publisher = unbound(4096).of::<Plain<[u64; 4]>>().unbound().unwrap();
    publisher.attach(here).unwrap();
    let mut many = builder().of::<Plain<[u64; 4]>>().subscriptions().unwrap();
    let key = many
        .add(builder().of::<Plain<[u64; 4]>>().over(there).unwrap())
        .unwrap();
    publisher.send(&[7; 4]).unwrap();
    assert!(matches!(many.recv().unwrap(), Received::Message(from, [7, 7, 7, 7]) if from == key));
    publisher.get_mut().send(b"no value").unwrap();
    let error = many.recv().unwrap_err();
    assert!(
        matches!(error, PayloadError::Length { len: 8, .. }),
        "{error}"
    );
    assert_eq!(many.get_ref().last(), Some(key));
    let mut alone = many.remove(key).unwrap();
    publisher.send(&[8; 4]).unwrap();
    assert_eq!(alone.recv().unwrap(), [8; 4]);
    many.add(alone).unwrap();
    let mut many = many.try_map(Async::new).unwrap();
    publisher.send(&[9; 4]).unwrap();
    let received = memlane_tests::block_on(many.recv()).unwrap();
    assert_eq!(received.message(), Some([9; 4]));

    let (here, there) = Link::pair().unwrap();
    let mut publisher = unbound(4096).of::<Slice<u16>>().unbound().unwrap();
    publisher.attach(here).unwrap();
    let many = builder().of::<Slice<u16>>().subscriptions().unwrap();
    let mut many = many.try_map(Watched::new).unwrap();
    let subscriber = builder().of::<Slice<u16>>().over(there).unwrap();
    many.get_mut().add(subscriber.into_inner()).unwrap();
    publisher.send(&[1, 2, 3]).unwrap();
    let received = many.try_recv().unwrap().message().unwrap();
    assert_eq!(received.to_vec(), [1, 2, 3]);
    drop(received);
    assert!(matches!(
        many.try_recv(),
        Err(PayloadError::Lane(TryRecvError::Empty))
    ));

    let (here, there) = Link::pair().unwrap();
    let mut publisher = unbound(4096).of::<Encoded<String>>().unbound().unwrap();
    publisher.attach(here).unwrap();
    let mut many = builder().of::<Encoded<String>>().subscriptions().unwrap();
    many.add(builder().of::<Encoded<String>>().over(there).unwrap())
        .unwrap();
    publisher.send(&"a line".to_owned()).unwrap();
    let received = many.recv_timeout(PATIENCE).unwrap();
    assert_eq!(received.message().unwrap(), "a line");
    drop(publisher);
    assert!(matches!(many.recv().unwrap(), Received::Ended(_)));
}

/// A ring of whatever the test writes there, and the link of its subscriber.
fn rogue(overflow: Overflow) -> (Subscriber, Shared, Link) {
    let (ring, descriptor) = Shared::create("rogue", page_size(), 4096).unwrap();
    let (here, there) = Link::pair().unwrap();
    let connecting = thread::spawn(move || builder(Policy::Block, overflow).over(there));
    here.send(&Opening { version: VERSION }).unwrap();
    let _: Opening = here.recv_timeout(PATIENCE).unwrap();
    let _: Greeting = here.recv_timeout(PATIENCE).unwrap();
    here.send(&Answer::Welcome(Welcome::new(descriptor.into(), 4096)))
        .unwrap();
    (connecting.join().unwrap().unwrap(), ring, here)
}

/// One that writes nonsense ends, and the others go on.
#[test]
fn hostile_publishers_among_others() {
    let _scene = Scene::new();
    for overflow in BOTH {
        let (mut subscriptions, mut publishers) = many(Policy::Block, 2);
        let (subscriber, mut ring, _link) = rogue(overflow);
        let corrupt = subscriptions.add_as("corrupt", subscriber).unwrap();
        ring.write(0, 8, b"in order");
        ring.store(16, 77);
        ring.store_release(0, header(16, 8));
        let (subscriber, mut ring, _other) = rogue(Overflow::Block);
        let lost = subscriptions.add_as("lost", subscriber).unwrap();
        for (at, word) in [(8, 7), (16, 1), (24, 5)] {
            ring.store(at, word);
        }
        ring.store_release(0, 2 << 32 | 32);
        for (_, publisher) in &mut publishers {
            publisher.send(b"a message").unwrap();
        }
        let mut said = Vec::new();
        while said.len() < 5 {
            said.push(match subscriptions.recv().unwrap() {
                Received::Message(from, message) => (from, message.to_vec()),
                Received::Ended(ended) => {
                    match &*ended.label {
                        "corrupt" => assert!(matches!(ended.reason, RecvError::Corrupt(_))),
                        _ => assert!(matches!(ended.reason, RecvError::Chunk(_))),
                    }
                    (ended.key, ended.label.into_bytes())
                }
            });
        }
        for what in [
            (corrupt, &b"in order"[..]),
            (corrupt, b"corrupt"),
            (lost, b"lost"),
            (publishers[0].0, b"a message"),
            (publishers[1].0, b"a message"),
        ] {
            assert!(said.contains(&(what.0, what.1.to_vec())), "{said:?}");
        }
        assert_eq!(subscriptions.len(), 2);
    }
}

//! Subscribers that are overwritten: they hold nobody up, are told exactly what they missed, and never see a torn message.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use memlane::{
    Address, Async, Encoded, Error, Link, Message, Overflow, Plain, Publisher, Reason, RecvError,
    RecvTimeoutError, Slice, Subscriber, SubscriberBuilder, Trust, Trusted, TryRecvError,
    TrySendError, Watched,
};
use memlane_region::{Shared, WordsMut, page_size};
use memlane_tests::{
    Dice, PATIENCE, Policy, Role, Scene, Steady, Stream, Wish, alive, block_on, check, fill,
    length, play, rounds, steady, unbound, wait_asleep, wait_stopped, wait_until,
    wire::{self, Answer, Greeting, Offer, Opening, Rings, VERSION, Welcome},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::Signal,
};
use serde::{Deserialize, Serialize};

#[test]
fn other_process() {
    play(&[
        ("reader", reader),
        ("keeper", keeper),
        ("publisher", publisher),
        ("echo", echo),
        ("steady", steady),
    ]);
}

/// The longest message: one that lies in the pool.
const LONGEST: usize = 20_000;
const RING: usize = 16 << 10;

/// As those of a [`Stream`].
fn len(number: u64) -> usize {
    length(number, LONGEST).max(8)
}

fn overwritten(policy: Policy) -> SubscriberBuilder {
    Subscriber::builder()
        .overflow(Overflow::Overwrite)
        .wait(policy.into())
        .timeout(PATIENCE)
}

#[allow(unsafe_code)]
fn trusting(builder: SubscriberBuilder) -> SubscriberBuilder<Trusted> {
    // SAFETY: whoever publishes in these tests to a subscriber that trusts is this crate's publisher.
    unsafe { builder.trust_publisher() }
}

/// How a reader waits for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Way {
    Recv,
    TryRecv,
    Timeout,
    Watched,
    Task,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Orders {
    address: String,
    policy: Policy,
    trusting: bool,
    way: Way,
    /// One time in so many it is busy elsewhere.
    seldom: u64,
}

/// What has come so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Count {
    /// Of the first message that was this reader's, received or missed.
    first: u64,
    received: u64,
    missed: u64,
}

impl Count {
    fn next(&self) -> u64 {
        self.first + self.received + self.missed
    }

    /// Takes a message, which must be the next one that was not missed, and whole.
    #[track_caller]
    fn note<T: Trust>(&mut self, message: &Message<'_, T>, copy: &mut Vec<u8>) {
        message.copy_into(copy);
        self.missed += message.missed();
        assert_eq!(message.sequence(), self.next(), "miscounted");
        assert_eq!(message.len(), len(self.next()));
        check(self.next(), copy);
        self.received += 1;
    }
}

/// Receives at a pace that changes until the publisher is gone, and tells what came.
fn reader(role: &Role) {
    let orders: Orders = role.hear();
    let address = orders.address.parse().expect("an address");
    let builder = overwritten(orders.policy);
    if orders.trusting {
        let subscriber = trusting(builder).connect_to(&address).expect("a publisher");
        read(role, &orders, subscriber);
    } else {
        let subscriber = builder.connect_to(&address).expect("a publisher");
        read(role, &orders, subscriber);
    }
}

fn read<T: Trust + Unpin>(role: &Role, orders: &Orders, subscriber: Subscriber<T>) {
    let mut count = Count {
        first: subscriber.sequence(),
        ..Count::default()
    };
    let mut dice = Dice::new();
    let mut copy = Vec::new();
    let mut pause = |count: &Count| {
        if dice.below(orders.seldom) == 0 {
            let turns = dice.pick(&[100, 1_000, 10_000, 200_000]);
            dice.dally(turns);
        }
        if count.received.is_multiple_of(1024) {
            alive();
        }
    };
    role.tell(&count.first);
    let (stats, sequence) = match orders.way {
        Way::Watched => {
            let mut subscriber = Watched::new(subscriber).expect("descriptors");
            loop {
                let came = subscriber.try_recv();
                match came.map(|message| count.note(&message, &mut copy)) {
                    Ok(()) => {}
                    Err(TryRecvError::Empty) => {
                        let mut readable = [PollFd::new(&subscriber, PollFlags::IN)];
                        poll(&mut readable, None).expect("poll");
                    }
                    Err(TryRecvError::Disconnected { .. }) => break,
                    Err(error) => panic!("{error}"),
                }
                pause(&count);
            }
            (subscriber.stats(), subscriber.sequence())
        }
        Way::Task => {
            let mut subscriber = Async::new(subscriber).expect("a thread");
            block_on(async {
                loop {
                    match subscriber.recv().await {
                        Ok(message) => count.note(&message, &mut copy),
                        Err(RecvError::Disconnected { .. }) => break,
                        Err(error) => panic!("{error}"),
                    }
                    pause(&count);
                }
            });
            let subscriber = subscriber.get_ref();
            (subscriber.stats(), subscriber.sequence())
        }
        way => {
            let mut subscriber = subscriber;
            loop {
                let ended = match way {
                    Way::Recv => match subscriber.recv() {
                        Ok(message) => {
                            count.note(&message, &mut copy);
                            false
                        }
                        Err(RecvError::Disconnected { .. }) => true,
                        Err(error) => panic!("{error}"),
                    },
                    Way::TryRecv => match subscriber.try_recv() {
                        Ok(message) => {
                            count.note(&message, &mut copy);
                            false
                        }
                        Err(TryRecvError::Empty) => {
                            std::thread::yield_now();
                            false
                        }
                        Err(TryRecvError::Disconnected { .. }) => true,
                        Err(error) => panic!("{error}"),
                    },
                    _ => match subscriber.recv_timeout(Duration::from_millis(1)) {
                        Ok(message) => {
                            count.note(&message, &mut copy);
                            false
                        }
                        Err(RecvTimeoutError::TimedOut) => false,
                        Err(RecvTimeoutError::Disconnected { .. }) => true,
                        Err(error) => panic!("{error}"),
                    },
                };
                if ended {
                    break;
                }
                pause(&count);
            }
            (subscriber.stats(), subscriber.sequence())
        }
    };
    // Those at the very end no message has told of.
    assert_eq!(stats.messages, count.received);
    assert!(stats.missed >= count.missed);
    count.missed = stats.missed;
    assert_eq!(sequence, count.next());
    role.tell(&count);
}

fn bind(scene: &Scene, policy: Policy) -> (Publisher, Address) {
    let address = scene.address("prices");
    let builder = unbound(RING).pool_bytes(4 << 20).wait(policy.into());
    (builder.bind_to(&address).unwrap(), address)
}

fn send(publisher: &mut Publisher, number: u64, buffer: &mut [u8]) {
    let message = &mut buffer[..len(number)];
    fill(number, message);
    // Nobody is waited for: there is always room.
    publisher.try_send(message).unwrap();
}

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
        child.signal(Signal::STOP);
        wait_stopped(child.id(), child.id());
        steady.advance(20_000);
        child.signal(Signal::CONT);
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

/// Receives a few messages, keeps those that are long, and waits to be killed.
fn keeper(role: &Role) {
    let address: String = role.hear();
    let builder = overwritten(Policy::Block);
    let mut subscriber = builder.connect_to(&address.parse().unwrap()).unwrap();
    role.tell(&());
    let mut held = Vec::new();
    while held.len() < 3 {
        let message = subscriber.recv().unwrap();
        if message.len() == LONGEST {
            held.push(message.hold().unwrap());
        }
    }
    role.tell(&());
    let message = loop {
        match subscriber.recv() {
            Ok(message) if message.len() < LONGEST => {}
            last => break last,
        }
    };
    role.tell(&());
    let () = role.hear();
    drop(message);
    unreachable!("it is killed");
}

/// Killed while it keeps chunks, and has one in its hands: all of them are the publisher's again, whose pool has no others.
#[test]
fn one_that_is_killed_gives_everything_back() {
    let scene = Scene::new();
    let address = scene.address("prices");
    let builder = unbound(RING).pool_bytes(8 * LONGEST.next_multiple_of(4096));
    let mut publisher = builder.bind_to(&address).unwrap();
    for _ in 0..5 {
        let child = scene.spawn("keeper", &address.to_string());
        let () = child.hear();
        // Four of eight are kept in the end, and the others go round.
        for _ in 0..2 {
            while child.has_said::<()>().is_none() {
                publisher.try_send(&[7; LONGEST]).unwrap();
                alive();
            }
        }
        for _ in 0..1000 {
            publisher.try_send(&[8; LONGEST]).unwrap();
        }
        child.kill_and_reap();
        wait_until("its death is noticed", || publisher.subscribers() == 0);
        let loans: Vec<_> = (0..8).map(|_| publisher.try_loan(LONGEST)).collect();
        assert!(loans.iter().all(Result::is_ok), "{loans:?}");
    }
}

/// Sends until it is killed.
fn publisher(role: &Role) {
    let address: String = role.hear();
    let builder = unbound(RING).pool_bytes(4 << 20);
    let mut publisher = builder.bind_to(&address.parse().unwrap()).unwrap();
    role.tell(&());
    publisher.wait_for_subscribers(1).unwrap();
    let mut buffer = vec![0; LONGEST];
    for number in 0.. {
        send(&mut publisher, number, &mut buffer);
        if number == 1000 {
            role.tell(&());
        }
        if number.is_multiple_of(1024) {
            alive();
        }
    }
}

/// Whatever it was about to do: what it had committed is received or counted, and then comes the end.
#[test]
fn a_publisher_is_killed() {
    let scene = Scene::new();
    let address = scene.address("prices");
    let mut dice = Dice::new();
    for round in 0..12 {
        let child = scene.spawn("publisher", &address.to_string());
        let () = child.hear();
        let policy = Policy::ALL[round % 3];
        let mut subscriber = overwritten(policy).connect_to(&address).unwrap();
        let () = child.hear();
        let (mut count, mut copy) = (Count::default(), Vec::new());
        for _ in 0..dice.below(5_000) {
            count.note(&subscriber.recv_timeout(PATIENCE).unwrap(), &mut copy);
            if dice.below(64) == 0 {
                dice.dally(100_000);
            }
        }
        child.kill_and_reap();
        let reason = loop {
            match subscriber.recv() {
                Ok(message) => count.note(&message, &mut copy),
                Err(RecvError::Disconnected { reason }) => break reason,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(reason, Reason::Died);
        let stats = subscriber.stats();
        assert_eq!(stats.messages, count.received);
        assert_eq!(stats.messages + stats.missed, subscriber.sequence());
        assert!(subscriber.sequence() > 1000);
        assert!(matches!(
            subscriber.try_recv(),
            Err(TryRecvError::Disconnected { .. })
        ));
    }
}

/// Answers each message.
fn echo(role: &Role) {
    let (address, policy): (String, Policy) = role.hear();
    let address: Address = address.parse().unwrap();
    let builder = unbound(4096).wait(policy.into());
    let back = scene_sibling(&address);
    let mut publisher = builder.bind_to(&back).unwrap();
    let mut subscriber = overwritten(policy).connect_to(&address).unwrap();
    role.tell(&());
    publisher.wait_for_subscribers(1).unwrap();
    while let Ok(message) = subscriber.recv() {
        assert_eq!(message.missed(), 0);
        let bytes = message.to_vec();
        drop(message);
        alive();
        publisher.try_send(&bytes).unwrap();
    }
}

fn scene_sibling(address: &Address) -> Address {
    format!("{address}-back").parse().unwrap()
}

/// Both ends of a ping-pong sleep: each message finds the other one asleep, or about to be.
#[test]
fn no_wake_up_is_lost() {
    let scene = Scene::new();
    for policy in Policy::SLEEPY {
        let (mut publisher, address) = bind(&scene, policy);
        let child = scene.spawn("echo", &(address.to_string(), policy));
        let () = child.hear();
        let back = scene_sibling(&address);
        let mut subscriber = overwritten(policy).connect_to(&back).unwrap();
        publisher.wait_for_subscribers(1).unwrap();
        let mut dice = Dice::new();
        for number in 0..rounds(20_000) {
            dice.dally(200);
            publisher.try_send(&number.to_le_bytes()).unwrap();
            let answer = subscriber.recv_timeout(PATIENCE).unwrap();
            assert_eq!(answer.to_vec(), number.to_le_bytes());
            assert_eq!((answer.sequence(), answer.missed()), (number, 0));
        }
        assert!(subscriber.stats().sleeps > 0);
        drop(publisher);
        assert!(matches!(
            subscriber.recv(),
            Err(RecvError::Disconnected { .. })
        ));
        child.finish();
    }
}

/// A pair in this process.
fn pair() -> (Publisher, Subscriber) {
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

/// One that sleeps is woken by the next message, and by the end.
#[test]
fn one_that_sleeps_is_woken() {
    let _scene = Scene::new();
    for _ in 0..20 {
        let (mut publisher, mut subscriber) = pair();
        let (tells, told) = std::sync::mpsc::channel();
        let sleeper = std::thread::spawn(move || {
            tells.send(memlane_tests::thread_id()).unwrap();
            assert_eq!(subscriber.recv().unwrap().to_vec(), b"a message");
            tells.send(memlane_tests::thread_id()).unwrap();
            assert!(subscriber.recv().is_err());
        });
        wait_asleep(std::process::id(), told.recv().unwrap());
        publisher.try_send(b"a message").unwrap();
        wait_asleep(std::process::id(), told.recv().unwrap());
        drop(publisher);
        sleeper.join().unwrap();
    }
}

/// The silence of a publisher is told of, and messages that are missed are signs of life.
#[test]
fn silence_is_told_of() {
    let _scene = Scene::new();
    let (here, there) = Link::pair().unwrap();
    let mut publisher = unbound(4096).unbound().unwrap();
    publisher.attach(here).unwrap();
    let builder = overwritten(Policy::Block).liveliness(Duration::from_millis(5));
    let mut subscriber = builder.over(there).unwrap();
    assert!(matches!(subscriber.recv(), Err(RecvError::Silent { .. })));
    for _ in 0..1000 {
        publisher.try_send(&[0; 100]).unwrap();
    }
    while subscriber.try_recv().is_ok() {}
    assert!(matches!(subscriber.recv(), Err(RecvError::Silent { .. })));
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

#[test]
fn another_version_is_refused() {
    let _scene = Scene::new();
    let (here, there) = Link::pair().unwrap();
    let connecting = std::thread::spawn(move || overwritten(Policy::Block).over(there));
    let version = VERSION - 1;
    here.send(&Opening { version }).unwrap();
    let error = connecting.join().unwrap().unwrap_err();
    assert!(
        matches!(error, Error::Version { publisher, subscriber } if (publisher, subscriber) == (VERSION - 1, VERSION)),
        "{error}"
    );
}

/// A subscriber of this process, and the ring and the link of its publisher, which is whatever the test makes it.
fn rogue(policy: Policy, sequence: u64) -> (Result<Subscriber, Error>, Shared, Link) {
    let capacity = 4096;
    let (ring, descriptor) = Shared::create("rogue", page_size(), capacity).unwrap();
    let (here, there) = Link::pair().unwrap();
    let connecting = std::thread::spawn(move || overwritten(policy).over(there));
    here.send(&Opening { version: VERSION }).unwrap();
    let Opening { version } = here.recv_timeout(PATIENCE).unwrap();
    assert_eq!(version, VERSION);
    let greeting: Greeting = here.recv_timeout(PATIENCE).unwrap();
    assert_eq!(greeting.overflow, wire::Overflow::Overwrite);
    here.send(&Answer::Welcome(Welcome {
        start: 64,
        rings: match policy {
            Policy::Poll => Rings::Nothing,
            _ => Rings::Socket,
        },
        sequence,
        ..Welcome::new(descriptor.into(), capacity as u64)
    }))
    .unwrap();
    (connecting.join().unwrap(), ring, here)
}

/// How far it is, of which the publisher has said nonsense: where the newest anchor is, and how many messages came before.
const LAPS: usize = 256;
const BOUND: usize = LAPS;
const ANCHOR: [usize; 2] = [LAPS + 16, LAPS + 24];

/// Bounds and anchors that make no sense: a clear error, in every form, which is final; or nothing, until it is told otherwise.
#[test]
fn hostile_publishers() {
    let _scene = Scene::new();
    for policy in Policy::ALL {
        for (position, sequence) in [
            // Not behind the reader, at it, or at no multiple of 8.
            (0, 8),
            (64, 8),
            (64, 100),
            (12_345, 300),
            (u64::MAX, 300),
            // More messages than there can be, and fewer.
            (1 << 20, 1 << 20),
            (128, 1000),
            (1 << 20, 8),
            (1 << 20, 0),
            (u64::MAX - 7, u64::MAX),
        ] {
            let (subscriber, ring, link) = rogue(policy, 8);
            let mut subscriber = subscriber.unwrap();
            ring.word(ANCHOR[0]).store(position, Ordering::Release);
            ring.word(ANCHOR[1]).store(sequence, Ordering::Release);
            ring.word(BOUND).store(u64::MAX, Ordering::Release);
            let error = subscriber.recv().unwrap_err();
            assert!(matches!(error, RecvError::Anchor(_)), "{error}");
            assert!(error.to_string().contains("expected a place behind"));
            let again = subscriber.try_recv().unwrap_err();
            assert!(matches!(again, TryRecvError::Anchor(_)), "{again}");
            let again = subscriber.recv_timeout(PATIENCE).unwrap_err();
            assert!(matches!(again, RecvTimeoutError::Anchor(_)), "{again}");
            assert_eq!(again.to_string(), error.to_string());
            drop(link);
            assert!(matches!(subscriber.recv(), Err(RecvError::Anchor(_))));
        }
        // An anchor that makes sense is gone on from, and a header behind it that makes none is told of.
        let (subscriber, mut ring, _link) = rogue(policy, 8);
        let mut subscriber = subscriber.unwrap();
        ring.word(ANCHOR[0]).store(8192, Ordering::Release);
        ring.word(ANCHOR[1]).store(100, Ordering::Release);
        ring.word(BOUND).store(8192 + 4096, Ordering::Release);
        assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
        assert_eq!(subscriber.stats().missed, 92);
        ring.store_release(8192, 77);
        assert!(matches!(subscriber.recv(), Err(RecvError::Corrupt(_))));
        // A chunk that was never announced is missed.
        let (subscriber, mut ring, link) = rogue(policy, 8);
        let mut subscriber = subscriber.unwrap();
        for (at, word) in [(72, 7), (80, 1), (88, 5)] {
            ring.store(at, word);
        }
        ring.store_release(64, 2 << 32 | 32);
        assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
        assert_eq!(subscriber.stats().missed, 1);
        drop(link);
        assert!(matches!(
            subscriber.recv(),
            Err(RecvError::Disconnected {
                reason: Reason::Died
            })
        ));
    }
    // A ring that was never announced is waited for, as long as there is a publisher.
    for policy in Policy::ALL {
        let (subscriber, mut ring, link) = rogue(policy, 8);
        let mut subscriber = subscriber.unwrap();
        ring.store_release(64, 5 | 3 << 32);
        for _ in 0..3 {
            assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
            assert!(matches!(
                subscriber.recv_timeout(Duration::from_millis(1)),
                Err(RecvTimeoutError::TimedOut)
            ));
        }
        drop(link);
        let error = subscriber.recv().unwrap_err();
        assert!(matches!(error, RecvError::Chunk(_)), "{error}");
    }
    // More messages than there can have been.
    let (refused, ..) = rogue(Policy::Block, 9);
    let error = refused.unwrap_err();
    assert!(matches!(error, Error::Welcome { .. }), "{error}");
}

/// A publisher that moves on without end, and one that never settles: no call takes longer than it is told to.
#[test]
fn a_publisher_that_is_always_further() {
    let _scene = Scene::new();
    for policy in Policy::ALL {
        for settles in [true, false] {
            let (subscriber, ring, link) = rogue(policy, 8);
            let mut subscriber = Watched::new(subscriber.unwrap()).map_err(drop);
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut position = 64;
                    for anchors in 1_u64.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        position += 1 << 16;
                        let at = LAPS + 16 + 24 * (anchors % 2) as usize;
                        ring.word(at).store(position, Ordering::Relaxed);
                        ring.word(at + 8)
                            .store(position / 64 + 7, Ordering::Relaxed);
                        ring.word(LAPS + 8).store(anchors, Ordering::Release);
                        let bound = if settles { position + 1 } else { u64::MAX };
                        ring.word(BOUND).store(bound, Ordering::Release);
                    }
                });
                let mut empty = 0;
                while empty < 100 {
                    let Ok(subscriber) = &mut subscriber else {
                        break;
                    };
                    alive();
                    match subscriber.try_recv() {
                        Err(TryRecvError::Empty) => empty += 1,
                        // It was met between two stores.
                        Err(TryRecvError::Anchor(_)) => break,
                        other => panic!("{other:?}"),
                    }
                    match subscriber.recv_timeout(Duration::from_millis(1)) {
                        Err(RecvTimeoutError::TimedOut) => {}
                        Err(RecvTimeoutError::Anchor(_)) => break,
                        other => panic!("{other:?}"),
                    }
                }
                stop.store(true, Ordering::Relaxed);
            });
            drop(link);
        }
    }
}

/// Whatever one writes that is overwritten: nobody but itself is any the worse for it.
#[test]
fn hostile_subscribers() {
    let _scene = Scene::new();
    let pool = 16 * LONGEST.next_multiple_of(4096);
    let builder = unbound(RING).pool_bytes(pool);
    let mut publisher = builder.unbound().unwrap();
    let (here, there) = Link::pair().unwrap();
    publisher.attach(there).unwrap();
    here.send(&Opening { version: VERSION }).unwrap();
    let (page, descriptor) = Shared::create("rogue", page_size(), 0).unwrap();
    let greeting = Greeting {
        overflow: wire::Overflow::Overwrite,
        ..Greeting::new(descriptor.into(), Offer::default())
    };
    here.send(&greeting).unwrap();
    let (other, there) = Link::pair().unwrap();
    publisher.attach(there).unwrap();
    let mut honest = Subscriber::builder()
        .wait(Policy::Block.into())
        .over(other)
        .unwrap();
    publisher.wait_for_subscribers(2).unwrap();
    let mut dice = Dice::new();
    let mut buffer = vec![0; LONGEST];
    let mut copy = Vec::new();
    for number in 0..20_000 {
        let word = match dice.below(4) {
            0 => dice.below(u64::MAX),
            1 => u64::MAX - dice.below(2),
            _ => dice.below(number + 1),
        };
        // Its cursor, how many slots it uses, its flag (though it has no doorbell), and its slots.
        let at = [0, 8, 128, 512 + 8 * dice.below(8) as usize];
        let at = dice.pick(&at);
        page.word(at).store(word, Ordering::Release);
        send(&mut publisher, number, &mut buffer);
        honest.try_recv().unwrap().copy_into(&mut copy);
        assert_eq!(copy.len(), len(number));
        check(number, &copy);
        if number.is_multiple_of(1024) {
            alive();
        }
    }
    assert!(publisher.drain(PATIENCE).unwrap());
    assert_eq!(publisher.subscribers(), 2);
    let stats = publisher.stats();
    assert_eq!((stats.evicted, stats.left, stats.stalls), (0, 0, 0));
    drop(here);
    wait_until("it has left", || publisher.subscribers() == 1);
}

//! Many publishers, one subscriber.

use std::{collections::BTreeMap, mem::MaybeUninit, os::fd::AsFd, thread, time::Duration};

use memlane::{
    Address, Async, Encoded, Ended, Key, Link, Message, Overflow, PayloadError, Plain, Publisher,
    Reason, Received, RecvError, RecvTimeoutError, Slice, Subscriber, SubscriberBuilder,
    Subscriptions, TryRecvError, Watched,
};
use memlane_region::{Shared, WordsMut, page_size};
use memlane_tests::{
    Control, Dice, PATIENCE, Policy, Role, Scene, Smol, Tasks, Tokio, alive, check, fill, length,
    play, rounds, unbound, wait_asleep,
    wire::{Answer, Greeting, Opening, VERSION, Welcome, header},
};
use rustix::event::{
    PollFd, PollFlags,
    epoll::{self, CreateFlags, EventData, EventFlags},
    poll,
};
use serde::{Deserialize, Serialize};

#[test]
fn other_process() {
    play(&[("publishers", publishers), ("one", one)]);
}

const LONGEST: usize = 6_000;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Orders {
    /// The first service's address, without its number, and the numbers.
    address: String,
    first: u64,
    count: u64,
}

impl Orders {
    fn address(&self, at: u64) -> Address {
        format!("{}-{at}", self.address).parse().unwrap()
    }
}

/// How many messages a publisher sends.
fn messages(publisher: u64) -> u64 {
    150 + publisher
}

/// The number in message `number` of a publisher.
fn mark(publisher: u64, number: u64) -> u64 {
    publisher * 1_000 + number
}

fn send(publisher: &mut Publisher, mark: u64) {
    let mut message = vec![0; length(mark, LONGEST).max(8)];
    fill(mark, &mut message);
    publisher.send(&message).unwrap();
}

/// Many publishers, each of which sends its messages to the one subscriber that comes; and then it waits to be killed.
fn publishers(role: &Role) {
    let orders: Orders = role.hear();
    let numbers = orders.first..orders.first + orders.count;
    let mut publishers: Vec<_> = numbers
        .map(|at| {
            let builder = unbound(4096).pool_bytes(1 << 20);
            (at, builder.bind_to(&orders.address(at)).unwrap())
        })
        .collect();
    role.tell(&());
    for (_, publisher) in &publishers {
        publisher.wait_for_subscribers(1).unwrap();
    }
    for number in 0..messages(orders.first + orders.count) {
        for (at, publisher) in &mut publishers {
            if number < messages(*at) {
                send(publisher, mark(*at, number));
            }
        }
        alive();
    }
    role.tell(&());
    let () = role.hear();
    unreachable!("it is killed");
}

/// What came of each publisher.
#[derive(Default)]
struct Ledger {
    next: BTreeMap<u64, u64>,
    copy: Vec<u8>,
}

impl Ledger {
    #[track_caller]
    fn note(&mut self, publisher: u64, message: &Message<'_>) {
        let next = self.next.entry(publisher).or_default();
        message.copy_into(&mut self.copy);
        *next += message.missed();
        assert_eq!(message.sequence(), *next);
        let mark = mark(publisher, *next);
        assert_eq!(self.copy.len(), length(mark, LONGEST).max(8));
        check(mark, &self.copy);
        *next += 1;
    }
}

#[track_caller]
fn died(ended: &Ended) {
    assert!(
        matches!(
            ended.reason,
            RecvError::Disconnected {
                reason: Reason::Died
            }
        ),
        "{ended:?}"
    );
}

/// A hundred of them in ten processes, which are killed one after another when they have sent everything: of each all has come,
/// in its order, and its end, once.
#[test]
fn a_hundred_publishers_are_killed_one_after_another() {
    let scene = Scene::new();
    for policy in [Policy::Block, Policy::Adaptive, Policy::Poll] {
        let mut subscriptions = Subscriber::builder()
            .wait(policy.into())
            .timeout(PATIENCE)
            .subscriptions()
            .unwrap();
        let (mut children, mut names) = (Vec::new(), BTreeMap::new());
        let mut ledger = Ledger::default();
        for first in (0..100).step_by(10) {
            let orders = Orders {
                address: scene.address("publisher").to_string(),
                first,
                count: 10,
            };
            let child = scene.spawn("publishers", &orders);
            let () = child.hear();
            for at in first..first + 10 {
                let address = orders.address(at);
                let key = subscriptions.connect_to(&address).unwrap();
                assert_eq!(subscriptions.label(key), Some(&*address.to_string()));
                names.insert(format!("{key:?}"), at);
            }
            children.push(child);
        }
        assert_eq!((names.len(), subscriptions.len()), (100, 100));
        let name = |key: Key| names[&format!("{key:?}")];
        let mut ended = Vec::new();
        while ended.len() < 100 {
            let end = match subscriptions.recv_timeout(Duration::from_millis(20)) {
                Ok(Received::Message(from, message)) => {
                    ledger.note(name(from), &message);
                    continue;
                }
                Ok(Received::Ended(end)) => end,
                Err(RecvTimeoutError::TimedOut) => {
                    // The next one that has sent everything: it may have been received or not.
                    if children
                        .last()
                        .is_some_and(|child| child.has_said::<()>().is_some())
                    {
                        children.pop().unwrap().kill_and_reap();
                    }
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            died(&end);
            let at = name(end.key);
            assert!(end.label.ends_with(&format!("publisher-{at}")));
            assert_eq!(end.stats.messages, messages(at));
            assert_eq!(ledger.next[&at], messages(at));
            assert!(subscriptions.remove(end.key).is_none());
            ended.push(at);
            alive();
        }
        ended.sort_unstable();
        assert_eq!(ended, (0..100).collect::<Vec<_>>());
        assert!(matches!(
            subscriptions.recv(),
            Err(RecvError::Disconnected {
                reason: Reason::NoPublisher
            })
        ));
        let stats = subscriptions.stats();
        assert_eq!(stats.messages, (0..100).map(messages).sum::<u64>());
        assert_eq!(stats.ended, 100);
    }
}

fn builder(policy: Policy, overflow: Overflow) -> SubscriberBuilder {
    Subscriber::builder()
        .wait(policy.into())
        .overflow(overflow)
        .timeout(PATIENCE)
}

const BOTH: [Overflow; 2] = [Overflow::Block, Overflow::Overwrite];

/// A publisher in this process, and a subscriber to it.
fn pair(policy: Policy, overflow: Overflow) -> (Publisher, Subscriber) {
    let (here, there) = Link::pair().unwrap();
    let publisher = unbound(4096).pool_bytes(1 << 20).unbound().unwrap();
    publisher.attach(here).unwrap();
    (publisher, builder(policy, overflow).over(there).unwrap())
}

/// So many of them in this process, every second one overwritten.
fn many(policy: Policy, count: usize) -> (Subscriptions, Vec<(Key, Publisher)>) {
    let mut subscriptions = builder(policy, Overflow::Block).subscriptions().unwrap();
    let publishers = (0..count).map(|at| {
        let (publisher, subscriber) = pair(policy, BOTH[at % 2]);
        let label = format!("number {at}");
        (subscriptions.add_as(&label, subscriber).unwrap(), publisher)
    });
    let publishers = publishers.collect();
    (subscriptions, publishers)
}

/// Sends so many messages, each through one of them and with the number that it has there; how many went through each.
fn send_in_turns<const N: usize>(
    mut publishers: Vec<(Key, Publisher)>,
    messages: u64,
) -> thread::JoinHandle<[u64; N]> {
    thread::spawn(move || {
        let mut dice = Dice::new();
        let mut sent = [0_u64; N];
        for _ in 0..messages {
            let at = dice.below(N as u64) as usize;
            publishers[at].1.send(&sent[at].to_le_bytes()).unwrap();
            sent[at] += 1;
            dice.dally(2_000);
        }
        sent
    })
}

#[test]
fn a_flood_does_not_hold_up_a_trickle() {
    let _scene = Scene::new();
    for policy in Policy::ALL {
        for flooding in 0..2 {
            let (mut subscriptions, mut publishers) = many(policy, 8);
            let full = |publisher: &mut Publisher| {
                for _ in 0..64 {
                    if publisher.try_send(&[0; 64]).is_err() {
                        break;
                    }
                }
            };
            // Seven have one message each, the other one is never empty.
            let (_, mut flood) = publishers.remove(flooding);
            full(&mut flood);
            for (_, publisher) in &mut publishers {
                publisher.try_send(b"a trickle").unwrap();
            }
            let mut left: Vec<Key> = publishers.iter().map(|(key, _)| *key).collect();
            let mut flooded = 0;
            while !left.is_empty() {
                let (from, message) = match subscriptions.recv().unwrap() {
                    Received::Message(from, message) => (from, message.to_vec()),
                    Received::Ended(ended) => panic!("{ended:?}"),
                };
                if message == b"a trickle" {
                    let before = left.len();
                    left.retain(|key| *key != from);
                    assert_eq!(left.len() + 1, before);
                } else {
                    assert!(publishers.iter().all(|(key, _)| *key != from));
                    flooded += 1;
                }
                full(&mut flood);
                assert!(flooded <= 8 * 32, "{left:?} after {flooded} of the flood");
            }
        }
    }
}

/// Of those that are overwritten some is missed, and counted; of the others nothing.
#[test]
fn block_and_overwrite_together() {
    let _scene = Scene::new();
    let (mut subscriptions, mut publishers) = many(Policy::Adaptive, 6);
    let mut dice = Dice::new();
    let mut ledger = Ledger::default();
    let mut sent = [0_u64; 6];
    let keys: Vec<Key> = publishers.iter().map(|(key, _)| *key).collect();
    let at = |key: Key| keys.iter().position(|known| *known == key).unwrap();
    for _ in 0..rounds(4_000) {
        for _ in 0..dice.below(300) {
            let at = dice.below(6) as usize;
            if sent[at] == 999 {
                continue;
            }
            let mark = mark(at as u64, sent[at]);
            let mut message = vec![0; length(mark, LONGEST).max(8)];
            fill(mark, &mut message);
            match publishers[at].1.try_send(&message) {
                Ok(()) => sent[at] += 1,
                Err(error) => assert_eq!(at % 2, 0, "{error}"),
            }
        }
        for _ in 0..dice.below(20) {
            match subscriptions.try_recv() {
                Ok(Received::Message(from, message)) => ledger.note(at(from) as u64, &message),
                Ok(Received::Ended(ended)) => panic!("{ended:?}"),
                Err(error) => {
                    assert!(matches!(error, TryRecvError::Empty), "{error}");
                    break;
                }
            }
        }
        if sent == [999; 6] {
            break;
        }
    }
    drop(publishers.drain(..));
    let (mut ended, mut missed) = (0, 0);
    while ended < 6 {
        match subscriptions.recv().unwrap() {
            Received::Message(from, message) => ledger.note(at(from) as u64, &message),
            Received::Ended(end) => {
                let at = at(end.key);
                assert_eq!(end.label, format!("number {at}"));
                assert_eq!(end.stats.messages + end.stats.missed, sent[at]);
                assert!(at % 2 == 1 || end.stats.missed == 0);
                missed += end.stats.missed;
                ended += 1;
            }
        }
    }
    assert!(missed > 0);
}

/// Sends one message for each word, and says so.
fn one(role: &Role) {
    let address: String = role.hear();
    let mut publisher = unbound(4096).bind_to(&address.parse().unwrap()).unwrap();
    role.tell(&());
    publisher.wait_for_subscribers(1).unwrap();
    for number in 0_u64.. {
        let more: bool = role.hear();
        if !more {
            break;
        }
        publisher.send(&number.to_le_bytes()).unwrap();
    }
}

/// Each message finds the subscriber asleep, and comes from any of the processes; each of which may have been killed, and
/// started again, under the name that it had.
#[test]
fn one_that_sleeps_is_woken_by_any_and_finds_again_who_was_killed() {
    let scene = Scene::new();
    for overflow in BOTH {
        let mut subscriptions = builder(Policy::Block, overflow).subscriptions().unwrap();
        let start = |name: usize| {
            let address = scene.address(&format!("one-{name}"));
            let child = scene.spawn("one", &address.to_string());
            let () = child.hear();
            (child, address)
        };
        let mut dice = Dice::new();
        let mut all: Vec<_> = (0..4)
            .map(|name| {
                let (child, address) = start(name);
                (subscriptions.connect_to(&address).unwrap(), child, 0_u64)
            })
            .collect();
        let me = memlane_tests::thread_id();
        for _ in 0..rounds(400) {
            let at = dice.below(4) as usize;
            let kill = dice.below(20) == 0;
            let (key, child, sent) = &mut all[at];
            thread::scope(|scope| {
                let child = &*child;
                scope.spawn(move || {
                    wait_asleep(std::process::id(), me);
                    if kill {
                        child.kill();
                    } else {
                        child.tell(&true);
                    }
                });
                match subscriptions.recv().unwrap() {
                    Received::Message(from, message) => {
                        assert!(!kill);
                        assert_eq!(from, *key);
                        assert_eq!(message.to_vec(), sent.to_le_bytes());
                        *sent += 1;
                    }
                    Received::Ended(ended) => {
                        assert!(kill);
                        died(&ended);
                        assert_eq!((ended.key, ended.stats.messages), (*key, *sent));
                    }
                }
            });
            if kill {
                let (child, address) = start(at);
                let before = *key;
                *key = subscriptions.connect_to(&address).unwrap();
                assert_ne!(*key, before);
                *sent = 0;
                std::mem::replace(&mut all[at].1, child).kill_and_reap();
            }
        }
        assert!(subscriptions.stats().sleeps >= 400);
        for (_, child, _) in all {
            child.tell(&false);
            child.finish();
        }
        for _ in 0..4 {
            let received = subscriptions.recv().unwrap();
            assert!(matches!(received, Received::Ended(_)));
        }
        assert!(subscriptions.is_empty());
    }
}

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

/// In a loop of one's own, level- or edge-triggered: nothing is overlooked, whatever comes when.
#[test]
fn in_a_loop() {
    let _scene = Scene::new();
    for edge in [false, true] {
        let (subscriptions, mut publishers) = many(Policy::Block, 5);
        let mut subscriptions = Watched::new(subscriptions).unwrap();
        let (late, subscriber) = pair(Policy::Block, Overflow::Overwrite);
        let key = subscriptions.add(subscriber).unwrap();
        publishers.push((key, late));
        let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
        let flags = match edge {
            true => EventFlags::IN | EventFlags::ET,
            false => EventFlags::IN,
        };
        epoll::add(&epoll, subscriptions.as_fd(), EventData::new_u64(1), flags).unwrap();
        let keys: Vec<Key> = publishers.iter().map(|(key, _)| *key).collect();
        let sending = send_in_turns::<6>(publishers, 20_000);
        let mut next = [0_u64; 6];
        let mut ended = Vec::new();
        while ended.len() < 6 {
            let mut events = [MaybeUninit::uninit(); 1];
            let patience = rustix::time::Timespec {
                tv_sec: PATIENCE.as_secs() as i64,
                tv_nsec: 0,
            };
            let woken = epoll::wait(&epoll, &mut events, Some(&patience))
                .unwrap()
                .0
                .len();
            assert_eq!(woken, 1, "no event for {PATIENCE:?}");
            alive();
            loop {
                let mut received = 0;
                match subscriptions.try_recv() {
                    Ok(Received::Message(from, message)) => {
                        let at = keys.iter().position(|key| *key == from).unwrap();
                        next[at] += message.missed();
                        assert_eq!(message.to_vec(), next[at].to_le_bytes());
                        next[at] += 1;
                    }
                    Ok(Received::Ended(end)) => {
                        let at = keys.iter().position(|key| *key == end.key).unwrap();
                        ended.push((at, end.stats.messages + end.stats.missed));
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected { .. }) if ended.len() == 6 => break,
                    Err(error) => panic!("{error}"),
                }
                received += 1;
                if !edge && received == 3 {
                    break;
                }
            }
        }
        let sent = sending.join().unwrap();
        ended.sort_unstable();
        let sent: Vec<(usize, u64)> = sent.into_iter().enumerate().collect();
        assert_eq!(ended, sent);
        // Of no use to wait for: it says so at once.
        let mut readable = [PollFd::new(&subscriptions, PollFlags::IN)];
        let _ = poll(&mut readable, Some(&rustix::time::Timespec::default()));
        assert!(matches!(
            subscriptions.try_recv(),
            Err(TryRecvError::Disconnected { .. })
        ));
    }
}

/// As a runtime takes many publishers in.
trait Many: Tasks {
    fn many(subscriptions: Subscriptions) -> Async<Subscriptions, Self::Readiness>;
}

impl Many for Control {
    fn many(subscriptions: Subscriptions) -> Async<Subscriptions> {
        Async::new(subscriptions).unwrap()
    }
}

impl Many for Smol {
    fn many(subscriptions: Subscriptions) -> Async<Subscriptions, Smol> {
        Async::with(subscriptions, Smol::register).unwrap()
    }
}

impl Many for Tokio {
    fn many(subscriptions: Subscriptions) -> memlane::tokio::Subscriptions {
        memlane::tokio::Subscriptions::register(subscriptions).unwrap()
    }
}

#[test]
fn in_tasks() {
    let _scene = Scene::after(Smol::start);
    task::<Control>();
    task::<Smol>();
    task::<Tokio>();
}

fn task<K: Many>() {
    let (subscriptions, publishers) = many(Policy::Block, 4);
    let keys: Vec<Key> = publishers.iter().map(|(key, _)| *key).collect();
    let sending = send_in_turns::<4>(publishers, 10_000);
    let mut next = [0_u64; 4];
    let mut counted = [0; 4];
    K::run(async {
        let mut subscriptions = K::many(subscriptions);
        loop {
            match subscriptions.recv().await {
                Ok(Received::Message(from, message)) => {
                    let at = keys.iter().position(|key| *key == from).unwrap();
                    next[at] += message.missed();
                    assert_eq!(message.to_vec(), next[at].to_le_bytes());
                    next[at] += 1;
                }
                Ok(Received::Ended(end)) => {
                    let at = keys.iter().position(|key| *key == end.key).unwrap();
                    counted[at] = end.stats.messages + end.stats.missed;
                }
                Err(RecvError::Disconnected { reason }) => {
                    assert_eq!(reason, Reason::NoPublisher);
                    break;
                }
                Err(error) => panic!("{error}"),
            }
            alive();
        }
    });
    assert_eq!(counted, sending.join().unwrap());
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

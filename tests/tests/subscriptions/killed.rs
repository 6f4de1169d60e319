//! Publishers in other processes, which are killed, and may come again.

use std::{collections::BTreeMap, thread, time::Duration};

use memlane::{
    Address, Ended, Key, Message, Publisher, Reason, Received, RecvError, RecvTimeoutError,
    Subscriber,
};
use memlane_tests::{
    Dice, PATIENCE, Policy, Role, Scene, alive, check, fill, length, rounds, unbound, wait_asleep,
};
use serde::{Deserialize, Serialize};

use crate::lanes::{BOTH, builder};

pub(crate) const LONGEST: usize = 6_000;

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
pub(crate) fn mark(publisher: u64, number: u64) -> u64 {
    publisher * 1_000 + number
}

fn send(publisher: &mut Publisher, mark: u64) {
    let mut message = vec![0; length(mark, LONGEST).max(8)];
    fill(mark, &mut message);
    publisher.send(&message).unwrap();
}

/// Many publishers, each of which sends its messages to the one subscriber that comes; and then it waits to be killed.
pub(crate) fn publishers(role: &Role) {
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
pub(crate) struct Ledger {
    pub(crate) next: BTreeMap<u64, u64>,
    pub(crate) copy: Vec<u8>,
}

impl Ledger {
    #[track_caller]
    pub(crate) fn note(&mut self, publisher: u64, message: &Message<'_>) {
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

/// Sends one message for each word, and says so.
pub(crate) fn one(role: &Role) {
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

/// One of them is stopped, which is not dead: the others are heard, and it is when it goes on.
#[test]
fn one_that_is_stopped_holds_up_nobody() {
    let scene = Scene::new();
    for overflow in BOTH {
        let mut subscriptions = builder(Policy::Block, overflow).subscriptions().unwrap();
        let all: Vec<_> = (0..3)
            .map(|name| {
                let address = scene.address(&format!("one-{name}"));
                let child = scene.spawn("one", &address.to_string());
                let () = child.hear();
                (subscriptions.connect_to(&address).unwrap(), child)
            })
            .collect();
        let (stopped, others) = all.split_first().unwrap();
        let mut receive = |expected: Key, number: u64| match subscriptions.recv_timeout(PATIENCE) {
            Ok(Received::Message(from, message)) => {
                assert_eq!(
                    (from, message.to_vec()),
                    (expected, number.to_le_bytes().to_vec())
                );
            }
            other => panic!("{:?}", other.map(drop)),
        };
        stopped.1.tell(&true);
        receive(stopped.0, 0);
        stopped.1.stop();
        stopped.1.tell(&true);
        for number in 0..100 {
            for (key, child) in others {
                child.tell(&true);
                receive(*key, number);
            }
        }
        stopped.1.go_on();
        receive(stopped.0, 1);
        assert_eq!(subscriptions.len(), 3);
        for (_, child) in all {
            child.tell(&false);
            child.finish();
        }
        for _ in 0..3 {
            let received = subscriptions.recv().unwrap();
            assert!(matches!(received, Received::Ended(_)));
        }
    }
}

/// Who does not wait hears of an end as soon as one who does, whichever way it does not wait.
#[test]
fn one_that_does_not_wait_is_told_at_once() {
    let scene = Scene::new();
    for policy in Policy::SLEEPY {
        for waits in [Some(Duration::ZERO), None] {
            let mut subscriptions = builder(policy, BOTH[0]).subscriptions().unwrap();
            let address = scene.address("one");
            let child = scene.spawn("one", &address.to_string());
            let () = child.hear();
            subscriptions.connect_to(&address).unwrap();
            child.tell(&true);
            let Received::Message(..) = subscriptions.recv().unwrap() else {
                panic!("it is there");
            };
            child.kill_and_reap();
            let mut calls = 0;
            loop {
                let received = match waits {
                    Some(time) => subscriptions.recv_timeout(time).ok(),
                    None => subscriptions.try_recv().ok(),
                };
                match received {
                    Some(Received::Ended(ended)) => break died(&ended),
                    Some(Received::Message(..)) => panic!("it has sent one"),
                    None => calls += 1,
                }
                assert!(calls < 10, "{policy:?}, {waits:?}");
            }
            let _ = memlane::transport::remove_stale(&address);
        }
    }
}

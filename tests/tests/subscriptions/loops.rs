//! In loops and in tasks.

use std::{mem::MaybeUninit, os::fd::AsFd};

use memlane::{
    Async, Key, Overflow, Reason, Received, RecvError, Subscriptions, TryRecvError, Watched,
};
use memlane_tests::{Control, PATIENCE, Policy, Scene, Smol, Tasks, Tokio, alive};
use rustix::event::{
    PollFd, PollFlags,
    epoll::{self, CreateFlags, EventData, EventFlags},
    poll,
};

use crate::lanes::{many, pair, send_in_turns};

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

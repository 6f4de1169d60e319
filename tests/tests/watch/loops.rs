//! In loops and in tasks.

use std::thread;

use memlane::{Async, Link, Plain, Reason, WatchError, WatchReceiver, WatchSender, Watched};
use memlane_tests::{Control, Scene, Smol, Tasks, Tokio, thread_id, wait_asleep, wait_until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::lane::pair;

#[test]
fn in_a_loop() {
    let _scene = Scene::new();
    let (mut sender, receiver) = pair();
    let mut receiver = Watched::new(receiver).unwrap();
    let readable = |receiver: &Watched<WatchReceiver>| {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(receiver, PollFlags::IN)], Some(&now)).unwrap() == 1
    };
    for round in 1..200_u64 {
        while receiver.try_changed().unwrap() {
            receiver.get().unwrap();
        }
        assert!(!readable(&receiver), "round {round}");
        for _ in 0..=round % 3 {
            sender.send(&round.to_ne_bytes()).unwrap();
        }
        assert!(readable(&receiver), "round {round}");
        assert!(receiver.try_changed().unwrap());
        assert_eq!(receiver.get().unwrap().unwrap(), round.to_ne_bytes());
    }
    let me = thread_id();
    let sending = thread::spawn(move || {
        wait_asleep(std::process::id(), me);
        sender.send(b"the last one").unwrap();
    });
    // The blocking form of one that is watched sleeps.
    receiver.changed().unwrap();
    assert_eq!(receiver.get().unwrap().unwrap(), b"the last one");
    sending.join().unwrap();
    wait_until("the end is noticed", || match receiver.try_changed() {
        Ok(changed) => {
            assert!(!changed);
            poll(&mut [PollFd::new(&receiver, PollFlags::IN)], None).unwrap();
            false
        }
        Err(WatchError::Disconnected { reason }) => {
            assert_eq!(reason, Reason::Closed);
            true
        }
        Err(error) => panic!("{error}"),
    });
}

fn in_tasks<K: Tasks>() {
    let (mut sender, receiver) = pair();
    let (mut back, answers) = pair();
    let mut answers = answers;
    let sending = thread::spawn(move || {
        for number in 1..=500_u64 {
            sender.send(&number.to_ne_bytes()).unwrap();
            answers.changed().unwrap();
            assert_eq!(answers.get().unwrap().unwrap(), number.to_ne_bytes());
        }
    });
    K::run(async {
        let mut receiver = K::watch(receiver);
        loop {
            match receiver.changed().await {
                Ok(()) => {}
                Err(WatchError::Disconnected { .. }) => break,
                Err(error) => panic!("{error}"),
            }
            let value = receiver.get_mut().get().unwrap().unwrap();
            back.send(&value).unwrap();
        }
    });
    sending.join().unwrap();
}

#[test]
fn in_tasks_of_any_executor() {
    let _scene = Scene::after(Smol::start);
    in_tasks::<Control>();
    in_tasks::<Smol>();
    in_tasks::<Tokio>();
    // And of values.
    let (ours, theirs) = Link::pair().unwrap();
    let sender = WatchSender::builder().of::<Plain<u64>>();
    let mut sender = sender.unbound().unwrap();
    sender.get_ref().attach(ours).unwrap();
    let receiver = WatchReceiver::builder().of::<Plain<u64>>();
    let receiver = receiver.over(theirs).unwrap();
    let mut receiver = receiver.try_map(Async::new).unwrap();
    sender.send(&7).unwrap();
    Control::run(async {
        receiver.changed().await.unwrap();
        assert_eq!(receiver.get().unwrap(), Some(7));
    });
}

//! Receivers that sleep, are slow, or are killed; values that are whole, and newer each time.

use memlane::{ReadError, WatchError, WatchReceiver, WatchSender};
use memlane_tests::{
    Policy, Role, Scene, check, fill, rounds, thread_id, wait_stopped, wait_until,
};
use rustix::process::Signal;

use crate::lane::{bind, connect};

/// Answers each value with one of its own.
pub(crate) fn echo(role: &Role) {
    let (theirs, mine, wait): (String, String, Policy) = role.hear();
    let mut sender = bind(&mine.parse().unwrap());
    role.tell(&());
    let builder = WatchReceiver::builder().wait(wait.into());
    let mut receiver = builder.connect_to(&theirs.parse().unwrap()).unwrap();
    role.tell(&());
    let mut value = [0; 64];
    loop {
        match receiver.changed() {
            Ok(()) => {}
            Err(WatchError::Disconnected { .. }) => return,
            Err(error) => panic!("{error}"),
        }
        let update = receiver.get_into(&mut value).unwrap().unwrap();
        sender.send(&value[..update.len]).unwrap();
        if update.sequence.is_multiple_of(1024) {
            memlane_tests::alive();
        }
    }
}

#[test]
fn no_wake_up_is_lost() {
    let scene = Scene::new();
    for wait in [Policy::Block, Policy::Adaptive, Policy::Poll] {
        let (ours, theirs) = (scene.address("ping"), scene.address("pong"));
        let mut sender = bind(&ours);
        let names = (ours.to_string(), theirs.to_string(), wait);
        let child = scene.spawn("echo", &names);
        let () = child.hear();
        let builder = WatchReceiver::builder().wait(wait.into());
        let mut receiver = builder.connect_to(&theirs).unwrap();
        let () = child.hear();
        for number in 1..=rounds(3_000) {
            let mut value = [0; 64];
            fill(number, &mut value);
            sender.send(&value).unwrap();
            receiver.changed().unwrap();
            let mut echoed = [0; 64];
            let update = receiver.get_into(&mut echoed).unwrap().unwrap();
            assert_eq!((update.sequence, update.len), (number, 64));
            check(number, &echoed);
            if number % 1024 == 0 {
                memlane_tests::alive();
            }
        }
        if wait == Policy::Block {
            assert!(receiver.stats().wakeups > 0);
        }
        drop(sender);
        drop(receiver);
        child.finish();
    }
}

/// Watches until the sender closes, slowly: what it sees is newer each time, and whole.
pub(crate) fn receiver(role: &Role) {
    let address: String = role.hear();
    let mut receiver = connect(&address.parse().unwrap());
    role.tell(&thread_id());
    let (mut last, mut value) = (0, [0; 500]);
    loop {
        match receiver.changed() {
            Ok(()) => {}
            Err(WatchError::Disconnected { .. }) => break,
            Err(error) => panic!("{error}"),
        }
        let update = match receiver.get_into(&mut value) {
            Ok(update) => update.unwrap(),
            // By a sender that is too fast for this once.
            Err(WatchError::Value(ReadError::Unstable { .. })) => continue,
            Err(error) => panic!("{error}"),
        };
        assert!(update.sequence > last);
        last = update.sequence;
        check(last, &value[..update.len]);
        memlane_tests::alive();
    }
    role.tell(&last);
}

#[test]
fn receivers_that_are_slow_stopped_or_killed_are_not_waited_for() {
    let scene = Scene::new();
    let address = scene.address("pose");
    let mut sender = bind(&address);
    let [slow, stopped, killed] = [(); 3].map(|()| scene.spawn("receiver", &address.to_string()));
    let _slow: u32 = slow.hear();
    let thread: u32 = stopped.hear();
    let _killed: u32 = killed.hear();
    wait_until("all are there", || sender.receivers() == 3);
    let mut value = [0; 500];
    for number in 1..=20_000_u64 {
        let len = 8 + (number % 490) as usize;
        fill(number, &mut value[..len]);
        assert_eq!(sender.send(&value[..len]).unwrap(), number);
        match number {
            1_000 => stopped.signal(Signal::STOP),
            2_000 => wait_stopped(stopped.id(), thread),
            3_000 => killed.kill(),
            _ => {}
        }
    }
    killed.kill_and_reap();
    wait_until("the killed one is gone", || sender.receivers() == 2);
    stopped.signal(Signal::CONT);
    sender.close();
    for child in [slow, stopped] {
        // The last value is seen by everybody.
        assert_eq!(child.hear::<u64>(), 20_000);
        child.finish();
    }
}

/// Sends as fast as it can.
pub(crate) fn flood(role: &Role) {
    let address: String = role.hear();
    let builder = WatchSender::builder().max_len(4096);
    let mut sender = builder.bind_to(&address.parse().unwrap()).unwrap();
    role.tell(&());
    let mut value = [0; 4096];
    let mut number = 0;
    while role.has_said::<()>().is_none() {
        for _ in 0..1000 {
            number += 1;
            fill(number, &mut value);
            sender.send(&value).unwrap();
        }
    }
}

#[test]
fn no_value_is_ever_torn_or_older() {
    let scene = Scene::new();
    let address = scene.address("pose");
    let child = scene.spawn("flood", &address.to_string());
    let () = child.hear();
    let mut receiver = connect(&address);
    let (mut last, mut value, mut seen) = (0, [0; 4096], 0);
    while seen < 20_000 {
        receiver.changed().unwrap();
        match receiver.get_into(&mut value) {
            Ok(update) => {
                let update = update.unwrap();
                assert!(update.sequence > last);
                last = update.sequence;
                check(last, &value[..update.len]);
                seen += 1;
            }
            Err(WatchError::Value(ReadError::Unstable { .. })) => {}
            Err(error) => panic!("{error}"),
        }
        if seen % 1000 == 0 {
            memlane_tests::alive();
        }
    }
    child.tell(&());
    child.finish();
}

//! Senders that end, are stopped, or are found late.

use std::time::Duration;

use memlane::{ReadError, WatchError, WatchSender};
use memlane_tests::{End, Role, Scene, wait_until};

use crate::lane::{bind, connect};

/// Sends two values, and ends as it is told.
pub(crate) fn sender(role: &Role) {
    let address: String = role.hear();
    let mut sender = bind(&address.parse().unwrap());
    sender.send(b"first").unwrap();
    role.tell(&());
    let () = role.hear();
    sender.send(b"last").unwrap();
    role.tell(&());
    match role.hear::<Option<End>>() {
        Some(end) => end.come(role, sender, WatchSender::close),
        None => {
            sender.send(b"another").unwrap();
            let () = role.hear();
        }
    }
}

#[test]
fn whoever_comes_late_has_the_newest_value_at_once() {
    let scene = Scene::new();
    let address = scene.address("pose");
    let mut sender = bind(&address);
    let mut first = connect(&address);
    assert!(!first.is_changed() && !first.try_changed().unwrap());
    assert_eq!(first.get().unwrap(), None);
    for number in 1..=5_u64 {
        assert_eq!(sender.send(&number.to_ne_bytes()).unwrap(), number);
    }
    let mut second = connect(&address);
    for receiver in [&mut first, &mut second] {
        receiver.changed().unwrap();
        let mut value = [0; 8];
        let update = receiver.get_into(&mut value).unwrap().unwrap();
        assert_eq!((update.sequence, update.len), (5, 8));
        assert_eq!(value, 5_u64.to_ne_bytes());
        assert!(!receiver.is_changed());
        // It can be looked at again.
        assert_eq!(receiver.get().unwrap().unwrap(), value);
    }
    assert_eq!(sender.receivers(), 2);
    let error = sender.send(&[0; 1009]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "expected a value of at most 1008 bytes (WatchSenderBuilder::max_len), got one of 1009"
    );
    sender
        .send_with(3, |value| value.copy_from_slice(b"abc"))
        .unwrap();
    let error = first.get_into(&mut [0; 2]).unwrap_err();
    assert!(matches!(error, WatchError::Value(ReadError::Length { .. })));
    assert_eq!(first.get().unwrap().unwrap(), b"abc");
    drop(first);
    wait_until("one has left", || sender.receivers() == 1);
}

#[test]
fn a_sender_that_ends_leaves_its_last_value_and_says_why() {
    let scene = Scene::new();
    let address = scene.address("pose");
    for end in End::REASONS {
        let child = scene.spawn("sender", &address.to_string());
        let () = child.hear();
        let mut receiver = connect(&address);
        assert_eq!(receiver.get().unwrap().unwrap(), b"first");
        child.tell(&());
        let () = child.hear();
        receiver.changed().unwrap();
        let mut value = Vec::new();
        let ending = end.while_asleep(child);
        // What was there before the end counts, whenever the end is noticed.
        let reason = loop {
            match receiver.changed() {
                Ok(()) => value = receiver.get().unwrap().unwrap(),
                Err(WatchError::Disconnected { reason }) => break reason,
                Err(error) => panic!("{error}"),
            }
        };
        ending.join().unwrap();
        assert_eq!(reason, end.reason());
        assert_eq!(value, b"last");
        assert_eq!(receiver.get().unwrap().unwrap(), b"last");
        let error = receiver.try_changed().unwrap_err();
        assert!(matches!(error, WatchError::Disconnected { .. }));
        drop(receiver);
        let _ = memlane::transport::remove_stale(&address);
    }
}

#[test]
fn a_sender_that_is_stopped_is_not_dead() {
    let scene = Scene::new();
    let address = scene.address("pose");
    let child = scene.spawn("sender", &address.to_string());
    let () = child.hear();
    let mut receiver = connect(&address);
    assert_eq!(receiver.get().unwrap().unwrap(), b"first");
    child.tell(&());
    let () = child.hear();
    receiver.changed().unwrap();
    assert_eq!(receiver.get().unwrap().unwrap(), b"last");
    child.stop();
    let error = receiver.changed_timeout(Duration::from_millis(5));
    assert!(matches!(error, Err(WatchError::TimedOut)), "{error:?}");
    assert_eq!(receiver.get().unwrap().unwrap(), b"last");
    child.tell(&None::<End>);
    child.go_on();
    receiver.changed().unwrap();
    assert_eq!(receiver.get().unwrap().unwrap(), b"another");
    child.tell(&());
    child.finish();
}

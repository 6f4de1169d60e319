//! To subscribers that are slow, or stopped.

use std::time::Duration;

use memlane::{
    AttachmentError, Link, Overflow, SendTimeoutError, Subscriber, TrySendError, WhenFull,
};
use memlane_tests::{
    Dice, PATIENCE, Policy, Role, Scene, alive, attachments, check, check_attachments, fill,
    none_is_kept, unbound, wait_asleep,
};

use crate::streams::{MOST, assert_closed, of};

/// A subscriber that is stopped has so many on their way, and then its publisher waits, as for room in the ring.
#[test]
fn a_stopped_subscriber_is_waited_for() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut publisher = unbound(1 << 16)
        .max_attachments(MOST)
        .attachments_in_flight(20)
        .bind_to(&address)
        .unwrap();
    let reader = scene.spawn("reader", &(address.to_string(), Policy::Block, 3_000_u64));
    publisher.wait_for_subscribers(1).unwrap();
    wait_asleep(reader.id(), reader.id());
    reader.stop();
    let mut sent = 0;
    let mut way = 0;
    let (mut bytes, fds) = loop {
        let (length, count) = of(sent);
        let mut bytes = vec![0; length];
        fill(sent, &mut bytes);
        let fds = attachments(sent, count);
        match publisher.try_send_with(&bytes, &fds) {
            Ok(()) => {
                sent += 1;
                way += count;
            }
            Err(error) => {
                assert!(matches!(error, TrySendError::Full), "{error}");
                assert!(
                    way + count > 20 && (way <= 20 || count > 20),
                    "{way} and {count}"
                );
                break (bytes, fds);
            }
        }
    };
    // Plain ones still go, of which this is none that the reader expects; so it is not committed.
    drop(publisher.try_reserve(8).unwrap());
    let timed_out = publisher.send_timeout_with(&bytes, &fds, Duration::from_millis(5));
    assert!(
        matches!(timed_out, Err(SendTimeoutError::TimedOut)),
        "{timed_out:?}"
    );
    let waiting = std::thread::spawn(move || {
        publisher.send_with(&bytes, &fds).unwrap();
        for number in sent + 1..3_000 {
            let (length, count) = of(number);
            bytes.resize(length, 0);
            fill(number, &mut bytes);
            publisher
                .send_with(&bytes, &attachments(number, count))
                .unwrap();
        }
        publisher
    });
    reader.go_on();
    let publisher = waiting.join().unwrap();
    drop(publisher);
    reader.finish();
}

pub(crate) fn skipper(role: &Role) {
    let (address, messages): (String, u64) = role.hear();
    let mut subscriber = Subscriber::builder()
        .overflow(Overflow::Overwrite)
        .max_attachments(MOST)
        .connect_to(&address.parse().expect("an address"))
        .expect("a publisher");
    let mut dice = Dice::new();
    let (mut came, mut without, mut next) = (0_u64, 0_u64, 0);
    let over = loop {
        alive();
        if dice.below(1000) == 0 {
            std::thread::sleep(Duration::from_millis(dice.below(5)));
        }
        let mut message = match subscriber.recv() {
            Ok(message) => message,
            Err(error) => break error,
        };
        let number = message.sequence();
        assert_eq!(number, next + message.missed());
        next = number + 1;
        let (length, count) = of(number);
        let bytes = message.to_vec();
        assert_eq!(bytes.len(), length, "message {number}");
        check(number, &bytes);
        assert_eq!(message.has_attachments(), count > 0, "message {number}");
        match message.take_attachments() {
            Ok(fds) => {
                check_attachments(number, count, fds);
                came += u64::from(count > 0);
            }
            Err(AttachmentError::Missing) => without += 1,
            Err(error) => panic!("message {number}: {error}"),
        }
    };
    assert_closed(&over);
    let stats = subscriber.stats();
    assert_eq!(stats.messages + stats.missed, messages);
    role.tell(&(came, without, stats.missed));
}

/// A subscriber that is overwritten, at times too slow, at times stopped, has the attachments of each message that it gets, or is
/// told that it has none of them. Nobody waits for it, and one beside it gets all.
#[test]
fn who_is_overwritten_goes_without() {
    const MESSAGES: u64 = 30_000;
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut publisher = unbound(1 << 14)
        .max_attachments(MOST)
        .attachments_in_flight(40)
        .bind_to(&address)
        .unwrap();
    let skipper = scene.spawn("skipper", &(address.to_string(), MESSAGES));
    let reader = scene.spawn("reader", &(address.to_string(), Policy::Adaptive, MESSAGES));
    publisher.wait_for_subscribers(2).unwrap();
    let mut bytes = vec![0; 30_000];
    for number in 0..MESSAGES {
        alive();
        if number == 10_000 {
            skipper.stop();
        }
        if number == 20_000 {
            skipper.go_on();
        }
        let (length, count) = of(number);
        let message = &mut bytes[..length];
        fill(number, message);
        publisher
            .send_with(message, &attachments(number, count))
            .unwrap();
    }
    publisher.drain(PATIENCE).unwrap();
    none_is_kept();
    drop(publisher);
    let (came, without, missed): (u64, u64, u64) = skipper.hear();
    println!("{came} messages with attachments, {without} without theirs, {missed} missed");
    assert!(came > 0 && missed > 0);
    skipper.finish();
    reader.finish();
}

/// One that is served from a spill finds the attachments of messages that it gets long after others, and those that wait for it
/// are bounded all the same.
#[test]
fn a_laggard_has_its_attachments() {
    const MESSAGES: u64 = 20_000;
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut publisher = unbound(1 << 12)
        .spill_bytes(16 << 12)
        .max_attachments(MOST)
        .bind_to(&address)
        .unwrap();
    let readers = [Policy::Block, Policy::Adaptive]
        .map(|policy| scene.spawn("reader", &(address.to_string(), policy, MESSAGES)));
    publisher.wait_for_subscribers(2).unwrap();
    let slow = &readers[0];
    let mut bytes = vec![0; 30_000];
    let mut stopped = false;
    for number in 0..MESSAGES {
        alive();
        let (length, count) = of(number);
        let message = &mut bytes[..length];
        fill(number, message);
        let fds = attachments(number, count);
        if number % 500 == 0 && !stopped {
            slow.stop();
            stopped = true;
        }
        // With room for so many of them, or rings, it goes on beside one that is stopped.
        if let Err(error) = publisher.try_send_with(message, &fds) {
            assert!(matches!(error, TrySendError::Full), "{error}");
            if std::mem::take(&mut stopped) {
                slow.go_on();
            }
            publisher.send_with(message, &fds).unwrap();
        }
    }
    if stopped {
        slow.go_on();
    }
    let stats = publisher.stats();
    assert!(stats.spills > 0, "{stats:?}");
    assert!(publisher.drain(PATIENCE).unwrap());
    assert_eq!(publisher.stats().evicted, 0);
    drop(publisher);
    readers.into_iter().for_each(|reader| reader.finish());
}

/// Whoever takes no attachments is waited for, whatever is decided about the slow: a message that waits for that is written already,
/// where the ring may not be left.
#[test]
fn a_message_that_waits_stays_where_it_was_written() {
    let _scene = Scene::new();
    let after = Duration::ZERO;
    let mut publisher = unbound(1 << 14)
        .attachments_in_flight(1)
        .when_full(WhenFull::Disconnect { after })
        .unbound()
        .unwrap();
    let [mut fast, mut slow] = [(); 2].map(|()| {
        let (here, there) = Link::pair().unwrap();
        publisher.attach(here).unwrap();
        Subscriber::builder().over(there).unwrap()
    });
    for number in 0..100_u64 {
        let message = number.to_le_bytes();
        let receive = |subscriber: &mut Subscriber| {
            let mut message = subscriber.recv().unwrap();
            assert_eq!(message.to_vec(), number.to_le_bytes());
            check_attachments(number, 1, message.take_attachments().unwrap());
        };
        publisher
            .send_with(&message, &attachments(number, 1))
            .unwrap();
        receive(&mut fast);
        let other = [0xff; 100];
        let short = Duration::from_millis(1);
        let timed_out = publisher.send_timeout_with(&other, &attachments(7, 1), short);
        assert!(
            matches!(timed_out, Err(SendTimeoutError::TimedOut)),
            "{timed_out:?}"
        );
        receive(&mut slow);
    }
    assert_eq!(publisher.stats().too_slow, 0);
}

//! To subscribers that are slow, or stopped.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use memlane::{
    AttachmentError, Decision, Link, Overflow, Publisher, SendTimeoutError, Subscriber,
    TrySendError, Watched, WhenFull,
};
use memlane_tests::{
    Dice, PATIENCE, Policy, Role, Scene, alive, attachments, check, check_attachments, fill,
    none_is_kept, unbound, wait_asleep,
};

use rustix::event::{PollFd, PollFlags, poll};

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

/// Who does not take its attachments is in the way as one that does not read: it is dropped, if that was asked for, and the message
/// that had waited for it is what it was, in whichever ring.
#[test]
fn who_takes_no_attachments_is_dropped() {
    let _scene = Scene::new();
    let at_once = WhenFull::Disconnect {
        after: Duration::ZERO,
    };
    let later = WhenFull::Disconnect {
        after: Duration::from_millis(20),
    };
    for (when_full, overflow) in [
        (at_once, Overflow::Block),
        (later, Overflow::Block),
        (WhenFull::AsAsked, Overflow::Disconnect),
    ] {
        let mut publisher = unbound(1 << 14)
            .attachments_in_flight(1)
            .when_full(when_full)
            .unbound()
            .unwrap();
        let subscribe = |publisher: &Publisher, overflow| {
            let (here, there) = Link::pair().unwrap();
            publisher.attach(here).unwrap();
            Subscriber::builder()
                .overflow(overflow)
                .over(there)
                .unwrap()
        };
        let mut fast = subscribe(&publisher, Overflow::Block);
        let mut slow = subscribe(&publisher, overflow);
        let check_next = |subscriber: &mut Subscriber, number| {
            let mut message = subscriber.recv().unwrap();
            check(number, &message.to_vec());
            check_attachments(number, 1, message.take_attachments().unwrap());
        };
        for number in 0..20_u64 {
            let len = [8, 1000, 100_000][number as usize % 3];
            let fds = attachments(number, 1);
            // It is written by the time when it has to wait.
            let mut place = publisher.reserve(len).unwrap();
            fill(number, &mut place);
            place.attach(&fds).unwrap();
            place.commit();
            check_next(&mut fast, number);
        }
        assert_eq!(publisher.stats().too_slow, 1);
        assert_eq!(publisher.subscribers(), 1);
        check_next(&mut slow, 0);
        let end = slow.recv().map(drop).unwrap_err().to_string();
        assert!(end.contains("it was too slow"), "{end}");
    }
}

/// A callback is asked about such a one, too; more rings are of no help to it.
#[test]
fn a_callback_decides_about_who_takes_no_attachments() {
    let _scene = Scene::new();
    let decision = Arc::new(Mutex::new(Decision::Spill));
    let decide = decision.clone();
    let mut publisher = unbound(1 << 14)
        .attachments_in_flight(1)
        .spill_bytes(2 << 14)
        .on_lagging(move |_| *decide.lock().unwrap())
        .unbound()
        .unwrap();
    let (here, there) = Link::pair().unwrap();
    publisher.attach(here).unwrap();
    let slow = Subscriber::builder().over(there).unwrap();
    publisher.send_with(b"one", &attachments(0, 1)).unwrap();
    let fds = attachments(1, 1);
    for waits in [Decision::Spill, Decision::Wait] {
        *decision.lock().unwrap() = waits;
        let timed_out = publisher.send_timeout_with(b"two", &fds, Duration::from_millis(30));
        assert!(
            matches!(timed_out, Err(SendTimeoutError::TimedOut)),
            "{timed_out:?}"
        );
    }
    *decision.lock().unwrap() = Decision::Disconnect;
    publisher.send_timeout_with(b"two", &fds, PATIENCE).unwrap();
    let stats = publisher.stats();
    assert_eq!((stats.too_slow, stats.messages), (1, 2));
    drop(slow);
}

/// A loop that found no room for them is woken when it is time to drop who is in the way.
#[test]
fn a_loop_drops_who_takes_no_attachments() {
    let _scene = Scene::new();
    let publisher = unbound(1 << 14)
        .attachments_in_flight(1)
        .when_full(WhenFull::Disconnect {
            after: Duration::from_millis(20),
        })
        .unbound()
        .unwrap();
    let (here, there) = Link::pair().unwrap();
    publisher.attach(here).unwrap();
    let _slow = Subscriber::builder().over(there).unwrap();
    let mut publisher = Watched::new(publisher).unwrap();
    let fds = attachments(0, 1);
    publisher.try_send_with(b"one", &fds).unwrap();
    while let Err(error) = publisher.try_send_with(b"two", &fds) {
        assert!(matches!(error, TrySendError::Full), "{error}");
        poll(&mut [PollFd::new(&publisher, PollFlags::IN)], None).unwrap();
        publisher.drive().unwrap();
    }
    assert_eq!(publisher.stats().too_slow, 1);
}

/// A place that is kept for a successor who does not come is given up, and its ticket is void.
#[test]
fn a_successor_that_does_not_come_is_in_the_way_of_attachments() {
    let _scene = Scene::new();
    let mut publisher = unbound(1 << 14)
        .when_full(WhenFull::Disconnect {
            after: Duration::from_millis(20),
        })
        .unbound()
        .unwrap();
    let (here, there) = Link::pair().unwrap();
    publisher.attach(here).unwrap();
    let mut subscriber = Subscriber::builder().over(there).unwrap();
    publisher.send_with(b"one", &attachments(0, 1)).unwrap();
    let mut message = subscriber.recv().unwrap();
    check_attachments(0, 1, message.take_attachments().unwrap());
    drop(message);
    let ticket = subscriber.ticket().unwrap();
    subscriber.depart().map_err(|stays| stays.error).unwrap();
    publisher.send(b"two").unwrap();
    let fds = attachments(1, 1);
    publisher
        .send_timeout_with(b"three", &fds, PATIENCE)
        .unwrap();
    assert_eq!(publisher.stats().too_slow, 1);
    assert!(ticket.arrive().is_err());
    publisher
        .send_timeout_with(b"four", &fds, PATIENCE)
        .unwrap();
}

//! Between processes: nothing is lost, doubled or exchanged.

use memlane::{Link, Reason, RecvError, Subscriber, TrySendError};
use memlane_tests::{
    Dice, PATIENCE, Policy, Role, Scene, alive, attachments, check, check_attachments, fill,
    none_is_kept, number, unbound,
};

/// A message of some length, mostly short, and how many attachments it has: none as a rule, now and then hundreds.
pub(crate) fn of(number: u64) -> (usize, usize) {
    let mut dice = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut below = |end: u64| {
        dice ^= dice >> 29;
        dice = dice.wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (dice >> 32) % end
    };
    let length = match below(100) {
        0 => 5000 + below(20_000),
        1..10 => 100 + below(1000),
        _ => 8 + below(50),
    };
    let count = match below(1000) {
        0 => below(301),
        1..10 => below(40),
        10..60 => 1 + below(4),
        _ => 0,
    };
    (length as usize, count as usize)
}

const MESSAGES: u64 = 100_000;
pub(crate) const MOST: usize = 300;

/// Nothing is lost, doubled or exchanged, whoever waits for whom.
#[test]
fn descriptors_come_with_their_messages() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut publisher = unbound(1 << 14)
        .max_attachments(MOST)
        .bind_to(&address)
        .unwrap();
    let readers = [Policy::Block, Policy::Adaptive]
        .map(|policy| scene.spawn("reader", &(address.to_string(), policy, MESSAGES)));
    publisher.wait_for_subscribers(2).unwrap();
    let mut bytes = vec![0; 30_000];
    for number in 0..MESSAGES {
        alive();
        let (length, count) = of(number);
        let message = &mut bytes[..length];
        fill(number, message);
        let fds = attachments(number, count);
        match number % 5 {
            0 if count == 0 => publisher.send(message).unwrap(),
            0 => publisher.send_with(message, &fds).unwrap(),
            1 => {
                while let Err(error) = publisher.try_send_with(message, &fds) {
                    assert!(matches!(error, TrySendError::Full), "{error}");
                }
            }
            2 => publisher
                .send_timeout_with(message, &fds, PATIENCE)
                .unwrap(),
            3 => {
                let mut place = publisher.reserve(length + 9).unwrap();
                place[..length].copy_from_slice(message);
                place.attach(&fds).unwrap();
                place.commit_first(length);
            }
            _ => {
                let mut loan = publisher.loan(length).unwrap();
                loan.copy_from_slice(message);
                publisher.send_loan_with(loan, &fds).unwrap();
            }
        }
    }
    assert!(publisher.drain(PATIENCE).unwrap());
    none_is_kept();
    assert_eq!(publisher.stats().evicted, 0);
    drop(publisher);
    readers.into_iter().for_each(|reader| reader.finish());
}

pub(crate) fn reader(role: &Role) {
    let (address, policy, messages): (String, Policy, u64) = role.hear();
    let mut subscriber = Subscriber::builder()
        .wait(policy.into())
        .max_attachments(MOST)
        .connect_to(&address.parse().expect("an address"))
        .expect("a publisher");
    let mut dice = Dice::new();
    let mut bytes = Vec::new();
    for number in 0..messages {
        alive();
        let (length, count) = of(number);
        let mut message = subscriber.recv().expect("a message");
        assert_eq!(message.len(), length, "message {number}");
        message.copy_into(&mut bytes);
        check(number, &bytes);
        assert_eq!(message.has_attachments(), count > 0, "message {number}");
        match dice.below(4) {
            // Closed with the message.
            0 => drop(message),
            1 => {
                let mut held = message.hold().expect("none is held");
                check_attachments(number, count, held.take_attachments().expect("they came"));
            }
            _ => check_attachments(
                number,
                count,
                message.take_attachments().expect("they came"),
            ),
        }
    }
    let over = subscriber.recv().expect_err("that was all");
    assert_closed(&over);
}

pub(crate) fn assert_closed(over: &RecvError) {
    assert!(
        matches!(
            over,
            RecvError::Disconnected {
                reason: Reason::Closed
            }
        ),
        "{over}"
    );
}

/// Whoever joins in between gets messages with all that they have, from the first one on.
#[test]
fn they_come_to_those_who_join_in_between() {
    let _scene = Scene::new();
    let mut publisher = unbound(1 << 14).unbound().unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let (tell, links) = std::sync::mpsc::channel::<Link>();
    std::thread::scope(|scope| {
        let done = &done;
        scope.spawn(move || {
            let mut number = 0_u64;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                while let Ok(link) = links.try_recv() {
                    publisher.attach(link).unwrap();
                }
                let count = number as usize % 3;
                let mut place = publisher.reserve(8).unwrap();
                place.copy_from_slice(&number.to_le_bytes());
                let fds = attachments(number, count);
                place.attach(&fds).unwrap();
                place.commit();
                number += 1;
            }
        });
        for _ in 0..300 {
            let (here, there) = Link::pair().unwrap();
            tell.send(here).unwrap();
            let mut subscriber = Subscriber::builder().over(there).unwrap();
            let mut last = None;
            for _ in 0..20 {
                let mut message = subscriber.recv().unwrap();
                let number = number(&message.to_vec());
                assert!(last.is_none_or(|last| number == last + 1));
                last = Some(number);
                let fds = message.take_attachments().unwrap();
                check_attachments(number, number as usize % 3, fds);
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    none_is_kept();
}

//! Messages too long for the ring: in chunks of the publisher's pool.

use std::time::Duration;

use memlane::{
    Held, Link, Publisher, RecvError, SendError, SendTimeoutError, Subscriber, TrySendError,
    Untrusted, WaitPolicy,
};
use memlane_region::page_size;
use memlane_tests::{
    Census, Dice, PATIENCE, Part, Policy, Role, Scene, alive, check, fill, play, thread_id,
    unbound, wait_asleep, wait_until,
};

const LONG: usize = 100_000;
const LIMIT: usize = 1 << 20;

const ROLES: &[(&str, Part)] = &[("subscriber", subscriber), ("holder", holder)];

#[test]
fn other_process() {
    play(ROLES);
}

fn pair(limit: usize, policy: WaitPolicy) -> (Publisher, Subscriber) {
    let (here, there) = Link::pair().unwrap();
    let publisher = unbound(page_size())
        .pool_bytes(limit)
        .wait(policy)
        .unbound()
        .unwrap();
    publisher.attach(here).unwrap();
    let subscriber = Subscriber::builder().wait(policy).over(there).unwrap();
    (publisher, subscriber)
}

fn message(number: u64) -> Vec<u8> {
    let mut message = vec![0; LONG + number as usize % 5000];
    fill(number, &mut message);
    message
}

/// All ways to send one, and all ways to have one.
#[test]
fn every_way() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = pair(LIMIT, WaitPolicy::Adaptive);
    for number in 0..50_u64 {
        let bytes = message(number);
        match number % 6 {
            0 => publisher.send(&bytes).unwrap(),
            1 => publisher.try_send(&bytes).unwrap(),
            2 => publisher.send_timeout(&bytes, PATIENCE).unwrap(),
            3 => {
                let mut place = publisher.reserve(bytes.len() + 1000).unwrap();
                place[..bytes.len()].copy_from_slice(&bytes);
                place.commit_first(bytes.len());
            }
            4 => {
                let mut loan = publisher.loan(bytes.len() + 5).unwrap();
                loan[..bytes.len()].copy_from_slice(&bytes);
                loan.truncate(bytes.len());
                publisher.send_loan(loan).unwrap();
            }
            _ => {
                let mut loan = publisher.try_loan(bytes.len()).unwrap();
                loan.copy_from_slice(&bytes);
                publisher.try_send_loan(loan).unwrap();
            }
        }
        // A short one in between.
        publisher.send(&number.to_le_bytes()).unwrap();
        let message = match number % 3 {
            0 => subscriber.recv().unwrap(),
            1 => subscriber.recv_timeout(PATIENCE).unwrap(),
            _ => subscriber.try_recv().unwrap(),
        };
        assert_eq!(message.len(), bytes.len());
        let mut part = vec![0; 777];
        message.read_at(4000, &mut part);
        assert_eq!(part, bytes[4000..4777]);
        assert_eq!(message.to_vec(), bytes);
        drop(message);
        assert_eq!(subscriber.recv().unwrap().to_vec(), number.to_le_bytes());
    }
    assert!(publisher.pool_bytes() <= LIMIT);
    assert_eq!(publisher.stats().messages, 100);
}

/// What is held stays as it was, while hundreds of messages go by, in any order of release.
#[test]
fn held_messages_stay() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = pair(8 << 20, WaitPolicy::Block);
    let mut dice = Dice::new();
    let mut held: Vec<(u64, Held)> = Vec::new();
    for number in 0..600_u64 {
        let bytes = if number % 7 == 0 {
            number.to_le_bytes().to_vec()
        } else {
            message(number)
        };
        publisher.send(&bytes).unwrap();
        let message = subscriber.recv().unwrap();
        if dice.below(2) == 0 && held.len() < 20 {
            held.push((number, message.hold().unwrap()));
        } else {
            drop(message);
        }
        if !held.is_empty() && dice.below(2) == 0 {
            let (number, one) = held.swap_remove(dice.below(held.len() as u64) as usize);
            if number % 7 == 0 {
                assert_eq!(one.to_vec(), number.to_le_bytes());
            } else {
                check(number, &one.to_vec());
            }
        }
    }
    // Beyond the subscriber, the publisher, and whatever is sent meanwhile.
    drop(subscriber);
    for number in 0..100 {
        publisher.send(&message(number)).unwrap();
    }
    drop(publisher);
    for (number, one) in held.drain(..).filter(|(number, _)| number % 7 != 0) {
        check(number, &one.to_vec());
    }
}

/// A subscriber that was dropped counts for as long as it holds something, and holds up nobody.
#[test]
fn a_dropped_subscriber_that_holds() {
    for policy in Policy::ALL {
        let _scene = Scene::new();
        let (mut publisher, mut subscriber) = pair(LIMIT, policy.into());
        publisher.send(&message(1)).unwrap();
        let held = subscriber.recv().unwrap().hold().unwrap();
        publisher.send(&message(2)).unwrap();
        drop(subscriber);
        assert_eq!(publisher.subscribers(), 1);
        for number in 0..1000 {
            publisher.send(&message(number)).unwrap();
            publisher.send(&[0; 1000]).unwrap();
        }
        check(1, &held.to_vec());
        drop(held);
        wait_until("it is let go of", || publisher.subscribers() == 0);
        assert_eq!(publisher.stats().evicted, 0);
    }
}

/// As many as there are slots, and then the message comes back.
#[test]
fn more_than_can_be_held() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = pair(64 << 20, WaitPolicy::Adaptive);
    let mut held = Vec::new();
    for number in 0..64 {
        publisher.send(&message(number)).unwrap();
        held.push(subscriber.recv().unwrap().hold().unwrap());
    }
    publisher.send(&message(64)).unwrap();
    let message = subscriber.recv().unwrap().hold().unwrap_err();
    check(64, &message.to_vec());
    held.pop();
    held.push(message.hold().unwrap());
    check(64, &held[63].to_vec());
}

/// The pool is full of what a subscriber holds: the publisher waits, awake or asleep, until one is dropped.
#[test]
fn waiting_for_a_hold() {
    for policy in Policy::ALL {
        let _scene = Scene::new();
        let (mut publisher, mut subscriber) = pair(LIMIT, policy.into());
        let mut held = Vec::new();
        loop {
            match publisher.try_send(&[1; LONG]) {
                Ok(()) => held.push(subscriber.recv().unwrap().hold().unwrap()),
                Err(TrySendError::Full) => break,
                Err(error) => panic!("{error}"),
            }
        }
        let error = publisher.send_timeout(&[2; LONG], Duration::from_millis(1));
        assert!(matches!(error, Err(SendTimeoutError::TimedOut)));
        std::thread::scope(|scope| {
            let (id, ids) = std::sync::mpsc::channel();
            let publisher = &mut publisher;
            let sending = scope.spawn(move || {
                id.send(thread_id()).unwrap();
                publisher.send(&[3; LONG]).unwrap();
            });
            let thread = ids.recv().unwrap();
            if policy == Policy::Block {
                wait_asleep(std::process::id(), thread);
            }
            held.pop();
            sending.join().unwrap();
        });
        assert_eq!(subscriber.recv().unwrap().to_vec(), [3; LONG]);
    }
}

/// Loans of one's own are nothing to wait for.
#[test]
fn everything_is_loaned() {
    let _scene = Scene::new();
    let (mut publisher, _subscriber) = pair(LIMIT, WaitPolicy::Block);
    let mut loans = Vec::new();
    let error = loop {
        match publisher.loan(LONG) {
            Ok(loan) => loans.push(loan),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SendError::Loaned { .. }), "{error}");
    assert!(matches!(
        publisher.try_loan(LONG),
        Err(TrySendError::Loaned { .. })
    ));
    loans.pop();
    publisher.loan(LONG).unwrap();
}

/// What is not used any more goes back to the kernel, here and at a subscriber that sleeps.
#[test]
fn memory_goes_back() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut publisher = unbound(page_size()).bind_to(&address).unwrap();
    let child = scene.spawn("subscriber", &(address.to_string(), 0_u64));
    publisher.wait_for_subscribers(1).unwrap();
    let thread: u32 = child.hear();
    let base = Census::take();
    for number in 0..10 {
        publisher.send(&message(number)).unwrap();
        publisher.send(&vec![0; 1 << 20]).unwrap();
    }
    let _: u64 = child.hear();
    wait_asleep(child.id(), thread);
    assert!(publisher.pool_bytes() >= LONG + (1 << 20));
    let pool = |id: u32| {
        let maps = std::fs::read_to_string(format!("/proc/{id}/maps")).unwrap();
        maps.lines()
            .filter(|line| line.contains("memlane-pool"))
            .count()
    };
    assert!(pool(child.id()) > 0);
    assert!(publisher.trim(Duration::ZERO) > 0);
    assert_eq!(publisher.pool_bytes(), 0);
    base.settle();
    wait_until("the subscriber unmaps it", || pool(child.id()) == 0);
    // And it grows again.
    publisher.send(&message(10)).unwrap();
    drop(publisher);
    child.finish();
}

fn subscriber(role: &Role) {
    let (address, first): (String, u64) = role.hear();
    let mut subscriber = Subscriber::builder()
        .wait(WaitPolicy::Block)
        .connect_to(&address.parse().unwrap())
        .unwrap();
    role.tell(&thread_id());
    let mut number = first;
    let mut copy = Vec::new();
    loop {
        match subscriber.recv() {
            Ok(message) => message.copy_into(&mut copy),
            Err(RecvError::Disconnected { .. }) => return,
            Err(error) => panic!("{error}"),
        }
        if copy.len() == 1 << 20 {
            number += 1;
            if number == first + 10 {
                role.tell(&number);
            }
        } else {
            check(number, &copy);
        }
    }
}

/// Holds as much as it can, until it is killed.
fn holder(role: &Role) {
    let address: String = role.hear();
    let mut subscriber: Subscriber<Untrusted> = Subscriber::builder()
        .connect_to(&address.parse().unwrap())
        .unwrap();
    let mut held = Vec::new();
    loop {
        held.push(subscriber.recv().unwrap().hold().unwrap());
        role.tell(&held.len());
    }
}

/// Subscribers are killed while they hold all of the pool: it is the publisher's again.
#[test]
fn killed_holders() {
    for policy in Policy::ALL {
        let scene = Scene::new();
        let address = scene.address("lane");
        let mut publisher = unbound(page_size())
            .pool_bytes(LIMIT)
            .wait(policy.into())
            .bind_to(&address)
            .unwrap();
        for _ in 0..10 {
            alive();
            let child = scene.spawn("holder", &address.to_string());
            publisher.wait_for_subscribers(1).unwrap();
            let mut sent = 0_usize;
            loop {
                match publisher.try_send(&[7; LONG]) {
                    Ok(()) => {
                        sent += 1;
                        assert_eq!(child.hear::<usize>(), sent);
                    }
                    Err(TrySendError::Full) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            std::thread::scope(|scope| {
                let publisher = &mut publisher;
                let sending = scope.spawn(move || publisher.send(&[8; LONG]).unwrap());
                child.kill();
                sending.join().unwrap();
            });
            child.kill_and_reap();
            wait_until("it is let go of", || publisher.subscribers() == 0);
            assert!(publisher.pool_bytes() <= LIMIT);
        }
        publisher.trim(Duration::ZERO);
        assert_eq!(publisher.pool_bytes(), 0);
    }
}

/// One that maps less than there is says so, each time, and goes on with nothing else.
#[test]
fn over_the_quota() {
    let _scene = Scene::new();
    let (here, there) = Link::pair().unwrap();
    let mut publisher = unbound(page_size()).unbound().unwrap();
    publisher.attach(here).unwrap();
    let mut subscriber = Subscriber::builder()
        .max_pool_bytes(1 << 20)
        .over(there)
        .unwrap();
    publisher.send(&vec![0; 2 << 20]).unwrap();
    for _ in 0..3 {
        let error = subscriber.recv().unwrap_err();
        assert!(matches!(error, RecvError::Chunk(_)), "{error}");
        assert!(
            error.to_string().contains("quota of 1048576 bytes"),
            "{error}"
        );
    }
}

/// A subscriber that comes later knows all that there is.
#[test]
fn late_subscribers() {
    let _scene = Scene::new();
    let (mut publisher, mut first) = pair(64 << 20, WaitPolicy::Adaptive);
    let mut held = Vec::new();
    for number in 0..30 {
        publisher.send(&vec![0; LONG * (1 + number % 10)]).unwrap();
        held.extend(first.recv().unwrap().hold().ok());
    }
    let (here, there) = Link::pair().unwrap();
    publisher.attach(here).unwrap();
    let mut late = Subscriber::builder().over(there).unwrap();
    drop(held);
    for number in 0..30 {
        let bytes = message(number);
        publisher.send(&bytes).unwrap();
        assert_eq!(late.recv().unwrap().to_vec(), bytes);
        assert_eq!(first.recv().unwrap().to_vec(), bytes);
    }
}

/// Subscribers come while messages go by: what they are sent first, they can have.
#[test]
fn subscribers_that_come_meanwhile() {
    let _scene = Scene::new();
    let mut publisher = unbound(page_size()).unbound().unwrap();
    // Many segments, of which the first is in use.
    let loans: Vec<_> = (2..40)
        .map(|pages| publisher.loan(pages * page_size()).unwrap())
        .collect();
    for loan in loans {
        publisher.send_loan(loan).unwrap();
    }
    for _ in 0..200 {
        alive();
        let (here, there) = Link::pair().unwrap();
        publisher.attach(here).unwrap();
        std::thread::scope(|scope| {
            let joining = scope.spawn(move || {
                let mut late = Subscriber::builder().over(there).unwrap();
                check(7, &late.recv().unwrap().to_vec());
            });
            while !joining.is_finished() {
                publisher.send(&message(7)).unwrap();
            }
            joining.join().unwrap();
        });
    }
}

/// What becomes of the pool is of no interest to one that has nothing of it, and must not cost it its place.
#[test]
fn loans_that_come_to_nothing() {
    for policy in Policy::ALL {
        let _scene = Scene::new();
        let (mut publisher, mut subscriber) = pair(LIMIT, policy.into());
        for _ in 0..1000 {
            publisher.loan(LONG).unwrap();
            publisher.trim(Duration::ZERO);
        }
        assert_eq!(publisher.subscribers(), 1);
        publisher.send(&message(1)).unwrap();
        check(1, &subscriber.recv().unwrap().to_vec());
    }
}

/// What is held is held for as long as one likes, whatever becomes of the pool meanwhile.
#[test]
fn held_for_long() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = pair(8 << 20, WaitPolicy::Adaptive);
    let (here, there) = Link::pair().unwrap();
    publisher.attach(here).unwrap();
    let mut other = Subscriber::builder().over(there).unwrap();
    publisher.send(&message(1)).unwrap();
    let held = subscriber.recv().unwrap().hold().unwrap();
    drop(subscriber);
    drop(other.recv().unwrap());
    for number in 0..1000_u64 {
        let bytes = vec![number as u8; 1 << 20];
        publisher.send(&bytes).unwrap();
        assert_eq!(other.recv().unwrap().to_vec(), bytes);
        publisher.trim(Duration::ZERO);
    }
    assert_eq!(publisher.subscribers(), 2);
    for number in 2..40 {
        publisher.send(&message(number)).unwrap();
        check(number, &other.recv().unwrap().to_vec());
    }
    check(1, &held.to_vec());
}

/// A loan that another thread drops is room as well.
#[test]
fn waiting_for_a_dropped_loan() {
    for policy in Policy::ALL {
        let _scene = Scene::new();
        let (mut publisher, mut subscriber) = pair(LIMIT, policy.into());
        publisher.send(&[1; LONG]).unwrap();
        let _held = subscriber.recv().unwrap().hold().unwrap();
        let mut loans = Vec::new();
        while let Ok(loan) = publisher.try_loan(LONG) {
            loans.push(loan);
        }
        std::thread::scope(|scope| {
            let (id, ids) = std::sync::mpsc::channel();
            let publisher = &mut publisher;
            let sending = scope.spawn(move || {
                id.send(thread_id()).unwrap();
                publisher.loan(LONG).unwrap();
            });
            let thread = ids.recv().unwrap();
            if policy == Policy::Block {
                wait_asleep(std::process::id(), thread);
            }
            loans.pop();
            sending.join().unwrap();
        });
    }
}

/// One that has left and holds something is no reason to take more memory than without it.
#[test]
fn the_pool_does_not_grow_for_one_that_left() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = pair(64 << 20, WaitPolicy::Adaptive);
    let (here, there) = Link::pair().unwrap();
    publisher.attach(here).unwrap();
    let mut other = Subscriber::builder().over(there).unwrap();
    publisher.send(&vec![1; 2 << 20]).unwrap();
    let _held = subscriber.recv().unwrap().hold().unwrap();
    drop(other.recv().unwrap());
    let run = |publisher: &mut Publisher, other: &mut Subscriber| {
        for _ in 0..100 {
            publisher.send(&vec![1; 2 << 20]).unwrap();
            drop(other.recv().unwrap());
        }
        publisher.pool_bytes()
    };
    drop(subscriber);
    let bytes = run(&mut publisher, &mut other);
    assert!(bytes <= 8 << 20, "{bytes}");
}

/// Whatever is released, and in whatever order: a publisher that waits for it notices.
#[test]
fn released_while_it_falls_asleep() {
    const ROUNDS: usize = 10_000;
    let _scene = Scene::new();
    // Two chunks.
    let (here, there) = Link::pair().unwrap();
    let mut publisher = unbound(page_size())
        .pool_bytes(5 << 19)
        .max_message(1 << 20)
        .wait(WaitPolicy::Block)
        .unbound()
        .unwrap();
    publisher.attach(here).unwrap();
    let builder = Subscriber::builder().wait(WaitPolicy::Block);
    let mut subscriber = builder.over(there).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..3 * ROUNDS {
                let loan = publisher.loan(1 << 20).unwrap();
                publisher.send_loan(loan).unwrap();
            }
        });
        // One is held while the next two are read and released.
        let mut dice = Dice::new();
        for _ in 0..ROUNDS {
            alive();
            let message = subscriber.recv().unwrap();
            for _ in 0..dice.below(3000) {
                std::hint::spin_loop();
            }
            let _held = message.hold().unwrap();
            drop(subscriber.recv().unwrap());
            drop(subscriber.recv().unwrap());
        }
    });
}

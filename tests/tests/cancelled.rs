//! Futures that are dropped before they are done, after every number of polls: no message is lost or sent twice, nothing is
//! kept, and the lane goes on.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use memlane::{Async, Link, Loan, Publisher, Subscriber, WaitPolicy};
use memlane_region::page_size;
use memlane_tests::{
    Census, Control, Part, Role, Scene, Smol, Tasks, Tokio, alive, check, fill, length, number,
    play, poll_and_drop, unbound, wait_until, yield_now,
};
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[("sender", sender), ("receiver", receiver)];

#[test]
fn other_process() {
    play(ROLES);
}

const LONGEST: usize = 16 << 10;
const MESSAGES: u64 = 3000;

#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    address: String,
}

fn builder() -> memlane::PublisherBuilder {
    unbound(page_size())
        .pool_bytes(4 * LONGEST)
        .wait(WaitPolicy::Block)
}

fn sender(role: &Role) {
    let Orders { address } = role.hear();
    let address = address.parse().expect("an address");
    let mut publisher = builder().bind_to(&address).expect("a publisher");
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("a subscriber");
    let mut buffer = vec![0; LONGEST];
    for next in 0..MESSAGES {
        let message = &mut buffer[..length(next, LONGEST)];
        fill(next, message);
        publisher.send(message).expect("room");
        if next.is_multiple_of(8) {
            // Now and then it is the receiver who waits.
            std::thread::sleep(Duration::from_micros(50));
        }
        if next.is_multiple_of(256) {
            alive();
        }
    }
}

fn a_dropped_recv_loses_nothing<K: Tasks>() {
    let scene = Scene::after(Smol::start);
    let address = scene.address("lane");
    let orders = Orders {
        address: address.to_string(),
    };
    let child = scene.spawn("sender", &orders);
    child.hear::<()>();
    K::run(async {
        let connecting = Subscriber::builder().begin_at(&address).unwrap();
        let mut subscriber = K::finish(connecting).await.unwrap();
        let (mut next, mut dropped) = (0, 0);
        while next < MESSAGES {
            match poll_and_drop(dropped % 4, subscriber.recv()).await {
                Some(message) => {
                    check(next, &message.unwrap().to_vec());
                    next += 1;
                    alive();
                }
                None => dropped += 1,
            }
        }
        assert!(dropped > 0);
        println!("{dropped} dropped, {:?}", subscriber.get_ref().stats());
    });
    child.finish();
}

#[test]
fn recv_with_the_control_thread() {
    a_dropped_recv_loses_nothing::<Control>();
}

#[test]
fn recv_with_smol() {
    a_dropped_recv_loses_nothing::<Smol>();
}

#[test]
fn recv_with_tokio() {
    a_dropped_recv_loses_nothing::<Tokio>();
}

/// Tells the numbers of all that came, and reads slowly enough that a ring of one page is full most of the time.
fn receiver(role: &Role) {
    let Orders { address } = role.hear();
    let mut subscriber = Subscriber::builder()
        .wait(WaitPolicy::Block)
        .connect_to(&address.parse().expect("an address"))
        .expect("a publisher");
    let mut numbers: Vec<u64> = Vec::new();
    while let Ok(message) = subscriber.recv() {
        let message = message.to_vec();
        numbers.push(number(&message));
        check(number(&message), &message);
        if numbers.len().is_multiple_of(64) {
            alive();
        }
        if numbers.len().is_multiple_of(16) {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    for part in numbers.chunks(512) {
        role.tell(&part);
    }
    role.tell(&Vec::<u64>::new());
}

/// What is sent by each of these is sent when they are done, and not before.
async fn send_somehow<K: Tasks>(
    publisher: &mut Async<Publisher, K::Readiness>,
    next: u64,
    message: &[u8],
    polls: u64,
) -> bool {
    match next % 4 {
        0 | 1 => poll_and_drop(polls, publisher.send(message))
            .await
            .map(|sent| sent.unwrap())
            .is_some(),
        2 => {
            let Some(place) = poll_and_drop(polls, publisher.reserve(message.len())).await else {
                return false;
            };
            let mut place = place.unwrap();
            place.copy_from_slice(message);
            place.commit();
            true
        }
        _ => {
            let Some(loan) = poll_and_drop(polls, publisher.loan(message.len())).await else {
                return false;
            };
            let mut loan = loan.unwrap();
            loan.copy_from_slice(message);
            poll_and_drop(polls, publisher.send_loan(loan))
                .await
                .map(|sent| sent.unwrap())
                .is_some()
        }
    }
}

fn a_dropped_send_sends_nothing<K: Tasks>() {
    let scene = Scene::after(Smol::start);
    let address = scene.address("lane");
    let orders = Orders {
        address: address.to_string(),
    };
    let mut sent = Vec::new();
    let child = K::run(async {
        let builder = if K::DRIVES {
            builder().driven()
        } else {
            builder()
        };
        let mut publisher = K::publisher(builder.bind_to(&address).unwrap());
        let child = scene.spawn("receiver", &orders);
        publisher.wait_for_subscribers(1).await.unwrap();
        let mut buffer = vec![0; LONGEST];
        let mut dropped = 0_u64;
        for next in 0..MESSAGES {
            let message = &mut buffer[..length(next, LONGEST).max(8)];
            fill(next, message);
            if send_somehow::<K>(&mut publisher, next, message, dropped % 5).await {
                sent.push(next);
            } else {
                dropped += 1;
                // Some wait long enough that there is room again, whatever was asked for before.
                if dropped.is_multiple_of(64) {
                    publisher.send(message).await.unwrap();
                    sent.push(next);
                }
            }
            if next.is_multiple_of(64) {
                alive();
            }
        }
        assert!(dropped > 0);
        // No loan is out: the whole pool can be had, once the subscriber has given back what it has.
        let mut loans: Vec<Loan> = Vec::new();
        for _ in 0..4 {
            loans.push(publisher.loan(LONGEST).await.unwrap());
        }
        println!("{dropped} dropped, {:?}", publisher.get_ref().stats());
        child
    });
    let mut received: Vec<u64> = Vec::new();
    loop {
        let part: Vec<u64> = child.hear();
        if part.is_empty() {
            break;
        }
        received.extend(part);
    }
    child.finish();
    assert_eq!(received, sent);
}

#[test]
fn sends_with_the_control_thread() {
    a_dropped_send_sends_nothing::<Control>();
}

#[test]
fn sends_with_smol() {
    a_dropped_send_sends_nothing::<Smol>();
}

#[test]
fn sends_with_tokio() {
    a_dropped_send_sends_nothing::<Tokio>();
}

/// A future that gave up asks subscribers for nothing: they wake nobody.
#[test]
fn nobody_is_rung_for_what_nobody_waits_for() {
    let _scene = Scene::after(Smol::start);
    let (here, there) = Link::pair().unwrap();
    let publisher = builder().unbound().unwrap();
    publisher.attach(here).unwrap();
    let mut subscriber = Subscriber::builder().over(there).unwrap();
    static WOKEN: AtomicU64 = AtomicU64::new(0);
    struct Counting(Smol);
    impl memlane::Readiness for Counting {
        fn poll_readable(
            &mut self,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            let polled = self.0.poll_readable(cx);
            WOKEN.fetch_add(u64::from(polled.is_ready()), Ordering::Relaxed);
            polled
        }
    }
    let readiness = |descriptor| Smol::register(descriptor).map(Counting);
    let mut publisher = Async::with(publisher, readiness).unwrap();
    Smol::run(async {
        for _ in 0..50 {
            while publisher.get_mut().try_send(&[0; 100]).is_ok() {}
            publisher.forget_room();
            assert!(poll_and_drop(2, publisher.send(&[0; 100])).await.is_none());
            while subscriber.try_recv().is_ok() {}
            let woken = WOKEN.load(Ordering::Relaxed);
            // It has room, and looks for that first.
            publisher.send(&[0; 100]).await.unwrap();
            assert_eq!(WOKEN.load(Ordering::Relaxed), woken);
            drop(subscriber.try_recv().unwrap());
        }
    });
}

/// Whoever gives up has not subscribed, and leaves nothing, at either side.
fn a_dropped_connect_is_gone<K: Tasks>() {
    let scene = Scene::after(Smol::start);
    let address = scene.address("lane");
    K::run(async {
        let builder = if K::DRIVES {
            builder().driven()
        } else {
            builder()
        };
        let mut publisher = K::publisher(builder.bind_to(&address).unwrap());
        let before = Census::take();
        let (mut dropped, mut connected) = (0, 0);
        for polls in 0..60 {
            let connecting = Subscriber::builder().begin_at(&address).unwrap();
            match poll_and_drop(polls % 12, K::finish(connecting)).await {
                Some(subscriber) => {
                    let mut subscriber = subscriber.unwrap();
                    connected += 1;
                    publisher.wait_for_subscribers(1).await.unwrap();
                    publisher.send(b"welcome").await.unwrap();
                    assert_eq!(subscriber.recv().await.unwrap().to_vec(), b"welcome");
                }
                None => dropped += 1,
            }
            alive();
        }
        println!("{dropped} dropped, {connected} connected");
        assert!(dropped > 0);
        // Whoever is still in the backlog is let in, and buried.
        let mut last = {
            let connecting = Subscriber::builder().begin_at(&address).unwrap();
            K::finish(connecting).await.unwrap()
        };
        while publisher.get_ref().subscribers() != 1 {
            yield_now().await;
        }
        publisher.send(b"to one").await.unwrap();
        assert_eq!(last.recv().await.unwrap().to_vec(), b"to one");
        drop(last);
        while publisher.get_ref().subscribers() != 0 {
            yield_now().await;
        }
        publisher.send(b"to nobody").await.unwrap();
        wait_until("the publisher lets go", || {
            publisher.get_ref().drive().unwrap();
            Census::take() == before
        });
    });
}

#[test]
fn connect_with_the_control_thread() {
    a_dropped_connect_is_gone::<Control>();
}

#[test]
fn connect_with_smol() {
    a_dropped_connect_is_gone::<Smol>();
}

#[test]
fn connect_with_tokio() {
    a_dropped_connect_is_gone::<Tokio>();
}

/// Those who come are counted, whoever was asked for how many before, and gave up.
fn a_dropped_wait_for_subscribers<K: Tasks>() {
    let scene = Scene::after(Smol::start);
    let address = scene.address("lane");
    K::run(async {
        let builder = if K::DRIVES {
            builder().driven()
        } else {
            builder()
        };
        let mut publisher = K::publisher(builder.bind_to(&address).unwrap());
        let mut subscribers = Vec::new();
        for count in 1..=20 {
            for polls in 0..5 {
                let waited = poll_and_drop(polls, publisher.wait_for_subscribers(count)).await;
                assert!(waited.is_none());
            }
            let connecting = Subscriber::builder().begin_at(&address).unwrap();
            publisher.wait_for_subscribers(count).await.unwrap();
            subscribers.push(K::finish(connecting).await.unwrap());
            alive();
        }
        publisher.send(b"to all").await.unwrap();
        for subscriber in &mut subscribers {
            assert_eq!(subscriber.recv().await.unwrap().to_vec(), b"to all");
        }
    });
}

#[test]
fn wait_for_subscribers_with_the_control_thread() {
    a_dropped_wait_for_subscribers::<Control>();
}

#[test]
fn wait_for_subscribers_with_smol() {
    a_dropped_wait_for_subscribers::<Smol>();
}

#[test]
fn wait_for_subscribers_with_tokio() {
    a_dropped_wait_for_subscribers::<Tokio>();
}

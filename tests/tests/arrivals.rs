//! Publishers and ends of many lanes that arrive in loops and tasks: one thread is all that it takes.

use std::time::Duration;

use memlane::{
    Connecting, Connects, Encoded, Error, Link, Publisher, Receiver, Subscriber, Subscriptions,
};
use memlane_tests::{PATIENCE, Scene, block_on, unbound, wait_until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Waits until it may get on.
fn wait<E: Connects>(arriving: &Connecting<E>) {
    let patience = Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    let ready = poll(&mut [PollFd::new(arriving, PollFlags::IN)], Some(&patience));
    assert_eq!(ready.unwrap(), 1);
}

/// Gets on until the other knows that it is there.
fn get_on<E: Connects>(
    arriving: &mut Connecting<E>,
    mut is_awaited: impl FnMut() -> Result<bool, Error>,
) {
    wait_until("it is awaited", || {
        assert!(arriving.try_finish().unwrap().is_none());
        is_awaited().unwrap()
    });
}

/// The end, once the other has departed.
fn finish<E: Connects>(arriving: &mut Connecting<E>) -> Result<E, Error> {
    loop {
        if let Some(end) = arriving.try_finish()? {
            return Ok(end);
        }
        wait(arriving);
    }
}

fn lane() -> (Publisher, Subscriber) {
    let publisher = unbound(4096).unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let subscriber = Subscriber::builder().over(theirs).unwrap();
    (publisher, subscriber)
}

#[test]
fn a_publisher_in_a_loop() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = lane();
    let mut others: Vec<_> = (0..20)
        .map(|_| {
            let (ours, theirs) = Link::pair().unwrap();
            publisher.attach(ours).unwrap();
            Subscriber::builder().over(theirs).unwrap()
        })
        .collect();
    for round in 0..20_u8 {
        let ticket = publisher.ticket().unwrap();
        let mut arriving = unbound(4096).begin_arrival(ticket).unwrap();
        get_on(&mut arriving, || {
            publisher.send(&[round]).unwrap();
            for subscriber in others.iter_mut().chain([&mut subscriber]) {
                assert_eq!(subscriber.recv().unwrap().to_vec(), [round]);
            }
            publisher.is_awaited()
        });
        publisher.depart().unwrap();
        publisher = finish(&mut arriving).unwrap();
    }
}

/// Whatever comes of it: nothing is left, and the other one stays.
#[test]
fn one_that_is_dropped_or_gives_up() {
    let _scene = Scene::new();
    let (mut publisher, mut subscriber) = lane();
    for steps in 0..4 {
        let ticket = publisher.ticket().unwrap();
        let mut arriving = unbound(4096).begin_arrival(ticket).unwrap();
        match steps {
            0 => {}
            1 => assert!(arriving.try_finish().unwrap().is_none()),
            _ => get_on(&mut arriving, || publisher.is_awaited()),
        }
        if steps == 3 {
            block_on(async {
                let mut finishing = Box::pin(arriving.finish());
                let pending = std::future::poll_fn(|cx| {
                    std::task::Poll::Ready(finishing.as_mut().poll(cx).is_pending())
                });
                assert!(pending.await);
            });
        } else {
            drop(arriving);
        }
        let stays = publisher.depart().unwrap_err();
        assert!(matches!(stays.error, Error::Stays { .. }), "{stays}");
        publisher = stays.publisher.unwrap();
    }
    let ticket = publisher.ticket().unwrap();
    let builder = unbound(4096).timeout(Duration::from_millis(20));
    let mut arriving = builder.begin_arrival(ticket).unwrap();
    let error = finish(&mut arriving).unwrap_err();
    assert!(matches!(error, Error::NotDeparted { .. }), "{error}");
    let mut publisher = publisher.depart().unwrap_err().publisher.unwrap();
    publisher.send(b"here").unwrap();
    assert_eq!(subscriber.recv().unwrap().to_vec(), b"here");
    // Or the other one is gone.
    let mut arriving = unbound(4096)
        .begin_arrival(publisher.ticket().unwrap())
        .unwrap();
    get_on(&mut arriving, || publisher.is_awaited());
    drop(publisher);
    let error = finish(&mut arriving).unwrap_err();
    assert!(matches!(error, Error::NotHandedOver), "{error}");
}

#[test]
fn a_publisher_in_a_runtime() {
    let _scene = Scene::new();
    let builder = || unbound(4096).driven();
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    runtime.block_on(async {
        let mut publisher = builder().unbound().unwrap();
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        let mut connecting = Subscriber::builder().begin_over(theirs).unwrap();
        let mut subscriber = loop {
            publisher.drive().unwrap();
            if let Some(subscriber) = connecting.try_finish().unwrap() {
                break subscriber;
            }
        };
        publisher.send(b"one").unwrap();
        let ticket = publisher.ticket().unwrap();
        let arriving = builder().begin_arrival(ticket).unwrap();
        let departing = async {
            while !publisher.is_awaited().unwrap() {
                tokio::task::yield_now().await;
            }
            publisher.depart().unwrap();
        };
        let arriving = memlane::tokio::Publisher::finish(arriving);
        let (arrived, ()) = tokio::join!(arriving, departing);
        let mut publisher = arrived.unwrap();
        publisher.send(b"two").await.unwrap();
        for message in [b"one", b"two"] {
            assert_eq!(subscriber.recv().unwrap().to_vec(), message);
        }
    });
}

#[test]
fn values_are_compared() {
    let _scene = Scene::new();
    let builder = || Publisher::builder().of::<Encoded<u64>>();
    let mut publisher = builder().unbound().unwrap();
    for carries in [true, false] {
        let ticket = publisher.ticket().unwrap();
        if carries {
            let mut arriving = builder().begin_arrival(ticket).unwrap();
            wait_until("it is awaited", || {
                assert!(arriving.try_finish().unwrap().is_none());
                publisher.is_awaited().unwrap()
            });
            publisher.depart().unwrap();
            let mut arrived = None;
            wait_until("it has arrived", || {
                arrived = arriving.try_finish().unwrap();
                arrived.is_some()
            });
            publisher = arrived.unwrap();
        } else {
            let other = Publisher::builder().of::<Encoded<u8>>();
            let mut arriving = other.begin_arrival(ticket).unwrap();
            let mut refused = None;
            wait_until("it is refused", || {
                refused = arriving.try_finish().err();
                refused.is_some()
            });
            let refused = refused.unwrap();
            assert!(matches!(refused, Error::Option { .. }), "{refused}");
            let stays = publisher.depart().unwrap_err();
            assert!(stays.to_string().contains("u64"), "{stays}");
            return;
        }
    }
}

/// A receiver with so many senders.
fn queue(senders: u8) -> (Receiver, Vec<Publisher>) {
    let mut receiver = Subscriber::builder().unbound().unwrap();
    let senders: Vec<Publisher> = (0..senders)
        .map(|_| {
            let (ours, theirs) = Link::pair().unwrap();
            receiver.attach(ours).unwrap();
            let mut connecting = unbound(4096).begin_over(theirs).unwrap();
            loop {
                assert!(receiver.try_recv().is_err());
                if let Some(sender) = connecting.try_finish().unwrap() {
                    break sender;
                }
            }
        })
        .collect();
    (receiver, senders)
}

/// Receives one message of each.
fn receive(receiver: &mut Receiver, senders: usize) {
    let mut received: Vec<u8> = (0..senders)
        .map(|_| receiver.recv().unwrap().to_vec()[0])
        .collect();
    received.sort_unstable();
    let all: Vec<u8> = (0..senders as u8).collect();
    assert_eq!(received, all);
}

#[test]
fn a_receiver_in_a_loop() {
    let _scene = Scene::new();
    let (mut receiver, mut senders) = queue(40);
    for round in 0..5 {
        let ticket = receiver.ticket().unwrap();
        let builder = Subscriber::builder();
        let mut arriving = builder.begin_arrival_of_receiver(ticket).unwrap();
        get_on(&mut arriving, || receiver.is_awaited());
        if round % 2 == 1 {
            // Nobody comes after all.
            drop(arriving);
            wait_until("that is heard", || receiver.is_awaited().is_err());
        } else {
            receiver.depart().unwrap();
            receiver = finish(&mut arriving).unwrap();
        }
        for (number, sender) in senders.iter_mut().enumerate() {
            sender.send(&[number as u8]).unwrap();
        }
        receive(&mut receiver, senders.len());
        assert_eq!(receiver.senders(), senders.len());
    }
    let ticket = receiver.ticket().unwrap();
    let builder = Subscriber::builder().timeout(Duration::from_millis(20));
    let mut arriving = builder.begin_arrival_of_receiver(ticket).unwrap();
    let error = finish(&mut arriving).unwrap_err();
    assert!(matches!(error, Error::NotDeparted { .. }), "{error}");
    let ticket = receiver.ticket().unwrap();
    let builder = Subscriber::builder();
    let mut arriving = builder.begin_arrival_of_receiver(ticket).unwrap();
    receiver.stay();
    let error = finish(&mut arriving).unwrap_err();
    assert!(matches!(error, Error::HungUp), "{error}");
}

#[test]
fn subscriptions_in_a_task() {
    let _scene = Scene::new();
    let (mut publishers, mut subscriptions) =
        (Vec::new(), Subscriber::builder().subscriptions().unwrap());
    for _ in 0..3 {
        let (publisher, subscriber) = lane();
        subscriptions.add(subscriber).unwrap();
        publishers.push(publisher);
    }
    let ticket = subscriptions.ticket().unwrap();
    let builder = Subscriber::builder();
    let arriving = builder.begin_arrival_of_subscriptions(ticket).unwrap();
    let departing = std::thread::spawn(move || {
        assert!(subscriptions.wait_until_awaited(PATIENCE).unwrap());
        subscriptions.depart().unwrap();
    });
    let subscriptions = block_on(arriving.finish()).unwrap();
    departing.join().unwrap();
    let mut subscriptions: Subscriptions = subscriptions.into_inner();
    assert_eq!(subscriptions.len(), 3);
    for publisher in &mut publishers {
        publisher.send(b"there").unwrap();
    }
    for _ in 0..3 {
        let message = subscriptions.recv().unwrap();
        assert!(matches!(message, memlane::Received::Message { .. }));
    }
}

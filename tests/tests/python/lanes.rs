//! It subscribes, it publishes, and it takes part in queues.

use std::{
    sync::mpsc::channel,
    thread::{self},
};

use memlane::{
    Reason, SendError, Subscriber, TryRecvError, TrySendError, WhenFull, transport::remove_stale,
};
use memlane_tests::{
    PATIENCE, Policy, Received, Scene, Wish, memfd_with, thread_id, unbound, wait_asleep,
    wait_stopped, wait_until,
};
use rustix::process::Signal;

use crate::program::{Python, bind, check, crc, message, python};

#[test]
fn it_subscribes() {
    let scene = Scene::new();
    if !python() {
        return;
    }
    for policy in Policy::ALL {
        let mut publisher = bind(&scene, policy);
        // A ring that has been round, and a pool that is there before it comes.
        (0..300).for_each(|number| publisher.send(&message(number)).unwrap());
        let python = Python::start("subscribe", &scene.address("lane"), &[]);
        publisher.wait_for_subscribers(1).unwrap();
        python.says("subscribed");
        // It sleeps before each.
        for number in 0..100 {
            wait_asleep(python.id(), python.id());
            publisher.send(&message(number)).unwrap();
            python.has(&message(number));
        }
        // Files come with the messages they are attached to, in the ring and in the pool, and what was attached to none with
        // none. More than can be on their way at a time.
        for number in 0..300 {
            let message = message(number);
            let mut place = publisher.reserve(message.len()).unwrap();
            place.copy_from_slice(&message);
            if number % 3 == 0 {
                let void = vec![memfd_with(b"void")];
                place.attach(&void.into()).unwrap();
            }
            match number % 5 {
                0 => drop(place),
                1 => place.commit(),
                files => {
                    let files =
                        (0..files).map(|file| memfd_with(format!("{number}.{file}").as_bytes()));
                    place.attach(&files.collect()).unwrap();
                    place.commit();
                }
            }
        }
        for number in 0..300 {
            let message = message(number);
            let has = format!("{} {}", message.len(), crc(&message));
            match number % 5 {
                0 => {}
                1 if number % 3 == 0 => python.says(&format!("{has} void")),
                1 => python.says(&has),
                files => {
                    let files = (0..files).map(|file| format!(" {number}.{file}"));
                    python.says(&format!("{has}{}", files.collect::<String>()));
                }
            }
        }
        // The publisher waits for it.
        wait_asleep(python.id(), python.id());
        python.signal(Signal::STOP);
        wait_stopped(python.id(), python.id());
        let (tell, told) = channel();
        let sending = thread::spawn(move || {
            for number in 0..2_000 {
                let message = message(number);
                match publisher.try_send(&message) {
                    Ok(()) => {}
                    Err(TrySendError::Full) => {
                        let _ = tell.send(thread_id());
                        publisher.send(&message).unwrap();
                    }
                    Err(error) => panic!("message {number}: {error}"),
                }
            }
            publisher
        });
        let sender = told.recv().unwrap();
        drop(told);
        if policy != Policy::Poll {
            wait_asleep(std::process::id(), sender);
        }
        python.signal(Signal::CONT);
        (0..2_000).for_each(|number| python.has(&message(number)));
        let publisher = sending.join().unwrap();
        assert!(policy == Policy::Poll || publisher.stats().sleeps > 0);
        // What is in the ring comes before the end.
        publisher.close();
        python.says("ended closed");
        assert!(python.slept() >= 100);
        python.finish();
    }
}

/// It follows its publisher from ring to ring while it is behind, and is told when it is dropped, in one of them.
#[test]
fn it_goes_from_ring_to_ring() {
    let scene = Scene::new();
    if !python() {
        return;
    }
    let rings = unbound(1 << 14).spill_bytes(4 << 14);
    let when_full = WhenFull::Disconnect {
        after: std::time::Duration::ZERO,
    };
    let mut publisher = rings
        .when_full(when_full)
        .bind_to(&scene.address("lane"))
        .unwrap();
    let python = Python::start("subscribe", &scene.address("lane"), &[]);
    publisher.wait_for_subscribers(1).unwrap();
    python.says("subscribed");
    let mut next = 0;
    for _ in 0..20 {
        python.signal(Signal::STOP);
        wait_stopped(python.id(), python.id());
        let (before, first) = (publisher.stats().spills, next);
        while publisher.stats().spills < before + 2 {
            publisher.send(&message(next)).unwrap();
            next += 1;
        }
        python.signal(Signal::CONT);
        (first..next).for_each(|number| python.has(&message(number)));
    }
    python.signal(Signal::STOP);
    wait_stopped(python.id(), python.id());
    let first = next;
    while publisher.stats().too_slow == 0 {
        publisher.send(&message(next)).unwrap();
        next += 1;
    }
    (0..100).for_each(|number| publisher.send(&message(number)).unwrap());
    python.signal(Signal::CONT);
    // The ring that it was in.
    for number in first..first + 5 {
        python.has(&message(number));
    }
    publisher.close();
    python.kill();
}

/// Its publisher is another process's, over and over: here, other publishers of this one.
#[test]
fn it_follows_a_publisher_that_moves() {
    let scene = Scene::new();
    if !python() {
        return;
    }
    let address = scene.address("lane");
    let mut publisher = bind(&scene, Policy::Block);
    let python = Python::start("subscribe", &address, &[]);
    publisher.wait_for_subscribers(1).unwrap();
    python.says("subscribed");
    let mut next = 0;
    for round in 0..30 {
        let ticket = publisher.ticket().unwrap();
        let other = thread::spawn(|| ticket.arrive().unwrap());
        publisher.send(&message(next)).unwrap();
        publisher.depart().unwrap();
        publisher = other.join().unwrap();
        python.has(&message(next));
        next += 1;
        if round % 3 == 0 {
            for number in next..next + 100 {
                publisher.send(&message(number)).unwrap();
                python.has(&message(number));
            }
            next += 100;
        }
    }
    drop(publisher);
    python.says("ended closed");
    python.slept();
    python.finish();
}

#[test]
fn it_publishes() {
    let scene = Scene::new();
    if !python() {
        return;
    }
    let mut python = Python::start("publish", &scene.address("lane"), &[]);
    python.says("bound");
    python.send(0..40);
    python.sent(40);
    let mut subscribers = Vec::new();
    for (policy, trusting) in [
        (Policy::Block, false),
        (Policy::Adaptive, true),
        (Policy::Poll, false),
    ] {
        let wish = Wish { policy, trusting };
        subscribers.push(wish.connect(&scene.address("lane")).unwrap());
        python.says(&format!("joined {}", subscribers.len()));
    }
    // It waits for who does not receive yet.
    python.send(0..2_000);
    python.says("sent");
    wait_asleep(python.id(), python.id());
    let receiving = subscribers.into_iter().map(|mut subscriber| {
        let (tell, told) = channel();
        let thread = thread::spawn(move || {
            let (id, mut next, mut copy) = (thread_id(), 0, Vec::new());
            loop {
                match subscriber.recv(&mut copy).unwrap() {
                    Received::Message => check(next, &copy),
                    Received::Disconnected(reason) => return (next, reason, subscriber.stats()),
                }
                next += 1;
                if next >= 2_000 {
                    tell.send(id).unwrap();
                }
            }
        });
        (thread, told)
    });
    let receiving: Vec<_> = receiving.collect();
    python.sent(1_999);
    // Those that sleep are woken by each.
    for number in 2_000..2_100 {
        for (index, (_, told)) in receiving.iter().enumerate() {
            let id = told.recv_timeout(PATIENCE).unwrap();
            if index < 2 {
                wait_asleep(std::process::id(), id);
            }
        }
        python.send([number]);
        python.says("sent");
    }
    drop(python.input.take());
    for (index, (thread, _)) in receiving.into_iter().enumerate() {
        let (messages, reason, stats) = thread.join().unwrap();
        assert_eq!((messages, reason), (2_100, Reason::Closed));
        assert!(index == 2 || stats.sleeps >= 100, "{stats:?}");
    }
    assert!(python.slept() > 0);
    python.finish();
}

#[test]
fn it_takes_part_in_queues() {
    let scene = Scene::new();
    if !python() {
        return;
    }
    let address = scene.address("jobs");
    // Senders of its kind and of this.
    let mut receiver = Subscriber::builder().bind_to(&address).unwrap();
    let mut python = Python::start("offer", &address, &[]);
    wait_until("it is there", || {
        assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
        receiver.senders() == 1
    });
    python.says("joined 1");
    python.send(0..1_000);
    for number in 0..1_000 {
        check(number, &receiver.recv_timeout(PATIENCE).unwrap().to_vec());
    }
    python.sent(1_000);
    drop(python.input.take());
    python.slept();
    python.finish();
    wait_until("it has left", || {
        assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
        receiver.senders() == 0
    });
    drop(receiver);

    // Its own queue.
    let python = Python::start("receive", &address, &[]);
    python.says("bound");
    let senders = [1, 2].map(|_| {
        let builder = unbound(1 << 14).wait(Policy::Block.into());
        let sender = builder.connect_to(&address).unwrap();
        python.says("offered");
        sender
    });
    for mut sender in senders {
        for number in 0..500 {
            sender.send(&message(number)).unwrap();
            python.has(&message(number));
        }
        wait_asleep(python.id(), python.id());
        sender.send(b"the last").unwrap();
        python.has(b"the last");
        drop(sender);
        python.says("ended closed");
    }
    python.finish();

    // Killed while a sender waits for it.
    let python = Python::start("receive", &address, &[]);
    python.says("bound");
    let builder = unbound(1 << 14).wait(Policy::Block.into());
    let mut sender = builder.connect_to(&address).unwrap();
    python.says("offered");
    python.signal(Signal::STOP);
    wait_stopped(python.id(), python.id());
    while sender.try_send(&[7; 100]).is_ok() {}
    let me = thread_id();
    let killer = thread::spawn(move || {
        wait_asleep(std::process::id(), me);
        python.kill();
    });
    while sender.send(&[7; 100]).is_ok() {}
    assert!(matches!(sender.send(b""), Err(SendError::Disconnected)));
    killer.join().unwrap();
    remove_stale(&address).unwrap();
}

//! What is said of the end over the link: to those who are dropped, and by those who lie.

use std::{os::fd::AsFd, sync::atomic::Ordering, time::Duration};

use memlane::{
    Error, Link, Publisher, Reason, RecvError, SendTimeoutError, Subscriber, TryRecvError,
    WaitPolicy,
};
use memlane_region::{Shared, page_size};
use memlane_tests::{
    PATIENCE, Scene, alive, check, fill, unbound, wait_until,
    wire::{Answer, CURSOR, Farewell, Greeting, Notice, Offer, Opening, VERSION, Welcome},
};
use memlane_transport::Fd;
use rustix::event::{PollFd, PollFlags, poll};

/// A subscriber by hand, as little of it as it takes.
fn join(link: &Link) -> (Shared, Welcome) {
    let (mine, page) = Shared::create("by-hand", page_size(), 0).expect("a page");
    let greeting = Greeting::new(page.into(), Offer::default());
    let opening = Opening { version: VERSION };
    link.send(&opening).expect("room");
    link.send(&greeting).expect("room");
    link.recv::<Opening>().expect("an opening");
    match link.recv().expect("an answer") {
        Answer::Welcome(welcome) => (mine, welcome),
        answer => panic!("{answer:?}"),
    }
}

/// The last of the notices that wait.
fn farewell(link: &Link) -> (u64, Farewell) {
    for others in 0.. {
        let notice = link.recv_timeout(PATIENCE).expect("a farewell");
        if let Notice::Farewell(farewell) = notice {
            return (others, farewell);
        }
    }
    unreachable!()
}

/// Who writes nonsense is told, and so is who reads no notices, even though these have filled its link.
#[test]
fn who_is_dropped_is_told_why() {
    let _scene = Scene::new();
    let mut publisher = unbound(page_size()).unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let (mine, _welcome) = join(&theirs);
    mine.word(CURSOR).store(1 << 40, Ordering::Relaxed);
    while publisher.stats().evicted == 0 {
        let _ = publisher.try_send(&[0; 100]);
        publisher.drive().unwrap();
    }
    let (_, why) = farewell(&theirs);
    let Farewell::Evicted { why } = why else {
        panic!("{why:?}");
    };
    assert!(why.contains("got 1099511627776"), "{why}");
    drop(theirs);

    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let (mine, _welcome) = join(&theirs);
    let mut cursor = 0;
    while !rustix::event::poll(
        &mut [PollFd::new(&theirs, PollFlags::RDHUP)],
        Some(&rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )
    .is_ok_and(|ready| ready > 0)
    {
        publisher.send(&[0; 20_000]).unwrap();
        cursor += 32;
        mine.word(CURSOR).store(cursor, Ordering::Release);
        assert!(publisher.trim(Duration::ZERO) > 0);
        alive();
    }
    let (others, why) = farewell(&theirs);
    assert!(others > 100, "only {others} notices");
    let Farewell::Evicted { why } = why else {
        panic!("{why:?}");
    };
    assert_eq!(why, "it has left too many notices of the pool unread");
    drop(theirs);
    wait_until("it is counted", || publisher.stats().evicted == 2);
    assert_eq!(publisher.stats().left, 0);
}

/// Has a publisher drop a subscriber that has taken its messages, and not the notices of what was given up since.
fn dropped_behind_its_notices() -> (Publisher, Subscriber) {
    let mut publisher = unbound(1 << 14).unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    let links = [ours.as_fd(), theirs.as_fd()].map(|link| link.try_clone_to_owned().unwrap());
    publisher.attach(ours).unwrap();
    let mut subscriber = Subscriber::builder().over(theirs).unwrap();
    let sizes = (0..9).map(|size| 10_000 << size);
    for size in sizes.clone() {
        publisher.send(&vec![0; size]).unwrap();
    }
    for size in sizes {
        assert_eq!(subscriber.recv().unwrap().len(), size);
    }
    // As little as there can be.
    rustix::net::sockopt::set_socket_send_buffer_size(&links[0], 0).unwrap();
    assert!(publisher.trim(Duration::ZERO) > 0);
    let mut hung_up = [PollFd::new(&links[1], PollFlags::RDHUP)];
    assert_eq!(poll(&mut hung_up, Some(&Default::default())), Ok(1));
    assert_eq!(publisher.subscribers(), 1);
    (publisher, subscriber)
}

/// Numbered messages, as long as there is room; how many.
fn send_on(publisher: &mut Publisher, from: u64, up_to: u64) -> u64 {
    let mut message = [0; 100];
    for number in from..up_to {
        fill(number, &mut message);
        match publisher.send_timeout(&message, Duration::from_millis(100)) {
            Ok(()) => {}
            Err(SendTimeoutError::TimedOut) => return number,
            Err(error) => panic!("{error}"),
        }
    }
    up_to
}

/// One that is dropped has all that was sent before it knows that it was; none of that is written over, whatever it hears
/// of the link meanwhile. It holds nobody up any more once it has been told, and never receives anything again.
#[test]
fn who_is_dropped_receives_whole_messages() {
    let _scene = Scene::new();
    for asks in [false, true] {
        let (mut publisher, mut subscriber) = dropped_behind_its_notices();
        let first = send_on(&mut publisher, 0, 10);
        assert_eq!(first, 10);
        if asks {
            assert!(matches!(subscriber.is_awaited(), Err(Error::HungUp)));
            assert!(matches!(subscriber.ticket(), Err(Error::HungUp)));
        }
        // Far more than there is room for.
        let sent = send_on(&mut publisher, first, 1000);
        assert!(sent < 1000, "it was overrun");
        for number in 0..sent {
            check(number, &subscriber.recv().unwrap().to_vec());
        }
        let evicted = |subscriber: &mut Subscriber| match subscriber.recv().map(drop) {
            Err(RecvError::Disconnected {
                reason: Reason::Evicted { why },
            }) => assert!(why.contains("notices"), "{why}"),
            other => panic!("{other:?}"),
        };
        evicted(&mut subscriber);
        wait_until("it is out of the way", || publisher.stats().evicted == 1);
        assert_eq!(publisher.subscribers(), 0);
        assert_eq!(send_on(&mut publisher, sent, 1000), 1000);
        evicted(&mut subscriber);
    }
}

/// What one that is dropped has kept stays as it is.
#[test]
fn who_is_dropped_keeps_what_it_holds() {
    let _scene = Scene::new();
    let mut publisher = unbound(1 << 14).unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    let link = ours.as_fd().try_clone_to_owned().unwrap();
    publisher.attach(ours).unwrap();
    let mut subscriber = Subscriber::builder().over(theirs).unwrap();
    let mut message = vec![0; 20_000];
    fill(0, &mut message);
    publisher.send(&message).unwrap();
    let held = subscriber.recv().unwrap().hold().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&link, 0).unwrap();
    // Each in a segment of its own, until it is dropped for those it is not told of.
    let mut sizes = (0..9).map(|size| 40_000 << size);
    let mut sent = 0;
    for size in &mut sizes {
        publisher.send(&vec![1; size]).unwrap();
        sent += 1;
    }
    let mut received = 0;
    let reason = loop {
        match subscriber.recv() {
            Ok(message) => assert_eq!(message.len(), 40_000 << received),
            Err(RecvError::Disconnected { reason }) => break reason,
            Err(error) => panic!("{error}"),
        }
        received += 1;
    };
    assert!(matches!(reason, Reason::Evicted { .. }), "{reason:?}");
    assert!(0 < received && received < sent, "{received} of {sent}");
    // It holds up nobody, and the chunk is not written again.
    for number in 1..100 {
        fill(number, &mut message);
        publisher.send_timeout(&message, PATIENCE).unwrap();
    }
    assert_eq!(publisher.stats().evicted, 0);
    check(0, &held.to_vec());
    drop(subscriber);
    check(0, &held.to_vec());
    drop(held);
    wait_until("it is gone", || publisher.stats().evicted == 1);
}

/// What a publisher says of itself is heard, once, and believed by nobody: it is shown when it is gone, and no sooner.
#[test]
fn a_publisher_that_lies() {
    let _scene = Scene::new();
    let why = "so\n\x1b[2Jthere".to_owned();
    let evicted = || Farewell::Evicted { why: why.clone() };
    let cases: [(&[Farewell], Reason); 3] = [
        (&[], Reason::Died),
        (
            &[evicted(), Farewell::Closed],
            Reason::Evicted { why: why.clone() },
        ),
        (&[Farewell::Panicked], Reason::Panicked),
    ];
    for (farewells, expected) in cases {
        let (link, mut subscriber) = by_hand();
        for farewell in farewells {
            let notice = Notice::Farewell(farewell.clone());
            link.send(&notice).unwrap();
        }
        for _ in 0..100 {
            assert!(matches!(
                subscriber.try_recv().map(drop),
                Err(TryRecvError::Empty)
            ));
        }
        drop(link);
        match subscriber.recv().map(drop) {
            Err(RecvError::Disconnected { reason }) => {
                assert_eq!(reason, expected);
                assert!(!reason.to_string().contains(['\n', '\x1b']), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    // What is no notice.
    let (link, mut subscriber) = by_hand();
    link.send(&(77_u32, "nonsense")).unwrap();
    drop(link);
    match subscriber.recv().map(drop) {
        Err(RecvError::Disconnected {
            reason: Reason::Broken { why },
        }) => assert!(!why.is_empty()),
        other => panic!("{other:?}"),
    }
}

/// A publisher by hand, that writes nothing.
fn by_hand() -> (Link, Subscriber) {
    let (here, there) = Link::pair().unwrap();
    let subscriber = std::thread::scope(|scope| {
        let subscribing = scope.spawn(|| {
            Subscriber::builder()
                .wait(WaitPolicy::Block)
                .over(there)
                .unwrap()
        });
        here.send(&Opening { version: VERSION }).unwrap();
        here.recv::<Opening>().unwrap();
        here.recv::<Greeting>().unwrap();
        let (_memory, ring) = Shared::create("by-hand", page_size(), page_size()).unwrap();
        here.send(&Answer::Welcome(Welcome::new(
            Fd::from(ring),
            page_size() as u64,
        )))
        .unwrap();
        subscribing.join().unwrap()
    });
    (here, subscriber)
}

//! Every way in which a publisher can end: what it had committed is received by whoever waits, in whatever way, and then
//! comes the end, with the reason.

use std::{
    os::{fd::AsFd, unix::process::CommandExt},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    process::Command,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
    time::Duration,
};

use memlane::{
    Async, Error, Link, Publisher, Reason, RecvError, RecvTimeoutError, SendTimeoutError,
    Subscriber, TryRecvError, WaitPolicy, Watched,
};
use memlane_region::{Shared, page_size};
use memlane_tests::{
    Child, PATIENCE, Part, Policy, Role, Scene, alive, check, fill, play, steady, thread_id,
    unbound, wait_asleep, wait_until,
    wire::{Answer, CURSOR, Farewell, Greeting, Notice, Offer, Opening, VERSION, Welcome},
};
use memlane_transport::Fd;
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[
    ("publisher", publisher),
    ("reader", reader),
    ("steady", steady),
];

#[test]
fn other_process() {
    play(ROLES);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum End {
    Close,
    Drop,
    DrainAndClose,
    Panic,
    Killed,
    Aborts,
    Exits,
    Executes,
}

const ENDS: [End; 8] = [
    End::Close,
    End::Drop,
    End::DrainAndClose,
    End::Panic,
    End::Killed,
    End::Aborts,
    End::Exits,
    End::Executes,
];

impl End {
    fn reason(self) -> Reason {
        match self {
            End::Close | End::Drop | End::DrainAndClose => Reason::Closed,
            End::Panic => Reason::Panicked,
            End::Killed | End::Aborts | End::Exits | End::Executes => Reason::Died,
        }
    }
}

/// Of the ring, and every seventh of the pool.
fn length(number: u64) -> usize {
    if number % 7 == 6 { 20_000 } else { 50 }
}

/// Sends so many messages when it is told to, and ends as it is told to.
fn publisher(role: &Role) {
    let (address, driven): (String, bool) = role.hear();
    let mut builder = unbound(1 << 14);
    if driven {
        builder = builder.driven();
    }
    let mut publisher = builder
        .bind_to(&address.parse().expect("an address"))
        .expect("a publisher");
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("a subscriber");
    let (messages, end): (u64, End) = role.hear();
    let mut buffer = vec![0; 20_000];
    for number in 0..messages {
        let message = &mut buffer[..length(number)];
        fill(number, message);
        publisher.send(message).expect("room");
    }
    role.tell(&());
    match end {
        End::Close => publisher.close(),
        End::Drop => drop(publisher),
        End::DrainAndClose => {
            assert!(publisher.drain(PATIENCE).expect("a wait"));
            publisher.close();
        }
        End::Panic => {
            std::panic::set_hook(Box::new(|_| {}));
            let panicked = catch_unwind(AssertUnwindSafe(move || {
                let _publisher = publisher;
                panic!("as it should");
            }));
            panicked.expect_err("it panicked");
            let _ = std::panic::take_hook();
        }
        End::Killed => role.hear::<()>(),
        End::Aborts => std::process::abort(),
        End::Exits => std::process::exit(0),
        End::Executes => panic!("{}", Command::new("true").exec()),
    }
    role.tell(&());
}

fn start(scene: &Scene, driven: bool) -> Child {
    let address = scene.address("lane").to_string();
    let child = scene.spawn("publisher", &(address, driven));
    child.hear::<()>();
    child
}

/// Has it send and end. What it had committed by then is all there is.
fn end(child: &Child, messages: u64, end: End) {
    child.tell(&(messages, end));
    child.hear::<()>();
    if end == End::Killed {
        child.kill();
    }
}

fn reap(child: Child, end: End) {
    match end {
        End::Close | End::Drop | End::DrainAndClose | End::Panic => {
            child.hear::<()>();
            child.finish();
        }
        End::Killed => child.kill_and_reap(),
        End::Aborts => assert!(!child.reap().success()),
        End::Exits | End::Executes => child.finish(),
    }
}

/// Runs a future on this thread, with nothing that outlives it.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// How a subscriber waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    Asleep,
    Adaptive,
    Polling,
    InTime,
    Looking,
    Watched,
    InATask,
}

const WAITS: [Waits; 7] = [
    Waits::Asleep,
    Waits::Adaptive,
    Waits::Polling,
    Waits::InTime,
    Waits::Looking,
    Waits::Watched,
    Waits::InATask,
];

impl Waits {
    fn policy(self) -> WaitPolicy {
        match self {
            Waits::Adaptive => WaitPolicy::Adaptive,
            Waits::Polling => WaitPolicy::Poll,
            _ => WaitPolicy::Block,
        }
    }

    /// Receives up to the end: how many messages, and why it ended.
    fn receive_all(self, mut subscriber: Subscriber) -> (u64, Reason) {
        let mut received = 0;
        let mut take = |message: &[u8]| {
            assert_eq!(message.len(), length(received));
            check(received, message);
            received += 1;
        };
        let reason = match self {
            Waits::Asleep | Waits::Adaptive | Waits::Polling => loop {
                match subscriber.recv() {
                    Ok(message) => take(&message.to_vec()),
                    Err(RecvError::Disconnected { reason }) => break reason,
                    Err(error) => panic!("{error}"),
                }
            },
            Waits::InTime => loop {
                match subscriber.recv_timeout(PATIENCE) {
                    Ok(message) => take(&message.to_vec()),
                    Err(RecvTimeoutError::Disconnected { reason }) => break reason,
                    Err(error) => panic!("{error}"),
                }
            },
            Waits::Looking => loop {
                match subscriber.try_recv() {
                    Ok(message) => take(&message.to_vec()),
                    Err(TryRecvError::Empty) => std::thread::yield_now(),
                    Err(TryRecvError::Disconnected { reason }) => break reason,
                    Err(error) => panic!("{error}"),
                }
            },
            Waits::Watched => {
                let mut subscriber = Watched::new(subscriber).expect("it sleeps");
                loop {
                    poll(&mut [PollFd::new(&subscriber, PollFlags::IN)], None).expect("poll");
                    match subscriber.try_recv() {
                        Ok(message) => take(&message.to_vec()),
                        Err(TryRecvError::Empty) => {}
                        Err(TryRecvError::Disconnected { reason }) => break reason,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            Waits::InATask => {
                let mut subscriber = Async::new(subscriber).expect("it sleeps");
                block_on(async {
                    loop {
                        match subscriber.recv().await {
                            Ok(message) => take(&message.to_vec()),
                            Err(RecvError::Disconnected { reason }) => break reason,
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            }
        };
        (received, reason)
    }
}

fn connect(scene: &Scene, waits: Waits) -> Subscriber {
    Subscriber::builder()
        .wait(waits.policy())
        .connect_to(&scene.address("lane"))
        .expect("a publisher")
}

/// The end comes while the subscriber waits for it, with nothing or with messages before it.
#[test]
fn every_end_for_one_who_waits() {
    for messages in [0, 20] {
        for how in ENDS {
            for waits in WAITS {
                let scene = Scene::new();
                let child = start(&scene, messages == 20);
                let subscriber = connect(&scene, waits);
                let (id, ids) = std::sync::mpsc::channel();
                let found = std::thread::scope(|scope| {
                    let receiving = scope.spawn(move || {
                        id.send(thread_id()).expect("the test");
                        waits.receive_all(subscriber)
                    });
                    let thread = ids.recv().expect("an id");
                    if waits == Waits::Asleep {
                        wait_asleep(std::process::id(), thread);
                    }
                    end(&child, messages, how);
                    receiving.join().expect("a subscriber")
                });
                assert_eq!(found, (messages, how.reason()), "{how:?}, {waits:?}");
                reap(child, how);
            }
        }
    }
}

/// The end has come before the subscriber looks: everything is in the ring, in the pool, and on the link.
#[test]
fn every_end_for_one_who_looks_later() {
    for how in ENDS {
        // Nobody can read everything before it looks.
        if how == End::DrainAndClose {
            continue;
        }
        for waits in WAITS {
            let scene = Scene::new();
            let child = start(&scene, false);
            let subscriber = connect(&scene, waits);
            end(&child, 20, how);
            reap(child, how);
            let found = waits.receive_all(subscriber);
            assert_eq!(found, (20, how.reason()), "{how:?}, {waits:?}");
        }
    }
}

/// However often one asks.
#[test]
fn the_reason_stays() {
    let (ours, theirs) = Link::pair().unwrap();
    let publisher = Publisher::builder().unbound().unwrap();
    publisher.attach(ours).unwrap();
    let mut subscriber = Subscriber::builder().over(theirs).unwrap();
    publisher.close();
    for _ in 0..3 {
        let error = subscriber.recv().map(drop).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the publisher has closed the lane; what it had committed by then has been received"
        );
        assert!(matches!(
            subscriber.try_recv().map(drop),
            Err(TryRecvError::Disconnected {
                reason: Reason::Closed
            })
        ));
        assert!(matches!(
            subscriber.recv_timeout(PATIENCE).map(drop),
            Err(RecvTimeoutError::Disconnected {
                reason: Reason::Closed
            })
        ));
    }
}

/// Receives so many messages, then as many more as it is told to, and looks for another each time, as everybody does who
/// receives in a loop.
fn reader(role: &Role) {
    let (address, policy): (String, Policy) = role.hear();
    let mut subscriber = Subscriber::builder()
        .wait(policy.into())
        .connect_to(&address.parse().expect("an address"))
        .expect("a publisher");
    role.tell(&());
    loop {
        let more: u64 = role.hear();
        if more == 0 {
            break;
        }
        for _ in 0..more {
            drop(subscriber.recv().expect("a message"));
        }
        drop(subscriber.try_recv());
        role.tell(&());
    }
}

/// `drain` tells whether all have received everything; it waits for those who have not, and for nobody who is gone.
#[test]
fn draining() {
    for policy in Policy::ALL {
        for driven in [false, true] {
            let scene = Scene::new();
            let address = scene.address("lane");
            let mut builder = unbound(1 << 14).wait(policy.into());
            if driven {
                builder = builder.driven();
            }
            let mut publisher = builder.bind_to(&address).unwrap();
            assert!(publisher.drain(Duration::ZERO).unwrap(), "nobody is there");
            let readers: Vec<Child> = [Policy::Block, Policy::Poll]
                .into_iter()
                .map(|policy| scene.spawn("reader", &(address.to_string(), policy)))
                .collect();
            publisher.wait_for_subscribers(2).unwrap();
            readers.iter().for_each(|reader| reader.hear());
            assert!(publisher.drain(Duration::ZERO).unwrap(), "nothing was sent");
            for number in 0..10 {
                publisher.send(&vec![1; length(number)]).unwrap();
            }
            assert!(!publisher.drain(Duration::from_millis(5)).unwrap());
            readers[0].tell(&10_u64);
            readers[0].hear::<()>();
            readers[1].tell(&8_u64);
            readers[1].hear::<()>();
            assert!(!publisher.drain(Duration::from_millis(5)).unwrap());
            let stalls = publisher.stats().stalls;
            readers[1].tell(&1_u64);
            assert!(publisher.drain(PATIENCE).unwrap());
            readers[1].hear::<()>();
            assert_eq!(publisher.stats().stalls, stalls, "no message has waited");

            publisher.send(b"another").unwrap();
            readers[0].tell(&1_u64);
            readers[0].hear::<()>();
            let (id, ids) = std::sync::mpsc::channel();
            std::thread::scope(|scope| {
                let publisher = &mut publisher;
                let draining = scope.spawn(move || {
                    id.send(thread_id()).unwrap();
                    publisher.drain(PATIENCE).unwrap()
                });
                let thread = ids.recv().unwrap();
                if policy == Policy::Block {
                    wait_asleep(std::process::id(), thread);
                }
                readers[1].kill();
                assert!(draining.join().unwrap());
            });
            let mut readers = readers.into_iter();
            let first = readers.next().unwrap();
            readers.next().unwrap().kill_and_reap();
            wait_until("the dead is counted", || {
                publisher.drive().unwrap();
                publisher.stats().left == 1
            });
            first.tell(&0_u64);
            first.finish();
            wait_until("the other is, too", || {
                publisher.drive().unwrap();
                publisher.stats().left == 2
            });
            assert_eq!(publisher.stats().evicted, 0);
            alive();
        }
    }
}

#[test]
fn draining_in_a_task() {
    let _scene = Scene::new();
    let (ours, theirs) = Link::pair().unwrap();
    let publisher = unbound(page_size()).unbound().unwrap();
    publisher.attach(ours).unwrap();
    let mut subscriber = Subscriber::builder().over(theirs).unwrap();
    let mut publisher = Async::new(publisher).unwrap();
    block_on(async {
        publisher.drain().await.unwrap();
        publisher.send(b"one").await.unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                drop(subscriber.recv().unwrap());
                assert!(matches!(
                    subscriber.recv().map(drop),
                    Err(RecvError::Disconnected {
                        reason: Reason::Closed
                    })
                ));
            });
            block_on(publisher.drain()).unwrap();
            assert_eq!(publisher.get_ref().stats().left, 0);
            drop(publisher);
        });
    });
}

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
            assert!(!subscriber.is_awaited().unwrap());
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

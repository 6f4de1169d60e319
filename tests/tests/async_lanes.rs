//! Lane ends in tasks, whatever the executor: memlane's own thread and the plainest of executors, smol's reactor, tokio's.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use futures_util::{
    SinkExt, StreamExt, TryStreamExt,
    future::{Either, select},
};
use memlane::{Address, Async, Error, Link, Publisher, RecvError, Subscriber, WaitPolicy};
use memlane_region::page_size;
use memlane_tests::{
    Census, Control, Part, Role, Scene, Smol, Tasks, Tokio, alive, check, fill, length, play_after,
    poll_and_drop, poll_once, threads, unbound, wait_until, yield_now,
};
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[
    ("control", replier::<Control>),
    ("smol", replier::<Smol>),
    ("tokio", replier::<Tokio>),
    ("threads of control", count_threads::<Control>),
    ("threads of smol", count_threads_of_smol),
    ("threads of tokio", count_threads::<Tokio>),
    ("orphan", orphan),
];

#[test]
fn other_process() {
    play_after(Smol::start, ROLES);
}

const LONGEST: usize = 16 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Game {
    there: String,
    back: String,
    rounds: u64,
}

fn parse(address: &str) -> Address {
    address.parse().expect("an address")
}

fn publisher<K: Tasks>(address: &Address) -> Publisher {
    let builder = unbound(page_size())
        .pool_bytes(4 * LONGEST)
        .wait(WaitPolicy::Block);
    let builder = if K::DRIVES { builder.driven() } else { builder };
    builder.bind_to(address).expect("a publisher")
}

/// Plays back what it gets.
fn replier<K: Tasks>(role: &Role) {
    let game: Game = role.hear();
    K::run(async {
        let mut back = K::publisher(publisher::<K>(&parse(&game.back)));
        let connecting = Subscriber::builder().begin_at(&parse(&game.there));
        let mut there = K::finish(connecting.expect("a service"))
            .await
            .expect("a publisher");
        role.tell(&());
        back.wait_for_subscribers(1).await.expect("descriptors");
        for number in 0..game.rounds {
            let ball = there.recv().await.expect("a ball").to_vec();
            check(number, &ball);
            back.send(&ball).await.expect("room");
            if number % 256 == 0 {
                alive();
            }
        }
        match there.recv().await {
            Err(RecvError::Disconnected { .. }) => {}
            other => panic!("{other:?}"),
        }
    });
}

/// Several balls at a time, so that both sides are full now and empty then.
fn ping_pong<K: Tasks>(role: &'static str) {
    let scene = Scene::after(Smol::start);
    let game = Game {
        there: scene.address("there").to_string(),
        back: scene.address("back").to_string(),
        rounds: 5_000,
    };
    K::run(async {
        let mut there = K::publisher(publisher::<K>(&parse(&game.there)));
        let child = scene.spawn(role, &game);
        // Its subscription is this side's control work.
        there.wait_for_subscribers(1).await.unwrap();
        child.hear::<()>();
        let connecting = Subscriber::builder().begin_at(&parse(&game.back));
        let mut back = K::finish(connecting.unwrap()).await.unwrap();
        let mut buffer = vec![0; LONGEST];
        let mut expected = 0;
        for number in 0..game.rounds {
            let ball = &mut buffer[..length(number, LONGEST)];
            fill(number, ball);
            match number % 3 {
                0 => there.send(ball).await.unwrap(),
                1 => {
                    let mut place = there.reserve(ball.len()).await.unwrap();
                    place.copy_from_slice(ball);
                    place.commit();
                }
                _ => {
                    let mut loan = there.loan(ball.len()).await.unwrap();
                    loan.copy_from_slice(ball);
                    there.send_loan(loan).await.unwrap();
                }
            }
            while number - expected > number % 2 {
                check(expected, &back.recv().await.unwrap().to_vec());
                expected += 1;
            }
            if number % 256 == 0 {
                alive();
            }
        }
        while expected < game.rounds {
            check(expected, &back.recv().await.unwrap().to_vec());
            expected += 1;
        }
        drop(there);
        child.finish();
        match back.recv().await {
            Err(RecvError::Disconnected { .. }) => {}
            other => panic!("{other:?}"),
        };
    });
}

#[test]
fn there_and_back_with_the_control_thread() {
    ping_pong::<Control>("control");
}

#[test]
fn there_and_back_with_smol() {
    ping_pong::<Smol>("smol");
}

#[test]
fn there_and_back_with_tokio() {
    ping_pong::<Tokio>("tokio");
}

/// Uses a lane, and says which threads there are meanwhile that were not there before.
async fn started_by<K: Tasks>(
    mut publisher: Async<Publisher, K::Readiness>,
    address: &Address,
    before: &BTreeMap<String, String>,
    expected: &[&str],
) {
    let mut subscribers = Vec::new();
    for _ in 0..3 {
        let connecting = Subscriber::builder().begin_at(address).expect("a service");
        subscribers.push(K::finish(connecting).await.expect("a publisher"));
    }
    publisher
        .wait_for_subscribers(3)
        .await
        .expect("descriptors");
    publisher.send(b"to all").await.expect("room");
    for subscriber in &mut subscribers {
        let message = subscriber.recv().await.expect("a message").to_vec();
        assert_eq!(message, b"to all");
    }
    let mut started = Vec::new();
    wait_until("the threads are those expected", || {
        let mut now = threads();
        now.retain(|id, _| !before.contains_key(id));
        started = now.into_values().collect();
        started == expected
    });
}

fn count_threads<K: Tasks>(role: &Role) {
    let address: String = role.hear();
    let address = parse(&address);
    K::run(async {
        let before = threads();
        let publisher = K::publisher(publisher::<K>(&address));
        let expected: &[&str] = if K::DRIVES { &[] } else { &["memlane-control"] };
        started_by::<K>(publisher, &address, &before, expected).await;
        wait_until("the control thread is gone", || {
            threads().len() == before.len()
        });
    });
}

/// Without tokio, a task of the user's drives the publisher.
fn count_threads_of_smol(role: &Role) {
    let address: String = role.hear();
    let address = parse(&address);
    Smol::run(async {
        let before = threads();
        let publisher = Smol::publisher(publisher::<Tokio>(&address));
        let driver = pin!(publisher.driver(Smol::register).expect("a reactor"));
        let lane = pin!(started_by::<Smol>(publisher, &address, &before, &[]));
        match select(driver, lane).await {
            Either::Left(_) => panic!("the driver has ended before the publisher"),
            Either::Right(((), _)) => {}
        }
    });
}

/// Counted in a process of its own, where nobody else starts any.
#[test]
fn one_thread_or_none() {
    for role in ["threads of control", "threads of smol", "threads of tokio"] {
        let scene = Scene::after(Smol::start);
        let child = scene.spawn(role, &scene.address("lane").to_string());
        child.finish();
    }
}

/// An end in this process, over a link.
fn pair<K: Tasks>() -> (
    Async<Publisher, K::Readiness>,
    Async<Subscriber, K::Readiness>,
) {
    let (here, there) = Link::pair().unwrap();
    let publisher = unbound(page_size()).unbound().unwrap();
    publisher.attach(here).unwrap();
    let subscriber = Subscriber::builder().over(there).unwrap();
    (K::publisher(publisher), K::subscriber(subscriber))
}

/// Rung for the last message and told of the end at once, which wakes once: both are heard of.
fn the_end_is_not_missed<K: Tasks>() {
    let _scene = Scene::after(Smol::start);
    K::run(async {
        for messages in 1..20_u8 {
            let (mut publisher, mut subscriber) = pair::<K>();
            {
                // It has looked, and waits.
                let mut first = pin!(subscriber.recv());
                for _ in 0..messages {
                    assert!(poll_once(first.as_mut()).await.is_pending());
                    yield_now().await;
                }
                for number in 0..messages {
                    publisher.send(&[number]).await.unwrap();
                }
                drop(publisher);
                assert_eq!(first.await.unwrap().to_vec(), [0]);
            }
            for number in 1..messages {
                assert_eq!(subscriber.recv().await.unwrap().to_vec(), [number]);
            }
            let end = subscriber.recv().await.map(drop);
            assert!(
                matches!(end, Err(RecvError::Disconnected { .. })),
                "{end:?}"
            );
            alive();
        }
    });
}

#[test]
fn the_end_is_not_missed_by_the_control_thread() {
    the_end_is_not_missed::<Control>();
}

#[test]
fn the_end_is_not_missed_by_smol() {
    the_end_is_not_missed::<Smol>();
}

#[test]
fn the_end_is_not_missed_by_tokio() {
    the_end_is_not_missed::<Tokio>();
}

/// `Stream` and `Sink`, with more than there is room for.
fn stream_and_sink<K: Tasks>() {
    let _scene = Scene::after(Smol::start);
    K::run(async {
        let (publisher, subscriber) = pair::<K>();
        let sent = (0..1000_u64).map(|number| Ok(number.to_le_bytes().repeat(20)));
        let sending = async {
            let mut sink = publisher.into_sink();
            sink.send_all(&mut futures_util::stream::iter(sent))
                .await
                .unwrap();
            sink.feed(b"the last".to_vec()).await.unwrap();
            sink.close().await.unwrap();
            assert!(sink.get_mut().get_ref().stats().messages == 1001);
            let (publisher, message) = sink.into_parts();
            assert!(message.is_none());
            drop(publisher);
        };
        let received = subscriber
            .into_stream_of(|message| (message.len(), message.hold().unwrap()))
            .try_collect::<Vec<_>>();
        let ((), received) = futures_util::future::join(sending, received).await;
        let mut received = received.unwrap();
        let (len, last) = received.pop().unwrap();
        let mut bytes = [0; 8];
        last.read_at(0, &mut bytes);
        assert_eq!((len, &bytes), (8, b"the last"));
        assert_eq!(received.len(), 1000);
        for (number, (len, message)) in (0_u64..).zip(received) {
            message.read_at(152, &mut bytes);
            assert_eq!((len, bytes), (160, number.to_le_bytes()));
        }
        // Over is over.
        let (publisher, subscriber) = pair::<K>();
        drop(publisher);
        let mut messages = subscriber.into_stream();
        assert!(messages.next().await.is_none());
        assert!(messages.next().await.is_none());
    });
}

#[test]
fn streams_and_sinks_with_the_control_thread() {
    stream_and_sink::<Control>();
}

#[test]
fn streams_and_sinks_with_tokio() {
    stream_and_sink::<Tokio>();
}

/// A sink that is dropped, or not flushed, with a message in it has not sent it; one that cannot be sent is dropped.
#[test]
fn what_a_sink_keeps() {
    let _scene = Scene::after(Smol::start);
    Control::run(async {
        let (publisher, mut subscriber) = pair::<Control>();
        let mut sink = publisher.into_sink();
        sink.feed(b"one".to_vec()).await.unwrap();
        assert!(poll_and_drop(3, subscriber.recv()).await.is_none());
        let too_long = sink.get_ref().get_ref().max_message() + 1;
        sink.feed(vec![0; too_long]).await.unwrap();
        assert_eq!(subscriber.recv().await.unwrap().to_vec(), b"one");
        assert!(matches!(
            sink.flush().await,
            Err(memlane::SendError::TooLarge { .. })
        ));
        sink.flush().await.unwrap();
        sink.feed(b"kept".to_vec()).await.unwrap();
        let (publisher, kept) = sink.into_parts();
        assert_eq!(kept.as_deref(), Some(&b"kept"[..]));
        drop(publisher);
        let end = subscriber.recv().await.map(drop);
        assert!(matches!(end, Err(RecvError::Disconnected { .. })));
    });
}

/// Counts its wake-ups; what it keeps goes with it, or with the first of them.
struct Counting(AtomicU64, Mutex<Option<Async<Subscriber>>>);

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        drop(self.1.lock().unwrap().take());
    }
}

fn counting() -> (Arc<Counting>, Waker) {
    let counting = Arc::new(Counting(AtomicU64::new(0), Mutex::new(None)));
    (counting.clone(), Waker::from(counting))
}

/// A task that has moved to another executor is woken there, and only there.
#[test]
fn the_last_waker_is_woken() {
    let _scene = Scene::after(Smol::start);
    let (mut publisher, mut subscriber) = pair::<Control>();
    let ((first, one), (second, two)) = (counting(), counting());
    let (mut one, mut two) = (Context::from_waker(&one), Context::from_waker(&two));
    for number in 0..1000_u64 {
        // Readable for nothing, now and then.
        while subscriber.poll_recv(&mut one).is_ready() {}
        while subscriber.poll_recv(&mut two).is_ready() {}
        // The test has two of each; nobody else keeps the first.
        assert_eq!(Arc::strong_count(&first), 2);
        let woken = second.0.load(Ordering::SeqCst);
        publisher.get_mut().send(&number.to_le_bytes()).unwrap();
        wait_until("the second is woken", || {
            second.0.load(Ordering::SeqCst) > woken
        });
        loop {
            match subscriber.poll_recv(&mut two) {
                Poll::Ready(Ok(message)) => {
                    assert_eq!(message.to_vec(), number.to_le_bytes());
                    break;
                }
                Poll::Ready(Err(error)) => panic!("{error}"),
                Poll::Pending => std::thread::yield_now(),
            }
        }
    }
}

/// The last end goes in its own wake-up, on the control thread, which then ends and leaves nothing.
#[test]
fn the_control_thread_ends_by_its_own_hand() {
    let _scene = Scene::after(Smol::start);
    for _ in 0..5 {
        let before = Census::take();
        let (here, there) = Link::pair().unwrap();
        let mut publisher = unbound(page_size()).driven().unbound().unwrap();
        publisher.attach(here).unwrap();
        let connecting = Subscriber::builder().begin_over(there).unwrap();
        publisher.drive().unwrap();
        let mut subscriber = Control::run(Control::finish(connecting)).unwrap();
        let (counting, waker) = counting();
        while subscriber
            .poll_recv(&mut Context::from_waker(&waker))
            .is_ready()
        {}
        *counting.1.lock().unwrap() = Some(subscriber);
        publisher.send(b"wakes it").unwrap();
        wait_until("it was dropped", || counting.1.lock().unwrap().is_none());
        drop((publisher, waker, counting));
        wait_until("the thread is gone", || {
            !threads().values().any(|name| name == "memlane-control")
        });
        before.settle();
    }
}

/// Tasks that waited for subscribers and gave up are not kept.
#[test]
fn a_waker_is_not_kept() {
    let _scene = Scene::after(Smol::start);
    for driven in [false, true] {
        let builder = unbound(page_size());
        let builder = if driven { builder.driven() } else { builder };
        let mut publisher = Async::new(builder.unbound().unwrap()).unwrap();
        for _ in 0..100 {
            let (counting, waker) = counting();
            let mut waiting = Box::pin(publisher.wait_for_subscribers(1));
            let mut cx = Context::from_waker(&waker);
            assert!(waiting.as_mut().poll(&mut cx).is_pending());
            drop((waiting, waker));
            if !driven {
                assert_eq!(Arc::strong_count(&counting), 1);
            }
        }
    }
}

/// Nobody drives the publisher: whoever connects is told when the time is over, by any executor.
fn nobody_answers<K: Tasks>() {
    let scene = Scene::after(Smol::start);
    let address = scene.address("lane");
    K::run(async {
        let connecting = Subscriber::builder().begin_at(&address);
        match connecting.map(drop) {
            Err(Error::Link(error)) => assert!(error.to_string().contains("lane"), "{error}"),
            other => panic!("{other:?}"),
        }
        let idle = publisher::<Tokio>(&address);
        let limit = Duration::from_millis(20);
        let before = Instant::now();
        let connecting = Subscriber::builder().timeout(limit).begin_at(&address);
        match K::finish(connecting.unwrap()).await.map(drop) {
            Err(Error::NoAnswer { waited }) => assert_eq!(waited, limit),
            other => panic!("{other:?}"),
        }
        assert!(before.elapsed() >= limit);
        drop(idle);
    });
}

#[test]
fn nobody_answers_whoever_waits() {
    nobody_answers::<Control>();
    nobody_answers::<Smol>();
    nobody_answers::<Tokio>();
}

/// A place in a full backlog, which no descriptor tells of.
#[test]
fn a_full_backlog_is_waited_for() {
    let scene = Scene::after(Smol::start);
    let address = scene.address("lane");
    let full = publisher::<Tokio>(&address);
    let mut clients = Vec::new();
    while let Ok(link) = Link::try_connect(&address) {
        clients.push(link);
        assert!(clients.len() < 1 << 20, "no backlog is as long as that");
    }
    let limit = Duration::from_millis(20);
    let connecting = Subscriber::builder().timeout(limit).begin_at(&address);
    match Control::run(connecting.unwrap().finish()).map(drop) {
        Err(Error::NoAnswer { .. }) => {}
        other => panic!("{other:?}"),
    }
    let connecting = Subscriber::builder().begin_at(&address).unwrap();
    let mut finished = pin!(connecting.finish());
    let polled = Control::run(poll_once(finished.as_mut()));
    assert!(polled.is_pending());
    drop(clients);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            full.wait_for_subscribers(1).unwrap();
        });
        assert!(Control::run(finished).is_ok());
    });
}

/// A forked child of a process with a control thread has none: it starts its own, and leaves its parent's ends alone.
#[allow(unsafe_code)]
fn orphan(role: &Role) {
    let address: String = role.hear();
    let (mut publisher, mut subscriber) = pair::<Control>();
    while publisher.get_mut().try_send(&[0; 100]).is_ok() {}
    let child = {
        let mut sending = Box::pin(publisher.send(&[1; 100]));
        let (_counting, waker) = counting();
        assert!(
            sending
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        // SAFETY: none of this process's other threads holds a lock that the child takes: they sleep.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // The future, which has shown subscribers what it wants in memory that is not there any more.
            drop(sending);
            let mine = unbound(page_size())
                .bind_to(&parse(&address))
                .expect("a publisher");
            let connecting = Subscriber::builder()
                .begin_at(&parse(&address))
                .expect("a service");
            let connected = Control::run(connecting.finish()).is_ok();
            drop(mine);
            // SAFETY: it ends the child, which has nothing left to do.
            unsafe { libc::_exit(i32::from(!connected)) };
        }
        // The parent's is pending still.
        assert!(
            sending
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        child
    };
    let child = rustix::process::Pid::from_raw(child).expect("a child");
    let options = rustix::process::WaitOptions::empty();
    let (_, status) = rustix::process::waitpid(Some(child), options)
        .expect("a child")
        .expect("an end");
    assert_eq!(status.exit_status(), Some(0), "{status:?}");
    while subscriber.get_mut().try_recv().is_ok() {}
    Control::run(publisher.send(b"as before")).expect("room");
    let message = Control::run(subscriber.recv()).expect("a message").to_vec();
    assert_eq!(message, b"as before");
}

#[test]
fn a_forked_child_has_a_thread_of_its_own() {
    let scene = Scene::after(Smol::start);
    let child = scene.spawn("orphan", &scene.address("lane").to_string());
    child.finish();
}

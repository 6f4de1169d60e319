//! Lane ends in tokio runtimes: by name, with other tasks beside them, and in runtimes of all kinds.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use memlane::{
    Error, Link, RecvError, WaitPolicy,
    tokio::{Publisher, Subscriber},
};
use memlane_region::page_size;
use memlane_tests::{
    Census, PATIENCE, Part, Role, Scene, alive, check, fill, length, play, threads, unbound,
    wait_until,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::yield_now,
    time::timeout,
};

const ROLES: &[(&str, Part)] = &[("publisher", publisher), ("subscriber", subscriber)];

#[test]
fn other_process() {
    play(ROLES);
}

const MESSAGES: u64 = 3000;
const LONGEST: usize = 64 << 10;

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn runtimes() -> [Runtime; 2] {
    let several = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    [one_thread(), several.unwrap()]
}

/// Failing takes a minute, succeeding no longer than it must.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("still waiting for: {what}"),
    }
}

/// As in README.md.
fn publisher(role: &Role) {
    one_thread().block_on(async {
        let before = threads().len();
        let mut publisher = Publisher::bind("camera").expect("a service");
        role.tell(&());
        publisher
            .wait_for_subscribers(2)
            .await
            .expect("descriptors");
        let mut buffer = vec![0; LONGEST];
        for number in 0..MESSAGES {
            let message = &mut buffer[..length(number, LONGEST)];
            fill(number, message);
            publisher.send(message).await.expect("room");
            if number.is_multiple_of(256) {
                alive();
            }
        }
        // All have left before this returns.
        while publisher.get_ref().subscribers() > 0 {
            yield_now().await;
        }
        assert_eq!(threads().len(), before);
    });
}

fn subscriber(role: &Role) {
    one_thread().block_on(async {
        let before = threads().len();
        let mut camera = Subscriber::connect("camera").await.expect("a publisher");
        for number in 0..MESSAGES {
            let message = camera.recv().await.expect("a message").to_vec();
            check(number, &message);
            if number.is_multiple_of(256) {
                alive();
            }
        }
        assert_eq!(threads().len(), before);
    });
    role.tell(&());
}

#[test]
fn by_name_between_processes() {
    let scene = Scene::new();
    let publisher = scene.spawn("publisher", &());
    publisher.hear::<()>();
    let subscribers = [
        scene.spawn("subscriber", &()),
        scene.spawn("subscriber", &()),
    ];
    for subscriber in subscribers {
        subscriber.hear::<()>();
        subscriber.finish();
    }
    publisher.finish();
}

/// A lane in this process; the publisher is on a thread that never stops sending.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flood {
    fn start() -> (Flood, memlane::Subscriber) {
        let (here, there) = Link::pair().unwrap();
        let mut publisher = unbound(16 * page_size()).unbound().unwrap();
        publisher.attach(here).unwrap();
        let subscriber = memlane::Subscriber::builder().over(there).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let _ = publisher.send_timeout(b"a drop", Duration::from_millis(1));
            }
        });
        let thread = Some(thread);
        (Flood { stop, thread }, subscriber)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The ring always has a message: tasks beside the one that receives get their turns all the same.
#[test]
fn a_flood_leaves_others_their_turns() {
    let _scene = Scene::new();
    for runtime in runtimes() {
        let (_flood, subscriber) = Flood::start();
        runtime.block_on(async {
            let turns = Arc::new(AtomicU64::new(0));
            let counted = turns.clone();
            let other = tokio::spawn(async move {
                loop {
                    counted.fetch_add(1, Ordering::Relaxed);
                    yield_now().await;
                }
            });
            let mut subscriber = Subscriber::register(subscriber).unwrap();
            // No other await gives way.
            for _ in 0..20_000 {
                drop(subscriber.recv().await.unwrap());
            }
            alive();
            // One for each budget of 128 would be 156.
            let turns = turns.load(Ordering::Relaxed);
            assert!(turns > 50, "{turns} turns in 20000 messages");
            other.abort();
        });
    }
}

/// Two of them in one task, both with more than can be received.
#[test]
fn two_floods_in_one_task() {
    let _scene = Scene::new();
    for runtime in runtimes() {
        let ((_one, first), (_two, second)) = (Flood::start(), Flood::start());
        runtime.block_on(async {
            let mut first = Subscriber::register(first).unwrap();
            let mut second = Subscriber::register(second).unwrap();
            let (mut of_first, mut of_second) = (0_u32, 0_u32);
            for _ in 0..20_000 {
                tokio::select! {
                    message = first.recv() => { drop(message.unwrap()); of_first += 1 }
                    message = second.recv() => { drop(message.unwrap()); of_second += 1 }
                }
            }
            alive();
            assert!(
                of_first > 2000 && of_second > 2000,
                "{of_first} and {of_second}"
            );
        });
    }
}

/// And beside another source, first come first served (`biased`).
#[test]
fn a_flood_beside_a_channel() {
    let _scene = Scene::new();
    for runtime in runtimes() {
        let (_flood, subscriber) = Flood::start();
        runtime.block_on(async {
            let mut subscriber = Subscriber::register(subscriber).unwrap();
            let (stop, mut stopped) = oneshot::channel();
            tokio::spawn(async move {
                for _ in 0..10 {
                    yield_now().await;
                }
                stop.send(()).unwrap();
            });
            let stopped = soon("the channel", async {
                loop {
                    tokio::select! {
                        biased;
                        message = subscriber.recv() => drop(message.unwrap()),
                        stopped = &mut stopped => break stopped,
                    }
                }
            });
            stopped.await.unwrap();
        });
    }
}

#[test]
fn whom_nobody_answers() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let options = || memlane::Subscriber::builder().timeout(Duration::from_millis(20));
    for runtime in runtimes() {
        let nobody = options().begin_at(&address).map(drop);
        assert!(matches!(nobody, Err(Error::Link(_))), "{nobody:?}");
        let silent = unbound(page_size()).driven().bind_to(&address).unwrap();
        runtime.block_on(async {
            let others = tokio::spawn(async {
                for _ in 0..100 {
                    yield_now().await;
                }
            });
            let answer = Subscriber::finish(options().begin_at(&address).unwrap()).await;
            match answer.map(drop) {
                Err(Error::NoAnswer { waited }) => assert_eq!(waited.as_millis(), 20),
                other => panic!("{other:?}"),
            }
            assert!(others.is_finished());
        });
        drop(silent);
        // One that is full says so, though it was never asked to wait.
        let full = unbound(page_size()).max_subscribers(0);
        let full = full.bind_to(&address).unwrap();
        runtime.block_on(async {
            let answer = Subscriber::finish(options().begin_at(&address).unwrap()).await;
            assert!(matches!(answer.map(drop), Err(Error::Refused { .. })));
        });
        drop(full);
        // A publisher that goes in the middle of the handshake.
        let going = unbound(page_size()).driven().bind_to(&address).unwrap();
        runtime.block_on(async {
            let connecting = memlane::Subscriber::builder().begin_at(&address).unwrap();
            drop(going);
            let answer = soon("the end", Subscriber::finish(connecting)).await;
            match answer.map(drop) {
                Err(Error::HungUp) => {}
                other => panic!("{other:?}"),
            }
        });
    }
}

/// What a publisher had is given back when it is dropped, though nobody runs the task that drove it.
#[test]
fn a_runtime_that_rests_keeps_no_memory() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let runtime = one_thread();
    let before = Census::take();
    let mut publisher = runtime.block_on(async {
        let made = unbound(page_size()).driven().bind_to(&address);
        let mut publisher = Publisher::register(made.unwrap()).unwrap();
        let connecting = memlane::Subscriber::builder().begin_at(&address).unwrap();
        let mut subscriber = Subscriber::finish(connecting).await.unwrap();
        publisher.send(b"one").await.unwrap();
        assert_eq!(subscriber.recv().await.unwrap().to_vec(), b"one");
        publisher
    });
    publisher.get_mut().try_send(b"outside").unwrap();
    drop(publisher);
    // But for the descriptor that the task waits for.
    wait_until("all is given back", || {
        Census::take().descriptors() <= before.descriptors() + 1
            && Census::take().regions() == before.regions()
    });
    runtime.block_on(yield_now());
    before.settle();
}

/// Out of the runtime, it is the user's to drive again; in another one, it goes on.
#[test]
fn from_runtime_to_runtime() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut publisher = unbound(page_size())
        .wait(WaitPolicy::Block)
        .driven()
        .bind_to(&address)
        .unwrap();
    for runtime in runtimes() {
        publisher = runtime.block_on(async {
            let mut publisher = Publisher::register(publisher).unwrap();
            let begin = || memlane::Subscriber::builder().begin_at(&address).unwrap();
            let mut first = Subscriber::finish(begin()).await.unwrap();
            let mut second = Subscriber::finish(begin()).await.unwrap();
            for number in 0..500_u64 {
                let message = number.to_le_bytes().repeat(8);
                let sending = publisher.send(&message);
                let receiving = async {
                    assert_eq!(first.recv().await.unwrap().to_vec(), message);
                    assert_eq!(second.recv().await.unwrap().to_vec(), message);
                };
                let (sent, ()) = tokio::join!(sending, receiving);
                sent.unwrap();
            }
            drop((first, second));
            publisher.into_inner()
        });
        alive();
        let connecting = memlane::Subscriber::builder().begin_at(&address).unwrap();
        publisher.drive().unwrap();
        let mut subscriber = runtime.block_on(Subscriber::finish(connecting)).unwrap();
        publisher.send(b"blocking").unwrap();
        let received = runtime.block_on(async { subscriber.recv().await.unwrap().to_vec() });
        assert_eq!(received, b"blocking");
        drop(subscriber);
        publisher.drive().unwrap();
    }
}

/// Both ends in tasks of several threads, with a full ring all the time, and subscribers that come and go.
#[test]
fn who_comes_and_goes_holds_up_nobody() {
    let scene = Scene::new();
    let address = scene.address("lane");
    for runtime in runtimes() {
        runtime.block_on(async {
            let made = unbound(page_size()).driven().bind_to(&address);
            let mut publisher = Publisher::register(made.unwrap()).unwrap();
            let reader = |turns: u64| {
                let address = address.clone();
                tokio::spawn(async move {
                    for turn in 0..turns {
                        let connecting = memlane::Subscriber::builder().begin_at(&address);
                        let mut subscriber = Subscriber::finish(connecting.unwrap()).await.unwrap();
                        let mut next = None;
                        for _ in 0..turn * 7 % 50 {
                            let number = memlane_tests::number(&subscriber.recv().await?.to_vec());
                            assert_eq!(*next.get_or_insert(number), number);
                            next = Some(number + 1);
                        }
                        alive();
                    }
                    Ok::<(), RecvError>(())
                })
            };
            let readers = [reader(60), reader(60), reader(60)];
            let mut number = 0_u64;
            while !readers.iter().all(|reader| reader.is_finished()) {
                let message = number.to_le_bytes().repeat(8);
                soon("room", publisher.send(&message)).await.unwrap();
                number += 1;
                yield_now().await;
            }
            for reader in readers {
                reader.await.unwrap().unwrap();
            }
        });
    }
}

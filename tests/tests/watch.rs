//! The newest value of a process, for others that look at it or wait for a newer one.

use std::{thread, time::Duration};

use memlane::{
    Address, Async, Client, Encoded, Error, Link, Plain, ReadError, Reason, Sender, Subscriber,
    WatchError, WatchReceiver, WatchSender, Watched,
    transport::{Access, Listener},
};
use memlane_region::{Shared, latest::ring_len, page_size};
use memlane_tests::{
    Control, PATIENCE, Policy, Role, Scene, Smol, Tasks, Tokio, check, fill, play, rounds,
    thread_id, wait_asleep, wait_stopped, wait_until, wire,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::Signal,
};

#[test]
fn other_process() {
    play(&[
        ("sender", sender),
        ("echo", echo),
        ("receiver", receiver),
        ("flood", flood),
    ]);
}

fn bind(address: &Address) -> WatchSender {
    WatchSender::builder().bind_to(address).unwrap()
}

fn connect(address: &Address) -> WatchReceiver {
    WatchReceiver::builder().connect_to(address).unwrap()
}

/// Sends two values, and ends as it is told.
fn sender(role: &Role) {
    let address: String = role.hear();
    let mut sender = bind(&address.parse().unwrap());
    sender.send(b"first").unwrap();
    role.tell(&thread_id());
    let () = role.hear();
    sender.send(b"last").unwrap();
    role.tell(&());
    let end: String = role.hear();
    match &*end {
        "close" => sender.close(),
        "panic" => {
            let panicked = thread::spawn(move || {
                let _sender = sender;
                panic!("as it is told");
            });
            assert!(panicked.join().is_err());
        }
        "send" => {
            sender.send(b"another").unwrap();
            let () = role.hear();
        }
        _ => unreachable!("it is killed"),
    }
}

#[test]
fn whoever_comes_late_has_the_newest_value_at_once() {
    let scene = Scene::new();
    let address = scene.address("pose");
    let mut sender = bind(&address);
    let mut first = connect(&address);
    assert!(!first.is_changed() && !first.try_changed().unwrap());
    assert_eq!(first.get().unwrap(), None);
    for number in 1..=5_u64 {
        assert_eq!(sender.send(&number.to_ne_bytes()).unwrap(), number);
    }
    let mut second = connect(&address);
    for receiver in [&mut first, &mut second] {
        receiver.changed().unwrap();
        let mut value = [0; 8];
        let update = receiver.get_into(&mut value).unwrap().unwrap();
        assert_eq!((update.sequence, update.len), (5, 8));
        assert_eq!(value, 5_u64.to_ne_bytes());
        assert!(!receiver.is_changed());
        // It can be looked at again.
        assert_eq!(receiver.get().unwrap().unwrap(), value);
    }
    assert_eq!(sender.receivers(), 2);
    let error = sender.send(&[0; 1009]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "expected a value of at most 1008 bytes, got one of 1009"
    );
    sender
        .send_with(3, |value| value.copy_from_slice(b"abc"))
        .unwrap();
    let error = first.get_into(&mut [0; 2]).unwrap_err();
    assert!(matches!(error, WatchError::Value(ReadError::Length { .. })));
    assert_eq!(first.get().unwrap().unwrap(), b"abc");
    drop(first);
    wait_until("one has left", || sender.receivers() == 1);
}

#[test]
fn a_sender_that_ends_leaves_its_last_value_and_says_why() {
    let scene = Scene::new();
    let address = scene.address("pose");
    for end in ["kill", "close", "panic"] {
        let child = scene.spawn("sender", &address.to_string());
        let _thread: u32 = child.hear();
        let mut receiver = connect(&address);
        assert_eq!(receiver.get().unwrap().unwrap(), b"first");
        child.tell(&());
        let () = child.hear();
        receiver.changed().unwrap();
        let mut value = Vec::new();
        let me = thread_id();
        let ending = thread::spawn(move || {
            wait_asleep(std::process::id(), me);
            match end {
                "kill" => child.kill_and_reap(),
                end => {
                    child.tell(&end);
                    child.finish();
                }
            }
        });
        // What was there before the end counts, whenever the end is noticed.
        let reason = loop {
            match receiver.changed() {
                Ok(()) => value = receiver.get().unwrap().unwrap(),
                Err(WatchError::Disconnected { reason }) => break reason,
                Err(error) => panic!("{error}"),
            }
        };
        ending.join().unwrap();
        let expected = match end {
            "kill" => Reason::Died,
            "close" => Reason::Closed,
            _ => Reason::Panicked,
        };
        assert_eq!(reason, expected);
        assert_eq!(value, b"last");
        assert_eq!(receiver.get().unwrap().unwrap(), b"last");
        let error = receiver.try_changed().unwrap_err();
        assert!(matches!(error, WatchError::Disconnected { .. }));
        drop(receiver);
        let _ = memlane::transport::remove_stale(&address);
    }
}

#[test]
fn a_sender_that_is_stopped_is_not_dead() {
    let scene = Scene::new();
    let address = scene.address("pose");
    let child = scene.spawn("sender", &address.to_string());
    let thread: u32 = child.hear();
    let mut receiver = connect(&address);
    assert_eq!(receiver.get().unwrap().unwrap(), b"first");
    child.tell(&());
    let () = child.hear();
    receiver.changed().unwrap();
    assert_eq!(receiver.get().unwrap().unwrap(), b"last");
    child.signal(Signal::STOP);
    wait_stopped(child.id(), thread);
    let error = receiver.changed_timeout(Duration::from_millis(5));
    assert!(matches!(error, Err(WatchError::TimedOut)), "{error:?}");
    assert_eq!(receiver.get().unwrap().unwrap(), b"last");
    child.tell(&"send");
    child.signal(Signal::CONT);
    receiver.changed().unwrap();
    assert_eq!(receiver.get().unwrap().unwrap(), b"another");
    child.tell(&());
    child.finish();
}

/// Answers each value with one of its own.
fn echo(role: &Role) {
    let (theirs, mine, wait): (String, String, Policy) = role.hear();
    let mut sender = bind(&mine.parse().unwrap());
    role.tell(&());
    let builder = WatchReceiver::builder().wait(wait.into());
    let mut receiver = builder.connect_to(&theirs.parse().unwrap()).unwrap();
    role.tell(&());
    let mut value = [0; 64];
    loop {
        match receiver.changed() {
            Ok(()) => {}
            Err(WatchError::Disconnected { .. }) => return,
            Err(error) => panic!("{error}"),
        }
        let update = receiver.get_into(&mut value).unwrap().unwrap();
        sender.send(&value[..update.len]).unwrap();
        if update.sequence.is_multiple_of(1024) {
            memlane_tests::alive();
        }
    }
}

#[test]
fn no_wake_up_is_lost() {
    let scene = Scene::new();
    for wait in [Policy::Block, Policy::Adaptive, Policy::Poll] {
        let (ours, theirs) = (scene.address("ping"), scene.address("pong"));
        let mut sender = bind(&ours);
        let names = (ours.to_string(), theirs.to_string(), wait);
        let child = scene.spawn("echo", &names);
        let () = child.hear();
        let builder = WatchReceiver::builder().wait(wait.into());
        let mut receiver = builder.connect_to(&theirs).unwrap();
        let () = child.hear();
        for number in 1..=rounds(3_000) {
            let mut value = [0; 64];
            fill(number, &mut value);
            sender.send(&value).unwrap();
            receiver.changed().unwrap();
            let mut echoed = [0; 64];
            let update = receiver.get_into(&mut echoed).unwrap().unwrap();
            assert_eq!((update.sequence, update.len), (number, 64));
            check(number, &echoed);
            if number % 1024 == 0 {
                memlane_tests::alive();
            }
        }
        if wait == Policy::Block {
            assert!(receiver.stats().wakeups > 0);
        }
        drop(sender);
        drop(receiver);
        child.finish();
    }
}

/// Watches until the sender closes, slowly: what it sees is newer each time, and whole.
fn receiver(role: &Role) {
    let address: String = role.hear();
    let mut receiver = connect(&address.parse().unwrap());
    role.tell(&thread_id());
    let (mut last, mut value) = (0, [0; 500]);
    loop {
        match receiver.changed() {
            Ok(()) => {}
            Err(WatchError::Disconnected { .. }) => break,
            Err(error) => panic!("{error}"),
        }
        let update = match receiver.get_into(&mut value) {
            Ok(update) => update.unwrap(),
            // By a sender that is too fast for this once.
            Err(WatchError::Value(ReadError::Unstable { .. })) => continue,
            Err(error) => panic!("{error}"),
        };
        assert!(update.sequence > last);
        last = update.sequence;
        check(last, &value[..update.len]);
        memlane_tests::alive();
    }
    role.tell(&last);
}

#[test]
fn receivers_that_are_slow_stopped_or_killed_are_not_waited_for() {
    let scene = Scene::new();
    let address = scene.address("pose");
    let mut sender = bind(&address);
    let [slow, stopped, killed] = [(); 3].map(|()| scene.spawn("receiver", &address.to_string()));
    let _slow: u32 = slow.hear();
    let thread: u32 = stopped.hear();
    let _killed: u32 = killed.hear();
    wait_until("all are there", || sender.receivers() == 3);
    let mut value = [0; 500];
    for number in 1..=20_000_u64 {
        let len = 8 + (number % 490) as usize;
        fill(number, &mut value[..len]);
        assert_eq!(sender.send(&value[..len]).unwrap(), number);
        match number {
            1_000 => stopped.signal(Signal::STOP),
            2_000 => wait_stopped(stopped.id(), thread),
            3_000 => killed.kill(),
            _ => {}
        }
    }
    killed.kill_and_reap();
    wait_until("the killed one is gone", || sender.receivers() == 2);
    stopped.signal(Signal::CONT);
    sender.close();
    for child in [slow, stopped] {
        // The last value is seen by everybody.
        assert_eq!(child.hear::<u64>(), 20_000);
        child.finish();
    }
}

/// Sends as fast as it can.
fn flood(role: &Role) {
    let address: String = role.hear();
    let builder = WatchSender::builder().max_len(4096);
    let mut sender = builder.bind_to(&address.parse().unwrap()).unwrap();
    role.tell(&());
    let mut value = [0; 4096];
    let mut number = 0;
    while role.has_said::<()>().is_none() {
        for _ in 0..1000 {
            number += 1;
            fill(number, &mut value);
            sender.send(&value).unwrap();
        }
    }
}

#[test]
fn no_value_is_ever_torn_or_older() {
    let scene = Scene::new();
    let address = scene.address("pose");
    let child = scene.spawn("flood", &address.to_string());
    let () = child.hear();
    let mut receiver = connect(&address);
    let (mut last, mut value, mut seen) = (0, [0; 4096], 0);
    while seen < 20_000 {
        receiver.changed().unwrap();
        match receiver.get_into(&mut value) {
            Ok(update) => {
                let update = update.unwrap();
                assert!(update.sequence > last);
                last = update.sequence;
                check(last, &value[..update.len]);
                seen += 1;
            }
            Err(WatchError::Value(ReadError::Unstable { .. })) => {}
            Err(error) => panic!("{error}"),
        }
        if seen % 1000 == 0 {
            memlane_tests::alive();
        }
    }
    child.tell(&());
    child.finish();
}

#[test]
fn values_are_compared_and_seen() {
    let scene = Scene::new();
    let address = scene.address("pose");
    let builder = WatchSender::builder().of::<Plain<[f64; 3]>>();
    let mut sender = builder.bind_to(&address).unwrap();
    assert_eq!(sender.get_ref().max_len(), 24);
    let builder = WatchReceiver::builder().of::<Plain<[f64; 3]>>();
    let mut receiver = builder.connect_to(&address).unwrap();
    assert_eq!(receiver.get().unwrap(), None);
    sender.send(&[1.0, 2.0, 0.5]).unwrap();
    receiver.changed().unwrap();
    assert_eq!(receiver.get().unwrap(), Some([1.0, 2.0, 0.5]));
    let error = connect_error(&address);
    assert_eq!(
        error,
        "the publisher refused this subscriber: it carries plain [f64; 3] (24 bytes, aligned to 8); this subscriber expects \
         bytes"
    );
    drop(sender);

    let builder = WatchSender::builder().of::<Encoded<Vec<String>>>();
    let mut sender = builder.version(3).bind_to(&address).unwrap();
    let builder = WatchReceiver::builder().of::<Encoded<Vec<String>>>();
    let error = builder.clone_of().connect_to(&address).unwrap_err();
    assert!(error.to_string().contains("version 3"), "{error}");
    let mut receiver = builder.version(3).connect_to(&address).unwrap();
    sender.send(&vec!["one".to_owned()]).unwrap();
    assert_eq!(receiver.get().unwrap().unwrap(), ["one"]);
    let error = sender.send(&vec!["x".repeat(2000)]).unwrap_err();
    assert!(
        error.to_string().starts_with("the value cannot be encoded"),
        "{error}"
    );
}

trait CloneOf {
    fn clone_of(&self) -> Self;
}

impl CloneOf for memlane::Typed<memlane::WatchReceiverBuilder, Encoded<Vec<String>>> {
    fn clone_of(&self) -> Self {
        self.get_ref().clone().of()
    }
}

fn connect_error(address: &Address) -> String {
    let error = WatchReceiver::builder().connect_to(address).unwrap_err();
    error.to_string()
}

#[test]
fn the_wrong_counterpart_is_told_what_is_there() {
    let scene = Scene::new();
    let address = scene.address("pose");
    let sender = bind(&address);
    let watch = "a latest value is there: watch it (WatchReceiver::connect)";
    let error = Subscriber::builder().connect_to(&address).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the publisher refused this subscriber: {watch}")
    );
    let error = memlane::Publisher::builder().connect_to(&address);
    let error: Result<Sender, Error> = error;
    assert_eq!(
        error.unwrap_err().to_string(),
        format!("there is no receiver to send to: {watch}")
    );
    let error = Client::builder().connect_to(&address).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("there is no server to call: {watch}")
    );
    assert_eq!(sender.refused(), 3);
    drop(sender);

    let publisher = memlane::Publisher::builder().bind_to(&address).unwrap();
    assert_eq!(
        connect_error(&address),
        "the publisher refused this subscriber: a publisher is there, which sends: subscribe to it (Subscriber::connect)"
    );
    drop(publisher);

    let sender = WatchSender::builder()
        .max_receivers(1)
        .max_len(1 << 20)
        .bind_to(&address)
        .unwrap();
    let first = connect(&address);
    assert_eq!(
        connect_error(&address),
        "the publisher refused this subscriber: it has 1 subscribers, and takes no more"
    );
    drop(first);
    wait_until("its place is free", || sender.receivers() == 0);
    let short = WatchReceiver::builder().max_len(1000);
    let error = short.connect_to(&address).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the publisher's welcome makes no sense: expected values of at most 1000 bytes (WatchReceiverBuilder::max_len), got up \
         to 1048576"
    );
}

/// A sender that is made by hand: what it has in memory is up to the test.
fn by_hand(
    address: &Address,
    capacity: u64,
    write: impl FnOnce(&mut Shared) + Send + 'static,
) -> thread::JoinHandle<Link> {
    let listener = Listener::bind_with(address, Access::SameUser).unwrap();
    thread::spawn(move || {
        let link = listener.accept().unwrap();
        let version = wire::VERSION;
        link.send(&wire::Opening { version }).unwrap();
        let opening: wire::Opening = link.recv().unwrap();
        assert_eq!(opening.version, version);
        let _greeting: wire::Greeting = link.recv().unwrap();
        let (mut memory, ring) =
            Shared::create("by-hand", page_size(), ring_len(24).unwrap()).unwrap();
        write(&mut memory);
        let welcome = wire::Welcome {
            rings: wire::Rings::Socket,
            doorbell: wire::Bell::None,
            ..wire::Welcome::new(ring.into(), capacity)
        };
        link.send(&wire::Answer::Welcome(welcome)).unwrap();
        drop(listener);
        link
    })
}

#[test]
fn nonsense_in_memory_is_an_error() {
    let scene = Scene::new();
    let address = scene.address("pose");
    // Larger than the memory that is there.
    let hostile = by_hand(&address, 1 << 20, |_| {});
    let error = WatchReceiver::builder().connect_to(&address).unwrap_err();
    assert!(matches!(error, Error::Region(_)), "{error:?}");
    hostile.join().unwrap();
    for capacity in [u64::MAX, 1 << 62] {
        let hostile = by_hand(&address, capacity, |_| {});
        let error = WatchReceiver::builder().connect_to(&address).unwrap_err();
        assert!(matches!(error, Error::Welcome { .. }), "{error:?}");
        hostile.join().unwrap();
    }
    // A length that no value has.
    let hostile = by_hand(&address, 24, |memory| {
        use memlane_region::WordsMut;
        memory.store(128 + 8, 25);
        memory.store_release(128, 1 << 1);
    });
    let mut receiver = connect(&address);
    let error = receiver.get().unwrap_err();
    assert!(
        matches!(
            error,
            WatchError::Value(ReadError::Corrupt { len: 25, max: 24 })
        ),
        "{error:?}"
    );
    let link = hostile.join().unwrap();
    drop((receiver, link));
    // What is no farewell is nonsense, too.
    let hostile = by_hand(&address, 24, |_| {});
    let mut receiver = connect(&address);
    let link = hostile.join().unwrap();
    link.send(&wire::Notice::Removed { id: 3 }).unwrap();
    drop(link);
    let error = receiver.changed().unwrap_err();
    assert!(
        matches!(&error, WatchError::Disconnected { reason: Reason::Broken { why } }
            if why == "expected a farewell, got Removed { id: 3 }"),
        "{error:?}"
    );
    // A number that is in the wrong place, and one that no update reaches.
    for word in [2 << 1, u64::MAX - 1] {
        drop(receiver);
        let hostile = by_hand(&address, 24, move |memory| {
            use memlane_region::WordsMut;
            memory.store_release(128, word);
        });
        receiver = connect(&address);
        let error = receiver.get().unwrap_err();
        assert!(
            matches!(error, WatchError::Value(ReadError::Unstable { .. })),
            "{error:?}"
        );
        hostile.join().unwrap();
    }
}

#[test]
fn another_version_is_told_from_ours() {
    let scene = Scene::new();
    let address = scene.address("pose");
    let listener = Listener::bind_with(&address, Access::SameUser).unwrap();
    let future = thread::spawn(move || {
        let link = listener.accept().unwrap();
        let version = wire::VERSION + 1;
        link.send(&wire::Opening { version }).unwrap();
        let opening: wire::Opening = link.recv().unwrap();
        assert_eq!(opening.version, wire::VERSION);
    });
    let error = WatchReceiver::builder().connect_to(&address).unwrap_err();
    assert!(matches!(error, Error::Version { .. }), "{error:?}");
    future.join().unwrap();

    let sender = bind(&address);
    let link = Link::connect_with(&address, Access::SameUser).unwrap();
    let version = wire::VERSION - 1;
    link.send(&wire::Opening { version }).unwrap();
    let opening: wire::Opening = link.recv_timeout(PATIENCE).unwrap();
    assert_eq!(opening.version, wire::VERSION);
    wait_until("it is refused", || sender.refused() == 1);
}

fn pair() -> (WatchSender, WatchReceiver) {
    let (ours, theirs) = Link::pair().unwrap();
    let sender = WatchSender::builder().unbound().unwrap();
    sender.attach(ours).unwrap();
    let receiver = WatchReceiver::builder().over(theirs).unwrap();
    (sender, receiver)
}

#[test]
fn in_a_loop() {
    let _scene = Scene::new();
    let (mut sender, receiver) = pair();
    let mut receiver = Watched::new(receiver).unwrap();
    let readable = |receiver: &Watched<WatchReceiver>| {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(receiver, PollFlags::IN)], Some(&now)).unwrap() == 1
    };
    for round in 1..200_u64 {
        while receiver.try_changed().unwrap() {
            receiver.get().unwrap();
        }
        assert!(!readable(&receiver), "round {round}");
        for _ in 0..=round % 3 {
            sender.send(&round.to_ne_bytes()).unwrap();
        }
        assert!(readable(&receiver), "round {round}");
        assert!(receiver.try_changed().unwrap());
        assert_eq!(receiver.get().unwrap().unwrap(), round.to_ne_bytes());
    }
    let me = thread_id();
    let sending = thread::spawn(move || {
        wait_asleep(std::process::id(), me);
        sender.send(b"the last one").unwrap();
    });
    // The blocking form of one that is watched sleeps.
    receiver.changed().unwrap();
    assert_eq!(receiver.get().unwrap().unwrap(), b"the last one");
    sending.join().unwrap();
    wait_until("the end is noticed", || match receiver.try_changed() {
        Ok(changed) => {
            assert!(!changed);
            poll(&mut [PollFd::new(&receiver, PollFlags::IN)], None).unwrap();
            false
        }
        Err(WatchError::Disconnected { reason }) => {
            assert_eq!(reason, Reason::Closed);
            true
        }
        Err(error) => panic!("{error}"),
    });
}

fn in_tasks<K: Tasks>() {
    let (mut sender, receiver) = pair();
    let (mut back, answers) = pair();
    let mut answers = answers;
    let sending = thread::spawn(move || {
        for number in 1..=500_u64 {
            sender.send(&number.to_ne_bytes()).unwrap();
            answers.changed().unwrap();
            assert_eq!(answers.get().unwrap().unwrap(), number.to_ne_bytes());
        }
    });
    K::run(async {
        let mut receiver = K::watch(receiver);
        loop {
            match receiver.changed().await {
                Ok(()) => {}
                Err(WatchError::Disconnected { .. }) => break,
                Err(error) => panic!("{error}"),
            }
            let value = receiver.get_mut().get().unwrap().unwrap();
            back.send(&value).unwrap();
        }
    });
    sending.join().unwrap();
}

#[test]
fn in_tasks_of_any_executor() {
    let _scene = Scene::after(Smol::start);
    in_tasks::<Control>();
    in_tasks::<Smol>();
    in_tasks::<Tokio>();
    // And of values.
    let (ours, theirs) = Link::pair().unwrap();
    let sender = WatchSender::builder().of::<Plain<u64>>();
    let mut sender = sender.unbound().unwrap();
    sender.get_ref().attach(ours).unwrap();
    let receiver = WatchReceiver::builder().of::<Plain<u64>>();
    let receiver = receiver.over(theirs).unwrap();
    let mut receiver = receiver.try_map(Async::new).unwrap();
    sender.send(&7).unwrap();
    Control::run(async {
        receiver.changed().await.unwrap();
        assert_eq!(receiver.get().unwrap(), Some(7));
    });
}

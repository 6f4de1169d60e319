//! How its lanes end, or do not begin.

use std::{
    fs,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::atomic::Ordering,
    thread::{self},
    time::Duration,
};

use memlane::{
    Address, Encoded, Link, Publisher, Reason, RecvError, RecvTimeoutError, Subscriber,
    transport::remove_stale,
};
use memlane_region::{Remote, Shared, page_size};
use memlane_tests::{
    PATIENCE, Policy, Role, Scene, thread_id, unbound, wait_asleep, wait_stopped, wait_until,
    wire::{
        ARMED, Answer, CURSOR, Farewell, Greeting, Notice, Offer, Opening, Refusal, VERSION,
        Welcome, of_the_future,
    },
};
use memlane_transport::{Fd, Listener};
use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    net::{Shutdown, shutdown},
    process::Signal,
};

use crate::program::{Python, bind, check, message, python};

/// Sends to one subscriber, and is killed.
pub(crate) fn publisher(role: &Role) {
    let address: String = role.hear();
    let mut publisher = unbound(1 << 14).bind_to(&address.parse().unwrap()).unwrap();
    role.tell(&());
    publisher.wait_for_subscribers(1).unwrap();
    (0..10).for_each(|number| publisher.send(&message(number)).unwrap());
    role.tell(&());
    let () = role.hear();
    unreachable!("it is killed");
}

#[test]
fn either_side_is_killed() {
    let scene = Scene::new();
    if !python() {
        return;
    }
    let address = scene.address("lane");
    // The publisher.
    let child = scene.spawn("publisher", &address.to_string());
    let () = child.hear();
    let python = Python::start("subscribe", &address, &[]);
    python.says("subscribed");
    let () = child.hear();
    child.kill_and_reap();
    (0..10).for_each(|number| python.has(&message(number)));
    python.says("ended died");
    python.slept();
    python.finish();
    remove_stale(&address).unwrap();

    // The subscriber, which the publisher waits for.
    let mut publisher = bind(&scene, Policy::Block);
    let python = Python::start("subscribe", &address, &[]);
    publisher.wait_for_subscribers(1).unwrap();
    python.says("subscribed");
    python.signal(Signal::STOP);
    wait_stopped(python.id(), python.id());
    while publisher.try_send(&[7; 100]).is_ok() {}
    let me = thread_id();
    let killer = thread::spawn(move || {
        wait_asleep(std::process::id(), me);
        python.kill();
    });
    publisher.send(&[7; 100]).unwrap();
    killer.join().unwrap();
    wait_until("it has left", || publisher.stats().left == 1);
    drop(publisher);

    // It, as a publisher.
    let mut python = Python::start("publish", &address, &[]);
    python.says("bound");
    let mut subscriber = Subscriber::builder().connect_to(&address).unwrap();
    python.says("joined 1");
    // A subscriber that leaves, and does not hold it up.
    drop(Subscriber::builder().connect_to(&address).unwrap());
    python.says("joined 2");
    python.says("left hung up");
    python.send(0..3);
    python.sent(3);
    python.kill();
    (0..3).for_each(|number| check(number, &subscriber.recv().unwrap().to_vec()));
    let end = subscriber.recv();
    assert!(
        matches!(
            end,
            Err(RecvError::Disconnected {
                reason: Reason::Died
            })
        ),
        "{end:?}"
    );
    remove_stale(&address).unwrap();
}

/// One that is stopped is not dead, as a publisher either.
#[test]
fn it_is_stopped() {
    let scene = Scene::new();
    if !python() {
        return;
    }
    let address = scene.address("lane");
    let mut python = Python::start("publish", &address, &[]);
    python.says("bound");
    let mut subscriber = Subscriber::builder().connect_to(&address).unwrap();
    python.says("joined 1");
    python.send(0..3);
    python.sent(3);
    python.signal(Signal::STOP);
    wait_stopped(python.id(), python.id());
    (0..3).for_each(|number| check(number, &subscriber.recv().unwrap().to_vec()));
    python.send(3..6);
    let empty = subscriber.recv_timeout(Duration::from_millis(5)).map(drop);
    assert!(
        matches!(empty, Err(RecvTimeoutError::TimedOut)),
        "{empty:?}"
    );
    python.signal(Signal::CONT);
    (3..6).for_each(|number| check(number, &subscriber.recv().unwrap().to_vec()));
    python.sent(3);
    drop(python.input.take());
    assert!(matches!(
        subscriber.recv().map(drop),
        Err(RecvError::Disconnected {
            reason: Reason::Closed
        })
    ));
    drop(subscriber);
    python.slept();
    python.finish();
}

/// Whoever it meets of another version it tells from its own, and so do they.
#[test]
fn others_are_of_another_version() {
    let scene = Scene::new();
    if !python() {
        return;
    }
    let address = scene.address("lane");
    let expected =
        |version: u32| format!("failed expected version {VERSION} of the protocol, got {version}");
    // It connects.
    for part in ["subscribe", "offer"] {
        let future = of_the_future(&address);
        let mut python = Python::start(part, &address, &[]);
        python.says(&expected(VERSION + 1));
        future.join().unwrap();
        assert_eq!(python.end().code(), Some(1));
    }
    // It is connected to, and goes on.
    for part in ["publish", "receive"] {
        let mut python = Python::start(part, &address, &[]);
        python.says("bound");
        for version in [VERSION - 1, VERSION + 1, 0, u32::MAX] {
            let link = Link::connect(&address).unwrap();
            link.send(&Opening { version }).unwrap();
            python.says(&expected(version));
            let opening: Opening = link.recv_timeout(PATIENCE).unwrap();
            assert_eq!(opening.version, VERSION);
        }
        match part {
            "publish" => {
                let mut subscriber = Subscriber::builder().connect_to(&address).unwrap();
                python.says("joined 1");
                python.send([0]);
                python.sent(1);
                check(0, &subscriber.recv().unwrap().to_vec());
                drop(python.input.take());
                assert!(subscriber.recv().is_err());
                drop(subscriber);
                python.slept();
            }
            _ => {
                let mut sender = unbound(1 << 14).connect_to(&address).unwrap();
                python.says("offered");
                sender.send(&message(0)).unwrap();
                python.has(&message(0));
                drop(sender);
                python.says("ended closed");
            }
        }
        python.finish();
    }
}

#[test]
fn it_heeds_notices() {
    let scene = Scene::new();
    if !python() {
        return;
    }
    let address = scene.address("lane");
    let listener = Listener::bind(&address).unwrap();
    let python = Python::start("subscribe", &address, &[]);
    let link = listener.accept().unwrap();
    link.send(&Opening { version: VERSION }).unwrap();
    let Opening { version: VERSION } = link.recv_timeout(PATIENCE).unwrap() else {
        panic!("another version")
    };
    let greeting: Greeting = link.recv_timeout(PATIENCE).unwrap();
    let page = page_size();
    let control = Remote::open(greeting.page.into(), page, 0, page).unwrap();
    let (ring, descriptor) = Shared::create("ring", 2 * page, 0).unwrap();
    let welcome = Welcome {
        start: 8,
        ..Welcome::new(Fd::from(descriptor), page as u64)
    };
    link.send(&Answer::Welcome(welcome)).unwrap();
    python.says("subscribed");
    // Two chunks of a page each, and the words before them. It is not woken for the segment.
    wait_asleep(python.id(), python.id());
    let armed = control.load_word(ARMED);
    assert_ne!(armed, 0);
    let (_segment, descriptor) = Shared::create("segment", page, 2 * page).unwrap();
    let added = Notice::Added {
        id: 7,
        chunks: 2,
        chunk_size: page as u64,
        memory: Fd::from(descriptor),
    };
    link.send(&added).unwrap();
    // A record that says where: chunk 1, sent for the first time, the whole of it.
    let words = [7 | 1 << 32, 1, page as u64];
    for (index, word) in words.into_iter().enumerate() {
        ring.word(page + 16 + 8 * index)
            .store(word, Ordering::Relaxed);
    }
    ring.word(page + 8).store(32 | 2 << 32, Ordering::Release);
    let mut doorbell = UnixStream::from(OwnedFd::from(greeting.doorbell.socket.unwrap()));
    doorbell.write_all(&[1]).unwrap();
    python.has(&vec![0; page]);
    wait_until("the chunk is released", || control.load_word(CURSOR) == 32);
    wait_until("it sleeps again", || control.load_word(ARMED) > armed);
    wait_asleep(python.id(), python.id());
    // What is removed is unmapped.
    assert!(maps(&python).contains("memfd:segment"));
    link.send(&Notice::Removed { id: 7 }).unwrap();
    doorbell.write_all(&[1]).unwrap();
    wait_until("it gives the segment up", || {
        !maps(&python).contains("memfd:segment")
    });
    // An end that is only said: the socket stays.
    let why = "of a test".to_owned();
    let farewell = Farewell::Evicted { why };
    link.send(&Notice::Farewell(farewell)).unwrap();
    shutdown(link.as_fd(), Shutdown::Write).unwrap();
    python.says("ended evicted: of a test");
    python.slept();
    python.finish();
}

fn maps(python: &Python) -> String {
    fs::read_to_string(format!("/proc/{}/maps", python.id())).unwrap()
}

#[test]
fn refusals_arrive() {
    let scene = Scene::new();
    if !python() {
        return;
    }
    let address = scene.address("lane");
    let publisher = Publisher::builder()
        .of::<Encoded<(u64, String)>>()
        .bind_to(&address)
        .unwrap();
    let python = Python::start("subscribe", &address, &["bytes"]);
    python.says("refused payload it carries encoded (u64, String), expected bytes");
    python.finish();
    let python = Python::start("subscribe", &address, &["(u64, String)"]);
    python.says("subscribed");
    drop(publisher);
    python.says("ended closed");
    python.slept();
    python.finish();

    let mut python = Python::start("publish", &address, &[]);
    python.says("bound");
    let typed = Subscriber::builder().of::<Encoded<(u64, String)>>();
    let error = typed.connect_to(&address).unwrap_err().to_string();
    assert!(
        error.contains("bytes") && error.contains("encoded (u64, String)"),
        "{error}"
    );
    python.says("refused bytes encoded (u64, String)");
    let error = Publisher::builder().connect_to(&address).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("a publisher is there, which sends"),
        "{error}"
    );
    python.says("refused a publisher is there, which sends");

    // A page that its maker could cut short.
    let page = memfd_create("page", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&page, page_size() as u64).unwrap();
    let (_, answer) = greet(&address, page);
    let Answer::Refused(Refusal::Page { why }) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(why, "expected seals 0x16, got 0x0");
    python.says(&format!("refused {why}"));

    // A cursor beyond what there is.
    let (page, descriptor) = Shared::create("page", page_size(), 0).unwrap();
    let (link, answer) = greet(&address, descriptor);
    let Answer::Welcome(_welcome) = answer else {
        panic!("{answer:?}")
    };
    python.says("joined 1");
    page.word(CURSOR).store(8, Ordering::Release);
    python.send([1]);
    let why = "expected a cursor from 0 to 0, got 8";
    python.says(&format!("left {why}"));
    python.says("sent");
    let notice: Notice = link.recv_timeout(PATIENCE).unwrap();
    let Notice::Farewell(farewell) = notice else {
        panic!("{notice:?}")
    };
    let why = why.to_owned();
    assert_eq!(farewell, Farewell::Evicted { why });
    python.finish();
}

/// Subscribes by hand, with that as the control page. The answer.
fn greet(address: &Address, page: OwnedFd) -> (Link, Answer) {
    let link = Link::connect(address).unwrap();
    link.send(&Opening { version: VERSION }).unwrap();
    let greeting = Greeting::new(Fd::from(page), Offer::default());
    link.send(&greeting).unwrap();
    let opening: Opening = link.recv_timeout(PATIENCE).unwrap();
    assert_eq!(opening, Opening { version: VERSION });
    let answer = link.recv_timeout(PATIENCE).unwrap();
    (link, answer)
}

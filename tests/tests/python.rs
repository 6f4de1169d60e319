//! Lanes to and from another implementation: the program in tests/python, which knows the documents and not the code.
//!
//! Skipped where there is no `python3`; with `MEMLANE_REQUIRE_PYTHON=1` that is a failure.
#![cfg(target_arch = "x86_64")]

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        atomic::Ordering,
        mpsc::{Receiver, channel},
    },
    thread::{self, JoinHandle},
};

use memlane::{
    Address, Encoded, Link, Publisher, Reason, RecvError, SendError, Subscriber, TryRecvError,
    TrySendError, WhenFull, transport::remove_stale,
};
use memlane_region::{Remote, Shared, page_size};
use memlane_tests::{
    PATIENCE, Policy, Received, Role, Scene, Wish, alive, fill, length, memfd_with, play,
    thread_id, unbound, wait_asleep, wait_stopped, wait_until,
    wire::{
        ARMED, Answer, CURSOR, Farewell, Greeting, Notice, Offer, Opening, Refusal, VERSION,
        Welcome,
    },
};
use memlane_transport::{Fd, Listener};
use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    net::{Shutdown, shutdown},
    process::{Pid, Signal, kill_process},
};

/// Longer than what a ring of 16 KiB takes.
const LONGEST: usize = 40_000;

#[test]
fn other_process() {
    play(&[("publisher", publisher)]);
}

/// The program, running.
struct Python {
    process: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    reader: Option<JoinHandle<()>>,
}

impl Python {
    fn start(part: &str, address: &Address, more: &[&str]) -> Python {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/memlane.py");
        let mut process = Command::new("python3")
            // Nothing is written beside the program.
            .arg("-B")
            .arg(program)
            .arg(part)
            .arg(path(address))
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let output = process.stdout.take().unwrap();
        let (tell, lines) = channel();
        let reader = thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                alive();
                if tell.send(line.unwrap()).is_err() {
                    return;
                }
            }
        });
        Python {
            input: process.stdin.take(),
            process,
            lines,
            reader: Some(reader),
        }
    }

    fn id(&self) -> u32 {
        self.process.id()
    }

    #[track_caller]
    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("another line")
    }

    #[track_caller]
    fn says(&self, expected: &str) {
        assert_eq!(self.line(), expected);
    }

    /// That it has received this.
    #[track_caller]
    fn has(&self, message: &[u8]) {
        self.says(&format!("{} {}", message.len(), crc(message)));
    }

    /// The number in the line that says how often it slept.
    #[track_caller]
    fn slept(&self) -> u64 {
        let line = self.line();
        let number = line.strip_prefix("slept ").expect(&line);
        number.parse().expect(&line)
    }

    /// Has it send these messages.
    fn send(&mut self, messages: impl IntoIterator<Item = u64>) {
        let lines: String = messages
            .into_iter()
            .map(|number| format!("{number} {}\n", length(number, 30_000)))
            .collect();
        let input = self.input.as_mut().unwrap();
        input.write_all(lines.as_bytes()).expect("a listener");
    }

    fn sent(&self, messages: u64) {
        (0..messages).for_each(|_| self.says("sent"));
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.end();
    }

    #[track_caller]
    fn finish(mut self) {
        drop(self.input.take());
        let status = self.end();
        assert!(status.success(), "{status}");
    }

    fn end(&mut self) -> ExitStatus {
        let status = self.process.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        status
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

fn path(address: &Address) -> OsString {
    let path: PathBuf = address.to_string().into();
    assert!(path.is_absolute(), "{path:?}");
    path.into()
}

/// Whether it can be started.
fn python() -> bool {
    let found = Command::new("python3").arg("--version").output();
    let Err(error) = found else { return true };
    assert!(
        std::env::var_os("MEMLANE_REQUIRE_PYTHON").is_none_or(|set| set != "1"),
        "MEMLANE_REQUIRE_PYTHON=1, and python3 does not start: {error}"
    );
    eprintln!("skipped: python3 does not start: {error}");
    false
}

/// That of zlib.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
        crc
    })
}

/// Message `number` of this test's own publishers.
fn message(number: u64) -> Vec<u8> {
    let mut message = vec![0; length(number, LONGEST)];
    fill(number, &mut message);
    message
}

/// That this is message `number` of the program's.
#[track_caller]
fn check(number: u64, message: &[u8]) {
    assert_eq!(message.len(), length(number, 30_000), "message {number}");
    let expected = (number % 251..251).chain(std::iter::repeat_with(|| 0..251).flatten());
    assert!(
        message
            .iter()
            .copied()
            .map(u64::from)
            .eq(expected.take(message.len())),
        "message {number} has other contents"
    );
}

fn bind(scene: &Scene, policy: Policy) -> Publisher {
    unbound(1 << 14)
        .wait(policy.into())
        .bind_to(&scene.address("lane"))
        .unwrap()
}

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
    while publisher.stats().disconnected == 0 {
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

/// Sends to one subscriber, and is killed.
fn publisher(role: &Role) {
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

//! While both sides are awake, neither makes a system call: each has given up all but its own exit before the first of a
//! million messages, and the kernel kills who tries another (seccomp).

use std::{
    collections::BTreeMap,
    hint::spin_loop,
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    sync::atomic::{Ordering, fence},
    time::Instant,
};

use memlane::{Overflow, Publisher, Subscriber};
use memlane_region::{Remote, Shared, page_size};
use memlane_tests::{
    AnySubscriber, Part, Policy, Received, Role, Scene, Wish, alive, check, fill, play, thread_id,
    unbound, wait_asleep,
};
use memlane_transport::Fd;
use rustix::{
    process::Signal,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[
    ("sender", sender),
    ("receiver", receiver),
    ("waker", waker),
    ("clock", clock),
];

#[test]
fn other_process() {
    play(ROLES);
}

/// What the two processes do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Exchange {
    wish: Wish,
    bursts: u64,
    /// Messages of a burst. The ring has room for it.
    burst: u64,
    /// Whether the receiver waits for messages by receiving, and not until it knows that there are some.
    waits: bool,
    /// Whether the receiver is overwritten, which does not happen as the ring has room.
    overwrites: bool,
    /// Whether reading the clock takes a system call on this machine.
    clock_calls: bool,
}

const LEN: usize = 48;

/// Status of a process that did not see what it should have. Panicking takes system calls.
const WRONG: i32 = 3;

/// Ends this process, with all its threads and without any of what else an orderly end does.
fn exit(status: i32) -> ! {
    // SAFETY: `_exit` touches nothing of this process.
    unsafe { libc::_exit(status) }
}

fn require(as_expected: bool) {
    if !as_expected {
        exit(WRONG);
    }
}

/// From now on, whatever this thread asks of the kernel is the end of its process, but for that end itself.
fn give_up_system_calls(clock_calls: bool) {
    let mut allowed = vec![libc::SYS_exit_group];
    if clock_calls {
        allowed.push(libc::SYS_clock_gettime);
    }
    let rules: BTreeMap<_, _> = allowed.into_iter().map(|call| (call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().expect("a known machine");
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        arch,
    );
    let program: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
    seccompiler::apply_filter(&program).expect("a kernel that filters");
}

fn was_killed_for_a_call(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::SYS.as_raw())
}

/// Of this thread, to one of two cores.
fn pin(which: usize) {
    let all = sched_getaffinity(None).expect("the cores");
    let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| all.is_set(core));
    if let Some(core) = cores.nth(which) {
        let mut set = CpuSet::new();
        set.set(core);
        sched_setaffinity(None, &set).expect("a core of this process's");
    }
}

/// How far each side is: a word of each, written by it and read by the other.
struct Progress {
    mine: Shared,
    count: u64,
    theirs: Remote,
}

impl Progress {
    /// Exchanges pages, by way of the parent.
    fn of(role: &Role) -> Progress {
        let (mine, page) = Shared::create("test-progress", page_size(), 0).expect("a page");
        mine.prefault().expect("memory");
        role.tell(&Fd::from(page));
        let theirs: Fd = role.hear();
        let theirs = Remote::open(theirs.into(), page_size(), 0, page_size()).expect("a page");
        theirs.load_word(0);
        Progress {
            mine,
            count: 0,
            theirs,
        }
    }

    fn advance(&mut self) {
        self.count += 1;
        self.mine.word(0).store(self.count, Ordering::Release);
    }

    /// Waits until the other side has come so far. Pairs with the store in `advance`.
    fn wait_for(&self, count: u64) {
        while self.theirs.load_word(0) < count {
            spin_loop();
        }
        fence(Ordering::Acquire);
        alive();
    }

    /// Waits until both sides have come here.
    fn meet(&mut self) {
        self.advance();
        self.wait_for(self.count);
    }
}

fn publisher(wish: Wish) -> Publisher {
    let builder = unbound(1 << 20).wait(wish.policy.into());
    if wish.trusting {
        builder.trust_subscribers()
    } else {
        builder
    }
    .bind("lane")
    .expect("a publisher")
}

/// Sends bursts, each once the receiver has had the one before; every second as a batch.
fn sender(role: &Role) {
    let exchange: Exchange = role.hear();
    pin(0);
    let mut publisher = publisher(exchange.wish);
    let mut progress = Progress::of(role);
    publisher.wait_for_subscribers(1).expect("a subscriber");
    let mut number = 0;
    let mut send = |progress: &mut Progress| {
        let mut burst = |publisher: &mut Publisher| {
            let mut message = [0; LEN];
            for _ in 0..exchange.burst {
                fill(number, &mut message);
                require(publisher.send(&message).is_ok());
                number += 1;
            }
        };
        if progress.count.is_multiple_of(2) {
            publisher.batch(burst);
        } else {
            burst(&mut publisher);
        }
        progress.advance();
        progress.wait_for(progress.count);
    };
    // What is made when it is first needed, is there after that.
    send(&mut progress);
    send(&mut progress);
    give_up_system_calls(exchange.clock_calls);
    progress.meet();
    for _ in 0..exchange.bursts {
        send(&mut progress);
    }
    let stats = publisher.stats();
    require((stats.sleeps, stats.stalls) == (0, 0));
    // Until now the receiver must not end: whoever sees to that holds a lock that `stats` takes.
    progress.advance();
    exit(0);
}

/// Receives them.
fn receiver(role: &Role) {
    let exchange: Exchange = role.hear();
    pin(1);
    let subscriber = match exchange.overwrites {
        false => exchange.wish.connect_by_name("lane"),
        true => Subscriber::builder()
            .wait(exchange.wish.policy.into())
            .overflow(Overflow::Overwrite)
            .connect("lane")
            .map(AnySubscriber::Untrusting),
    };
    let mut subscriber = subscriber.expect("a publisher");
    let mut progress = Progress::of(role);
    let mut message = Vec::with_capacity(LEN);
    let mut expected = [0; LEN];
    let mut number = 0;
    let mut receive = |subscriber: &mut AnySubscriber, progress: &mut Progress, waits: bool| {
        if !waits {
            progress.wait_for(progress.count + 1);
        }
        for _ in 0..exchange.burst {
            require(matches!(
                subscriber.recv(&mut message),
                Ok(Received::Message)
            ));
            fill(number, &mut expected);
            require(message == expected);
            number += 1;
        }
        progress.advance();
        alive();
    };
    receive(&mut subscriber, &mut progress, false);
    receive(&mut subscriber, &mut progress, false);
    let sleeps = subscriber.stats().sleeps;
    give_up_system_calls(exchange.clock_calls);
    progress.meet();
    for _ in 0..exchange.bursts {
        receive(&mut subscriber, &mut progress, exchange.waits);
    }
    require(subscriber.stats().sleeps == sleeps);
    progress.wait_for(progress.count + 1);
    exit(0);
}

/// How the two processes ended, the receiver first.
fn run(exchange: Exchange) -> (ExitStatus, ExitStatus) {
    let scene = Scene::new();
    let sender = scene.spawn("sender", &exchange);
    let sent: Fd = sender.hear();
    let receiver = scene.spawn("receiver", &exchange);
    let received: Fd = receiver.hear();
    sender.tell(&received);
    receiver.tell(&sent);
    drop((sent, received));
    assert_eq!(receiver.hear_if_alive::<()>(), None);
    let receiver = receiver.reap();
    if !receiver.success() {
        // It waits for a receiver that is gone, and cannot ask the kernel.
        sender.kill();
    }
    let sender = sender.reap();
    // Neither has closed its service in order.
    let _ = memlane_transport::remove_stale(&scene.address("lane"));
    (receiver, sender)
}

/// Whether reading the clock takes a system call here. Where the kernel trusts the processor's own, it does not (vdso(7)).
fn clock_calls() -> bool {
    let scene = Scene::new();
    let child = scene.spawn("clock", &());
    child.hear::<()>();
    let status = child.reap();
    assert!(
        status.success() || was_killed_for_a_call(status),
        "{status}"
    );
    !status.success()
}

fn clock(role: &Role) {
    role.hear::<()>();
    role.tell(&());
    give_up_system_calls(false);
    std::hint::black_box(Instant::now());
    exit(0);
}

#[test]
fn for_a_million_messages() {
    let clock_calls = clock_calls();
    for policy in Policy::ALL {
        for (trusting, overwrites) in [(false, false), (true, false), (false, true)] {
            let exchange = Exchange {
                wish: Wish { policy, trusting },
                overwrites,
                bursts: 250,
                burst: 4000,
                waits: false,
                clock_calls,
            };
            let (receiver, sender) = run(exchange);
            assert!(
                receiver.success() && sender.success(),
                "{exchange:?}: receiver {receiver}, sender {sender}"
            );
        }
    }
}

/// A receiver that finds no message, spins for a while first. The one that it waits for comes at once, if the scheduler
/// lets it: with other things to do on these cores, it sometimes does not.
#[test]
fn for_messages_that_are_waited_for_a_moment() {
    if sched_getaffinity(None).expect("the cores").count() < 2 {
        println!("skipped: takes two cores");
        return;
    }
    let clock_calls = clock_calls();
    for policy in [Policy::Poll, Policy::Adaptive] {
        let exchange = Exchange {
            wish: Wish {
                policy,
                trusting: true,
            },
            overwrites: false,
            bursts: 1000,
            burst: 1,
            waits: true,
            clock_calls,
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let (receiver, sender) = run(exchange);
            if receiver.success() && sender.success() {
                break;
            }
            assert!(
                was_killed_for_a_call(receiver) && attempts < 1000,
                "{exchange:?}, attempt {attempts}: receiver {receiver}, sender {sender}"
            );
        }
        println!("{policy:?}: attempt {attempts}");
    }
}

/// Sends one message.
fn waker(role: &Role) {
    let wish: Wish = role.hear();
    let mut publisher = publisher(wish);
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("a subscriber");
    role.hear::<()>();
    let mut message = [0; LEN];
    fill(0, &mut message);
    give_up_system_calls(false);
    require(publisher.send(&message).is_ok());
    exit(0);
}

/// What the tests above would notice: a sender that has to wake somebody is killed for it.
#[test]
fn but_one_to_wake_a_sleeper() {
    for trusting in [false, true] {
        let scene = Scene::new();
        let wish = Wish {
            policy: Policy::Block,
            trusting,
        };
        let waker = scene.spawn("waker", &wish);
        waker.hear::<()>();
        let mut subscriber = wish.connect(&scene.address("lane")).unwrap();
        let (id, ids) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let received = scope.spawn(move || {
                id.send(thread_id()).unwrap();
                let mut message = Vec::new();
                let first = subscriber.recv(&mut message).unwrap();
                check(0, &message);
                (first, subscriber.recv(&mut message).unwrap())
            });
            wait_asleep(std::process::id(), ids.recv().unwrap());
            waker.tell(&());
            let status = waker.reap();
            assert!(was_killed_for_a_call(status), "{status}");
            // It had committed the message, and the kernel tells of its end.
            let received = received.join().unwrap();
            assert!(
                matches!(received, (Received::Message, Received::Disconnected(_))),
                "{received:?}"
            );
        });
    }
}

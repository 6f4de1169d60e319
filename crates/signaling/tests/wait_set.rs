//! A wait set reports what is ready, all of it, and nothing else.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{ErrorKind, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::{PATIENCE, alone, descriptors, wait_asleep};
use memlane_signaling::{
    AddError, Backing, Doorbell, Event, Events, Interest, Key, Registration, Ringer, Trigger,
    WaitSet,
};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, epoll, eventfd, poll},
    process::{Pid, PidfdFlags, Resource, getrlimit, pidfd_open, setrlimit},
    thread::gettid,
};

const NOW: Option<Duration> = Some(Duration::ZERO);

fn pair() -> (UnixStream, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    here.set_nonblocking(true).unwrap();
    there.set_nonblocking(true).unwrap();
    (here, there)
}

/// An eventfd that counts to one already.
fn ready() -> OwnedFd {
    eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// What one wait reports; it must come.
fn next(set: &WaitSet, events: &mut Events) -> Vec<Event> {
    let ready = set.wait(events, Some(PATIENCE)).unwrap();
    assert!(!ready.is_timed_out());
    ready.collect()
}

fn keys(events: &[Event]) -> Vec<Key> {
    events.iter().map(Event::key).collect()
}

/// Nothing is there to report.
#[track_caller]
fn quiet(set: &WaitSet) {
    let mut events = Events::default();
    let mut ready = set.wait(&mut events, NOW).unwrap();
    assert!(ready.is_timed_out() && !ready.is_notified());
    assert_eq!(ready.next(), None);
}

#[test]
fn every_kind_of_source() {
    alone(|| {
        let set = WaitSet::new().unwrap();
        quiet(&set);
        let mut events = Events::default();

        let (here, mut there) = pair();
        let socket = set
            .add(&here, Interest::READABLE | Interest::HANG_UP)
            .unwrap();
        quiet(&set);
        there.write_all(b"x").unwrap();
        let found = next(&set, &mut events);
        assert_eq!(keys(&found), [socket.key()]);
        assert!(found[0].readiness().is_readable() && !found[0].readiness().is_hung_up());
        socket.modify(Interest::WRITABLE, Trigger::Level).unwrap();
        let found = next(&set, &mut events);
        assert!(found[0].readiness().is_writable() && !found[0].readiness().is_readable());
        // A hang-up alone: data may wait.
        socket.modify(Interest::HANG_UP, Trigger::Level).unwrap();
        quiet(&set);
        drop(there);
        let found = next(&set, &mut events);
        assert!(found[0].readiness().is_hung_up() && !found[0].readiness().is_readable());
        assert_eq!(format!("{:?}", found[0].readiness()), "Readiness(hang-up)");
        socket.remove();
        quiet(&set);

        let path = std::env::temp_dir().join(format!("wait-set-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let clients = set.add(&listener, Interest::READABLE).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(keys(&next(&set, &mut events)), [clients.key()]);
        drop((listener.accept().unwrap(), client));
        quiet(&set);
        drop(clients);

        for backing in [Backing::EventFd, Backing::Socket] {
            let (mut doorbell, end) = Doorbell::new(backing).unwrap();
            let ringer = Ringer::open(end, backing).unwrap();
            let rung = set
                .add_with(&doorbell, Interest::READABLE, Trigger::Edge)
                .unwrap();
            quiet(&set);
            for _ in 0..1000 {
                ringer.ring();
                assert_eq!(keys(&next(&set, &mut events)), [rung.key()]);
                doorbell.woken();
                quiet(&set);
            }
            rung.modify(Interest::READABLE, Trigger::Level).unwrap();
            doorbell.drain();
            quiet(&set);
            for _ in 0..1000 {
                ringer.ring();
                ringer.ring();
                assert_eq!(keys(&next(&set, &mut events)), [rung.key()]);
                assert_eq!(keys(&next(&set, &mut events)), [rung.key()]);
                doorbell.drain();
                quiet(&set);
            }
        }

        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let death = set.add(&pidfd, Interest::READABLE).unwrap();
        drop(pidfd);
        quiet(&set);
        drop(child.stdin.take());
        // Nobody has reaped it.
        assert_eq!(keys(&next(&set, &mut events)), [death.key()]);
        child.wait().unwrap();
        drop(death);

        let timer = set.timer().unwrap();
        quiet(&set);
        timer.set_after(Duration::from_micros(100)).unwrap();
        let found = next(&set, &mut events);
        assert_eq!(
            (keys(&found), found[0].expirations()),
            (vec![timer.key()], 1)
        );
        quiet(&set);

        // Another set is a source as well.
        let outer = WaitSet::new().unwrap();
        let inner = outer.add(&set, Interest::READABLE).unwrap();
        quiet(&outer);
        timer.set_after(Duration::ZERO).unwrap();
        assert_eq!(keys(&next(&outer, &mut events)), [inner.key()]);
        assert_eq!(keys(&next(&set, &mut events)), [timer.key()]);
        quiet(&outer);
        set.notify();
        assert_eq!(keys(&next(&outer, &mut events)), [inner.key()]);
        assert!(set.wait(&mut events, None).unwrap().is_notified());
        quiet(&outer);
    });
}

#[test]
fn edge_and_one_shot_report_once() {
    alone(|| {
        let set = WaitSet::new().unwrap();
        let mut events = Events::default();
        let (here, mut there) = pair();
        let edge = set
            .add_with(&here, Interest::READABLE, Trigger::Edge)
            .unwrap();
        for _ in 0..3 {
            there.write_all(b"x").unwrap();
            assert_eq!(keys(&next(&set, &mut events)), [edge.key()]);
            quiet(&set);
        }
        edge.modify(Interest::READABLE, Trigger::OneShot).unwrap();
        for _ in 0..3 {
            assert_eq!(keys(&next(&set, &mut events)), [edge.key()]);
            there.write_all(b"x").unwrap();
            quiet(&set);
            edge.modify(Interest::READABLE, Trigger::OneShot).unwrap();
        }
    });
}

/// The case that epoll(7) warns of: the handler of one event closes the source of another one in the same batch.
#[test]
fn what_is_removed_is_not_reported_even_if_it_was_found() {
    alone(|| {
        let set = WaitSet::new().unwrap();
        let mut events = Events::default();
        for trigger in [Trigger::Level, Trigger::Edge, Trigger::OneShot] {
            let mut sources: HashMap<Key, Registration> = (0..10)
                .map(|_| set.add_with(ready(), Interest::READABLE, trigger).unwrap())
                .map(|source| (source.key(), source))
                .collect();
            let before: Vec<Key> = sources.keys().copied().collect();
            let mut reported = 0;
            for event in set.wait(&mut events, None).unwrap() {
                assert!(sources.contains_key(&event.key()));
                reported += 1;
                sources.clear();
                // Slots, and descriptors, are used again at once.
                let source = set.add(ready(), Interest::READABLE).unwrap();
                sources.insert(source.key(), source);
            }
            assert_eq!(reported, 1);
            let found = next(&set, &mut events);
            assert_eq!(found.len(), 1);
            assert!(sources.contains_key(&found[0].key()) && !before.contains(&found[0].key()));
            assert!(
                before
                    .iter()
                    .any(|key| key.index() == found[0].key().index())
            );
            sources.clear();
            quiet(&set);
        }
    });
}

/// A peer has a copy of the source, so that closing it here ends nothing in the kernel (epoll(7), Q6).
#[test]
fn a_peer_that_keeps_a_copy_keeps_nothing_registered() {
    alone(|| {
        // That this is so without the set's doing: a registration that nobody can take out any more.
        let (fd, copies) = (ready(), ready());
        let copy = rustix::io::fcntl_dupfd_cloexec(&fd, 3).unwrap();
        let bare = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        epoll::add(
            &bare,
            &fd,
            epoll::EventData::new_u64(7),
            epoll::EventFlags::IN,
        )
        .unwrap();
        drop(fd);
        let reused = ready();
        assert!(epoll::delete(&bare, &reused).is_err());
        let mut stale = [std::mem::MaybeUninit::uninit(); 4];
        assert_eq!(epoll::wait(&bare, &mut stale, None).unwrap().0.len(), 1);
        drop((bare, copy, copies, reused));

        let set = WaitSet::new().unwrap();
        let mut events = Events::default();
        for closed_first in [true, false] {
            let fd = ready();
            let copy = fd.try_clone().unwrap();
            let source = set.add(&fd, Interest::READABLE).unwrap();
            assert_eq!(keys(&next(&set, &mut events)), [source.key()]);
            if closed_first {
                drop(fd);
                assert_eq!(keys(&next(&set, &mut events)), [source.key()]);
                source.remove();
            } else {
                source.remove();
                drop(fd);
            }
            // The same number, perhaps; another source.
            let other = set
                .add(
                    eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
                    Interest::READABLE,
                )
                .unwrap();
            quiet(&set);
            drop((copy, other));
        }
    });
}

#[test]
fn what_a_loop_does_not_take_comes_again() {
    alone(|| {
        let set = WaitSet::new().unwrap();
        let mut events = Events::default();
        let sources: Vec<Registration> = [Trigger::Edge, Trigger::OneShot, Trigger::Level]
            .into_iter()
            .cycle()
            .take(30)
            .map(|trigger| set.add_with(ready(), Interest::READABLE, trigger).unwrap())
            .collect();
        let timers: Vec<_> = (0..5).map(|_| set.timer().unwrap()).collect();
        for timer in &timers {
            timer.set(Instant::now()).unwrap();
        }
        let mut reported = BTreeMap::new();
        // A loop that gives up after one event, each time.
        for _ in 0..1000 {
            let mut ready = set.wait(&mut events, None).unwrap();
            *reported.entry(ready.next().unwrap().key()).or_insert(0) += 1;
        }
        for source in sources
            .iter()
            .step_by(3)
            .chain(sources[1..].iter().step_by(3))
        {
            assert_eq!(reported.get(&source.key()), Some(&1), "edges and one-shots");
        }
        for source in sources[2..].iter().step_by(3) {
            assert!(reported[&source.key()] > 1, "level-triggered ones");
        }
        for timer in &timers {
            assert_eq!(reported.get(&timer.key()), Some(&1), "timers");
        }

        // Another thread, which sleeps, gets what is left, or nobody would.
        drop(sources);
        let edge = set
            .add_with(ready(), Interest::READABLE, Trigger::Edge)
            .unwrap();
        let first = set.wait(&mut events, None).unwrap();
        let (id, ids) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                id.send(gettid().as_raw_nonzero().get()).unwrap();
                keys(&next(&set, &mut Events::default()))
            });
            wait_asleep(ids.recv().unwrap());
            drop(first);
            assert_eq!(sleeper.join().unwrap(), [edge.key()]);
        });
        // And what was removed before it came again does not.
        let other = set
            .add_with(ready(), Interest::READABLE, Trigger::Edge)
            .unwrap();
        drop(set.wait(&mut events, None).unwrap());
        drop(other);
        quiet(&set);
    });
}

/// Sources, where so many descriptors are allowed.
const MANY: usize = 3000;

/// One source is written to without end, by a thread of its own, and always ready. Thousands of others are reported all the
/// same, within as many waits as they fill.
#[test]
fn a_flooded_source_keeps_nobody_from_being_reported() {
    alone(|| {
        let limit = getrlimit(Resource::Nofile);
        let mut raised = limit;
        raised.current = limit.maximum;
        setrlimit(Resource::Nofile, raised).unwrap();
        // Or as many as there may be here.
        let spare = limit.maximum.map_or(usize::MAX, |most| most as usize) - descriptors();
        let most = MANY.min(spare - 50);
        for trigger in [Trigger::Level, Trigger::Edge] {
            for capacity in [1, 7, 64, 4096] {
                let set = WaitSet::new().unwrap();
                let mut events = Events::with_capacity(capacity);
                let flood = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
                let noisy = set.add_with(&flood, Interest::READABLE, trigger).unwrap();
                let others: Vec<Registration> = (0..most)
                    .map(|_| set.add_with(ready(), Interest::READABLE, trigger).unwrap())
                    .collect();
                let timer = set.timer().unwrap();
                let (stop, rings) = (AtomicBool::new(false), AtomicU64::new(0));
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            rustix::io::write(&flood, &1_u64.to_ne_bytes()).unwrap();
                            rings.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                    while rings.load(Ordering::Relaxed) < 100 {
                        std::hint::spin_loop();
                    }
                    timer.set(Instant::now()).unwrap();
                    set.notify();
                    let ready = set.wait(&mut events, None).unwrap();
                    assert!(ready.is_notified(), "whatever else is ready");
                    let mut found: Vec<Key> = ready.map(|event| event.key()).collect();
                    assert!(found.contains(&timer.key()), "whatever else is ready");
                    let mut reported = BTreeSet::new();
                    let mut waits = 1;
                    let budget = (most + 1).div_ceil(capacity) + 1;
                    loop {
                        let once: BTreeSet<Key> = found.iter().copied().collect();
                        assert_eq!(once.len(), found.len(), "a source is reported once a wait");
                        reported.extend(once);
                        if reported.len() == most + 2 {
                            break;
                        }
                        assert!(
                            waits < budget + if trigger == Trigger::Edge { budget } else { 0 },
                            "{} of {most} were reported in {waits} waits of {capacity}",
                            reported.len()
                        );
                        found = keys(&next(&set, &mut events));
                        waits += 1;
                    }
                    println!("{trigger:?}, {capacity} a wait: all in {waits} waits of {budget}");
                    stop.store(true, Ordering::Relaxed);
                });
                assert!(reported_last(&set, &mut events, trigger, &noisy));
                drop((others, noisy, timer));
            }
        }
        setrlimit(Resource::Nofile, limit).unwrap();
    });
}

/// The flood is over; a level-triggered source is still there to be seen.
fn reported_last(
    set: &WaitSet,
    events: &mut Events,
    trigger: Trigger,
    noisy: &Registration,
) -> bool {
    trigger == Trigger::Edge
        || (0..2 * (MANY + 2)).any(|_| keys(&next(set, events)).contains(&noisy.key()))
}

#[test]
fn timers_expire_in_order_and_never_early() {
    alone(|| {
        let set = WaitSet::new().unwrap();
        let mut events = Events::default();
        let before = descriptors();
        let timers: Vec<_> = (0..500).map(|_| set.timer().unwrap()).collect();
        assert_eq!(descriptors(), before + 1, "all timers are one descriptor");
        let start = Instant::now();
        let mut due = HashMap::new();
        for (number, timer) in timers.iter().enumerate() {
            // Not in the order of their deadlines; some twice the same.
            let deadline = start + Duration::from_micros((number as u64 * 37 % 250) * 40);
            timer.set(deadline).unwrap();
            due.insert(timer.key(), deadline);
        }
        let mut last = start;
        while !due.is_empty() {
            for event in next(&set, &mut events) {
                let deadline = due.remove(&event.key()).expect("each once");
                assert!(Instant::now() >= deadline, "early");
                assert!(deadline >= last, "out of order");
                last = deadline;
            }
        }
        quiet(&set);

        // Far away is never; what was cancelled, or dropped, or set anew, does not report what it was set to.
        let [a, b, c] = &timers[..3] else {
            unreachable!()
        };
        a.set_after(Duration::MAX).unwrap();
        b.set_after(Duration::from_secs(100_000_000_000)).unwrap();
        quiet(&set);
        for timer in [a, b, c] {
            timer.set(Instant::now()).unwrap();
        }
        let mut ready = set.wait(&mut events, None).unwrap();
        assert_eq!(ready.next().unwrap().key(), a.key());
        b.set_after(Duration::from_secs(1000)).unwrap();
        c.cancel();
        assert_eq!(ready.next(), None);
        drop(ready);
        quiet(&set);
        b.set_after(Duration::ZERO).unwrap();
        assert_eq!(keys(&next(&set, &mut events)), [b.key()]);
        drop(timers);
        quiet(&set);
        assert_eq!(descriptors(), before + 1);
    });
}

#[test]
fn periods_that_nobody_waited_for_are_counted() {
    alone(|| {
        let set = WaitSet::new().unwrap();
        let mut events = Events::default();
        let timer = set.timer().unwrap();
        let error = timer.set_every(Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("above zero"), "{error}");
        let period = Duration::from_micros(300);
        let start = Instant::now();
        timer.set_every(period).unwrap();
        let mut expirations = 0;
        while expirations < 50 {
            let found = next(&set, &mut events);
            assert_eq!(keys(&found), [timer.key()]);
            expirations += found[0].expirations();
            assert!(start.elapsed() >= period * expirations as u32, "early");
            if expirations > 20 {
                std::thread::sleep(3 * period);
            }
        }
        // One that was found and not taken counts as well.
        let mut untaken = 0;
        while untaken < 3 {
            untaken += u32::from(!set.wait(&mut events, None).unwrap().is_timed_out());
        }
        let rest = next(&set, &mut events)[0].expirations();
        assert!(rest >= 3, "{rest}");
        timer.cancel();
        quiet(&set);
    });
}

#[test]
fn time_outs_are_as_short_as_asked_for_and_never_shorter() {
    alone(|| {
        let set = WaitSet::new().unwrap();
        let mut events = Events::default();
        for micros in [0, 1, 10, 100, 900, 1500] {
            let time = Duration::from_micros(micros);
            let start = Instant::now();
            let ready = set.wait(&mut events, Some(time)).unwrap();
            assert!(ready.is_timed_out());
            assert!(start.elapsed() >= time, "{time:?}");
        }
        let passed = Instant::now() - Duration::from_millis(1);
        assert!(
            set.wait_until(&mut events, Some(passed))
                .unwrap()
                .is_timed_out()
        );
        // A time-out that cannot be told is none; what is ready comes all the same.
        set.notify();
        assert!(
            set.wait(&mut events, Some(Duration::MAX))
                .unwrap()
                .is_notified()
        );
    });
}

#[test]
fn a_notification_ends_one_wait_and_carries_what_was_done_before() {
    alone(|| {
        let set = WaitSet::new().unwrap();
        let mut events = Events::default();
        // Before the wait; several are one.
        set.notify();
        set.notifier().notify();
        assert!(set.wait(&mut events, None).unwrap().is_notified());
        quiet(&set);
        // Again and again, from another thread.
        let (said, rounds) = (AtomicU64::new(0), 20_000);
        std::thread::scope(|scope| {
            let notifier = set.notifier();
            let said = &said;
            scope.spawn(move || {
                for round in 1..=rounds {
                    said.store(round, Ordering::Relaxed);
                    notifier.notify();
                }
            });
            let mut seen = 0;
            while seen < rounds {
                assert!(set.wait(&mut events, Some(PATIENCE)).unwrap().is_notified());
                seen = said.load(Ordering::Relaxed);
            }
        });
        // All of many threads.
        for _ in 0..50 {
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let mut events = Events::default();
                        while !stop.load(Ordering::Relaxed) {
                            assert!(
                                !set.wait(&mut events, Some(PATIENCE))
                                    .unwrap()
                                    .is_timed_out()
                            );
                        }
                        set.notify();
                    });
                }
                stop.store(true, Ordering::Relaxed);
                set.notify();
            });
            // The last one's.
            assert!(set.wait(&mut events, None).unwrap().is_notified());
        }
    });
}

/// Threads share the work of many sources, while sources come and go. Each byte is answered by exactly one of them.
#[test]
fn threads_share_sources_that_come_and_go() {
    alone(|| {
        const THREADS: usize = 3;
        const ROUNDS: u64 = 3000;
        let set = WaitSet::new().unwrap();
        let sources: Mutex<HashMap<Key, (UnixStream, Registration)>> = Mutex::default();
        let (stop, stale, read) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let mut events = Events::with_capacity(4);
                    while !stop.load(Ordering::Relaxed) {
                        for event in set.wait(&mut events, None).unwrap() {
                            let mut sources = sources.lock().unwrap();
                            let Some((socket, source)) = sources.get_mut(&event.key()) else {
                                stale.fetch_add(1, Ordering::Relaxed);
                                continue;
                            };
                            let mut buffer = [0; 16];
                            match socket.read(&mut buffer) {
                                // Closed by the other side: out it goes.
                                Ok(0) => drop(sources.remove(&event.key())),
                                Ok(count) => {
                                    read.fetch_add(count as u64, Ordering::Relaxed);
                                    (&*socket).write_all(&buffer[..count]).unwrap();
                                    source.modify(Interest::READABLE, Trigger::OneShot).unwrap();
                                }
                                Err(error) => panic!("{}: {error}", event.key().index()),
                            }
                        }
                    }
                    set.notify();
                });
            }
            for round in 0..ROUNDS {
                let (here, mut there) = pair();
                there.set_nonblocking(false).unwrap();
                {
                    let mut sources = sources.lock().unwrap();
                    let source = set
                        .add_with(&here, Interest::READABLE, Trigger::OneShot)
                        .unwrap();
                    sources.insert(source.key(), (here, source));
                }
                for ball in 0..round as u8 % 4 {
                    there.write_all(&[ball]).unwrap();
                    let mut back = [0];
                    there.read_exact(&mut back).unwrap();
                    assert_eq!(back, [ball]);
                }
            }
            while !sources.lock().unwrap().is_empty() {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
            set.notify();
        });
        assert_eq!(read.into_inner(), (0..ROUNDS).map(|round| round % 4).sum());
        assert_eq!(stale.into_inner(), 0, "one-shot sources are one thread's");
    });
}

/// One thread rings, two wait by edge, one adds and removes: no edge is lost.
#[test]
fn no_edge_is_lost_while_others_come_and_go() {
    alone(|| {
        const ROUNDS: u64 = 2000;
        let set = WaitSet::new().unwrap();
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let source = set
            .add_with(&bell, Interest::READABLE, Trigger::Edge)
            .unwrap();
        let (said, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let (heard, hear) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let heard = heard.clone();
                scope.spawn(|| {
                    let heard = heard;
                    let mut events = Events::with_capacity(2);
                    while !stop.load(Ordering::Relaxed) {
                        for event in set.wait(&mut events, Some(PATIENCE)).unwrap() {
                            if event.key() == source.key() {
                                heard.send(said.load(Ordering::Acquire)).unwrap();
                            }
                        }
                    }
                    set.notify();
                });
            }
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let other = set.add(ready(), Interest::READABLE).unwrap();
                    std::thread::yield_now();
                    drop(other);
                }
            });
            for round in 1..=ROUNDS {
                said.store(round, Ordering::Release);
                rustix::io::write(&bell, &1_u64.to_ne_bytes()).unwrap();
                while hear.recv_timeout(PATIENCE).expect("an edge") != round {}
            }
            stop.store(true, Ordering::Relaxed);
            set.notify();
        });
    });
}

#[test]
fn what_cannot_be_watched_is_refused_with_a_reason() {
    alone(|| {
        let set = WaitSet::new().unwrap();
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let refused = set.add(&file, Interest::READABLE).unwrap_err();
        assert!(matches!(refused, AddError::AlwaysReady), "{refused:?}");
        assert!(
            refused.to_string().contains("got a regular file"),
            "{refused}"
        );
        let error = std::io::Error::from(refused);
        assert_eq!(error.kind(), ErrorKind::InvalidInput);

        let refused = set.add(&set, Interest::READABLE).unwrap_err();
        assert!(matches!(refused, AddError::Nested), "{refused:?}");
        let other = WaitSet::new().unwrap();
        let _inner = set.add(&other, Interest::READABLE).unwrap();
        let refused = other.add(&set, Interest::READABLE).unwrap_err();
        assert!(matches!(refused, AddError::Nested), "{refused:?}");

        // Out of descriptor numbers. What is there goes on.
        let source = set.add(ready(), Interest::READABLE).unwrap();
        let fd = ready();
        let limit = getrlimit(Resource::Nofile);
        let mut none = limit;
        none.current = Some(0);
        setrlimit(Resource::Nofile, none).unwrap();
        let refused = set.add(&fd, Interest::READABLE);
        let timer = set.timer();
        setrlimit(Resource::Nofile, limit).unwrap();
        let refused = refused.unwrap_err();
        assert!(matches!(refused, AddError::Limit { .. }), "{refused:?}");
        assert!(refused.to_string().contains("RLIMIT_NOFILE"), "{refused}");
        assert!(timer.is_err());
        let mut events = Events::default();
        assert_eq!(keys(&next(&set, &mut events)), [source.key()]);
        set.timer().unwrap().set_after(Duration::ZERO).unwrap();
    });
}

/// The parts outlive the set, in any order; what they do then has no effect.
#[test]
fn parts_that_outlive_their_set() {
    alone(|| {
        let set = WaitSet::new().unwrap();
        let fd = ready();
        let source = set.add(&fd, Interest::READABLE).unwrap();
        let (timer, notifier) = (set.timer().unwrap(), set.notifier());
        drop(set);
        notifier.notify();
        timer.set_after(Duration::ZERO).unwrap();
        source.modify(Interest::WRITABLE, Trigger::Edge).unwrap();
        // The registration's own descriptor is of the same file.
        let mut readable = [PollFd::new(&source, PollFlags::IN)];
        assert_eq!(poll(&mut readable, None).unwrap(), 1);
        drop((timer, notifier, source));
        assert!(rustix::io::read(fd.as_fd(), &mut [0; 8]).is_ok());
    });
}

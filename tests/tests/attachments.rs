//! Messages with descriptors, regions and links attached, between processes that are slow, stopped, killed, or short of
//! descriptors.

use std::time::Duration;

use memlane::{
    AttachmentError, Link, Overflow, Reason, RecvError, SendTimeoutError, Subscriber, TrySendError,
    WhenFull,
};
use memlane_tests::{
    Census, Dice, PATIENCE, Part, Policy, Role, Scene, Start, alive, attachments, check,
    check_attachments, fill, none_is_kept, number, play, unbound, wait_asleep, wait_stopped,
    wait_until,
};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

const ROLES: &[(&str, Part)] = &[
    ("reader", reader),
    ("skipper", skipper),
    ("publisher", publisher),
    ("poor", poor),
    ("commoner", commoner),
];

#[test]
fn other_process() {
    play(ROLES);
}

/// A message of some length, mostly short, and how many attachments it has: none as a rule, now and then hundreds.
fn of(number: u64) -> (usize, usize) {
    let mut dice = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut below = |end: u64| {
        dice ^= dice >> 29;
        dice = dice.wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (dice >> 32) % end
    };
    let length = match below(100) {
        0 => 5000 + below(20_000),
        1..10 => 100 + below(1000),
        _ => 8 + below(50),
    };
    let count = match below(1000) {
        0 => below(301),
        1..10 => below(40),
        10..60 => 1 + below(4),
        _ => 0,
    };
    (length as usize, count as usize)
}

const MESSAGES: u64 = 100_000;
const MOST: usize = 300;

/// Nothing is lost, doubled or exchanged, whoever waits for whom.
#[test]
fn descriptors_come_with_their_messages() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut publisher = unbound(1 << 14)
        .max_attachments(MOST)
        .bind_to(&address)
        .unwrap();
    let readers = [Policy::Block, Policy::Adaptive]
        .map(|policy| scene.spawn("reader", &(address.to_string(), policy, MESSAGES)));
    publisher.wait_for_subscribers(2).unwrap();
    let mut bytes = vec![0; 30_000];
    for number in 0..MESSAGES {
        alive();
        let (length, count) = of(number);
        let message = &mut bytes[..length];
        fill(number, message);
        let fds = attachments(number, count);
        match number % 5 {
            0 if count == 0 => publisher.send(message).unwrap(),
            0 => publisher.send_with(message, &fds).unwrap(),
            1 => {
                while let Err(error) = publisher.try_send_with(message, &fds) {
                    assert!(matches!(error, TrySendError::Full), "{error}");
                }
            }
            2 => publisher
                .send_timeout_with(message, &fds, PATIENCE)
                .unwrap(),
            3 => {
                let mut place = publisher.reserve(length + 9).unwrap();
                place[..length].copy_from_slice(message);
                place.attach(&fds).unwrap();
                place.commit_first(length);
            }
            _ => {
                let mut loan = publisher.loan(length).unwrap();
                loan.copy_from_slice(message);
                publisher.send_loan_with(loan, &fds).unwrap();
            }
        }
    }
    assert!(publisher.drain(PATIENCE).unwrap());
    none_is_kept();
    assert_eq!(publisher.stats().evicted, 0);
    drop(publisher);
    readers.into_iter().for_each(|reader| reader.finish());
}

fn reader(role: &Role) {
    let (address, policy, messages): (String, Policy, u64) = role.hear();
    let mut subscriber = Subscriber::builder()
        .wait(policy.into())
        .max_attachments(MOST)
        .connect_to(&address.parse().expect("an address"))
        .expect("a publisher");
    let mut dice = Dice::new();
    let mut bytes = Vec::new();
    for number in 0..messages {
        alive();
        let (length, count) = of(number);
        let mut message = subscriber.recv().expect("a message");
        assert_eq!(message.len(), length, "message {number}");
        message.copy_into(&mut bytes);
        check(number, &bytes);
        assert_eq!(message.has_attachments(), count > 0, "message {number}");
        match dice.below(4) {
            // Closed with the message.
            0 => drop(message),
            1 => {
                let mut held = message.hold().expect("none is held");
                check_attachments(number, count, held.take_attachments().expect("they came"));
            }
            _ => check_attachments(
                number,
                count,
                message.take_attachments().expect("they came"),
            ),
        }
    }
    let over = subscriber.recv().expect_err("that was all");
    assert_closed(&over);
}

fn assert_closed(over: &RecvError) {
    assert!(
        matches!(
            over,
            RecvError::Disconnected {
                reason: Reason::Closed
            }
        ),
        "{over}"
    );
}

/// A subscriber that is stopped has so many on their way, and then its publisher waits, as for room in the ring.
#[test]
fn a_stopped_subscriber_is_waited_for() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut publisher = unbound(1 << 16)
        .max_attachments(MOST)
        .attachments_in_flight(20)
        .bind_to(&address)
        .unwrap();
    let reader = scene.spawn("reader", &(address.to_string(), Policy::Block, 3_000_u64));
    publisher.wait_for_subscribers(1).unwrap();
    wait_asleep(reader.id(), reader.id());
    reader.signal(Signal::STOP);
    wait_stopped(reader.id(), reader.id());
    let mut sent = 0;
    let mut way = 0;
    let (mut bytes, fds) = loop {
        let (length, count) = of(sent);
        let mut bytes = vec![0; length];
        fill(sent, &mut bytes);
        let fds = attachments(sent, count);
        match publisher.try_send_with(&bytes, &fds) {
            Ok(()) => {
                sent += 1;
                way += count;
            }
            Err(error) => {
                assert!(matches!(error, TrySendError::Full), "{error}");
                assert!(
                    way + count > 20 && (way <= 20 || count > 20),
                    "{way} and {count}"
                );
                break (bytes, fds);
            }
        }
    };
    // Plain ones still go, of which this is none that the reader expects; so it is not committed.
    drop(publisher.try_reserve(8).unwrap());
    let timed_out = publisher.send_timeout_with(&bytes, &fds, Duration::from_millis(5));
    assert!(
        matches!(timed_out, Err(SendTimeoutError::TimedOut)),
        "{timed_out:?}"
    );
    let waiting = std::thread::spawn(move || {
        publisher.send_with(&bytes, &fds).unwrap();
        for number in sent + 1..3_000 {
            let (length, count) = of(number);
            bytes.resize(length, 0);
            fill(number, &mut bytes);
            publisher
                .send_with(&bytes, &attachments(number, count))
                .unwrap();
        }
        publisher
    });
    reader.signal(Signal::CONT);
    let publisher = waiting.join().unwrap();
    drop(publisher);
    reader.finish();
}

fn skipper(role: &Role) {
    let (address, messages): (String, u64) = role.hear();
    let mut subscriber = Subscriber::builder()
        .overflow(Overflow::Overwrite)
        .max_attachments(MOST)
        .connect_to(&address.parse().expect("an address"))
        .expect("a publisher");
    let mut dice = Dice::new();
    let (mut came, mut without, mut next) = (0_u64, 0_u64, 0);
    let over = loop {
        alive();
        if dice.below(1000) == 0 {
            std::thread::sleep(Duration::from_millis(dice.below(5)));
        }
        let mut message = match subscriber.recv() {
            Ok(message) => message,
            Err(error) => break error,
        };
        let number = message.sequence();
        assert_eq!(number, next + message.missed());
        next = number + 1;
        let (length, count) = of(number);
        let bytes = message.to_vec();
        assert_eq!(bytes.len(), length, "message {number}");
        check(number, &bytes);
        assert_eq!(message.has_attachments(), count > 0, "message {number}");
        match message.take_attachments() {
            Ok(fds) => {
                check_attachments(number, count, fds);
                came += u64::from(count > 0);
            }
            Err(AttachmentError::Missing) => without += 1,
            Err(error) => panic!("message {number}: {error}"),
        }
    };
    assert_closed(&over);
    let stats = subscriber.stats();
    assert_eq!(stats.messages + stats.missed, messages);
    role.tell(&(came, without, stats.missed));
}

/// A subscriber that is overwritten, at times too slow, at times stopped, has the attachments of each message that it gets, or is
/// told that it has none of them. Nobody waits for it, and one beside it gets all.
#[test]
fn who_is_overwritten_goes_without() {
    const MESSAGES: u64 = 30_000;
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut publisher = unbound(1 << 14)
        .max_attachments(MOST)
        .attachments_in_flight(40)
        .bind_to(&address)
        .unwrap();
    let skipper = scene.spawn("skipper", &(address.to_string(), MESSAGES));
    let reader = scene.spawn("reader", &(address.to_string(), Policy::Adaptive, MESSAGES));
    publisher.wait_for_subscribers(2).unwrap();
    let mut bytes = vec![0; 30_000];
    for number in 0..MESSAGES {
        alive();
        if number == 10_000 {
            skipper.signal(Signal::STOP);
            wait_stopped(skipper.id(), skipper.id());
        }
        if number == 20_000 {
            skipper.signal(Signal::CONT);
        }
        let (length, count) = of(number);
        let message = &mut bytes[..length];
        fill(number, message);
        publisher
            .send_with(message, &attachments(number, count))
            .unwrap();
    }
    publisher.drain(PATIENCE).unwrap();
    none_is_kept();
    drop(publisher);
    let (came, without, missed): (u64, u64, u64) = skipper.hear();
    println!("{came} messages with attachments, {without} without theirs, {missed} missed");
    assert!(came > 0 && missed > 0);
    skipper.finish();
    reader.finish();
}

/// One that is served from a spill finds the attachments of messages that it gets long after others, and those that wait for it
/// are bounded all the same.
#[test]
fn a_laggard_has_its_attachments() {
    const MESSAGES: u64 = 20_000;
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut publisher = unbound(1 << 12)
        .spill_bytes(16 << 12)
        .max_attachments(MOST)
        .bind_to(&address)
        .unwrap();
    let readers = [Policy::Block, Policy::Adaptive]
        .map(|policy| scene.spawn("reader", &(address.to_string(), policy, MESSAGES)));
    publisher.wait_for_subscribers(2).unwrap();
    let slow = &readers[0];
    let mut bytes = vec![0; 30_000];
    let mut stopped = false;
    for number in 0..MESSAGES {
        alive();
        let (length, count) = of(number);
        let message = &mut bytes[..length];
        fill(number, message);
        let fds = attachments(number, count);
        if number % 500 == 0 && !stopped {
            slow.signal(Signal::STOP);
            wait_stopped(slow.id(), slow.id());
            stopped = true;
        }
        // With room for so many of them, or rings, it goes on beside one that is stopped.
        if let Err(error) = publisher.try_send_with(message, &fds) {
            assert!(matches!(error, TrySendError::Full), "{error}");
            if std::mem::take(&mut stopped) {
                slow.signal(Signal::CONT);
            }
            publisher.send_with(message, &fds).unwrap();
        }
    }
    if stopped {
        slow.signal(Signal::CONT);
    }
    let stats = publisher.stats();
    assert!(stats.spills > 0, "{stats:?}");
    assert!(publisher.drain(PATIENCE).unwrap());
    assert_eq!(publisher.stats().evicted, 0);
    drop(publisher);
    readers.into_iter().for_each(|reader| reader.finish());
}

/// Whoever takes no attachments is waited for, whatever is decided about the slow: a message that waits for that is written already,
/// where the ring may not be left.
#[test]
fn a_message_that_waits_stays_where_it_was_written() {
    let _scene = Scene::new();
    let after = Duration::ZERO;
    let mut publisher = unbound(1 << 14)
        .attachments_in_flight(1)
        .when_full(WhenFull::Disconnect { after })
        .unbound()
        .unwrap();
    let [mut fast, mut slow] = [(); 2].map(|()| {
        let (here, there) = Link::pair().unwrap();
        publisher.attach(here).unwrap();
        Subscriber::builder().over(there).unwrap()
    });
    for number in 0..100_u64 {
        let message = number.to_le_bytes();
        let receive = |subscriber: &mut Subscriber| {
            let mut message = subscriber.recv().unwrap();
            assert_eq!(message.to_vec(), number.to_le_bytes());
            check_attachments(number, 1, message.take_attachments().unwrap());
        };
        publisher
            .send_with(&message, &attachments(number, 1))
            .unwrap();
        receive(&mut fast);
        let other = [0xff; 100];
        let short = Duration::from_millis(1);
        let timed_out = publisher.send_timeout_with(&other, &attachments(7, 1), short);
        assert!(
            matches!(timed_out, Err(SendTimeoutError::TimedOut)),
            "{timed_out:?}"
        );
        receive(&mut slow);
    }
    assert_eq!(publisher.stats().disconnected, 0);
}

/// One that is killed is not waited for, and what was on its way to it is closed.
#[test]
fn a_killed_subscriber_is_not_waited_for() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut publisher = unbound(1 << 14).bind_to(&address).unwrap();
    let reader = scene.spawn("reader", &(address.to_string(), Policy::Block, 3_000_u64));
    publisher.wait_for_subscribers(1).unwrap();
    reader.signal(Signal::STOP);
    wait_stopped(reader.id(), reader.id());
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    publisher
        .send_with(b"a socket", &vec![theirs.into()].into())
        .unwrap();
    while publisher.try_send_with(b"more", &attachments(1, 3)).is_ok() {}
    let waiting = std::thread::spawn(move || {
        for number in 0..200 {
            publisher
                .send_with(b"more", &attachments(number, 3))
                .unwrap();
        }
        publisher
    });
    reader.kill_and_reap();
    drop(waiting.join().unwrap());
    none_is_kept();
    // Nobody has the other end any more.
    let mut end = [0];
    let read = rustix::net::recv(&ours, &mut end, rustix::net::RecvFlags::empty());
    assert_eq!(read.unwrap().1, 0);
}

fn publisher(role: &Role) {
    let address: String = role.hear();
    let address = address.parse().expect("an address");
    let mut publisher = unbound(1 << 16).bind_to(&address).expect("a place");
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("one");
    for number in 0..40_u64 {
        let fds = attachments(number, 2);
        publisher
            .send_with(&number.to_le_bytes(), &fds)
            .expect("room");
    }
    // On its way, for a message that never comes.
    let mut place = publisher.reserve(8).expect("room");
    place.attach(&attachments(40, 2)).expect("room");
    role.tell(&());
    role.hear::<()>();
}

/// What a killed publisher had committed is received, attachments included; what it had attached to nothing is closed.
#[test]
fn a_killed_publisher_leaves_what_it_has_committed() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let publisher = scene.spawn("publisher", &address.to_string());
    publisher.hear::<()>();
    let mut subscriber = Subscriber::builder().connect_to(&address).unwrap();
    publisher.hear::<()>();
    publisher.kill_and_reap();
    for number in 0..40_u64 {
        let mut message = subscriber.recv().unwrap();
        assert_eq!(message.to_vec(), number.to_le_bytes());
        check_attachments(number, 2, message.take_attachments().unwrap());
    }
    let over = subscriber.recv().unwrap_err();
    assert!(
        matches!(
            over,
            RecvError::Disconnected {
                reason: Reason::Died
            }
        ),
        "{over}"
    );
}

/// Whoever joins in between gets messages with all that they have, from the first one on.
#[test]
fn they_come_to_those_who_join_in_between() {
    let _scene = Scene::new();
    let mut publisher = unbound(1 << 14).unbound().unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let (tell, links) = std::sync::mpsc::channel::<Link>();
    std::thread::scope(|scope| {
        let done = &done;
        scope.spawn(move || {
            let mut number = 0_u64;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                while let Ok(link) = links.try_recv() {
                    publisher.attach(link).unwrap();
                }
                let count = number as usize % 3;
                let mut place = publisher.reserve(8).unwrap();
                place.copy_from_slice(&number.to_le_bytes());
                let fds = attachments(number, count);
                place.attach(&fds).unwrap();
                place.commit();
                number += 1;
            }
        });
        for _ in 0..300 {
            let (here, there) = Link::pair().unwrap();
            tell.send(here).unwrap();
            let mut subscriber = Subscriber::builder().over(there).unwrap();
            let mut last = None;
            for _ in 0..20 {
                let mut message = subscriber.recv().unwrap();
                let number = number(&message.to_vec());
                assert!(last.is_none_or(|last| number == last + 1));
                last = Some(number);
                let fds = message.take_attachments().unwrap();
                check_attachments(number, number as usize % 3, fds);
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    none_is_kept();
}

fn limit_descriptors(soft: u64) -> Rlimit {
    let before = getrlimit(Resource::Nofile);
    let current = Some(soft);
    setrlimit(Resource::Nofile, Rlimit { current, ..before }).expect("lower");
    before
}

fn poor(role: &Role) {
    let address: String = role.hear();
    let mut subscriber = Subscriber::builder()
        .connect_to(&address.parse().expect("an address"))
        .expect("a publisher");
    let mut message = subscriber.recv().expect("a first one");
    check_attachments(0, 8, message.take_attachments().expect("they came"));
    drop(message);
    // Threads that close descriptors have gone by then.
    let open = Census::take().descriptors() as u64;
    let before = limit_descriptors(open + 3);
    role.tell(&());
    let mut message = subscriber.recv().expect("the bytes");
    assert_eq!(message.to_vec(), b"second");
    let error = message.take_attachments().expect_err("too many");
    let AttachmentError::Refused { why } = &error else {
        panic!("{error}")
    };
    assert!(why.contains("RLIMIT_NOFILE"), "{error}");
    drop(message);
    setrlimit(Resource::Nofile, before).expect("as it was");
    role.tell(&());
    // What comes behind it may be overwritten by then, and is not read.
    let over = loop {
        match subscriber.recv() {
            Ok(mut message) => drop(message.take_attachments()),
            Err(error) => break error,
        }
    };
    let RecvError::Disconnected {
        reason: Reason::Broken { why },
    } = &over
    else {
        panic!("{over}")
    };
    assert!(why.contains("RLIMIT_NOFILE"), "{over}");
    role.tell(&());
}

/// A subscriber at its limit is told that, has the bytes, and ends; its publisher goes on.
#[test]
fn a_subscriber_at_its_limit_is_told() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut publisher = unbound(1 << 14).bind_to(&address).unwrap();
    let poor = scene.spawn("poor", &address.to_string());
    publisher.wait_for_subscribers(1).unwrap();
    publisher.send_with(b"first", &attachments(0, 8)).unwrap();
    poor.hear::<()>();
    publisher.send_with(b"second", &attachments(1, 8)).unwrap();
    poor.hear::<()>();
    while publisher.subscribers() > 0 {
        publisher.send_with(b"more", &attachments(2, 2)).unwrap();
    }
    poor.hear::<()>();
    poor.finish();
    wait_until("it to have left", || publisher.stats().left == 1);
}

fn commoner(role: &Role) {
    let count: usize = role.hear();
    let [mut quick, mut slow] = [(); 2].map(|()| None::<Subscriber>);
    let mut publisher = unbound(1 << 14)
        .attachments_in_flight(10_000)
        .unbound()
        .expect("one");
    for subscriber in [&mut quick, &mut slow] {
        let (here, there) = Link::pair().expect("a pair");
        publisher.attach(here).expect("a link");
        *subscriber = Some(Subscriber::builder().over(there).expect("a publisher"));
    }
    let [mut quick, mut slow] = [quick, slow].map(|subscriber| subscriber.expect("made above"));
    // The kernel counts the descriptors of a user that are on their way, and compares them with this.
    let before = limit_descriptors(Census::take().descriptors() as u64 + 30);
    let limit = getrlimit(Resource::Nofile).current.expect("just set") as usize;
    let mut sent = Vec::new();
    let refused = loop {
        let number = sent.len() as u64;
        match publisher.try_send_with(&number.to_le_bytes(), &attachments(number, count)) {
            Ok(()) => sent.push(number),
            Err(error) => break error,
        }
        assert!(sent.len() * count * 2 <= limit + 2 * count, "no limit");
    };
    assert!(matches!(refused, TrySendError::Full), "{refused}");
    // Whatever was told to one of them alone is void.
    for number in 1000..1005_u64 {
        let fds = attachments(number, count);
        let refused = publisher.try_send_with(&number.to_le_bytes(), &fds);
        assert!(refused.is_err());
        // The same again is told to nobody twice.
        for _ in 0..100 {
            assert!(
                publisher
                    .try_send_with(&number.to_le_bytes(), &fds)
                    .is_err()
            );
        }
    }
    publisher.send(b"plain").expect("room");
    // It waits until they are taken.
    let sending = std::thread::spawn(move || {
        for number in 2000..2100_u64 {
            let fds = attachments(number, count);
            publisher
                .send_with(&number.to_le_bytes(), &fds)
                .expect("room");
        }
        publisher
    });
    let read = |subscriber: &mut Subscriber| {
        let mut message = subscriber.recv().expect("a message");
        let bytes = message.to_vec();
        if bytes == b"plain" {
            assert!(!message.has_attachments());
            return;
        }
        let number = number(&bytes);
        assert!(!(1000..2000).contains(&number), "one that was not sent");
        check_attachments(
            number,
            count,
            message.take_attachments().expect("they came"),
        );
    };
    for _ in 0..sent.len() + 1 + 100 {
        read(&mut quick);
        read(&mut slow);
    }
    let publisher = sending.join().expect("all sent");
    assert_eq!(publisher.stats().evicted, 0);
    setrlimit(Resource::Nofile, before).expect("as it was");
    role.tell(&());
}

/// A user that has as many on their way as the kernel allows waits, whatever it was in the middle of.
#[test]
fn the_limit_of_a_user_is_waited_for() {
    let scene = Scene::new();
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: another user takes root, and this one may have others on their way");
        return;
    }
    // Who may do anything is not counted.
    let start = Start {
        user: Some(54_321),
        ..Start::default()
    };
    for count in [1, 3] {
        let commoner = scene.spawn_like(&start, "commoner", &count);
        commoner.hear::<()>();
        commoner.finish();
    }
}

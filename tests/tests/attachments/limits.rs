//! Where descriptors are short.

use memlane::{AttachmentError, Link, Reason, RecvError, Subscriber, TrySendError};
use memlane_tests::{
    Census, Role, Scene, Start, attachments, check_attachments, number, unbound, wait_until,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn limit_descriptors(soft: u64) -> Rlimit {
    let before = getrlimit(Resource::Nofile);
    let current = Some(soft);
    setrlimit(Resource::Nofile, Rlimit { current, ..before }).expect("lower");
    before
}

pub(crate) fn poor(role: &Role) {
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

pub(crate) fn commoner(role: &Role) {
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

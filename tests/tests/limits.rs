//! Where it ends: how many subscribers and pages there may be, which options and names are possible,
//! and what the errors say.

use std::{collections::BTreeMap, fs, time::Duration};

use memlane::{Address, Error, Link, Publisher, SendError, Subscriber, TrySendError};
use memlane_region::page_size;
use memlane_tests::{Census, PATIENCE, Part, Policy, Role, Scene, Wish, play, unbound, wait_until};
use memlane_transport::Fd;
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[("publisher", publisher), ("lane end", lane_end)];

#[test]
fn other_process() {
    play(ROLES);
}

fn block() -> Wish {
    Wish {
        policy: Policy::Block,
        trusting: false,
    }
}

#[test]
fn more_subscribers_than_there_may_be() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut publisher = unbound(page_size())
        .max_subscribers(2)
        .bind_to(&address)
        .unwrap();
    let first = block().connect(&address).unwrap();
    let mut second = block().connect(&address).unwrap();
    for _ in 0..10 {
        let error = block().connect(&address).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the publisher refused this subscriber: it has 2 subscribers, and takes no more"
        );
    }
    drop(first);
    wait_until("it has left", || publisher.subscribers() == 1);
    let mut third = block().connect(&address).unwrap();
    publisher.send(b"to both").unwrap();
    let mut message = Vec::new();
    for subscriber in [&mut second, &mut third] {
        subscriber.recv(&mut message).unwrap();
        assert_eq!(message, b"to both");
    }
}

#[test]
fn nobody_may_subscribe() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut publisher = unbound(page_size())
        .max_subscribers(0)
        .bind_to(&address)
        .unwrap();
    let error = block().connect(&address).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    publisher.send(b"to nobody").unwrap();
}

#[test]
fn rings_that_are_not_possible() {
    let _scene = Scene::new();
    let page = page_size();
    for bytes in [0, 1, 8, 1000, page - 1, page + 1, 3 * page, usize::MAX] {
        let text = unbound(bytes).unbound().unwrap_err().to_string();
        assert!(
            text.contains(&bytes.to_string()) && text.contains("power of two"),
            "{text}"
        );
    }
    // Powers of two, and more than any machine has.
    for bytes in [1 << 45, 1 << 50, 1 << 62, 1 << 63] {
        let error = unbound(bytes).unbound().unwrap_err();
        assert!(matches!(error, Error::Region(_)), "{error:?}");
        println!("{error}");
    }
}

#[test]
fn messages_that_are_too_large() {
    let _scene = Scene::new();
    let max = 5 * page_size();
    let mut publisher = unbound(page_size())
        .pool_bytes(1 << 20)
        .max_message(max)
        .unbound()
        .unwrap();
    assert_eq!(publisher.max_message(), max);
    for len in [max + 1, 6 * page_size(), 1 << 20] {
        let message = vec![0; len];
        let expected = format!(
            "a message of {len} bytes is too large: expected at most {max} (PublisherBuilder::max_message)"
        );
        let error = publisher.send(&message).unwrap_err();
        assert!(matches!(error, SendError::TooLarge { .. }));
        assert_eq!(error.to_string(), expected);
        let error = publisher.try_send(&message).unwrap_err();
        assert!(matches!(error, TrySendError::TooLarge { .. }));
        assert_eq!(error.to_string(), expected);
        let error = publisher.send_timeout(&message, PATIENCE).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    for len in [usize::MAX, usize::MAX - 7, 1 << 40, u32::MAX as usize] {
        assert!(publisher.reserve(len).is_err());
        assert!(publisher.try_reserve(len).is_err());
        assert!(publisher.reserve_timeout(len, PATIENCE).is_err());
    }
    publisher.send(&vec![0; max]).unwrap();
    assert_eq!(publisher.stats().messages, 1);
}

#[test]
fn names_that_are_none() {
    let _scene = Scene::new();
    for name in [
        "", ".", "..", ".camera", "a/b", "a b", "/camera", "cämera", "a\0b",
    ] {
        let errors = [
            Publisher::bind(name).unwrap_err(),
            Subscriber::connect(name).unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, Error::Name { .. }), "{error:?}");
            assert!(
                error.to_string().contains("is not a service name: 1 to 64"),
                "{error}"
            );
        }
    }
}

fn publisher(role: &Role) {
    let name: String = role.hear();
    match Publisher::builder().ring_bytes(page_size()).bind(&name) {
        Ok(mut publisher) => {
            role.tell(&String::new());
            publisher.wait_for_subscribers(1).expect("a subscriber");
            publisher.send(name.as_bytes()).expect("room");
            role.hear::<()>();
        }
        Err(error) => role.tell(&error.to_string()),
    }
}

/// One name, one publisher; a name is free again when its publisher was dropped, or killed.
#[test]
fn two_publishers_of_one_name() {
    let scene = Scene::new();
    let address = scene.address("camera");
    let mut here = unbound(page_size()).bind_to(&address).unwrap();
    let error = unbound(page_size()).bind_to(&address).unwrap_err();
    assert!(error.to_string().contains("is in use by"), "{error}");
    let other = scene.spawn("publisher", &"camera");
    let error: String = other.hear();
    assert!(error.contains("is in use by"), "{error}");
    other.finish();
    // And the first has come to no harm.
    let mut subscriber = block().connect(&address).unwrap();
    here.send(b"unharmed").unwrap();
    let mut message = Vec::new();
    subscriber.recv(&mut message).unwrap();
    assert_eq!(message, b"unharmed");
    drop(here);
    for round in 0..10 {
        let other = scene.spawn("publisher", &"camera");
        assert_eq!(other.hear::<String>(), "");
        let mut subscriber = block().connect(&address).unwrap();
        subscriber.recv(&mut message).unwrap();
        assert_eq!(message, b"camera");
        if round % 2 == 0 {
            // Gone before the subscriber has noticed: the next publisher finds the name.
            other.kill_and_reap();
        } else {
            other.tell(&());
            other.finish();
        }
    }
    let error = block().connect(&address).unwrap_err().to_string();
    assert!(error.contains("nobody listens at"), "{error}");
}

#[test]
fn connecting_to_nobody() {
    let scene = Scene::new();
    let address = scene.address("camera");
    let error = block().connect(&address).unwrap_err();
    let says = format!("nobody listens at {address}: start the service");
    assert!(error.to_string().starts_with(&says), "{error}");
    // A file of that name is not removed for it, nor taken for a service.
    let path = scene.directory().join("memlane").join("camera");
    fs::write(&path, "precious").unwrap();
    block().connect(&address).unwrap_err();
    let error = unbound(page_size()).bind_to(&address).unwrap_err();
    assert!(error.to_string().contains("not a socket"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();
    // A directory that is not there.
    let lost = Address::path(scene.directory().join("nowhere").join("camera")).unwrap();
    block().connect(&lost).unwrap_err();
    unbound(page_size()).bind_to(&lost).unwrap_err();
}

// ---- what an idle lane costs ----

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum End {
    Publisher { bound: bool },
    Subscriber { bound: bool },
}

/// What one process holds for one lane.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cost {
    descriptors: usize,
    /// Kilobytes of memory in regions that it made itself, each page once.
    own: u64,
}

/// Makes one end of a lane, and says what that costs.
fn lane_end(role: &Role) {
    let (end, policy, ring_bytes): (End, Policy, usize) = role.hear();
    let before = Census::take();
    let (publisher, subscriber) = match end {
        End::Publisher { bound } => {
            let builder = unbound(ring_bytes).wait(policy.into());
            let publisher = if bound {
                builder.bind("lane").expect("a publisher")
            } else {
                let publisher = builder.driven().unbound().expect("a publisher");
                let link: Fd = role.hear();
                let link = Link::from_fd(link.into()).expect("a link");
                publisher.attach(link).expect("a link");
                publisher
            };
            role.tell(&());
            publisher.wait_for_subscribers(1).expect("a subscriber");
            let _ = publisher.stats();
            (Some(publisher), None)
        }
        End::Subscriber { bound } => {
            let wish = Wish {
                policy,
                trusting: false,
            };
            let mut subscriber = if bound {
                wish.connect_by_name("lane").expect("a publisher")
            } else {
                let link: Fd = role.hear();
                let link = Link::from_fd(link.into()).expect("a link");
                wish.over(link).expect("a publisher")
            };
            // It makes what it needs to sleep when it first does.
            if let memlane_tests::AnySubscriber::Untrusting(subscriber) = &mut subscriber {
                let time = Duration::from_millis(1);
                drop(subscriber.recv_timeout(time).map(drop));
            }
            (None, Some(subscriber))
        }
    };
    role.hear::<()>();
    let after = Census::take();
    role.tell(&Cost {
        descriptors: after.descriptors() - before.descriptors(),
        own: memory_of_regions(match end {
            End::Publisher { .. } => "memlane-ring",
            End::Subscriber { .. } => "memlane-control",
        }),
    });
    role.hear::<()>();
    drop((publisher, subscriber));
}

/// Kilobytes of the regions of that name, the second image of a ring not counted.
fn memory_of_regions(name: &str) -> u64 {
    let smaps = fs::read_to_string("/proc/self/smaps").expect("/proc");
    let mut sizes: BTreeMap<(String, u64), u64> = BTreeMap::new();
    let mut current = None;
    for line in smaps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Addresses, permissions, offset, device, inode, and perhaps a name.
        if fields.len() >= 5 && fields[0].contains('-') {
            let offset = u64::from_str_radix(fields[2], 16).expect("an offset");
            current = fields
                .get(5)
                .is_some_and(|file| file.contains(name))
                .then(|| (fields[4].to_owned(), offset));
        } else if let (Some(key), ["Size:", size, "kB"]) = (&current, &fields[..]) {
            let size: u64 = size.parse().expect("a size");
            sizes.insert(key.clone(), size);
        }
    }
    // The first image starts at 0 and holds everything; the second starts inside of it.
    sizes
        .iter()
        .filter(|((_, offset), _)| *offset == 0)
        .map(|(_, size)| size)
        .sum()
}

/// The ring and two pages; six descriptors a side, the subscriber's page at the publisher's, the service's listener, and what it
/// keeps for a shortage, at most.
#[test]
fn what_an_idle_lane_costs() {
    for policy in Policy::ALL {
        for bound in [false, true] {
            let scene = Scene::new();
            let ring_bytes: usize = 1 << 16;
            let publisher =
                scene.spawn("lane end", &(End::Publisher { bound }, policy, ring_bytes));
            let subscriber_end = End::Subscriber { bound };
            let subscriber = if bound {
                publisher.hear::<()>();
                scene.spawn("lane end", &(subscriber_end, policy, ring_bytes))
            } else {
                let (here, there) = Link::pair().unwrap();
                publisher.tell(&Fd::from(here.into_fd()));
                publisher.hear::<()>();
                let subscriber = scene.spawn("lane end", &(subscriber_end, policy, ring_bytes));
                subscriber.tell(&Fd::from(there.into_fd()));
                subscriber
            };
            // A subscriber that sleeps has slept once when it answers.
            subscriber.tell(&());
            let of_subscriber: Cost = subscriber.hear();
            publisher.tell(&());
            let of_publisher: Cost = publisher.hear();
            println!("{policy:?}, bound: {bound}: {of_publisher:?}, {of_subscriber:?}");
            let listener = if bound { 2 } else { 0 };
            let most = if policy == Policy::Poll { 4 } else { 6 };
            assert!(
                of_publisher.descriptors <= most + 1 + listener
                    && of_subscriber.descriptors <= most,
                "{of_publisher:?}, {of_subscriber:?}"
            );
            let page = page_size() as u64 / 1024;
            assert_eq!(of_publisher.own, ring_bytes as u64 / 1024 + page);
            assert_eq!(of_subscriber.own, page);
            for child in [subscriber, publisher] {
                child.tell(&());
                child.finish();
            }
        }
    }
}

/// In one process as well: over a pair, there is no process to watch on either side.
#[test]
fn what_a_lane_within_a_process_costs() {
    let _scene = Scene::new();
    let before = Census::take();
    let publisher = unbound(page_size()).driven().unbound().unwrap();
    let (here, there) = Link::pair().unwrap();
    publisher.attach(here).unwrap();
    let subscriber = std::thread::scope(|scope| {
        let joining = scope.spawn(|| block().over(there).unwrap());
        publisher.wait_for_subscribers(1).unwrap();
        joining.join().unwrap()
    });
    let both = Census::beside(&publisher);
    // Publisher: epoll, ring, link, page, doorbell, ringer. Subscriber: epoll, link, doorbell, ringer.
    assert_eq!(both.descriptors() - before.descriptors(), 10);
    drop(subscriber);
    publisher.drive().unwrap();
    drop(publisher);
    before.settle();
}

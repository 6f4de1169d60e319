//! Lanes between processes that have nothing in common but one directory: with mounts, pids, users and networks of their
//! own, as containers have.
//!
//! Needs unshare(1), and a kernel that lets it; `MEMLANE_REQUIRE_UNSHARE` makes it a failure where it is skipped.

use std::{
    os::fd::AsFd,
    path::PathBuf,
    process::{Command, Stdio},
};

use memlane::{Access, Error, Link, Reason, RecvError, Subscriber, WaitPolicy};
use memlane_region::page_size;
use memlane_tests::{
    PATIENCE, Part, Role, Scene, Start, alive, check, fill, play, thread_id, unbound, wait_asleep,
    wait_until,
};
use memlane_transport::{Error as LinkError, Fd, Listener};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[
    ("publisher", publisher),
    ("subscriber", subscriber),
    ("holder", holder),
    ("onlooker", onlooker),
    ("listener", listener),
    ("candidate", candidate),
    ("host", host),
];

#[test]
fn other_process() {
    play(ROLES);
}

/// Which of its own a process gets.
const MOUNTS: &[&str] = &["--mount"];
const PIDS: &[&str] = &["--pid", "--fork", "--kill-child", "--mount-proc"];
const ROOT_ONLY: &[&str] = &["--user", "--map-root-user"];
const OTHER_NUMBER: &[&str] = &["--user", "--map-user=4711", "--map-group=4711"];
const NO_NUMBERS: &[&str] = &["--user"];
const NETWORK: &[&str] = &["--net"];
const EVERYTHING: &[&str] = &[
    "--mount",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--user",
    "--map-root-user",
    "--net",
    "--ipc",
    "--uts",
];

/// Whether the kernel lets this process make these. To be asked in a scene: it takes descriptors.
fn possible(namespaces: &[&str]) -> bool {
    let tried = Command::new("unshare")
        .args(namespaces)
        .arg("true")
        .stdin(Stdio::null())
        .output();
    let why = match tried {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    assert!(
        std::env::var_os("MEMLANE_REQUIRE_UNSHARE").is_none(),
        "MEMLANE_REQUIRE_UNSHARE is set, and unshare {namespaces:?} fails: {why}"
    );
    eprintln!("skipped: unshare {namespaces:?} fails: {}", why.trim());
    false
}

/// A process in namespaces of its own. Where it has mounts of its own, it sees the directory at another path, and nothing
/// else of the scene.
fn inside(scene: &Scene, namespaces: &[&str]) -> Start {
    let shared = scene.directory().join("memlane");
    let mut through: Vec<String> = Vec::new();
    let mut directory = shared.clone();
    if !namespaces.is_empty() {
        through.push("unshare".to_owned());
        through.extend(namespaces.iter().map(|flag| (*flag).to_owned()));
    }
    if namespaces.contains(&"--mount") {
        directory = PathBuf::from("/run/meeting-place");
        let script = format!(
            "mount -t tmpfs none /run && mkdir {place} && mount --bind {shared} {place} && \
             mount -t tmpfs none {scene} && exec \"$0\" \"$@\"",
            place = directory.display(),
            shared = shared.display(),
            scene = scene.directory().display(),
        );
        through.extend(["sh".to_owned(), "-c".to_owned(), script]);
    }
    Start {
        through,
        user: None,
        directory: Some(directory),
    }
}

/// In the ring, and in the pool, which grows.
fn length(number: u64) -> usize {
    match number % 10 {
        3 => 30_000,
        7 => 100_000 + number as usize * 100,
        _ => 100,
    }
}

const MESSAGES: u64 = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum End {
    Closes,
    IsKilled,
}

/// Publishes, and ends.
fn publisher(role: &Role) {
    let end: End = role.hear();
    let mut publisher = unbound(1 << 14).bind("lane").expect("a service");
    role.tell(&());
    publisher.wait_for_subscribers(1).expect("a subscriber");
    let mut buffer = vec![0; 200_000];
    for number in 0..MESSAGES {
        let message = &mut buffer[..length(number)];
        fill(number, message);
        publisher.send(message).expect("room");
        alive();
    }
    assert!(publisher.pool_bytes() > 0, "it has not grown");
    role.tell(&());
    if end == End::IsKilled {
        role.hear::<()>();
    }
    publisher.close();
}

/// Receives everything, and says how many messages that was, and why it ended.
fn subscriber(role: &Role) {
    let policy: bool = role.hear();
    let wait = match policy {
        true => WaitPolicy::Block,
        false => WaitPolicy::Adaptive,
    };
    let mut subscriber = Subscriber::builder()
        .wait(wait)
        .connect("lane")
        .expect("a service");
    role.tell(&());
    let mut received = 0;
    let reason = loop {
        match subscriber.recv() {
            Ok(message) => {
                assert_eq!(message.len(), length(received));
                check(received, &message.to_vec());
                received += 1;
            }
            Err(RecvError::Disconnected { reason }) => break reason,
            Err(error) => panic!("{error}"),
        }
        alive();
    };
    role.tell(&(received, reason.to_string()));
}

/// Every message from each kind of namespace to each other, with an orderly end and a death.
#[test]
fn lanes_between_namespaces() {
    let combined: Vec<&str> = [MOUNTS, PIDS].concat();
    let first = Scene::new();
    let kinds: Vec<&[&str]> = [
        &[],
        &combined[..],
        ROOT_ONLY,
        OTHER_NUMBER,
        NETWORK,
        EVERYTHING,
    ]
    .into_iter()
    .filter(|namespaces: &&[&str]| namespaces.is_empty() || possible(namespaces))
    .collect();
    drop(first);
    for (at, publishing) in kinds.iter().enumerate() {
        for (beside, subscribing) in kinds.iter().enumerate() {
            let end = [End::Closes, End::IsKilled][(at + beside) % 2];
            let scene = Scene::new();
            let publisher = scene.spawn_like(&inside(&scene, publishing), "publisher", &end);
            publisher.hear::<()>();
            let subscriber =
                scene.spawn_like(&inside(&scene, subscribing), "subscriber", &(at % 2 == 0));
            subscriber.hear::<()>();
            publisher.hear::<()>();
            let reason = match end {
                End::Closes => {
                    publisher.finish();
                    Reason::Closed
                }
                End::IsKilled => {
                    publisher.kill_and_reap();
                    Reason::Died
                }
            };
            let (received, why): (u64, String) = subscriber.hear();
            assert_eq!(
                (received, why),
                (MESSAGES, reason.to_string()),
                "from {publishing:?} to {subscribing:?}"
            );
            subscriber.finish();
            // The name of one that was killed goes with the first who notices, from whichever namespace.
            assert_eq!(
                scene.services(),
                [""; 0],
                "from {publishing:?} to {subscribing:?}"
            );
        }
    }
}

/// Subscribes, over a link of which the parent gets a copy, and receives nothing.
fn holder(role: &Role) {
    role.hear::<()>();
    let address = memlane::address_of("lane").expect("an address");
    let link = Link::connect(&address).expect("a service");
    role.tell(&Fd::from(
        link.as_fd().try_clone_to_owned().expect("a copy"),
    ));
    let subscriber = Subscriber::builder().over(link).expect("a publisher");
    role.tell(&());
    role.hear::<()>();
    drop(subscriber);
}

/// A subscriber in other namespaces is killed while its link lives on elsewhere: its pidfd tells, whatever numbers it has
/// here and there, and a publisher that waits for room goes on.
#[test]
fn a_death_in_another_namespace() {
    for namespaces in [PIDS, NETWORK, ROOT_ONLY, EVERYTHING] {
        for driven in [false, true] {
            let scene = Scene::new();
            if !possible(namespaces) {
                continue;
            }
            let address = scene.address("lane");
            let mut builder = unbound(page_size()).wait(WaitPolicy::Block);
            if driven {
                builder = builder.driven();
            }
            let mut publisher = builder.bind_to(&address).unwrap();
            let child = scene.spawn_like(&inside(&scene, namespaces), "holder", &());
            let copy: Fd = child.hear();
            publisher.wait_for_subscribers(1).unwrap();
            child.hear::<()>();
            while publisher.try_send(&[0; 500]).is_ok() {}
            let (id, ids) = std::sync::mpsc::channel();
            std::thread::scope(|scope| {
                let publisher = &mut publisher;
                let sending = scope.spawn(move || {
                    id.send(thread_id()).unwrap();
                    publisher.send(&[0; 500]).expect("room");
                });
                wait_asleep(std::process::id(), ids.recv().unwrap());
                child.kill_and_reap();
                sending.join().unwrap();
            });
            wait_until("it is counted", || {
                publisher.drive().unwrap();
                publisher.stats().left == 1
            });
            assert_eq!(publisher.subscribers(), 0);
            drop(copy);
        }
    }
}

/// Listens until it is killed.
fn listener(role: &Role) {
    role.hear::<()>();
    let address = memlane::address_of("lane").expect("an address");
    let listener = Listener::bind(&address).expect("a name");
    role.tell(&());
    let _link = listener.accept().expect("a client");
    role.hear::<()>();
}

/// Says what the kernel knows here of the other end, and when that dies.
fn onlooker(role: &Role) {
    role.hear::<()>();
    let link = Link::connect(&memlane::address_of("lane").expect("an address")).expect("a name");
    let peer = link.peer().expect("a peer");
    role.tell(&(peer.pid(), peer.uid(), peer.pidfd().is_some()));
    let Some(pidfd) = peer.pidfd() else { return };
    let patience = Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    let died = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience));
    role.tell(&(died == Ok(1)));
}

/// A process of an outer pid namespace has no number inside, and a pidfd all the same.
#[test]
fn a_peer_without_a_number() {
    let scene = Scene::new();
    if !possible(PIDS) {
        return;
    }
    let outside = scene.spawn_like(&inside(&scene, &[]), "listener", &());
    outside.hear::<()>();
    let inside = scene.spawn_like(&inside(&scene, PIDS), "onlooker", &());
    let (pid, uid, pidfd): (Option<u32>, u32, bool) = inside.hear();
    assert_eq!(pid, None);
    assert_eq!(uid, rustix::process::geteuid().as_raw());
    if !pidfd {
        eprintln!("skipped: no pidfds of peers before Linux 6.5");
        return;
    }
    outside.kill_and_reap();
    assert!(inside.hear::<bool>(), "the death was not noticed");
    inside.finish();
    let _ = memlane_transport::remove_stale(&scene.address("lane"));
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Rule {
    SameUser,
    Anyone,
    Users(Vec<u32>),
}

impl From<Rule> for Access {
    fn from(rule: Rule) -> Access {
        match rule {
            Rule::SameUser => Access::SameUser,
            Rule::Anyone => Access::Anyone,
            Rule::Users(users) => Access::users(users),
        }
    }
}

/// Tries to subscribe, and says how it went.
fn candidate(role: &Role) {
    let rule: Rule = role.hear();
    let subscriber = Subscriber::builder().access(rule.into()).connect("lane");
    let outcome = subscriber.as_ref().map(drop).map_err(Error::to_string);
    role.tell(&outcome);
    role.hear::<()>();
}

/// Publishes for whom a rule admits, at an address or by name.
fn host(role: &Role) {
    let (rule, address): (Rule, Option<String>) = role.hear();
    let builder = unbound(page_size()).access(rule.into());
    let publisher = match address {
        Some(address) => builder.bind_to(&address.parse().expect("an address")),
        None => builder.bind("lane"),
    };
    role.tell(&());
    role.hear::<()>();
    publisher.expect("a service").close();
}

/// Where no user has a number, all look alike: "the same user" cannot be told, and admits nobody, on either side. Another
/// rule can.
#[test]
fn users_without_numbers() {
    const ALIKE: &str = "which all users have here";
    let scene = Scene::new();
    if !possible(NO_NUMBERS) {
        return;
    }
    let overflow = 65534;
    {
        let mut publisher = unbound(page_size())
            .bind_to(&scene.address("lane"))
            .unwrap();
        for (rule, admitted) in [
            (Rule::SameUser, false),
            (Rule::Users(vec![overflow]), false),
            (Rule::Anyone, true),
        ] {
            let child = scene.spawn_like(&inside(&scene, NO_NUMBERS), "candidate", &rule);
            let outcome: Result<(), String> = child.hear();
            match outcome {
                Ok(()) => assert!(admitted, "{rule:?}"),
                Err(why) => {
                    assert!(!admitted, "{rule:?}: {why}");
                    assert!(why.contains(ALIKE), "{rule:?}: {why}");
                }
            }
            child.tell(&());
            child.finish();
        }
        publisher.send(b"to nobody").unwrap();
    }
    for (rule, admitted) in [
        (Rule::SameUser, false),
        (Rule::Users(vec![overflow]), false),
        (Rule::Anyone, true),
    ] {
        let child = scene.spawn_like(
            &inside(&scene, NO_NUMBERS),
            "host",
            &(rule.clone(), None::<String>),
        );
        child.hear::<()>();
        match Subscriber::builder().connect_to(&scene.address("lane")) {
            Ok(_) => assert!(admitted, "{rule:?}"),
            Err(error) => {
                assert!(!admitted, "{rule:?}: {error}");
                assert!(matches!(error, Error::Refused { .. }), "{error:?}");
                assert!(error.to_string().contains(ALIKE), "{rule:?}: {error}");
            }
        }
        child.tell(&());
        child.finish();
    }
}

/// Abstract names end where the network namespace does; paths do not.
#[test]
fn names_without_files() {
    let scene = Scene::new();
    if !possible(NETWORK) {
        return;
    }
    for (namespaces, reached) in [(&[][..], true), (NETWORK, false)] {
        let name = format!("@memlane-test-{}-{reached}", std::process::id());
        let orders = (Rule::SameUser, Some(name.clone()));
        let child = scene.spawn_like(&inside(&scene, namespaces), "host", &orders);
        child.hear::<()>();
        match Subscriber::builder().connect_to(&name.parse().unwrap()) {
            Ok(_) => assert!(reached),
            Err(Error::Link(LinkError::NotRunning { .. })) => assert!(!reached),
            Err(error) => panic!("{error}"),
        }
        child.tell(&());
        child.finish();
    }
}

//! Lanes between parent and child, over the links that the child is born with.

use std::{
    env,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::Stdio,
};

use memlane::{
    Child, Command, Error, Link, Publisher, RecvError, RecvTimeoutError, SendTimeoutError,
    Subscriber, WaitPolicy, parent, parent_link,
    sandbox::{self, Files, Filter},
};
use memlane_tests::{
    PATIENCE, Scene, alive, check, fill, unbound, wait_stopped, wait_until,
    wire::{Greeting, Opening, VERSION},
};
use rustix::process::{Pid, Signal, kill_process};

const ROLE: &str = "MEMLANE_SPAWNED_AS";

/// One of each way that messages go: in the ring, in chunks of the pool, which grows for them.
const LENGTHS: [usize; 6] = [0, 64, 4096, 100_000, 1 << 20, 4 << 20];
/// So many of each.
const ROUNDS: u64 = 20;

fn worker(role: &str) -> Command {
    Command::new(env::current_exe().expect("this executable"))
        .args([
            "spawned_process",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ROLE, role)
        .stdout(Stdio::null())
        .kill_on_drop(true)
}

/// All that a parent can take from it.
fn sandboxed(role: &str) -> Command {
    let command = worker(role)
        .no_network()
        .no_new_privileges()
        .files(Files::none().libraries().best_effort())
        .system_calls(Filter::program());
    if rustix::process::geteuid().is_root() {
        command.user(65534, 65534)
    } else {
        command
    }
}

#[test]
fn spawned_process() {
    let Ok(role) = env::var(ROLE) else {
        return;
    };
    match role.as_str() {
        "reads" => reads(Subscriber::builder(), true),
        "reads_and_trusts" => {
            // SAFETY: the publisher is this same program.
            reads(unsafe { Subscriber::builder().trust_publisher() }, true);
        }
        "writes" => writes(),
        "both" => both(),
        "leaves_a_child" => leaves_a_child(),
        "holds" => holds(),
        "of_the_future" => of_the_future(),
        other => panic!("no role {other}"),
    }
}

#[track_caller]
fn succeed(mut process: memlane::Process) {
    let status = process.wait_timeout(PATIENCE).expect("a child");
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}

/// Waits for the one subscriber, which may have failed.
#[track_caller]
fn joined(publisher: &Publisher) {
    let joined = publisher.wait_for_subscribers_timeout(1, PATIENCE / 2);
    assert!(joined.expect("a publisher"), "no subscriber");
}

fn send_all(publisher: &mut Publisher) {
    for number in 0..ROUNDS * LENGTHS.len() as u64 {
        alive();
        let length = LENGTHS[number as usize % LENGTHS.len()];
        let mut message = publisher.reserve(length).expect("room");
        fill(number, &mut message);
        message.commit();
    }
}

fn receive_all<T: memlane::Trust>(subscriber: &mut Subscriber<T>) {
    let mut bytes = Vec::new();
    for number in 0..ROUNDS * LENGTHS.len() as u64 {
        alive();
        let message = subscriber.recv().expect("a message");
        assert_eq!(message.len(), LENGTHS[number as usize % LENGTHS.len()]);
        bytes.resize(message.len(), 0);
        message.copy_to(&mut bytes);
        check(number, &bytes);
    }
    assert!(matches!(
        subscriber.recv(),
        Err(RecvError::Disconnected { .. })
    ));
}

fn reads<T: memlane::Trust>(builder: memlane::SubscriberBuilder<T>, enter: bool) {
    let link = parent().expect("a link");
    if enter {
        sandbox::enter().expect("seccomp");
        std::fs::File::open("/dev/null").expect_err("no files");
    }
    // A publisher that goes on waiting for whoever it has.
    let mut subscriber = builder
        .wait(WaitPolicy::Block)
        .over(link)
        .expect("a subscriber");
    receive_all(&mut subscriber);
}

fn writes() {
    let link = parent().expect("a link");
    sandbox::enter().expect("seccomp");
    std::fs::File::open("/dev/null").expect_err("no files");
    // Its control thread starts in the sandbox, and its pool grows there.
    let mut publisher = unbound(1 << 16).unbound().expect("a publisher");
    publisher.attach(link).expect("attached");
    joined(&publisher);
    send_all(&mut publisher);
}

#[test]
fn a_parent_publishes_to_a_child_in_a_sandbox() {
    let _scene = Scene::new();
    let Child { link, process, .. } = sandboxed("reads").spawn().expect("a child");
    let mut publisher = unbound(1 << 16).unbound().expect("a publisher");
    publisher.attach_process(link, &process).expect("attached");
    joined(&publisher);
    send_all(&mut publisher);
    drop(publisher);
    succeed(process);
}

#[test]
fn a_child_in_a_sandbox_can_trust_its_parent() {
    let _scene = Scene::new();
    let Child { link, process, .. } = sandboxed("reads_and_trusts").spawn().expect("a child");
    let mut publisher = unbound(1 << 16)
        .trust_subscribers()
        .unbound()
        .expect("a publisher");
    publisher.attach_process(link, &process).expect("attached");
    joined(&publisher);
    send_all(&mut publisher);
    drop(publisher);
    succeed(process);
}

#[test]
fn a_child_in_a_sandbox_publishes_to_its_parent() {
    let _scene = Scene::new();
    let Child { link, process, .. } = sandboxed("writes").spawn().expect("a child");
    let mut subscriber = Subscriber::builder()
        .over_process(link, &process)
        .expect("a subscriber");
    receive_all(&mut subscriber);
    drop(subscriber);
    succeed(process);
}

/// Sends back what comes, until nothing comes.
fn both() {
    let mut requests = Subscriber::builder()
        .over(parent_link("requests").expect("a link"))
        .expect("a subscriber");
    let mut answers = unbound(1 << 16).unbound().expect("a publisher");
    answers
        .attach(parent_link("answers").expect("a link"))
        .expect("attached");
    joined(&answers);
    loop {
        match requests.recv() {
            Ok(request) => answers.send(&request.to_vec()).expect("room"),
            Err(RecvError::Disconnected { .. }) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn several_lanes_between_parent_and_child() {
    let _scene = Scene::new();
    let mut child = worker("both")
        .link("requests")
        .link("answers")
        .spawn()
        .expect("a child");
    let mut link = |name| child.take_link(name).expect("a link");
    let mut requests = unbound(1 << 16).unbound().expect("a publisher");
    requests.attach(link("requests")).expect("attached");
    let mut answers = Subscriber::builder()
        .over(link("answers"))
        .expect("a subscriber");
    joined(&requests);
    for number in 0..1000_u32 {
        alive();
        requests.send(&number.to_ne_bytes()).expect("room");
        let answer = answers.recv().expect("an answer").to_vec();
        assert_eq!(answer, number.to_ne_bytes());
    }
    drop(requests);
    assert!(matches!(
        answers.recv(),
        Err(RecvError::Disconnected { .. })
    ));
    drop(answers);
    succeed(child.process);
}

/// Takes part in a lane, and starts a process that has a copy of the lane's link.
fn leaves_a_child() {
    let link = parent().expect("a link");
    let leash = parent_link("leash").expect("a link");
    // Before another process listens there, too.
    let publishes: bool = leash.recv().expect("what to be");
    let copy = |link: &Link| link.as_fd().try_clone_to_owned().expect("a copy");
    let (link_copy, leash_copy): (OwnedFd, OwnedFd) = (copy(&link), copy(&leash));
    #[allow(
        clippy::zombie_processes,
        reason = "gone when the leash is, and orphaned before"
    )]
    std::process::Command::new(env::current_exe().expect("this executable"))
        .args([
            "spawned_process",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ROLE, "holds")
        .stdin(Stdio::from(link_copy))
        .stderr(Stdio::from(leash_copy))
        .stdout(Stdio::null())
        .spawn()
        .expect("a process");
    if publishes {
        let publisher = unbound(1 << 16).unbound().expect("a publisher");
        publisher.attach(link).expect("attached");
        park()
    } else {
        let _subscriber = Subscriber::builder().over(link).expect("a subscriber");
        park()
    }
}

fn park() -> ! {
    loop {
        std::thread::park();
    }
}

fn holds() {
    let stderr = std::io::stderr();
    let leash = Link::from_fd(stderr.as_fd().try_clone_to_owned().expect("a copy"));
    let leash = leash.expect("a link");
    // Whoever else has the leash is dead when this is heard.
    leash.send("holding").expect("somebody");
    let _ = leash.recv::<String>();
}

/// A child whose own child has its link.
fn with_a_grandchild(publishes: bool) -> (Child, Link) {
    let mut child = worker("leaves_a_child")
        .link("leash")
        .spawn()
        .expect("a child");
    let leash = child.take_link("leash").expect("a link");
    leash.send(&publishes).expect("a child");
    let said: String = leash.recv_timeout(PATIENCE).expect("a grandchild");
    assert_eq!(said, "holding");
    (child, leash)
}

/// Waits for the end of a process that has lost its leash.
fn let_go(leash: Link) {
    rustix::net::shutdown(&leash, rustix::net::Shutdown::Both).expect("a socket");
}

#[test]
fn a_publisher_notices_a_child_whose_link_lives_on() {
    let _scene = Scene::new();
    for known in [true, false] {
        let (child, leash) = with_a_grandchild(false);
        let publisher = unbound(1 << 16).unbound().expect("a publisher");
        let Child {
            link, mut process, ..
        } = child;
        if known {
            publisher.attach_process(link, &process).expect("attached");
        } else {
            publisher.attach(link).expect("attached");
        }
        joined(&publisher);
        process.kill().expect("a child");
        let status = process.wait().expect("a child");
        assert_eq!(status.signal(), Some(9));
        if known {
            wait_until("the subscriber is gone", || publisher.subscribers() == 0);
        } else {
            // Nothing tells of it but the link, which the grandchild has.
            assert_eq!(publisher.subscribers(), 1);
        }
        let_go(leash);
        wait_until("the link is gone", || publisher.subscribers() == 0);
    }
}

#[test]
fn a_subscriber_notices_a_child_whose_link_lives_on() {
    let _scene = Scene::new();
    let (child, leash) = with_a_grandchild(true);
    let Child {
        link, mut process, ..
    } = child;
    let mut subscriber = Subscriber::builder()
        .over_process(link, &process)
        .expect("a subscriber");
    process.kill().expect("a child");
    assert!(matches!(
        subscriber.recv(),
        Err(RecvError::Disconnected { .. })
    ));
    process.wait().expect("a child");
    let_go(leash);
}

/// A child that is stopped is a slow one: it is waited for, and loses nothing.
#[test]
fn a_child_that_is_stopped_is_not_dead() {
    let _scene = Scene::new();
    let mut child = worker("both")
        .link("requests")
        .link("answers")
        .spawn()
        .expect("a child");
    let mut link = |name| child.take_link(name).expect("a link");
    let (theirs, answers) = (link("requests"), link("answers"));
    let process = child.process;
    let mut requests = unbound(1 << 14).unbound().expect("a publisher");
    requests.attach_process(theirs, &process).expect("attached");
    let mut answers = Subscriber::builder()
        .over_process(answers, &process)
        .expect("a subscriber");
    joined(&requests);
    let signal = |signal| {
        let pid = Pid::from_raw(process.id() as i32).expect("a process id");
        kill_process(pid, signal).expect("a child");
    };
    signal(Signal::STOP);
    wait_stopped(process.id(), process.id());
    let short = std::time::Duration::from_millis(20);
    let mut sent = 0_u32;
    loop {
        match requests.send_timeout(&sent.to_ne_bytes(), short) {
            Ok(()) => sent += 1,
            Err(SendTimeoutError::TimedOut) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(sent > 500, "{sent}");
    assert_eq!(requests.subscribers(), 1);
    signal(Signal::CONT);
    requests.send(&sent.to_ne_bytes()).expect("room");
    for number in 0..=sent {
        let answer = answers.recv_timeout(PATIENCE).expect("an answer").to_vec();
        assert_eq!(answer, number.to_ne_bytes());
    }
    // As a publisher, too.
    signal(Signal::STOP);
    wait_stopped(process.id(), process.id());
    requests.send(b"last").expect("room");
    assert!(matches!(
        answers.recv_timeout(short).map(drop),
        Err(RecvTimeoutError::TimedOut)
    ));
    signal(Signal::CONT);
    assert_eq!(answers.recv().expect("an answer").to_vec(), b"last");
    drop(requests);
    assert!(matches!(
        answers.recv(),
        Err(RecvError::Disconnected { .. })
    ));
    succeed(process);
}

/// Says another version over each link that it is born with, and hears this one.
fn of_the_future() {
    for name in ["first", "second"] {
        let link = parent_link(name).expect("a link");
        let version = VERSION + 1;
        link.send(&Opening { version }).expect("a parent");
        let opening: Opening = link.recv_timeout(PATIENCE).expect("its version");
        assert_eq!(opening.version, VERSION);
        // It hangs up, whether it has greeted or not.
        while link.recv_timeout::<Greeting>(PATIENCE).is_ok() {}
    }
}

/// A child that is another program, of another version, is told from ours at once, whichever end it has.
#[test]
fn a_child_of_another_version() {
    let _scene = Scene::new();
    let mut child = worker("of_the_future")
        .link("first")
        .link("second")
        .spawn()
        .expect("a child");
    let mut link = |name| child.take_link(name).expect("a link");
    let (first, second) = (link("first"), link("second"));
    let publisher = unbound(1 << 14).unbound().expect("a publisher");
    publisher
        .attach_process(first, &child.process)
        .expect("attached");
    wait_until("it is turned away", || publisher.stats().refused == 1);
    assert_eq!(publisher.subscribers(), 0);
    let error = Subscriber::builder()
        .over_process(second, &child.process)
        .unwrap_err();
    assert!(
        matches!(error, Error::Version { theirs, ours, .. } if (theirs, ours) == (VERSION + 1, VERSION)),
        "{error:?}"
    );
    succeed(child.process);
}

#[test]
fn what_is_no_pidfd_is_refused() {
    let _scene = Scene::new();
    let (here, there) = Link::pair().expect("a pair");
    let publisher = unbound(1 << 16).unbound().expect("a publisher");
    let null = std::fs::File::open("/dev/null").expect("a file");
    let error = publisher.attach_process(here, &null).unwrap_err();
    assert!(error.to_string().contains("expected its pidfd"), "{error}");
    let error = Subscriber::builder()
        .over_process(there, &null)
        .unwrap_err();
    assert!(error.to_string().contains("expected its pidfd"), "{error}");
}

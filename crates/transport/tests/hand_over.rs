//! Services that change hands: real processes, which die at any moment.

mod common;
mod hand_over {
    pub mod service;
}

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Directory, Reaped, abstract_name, alone, child, memfd, parent, role, until};
use hand_over::service::{
    Reply, Request, Word, Work, ask, client, die, generation, order, serve, stop,
};
use memlane_transport::hand_over::{Predecessor, Step, Successor};
use memlane_transport::{Address, Error, Fd, Limits, Link, Listener, remove_stale};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, getpid, kill_process, pidfd_getfd, pidfd_open,
};

const LONG: Duration = Duration::from_secs(60);

/// A service in a process of its own.
fn start(test: &str, address: &Address) -> Reaped {
    let (link, theirs) = Link::pair().unwrap();
    let process = Reaped::spawn(&mut child(test, "first", theirs));
    link.send(&address.to_string()).unwrap();
    link.recv::<()>().unwrap();
    process
}

/// What [`start`] started, and those that follow it: each test calls this first.
fn play(test: &str) -> bool {
    match role().as_deref() {
        None => return false,
        Some("first") => {
            let link = parent();
            let listener =
                Listener::bind(&link.recv::<String>().unwrap().parse().unwrap()).unwrap();
            link.send(&()).unwrap();
            drop(link);
            serve(Work::new(listener), test);
        }
        Some("client") => client(),
        Some(role) => {
            if role == "die before the start" {
                die();
            }
            let predecessor = Predecessor::inherited().unwrap().expect("a successor");
            if role == "die when started" {
                die();
            }
            if role == "forget the links" {
                // The wrong type: the link ends, and this process says why.
                predecessor.receive::<(Listener, u32)>().unwrap_err();
                // Some time passes between the hang-up and the end.
                for _ in 0..3 {
                    Command::new("true").status().unwrap();
                }
                std::process::exit(3);
            }
            order(role);
            let work: Work = predecessor.receive().unwrap();
            if role == "die when received" {
                die();
            }
            let mut held = Vec::new();
            if role == "kill the predecessor" {
                // As a child that it forked would, so that there is no hang-up.
                held = kill_predecessor();
            }
            predecessor.take_over().unwrap();
            drop(held);
            if role == "die when served" {
                die();
            }
            serve(work, test);
        }
    }
    true
}

/// Kills it, and gives what it had.
fn kill_predecessor() -> Vec<OwnedFd> {
    let pid: i32 = std::env::var("MEMLANE_PREDECESSOR")
        .unwrap()
        .parse()
        .unwrap();
    let process = Pid::from_raw(pid).unwrap();
    let pidfd = pidfd_open(process, PidfdFlags::empty()).unwrap();
    let held: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        // Refused where a process may not ptrace its parent (Yama): there the hang-up tells.
        .filter_map(|number| pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).ok())
        .collect();
    kill_process(process, Signal::KILL).unwrap();
    held
}

/// Clients that never stop asking notice nothing, whatever happens to the successors.
#[test]
fn under_load() {
    let test = "under_load";
    if play(test) {
        return;
    }
    let _alone = alone();
    let directory = Directory::new();
    let address = Address::path(directory.join("service")).unwrap();
    let mut first = start(test, &address);
    let control = Link::connect(&address).unwrap();
    let mut clients: Vec<_> = [true, false, true, false]
        .into_iter()
        .map(|keep| {
            let (link, theirs) = Link::pair().unwrap();
            let process = Reaped::spawn(&mut child(test, "client", theirs));
            link.send(&(address.to_string(), keep)).unwrap();
            link.recv::<()>().unwrap();
            (link, process)
        })
        .collect();
    let mut pid = ask(&control, 0).pid;
    for number in 1..=12 {
        let (role, step) = match number % 4 {
            0 => ("die before the start", Some(Step::Starting)),
            2 => ("die when received", Some(Step::Preparing)),
            _ => ("live", None),
        };
        control.send(&Request::Replace(role.to_owned())).unwrap();
        let reply: Reply = control.recv().unwrap();
        assert_eq!(reply.step, step.map(|step| format!("{step:?}")));
        assert_eq!(reply.pid != pid, step.is_none());
        pid = reply.pid;
        assert!(directory.join("service").exists());
    }
    first.succeed();
    for (link, process) in &mut clients {
        link.send(&()).unwrap();
        let requests: u64 = link.recv().unwrap();
        assert!(requests > 0);
        process.succeed();
    }
    stop(control, &address);
    assert!(
        !directory.join("service").exists(),
        "the last one removes it"
    );
}

/// More links than a packet takes, from a process that has no number left for as many duplicates; replies and counts go on.
#[test]
fn three_hundred_links() {
    let test = "three_hundred_links";
    if play(test) {
        return;
    }
    let _alone = alone();
    let directory = Directory::new();
    let address = Address::path(directory.join("service")).unwrap();
    let mut first = start(test, &address);
    let mut clients: Vec<_> = (0..300).map(|_| Link::connect(&address).unwrap()).collect();
    for (session, link) in clients.iter().enumerate() {
        assert_eq!(ask(link, session as u64).count, 1);
    }
    let control = Link::connect(&address).unwrap();
    control.send(&Request::Replace("live".to_owned())).unwrap();
    // Requests that nobody reads before the hand-over are read after it, and hang-ups noticed.
    for (session, link) in clients.iter().enumerate() {
        link.send(&Request::Next(session as u64)).unwrap();
    }
    drop(clients.split_off(290));
    let waiting: Vec<_> = (0..20).map(|_| Link::connect(&address).unwrap()).collect();
    assert_eq!(control.recv::<Reply>().unwrap().step, None);
    first.succeed();
    for link in &clients {
        assert_eq!(link.recv::<Reply>().unwrap().count, 2);
    }
    for (session, link) in waiting.iter().enumerate() {
        assert_eq!(ask(link, session as u64).count, 3);
    }
    drop((waiting, clients));
    stop(control, &address);
}

/// As long as the successor has not taken over, the old process goes on.
#[test]
fn successors_that_die() {
    let test = "successors_that_die";
    if play(test) {
        return;
    }
    let _alone = alone();
    let directory = Directory::new();
    let path = directory.join("service");
    let address = Address::path(&path).unwrap();
    let mut work = Work::new(Listener::bind(&address).unwrap());
    let client = Link::connect(&address).unwrap();
    work.links.push(work.listener.accept().unwrap());
    for (role, step) in [
        ("die before the start", Step::Starting),
        ("die when started", Step::Taking),
        ("forget the links", Step::Taking),
        ("die while receiving", Step::Taking),
        ("die when received", Step::Preparing),
    ] {
        let successor = Successor::spawn(generation(test, role)).unwrap();
        let failed = successor.hand_over(&work, LONG).unwrap_err();
        assert_eq!(failed.step, step, "{role}: {failed}");
        assert!(failed.to_string().contains("goes on"), "{failed}");
        still_served(&mut work, &client, &address);
        assert!(path.exists());
    }
    // One that gives up by itself is given the time to say so. (Three times, for a machine that is slow for once.)
    let own = (0..3).any(|_| {
        let successor = Successor::spawn(generation(test, "forget the links")).unwrap();
        let failed = successor.hand_over(&work, LONG).unwrap_err();
        failed.status.unwrap().code() == Some(3)
    });
    assert!(own, "killed before it could end");
    // These speak the procedure by hand, to die where no call returns.
    let successor = Successor::spawn(by_hand(test, "die when ready")).unwrap();
    let failed = successor.hand_over(&work, LONG).unwrap_err();
    assert_eq!(failed.step, Step::TakingOver, "{failed}");
    still_served(&mut work, &client, &address);
    let mut timeout = Duration::from_millis(200);
    until("one that hangs where it should take over", || {
        let successor = Successor::spawn(by_hand(test, "stop when ready")).unwrap();
        let failed = successor.hand_over(&work, timeout).unwrap_err();
        assert!(matches!(failed.source, Error::TimedOut), "{failed}");
        still_served(&mut work, &client, &address);
        // On a busy machine it does not come so far at first.
        timeout *= 2;
        failed.step == Step::TakingOver
    });
    // One that nobody hands anything to goes with the value.
    drop(Successor::spawn(generation(test, "live")).unwrap());
    // What cannot be encoded changes nothing, and tells which link it is.
    let (torn, mut theirs) = UnixStream::pair().unwrap();
    let torn = Link::from_fd(torn.into()).unwrap();
    theirs.write_all(b"m").unwrap();
    assert!(torn.is_between_messages());
    assert!(matches!(torn.try_recv::<()>(), Err(Error::WouldBlock)));
    assert!(!torn.is_between_messages());
    work.links.push(torn);
    let successor = Successor::spawn(generation(test, "live")).unwrap();
    let failed = successor.hand_over(&work, LONG).unwrap_err();
    let Error::Encode(source) = failed.source else {
        panic!("{failed}");
    };
    assert!(source.to_string().contains("in the middle"), "{source}");
    work.links.pop();
    still_served(&mut work, &client, &address);
    drop(work);
    assert!(!path.exists());
}

fn by_hand(test: &str, role: &str) -> Command {
    generation(&format!("by_hand_{test}"), role)
}

#[test]
fn by_hand_successors_that_die() {
    let Some(role) = role() else { return };
    let link = parent().adopting();
    link.send(&Word::Started).unwrap();
    let _work: Work = link.recv().unwrap();
    link.send(&Word::Ready).unwrap();
    match role.as_str() {
        "die when ready" => die(),
        _ => kill_process(getpid(), Signal::STOP).unwrap(),
    }
}

/// On its link, and in the backlog.
fn still_served(work: &mut Work, client: &Link, address: &Address) {
    let link = Link::connect(address).unwrap();
    link.send(&Request::Next(2)).unwrap();
    client.send(&Request::Next(1)).unwrap();
    let accepted = work.listener.accept().unwrap();
    for (server, client) in [(&accepted, &link), (&work.links[0], client)] {
        assert!(matches!(server.recv().unwrap(), Request::Next(_)));
        server.send("served").unwrap();
        assert_eq!(client.recv::<String>().unwrap(), "served");
    }
}

/// One that dies after it has taken over has served by then: nobody is left, and the kernel says so at once.
#[test]
fn a_successor_that_dies_later() {
    let test = "a_successor_that_dies_later";
    if play(test) {
        return;
    }
    let _alone = alone();
    let directory = Directory::new();
    let address = Address::path(directory.join("service")).unwrap();
    let mut work = Work::new(Listener::bind(&address).unwrap());
    let client = Link::connect(&address).unwrap();
    work.links.push(work.listener.accept().unwrap());
    let successor = Successor::spawn(generation(test, "die when served")).unwrap();
    let mut process = successor.hand_over(&work, LONG).unwrap();
    process.wait().unwrap();
    drop(work);
    assert!(client.recv::<()>().unwrap_err().is_disconnected());
    assert!(matches!(
        Link::connect(&address),
        Err(Error::NotRunning { .. })
    ));
    assert!(!directory.join("service").exists());
}

/// An old process that dies after it has sent its work is succeeded, and clients see by whom.
#[test]
fn a_predecessor_that_dies() {
    let test = "a_predecessor_that_dies";
    if play(test) {
        return;
    }
    let _alone = alone();
    let directory = Directory::new();
    for address in [
        Address::path(directory.join("service")).unwrap(),
        abstract_name("predecessor"),
    ] {
        let mut first = start(test, &address);
        let client = Link::connect(&address).unwrap();
        assert_eq!(ask(&client, 1).pid, first.0.id());
        assert_eq!(client.credentials().unwrap().pid, Some(first.0.id()));
        let replace = Request::Replace("kill the predecessor".to_owned());
        client.send(&replace).unwrap();
        let reply: Reply = client.recv().unwrap();
        assert!(!first.0.wait().unwrap().success());
        assert_eq!(ask(&client, 1).count, 2);
        let seen = Link::connect(&address).unwrap().credentials().unwrap();
        assert_eq!(seen.pid, Some(reply.pid));
        assert_ne!(reply.pid, first.0.id());
        stop(client, &address);
    }
    assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 0);
}

/// Who merely inherits the variable is no successor.
#[test]
fn impostors() {
    let test = "impostors";
    if role().is_some() {
        assert!(Predecessor::inherited().unwrap().is_none());
        return;
    }
    let _alone = alone();
    let pid = std::process::id().to_string();
    let (_link, theirs) = Link::pair().unwrap();
    let mut other = child(test, "other", theirs);
    Reaped::spawn(other.env("MEMLANE_PREDECESSOR", "1")).succeed();
    let mut nothing = child(test, "nothing", memfd());
    nothing
        .stdin(Stdio::null())
        .env("MEMLANE_PREDECESSOR", &pid);
    Reaped::spawn(&mut nothing).succeed();
    let (_link, theirs) = Link::pair().unwrap();
    Reaped::spawn(&mut child(test, "plain", theirs)).succeed();
}

/// The file goes with the last holder of the socket, in whatever order they go.
#[test]
fn the_file_goes_with_the_last() {
    let _alone = alone();
    let directory = Directory::new();
    let path = directory.join("service");
    let address = Address::path(&path).unwrap();
    let (left, right) = Link::pair().unwrap();
    let right = right.adopting();
    for order in ["old", "new", "released", "lost"] {
        let old = Listener::bind(&address).unwrap();
        let receipt = left.transfer(&old).unwrap();
        if order == "lost" {
            drop(old);
            assert!(path.exists(), "it may still be taken");
            continue;
        }
        let new: Listener = right.recv().unwrap();
        receipt.wait().unwrap();
        assert_eq!(new.address(), &address);
        let last = match order {
            "old" => {
                drop(new);
                old
            }
            "new" => {
                drop(old);
                new
            }
            _ => {
                old.release();
                new
            }
        };
        let client = Link::connect(&address).unwrap();
        last.accept().unwrap().send("hello").unwrap();
        assert_eq!(client.recv::<String>().unwrap(), "hello");
        drop(last);
        assert!(!path.exists(), "{order}");
    }
    drop((left, right));
    assert!(remove_stale(&address).unwrap(), "nobody has it any more");
    // What came in its place is somebody else's.
    let (left, right) = Link::pair().unwrap();
    let old = Listener::bind(&address).unwrap();
    left.send(&old).unwrap();
    let new: Listener = right.adopting().recv().unwrap();
    fs::remove_file(&path).unwrap();
    let other = Listener::bind(&address).unwrap();
    drop((old, new));
    Link::connect(&address).unwrap();
    drop(other);
    assert!(!path.exists());
}

/// A listener that says it belongs to another file is not taken.
#[test]
fn a_strange_file() {
    let _alone = alone();
    let directory = Directory::new();
    let listener = Listener::bind(&Address::path(directory.join("service")).unwrap()).unwrap();
    for (address, path) in [
        (listener.address().clone(), directory.join("other")),
        (listener.address().clone(), "service".into()),
        (abstract_name("strange"), directory.join("service")),
    ] {
        let other = match address {
            Address::Path(_) => None,
            _ => Some(Listener::bind(&address).unwrap()),
        };
        let sent = other.as_ref().unwrap_or(&listener);
        let (left, right) = Link::pair().unwrap();
        let wire = (memlane_transport::FdRef::new(sent), 1_u8, &path);
        left.send(&wire).unwrap();
        let error = right.adopting().recv::<Listener>().unwrap_err();
        assert!(matches!(error, Error::WrongDescriptor { .. }), "{error}");
    }
}

/// A socket whose old holder took no descriptors goes on like that, whoever has received it, until the new holder says what
/// it takes.
#[test]
fn limits_stay_behind() {
    let _alone = alone();
    let (client, server) = Link::pair().unwrap();
    let server = server.with_limits(Limits::new().descriptors(0));
    let (left, right) = Link::pair().unwrap();
    left.send(&server).unwrap();
    drop(server);
    let server: Link = right.adopting().recv().unwrap();
    if memlane_transport::refuse_descriptors(&server).unwrap() {
        let error = client.send(&Fd::from(memfd())).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
    }
    let server = server.with_limits(Limits::new());
    client.send(&Fd::from(memfd())).unwrap();
    server.recv::<Fd>().unwrap();
}

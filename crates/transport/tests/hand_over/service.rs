//! A service that counts for its clients, and can be told to hand itself over.
#![allow(missing_docs, missing_debug_implementations, unreachable_pub)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use memlane_transport::hand_over::Successor;
use memlane_transport::{Address, Error, Link, Listener};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Resource, Rlimit, Signal, getpid, kill_process, setrlimit};
use serde::{Deserialize, Deserializer, Serialize};

use crate::common::parent;

#[derive(Serialize, Deserialize)]
pub enum Request {
    /// The session's next number.
    Next(u64),
    /// A new generation, with a role. It answers.
    Replace(String),
}

#[derive(Serialize, Deserialize)]
pub struct Reply {
    pub pid: u32,
    pub count: u64,
    /// Where a hand-over ended, if one did.
    pub step: Option<String>,
}

/// As `hand_over` has it.
#[derive(Serialize, Deserialize)]
pub enum Word {
    Started,
    Ready,
}

#[derive(Serialize, Deserialize)]
pub struct Work {
    pub listener: Listener,
    pub links: Vec<Link>,
    asker: Option<Link>,
    counts: BTreeMap<u64, u64>,
    fatal: Fatal,
}

thread_local! {
    static ORDER: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What to do on the way.
pub fn order(role: &str) {
    ORDER.replace(role.to_owned());
}

/// Kills who decodes it with that order, when all descriptors have been taken and nothing has been acknowledged.
#[derive(Serialize)]
struct Fatal;

impl<'de> Deserialize<'de> for Fatal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fatal, D::Error> {
        if ORDER.with_borrow(|order| order == "die while receiving") {
            die();
        }
        <()>::deserialize(deserializer).map(|()| Fatal)
    }
}

pub fn die() {
    kill_process(getpid(), Signal::KILL).unwrap();
}

impl Work {
    pub fn new(listener: Listener) -> Work {
        Work {
            listener,
            links: Vec::new(),
            asker: None,
            counts: BTreeMap::new(),
            fatal: Fatal,
        }
    }
}

/// This test's executable once more.
pub fn generation(test: &str, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env("MEMLANE_TEST_ROLE", role)
        .stdout(Stdio::null());
    command
}

/// Serves until a successor does, or the last client has gone.
pub fn serve(mut work: Work, test: &str) {
    if test == "three_hundred_links" {
        // Numbers for all the links, and not for two of each.
        let few = Some(400);
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: few,
                maximum: few,
            },
        )
        .unwrap();
    }
    let pid = std::process::id();
    let mut successor: Option<Successor> = None;
    if let Some(link) = work.asker.take() {
        reply(&link, pid, 0, None);
        work.links.push(link);
    }
    loop {
        let mut fds = vec![PollFd::new(&work.listener, PollFlags::IN)];
        fds.extend(
            successor
                .as_ref()
                .map(|next| PollFd::new(next, PollFlags::IN)),
        );
        fds.extend(
            work.links
                .iter()
                .map(|link| PollFd::new(link, PollFlags::IN)),
        );
        poll(&mut fds, None).unwrap();
        drop(fds);
        loop {
            match work.listener.try_accept() {
                Ok(link) => work.links.push(link),
                Err(Error::WouldBlock) => break,
                Err(error) => panic!("{error}"),
            }
        }
        let mut role = None;
        let mut index = 0;
        while let Some(link) = work.links.get(index) {
            match link.try_recv() {
                Ok(Request::Next(session)) => {
                    let count = work.counts.entry(session).or_default();
                    *count += 1;
                    reply(link, pid, *count, None);
                    index += 1;
                }
                Ok(Request::Replace(found)) => {
                    role = Some(found);
                    work.asker = Some(work.links.swap_remove(index));
                }
                Err(Error::WouldBlock) => index += 1,
                Err(_) => drop(work.links.swap_remove(index)),
            }
        }
        if let Some(role) = role {
            successor = Some(Successor::spawn(generation(test, &role)).unwrap());
        }
        let started = successor.as_mut().map(Successor::try_started);
        if let Some(Ok(()) | Err(Error::Disconnected)) = started {
            let next = successor.take().unwrap();
            match next.hand_over(&work, Duration::from_secs(60)) {
                Ok(_process) => return,
                Err(failed) => {
                    let link = work.asker.take().unwrap();
                    reply(&link, pid, 0, Some(format!("{:?}", failed.step)));
                    work.links.push(link);
                }
            }
        }
        if work.links.is_empty() && work.asker.is_none() && !work.counts.is_empty() {
            return;
        }
    }
}

fn reply(link: &Link, pid: u32, count: u64, step: Option<String>) {
    // One that has hung up is noticed when it is received from.
    let _ = link.try_send(&Reply { pid, count, step });
}

/// One request and its reply.
pub fn ask(link: &Link, session: u64) -> Reply {
    link.send(&Request::Next(session)).unwrap();
    link.recv().unwrap()
}

/// A client process: asks without a pause until it is told to stop, on one link or on a new one each time.
pub fn client() {
    let control = parent();
    let (address, keep): (String, bool) = control.recv().unwrap();
    let address = address.parse().unwrap();
    let mut link = Link::connect(&address).unwrap();
    let session = u64::from(std::process::id());
    control.send(&()).unwrap();
    for number in 1.. {
        if !keep {
            link = Link::connect(&address).unwrap();
        }
        assert_eq!(ask(&link, session).count, number, "lost or repeated");
        match control.try_recv::<()>() {
            Ok(()) => return control.send(&number).unwrap(),
            Err(Error::WouldBlock) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Lets the service end, by leaving as its last client, and waits until its process has.
pub fn stop(control: Link, address: &Address) {
    // The first link's peer may have been a generation before.
    let last = Link::connect(address).unwrap();
    ask(&last, 0);
    let peer = Link::connect(address).unwrap().peer().unwrap();
    drop((control, last));
    let process = peer.pidfd().expect("it is alive");
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    poll(&mut fds, None).unwrap();
}

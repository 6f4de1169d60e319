//! One user's descriptors in flight, counted over all of its processes (A7, A8), and peers that stop (A7, A28).

mod common;

use std::time::Duration;

use common::{Reaped, alone, child, memfd, parent, role, until};
use memlane_transport::{Error, Fd, Limits, Link};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

/// A user of this test's own: what other programs of a user have in flight counts, too.
fn user() -> u32 {
    60_000 + std::process::id() % 5000
}

fn stop(process: &Reaped) {
    signal(process, Signal::STOP);
    let stat = format!("/proc/{}/stat", process.0.id());
    until("a process stops", || {
        std::fs::read_to_string(&stat).unwrap().contains(") T ")
    });
}

fn signal(process: &Reaped, signal: Signal) {
    kill_process(Pid::from_child(&process.0), signal).unwrap();
}

fn may_have(descriptors: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(descriptors),
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// A7: a sender whose receiver is stopped is told that there is no room, again and again, and goes on when it goes on.
#[test]
fn a_stopped_receiver_of_a_sender_with_few_descriptors() {
    const MESSAGES: u32 = 100;
    match role().as_deref() {
        Some("sender") => {
            may_have(64);
            let link = parent();
            let batch: Vec<Fd> = (0..10).map(|_| memfd().into()).collect();
            let mut sent = 0;
            let error = loop {
                match link.try_send(&(sent, &batch)) {
                    Ok(()) => sent += 1,
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, Error::WouldBlock), "{error:?}");
            // Far from what the socket holds: it was the user's count.
            assert!(sent < 20, "{sent}");
            for _ in 0..5 {
                let error = link
                    .send_timeout(&(sent, &batch), Duration::from_millis(3))
                    .unwrap_err();
                assert!(matches!(error, Error::TimedOut), "{error:?}");
            }
            // Tells the test, which lets the receiver go on.
            println!("full");
            for number in sent..MESSAGES {
                link.send(&(number, &batch)).unwrap();
            }
            return;
        }
        Some(_) => {
            let link = parent();
            for number in 0..MESSAGES {
                let (came, fds): (u32, Vec<Fd>) = link.recv().unwrap();
                assert_eq!((came, fds.len()), (number, 10));
            }
            return;
        }
        None => {}
    }
    let _alone = alone();
    let test = "a_stopped_receiver_of_a_sender_with_few_descriptors";
    let (left, right) = Link::pair().unwrap();
    let Some(mut receiver) = Reaped::spawn_as(user(), &mut child(test, "receiver", right)) else {
        return;
    };
    stop(&receiver);
    let mut command = child(test, "sender", left);
    let mut sender =
        Reaped::spawn_as(user(), command.stdout(std::process::Stdio::piped())).unwrap();
    // The test harness of the child prints lines of its own.
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(sender.0.stdout.take().unwrap()));
    assert!(lines.any(|line| line.unwrap().contains("full")));
    signal(&receiver, Signal::CONT);
    sender.succeed();
    receiver.succeed();
}

/// A8: another process of the user has filled the count. One with a low limit, and nothing of its own in flight, finds no room,
/// which is no failure, and goes on when the other's receiver has read. With a limit of one message the other leaves room.
#[test]
fn another_process_of_the_same_user() {
    match role().as_deref() {
        Some("other") => {
            let link = parent();
            let (left, right) = Link::pair().unwrap();
            let batch: Vec<Fd> = (0..100).map(|_| memfd().into()).collect();
            let bound = link.recv().unwrap();
            let left = left.with_limits(Limits::new().in_flight(bound));
            let mut sent = 0;
            while sent < 2 && left.try_send(&batch).is_ok() {
                sent += 1;
            }
            link.send(&sent).unwrap();
            link.recv::<()>().unwrap();
            for _ in 0..sent {
                assert_eq!(right.recv::<Vec<Fd>>().unwrap().len(), 100);
            }
            link.send(&()).unwrap();
            link.recv::<()>().unwrap();
            return;
        }
        Some(_) => {
            let link = parent();
            may_have(150);
            let file = Fd::from(memfd());
            let room = || {
                let (left, right) = Link::pair().unwrap();
                match left.try_send(&file) {
                    Ok(()) => right.recv::<Fd>().is_ok(),
                    Err(Error::WouldBlock) => {
                        let error = left
                            .send_timeout(&file, Duration::from_millis(2))
                            .unwrap_err();
                        assert!(matches!(error, Error::TimedOut), "{error:?}");
                        false
                    }
                    Err(error) => panic!("{error:?}"),
                }
            };
            // Each time it is asked. At the end it is told to wait for it.
            while let Ok(wait) = link.recv::<bool>() {
                if wait {
                    let (left, right) = Link::pair().unwrap();
                    std::thread::scope(|scope| {
                        let sent = scope.spawn(|| left.send(&file));
                        link.send(&true).unwrap();
                        right.recv::<Fd>().unwrap();
                        sent.join().unwrap().unwrap();
                    });
                } else {
                    link.send(&room()).unwrap();
                }
            }
            return;
        }
        None => {}
    }
    let _alone = alone();
    let start = |role: &str| {
        let (link, theirs) = Link::pair().unwrap();
        let mut command = child("another_process_of_the_same_user", role, theirs);
        Reaped::spawn_as(user(), &mut command).map(|process| (link, process))
    };
    for bound in [2_usize, 1] {
        let Some((victim, mut process)) = start("victim") else {
            return;
        };
        let (other, mut careless) = start("other").unwrap();
        let victim_has_room = || {
            victim.send(&false).unwrap();
            victim.recv::<bool>().unwrap()
        };
        assert!(victim_has_room());
        other.send(&bound).unwrap();
        assert_eq!(other.recv::<i32>().unwrap(), bound as i32);
        assert_eq!(
            victim_has_room(),
            bound == 1,
            "with {bound} messages in flight"
        );
        // A send that waits goes on by itself when the other's receiver has read.
        victim.send(&true).unwrap();
        assert!(victim.recv::<bool>().unwrap());
        other.send(&()).unwrap();
        other.recv::<()>().unwrap();
        assert!(victim_has_room());
        drop(victim);
        process.succeed();
        other.send(&()).unwrap();
        careless.succeed();
    }
}

/// A28: one of eight peers stops. It is the only one that is not served; its messages wait, as many as its socket holds.
#[test]
fn one_stopped_peer_of_eight() {
    const ROUNDS: u32 = 2000;
    if role().is_some() {
        let link = parent();
        while let Ok((number, fd)) = link.recv::<(u32, Fd)>() {
            link.send(&(number, fd)).unwrap();
        }
        return;
    }
    let _alone = alone();
    let (links, mut processes): (Vec<_>, Vec<_>) = (0..8)
        .map(|_| {
            let (link, theirs) = Link::pair().unwrap();
            let process = Reaped::spawn(&mut child("one_stopped_peer_of_eight", "echo", theirs));
            link.send(&(u32::MAX, Fd::from(memfd()))).unwrap();
            link.recv::<(u32, Fd)>().unwrap();
            (link, process)
        })
        .unzip();
    stop(&processes[3]);
    let file = Fd::from(memfd());
    let mut sent = [0_u32; 8];
    let mut received = [0_u32; 8];
    let others = || (0..8).filter(|at| *at != 3);
    while others().any(|at| received[at] < ROUNDS) {
        for (at, link) in links.iter().enumerate() {
            while sent[at] < ROUNDS {
                match link.try_send(&(sent[at], &file)) {
                    Ok(()) => sent[at] += 1,
                    Err(Error::WouldBlock) => break,
                    Err(error) => panic!("{at}: {error:?}"),
                }
            }
            while received[at] < sent[at] {
                match link.try_recv::<(u32, Fd)>() {
                    Ok((number, _fd)) => {
                        assert_eq!(number, received[at]);
                        received[at] += 1;
                    }
                    Err(Error::WouldBlock) => break,
                    Err(error) => panic!("{at}: {error:?}"),
                }
            }
        }
        // Nothing but the peers that run makes this end.
        let mut fds: Vec<_> = links
            .iter()
            .enumerate()
            .filter(|(at, _)| received[*at] < sent[*at])
            .map(|(_, link)| PollFd::new(link, PollFlags::IN))
            .collect();
        // Who has answered everything can be sent more at once.
        let idle = |at| sent[at] < ROUNDS && received[at] == sent[at];
        if others().any(|at| received[at] < ROUNDS) && !others().any(idle) {
            poll(&mut fds, None).unwrap();
        }
    }
    // What the stopped one was sent is bounded, and all there when it goes on.
    assert!(
        sent[3] < ROUNDS && received[3] == 0,
        "{sent:?}, {received:?}"
    );
    signal(&processes[3], Signal::CONT);
    for number in 0..sent[3] {
        assert_eq!(links[3].recv::<(u32, Fd)>().unwrap().0, number);
    }
    drop(links);
    processes.iter_mut().for_each(Reaped::succeed);
}

/// A24: a peer that dies with a copy of its socket in another process does not hang up. Its pidfd tells.
#[test]
fn a_killed_peer_whose_socket_lives_on() {
    match role().as_deref() {
        Some("client") => {
            let start = parent();
            let address: String = start.recv().unwrap();
            let link = Link::connect(&address.parse().unwrap()).unwrap();
            let socket = std::os::fd::AsFd::as_fd(&link)
                .try_clone_to_owned()
                .unwrap();
            let test = "a_killed_peer_whose_socket_lives_on";
            let _helper = Reaped::spawn(&mut child(test, "helper", socket));
            let _ = start.recv::<()>();
            unreachable!("the parent kills this process");
        }
        Some(_) => {
            let link = parent();
            link.send("still here").unwrap();
            // Until the service is gone.
            while link.recv::<()>().is_ok() {}
            return;
        }
        None => {}
    }
    let _alone = alone();
    let address = common::abstract_name("lives-on");
    let listener = memlane_transport::Listener::bind(&address).unwrap();
    let (start, theirs) = Link::pair().unwrap();
    let test = "a_killed_peer_whose_socket_lives_on";
    let mut process = Reaped::spawn(&mut child(test, "client", theirs));
    start.send(&address.to_string()).unwrap();
    let link = listener.accept().unwrap();
    assert_eq!(link.recv::<String>().unwrap(), "still here");
    let peer = link.peer().unwrap();
    assert_eq!(peer.pid(), Some(process.0.id()));
    let Some(pidfd) = peer.pidfd() else {
        eprintln!("skipped: no SO_PEERPIDFD before Linux 6.5");
        return;
    };
    process.kill();
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
    assert!(matches!(link.try_recv::<()>(), Err(Error::WouldBlock)));
    link.send(&()).unwrap();
}

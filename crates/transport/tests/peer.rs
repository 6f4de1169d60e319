//! Who is at the other end.

mod common;

use std::os::unix::process::CommandExt;

use common::{Reaped, abstract_name, accept, alone, child, inode, memfd, parent, role};
use memlane_transport::{
    Access, Address, Error, Fd, Link, Listener, Obstacle, same_description_in,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_getfd};

fn ended(pidfd: impl std::os::fd::AsFd) -> bool {
    poll(
        &mut [PollFd::new(&pidfd, PollFlags::IN)],
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )
    .unwrap()
        > 0
}

#[test]
fn a_pair_knows_who_made_it() {
    let _alone = alone();
    let (left, _right) = Link::pair().unwrap();
    let peer = left.peer().unwrap();
    assert_eq!(peer.pid(), Some(std::process::id()));
    assert_eq!(peer.uid(), rustix::process::geteuid().as_raw());
    assert_eq!(peer.gid(), rustix::process::getegid().as_raw());
    assert_eq!(peer.credentials(), left.credentials().unwrap());
    let groups = rustix::process::getgroups().unwrap();
    let groups: Vec<u32> = groups.iter().map(|gid| gid.as_raw()).collect();
    assert_eq!(peer.groups(), groups);
    // Where the security module names processes in the file system, it names sockets in the same words.
    if let (Some(label), Ok(own)) = (peer.label(), std::fs::read("/proc/self/attr/current")) {
        let own = String::from_utf8(own).unwrap();
        assert_eq!(label.to_str(), Some(own.trim_end_matches(['\0', '\n'])));
    }
    let pidfd = peer.pidfd().unwrap();
    assert_eq!(fcntl_getfd(pidfd).unwrap(), FdFlags::CLOEXEC);
    assert!(!ended(pidfd));
    let pidfd = peer.into_pidfd().unwrap();
    assert!(!ended(&pidfd));
}

/// The child uses the link; the kernel knows the process that made it (A27).
#[test]
fn an_inherited_link_names_its_maker() {
    if role().is_some() {
        let link = parent();
        link.send(&(link.credentials().unwrap().pid, std::process::id()))
            .unwrap();
        return;
    }
    let _alone = alone();
    let (link, theirs) = Link::pair().unwrap();
    let mut process = Reaped::spawn(&mut child(
        "an_inherited_link_names_its_maker",
        "heir",
        theirs,
    ));
    let own = std::process::id();
    assert_eq!(
        link.recv::<(Option<u32>, u32)>().unwrap(),
        (Some(own), process.0.id())
    );
    assert_eq!(link.peer().unwrap().pid(), Some(own));
    process.succeed();
}

#[test]
fn a_pidfd_tells_the_death_of_a_client() {
    if role().is_some() {
        let address: String = parent().recv().unwrap();
        let link = Link::connect(&address.parse().unwrap()).unwrap();
        // For ever: the parent kills this process.
        let _ = link.recv::<()>();
        return;
    }
    let _alone = alone();
    let address = abstract_name("pidfd");
    let listener = Listener::bind(&address).unwrap();
    let (link, theirs) = Link::pair().unwrap();
    let mut process = Reaped::spawn(&mut child(
        "a_pidfd_tells_the_death_of_a_client",
        "client",
        theirs,
    ));
    link.send(&address.to_string()).unwrap();
    let client = accept(&listener);
    let peer = client.peer().unwrap();
    assert_eq!(peer.pid(), Some(process.0.id()));
    assert!(!ended(peer.pidfd().unwrap()));
    process.kill();
    assert!(ended(peer.pidfd().unwrap()));
    assert!(client.recv::<Fd>().unwrap_err().is_disconnected());
    // Reaped: there may be a pidfd (Linux 6.16) or none, and either way an answer.
    let late = client.peer().unwrap();
    assert!(late.pidfd().is_none_or(ended));
}

/// Identity is that of the moment of connecting, whatever becomes of the process (A27).
#[test]
fn a_client_that_became_another() {
    match role().as_deref() {
        Some("client") => {
            let address: Address = parent().recv::<String>().unwrap().parse().unwrap();
            let link = Link::connect(&address).unwrap();
            if rustix::process::geteuid().is_root() {
                common::become_user(65534, &[]);
            }
            let error = child("a_client_that_became_another", "successor", link).exec();
            panic!("{error}");
        }
        Some(_) => {
            parent().send(&std::process::id()).unwrap();
            let _ = parent().recv::<()>();
            return;
        }
        None => {}
    }
    let _alone = alone();
    let address = abstract_name("became");
    let listener = Listener::bind(&address).unwrap();
    let (link, theirs) = Link::pair().unwrap();
    let mut process = Reaped::spawn(&mut child("a_client_that_became_another", "client", theirs));
    link.send(&address.to_string()).unwrap();
    let client = accept(&listener);
    // From the other program, under the other user.
    let pid = client.recv::<u32>().unwrap();
    let peer = client.peer().unwrap();
    assert_eq!(peer.uid(), rustix::process::geteuid().as_raw());
    assert_eq!(peer.pid(), Some(pid));
    assert_eq!(pid, process.0.id());
    assert!(!ended(peer.pidfd().unwrap()));
    drop(client);
    process.succeed();
}

/// The one who connected has ended, the one it left the socket to goes on (A24, A27).
#[test]
#[allow(clippy::zombie_processes, reason = "the heir is to outlive its parent")]
fn a_link_left_to_an_heir() {
    match role().as_deref() {
        Some("client") => {
            let address: Address = parent().recv::<String>().unwrap().parse().unwrap();
            let link = Link::connect(&address).unwrap();
            child("a_link_left_to_an_heir", "heir", link)
                .spawn()
                .unwrap();
            return;
        }
        Some(_) => {
            let link = parent();
            link.recv::<()>().unwrap();
            link.send(&std::process::id()).unwrap();
            return;
        }
        None => {}
    }
    let _alone = alone();
    let address = abstract_name("heir");
    let listener = Listener::bind(&address).unwrap();
    let (link, theirs) = Link::pair().unwrap();
    let mut process = Reaped::spawn(&mut child("a_link_left_to_an_heir", "client", theirs));
    link.send(&address.to_string()).unwrap();
    let client = accept(&listener);
    let peer = client.peer().unwrap();
    assert_eq!(peer.pid(), Some(process.0.id()));
    process.succeed();
    assert!(ended(peer.pidfd().unwrap()));
    client.send(&()).unwrap();
    assert_ne!(client.recv::<u32>().unwrap(), process.0.id());
    assert_eq!(client.credentials().unwrap(), peer.credentials());
    assert!(client.recv::<()>().unwrap_err().is_disconnected());
}

/// From inside a pid namespace, processes outside have no number; the pidfd works all the same.
#[test]
fn a_peer_outside_the_pid_namespace() {
    match role().as_deref() {
        Some("outer") => {
            // SAFETY: plain call; from now on the children of this thread are in a new namespace.
            if unsafe { libc::unshare(libc::CLONE_NEWPID) } != 0 {
                parent().send(&false).unwrap();
                return;
            }
            let stdin = parent().into_fd();
            Reaped::spawn(&mut child(
                "a_peer_outside_the_pid_namespace",
                "inner",
                stdin,
            ))
            .succeed();
            return;
        }
        Some(_) => {
            let link = parent();
            link.send(&true).unwrap();
            let (address, number): (String, i32) = link.recv().unwrap();
            assert_eq!(std::process::id(), 1);
            let peer = link.peer().unwrap();
            assert_eq!(peer.pid(), None);
            assert_eq!(peer.uid(), rustix::process::geteuid().as_raw());
            let pidfd = peer.pidfd().unwrap();
            assert!(!ended(pidfd));
            let taken = peer.take_descriptor(number).unwrap();
            link.send(&inode(&taken)).unwrap();
            for error in [
                peer.same_description(number, &taken).unwrap_err(),
                same_description_in(pidfd, number, &taken).unwrap_err(),
            ] {
                assert!(matches!(error, Error::ProcessInvisible), "{error:?}");
            }
            let invisible = Access::when(|server| server.pid().is_none());
            let _server = Link::connect_with(&address.parse().unwrap(), invisible).unwrap();
            if rustix::process::geteuid().is_root() {
                common::become_user(65534, &[]);
                // This /proc is of the other namespace: its numbers would name the wrong processes.
                let Error::NotPermitted(refusal) = peer.take_descriptor(number).unwrap_err() else {
                    panic!()
                };
                assert_eq!(refusal.found.last(), Some(&Obstacle::NoProc), "{refusal}");
                assert_eq!(refusal.pid, None);
            }
            return;
        }
        None => {}
    }
    let _alone = alone();
    let (link, theirs) = Link::pair().unwrap();
    let mut process = Reaped::spawn(&mut child(
        "a_peer_outside_the_pid_namespace",
        "outer",
        theirs,
    ));
    if !link.recv::<bool>().unwrap() {
        eprintln!("skipped: this user cannot make a pid namespace");
        return;
    }
    let address = abstract_name("outside");
    let listener = Listener::bind(&address).unwrap();
    let fd = memfd();
    let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
    link.send(&(address.to_string(), number)).unwrap();
    assert_eq!(link.recv::<(u64, u64)>().unwrap(), inode(&fd));
    let inner = accept(&listener).peer().unwrap();
    assert!(inner.pid().is_some_and(|pid| pid != 1));
    process.succeed();
}

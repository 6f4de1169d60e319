//! Who is at the other end.

mod common;

use common::{Reaped, abstract_name, alone, child, parent, role};
use memlane_transport::{Fd, Link, Listener};
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
    let client = listener.accept().unwrap();
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

//! Links that receive on one socket and send on another.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use memlane_transport::{Address, Error, Fd, Limits, Link, Listener, SocketKind};

const PATIENCE: Duration = Duration::from_secs(20);

/// Each receives on a socket it has made.
fn pair() -> (Link, Link) {
    let (mut left, to_left) = Link::pair().unwrap();
    let (mut right, to_right) = Link::pair().unwrap();
    left.send_over(to_right.into_fd()).unwrap();
    right.send_over(to_left.into_fd()).unwrap();
    (left, right)
}

#[test]
fn what_is_sent_arrives_on_the_others_own_socket() {
    let (left, right) = pair();
    left.send("left").unwrap();
    right.send("right").unwrap();
    assert_eq!(right.recv::<String>().unwrap(), "left");
    assert_eq!(left.recv::<String>().unwrap(), "right");
    // With descriptors and a receipt.
    let null = Fd::from(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
    let receipt = left.transfer(&null).unwrap();
    let _taken: Fd = right.recv().unwrap();
    receipt.wait_timeout(PATIENCE).unwrap();
    assert_eq!(
        left.credentials().unwrap().pid,
        Some(std::process::id()),
        "of whoever made the socket"
    );
}

#[test]
fn room_is_that_of_the_socket_it_sends_over() {
    let (left, right) = pair();
    let left = left.with_limits(Limits::new().in_flight(3));
    let null = std::fs::File::open("/dev/null").unwrap();
    let null = Fd::from(OwnedFd::from(null));
    let mut sent = 0;
    while left.try_send(&null).is_ok() {
        sent += 1;
    }
    assert_eq!(sent, 3);
    // A waiting call goes on when the other has received.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..10 {
                let _fd: Fd = right.recv_timeout(PATIENCE).unwrap();
            }
        });
        for _ in 3..10 {
            left.send_timeout(&null, PATIENCE).unwrap();
        }
    });
    let full = vec![0_u8; 4096];
    while left.try_send(&full).is_ok() {}
    assert!(matches!(
        left.send_timeout(&full, Duration::from_millis(1)),
        Err(Error::TimedOut)
    ));
}

#[test]
fn its_end_is_heard() {
    for end in 0..3 {
        let (left, right) = pair();
        left.send(&1_u8).unwrap();
        match end {
            0 => drop(left),
            1 => left.hang_up(),
            _ => left.end_sending(),
        }
        assert_eq!(right.recv_timeout::<u8>(PATIENCE).unwrap(), 1);
        let over = right.recv_timeout::<u8>(PATIENCE);
        assert!(matches!(over, Err(Error::Disconnected)), "{over:?}");
    }
    // A broken rule ends both directions.
    let (left, right) = pair();
    left.send(&7_u8).unwrap();
    assert!(right.recv::<String>().unwrap_err().ends_link());
    assert!(matches!(left.recv::<u8>(), Err(Error::Disconnected)));
    assert!(matches!(left.send(&1_u8), Err(Error::Disconnected)));
}

#[test]
fn what_is_no_end_of_a_pair_is_refused() {
    let (mut link, _other) = Link::pair().unwrap();
    let name = format!("memlane-halves-{}", std::process::id());
    let listener = Listener::bind(&Address::abstract_name(name).unwrap()).unwrap();
    let client = Link::connect(listener.address()).unwrap();
    let accepted = listener.accept().unwrap();
    let (stream, _end) = Link::pair_of(SocketKind::Stream).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    for (fd, found) in [
        (client.into_fd(), "one with a name"),
        (accepted.into_fd(), "one with a name"),
        (stream.into_fd(), "SOCK_STREAM"),
        (null.into(), "no socket"),
        (
            listener.as_fd().try_clone_to_owned().unwrap(),
            "a listening one",
        ),
    ] {
        let error = link.send_over(fd).unwrap_err();
        assert!(error.to_string().contains(found), "{error}");
        assert!(link.sends_over().is_none());
    }
}

/// It is two sockets, and half of it is no link.
#[test]
fn it_cannot_be_sent() {
    let (left, _right) = pair();
    let (to, _from) = Link::pair().unwrap();
    let error = to.send(&left).unwrap_err();
    let text = format!("{error:?}");
    assert!(text.contains("another socket"), "{text}");
    to.send(&1_u8).unwrap();
}

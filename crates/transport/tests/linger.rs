//! A TCP socket whose last close waits (SO_LINGER, socket(7)), hidden in the queue of a Unix socket.
//!
//! Whoever drops the Unix socket drops the last reference and waits as long as the peer has asked for.

mod common;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::time::Duration;

use common::{abstract_name, alone, frame, raw_send};
use memlane_transport::{Access, Fd, Fds, Link, Listener, MAX_DISPOSERS, StreamFd, dispose};

/// A socket with data that nobody takes, which lingers for a day, and the end that does not read.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (unread, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 65536]).is_ok() {}
    let day = Some(Duration::from_secs(86_400));
    rustix::net::sockopt::set_socket_linger(&socket, day).unwrap();
    (socket.into(), unread)
}

/// Runs `drops` on another thread and waits for it; if it does not come back, the socket is freed and the test fails.
fn returns(unread: TcpStream, drops: impl FnOnce() + Send) {
    let (done, returned) = mpsc::channel();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(move || {
            drops();
            let _ = done.send(());
        });
        let outcome = returned.recv_timeout(Duration::from_secs(20));
        // Unread data makes this a reset, which ends the waiting.
        drop(unread);
        outcome
    });
    outcome.expect("dropping waits for the peer's TCP connection");
}

#[test]
fn unread_on_a_link_that_is_dropped() {
    let _alone = alone();
    let (link, hostile) = Link::pair().unwrap();
    let hostile = hostile.into_fd();
    let (socket, unread) = lingering();
    raw_send(&hostile, b"GET", &[]);
    raw_send(&hostile, &frame(1, &[0]), &[socket.as_fd()]);
    drop(socket);
    assert!(link.recv::<()>().unwrap_err().ends_link());
    returns(unread, move || drop(link));
}

#[test]
fn unread_on_clients_of_a_listener() {
    let _alone = alone();
    let address = abstract_name("linger");
    let listener = Listener::bind_with(&address, Access::when(|_| false)).unwrap();
    let [refused, waiting] = [(), ()].map(|()| {
        let hostile = Link::connect(&address).unwrap();
        let (socket, unread) = lingering();
        hostile.send(&Fd::from(socket)).unwrap();
        (hostile, unread)
    });
    let (hostile, unread) = refused;
    returns(unread, || drop(listener.accept().unwrap_err()));
    drop(hostile);
    let (hostile, unread) = waiting;
    returns(unread, move || drop(listener));
    drop(hostile);
}

#[test]
fn unread_on_either_end_of_a_receipt() {
    let _alone = alone();
    let (link, hostile) = Link::pair().unwrap();
    let receipt = link.transfer(&7_u8).unwrap();
    // As who receives it sees it: the last descriptor of the packet.
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 64];
    let mut buffers = [std::io::IoSliceMut::new(&mut bytes)];
    let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(&hostile, &mut buffers, &mut control, flags).unwrap();
    let Some(rustix::net::RecvAncillaryMessage::ScmRights(mut fds)) = control.drain().next() else {
        panic!("no descriptor");
    };
    let theirs = fds.next().unwrap();
    drop(fds);
    let (socket, unread) = lingering();
    raw_send(&theirs, b"x", &[socket.as_fd()]);
    drop(socket);
    returns(unread, move || drop(receipt));

    // A receipt that was made to hurt.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let (socket, unread) = lingering();
    raw_send(&ours, b"x", &[socket.as_fd()]);
    drop(socket);
    raw_send(
        &hostile,
        &common::packet(1, &[3, 0], &[9]),
        &[theirs.as_fd()],
    );
    drop(theirs);
    returns(unread, || assert_eq!(link.recv::<u8>().unwrap(), 9));
}

#[test]
fn unread_on_a_stream_that_was_received() {
    let _alone = alone();
    let (link, hostile) = Link::pair().unwrap();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let (socket, unread) = lingering();
    raw_send(&ours, b"x", &[socket.as_fd()]);
    drop(socket);
    hostile.send(&Fd::from(OwnedFd::from(theirs))).unwrap();
    let stream: StreamFd = link.recv().unwrap();
    returns(unread, move || drop(stream));
}

#[test]
fn unread_on_a_unix_socket_that_is_refused() {
    let _alone = alone();
    let (inner, hostile) = Link::pair().unwrap();
    let (socket, unread) = lingering();
    hostile.send(&Fd::from(socket)).unwrap();
    returns(unread, move || dispose(inner.into_fd()));
}

/// A socket that lingers for a day, in the queue of a Unix socket.
fn hidden() -> (OwnedFd, TcpStream) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let (socket, unread) = lingering();
    raw_send(&ours, b"x", &[socket.as_fd()]);
    (theirs.into(), unread)
}

/// Some descriptors of a batch are taken when its indices end too early.
#[test]
fn in_a_batch_that_is_cut_short() {
    let _alone = alone();
    let (link, hostile) = Link::pair().unwrap();
    let (trap, unread) = hidden();
    let other = common::memfd();
    raw_send(
        &hostile,
        &frame(3, &[3, 0, 2, 251]),
        &[trap.as_fd(), other.as_fd(), other.as_fd()],
    );
    drop(trap);
    returns(unread, || {
        assert!(link.recv::<Fds>().unwrap_err().ends_link())
    });
}

/// One message takes one thread, however much it brings: links of others are closed as ever.
#[test]
fn in_more_descriptors_than_there_are_threads() {
    let alone = alone();
    let (link, hostile) = Link::pair().unwrap();
    let (traps, unread): (Vec<_>, Vec<_>) = (0..MAX_DISPOSERS + 4).map(|_| hidden()).unzip();
    let fds: Vec<_> = traps.iter().map(AsFd::as_fd).collect();
    raw_send(&hostile, &frame(fds.len() as u16, &[7]), &fds);
    drop(traps);
    assert!(link.recv::<u8>().unwrap_err().ends_link());
    for _ in 0..50 {
        let (server, client) = Link::pair().unwrap();
        drop(server);
        // The one that hangs is not in its way.
        assert!(client.recv::<u8>().unwrap_err().is_disconnected());
    }
    drop((link, hostile, unread));
    alone.settled();
}

/// SO_LINGER belongs to all who share a socket.
#[test]
fn of_a_socket_that_is_shared() {
    use rustix::net::sockopt::{set_socket_linger, socket_linger};
    let _alone = alone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let some = Some(Duration::from_secs(5));
    set_socket_linger(&socket, some).unwrap();
    let (left, right) = Link::pair().unwrap();
    let socket = Fd::from(OwnedFd::from(socket));
    left.send(&socket).unwrap();
    let before = common::descriptors().len();
    drop(right.recv::<Fd>().unwrap());
    common::until("the received one is closed", || {
        common::descriptors().len() == before
    });
    assert_eq!(socket_linger(&socket), Ok(some));
}

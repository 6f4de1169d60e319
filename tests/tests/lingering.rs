//! A peer that sends a TCP socket whose last close waits for a day (SO_LINGER, socket(7)) wherever it can send anything:
//! nobody who reads or drops what it is in waits for it.

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::mpsc,
    thread,
    time::Duration,
};

use memlane::{Link, Publisher};
use memlane_region::{Shared, page_size};
use memlane_tests::{
    Scene, unbound,
    wire::{Answer, Bell, Greeting, Offer, Opening, VERSION},
};
use rustix::{
    io::Errno,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};

/// A socket with data that nobody takes, and the end that does not take it.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut socket = TcpStream::connect(address).expect("a connection");
    let (unread, _) = listener.accept().expect("a connection");
    socket.set_nonblocking(true).expect("a socket");
    while socket.write(&[0; 65536]).is_ok() {}
    let day = Some(Duration::from_secs(86_400));
    rustix::net::sockopt::set_socket_linger(&socket, day).expect("a socket");
    (socket.into(), unread)
}

fn send_on(socket: impl AsFd, descriptor: &OwnedFd) -> rustix::io::Result<usize> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let bytes = [std::io::IoSlice::new(&[1])];
    sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL)
}

/// Does something on another thread; if that does not come back, the socket is freed and the test fails.
fn returns<T: Send>(unread: &TcpStream, does: impl FnOnce() -> T + Send) -> T {
    let (done, returned) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || done.send(does()));
        let outcome = returned.recv_timeout(Duration::from_secs(30));
        if outcome.is_err() {
            // Unread data makes this a reset, which ends the waiting.
            let _ = unread.shutdown(std::net::Shutdown::Both);
        }
        outcome
    })
    .expect("waits for the peer's TCP connection")
}

/// A subscriber by hand, which has sent to everything that it and its publisher share.
#[test]
fn from_a_subscriber() {
    let _scene = Scene::new();
    let mut publisher: Publisher = unbound(1 << 14).unbound().expect("a publisher");
    let (ours, theirs) = Link::pair().expect("a pair");
    publisher.attach(theirs).expect("attached");
    let (page, descriptor) = Shared::create("test", page_size(), 0).expect("a page");
    let (bell, end) = UnixStream::pair().expect("a pair");
    ours.send(&Opening { version: VERSION }).expect("room");
    ours.send(&Greeting::new(
        descriptor.into(),
        Offer {
            socket: Some(OwnedFd::from(end).into()),
            eventfd: None,
        },
    ))
    .expect("room");
    assert_eq!(ours.recv::<Opening>().expect("an opening").version, VERSION);
    let Answer::Welcome(welcome) = ours.recv().expect("an answer") else {
        panic!("refused");
    };
    let (socket, unread) = lingering();
    send_on(&bell, &socket).expect("room in the queue of an end that was sent");
    send_on(&ours, &socket).expect("room in the link");
    let Bell::Socket(doorbell) = welcome.doorbell else {
        panic!("{:?}", welcome.doorbell);
    };
    match send_on(&doorbell, &socket) {
        Err(Errno::PERM) => {}
        Ok(_) => eprintln!("this kernel cannot refuse descriptors (SO_PASSRIGHTS, Linux 6.16)"),
        Err(error) => panic!("{error}"),
    }
    drop(socket);
    returns(&unread, || publisher.send(b"one").expect("room"));
    // The link goes, and with it the subscriber: else there would be no room for all these.
    drop((ours, bell, doorbell, page));
    returns(&unread, || {
        for _ in 0..1000 {
            publisher.send(&[2; 100]).expect("room");
        }
    });
    returns(&unread, || drop(publisher));
    drop(unread);
}

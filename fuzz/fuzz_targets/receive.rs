//! A hostile peer at the other end of a link: any bytes, any descriptors, any type asked for.
//!
//! Whatever it does: no panic; every descriptor that is not in a value is closed; every error but a hang-up ends the link,
//! and it stays ended; a value that was received can be sent and is received again as it was.
#![no_main]

use std::fmt::Debug;
use std::io::{ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use memlane_fuzz::census::{self, Frugal};
use memlane_fuzz::script::{Bytes, Packet, Setup, Write};
use memlane_fuzz::values::{Print, Tree, printed};
use memlane_transport::{Error, EventFd, Fd, Limits, Link, Listener, SocketKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, sendmsg, sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

#[global_allocator]
static FRUGAL: Frugal = Frugal;

fuzz_target!(init: census::raise_limit(), |data: &[u8]| {
    let before = census::count();
    let mut bytes = Bytes(data);
    let setup = Setup::read(&mut bytes);
    match setup.as_type % 16 {
        0 => run::<()>(setup, bytes),
        1 => run::<String>(setup, bytes),
        2 => run::<Vec<u8>>(setup, bytes),
        3 => run::<Fd>(setup, bytes),
        4 => run::<Vec<Fd>>(setup, bytes),
        5 => run::<EventFd>(setup, bytes),
        6 => run::<Link>(setup, bytes),
        7 => run::<Listener>(setup, bytes),
        _ => run::<Tree>(setup, bytes),
    }
    census::settled(before);
});

/// The receiver and what is known of it.
struct Receiver {
    link: Link,
    peer: OwnedFd,
    setup: Setup,
    over: bool,
}

fn run<T: Serialize + DeserializeOwned + Print + Debug>(setup: Setup, mut bytes: Bytes<'_>) {
    let (link, peer) = pair(setup);
    let mut receiver = Receiver {
        link: if setup.small {
            link.with_limits(Limits::new().body(64).descriptors(4))
        } else {
            link
        },
        peer: peer.into_fd(),
        setup,
        over: false,
    };
    let mut receipts = Vec::new();
    while let Some(packet) = Packet::read(&mut bytes, setup.stream, &receiver.peer) {
        receipts.extend(packet.receipt);
        for write in packet.writes {
            // A full socket: the rest is another packet's beginning, as from a peer that gave up.
            let _ = send(&receiver.peer, &write);
            if !setup.late {
                receiver.drain::<T>();
            }
        }
    }
    receiver.drain::<T>();
    // A peer that goes in the middle of a message has not sent it.
    let Receiver {
        link, peer, over, ..
    } = receiver;
    drop(peer);
    if !over {
        match link.try_recv::<T>() {
            Err(Error::Disconnected) => {}
            // It has sent its own end along, in a message that is not complete.
            Err(Error::WouldBlock) => assert!(!hung_up(&link)),
            other => panic!("{other:?}"),
        }
    }
    drop(link);
    for receipt in receipts {
        answered(receipt);
    }
}

impl Receiver {
    /// Receives all there is.
    fn drain<T: Serialize + DeserializeOwned + Print>(&mut self) {
        while !self.over {
            match self.link.try_recv::<T>() {
                Ok(value) => again(value, self.setup),
                Err(Error::WouldBlock) => return,
                // SEQPACKET: a packet without bytes looks like one.
                Err(Error::Disconnected) => self.over = true,
                Err(error) => {
                    assert!(error.ends_link(), "{error:?}");
                    self.ended();
                    self.over = true;
                }
            }
        }
    }

    /// For good, in both directions, and the peer can tell.
    fn ended(&self) {
        let ended = |result| matches!(result, Err(Error::Ended { .. }));
        assert!(ended(self.link.try_recv::<Vec<u8>>().map(drop)));
        assert!(ended(self.link.try_send(&())));
        assert!(ended(self.link.try_transfer(&1_u8).map(drop)));
        assert!(ended(self.link.try_flush()));
        let more = Write {
            bytes: vec![0],
            fds: Vec::new(),
        };
        assert!(send(&self.peer, &more).is_err());
    }
}

/// What was received goes over another link, and comes out as the same.
fn again<T: Serialize + DeserializeOwned + Print>(value: T, setup: Setup) {
    let before = printed(&value);
    let (link, peer) = pair(setup);
    match peer.try_send(&value) {
        Ok(()) => {}
        // More than fits a socket's buffer.
        Err(Error::WouldBlock) => return,
        Err(error) => panic!("{before} cannot be sent: {error:?}"),
    }
    let received = loop {
        match link.try_recv::<T>() {
            Err(Error::WouldBlock) => match peer.try_flush() {
                Ok(()) | Err(Error::WouldBlock) => {}
                Err(error) => panic!("{before} cannot be sent to the end: {error:?}"),
            },
            other => break other,
        }
    };
    match received {
        Ok(received) => assert_eq!(printed(&received), before),
        Err(error) => panic!("{before} cannot be received again: {error:?}"),
    }
    assert!(matches!(link.try_recv::<T>(), Err(Error::WouldBlock)));
}

fn pair(setup: Setup) -> (Link, Link) {
    let kind = if setup.stream {
        SocketKind::Stream
    } else {
        SocketKind::Packets
    };
    let (link, peer) = Link::pair_of(kind).expect("a pair");
    if setup.adopting {
        (link.adopting(), peer)
    } else {
        (link, peer)
    }
}

fn send(socket: &OwnedFd, write: &Write) -> rustix::io::Result<()> {
    let fds: Vec<_> = write.fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(&write.bytes)], &mut control, flags).map(drop)
}

fn hung_up(link: &Link) -> bool {
    let mut fds = [PollFd::new(link, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default())).expect("poll") > 0
}

/// A receipt was answered with one byte, or closed. Nobody has it any more.
fn answered(receipt: UnixStream) {
    assert_eq!(sockopt::socket_type(&receipt), Ok(SocketType::STREAM));
    receipt.set_nonblocking(true).expect("a socket");
    let mut bytes = [0; 2];
    match (&receipt).read(&mut bytes) {
        Ok(0 | 1) => {}
        // The peer sent its own end, or others, along: they are in nobody's table, and closed by the kernel some time.
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        other => panic!("a receipt has {other:?}"),
    }
}

//! Receipts that are none, and receivers that answer with anything.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use common::raw::{KINDS, borrowed, ended, link_to_raw, receipt, send_some, witnesses};
use common::{all_writers_closed, alone, frame, memfd, packet, raw_send};
use memlane_transport::{Error, Fd, Link, Receipt, SocketKind};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg};

/// Sends a link a message with this receipt, or with none where there should be one.
fn with_receipt(kind: SocketKind, theirs: Option<OwnedFd>) -> (Link, OwnedFd, Result<u8, Error>) {
    let (link, peer) = link_to_raw(kind);
    let fds: Vec<OwnedFd> = theirs.into_iter().collect();
    raw_send(
        &peer,
        &packet(fds.len() as u16, &receipt(), &[7]),
        &borrowed(&fds),
    );
    drop(fds);
    let result = link.recv::<u8>();
    (link, peer, result)
}

#[test]
fn that_is_not_there() {
    let _alone = alone();
    for kind in KINDS {
        let (link, peer, result) = with_receipt(kind, None);
        let error = result.unwrap_err();
        assert!(
            matches!(error, Error::MissingService { what: "a receipt" }),
            "{error:?}"
        );
        ended(&link, &peer, &error);
    }
}

#[test]
fn that_is_no_stream_socket() {
    let _alone = alone();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    let seqpacket = Link::pair().unwrap().0;
    for other in [
        writer,
        memfd(),
        seqpacket.into(),
        UnixDatagram::unbound().unwrap().into(),
        std::fs::File::open("/dev/null").unwrap().into(),
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(),
        rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap(),
    ] {
        for kind in KINDS {
            let (link, peer, result) = with_receipt(kind, Some(other.try_clone().unwrap()));
            let error = result.unwrap_err();
            assert!(matches!(error, Error::NotAReceipt), "{error:?}");
            ended(&link, &peer, &error);
        }
    }
}

/// The acknowledgement is the sender's affair: if it cannot be had, the message counts all the same.
#[test]
fn that_takes_no_answer() {
    let _alone = alone();
    let full = || {
        let (theirs, ours) = UnixStream::pair().unwrap();
        while send_some(&theirs, &[0; 4096], &[], SendFlags::DONTWAIT).is_ok() {}
        (OwnedFd::from(theirs), Some(ours))
    };
    let hung_up = || (OwnedFd::from(UnixStream::pair().unwrap().0), None);
    let shut_down = || {
        let (theirs, ours) = UnixStream::pair().unwrap();
        ours.shutdown(std::net::Shutdown::Both).unwrap();
        (theirs.into(), Some(ours))
    };
    let unconnected = || {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            None,
        );
        (socket.unwrap(), None)
    };
    for kind in KINDS {
        for (theirs, _ours) in [full(), hung_up(), shut_down(), unconnected()] {
            let (link, peer, result) = with_receipt(kind, Some(theirs));
            assert_eq!(result.unwrap(), 7);
            // And the link goes on.
            raw_send(&peer, &frame(0, &[8]), &[]);
            assert_eq!(link.recv::<u8>().unwrap(), 8);
        }
    }
}

/// The link itself as the receipt: the acknowledgement is a byte in the stream, which is no packet.
#[test]
fn that_is_the_link() {
    let _alone = alone();
    let (link, peer) = link_to_raw(SocketKind::Stream);
    let end = link.as_fd().try_clone_to_owned().unwrap();
    raw_send(&peer, &packet(1, &receipt(), &[7]), &[end.as_fd()]);
    drop(end);
    assert_eq!(link.recv::<u8>().unwrap(), 7);
    let other = Link::from_fd(peer).unwrap();
    link.send("longer than a header").unwrap();
    let error = other.recv::<String>().unwrap_err();
    assert!(
        matches!(error, Error::NotMemlane { found: 1, .. }),
        "{error:?}"
    );
}

/// A sender with a receipt, and the other end of it in the hands of a receiver that does as it likes.
fn asked() -> (Receipt, OwnedFd) {
    let (link, peer) = link_to_raw(SocketKind::Packets);
    let receipt = link.transfer(&7_u8).unwrap();
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 64];
    let mut iov = [std::io::IoSliceMut::new(&mut bytes)];
    recvmsg(&peer, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let theirs = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .next()
        .unwrap();
    (receipt, theirs)
}

#[test]
fn answered_with_anything() {
    let _alone = alone();
    for answer in [&b"x"[..], &[0], &[0xff; 100_000]] {
        let (receipt, theirs) = asked();
        let _ = send_some(&theirs, answer, &[], SendFlags::DONTWAIT).unwrap();
        for theirs in [Some(theirs), None] {
            receipt.wait().unwrap();
            receipt.try_wait().unwrap();
            drop(theirs);
        }
    }
}

/// They are not taken, however often the sender asks.
#[test]
fn answered_with_descriptors() {
    let _alone = alone();
    for flags in [SendFlags::empty(), SendFlags::OOB] {
        let (receipt, theirs) = asked();
        let (readers, writers) = witnesses(3);
        let before = common::descriptors();
        let _ = send_some(&theirs, b"x", &borrowed(&writers), flags);
        for _ in 0..3 {
            receipt.wait().unwrap();
        }
        assert_eq!(common::descriptors(), before);
        drop((receipt, writers));
        readers.iter().for_each(all_writers_closed);
    }
}

/// An urgent byte alone makes a socket readable with nothing in it to read; a wait must neither spin nor miss what follows.
#[test]
fn answered_urgently() {
    let _alone = alone();
    let (receipt, theirs) = asked();
    if send_some(&theirs, b"!", &[], SendFlags::OOB).is_err() {
        eprintln!("skipped: a kernel without CONFIG_AF_UNIX_OOB");
        return;
    }
    // An answer like any other: whoever holds that end can give one.
    receipt.try_wait().unwrap();
    receipt.wait().unwrap();
    drop(theirs);
    receipt.wait().unwrap();
}

#[test]
fn answered_by_silence() {
    let _alone = alone();
    let (receipt, theirs) = asked();
    // Half closed is an answer: none will come.
    rustix::net::shutdown(&theirs, rustix::net::Shutdown::Write).unwrap();
    assert!(matches!(receipt.wait(), Err(Error::NotAcknowledged)));
    let (receipt, theirs) = asked();
    assert!(matches!(receipt.try_wait(), Err(Error::WouldBlock)));
    // The end that was to answer goes on to somebody else, and is lost there.
    let (left, right) = Link::pair().unwrap();
    left.send(&Fd::from(theirs)).unwrap();
    assert!(matches!(receipt.try_wait(), Err(Error::WouldBlock)));
    drop((left, right));
    assert!(matches!(receipt.wait(), Err(Error::NotAcknowledged)));
}

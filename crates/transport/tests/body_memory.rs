//! Bodies in memory that is not what it should be (A20, for the memory of the protocol itself).

mod common;

use std::os::fd::{AsFd, OwnedFd};

use common::raw::{
    FROZEN, KINDS, body, borrowed, ended, link_to_raw, memory, receipt, sealed, witnesses,
};
use common::{Directory, all_writers_closed, alone, memfd, packet, raw_send};
use memlane_transport::{Error, Fd, Limits};
use rustix::fs::{Mode, OFlags, SealFlags};

const TEXT: &str = "a body that would have fitted its packet";

/// Sends a message with this memory for a body of this many bytes.
fn refuse(content: OwnedFd, size: u64) -> Error {
    let mut error = None;
    for kind in KINDS {
        let (link, peer) = link_to_raw(kind);
        let link = link.with_limits(Limits::new().body(1 << 20));
        let (readers, writers) = witnesses(1);
        let mut fds = borrowed(&writers);
        fds.push(content.as_fd());
        raw_send(&peer, &packet(2, &memory(size), &[]), &fds);
        drop(writers);
        let found = link.recv::<(Fd, String)>().unwrap_err();
        ended(&link, &peer, &found);
        readers.iter().for_each(all_writers_closed);
        error = Some(found);
    }
    error.unwrap()
}

fn wrong(content: impl Into<OwnedFd>, size: u64, why: &str) {
    let error = refuse(content.into(), size);
    let Error::WrongDescriptor { expected, found } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(*expected, "memory sealed against writing, for a body");
    assert!(found.contains(why), "{found:?} does not say {why:?}");
}

fn value() -> Vec<u8> {
    body(&(0_u16, TEXT))
}

#[test]
fn as_it_should_be() {
    let _alone = alone();
    for seals in [
        FROZEN,
        FROZEN | SealFlags::SEAL,
        FROZEN | SealFlags::FUTURE_WRITE | SealFlags::SEAL,
    ] {
        for kind in KINDS {
            let (link, peer) = link_to_raw(kind);
            let (file, content) = (memfd(), sealed(&value(), seals));
            let fields = memory(value().len() as u64);
            raw_send(
                &peer,
                &packet(2, &fields, &[]),
                &[file.as_fd(), content.as_fd()],
            );
            let (_fd, text): (Fd, String) = link.recv().unwrap();
            assert_eq!(text, TEXT);
        }
    }
}

#[test]
fn that_someone_could_still_change() {
    let _alone = alone();
    let size = value().len() as u64;
    for seals in [
        SealFlags::empty(),
        SealFlags::SEAL,
        SealFlags::SHRINK | SealFlags::GROW,
        SealFlags::WRITE | SealFlags::GROW,
        SealFlags::WRITE | SealFlags::SHRINK,
        // Its creator could have a mapping from before.
        SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    ] {
        wrong(sealed(&value(), seals), size, "memory with seals");
    }
}

#[test]
fn of_another_size() {
    let _alone = alone();
    let size = value().len() as u64;
    for announced in [0, 1, size - 1, size + 1, 1 << 20] {
        wrong(
            sealed(&value(), FROZEN),
            announced,
            &format!("for a body of {announced}"),
        );
    }
    wrong(sealed(&[], FROZEN), size, "0 bytes of memory");
    // Beyond the receiver's limit: not even looked at.
    for announced in [(1 << 20) + 1, u64::MAX] {
        let error = refuse(sealed(&value(), FROZEN), announced);
        assert!(
            matches!(error, Error::PeerBodyTooLarge { size, limit: 0x10_0000 } if size == announced),
            "{error:?}"
        );
    }
}

/// Refused by the question about seals, which no file can make wait.
#[test]
fn that_is_no_memory() {
    let _alone = alone();
    let directory = Directory::new();
    let path = directory.join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )
    .unwrap();
    let fifo = rustix::fs::open(&path, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).unwrap();
    let file = directory.join("file");
    std::fs::write(&file, value()).unwrap();
    let size = value().len() as u64;
    for other in [
        fifo,
        std::fs::File::open("/dev/null").unwrap().into(),
        std::fs::File::open("/dev/zero").unwrap().into(),
        std::os::unix::net::UnixStream::pair().unwrap().0.into(),
        rustix::event::eventfd(1, rustix::event::EventfdFlags::empty()).unwrap(),
        rustix::fs::open("/", OFlags::PATH, Mode::empty()).unwrap(),
    ] {
        wrong(other, size, "no memfd");
    }
    // A file in a tmpfs has one seal, others none at all: no memory either way.
    let error = refuse(std::fs::File::open(&file).unwrap().into(), size);
    assert!(matches!(error, Error::WrongDescriptor { .. }), "{error:?}");
}

#[test]
fn that_does_not_come() {
    let _alone = alone();
    for (fields, count) in [(memory(5), 0), ([memory(5), receipt()].concat(), 1)] {
        for kind in KINDS {
            let (link, peer) = link_to_raw(kind);
            let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
            let fds = [socket.as_fd()];
            raw_send(
                &peer,
                &packet(count, &fields, &[]),
                &fds[..usize::from(count)],
            );
            let error = link.recv::<String>().unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::MissingService {
                        what: "memory for its body"
                    }
                ),
                "{error:?}"
            );
            ended(&link, &peer, &error);
        }
    }
}

/// What is in it is judged like any other body.
#[test]
fn whose_bytes_are_no_value() {
    let _alone = alone();
    for bytes in [&[0, 200][..], &[0, 1, 0xff], &[0, 1, b'a', 7], &[]] {
        let error = refuse(sealed(bytes, FROZEN), bytes.len() as u64);
        assert!(matches!(error, Error::Decode { .. }), "{error:?}");
    }
    // An index of the memory itself: it is not the value's.
    let bytes = body(&(1_u16, TEXT));
    let error = refuse(sealed(&bytes, FROZEN), bytes.len() as u64);
    assert!(
        matches!(
            error,
            Error::MissingDescriptor {
                index: 1,
                received: 1
            }
        ),
        "{error:?}"
    );
}

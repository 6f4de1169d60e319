//! A peer that speaks bytes.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use memlane_transport::{Error, Fd, Link, SocketKind, codec, frame::MAX_INLINE};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

pub const KINDS: [SocketKind; 2] = [SocketKind::Packets, SocketKind::Stream];

/// A link, and the bare socket of its peer.
pub fn link_to_raw(kind: SocketKind) -> (Link, OwnedFd) {
    let (link, peer) = Link::pair_of(kind).unwrap();
    (link, peer.into_fd())
}

/// Sends what there is room for, with whatever flags.
pub fn send_some(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> rustix::io::Result<usize> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let flags = flags | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)
}

/// A field: tag, length, data.
pub fn field(tag: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag, u8::try_from(data.len()).unwrap()];
    bytes.extend(data);
    bytes
}

pub fn more(total: u32) -> Vec<u8> {
    field(0x01, &total.to_le_bytes())
}

pub fn memory(size: u64) -> Vec<u8> {
    field(0x02, &size.to_le_bytes())
}

pub fn receipt() -> Vec<u8> {
    field(0x03, &[])
}

pub fn body<T: serde::Serialize>(value: &T) -> Vec<u8> {
    codec::encode(value, MAX_INLINE).unwrap()
}

/// Memory with these bytes and these seals.
pub fn sealed(bytes: &[u8], seals: SealFlags) -> OwnedFd {
    let memory = memfd_create(
        "memlane-test",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )
    .unwrap();
    let mut left = bytes;
    while !left.is_empty() {
        left = &left[rustix::io::write(&memory, left).unwrap()..];
    }
    fcntl_add_seals(&memory, seals).unwrap();
    memory
}

pub const FROZEN: SealFlags = SealFlags::WRITE
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW);

/// One writing end for each reading end, and the readers: they tell when every copy of the writers is closed.
pub fn witnesses(count: usize) -> (Vec<OwnedFd>, Vec<OwnedFd>) {
    (0..count).map(|_| rustix::pipe::pipe().unwrap()).unzip()
}

pub fn borrowed(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}

/// The link is ended for good: for the one side with the reason, for the other by a hang-up.
pub fn ended(link: &Link, peer: impl AsFd, reason: &Error) {
    assert!(reason.ends_link(), "{reason:?}");
    for again in [link.try_recv::<Fd>().map(drop), link.try_send(&())] {
        let again = again.unwrap_err();
        assert!(
            matches!(&again, Error::Ended { why } if why.contains(&reason.to_string())),
            "{again:?}"
        );
    }
    let error = send_some(peer, b"x", &[], SendFlags::empty()).unwrap_err();
    assert_eq!(error, rustix::io::Errno::PIPE);
}

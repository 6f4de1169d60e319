//! Descriptors of every kind that a peer could send.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, open};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with, socketpair,
};

const FROZEN: SealFlags = SealFlags::WRITE
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW);

/// A new descriptor; `number` chooses its kind, and `peer` is the link's other end, which can be sent over itself.
pub fn make(number: u8, peer: &OwnedFd) -> OwnedFd {
    match number % 16 {
        0 => memory(b"\x05hello", SealFlags::empty()),
        1 => memory(b"\x05hello", SealFlags::SHRINK),
        2 => memory(b"\x05hello", FROZEN),
        3 => memory(b"", FROZEN),
        4 => eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd"),
        // The other end is gone, or stays for the run.
        5 => pair(SocketType::STREAM).0,
        6 => pair(SocketType::SEQPACKET).0,
        7 => pair(SocketType::DGRAM).0,
        8 => listening(SocketType::SEQPACKET),
        9 => listening(SocketType::STREAM),
        10 => socket(SocketType::STREAM),
        11 => rustix::pipe::pipe().expect("pipe").0,
        12 => open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("/"),
        13 => open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).expect("/dev/null"),
        14 => peer.try_clone().expect("a descriptor"),
        _ => open("/proc/self", OFlags::CLOEXEC, Mode::empty()).expect("/proc"),
    }
}

/// Memory with `content`, as it carries long bodies.
pub fn frozen(content: &[u8]) -> OwnedFd {
    memory(content, FROZEN)
}

/// A socket as receipts are, and the end that would be asked for the answer.
pub fn receipt() -> (OwnedFd, UnixStream) {
    let (theirs, ours) = pair(SocketType::STREAM);
    (theirs, ours.into())
}

fn memory(content: &[u8], seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = memfd_create("memlane-fuzz", flags).expect("memfd");
    let written = rustix::io::write(&memory, content).expect("memory can be written");
    assert_eq!(written, content.len());
    fcntl_add_seals(&memory, seals).expect("memory can be sealed");
    memory
}

fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("socketpair")
}

fn socket(kind: SocketType) -> OwnedFd {
    socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("socket")
}

/// Without a file: under an abstract name that the kernel chooses.
fn listening(kind: SocketType) -> OwnedFd {
    let socket = socket(kind);
    bind(&socket, &SocketAddrUnix::new_unnamed()).expect("bind");
    listen(socket.as_fd(), 1).expect("listen");
    socket
}

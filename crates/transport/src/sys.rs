//! The system calls that rustix 1.1 lacks, or gets wrong for a socket whose other end is hostile.
//!
//! * recvmsg(2): its control buffer is walked by [`control`](crate::control), which see for why.
//! * sendmsg(2): takes descriptor numbers, because the message that owns the descriptors has been encoded by then.
//! * [`identity`]: what the kernel tells of a socket's peer.
//! * [`process`]: pidfd information, and comparing open file descriptions.
//! * [`spawn`]: children before they are a program, and what they inherit.

pub(crate) mod activation;
pub(crate) mod identity;
pub(crate) mod process;
#[cfg(feature = "tokio")]
pub(crate) mod reactor;
#[cfg(feature = "sandbox")]
pub(crate) mod sandbox;
pub(crate) mod spawn;

use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::slice;

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::control;
use crate::frame::{MAX_PACKET, Piece};

thread_local! {
    /// In use during a system call only. Zeroing one for each would cost 30 ns.
    static CONTROL: RefCell<control::Buffer> = const { RefCell::new(control::Buffer::new()) };
}

/// Room for the largest packet and one byte more, so that a larger one is seen to be larger. Uninitialised: 16 KiB of zeros
/// would cost more than the system call.
pub(crate) struct Packet {
    bytes: MaybeUninit<[u8; MAX_PACKET + 1]>,
    filled: usize,
}

impl Packet {
    /// Written field by field: as one value it would be filled with zeros (seen with rustc 1.95).
    #[inline(always)]
    pub(crate) fn new() -> Packet {
        let mut packet = MaybeUninit::<Packet>::uninit();
        // SAFETY: the field is part of the packet, which is writable and aligned; `bytes` needs no value, and then all
        // fields have one.
        unsafe {
            (&raw mut (*packet.as_mut_ptr()).filled).write(0);
            packet.assume_init()
        }
    }

    /// What has been received.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the kernel wrote the first `filled` bytes (`receive`).
        unsafe { slice::from_raw_parts(self.bytes.as_ptr().cast::<u8>(), self.filled) }
    }

    pub(crate) fn clear(&mut self) {
        self.filled = 0;
    }
}

/// Receives at most `room` bytes behind those that `packet` has, without waiting; close-on-exec is set on the descriptors
/// as they are made.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    packet: &mut Packet,
    room: usize,
) -> io::Result<Piece> {
    CONTROL.with_borrow_mut(|buffer| receive_into(socket, packet, room, buffer))
}

fn receive_into(
    socket: BorrowedFd<'_>,
    packet: &mut Packet,
    room: usize,
    buffer: &mut control::Buffer,
) -> io::Result<Piece> {
    let mut iov = libc::iovec {
        // Within the array: `filled` only grows by what was received, which is at most the room.
        iov_base: packet
            .bytes
            .as_mut_ptr()
            .cast::<u8>()
            .wrapping_add(packet.filled)
            .cast(),
        iov_len: room.min(MAX_PACKET + 1 - packet.filled),
    };
    loop {
        // SAFETY: msghdr is plain data; all zero is no name, no buffers, no flags.
        let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut buffer.0).cast();
        header.msg_controllen = control::SPACE as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: `header` points to `iov` and `buffer`, which live through the call and have the lengths given.
        let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        // `size_t` with glibc, `socklen_t` with musl.
        #[allow(clippy::unnecessary_cast)]
        let used = (header.msg_controllen as usize).min(control::SPACE);
        // SAFETY: this is what the recvmsg above left, and it is adopted only here.
        let control = unsafe { control::adopt(&buffer.0[..used]) };
        let size = count.min(iov.iov_len);
        packet.filled += size;
        return Ok(Piece {
            size,
            control,
            bytes_cut: header.msg_flags & libc::MSG_TRUNC != 0,
            control_cut: header.msg_flags & libc::MSG_CTRUNC != 0,
        });
    }
}

/// Sends bytes without waiting and without SIGPIPE (which Linux raises for streams only; nothing promises it), and says
/// how many left: all of them, but for a stream. The kernel takes its own references of `fds`, which the caller keeps open.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    CONTROL.with_borrow_mut(|buffer| send_with(socket.as_fd(), bytes, fds, buffer))
}

fn send_with(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[RawFd],
    buffer: &mut control::Buffer,
) -> io::Result<usize> {
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: msghdr is plain data; all zero is no name, no buffers, no flags.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    if !fds.is_empty() {
        let room = buffer
            .write_rights(fds)
            .ok_or(io::ErrorKind::InvalidInput)?;
        header.msg_control = (&raw mut buffer.0).cast();
        header.msg_controllen = room as _;
    }
    loop {
        // SAFETY: `header` points to `iov` and `buffer`, which live through the call; sendmsg only reads them.
        let sent = unsafe {
            libc::sendmsg(
                socket.as_raw_fd(),
                &raw const header,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        if let Ok(sent) = usize::try_from(sent) {
            return Ok(sent);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// SIOCOUTQ: bytes of kernel memory that hold what was sent here and not received yet (unix_outq_len, net/unix/af_unix.c).
pub(crate) fn unreceived(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int. SIOCOUTQ and TIOCOUTQ are the same number (linux/sockios.h).
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 {
        Ok(usize::try_from(bytes).unwrap_or(0))
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Family and type of a socket. The kernel answers without asking the file's owner; `None` for anything else.
pub(crate) fn socket_kind(fd: impl AsFd) -> Option<(AddressFamily, SocketType)> {
    let domain = sockopt::socket_domain(&fd).ok()?;
    Some((domain, sockopt::socket_type(&fd).ok()?))
}

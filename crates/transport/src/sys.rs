//! The system calls that rustix 1.1 lacks, or gets wrong for a socket whose other end is hostile.
//!
//! * recvmsg(2): its control buffer is walked by [`control`](crate::control), which see for why.
//! * sendmsg(2): takes descriptor numbers, because the message that owns the descriptors has been encoded by then.
//! * SO_PEERCRED: a peer of another pid namespace has pid 0, which `rustix::net::UCred` (a non-zero pid) cannot hold.
//! * SO_PEERPIDFD: unknown to rustix and libc.

pub(crate) mod activation;

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::{ptr, slice};

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::control;
use crate::frame::{MAX_PACKET, Piece};

/// asm-generic/socket.h, Linux 6.5.
#[cfg(not(any(target_arch = "sparc", target_arch = "sparc64")))]
const SO_PEERPIDFD: libc::c_int = 77;
#[cfg(any(target_arch = "sparc", target_arch = "sparc64"))]
const SO_PEERPIDFD: libc::c_int = 0x0056;

/// Room for the largest packet and one byte more, so that a larger one is seen to be larger. Uninitialised: 16 KiB of zeros
/// would cost more than the system call.
pub(crate) struct Packet {
    bytes: [MaybeUninit<u8>; MAX_PACKET + 1],
    filled: usize,
}

impl Packet {
    pub(crate) const fn new() -> Packet {
        Packet {
            bytes: [MaybeUninit::uninit(); MAX_PACKET + 1],
            filled: 0,
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
    let mut buffer = control::Buffer::new();
    let free = &mut packet.bytes[packet.filled..];
    let mut iov = libc::iovec {
        iov_base: free.as_mut_ptr().cast(),
        iov_len: room.min(free.len()),
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
/// how many left: all of them, but for a stream. The kernel takes its own references of `fds`.
pub(crate) fn send<F: AsRawFd>(socket: impl AsFd, bytes: &[u8], fds: &[F]) -> io::Result<usize> {
    let mut buffer = control::Buffer::new();
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
            .write_rights(fds.iter().map(AsRawFd::as_raw_fd))
            .ok_or(io::ErrorKind::InvalidInput)?;
        header.msg_control = (&raw mut buffer.0).cast();
        header.msg_controllen = room as _;
    }
    loop {
        // SAFETY: `header` points to `iov` and `buffer`, which live through the call; sendmsg only reads them.
        let sent = unsafe {
            libc::sendmsg(
                socket.as_fd().as_raw_fd(),
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

/// SO_PEERCRED.
pub(crate) fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<libc::ucred> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    // SAFETY: ucred is plain data, any bytes are one.
    unsafe { socket_option(socket, libc::SO_PEERCRED, &mut credentials)? };
    Ok(credentials)
}

/// SO_PEERPIDFD. The kernel makes pidfds close-on-exec (pidfd_open(2)).
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut fd: RawFd = -1;
    // SAFETY: any bytes are an integer.
    unsafe { socket_option(socket, SO_PEERPIDFD, &mut fd)? };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: the kernel has just installed this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// `T` must be valid for any bytes.
unsafe fn socket_option<T>(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    value: &mut T,
) -> io::Result<()> {
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `value`, which any bytes suit.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            ptr::from_mut(value).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// asm-generic/socket.h, Linux 6.16.
const SO_PASSRIGHTS: libc::c_int = 83;

/// SO_PASSRIGHTS: whether the peer may send descriptors to this socket. `false` where the kernel does not know it.
pub(crate) fn pass_rights(socket: BorrowedFd<'_>, pass: bool) -> io::Result<bool> {
    let value = libc::c_int::from(pass);
    // SAFETY: the kernel reads one int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOPROTOOPT) => Ok(false),
        _ => Err(error),
    }
}

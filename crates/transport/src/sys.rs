//! The system calls that rustix 1.1 lacks, or gets wrong for a socket whose other end is hostile.
//!
//! * recvmsg(2): its control buffer is walked by [`control`](crate::control), which see for why.
//! * sendmsg(2): takes descriptor numbers, because the message that owns the descriptors has been encoded by then.
//! * SO_PEERCRED: a peer of another pid namespace has pid 0, which `rustix::net::UCred` (a non-zero pid) cannot hold.
//! * SO_PEERPIDFD: unknown to rustix and libc.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use crate::control::{self, Control};
use crate::frame::MAX_PACKET;

/// asm-generic/socket.h, Linux 6.5.
#[cfg(not(any(target_arch = "sparc", target_arch = "sparc64")))]
const SO_PEERPIDFD: libc::c_int = 77;
#[cfg(any(target_arch = "sparc", target_arch = "sparc64"))]
const SO_PEERPIDFD: libc::c_int = 0x0056;

/// Room for the largest packet and one byte more, so that a larger one is seen to be larger. Uninitialised: 16 KiB of zeros
/// would cost more than the system call.
pub(crate) struct Packet([MaybeUninit<u8>; MAX_PACKET + 1]);

impl Packet {
    pub(crate) const fn new() -> Packet {
        Packet([MaybeUninit::uninit(); MAX_PACKET + 1])
    }
}

/// One packet, everything in it owned.
#[derive(Debug)]
pub(crate) struct Received<'p> {
    pub(crate) bytes: &'p [u8],
    pub(crate) control: Control,
    /// MSG_TRUNC.
    pub(crate) bytes_cut: bool,
    /// MSG_CTRUNC.
    pub(crate) control_cut: bool,
}

/// Receives one packet without waiting; close-on-exec is set on its descriptors as they are made.
pub(crate) fn receive<'p>(
    socket: BorrowedFd<'_>,
    packet: &'p mut Packet,
) -> io::Result<Received<'p>> {
    let mut buffer = control::Buffer([0; control::SPACE]);
    let mut iov = libc::iovec {
        iov_base: packet.0.as_mut_ptr().cast(),
        iov_len: packet.0.len(),
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
        let count = count.min(packet.0.len());
        // SAFETY: the kernel wrote the first `count` bytes of the packet.
        let bytes = unsafe { std::slice::from_raw_parts(packet.0.as_ptr().cast::<u8>(), count) };
        return Ok(Received {
            bytes,
            control,
            bytes_cut: header.msg_flags & libc::MSG_TRUNC != 0,
            control_cut: header.msg_flags & libc::MSG_CTRUNC != 0,
        });
    }
}

/// Sends one packet without waiting and without SIGPIPE (which Linux raises for streams only; nothing promises it). The
/// kernel takes its own references of `fds`.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let mut buffer = control::Buffer([0; control::SPACE]);
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: msghdr is plain data; all zero is no name, no buffers, no flags.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    if !fds.is_empty() {
        let data = size_of_val(fds);
        let room = control::space(data);
        if room > control::SPACE {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        header.msg_control = (&raw mut buffer.0).cast();
        header.msg_controllen = room as _;
        // SAFETY: the buffer is aligned for a cmsghdr and has room for it and for `data` bytes behind it, checked above. An
        // OwnedFd has the representation of a descriptor's number (std::os::fd::OwnedFd).
        unsafe {
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(data as libc::c_uint) as _;
            ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(message), data);
        }
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
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
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

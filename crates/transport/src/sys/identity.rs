//! Socket options about the peer that rustix 1.1 and libc lack.
//!
//! * SO_PEERCRED: a peer of another pid namespace has pid 0, which `rustix::net::UCred` (a non-zero pid) cannot hold.
//! * SO_PEERPIDFD, SO_PEERGROUPS, SO_PEERSEC, SO_PASSRIGHTS: unknown to both.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;

/// A number of asm-generic/socket.h, of mips's and of sparc's own.
const fn number(generic: libc::c_int, mips: libc::c_int, sparc: libc::c_int) -> libc::c_int {
    if cfg!(any(target_arch = "sparc", target_arch = "sparc64")) {
        sparc
    } else if cfg!(any(
        target_arch = "mips",
        target_arch = "mips32r6",
        target_arch = "mips64",
        target_arch = "mips64r6"
    )) {
        mips
    } else {
        generic
    }
}

const SO_PEERSEC: libc::c_int = number(31, 30, 0x001e);
/// Linux 4.13.
const SO_PEERGROUPS: libc::c_int = number(59, 59, 0x003d);
/// Linux 6.5.
const SO_PEERPIDFD: libc::c_int = number(77, 77, 0x0056);
/// Linux 6.16.
const SO_PASSRIGHTS: libc::c_int = number(83, 83, 0x005c);

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

/// SO_PEERGROUPS; none where the kernel does not tell.
pub(crate) fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Box<[u32]>> {
    let bytes = match socket_bytes(socket, SO_PEERGROUPS, 32 * size_of::<u32>()) {
        Ok(bytes) => bytes,
        // Before 4.13, and a socket without credentials (sk_getsockopt, net/core/sock.c).
        Err(Errno::NOPROTOOPT | Errno::NODATA) => return Ok(Box::default()),
        Err(error) => return Err(error.into()),
    };
    Ok(bytes
        .chunks_exact(size_of::<u32>())
        .map(|gid| u32::from_ne_bytes([gid[0], gid[1], gid[2], gid[3]]))
        .collect())
}

/// SO_PEERSEC without the NUL that some security modules end it with; `None` where there is no label.
pub(crate) fn peer_label(socket: BorrowedFd<'_>) -> io::Result<Option<Vec<u8>>> {
    match socket_bytes(socket, SO_PEERSEC, 128) {
        Ok(mut label) => {
            if label.last() == Some(&0) {
                label.pop();
            }
            Ok((!label.is_empty()).then_some(label))
        }
        Err(Errno::NOPROTOOPT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// SO_PASSRIGHTS: whether packets with descriptors may be sent to `socket`; if not, their senders get EPERM. On a listening
/// socket it holds for those accepted from it. `Ok(false)` when the kernel does not know the option.
pub(crate) fn set_pass_rights(socket: BorrowedFd<'_>, pass: bool) -> io::Result<bool> {
    let value = libc::c_int::from(pass);
    // SAFETY: the kernel reads as many bytes of `value` as it has.
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
    match Errno::from_io_error(&error) {
        Some(Errno::NOPROTOOPT) => Ok(false),
        _ => Err(error),
    }
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

/// An option of any length. With ERANGE the kernel says how much room it wants.
fn socket_bytes(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    first_try: usize,
) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0_u8; first_try];
    loop {
        let mut length = bytes.len() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to `bytes`, which has that many.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                bytes.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let length = length as usize;
        if result == 0 {
            bytes.truncate(length);
            return Ok(bytes);
        }
        match Errno::from_io_error(&io::Error::last_os_error()) {
            Some(Errno::RANGE) if length > bytes.len() => bytes.resize(length, 0),
            error => return Err(error.unwrap_or(Errno::IO)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys::send;

    #[test]
    fn rights_pass_only_where_they_may() {
        let (here, there) = UnixStream::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let fds = [null.as_raw_fd()];
        if !set_pass_rights(there.as_fd(), false).unwrap() {
            // Before Linux 6.16.
            send(here.as_fd(), b"x", &fds).unwrap();
            return;
        }
        let error = send(here.as_fd(), b"x", &fds).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::PERM));
        send(here.as_fd(), b"x", &[]).unwrap();
        assert!(set_pass_rights(there.as_fd(), true).unwrap());
        send(here.as_fd(), b"x", &fds).unwrap();

        assert!(set_pass_rights(null.as_fd(), true).is_err());
    }
}

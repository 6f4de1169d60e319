//! What the kernel knows of a process by its pidfd, and whether two descriptors are one.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// `struct pidfd_info` in its first published form, PIDFD_INFO_SIZE_VER0 (linux/pidfd.h, Linux 6.13). Ids are those of the
/// caller's namespaces.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Info {
    mask: u64,
    cgroup: u64,
    pub(crate) pid: u32,
    tgid: u32,
    ppid: u32,
    pub(crate) ruid: u32,
    pub(crate) rgid: u32,
    pub(crate) euid: u32,
    pub(crate) egid: u32,
    pub(crate) suid: u32,
    pub(crate) sgid: u32,
    fsuid: u32,
    fsgid: u32,
    spare: u32,
}

const _: () = assert!(size_of::<Info>() == 64);

/// PIDFD_INFO_PID and PIDFD_INFO_CREDS.
const WANTED: u64 = 1 << 0 | 1 << 1;

/// PIDFD_GET_INFO, `None` before Linux 6.13 and when the process has been reaped or is not visible. `pidfd` must be known to
/// be one: an ioctl on anything else is that file's to answer, or not.
pub(crate) fn info(pidfd: BorrowedFd<'_>) -> Option<Info> {
    let mut info = Info {
        mask: WANTED,
        ..Info::default()
    };
    let request = rustix::ioctl::opcode::read_write::<Info>(0xff, 11);
    // SAFETY: the request's number says how large `info` is; the kernel reads and writes that much, plain data.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), request as _, &raw mut info) };
    (result == 0 && info.mask & WANTED == WANTED).then_some(info)
}

/// F_DUPFD_QUERY (linux/fcntl.h, Linux 6.10): whether two descriptors of this process are one description.
pub(crate) fn query_duplicate(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> io::Result<bool> {
    const F_DUPFD_QUERY: libc::c_int = 1024 + 3;
    // SAFETY: fcntl takes two integers here and changes nothing.
    match unsafe { libc::fcntl(a.as_raw_fd(), F_DUPFD_QUERY, b.as_raw_fd()) } {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

/// kcmp(KCMP_FILE): whether `own` is the description that process `pid` has as `number`; without a `pid`, this one.
pub(crate) fn compare_files(
    own: BorrowedFd<'_>,
    pid: Option<u32>,
    number: RawFd,
) -> io::Result<bool> {
    const KCMP_FILE: libc::c_long = 0;
    // This thread, since the main one may have exited and then has no descriptors any more.
    // SAFETY: asks for a number.
    let this = libc::c_long::from(unsafe { libc::gettid() });
    let other = pid.map_or(this, |pid| pid as libc::c_long);
    // SAFETY: kcmp takes five numbers and changes nothing.
    let order = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            this,
            other,
            KCMP_FILE,
            libc::c_long::from(own.as_raw_fd()),
            libc::c_long::from(number),
        )
    };
    // 0 equal, 1 and 2 an order, 3 none (kcmp(2)).
    match order {
        0 => Ok(true),
        1..=3 => Ok(false),
        _ => Err(io::Error::last_os_error()),
    }
}

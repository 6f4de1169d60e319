//! Descriptors of other processes: taking one, and telling whether two are the same.

mod refusal;

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{PidfdGetfdFlags, WaitId, WaitIdOptions, pidfd_getfd, waitid};

use crate::error::Error;
use crate::fd::Fd;
use crate::sys::process as sys;

use refusal::Status;
pub use refusal::{Obstacle, Refusal};

/// A copy of the descriptor that the process of `pidfd` has as `number`: the same open file description, close-on-exec, this
/// process's own. The other process does not take part in it and does not notice.
///
/// Which kind of file it is, nobody has checked, and the other process may have put anything there: as a received [`Fd`] it
/// goes to [`dispose`](crate::dispose()) when dropped.
///
/// It takes what attaching a debugger takes: the same user (real uid and gid against all three of the target's), a target
/// that is dumpable, has no capabilities that this process lacks and lives in this user namespace, and no Yama in the way;
/// or CAP_SYS_PTRACE (PTRACE_MODE_ATTACH_REALCREDS, ptrace(2)).
///
/// While the target executes another program the call waits (for its exec_update_lock, kernel/pid.c). A hostile one can make
/// that long, by having a close-on-exec file closed that never closes; the wait ends with a fatal signal only.
///
/// # Errors
/// [`Error::NotPermitted`] says what stands in the way, as far as /proc shows it. [`Error::NotOpen`],
/// [`Error::ProcessEnded`], [`Error::NotAPidfd`]; [`Error::DescriptorLimit`] in *this* process; [`Error::Unsupported`] before
/// Linux 5.6 and under seccomp filters that say so; [`Error::Io`].
#[doc(alias = "pidfd_getfd")]
pub fn take_descriptor(pidfd: impl AsFd, number: RawFd) -> Result<Fd, Error> {
    const CALL: &str = "pidfd_getfd";
    let pidfd = pidfd.as_fd();
    // A number may come from a peer, and rustix panics at one that cannot be.
    if number < 0 {
        return Err(Error::NotOpen { number });
    }
    match pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty()) {
        Ok(fd) => Ok(Fd::received(fd)),
        Err(Errno::SRCH) => Err(Error::ProcessEnded),
        Err(error @ Errno::NOSYS) => Err(Error::Unsupported {
            call: CALL,
            needs: "Linux 5.6",
            source: error.into(),
        }),
        Err(Errno::BADF) => {
            is_pidfd(pidfd)?;
            // A process without descriptors because it is ending was EBADF, too, before Linux 6.9.
            alive(pidfd)?;
            Err(Error::NotOpen { number })
        }
        Err(error @ (Errno::PERM | Errno::ACCESS)) => {
            // A seccomp filter may have answered, without a look at the descriptor.
            is_pidfd(pidfd)?;
            refused(CALL, Refusal::ATTACH, pidfd, pid_of(pidfd).ok(), error)
        }
        Err(error) => Err(Error::io(
            "taking a descriptor of another process (pidfd_getfd)",
            error,
        )),
    }
}

/// Whether two descriptors of this process are the same open file description: one came about by duplicating the other, here
/// or on its way through other processes. Two openings of one file are not the same.
///
/// Neither file is asked anything. From Linux 6.10 on it takes no permission at all (F_DUPFD_QUERY), before that a kernel
/// with kcmp(2).
///
/// # Errors
/// [`Error::Unsupported`] without either, [`Error::NotPermitted`] where a seccomp filter refuses both; [`Error::Io`].
#[doc(alias = "kcmp")]
pub fn same_description(a: impl AsFd, b: impl AsFd) -> Result<bool, Error> {
    let (a, b) = (a.as_fd(), b.as_fd());
    // Fails before 6.10 with EINVAL, with EBADF for O_PATH descriptors.
    if let Ok(same) = sys::query_duplicate(a, b) {
        return Ok(same);
    }
    match sys::compare_files(a, None, b.as_raw_fd()) {
        Ok(same) => Ok(same),
        Err(source) => Err(match Errno::from_io_error(&source) {
            Some(Errno::NOSYS) => no_kcmp(source),
            Some(error @ (Errno::PERM | Errno::ACCESS)) => Error::NotPermitted(Box::new(
                Refusal::of_this_process("kcmp", Refusal::READ, error),
            )),
            _ => Error::io("comparing descriptors (kcmp)", source),
        }),
    }
}

/// Whether `own` is the open file description that the process of `pidfd` has as `number`.
///
/// It takes what reading the target's memory map takes: as [`take_descriptor`], but for Yama (PTRACE_MODE_READ_REALCREDS,
/// ptrace(2)), and it may wait as that does. The pidfd is checked after the comparison, so the answer is never about a
/// process that has got a reused pid.
///
/// Where there is no kcmp(2), [`take_descriptor`] and [`same_description`] together tell the same, and put the other
/// process's descriptor into this one for it.
///
/// # Errors
/// [`Error::NotPermitted`] says what stands in the way, as far as /proc shows it. [`Error::NotOpen`],
/// [`Error::ProcessEnded`], [`Error::ProcessInvisible`], [`Error::NotAPidfd`]; [`Error::Unsupported`] on kernels without
/// CONFIG_KCMP; [`Error::Io`].
#[doc(alias = "kcmp")]
pub fn same_description_in(pidfd: impl AsFd, number: RawFd, own: impl AsFd) -> Result<bool, Error> {
    let pidfd = pidfd.as_fd();
    is_pidfd(pidfd)?;
    compare(pidfd, pid_of(pidfd)?, number, own.as_fd())
}

/// `pid` must have been the number of `pidfd`'s process once. As long as that is alive, the number is nobody else's.
pub(crate) fn compare(
    pidfd: BorrowedFd<'_>,
    pid: u32,
    number: RawFd,
    own: BorrowedFd<'_>,
) -> Result<bool, Error> {
    let answer = sys::compare_files(own, Some(pid), number);
    alive(pidfd)?;
    match answer {
        Ok(same) => Ok(same),
        Err(source) => match Errno::from_io_error(&source) {
            Some(Errno::NOSYS) => Err(no_kcmp(source)),
            Some(Errno::BADF) => Err(Error::NotOpen { number }),
            // It lives, and its number is not one of this namespace.
            Some(Errno::SRCH) => Err(Error::ProcessInvisible),
            Some(error @ (Errno::PERM | Errno::ACCESS)) => {
                refused("kcmp", Refusal::READ, pidfd, Some(pid), error)
            }
            _ => Err(Error::io(
                "comparing a descriptor with another process's (kcmp)",
                source,
            )),
        },
    }
}

fn no_kcmp(source: std::io::Error) -> Error {
    Error::Unsupported {
        call: "kcmp",
        needs: "a kernel built with CONFIG_KCMP",
        source,
    }
}

fn refused<T>(
    call: &'static str,
    mode: &'static str,
    pidfd: BorrowedFd<'_>,
    pid: Option<u32>,
    error: Errno,
) -> Result<T, Error> {
    let refusal = Refusal::explain(call, mode, pidfd, pid, error);
    // What was read under the pid was about this process only if it still has it.
    alive(pidfd)?;
    Err(Error::NotPermitted(Box::new(refusal)))
}

/// Asked with a call that reads nothing from the file and changes nothing: everything else may be a peer's to answer.
fn is_pidfd(fd: BorrowedFd<'_>) -> Result<(), Error> {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match waitid(WaitId::PidFd(fd), look) {
        // EINVAL before Linux 5.4, which has no pidfd_getfd either.
        Err(Errno::BADF | Errno::INVAL) => Err(Error::NotAPidfd),
        // ECHILD for all processes but children.
        _ => Ok(()),
    }
}

/// A pidfd is readable from when its process has ended (pidfd_open(2)), which is before its pid is free.
fn alive(pidfd: BorrowedFd<'_>) -> Result<(), Error> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&now)) {
            Ok(0) => return Ok(()),
            Ok(_) => return Err(Error::ProcessEnded),
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io("asking whether a process has ended", error)),
        }
    }
}

/// The number that a process has in this pid namespace.
fn pid_of(pidfd: BorrowedFd<'_>) -> Result<u32, Error> {
    if let Some(info) = sys::info(pidfd) {
        return Ok(info.pid);
    }
    // 0: of another namespace; -1: reaped (pidfd_show_fdinfo, fs/pidfs.c). The number is one in the namespace of /proc.
    let read = || {
        Status::of_this_thread()?;
        let path = format!("/proc/thread-self/fdinfo/{}", pidfd.as_raw_fd());
        let text = fs::read_to_string(path).ok()?;
        let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"))?;
        pid.trim().parse::<u32>().ok().filter(|pid| *pid != 0)
    };
    match read() {
        Some(pid) => Ok(pid),
        None => {
            alive(pidfd)?;
            Err(Error::ProcessInvisible)
        }
    }
}

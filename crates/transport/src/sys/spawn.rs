//! A child between fork(2) and execve(2), and what it takes over afterwards.
//!
//! Of a process with several threads, only the one that forks is there after a fork, and any lock may be held by one that is
//! not. So nothing here allocates, locks or formats between the two calls: all that is needed is made before, and what
//! remains are system calls.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{
    Gid, Pid, Signal, Uid, chdir, getegid, geteuid, getppid, set_parent_process_death_signal,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
};

use crate::spawn::Step;

/// All that a child does before it becomes the program, in this order.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// The child's ends, none of them a standard stream. They keep their numbers.
    pub(crate) links: Vec<OwnedFd>,
    pub(crate) no_network: bool,
    pub(crate) user: Option<(u32, u32)>,
    pub(crate) directory: Option<CString>,
    pub(crate) no_new_privileges: bool,
    /// The process with whose forking thread the child dies.
    pub(crate) die_with: Option<u32>,
    #[cfg(feature = "sandbox")]
    pub(crate) files: Option<OwnedFd>,
    #[cfg(feature = "sandbox")]
    pub(crate) filters: Vec<seccompiler::BpfProgram>,
}

impl Plan {
    /// Has the command's child do this. The command owns the descriptors in it from now on.
    pub(crate) fn arm(mut self, command: &mut Command) {
        // SAFETY: `run` only makes system calls, and touches no memory that others share (see the module).
        unsafe { command.pre_exec(move || self.run()) };
    }

    fn run(&mut self) -> io::Result<()> {
        Step::Descriptors.mark(self.keep_links())?;
        if self.no_network {
            Step::Network.mark(leave_network(self.user.is_some()))?;
        }
        if let Some((uid, gid)) = self.user {
            Step::User.mark(become_user(uid, gid))?;
        }
        if let Some(directory) = &self.directory {
            Step::Directory.mark(chdir(directory.as_c_str()))?;
        }
        // After the change of user, which would undo it.
        if let Some(parent) = self.die_with {
            Step::ParentDeath.mark(die_with(parent))?;
        }
        if self.no_new_privileges {
            Step::Privileges.mark(set_no_new_privs(true))?;
        }
        #[cfg(feature = "sandbox")]
        {
            if let Some(rules) = &self.files {
                Step::Files.mark(super::sandbox::restrict_files(rules))?;
            }
            // Last: a filter need not allow what came before.
            for filter in &self.filters {
                Step::SystemCalls.mark(super::sandbox::install(filter))?;
            }
        }
        Ok(())
    }

    /// Of all descriptors but the standard streams, the links alone stay open in the program.
    fn keep_links(&self) -> Result<(), Errno> {
        // SAFETY: close_range takes three numbers, and with CLOSE_RANGE_CLOEXEC (Linux 5.11) closes nothing now.
        let result = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                FIRST as libc::c_uint,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        if result != 0 {
            return Err(last_errno());
        }
        // Here nobody else can start a program that would get them, as in the parent.
        self.links
            .iter()
            .try_for_each(|link| fcntl_setfd(link, FdFlags::empty()))
    }
}

/// The first number that is not a standard stream's.
pub(crate) const FIRST: RawFd = 3;

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

impl Step {
    /// Gives a failure the step's number, above that of the error: the standard library brings 32 bits of it to the parent.
    fn mark(self, result: Result<(), Errno>) -> io::Result<()> {
        result.map_err(|errno| {
            io::Error::from_raw_os_error((self as i32) << 16 | errno.raw_os_error())
        })
    }

    /// Which step failed, and how; `None` if it was none, but execve(2), fork(2), or what the standard library does.
    pub(crate) fn unmark(error: &io::Error) -> Option<(Step, io::Error)> {
        let code = error.raw_os_error()?;
        let step = *Step::ALL.iter().find(|step| **step as i32 == code >> 16)?;
        Some((step, io::Error::from_raw_os_error(code & 0xffff)))
    }
}

/// An empty network namespace, in a user namespace of its own where one is to be had. Whoever changes its user next has the
/// privilege to do without, and could not afterwards.
fn leave_network(privileged: bool) -> Result<(), Errno> {
    if privileged {
        return unshare(UnshareFlags::NEWNET);
    }
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    if let Err(refused) = unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) {
        // User namespaces are forbidden; a privileged process needs none.
        return unshare(UnshareFlags::NEWNET).map_err(|_| refused);
    }
    // In its user namespace it would be nobody, and so would everybody else: whoever compares users must not find them equal.
    write_to(c"/proc/self/setgroups", b"deny")?;
    let mut line = Line::default();
    write_to(c"/proc/self/uid_map", line.identity(uid))?;
    write_to(c"/proc/self/gid_map", line.identity(gid))?;
    // The program has no capabilities in its namespace either, whoever it runs as.
    for capability in 0..64 {
        // SAFETY: takes numbers alone.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            match last_errno() {
                // Beyond the last one that this kernel has.
                Errno::INVAL => break,
                error => return Err(error),
            }
        }
    }
    Ok(())
}

fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: the child has one thread, and no memory, directory or descriptors are unshared from anybody.
    unsafe { unshare_unsafe(flags) }
}

fn write_to(path: &std::ffi::CStr, line: &[u8]) -> Result<(), Errno> {
    let file = openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, line).map(drop)
}

/// A line of a map of ids, written without an allocation.
#[derive(Default)]
struct Line {
    bytes: [u8; 32],
    length: usize,
}

impl Line {
    /// `id id 1`
    fn identity(&mut self, id: u32) -> &[u8] {
        self.length = 0;
        self.digits(id);
        self.push(b' ');
        self.digits(id);
        self.push(b' ');
        self.push(b'1');
        &self.bytes[..self.length]
    }

    fn digits(&mut self, number: u32) {
        if number >= 10 {
            self.digits(number / 10);
        }
        self.push(b'0' + (number % 10) as u8);
    }

    fn push(&mut self, byte: u8) {
        self.bytes[self.length] = byte;
        self.length += 1;
    }
}

/// Another user, with one group and, unless that is root, no privilege left.
fn become_user(uid: u32, gid: u32) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    if uid.is_root() {
        return Ok(());
    }
    // The kernel takes them only from those who were root (capabilities(7)). What another user has as ambient ones, a
    // service's way to CAP_SETUID, would go on into the program, and be enough to become anybody.
    let none = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )
}

fn die_with(parent: u32) -> Result<(), Errno> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // One that has died before tells nobody any more.
    if getppid().map(Pid::as_raw_pid) == Some(parent as i32) {
        Ok(())
    } else {
        Err(Errno::SRCH)
    }
}

/// Takes over the socket with this cookie, inherited under this number, and sets close-on-exec on it. `None` if what has
/// the number, if anything, is not that.
pub(crate) fn inherit(number: RawFd, cookie: u64) -> Option<OwnedFd> {
    // SAFETY: F_GETFD takes two integers and touches no memory; a number that is not open is EBADF (fcntl(2)).
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // execve(2) closes every descriptor with the flag, so one that has it was opened, or taken, since.
    if number < FIRST || flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        return None;
    }
    let mut found: u64 = 0;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `found`, which any bytes suit.
    let result = unsafe {
        libc::getsockopt(
            number,
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut found).cast(),
            &raw mut length,
        )
    };
    if result != 0 || found != cookie {
        return None;
    }
    // SAFETY: F_SETFD takes three integers and touches no memory (fcntl(2)).
    unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: it is open, and is the very socket that the parent made for this process: the kernel gives no cookie twice. It
    // came by execve(2), and under the parent's name for it nobody but this function takes it; once taken, it has the flag
    // that was missing above.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Removes a variable from the environment, if nobody else can be looking: if this is the only thread of the process. Whether
/// it is gone.
pub(crate) fn remove_variable(name: &str) -> bool {
    // With CLONE_VM alone unshare(2) does nothing, and fails in a process of several threads (check_unshare_flags,
    // kernel/fork.c).
    // SAFETY: takes a number; succeeding, it has changed nothing.
    if unsafe { libc::unshare(libc::CLONE_VM) } != 0 {
        return false;
    }
    // SAFETY: there is no other thread, and only this one could start any.
    unsafe { std::env::remove_var(name) };
    true
}

/// Sends a signal to the process.
pub(crate) fn signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers and a null pointer (pidfd_send_signal(2)).
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps() {
        let mut line = Line::default();
        assert_eq!(line.identity(0), b"0 0 1");
        assert_eq!(line.identity(65534), b"65534 65534 1");
        assert_eq!(line.identity(u32::MAX), b"4294967295 4294967295 1");
    }

    #[test]
    fn failures_keep_their_step() {
        for &step in Step::ALL {
            let error = step.mark(Err(Errno::NOENT)).unwrap_err();
            let (found, source) = Step::unmark(&error).unwrap();
            assert_eq!(found, step);
            assert_eq!(source.kind(), io::ErrorKind::NotFound);
        }
        assert!(Step::unmark(&io::Error::from_raw_os_error(libc::ENOENT)).is_none());
    }
}

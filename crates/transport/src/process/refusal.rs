//! Why the kernel does not let one process at another: it says EPERM, and /proc shows the rest.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;
use rustix::process::{getgid, getuid};

use crate::sys::process as sys;

/// CAP_SYS_PTRACE of linux/capability.h.
const CAP_SYS_PTRACE: u64 = 1 << 19;

/// What the kernel refused, and what could be seen that stands in the way: the text of
/// [`Error::NotPermitted`](crate::Error::NotPermitted).
#[derive(Debug)]
#[non_exhaustive]
pub struct Refusal {
    /// The system call.
    pub call: &'static str,
    /// The permission it takes, in the words of ptrace(2).
    pub mode: &'static str,
    /// The process, where its number is known.
    pub pid: Option<u32>,
    /// What stands in the way. Empty when nothing that can be seen does: security modules can refuse, too.
    pub found: Vec<Obstacle>,
    /// How the kernel answered.
    pub source: io::Error,
}

/// A condition of ptrace(2)'s "Ptrace access mode checking" that is not met. Facts read after the refusal; the state of
/// another process may change in between.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obstacle {
    /// The real uid of this process is not each of the target's real, effective and saved uid.
    OtherUser {
        /// Of this process.
        own: u32,
        /// Real, effective, saved.
        theirs: [u32; 3],
    },
    /// The real gid of this process is not each of the target's real, effective and saved gid.
    OtherGroup {
        /// Of this process.
        own: u32,
        /// Real, effective, saved.
        theirs: [u32; 3],
    },
    /// The target is not dumpable (PR_SET_DUMPABLE): it asked for it, changed its ids, or runs a program that it may not read.
    NotDumpable,
    /// The target has capabilities that this process does not have.
    MoreCapabilities {
        /// Those, a bit each.
        missing: u64,
    },
    /// The target lives in another user namespace.
    OtherUserNamespace,
    /// This process lives in a user namespace of its own, and which one the target lives in is not shown to it. Ids that have
    /// no number here look the same, and capabilities from here do not reach out.
    UnknownUserNamespace,
    /// The security module Yama allows less than ptrace(2): at 1 only children and processes that named this one
    /// (PR_SET_PTRACER), at 2 only holders of CAP_SYS_PTRACE, at 3 nobody.
    Yama {
        /// /proc/sys/kernel/yama/ptrace_scope.
        scope: u8,
    },
    /// This process does not have CAP_SYS_PTRACE, which would do away with most of the others.
    NoCapability,
    /// This thread runs under a seccomp filter, which may have answered in the kernel's place.
    SeccompFilter,
    /// There is no /proc (of this pid namespace) to look further.
    NoProc,
}

impl Refusal {
    pub(super) const ATTACH: &'static str = "PTRACE_MODE_ATTACH_REALCREDS";
    pub(super) const READ: &'static str = "PTRACE_MODE_READ_REALCREDS";

    pub(super) fn explain(
        call: &'static str,
        mode: &'static str,
        pidfd: BorrowedFd<'_>,
        pid: Option<u32>,
        error: Errno,
    ) -> Refusal {
        Refusal {
            call,
            mode,
            pid,
            found: obstacles(pidfd, pid, mode == Refusal::ATTACH),
            source: error.into(),
        }
    }

    /// No condition applies to a process's own descriptors.
    pub(super) fn of_this_process(call: &'static str, mode: &'static str, error: Errno) -> Refusal {
        let filtered = Status::of_this_thread().is_some_and(|own| own.filtered);
        Refusal {
            call,
            mode,
            pid: Some(std::process::id()),
            found: Vec::from_iter(filtered.then_some(Obstacle::SeccompFilter)),
            source: error.into(),
        }
    }
}

fn obstacles(pidfd: BorrowedFd<'_>, pid: Option<u32>, attach: bool) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let own = Status::of_this_thread();
    let pid = pid.filter(|_| own.is_some());
    let theirs = pid.and_then(|pid| Status::read(&format!("/proc/{pid}/status")));
    let namespace = pid.and_then(user_namespace);
    let elsewhere = namespace.is_some();
    let capable = own.as_ref().map(|own| own.effective & CAP_SYS_PTRACE != 0);

    found.extend(namespace);
    // The capability lifts these, in the own user namespace.
    if capable != Some(true) || elsewhere {
        let known = sys::info(pidfd);
        let uids = known.as_ref().map(|it| [it.ruid, it.euid, it.suid]);
        let gids = known.as_ref().map(|it| [it.rgid, it.egid, it.sgid]);
        let uids = uids.or(theirs.as_ref().map(|status| status.uids));
        let gids = gids.or(theirs.as_ref().map(|status| status.gids));
        let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
        if let Some(theirs) = uids.filter(|uids| uids.iter().any(|it| *it != uid)) {
            found.push(Obstacle::OtherUser { own: uid, theirs });
        }
        if let Some(theirs) = gids.filter(|gids| gids.iter().any(|it| *it != gid)) {
            found.push(Obstacle::OtherGroup { own: gid, theirs });
        }
        if let (Some(own), Some(theirs)) = (&own, &theirs) {
            // Its files belong to root when it is not dumpable, to its effective user otherwise (proc_pid(5)).
            if theirs.owner != theirs.uids[1] {
                found.push(Obstacle::NotDumpable);
            }
            let missing = theirs.permitted & !own.permitted;
            if missing != 0 {
                found.push(Obstacle::MoreCapabilities { missing });
            }
        }
    }
    if attach {
        match yama() {
            Some(scope @ (1 | 2)) if capable != Some(true) => found.push(Obstacle::Yama { scope }),
            Some(scope @ 3..) => found.push(Obstacle::Yama { scope }),
            _ => {}
        }
    }
    if capable == Some(false) {
        found.push(Obstacle::NoCapability);
    }
    match own {
        Some(own) if own.filtered => found.push(Obstacle::SeccompFilter),
        Some(_) => {}
        None => found.push(Obstacle::NoProc),
    }
    found
}

/// `None` without Yama.
fn yama() -> Option<u8> {
    let text = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok()?;
    text.trim().parse().ok()
}

/// What there is to say about the target's user namespace; `None` when it is this process's own, or this process's is the
/// initial one, which all others are inside of.
fn user_namespace(pid: u32) -> Option<Obstacle> {
    /// PROC_USER_INIT_INO of linux/proc_ns.h.
    const INITIAL: &str = "user:[4026531837]";
    let own = fs::read_link("/proc/thread-self/ns/user").ok()?;
    // To be shown it takes a permission like the one that was refused.
    match fs::read_link(format!("/proc/{pid}/ns/user")) {
        Ok(theirs) => (theirs != own).then_some(Obstacle::OtherUserNamespace),
        Err(_) => (own.as_os_str() != INITIAL).then_some(Obstacle::UnknownUserNamespace),
    }
}

/// Lines of a `status` file (proc_pid_status(5)), and who owns it.
#[derive(Default)]
pub(super) struct Status {
    owner: u32,
    /// Real, effective, saved.
    uids: [u32; 3],
    gids: [u32; 3],
    permitted: u64,
    effective: u64,
    filtered: bool,
    /// Pid namespaces from that of /proc down to its own, both counted (NSpid).
    nesting: usize,
}

impl Status {
    /// `None` without a /proc of this pid namespace: in another one's, all numbers mean other processes.
    pub(super) fn of_this_thread() -> Option<Status> {
        Status::read("/proc/thread-self/status").filter(|status| status.nesting == 1)
    }

    fn read(path: &str) -> Option<Status> {
        let text = fs::read_to_string(path).ok()?;
        let mut status = Status {
            owner: fs::metadata(path).ok()?.uid(),
            ..Status::default()
        };
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            match key {
                "Uid" => status.uids = ids(value)?,
                "Gid" => status.gids = ids(value)?,
                "CapPrm" => status.permitted = u64::from_str_radix(value, 16).ok()?,
                "CapEff" => status.effective = u64::from_str_radix(value, 16).ok()?,
                "NSpid" => status.nesting = value.split_whitespace().count(),
                "Seccomp" => status.filtered = value != "0",
                _ => {}
            }
        }
        Some(status)
    }
}

/// The first three of four numbers.
fn ids(text: &str) -> Option<[u32; 3]> {
    let mut ids = text.split_whitespace().map(str::parse);
    let mut next = || ids.next()?.ok();
    Some([next()?, next()?, next()?])
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refusal { call, mode, .. } = self;
        match self.pid {
            Some(pid) => write!(f, "{call} on process {pid} is not permitted")?,
            None => write!(f, "{call} on another process is not permitted")?,
        }
        write!(f, ", it takes {mode} (ptrace(2)): ")?;
        let mut found = self.found.iter();
        match found.next() {
            Some(first) => write!(f, "{first}")?,
            None => f.write_str(
                "nothing that /proc shows speaks against it (what security modules decide, it does not show)",
            )?,
        }
        found.try_for_each(|obstacle| write!(f, "; {obstacle}"))
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::OtherUser { own, theirs } => {
                let [real, effective, saved] = theirs;
                write!(
                    f,
                    "its uids are {real}, {effective} and {saved} (real, effective, saved), this process's real uid {own}"
                )
            }
            Obstacle::OtherGroup { own, theirs } => {
                let [real, effective, saved] = theirs;
                write!(
                    f,
                    "its gids are {real}, {effective} and {saved} (real, effective, saved), this process's real gid {own}"
                )
            }
            Obstacle::NotDumpable => f.write_str("it is not dumpable (PR_SET_DUMPABLE)"),
            Obstacle::MoreCapabilities { missing } => {
                write!(f, "it has capabilities this process lacks ({missing:#x})")
            }
            Obstacle::OtherUserNamespace => f.write_str("it lives in another user namespace"),
            Obstacle::UnknownUserNamespace => f.write_str(
                "this process lives in a user namespace of its own and cannot see whether the other does, too",
            ),
            Obstacle::Yama { scope } => {
                write!(f, "/proc/sys/kernel/yama/ptrace_scope is {scope}")
            }
            Obstacle::NoCapability => f.write_str("this process lacks CAP_SYS_PTRACE"),
            Obstacle::SeccompFilter => f.write_str("this thread runs under a seccomp filter"),
            Obstacle::NoProc => f.write_str("without /proc more cannot be told"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process() {
        let own = Status::of_this_thread().unwrap();
        assert_eq!(own.uids[0], getuid().as_raw());
        assert_eq!(own.gids[0], getgid().as_raw());
        assert_eq!(own.owner, own.uids[1]);
        assert_eq!(user_namespace(std::process::id()), None);
    }

    #[test]
    fn in_words() {
        let refusal = Refusal {
            call: "kcmp",
            mode: Refusal::READ,
            pid: Some(7),
            found: vec![Obstacle::NotDumpable, Obstacle::NoCapability],
            source: Errno::PERM.into(),
        };
        assert_eq!(
            refusal.to_string(),
            "kcmp on process 7 is not permitted, it takes PTRACE_MODE_READ_REALCREDS (ptrace(2)): it is not dumpable \
             (PR_SET_DUMPABLE); this process lacks CAP_SYS_PTRACE"
        );
    }
}

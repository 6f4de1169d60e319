//! Who is at the other end of a link.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::Error;
use crate::fd::Fd;
use crate::process;
use crate::sys::identity;

/// The user and process that the kernel noted when a link was made (SO_PEERCRED).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Credentials {
    /// The process, `None` if it lives in a pid namespace that is not visible from here.
    pub pid: Option<u32>,
    /// Its effective user. A user without a number in this user namespace shows as the overflow uid (65534).
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

impl Credentials {
    pub(crate) fn of(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
        let found = identity::peer_credentials(socket)?;
        let pid = u32::try_from(found.pid).ok().filter(|pid| *pid != 0);
        Ok(Credentials {
            pid,
            uid: found.uid,
            gid: found.gid,
        })
    }
}

/// The process at the other end of a link, with a pidfd that tells when it ends.
///
/// # What it says, and what not
/// The kernel notes who *made* the connection: on the side that accepted, the process that called connect; on the side that
/// connected, the process that called listen; on both ends of a [pair](crate::Link::pair), the process that made the pair.
/// A process that inherited the socket, or got it over another one, does not appear (THREATS A27). So this authenticates
/// the process that opened the connection, which answers for whomever it gives it to; and the pidfd tells that *that*
/// process ended, while the link itself may live on elsewhere.
///
/// Uid, gid, groups and label are those of *that moment*: a process that has changed them since, or executed another
/// program, still shows as it was. The pid and the pidfd are those of the process as it is now.
///
/// A pid can be reused once its process is gone; the pidfd cannot. It is close-on-exec, readable (poll(2)) when the process
/// has ended, and there is one per `Peer`.
#[derive(Debug)]
pub struct Peer {
    credentials: Credentials,
    groups: Box<[u32]>,
    label: Option<OsString>,
    pidfd: Option<OwnedFd>,
}

impl Peer {
    pub(crate) fn of(socket: BorrowedFd<'_>) -> io::Result<Peer> {
        let credentials = Credentials::of(socket)?;
        let pidfd = match identity::peer_pidfd(socket) {
            Ok(pidfd) => Some(pidfd),
            Err(error) => match Errno::from_io_error(&error) {
                // Before Linux 6.5. The pid is of the time of the connection: it may have been reused since.
                Some(Errno::NOPROTOOPT) => by_pid(credentials.pid)?,
                // Reaped already (before 6.16), or of an invisible pid namespace; which errno it is changed over time.
                Some(Errno::SRCH | Errno::INVAL | Errno::NODATA) => None,
                _ => return Err(error),
            },
        };
        Ok(Peer {
            credentials,
            groups: identity::peer_groups(socket)?,
            label: identity::peer_label(socket)?.map(OsString::from_vec),
            pidfd,
        })
    }

    /// Pid, uid and gid.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        self.credentials
    }

    /// The process, `None` if it is not visible from this pid namespace.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.credentials.pid
    }

    /// Its effective user.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.credentials.uid
    }

    /// Its effective group.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.credentials.gid
    }

    /// Its supplementary groups (SO_PEERGROUPS), as the kernel orders them; with or without the effective one. Empty on
    /// kernels that do not tell (before 4.13).
    #[must_use]
    #[doc(alias = "SO_PEERGROUPS")]
    pub fn groups(&self) -> &[u32] {
        &self.groups
    }

    /// What the security module calls it (SO_PEERSEC): an SELinux context, an AppArmor profile, a Smack label. `None` where no
    /// module labels sockets.
    #[must_use]
    #[doc(alias = "SO_PEERSEC")]
    pub fn label(&self) -> Option<&OsStr> {
        self.label.as_deref()
    }

    /// The pidfd, `None` if the process was gone and reaped already.
    #[must_use]
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// The pidfd, the caller's from now on.
    #[must_use]
    pub fn into_pidfd(self) -> Option<OwnedFd> {
        self.pidfd
    }

    pub(crate) fn into_groups(self) -> Box<[u32]> {
        self.groups
    }

    /// A copy of the descriptor that the process has as `number` now: [`take_descriptor`](crate::take_descriptor). A number
    /// that the process told of names whatever it has there when this is called; the copy may be of any kind.
    ///
    /// # Errors
    /// As [`take_descriptor`](crate::take_descriptor); [`Error::ProcessEnded`] also when there is no pidfd.
    #[doc(alias = "pidfd_getfd")]
    pub fn take_descriptor(&self, number: RawFd) -> Result<Fd, Error> {
        process::take_descriptor(self.pidfd().ok_or(Error::ProcessEnded)?, number)
    }

    /// Whether `own` is the open file description that the process has as `number` now:
    /// [`same_description_in`](crate::same_description_in).
    ///
    /// # Errors
    /// As [`same_description_in`](crate::same_description_in); [`Error::ProcessEnded`] also when there is no pidfd.
    #[doc(alias = "kcmp")]
    pub fn same_description(&self, number: RawFd, own: impl AsFd) -> Result<bool, Error> {
        let pidfd = self.pidfd().ok_or(Error::ProcessEnded)?;
        let pid = self.pid().ok_or(Error::ProcessInvisible)?;
        process::compare(pidfd, pid, number, own.as_fd())
    }
}

fn by_pid(pid: Option<u32>) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid.try_into().ok()?)) else {
        return Ok(None);
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::SRCH | Errno::NOSYS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The way before Linux 6.5.
    #[test]
    fn a_pidfd_by_number() {
        assert!(by_pid(Some(std::process::id())).unwrap().is_some());
        assert!(by_pid(None).unwrap().is_none());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        assert!(by_pid(Some(pid)).unwrap().is_some());
        child.wait().unwrap();
        assert!(by_pid(Some(pid)).unwrap().is_none());
    }
}

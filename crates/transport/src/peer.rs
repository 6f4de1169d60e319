//! Who is at the other end of a link.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, geteuid, pidfd_open};

use crate::error::{Admitted, Error};
use crate::sys;

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
        let found = sys::peer_credentials(socket)?;
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
/// A pid can be reused once its process is gone; the pidfd cannot. It is close-on-exec, readable (poll(2)) when the process
/// has ended, and there is one per `Peer`.
#[derive(Debug)]
pub struct Peer {
    credentials: Credentials,
    pidfd: Option<OwnedFd>,
}

impl Peer {
    pub(crate) fn of(socket: BorrowedFd<'_>) -> io::Result<Peer> {
        let credentials = Credentials::of(socket)?;
        let pidfd = match sys::peer_pidfd(socket) {
            Ok(pidfd) => Some(pidfd),
            Err(error) => match Errno::from_io_error(&error) {
                // Before Linux 6.5. The pid is of the time of the connection: it may have been reused since.
                Some(Errno::NOPROTOOPT) => by_pid(credentials.pid)?,
                // Reaped already (before 6.16), or of an invisible pid namespace; which errno it is changed over time.
                Some(Errno::SRCH | Errno::INVAL | Errno::NODATA) => None,
                _ => return Err(error),
            },
        };
        Ok(Peer { credentials, pidfd })
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

/// Whom to talk to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Processes with this process's effective uid. A connecting side admits a server of root, too: root needs no name to
    /// get at this process.
    #[default]
    SameUser,
    /// Any process that can reach the address. A socket file is then made with mode 0666.
    Anyone,
}

impl Access {
    /// Decides about a client.
    pub(crate) fn admit_client(self, socket: BorrowedFd<'_>) -> Result<(), Error> {
        let own = geteuid().as_raw();
        self.admit(socket, Admitted::Uid(own), |uid| uid == own)
    }

    /// Decides about a server.
    pub(crate) fn admit_server(self, socket: BorrowedFd<'_>) -> Result<(), Error> {
        let own = geteuid().as_raw();
        self.admit(socket, Admitted::UidOrRoot(own), |uid| {
            uid == own || uid == 0
        })
    }

    fn admit(
        self,
        socket: BorrowedFd<'_>,
        expected: Admitted,
        rule: impl Fn(u32) -> bool,
    ) -> Result<(), Error> {
        if self == Access::Anyone {
            return Ok(());
        }
        let found = Credentials::of(socket)
            .map_err(|source| Error::io("asking who the peer is", source))?;
        if rule(found.uid) {
            Ok(())
        } else {
            Err(Error::AccessDenied {
                uid: found.uid,
                expected,
            })
        }
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

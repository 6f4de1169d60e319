//! Descriptors passed by a service manager: systemd's socket activation (sd_listen_fds(3)).
//!
//! The manager makes the sockets and starts the service when the first client comes, so clients never find the service
//! missing, and its restart refuses none of them. It passes descriptors 3 and on, and says so in the environment:
//! `LISTEN_PID` is the process they are for, `LISTEN_FDS` how many there are, `LISTEN_FDNAMES` their names, separated
//! by colons, and `LISTEN_PIDFDID` (systemd 258) the process once more, by a number that is never used again.
//!
//! ```
//! use memlane_transport::{Access, Address, Listener};
//!
//! # let address = Address::abstract_name(format!("memlane-doc-activation-{}", std::process::id()))?;
//! // SAFETY: nothing else in this program takes what a service manager passed.
//! let listener = match unsafe { Listener::activated(Access::SameUser) }?.pop() {
//!     Some((_name, listener)) => listener,
//!     // Started by hand.
//!     None => Listener::bind(&address)?,
//! };
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A socket unit for it. systemd's own default for SocketMode= is 0666:
//!
//! ```ini
//! # camera.socket
//! [Socket]
//! ListenSequentialPacket=%t/camera.socket
//! FileDescriptorName=camera
//! SocketMode=0600
//! RemoveOnStop=yes
//!
//! [Install]
//! WantedBy=sockets.target
//! ```
//!
//! Without systemd as its parent a service is tried with `systemd-socket-activate --seqpacket --listen=PATH PROGRAM`.
//!
//! With `Accept=yes` the manager accepts, and starts one process for each connection: see [`Link::activated`].
//!
//! # Whom the client sees
//! A client's [`Peer`](crate::Peer) is the process that called listen(2): the manager, not the service, and of the user
//! the manager runs as. [`Link::connect`] admits it where that is root or the client's own user. That the service ended
//! shows as a hang-up, as ever.
//!
//! # The variables stay
//! To remove a variable is sound only while no other thread can look (`std::env::remove_var`), which a library cannot
//! know. A child that inherits them has another pid, and takes them for somebody else's; the descriptors it does not
//! inherit, they are close-on-exec. The number in `LISTEN_PIDFDID` covers a pid that is used again, as in a new pid
//! namespace; with an older manager, start such children without the variables (`Command::env_remove`).

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::str::FromStr;

use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::access::Access;
use crate::error::Error;
use crate::link::Link;
use crate::listener::Listener;
use crate::sys;

/// PID_FS_MAGIC (linux/magic.h), Linux 6.9.
const PID_FS_MAGIC: u64 = 0x5049_4446;

/// Descriptors are numbered with an `i32`, and the first is 3.
const MAX_COUNT: i32 = i32::MAX - 3;

/// A descriptor that a service manager passed, close-on-exec. Nobody has checked which kind of file it is.
#[derive(Debug)]
#[non_exhaustive]
pub struct Activated {
    /// What the manager calls it (`FileDescriptorName=`); `unknown` when it gave no names. Names need not be unique.
    pub name: String,
    /// The descriptor. A listening socket is one that the manager keeps a copy of: to shut it down ends the manager's,
    /// too.
    pub fd: OwnedFd,
}

/// Why the descriptors of a service manager could not be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ActivationError {
    /// A variable is not what the protocol makes of it.
    #[error("{variable} is {found:?}, expected {expected}")]
    Malformed {
        /// Its name.
        variable: &'static str,
        /// Its value.
        found: OsString,
        /// What it should be.
        expected: &'static str,
    },
    /// The two lists differ in length.
    #[error("LISTEN_FDNAMES has {names} names for the {count} descriptors of LISTEN_FDS")]
    NameCount {
        /// Names in LISTEN_FDNAMES.
        names: usize,
        /// Descriptors in LISTEN_FDS.
        count: i32,
    },
    /// Fewer descriptors are open than were announced.
    #[error("LISTEN_FDS announces {count} descriptors, and number {number} is not open")]
    NotOpen {
        /// The first that is not.
        number: RawFd,
        /// Descriptors in LISTEN_FDS; the first has number 3.
        count: i32,
    },
    /// A descriptor with an announced number exists, and did not come from outside.
    #[error(
        "descriptor {number} is announced by LISTEN_FDS, and close-on-exec, so it was not inherited: \
         it was opened or taken by other code in this process"
    )]
    NotInherited {
        /// The first such.
        number: RawFd,
    },
    /// An earlier call in this process has taken them.
    #[error("the descriptors of the service manager have been taken by an earlier call")]
    AlreadyTaken,
}

/// Takes the descriptors that a service manager passed to this process, in the order of its configuration, the caller's
/// from now on. An empty list when there are none: no variables, or those of another process.
///
/// They can be taken once in a process, by this, [`Listener::activated`] or [`Link::activated`]. Call it before other
/// code sets close-on-exec on everything.
///
/// # Errors
/// [`ActivationError::AlreadyTaken`] on a second call: an empty list would read as "not activated", and have the caller
/// bind the address of a socket that this very process listens on. With every error they are left as they were.
///
/// # Safety
/// If the variables name this process, the descriptors from 3 on that they announce belong to nobody else in it: no other code has
/// made owners of them (a library that reads the same variables, C code that opened files without close-on-exec under
/// these numbers), nor set the variables itself. Called at the start of `main`, or in a program that knows its parts, that
/// is so. What can be checked is checked, and refused with an error.
#[doc(alias = "sd_listen_fds")]
#[doc(alias = "sd_listen_fds_with_names")]
#[allow(
    unsafe_code,
    reason = "numbers from the environment become owned descriptors"
)]
pub unsafe fn take() -> Result<Vec<Activated>, ActivationError> {
    let variables = Variables {
        pid: env::var_os(PID),
        pidfd_id: env::var_os(PIDFD_ID),
        fds: env::var_os(FDS),
        names: env::var_os(NAMES),
    };
    let Some(announced) = Announced::read(variables, std::process::id(), own_pidfd_id)? else {
        return Ok(Vec::new());
    };
    // SAFETY: the caller's promise.
    let fds = unsafe { sys::activation::take(&announced) }?;
    let mut names = announced.names.unwrap_or_default().into_iter();
    let mut name = || names.next().unwrap_or_else(|| "unknown".to_owned());
    Ok(fds
        .into_iter()
        .map(|fd| Activated { name: name(), fd })
        .collect())
}

impl Listener {
    /// The listening sockets that a service manager passed, with their names: see [`activation`](crate::activation). An
    /// empty list when this process was not started that way.
    ///
    /// The files of path addresses stay when the listeners go: they are the manager's.
    ///
    /// # Errors
    /// [`Error::Activation`]; [`Error::WrongSocket`] and the others of [`from_fd`](Listener::from_fd) when a single
    /// descriptor is no listener, all of them being closed then. A service that gets other things, too, sorts them out
    /// with [`activation::take`](take).
    ///
    /// # Safety
    /// As [`activation::take`](take).
    #[allow(
        unsafe_code,
        reason = "numbers from the environment become owned descriptors"
    )]
    pub unsafe fn activated(access: Access) -> Result<Vec<(String, Listener)>, Error> {
        // SAFETY: the caller's promise.
        let taken = unsafe { take() }?;
        adopt(taken, |fd| Listener::from_fd(fd, access.clone()))
    }
}

impl Link {
    /// The connection that a service manager accepted for this process (`Accept=yes`), with its name, or names and
    /// links if there are several: see [`activation`](crate::activation). An empty list when this process was not
    /// started that way.
    ///
    /// The manager lets in whoever can open the socket's file, so `access` is asked here, as a listener would.
    ///
    /// # Errors
    /// [`Error::Activation`], [`Error::AccessDenied`]; [`Error::WrongSocket`] and the others of
    /// [`from_fd`](Link::from_fd) when a single descriptor is no connection. All of them are closed then.
    ///
    /// # Safety
    /// As [`activation::take`](take).
    #[allow(
        unsafe_code,
        reason = "numbers from the environment become owned descriptors"
    )]
    pub unsafe fn activated(access: Access) -> Result<Vec<(String, Link)>, Error> {
        // SAFETY: the caller's promise.
        let taken = unsafe { take() }?;
        adopt(taken, |fd| {
            let link = Link::from_fd(fd)?;
            access.admit_client(link.as_fd())?;
            Ok(link)
        })
    }
}

/// Takes all descriptors as the same thing. An error names the one that is not.
fn adopt<T>(
    taken: Vec<Activated>,
    from: impl Fn(OwnedFd) -> Result<T, Error>,
) -> Result<Vec<(String, T)>, Error> {
    taken
        .into_iter()
        .map(|Activated { name, fd }| match from(fd) {
            Ok(it) => Ok((name, it)),
            Err(Error::WrongSocket { expected, found }) => Err(Error::WrongSocket {
                expected,
                found: format!("{found}, passed with the name {name:?}"),
            }),
            Err(error) => Err(error),
        })
        .collect()
}

const PID: &str = "LISTEN_PID";
const PIDFD_ID: &str = "LISTEN_PIDFDID";
const FDS: &str = "LISTEN_FDS";
const NAMES: &str = "LISTEN_FDNAMES";

#[derive(Clone, Debug, Default)]
struct Variables {
    pid: Option<OsString>,
    pidfd_id: Option<OsString>,
    fds: Option<OsString>,
    names: Option<OsString>,
}

/// Descriptors that were announced to this process. There is no other way to make one than from its environment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Announced {
    count: i32,
    names: Option<Vec<String>>,
}

impl Announced {
    /// How many, from 1 to [`MAX_COUNT`]. Whether they exist is not known.
    pub(crate) fn count(&self) -> i32 {
        self.count
    }

    /// What `variables` announce to process `pid`, or `None` if they mean another, or nothing. `pidfd_id` finds the
    /// inode of this process's pidfd, if the kernel has one. Checks what sd_listen_fds_with_names(3) checks.
    fn read(
        variables: Variables,
        pid: u32,
        pidfd_id: impl FnOnce() -> Option<u64>,
    ) -> Result<Option<Announced>, ActivationError> {
        let Some(found) = variables.pid else {
            return Ok(None);
        };
        if number::<u32>(PID, &found, "a process", |pid| *pid > 0)? != pid {
            return Ok(None);
        }
        if let Some(found) = variables.pidfd_id {
            let meant: u64 = number(PIDFD_ID, &found, "the inode of a pidfd", |_| true)?;
            if pidfd_id().is_some_and(|own| own != meant) {
                return Ok(None);
            }
        }
        let Some(found) = variables.fds else {
            return Ok(None);
        };
        let possible = |count: &i32| (1..=MAX_COUNT).contains(count);
        let count = number(FDS, &found, "a number of descriptors, at least 1", possible)?;
        let Some(found) = variables.names else {
            return Ok(Some(Announced { count, names: None }));
        };
        let Some(text) = found.to_str() else {
            return Err(malformed(NAMES, &found, "names separated by colons"));
        };
        // Counted first: a list of names costs memory, and this one may be any length.
        let names = text.split(':').count();
        if usize::try_from(count) != Ok(names) {
            return Err(ActivationError::NameCount { names, count });
        }
        let names = Some(text.split(':').map(str::to_owned).collect());
        Ok(Some(Announced { count, names }))
    }
}

fn number<T: FromStr>(
    variable: &'static str,
    found: &OsStr,
    expected: &'static str,
    possible: impl FnOnce(&T) -> bool,
) -> Result<T, ActivationError> {
    found
        .to_str()
        .and_then(|text| text.parse().ok())
        .filter(possible)
        .ok_or_else(|| malformed(variable, found, expected))
}

fn malformed(variable: &'static str, found: &OsStr, expected: &'static str) -> ActivationError {
    ActivationError::Malformed {
        variable,
        found: found.to_owned(),
        expected,
    }
}

/// The inode of this process's pidfd: unique until the next boot, where there is a pidfs. On 32-bit machines st_ino is
/// half of it (fs/pidfs.c), which is as good as none.
#[allow(clippy::unnecessary_cast)] // The types differ between architectures.
fn own_pidfd_id() -> Option<u64> {
    if cfg!(not(target_pointer_width = "64")) {
        return None;
    }
    let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).ok()?;
    let system = rustix::fs::fstatfs(pidfd.as_fd()).ok()?.f_type as u64;
    let inode = rustix::fs::fstat(pidfd).ok()?.st_ino as u64;
    (system == PID_FS_MAGIC).then_some(inode)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    const SELF: u32 = 4711;

    /// As if the environment held these, in the order pid, fds, names.
    fn variables([pid, fds, names]: [Option<&str>; 3]) -> Variables {
        Variables {
            pid: pid.map(OsString::from),
            pidfd_id: None,
            fds: fds.map(OsString::from),
            names: names.map(OsString::from),
        }
    }

    fn read(values: [Option<&str>; 3]) -> Result<Option<Announced>, ActivationError> {
        let unused = || panic!("LISTEN_PIDFDID is not set");
        Announced::read(variables(values), SELF, unused)
    }

    fn announced(count: i32, names: Option<&[&str]>) -> Result<Option<Announced>, ActivationError> {
        let names = names.map(|names| names.iter().map(|&name| name.to_owned()).collect());
        Ok(Some(Announced { count, names }))
    }

    #[test]
    fn nothing_for_this_process() {
        for values in [
            [None, None, None],
            [None, Some("1"), Some("a")],
            [Some("4711"), None, None],
            [Some("4711"), None, Some("a")],
            [Some("4712"), Some("1"), None],
            // Another process's nonsense is not this one's business.
            [Some("4712"), Some("x"), Some("a:b:c")],
        ] {
            assert_eq!(read(values), Ok(None), "{values:?}");
        }
    }

    #[test]
    fn something_for_this_process() {
        assert_eq!(read([Some("4711"), Some("1"), None]), announced(1, None));
        let largest = MAX_COUNT.to_string();
        assert_eq!(
            read([Some("4711"), Some(&largest), None]),
            announced(MAX_COUNT, None)
        );
        for (text, names) in [
            ("a:b:a", &["a", "b", "a"][..]),
            ("::", &["", "", ""][..]),
            ("", &[""][..]),
        ] {
            let count = names.len().to_string();
            assert_eq!(
                read([Some("4711"), Some(&count), Some(text)]),
                announced(names.len() as i32, Some(names))
            );
        }
    }

    #[test]
    fn malformed_variables() {
        for pid in ["", "0", "-4711", "4711x", " 4711", "99999999999", "0x1267"] {
            let error = read([Some(pid), Some("1"), None]).unwrap_err();
            assert_eq!(error, malformed(PID, pid.as_ref(), "a process"));
        }
        let over = (MAX_COUNT + 1).to_string();
        for fds in [
            "",
            "0",
            "-1",
            "one",
            "1 ",
            "1.5",
            &over,
            "18446744073709551617",
        ] {
            let error = read([Some("4711"), Some(fds), None]).unwrap_err();
            let expected = "a number of descriptors, at least 1";
            assert_eq!(error, malformed(FDS, fds.as_ref(), expected));
        }
        for (fds, names, found) in [
            ("1", "a:b", 2),
            ("2", "a", 1),
            ("2", "", 1),
            ("2147483644", "a", 1),
        ] {
            assert_eq!(
                read([Some("4711"), Some(fds), Some(names)]),
                Err(ActivationError::NameCount {
                    names: found,
                    count: fds.parse().unwrap()
                })
            );
        }
        let bytes = OsString::from_vec(vec![b'a', 0xff]);
        for variable in [PID, PIDFD_ID, FDS, NAMES] {
            let value = |name, good: &str| {
                Some(if name == variable {
                    bytes.clone()
                } else {
                    good.into()
                })
            };
            let all = Variables {
                pid: value(PID, "4711"),
                pidfd_id: value(PIDFD_ID, "1"),
                fds: value(FDS, "1"),
                names: value(NAMES, "a"),
            };
            let error = Announced::read(all, SELF, || Some(1)).unwrap_err();
            let text = error.to_string();
            let expected = format!("{variable} is \"a\\xFF\", expected ");
            assert!(text.starts_with(&expected), "{text}");
        }
    }

    #[test]
    fn a_pid_used_again() {
        let mut all = variables([Some("4711"), Some("1"), None]);
        all.pidfd_id = Some("17179869184".into());
        let read = |own| Announced::read(all.clone(), SELF, || own);
        assert_eq!(read(Some(17_179_869_184)), announced(1, None));
        assert_eq!(read(Some(17_179_869_185)), Ok(None));
        // A kernel without pidfs cannot tell.
        assert_eq!(read(None), announced(1, None));
    }
}

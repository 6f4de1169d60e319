//! A started process, as its parent has it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::{ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use super::SpawnError;
use crate::link::Link;
use crate::sys;
use crate::wait::{self, Patience};

/// How long dropping a killed process waits for its end. It takes a millisecond or two, unless the process holds what makes
/// its end wait.
const DYING: Duration = Duration::from_millis(50);

/// A process that a [`Command`](super::Command) has started, with the links to it.
///
/// Its parts can be moved out: `publisher.attach(child.link)`, and go on with `child.process`.
#[derive(Debug)]
#[non_exhaustive]
pub struct Child {
    /// The link that the child has from [`parent`](super::parent).
    pub link: Link,
    /// The process.
    pub process: Process,
    /// By name, in the order of the command.
    pub(super) links: Vec<(String, Link)>,
}

impl Child {
    /// The link of that name ([`Command::link`](super::Command::link)), the caller's from now on. `None` if there is none, or
    /// it was taken before.
    pub fn take_link(&mut self, name: &str) -> Option<Link> {
        let at = self.links.iter().position(|(known, _)| known == name)?;
        Some(self.links.remove(at).1)
    }
}

/// A child process.
///
/// It is a pidfd, too ([`AsFd`]): readable (poll(2)) from the moment the process has ended, whatever became of its links.
///
/// Dropping it kills the process if the command said so ([`kill_on_drop`](super::Command::kill_on_drop)). Otherwise the
/// process goes on, and its parent's process table has it until the parent ends, or its links' hang-up ends it.
pub struct Process {
    child: std::process::Child,
    pidfd: OwnedFd,
    kill_on_drop: bool,
    /// Writes to its standard input, if that is a pipe.
    pub stdin: Option<ChildStdin>,
    /// Reads from its standard output, if that is a pipe.
    pub stdout: Option<ChildStdout>,
    /// Reads from its standard error, if that is a pipe.
    pub stderr: Option<ChildStderr>,
}

impl Process {
    /// Opens the pidfd. On failure the child is killed, and gone.
    pub(super) fn watch(
        mut child: std::process::Child,
        kill_on_drop: bool,
    ) -> Result<Process, SpawnError> {
        // Nobody but this process reaps it, so as long as nothing here does, the number is the child's.
        match pidfd_of(&child) {
            Ok(pidfd) => Ok(Process {
                pidfd,
                kill_on_drop,
                stdin: child.stdin.take(),
                stdout: child.stdout.take(),
                stderr: child.stderr.take(),
                child,
            }),
            Err(Errno::CHILD | Errno::SRCH) => Err(SpawnError::Reaped),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(SpawnError::Resources {
                    doing: "watch the child (pidfd_open)",
                    source: error.into(),
                })
            }
        }
    }

    /// Its process id. It is the process's until it has been waited for, and may then be another's.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end, and returns the same status ever after. Its standard input is closed first, as far as it is here.
    ///
    /// # Errors
    /// ECHILD: something else in this process has waited for it.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        drop(self.stdin.take());
        self.child.wait()
    }

    /// Its status, if it has ended; without waiting.
    ///
    /// # Errors
    /// As [`wait`](Process::wait).
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// [`wait`](Process::wait), for at most `timeout`; `None` if it goes on.
    ///
    /// # Errors
    /// As [`wait`](Process::wait).
    pub fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        drop(self.stdin.take());
        match wait::ready(self.as_fd(), PollFlags::IN, Patience::timeout(timeout)) {
            Ok(_) => self.child.wait().map(Some),
            Err(crate::Error::TimedOut) => self.child.try_wait(),
            Err(error) => Err(error.into()),
        }
    }

    /// Kills it (SIGKILL), if it has not ended. [`wait`](Process::wait) for it afterwards.
    ///
    /// # Errors
    /// EPERM: it has become another user's.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(libc::SIGKILL)
    }

    /// Sends it a signal, by its number (signal(7)). One that has ended gets none, and that is no error.
    ///
    /// # Errors
    /// EINVAL: no such signal. EPERM: it has become another user's.
    #[doc(alias = "pidfd_send_signal")]
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match sys::spawn::signal(&self.pidfd, signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            sent => sent,
        }
    }

    fn has_ended(&self) -> bool {
        let mut ended = [rustix::event::PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut ended, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.kill_on_drop {
            // Of one that has ended, nothing is left behind.
            if self.has_ended() {
                let _ = self.child.try_wait();
            }
            return;
        }
        if matches!(self.child.try_wait(), Ok(None)) && self.kill().is_ok() {
            if let Ok(None) = self.wait_timeout(DYING) {
                // What it holds makes its end wait for somebody (docs/threats.md, A18), which is no reason to wait here.
                if let Ok(pidfd) = self.pidfd.try_clone() {
                    let _ = thread::Builder::new()
                        .name("memlane-reaper".to_owned())
                        .spawn(move || {
                            let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
                        });
                }
            }
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl AsRawFd for Process {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("id", &self.id())
            .field("pidfd", &self.as_raw_fd())
            .finish_non_exhaustive()
    }
}

fn pidfd_of(child: &std::process::Child) -> Result<OwnedFd, Errno> {
    let pid = Pid::from_raw(child.id() as i32).ok_or(Errno::SRCH)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    // ECHILD unless it is a child that can be waited for: one that was reaped by something else may have lost its number to
    // any process.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::PidFd(pidfd.as_fd()), options)?;
    Ok(pidfd)
}

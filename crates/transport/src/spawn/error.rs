//! Why a child did not start, or found no parent.

use std::ffi::OsString;
use std::fmt;
use std::io;

/// What a child does between fork(2) and execve(2), for the options of its [`Command`](super::Command).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Leaving all descriptors behind but its links.
    Descriptors = 1,
    /// [`no_network`](super::Command::no_network).
    Network,
    /// [`user`](super::Command::user).
    User,
    /// [`current_dir`](super::Command::current_dir).
    Directory,
    /// [`no_new_privileges`](super::Command::no_new_privileges).
    Privileges,
    /// [`die_with_parent`](super::Command::die_with_parent).
    ParentDeath,
    /// `Command::files`.
    Files,
    /// `Command::system_calls`.
    SystemCalls,
}

impl Step {
    pub(crate) const ALL: &[Step] = &[
        Step::Descriptors,
        Step::Network,
        Step::User,
        Step::Directory,
        Step::Privileges,
        Step::ParentDeath,
        Step::Files,
        Step::SystemCalls,
    ];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Descriptors => "leave descriptors behind (close_range, Linux 5.11)",
            Step::Network => {
                "leave the network: expected user namespaces (user.max_user_namespaces, no container or security module \
                 that forbids them), or CAP_SYS_ADMIN"
            }
            Step::User => "become another user, which takes CAP_SETUID and CAP_SETGID",
            Step::Directory => "enter its directory",
            Step::Privileges => "give up new privileges",
            Step::ParentDeath => "tie its life to the thread that starts it",
            Step::Files => "restrict itself to some files (Landlock)",
            Step::SystemCalls => "restrict itself to some system calls (seccomp)",
        })
    }
}

/// Why a child was not started, or its end of a link not had.
///
/// Where a child was not started, nothing of it is left: no process, no descriptor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// A link has a name that cannot be one, or that another has.
    #[error("{name:?} cannot be the name of a link: expected {expected}")]
    Name {
        /// The name.
        name: String,
        /// What a name is.
        expected: &'static str,
    },
    /// A directory has a NUL in its name.
    #[error("{0:?} is no name of a directory: it has a NUL")]
    Directory(OsString),
    /// The links could not be made, or the child not be watched: short of descriptors or memory.
    #[error("cannot {doing}")]
    Resources {
        /// What for.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// What the child is to be restricted to could not be prepared.
    #[cfg(feature = "sandbox")]
    #[error(transparent)]
    Sandbox(#[from] crate::sandbox::SandboxError),
    /// The child could not do what comes before the program.
    #[error("the child cannot {step}")]
    Step {
        /// What.
        step: Step,
        /// What the kernel said.
        source: io::Error,
    },
    /// There was no process to be had, or it could not execute the program: not found ([`io::ErrorKind::NotFound`]), not
    /// executable, not allowed by what the child is restricted to.
    #[error("cannot start {program:?}: {source}")]
    Program {
        /// As it was given.
        program: OsString,
        /// What the kernel said.
        source: io::Error,
    },
    /// The child was waited for before this call could: SIGCHLD is ignored, or something else in this process waits for
    /// any child.
    #[error(
        "the child was reaped by something else in this process: SIGCHLD is ignored, or any child waited for"
    )]
    Reaped,

    /// This process was not started by a [`Command`](super::Command).
    #[error(
        "{} is not set: this process was not started by a memlane Command",
        super::VARIABLE
    )]
    NotSpawned,
    /// The variable is not what a [`Command`](super::Command) makes of it.
    #[error(
        "{} is {found:?}, expected NAME:NUMBER:COOKIE, separated by commas",
        super::VARIABLE
    )]
    Malformed {
        /// Its value.
        found: OsString,
    },
    /// The variable was made for another process, which had the links and did not hand them on; or something in this process
    /// has closed or taken what it does not own.
    #[error(
        "{} says that descriptor {number} is the link {name:?}, and it is not: the variable was inherited from the process \
         that it was for, or other code of this process has closed the descriptor or set close-on-exec on it",
        super::VARIABLE
    )]
    NotInherited {
        /// Of the link.
        name: String,
        /// Of the descriptor.
        number: i32,
    },
    /// The parent has given no link of that name.
    #[error("no link {name:?} from the parent; there are {there:?}")]
    NoSuchLink {
        /// The name.
        name: String,
        /// The names there are.
        there: Vec<String>,
    },
    /// An earlier call has taken the link.
    #[error("the link {name:?} has been taken by an earlier call")]
    Taken {
        /// Its name.
        name: String,
    },
}

//! Children that are born with a link to their parent: [`Command`] on one side, [`parent`] on the other.
//!
//! ```no_run
//! use memlane_transport::{Child, Command};
//!
//! # let i_am_the_child = false;
//! if i_am_the_child {
//!     let parent = memlane_transport::parent()?;
//!     let greeting: String = parent.recv()?;
//!     parent.send(&greeting.len())?;
//! } else {
//!     let Child { link, mut process, .. } = Command::new("worker").spawn()?;
//!     link.send("hello")?;
//!     assert_eq!(link.recv::<usize>()?, 5);
//!     process.wait()?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! No address is needed, nothing to be found, and nobody else can come: the link is a pair of sockets, of which the child
//! inherits one. The environment tells it which (`MEMLANE_LINKS`): the descriptor's number, which is the same in both
//! processes, and the socket's cookie, by which it is known again. Close-on-exec is taken off it after the fork, in the
//! child, so that it never reaches a program that another thread of the parent starts.
//!
//! # What the child has
//! Its standard streams as [`Command`] says, its links, and no other descriptor of the parent's, also of those that lack
//! close-on-exec. The environment, unless [cleared](Command::env_clear), and all that a process inherits otherwise.
//!
//! # Keeping it in bounds
//! | option | what it takes away | what it leaves |
//! |---|---|---|
//! | [`no_new_privileges`](Command::no_new_privileges) | what set-user-ID programs and file capabilities would give | everything its user may do |
//! | [`no_network`](Command::no_network) | every network interface, loopback included; abstract Unix addresses | Unix sockets with a path, descriptors it is sent |
//! | [`user`](Command::user) | what the parent's user may do, and its groups | what that user may |
//! | `files` (feature `sandbox`) | opening, executing, making, removing files but those named; with Linux 6.12 also signals and abstract Unix addresses outside of the sandbox | what is open already; stat(2), chdir(2), chmod(2), and Unix sockets with a path |
//! | `system_calls` (feature `sandbox`) | system calls but those named | what can be done with those |
//!
//! They hold for the process and all that it starts, for ever. No one of them is a sandbox: combine them. Two things
//! remain open to every child: to use the processor and the memory it gets (setrlimit(2), control groups), and, where
//! neither `user` nor `files` nor `system_calls` forbids it, to signal and trace other processes of its user. The parent
//! is one of those, so a child that must not write its parent's memory needs `user` or `files`, or a parent that is not
//! dumpable (prctl(2)). `system_calls` is enough if it allows no opening of files: `Filter::program` does, and memory of
//! processes is a file (`/proc/PID/mem`).

mod child;
mod error;
mod inherited;

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::sockopt::socket_cookie;

use crate::link::Link;
#[cfg(feature = "sandbox")]
use crate::sandbox::{Files, Filter};
use crate::sys::spawn::{FIRST, Plan};

pub use child::{Child, Process};
pub use error::{SpawnError, Step};
use inherited::Announced;
pub use inherited::{parent, parent_link};

/// Tells a child of its links.
const VARIABLE: &str = "MEMLANE_LINKS";

/// The name of the link that every child has.
const DEFAULT: &str = "parent";

/// Bytes in a name.
const MAX_NAME: usize = 64;

/// A program to be started, with a link to this process: as [`std::process::Command`], but for what the child inherits (see
/// [`spawn`](crate::spawn)).
#[derive(Debug)]
#[must_use = "nothing happens until it is spawned"]
pub struct Command {
    command: std::process::Command,
    links: Vec<String>,
    directory: Option<PathBuf>,
    kill_on_drop: bool,
    die_with_parent: bool,
    no_new_privileges: bool,
    no_network: bool,
    user: Option<(u32, u32)>,
    #[cfg(feature = "sandbox")]
    files: Option<Files>,
    #[cfg(feature = "sandbox")]
    filters: Vec<Filter>,
}

/// With what has been set there, other users, groups and `pre_exec` included: that comes before what is set here.
impl From<std::process::Command> for Command {
    fn from(command: std::process::Command) -> Command {
        Command {
            command,
            links: Vec::new(),
            directory: None,
            kill_on_drop: false,
            die_with_parent: false,
            no_new_privileges: false,
            no_network: false,
            user: None,
            #[cfg(feature = "sandbox")]
            files: None,
            #[cfg(feature = "sandbox")]
            filters: Vec::new(),
        }
    }
}

impl Command {
    /// A program, by its path, or by its name to be looked for in `PATH`. Standard streams, environment and directory are
    /// the parent's, unless set.
    pub fn new(program: impl AsRef<OsStr>) -> Command {
        std::process::Command::new(program).into()
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Command {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        self.command.args(args);
        self
    }

    /// Sets a variable of the child's environment.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Command {
        self.command.env(key, value);
        self
    }

    /// Removes a variable from the child's environment.
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Command {
        self.command.env_remove(key);
        self
    }

    /// Leaves the child none of the environment, but what is set afterwards, and what tells it of its links.
    pub fn env_clear(mut self) -> Command {
        self.command.env_clear();
        self
    }

    /// The directory that the child starts in. A program with a relative path is looked for there.
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Command {
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// The child's standard input. Default: the parent's.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Command {
        self.command.stdin(stdin);
        self
    }

    /// The child's standard output. Default: the parent's.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Command {
        self.command.stdout(stdout);
        self
    }

    /// The child's standard error. Default: the parent's.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Command {
        self.command.stderr(stderr);
        self
    }

    /// Adds a link beside the one that every child has: [`Child::take_link`] here, [`parent_link`] there. Names are of 1 to
    /// 64 letters, digits, `-`, `_` and `.`, each once; `parent` is taken.
    pub fn link(mut self, name: impl Into<String>) -> Command {
        self.links.push(name.into());
        self
    }

    /// Whether dropping the [`Process`] kills it. Default: no. Dropping waits for its end for at most 50 ms; a process whose
    /// end takes longer is waited for by a thread.
    pub fn kill_on_drop(mut self, kill: bool) -> Command {
        self.kill_on_drop = kill;
        self
    }

    /// Has the kernel kill the child when the *thread* that spawns it ends, with the parent or before: spawn from a thread
    /// that lasts. It ends with the first set-user-ID program that the child executes, and when the child changes its user.
    ///
    /// A child that watches its link needs none of this: the hang-up says that the parent is gone.
    #[doc(alias = "PR_SET_PDEATHSIG")]
    pub fn die_with_parent(mut self) -> Command {
        self.die_with_parent = true;
        self
    }

    /// Keeps the child, and all it starts, from gaining privileges by execve(2): set-user-ID and set-group-ID bits and file
    /// capabilities have no effect. It keeps what it has.
    #[doc(alias = "PR_SET_NO_NEW_PRIVS")]
    pub fn no_new_privileges(mut self) -> Command {
        self.no_new_privileges = true;
        self
    }

    /// Gives the child a network namespace with nothing in it, not even a loopback interface that is up: no address can be
    /// reached, from loopback to abstract Unix names. Links go on, and so do Unix sockets with a path that it may open.
    ///
    /// Without a [`user`](Command::user), the child is in a user namespace of its own as well, where it is the same user, and no
    /// capability is left to it: what a privileged parent may do beyond its user's rights, it may not. Where there
    /// are no user namespaces, a privileged parent's child keeps its privileges, which are enough to come back (setns(2)).
    ///
    /// Not with a user set on a [`std::process::Command`], where this would be too late (EACCES); nor, without privileges, from
    /// a parent that is not dumpable (prctl(2)): /proc is root's there, and says which user it is (EACCES).
    #[doc(alias = "CLONE_NEWNET")]
    pub fn no_network(mut self) -> Command {
        self.no_network = true;
        self
    }

    /// Runs the child as another user, of one group and no supplementary ones, and without capabilities unless that user is
    /// root. For privileged parents (CAP_SETUID and CAP_SETGID). A link is no less a link: what is sent over it may be used,
    /// whosoever it is.
    pub fn user(mut self, uid: u32, gid: u32) -> Command {
        self.user = Some((uid, gid));
        self
    }

    /// Restricts the child, from before the program is loaded, to some files: see [`Files`]. Implies
    /// [`no_new_privileges`](Command::no_new_privileges).
    #[cfg(feature = "sandbox")]
    #[doc(alias = "landlock")]
    pub fn files(mut self, files: Files) -> Command {
        self.files = Some(files);
        self
    }

    /// Restricts the child to some system calls, from before the program is loaded: execve(2), and what loads the
    /// program, must be among them ([`Filter::program`]). Called again, what both allow is left. Implies
    /// [`no_new_privileges`](Command::no_new_privileges).
    ///
    /// A child that is to do with less once it runs enters [`Filter::worker`] itself
    /// ([`sandbox::enter`](crate::sandbox::enter)).
    #[cfg(feature = "sandbox")]
    #[doc(alias = "seccomp")]
    pub fn system_calls(mut self, filter: Filter) -> Command {
        self.filters.push(filter);
        self
    }

    /// Starts the child. Both ends of its links are then where they belong, and nowhere else.
    ///
    /// # Errors
    /// [`SpawnError`] says what failed, also when that was in the child before it became the program. Nothing is left then.
    pub fn spawn(mut self) -> Result<Child, SpawnError> {
        let mut links = Vec::new();
        let mut theirs = Vec::new();
        let mut announced = Vec::new();
        let names = std::iter::once(DEFAULT.to_owned()).chain(std::mem::take(&mut self.links));
        for name in names {
            check(&name, &links)?;
            let (here, there, cookie) = pair().map_err(resources("make a link"))?;
            announced.push(Announced {
                name: name.clone(),
                number: there.as_raw_fd(),
                cookie,
            });
            theirs.push(there);
            links.push((name, here));
        }
        let plan = self.plan(theirs)?;
        let program = self.command.get_program().to_owned();
        self.command.env(VARIABLE, inherited::write(&announced));
        plan.arm(&mut self.command);
        let process = self
            .command
            .spawn()
            .map_err(|error| match Step::unmark(&error) {
                Some((step, source)) => SpawnError::Step { step, source },
                None => SpawnError::Program {
                    program,
                    source: error,
                },
            })?;
        // The child's ends, of which it has its own copies by now.
        drop(self.command);
        let process = Process::watch(process, self.kill_on_drop)?;
        let (_, link) = links.remove(0);
        Ok(Child {
            link,
            process,
            links,
        })
    }

    /// All that the child will need, ready to be used.
    fn plan(&mut self, links: Vec<OwnedFd>) -> Result<Plan, SpawnError> {
        let directory = match &self.directory {
            Some(path) => Some(
                CString::new(path.as_os_str().as_bytes())
                    .map_err(|_| SpawnError::Directory(path.clone().into()))?,
            ),
            None => None,
        };
        Ok(Plan {
            links,
            no_network: self.no_network,
            user: self.user,
            directory,
            no_new_privileges: self.no_new_privileges,
            die_with: self.die_with_parent.then(std::process::id),
            #[cfg(feature = "sandbox")]
            files: match &self.files {
                Some(files) => files.prepare(self.program_file().as_deref())?,
                None => None,
            },
            #[cfg(feature = "sandbox")]
            filters: {
                let compiled = self.filters.iter().map(|filter| filter.compile(None));
                compiled.collect::<Result<Vec<_>, _>>()?.concat()
            },
        })
    }

    /// The file that will be executed, as execvp(3) finds it; `None` if there is none.
    #[cfg(feature = "sandbox")]
    fn program_file(&self) -> Option<PathBuf> {
        let program = Path::new(self.command.get_program());
        let directory = self.directory.clone().unwrap_or_default();
        if program.as_os_str().as_bytes().contains(&b'/') {
            return Some(directory.join(program));
        }
        let set = self.command.get_envs().find(|(name, _)| *name == "PATH");
        let path = match set {
            Some((_, value)) => value.map(OsStr::to_owned),
            None => std::env::var_os("PATH"),
        };
        let path = path.unwrap_or_else(|| "/bin:/usr/bin".into());
        std::env::split_paths(&path)
            .map(|entry| directory.join(entry).join(program))
            .find(|file| {
                rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
            })
    }
}

fn check(name: &str, others: &[(String, Link)]) -> Result<(), SpawnError> {
    let expected = if !is_name(name) {
        "1 to 64 letters, digits, '-', '_' and '.'"
    } else if others.iter().any(|(other, _)| other == name) {
        "one that no other link of the child has"
    } else {
        return Ok(());
    };
    Err(SpawnError::Name {
        name: name.to_owned(),
        expected,
    })
}

fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(fits)
}

/// An end for here, one for the child that does not have the number of a standard stream, and its cookie.
fn pair() -> std::io::Result<(Link, OwnedFd, u64)> {
    let (here, there) = Link::pair()?;
    let mut there = there.into_fd();
    if there.as_raw_fd() < FIRST {
        // This process has closed some of its own.
        there = fcntl_dupfd_cloexec(&there, FIRST)?;
    }
    let cookie = socket_cookie(there.as_fd())?;
    Ok((here, there, cookie))
}

fn resources(doing: &'static str) -> impl FnOnce(std::io::Error) -> SpawnError {
    move |source| SpawnError::Resources { doing, source }
}

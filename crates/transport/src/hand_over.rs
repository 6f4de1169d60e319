//! Replacing a process while its service goes on: the listener, the live links and the state go to a successor.
//!
//! The process that serves starts a [`Successor`], goes on serving until that is up, and then hands over one value, with
//! anything in it that a message may carry. The successor takes it as a [`Predecessor`]'s. At any moment exactly one of the
//! two serves: a successor that dies, hangs or refuses before it has taken over is killed, and the old process goes on
//! with what it still has; an old process that dies after it has sent the value is succeeded.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use memlane_transport::hand_over::{Predecessor, Successor};
//! use memlane_transport::{Address, Link, Listener};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Work {
//!     listener: Listener,
//!     links: Vec<Link>,
//!     served: u64,
//! }
//!
//! # fn serve(work: &mut Work) {}
//! let mut work = match Predecessor::inherited()? {
//!     // Another generation of this program started this process.
//!     Some(predecessor) => {
//!         let work: Work = predecessor.receive()?;
//!         // Whatever can fail comes here: until take_over returns, nobody is served.
//!         predecessor.take_over()?;
//!         work
//!     }
//!     None => Work {
//!         listener: Listener::bind(&Address::path("/run/user/1000/service")?)?,
//!         links: Vec::new(),
//!         served: 0,
//!     },
//! };
//! serve(&mut work); // until it is time for another generation
//!
//! let mut command = std::process::Command::new(std::env::current_exe()?);
//! command.arg("--as-before");
//! let successor = Successor::spawn(command)?;
//! match successor.hand_over(&work, Duration::from_secs(5)) {
//!     Ok(_process) => return Ok(()), // dropping `work` takes nothing away from it
//!     Err(error) => eprintln!("{error}"), // and serve on
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The procedure
//! | | old process | link | successor |
//! |---|---|---|---|
//! | 1 | [`spawn`](Successor::spawn), serves on | `Started` ← | [`inherited`](Predecessor::inherited) |
//! | 2 | finishes what it has begun, [`hand_over`](Successor::hand_over) | → the work, with a receipt | [`receive`](Predecessor::receive) |
//! | 3 | waits | `Ready` ← | prepares itself, [`take_over`](Predecessor::take_over) |
//! | 4 | ends | → `Go`, with a receipt | serves |
//!
//! `Go` is taken when its receipt is acknowledged, which the successor's link does before `take_over` returns, so a
//! successor that never acknowledged has served nobody. And if the old process dies between 2 and 4, the hang-up is as
//! good as `Go`: one that gives up kills the successor *before* it hangs up. What no procedure can help is a
//! successor that dies after it has taken over (it has served by then), and an old process that dies before 2 is done.
//!
//! docs/hand-over.md has what can go wrong at each step, and what clients see.

use std::env;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::limits::Limits;
use crate::link::Link;
use crate::receipt::Receipt;
use crate::wait::{self, Patience};

/// Tells a process that its standard input is a link to its predecessor, whose pid is the value.
const VARIABLE: &str = "MEMLANE_PREDECESSOR";

/// The two trust one another: as much as can be.
const LIMITS: Limits = Limits::new().descriptors(usize::MAX).body(1 << 30);

/// How long a successor that has hung up may take to end by itself. Clients wait meanwhile.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What a successor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Word {
    Started,
    Ready,
}

/// What the old process says last.
#[derive(Debug, Serialize, Deserialize)]
struct Go;

/// A process that is to take over from this one.
///
/// Until [`hand_over`](Successor::hand_over) has succeeded it is this process's: dropping a `Successor` kills it, and waits
/// for its end, so that there are never two that serve.
///
/// Readable (poll(2)) when it has started, or ended: ask [`try_started`](Successor::try_started) then, and serve on meanwhile.
#[derive(Debug)]
pub struct Successor {
    /// `None` when it is on its own, or has ended.
    process: Option<Child>,
    link: Link,
    started: bool,
}

impl Successor {
    /// Starts `command`, with a link as its standard input and `MEMLANE_PREDECESSOR` in its environment.
    ///
    /// The program should call [`Predecessor::inherited`] early. Its other descriptors are inherited as `command` says;
    /// its parent is this process, and whoever adopts orphans once this process has ended. A service manager that watches
    /// the main process has to be told (systemd: `MAINPID=` with sd_notify(3)).
    ///
    /// # Errors
    /// Those of [`Command::spawn`]; no descriptor numbers left.
    pub fn spawn(mut command: Command) -> io::Result<Successor> {
        let (link, theirs) = Link::pair()?;
        let process = command
            .stdin(Stdio::from(theirs.into_fd()))
            .env(VARIABLE, std::process::id().to_string())
            .spawn()?;
        // Dropping `command` closes the successor's end here, so that its death is a hang-up.
        Ok(Successor {
            process: Some(process),
            link: link.with_limits(LIMITS),
            started: false,
        })
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("handed over to once").id()
    }

    /// Whether it is up and waits for the work. It serves nobody yet, so go on until then.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] when it is not; any other means that it never will be (drop it).
    pub fn try_started(&mut self) -> Result<(), Error> {
        self.started_within(Duration::ZERO)
            .map_err(|error| match error {
                Error::TimedOut => Error::WouldBlock,
                error => error,
            })
    }

    fn started_within(&mut self, timeout: Duration) -> Result<(), Error> {
        if !self.started {
            self.expect(Word::Started, timeout)?;
            self.started = true;
        }
        Ok(())
    }

    /// Gives the successor `work`, waits until it is ready, and lets it take over; all within `timeout`.
    ///
    /// From the call on this process must serve nobody: before it, finish what has begun, [flush](Link::flush) links with a
    /// reply sent in part, and leave those out that are not [between messages](Link::is_between_messages). While it waits,
    /// clients do, too: in the backlog, and on their links.
    ///
    /// When it has succeeded, the successor serves. Drop `work`, which takes nothing away from it, answer nobody any more,
    /// and end. The child is given for those who do not end.
    ///
    /// # Errors
    /// The successor has not taken over, and is dead. `work` is as it was: serve on. (The one exception is
    /// [`Step::Serving`], possible only when the time ran out in the very moment it took over.)
    pub fn hand_over<T: Serialize + ?Sized>(
        mut self,
        work: &T,
        timeout: Duration,
    ) -> Result<Child, NotHandedOver> {
        match self.attempt(work, timeout) {
            Ok(()) => Ok(self.process.take().expect("handed over to once")),
            Err(Failure {
                mut step,
                source,
                go,
            }) => {
                let status = self.end(matches!(
                    source,
                    Error::Disconnected | Error::NotAcknowledged
                ));
                // Now that it is dead the answer is final.
                if go.is_some_and(|go| go.try_wait().is_ok()) {
                    step = Step::Serving;
                }
                Err(NotHandedOver {
                    step,
                    status,
                    source,
                })
            }
        }
    }

    fn attempt<T: Serialize + ?Sized>(
        &mut self,
        work: &T,
        timeout: Duration,
    ) -> Result<(), Failure> {
        let start = Instant::now();
        let left = || timeout.saturating_sub(start.elapsed());
        let at = |step| {
            move |source| Failure {
                step,
                source,
                go: None,
            }
        };
        self.started_within(left()).map_err(at(Step::Starting))?;
        self.link
            .transfer_timeout(work, left())
            .and_then(|receipt| receipt.wait_timeout(left()))
            .map_err(at(Step::Taking))?;
        self.expect(Word::Ready, left())
            .map_err(at(Step::Preparing))?;
        let go = self
            .link
            .transfer_timeout(&Go, left())
            .map_err(at(Step::TakingOver))?;
        go.wait_timeout(left()).map_err(|source| Failure {
            step: Step::TakingOver,
            source,
            go: Some(go),
        })
    }

    fn expect(&self, word: Word, timeout: Duration) -> Result<(), Error> {
        let found: Word = self.link.recv_timeout(timeout)?;
        if found == word {
            Ok(())
        } else {
            Err(Error::io(
                format!("waiting for {word:?} of a successor, {found:?} came"),
                Errno::PROTO,
            ))
        }
    }

    /// Kills it and waits for its end. One that has hung up ends by itself, most likely, and is given a moment to say why.
    fn end(&mut self, hung_up: bool) -> Option<ExitStatus> {
        let mut process = self.process.take()?;
        if hung_up {
            // Not reaped, so the number is its own.
            if let Ok(pidfd) = pidfd_open(Pid::from_child(&process), PidfdFlags::empty()) {
                let _ = wait::once(pidfd.as_fd(), PollFlags::IN, LAST_WORDS);
            }
        }
        let _ = process.kill();
        process.wait().ok()
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        self.end(false);
    }
}

impl AsFd for Successor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

struct Failure {
    step: Step,
    source: Error,
    /// The last message's, if it has left.
    go: Option<Receipt>,
}

/// The process that serves until this one [takes over](Predecessor::take_over).
#[derive(Debug)]
pub struct Predecessor {
    link: Link,
}

impl Predecessor {
    /// The process that started this one as its [`Successor`], if one did; call it once, before anything reads the standard
    /// input, which is /dev/null afterwards. The two must share a pid namespace. It tells the predecessor that this process has started.
    ///
    /// Whether one did is asked of the kernel: the standard input must be a Unix socket made by the process that
    /// `MEMLANE_PREDECESSOR` names. So children that inherit the variable, and nothing else, are not taken in.
    ///
    /// # Errors
    /// No descriptor numbers left; [`Error::Disconnected`] when the predecessor is gone already.
    pub fn inherited() -> Result<Option<Predecessor>, Error> {
        let named = env::var(VARIABLE).ok().and_then(|pid| pid.parse().ok());
        let stdin = io::stdin();
        if named.is_none() || crate::socket::kind(&stdin).is_err() {
            return Ok(None);
        }
        let copy = stdin
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| Error::io("taking the link to a predecessor", source))?;
        let Ok(link) = Link::from_fd(copy) else {
            return Ok(None);
        };
        if link.credentials().ok().and_then(|found| found.pid) != named {
            return Ok(None);
        }
        // Else this process's own children would have the link.
        crate::socket::leave_stdin()?;
        let link = link.with_limits(LIMITS).adopting();
        link.send(&Word::Started)?;
        Ok(Some(Predecessor { link }))
    }

    /// Waits for the work. The predecessor serves until it sends it, and this process must not serve before
    /// [`take_over`](Predecessor::take_over).
    ///
    /// Links and listeners in it have default [`Limits`] and access rules; set your own. Clients may have hung up meanwhile,
    /// which shows on their links, as ever. Where the predecessor is another version of the program, what it sends is of
    /// *its* version of the type: make it an enum of versions, as nothing else tells them apart.
    ///
    /// # Errors
    /// As [`Link::recv`]; with [`Error::Disconnected`] the predecessor has ended and handed over nothing. End, too.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<T, Error> {
        self.recv()
    }

    /// Says that this process is ready, and waits until it may serve: when the predecessor has said so, or has died.
    ///
    /// # Errors
    /// The predecessor is alive and broke the procedure, or has given up on this process and serves on
    /// ([`Error::Disconnected`]): end.
    pub fn take_over(self) -> Result<(), Error> {
        match self.link.send(&Word::Ready) {
            Ok(()) | Err(Error::Disconnected) => {}
            Err(error) => return Err(error),
        }
        match self.recv() {
            Ok(Go) => Ok(()),
            // One that gives up kills this process before it hangs up: unless a wrapper (a shell, sudo) was killed in its place.
            Err(Error::Disconnected) if self.has_ended()? => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the predecessor's process is over. Its files are closed a little before that is to be seen.
    fn has_ended(&self) -> Result<bool, Error> {
        const EXIT: Duration = Duration::from_secs(1);
        let failed = |source| Error::io("asking for the predecessor", source);
        let peer = self.link.peer().map_err(failed)?;
        let Some(process) = peer.pidfd() else {
            return Ok(true);
        };
        let found = wait::ready(process, PollFlags::IN, Patience::timeout(EXIT));
        match found {
            Ok(_) => Ok(true),
            Err(Error::TimedOut) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Receives until the predecessor has ended: a child that it forked may hold its end of the link, so that there is no
    /// hang-up.
    fn recv<T: DeserializeOwned>(&self) -> Result<T, Error> {
        // The pair's maker. None when it is gone already.
        let peer = self
            .link
            .peer()
            .map_err(|source| Error::io("asking for the predecessor", source))?;
        loop {
            let ended = match peer.pidfd() {
                Some(process) => {
                    let mut fds = [
                        PollFd::from_borrowed_fd(process, PollFlags::IN),
                        PollFd::new(&self.link, PollFlags::IN),
                    ];
                    match poll(&mut fds, None) {
                        Ok(_) => fds[0].revents().contains(PollFlags::IN),
                        Err(Errno::INTR) => continue,
                        Err(error) => return Err(Error::io("waiting for a predecessor", error)),
                    }
                }
                None => true,
            };
            match self.link.try_recv() {
                Err(Error::WouldBlock) if ended => return Err(Error::Disconnected),
                Err(Error::WouldBlock) => {}
                other => return other,
            }
        }
    }
}

impl AsFd for Predecessor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

/// How far a successor did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// It did not call [`Predecessor::inherited`].
    Starting,
    /// The work could not be sent, or it did not receive it.
    Taking,
    /// It has received the work, and did not call [`Predecessor::take_over`].
    Preparing,
    /// It was ready, and did not notice that it may serve.
    TakingOver,
    /// It did notice, in the very moment when the time ran out, and may have answered some before it was killed.
    Serving,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Starting => "before it had started",
            Step::Taking => "before it had received the work",
            Step::Preparing => "before it was ready",
            Step::TakingOver => "before it took over",
            Step::Serving => "when it had just taken over",
        })
    }
}

/// A successor has not taken over, and has ended. This process has everything it had.
#[derive(Debug, thiserror::Error)]
#[error(
    "the successor was given up {step}, and has ended with {}; this process goes on",
    or_unknown(.status)
)]
#[non_exhaustive]
pub struct NotHandedOver {
    /// How far it came.
    pub step: Step,
    /// How it ended: by itself, or with SIGKILL from this process. `None` when something else has collected the status.
    pub status: Option<ExitStatus>,
    /// What this process noticed: [`Error::Disconnected`] or [`Error::NotAcknowledged`] when the successor died,
    /// [`Error::TimedOut`], or what was wrong with the work ([`Error::Encode`], for instance, [`Error::TooManyDescriptors`]).
    pub source: Error,
}

fn or_unknown(status: &Option<ExitStatus>) -> String {
    status.map_or_else(
        || "a status unknown".to_owned(),
        |status| status.to_string(),
    )
}

use std::{
    env, fs,
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use memlane_transport::{Error, Link};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open,
    set_parent_process_death_signal,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Census, PATIENCE, Scene, alive,
    shortage::allow_enough,
    wait_until,
    watchdog::{self, Watchdog, state},
};

const ROLE: &str = "MEMLANE_TEST_ROLE";

/// Another process of a test.
#[derive(Debug)]
pub struct Child {
    role: &'static str,
    process: std::process::Child,
    link: Link,
}

/// How a process is started, if not like this one.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// A command that executes what follows its arguments, such as unshare(1).
    pub through: Vec<String>,
    /// As a user, and group, of this number. Takes root.
    pub user: Option<u32>,
    /// `$MEMLANE_DIR`, in place of a runtime directory.
    pub directory: Option<PathBuf>,
}

impl Scene {
    /// Starts a process in one of the roles that this file plays. `what` is the first thing it hears.
    pub fn spawn(&self, role: &'static str, what: &impl Serialize) -> Child {
        self.spawn_like(&Start::default(), role, what)
    }

    /// The same, started in another way.
    pub fn spawn_like(&self, start: &Start, role: &'static str, what: &impl Serialize) -> Child {
        let (link, theirs) = Link::pair().expect("a pair");
        let this = env::current_exe().expect("this executable");
        let mut command = match start.through.split_first() {
            None => Command::new(this),
            Some((first, others)) => {
                let mut command = Command::new(first);
                command.args(others).arg(this);
                command
            }
        };
        match &start.directory {
            None => command.env("XDG_RUNTIME_DIR", self.directory()),
            Some(path) => command
                .env("MEMLANE_DIR", path)
                .env_remove("XDG_RUNTIME_DIR"),
        };
        if let Some(user) = start.user {
            command.uid(user).gid(user);
        }
        let process = command
            .args([
                "other_process",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ROLE, role)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            // Of its own, or a child that a test has stopped is continued when the shell of the tests exits
            // (setpgid(2), orphaned process groups).
            .process_group(0)
            .spawn()
            .expect("another process");
        let child = Child {
            role,
            process,
            link,
        };
        child.tell(what);
        child
    }
}

impl Child {
    /// Sends it something.
    #[track_caller]
    pub fn tell(&self, what: &impl Serialize) {
        alive();
        if let Err(error) = self.link.send_timeout(what, PATIENCE) {
            panic!("{} does not listen: {error}", self.role);
        }
    }

    /// Waits for what it says.
    #[track_caller]
    pub fn hear<T: DeserializeOwned>(&self) -> T {
        alive();
        match self.link.recv_timeout(PATIENCE) {
            Ok(said) => said,
            Err(error) => panic!(
                "{} does not say the {} expected of it: {error}",
                self.role,
                std::any::type_name::<T>()
            ),
        }
    }

    /// Waits for what it says; none if it is gone.
    #[track_caller]
    pub fn hear_if_alive<T: DeserializeOwned>(&self) -> Option<T> {
        alive();
        match self.link.recv_timeout(PATIENCE) {
            Ok(said) => Some(said),
            Err(Error::Disconnected) => None,
            Err(error) => panic!("{}: {error}", self.role),
        }
    }

    /// What it has said, if anything.
    pub fn has_said<T: DeserializeOwned>(&self) -> Option<T> {
        self.link.recv_timeout(Duration::ZERO).ok()
    }

    /// Its process id, which is its first thread's as well.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Copies of all its sockets: what a helper has that it forked.
    pub fn copies_of_its_sockets(&self) -> Vec<OwnedFd> {
        let pid = Pid::from_raw(self.id() as i32).expect("a process id");
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("a pidfd");
        let directory = format!("/proc/{}/fd", self.id());
        fs::read_dir(directory)
            .expect("its descriptors")
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let target = fs::read_link(entry.path()).ok()?;
                let number = entry.file_name().to_str()?.parse().ok()?;
                let socket = target.to_string_lossy().starts_with("socket:");
                // Standard input is the link to this process, which has to end with that one.
                (socket && number > 0).then(|| {
                    let flags = PidfdGetfdFlags::empty();
                    pidfd_getfd(&pidfd, number, flags).expect("a copy of a socket")
                })
            })
            .collect()
    }

    /// Sends it a signal. Until it is waited for, a killed child stays a zombie.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id() as i32).expect("a process id");
        kill_process(pid, signal).expect("a child that was not waited for");
    }

    /// Kills it (SIGKILL) and leaves the zombie.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Stops it (SIGSTOP), and waits until each of its threads is.
    #[track_caller]
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.id());
        wait_until(&format!("{} is stopped", self.role), || {
            let tasks = fs::read_dir(&tasks).expect("a process");
            tasks.flatten().all(|task| {
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                state(&stat) == Some('T')
            })
        });
    }

    /// Has it go on (SIGCONT).
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits for its end.
    pub fn reap(mut self) -> ExitStatus {
        alive();
        self.process.wait().expect("a child")
    }

    /// Waits for its end, which must be in order.
    #[track_caller]
    pub fn finish(self) {
        let role = self.role;
        let status = self.reap();
        assert!(status.success(), "{role} failed: {status}");
    }

    /// Kills it and waits for its end.
    #[track_caller]
    pub fn kill_and_reap(self) {
        let role = self.role;
        self.kill();
        let status = self.reap();
        assert_eq!(
            status.signal(),
            Some(Signal::KILL.as_raw()),
            "{role} ended before it was killed: {status}"
        );
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Of a test that failed; a child that was waited for is left alone.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A child's side of the conversation.
#[derive(Debug)]
pub struct Role {
    link: Link,
}

impl Role {
    /// Sends the parent something.
    #[track_caller]
    pub fn tell(&self, what: &impl Serialize) {
        alive();
        self.link.send_timeout(what, PATIENCE).expect("the parent");
    }

    /// Waits for what the parent says.
    #[track_caller]
    pub fn hear<T: DeserializeOwned>(&self) -> T {
        alive();
        self.link.recv_timeout(PATIENCE).expect("the parent")
    }

    /// Tells the parent that a step is reached, if it is the one at which it wants to do something to this process; goes on when the
    /// parent says so.
    #[track_caller]
    pub fn halt<S: PartialEq>(&self, at: S, until: S) {
        if at == until {
            self.tell(&());
            self.hear::<()>();
        }
    }

    /// What the parent has said, if anything.
    pub fn has_said<T: DeserializeOwned>(&self) -> Option<T> {
        match self.link.try_recv() {
            Ok(said) => Some(said),
            Err(Error::WouldBlock) => None,
            Err(error) => panic!("the parent: {error}"),
        }
    }
}

/// What a process does in a role.
pub type Part = fn(&Role);

/// To be the whole of a test called `other_process` in each file: plays the role that this process was started
/// in, if any.
pub fn play(roles: &[(&str, Part)]) {
    play_after(|| {}, roles);
}

/// [`play`], in a process that has made what is there for good.
pub fn play_after(prepare: impl FnOnce(), roles: &[(&str, Part)]) {
    let Ok(name) = env::var(ROLE) else {
        return;
    };
    prepare();
    allow_enough();
    set_parent_process_death_signal(Some(Signal::KILL)).expect("prctl");
    let _watchdog = Watchdog::start(name.clone());
    let role = Role {
        link: Link::inherited()
            .expect("a link as standard input")
            .adopting(),
    };
    let (_, part) = roles
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("no role {name} here"));
    let before = Census::take();
    part(&role);
    before.settle();
    watchdog::alive();
}

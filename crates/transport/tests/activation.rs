//! Socket activation, imitated with a shell: it moves descriptors to 3 and on, and sets the variables for its own pid.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Directory, Reaped, abstract_name, alone, descriptors, role};
use memlane_transport::activation::{self, ActivationError};
use memlane_transport::{Access, Address, Error, Link, Listener};
use rustix::io::{FdFlags, fcntl_getfd};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

const MINUTE: Duration = Duration::from_secs(60);

/// The test `service` of this executable in `role`, after `script` has arranged descriptors and variables.
fn started(role: &str, script: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{script}; exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["service", "--exact", "--nocapture", "--test-threads=1"])
        .env("MEMLANE_TEST_ROLE", role)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    for variable in [
        "LISTEN_PID",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
        "LISTEN_PIDFDID",
    ] {
        command.env_remove(variable);
    }
    command
}

/// What `take` says in a process that the script has prepared. It has descriptor 3 and none of 4 to 9.
fn outcome(script: &str) -> String {
    let closed = "exec 3</dev/null 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-";
    let output = started("outcome", &format!("{closed}; {script}"))
        .output()
        .unwrap();
    reported(&String::from_utf8_lossy(&output.stderr))
}

fn reported(stderr: &str) -> String {
    let line = stderr
        .lines()
        .find_map(|line| line.strip_prefix("outcome: "));
    line.unwrap_or_else(|| panic!("no outcome in: {stderr}"))
        .to_owned()
}

/// The child's side of every test here.
#[test]
fn service() {
    match role().as_deref() {
        Some("listeners") => {
            // SAFETY: nothing else in this program takes what a service manager passed.
            let listeners = unsafe { Listener::activated(Access::SameUser) }.unwrap();
            for (_, listener) in &listeners {
                assert_eq!(fcntl_getfd(listener).unwrap(), FdFlags::CLOEXEC);
            }
            assert!(matches!(
                // SAFETY: nothing else in this program takes what a service manager passed.
                unsafe { Listener::activated(Access::SameUser) }.unwrap_err(),
                Error::Activation(ActivationError::AlreadyTaken)
            ));
            // It inherits the variables.
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["service", "--exact", "--nocapture", "--test-threads=1"])
                .env("MEMLANE_TEST_ROLE", "outcome")
                .stdout(Stdio::null())
                .output()
                .unwrap();
            assert_eq!(reported(&String::from_utf8_lossy(&child.stderr)), "[]");
            for (name, listener) in listeners {
                let link = listener.accept_timeout(MINUTE).unwrap();
                let question: String = link.recv_timeout(MINUTE).unwrap();
                link.send(&(name, question, std::process::id())).unwrap();
                let end = link.recv_timeout::<()>(MINUTE).unwrap_err();
                assert!(end.is_disconnected(), "{end}");
            }
        }
        // SAFETY: nothing else in this program takes what a service manager passed.
        Some("connections") => match unsafe { Link::activated(Access::SameUser) } {
            Ok(links) => {
                for (name, link) in links {
                    link.send(&name).unwrap();
                }
            }
            Err(error) => eprintln!("outcome: {error}"),
        },
        Some("outcome") => print_outcome(),
        Some("open") => {
            while File::open("/dev/null")
                .map(std::mem::ManuallyDrop::new)
                .unwrap()
                .as_raw_fd()
                < 4
            {}
            print_outcome();
        }
        _ => {}
    }
}

fn print_outcome() {
    let before = descriptors();
    // SAFETY: nothing else in this program takes what a service manager passed.
    match unsafe { activation::take() } {
        Ok(taken) => {
            let taken: Vec<_> = taken
                .iter()
                .map(|it| {
                    assert_eq!(fcntl_getfd(&it.fd).unwrap(), FdFlags::CLOEXEC);
                    (&it.name, it.fd.as_raw_fd())
                })
                .collect();
            eprintln!("outcome: {taken:?}");
        }
        Err(error) => {
            assert_eq!(descriptors(), before);
            // Asked again, it says the same: nothing was taken.
            // SAFETY: nothing else in this program takes what a service manager passed.
            assert_eq!(unsafe { activation::take() }.unwrap_err(), error);
            eprintln!("outcome: {error}");
        }
    }
}

#[test]
fn two_listeners() {
    let _alone = alone();
    let directory = Directory::new();
    let path = Address::path(directory.join("first")).unwrap();
    let addresses = [path, abstract_name("second")];
    let listeners = addresses.each_ref().map(|it| Listener::bind(it).unwrap());
    let [first, second] = listeners
        .each_ref()
        .map(|it| it.as_fd().try_clone_to_owned().unwrap());
    let mut service = Reaped::spawn(
        started(
            "listeners",
            "exec 3<&0 4<&1 </dev/null >/dev/null; \
             export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=first:second",
        )
        .stdin(first)
        .stdout(second)
        .stderr(Stdio::inherit()),
    );
    for (address, expected) in addresses.iter().zip(["first", "second"]) {
        let link = Link::connect(address).unwrap();
        link.send("who?").unwrap();
        let answer: (String, String, u32) = link.recv_timeout(MINUTE).unwrap();
        assert_eq!(answer, (expected.into(), "who?".into(), service.0.id()));
    }
    service.succeed();
    // The files are not the service's.
    assert!(directory.join("first").exists());
}

/// Runs a service that gets `fd` as a connection, as `user`, and gives what it reported.
fn connection(fd: OwnedFd, user: Option<u32>) -> Option<String> {
    let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1";
    let mut command = started("connections", script);
    command.stdin(fd);
    let mut service = match user {
        Some(user) => Reaped::spawn_as(user, &mut command)?,
        None => Reaped::spawn(&mut command),
    };
    // Keeps a copy of the socket.
    drop(command);
    let mut stderr = String::new();
    let pipe = service.0.stderr.as_mut().unwrap();
    pipe.read_to_string(&mut stderr).unwrap();
    let status = service.0.wait().unwrap();
    if user.is_some() && status.code() == Some(126) {
        eprintln!("skipped: that user cannot run the test's executable");
        return None;
    }
    assert!(status.success(), "{stderr}");
    Some(stderr)
}

#[test]
fn one_connection() {
    let _alone = alone();
    let (ours, theirs) = Link::pair().unwrap();
    connection(theirs.into_fd(), None).unwrap();
    assert_eq!(ours.recv_timeout::<String>(MINUTE).unwrap(), "unknown");
    assert!(
        ours.recv_timeout::<()>(MINUTE)
            .unwrap_err()
            .is_disconnected()
    );
}

#[test]
fn a_connection_of_another_user() {
    let _alone = alone();
    let (ours, theirs) = Link::pair().unwrap();
    let Some(stderr) = connection(theirs.into_fd(), Some(65534)) else {
        return;
    };
    let reported = reported(&stderr);
    assert!(
        reported.ends_with("(uid 0, gid 0); uid 65534 is required"),
        "{reported}"
    );
    assert!(
        ours.recv_timeout::<()>(MINUTE)
            .unwrap_err()
            .is_disconnected()
    );
}

#[test]
fn a_listener_as_a_connection() {
    let _alone = alone();
    let listener = Listener::bind(&abstract_name("not-a-link")).unwrap();
    let stderr = connection(listener.as_fd().try_clone_to_owned().unwrap(), None).unwrap();
    let text = reported(&stderr);
    assert!(
        text.ends_with("found a listening one, passed with the name \"unknown\""),
        "{text}"
    );
}

#[test]
fn what_the_variables_say() {
    let _alone = alone();
    for (variables, expected) in [
        ("", "[]"),
        ("LISTEN_PID=$$", "[]"),
        ("LISTEN_FDS=1", "[]"),
        ("LISTEN_PID=1 LISTEN_FDS=1", "[]"),
        ("LISTEN_PID=$$ LISTEN_FDS=1", "[(\"unknown\", 3)]"),
        (
            "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=a",
            "[(\"a\", 3)]",
        ),
        (
            "LISTEN_PID=me LISTEN_FDS=1",
            "LISTEN_PID is \"me\", expected a process",
        ),
        (
            "LISTEN_PID=$$ LISTEN_FDS=0",
            "LISTEN_FDS is \"0\", expected a number of descriptors, at least 1",
        ),
        (
            "LISTEN_PID=$$ LISTEN_FDS=2147483645",
            "LISTEN_FDS is \"2147483645\", expected a number of descriptors, at least 1",
        ),
        (
            "LISTEN_PID=$$ LISTEN_FDS=2147483644",
            "LISTEN_FDS announces 2147483644 descriptors, and number 4 is not open",
        ),
        (
            "LISTEN_PID=$$ LISTEN_FDS=2",
            "LISTEN_FDS announces 2 descriptors, and number 4 is not open",
        ),
        (
            "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=a:b",
            "LISTEN_FDNAMES has 2 names for the 1 descriptors of LISTEN_FDS",
        ),
        (
            "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_PIDFDID=-1",
            "LISTEN_PIDFDID is \"-1\", expected the inode of a pidfd",
        ),
    ] {
        let script = match variables {
            "" => String::from(":"),
            some => format!("export {some}"),
        };
        assert_eq!(outcome(&script), expected, "{variables}");
    }
}

/// A file of this process's own, where the variables claim a passed one, gets no second owner.
#[test]
fn a_number_of_this_process() {
    let _alone = alone();
    let script = "exec 3</dev/null 4>&-; export LISTEN_PID=$$ LISTEN_FDS=2";
    let output = started("open", script).output().unwrap();
    let text = reported(&String::from_utf8_lossy(&output.stderr));
    assert!(
        text.starts_with("descriptor 4 is announced by LISTEN_FDS, and close-on-exec"),
        "{text}"
    );
    assert!(output.status.success());
}

#[test]
fn the_pid_of_another_time() {
    let _alone = alone();
    for (offset, expected) in [(0, "[(\"unknown\", 3)]"), (1, "[]")] {
        let script = "read id; exec 3</dev/null; \
                      export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_PIDFDID=$id";
        let mut command = started("outcome", script);
        let mut process = Reaped::spawn(command.stdin(Stdio::piped()));
        let pid = Pid::from_child(&process.0);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        // PID_FS_MAGIC.
        if rustix::fs::fstatfs(&pidfd).unwrap().f_type as u64 != 0x5049_4446 {
            eprintln!("skipped: this kernel's pidfds have no numbers of their own (Linux 6.9)");
            return;
        }
        let (_, inode) = common::inode(&pidfd);
        let mut stdin = process.0.stdin.take().unwrap();
        writeln!(stdin, "{}", inode + offset).unwrap();
        drop(stdin);
        let mut stderr = String::new();
        let pipe = process.0.stderr.as_mut().unwrap();
        pipe.read_to_string(&mut stderr).unwrap();
        assert_eq!(reported(&stderr), expected);
        process.succeed();
    }
}

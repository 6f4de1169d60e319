//! Children of one thread, which no child of a test harness is: so this has a `main` of its own.

use std::env;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use memlane_transport::spawn::Step;
use memlane_transport::{Child, Command, SpawnError, parent};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    match env::args().nth(1).as_deref() {
        Some("variable") => variable(),
        Some("without_namespaces") => without_namespaces(),
        // Arguments of the test harness that this is not.
        _ => {
            the_variable_is_removed();
            where_there_are_no_user_namespaces();
        }
    }
}

fn worker(role: &str) -> Command {
    Command::new(env::current_exe().unwrap())
        .arg(role)
        .stdout(Stdio::null())
        .kill_on_drop(true)
}

#[track_caller]
fn says_done(role: &str) {
    let Child {
        link, mut process, ..
    } = worker(role).spawn().unwrap();
    let said: String = link.recv_timeout(PATIENCE).unwrap();
    assert_eq!(said, "done");
    assert!(process.wait().unwrap().success());
}

/// A process that has only just begun.
fn variable() {
    assert_eq!(fs::read_dir("/proc/self/task").unwrap().count(), 1);
    assert!(env::var_os("MEMLANE_LINKS").is_some());
    let link = parent().unwrap();
    assert!(env::var_os("MEMLANE_LINKS").is_none());
    assert!(matches!(parent(), Err(SpawnError::Taken { .. })));
    link.send("done").unwrap();
}

fn the_variable_is_removed() {
    says_done("variable");
}

/// A process without privileges, where there are no user namespaces to be had.
fn without_namespaces() {
    let above = parent().unwrap();
    let uid = rustix::process::geteuid().as_raw();
    // SAFETY: a process of one thread, which uses none of what is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }.unwrap();
    fs::write("/proc/self/setgroups", "deny").unwrap();
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")).unwrap();
    fs::write("/proc/sys/user/max_user_namespaces", "0").unwrap();
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).unwrap();
    let found = worker("variable").no_network().spawn().unwrap_err();
    match &found {
        SpawnError::Step { step, source } => {
            assert_eq!(*step, Step::Network);
            // user_namespaces(7)
            assert_eq!(source.raw_os_error(), Some(libc::ENOSPC));
        }
        other => panic!("{other:?}"),
    }
    assert!(found.to_string().contains("user.max_user_namespaces"));
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    assert_eq!(waitid(WaitId::All, options).unwrap_err(), Errno::CHILD);
    above.send("done").unwrap();
}

fn where_there_are_no_user_namespaces() {
    says_done("without_namespaces");
}

//! Socket activation by systemd's own `systemd-socket-activate`, where it is installed.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Directory, Reaped, alone, role, until};
use memlane_transport::{Access, Address, Error, Link, Listener};
use rustix::process::{Pid, Signal, kill_process};

const MINUTE: Duration = Duration::from_secs(60);
const TOOL: &str = "systemd-socket-activate";

/// The test `service` of this executable, to be started in `role` by systemd's tool with `options`. Nothing if it is
/// not installed, unless it has to be.
fn activate(role: &str, options: &[&str]) -> Option<Reaped> {
    let mut command = Command::new(TOOL);
    command
        .arg("--seqpacket")
        .args(options)
        // It clears the environment.
        .arg(format!("--setenv=MEMLANE_TEST_ROLE={role}"))
        .arg(std::env::current_exe().unwrap())
        .args(["service", "--exact", "--nocapture", "--test-threads=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    match command.spawn() {
        Ok(process) => Some(Reaped(process)),
        Err(error) => {
            assert!(
                std::env::var_os("MEMLANE_REQUIRE_SYSTEMD").is_none(),
                "MEMLANE_REQUIRE_SYSTEMD is set, and {TOOL} does not start: {error}"
            );
            eprintln!("skipped: {TOOL} does not start, {error}");
            None
        }
    }
}

/// The child's side of every test here.
#[test]
fn service() {
    let links = match role().as_deref() {
        // SAFETY: nothing else in this program takes what a service manager passed.
        Some("listeners") => unsafe { Listener::activated(Access::SameUser) }
            .unwrap()
            .into_iter()
            .map(|(name, listener)| (name, listener.accept_timeout(MINUTE).unwrap()))
            .collect(),
        Some("connection") => {
            // SAFETY: nothing else in this program takes what a service manager passed.
            let links = unsafe { Link::activated(Access::SameUser) }.unwrap();
            assert_eq!(links.len(), 1);
            links
        }
        _ => return,
    };
    for (name, link) in &links {
        let question: String = link.recv_timeout(MINUTE).unwrap();
        link.send(&(name, question, std::process::id())).unwrap();
    }
    for (_, link) in &links {
        let end = link.recv_timeout::<()>(MINUTE).unwrap_err();
        assert!(end.is_disconnected(), "{end}");
    }
}

/// Connects as soon as the tool listens.
fn connected(address: &Address) -> Link {
    let mut link = None;
    until("systemd-socket-activate listens", || {
        match Link::connect(address) {
            Ok(connected) => link = Some(connected),
            Err(Error::NotRunning { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        link.is_some()
    });
    link.unwrap()
}

/// The name, and the process, that answers.
fn ask(link: &Link) -> (String, u32) {
    link.send("who?").unwrap();
    let (name, question, process): (String, String, u32) = link.recv_timeout(MINUTE).unwrap();
    assert_eq!(question, "who?");
    (name, process)
}

fn listen(path: &Path) -> String {
    format!("--listen={}", path.display())
}

#[test]
fn one_listener() {
    let _alone = alone();
    let directory = Directory::new();
    let path = directory.join("service");
    let Some(mut service) = activate("listeners", &[&listen(&path)]) else {
        return;
    };
    let link = connected(&Address::path(&path).unwrap());
    // The tool becomes the service.
    assert_eq!(ask(&link), ("unknown".to_owned(), service.0.id()));
    drop(link);
    service.succeed();
    assert!(path.exists());
}

#[test]
fn two_named_listeners() {
    let _alone = alone();
    let directory = Directory::new();
    let paths = ["camera", "control"].map(|name| directory.join(name));
    let [camera, control] = paths.each_ref().map(|path| listen(path));
    let options = [&camera, &control, "--fdname=camera", "--fdname=control"];
    let Some(mut service) = activate("listeners", &options) else {
        return;
    };
    let links = paths.map(|path| connected(&Address::path(path).unwrap()));
    let names = links.each_ref().map(|link| ask(link).0);
    assert_eq!(names, ["camera", "control"]);
    drop(links);
    service.succeed();
}

#[test]
fn a_process_for_each_connection() {
    let _alone = alone();
    let directory = Directory::new();
    let path = directory.join("service");
    let options = ["--accept", "--fdname=client", &listen(&path)];
    let Some(mut tool) = activate("connection", &options) else {
        return;
    };
    let address = Address::path(&path).unwrap();
    let links = [connected(&address), connected(&address)];
    let [one, other] = links.each_ref().map(ask);
    assert_eq!((&*one.0, &*other.0), ("client", "client"));
    assert_ne!(one.1, other.1);
    drop(links);
    for process in [one.1, other.1] {
        until("the tool has reaped a service", || {
            !Path::new(&format!("/proc/{process}")).exists()
        });
    }
    kill_process(Pid::from_child(&tool.0), Signal::TERM).unwrap();
    let status = tool.0.wait().unwrap();
    assert!(
        status.success() || status.signal() == Some(Signal::TERM.as_raw()),
        "{status}"
    );
}

//! Children with links to their parent: what they have, what they have not, and how either side learns of the other's end.

mod common;

use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{env, fs, thread};

use common::{all_writers_closed, alone, descriptors, inode, memfd, role, until, worker};
use memlane_transport::spawn::Step;
use memlane_transport::{Child, Command, Error, Fd, Link, SpawnError, parent, parent_link};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};

const PATIENCE: Duration = Duration::from_secs(60);
const NOBODY: u32 = 65534;

#[test]
fn other_process() {
    let Some(role) = role() else {
        return;
    };
    match role.as_str() {
        "echo" => echo(&parent().unwrap()),
        "inventory" => inventory(),
        "stale" => stale(),
        "middle" => middle(worker("orphan")),
        "middle_of_the_deaf" => middle(worker("deaf").die_with_parent()),
        "orphan" => orphan(),
        "deaf" => {
            parent().unwrap().send("up").unwrap();
            loop {
                thread::park();
            }
        }
        "without_streams" => without_streams(),
        "unreaped" => unreaped(),
        "network" => network(),
        "unprivileged" => unprivileged(),
        "capable" => capable(),
        "privileges" => {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            parent().unwrap().send(&status).unwrap();
        }
        "where" => {
            let link = parent().unwrap();
            link.send(&env::current_dir().unwrap()).unwrap();
        }
        other => panic!("no role {other}"),
    }
}

fn succeed(mut child: Child) {
    let status = child.process.wait_timeout(PATIENCE).unwrap();
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}

#[track_caller]
fn no_children() {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    assert_eq!(waitid(WaitId::All, options).unwrap_err(), Errno::CHILD);
}

/// After one was dropped: where the machine is busy, its end takes longer than that waits, and a thread waits for it.
fn no_children_soon() {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    until("there are no children", || {
        waitid(WaitId::All, options).err() == Some(Errno::CHILD)
    });
}

/// Says everything again until the parent has left.
fn echo(link: &Link) {
    loop {
        match link.recv::<(String, Option<Fd>)>() {
            Ok(said) => link.send(&said).unwrap(),
            Err(Error::Disconnected) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn parent_and_child_talk() {
    let _alone = alone();
    let child = worker("echo").spawn().unwrap();
    let file = memfd();
    child
        .link
        .send(&("hello", Some(Fd::from(file.try_clone().unwrap()))))
        .unwrap();
    let (said, back): (String, Option<Fd>) = child.link.recv_timeout(PATIENCE).unwrap();
    assert_eq!(said, "hello");
    assert_eq!(inode(back.unwrap()), inode(&file));
    // Both ends name the process that made the link.
    assert_eq!(child.link.peer().unwrap().pid(), Some(std::process::id()));
    let Child {
        link, mut process, ..
    } = child;
    assert!(process.try_wait().unwrap().is_none());
    assert!(
        process
            .wait_timeout(Duration::from_millis(1))
            .unwrap()
            .is_none()
    );
    drop(link);
    assert!(process.wait().unwrap().success());
    // Ever after, and nothing is sent to whoever has its number.
    assert!(process.wait().unwrap().success());
    assert!(process.wait_timeout(Duration::ZERO).unwrap().is_some());
    process.kill().unwrap();
    drop(process);
    no_children();
}

/// What the child has before it has done anything, and what its links and variables do.
fn inventory() {
    let before: Vec<i32> = descriptors().into_keys().collect();
    assert!(env::var_os("MEMLANE_LINKS").is_some());
    let frames = parent_link("frames").unwrap();
    // Another thread, the test harness's, could be looking: see tests/spawn_alone.rs.
    assert!(env::var_os("MEMLANE_LINKS").is_some());
    let link = parent().unwrap();
    for (taken, name) in [(parent(), "parent"), (parent_link("frames"), "frames")] {
        match taken {
            Err(SpawnError::Taken { name: found }) => assert_eq!(found, name),
            other => panic!("{other:?}"),
        }
    }
    match parent_link("sound") {
        Err(SpawnError::NoSuchLink { there, .. }) => {
            assert_eq!(there, ["parent", "frames", "control"]);
        }
        other => panic!("{other:?}"),
    }
    // Not taken, and close-on-exec all the same: a program started now has the streams alone.
    let program = std::process::Command::new("ls")
        .arg("/proc/self/fd")
        .output()
        .unwrap();
    let listed = String::from_utf8(program.stdout).unwrap();
    // ls itself has the directory open.
    assert_eq!(listed.split_whitespace().count(), 4, "{listed}");
    link.send(&before).unwrap();
    frames.send(&7_u32).unwrap();
}

#[test]
fn a_child_has_its_links_and_nothing_else() {
    let _alone = alone();
    // As C libraries leave them.
    let careless = memfd();
    rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
    let mut child = worker("inventory")
        .link("frames")
        .link("control")
        .spawn()
        .unwrap();
    let numbers: Vec<i32> = child.link.recv_timeout(PATIENCE).unwrap();
    assert_eq!(numbers.len(), 6, "{numbers:?}");
    assert_eq!(numbers[..3], [0, 1, 2]);
    let frames = child.take_link("frames").unwrap();
    assert_eq!(frames.recv_timeout::<u32>(PATIENCE).unwrap(), 7);
    assert!(child.take_link("frames").is_none());
    assert!(child.take_link("parent").is_none());
    assert!(child.take_link("control").is_some());
    succeed(child);
    no_children();
}

#[test]
fn children_started_at_once_get_their_own_links() {
    let _alone = alone();
    let wrong = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..10_u32 {
                    let child = worker("echo").link("other").spawn().unwrap();
                    let text = round.to_string();
                    child.link.send(&(&text, None::<Fd>)).unwrap();
                    let fds = format!("/proc/{}/fd", child.process.id());
                    let (said, _): (String, Option<Fd>) =
                        child.link.recv_timeout(PATIENCE).unwrap();
                    assert_eq!(said, text);
                    // Three streams and two links.
                    if fs::read_dir(fds).unwrap().count() != 5 {
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                    let Child {
                        link, mut process, ..
                    } = child;
                    drop(link);
                    assert!(process.wait().unwrap().success());
                }
            });
        }
    });
    assert_eq!(wrong.into_inner(), 0);
    no_children();
}

/// A program that inherits the variable and not the links.
fn stale() {
    let found = parent().unwrap_err();
    assert!(matches!(found, SpawnError::NotInherited { .. }), "{found}");
    let text = found.to_string();
    assert!(
        text.starts_with("MEMLANE_LINKS says that descriptor "),
        "{text}"
    );
}

#[test]
fn a_variable_meant_for_another_process_is_seen_through() {
    let _alone = alone();
    assert!(matches!(parent(), Err(SpawnError::NotSpawned)));
    let (here, there) = Link::pair().unwrap();
    let other = rustix::net::sockopt::socket_cookie(&here).unwrap();
    let mut cookies = vec![(99, other), (0, 1)];
    // The number is there, and another socket.
    let mut occupied = there.into_fd();
    occupied = rustix::io::fcntl_dupfd_cloexec(&occupied, 40).unwrap();
    rustix::io::fcntl_setfd(&occupied, rustix::io::FdFlags::empty()).unwrap();
    cookies.push((occupied.as_raw_fd(), other));
    for (number, cookie) in cookies {
        let status = std::process::Command::new(env::current_exe().unwrap())
            .args([
                "other_process",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env("MEMLANE_TEST_ROLE", "stale")
            .env("MEMLANE_LINKS", format!("parent:{number}:{cookie}"))
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    }
}

#[test]
fn a_killed_child_is_noticed() {
    let _alone = alone();
    let mut child = worker("deaf").spawn().unwrap();
    assert_eq!(child.link.recv_timeout::<String>(PATIENCE).unwrap(), "up");
    child.process.kill().unwrap();
    let mut ended = [rustix::event::PollFd::new(
        &child.process,
        rustix::event::PollFlags::IN,
    )];
    assert_eq!(rustix::event::poll(&mut ended, None).unwrap(), 1);
    let error = child.link.recv_timeout::<String>(PATIENCE).unwrap_err();
    assert!(error.is_disconnected(), "{error}");
    let status = child.process.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    no_children();
}

#[test]
fn signals_reach_it() {
    let _alone = alone();
    let mut child = worker("deaf").spawn().unwrap();
    assert_eq!(child.link.recv_timeout::<String>(PATIENCE).unwrap(), "up");
    let error = child.process.signal(4711).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    child.process.signal(libc::SIGTERM).unwrap();
    let status = child.process.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGTERM));
}

#[test]
fn dropping_kills_if_asked_to() {
    let _alone = alone();
    let child = worker("deaf").spawn().unwrap();
    assert_eq!(child.link.recv_timeout::<String>(PATIENCE).unwrap(), "up");
    drop(child);
    no_children_soon();

    // Not asked to: it goes on until its link hangs up, and here it is still somebody's child.
    let child = worker("echo").kill_on_drop(false).spawn().unwrap();
    let Child { link, process, .. } = child;
    drop(process);
    link.send(&("still there", None::<Fd>)).unwrap();
    link.recv_timeout::<(String, Option<Fd>)>(PATIENCE).unwrap();
    drop(link);
    let (_, status) = rustix::process::waitpid(None, rustix::process::WaitOptions::empty())
        .unwrap()
        .unwrap();
    assert_eq!(status.exit_status(), Some(0));
}

/// Starts a process, says so, and waits to be killed.
fn middle(command: Command) {
    let above = parent().unwrap();
    let child = command.stdout(Stdio::inherit()).spawn().unwrap();
    let up: String = child.link.recv_timeout(PATIENCE).unwrap();
    above.send(&up).unwrap();
    loop {
        thread::park();
    }
}

/// Lives until its parent is gone.
fn orphan() {
    let link = parent().unwrap();
    link.send("up").unwrap();
    let error = link.recv::<String>().unwrap_err();
    assert!(error.is_disconnected(), "{error}");
}

#[test]
fn a_child_learns_of_its_parents_death() {
    let _alone = alone();
    for role in ["middle", "middle_of_the_deaf"] {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let child = worker(role).stdout(writer).spawn().unwrap();
        assert_eq!(child.link.recv_timeout::<String>(PATIENCE).unwrap(), "up");
        child.process.kill().unwrap();
        // Its child has the pipe, too, until it ends.
        all_writers_closed(&reader);
        let mut said = String::new();
        fs::File::from(reader).read_to_string(&mut said).unwrap();
        assert!(!said.contains("FAILED"), "{said}");
    }
}

/// A process that has closed its standard streams, whose numbers its links would get.
fn without_streams() {
    let above = parent().unwrap();
    for number in 0..3 {
        // SAFETY: this process writes and reads nothing there any more; a number is all it takes.
        assert_eq!(unsafe { libc::close(number) }, 0);
    }
    let child = worker("echo")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .link("other")
        .spawn()
        .unwrap();
    child.link.send(&("hello", None::<Fd>)).unwrap();
    let (said, _): (String, Option<Fd>) = child.link.recv_timeout(PATIENCE).unwrap();
    above.send(&said).unwrap();
    succeed_quietly(child);
}

fn succeed_quietly(child: Child) {
    let Child {
        link, mut process, ..
    } = child;
    drop(link);
    std::process::exit(i32::from(!process.wait().unwrap().success()));
}

#[test]
fn from_a_parent_without_standard_streams() {
    let _alone = alone();
    let child = worker("without_streams").spawn().unwrap();
    assert_eq!(
        child.link.recv_timeout::<String>(PATIENCE).unwrap(),
        "hello"
    );
    succeed(child);
}

/// A process whose children are reaped by the kernel.
fn unreaped() {
    // SAFETY: sets a disposition that needs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    for _ in 0..50 {
        match Command::new("true").spawn() {
            Ok(mut child) => {
                // It may be there still, and then be gone without a status.
                assert_eq!(
                    child.process.wait().unwrap_err().raw_os_error(),
                    Some(libc::ECHILD)
                );
                child.process.kill().unwrap();
            }
            Err(SpawnError::Reaped) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn where_something_else_reaps() {
    let _alone = alone();
    succeed(worker("unreaped").spawn().unwrap());
}

#[test]
fn what_cannot_be_started_leaves_nothing() {
    let _alone = alone();
    let directory = common::Directory::new();
    let text = directory.join("text");
    fs::write(&text, "no program").unwrap();

    // Not on the path of this process: a directory that nobody lets it search is another reason.
    let found = Command::new("memlane-no-such-program")
        .env("PATH", "/nowhere:/usr/bin")
        .spawn()
        .unwrap_err();
    match &found {
        SpawnError::Program { program, source } => {
            assert_eq!(program, "memlane-no-such-program");
            assert_eq!(source.kind(), ErrorKind::NotFound);
        }
        other => panic!("{other}"),
    }
    let found = Command::new(&text).spawn().unwrap_err();
    assert!(
        matches!(&found, SpawnError::Program { source, .. } if source.kind() == ErrorKind::PermissionDenied),
        "{found:?}"
    );
    // A directory that is not there is told apart from a program that is not there.
    let found = Command::new("true")
        .current_dir(directory.join("nowhere"))
        .spawn()
        .unwrap_err();
    match &found {
        SpawnError::Step { step, source } => {
            assert_eq!(*step, Step::Directory);
            assert_eq!(source.kind(), ErrorKind::NotFound);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(found.to_string(), "the child cannot enter its directory");
    let found = Command::new("true")
        .current_dir("a\0b")
        .spawn()
        .unwrap_err();
    assert!(matches!(found, SpawnError::Directory(_)), "{found}");
    for name in [
        "",
        "parent",
        "a:b",
        "a,b",
        "a b",
        "ä",
        &"a".repeat(65),
        "twice",
    ] {
        let found = Command::new("true")
            .link("twice")
            .link(name)
            .spawn()
            .unwrap_err();
        assert!(
            matches!(&found, SpawnError::Name { name: it, .. } if it == name),
            "{found}"
        );
    }
    no_children();
}

#[test]
fn out_of_descriptors() {
    let _alone = alone();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let mut kept: Vec<OwnedFd> = Vec::new();
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: Some(100),
            maximum: limit.maximum,
        },
    )
    .unwrap();
    while let Ok(fd) = memfd_or_not() {
        kept.push(fd);
    }
    // With none left, then one more each time, until it is enough.
    let mut failed = 0;
    let child = loop {
        match worker("echo").spawn() {
            Ok(child) => break child,
            Err(SpawnError::Resources { .. } | SpawnError::Program { .. }) => failed += 1,
            Err(error) => panic!("{error:?}"),
        }
        no_children();
        kept.pop().unwrap();
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    // Two for the link at least, and one for the process.
    assert!(failed >= 3, "{failed}");
    drop(kept);
    drop(child);
    no_children_soon();
}

fn memfd_or_not() -> rustix::io::Result<OwnedFd> {
    rustix::fs::memfd_create("full", rustix::fs::MemfdFlags::CLOEXEC)
}

#[test]
fn a_directory_and_an_environment() {
    let _alone = alone();
    let directory = common::Directory::new();
    let child = worker("where")
        .env_clear()
        .env("MEMLANE_TEST_ROLE", "where")
        .current_dir(&directory.0)
        .spawn()
        .unwrap();
    let found: std::path::PathBuf = child.link.recv_timeout(PATIENCE).unwrap();
    assert_eq!(found, directory.0.canonicalize().unwrap());
    succeed(child);
}

#[test]
fn no_new_privileges_is_set_when_asked_for() {
    let _alone = alone();
    for asked in [false, true] {
        let command = worker("privileges");
        let command = if asked {
            command.no_new_privileges()
        } else {
            command
        };
        let child = command.spawn().unwrap();
        let status: String = child.link.recv_timeout(PATIENCE).unwrap();
        let line = format!("NoNewPrivs:\t{}", u8::from(asked));
        assert!(status.contains(&line), "{status}");
        succeed(child);
    }
}

/// Tries what the parent says is there.
fn network() {
    let link = parent().unwrap();
    let (port, name): (u16, String) = link.recv().unwrap();
    let devices = fs::read_to_string("/proc/self/net/dev").unwrap();
    let devices: Vec<&str> = devices
        .lines()
        .skip(2)
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .collect();
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:\t"))
        .unwrap();
    link.send(&(
        devices,
        TcpStream::connect(("127.0.0.1", port)).is_ok(),
        UnixStream::connect_addr(&address).is_ok(),
        rustix::process::geteuid().as_raw(),
        capabilities,
    ))
    .unwrap();
}

type Found = (Vec<String>, bool, bool, u32, String);

fn try_network(command: Command) -> Found {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("memlane-test-network-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _abstract = UnixListener::bind_addr(&address).unwrap();
    let port = listener.local_addr().unwrap().port();
    let child = command.spawn().unwrap();
    child.link.send(&(port, name)).unwrap();
    let found = child.link.recv_timeout(PATIENCE).unwrap();
    succeed(child);
    found
}

#[track_caller]
fn nothing_reached(found: &Found, uid: u32) {
    let (devices, tcp, unix, user, capabilities) = found;
    assert!(!tcp && !unix, "{found:?}");
    // Some kernels add tunnels to every namespace; none of them is up.
    assert!(devices.iter().any(|device| device == "lo"), "{devices:?}");
    assert_eq!(*user, uid);
    assert_eq!(capabilities, "0000000000000000");
}

#[test]
fn a_child_without_a_network() {
    let _alone = alone();
    let own = rustix::process::geteuid().as_raw();
    let found = try_network(worker("network"));
    assert!(found.1 && found.2, "{found:?}");
    nothing_reached(&try_network(worker("network").no_network()), own);
}

/// The same, and what takes privileges, from a process that has none.
fn unprivileged() {
    let link = parent().unwrap();
    assert_eq!(rustix::process::geteuid().as_raw(), NOBODY);
    assert_eq!(rustix::process::getegid().as_raw(), NOBODY);
    assert!(rustix::process::getgroups().unwrap().is_empty());
    nothing_reached(&try_network(worker("network").no_network()), NOBODY);
    let found = worker("echo").user(1, 1).spawn().unwrap_err();
    assert!(
        matches!(&found, SpawnError::Step { step: Step::User, source }
            if source.kind() == ErrorKind::PermissionDenied),
        "{found:?}"
    );
    no_children();
    link.send("done").unwrap();
}

/// Whether this test can start processes of other users, that can read its executable.
fn can_change_user() -> bool {
    let can = rustix::process::geteuid().is_root();
    if !can {
        eprintln!("skipped: only root can start a process of another user");
    }
    can
}

#[test]
fn another_user() {
    if !can_change_user() {
        return;
    }
    let _alone = alone();
    let child = match worker("unprivileged").user(NOBODY, NOBODY).spawn() {
        Ok(child) => child,
        Err(SpawnError::Program { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
            eprintln!("skipped: uid {NOBODY} cannot run the test's executable");
            return;
        }
        Err(error) => panic!("{error:?}"),
    };
    assert_eq!(child.link.recv_timeout::<String>(PATIENCE).unwrap(), "done");
    succeed(child);
    // Both at once, where the order matters.
    let found = try_network(worker("network").no_network().user(NOBODY, NOBODY));
    nothing_reached(&found, NOBODY);
}

/// A service that is not root, and may become anybody, as its ambient capabilities say.
fn capable() {
    use rustix::thread::{
        CapabilitySet, CapabilitySets, configure_capability_in_ambient_set, set_capabilities,
        set_keep_capabilities, set_thread_res_uid,
    };
    let link = parent().unwrap();
    set_keep_capabilities(true).unwrap();
    // Of this thread alone, which starts the child.
    let own = rustix::process::Uid::from_raw(NOBODY - 1);
    set_thread_res_uid(own, own, own).unwrap();
    let both = CapabilitySet::SETUID | CapabilitySet::SETGID;
    let sets = CapabilitySets {
        effective: both,
        permitted: both,
        inheritable: both,
    };
    set_capabilities(None, sets).unwrap();
    for capability in [CapabilitySet::SETUID, CapabilitySet::SETGID] {
        configure_capability_in_ambient_set(capability, true).unwrap();
    }
    let status = |command: Command| -> String {
        let child = command.spawn().unwrap();
        let status = child.link.recv_timeout(PATIENCE).unwrap();
        succeed(child);
        status
    };
    let inherited = status(worker("privileges"));
    assert!(
        inherited.contains("CapAmb:\t00000000000000c0"),
        "{inherited}"
    );
    let changed = status(worker("privileges").user(NOBODY, NOBODY));
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        let none = format!("{set}:\t0000000000000000");
        assert!(changed.contains(&none), "{changed}");
    }
    no_children();
    link.send("done").unwrap();
}

#[test]
fn another_user_has_no_capabilities() {
    if !can_change_user() {
        return;
    }
    let _alone = alone();
    // Whether that user can execute this file at all.
    match worker("privileges").user(NOBODY, NOBODY).spawn() {
        Ok(child) => drop(child),
        Err(_) => {
            eprintln!("skipped: uid {NOBODY} cannot run the test's executable");
            return;
        }
    }
    let child = worker("capable").spawn().unwrap();
    assert_eq!(child.link.recv_timeout::<String>(PATIENCE).unwrap(), "done");
    succeed(child);
}

#[test]
fn pidfds_of_children_are_waited_for_with_everything_else() {
    let _alone = alone();
    let child = Command::new("true").spawn().unwrap();
    let pidfd = child.process.as_fd().try_clone_to_owned().unwrap();
    drop(child.link);
    let mut ended = [rustix::event::PollFd::new(
        &pidfd,
        rustix::event::PollFlags::IN,
    )];
    assert_eq!(rustix::event::poll(&mut ended, None).unwrap(), 1);
    // Of one that has ended, dropping leaves no zombie.
    drop(child.process);
    no_children();
}

//! What children in a sandbox can do no more, and what they still can.

mod common;

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use std::{env, thread};

use common::{alone, memfd, role, worker};
use memlane_transport::sandbox::{
    self, Files, Filter, SandboxError, landlock_version, seccompiler,
};
use memlane_transport::spawn::Step;
use memlane_transport::{Child, Command, Fd, Link, SpawnError, parent};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use rustix::process::{Signal, WaitId, WaitIdOptions, getppid, test_kill_process, waitid};

const PATIENCE: Duration = Duration::from_secs(60);
const NOBODY: u32 = 65534;

#[test]
fn other_process() {
    let Some(role) = role() else {
        return;
    };
    match role.as_str() {
        "worker" => in_a_worker(),
        "aborts" => {
            sandbox::enter().unwrap();
            std::process::abort();
        }
        "strict" => {
            Filter::worker().kill().enter().unwrap();
            let _ = File::open("/dev/null");
        }
        "files" => with_some_files(),
        "program" => in_a_program(),
        "many_threads" => with_threads(),
        "without_landlock" => without_landlock(),
        "unprivileged" => unprivileged(),
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

#[track_caller]
fn refused<T>(result: io::Result<T>) {
    match result {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        Err(error) => panic!("failed for another reason: {error}"),
        Ok(_) => panic!("it worked"),
    }
}

/// Says back what the parent says, with memory made here.
fn talk(link: &Link) {
    let (text, file): (String, Fd) = link.recv_timeout(PATIENCE).unwrap();
    let mut bytes = vec![0; 100];
    let count = rustix::io::pread(&file, &mut bytes, 0).unwrap();
    bytes.truncate(count);
    let mut answer = File::from(memfd());
    answer.write_all(&bytes).unwrap();
    // A thread of this process's, and a long body, which goes in memory.
    let said = thread::spawn(move || format!("{text}!").repeat(20_000))
        .join()
        .unwrap();
    let receipt = link
        .transfer(&(said, Fd::from(OwnedFd::from(answer))))
        .unwrap();
    receipt.wait_timeout(PATIENCE).unwrap();
}

fn talk_to(child: &Child) {
    let mut file = File::from(memfd());
    file.write_all(b"a picture").unwrap();
    child
        .link
        .send(&("hello", Fd::from(OwnedFd::from(file))))
        .unwrap();
    let (text, answer): (String, Fd) = child.link.recv_timeout(PATIENCE).unwrap();
    assert_eq!(text, "hello!".repeat(20_000));
    let mut bytes = [0; 9];
    rustix::io::pread(&answer, &mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"a picture");
}

/// Neither files nor sockets nor programs nor processes nor code.
fn nothing_new() {
    refused(File::open("/dev/null"));
    refused(File::create("/tmp/memlane-test-sandbox"));
    refused(fs::read_dir("/"));
    refused(fs::metadata("/"));
    refused(fs::remove_file("/tmp/memlane-test-sandbox"));
    refused(fs::create_dir("/tmp/memlane-test-sandbox"));
    only_its_links();
    refused(std::process::Command::new("true").status());
    // SAFETY: nobody writes to it or jumps there.
    let code = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            4096,
            ProtFlags::READ | ProtFlags::EXEC,
            MapFlags::PRIVATE,
        )
    };
    assert_eq!(code.unwrap_err(), Errno::PERM);
}

/// No sockets but pairs, and no hold of other processes.
fn only_its_links() {
    refused(UdpSocket::bind("127.0.0.1:0"));
    refused(TcpListener::bind("127.0.0.1:0"));
    refused(UnixDatagram::unbound());
    refused(UnixStream::connect("/run/memlane-test"));
    refused(UnixListener::bind("/tmp/memlane-test-sandbox"));
    // It could be connected to anything later.
    refused(UnixDatagram::pair());
    UnixStream::pair().unwrap();
    let parent = getppid().unwrap();
    assert_eq!(test_kill_process(parent).unwrap_err(), Errno::PERM);
    // SAFETY: sends no signal, and if it could, none to this process.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, parent.as_raw_pid(), 1, 0) };
    assert_eq!(
        (sent, Errno::from_io_error(&io::Error::last_os_error())),
        (-1, Some(Errno::PERM))
    );
    // SAFETY: with two null pointers it would say whether it may, and do nothing.
    let limited = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            parent.as_raw_pid(),
            libc::RLIMIT_CPU,
            std::ptr::null::<u8>(),
            std::ptr::null::<u8>(),
        )
    };
    assert_eq!(
        (limited, Errno::from_io_error(&io::Error::last_os_error())),
        (-1, Some(Errno::PERM))
    );
    // SAFETY: the child, if there is one after all, leaves at once.
    let forked = unsafe { libc::fork() };
    if forked == 0 {
        std::process::exit(0);
    }
    assert_eq!(forked, -1);
    // SAFETY: attaches to nobody.
    let traced = unsafe { libc::ptrace(libc::PTRACE_ATTACH, parent.as_raw_pid(), 0, 0) };
    assert_eq!(traced, -1);
    // SAFETY: no ring is made.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null::<u8>()) };
    assert_eq!(
        (ring, Errno::from_io_error(&io::Error::last_os_error())),
        (-1, Some(Errno::PERM))
    );
    // SAFETY: this thread uses nothing that is unshared, and it is refused.
    let unshared = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWUSER) };
    assert_eq!(unshared.unwrap_err(), Errno::PERM);
}

fn in_a_worker() {
    let link = parent().unwrap();
    sandbox::enter().unwrap();
    nothing_new();
    talk(&link);
}

#[test]
fn a_worker_has_its_links_alone() {
    let _alone = alone();
    let child = worker("worker").spawn().unwrap();
    talk_to(&child);
    succeed(child);
}

#[test]
fn a_worker_can_abort() {
    let _alone = alone();
    let mut child = worker("aborts").stderr(Stdio::null()).spawn().unwrap();
    let status = child.process.wait_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGABRT));
}

#[test]
fn a_forbidden_call_kills_if_asked_to() {
    let _alone = alone();
    let mut child = worker("strict").stderr(Stdio::null()).spawn().unwrap();
    let status = child.process.wait_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGSYS));
}

/// The filter is for all threads, those that were there before too.
fn with_threads() {
    let link = parent().unwrap();
    let barrier = std::sync::Barrier::new(2);
    thread::scope(|scope| {
        let before = scope.spawn(|| {
            barrier.wait();
            barrier.wait();
            refused(File::open("/dev/null"));
        });
        barrier.wait();
        sandbox::enter().unwrap();
        barrier.wait();
        before.join().unwrap();
    });
    talk(&link);
}

#[test]
fn every_thread_is_in_the_sandbox() {
    let _alone = alone();
    let child = worker("many_threads").spawn().unwrap();
    talk_to(&child);
    succeed(child);
}

/// What the parent says may be read and written, and nothing else.
fn with_some_files() {
    let link = parent().unwrap();
    let (readable, writable, other): (PathBuf, PathBuf, PathBuf) =
        link.recv_timeout(PATIENCE).unwrap();
    assert_eq!(fs::read(readable.join("file")).unwrap(), b"readable");
    refused(File::create(readable.join("new")));
    refused(File::options().write(true).open(readable.join("file")));
    fs::write(writable.join("new"), "written").unwrap();
    fs::remove_file(writable.join("new")).unwrap();
    refused(fs::read(other.join("file")));
    refused(File::create(other.join("new")));
    refused(fs::remove_file(other.join("file")));
    refused(fs::read_dir("/"));
    refused(File::open("/proc/self/status"));
    // It is its own, and that is for reading.
    File::open(env::current_exe().unwrap_or_else(|_| env::args().next().unwrap().into())).unwrap();
    refused(std::process::Command::new("/bin/true").status());
    if landlock_version().is_some_and(|version| version >= 6) {
        let parent = getppid().unwrap();
        assert_eq!(test_kill_process(parent).unwrap_err(), Errno::PERM);
    }
    talk(&link);
}

fn allowed(directory: &common::Directory) -> (Files, [PathBuf; 3]) {
    let paths = ["readable", "writable", "other"].map(|name| {
        let path = directory.join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), name).unwrap();
        path
    });
    let files = Files::none().libraries().read(&paths[0]).write(&paths[1]);
    (files, paths)
}

/// Whether Landlock is there, to the extent that is required.
fn has_landlock() -> bool {
    let has = landlock_version().is_some_and(|version| version >= 3);
    if !has {
        eprintln!("skipped: {:?} of Landlock", landlock_version());
    }
    has
}

#[test]
fn files_that_are_named_and_no_others() {
    if !has_landlock() {
        return;
    }
    let _alone = alone();
    let directory = common::Directory::new();
    let (files, paths) = allowed(&directory);
    let child = worker("files").files(files).spawn().unwrap();
    child.link.send(&paths).unwrap();
    talk_to(&child);
    succeed(child);
}

#[test]
fn the_loader_has_to_be_allowed() {
    if !has_landlock() {
        return;
    }
    let _alone = alone();
    let found = worker("files").files(Files::none()).spawn().unwrap_err();
    assert!(
        matches!(&found, SpawnError::Program { source, .. } if source.kind() == io::ErrorKind::PermissionDenied),
        "{found:?}"
    );
    no_children();
}

#[test]
fn programs_found_by_name_are_allowed() {
    if !has_landlock() {
        return;
    }
    let _alone = alone();
    // Below no directory of libraries.
    let directory = common::Directory::new();
    fs::copy("/bin/true", directory.join("memlane-true")).unwrap();
    for command in [
        Command::new("memlane-true").env("PATH", format!("/nowhere:{}", directory.0.display())),
        Command::new("./memlane-true").current_dir(&directory.0),
        Command::new(directory.join("memlane-true")),
    ] {
        succeed(command.files(Files::none().libraries()).spawn().unwrap());
    }
    // Not the path of this process: a directory on it that nobody lets it search is another reason.
    let found = Command::new("memlane-true")
        .env("PATH", "/nowhere:/usr/bin")
        .files(Files::none().libraries())
        .spawn()
        .unwrap_err();
    assert!(
        matches!(&found, SpawnError::Program { source, .. } if source.kind() == io::ErrorKind::NotFound),
        "{found:?}"
    );
}

#[test]
fn what_is_not_there_cannot_be_allowed() {
    if !has_landlock() {
        return;
    }
    let _alone = alone();
    let found = worker("files")
        .files(Files::none().read("/nowhere"))
        .spawn()
        .unwrap_err();
    match &found {
        SpawnError::Sandbox(SandboxError::Path { path, source }) => {
            assert_eq!(path.to_str(), Some("/nowhere"));
            assert_eq!(source.kind(), io::ErrorKind::NotFound);
        }
        other => panic!("{other:?}"),
    }
    no_children();
}

/// Under all that a parent can impose, and then what it imposes on itself.
fn in_a_program() {
    let link = parent().unwrap();
    only_its_links();
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(rustix::process::Resource::Nofile, own).unwrap();
    File::open("/etc/ld.so.cache").unwrap();
    refused(fs::create_dir("/tmp/memlane-test-sandbox"));
    sandbox::enter().unwrap();
    nothing_new();
    talk(&link);
}

#[test]
fn a_program_under_everything_at_once() {
    let _alone = alone();
    everything_at_once(|command| command);
}

fn everything_at_once(more: impl FnOnce(Command) -> Command) {
    let command = worker("program")
        .no_network()
        .files(Files::none().libraries().best_effort())
        .system_calls(Filter::program());
    let child = more(command).spawn().unwrap();
    talk_to(&child);
    succeed(child);
}

/// All of it needs no privileges.
fn unprivileged() {
    let link = parent().unwrap();
    assert_eq!(rustix::process::geteuid().as_raw(), NOBODY);
    everything_at_once(|command| command);
    in_order(&link);
}

fn in_order(link: &Link) {
    no_children();
    link.send("done").unwrap();
}

#[test]
fn without_privileges() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can start a process of another user");
        return;
    }
    let _alone = alone();
    let child = match worker("unprivileged").user(NOBODY, NOBODY).spawn() {
        Ok(child) => child,
        Err(SpawnError::Program { source, .. })
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            eprintln!("skipped: uid {NOBODY} cannot run the test's executable");
            return;
        }
        Err(error) => panic!("{error:?}"),
    };
    assert_eq!(child.link.recv_timeout::<String>(PATIENCE).unwrap(), "done");
    succeed(child);
    everything_at_once(|command| command.user(NOBODY, NOBODY));
}

#[test]
fn a_filter_that_forbids_the_program() {
    let _alone = alone();
    let found = worker("program")
        .system_calls(Filter::worker())
        .spawn()
        .unwrap_err();
    assert!(
        matches!(&found, SpawnError::Program { source, .. } if source.kind() == io::ErrorKind::PermissionDenied),
        "{found:?}"
    );
    no_children();

    // The first forbids to install the second.
    let found = worker("program")
        .system_calls(Filter::worker())
        .system_calls(Filter::program())
        .spawn()
        .unwrap_err();
    assert!(
        matches!(
            &found,
            SpawnError::Step {
                step: Step::SystemCalls,
                ..
            }
        ),
        "{found:?}"
    );
    no_children();
}

/// A program of the user's own: this call fails with this error.
fn failing(calls: &[libc::c_long], errno: i32) -> seccompiler::BpfProgram {
    use seccompiler::{SeccompAction, SeccompFilter};
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap()
    .try_into()
    .unwrap()
}

/// A kernel that has no Landlock, as far as this process can tell.
fn without_landlock() {
    let link = parent().unwrap();
    let missing = failing(&[libc::SYS_landlock_create_ruleset], libc::ENOSYS);
    seccompiler::apply_filter_all_threads(&missing).unwrap();
    assert_eq!(landlock_version(), None);
    let found = worker("worker")
        .files(Files::none().libraries())
        .spawn()
        .unwrap_err();
    match &found {
        SpawnError::Sandbox(SandboxError::Landlock { found, source, .. }) => {
            assert_eq!(*found, None);
            let source = source.as_ref().unwrap();
            assert_eq!(source.raw_os_error(), Some(libc::ENOSYS));
        }
        other => panic!("{other:?}"),
    }
    let text = found.to_string();
    assert!(
        text.contains("takes Landlock version 3 (Linux 6.2), found none"),
        "{text}"
    );
    no_children();
    // For whom less will do.
    let files = Files::none().libraries().best_effort();
    let child = worker("worker").files(files).spawn().unwrap();
    talk_to(&child);
    succeed(child);
    in_order(&link);
}

#[test]
fn where_there_is_no_landlock() {
    let _alone = alone();
    let child = worker("without_landlock").spawn().unwrap();
    assert_eq!(child.link.recv_timeout::<String>(PATIENCE).unwrap(), "done");
    succeed(child);
}

#[test]
fn a_program_of_the_users_own() {
    let _alone = alone();
    // In the list, and forbidden all the same: the strictest answer counts.
    let filter = Filter::program().and(failing(&[libc::SYS_execve], libc::EACCES));
    let found = worker("program").system_calls(filter).spawn().unwrap_err();
    assert!(
        matches!(&found, SpawnError::Program { source, .. } if source.raw_os_error() == Some(libc::EACCES)),
        "{found:?}"
    );
    // More of them.
    let filter = Filter::program().allow([libc::SYS_kill]);
    succeed(Command::new("true").system_calls(filter).spawn().unwrap());
}

#[test]
fn signals_are_the_parents_to_send() {
    let _alone = alone();
    let mut child = worker("worker").stderr(Stdio::null()).spawn().unwrap();
    // Whatever it has entered.
    child.process.signal(Signal::TERM.as_raw()).unwrap();
    let status = child.process.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGTERM));
    assert!(child.process.as_fd().try_clone_to_owned().is_ok());
}

//! A whole exchange in processes that lack something: descriptor numbers, privileges, /proc.

mod common;

use std::os::unix::process::CommandExt;

use common::raw::KINDS;
use common::{Reaped, abstract_name, alone, child, parent, role};
use memlane_transport::{
    Access, Error, Fd, FdRef, Limits, Link, Listener, SharedFd, SocketKind, StreamFd,
};
use rustix::fs::{MemfdFlags, fstat, memfd_create};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a process does over links: values, descriptors, 300 of them, a long body, receipts, connecting and accepting, and
/// being told what does not go. Without /proc nothing can be counted; the last step finds a leak all the same.
fn exchange() {
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        over(&left, &right);
        let address = abstract_name("environment");
        let listener = Listener::bind_kind(&address, Access::SameUser, kind).unwrap();
        for _ in 0..100 {
            let client = Link::connect(&address).unwrap();
            let server = listener.accept().unwrap();
            let peer = server.peer().unwrap();
            assert_eq!(peer.pid(), Some(std::process::id()));
            over(&client, &server);
        }
        drop(listener);
        assert!(matches!(
            Link::connect(&address),
            Err(Error::NotRunning { .. })
        ));
        let error = refuses(kind);
        assert!(matches!(error, Error::Decode { .. }), "{error:?}");
    }
}

fn over(left: &Link, right: &Link) {
    let file = Fd::from(memfd_create("exchange", MemfdFlags::CLOEXEC).unwrap());
    left.send(&("text", 7_u64)).unwrap();
    assert_eq!(
        right.recv::<(String, u64)>().unwrap(),
        ("text".to_owned(), 7)
    );
    let receipt = left.transfer(&(&file, FdRef::new(&file))).unwrap();
    let (first, second): (Fd, Fd) = right.recv().unwrap();
    receipt.wait().unwrap();
    for fd in [first, second] {
        assert_eq!(fstat(&fd).unwrap().st_ino, fstat(&file).unwrap().st_ino);
    }
    let (one, two) = std::os::unix::net::UnixStream::pair().unwrap();
    left.send(&StreamFd::try_from(std::os::fd::OwnedFd::from(one)).unwrap())
        .unwrap();
    right.recv::<StreamFd>().unwrap();
    drop(two);
    let body = "body".repeat(1 << 18);
    let receipt = left.transfer(&(&body, &file)).unwrap();
    let (text, _fd): (String, Fd) = right.recv().unwrap();
    receipt.wait().unwrap();
    assert!(text == body);
}

fn three_hundred() {
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        let file = Fd::from(memfd_create("exchange", MemfdFlags::CLOEXEC).unwrap());
        let receipt = left.transfer(&vec![&file; 300]).unwrap();
        let fds: Vec<Fd> = right.recv().unwrap();
        receipt.wait().unwrap();
        assert_eq!(fds.len(), 300);
    }
}

/// A message that is refused, many times: what it brought must be closed each time.
fn refuses(kind: SocketKind) -> Error {
    let mut last = None;
    for _ in 0..100 {
        let (left, right) = Link::pair_of(kind).unwrap();
        let file = Fd::from(memfd_create("exchange", MemfdFlags::CLOEXEC).unwrap());
        left.send(&vec![&file; 5]).unwrap();
        last = Some(right.recv::<[Fd; 0]>().map(drop).unwrap_err());
    }
    last.unwrap()
}

fn nofile(current: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(current),
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// As many as a program can be expected to live with. 300 do not go at once: sent they can be, if they are not
/// 300 of this process's own, but not received.
#[test]
fn thirty_two_descriptors() {
    if role().is_some() {
        nofile(32);
        exchange();
        for kind in KINDS {
            let (left, right) = Link::pair_of(kind).unwrap();
            let file = SharedFd::from(memfd_create("exchange", MemfdFlags::CLOEXEC).unwrap());
            // Duplicates are made for borrowed ones. Nothing is sent, and the link goes on.
            let error = left.send(&vec![FdRef::new(&file); 300]).unwrap_err();
            assert!(matches!(error, Error::DescriptorLimit(_)), "{error:?}");
            left.send(&file).unwrap();
            right.recv::<Fd>().unwrap();
            match left.try_send(&vec![&file; 300]) {
                Ok(()) => {
                    let error = right.recv::<Vec<Fd>>().unwrap_err();
                    assert!(
                        matches!(error, Error::DescriptorsTruncated { .. }),
                        "{error:?}"
                    );
                }
                // Too many in flight for an ordinary user, after the first of two packets.
                Err(error) => assert!(matches!(error, Error::WouldBlock), "{error:?}"),
            }
            drop((left, right));
        }
        let (left, right) = Link::pair().unwrap();
        let file = SharedFd::from(memfd_create("exchange", MemfdFlags::CLOEXEC).unwrap());
        let left = left.with_limits(Limits::new().in_flight(1));
        for _ in 0..100 {
            left.send(&vec![&file; 15]).unwrap();
            right.recv::<Vec<Fd>>().unwrap();
        }
        exchange();
        return;
    }
    let _alone = alone();
    let (_link, theirs) = Link::pair().unwrap();
    Reaped::spawn(&mut child("thirty_two_descriptors", "poor", theirs)).succeed();
    let (_link, theirs) = Link::pair().unwrap();
    let mut command = child("thirty_two_descriptors", "poor", theirs);
    if let Some(mut process) = Reaped::spawn_as(60_000 + std::process::id() % 5000, &mut command) {
        process.succeed();
    }
}

#[test]
fn another_user() {
    if role().is_some() {
        let link = parent();
        assert!(!rustix::process::geteuid().is_root());
        exchange();
        three_hundred();
        // And with its parent, which is root.
        link.send("done").unwrap();
        let fds: Vec<Fd> = link.recv().unwrap();
        assert_eq!(fds.len(), 300);
        return;
    }
    let _alone = alone();
    let (link, theirs) = Link::pair().unwrap();
    let Some(mut process) = Reaped::spawn_as(65534, &mut child("another_user", "nobody", theirs))
    else {
        return;
    };
    assert_eq!(link.recv::<String>().unwrap(), "done");
    let file = Fd::from(common::memfd());
    link.transfer(&vec![&file; 300]).unwrap().wait().unwrap();
    process.succeed();
}

/// In a mount namespace of its own, with an empty directory over /proc.
#[test]
fn without_proc() {
    if role().is_some() {
        assert!(std::fs::read_dir("/proc").unwrap().next().is_none());
        exchange();
        three_hundred();
        // The only question that /proc answers better.
        let (left, right) = Link::pair().unwrap();
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        left.send(&Fd::from(event)).unwrap();
        right.recv::<memlane_transport::EventFd>().unwrap();
        let epoll =
            rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        left.send(&Fd::from(epoll)).unwrap();
        let error = right.recv::<memlane_transport::EventFd>().unwrap_err();
        assert!(
            matches!(
                &error,
                Error::WrongDescriptor {
                    expected: "an eventfd",
                    ..
                }
            ),
            "{error:?}"
        );
        return;
    }
    let _alone = alone();
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can hide /proc");
        return;
    }
    let (_link, theirs) = Link::pair().unwrap();
    let mut command = child("without_proc", "hidden", theirs);
    let hide = || {
        // SAFETY: three system calls with constant arguments, which allocate nothing in the forked child.
        let results = unsafe {
            [
                libc::unshare(libc::CLONE_NEWNS),
                libc::mount(
                    c"none".as_ptr(),
                    c"/".as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null(),
                ),
                libc::mount(
                    c"none".as_ptr(),
                    c"/proc".as_ptr(),
                    c"tmpfs".as_ptr(),
                    0,
                    std::ptr::null(),
                ),
            ]
        };
        if results == [0; 3] {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: `hide` only makes system calls.
    unsafe { command.pre_exec(hide) };
    match command.spawn() {
        Ok(process) => Reaped(process).succeed(),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            eprintln!("skipped: no mount namespaces here, {error}");
        }
        Err(error) => panic!("{error}"),
    }
}

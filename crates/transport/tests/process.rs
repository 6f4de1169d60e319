//! Taking and comparing descriptors of other processes, and what stands in the way of it.

mod common;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;

use common::{Reaped, abstract_name, accept, alone, child, inode, memfd, parent, role};
use memlane_transport::{
    Address, Error, Link, Listener, Obstacle, Refusal, same_description, same_description_in,
    take_descriptor,
};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{FdFlags, dup, fcntl_getfd};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, geteuid, pidfd_open, setrlimit};

const STRANGER: u32 = 65534;

fn refusal(error: Error) -> Refusal {
    match error {
        Error::NotPermitted(refusal) => *refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn of_a_child() {
    if role().is_some() {
        let link = parent();
        let server = Link::connect(&link.recv::<String>().unwrap().parse().unwrap()).unwrap();
        let (one, other) = (memfd(), memfd());
        let again = dup(&one).unwrap();
        let path = format!("/proc/self/fd/{}", one.as_raw_fd());
        let reopened = File::options().read(true).open(path).unwrap();
        let closed = memfd().as_raw_fd();
        let numbers = [
            one.as_raw_fd(),
            again.as_raw_fd(),
            reopened.as_raw_fd(),
            other.as_raw_fd(),
            closed,
        ];
        server.send(&(numbers, inode(&one))).unwrap();
        // For ever: the parent kills this process.
        let _ = link.recv::<()>();
        return;
    }
    let _alone = alone();
    let address = abstract_name("taking");
    let listener = Listener::bind(&address).unwrap();
    let (link, theirs) = Link::pair().unwrap();
    let mut process = Reaped::spawn(&mut child("of_a_child", "target", theirs));
    link.send(&address.to_string()).unwrap();
    let client = accept(&listener);
    let ([one, again, reopened, other, closed], file): ([i32; 5], _) = client.recv().unwrap();

    let peer = client.peer().unwrap();
    let taken = peer.take_descriptor(one).unwrap();
    assert_eq!(inode(&taken), file);
    assert_eq!(fcntl_getfd(&taken).unwrap(), FdFlags::CLOEXEC);
    let pid = Pid::from_raw(process.0.id().try_into().unwrap()).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let second = take_descriptor(&pidfd, again).unwrap();
    let different = take_descriptor(&pidfd, reopened).unwrap();
    assert_eq!(inode(&different), file);

    assert!(same_description(&taken, &second).unwrap());
    assert!(!same_description(&taken, &different).unwrap());
    for (number, same) in [
        (one, true),
        (again, true),
        (reopened, false),
        (other, false),
    ] {
        assert_eq!(peer.same_description(number, &taken).unwrap(), same);
        assert_eq!(same_description_in(&pidfd, number, &second).unwrap(), same);
    }
    for number in [closed, 1 << 20, -1] {
        for error in [
            peer.take_descriptor(number).unwrap_err(),
            peer.same_description(number, &taken).unwrap_err(),
        ] {
            assert!(
                matches!(error, Error::NotOpen { number: n } if n == number),
                "{error:?}"
            );
        }
    }
    for error in [
        take_descriptor(&taken, one).unwrap_err(),
        same_description_in(&taken, one, &taken).unwrap_err(),
    ] {
        assert!(matches!(error, Error::NotAPidfd), "{error:?}");
    }

    process.0.kill().unwrap();
    // A zombie first: its pid is still taken.
    common::until("the end of the target", || {
        matches!(peer.same_description(one, &taken), Err(Error::ProcessEnded))
    });
    let check = || {
        for error in [
            peer.take_descriptor(one).unwrap_err(),
            take_descriptor(&pidfd, one).unwrap_err(),
            peer.same_description(one, &taken).unwrap_err(),
            same_description_in(&pidfd, one, &taken).unwrap_err(),
        ] {
            assert!(matches!(error, Error::ProcessEnded), "{error:?}");
        }
    };
    check();
    process.0.wait().unwrap();
    check();
}

#[test]
fn of_this_process() {
    let _alone = alone();
    let (one, other) = (memfd(), memfd());
    assert!(same_description(&one, &one).unwrap());
    assert!(same_description(&one, dup(&one).unwrap()).unwrap());
    assert!(!same_description(&one, &other).unwrap());
    let path = || open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let root = path();
    assert!(same_description(&root, dup(&root).unwrap()).unwrap());
    assert!(!same_description(&root, path()).unwrap());
    // Over a link and back it is still the same.
    let (left, right) = Link::pair().unwrap();
    left.send(&memlane_transport::FdRef::new(&one)).unwrap();
    let received: memlane_transport::Fd = right.recv().unwrap();
    assert!(same_description(&one, &received).unwrap());
    // A process may always take from itself.
    let taken = left
        .peer()
        .unwrap()
        .take_descriptor(one.as_raw_fd())
        .unwrap();
    assert!(same_description(OwnedFd::from(taken), &one).unwrap());
}

/// Both without any privilege, as one user: first as they are, then with the target not dumpable.
#[test]
fn of_a_process_of_the_same_user() {
    match role().as_deref() {
        Some("target") => {
            let link = parent();
            let address: Address = link.recv::<String>().unwrap().parse().unwrap();
            // Where Yama is at 1, it takes this; elsewhere the call is unknown.
            // SAFETY: plain call.
            let _ = unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
            let taker = Link::connect(&address).unwrap();
            let fd = memfd();
            taker.send(&(fd.as_raw_fd(), inode(&fd))).unwrap();
            taker.recv::<()>().unwrap();
            // SAFETY: plain call.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) }, 0);
            taker.send(&()).unwrap();
            let _ = taker.recv::<()>();
            return;
        }
        Some(_) => return take_from_the_same_user(),
        None => {}
    }
    let _alone = alone();
    let spawn = |role| {
        let (link, theirs) = Link::pair().unwrap();
        let mut command = child("of_a_process_of_the_same_user", role, theirs);
        Some((link, Reaped::spawn_as(STRANGER, &mut command)?))
    };
    let Some((taking, mut taker)) = spawn("taker") else {
        return;
    };
    let (targeted, mut target) = spawn("target").unwrap();
    let address: String = taking.recv().unwrap();
    targeted.send(&address).unwrap();
    // A number that root has open here.
    taking.send(&taking.as_raw_fd()).unwrap();
    taker.succeed();
    target.succeed();
}

fn take_from_the_same_user() {
    let link = parent();
    let listener = Listener::bind(&abstract_name("same-user")).unwrap();
    link.send(&listener.address().to_string()).unwrap();
    let target = accept(&listener);
    let (number, file): (i32, (u64, u64)) = target.recv().unwrap();
    let peer = target.peer().unwrap();
    let own = memfd();
    match peer.take_descriptor(number) {
        Ok(taken) => {
            assert_eq!(inode(&taken), file);
            assert!(peer.same_description(number, &taken).unwrap());
        }
        Err(error) => {
            let found = refusal(error).found;
            assert!(
                matches!(found[..], [Obstacle::Yama { scope: 2.. }, ..]),
                "{found:?}"
            );
        }
    }
    assert!(!peer.same_description(number, &own).unwrap());

    target.send(&()).unwrap();
    target.recv::<()>().unwrap();
    let taking = refusal(peer.take_descriptor(number).unwrap_err());
    let comparing = refusal(peer.same_description(number, &own).unwrap_err());
    assert!(
        taking.to_string().contains("PTRACE_MODE_ATTACH_REALCREDS"),
        "{taking}"
    );
    assert!(
        comparing.to_string().contains("PTRACE_MODE_READ_REALCREDS"),
        "{comparing}"
    );
    for refusal in [taking, comparing] {
        assert_eq!(refusal.pid, peer.pid());
        let mut found = refusal.found.clone();
        found.retain(|obstacle| !matches!(obstacle, Obstacle::Yama { .. }));
        assert_eq!(
            found,
            [Obstacle::NotDumpable, Obstacle::NoCapability],
            "{refusal}"
        );
        assert_eq!(refusal.source.kind(), std::io::ErrorKind::PermissionDenied);
    }

    // And from root, who made the pair.
    let number: i32 = link.recv().unwrap();
    let root = link.peer().unwrap();
    for error in [
        root.take_descriptor(number).unwrap_err(),
        root.same_description(number, &own).unwrap_err(),
    ] {
        let found = refusal(error).found;
        let [
            Obstacle::OtherUser {
                own: STRANGER,
                theirs: [0, 0, 0],
            },
            Obstacle::OtherGroup {
                own: STRANGER,
                theirs: [0, 0, 0],
            },
            Obstacle::MoreCapabilities { missing },
            ..,
            Obstacle::NoCapability,
        ] = found[..]
        else {
            panic!("{found:?}")
        };
        assert_ne!(missing, 0);
    }
}

/// In a user namespace of one's own, those outside look like anybody.
#[test]
fn from_inside_a_user_namespace() {
    if role().is_some() {
        let link = parent();
        let number: i32 = link.recv().unwrap();
        let error = link.peer().unwrap().take_descriptor(number).unwrap_err();
        let found = refusal(error).found;
        assert_eq!(found[0], Obstacle::UnknownUserNamespace, "{found:?}");
        return;
    }
    let _alone = alone();
    let (link, theirs) = Link::pair().unwrap();
    let mut command = child("from_inside_a_user_namespace", "inside", theirs);
    // SAFETY: between fork and exec only one system call is made.
    unsafe {
        command.pre_exec(|| match libc::unshare(libc::CLONE_NEWUSER) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut process = match command.spawn() {
        Ok(process) => Reaped(process),
        Err(error) => {
            eprintln!("skipped: no user namespace for this user, {error}");
            return;
        }
    };
    link.send(&link.as_raw_fd()).unwrap();
    process.succeed();
}

/// The kernel's own answer, and the ids that a pidfd gives, do not need /proc.
#[test]
fn without_proc() {
    if role().is_some() {
        let link = parent();
        let number: i32 = link.recv().unwrap();
        // SAFETY: plain calls; the strings end with NUL.
        let hidden = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(
                    c"none".as_ptr(),
                    c"/".as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null(),
                ) == 0
                && libc::mount(
                    c"none".as_ptr(),
                    c"/proc".as_ptr(),
                    c"tmpfs".as_ptr(),
                    0,
                    std::ptr::null(),
                ) == 0
        };
        if !hidden {
            eprintln!("skipped: /proc cannot be hidden here");
            return;
        }
        common::become_user(STRANGER, &[]);
        let own = memfd();
        let peer = link.peer().unwrap();
        for error in [
            peer.take_descriptor(number).unwrap_err(),
            peer.same_description(number, &own).unwrap_err(),
        ] {
            let found = refusal(error).found;
            assert_eq!(found.last(), Some(&Obstacle::NoProc));
            if found.len() > 1 {
                // From Linux 6.13 on.
                let theirs = [0; 3];
                assert_eq!(
                    found[0],
                    Obstacle::OtherUser {
                        own: STRANGER,
                        theirs
                    }
                );
            }
        }
        assert!(!same_description(&own, &link).unwrap());
        return;
    }
    let _alone = alone();
    if !geteuid().is_root() {
        eprintln!("skipped: only root can hide /proc");
        return;
    }
    let (link, theirs) = Link::pair().unwrap();
    let mut process = Reaped::spawn(&mut child("without_proc", "blind", theirs));
    link.send(&link.as_raw_fd()).unwrap();
    process.succeed();
}

#[test]
fn without_descriptor_numbers() {
    if role().is_some() {
        let peer = parent().peer().unwrap();
        let next = u64::try_from(memfd().as_raw_fd()).unwrap();
        let limit = Rlimit {
            current: Some(next),
            maximum: Some(next),
        };
        setrlimit(Resource::Nofile, limit).unwrap();
        let error = peer.take_descriptor(0).unwrap_err();
        assert!(matches!(error, Error::DescriptorLimit(_)), "{error:?}");
        return;
    }
    let _alone = alone();
    let (_link, theirs) = Link::pair().unwrap();
    Reaped::spawn(&mut child("without_descriptor_numbers", "poor", theirs)).succeed();
}

/// Makes the kernel answer pidfd_getfd, kcmp and all of fcntl's queries with `errno`, for this thread.
fn filter(errno: i32) {
    let load = |offset| libc::sock_filter {
        code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        jt: 0,
        jf: 0,
        k: offset,
    };
    let equal = |value, jt, jf| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf,
        k: value,
    };
    let answer = |value| libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: value,
    };
    let low = if cfg!(target_endian = "little") { 0 } else { 4 };
    let mut program = [
        load(0),
        equal(libc::SYS_pidfd_getfd as u32, 5, 0),
        equal(libc::SYS_kcmp as u32, 4, 0),
        equal(libc::SYS_fcntl as u32, 0, 2),
        // Its second argument: F_DUPFD_QUERY.
        load(16 + 8 + low),
        equal(1027, 1, 0),
        answer(libc::SECCOMP_RET_ALLOW),
        answer(libc::SECCOMP_RET_ERRNO | errno as u32),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: plain calls; the program lives through them.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            ) == 0
    };
    assert!(done, "{}", std::io::Error::last_os_error());
}

#[test]
fn under_a_filter() {
    let answers = |link: &Link| {
        let (own, peer) = (memfd(), link.peer().unwrap());
        [
            peer.take_descriptor(0).unwrap_err(),
            peer.same_description(0, &own).unwrap_err(),
            same_description(&own, &own).unwrap_err(),
            take_descriptor(own.as_fd(), 0).unwrap_err(),
        ]
    };
    match role().as_deref() {
        Some("unknown") => {
            filter(libc::ENOSYS);
            let mut calls = Vec::new();
            for error in answers(&parent()) {
                let Error::Unsupported { call, .. } = error else {
                    panic!("{error:?}")
                };
                calls.push(call);
            }
            assert_eq!(calls, ["pidfd_getfd", "kcmp", "kcmp", "pidfd_getfd"]);
            return;
        }
        Some(_) => {
            filter(libc::EPERM);
            let [taken, compared, own, no_pidfd] = answers(&parent());
            for error in [taken, compared, own] {
                let found = refusal(error).found;
                assert!(found.contains(&Obstacle::SeccompFilter), "{found:?}");
            }
            assert!(matches!(no_pidfd, Error::NotAPidfd), "{no_pidfd:?}");
            return;
        }
        None => {}
    }
    let _alone = alone();
    for role in ["unknown", "refused"] {
        let (_link, theirs) = Link::pair().unwrap();
        Reaped::spawn(&mut child("under_a_filter", role, theirs)).succeed();
    }
}

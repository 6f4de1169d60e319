//! Messages of several packets that are cut: all of their descriptors arrive, or none, and nothing is leaked.

mod common;

use std::os::fd::OwnedFd;

use common::raw::{KINDS, body, borrowed, link_to_raw, more, witnesses};
use common::{
    Reaped, all_writers_closed, alone, child, descriptors, memfd, packet, parent, raw_send, role,
    until,
};
use memlane_transport::{Error, Fd, FdRef, Limits, Link, SocketKind};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// A sender that dies after one part, two, or in the middle of the last packet.
#[test]
fn by_death() {
    if let Some(role) = role() {
        let link = parent();
        // Limited by the pipe that the parent watches: every writer is in a message or here.
        let (kind, cut) = role.split_once(' ').unwrap();
        let writer: Fd = link.recv().unwrap();
        let socket: OwnedFd = link.into_fd();
        let fds: Vec<OwnedFd> = (0..253)
            .map(|_| rustix::io::dup(&writer).unwrap())
            .collect();
        let cut: usize = cut.parse().unwrap();
        for _ in 0..cut.min(2) {
            raw_send(&socket, &packet(253, &more(600), &[]), &borrowed(&fds));
        }
        if cut == 3 && kind == "Stream" {
            let whole = packet(94, &[], &body(&vec![0_u16; 600]));
            raw_send(&socket, &whole[..whole.len() - 1], &borrowed(&fds[..94]));
        }
        // Killed, not exited: nothing is tidied up.
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
            .unwrap();
        unreachable!();
    }
    let _alone = alone();
    for kind in KINDS {
        for cut in 0..=3 {
            let (link, theirs) = Link::pair_of(kind).unwrap();
            let role = format!("{kind:?} {cut}");
            let mut process = Reaped::spawn(&mut child("by_death", &role, theirs));
            let (readers, mut writers) = witnesses(1);
            link.send(&Fd::from(writers.pop().unwrap())).unwrap();
            let error = link.recv::<Vec<Fd>>().unwrap_err();
            assert!(error.is_disconnected(), "{role}: {error:?}");
            process.0.wait().unwrap();
            // Closed at once, not when the link goes.
            all_writers_closed(&readers[0]);
            assert!(link.recv::<Vec<Fd>>().unwrap_err().is_disconnected());
        }
    }
}

/// The receiver runs out of numbers in the third packet of a message: those of the first two are closed as well.
#[test]
fn by_descriptors_that_run_out() {
    if role().is_some() {
        let link = parent();
        link.send(&std::process::id()).unwrap();
        // Let the parent lower the limit.
        link.recv::<()>().unwrap();
        let before = descriptors();
        let error = link.recv::<Vec<Fd>>().unwrap_err();
        let Error::DescriptorsTruncated {
            announced: Some(94),
            received,
        } = error
        else {
            panic!("{error:?}")
        };
        assert!(received < 94);
        // With the link still there. To count takes numbers, too.
        let maximum = getrlimit(Resource::Nofile).maximum;
        let current = maximum;
        setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
        until("as many descriptors as before", || descriptors() == before);
        let error = link.recv::<()>().unwrap_err();
        assert!(matches!(error, Error::Ended { .. }), "{error:?}");
        return;
    }
    let _alone = alone();
    for kind in KINDS {
        let (link, theirs) = Link::pair_of(kind).unwrap();
        let mut process = Reaped::spawn(&mut child("by_descriptors_that_run_out", "poor", theirs));
        let pid = rustix::process::Pid::from_raw(link.recv::<u32>().unwrap() as i32);
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit {
            // The child has few, so that two packets' fit, and not the third's.
            current: Some(506 + 50),
            maximum,
        };
        prlimit(pid, Resource::Nofile, limit).unwrap();
        link.send(&()).unwrap();
        let (readers, writers) = witnesses(1);
        link.send(&vec![FdRef::new(&writers[0]); 600]).unwrap();
        drop(writers);
        process.succeed();
        all_writers_closed(&readers[0]);
        assert!(link.recv::<()>().unwrap_err().is_disconnected());
    }
}

/// Two ends, the first with little room, so that a message of [`MANY`] descriptors leaves in part.
fn narrow(kind: SocketKind) -> (Link, Link) {
    let (left, right) = Link::pair_of(kind).unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&left, 1).unwrap();
    let limits = Limits::new().descriptors(MANY);
    (left.with_limits(limits), right.with_limits(limits))
}

const MANY: usize = 253 * 40;

/// The receiver hangs up in the middle; the sender has lost nothing but the message.
#[test]
fn by_a_receiver_that_hangs_up() {
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = narrow(kind);
        let (readers, writers) = witnesses(1);
        let files: Vec<Fd> = writers.into_iter().map(Fd::from).collect();
        left.try_send(&vec![&files[0]; MANY]).unwrap();
        assert!(matches!(left.try_flush(), Err(Error::WouldBlock)));
        assert!(matches!(
            right.try_recv::<Vec<Fd>>(),
            Err(Error::WouldBlock)
        ));
        drop(right);
        assert!(left.flush().unwrap_err().is_disconnected());
        assert!(left.send(&files).unwrap_err().is_disconnected());
        // Still its own, and as good as before.
        let (other, taker) = Link::pair().unwrap();
        other.send(&files).unwrap();
        assert_eq!(taker.recv::<Vec<Fd>>().unwrap().len(), 1);
        drop(files);
        all_writers_closed(&readers[0]);
    }
}

/// A sender that hangs up with a part of its message sent has not sent it.
#[test]
fn by_a_sender_that_hangs_up() {
    let _alone = alone();
    for kind in KINDS {
        for looked_at in [false, true] {
            let (left, right) = narrow(kind);
            let (readers, mut writers) = witnesses(1);
            let file = Fd::from(writers.pop().unwrap());
            left.send(&(1_u8, &file)).unwrap();
            left.try_send(&vec![&file; MANY]).unwrap();
            assert!(matches!(left.try_flush(), Err(Error::WouldBlock)));
            assert_eq!(right.recv::<(u8, Fd)>().unwrap().0, 1);
            if looked_at {
                assert!(matches!(
                    right.try_recv::<Vec<Fd>>(),
                    Err(Error::WouldBlock)
                ));
            }
            drop((left, file));
            assert!(right.recv::<Vec<Fd>>().unwrap_err().is_disconnected());
            all_writers_closed(&readers[0]);
        }
    }
}

/// Someone has made the buffer so small that a whole packet never fits: nothing of a short message leaves, and of a long one
/// the parts that fitted are dropped by the receiver.
#[test]
fn by_a_buffer_that_is_too_small() {
    let _alone = alone();
    let (left, right) = narrow(SocketKind::Packets);
    let file = Fd::from(memfd());
    let text = "x".repeat(10_000);
    let too_long = |error: &Error| {
        assert!(
            matches!(error, Error::Io { source, .. } if source.raw_os_error() == Some(libc::EMSGSIZE)),
            "{error:?}"
        );
    };
    too_long(&left.send(&(&text, &file)).unwrap_err());
    left.send(&("short", &file)).unwrap();
    right.recv::<(String, Fd)>().unwrap();
    too_long(&left.send(&(&text, vec![&file; 300])).unwrap_err());
    assert!(matches!(left.send(&file), Err(Error::Ended { .. })));
    assert!(
        right
            .recv::<(String, Vec<Fd>)>()
            .unwrap_err()
            .is_disconnected()
    );
}

/// A descriptor that the kernel does not send (an io_uring, A22): of a short message nothing leaves, and the link goes on. Of a
/// long one a part has left; nothing can follow it, so that both ends are told.
#[test]
fn by_a_descriptor_that_cannot_be_sent() {
    let _alone = alone();
    let Some(ring) = io_uring() else {
        eprintln!("skipped: no io_uring here");
        return;
    };
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        let file = Fd::from(memfd());
        let refused = |error: &Error| {
            assert!(
                matches!(error, Error::Io { source, .. } if source.raw_os_error() == Some(libc::EINVAL)),
                "{error:?}"
            );
        };
        for value in [vec![&ring], vec![&file, &ring, &file]] {
            refused(&left.send(&value).unwrap_err());
            refused(&left.transfer(&value).unwrap_err());
        }
        let mut value = vec![&file; 600];
        value[252] = &ring;
        refused(&left.send(&value).unwrap_err());
        // None of these has left, and the link goes on.
        left.send(&file).unwrap();
        right.recv::<Fd>().unwrap();

        value.swap(252, 253);
        refused(&left.send(&value).unwrap_err());
        let error = left.send(&file).unwrap_err();
        assert!(
            matches!(&error, Error::Ended { why } if why.contains("sending a message")),
            "{error:?}"
        );
        assert!(right.recv::<Vec<Fd>>().unwrap_err().is_disconnected());
        assert!(right.send(&()).unwrap_err().is_disconnected());
    }
}

fn io_uring() -> Option<Fd> {
    let mut parameters = [0_u32; 30];
    // SAFETY: io_uring_setup(2) reads and writes 120 bytes of parameters; all zero is a plain ring.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    let ring = i32::try_from(ring).ok().filter(|ring| *ring >= 0)?;
    // SAFETY: made above, and nobody else's.
    let ring = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(ring) };
    Some(ring.into())
}

/// A path descriptor can be sent; what it names, nothing that it is asked for tells (A22).
#[test]
fn a_descriptor_that_is_only_a_path() {
    use memlane_transport::MemoryFd;
    use rustix::fs::{Mode, OFlags, open};
    let _alone = alone();
    let (left, right) = link_to_raw(SocketKind::Packets);
    let right = Link::from_fd(right).unwrap();
    let path = Fd::from(open("/dev/null", OFlags::PATH, Mode::empty()).unwrap());
    left.send(&path).unwrap();
    assert_eq!(
        common::inode(right.recv::<Fd>().unwrap()),
        common::inode(&path)
    );
    left.send(&path).unwrap();
    let error = right.recv::<MemoryFd>().unwrap_err();
    assert!(matches!(error, Error::WrongDescriptor { .. }), "{error:?}");
}

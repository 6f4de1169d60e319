//! Someone who shares a socket's description, or a file's that was sent, changes its flags as fast as it can (A30), or turns on
//! control messages for ten thousand messages (A17).

mod common;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::raw::{FROZEN, KINDS, sealed};
use common::{alone, descriptors, memfd};
use memlane_transport::{Error, Fd, Link};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::sockopt::{
    set_socket_passcred, set_socket_recv_buffer_size, set_socket_send_buffer_size,
};

/// Runs `work` while threads flip flags of these descriptions. They have begun before it does.
fn flipped(fds: &[OwnedFd], work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    let rounds = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for fd in fds {
                    let others = fcntl_getfl(fd).unwrap() - OFlags::NONBLOCK - OFlags::APPEND;
                    for flags in [
                        OFlags::NONBLOCK,
                        OFlags::empty(),
                        OFlags::APPEND,
                        OFlags::ASYNC,
                    ] {
                        fcntl_setfl(fd, others | flags).unwrap();
                    }
                    // Sockets have buffers of some size, other files none.
                    let _ = set_socket_recv_buffer_size(
                        fd,
                        rounds.load(Ordering::Relaxed) as usize % 9999,
                    );
                }
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        common::until("flags are flipped", || rounds.load(Ordering::Relaxed) > 10);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        result.unwrap();
    });
}

#[test]
fn of_the_sockets() {
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        set_socket_send_buffer_size(&left, 40_000).unwrap();
        let shared = [&left, &right].map(|link| link.as_fd().try_clone_to_owned().unwrap());
        let file = Fd::from(memfd());
        flipped(&shared, || {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for number in 0..3000_u32 {
                        left.send(&(number, &file, "x".repeat(number as usize % 5000)))
                            .unwrap();
                    }
                });
                for number in 0..3000_u32 {
                    assert_eq!(right.recv::<(u32, Fd, String)>().unwrap().0, number);
                    // None of these waits, though the flag often says that it may.
                    if number % 10 == 0 {
                        assert!(matches!(left.try_recv::<()>(), Err(Error::WouldBlock)));
                    }
                }
            });
            let error = right
                .recv_timeout::<()>(Duration::from_millis(1))
                .unwrap_err();
            assert!(matches!(error, Error::TimedOut), "{error:?}");
            while left.try_send(&0_u8).is_ok() {}
            let error = left
                .send_timeout(&vec![0_u8; 10_000], Duration::from_millis(1))
                .unwrap_err();
            assert!(matches!(error, Error::TimedOut), "{error:?}");
        });
    }
}

/// The body's memory is read at its own positions, whatever O_APPEND and the shared offset say.
#[test]
fn of_the_bodys_memory() {
    let _alone = alone();
    let text = "position".repeat(5000);
    let body = memlane_transport::codec::encode(&text, 1 << 20).unwrap();
    let memory = sealed(&body, FROZEN);
    let shared = [memory.try_clone().unwrap()];
    flipped(&shared, || {
        for _ in 0..300 {
            let (link, peer) = common::raw::link_to_raw(KINDS[0]);
            let fields = common::raw::memory(body.len() as u64);
            common::raw_send(&peer, &common::packet(1, &fields, &[]), &[memory.as_fd()]);
            rustix::fs::seek(&memory, rustix::fs::SeekFrom::End(0)).unwrap();
            assert!(link.recv::<String>().unwrap() == text);
        }
    });
}

/// SO_PASSPIDFD installs a descriptor with each message, which is closed; SO_PASSCRED ends the link. Neither leaves anything.
#[test]
fn ten_thousand_messages_with_a_pidfd_each() {
    const SO_PASSPIDFD: i32 = 76;
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        if let Err(error) = set(&right, SO_PASSPIDFD) {
            eprintln!("skipped: no SO_PASSPIDFD before Linux 6.5 ({error})");
            return;
        }
        let file = Fd::from(memfd());
        let before = descriptors();
        for number in 0..10_000_u32 {
            if number % 2 == 0 {
                left.send(&number).unwrap();
                assert_eq!(right.recv::<u32>().unwrap(), number);
            } else {
                left.send(&(number, &file)).unwrap();
                assert_eq!(right.recv::<(u32, Fd)>().unwrap().0, number);
            }
        }
        assert_eq!(descriptors(), before);
    }
}

#[test]
fn ten_thousand_messages_with_credentials() {
    let _alone = alone();
    let file = Fd::from(memfd());
    for kind in KINDS {
        let before = descriptors();
        for _ in 0..5000 {
            let (left, right) = Link::pair_of(kind).unwrap();
            set_socket_passcred(&right, true).unwrap();
            left.send(&file).unwrap();
            left.send(&file).unwrap();
            let error = right.recv::<Fd>().unwrap_err();
            assert!(matches!(error, Error::ForeignControl { .. }), "{error:?}");
        }
        assert_eq!(descriptors(), before);
    }
}

fn set(link: &Link, option: i32) -> io::Result<()> {
    let one: libc::c_int = 1;
    // SAFETY: an integer and its size.
    let result = unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(link),
            libc::SOL_SOCKET,
            option,
            (&raw const one).cast(),
            4,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

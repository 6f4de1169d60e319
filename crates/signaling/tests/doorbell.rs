//! Doorbells ring, whatever a hostile holder of the other end does with it.

mod common;

use std::{io, os::fd::AsFd};

use common::{alone, soon};
use memlane_signaling::{Backing, Doorbell, Ringer, Waiter, Woken, gone};
use rustix::{
    event::{EventfdFlags, epoll, eventfd},
    fs::{Mode, OFlags},
    net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType},
};

const BACKINGS: [Backing; 2] = [Backing::EventFd, Backing::Socket];

fn pair(backing: Backing) -> (Doorbell, Ringer) {
    let (doorbell, end) = Doorbell::new(backing).unwrap();
    (doorbell, Ringer::open(end, backing).unwrap())
}

#[test]
fn each_ring_wakes_and_none_means_none() {
    alone(|| {
        for backing in BACKINGS {
            let (mut doorbell, ringer) = pair(backing);
            let waiter = Waiter::new(&doorbell).unwrap();
            assert_eq!(waiter.wait(&mut doorbell, soon()).unwrap(), Woken::TimedOut);
            // More often than a socket takes without being drained.
            for _ in 0..2000 {
                ringer.ring();
                assert_eq!(waiter.wait(&mut doorbell, None).unwrap(), Woken::Rung);
            }
            assert_eq!(waiter.wait(&mut doorbell, soon()).unwrap(), Woken::TimedOut);
        }
    });
}

#[test]
fn a_flood_rings_on_and_never_blocks() {
    alone(|| {
        for backing in BACKINGS {
            let (mut doorbell, ringer) = pair(backing);
            let waiter = Waiter::new(&doorbell).unwrap();
            for _ in 0..10_000 {
                ringer.ring();
            }
            assert_eq!(waiter.wait(&mut doorbell, None).unwrap(), Woken::Rung);
            // Whatever the flood left, the doorbell works again after it is drained.
            for _ in 0..100 {
                doorbell.drain();
            }
            ringer.ring();
            assert_eq!(waiter.wait(&mut doorbell, None).unwrap(), Woken::Rung);
        }
    });
}

#[test]
fn a_socket_without_o_nonblock_that_is_full_does_not_block_its_ringer() {
    alone(|| {
        let (doorbell, end) = Doorbell::new(Backing::Socket).unwrap();
        // The description is shared with whoever sent the end: flags are theirs to set.
        let theirs = end.try_clone().unwrap();
        let ringer = Ringer::open(end, Backing::Socket).unwrap();
        rustix::io::ioctl_fionbio(&theirs, false).unwrap();
        while rustix::net::send(&theirs, &[1; 512], SendFlags::DONTWAIT).is_ok() {}
        for _ in 0..1000 {
            ringer.ring();
        }
        // Shut down, hung up: still no block, no signal.
        rustix::net::shutdown(&theirs, Shutdown::Write).unwrap();
        ringer.ring();
        drop(doorbell);
        ringer.ring();
    });
}

#[test]
fn an_eventfd_drained_by_a_thief_does_not_block_its_owner() {
    alone(|| {
        let (doorbell, end) = Doorbell::new(Backing::EventFd).unwrap();
        let thief = end.try_clone().unwrap();
        rustix::io::ioctl_fionbio(&thief, false).unwrap();
        rustix::io::write(&end, &1_u64.to_ne_bytes()).unwrap();
        rustix::io::read(&thief, &mut [0; 8]).unwrap();
        doorbell.drain();
    });
}

#[test]
fn what_is_no_doorbell_is_refused_and_comes_back() {
    alone(|| {
        let socket = |kind| {
            rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
                .unwrap()
                .0
        };
        let mut refused = vec![
            ("pipe", Backing::Socket, rustix::pipe::pipe().unwrap().1),
            (
                "device",
                Backing::EventFd,
                rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).unwrap(),
            ),
            (
                "epoll",
                Backing::EventFd,
                epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(),
            ),
            ("seqpacket", Backing::Socket, socket(SocketType::SEQPACKET)),
            ("datagram", Backing::Socket, socket(SocketType::DGRAM)),
            (
                "stream as eventfd",
                Backing::EventFd,
                socket(SocketType::STREAM),
            ),
            (
                "eventfd as socket",
                Backing::Socket,
                eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            ),
        ];
        let udp = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
        refused.push(("udp", Backing::Socket, udp));
        for (name, backing, fd) in refused {
            let wrong = Ringer::open(fd, backing).expect_err(name);
            assert_eq!(wrong.error.kind(), io::ErrorKind::InvalidData, "{name}");
            assert!(
                wrong.to_string().contains("as a doorbell"),
                "{name}: {wrong}"
            );
        }
    });
}

#[test]
fn a_hang_up_and_a_death_wake() {
    alone(|| {
        let (mut doorbell, ringer) = pair(Backing::Socket);
        let (link, peer) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let waiter = Waiter::new(&doorbell).unwrap();
        waiter.watch_link(&link).unwrap();
        assert!(!gone(link.as_fd(), None).unwrap());
        // Data on the link is not what it waits for.
        rustix::net::send(&peer, b"x", SendFlags::empty()).unwrap();
        assert_eq!(waiter.wait(&mut doorbell, soon()).unwrap(), Woken::TimedOut);
        drop(peer);
        assert_eq!(waiter.wait(&mut doorbell, None).unwrap(), Woken::Gone);
        assert!(gone(link.as_fd(), None).unwrap());
        // What was committed before the death is rung for first.
        ringer.ring();
        assert_eq!(waiter.wait(&mut doorbell, None).unwrap(), Woken::Rung);
        assert_eq!(waiter.wait(&mut doorbell, None).unwrap(), Woken::Gone);
        drop(waiter);
        rustix::net::recv(&link, &mut [0; 8], RecvFlags::DONTWAIT).unwrap();

        // A process that died is dead before anybody has reaped it.
        let (mut doorbell, _ringer) = pair(Backing::Socket);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let waiter = Waiter::new(&doorbell).unwrap();
        waiter.watch_process(&pidfd).unwrap();
        assert_eq!(waiter.wait(&mut doorbell, None).unwrap(), Woken::Gone);
        drop(waiter);
        child.wait().unwrap();
    });
}

#[test]
fn waking_oneself_for_good() {
    alone(|| {
        for backing in BACKINGS {
            let (mut doorbell, _ringer) = pair(backing);
            let waiter = Waiter::new(&doorbell).unwrap();
            doorbell.wake_for_good();
            assert_eq!(waiter.wait(&mut doorbell, None).unwrap(), Woken::Rung);
        }
    });
}

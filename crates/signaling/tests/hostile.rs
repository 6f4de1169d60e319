//! What a hostile holder of a doorbell's other end can do with it, and what that costs this side: counted, not timed.
//!
//! The budget (docs/waiting.md): a ring is one system call that does not wait, whatever was done to the descriptor it is made
//! on. A wake-up is one system call, and for a socket one more in 64. A flood adds at most one wake-up to each wait, and
//! leaves nothing behind that a drain does not take.

mod common;

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use common::{PATIENCE, alone, soon};
use memlane_signaling::{
    Backing, Doorbell, Events, Interest, Ringer, Trigger, WaitSet, Waiter, Woken,
};
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    mm::{MapFlags, ProtFlags, UserfaultfdFlags, mmap_anonymous, munmap},
    net::{RecvFlags, SendFlags, Shutdown, shutdown},
};

const NOW: Option<Duration> = Some(Duration::ZERO);

/// Runs what must not wait for anybody. It gets a thread of its own, so that the test can say if it does.
fn must_return<T: Send + 'static>(what: &str, act: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, returned) = mpsc::channel();
    let actor = thread::spawn(move || done.send(act()).unwrap());
    match returned.recv_timeout(PATIENCE) {
        Ok(result) => {
            actor.join().unwrap();
            result
        }
        Err(_) => panic!("{what} waits for a hostile peer"),
    }
}

/// A page that nobody provides: a system call that touches it sleeps, holding what it holds, until this is dropped.
struct Trap {
    pager: Option<OwnedFd>,
    page: usize,
}

impl Trap {
    /// None, said on stderr, where the kernel does not let this process serve faults of the kernel.
    fn set() -> Option<Trap> {
        // SAFETY: a new descriptor.
        let pager = match unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC) } {
            Ok(pager) => pager,
            Err(error) => {
                eprintln!("skipped: no userfaultfd for kernel faults, {error}");
                return None;
            }
        };
        // SAFETY: a fresh mapping.
        let page = unsafe {
            let read_write = ProtFlags::READ | ProtFlags::WRITE;
            mmap_anonymous(std::ptr::null_mut(), 4096, read_write, MapFlags::PRIVATE)
        };
        let page = page.unwrap() as usize;
        // `struct uffdio_api` and `struct uffdio_register` (linux/userfaultfd.h), and their ioctls.
        let mut api = [0xaa_u64, 0, 0];
        let mut register = [page as u64, 4096, 1, 0];
        // SAFETY: both are as long as the kernel has them.
        unsafe {
            assert_eq!(libc::ioctl(pager.as_raw_fd(), 0xc018_aa3f, &mut api), 0);
            let registered = libc::ioctl(pager.as_raw_fd(), 0xc020_aa00, &mut register);
            assert_eq!(registered, 0);
        }
        Some(Trap {
            pager: Some(pager),
            page,
        })
    }

    /// Enters a system call with that page as its buffer, on a thread of its own, and comes back once it sleeps in the fault.
    fn enter(
        &self,
        call: impl FnOnce(*mut libc::c_void) + Send + 'static,
    ) -> thread::JoinHandle<()> {
        let page = self.page;
        let inside = thread::spawn(move || call(page as *mut libc::c_void));
        let mut event = [0; 32];
        let pager = self.pager.as_ref().unwrap();
        assert_eq!(rustix::io::read(pager, &mut event), Ok(32), "the fault");
        inside
    }

    /// Lets go whoever sleeps: without a pager, the page is zeroes.
    fn release(&mut self) {
        self.pager = None;
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        self.release();
        // SAFETY: the page is this value's; a call that is still in it fails.
        let _ = unsafe { munmap(self.page as *mut _, 4096) };
    }
}

/// The hostile *sleeper*: in a receive on its end, in a page fault that it serves itself, with the socket's lock in its hand.
/// Whoever rings it, and closes what it rang with, does not notice.
#[test]
fn a_sleeper_that_faults_in_its_receive_holds_up_no_ringer() {
    alone(|| {
        let Some(mut trap) = Trap::set() else { return };
        let (doorbell, end) = Doorbell::new(Backing::Socket).unwrap();
        let ringer = Ringer::open(end, Backing::Socket).unwrap();
        ringer.ring();
        let theirs = doorbell.as_fd().try_clone_to_owned().unwrap();
        let inside = trap.enter(move |page| {
            // SAFETY: the page is mapped until the trap is dropped, after this returned.
            unsafe { libc::recv(theirs.as_raw_fd(), page, 4096, 0) };
        });
        must_return("ringing", move || {
            // More than it holds.
            for _ in 0..1000 {
                ringer.ring();
            }
        });
        trap.release();
        inside.join().unwrap();
        drop(doorbell);
    });
}

/// The hostile *ringer*: in a send, or a receive, on its end, in such a fault. The sleeper waits, drains, is rung by others,
/// and closes its own end.
#[test]
fn a_ringer_that_faults_in_its_calls_holds_up_no_sleeper() {
    type Call = unsafe fn(i32, *mut libc::c_void);
    let calls: [(&str, Call); 3] = [
        ("send", |fd, page| {
            // SAFETY: the caller's page.
            unsafe { libc::send(fd, page, 1, libc::MSG_NOSIGNAL) };
        }),
        ("large send", |fd, page| {
            // SAFETY: as above.
            unsafe { libc::send(fd, page, 4096, libc::MSG_NOSIGNAL) };
        }),
        ("urgent send", |fd, page| {
            // SAFETY: as above.
            unsafe { libc::send(fd, page, 1, libc::MSG_NOSIGNAL | libc::MSG_OOB) };
        }),
    ];
    alone(|| {
        for (name, call) in calls {
            let Some(mut trap) = Trap::set() else { return };
            let (mut doorbell, end) = Doorbell::new(Backing::Socket).unwrap();
            let theirs = end.try_clone().unwrap();
            let ringer = Ringer::open(end, Backing::Socket).unwrap();
            // SAFETY: the page is mapped until the trap is dropped, after this returned.
            let inside = trap.enter(move |page| unsafe { call(theirs.as_raw_fd(), page) });
            must_return(name, move || {
                let waiter = Waiter::new(&doorbell).unwrap();
                let woken = waiter.wait(&mut doorbell, soon()).unwrap();
                assert_eq!(woken, Woken::TimedOut, "nothing was sent yet");
                for _ in 0..300 {
                    ringer.ring();
                    assert_eq!(waiter.wait(&mut doorbell, None).unwrap(), Woken::Rung);
                    doorbell.drain();
                }
                drop(waiter);
                doorbell.wake_for_good();
            });
            trap.release();
            inside.join().unwrap();
        }
    });
}

/// An eventfd is for the trusted, but this much it stands: its reader's fault is outside of its lock.
#[test]
fn a_reader_that_faults_holds_up_no_eventfd() {
    alone(|| {
        let Some(mut trap) = Trap::set() else { return };
        let (doorbell, end) = Doorbell::new(Backing::EventFd).unwrap();
        let theirs = end.try_clone().unwrap();
        let ringer = Ringer::open(end, Backing::EventFd).unwrap();
        ringer.ring();
        let inside = trap.enter(move |page| {
            // SAFETY: the page is mapped until the trap is dropped, after this returned.
            unsafe { libc::read(theirs.as_raw_fd(), page, 8) };
        });
        must_return("an eventfd", move || {
            for _ in 0..100 {
                ringer.ring();
                doorbell.drain();
            }
        });
        trap.release();
        inside.join().unwrap();
    });
}

/// Flags of the end are the peer's to set; those of the doorbell are not. And no signal comes from it to a process that the
/// peer may not signal anyway.
#[test]
fn flags_and_owners_of_the_end_are_nobody_elses() {
    alone(|| {
        let (mut doorbell, end) = Doorbell::new(Backing::Socket).unwrap();
        let before = fcntl_getfl(&doorbell).unwrap();
        let theirs = end.try_clone().unwrap();
        let ringer = Ringer::open(end, Backing::Socket).unwrap();
        let me = std::process::id() as libc::c_int;
        let root = rustix::process::geteuid().is_root();
        thread::spawn(move || {
            if root {
                // Of this thread alone: another user, whose signals do not reach this process.
                let nobody = rustix::process::Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
                // SAFETY: fcntl(2) with a number.
                let set = unsafe { libc::fcntl(theirs.as_raw_fd(), libc::F_SETOWN, me) };
                assert_eq!(set, 0, "{}", io::Error::last_os_error());
                fcntl_setfl(&theirs, OFlags::from_bits_retain(libc::O_ASYNC as u32)).unwrap();
            } else {
                eprintln!("skipped: signals of another user's, for want of root");
                fcntl_setfl(&theirs, OFlags::empty()).unwrap();
            }
        })
        .join()
        .unwrap();
        assert_eq!(fcntl_getfl(&doorbell).unwrap(), before);
        let waiter = Waiter::new(&doorbell).unwrap();
        for _ in 0..1000 {
            ringer.ring();
            assert_eq!(waiter.wait(&mut doorbell, None).unwrap(), Woken::Rung);
            // Room again, which is what its owner would be told of. (SIGIO would end this process.)
            doorbell.drain();
        }
        // Full, without O_NONBLOCK: a ring is EAGAIN to itself.
        for _ in 0..2000 {
            ringer.ring();
        }
    });
}

/// Urgent bytes count as readable, and an ordinary receive skips them: they do not stay.
#[test]
fn urgent_rings_are_rings() {
    alone(|| {
        let (doorbell, end) = Doorbell::new(Backing::Socket).unwrap();
        let set = WaitSet::new().unwrap();
        let mut events = Events::default();
        let level = set.add(&doorbell, Interest::READABLE).unwrap();
        for round in 0..200 {
            if rustix::net::send(&end, b"!", SendFlags::OOB | SendFlags::NOSIGNAL).is_err() {
                return eprintln!("skipped: this kernel has no urgent bytes on Unix sockets");
            }
            if round % 3 == 0 {
                rustix::net::send(&end, b".", SendFlags::NOSIGNAL).unwrap();
            }
            let mut ready = set.wait(&mut events, NOW).unwrap();
            assert_eq!(ready.next().unwrap().key(), level.key());
            drop(ready);
            let mut drains = 0;
            while !set.wait(&mut events, NOW).unwrap().is_timed_out() {
                doorbell.drain();
                drains += 1;
                assert!(drains <= 2, "an urgent byte that nobody can drain");
            }
        }
    });
}

/// A flood for as long as the sleeper looks: each wait returns at once, and that is all. When it ends, what is left is drained
/// by as many receives as it holds bytes, and rings work as before.
#[test]
fn a_flood_costs_a_wake_up_a_wait_and_no_more() {
    alone(|| {
        const WAITS: u64 = 20_000;
        for backing in [Backing::Socket, Backing::EventFd] {
            let (mut doorbell, end) = Doorbell::new(backing).unwrap();
            let theirs = end.try_clone().unwrap();
            let ringer = Ringer::open(end, backing).unwrap();
            let waiter = Waiter::new(&doorbell).unwrap();
            let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
            let mut wakes = 0;
            thread::scope(|scope| {
                scope.spawn(|| {
                    let large = [1; 4096];
                    while !stop.load(Ordering::Relaxed) {
                        let _ = match backing {
                            Backing::Socket => rustix::net::send(
                                &theirs,
                                &large,
                                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
                            ),
                            Backing::EventFd => rustix::io::write(&theirs, &1_u64.to_ne_bytes()),
                        };
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                });
                for _ in 0..WAITS {
                    wakes += u64::from(waiter.take(&mut doorbell).unwrap() == Some(Woken::Rung));
                }
                stop.store(true, Ordering::Relaxed);
            });
            assert!(
                wakes <= WAITS.min(sent.into_inner()),
                "one a wait, one a send"
            );
            // What is left, in the socket's buffer: a quarter of a megabyte at most, by 4096 bytes a drain.
            let set = WaitSet::new().unwrap();
            let mut events = Events::default();
            let level = set.add(&doorbell, Interest::READABLE).unwrap();
            let mut drains = 0;
            while !set.wait(&mut events, NOW).unwrap().is_timed_out() {
                doorbell.drain();
                drains += 1;
                assert!(drains <= 1024, "a flood that does not end");
            }
            println!("{backing:?}: {wakes} wake-ups in {WAITS} waits, then {drains} drains");
            level.remove();
            while waiter.take(&mut doorbell).unwrap().is_some() {}
            for _ in 0..1000 {
                ringer.ring();
                assert_eq!(waiter.wait(&mut doorbell, None).unwrap(), Woken::Rung);
                assert_eq!(
                    waiter.take(&mut doorbell).unwrap(),
                    None,
                    "one ring, one wake-up"
                );
            }
        }
    });
}

/// One of many lanes is flooded; all are in one set. In each wait it is reported once, and so is every other one that is ready.
#[test]
fn a_flooded_doorbell_among_others_takes_its_turn() {
    alone(|| {
        const OTHERS: usize = 50;
        const ROUNDS: usize = 200;
        let set = WaitSet::new().unwrap();
        let mut events = Events::with_capacity(8);
        let (mut flooded, end) = Doorbell::new(Backing::Socket).unwrap();
        let victim = set
            .add_with(&flooded, Interest::READABLE, Trigger::Edge)
            .unwrap();
        let others: Vec<_> = (0..OTHERS)
            .map(|_| {
                let (doorbell, end) = Doorbell::new(Backing::Socket).unwrap();
                let place = set
                    .add_with(&doorbell, Interest::READABLE, Trigger::Edge)
                    .unwrap();
                (doorbell, Ringer::open(end, Backing::Socket).unwrap(), place)
            })
            .collect();
        let stop = AtomicBool::new(false);
        let (mut spurious, mut waits) = (0, 0);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = rustix::net::send(&end, &[1; 64], SendFlags::DONTWAIT);
                }
            });
            for _ in 0..ROUNDS {
                for (_, ringer, _) in &others {
                    ringer.ring();
                }
                let mut heard = 0;
                let begun = waits;
                while heard < OTHERS {
                    let mut here = 0;
                    for event in set.wait(&mut events, Some(PATIENCE)).unwrap() {
                        if event.key() == victim.key() {
                            flooded.woken();
                            here += 1;
                        } else {
                            let (doorbell, _, _) = others
                                .iter()
                                .find(|(_, _, place)| place.key() == event.key())
                                .unwrap();
                            doorbell.drain();
                            heard += 1;
                        }
                    }
                    assert!(here <= 1);
                    spurious += here;
                    waits += 1;
                }
                // Were there none, 7 waits; each can lose one place, of 8, to the flood.
                assert!(
                    waits - begun <= OTHERS.div_ceil(7) + 1,
                    "{} waits",
                    waits - begun
                );
            }
            stop.store(true, Ordering::Relaxed);
        });
        println!("{spurious} spurious reports in {waits} waits");
    });
}

/// What its peer can not do: take rings away from the sleeper's end, or end it for good without that being told.
#[test]
fn a_thief_at_the_other_end_steals_nothing() {
    alone(|| {
        let (mut doorbell, end) = Doorbell::new(Backing::Socket).unwrap();
        let theirs = end.try_clone().unwrap();
        let ringer = Ringer::open(end, Backing::Socket).unwrap();
        let waiter = Waiter::new(&doorbell).unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let stolen = rustix::net::recv(&theirs, &mut [0; 64], RecvFlags::DONTWAIT);
                    assert!(stolen.is_err(), "{stolen:?}");
                }
            });
            for _ in 0..5000 {
                ringer.ring();
                assert_eq!(waiter.wait(&mut doorbell, None).unwrap(), Woken::Rung);
            }
            stop.store(true, Ordering::Relaxed);
        });
        // Its end shut in both directions wakes, as a ring does: the sleeper looks at its link then.
        shutdown(&theirs, Shutdown::Both).unwrap();
        assert_eq!(waiter.wait(&mut doorbell, None).unwrap(), Woken::Rung);
        ringer.ring();
    });
}

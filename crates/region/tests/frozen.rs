//! Frozen means frozen: whoever made the memory, whatever of it he kept, and whatever he does with that.
#![cfg(not(memlane_loom))]

mod owner;
mod support;

use std::{
    cell::RefCell,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use memlane_region::{Ended, Error, Frozen, LiveView, Moved, Refused, Region};
use owner::{KEEP, LEN, Move, Owner, SPOIL};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{TestCaseError, TestRunner},
};
use rustix::{
    fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags},
    mm::{MapFlags, ProtFlags},
};
use support::{
    held,
    process::{self, Other},
};

const QUOTA: usize = 1 << 20;

/// How an owner makes its memory, and what the receiver does with it.
#[derive(Clone, Debug)]
struct Plan {
    executable: bool,
    moves: Vec<usize>,
    claim: bool,
}

fn moves() -> impl Iterator<Item = &'static Move> {
    KEEP.iter().chain(SPOIL)
}

impl Plan {
    /// Any of them, as they come: what is kept, then what is spoiled, then any of both.
    fn any() -> impl Strategy<Value = Plan> {
        let (keep, all) = (KEEP.len(), KEEP.len() + SPOIL.len());
        let freeze = moves().position(|(name, _)| *name == "freeze").unwrap();
        let moves = (
            vec(0..keep, 0..3),
            vec(keep..all, 0..4),
            vec(Just(freeze), 0..2),
            vec(0..all, 0..3),
        );
        let moves = moves.prop_map(|(a, b, c, d)| [a, b, c, d].concat());
        (any::<bool>(), moves, any::<bool>()).prop_map(|(executable, moves, claim)| Plan {
            executable,
            moves,
            claim,
        })
    }

    fn named(&self) -> Vec<&'static str> {
        let name = |&index: &usize| moves().nth(index).unwrap().0;
        self.moves.iter().map(name).collect()
    }
}

/// An owner as the receiver knows it.
trait Hostile {
    /// What its memory is called.
    fn name(&self) -> &str;
    /// Makes memory by the plan, and sends it.
    fn send(&self, plan: &Plan) -> OwnedFd;
    /// Does everything to it that it can do.
    fn attack(&self);
    /// Gives up what it kept, but for a descriptor.
    fn release(&self);
    /// Gives up the rest.
    fn end(&self);
}

/// In this process.
#[derive(Default)]
struct Here(RefCell<Option<Owner>>);

impl Hostile for Here {
    fn name(&self) -> &str {
        "frozen-here"
    }

    fn send(&self, plan: &Plan) -> OwnedFd {
        let mut owner = Owner::new(self.name(), plan.executable);
        for &index in &plan.moves {
            // A child would have a copy of everything other tests have open.
            if !moves().nth(index).unwrap().0.starts_with("fork") {
                (moves().nth(index).unwrap().1)(&mut owner);
            }
        }
        let fd = owner.as_fd().try_clone_to_owned().unwrap();
        self.0.replace(Some(owner));
        fd
    }

    fn attack(&self) {
        self.0.borrow_mut().as_mut().unwrap().attack();
    }

    fn release(&self) {
        self.0.borrow_mut().as_mut().unwrap().release();
    }

    fn end(&self) {
        self.0.take();
    }
}

/// In a process of its own.
struct There(&'static str, Other);

impl There {
    fn new(name: &'static str) -> There {
        There(name, Other::spawn(name))
    }

    fn say(&self, what: &[u8]) -> Option<OwnedFd> {
        self.1.link().tell(what, None);
        let (answer, fd) = self.1.link().hear();
        assert_eq!(answer, [what[0]], "the other process is gone");
        fd
    }
}

impl Hostile for There {
    fn name(&self) -> &str {
        self.0
    }

    fn send(&self, plan: &Plan) -> OwnedFd {
        let mut bytes = vec![b'S', u8::from(plan.executable)];
        bytes.extend(plan.moves.iter().map(|&index| index as u8));
        self.say(&bytes).unwrap()
    }

    fn attack(&self) {
        self.say(b"A");
    }

    fn release(&self) {
        self.say(b"R");
    }

    fn end(&self) {
        self.say(b"E");
    }
}

/// Not a test, but what other processes of this file run.
#[test]
fn other_process() {
    let Some((role, link)) = process::role() else {
        return;
    };
    if role == "stranger" {
        return stranger(&link);
    }
    let mut owner = None;
    loop {
        let (what, _) = link.hear();
        match what.first() {
            None => return,
            Some(b'S') => {
                let mut new = Owner::new(&role, what[1] != 0);
                for &index in &what[2..] {
                    (moves().nth(index.into()).unwrap().1)(&mut new);
                }
                link.tell(b"S", Some(new.as_fd()));
                owner = Some(new);
                continue;
            }
            Some(b'A') => owner.as_mut().unwrap().attack(),
            Some(b'R') => owner.as_mut().unwrap().release(),
            Some(_) => owner = None,
        }
        link.tell(&what, None);
    }
}

fn receive(fd: OwnedFd, claim: bool) -> Result<Frozen, Box<Refused>> {
    if claim {
        Moved::from(fd).claim(QUOTA)
    } else {
        Frozen::open(fd, QUOTA)
    }
}

/// Which memory it is, and the number it has here.
fn identity(fd: &OwnedFd) -> (u64, i32) {
    (rustix::fs::fstat(fd).unwrap().st_ino, fd.as_raw_fd())
}

/// Frozen memory does not change, though its former owner does what it can.
fn stays(frozen: &Frozen, owner: &dyn Hostile) -> Result<(), TestCaseError> {
    let first = frozen.to_vec();
    let again = Frozen::open(frozen.as_fd().try_clone_to_owned().unwrap(), QUOTA).unwrap();
    for _ in 0..3 {
        owner.attack();
        prop_assert!(frozen[..] == first[..], "frozen bytes have changed");
        prop_assert!(again[..] == first[..], "frozen bytes have changed");
    }
    owner.release();
    prop_assert!(frozen[..] == first[..], "frozen bytes have changed");
    Ok(())
}

/// One case, in full. Whether the memory could be had frozen at once.
fn case(plan: &Plan, owner: &dyn Hostile) -> Result<bool, TestCaseError> {
    let fd = owner.send(plan);
    let identity_of = identity(&fd);
    let outcome = receive(fd, plan.claim);
    let frozen = outcome.is_ok();
    match outcome {
        Ok(frozen) => stays(&frozen, owner)?,
        Err(refused) => {
            prop_assert_eq!(identity(&refused.descriptor), identity_of);
            prop_assert!(
                matches!(
                    refused.error,
                    Error::Busy { .. }
                        | Error::Unsealable { .. }
                        | Error::Seals { .. }
                        | Error::Implied { .. }
                        | Error::Sparse { .. }
                        | Error::Length { .. }
                ),
                "{refused}"
            );
            // What is live does not fault, at least.
            match LiveView::open(refused.descriptor, QUOTA) {
                Ok(view) => {
                    let mut bytes = vec![0; view.len()];
                    owner.attack();
                    view.read(0, &mut bytes);
                }
                Err(again) if matches!(refused.error, Error::Busy { .. }) => {
                    later(again.descriptor, owner)?;
                }
                Err(_) => owner.attack(),
            }
        }
    }
    owner.end();
    prop_assert_eq!(held(owner.name()), (0, 0));
    Ok(frozen)
}

/// What was in use is taken once it no longer is.
fn later(mut fd: OwnedFd, owner: &dyn Hostile) -> Result<(), TestCaseError> {
    owner.release();
    loop {
        match receive(fd, true) {
            Ok(frozen) => return stays(&frozen, owner),
            // The kernel takes its time to let go of pages.
            Err(refused) if matches!(refused.error, Error::Busy { .. }) => fd = refused.descriptor,
            Err(refused) => {
                prop_assert!(
                    matches!(
                        refused.error,
                        Error::Sparse { .. } | Error::Length { .. } | Error::Implied { .. }
                    ),
                    "{refused}"
                );
                return Ok(());
            }
        }
    }
}

fn run(owner: &dyn Hostile) {
    let config = ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let (cases, frozen) = (config.cases, RefCell::new(0));
    let result = TestRunner::new(config).run(&Plan::any(), |plan| {
        let case = case(&plan, owner);
        *frozen.borrow_mut() += u32::from(*case.as_ref().unwrap_or(&false));
        case.map(drop)
            .map_err(|error| TestCaseError::fail(format!("{error}: {:?}", plan.named())))
    });
    eprintln!("{} of {cases} came to be frozen", frozen.borrow());
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn by_an_owner_in_another_process() {
    let other = There::new("frozen-there");
    run(&other);
    other.1.finish();
}

#[test]
fn by_an_owner_in_this_process() {
    run(&Here::default());
}

/// Each way to keep memory, alone: what vetoes the claim, and what does not.
#[test]
fn what_is_kept_vetoes_a_claim_if_it_can_write() {
    let other = There::new("frozen-kept");
    for (index, (name, _)) in KEEP.iter().enumerate() {
        let plan = Plan {
            executable: false,
            moves: vec![index],
            claim: true,
        };
        let harmless = [
            "map shared, read-only, by a read-only descriptor",
            "map private, writable",
            "open anew",
        ];
        let frozen = case(&plan, &other).unwrap();
        assert_eq!(frozen, harmless.contains(name), "{name}");
    }
    other.1.finish();
}

/// How far somebody gets who has a descriptor and is another user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Got {
    /// Cannot open it anew for writing.
    Refused = b'0',
    /// Can, and not write.
    Opened = b'1',
    Written = b'2',
}

/// Becomes another user if it may, and tries to write to what it gets.
fn stranger(link: &process::Link) {
    let nobody = rustix::process::Uid::from_raw(65534);
    // Of this thread alone. Where this is not root, it stays who it is.
    let _ = rustix::thread::set_thread_res_uid(nobody, nobody, nobody);
    while let (_, Some(fd)) = link.hear() {
        let path = format!("/proc/thread-self/fd/{}", fd.as_raw_fd());
        let anew = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let write = |fd: &OwnedFd| {
            let by_call = rustix::io::pwrite(fd, b"!", 0).is_ok();
            let (prot, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
            // SAFETY: a fresh range that nothing touches, unmapped with this process.
            let map = unsafe { rustix::mm::mmap(std::ptr::null_mut(), 1, prot, shared, fd, 0) };
            by_call || map.is_ok() || rustix::fs::ftruncate(fd, 0).is_ok()
        };
        let got = match anew {
            _ if write(&fd) => Got::Written,
            Err(_) => Got::Refused,
            Ok(anew) if write(&anew) => Got::Written,
            Ok(_) => Got::Opened,
        };
        link.tell(&[got as u8], None);
    }
}

/// A descriptor that is read-only can be opened anew by whoever may open the file, and memfds are for everybody as they
/// are made.
#[test]
fn another_user_cannot_write_by_opening_it_anew() {
    let other = Other::spawn("stranger");
    let got = |fd: BorrowedFd<'_>| {
        other.link().tell(b"?", Some(fd));
        let [got] = other.link().hear().0[..] else {
            panic!("the other process is gone")
        };
        [Got::Refused, Got::Opened, Got::Written][usize::from(got - b'0')]
    };
    // Memory made without care.
    let careless = rustix::fs::memfd_create("careless", MemfdFlags::CLOEXEC).unwrap();
    let path = format!("/proc/self/fd/{}", careless.as_raw_fd());
    let read_only = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    assert_eq!(got(read_only.unwrap().as_fd()), Got::Written);

    let region = || Region::copy_of("careful", b"mine").unwrap();
    let (live, freezable) = (
        region().share().unwrap(),
        region().share_freezable().unwrap(),
    );
    let frozen = region().freeze().unwrap();
    for fd in [live.as_fd(), freezable.as_fd(), frozen.as_fd()] {
        let got = got(fd);
        assert_ne!(got, Got::Written);
        if rustix::process::geteuid().is_root() {
            assert_eq!(got, Got::Refused);
        }
    }
    assert_eq!(
        [&live[..], &freezable[..], &frozen[..]],
        [b"mine", b"mine", b"mine"]
    );
    other.finish();
}

/// A reader of the same user can open its descriptor anew for writing. That does not let it write, but it can forbid
/// more seals, and so the freezing.
#[test]
fn a_reader_of_the_same_user_vetoes() {
    let mut live = Region::copy_of("vetoed", b"mine")
        .unwrap()
        .share_freezable()
        .unwrap();
    let anew = format!("/proc/self/fd/{}", live.as_fd().as_raw_fd());
    let anew = rustix::fs::open(anew, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    // Not while it is mapped writable.
    assert!(rustix::fs::fcntl_add_seals(&anew, SealFlags::WRITE).is_err());
    rustix::fs::fcntl_add_seals(&anew, SealFlags::SEAL).unwrap();
    live[0] = b'M';
    let rejected = live.freeze().unwrap_err();
    assert!(
        matches!(rejected.error, Error::Unsealable { .. }),
        "{rejected}"
    );
    let Ended::Unmapped(moved) = rejected.region else {
        panic!("{rejected:?}")
    };
    // What remains of it can be read, and nobody writes it.
    let view = LiveView::open(OwnedFd::from(moved), QUOTA).unwrap();
    assert_eq!(view.read_as::<[u8; 4]>(0).unwrap(), *b"Mine");
}

/// Executable memory gets its write seal from F_SEAL_EXEC, which kernels gave even while it was mapped.
#[test]
fn a_write_seal_that_was_implied() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::EXEC;
    let Ok(fd) = rustix::fs::memfd_create("implied", flags) else {
        return eprintln!("skipped: executable memfds are not allowed, or not known");
    };
    rustix::io::pwrite(&fd, &[1; LEN], 0).unwrap();
    let (prot, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: a fresh range, of which nothing is borrowed, unmapped below.
    let map = unsafe { rustix::mm::mmap(std::ptr::null_mut(), LEN, prot, shared, &fd, 0).unwrap() };
    let sealed = rustix::fs::fcntl_add_seals(&fd, SealFlags::EXEC).is_ok();
    let refused = Frozen::open(fd, QUOTA).unwrap_err();
    assert!(
        matches!(refused.error, Error::Implied { .. } if sealed)
            || matches!(refused.error, Error::Seals { .. } if !sealed),
        "{refused}"
    );
    // SAFETY: mapped above.
    unsafe { rustix::mm::munmap(map, LEN).unwrap() };
    let fd = refused.descriptor;
    if !sealed {
        // The kernel has looked this time.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::EXEC).unwrap();
        assert_eq!(Frozen::open(fd, QUOTA).unwrap()[..], [1; LEN]);
    }
}

/// Pages behind the end count as allocated, so that holes can pass for memory. They read as zeroes, for ever.
#[test]
fn holes_that_are_hidden() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("holes", flags).unwrap();
    rustix::fs::ftruncate(&fd, LEN as u64).unwrap();
    let keep = FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&fd, keep, LEN as u64, LEN as u64).unwrap();
    let frozen = Moved::from(fd).claim(QUOTA).unwrap();
    for _ in 0..2 {
        assert_eq!(frozen[..], [0; LEN]);
    }
}

//! Copies of descriptors that nobody asked for: in executed programs (A15), by peeking (A14), beside what a type takes (A4),
//! and twice the same on purpose (A25).

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use common::raw::{KINDS, body, borrowed, link_to_raw, witnesses};
use common::{all_writers_closed, alone, descriptors, frame, inode, memfd, raw_send};
use memlane_transport::{Error, EventFd, Fd, FdRef, Link, Listener, MemoryFd};
use rustix::io::{FdFlags, fcntl_getfd};
use serde::de::DeserializeOwned;

/// While links are made, accepted, sent over and acknowledged, another thread starts programs: they have the three standard
/// descriptors and none else.
#[test]
fn programs_started_meanwhile() {
    let _alone = alone();
    let done = AtomicBool::new(false);
    let address = common::abstract_name("programs");
    let listener = Listener::bind(&address).unwrap();
    // What this process had before it came here, from whoever started it.
    let inherited: Vec<i32> = descriptors()
        .into_keys()
        .filter(|number| {
            // SAFETY: only looks at a flag of the number.
            unsafe { libc::fcntl(*number, libc::F_GETFD) & libc::FD_CLOEXEC == 0 }
        })
        .collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for kind in KINDS {
                    let (left, right) = Link::pair_of(kind).unwrap();
                    let file = Fd::from(memfd());
                    let receipt = left
                        .transfer(&(&file, FdRef::new(&file), "x".repeat(20_000)))
                        .unwrap();
                    let (one, two, _): (Fd, Fd, String) = right.recv().unwrap();
                    receipt.wait().unwrap();
                    for fd in [&one, &two] {
                        assert_eq!(fcntl_getfd(fd).unwrap(), FdFlags::CLOEXEC);
                    }
                    let client = Link::connect(&address).unwrap();
                    let server = listener.accept().unwrap();
                    drop((server.peer().unwrap(), client));
                }
            }
        });
        for _ in 0..100 {
            let listing = Command::new("ls").arg("/proc/self/fd").output().unwrap();
            let listing = String::from_utf8(listing.stdout).unwrap();
            let leaked: Vec<i32> = listing
                .lines()
                .map(|line| line.parse().unwrap())
                .filter(|number| *number > 2 && !inherited.contains(number))
                .collect();
            // One is the directory that `ls` reads.
            assert!(leaked.len() <= 1, "{leaked:?}");
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// MSG_PEEK with room for control messages makes new descriptors each time. The crate peeks at one place, without such room.
#[test]
fn nothing_is_received_twice() {
    fn sources(directory: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    let _alone = alone();
    let mut found = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    let peeking: Vec<_> = found
        .iter()
        .filter(|(_, text)| text.contains("PEEK"))
        .collect();
    assert!(found.len() > 20);
    assert!(
        peeking
            .iter()
            // A receipt's own answer; and what a socket that is to be closed holds, with no room for descriptors.
            .all(|(name, text)| match name.as_str() {
                "receipt.rs" => !text.contains("recvmsg"),
                "dispose.rs" => text.contains("RecvAncillaryBuffer::default()"),
                _ => false,
            }),
        "{:?}",
        peeking.iter().map(|(name, _)| name).collect::<Vec<_>>()
    );
    // The flag that makes received descriptors close-on-exec stands beside every recvmsg.
    for (name, text) in &found {
        assert_eq!(
            text.contains("libc::recvmsg("),
            text.contains("libc::MSG_CMSG_CLOEXEC"),
            "{name}"
        );
    }
    let (left, right) = Link::pair().unwrap();
    let before = descriptors().len();
    left.send(&Fd::from(memfd())).unwrap();
    let fd: Fd = right.recv().unwrap();
    assert_eq!(descriptors().len(), before + 1);
    drop(fd);
}

/// Every type, with up to three descriptors more than it takes.
#[test]
fn unsolicited() {
    fn with<T: DeserializeOwned>(value: &[u8], takes: usize) {
        for kind in KINDS {
            for extra in 1..=3 {
                let (link, peer) = link_to_raw(kind);
                let (readers, writers) = witnesses(takes + extra);
                raw_send(
                    &peer,
                    &frame((takes + extra) as u16, value),
                    &borrowed(&writers),
                );
                drop(writers);
                let error = link.recv::<T>().map(drop).unwrap_err();
                assert!(
                    matches!(error, Error::SurplusDescriptors { received, taken } if (received, taken) == (takes + extra, takes)),
                    "{error:?}"
                );
                readers.iter().for_each(all_writers_closed);
            }
        }
    }
    let _alone = alone();
    with::<()>(&[], 0);
    with::<u8>(&body(&7_u8), 0);
    with::<String>(&body(&"text"), 0);
    with::<Option<Fd>>(&body(&None::<u16>), 0);
    with::<Vec<Fd>>(&body(&Vec::<u16>::new()), 0);
    with::<Option<Fd>>(&body(&Some(0_u16)), 1);
    with::<(Fd, String)>(&body(&(0_u16, "text")), 1);
    with::<Vec<Fd>>(&body(&vec![1_u16, 0]), 2);
    with::<Result<MemoryFd, u8>>(&body(&Err::<u16, u8>(7)), 0);
    with::<Option<EventFd>>(&body(&None::<u16>), 0);
}

/// A message may carry one file twice, as two descriptors. Each is the receiver's own; that they name one file, it can ask
/// (st_dev and st_ino), and has to where it hands out exclusive access: descriptors say nothing about who else holds the file.
#[test]
fn one_file_twice() {
    let _alone = alone();
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        let (file, other) = (memfd(), memfd());
        let refs = [&file, &file, &other].map(FdRef::new);
        left.send(&refs).unwrap();
        let [first, second, third]: [Fd; 3] = right.recv().unwrap();
        assert_eq!(inode(&first), inode(&second));
        assert_ne!(inode(&first), inode(&third));
        drop(first);
        assert_eq!(inode(&second), inode(&file));
        // One *index* in two places is another matter, and refused (hostile.rs).
    }
}

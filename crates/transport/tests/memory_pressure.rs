//! Processes that may not write, or have no memory: errors with a type, never a signal.

mod common;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use common::raw::{FROZEN, KINDS, sealed};
use common::{Reaped, alone, child, descriptors, memfd, packet, parent, raw_send, role};
use memlane_transport::codec::{self, EncodeError};
use memlane_transport::{Error, Fd, Limits, Link};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const MIB: usize = 1 << 20;

fn limit(resource: Resource, current: u64) {
    let maximum = getrlimit(resource).maximum;
    let limit = Rlimit {
        current: Some(current),
        maximum,
    };
    setrlimit(resource, limit).unwrap();
}

fn in_a_child(test: &str, role: &str) {
    let _alone = alone();
    let (_link, theirs) = Link::pair().unwrap();
    Reaped::spawn(&mut child(test, role, theirs)).succeed();
}

/// RLIMIT_FSIZE, which SIGXFSZ enforces: bodies that travel in a packet are not written anywhere, longer ones are refused before
/// they are.
#[test]
fn files_of_limited_size() {
    let Some(role) = role() else {
        for bytes in ["0", "4096", "40000"] {
            in_a_child("files_of_limited_size", bytes);
        }
        return;
    };
    let most: u64 = role.parse().unwrap();
    // SAFETY: the default action, which is to die.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_DFL) };
    let file = Fd::from(memfd());
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        limit(Resource::Fsize, most);
        for size in [0, 100, 16_000, 20_000, 30_000, 50_000, 2 * MIB] {
            let value = ("x".repeat(size), &file);
            let result = left.send(&value);
            if size <= 16_000 || size + 100 < most as usize {
                result.unwrap();
                let (text, _fd): (String, Fd) = right.recv().unwrap();
                assert!(text == value.0);
            } else {
                let error = result.unwrap_err();
                assert!(
                    matches!(&error, Error::Io { source, .. } if source.kind() == ErrorKind::FileTooLarge),
                    "{size}: {error:?}"
                );
                assert!(matches!(left.transfer(&value), Err(Error::Io { .. })));
                // Nothing has left.
                assert!(matches!(right.try_recv::<()>(), Err(Error::WouldBlock)));
            }
        }
        setrlimit(
            Resource::Fsize,
            Rlimit {
                current: None,
                maximum: None,
            },
        )
        .unwrap();
        left.send(&"x".repeat(MIB)).unwrap();
        assert_eq!(right.recv::<String>().unwrap().len(), MIB);
    }
}

/// Bytes of address space in use.
fn mapped() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kilobytes: u64 = size
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kilobytes << 10
}

/// RLIMIT_AS: what the library itself would need for a large body is not to be had.
#[test]
fn little_address_space() {
    const BODY: usize = 64 * MIB;
    if role().is_none() {
        return in_a_child("little_address_space", "cramped");
    }
    let file = Fd::from(memfd());
    let limits = Limits::new().body(2 * BODY);
    let text = "x".repeat(BODY);
    let body = codec::encode(&text, 2 * BODY).unwrap();
    let memory = sealed(&body, FROZEN);
    let fields = common::raw::memory(body.len() as u64);
    drop(body);
    let unlimited = getrlimit(Resource::As);
    for kind in KINDS {
        let (left, right) = Link::pair_of(kind).unwrap();
        let (left, right) = (left.with_limits(limits), right.with_limits(limits));
        let before = descriptors();
        // A large message is there to be received before there is no room for it.
        raw_send(
            &left,
            &packet(2, &fields, &[]),
            &[
                std::os::fd::AsFd::as_fd(&file),
                std::os::fd::AsFd::as_fd(&memory),
            ],
        );
        limit(Resource::As, mapped() + 16 * MIB as u64);

        let sent = left.send(&(&text, &file));
        let encoded = codec::encode(&text, 2 * BODY);
        let received = right.recv::<(Fd, String)>();
        // Small ones go as ever.
        let small = left.send(&("small", &file));
        let taken = right.recv::<(String, Fd)>();
        // Large ones in some other process's memory are refused by their limit before any is asked for.
        setrlimit(Resource::As, unlimited).unwrap();

        let error = sent.unwrap_err();
        assert!(
            matches!(error, Error::Encode(EncodeError::Memory { size }) if size >= BODY),
            "{error:?}"
        );
        assert!(matches!(encoded, Err(EncodeError::Memory { .. })));
        let error = received.unwrap_err();
        assert!(
            matches!(&error, Error::Io { doing, .. } if doing.contains("making room for a body")),
            "{error:?}"
        );
        assert!(!error.ends_link());
        small.unwrap();
        assert_eq!(taken.unwrap().0, "small");
        assert_eq!(descriptors(), before);
        // With room it goes, on the same link.
        left.send(&(&text, &file)).unwrap();
        assert!(right.recv::<(String, Fd)>().unwrap().0 == text);
    }
}

/// A memory cgroup of this test's own, where one can be made.
struct Group(PathBuf);

impl Group {
    fn new(bytes: usize) -> Option<Group> {
        let hierarchies = fs::read_to_string("/proc/self/cgroup").ok()?;
        let name = format!("memlane-test-{}", std::process::id());
        for line in hierarchies.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let (mount, file) = match controllers {
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                "" => ("/sys/fs/cgroup", "memory.max"),
                _ => continue,
            };
            let group = Path::new(mount)
                .join(path.trim_start_matches('/'))
                .join(&name);
            if fs::create_dir(&group).is_err() {
                continue;
            }
            let group = Group(group);
            if fs::write(group.0.join(file), bytes.to_string()).is_ok() {
                return Some(group);
            }
        }
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Busy until the kernel is done with the processes that were in it.
        common::until("the cgroup is gone", || {
            !self.0.exists() || fs::remove_dir(&self.0).is_ok()
        });
    }
}

/// A whole exchange with bodies of 8 MiB, over and over, in 96 MiB: nothing of a message stays when it has been received.
#[test]
fn a_memory_cgroup() {
    if role().is_some() {
        let link = parent();
        link.recv::<()>().unwrap();
        for kind in KINDS {
            let (left, right) = Link::pair_of(kind).unwrap();
            let file = Fd::from(memfd());
            for _ in 0..20 {
                let value = ("x".repeat(8 * MIB), &file);
                let receipt = left.transfer(&value).unwrap();
                drop(value);
                assert_eq!(right.recv::<(String, Fd)>().unwrap().0.len(), 8 * MIB);
                receipt.wait().unwrap();
                // And messages that are lost with their links.
                let (left, right) = Link::pair_of(kind).unwrap();
                left.send(&"x".repeat(8 * MIB)).unwrap();
                left.send(&"x".repeat(8 * MIB)).unwrap();
                assert!(right.recv::<u8>().unwrap_err().ends_link());
            }
        }
        return;
    }
    let _alone = alone();
    let Some(group) = Group::new(96 * MIB) else {
        eprintln!("skipped: no memory cgroup can be made here");
        return;
    };
    let (link, theirs) = Link::pair().unwrap();
    let mut process = Reaped::spawn(&mut child("a_memory_cgroup", "grouped", theirs));
    fs::write(group.0.join("cgroup.procs"), process.0.id().to_string()).unwrap();
    link.send(&()).unwrap();
    process.succeed();
}

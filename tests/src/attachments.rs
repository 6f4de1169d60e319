//! Descriptors of all kinds that tell which one they are.

use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
};

use memlane::{
    Fd, Fds, Link,
    region::{Frozen, Region},
    transport::{EventFd, MemoryFd, StreamFd, codec},
};
use rustix::{
    event::{EventfdFlags, eventfd},
    fs::{MemfdFlags, memfd_create},
    net::{RecvFlags, recv},
};

/// What the descriptor at `index` among a message's says.
fn says(number: u64, index: usize) -> u64 {
    1 + number * 1000 + index as u64
}

/// A file with this content.
///
/// # Panics
///
/// If the kernel refuses one.
pub fn memfd_with(content: &[u8]) -> OwnedFd {
    let file = memfd_create("memlane-attached", MemfdFlags::CLOEXEC).expect("a file");
    let mut file = File::from(file);
    file.write_all(content).expect("room");
    file.into()
}

/// So many descriptors for message `number`: files, eventfds, frozen regions, sockets and links by turns, each with
/// something in it that only this one has.
///
/// # Panics
///
/// If the kernel refuses one.
pub fn attachments(number: u64, count: usize) -> Fds {
    let one = |index: usize| -> OwnedFd {
        let said = says(number, index).to_le_bytes();
        match (number as usize + index) % 5 {
            0 => memfd_with(&said),
            1 => {
                let bell = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
                rustix::io::write(&bell, &said).expect("room");
                bell
            }
            2 => {
                let region = Region::copy_of("memlane-attached", &said).expect("a region");
                let frozen = region.freeze().expect("nobody writes it");
                frozen.as_fd().try_clone_to_owned().expect("a descriptor")
            }
            3 => {
                let (mut ours, theirs) = UnixStream::pair().expect("a pair");
                ours.write_all(&said).expect("room");
                theirs.into()
            }
            _ => {
                let (ours, theirs) = Link::pair().expect("a pair");
                ours.send(&says(number, index)).expect("room");
                theirs.into()
            }
        }
    };
    (0..count).map(one).collect()
}

/// Checks that these are the descriptors of message `number`, all of them, in order. What they say, other receivers of the
/// same message can hear, too.
///
/// # Panics
///
/// If not.
#[track_caller]
pub fn check_attachments(number: u64, count: usize, fds: Fds) {
    assert_eq!(fds.len(), count, "descriptors of message {number}");
    let fds = fds.into_fds().expect("nobody else has them");
    for (index, fd) in fds.into_iter().enumerate() {
        assert_eq!(
            heard((number as usize + index) % 5, fd),
            says(number, index),
            "descriptor {index} of message {number}"
        );
    }
}

fn heard(kind: usize, fd: Fd) -> u64 {
    let mut said = [0; 8];
    match kind {
        0 => {
            let file = File::from(OwnedFd::from(fd));
            file.read_exact_at(&mut said, 0).expect("a file");
        }
        1 => {
            let bell = EventFd::try_from(fd).expect("an eventfd");
            let info = format!("/proc/self/fdinfo/{}", bell.as_fd().as_raw_fd());
            let info = fs::read_to_string(info).expect("/proc");
            let count = info
                .lines()
                .find_map(|line| line.strip_prefix("eventfd-count:"));
            return u64::from_str_radix(count.expect("a count").trim(), 16).expect("a number");
        }
        2 => {
            let memory = MemoryFd::try_from(fd).expect("memory");
            let frozen = Frozen::open(memory.into(), 1 << 20).expect("a frozen region");
            said.copy_from_slice(&frozen[..8]);
        }
        3 => {
            let stream = StreamFd::try_from(fd).expect("a stream");
            let (_, len) = recv(&stream, &mut said, RecvFlags::PEEK).expect("what it says");
            assert_eq!(len, said.len());
        }
        _ => {
            let link = Link::from_fd(fd.into()).expect("a link");
            let mut packet = [0; 64];
            let (_, len) = recv(&link, &mut packet, RecvFlags::PEEK).expect("what it says");
            return codec::decode(&packet[8..len]).expect("a number");
        }
    }
    u64::from_le_bytes(said)
}

/// Checks that of what was attached, nothing is open here.
///
/// # Panics
///
/// If something is.
#[track_caller]
pub fn none_is_kept() {
    let names = fs::read_dir("/proc/self/fd").expect("/proc");
    let targets = names.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let kept: Vec<_> = targets
        .filter(|target| target.to_string_lossy().contains("memlane-attached"))
        .collect();
    assert!(kept.is_empty(), "{kept:?}");
}

//! Kinds of descriptors that a message can ask for.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{AtFlags, SealFlags, StatxFlags, fcntl_get_seals, readlink, statx};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};
use rustix::net::{AddressFamily, SocketType};

use super::Kind;
use crate::sys;

/// Shared memory (memfd_create(2)) sealed against shrinking.
///
/// Files in a tmpfs answer F_GET_SEALS, too, with F_SEAL_SEAL alone (mm/memfd.c); so the seal is the proof. It says
/// nothing about who can write it: see `memlane-region` for what else has to hold before memory is mapped.
#[derive(Debug)]
pub enum Memory {}

impl Kind for Memory {
    const NAME: &'static str = "memory sealed against shrinking";
    const CLOSES_AT_ONCE: bool = true;

    fn check(fd: BorrowedFd<'_>) -> Result<(), String> {
        match fcntl_get_seals(fd) {
            Ok(seals) if seals.contains(SealFlags::SHRINK) => Ok(()),
            Ok(_) => Err("a memfd without F_SEAL_SHRINK (memfd_create with MFD_ALLOW_SEALING, then F_ADD_SEALS)".to_owned()),
            Err(_) => Err("no memfd".to_owned()),
        }
    }
}

/// An eventfd(2).
///
/// All anonymous inodes are one inode, so the name in /proc tells an eventfd from a timerfd. Without /proc three questions
/// do, in this order, since each is safe only after the one before: the inode is that of an own eventfd, so no file system
/// and no lock of a file position is behind it; it takes a write of no bytes; it refuses a read of four (eventfd_read,
/// fs/eventfd.c). Measured on Linux 6.18: no other kind of anonymous inode answers all three like that.
#[derive(Debug)]
pub enum Event {}

impl Kind for Event {
    const NAME: &'static str = "an eventfd";
    const CLOSES_AT_ONCE: bool = true;

    fn check(fd: BorrowedFd<'_>) -> Result<(), String> {
        match readlink(
            format!("/proc/thread-self/fd/{}", fd.as_raw_fd()),
            Vec::new(),
        ) {
            Ok(name) if name.as_bytes() == b"anon_inode:[eventfd]" => Ok(()),
            Ok(name) => Err(name.to_string_lossy().into_owned()),
            Err(_) => answers_like_an_eventfd(fd),
        }
    }
}

fn answers_like_an_eventfd(fd: BorrowedFd<'_>) -> Result<(), String> {
    let inode = |fd: BorrowedFd<'_>| {
        // DONT_SYNC keeps a file system from being asked.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        statx(fd, "", flags, StatxFlags::INO)
            .map(|stat| (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino))
    };
    let unknown = |error: Errno| format!("something unknown ({error})");
    let own = eventfd(0, EventfdFlags::CLOEXEC).map_err(unknown)?;
    if inode(fd).map_err(unknown)? != inode(own.as_fd()).map_err(unknown)? {
        return Err("a file with a name, or of another system".to_owned());
    }
    let takes_nothing = pwritev2(fd, &[IoSlice::new(&[])], u64::MAX, ReadWriteFlags::empty());
    let mut four = [0; 4];
    let mut few = [IoSliceMut::new(&mut four)];
    let refuses_few = preadv2(fd, &mut few, u64::MAX, ReadWriteFlags::NOWAIT);
    match (takes_nothing, refuses_few) {
        (Ok(0), Err(Errno::INVAL)) => Ok(()),
        _ => Err("another anonymous inode".to_owned()),
    }
}

/// A SOCK_STREAM Unix socket.
#[derive(Debug)]
pub enum Stream {}

impl Kind for Stream {
    const NAME: &'static str = "a Unix stream socket";

    fn check(fd: BorrowedFd<'_>) -> Result<(), String> {
        match sys::socket_kind(fd) {
            Some((AddressFamily::UNIX, SocketType::STREAM)) => Ok(()),
            Some((family, kind)) => Err(format!(
                "a socket of family {} and type {}",
                family.as_raw(),
                kind.as_raw()
            )),
            None => Err("no socket".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::event::epoll;
    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::pipe::pipe;

    use super::*;

    /// What is asked where there is no /proc.
    #[test]
    fn only_eventfds_answer_like_one() {
        for count in [0, 1, u32::MAX] {
            let fd = eventfd(count, EventfdFlags::CLOEXEC).unwrap();
            assert_eq!(answers_like_an_eventfd(fd.as_fd()), Ok(()));
            // Nothing was taken from it.
            let mut value = [0; 8];
            rustix::io::write(&fd, &1_u64.to_ne_bytes()).unwrap();
            assert_eq!(rustix::io::read(&fd, &mut value), Ok(8));
            assert_eq!(u64::from_ne_bytes(value), u64::from(count) + 1);
        }
        let (reader, writer) = pipe().unwrap();
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let others: [OwnedFd; 6] = [
            reader,
            writer,
            stream.into(),
            epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(),
            memfd_create("test", MemfdFlags::CLOEXEC).unwrap(),
            std::fs::File::open("/dev/null").unwrap().into(),
        ];
        for fd in others {
            assert!(answers_like_an_eventfd(fd.as_fd()).is_err(), "{fd:?}");
        }
    }
}

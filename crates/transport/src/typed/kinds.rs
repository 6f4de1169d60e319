//! Kinds of descriptors that a message can ask for.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{SealFlags, fcntl_get_seals};
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
            Ok(seals) => Err(format!("memory with seals {seals:?}")),
            Err(error) => Err(format!("no memory ({error})")),
        }
    }
}

/// An eventfd(2).
#[derive(Debug)]
pub enum Event {}

impl Kind for Event {
    const NAME: &'static str = "an eventfd";
    const CLOSES_AT_ONCE: bool = true;

    fn check(fd: BorrowedFd<'_>) -> Result<(), String> {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        match std::fs::read_link(link) {
            Ok(target) if target.as_os_str() == "anon_inode:[eventfd]" => Ok(()),
            Ok(target) => Err(format!("{}", target.display())),
            Err(error) => Err(format!("something unknown ({error})")),
        }
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

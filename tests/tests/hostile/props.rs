//! What a villain shows instead of the real thing.

use std::{
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use memlane_region::{Shared, page_size};
use memlane_transport::Fd;
use rustix::{
    event::{EventfdFlags, eventfd},
    fs::{FallocateFlags, MemfdFlags, SealFlags, fcntl_add_seals},
};

pub(crate) fn memfd(len: usize, allocate: bool, seals: SealFlags) -> Fd {
    let fd = rustix::fs::memfd_create("villain", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .expect("a memfd");
    rustix::fs::ftruncate(&fd, len as u64).expect("a size");
    if allocate && len > 0 {
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, len as u64).expect("memory");
    }
    fcntl_add_seals(&fd, seals).expect("seals");
    fd.into()
}

pub(crate) const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::FUTURE_WRITE)
    .union(SealFlags::SEAL);

pub(crate) fn page() -> (Shared, Fd) {
    let (page, fd) = Shared::create("villain", page_size(), 0).expect("a page");
    (page, fd.into())
}

pub(crate) fn pipe() -> Fd {
    let (_, end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    end.into()
}

pub(crate) fn an_eventfd() -> Fd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .expect("an eventfd")
        .into()
}

pub(crate) fn null() -> Fd {
    OwnedFd::from(File::open("/dev/null").expect("/dev/null")).into()
}

pub(crate) fn copy(fd: &impl AsFd) -> Fd {
    fd.as_fd().try_clone_to_owned().expect("a copy").into()
}

pub(crate) fn stream_socket() -> Fd {
    OwnedFd::from(UnixStream::pair().expect("a pair").0).into()
}

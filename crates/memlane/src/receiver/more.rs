//! What keeps the descriptor of a watched reader readable while nothing else does.

use std::{io, os::fd::OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// An eventfd that no other process has, readable or not.
#[derive(Debug)]
pub(super) struct More {
    pub(super) fd: OwnedFd,
    set: bool,
}

impl More {
    pub(super) fn new() -> io::Result<More> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(More { fd, set: false })
    }

    pub(super) fn set(&mut self, set: bool) {
        if self.set != set {
            // Neither can fail: its value is 0 or 1.
            let _ = match set {
                true => rustix::io::write(&self.fd, &1_u64.to_ne_bytes()),
                false => rustix::io::read(&self.fd, &mut [0; 8]),
            };
            self.set = set;
        }
    }
}

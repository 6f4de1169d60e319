//! A descriptor of a file whose server does not answer is refused as foreign memory, and nobody waits for that server.

#[path = "../../crates/transport/tests/common/mod.rs"]
mod common;

use std::os::fd::AsRawFd;

use common::{alone, fuse::Fuse};
use memlane_region::{Error, Foreign};

#[test]
fn fuse_server() {
    common::fuse::serve();
}

#[test]
fn a_file_whose_server_does_not_answer() {
    let _alone = alone();
    let Some(mut fuse) = Fuse::start() else {
        return;
    };
    let descriptor = fuse.file().try_clone_to_owned().unwrap();
    let number = descriptor.as_raw_fd();
    let refused = Foreign::open(descriptor, 0, 4096, 1 << 20).unwrap_err();
    assert!(matches!(refused.error, Error::NotSharedMemory), "{refused}");
    assert_eq!(refused.descriptor.as_raw_fd(), number);
    // It was asked nothing. That includes closing, which would wait for it.
    assert_eq!(fuse.requests(), []);
    fuse.kill();
}

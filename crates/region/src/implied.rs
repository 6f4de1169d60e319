//! Whether a write seal that came with F_SEAL_EXEC is worth as much as one that was asked for.
//!
//! F_SEAL_EXEC on an executable memfd sets SHRINK, GROW, WRITE and FUTURE_WRITE along with it (Linux 6.3, commit
//! c4f75bc8bd6b), and until commit 3b041514cb6e ("memfd: deny writeable mappings when implying SEAL_WRITE", 2026, and
//! in the stable kernels since) it did so without a look at mappings and pages in use. Its maker could go on writing
//! such memory through a mapping it had. The mode does not tell: an access control list (setxattr(2)) changes the
//! executable bits in spite of the seal.

use std::sync::OnceLock;

use rustix::{
    fd::AsFd,
    fs::{MemfdFlags, SealFlags, XattrFlags, fcntl_add_seals, fsetxattr, memfd_create},
    io::Errno,
};

use crate::pages::{Access, Pages, Wanted};

/// Whether this kernel gives implied write seals to memory that nobody can write only. Tried once, with memory of this
/// process; a kernel that cannot be asked does not.
pub(crate) fn proven() -> bool {
    static PROVEN: OnceLock<bool> = OnceLock::new();
    *PROVEN.get_or_init(|| refused_while_mapped().unwrap_or(false))
}

/// Whether F_SEAL_EXEC is refused to an executable memfd that is mapped writable.
fn refused_while_mapped() -> Option<bool> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create("seals", flags | MemfdFlags::EXEC) {
        // vm.memfd_noexec is 2.
        Err(Errno::ACCESS) => {
            let fd = memfd_create("seals", flags | MemfdFlags::NOEXEC_SEAL).ok()?;
            fsetxattr(&fd, ACL, &OWNER_MAY_EXECUTE, XattrFlags::empty()).ok()?;
            fd
        }
        result => result.ok()?,
    };
    rustix::fs::ftruncate(&fd, 1).ok()?;
    let _mapped = Pages::map(fd.as_fd(), 1, Access::Write, Wanted::DEFAULT).ok()?;
    Some(fcntl_add_seals(&fd, SealFlags::EXEC) == Err(Errno::BUSY))
}

const ACL: &str = "system.posix_acl_access";

/// `u::rwx,g::---,o::---`: a version, then tag, permissions and id of each entry (linux/posix_acl_xattr.h), all of
/// them little-endian.
const OWNER_MAY_EXECUTE: [u8; 28] = [
    2, 0, 0, 0, // version
    0x01, 0, 7, 0, 0xff, 0xff, 0xff, 0xff, // owner
    0x04, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, // group
    0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, // others
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_what_happens() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL;
        let fd = memfd_create("implied", flags).unwrap();
        rustix::fs::ftruncate(&fd, 1).unwrap();
        let set = fsetxattr(&fd, ACL, &OWNER_MAY_EXECUTE, XattrFlags::empty());
        if set.is_err() {
            return eprintln!("skipped: no access control lists on tmpfs");
        }
        let mapped = Pages::map(fd.as_fd(), 1, Access::Write, Wanted::DEFAULT).unwrap();
        let refused = fcntl_add_seals(&fd, SealFlags::EXEC).is_err();
        assert_eq!(proven(), refused);
        drop(mapped);
        fcntl_add_seals(&fd, SealFlags::EXEC).unwrap();
        let seals = rustix::fs::fcntl_get_seals(&fd).unwrap();
        assert!(seals.contains(SealFlags::WRITE | SealFlags::FUTURE_WRITE));
    }
}

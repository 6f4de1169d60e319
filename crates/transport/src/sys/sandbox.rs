//! Landlock and seccomp, as far as their crates do not go: in a child between fork(2) and execve(2).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::thread::set_no_new_privs;
use seccompiler::BpfProgram;

/// landlock_restrict_self(2), for this thread and what it starts.
pub(crate) fn restrict_files(rules: &OwnedFd) -> Result<(), Errno> {
    set_no_new_privs(true)?;
    // SAFETY: takes two numbers.
    let result =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0_u32) };
    if result == 0 { Ok(()) } else { Err(errno()) }
}

/// Installs a filter for this thread and what it starts. Without an allocation.
pub(crate) fn install(filter: &BpfProgram) -> Result<(), Errno> {
    use seccompiler::Error;
    match seccompiler::apply_filter(filter) {
        Ok(()) => Ok(()),
        Err(Error::Prctl(error) | Error::Seccomp(error)) => {
            Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
        Err(_) => Err(Errno::INVAL),
    }
}

/// The version of Landlock that the kernel has (landlock_create_ruleset(2)).
pub(crate) fn landlock_version() -> io::Result<u32> {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the pointer must be null and the size 0, and a number comes back.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).map_err(|_| io::Error::last_os_error())
}

fn errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

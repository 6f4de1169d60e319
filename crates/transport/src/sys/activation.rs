//! Numbers from the environment become owned descriptors.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use crate::activation::{ActivationError, Announced};

/// SD_LISTEN_FDS_START (sd_listen_fds(3)).
const FIRST: RawFd = 3;

/// Whether the descriptors passed to this process have an owner. A forked child inherits it, and has another pid than
/// the one they were announced to.
static TAKEN: Mutex<bool> = Mutex::new(false);

/// Takes the announced descriptors, in order, and sets close-on-exec on them. All or none.
///
/// # Safety
/// They belong to nobody else in this process.
pub(crate) unsafe fn take(announced: &Announced) -> Result<Vec<OwnedFd>, ActivationError> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if *taken {
        return Err(ActivationError::AlreadyTaken);
    }
    let count = announced.count();
    // No overflow: `Announced` keeps the count below i32::MAX - FIRST. An absurd one ends at the first number not open.
    let numbers = FIRST..FIRST + count;
    for number in numbers.clone() {
        match flags(number) {
            None => return Err(ActivationError::NotOpen { number, count }),
            // execve(2) closes every descriptor with the flag, so this one was opened, or taken, since.
            Some(flags) if flags & libc::FD_CLOEXEC != 0 => {
                return Err(ActivationError::NotInherited { number });
            }
            Some(_) => {}
        }
    }
    *taken = true;
    for number in numbers.clone() {
        // SAFETY: F_SETFD takes three integers and touches no memory (fcntl(2)).
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    let owned = numbers.map(|number| {
        // SAFETY: it is open, and by the caller's promise nobody else owns it; `TAKEN`, still locked, lets this happen
        // once. That the flag was not set, as it is on all that the standard library and this crate open, is checked so
        // that a promise that does not hold is found out as a rule.
        unsafe { OwnedFd::from_raw_fd(number) }
    });
    Ok(owned.collect())
}

/// The descriptor's own flags, `None` if there is no such descriptor.
fn flags(number: RawFd) -> Option<libc::c_int> {
    // SAFETY: F_GETFD takes two integers and touches no memory; a number that is not open is EBADF, the only error
    // (fcntl(2)).
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    (flags >= 0).then_some(flags)
}

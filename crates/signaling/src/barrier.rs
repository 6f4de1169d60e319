//! membarrier(2), between processes: the sleeper's call is a fence on every processor that runs the ringer.

use rustix::thread::{MembarrierCommand, membarrier};

use crate::primitive::{Ordering, fence};

/// Registers this process as one that others may fence ([`Armed::registered`](crate::Armed::registered)), and so a
/// ringer of this process as one that need not ([`Rung::registered`](crate::Rung::registered)); whether that worked. It
/// does not before Linux 4.16, or under a seccomp filter.
///
/// It lasts for as long as the process, until it executes another program. Any process of the machine, of whatever user,
/// can interrupt each of this one's running threads from then on, for a microsecond at a time, as often as it likes. Where
/// there are other threads already it takes some milliseconds.
pub fn register() -> bool {
    membarrier(MembarrierCommand::RegisterGlobalExpedited).is_ok()
}

/// A full barrier here, and on every running thread of every registered process; false if there was none.
pub(crate) fn heavy() -> bool {
    // The kernel has fences at both ends of the call where there is more than one processor; these are for the compiler.
    fence(Ordering::SeqCst);
    let fenced = membarrier(MembarrierCommand::GlobalExpedited).is_ok();
    fence(Ordering::SeqCst);
    fenced
}

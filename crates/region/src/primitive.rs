//! The one switch between production and loom: everything in this crate that synchronises takes its atomics,
//! locks and fences from here.

#[cfg(not(memlane_loom))]
pub(crate) use std::{
    hint::spin_loop,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering, fence},
    },
};

#[cfg(memlane_loom)]
pub(crate) use loom::{
    hint::spin_loop,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering, fence},
    },
};

/// Locks, whatever a panicking holder did: what these locks protect is valid between any two statements.
#[cfg(not(memlane_loom))]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(memlane_loom)]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

/// The cheap half of an asymmetric barrier between threads of this process: orders nothing on the CPU by
/// itself, but together with [`fence_heavy`] on the other thread it is as good as two `SeqCst` fences.
///
/// `heavy` is what [`fence_heavy`] needs (see [`asymmetric`]); without it this is a `SeqCst` fence.
#[inline(always)]
pub(crate) fn fence_light(asymmetric: bool) {
    #[cfg(not(memlane_loom))]
    if asymmetric {
        return std::sync::atomic::compiler_fence(Ordering::SeqCst);
    }
    let _ = asymmetric;
    fence(Ordering::SeqCst);
}

/// The expensive half: membarrier(2) runs a full barrier on every running thread of this process, so each of
/// them has one either before or after this call, wherever its `fence_light` stands.
///
/// # Errors
///
/// The system call's, if it has been forbidden since `asymmetric` tried it.
pub(crate) fn fence_heavy(asymmetric: bool) -> std::io::Result<()> {
    #[cfg(not(any(memlane_loom, miri)))]
    if asymmetric {
        use rustix::thread::{MembarrierCommand, membarrier};
        membarrier(MembarrierCommand::PrivateExpedited)?;
    }
    let _ = asymmetric;
    fence(Ordering::SeqCst);
    Ok(())
}

/// Registers this process for `fence_heavy`; false where the kernel cannot (before Linux 4.14, or under a
/// seccomp filter), and then both halves are `SeqCst` fences.
#[cfg(not(any(memlane_loom, miri)))]
pub(crate) fn asymmetric() -> bool {
    use rustix::thread::{MembarrierCommand, membarrier};
    membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
        && membarrier(MembarrierCommand::PrivateExpedited).is_ok()
}

#[cfg(any(memlane_loom, miri))]
pub(crate) fn asymmetric() -> bool {
    false
}

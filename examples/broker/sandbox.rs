//! A seccomp filter under which a process can use the links it has, and nothing else: no file, no socket, no other
//! process.

use std::collections::BTreeMap;

use anyhow::Context;
use seccompiler::{SeccompAction, SeccompFilter};

/// All that a client of a broker needs of the kernel. What is not here fails with EPERM.
const ALLOWED: &[i64] = &[
    // Links: messages with descriptors, waiting, and looking at sockets that have come.
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_fcntl,
    libc::SYS_getsockopt,
    libc::SYS_getpeername,
    libc::SYS_shutdown,
    libc::SYS_close,
    // Shared memory.
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    // The thread that closes what was received. A process would have the same filter.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_prctl,
    libc::SYS_sched_getaffinity,
    libc::SYS_setsockopt,
    // What any Rust program does.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// No program asks for these by accident.
const DEADLY: &[i64] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
];

/// Gives up everything else, for ever. For the only thread of a process.
pub(crate) fn enter() -> anyhow::Result<()> {
    // The kernel asks all filters, and obeys the strictest answer.
    install(DEADLY, SeccompAction::Allow, SeccompAction::KillProcess)?;
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    install(ALLOWED, refused, SeccompAction::Allow)
}

fn install(calls: &[i64], others: SeccompAction, listed: SeccompAction) -> anyhow::Result<()> {
    let rules: BTreeMap<_, _> = calls.iter().map(|call| (*call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into()?;
    let program: seccompiler::BpfProgram =
        SeccompFilter::new(rules, others, listed, arch)?.try_into()?;
    seccompiler::apply_filter(&program).context("installing a seccomp filter")
}

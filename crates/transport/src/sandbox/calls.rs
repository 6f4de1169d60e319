//! The system calls of the presets.

use super::filter::{Argument, Call};
use Argument::{Bits, Is, Null, OwnProcess};

/// Whatever their arguments.
const WORKER: &[libc::c_long] = &[
    // What it has: links, sockets, files.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    // Of memory that it makes, so that other users cannot open it.
    libc::SYS_fchmod,
    // A socket that it has is connected, and sends nowhere else: SOCK_DGRAM is not to be had below.
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Waiting. A pidfd without pidfd_send_signal and pidfd_getfd is there to be waited for.
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_pidfd_open,
    libc::SYS_waitid,
    libc::SYS_wait4,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    // Memory.
    libc::SYS_memfd_create,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_brk,
    // Threads.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    // ENOSYS by another filter.
    libc::SYS_clone3,
    // Signals, its own.
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_restart_syscall,
    // What it is.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // Newer architectures lack these.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

/// Executing a program, and loading it.
const PROGRAM: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_fadvise64,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_set_tid_address,
    // Restricting itself further.
    libc::SYS_seccomp,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getrlimit,
];

/// F_DUPFD_QUERY (Linux 6.10).
const F_DUPFD_QUERY: libc::c_int = 1024 + 3;

/// Not those that have other processes signalled (F_SETOWN), or files locked.
const FCNTL: &[libc::c_int] = &[
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
    F_DUPFD_QUERY,
];

/// PIDFD_GET_INFO, of 64 bytes (Linux 6.13).
const PIDFD_GET_INFO: u64 = 0xc040_ff0b;

const NEW_NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

pub(super) fn worker() -> Vec<Call> {
    let mut calls: Vec<Call> = WORKER.iter().map(|call| Call::any(*call)).collect();
    let mut add = |number, conditions: &[Argument]| {
        calls.push(Call {
            number,
            conditions: conditions.to_vec(),
        });
    };
    for kind in [libc::SOCK_STREAM, libc::SOCK_SEQPACKET] {
        let family = Is(0, libc::AF_UNIX as u64);
        // Beside SOCK_CLOEXEC and SOCK_NONBLOCK.
        add(libc::SYS_socketpair, &[family, Bits(1, 0xf, kind as u64)]);
    }
    // To where the socket is connected.
    add(libc::SYS_sendto, &[Null(4)]);
    for command in FCNTL {
        add(libc::SYS_fcntl, &[Is(1, *command as u64)]);
    }
    // TIOCOUTQ is SIOCOUTQ; TCGETS is how a terminal is known.
    for request in [libc::FIONREAD, libc::FIONBIO, libc::TIOCOUTQ, libc::TCGETS] {
        add(libc::SYS_ioctl, &[Is(1, u64::from(request as u32))]);
    }
    add(libc::SYS_ioctl, &[Is(1, PIDFD_GET_INFO)]);
    let executable = libc::PROT_EXEC as u64;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        add(call, &[Bits(2, executable, 0)]);
    }
    let thread = libc::CLONE_THREAD as u64;
    let namespaces = u64::from(NEW_NAMESPACES as u32);
    add(libc::SYS_clone, &[Bits(0, thread | namespaces, thread)]);
    for option in [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA] {
        add(libc::SYS_prctl, &[Is(0, option as u64)]);
    }
    // Its own limits, to be read.
    add(libc::SYS_prlimit64, &[Is(0, 0), Null(2)]);
    // How it aborts.
    add(libc::SYS_tgkill, &[OwnProcess(0)]);
    calls
}

pub(super) fn program() -> Vec<Call> {
    let mut calls: Vec<Call> = PROGRAM.iter().map(|call| Call::any(*call)).collect();
    for option in [
        libc::PR_SET_NO_NEW_PRIVS,
        libc::PR_GET_NO_NEW_PRIVS,
        libc::PR_SET_PDEATHSIG,
        libc::PR_SET_DUMPABLE,
    ] {
        calls.push(Call {
            number: libc::SYS_prctl,
            conditions: vec![Is(0, option as u64)],
        });
    }
    // Its own limits, to be set. Of another process of its user, RLIMIT_CPU would be as good as a signal.
    calls.push(Call {
        number: libc::SYS_prlimit64,
        conditions: vec![Is(0, 0)],
    });
    // Nothing but the question whether there are other threads.
    calls.push(Call {
        number: libc::SYS_unshare,
        conditions: vec![Is(0, libc::CLONE_VM as u64)],
    });
    calls
}

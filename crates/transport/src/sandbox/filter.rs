//! seccomp: system calls that a process may make.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::{SandboxError, calls};

/// System calls that a process may make; others fail with EPERM, or [kill](Filter::kill) it.
///
/// clone3(2) is ENOSYS in every filter that allows clone(2) for threads alone, since what it asks for lies in memory, which
/// filters cannot look at; C libraries then use clone(2).
#[derive(Clone, Debug)]
pub struct Filter {
    calls: Vec<Call>,
    threads: bool,
    kill: bool,
    programs: Vec<BpfProgram>,
}

/// A system call that may be made, if all of this is so.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) number: i64,
    pub(super) conditions: Vec<Argument>,
}

/// What an argument has to be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Argument {
    /// An `int`.
    Is(u8, u64),
    /// These bits of a number are these.
    Bits(u8, u64, u64),
    /// A null pointer.
    Null(u8),
    /// The process that the filter is for, where it is known.
    OwnProcess(u8),
}

impl Filter {
    /// Nothing but leaving: for lists of one's own.
    ///
    /// ```
    /// use memlane_transport::sandbox::Filter;
    ///
    /// let filter = Filter::nothing().allow([libc::SYS_read, libc::SYS_write]);
    /// ```
    #[must_use]
    pub fn nothing() -> Filter {
        Filter {
            calls: [libc::SYS_exit, libc::SYS_exit_group, libc::SYS_rt_sigreturn]
                .map(Call::any)
                .into(),
            threads: false,
            kill: false,
            programs: Vec::new(),
        }
    }

    /// What a process needs that has its links, publishers and subscribers, and makes new ones over links: messages with
    /// descriptors, memory (its own, and memfds), waiting, threads, clocks; reading and writing what it has.
    ///
    /// It cannot open, make, stat or remove files, execute programs, start processes, signal others, make memory
    /// executable (so no just-in-time compiler, no dlopen(3)), nor make sockets but connected pairs; socket(2), connect(2),
    /// bind(2), ptrace(2), io_uring, namespaces, mounts, keys, bpf(2), userfaultfd(2) are all closed.
    ///
    /// What takes /proc goes without or fails: `Region::share_freezable`, sizes of huge pages, limits of memory cgroups.
    /// Programs enter when they have opened what they need.
    #[must_use]
    pub fn worker() -> Filter {
        let mut filter = Filter::nothing();
        filter.calls.extend(calls::worker());
        filter.threads = true;
        filter
    }

    /// [`worker`](Filter::worker), and what it takes to execute a program and load its libraries: execve(2), opening files
    /// and directories, looking for them, executable memory. To be imposed on a child from the start; which files those are is
    /// for [`Files`](super::Files) to say: without, open(2) also makes and empties what its user may, and opens the memory of
    /// its user's processes (`/proc/PID/mem`). Still closed are sockets but connected pairs, signals to and tracing of other
    /// processes, making directories and links, renaming and removing by name, and the rest.
    ///
    /// A child may restrict itself further ([`enter`](super::enter)).
    #[must_use]
    pub fn program() -> Filter {
        let mut filter = Filter::worker();
        filter.calls.extend(calls::program());
        filter
    }

    /// Allows more calls, by their numbers (`libc::SYS_...`), whatever their arguments.
    #[must_use]
    pub fn allow(mut self, calls: impl IntoIterator<Item = libc::c_long>) -> Filter {
        // c_long is not i64 everywhere.
        #[allow(clippy::useless_conversion)]
        self.calls
            .extend(calls.into_iter().map(|call| Call::any(call.into())));
        self
    }

    /// Kills the process for a call that is not allowed (SIGSYS). Default: the call fails with EPERM, so that a program can
    /// say what it lacks.
    #[must_use]
    pub fn kill(mut self) -> Filter {
        self.kill = true;
        self
    }

    /// Adds a compiled program of the user's own. The kernel asks all there are, and obeys the strictest answer.
    #[must_use]
    pub fn and(mut self, program: BpfProgram) -> Filter {
        self.programs.push(program);
        self
    }

    /// Restricts this process, all its threads, for ever. Implies that it gains no privileges any more
    /// (PR_SET_NO_NEW_PRIVS).
    ///
    /// # Errors
    /// [`SandboxError::Filter`], [`SandboxError::Install`].
    pub fn enter(&self) -> Result<(), SandboxError> {
        for program in self.compile(Some(std::process::id()))? {
            seccompiler::apply_filter_all_threads(&program)
                .map_err(|error| SandboxError::Install(Box::new(error)))?;
        }
        Ok(())
    }

    /// The programs, in the order in which they can be installed; for process `own`, if that is known.
    pub(crate) fn compile(&self, own: Option<u32>) -> Result<Vec<BpfProgram>, SandboxError> {
        let mut programs = self.programs.clone();
        if self.threads {
            let refused = SeccompAction::Errno(libc::ENOSYS as u32);
            let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
            programs.push(assemble(rules, SeccompAction::Allow, refused)?);
        }
        // An empty list of rules is what allows a call whatever its arguments.
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for call in &self.calls {
            if call.conditions.is_empty() {
                rules.insert(call.number, Vec::new());
                continue;
            }
            let Some(rule) = call.rule(own)? else {
                continue;
            };
            match rules.entry(call.number) {
                Entry::Vacant(none) => drop(none.insert(vec![rule])),
                Entry::Occupied(mut some) if !some.get().is_empty() => some.get_mut().push(rule),
                Entry::Occupied(_) => {}
            }
        }
        let others = if self.kill {
            SeccompAction::KillProcess
        } else {
            SeccompAction::Errno(libc::EPERM as u32)
        };
        // Last, as it forbids to install any.
        programs.push(assemble(rules, others, SeccompAction::Allow)?);
        Ok(programs)
    }
}

impl Call {
    pub(super) fn any(number: i64) -> Call {
        Call {
            number,
            conditions: Vec::new(),
        }
    }

    /// `None` if it is for a process that is not known.
    fn rule(&self, own: Option<u32>) -> Result<Option<SeccompRule>, SandboxError> {
        use SeccompCmpArgLen::{Dword, Qword};
        let mut conditions = Vec::new();
        for argument in &self.conditions {
            let condition = match *argument {
                Argument::Is(at, value) => {
                    SeccompCondition::new(at, Dword, SeccompCmpOp::Eq, value)
                }
                Argument::Bits(at, mask, value) => {
                    SeccompCondition::new(at, Qword, SeccompCmpOp::MaskedEq(mask), value)
                }
                Argument::Null(at) => SeccompCondition::new(at, Qword, SeccompCmpOp::Eq, 0),
                Argument::OwnProcess(at) => {
                    let Some(own) = own else {
                        return Ok(None);
                    };
                    SeccompCondition::new(at, Dword, SeccompCmpOp::Eq, own.into())
                }
            };
            conditions.push(condition.map_err(filter)?);
        }
        SeccompRule::new(conditions).map(Some).map_err(filter)
    }
}

fn assemble(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    others: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, SandboxError> {
    let arch = std::env::consts::ARCH.try_into().map_err(filter)?;
    SeccompFilter::new(rules, others, listed, arch)
        .and_then(BpfProgram::try_from)
        .map_err(filter)
}

fn filter(error: seccompiler::BackendError) -> SandboxError {
    SandboxError::Filter(Box::new(error))
}

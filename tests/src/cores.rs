use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores that this process may run on.
///
/// # Panics
///
/// If the kernel does not say.
pub fn cores() -> Vec<usize> {
    let all = sched_getaffinity(None).expect("the cores");
    (0..CpuSet::MAX_CPU)
        .filter(|core| all.is_set(*core))
        .collect()
}

/// Has this thread run on one core only.
///
/// # Panics
///
/// If this process may not run there.
pub fn pin(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).expect("a core of this process's");
}

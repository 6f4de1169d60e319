//! The machine a report speaks about: its name, its cores, its clock.

use std::fs;
use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// Pins the calling thread, and the threads it will start, to `core`.
///
/// # Errors
///
/// Fails if the core does not exist or is not allowed to this process.
pub fn pin(core: usize) -> Result<()> {
    ensure!(core < CpuSet::MAX_CPU, "there is no core {core}");
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("cannot run on core {core}"))
}

/// The first two cores this process may use, or the only one twice.
///
/// # Errors
///
/// Fails if the kernel does not tell.
pub fn default_cores() -> Result<(usize, usize)> {
    let set = sched_getaffinity(None).context("sched_getaffinity")?;
    let mut allowed = (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core));
    let first = allowed
        .next()
        .context("no core is allowed to this process")?;
    Ok((first, allowed.next().unwrap_or(first)))
}

/// Nanoseconds on a clock that all processes share.
pub fn monotonic_ns() -> f64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// Nanoseconds on the same clock, as they are: for messages that carry the time at which they were sent.
#[inline]
pub fn clock() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What one look at [`clock`] costs, in nanoseconds.
pub fn clock_cost_ns() -> f64 {
    cost_ns(clock)
}

/// Nanoseconds that a core has spent for this process, all its threads and the kernel's work for them included.
pub fn processor_ns() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 * 1e9 + used.tv_nsec as f64
}

/// How often the main thread of this process has gone to sleep by itself.
///
/// # Errors
///
/// Fails if /proc cannot be read.
pub fn sleeps() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let count = status
        .lines()
        .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count
        .context("no count of sleeps")?
        .trim()
        .parse()
        .context("count of sleeps")
}

/// What one `Instant::now()` costs, in nanoseconds.
pub fn timer_cost_ns() -> f64 {
    cost_ns(Instant::now)
}

fn cost_ns<T>(mut call: impl FnMut() -> T) -> f64 {
    const CALLS: u32 = 200_000;
    let start = Instant::now();
    for _ in 0..CALLS {
        black_box(call());
    }
    start.elapsed().as_nanos() as f64 / f64::from(CALLS)
}

/// The lines every report starts with: CPU, kernel, compiler, timer, command.
pub fn header() -> String {
    let uname = rustix::system::uname();
    let command: Vec<String> = std::env::args().collect();
    format!(
        "cpu      {} ({} online)\nkernel   {} {} {}\nrustc    {} ({} profile)\ntimer    Instant::now() costs {:.1} ns\ncommand  {}\n",
        cpu_model().unwrap_or_else(|| "unknown".into()),
        std::thread::available_parallelism().map_or(0, usize::from),
        uname.sysname().to_string_lossy(),
        uname.release().to_string_lossy(),
        uname.machine().to_string_lossy(),
        env!("MEMLANE_RUSTC"),
        env!("MEMLANE_PROFILE"),
        timer_cost_ns(),
        command.join(" "),
    )
}

/// The model as /proc/cpuinfo words it; some architectures do not say.
fn cpu_model() -> Option<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

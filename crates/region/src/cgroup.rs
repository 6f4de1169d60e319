//! The budget of this process's memory cgroup, of either version, where it is mounted at its usual place.

use std::{fs, path::Path};

/// Where cgroups are mounted (the file system hierarchy of systemd, which container engines follow).
const MOUNT: &str = "/sys/fs/cgroup";

/// The files that tell of a cgroup, and lines of its `memory.stat` that count what can be reclaimed.
struct Files {
    limit: &'static str,
    usage: &'static str,
    reclaimable: &'static [&'static str],
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: &["total_inactive_file", "total_active_file"],
};

const V2: Files = Files {
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: &["inactive_file", "active_file", "slab_reclaimable"],
};

/// What is left of the budget of this process, in bytes, if anything limits it; what could be reclaimed is looked at
/// only if `needed` is more than what is free.
///
/// A cgroup's parents limit it too. In a container, the path may be one of the host's, of which only the last part is
/// mounted: then the mount point itself is the container's cgroup.
pub(crate) fn left(needed: u64) -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    // `number:controllers:path`, of the second version `0::path` (cgroups(7)).
    let budgets = own.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let path = path.trim_start_matches('/');
        if controllers.is_empty() {
            return up(Path::new(MOUNT), path, &V2, needed);
        }
        let memory = controllers.split(',').any(|name| name == "memory");
        let mount = Path::new(MOUNT).join("memory");
        memory.then(|| up(&mount, path, &V1, needed)).flatten()
    });
    budgets.min()
}

/// The least that is left from the cgroup `path` up to the `mount` point.
fn up(mount: &Path, path: &str, files: &Files, needed: u64) -> Option<u64> {
    let mut least = None;
    for cgroup in Path::new(path).ancestors() {
        let left = budget(&mount.join(cgroup), files, needed);
        least = left.into_iter().chain(least).min();
    }
    least
}

/// What is left of one cgroup's budget, if it has one.
fn budget(cgroup: &Path, files: &Files, needed: u64) -> Option<u64> {
    // `max`, and in the first version a number beyond all memory, stand for no limit.
    let limit = number(&cgroup.join(files.limit)).filter(|&limit| limit < 1 << 60)?;
    let usage = number(&cgroup.join(files.usage))?;
    let free = limit.saturating_sub(usage);
    if free >= needed {
        return Some(free);
    }
    let stat = fs::read_to_string(cgroup.join("memory.stat")).unwrap_or_default();
    let reclaimable = stat.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        files
            .reclaimable
            .contains(&name)
            .then(|| value.parse::<u64>().ok())?
    });
    Some(
        free.saturating_add(reclaimable.sum())
            .saturating_add(swap(cgroup))
            .min(limit),
    )
}

/// What can be swapped out.
fn swap(cgroup: &Path) -> u64 {
    let system = rustix::system::sysinfo();
    let free = (system.freeswap as u64).saturating_mul(u64::from(system.mem_unit));
    let limit = number(&cgroup.join("memory.swap.max"));
    let used = number(&cgroup.join("memory.swap.current")).unwrap_or(0);
    limit.map_or(free, |limit| free.min(limit.saturating_sub(used)))
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

//! Starts the processes of a task, keeps them in step, and collects what they measured.
//!
//! The runner itself sleeps while they work and is not pinned, so it does not disturb them. A worker that
//! dies closes its control socket; the runner sees that at once, fails with a message that names it, and
//! kills the others.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::control::{Control, Report};
use crate::measure::stream;
use crate::metrics::Metrics;
use crate::task::{Benchmark, Task};
use crate::{references, regions, requests, shared, waiting, worker};

/// A worker and the line to it. Dropping it ends it.
#[derive(Debug)]
struct Worker {
    role: usize,
    child: Child,
    control: Control,
    finished: Option<Metrics>,
}

impl Worker {
    fn start(role: usize, task: &Task, name: &str) -> Result<Self> {
        let (control, theirs) = Control::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg0(format!("memlane-benches: {} of {task}", describe(role)))
            .arg(worker::MARK)
            .args(["--role", &role.to_string()])
            .args(["--parent", &std::process::id().to_string()])
            .args(["--name", name])
            .args(task.to_args())
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start a worker")?;
        Ok(Self {
            role,
            child,
            control,
            finished: None,
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.finished.is_none() {
            // It may be dead already, which is the same to us.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

fn describe(role: usize) -> String {
    match role {
        0 => "initiator".into(),
        1 => "responder".into(),
        _ => format!("responder {role}"),
    }
}

/// Carries out one measurement. Gives up when its processes are silent for longer than `patience`.
///
/// # Errors
///
/// Fails if a process cannot be started, fails, dies or hangs.
pub fn run(task: &Task, patience: Duration) -> Result<Metrics> {
    run_together(task, patience).with_context(|| format!("{task}"))
}

fn run_together(task: &Task, patience: Duration) -> Result<Metrics> {
    static TASKS: AtomicU64 = AtomicU64::new(0);
    let name = format!(
        "memlane-bench-{}-{}",
        std::process::id(),
        TASKS.fetch_add(1, Ordering::Relaxed)
    );

    let line = shared::create(0, true)?;
    let mut workers = Vec::new();
    for (role, descriptors) in provision(task)?.into_iter().enumerate() {
        let worker = Worker::start(role, task, &name)?;
        let mut equipment = vec![line.try_clone()?];
        equipment.extend(descriptors);
        worker
            .control
            .equip(&equipment)
            .with_context(|| format!("the {} did not start", describe(role)))?;
        workers.push(worker);
    }

    let mut waiting = BTreeSet::new();
    while workers.iter().any(|worker| worker.finished.is_none()) {
        for index in speaking(&workers, patience)? {
            let worker = &mut workers[index];
            match worker.control.report()? {
                Some(Report::Waiting) => {
                    waiting.insert(worker.role);
                }
                Some(Report::Finished(metrics)) => worker.finished = Some(metrics),
                Some(Report::Failed(reason)) => {
                    bail!("the {} failed: {reason}", describe(worker.role))
                }
                None => {
                    let status = worker.child.wait()?;
                    bail!("the {} died: {status}", describe(worker.role));
                }
            }
        }
        if waiting.len() == workers.len() {
            waiting.clear();
            // The initiator last: it starts what the others respond to.
            for worker in workers.iter().rev() {
                worker.control.release()?;
            }
        }
    }
    combine(task, &workers)
}

/// The descriptors that each process of `task` starts with.
fn provision(task: &Task) -> Result<Vec<Vec<OwnedFd>>> {
    if Benchmark::REGIONS.contains(&task.benchmark) {
        regions::provision(task)
    } else if requests::is_about(task.benchmark) {
        requests::provision(task)
    } else if waiting::is_about(task.benchmark) {
        waiting::provision(task)
    } else {
        references::provision(task)
    }
}

/// The workers that have something to say or are gone, once there are any.
fn speaking(workers: &[Worker], patience: Duration) -> Result<Vec<usize>> {
    let unfinished: Vec<_> = workers
        .iter()
        .enumerate()
        .filter(|(_, worker)| worker.finished.is_none())
        .map(|(index, _)| index)
        .collect();
    let mut polled: Vec<_> = unfinished
        .iter()
        .map(|&index| PollFd::from_borrowed_fd(workers[index].control.as_fd(), PollFlags::IN))
        .collect();
    let timeout = Timespec::try_from(patience).context("patience")?;
    if poll(&mut polled, Some(&timeout)).context("poll")? == 0 {
        bail!("no progress within {patience:?}");
    }
    Ok(unfinished
        .into_iter()
        .zip(polled)
        .filter(|(_, fd)| !fd.revents().is_empty())
        .map(|(index, _)| index)
        .collect())
}

/// One set of numbers from those of all processes.
fn combine(task: &Task, workers: &[Worker]) -> Result<Metrics> {
    let all: Vec<Metrics> = workers
        .iter()
        .filter_map(|worker| worker.finished.clone())
        .collect();
    let mut combined = match task.benchmark {
        Benchmark::Latency
        | Benchmark::Blocking
        | Benchmark::Setup
        | Benchmark::Fresh
        | Benchmark::FreshSent
        | Benchmark::Pooled
        | Benchmark::PooledPages
        | Benchmark::Touch
        | Benchmark::Readers
        | Benchmark::HandOver
        | Benchmark::Tokio
        | Benchmark::Requests
        | Benchmark::RequestsAsleep => all[0].clone(),
        Benchmark::Paced => all[1].clone(),
        // The reader tells how it has slept.
        Benchmark::Cost | Benchmark::CostFollowed => all[0].clone().merge("reader", &all[1]),
        Benchmark::Access => regions::access::combine(&all[0], &all[1])?,
        Benchmark::Throughput | Benchmark::Fanout => {
            stream::combine(task.iterations, task.size, &all[1..])?
        }
        Benchmark::Footprint => Metrics::new()
            .merge("reader", &all[0])
            .merge("writer", &all[1]),
    };
    for name in ["probe.before", "probe.after"] {
        if let Some(value) = all[0].get(name) {
            combined = combined.with(name, value);
        }
    }
    Ok(combined)
}

//! Waiting and waking: what a message costs whoever sends it, how late it is for whoever waits, and how much of a core
//! the waiting takes.
//!
//! * [`paced`]: messages at a given pace, to readers that spin, sleep, or choose between the two.
//! * [`cost`]: the sender's side, while the reader is awake.
//! * [`tokio`]: tasks that sleep and are woken.
//!
//! Ping-pong between two processes that sleep is among the benchmarks of lanes
//! ([`Benchmark::Blocking`]).

pub mod cost;
pub mod paced;
pub mod tokio;

use std::io;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use memlane::{PublisherBuilder, SubscriberBuilder, WaitPolicy};

use crate::candidate::{Incoming, Outgoing, Terms};
use crate::metrics::Metrics;
use crate::task::{Benchmark, Task};
use crate::worker::Session;

/// Whether the benchmark is one of those here.
pub fn is_about(benchmark: Benchmark) -> bool {
    matches!(
        benchmark,
        Benchmark::Paced | Benchmark::Cost | Benchmark::CostFollowed | Benchmark::Tokio
    )
}

/// The descriptors that each process of `task` starts with.
///
/// # Errors
///
/// Fails if a resource is short, or if the contender does not take part in the benchmark.
pub fn provision(task: &Task) -> Result<Vec<Vec<OwnedFd>>> {
    match task.benchmark {
        Benchmark::Paced => paced::provision(task),
        Benchmark::Cost | Benchmark::CostFollowed => cost::provision(task),
        Benchmark::Tokio => tokio::provision(task),
        benchmark => bail!("{benchmark} is not about waiting"),
    }
}

/// One process of a measurement.
///
/// # Errors
///
/// Fails if the measurement does, or if the contender does not take part in the benchmark.
pub(crate) fn run(session: &mut Session) -> Result<Metrics> {
    match session.task().benchmark {
        Benchmark::Paced => paced::run(session),
        Benchmark::Cost | Benchmark::CostFollowed => cost::run(session),
        Benchmark::Tokio => tokio::run(session),
        benchmark => bail!("{benchmark} is not about waiting"),
    }
}

/// The writing end of a lane from the initiator to the responder, who has [connected](connect).
fn bind(session: &Session, options: PublisherBuilder, wait: WaitPolicy) -> Result<Outgoing> {
    let outgoing = Outgoing::with(options, &session.name("lane"), wait)?;
    session.barrier()?;
    outgoing.0.wait_for_subscribers(1)?;
    Ok(outgoing)
}

/// The reading end.
fn connect<T: Terms>(
    session: &Session,
    options: SubscriberBuilder<T>,
    wait: WaitPolicy,
) -> Result<Incoming<T>> {
    session.barrier()?;
    Incoming::with(options, &session.name("lane"), wait)
}

/// That a contender is not for a benchmark.
fn unsuitable(task: &Task) -> anyhow::Error {
    let Task {
        benchmark,
        contender,
        ..
    } = task;
    anyhow::anyhow!("{contender} does not take part in {benchmark}")
}

/// The same descriptors for both processes.
fn shared(descriptors: Vec<OwnedFd>) -> Result<Vec<Vec<OwnedFd>>> {
    let clones = descriptors.iter().map(OwnedFd::try_clone);
    let clones = clones.collect::<io::Result<_>>().context("dup")?;
    Ok(vec![descriptors, clones])
}

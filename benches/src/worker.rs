//! A process that takes part in a measurement.

use std::fmt::Display;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::control::Control;
use crate::measure::probe;
use crate::metrics::Metrics;
use crate::path::Spin;
use crate::references::cache_line::CacheLine;
use crate::shared::Mapping;
use crate::task::{Benchmark, Task};
use crate::{candidate, machine, references, regions, requests, waiting};

/// The first argument of a worker, by which the executable knows that it is one.
pub const MARK: &str = "worker";

/// What a worker is told on its command line.
#[derive(Debug, Parser)]
pub struct Arguments {
    /// Which process of the task this is.
    #[arg(long)]
    pub role: usize,
    /// The process that started this one, and without which it is not to live.
    #[arg(long)]
    pub parent: i32,
    /// A name that no other measurement on this machine has.
    #[arg(long)]
    pub name: String,
    /// The measurement.
    #[command(flatten)]
    pub task: Task,
}

/// Which process of a task this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role(usize);

impl Role {
    /// The first process: it starts what there is to start.
    pub fn is_initiator(self) -> bool {
        self.0 == 0
    }

    /// The place of the process among those of the task.
    pub fn index(self) -> usize {
        self.0
    }
}

/// A worker's view of its measurement.
#[derive(Debug)]
pub struct Session {
    control: Control,
    task: Task,
    role: Role,
    name: String,
    descriptors: std::vec::IntoIter<OwnedFd>,
    probe: Option<CacheLine>,
    probed: Option<(f64, f64)>,
}

/// Runs a worker to its end.
///
/// # Errors
///
/// Fails if the measurement did; the runner has been told by then.
pub fn run(arguments: impl IntoIterator<Item = String>) -> Result<()> {
    let arguments = Arguments::try_parse_from(arguments)?;
    live_no_longer_than(arguments.parent)?;
    let control = Control::inherited()?;
    let mut session = Session::begin(control, arguments)?;
    let outcome = session.measure();
    session.control.finish(&outcome)
}

/// Has the kernel kill this process when its parent dies.
fn live_no_longer_than(parent: i32) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("PR_SET_PDEATHSIG")?;
    // A parent that died before the line above sends no signal any more.
    ensure!(getppid() == Pid::from_raw(parent), "the runner is gone");
    Ok(())
}

impl Session {
    fn begin(control: Control, arguments: Arguments) -> Result<Self> {
        let Arguments {
            role, name, task, ..
        } = arguments;
        machine::pin(task.cores[role])?;
        let mut descriptors = control.equipment()?.into_iter();
        let line = descriptors.next().context("no line to probe")?;
        let probe = (task.has_distance() && role < 2)
            .then(|| Mapping::new(line, 0, true))
            .transpose()?
            .map(CacheLine::new);
        Ok(Self {
            control,
            task,
            role: Role(role),
            name,
            descriptors,
            probe,
            probed: None,
        })
    }

    fn measure(&mut self) -> Result<Metrics> {
        let metrics = if Benchmark::REGIONS.contains(&self.task.benchmark) {
            regions::run(self)
        } else if requests::is_about(self.task.benchmark) {
            requests::run(self)
        } else if waiting::is_about(self.task.benchmark) {
            waiting::run(self)
        } else if self.task.contender.is_candidate() {
            candidate::run(self)
        } else {
            references::run(self)
        }?;
        Ok(match self.probed {
            Some((before, after)) => metrics
                .with("probe.before", before)
                .with("probe.after", after),
            None => metrics,
        })
    }

    /// The measurement.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Which of its processes this is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// A name for `what` that all processes of this measurement agree on and no others use.
    pub fn name(&self, what: impl Display) -> String {
        format!("{}-{what}", self.name)
    }

    /// How a reader waits: with others on its core it has to let them run.
    pub fn spin(&self) -> Spin {
        if matches!(self.task.benchmark, Benchmark::Fanout | Benchmark::Readers) {
            Spin::Yielding
        } else {
            Spin::Hard
        }
    }

    /// The next of the descriptors this process was given.
    ///
    /// # Errors
    ///
    /// Fails if there are no more.
    pub fn take_descriptor(&mut self) -> Result<OwnedFd> {
        self.descriptors.next().context("not enough descriptors")
    }

    /// Waits, asleep, until all processes of the measurement have come here as often as this one.
    ///
    /// # Errors
    ///
    /// Fails if the runner is gone.
    pub fn barrier(&self) -> Result<()> {
        self.control.barrier()
    }

    /// Runs `body` in all processes at the same time, and has the distance of the first two probed just
    /// before and just after.
    ///
    /// # Errors
    ///
    /// Fails if `body` does, or if the runner is gone.
    pub fn bracketed<T>(&mut self, body: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let before = self.probe_together()?;
        let outcome = body(self)?;
        let after = self.probe_together()?;
        self.probed = before.zip(after);
        Ok(outcome)
    }

    /// The processes that do not probe sleep meanwhile.
    fn probe_together(&mut self) -> Result<Option<f64>> {
        self.barrier()?;
        let probed = match &mut self.probe {
            Some(line) if self.role.is_initiator() => Some(probe::initiate(line)?),
            Some(line) => {
                probe::respond(line)?;
                None
            }
            None => None,
        };
        self.barrier()?;
        Ok(probed)
    }
}

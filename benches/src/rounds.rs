//! In which order measurements are made, and which of them count.
//!
//! Rounds are interleaved: in each one every contender is measured once, close to the others it is compared
//! with, in turn forwards and backwards. A ratio is taken between measurements of one round, and the median
//! over the rounds is what is reported; so a machine that gets slower for a while makes both sides slower
//! and leaves the ratio alone.

use std::time::Duration;

use anyhow::Result;

use crate::metrics::Metrics;
use crate::plan::Group;
use crate::runner;
use crate::task::{Contender, Task};

/// A probe that differs from the usual one of the run by more than this factor was taken while the cores
/// were elsewhere: far from each other, or so near that they were two threads of one.
pub const OFF: f64 = 1.6;

/// All measurements of a run.
#[derive(Debug)]
pub struct Results {
    /// The groups measured.
    pub groups: Vec<Group>,
    /// By round, group and task.
    samples: Vec<Vec<Vec<Metrics>>>,
    usual: Option<f64>,
}

/// A value over all rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The median.
    pub value: f64,
    /// Whether the rounds it comes from were all off, so that it stands for want of a better one.
    pub off: bool,
}

/// Measures all `groups` in each of `rounds` rounds; `progress` hears of each measurement before it starts.
///
/// # Errors
///
/// Fails if a measurement does.
pub fn run(
    groups: Vec<Group>,
    rounds: usize,
    patience: Duration,
    mut progress: impl FnMut(usize, &Task),
) -> Result<Results> {
    let mut samples = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let mut of_round = Vec::with_capacity(groups.len());
        for group in &groups {
            let mut measure = |task: &Task| {
                progress(round, task);
                runner::run(task, patience)
            };
            let of_group: Result<Vec<_>> = if round % 2 == 0 {
                group.tasks.iter().map(&mut measure).collect()
            } else {
                group.tasks.iter().rev().map(&mut measure).collect()
            };
            let mut of_group = of_group?;
            if round % 2 != 0 {
                of_group.reverse();
            }
            of_round.push(of_group);
        }
        samples.push(of_round);
    }
    Ok(Results::new(groups, samples))
}

impl Results {
    fn new(groups: Vec<Group>, samples: Vec<Vec<Vec<Metrics>>>) -> Self {
        let mut probes: Vec<f64> = samples
            .iter()
            .flatten()
            .flatten()
            .flat_map(probes)
            .collect();
        probes.sort_by(f64::total_cmp);
        // Of two places where the cores spend their time, the nearer one; not the minimum, because that may
        // be a rare third.
        let usual = probes.get(probes.len() / 4).copied();
        Self {
            groups,
            samples,
            usual,
        }
    }

    /// The number of rounds.
    pub fn rounds(&self) -> usize {
        self.samples.len()
    }

    /// The lower quartile of all probes, in nanoseconds, unless nothing was probed.
    pub fn usual_distance(&self) -> Option<f64> {
        self.usual
    }

    /// What was measured in one round.
    pub fn sample(&self, round: usize, group: usize, task: usize) -> &Metrics {
        &self.samples[round][group][task]
    }

    /// Whether the cores were as far apart as usual just before and just after a measurement, as far as
    /// anybody looked.
    pub fn is_usual(&self, round: usize, group: usize, task: usize) -> bool {
        let is_usual = |probe: f64| {
            self.usual
                .is_none_or(|usual| probe <= usual * OFF && usual <= probe * OFF)
        };
        probes(self.sample(round, group, task)).all(is_usual)
    }

    /// The rounds in which the cores were as usual for all of `tasks`; or all rounds and `true`, if there
    /// is none.
    fn usual_rounds(&self, group: usize, tasks: &[usize]) -> (Vec<usize>, bool) {
        let is_usual = |&round: &usize| tasks.iter().all(|&task| self.is_usual(round, group, task));
        let rounds: Vec<usize> = (0..self.rounds()).filter(is_usual).collect();
        if rounds.is_empty() {
            ((0..self.rounds()).collect(), true)
        } else {
            (rounds, false)
        }
    }

    /// How many rounds were dropped because a probe was off.
    pub fn dropped(&self, group: usize, task: usize) -> usize {
        (0..self.rounds())
            .filter(|&round| !self.is_usual(round, group, task))
            .count()
    }

    /// The median of `metric`.
    pub fn value(&self, group: usize, task: usize, metric: &str) -> Option<Summary> {
        let (rounds, off) = self.usual_rounds(group, &[task]);
        let values = rounds
            .iter()
            .map(|&round| self.sample(round, group, task).get(metric));
        Some(Summary {
            value: median(values.collect::<Option<_>>()?)?,
            off,
        })
    }

    /// The median of the ratios of `metric`, each taken against the best of `references` in the same round.
    pub fn ratio(
        &self,
        group: usize,
        task: usize,
        references: &[Contender],
        metric: &str,
        best: Best,
    ) -> Option<Summary> {
        self.compare(group, task, references, metric, best, |value, reference| {
            value / reference
        })
    }

    /// The median of the differences of `metric`, each to the best of `references` in the same round.
    pub fn difference(
        &self,
        group: usize,
        task: usize,
        references: &[Contender],
        metric: &str,
        best: Best,
    ) -> Option<Summary> {
        self.compare(group, task, references, metric, best, |value, reference| {
            value - reference
        })
    }

    fn compare(
        &self,
        group: usize,
        task: usize,
        references: &[Contender],
        metric: &str,
        best: Best,
        how: impl Fn(f64, f64) -> f64,
    ) -> Option<Summary> {
        let tasks = &self.groups[group].tasks;
        let references: Vec<usize> = (0..tasks.len())
            .filter(|&index| references.contains(&tasks[index].contender))
            .collect();
        if references.is_empty() || references == [task] {
            return None;
        }
        let all: Vec<usize> = references.iter().copied().chain([task]).collect();
        let (rounds, off) = self.usual_rounds(group, &all);
        let compared = rounds.iter().map(|&round| {
            let value = |task: usize| self.sample(round, group, task).get(metric);
            let of_references = references
                .iter()
                .map(|&reference| value(reference))
                .collect::<Option<Vec<_>>>()?;
            Some(how(value(task)?, best.of(of_references)?))
        });
        Some(Summary {
            value: median(compared.collect::<Option<_>>()?)?,
            off,
        })
    }
}

/// Which of several values is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Best {
    /// Of times, the least.
    Least,
    /// Of rates, the greatest.
    Greatest,
}

impl Best {
    fn of(self, values: Vec<f64>) -> Option<f64> {
        let values = values.into_iter();
        match self {
            Self::Least => values.min_by(f64::total_cmp),
            Self::Greatest => values.max_by(f64::total_cmp),
        }
    }
}

fn probes(metrics: &Metrics) -> impl Iterator<Item = f64> {
    ["probe.before", "probe.after"]
        .into_iter()
        .filter_map(|name| metrics.get(name))
}

/// The middle of `values`, or the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    Some(if values.len().is_multiple_of(2) {
        (values[values.len() / 2 - 1] + upper) / 2.0
    } else {
        upper
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::task::Benchmark;

    fn results(rounds: &[(f64, f64, f64)]) -> Results {
        let plan = Plan {
            benchmarks: vec![Benchmark::Latency],
            cores: (0, 1),
            quick: true,
            only: vec![],
        };
        let mut group = plan.groups().remove(0);
        group.tasks.truncate(2);
        let samples = rounds.iter().map(|&(reference, value, probe)| {
            let reference = Metrics::new()
                .with("p50", reference)
                .with("probe.before", 50.0);
            let value = Metrics::new().with("p50", value).with("probe.after", probe);
            vec![vec![reference, value]]
        });
        Results::new(vec![group], samples.collect())
    }

    #[test]
    fn off_rounds_are_dropped() {
        let results = results(&[(10.0, 12.0, 50.0), (20.0, 26.0, 60.0), (10.0, 90.0, 300.0)]);
        assert_eq!(results.dropped(0, 1), 1);
        assert_eq!(
            results.value(0, 1, "p50"),
            Some(Summary {
                value: 19.0,
                off: false
            })
        );
        let ratio = results.ratio(0, 1, &[Contender::CacheLine], "p50", Best::Least);
        assert_eq!(
            ratio,
            Some(Summary {
                value: 1.25,
                off: false
            })
        );
        let difference = results.difference(0, 1, &[Contender::CacheLine], "p50", Best::Least);
        assert_eq!(
            difference,
            Some(Summary {
                value: 4.0,
                off: false
            })
        );
    }

    #[test]
    fn off_rounds_stand_when_there_are_no_others() {
        let results = results(&[(10.0, 40.0, 300.0)]);
        assert_eq!(
            results.value(0, 1, "p50"),
            Some(Summary {
                value: 40.0,
                off: true
            })
        );
    }
}

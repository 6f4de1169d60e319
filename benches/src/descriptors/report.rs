//! The plan of a run, and its tables.

use std::io::{self, Write};

use anyhow::Result;
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};

use super::{
    Contender, Kind, SCM_MAX_FD, Split, TARGET, Task, one_thread, refusal, split, two_processes,
};
use crate::report::Unit;
use crate::rounds::median;

/// How messages are passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One thread sends, receives and closes by turns.
    OneThread,
    /// The same, one part after the other, each timed.
    Split,
    /// One process sends without a pause, one receives.
    TwoProcesses,
}

impl Mode {
    fn title(self) -> &'static str {
        match self {
            Self::OneThread => "One thread: send, receive and close by turns.",
            Self::Split => "One thread, the parts: sixteen are sent, then received, then closed.",
            Self::TwoProcesses => "Two processes, one of them sending without a pause.",
        }
    }
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How.
    pub modes: Vec<Mode>,
    /// Through what.
    pub kinds: Vec<Kind>,
    /// How many descriptors in a message.
    pub counts: Vec<usize>,
    /// By what. All contenders unless it is to be seen alone.
    pub contenders: Vec<Contender>,
    /// The core of the sender, where that is a process of its own.
    pub sender: usize,
    /// How often.
    pub rounds: usize,
    /// As little as shows that everything works.
    pub quick: bool,
}

/// A row of a table.
#[derive(Debug)]
struct Row {
    mode: Mode,
    task: Task,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    /// One for each round.
    Measured(Vec<Sample>),
    /// Why not.
    Refused(String),
}

/// Nanoseconds a message.
#[derive(Clone, Copy, Debug)]
struct Sample {
    whole: f64,
    parts: Split,
}

/// What was measured.
#[derive(Debug)]
pub struct Results {
    /// What is compared with each other is together.
    groups: Vec<Vec<Row>>,
}

impl Plan {
    /// Measures, round after round, in each of them everything once; contenders in turn forwards and backwards.
    /// `progress` hears of each round before it starts.
    ///
    /// # Errors
    ///
    /// Fails if a measurement does.
    pub fn run(&self, mut progress: impl FnMut(usize)) -> Result<Results> {
        let mut groups = self.groups()?;
        for round in 0..self.rounds {
            progress(round);
            for group in &mut groups {
                let mut measure = |row: &mut Row| -> Result<()> {
                    if let Outcome::Measured(samples) = &mut row.outcome {
                        samples.push(measure(row.mode, &row.task, self.sender)?);
                    }
                    Ok(())
                };
                if round % 2 == 0 {
                    group.iter_mut().try_for_each(&mut measure)
                } else {
                    group.iter_mut().rev().try_for_each(&mut measure)
                }?;
            }
        }
        Ok(Results { groups })
    }

    fn groups(&self) -> Result<Vec<Vec<Row>>> {
        let mut groups = Vec::new();
        for &mode in &self.modes {
            for &kind in &self.kinds {
                for &count in &self.counts {
                    let rows: Result<Vec<Row>> = self
                        .contenders
                        .iter()
                        .filter(|&&contender| takes_part(contender, mode, count))
                        .map(|&contender| self.row(mode, kind, count, contender))
                        .collect();
                    groups.push(rows?);
                }
            }
        }
        Ok(groups)
    }

    fn row(&self, mode: Mode, kind: Kind, count: usize, contender: Contender) -> Result<Row> {
        let task = |messages| Task {
            kind,
            contender,
            count,
            messages,
        };
        let outcome = match one_thread(&task(1)) {
            Ok(_) => Outcome::Measured(Vec::with_capacity(self.rounds)),
            Err(error) => Outcome::Refused(refusal(&error).ok_or(error)?),
        };
        // Some milliseconds, whatever the count: many short measurements, close to those they are compared with,
        // are less disturbed by what else runs than a few long ones. A process has to start for each of its own.
        let scale = match mode {
            Mode::OneThread | Mode::Split => 1,
            Mode::TwoProcesses => 5,
        };
        let messages = scale * 3000 / (1 + count as u64 / 6);
        let messages = if self.quick { messages / 10 } else { messages };
        Ok(Row {
            mode,
            task: task(messages.max(16)),
            outcome,
        })
    }
}

fn takes_part(contender: Contender, mode: Mode, count: usize) -> bool {
    match contender {
        Contender::Bare => count <= SCM_MAX_FD,
        Contender::BareBlocking => count <= SCM_MAX_FD && mode == Mode::TwoProcesses,
        Contender::Link => true,
    }
}

fn measure(mode: Mode, task: &Task, sender: usize) -> Result<Sample> {
    let whole = |whole| Sample {
        whole,
        parts: Split::default(),
    };
    match mode {
        Mode::OneThread => one_thread(task).map(whole),
        Mode::TwoProcesses => two_processes::receive(task, sender).map(whole),
        Mode::Split => split(task).map(|parts| Sample {
            whole: parts.send + parts.recv + parts.close,
            parts,
        }),
    }
}

impl Row {
    fn samples(&self) -> &[Sample] {
        match &self.outcome {
            Outcome::Measured(samples) => samples,
            Outcome::Refused(_) => &[],
        }
    }

    fn of(&self, part: impl FnMut(&Sample) -> f64) -> Spread {
        Spread::of(self.samples().iter().map(part).collect())
    }

    /// How many times the rate of `reference` this one has.
    fn against(&self, reference: &Row) -> Spread {
        let pairs = self.samples().iter().zip(reference.samples());
        Spread::of(pairs.map(|(ours, bare)| bare.whole / ours.whole).collect())
    }
}

/// A value over the rounds.
#[derive(Clone, Copy, Debug)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(values: Vec<f64>) -> Self {
        Self {
            min: values.iter().copied().fold(f64::NAN, f64::min),
            max: values.iter().copied().fold(f64::NAN, f64::max),
            median: median(values).unwrap_or(f64::NAN),
        }
    }
}

/// A table for each mode.
///
/// # Errors
///
/// Fails if `out` does.
pub fn write(results: &Results, out: &mut impl Write) -> io::Result<()> {
    for groups in results
        .groups
        .chunk_by(|a, b| a.first().map(|row| row.mode) == b.first().map(|row| row.mode))
    {
        let Some(mode) = groups.iter().flatten().next().map(|row| row.mode) else {
            continue;
        };
        writeln!(out, "\n{}\n{}", mode.title(), table(mode, groups))?;
        for row in groups.iter().flatten() {
            if let Outcome::Refused(why) = &row.outcome {
                writeln!(
                    out,
                    "{} descriptors, {}: {} refuses: {why}",
                    row.task.count, row.task.kind, row.task.contender
                )?;
            }
        }
    }
    writeln!(
        out,
        "\nTimes are of one message, with everything that was done for it in one thread, or between two at the receiver. Rates\n\
         are of the median. The ratio is that of the rates, each taken within one round: more is better."
    )
}

fn table(mode: Mode, groups: &[Vec<Row>]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    let numbers: &[&str] = match mode {
        Mode::OneThread | Mode::TwoProcesses => &["k msg/s", "k fds/s"],
        Mode::Split => &["send min", "recv min", "close min"],
    };
    table.set_header(
        ["sockets", "fds", "contender", "min", "median"]
            .iter()
            .chain(numbers)
            .chain(&[
                "of minima",
                "ratio median",
                "ratio min",
                "ratio max",
                "target",
            ]),
    );
    for group in groups {
        let reference = group
            .iter()
            .find(|row| row.task.contender == Contender::Bare);
        for row in group.iter().filter(|row| !row.samples().is_empty()) {
            table.add_row(cells(row, reference));
        }
    }
    for column in table.column_iter_mut().filter(|column| column.index != 2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn cells(row: &Row, reference: Option<&Row>) -> Vec<String> {
    let Row { mode, task, .. } = row;
    let time = row.of(|sample| sample.whole);
    let mut cells = vec![
        task.kind.to_string(),
        task.count.to_string(),
        task.contender.to_string(),
        Unit::Time.write(time.min),
        Unit::Time.write(time.median),
    ];
    let thousands = 1e6 / time.median;
    match mode {
        Mode::OneThread | Mode::TwoProcesses => cells.extend([
            format!("{thousands:.1}"),
            format!("{:.0}", thousands * task.count as f64),
        ]),
        Mode::Split => cells.extend(
            [
                row.of(|sample| sample.parts.send),
                row.of(|sample| sample.parts.recv),
                row.of(|sample| sample.parts.close),
            ]
            .map(|part| Unit::Time.write(part.min)),
        ),
    }
    if let Some(reference) = reference.filter(|_| task.contender != Contender::Bare) {
        let ratio = row.against(reference);
        let of_minima = reference.of(|sample| sample.whole).min / time.min;
        cells.extend(
            [of_minima, ratio.median, ratio.min, ratio.max].map(|ratio| format!("{ratio:.3}x")),
        );
        if task.contender == Contender::Link && (1..=SCM_MAX_FD).contains(&task.count) {
            cells.push(format!(">= {TARGET}x"));
        }
    }
    cells
}

//! The command line of the binaries whose measurements have a runner and workers.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::plan::Plan;
use crate::task::{Benchmark, Contender};
use crate::{machine, report, rounds, worker};
use anyhow::{Context, Result, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};

#[derive(Debug, Parser)]
struct Options {
    /// What to measure; everything if nothing is named.
    benchmarks: Vec<Benchmark>,

    /// How often each contender is measured; the median counts [default: 9, with --quick 1].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,

    /// Measure these contenders only.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Contender>,

    /// The two cores [default: the first two this process may use].
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    cores: Option<Vec<usize>>,

    /// Use the first core only, which leaves out what polls.
    #[arg(long)]
    one_core: bool,

    /// As little as shows that everything works; the numbers mean nothing.
    #[arg(long)]
    quick: bool,

    /// Also write every number of every round to a file.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// Give up when a measurement makes no progress for this many seconds.
    #[arg(long, default_value_t = 60)]
    patience: u64,
}

/// The program `name`, which is `about` something: measures those of `benchmarks` that the command line names, or takes
/// part in a measurement.
pub fn main(name: &'static str, about: &'static str, benchmarks: &'static [Benchmark]) -> ExitCode {
    let outcome = if std::env::args().nth(1).as_deref() == Some(worker::MARK) {
        worker::run(std::env::args().skip(1))
    } else {
        measure(&Options::of(name, about, benchmarks), benchmarks)
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    /// Those of this process, which ends here if they make no sense.
    fn of(name: &'static str, about: &'static str, benchmarks: &'static [Benchmark]) -> Self {
        let names = benchmarks.iter().filter_map(ValueEnum::to_possible_value);
        let parser =
            PossibleValuesParser::new(names).try_map(|name| Benchmark::from_str(&name, false));
        let mut command = Self::command()
            .name(name)
            .about(about)
            .mut_arg("benchmarks", |arg| arg.value_parser(parser));
        let matches = command.get_matches_mut();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
    }
}

fn measure(options: &Options, all: &[Benchmark]) -> Result<()> {
    let mut out = io::stdout();
    write!(out, "{}", machine::header())?;
    if cfg!(debug_assertions) {
        writeln!(
            out,
            "warning  built without optimisations: the numbers mean nothing"
        )?;
    }

    let (first, second) = match options.cores.as_deref() {
        Some(&[first, second]) => (first, second),
        Some(other) => anyhow::bail!("--cores takes two cores, not {}", other.len()),
        None => machine::default_cores()?,
    };
    let cores = (first, if options.one_core { first } else { second });
    writeln!(out, "cores    {} and {}", cores.0, cores.1)?;

    let benchmarks = if options.benchmarks.is_empty() {
        all.to_vec()
    } else {
        let mut benchmarks = options.benchmarks.clone();
        benchmarks.sort();
        benchmarks.dedup();
        benchmarks
    };
    let groups = Plan {
        benchmarks,
        cores,
        quick: options.quick,
        only: options.only.clone(),
    }
    .groups();
    ensure!(
        !groups.is_empty(),
        "nothing is left to measure; what polls needs two cores"
    );

    let rounds = usize::from(options.rounds.unwrap_or(if options.quick { 1 } else { 9 }));
    let patience = Duration::from_secs(options.patience);
    let is_watched = io::stderr().is_terminal();
    let results = rounds::run(groups, rounds, patience, |round, task| {
        if is_watched {
            eprint!("\r\x1b[Kround {} of {rounds}: {task}", round + 1);
        }
    })?;
    if is_watched {
        eprint!("\r\x1b[K");
    }

    report::write(&results, &mut out)?;
    if let Some(path) = &options.csv {
        let mut file =
            BufWriter::new(File::create(path).with_context(|| format!("{}", path.display()))?);
        report::write_csv(&results, &mut file)?;
        file.flush()?;
    }
    Ok(())
}

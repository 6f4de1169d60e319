//! Measures memlane and its references between two pinned processes, and prints tables.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use memlane_benches::rounds::Plan;
use memlane_benches::task::Benchmark;
use memlane_benches::{machine, report, rounds, worker};

/// Measure memlane and its references between two pinned processes.
#[derive(Debug, Parser)]
#[command(name = "two_process")]
struct Options {
    /// What to measure; everything if nothing is named.
    #[arg(value_enum)]
    benchmarks: Vec<Benchmark>,

    /// How often each contender is measured; the median counts [default: 9, with --quick 1].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,

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

fn main() -> ExitCode {
    let outcome = if std::env::args().nth(1).as_deref() == Some(worker::MARK) {
        worker::run(std::env::args().skip(1))
    } else {
        measure(&Options::parse())
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("two_process: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<()> {
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
        Benchmark::value_variants().to_vec()
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
    }
    .groups();
    ensure!(!groups.is_empty(), "what polls needs two cores");

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

//! Measures what it costs to pass descriptors, through a link and with bare system calls, and prints tables.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use memlane_benches::descriptors::report::{self, Mode, Plan};
use memlane_benches::descriptors::{self, COUNTS, Contender, KINDS, two_processes};
use memlane_benches::{machine, worker};

/// Measure what it costs to pass descriptors.
#[derive(Debug, Parser)]
#[command(name = "descriptors")]
struct Options {
    /// How messages are passed; every way if none is named.
    #[arg(value_enum)]
    modes: Vec<Mode>,

    /// How often everything is measured [default: 51, with --quick 2].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,

    /// Descriptors in a message.
    #[arg(long, value_delimiter = ',', default_values_t = COUNTS.iter().copied())]
    counts: Vec<usize>,

    /// Measure one contender only, for a profiler to look at.
    #[arg(long)]
    only: Option<Contender>,

    /// The cores of receiver and sender; one thread runs on the first [default: the first two this process may use].
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    cores: Option<Vec<usize>>,

    /// As little as shows that everything works; the numbers mean nothing.
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    let outcome = if std::env::args().nth(1).as_deref() == Some(worker::MARK) {
        two_processes::send(std::env::args().skip(1))
    } else {
        measure(&Options::parse())
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("descriptors: {error:#}");
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
    let (receiver, sender) = match options.cores.as_deref() {
        Some(&[receiver, sender]) => (receiver, sender),
        Some(other) => anyhow::bail!("--cores takes two cores, not {}", other.len()),
        None => machine::default_cores()?,
    };
    writeln!(out, "cores    {receiver} and {sender}")?;
    machine::pin(receiver)?;
    descriptors::raise_limit()?;

    let rounds = usize::from(options.rounds.unwrap_or(if options.quick { 2 } else { 51 }));
    let is_watched = io::stderr().is_terminal();
    let plan = Plan {
        modes: match options.modes.as_slice() {
            [] => Mode::value_variants().to_vec(),
            modes => modes.to_vec(),
        },
        kinds: KINDS.to_vec(),
        counts: options.counts.clone(),
        contenders: match options.only {
            Some(contender) => vec![contender],
            None => Contender::value_variants().to_vec(),
        },
        sender,
        rounds,
        quick: options.quick,
    };
    let results = plan.run(|round| {
        if is_watched {
            eprint!("\r\x1b[Kround {} of {rounds}", round + 1);
        }
    })?;
    if is_watched {
        eprint!("\r\x1b[K");
    }
    report::write(&results, &mut out)?;
    Ok(())
}

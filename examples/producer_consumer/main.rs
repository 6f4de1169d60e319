//! Streams a real file from a producer process to consumer processes through a lane, and checks every byte.
//!
//! This process only coordinates: it runs itself again as one producer and several consumers, shows how far they
//! are, and prints what they measured. Each consumer hashes what it received and compares that with the file's
//! own hash; any difference, and any process that does not come to its end, makes the exit code 1.

mod consumer;
mod coordinator;
mod producer;
mod reports;
mod sizes;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use memlane::WaitPolicy;
use sizes::Sizes;

/// Stream a file from one process to several others through a memlane lane, and check every byte.
#[derive(Debug, Parser)]
#[command(name = "producer_consumer", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    job: Job,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Clone, Debug, clap::Args)]
struct Job {
    /// The file to stream [default: the compiler library of the Rust toolchain]
    file: Option<PathBuf>,
    /// Consumer processes
    #[arg(long, short = 'c', default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    consumers: u32,
    /// Message sizes in bytes: one (4096), some (64,4096,65536) or a range (64..65536, small ones as often
    /// as large ones on a logarithmic scale)
    #[arg(long, short = 's', default_value = "64..65536")]
    sizes: Sizes,
    /// How many times to stream the file
    #[arg(long, short = 'r', default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Ring size in bytes, a power of two
    #[arg(long, default_value_t = 1 << 20)]
    ring_bytes: usize,
    /// How both sides wait for one another
    #[arg(long, value_enum, default_value_t = Wait::Adaptive)]
    wait: Wait,
    /// Send at most so many messages a second, to see latency without queueing [default: as many as it can]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Trust one another: eventfd doorbells, and payload read in place
    #[arg(long)]
    trusted: bool,
}

/// What this executable is when it runs itself again; not to be called by hand.
#[derive(Debug, Subcommand)]
enum Role {
    #[command(hide = true)]
    Producer(Part),
    #[command(hide = true)]
    Consumer(Part),
}

#[derive(Debug, clap::Args)]
struct Part {
    #[command(flatten)]
    job: Job,
    /// Name of the service.
    #[arg(long)]
    service: String,
    /// Length of the file.
    #[arg(long)]
    len: u64,
    /// The file's own hash.
    #[arg(long)]
    hash: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Wait {
    Poll,
    Adaptive,
    Block,
}

impl From<Wait> for WaitPolicy {
    fn from(wait: Wait) -> WaitPolicy {
        match wait {
            Wait::Poll => WaitPolicy::Poll,
            Wait::Adaptive => WaitPolicy::Adaptive,
            Wait::Block => WaitPolicy::Block,
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.role {
        None => coordinator::run(cli.job),
        Some(Role::Producer(part)) => producer::run(&part).map(|()| ExitCode::SUCCESS),
        Some(Role::Consumer(part)) => consumer::run(&part).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("producer_consumer: {error:#}");
        ExitCode::FAILURE
    })
}

//! Measures memlane and its references between two pinned processes, and prints tables.

use std::process::ExitCode;

use memlane_benches::cli;
use memlane_benches::task::Benchmark;

fn main() -> ExitCode {
    cli::main(
        "two_process",
        "Measure memlane and its references between two pinned processes.",
        Benchmark::LANES,
    )
}

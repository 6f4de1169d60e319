//! Measures regions and what they are compared with, and prints tables.

use std::process::ExitCode;

use memlane_benches::cli;
use memlane_benches::task::Benchmark;

fn main() -> ExitCode {
    cli::main(
        "regions",
        "Measure regions: made, written, handed over and read.",
        Benchmark::REGIONS,
    )
}

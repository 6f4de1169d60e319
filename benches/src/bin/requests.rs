//! Measures requests and replies, and what they are made of, and prints tables.

use std::process::ExitCode;

use memlane_benches::cli;
use memlane_benches::task::Benchmark;

fn main() -> ExitCode {
    cli::main(
        "requests",
        "Measure requests and replies beside messages that go one way and beside bare wake-ups.",
        Benchmark::REQUESTS,
    )
}

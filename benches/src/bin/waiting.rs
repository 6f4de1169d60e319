//! Measures waiting and waking, and what they are compared with, and prints tables.

use std::process::ExitCode;

use memlane_benches::cli;
use memlane_benches::task::Benchmark;

fn main() -> ExitCode {
    cli::main(
        "waiting",
        "Measure waiting and waking: sleepers that are woken, spinning that adapts, what senders pay for it, and tasks.",
        Benchmark::WAITING,
    )
}

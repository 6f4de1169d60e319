//! The runner works from end to end.

use std::process::{Command, Output};

fn waiting(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_waiting"))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn quick_run_of_everything() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let output = waiting(&["--quick", "--rounds", "2"]);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}{stderr}");
    for heading in [
        "cpu",
        "kernel",
        "both sleep",
        "costs its sender",
        "two tasks",
    ] {
        assert!(stdout.contains(heading), "no {heading:?} in\n{stdout}");
    }
    for contender in [
        "stream-epoll",
        "memlane-batch-64",
        "memlane-membarrier",
        "async-fd-once",
        "unix-stream",
    ] {
        let row = format!(" | {contender} ");
        assert!(stdout.contains(&row), "no {row:?} in\n{stdout}");
    }
    for (gap, contender) in [("1 us", "eventfd-ring"), ("10 ms", "memlane-adaptive")] {
        let (gap, contender) = (format!("| {gap} "), format!("| {contender} "));
        let is_there = |line: &str| line.starts_with(&gap) && line.contains(&contender);
        assert!(
            cores < 2 || stdout.lines().any(is_there),
            "no {gap}{contender}in\n{stdout}"
        );
    }
    assert!(!stdout.contains("NaN"), "{stdout}");
}

#[test]
fn one_core_leaves_out_what_spins() {
    let output = waiting(&["paced", "cost", "cost-followed", "--quick", "--one-core"]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}");
    assert!(
        stdout.contains("one core") && !stdout.contains("two cores"),
        "{stdout}"
    );
    assert!(!stdout.contains("Paced"), "{stdout}");
}

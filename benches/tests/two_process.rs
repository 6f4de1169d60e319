//! The runner works from end to end, and fails instead of hanging.

use std::process::{Command, Output};

fn two_process(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_two_process"))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn quick_run_of_everything() {
    let output = two_process(&["--quick", "--rounds", "2"]);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}{stderr}");
    for heading in [
        "cpu",
        "kernel",
        "rustc",
        "timer",
        "command",
        "both sleep",
        "Set-up",
        "Footprint",
    ] {
        assert!(stdout.contains(heading), "no {heading:?} in\n{stdout}");
    }
}

#[test]
fn every_number_goes_to_the_file() {
    let path = std::env::temp_dir().join(format!("memlane-bench-{}.csv", std::process::id()));
    let output = two_process(&["setup", "--quick", "--csv", path.to_str().unwrap()]);
    let csv = std::fs::read_to_string(&path);
    let _ = std::fs::remove_file(&path);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(csv.unwrap().contains("0,setup,\"8 B\",bare,"));
}

#[test]
fn a_core_that_does_not_exist_is_told() {
    let output = two_process(&["latency", "--quick", "--cores", "0,1000"]);
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("core 1000"), "{stderr}");
}

#[test]
fn a_worker_does_not_outlive_its_runner() {
    // Process 1 is never the one that started this worker.
    let task = [
        "--benchmark",
        "latency",
        "--contender",
        "cache-line",
        "--size",
        "8",
        "--iterations",
        "1",
        "--cores",
        "0,0",
    ];
    let arguments: Vec<&str> = ["worker", "--role", "0", "--parent", "1", "--name", "orphan"]
        .into_iter()
        .chain(task)
        .collect();
    let output = two_process(&arguments);
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("the runner is gone"), "{stderr}");
}

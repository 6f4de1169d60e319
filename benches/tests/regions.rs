//! The runner works from end to end, and says so when it cannot.

use std::process::{Command, Output};

fn regions(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_regions"))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn quick_run_of_everything() {
    let output = regions(&["--quick", "--rounds", "2"]);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}{stderr}");
    for heading in [
        "cpu",
        "kernel",
        "one process",
        "two processes",
        "over and back",
    ] {
        assert!(stdout.contains(heading), "no {heading:?} in\n{stdout}");
    }
    for contender in [
        "memfd",
        "frozen-prefault",
        "live",
        "ipc-channel",
        "slots-asleep",
    ] {
        let row = format!(" | {contender} ");
        assert!(stdout.contains(&row), "no {row:?} in\n{stdout}");
    }
    assert!(!stdout.contains("NaN"), "{stdout}");
}

#[test]
fn only_what_is_named_is_measured() {
    let output = regions(&["fresh", "--quick", "--only", "memfd,frozen"]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}");
    assert!(
        stdout.contains(" | frozen ") && !stdout.contains(" | live "),
        "{stdout}"
    );
    assert!(!stdout.contains("over and back"), "{stdout}");
}

#[test]
fn what_is_about_lanes_is_not_measured_here() {
    let output = regions(&["latency", "--quick"]);
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("fresh-sent"), "{stderr}");
}

//! The benchmark of the latest-value cell works from end to end.

use std::process::Command;

#[test]
fn quick_run() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let output = Command::new(env!("CARGO_BIN_EXE_latest"))
        .arg("--quick")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    if cores < 2 {
        assert!(stderr.contains("a core each"), "{stdout}{stderr}");
        return;
    }
    assert!(output.status.success(), "{stdout}{stderr}");
    for heading in [
        "cpu",
        "Reads of 64 bytes",
        "An update of 64 bytes",
        "cell, to none",
    ] {
        assert!(stdout.contains(heading), "no {heading:?} in\n{stdout}");
    }
}

//! The benchmark of requests works from end to end.

use std::process::Command;

#[test]
fn quick_run() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let output = Command::new(env!("CARGO_BIN_EXE_requests"))
        .args(["--quick", "--rounds", "2"])
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}{stderr}");
    assert!(stdout.contains("both sleep"), "{stdout}");
    assert!(cores < 2 || stdout.contains("both poll"), "{stdout}");
    for contender in ["eventfd-epoll", "requests", "requests-trusting"] {
        let row = format!(" | {contender} ");
        assert!(stdout.contains(&row), "no {row:?} in\n{stdout}");
    }
    assert!(!stdout.contains("NaN"), "{stdout}");
}

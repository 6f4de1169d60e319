//! The runner works from end to end, and says so when it cannot.

use std::process::{Command, Output};

fn descriptors(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_descriptors"))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn quick_run_of_everything() {
    let output = descriptors(&["--quick"]);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{stdout}{stderr}");
    for heading in ["cpu", "kernel", "One thread:", "the parts", "Two processes"] {
        assert!(stdout.contains(heading), "no {heading:?} in\n{stdout}");
    }
    for contender in ["bare", "bare-blocking", "link"] {
        let row = format!(" 253 | {contender} ");
        assert!(stdout.contains(&row), "no {row:?} in\n{stdout}");
    }
    assert!(!stdout.contains("NaN"), "{stdout}");
}

#[test]
fn a_core_that_does_not_exist_is_told() {
    let output = descriptors(&["two-processes", "--quick", "--cores", "0,1000"]);
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("core 1000"), "{stderr}");
}

#[test]
fn a_sender_without_a_receiver_fails() {
    let sender = ["worker", "--kind", "seqpacket", "--contender", "bare"];
    let work = ["--count", "1", "--messages", "10", "--core", "0"];
    let output = descriptors(&[&sender[..], &work[..]].concat());
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("sendmsg"), "{stderr}");
}

//! Tests that need a process of their own: the test's executable, run again for one test alone.
#![allow(dead_code)] // no test uses all of it

use std::process::{Command, Stdio};

/// Says which test it is that runs alone.
const ALONE: &str = "MEMLANE_TEST_ALONE";

/// Runs `body` in a process of its own, in which nothing else runs, as the test `name` that calls this.
pub(crate) fn alone(name: &str, body: impl FnOnce()) {
    within(name, &[], body);
}

/// As [`alone`], in a process that is started by the command `around`, with its command line behind.
pub(crate) fn within(name: &str, around: &[&str], body: impl FnOnce()) {
    if std::env::var(ALONE).is_ok_and(|alone| alone == name) {
        return body();
    }
    let mut command = again(around, &[name, "--exact"]);
    let output = command.env(ALONE, name).output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let ran = out.contains("1 passed");
    assert!(
        output.status.success() && ran,
        "{name}: {}\n{out}\n{err}",
        output.status
    );
    // What it skipped, and why.
    eprint!("{err}");
}

/// The test's executable again, with arguments for the test harness, started by the command `around`.
pub(crate) fn again(around: &[&str], arguments: &[&str]) -> Command {
    let this = std::env::current_exe().unwrap();
    let mut command = match around {
        [] => Command::new(this),
        [program, rest @ ..] => {
            let mut command = Command::new(program);
            command.args(rest).arg(this);
            command
        }
    };
    command
        .args(arguments)
        .args(["--nocapture", "--test-threads=1"])
        .stdin(Stdio::null());
    command
}

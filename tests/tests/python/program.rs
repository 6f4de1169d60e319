//! The program, and messages that it and the tests know.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    thread::{self, JoinHandle},
};

use memlane::{Address, Publisher};
use memlane_tests::{PATIENCE, Policy, Scene, alive, fill, length, unbound};
use rustix::process::{Pid, Signal, kill_process};

/// Longer than what a ring of 16 KiB takes.
const LONGEST: usize = 40_000;

/// The program, running.
pub(crate) struct Python {
    pub(crate) process: Child,
    pub(crate) input: Option<ChildStdin>,
    pub(crate) lines: Receiver<String>,
    pub(crate) reader: Option<JoinHandle<()>>,
}

impl Python {
    pub(crate) fn start(part: &str, address: &Address, more: &[&str]) -> Python {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/memlane.py");
        let mut process = Command::new("python3")
            // Nothing is written beside the program.
            .arg("-B")
            .arg(program)
            .arg(part)
            .arg(path(address))
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let output = process.stdout.take().unwrap();
        let (tell, lines) = channel();
        let reader = thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                alive();
                if tell.send(line.unwrap()).is_err() {
                    return;
                }
            }
        });
        Python {
            input: process.stdin.take(),
            process,
            lines,
            reader: Some(reader),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("another line")
    }

    #[track_caller]
    pub(crate) fn says(&self, expected: &str) {
        assert_eq!(self.line(), expected);
    }

    /// That it has received this.
    #[track_caller]
    pub(crate) fn has(&self, message: &[u8]) {
        self.says(&format!("{} {}", message.len(), crc(message)));
    }

    /// The number in the line that says how often it slept.
    #[track_caller]
    pub(crate) fn slept(&self) -> u64 {
        let line = self.line();
        let number = line.strip_prefix("slept ").expect(&line);
        number.parse().expect(&line)
    }

    /// Has it send these messages.
    pub(crate) fn send(&mut self, messages: impl IntoIterator<Item = u64>) {
        let lines: String = messages
            .into_iter()
            .map(|number| format!("{number} {}\n", length(number, 30_000)))
            .collect();
        let input = self.input.as_mut().unwrap();
        input.write_all(lines.as_bytes()).expect("a listener");
    }

    pub(crate) fn sent(&self, messages: u64) {
        (0..messages).for_each(|_| self.says("sent"));
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        self.end();
    }

    #[track_caller]
    pub(crate) fn finish(mut self) {
        drop(self.input.take());
        let status = self.end();
        assert!(status.success(), "{status}");
    }

    pub(crate) fn end(&mut self) -> ExitStatus {
        let status = self.process.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        status
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

fn path(address: &Address) -> OsString {
    let path: PathBuf = address.to_string().into();
    assert!(path.is_absolute(), "{path:?}");
    path.into()
}

/// Whether it can be started.
pub(crate) fn python() -> bool {
    let found = Command::new("python3").arg("--version").output();
    let Err(error) = found else { return true };
    assert!(
        std::env::var_os("MEMLANE_REQUIRE_PYTHON").is_none_or(|set| set != "1"),
        "MEMLANE_REQUIRE_PYTHON=1, and python3 does not start: {error}"
    );
    eprintln!("skipped: python3 does not start: {error}");
    false
}

/// That of zlib.
pub(crate) fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
        crc
    })
}

/// Message `number` of this test's own publishers.
pub(crate) fn message(number: u64) -> Vec<u8> {
    let mut message = vec![0; length(number, LONGEST)];
    fill(number, &mut message);
    message
}

/// That this is message `number` of the program's.
#[track_caller]
pub(crate) fn check(number: u64, message: &[u8]) {
    assert_eq!(message.len(), length(number, 30_000), "message {number}");
    let expected = (number % 251..251).chain(std::iter::repeat_with(|| 0..251).flatten());
    assert!(
        message
            .iter()
            .copied()
            .map(u64::from)
            .eq(expected.take(message.len())),
        "message {number} has other contents"
    );
}

pub(crate) fn bind(scene: &Scene, policy: Policy) -> Publisher {
    unbound(1 << 14)
        .wait(policy.into())
        .bind_to(&scene.address("lane"))
        .unwrap()
}

//! Starts the others, shows how far they are, and prints what they measured.

use std::{
    env,
    fs::File,
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use comfy_table::{CellAlignment, Table, presets::UTF8_HORIZONTAL_ONLY};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use memlane_transport::Link;

use crate::{
    Job,
    reports::{ConsumerReport, ProducerReport, Report},
};

/// What the conventions of shells say for SIGINT.
const INTERRUPTED: u8 = 130;

/// After Ctrl-C, processes that have not ended by themselves are killed.
const GRACE: Duration = Duration::from_secs(2);

/// One child and what it reports.
struct Worker {
    name: String,
    child: Child,
    reader: JoinHandle<()>,
}

/// From the thread that listens to worker `.0`: a report, or that there will be none any more.
type Event = (usize, Option<Report>);

pub(crate) fn run(mut job: Job) -> anyhow::Result<ExitCode> {
    let path = match job.file.take() {
        Some(path) => path,
        None => default_file()
            .context("found no Rust toolchain to take a large file from: name a FILE")?,
    };
    let (len, hash) = measure(&path)?;
    job.file = Some(path.clone());
    let interrupts = Arc::new(AtomicU32::new(0));
    let counter = interrupts.clone();
    ctrlc::set_handler(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    })?;
    println!(
        "{} ({}), {} times, to {} consumers, in messages of {} bytes",
        path.display(),
        HumanBytes(len),
        job.repeat,
        job.consumers,
        job.sizes
    );

    let mut run = Run::new(job, len, hash, interrupts);
    run.start("producer")?;
    let finished = run.watch();
    // Whatever happened, nobody stays behind.
    let exits = run.reap();
    if finished? == Ended::Interrupted {
        eprintln!("producer_consumer: interrupted");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    run.conclude(&exits)
}

struct Run {
    job: Job,
    len: u64,
    hash: String,
    service: String,
    interrupts: Arc<AtomicU32>,
    /// The producer, then the consumers.
    workers: Vec<Worker>,
    events: (Sender<Event>, Receiver<Event>),
    bars: MultiProgress,
    progress: Vec<ProgressBar>,
    producer: Option<ProducerReport>,
    consumers: Vec<Option<ConsumerReport>>,
}

#[derive(PartialEq)]
enum Ended {
    ByItself,
    Interrupted,
}

impl Run {
    fn new(job: Job, len: u64, hash: String, interrupts: Arc<AtomicU32>) -> Run {
        Run {
            consumers: (0..job.consumers).map(|_| None).collect(),
            job,
            len,
            hash,
            service: format!("producer_consumer.{}", std::process::id()),
            interrupts,
            workers: Vec::new(),
            events: channel(),
            bars: MultiProgress::new(),
            progress: Vec::new(),
            producer: None,
        }
    }

    /// Runs this executable again, with a link as its standard input.
    fn start(&mut self, role: &str) -> anyhow::Result<()> {
        let (ours, theirs) = Link::pair()?;
        let job = &self.job;
        let mut command = Command::new(env::current_exe()?);
        command
            .arg(role)
            .arg(job.file.as_deref().context("a file")?);
        let options = [
            ("--consumers", job.consumers.to_string()),
            ("--sizes", job.sizes.to_string()),
            ("--repeat", job.repeat.to_string()),
            ("--ring-bytes", job.ring_bytes.to_string()),
            ("--wait", format!("{:?}", job.wait).to_lowercase()),
            ("--service", self.service.clone()),
            ("--len", self.len.to_string()),
            ("--hash", self.hash.clone()),
        ];
        command.args(
            options
                .iter()
                .flat_map(|(option, value)| [*option, value.as_str()]),
        );
        if let Some(rate) = job.rate {
            command.arg("--rate").arg(rate.to_string());
        }
        if job.trusted {
            command.arg("--trusted");
        }
        let child = command
            .stdin(Stdio::from(theirs.into_fd()))
            .spawn()
            .context("cannot run this program again")?;
        let at = self.workers.len();
        let sender = self.events.0.clone();
        let reader = std::thread::spawn(move || {
            while let Ok(report) = ours.recv::<Report>() {
                if sender.send((at, Some(report))).is_err() {
                    return;
                }
            }
            let _ = sender.send((at, None));
        });
        let name = if at == 0 {
            role.to_owned()
        } else {
            format!("{role} {at}")
        };
        self.workers.push(Worker {
            name,
            child,
            reader,
        });
        Ok(())
    }

    fn start_consumers(&mut self) -> anyhow::Result<()> {
        let style = ProgressStyle::with_template(
            "{prefix:>12} {wide_bar} {binary_bytes:>11} {binary_bytes_per_sec:>13}",
        )?;
        for number in 1..=self.job.consumers {
            self.start("consumer")?;
            let bar =
                ProgressBar::new(self.len * u64::from(self.job.repeat)).with_style(style.clone());
            self.progress
                .push(self.bars.add(bar.with_prefix(format!("consumer {number}"))));
        }
        Ok(())
    }

    /// Takes reports until every process has said its last.
    fn watch(&mut self) -> anyhow::Result<Ended> {
        let mut ended = 0;
        let mut interrupted: Option<Instant> = None;
        while ended < self.workers.len() {
            match self.events.1.recv_timeout(Duration::from_millis(50)) {
                Ok((at, Some(report))) => self.take(at, report)?,
                Ok((_, None)) => ended += 1,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the threads that listen are gone"),
            }
            let interrupts = self.interrupts.load(Ordering::Relaxed);
            if interrupts > 0 {
                let since = *interrupted.get_or_insert_with(Instant::now);
                // They have had the terminal's Ctrl-C too, but not another process's signal to this one.
                if interrupts == 1 && since.elapsed() < GRACE {
                    self.signal(rustix::process::Signal::INT);
                } else {
                    self.signal(rustix::process::Signal::KILL);
                }
            }
        }
        for bar in &self.progress {
            bar.finish_and_clear();
        }
        Ok(if interrupted.is_some() {
            Ended::Interrupted
        } else {
            Ended::ByItself
        })
    }

    fn take(&mut self, at: usize, report: Report) -> anyhow::Result<()> {
        match report {
            Report::Bound => self.start_consumers()?,
            Report::Subscribed => {}
            Report::Progress(bytes) => self.progress[at - 1].set_position(bytes),
            Report::Producer(report) => self.producer = Some(report),
            Report::Consumer(report) => {
                self.progress[at - 1].set_position(report.bytes);
                self.consumers[at - 1] = Some(report);
            }
        }
        Ok(())
    }

    fn signal(&mut self, signal: rustix::process::Signal) {
        for worker in &mut self.workers {
            // Not reaped yet, so the number is still this child's.
            if let Ok(None) = worker.child.try_wait() {
                let _ = rustix::process::kill_process(
                    rustix::process::Pid::from_child(&worker.child),
                    signal,
                );
            }
        }
    }

    /// Waits for every process; those whose link ended are ending too.
    fn reap(&mut self) -> Vec<(String, ExitStatus)> {
        let mut exits = Vec::new();
        for mut worker in self.workers.drain(..) {
            let deadline = Instant::now() + GRACE;
            let status = loop {
                match worker.child.try_wait() {
                    Ok(Some(status)) => break status,
                    Ok(None) if Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(1))
                    }
                    _ => {
                        let _ = worker.child.kill();
                        break worker.child.wait().unwrap_or_default();
                    }
                }
            };
            let _ = worker.reader.join();
            exits.push((worker.name, status));
        }
        // A producer that was killed left its socket's name behind.
        if let Ok(address) = memlane::address_of(&self.service) {
            let _ = memlane_transport::remove_stale(&address);
        }
        exits
    }

    /// Prints the table, and what went wrong.
    fn conclude(&self, exits: &[(String, ExitStatus)]) -> anyhow::Result<ExitCode> {
        let mut wrong = Vec::new();
        for (name, status) in exits.iter().filter(|(_, status)| !status.success()) {
            wrong.push(match status.signal() {
                Some(signal) => format!("{name} was killed by signal {signal}"),
                None => format!("{name} failed"),
            });
        }
        if self.consumers.iter().any(Option::is_some) {
            println!("{}", self.table());
            println!(
                "latency includes the time a message waits in the ring; --rate shows it without a queue"
            );
        }
        for (at, consumer) in self.consumers.iter().enumerate() {
            let number = at + 1;
            match consumer {
                Some(ConsumerReport {
                    mismatch: Some(mismatch),
                    ..
                }) => {
                    wrong.push(format!("consumer {number}: hash mismatch, {mismatch}"));
                }
                Some(report) if report.passes != self.job.repeat => wrong.push(format!(
                    "consumer {number} received {} of {} passes over the file",
                    report.passes, self.job.repeat
                )),
                _ => {}
            }
        }
        if exits.len() <= self.job.consumers as usize && wrong.is_empty() {
            wrong.push("the producer ended before there were consumers".to_owned());
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("; "));
        println!(
            "every consumer received the file {} times as it is: blake3 {}",
            self.job.repeat, self.hash
        );
        Ok(ExitCode::SUCCESS)
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(UTF8_HORIZONTAL_ONLY);
        table.set_header([
            "",
            "GB/s",
            "messages/s",
            "p50",
            "p99",
            "p99.9",
            "wakeups",
            "stalls",
        ]);
        let speed = |bytes: u64, messages: u64, seconds: f64| {
            let seconds = seconds.max(1e-9);
            [
                format!("{:.2}", bytes as f64 / seconds / 1e9),
                format!("{:.0}", messages as f64 / seconds),
            ]
        };
        if let Some(producer) = &self.producer {
            let [bytes, messages] = speed(producer.bytes, producer.messages, producer.seconds);
            let dash = || "-".to_owned();
            // Of the producer's own: it was rung awake as often as it slept for want of room.
            let (wakeups, stalls) = (producer.sleeps.to_string(), producer.stalls.to_string());
            table.add_row([
                "producer".to_owned(),
                bytes,
                messages,
                dash(),
                dash(),
                dash(),
                wakeups,
                stalls,
            ]);
        }
        for (at, consumer) in self.consumers.iter().enumerate() {
            let Some(consumer) = consumer else { continue };
            let [bytes, messages] = speed(consumer.bytes, consumer.messages, consumer.seconds);
            let micros = |nanos: u64| format!("{:.2} us", nanos as f64 / 1e3);
            table.add_row([
                format!("consumer {}", at + 1),
                bytes,
                messages,
                micros(consumer.latency.p50),
                micros(consumer.latency.p99),
                micros(consumer.latency.p999),
                consumer.wakeups.to_string(),
                "-".to_owned(),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

/// Length and hash of the file to stream.
fn measure(path: &Path) -> anyhow::Result<(u64, String)> {
    let cannot = || format!("cannot read {}", path.display());
    // Before it is opened, which would wait for the other end of a pipe.
    let metadata = std::fs::metadata(path).with_context(cannot)?;
    ensure!(
        metadata.is_file(),
        "cannot read {}: expected a regular file",
        path.display()
    );
    ensure!(
        metadata.len() > 0,
        "{} is empty: there is nothing to stream",
        path.display()
    );
    let file = File::open(path).with_context(cannot)?;
    let mut hasher = blake3::Hasher::new();
    let len =
        io::copy(&mut io::Read::take(file, metadata.len()), &mut hasher).with_context(cannot)?;
    Ok((len, hasher.finalize().to_hex().to_string()))
}

/// The largest file in `lib` of the toolchain that runs this: on Linux, librustc_driver, some 150 MB.
fn default_file() -> Option<PathBuf> {
    let from_cargo = env::var_os("CARGO")
        .map(PathBuf::from)
        .and_then(|cargo| Some(cargo.parent()?.parent()?.to_owned()));
    let from_rustc = || {
        let output = Command::new("rustc")
            .args(["--print", "sysroot"])
            .output()
            .ok()?;
        Some(PathBuf::from(
            String::from_utf8(output.stdout).ok()?.trim_end(),
        ))
    };
    let largest = |sysroot: PathBuf| {
        let files = std::fs::read_dir(sysroot.join("lib")).ok()?.flatten();
        let sized = files.filter_map(|entry| {
            Some((
                entry.metadata().ok().filter(|m| m.is_file())?.len(),
                entry.path(),
            ))
        });
        sized
            .max()
            .filter(|(len, _)| *len > 1 << 20)
            .map(|(_, path)| path)
    };
    from_cargo
        .and_then(largest)
        .or_else(|| from_rustc().and_then(largest))
}

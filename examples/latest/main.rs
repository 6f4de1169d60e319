//! The newest pose of something that moves, for a process that looks all the time and one that sleeps until it changes.
//!
//! This process starts the two, and then changes the pose so many times a second. One reader spins, and sees a change
//! at once; the other sleeps in the kernel, and sees it as soon as it is awake. Neither can hold this process up: what
//! they are too slow for, they miss. `sleep.rs` is what it takes to sleep.
//!
//! ```text
//! $ cargo run --release --example latest -- [--rate 1000] [--seconds 3]
//! ```
//!
//! It fails if a reader gets a pose that nobody wrote, or sleeps through the last one.

mod sleep;

use std::{
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use memlane_region::latest::{LatestReader, LatestWriter, ReadError};
use memlane_signaling::{Pacer, WaitPolicy, gone};
use memlane_transport::{Fd, Link};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use sleep::{Offer, Peer, Sleeper};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// For a reader to come to the last update and report.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Parser)]
#[command(about = "The newest pose of something that moves, for processes that look or sleep.")]
struct Cli {
    /// Updates a second
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
    /// For how long
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// What this executable is when it runs itself again; not to be used by hand
    #[arg(hide = true)]
    reader: Option<Manner>,
}

/// What a reader does while nothing changes.
#[derive(Clone, Copy, ValueEnum)]
enum Manner {
    Spins,
    Sleeps,
}

/// The value. To memlane it is so many bytes.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Pose {
    /// When, in nanoseconds of the monotonic clock, which is the same for all processes.
    time: u64,
    x: f64,
    y: f64,
    heading: f64,
    /// Over the number of the update and all of the above.
    check: u64,
}

impl Pose {
    /// Once round the circle in 1000 updates.
    fn new(sequence: u64) -> Pose {
        let heading = (sequence % 1000) as f64 * std::f64::consts::TAU / 1000.0;
        let mut pose = Pose {
            time: clock(ClockId::Monotonic).as_nanos() as u64,
            x: heading.cos(),
            y: heading.sin(),
            heading,
            check: 0,
        };
        pose.check = pose.sum(sequence);
        pose
    }

    fn sum(&self, sequence: u64) -> u64 {
        [self.x, self.y, self.heading]
            .map(f64::to_bits)
            .into_iter()
            .fold(sequence ^ self.time, |sum, word| {
                (sum.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15)
            })
    }
}

/// What a reader is told at first.
#[derive(Serialize, Deserialize)]
struct Start {
    cell: Fd,
    /// The number of the last update.
    last: u64,
}

/// What a reader tells in the end.
#[derive(Serialize, Deserialize)]
struct Report {
    seen: u64,
    /// How old a pose was when it was read.
    median_age: Duration,
    took: Duration,
    processor: Duration,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.reader {
        None => write(&cli),
        Some(manner) => read(manner),
    }
}

fn write(cli: &Cli) -> anyhow::Result<()> {
    let (mut writer, cell) = LatestWriter::create("pose", size_of::<Pose>())?;
    let start = Start {
        cell: cell.into(),
        last: cli.rate.saturating_mul(cli.seconds),
    };
    let mut readers = Vec::new();
    for manner in [Manner::Spins, Manner::Sleeps] {
        let reader = Reader::start(manner)?;
        reader.link.send(&start)?;
        // Whoever only looks offers nothing, and nobody has to know of it.
        if let Some(offer) = reader.link.recv::<Option<Offer>>()? {
            writer.roster().join(Arc::new(Peer::open(offer)?))?;
            reader.link.send(&())?;
        }
        readers.push(reader);
    }

    let begin = Instant::now();
    for sequence in 1..=start.last {
        let due = Duration::from_secs_f64(sequence as f64 / cli.rate as f64);
        thread::sleep(due.saturating_sub(begin.elapsed()));
        writer.write_value(&Pose::new(sequence))?;
    }
    println!(
        "writer: {} updates of {} bytes in {:.2?}",
        start.last,
        size_of::<Pose>(),
        begin.elapsed(),
    );
    for reader in readers {
        let manner = reader.manner.name();
        let report: Report = (reader.link.recv_timeout(PATIENCE))
            .with_context(|| format!("no report from the reader that {manner}"))?;
        println!(
            "reader that {manner}: {} seen, {} missed, none torn; {:.2?} old (median); {:.1?} of a processor in {:.2?}",
            report.seen,
            start.last - report.seen,
            report.median_age,
            report.processor,
            report.took,
        );
    }
    Ok(())
}

fn read(manner: Manner) -> anyhow::Result<()> {
    let link = Link::inherited()?;
    let start: Start = link.recv()?;
    let mut reader = LatestReader::open(start.cell.into(), size_of::<Pose>(), 1 << 20)?;
    let mut wait = Wait::new(manner, &link)?;

    let (begin, processor) = (Instant::now(), clock(ClockId::ProcessCPUTime));
    let mut ages = Histogram::<u64>::new(3)?;
    while reader.sequence() < start.last {
        wait.until_changed(&reader, &link)?;
        let (sequence, pose) = match reader.read_value::<Pose>() {
            // The writer was faster, time and again.
            Err(ReadError::Unstable { .. }) => continue,
            found => found?.context("a change, but no value")?,
        };
        ensure!(
            pose.check == pose.sum(sequence),
            "update {sequence} is torn"
        );
        ages.record(clock(ClockId::Monotonic).as_nanos() as u64 - pose.time)?;
    }
    link.send(&Report {
        seen: ages.len(),
        median_age: Duration::from_nanos(ages.value_at_quantile(0.5)),
        took: begin.elapsed(),
        processor: clock(ClockId::ProcessCPUTime) - processor,
    })?;
    Ok(())
}

/// What a reader waits with.
enum Wait {
    Spinning(Pacer),
    Sleeping(Sleeper),
}

impl Wait {
    fn new(manner: Manner, link: &Link) -> anyhow::Result<Wait> {
        Ok(match manner {
            Manner::Spins => {
                link.send(&None::<Offer>)?;
                Wait::Spinning(Pacer::new(WaitPolicy::Poll))
            }
            Manner::Sleeps => {
                let (sleeper, offer) = Sleeper::new(link)?;
                link.send(&Some(offer))?;
                // From here on every update wakes.
                link.recv::<()>()?;
                Wait::Sleeping(sleeper)
            }
        })
    }

    fn until_changed(&mut self, reader: &LatestReader, link: &Link) -> anyhow::Result<()> {
        match self {
            Wait::Sleeping(sleeper) => sleeper.until_changed(reader),
            Wait::Spinning(pacer) => {
                while pacer.spin(|| reader.changed().then_some(())).is_none() {
                    ensure!(!gone(link.as_fd(), None)?, "the writer is gone");
                }
                Ok(())
            }
        }
    }
}

/// A reader, as this process has it.
struct Reader {
    manner: Manner,
    link: Link,
    child: Child,
}

impl Reader {
    /// Runs this executable again, with a link as its standard input.
    fn start(manner: Manner) -> anyhow::Result<Reader> {
        let (link, theirs) = Link::pair()?;
        let child = Command::new(std::env::current_exe()?)
            .arg(manner.name())
            .stdin(Stdio::from(theirs.into_fd()))
            .spawn()
            .context("cannot run this program again")?;
        Ok(Reader {
            manner,
            link,
            child,
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It has reported and ends, or else is not wanted any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Manner {
    fn name(self) -> String {
        let value = self.to_possible_value().expect("none is skipped");
        value.get_name().to_owned()
    }
}

fn clock(id: ClockId) -> Duration {
    clock_gettime(id)
        .try_into()
        .expect("a clock that began at 0")
}

//! Frames from one process to another in a few buffers that go there and back: a swap chain.
//!
//! This process owns the buffers, draws frames in them and lends them to another, which it starts; that one checks every
//! byte and gives them back. After the first round the two send one another small messages and nothing else: no
//! memory is made, nothing is mapped, and no page faults, which is counted.
//!
//! ```text
//! $ cargo run --release --example swap_chain -- [--frame 8294400] [--buffers 3] [--frames 1000]
//! $ cargo run --release --example swap_chain -- --measure
//! ```
//!
//! With `--measure` nobody looks at the bytes, and what is counted is how often a buffer of 64 KiB goes there and back: over
//! the link, with one and with several under way, and over a pair of lanes. The rates are those of the median stretch of a
//! hundred, the means beside them those of the whole run.

mod measure;

use std::{
    process::{Child, Command, ExitStatus, Stdio},
    time::Instant,
};

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use memlane_region::{
    Options,
    exchange::{Borrower, Buffer, Lender},
};
use memlane_transport::Link;

#[derive(Parser)]
#[command(about = "Large frames from one process to another, in buffers that go there and back.")]
struct Cli {
    #[command(flatten)]
    job: Job,
    /// Count hand-overs of 64 KiB instead, which nobody looks at
    #[arg(long)]
    measure: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Clone, Copy, clap::Args)]
struct Job {
    /// Bytes of a frame, a multiple of 8 [a screen of 1920 x 1080 pixels]
    #[arg(long, default_value_t = 1920 * 1080 * 4, global = true)]
    frame: usize,
    /// Buffers that go round
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000), global = true)]
    buffers: u64,
    /// Frames to send
    #[arg(long, default_value_t = 1000, global = true)]
    frames: u64,
}

/// What this executable is when it runs itself again; not to be called by hand.
#[derive(Clone, Copy, Subcommand)]
enum Role {
    #[command(hide = true)]
    Consumer,
    #[command(hide = true)]
    Measured,
}

impl Job {
    /// Frames after which every buffer has been everywhere.
    fn warm_up(self) -> u64 {
        2 * self.buffers
    }

    /// Bytes of all buffers together.
    fn total(self) -> usize {
        self.frame.saturating_mul(self.buffers as usize)
    }
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.role {
        Some(Role::Consumer) => consume(cli.job),
        Some(Role::Measured) => measure::other(),
        None if cli.measure => measure::run(),
        None => produce(cli.job),
    }
}

/// Runs this executable again, with a link as its standard input.
fn start(role: &str, job: Job) -> anyhow::Result<(Link, Other)> {
    let (link, theirs) = Link::pair()?;
    let child = Command::new(std::env::current_exe()?)
        .arg(role)
        .args(["--frame", &job.frame.to_string()])
        .args(["--buffers", &job.buffers.to_string()])
        .args(["--frames", &job.frames.to_string()])
        .stdin(Stdio::from(theirs.into_fd()))
        .spawn()
        .context("cannot run this program again")?;
    Ok((link, Other(child)))
}

/// The other process.
struct Other(Child);

impl Other {
    fn finish(mut self) -> anyhow::Result<()> {
        let status: ExitStatus = self.0.wait()?;
        ensure!(status.success(), "the other process failed: {status}");
        Ok(())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // Where this process has failed: otherwise it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn produce(job: Job) -> anyhow::Result<()> {
    ensure!(
        job.frame > 0 && job.frame.is_multiple_of(8),
        "--frame is a multiple of 8"
    );
    let (link, other) = start("consumer", job)?;
    let mut lender = Lender::new(job.total());
    let mut free: Vec<Buffer> = (0..job.buffers)
        .map(|_| lender.create(Options::new("frame").prefault(true), job.frame))
        .collect::<Result<_, _>>()?;

    let mut since = (Instant::now(), minor_faults()?);
    for number in 0..job.warm_up() + job.frames {
        if number == job.warm_up() {
            since = (Instant::now(), minor_faults()?);
        }
        let mut buffer = match free.pop() {
            Some(buffer) => buffer,
            None => lender.recv(&link)?,
        };
        draw(&mut buffer, number);
        lender.lend(buffer, job.frame).send(&link)?;
    }
    while lender.lent() > 0 {
        free.push(lender.recv(&link)?);
    }
    let (took, faults) = (since.0.elapsed().as_secs_f64(), minor_faults()? - since.1);
    other.finish()?;

    let rate = job.frames as f64 / took;
    println!(
        "producer: {} frames of {} bytes in {} buffers: {rate:.0} frames/s, {:.2} GB/s, {faults} minor page faults",
        job.frames,
        job.frame,
        job.buffers,
        rate * job.frame as f64 / 1e9,
    );
    Ok(())
}

fn consume(job: Job) -> anyhow::Result<()> {
    let link = Link::inherited()?;
    let mut borrower = Borrower::new(job.total());
    let mut frame = vec![0; job.frame];
    let mut faults = 0;
    for number in 0..job.warm_up() + job.frames {
        if number == job.warm_up() {
            faults = minor_faults()?;
        }
        let borrowed = borrower.recv(&link)?;
        borrowed.read(0, &mut frame[..borrowed.len()]);
        link.send(&borrowed.give_back())?;
        ensure!(
            shows(&frame, number),
            "frame {number} came with other bytes"
        );
    }
    let faults = minor_faults()? - faults;
    println!("consumer: every byte as sent, {faults} minor page faults");
    Ok(())
}

/// A frame: its number, over and over.
fn draw(frame: &mut [u8], number: u64) {
    for word in frame.chunks_exact_mut(8) {
        word.copy_from_slice(&number.to_le_bytes());
    }
}

fn shows(frame: &[u8], number: u64) -> bool {
    let number = number.to_le_bytes();
    frame.chunks_exact(8).all(|word| word == number)
}

/// Page faults of this process that took no I/O, as getrusage(2) has them: proc_pid_stat(5), field 10.
fn minor_faults() -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").context("a name in parentheses")?;
    let faults = fields.split(' ').nth(7).context("ten fields")?;
    Ok(faults.parse()?)
}

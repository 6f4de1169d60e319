//! A service is replaced a hundred times while its clients ask without a pause, and none of them notices.
//!
//! Every generation of the server starts the next one, hands over its listener, its live links and what it knows about its
//! clients, and ends. Every tenth successor dies or hangs on the way, and the old generation goes on. Some clients keep one
//! link through all that, the others make a new one for each request. The server counts each client's requests and sums
//! them up, and so does the client: a request lost, repeated or refused shows.
//!
//! ```text
//! $ cargo run --release --example successor -- [--generations 100] [--clients 6] [--each 20]
//! ```
//!
//! docs/hand-over.md explains the procedure.

mod client;
mod server;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use memlane_transport::{Address, Link};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

#[derive(Parser)]
#[command(about = "A service is replaced under its clients' feet; none of them may notice.")]
struct Options {
    /// How often the server is replaced
    #[arg(long, default_value_t = 100)]
    generations: u32,
    /// Client processes: half of them keep one link, the others connect anew for each request
    #[arg(long, default_value_t = 6)]
    clients: u32,
    /// For how many milliseconds a generation serves before it is replaced
    #[arg(long, default_value_t = 20)]
    each: u64,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    Server { fault: Option<Fault> },
    #[command(hide = true)]
    Client,
}

/// What goes wrong with a successor. A hang is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
enum Fault {
    DiesAtStart,
    DiesOnReceipt,
    HangsOnReceipt,
}

const FAULTS: [Fault; 3] = [
    Fault::DiesAtStart,
    Fault::DiesOnReceipt,
    Fault::HangsOnReceipt,
];

/// From a client, or from the driver.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Add { session: u64, bytes: Vec<u8> },
    Replace { fault: Option<Fault> },
}

/// What the server knows of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    requests: u64,
    checksum: u64,
}

impl Session {
    /// FNV-1a, over all that has been added: order matters.
    fn add(&mut self, bytes: &[u8]) {
        self.requests += 1;
        for byte in bytes {
            self.checksum = (self.checksum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// How a replacement went.
#[derive(Debug, Serialize, Deserialize)]
struct Replaced {
    pid: u32,
    /// Requests and connections that waited when the service went on.
    waited: u64,
    /// For how long nobody was served.
    pause: Duration,
    /// Why the old generation went on.
    failed: Option<String>,
}

/// What a client has seen.
#[derive(Debug, Serialize, Deserialize)]
struct Experience {
    requests: u64,
    longest: Duration,
    failure: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    match options.role {
        None => drive(&options),
        Some(Role::Server { fault }) => server::run(fault),
        Some(Role::Client) => client::run(),
    }
}

/// The time of a clock that all processes share.
fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// This program, in another role, with a link to it.
fn start(role: &str) -> anyhow::Result<(Link, Child)> {
    let (link, theirs) = Link::pair()?;
    let process = Command::new(std::env::current_exe()?)
        .arg(role)
        .stdin(Stdio::from(theirs.into_fd()))
        .spawn()
        .with_context(|| format!("starting a {role}"))?;
    Ok((link, process))
}

struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn drive(options: &Options) -> anyhow::Result<()> {
    let directory =
        Directory(std::env::temp_dir().join(format!("memlane-successor-{}", std::process::id())));
    std::fs::create_dir(&directory.0)?;
    let path = directory.0.join("service");
    let address = Address::path(&path)?;
    let (server, mut first) = start("server")?;
    server.send(&path)?;
    server.recv::<()>().context("the server did not start")?;
    let mut clients = Vec::new();
    for number in 0..options.clients {
        let (link, process) = start("client")?;
        link.send(&(&path, number % 2 == 0))?;
        clients.push((link, process));
    }
    println!(
        "{} clients; {} generations, every tenth with a successor that fails",
        options.clients, options.generations
    );
    let begin = Instant::now();
    let mut waited = 0;
    let mut pauses = Vec::new();
    let mut pid = first.id();
    for number in 1..=options.generations {
        std::thread::sleep(Duration::from_millis(options.each));
        if number % 10 == 0 {
            let fault = FAULTS[(number / 10 - 1) as usize % FAULTS.len()];
            let replaced = replace(&server, Some(fault))?;
            let why = replaced
                .failed
                .with_context(|| format!("{fault:?} did not show"))?;
            ensure!(replaced.pid == pid, "the old generation is gone");
            println!("{number:>5}: {why}");
            waited += replaced.waited;
        }
        let replaced = replace(&server, None)?;
        if let Some(why) = replaced.failed {
            bail!("generation {number}: {why}");
        }
        ensure!(replaced.pid != pid, "the old generation is still there");
        ensure!(path.exists(), "the socket's file has gone");
        pid = replaced.pid;
        waited += replaced.waited;
        pauses.push(replaced.pause);
    }
    let time = begin.elapsed();
    let experiences = stop(clients)?;
    end(server, &address)?;
    ensure!(!path.exists(), "the socket's file is still there");
    ensure!(
        options.generations == 0 || first.wait()?.success(),
        "the first generation failed"
    );
    report(&experiences, time)?;
    pauses.sort();
    println!(
        "{} generations; nobody was served for {:?} (median), {:?} (longest) at a time, and {waited} requests and connections \
         waited then",
        pauses.len(),
        pauses.get(pauses.len() / 2).unwrap_or(&Duration::ZERO),
        pauses.last().unwrap_or(&Duration::ZERO)
    );
    println!("no request failed, was lost or repeated; nobody was refused");
    Ok(())
}

fn replace(server: &Link, fault: Option<Fault>) -> anyhow::Result<Replaced> {
    server.send(&Request::Replace { fault })?;
    server.recv().context("no generation is left")
}

fn stop(clients: Vec<(Link, Child)>) -> anyhow::Result<Vec<Experience>> {
    let mut experiences = Vec::new();
    for (link, mut process) in clients {
        link.send(&())?;
        let experience = link.recv::<Experience>().context("a client died")?;
        ensure!(process.wait()?.success(), "a client failed");
        experiences.push(experience);
    }
    Ok(experiences)
}

/// Lets the last generation end, and waits for that.
fn end(server: Link, address: &Address) -> anyhow::Result<()> {
    let peer = Link::connect(address)?.peer()?;
    drop(server);
    let process = peer.pidfd().context("the server died")?;
    poll(&mut [PollFd::new(&process, PollFlags::IN)], None)?;
    Ok(())
}

fn report(experiences: &[Experience], time: Duration) -> anyhow::Result<()> {
    let failures: Vec<_> = experiences
        .iter()
        .filter_map(|experience| experience.failure.as_deref())
        .collect();
    ensure!(failures.is_empty(), "clients failed: {failures:?}");
    let idle = experiences
        .iter()
        .any(|experience| experience.requests == 0);
    ensure!(!idle, "a client was never served");
    let requests: u64 = experiences
        .iter()
        .map(|experience| experience.requests)
        .sum();
    let longest = experiences
        .iter()
        .map(|experience| experience.longest)
        .max();
    println!(
        "{requests} requests in {:.1} s, {:.0} per second; the longest took {:?}",
        time.as_secs_f64(),
        requests as f64 / time.as_secs_f64(),
        longest.unwrap_or_default()
    );
    Ok(())
}

//! A process that sends without a pause and one that receives: this one.

use std::io::stdin;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use super::{Contender, Incoming, Kind, Outgoing, Task, bare, expect, link, memfds, pair};
use crate::{machine, worker};

/// What the sender is told on its command line.
#[derive(Debug, Parser)]
struct Arguments {
    #[arg(long)]
    kind: Kind,
    #[arg(long)]
    contender: Contender,
    #[arg(long)]
    count: usize,
    #[arg(long)]
    messages: u64,
    #[arg(long)]
    core: usize,
}

/// Receives from a process of its own on core `sender`. Nanoseconds a message at the receiver, which is this
/// thread, after the first tenth.
///
/// # Errors
///
/// Fails if the sender cannot be started or dies, or if a message is not the one expected.
pub fn receive(task: &Task, sender: usize) -> Result<f64> {
    let (near, far) = pair(task.kind)?;
    let mut child = Command::new("/proc/self/exe")
        .arg0(format!("descriptors: sender of {}", task.contender))
        .arg(worker::MARK)
        .args(["--kind", &task.kind.to_string()])
        .args(["--contender", &task.contender.to_string()])
        .args(["--count", &task.count.to_string()])
        .args(["--messages", &task.messages.to_string()])
        .args(["--core", &sender.to_string()])
        .stdin(Stdio::from(far))
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start the sender")?;
    // Ends are closed on return, so a sender that is still at work after an error notices.
    let received = match task.contender {
        Contender::Bare | Contender::BareBlocking => {
            let waiting = bare::Waiting::of(task.contender);
            count(task, bare::Incoming::new(near, waiting))
        }
        Contender::Link => link::Incoming::new(near).and_then(|incoming| count(task, incoming)),
    };
    let status = child.wait().context("the sender")?;
    let received = received?;
    ensure!(status.success(), "the sender failed: {status}");
    Ok(received)
}

fn count(task: &Task, mut incoming: impl Incoming) -> Result<f64> {
    let warm = task.messages / 10;
    let mut start = Instant::now();
    for number in 0..task.messages {
        if number == warm {
            start = Instant::now();
        }
        expect(incoming.recv()?, number)?;
        let closed = incoming.close();
        ensure!(closed == task.count, "{closed} descriptors came");
    }
    Ok(start.elapsed().as_nanos() as f64 / (task.messages - warm) as f64)
}

/// Runs the sender to its end.
///
/// # Errors
///
/// Fails if the receiver is gone.
pub fn send(arguments: impl IntoIterator<Item = String>) -> Result<()> {
    let Arguments {
        kind: _,
        contender,
        count,
        messages,
        core,
    } = Arguments::try_parse_from(arguments)?;
    machine::pin(core)?;
    let socket: OwnedFd = stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("no socket to send to")?;
    let descriptors = memfds(count)?;
    match contender {
        Contender::Bare | Contender::BareBlocking => {
            let waiting = bare::Waiting::of(contender);
            stream(bare::Outgoing::new(socket, descriptors, waiting), messages)
        }
        Contender::Link => stream(link::Outgoing::new(socket, descriptors)?, messages),
    }
}

fn stream(mut outgoing: impl Outgoing, messages: u64) -> Result<()> {
    (0..messages).try_for_each(|number| outgoing.send(number))
}

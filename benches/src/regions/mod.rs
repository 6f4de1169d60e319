//! Memory that is made, written, handed over and read: regions beside shared memory by hand, and beside the crate
//! ipc-channel.
//!
//! * [`fresh`]: new memory for each message, in one process and between two.
//! * [`pooled`]: new memory beside a publisher's pool.
//! * [`access`]: memory that stays, written whole and read whole.
//! * [`slots`]: memory that stays, handed over by number; only its ends are touched.
//! * [`loans`]: messages in a publisher's pool.
//! * [`exchange`]: a region that goes to and fro.
//! * [`ipc`]: the same with descriptors that are sent each time.
//!
//! Everything here is a [`Game`](crate::measure::ping_pong::Game), so the timestamps are the same for all. Two processes
//! start with a pair of sockets, through which they give each other what else they need.

pub mod access;
pub mod exchange;
pub mod fresh;
pub mod ipc;
pub mod loans;
pub mod plain;
pub mod pooled;
pub mod slots;

use std::hint::black_box;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};

use self::pooled::Extent;
use crate::control::{receive_with_descriptors, send_with_descriptors};
use crate::descriptors::{Kind, pair};
use crate::metrics::Metrics;
use crate::task::{Benchmark, Task};
use crate::worker::Session;

/// The descriptors that each process of `task` starts with: one end of a pair of sockets, if it is not alone.
///
/// # Errors
///
/// Fails if there is no descriptor left.
pub fn provision(task: &Task) -> Result<Vec<Vec<OwnedFd>>> {
    if task.cores.len() == 1 {
        return Ok(vec![vec![]]);
    }
    let (one, other) = pair(Kind::Seqpacket)?;
    Ok(vec![vec![one], vec![other]])
}

/// One process of a measurement.
///
/// # Errors
///
/// Fails if the measurement does, or if the contender does not take part in the benchmark.
pub(crate) fn run(session: &mut Session) -> Result<Metrics> {
    match session.task().benchmark {
        Benchmark::Fresh => fresh::alone(session),
        Benchmark::FreshSent => fresh::sent(session),
        Benchmark::Pooled => pooled::measure(session, Extent::Whole),
        Benchmark::PooledPages => pooled::measure(session, Extent::Pages),
        Benchmark::Access => access::measure(session),
        Benchmark::Touch => slots::touch(session),
        Benchmark::HandOver => slots::hand_over(session),
        benchmark => bail!("{benchmark} is not about regions"),
    }
}

/// That a contender is not for a benchmark.
fn unsuitable(session: &Session) -> anyhow::Error {
    let Task {
        benchmark,
        contender,
        ..
    } = session.task();
    anyhow::anyhow!("{contender} does not take part in {benchmark}")
}

/// Gives descriptors to the other process, which [takes](take) them.
fn give(socket: impl AsFd, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    send_with_descriptors(socket, b"R", descriptors)
}

/// What the other process [gives](give).
fn take<const N: usize>(socket: impl AsFd) -> Result<[OwnedFd; N]> {
    let (_, descriptors) = receive_with_descriptors(socket, &mut [0; 1])?;
    let count = descriptors.len();
    descriptors
        .try_into()
        .ok()
        .with_context(|| format!("{count} descriptors came, not {N}"))
}

/// A memfd of `len` bytes, its pages allocated or left to the first use.
fn memfd(len: usize, allocate: bool) -> Result<OwnedFd> {
    let fd = memfd_create("memlane-bench", MemfdFlags::CLOEXEC).context("memfd_create")?;
    ftruncate(&fd, len as u64).context("ftruncate")?;
    if allocate {
        fallocate(&fd, FallocateFlags::empty(), 0, len as u64).context("fallocate")?;
    }
    Ok(fd)
}

/// Reads all of `bytes`.
#[inline(never)]
fn read_all(bytes: &[u8]) {
    let words = bytes.chunks_exact(8);
    let rest = words.remainder().iter().copied().map(u64::from);
    let sum = words
        .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")))
        .chain(rest)
        .fold(0, u64::wrapping_add);
    black_box(sum);
}

/// That what came is what was sent as `number`.
#[inline]
fn expect(found: u64, number: u64) -> Result<()> {
    ensure!(found == number, "expected message {number}, found {found}");
    Ok(())
}

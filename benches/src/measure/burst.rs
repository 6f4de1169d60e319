//! What a message costs its sender: bursts that the ring has room for, timed by the sender alone.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::percentiles;
use crate::metrics::Metrics;
use crate::path::{Inbox, Payloads, Receiver, Sender};
use crate::worker::Session;

/// Messages of a burst. With headers, 64 KiB for 8 bytes each: the ring has room for it even while its reader has not said
/// yet that it is done with the eighth before.
pub const BURST: u64 = 4096;

/// Bursts of so many messages.
pub fn bursts(messages: u64) -> u64 {
    messages.div_ceil(BURST)
}

/// Has `burst` send all bursts, the warm-up among them, and say how long each took: `p50` and `p99` of the bursts and the
/// `mean`, for a message each.
///
/// # Errors
///
/// Fails if `burst` does.
pub fn measure(
    session: &mut Session,
    mut burst: impl FnMut(&mut Payloads) -> Result<Duration>,
) -> Result<Metrics> {
    let task = session.task();
    let mut payloads = Payloads::new(task.size);
    let mut samples = vec![0_u32; bursts(task.iterations) as usize];
    let warm_up = bursts(task.warm_up());
    session.bracketed(|_| {
        for _ in 0..warm_up {
            burst(&mut payloads)?;
        }
        for sample in &mut samples {
            *sample = u32::try_from(burst(&mut payloads)?.as_nanos()).unwrap_or(u32::MAX);
        }
        let messages = samples.len() as u64 * BURST;
        let sum: u64 = samples.iter().copied().map(u64::from).sum();
        Ok(percentiles(&samples, BURST as f64)?.with("mean", sum as f64 / messages as f64))
    })
}

/// Sends all bursts to readers that follow, and waits after each, off the clock, until they have received it.
///
/// # Errors
///
/// Fails if the path does.
pub fn send<S: Sender>(
    session: &mut Session,
    sender: &mut S,
    mut drain: impl FnMut(&mut S) -> Result<()>,
) -> Result<Metrics> {
    measure(session, |payloads| {
        let start = Instant::now();
        (0..BURST).try_for_each(|_| sender.send(payloads.advance()))?;
        let took = start.elapsed();
        drain(sender)?;
        Ok(took)
    })
}

/// Receives all bursts.
///
/// # Errors
///
/// Fails if the path does.
pub fn receive(session: &mut Session, mut receiver: impl Receiver) -> Result<Metrics> {
    let task = session.task();
    let mut inbox = Inbox::new(task.size);
    let count = BURST * (bursts(task.warm_up()) + bursts(task.iterations));
    session.bracketed(|_| {
        for _ in 0..count {
            inbox.receive(&mut receiver)?;
        }
        // Who has left is not waited for; who never looks again would be.
        drop(receiver);
        Ok(Metrics::new())
    })
}

//! Messages in one direction, as many as will go.

use anyhow::Result;

use crate::machine::monotonic_ns;
use crate::metrics::Metrics;
use crate::path::{Inbox, Payloads, Receiver, Sender};
use crate::worker::Session;

/// Sends all messages, the warm-up among them.
///
/// # Errors
///
/// Fails if the path does.
pub fn produce(session: &mut Session, mut sender: impl Sender) -> Result<Metrics> {
    let task = session.task();
    let (count, mut payloads) = (task.warm_up() + task.iterations, Payloads::new(task.size));
    session.bracketed(|_| {
        for _ in 0..count {
            sender.send(payloads.advance())?;
        }
        Ok(Metrics::new())
    })
}

/// Receives them, and takes the time after the warm-up and after the last: `start` and `end`, on the clock
/// that all processes share.
///
/// # Errors
///
/// Fails if the path does.
pub fn consume(session: &mut Session, mut receiver: impl Receiver) -> Result<Metrics> {
    let task = session.task();
    let (warm_up, iterations, mut inbox) = (task.warm_up(), task.iterations, Inbox::new(task.size));
    session.bracketed(|_| {
        for _ in 0..warm_up {
            inbox.receive(&mut receiver)?;
        }
        let start = monotonic_ns();
        for _ in 0..iterations {
            inbox.receive(&mut receiver)?;
        }
        Ok(Metrics::new()
            .with("start", start)
            .with("end", monotonic_ns()))
    })
}

/// What all readers together were delivered, from the first of their starts to the last of their ends:
/// `messages` and `bytes` a second.
///
/// # Errors
///
/// Fails if a reader has not reported.
pub fn combine(iterations: u64, size: usize, readers: &[Metrics]) -> Result<Metrics> {
    let mut start = f64::INFINITY;
    let mut end = f64::NEG_INFINITY;
    for reader in readers {
        start = start.min(reader.require("start")?);
        end = end.max(reader.require("end")?);
    }
    let rate = (iterations * readers.len() as u64) as f64 / (end - start) * 1e9;
    Ok(Metrics::new()
        .with("messages", rate)
        .with("bytes", rate * size as f64))
}

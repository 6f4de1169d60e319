//! From nothing to the first message received, again and again.
//!
//! Each time the writing side listens under a fresh name before the clock starts; binding and tearing down
//! are not part of the time.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::percentiles;
use crate::metrics::Metrics;
use crate::path::{Inbox, Payloads, Receiver};
use crate::worker::Session;

/// Long enough for the writing side to have fallen asleep in its accept.
const SETTLE: Duration = Duration::from_micros(300);

/// The reading side, which takes the time from before `connect` until the first message is in a private
/// buffer.
///
/// # Errors
///
/// Fails if a connection does.
pub fn connect_often<R: Receiver>(
    session: &mut Session,
    mut connect: impl FnMut(&str) -> Result<R>,
) -> Result<Metrics> {
    let iterations = session.task().iterations;
    session.bracketed(|session| {
        let mut samples = Vec::with_capacity(iterations as usize);
        for iteration in 0..iterations {
            let name = session.name(iteration);
            let mut inbox = Inbox::new(Payloads::MIN_LEN);
            session.barrier()?;
            sleep(SETTLE);
            let start = Instant::now();
            let mut lane = connect(&name)?;
            inbox.receive(&mut lane)?;
            samples.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
            session.barrier()?;
            drop(lane);
        }
        percentiles(&samples, 1.0)
    })
}

/// The writing side: `bind` makes a listener, `serve` accepts one reader and sends it the message; what
/// they return is kept until the reader has finished.
///
/// # Errors
///
/// Fails if a connection does.
pub fn accept_often<L, K>(
    session: &mut Session,
    mut bind: impl FnMut(&str) -> Result<L>,
    mut serve: impl FnMut(&mut L, &[u8]) -> Result<K>,
) -> Result<Metrics> {
    let iterations = session.task().iterations;
    session.bracketed(|session| {
        for iteration in 0..iterations {
            let mut listener = bind(&session.name(iteration))?;
            let mut payloads = Payloads::new(Payloads::MIN_LEN);
            session.barrier()?;
            let kept = serve(&mut listener, payloads.advance())?;
            session.barrier()?;
            drop(kept);
        }
        Ok(Metrics::new())
    })
}

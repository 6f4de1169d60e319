//! Reads the file and publishes it.

use std::{
    fs::File,
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use memlane::{Publisher, SendTimeoutError};

use crate::{
    Part,
    reports::{ProducerReport, Report, coordinator, now},
};

/// Each message begins with the time it was committed.
pub(crate) const STAMP: usize = 8;

/// How soon Ctrl-C is noticed while no consumer makes room.
const GLANCE: Duration = Duration::from_millis(100);

pub(crate) fn run(part: &Part) -> anyhow::Result<()> {
    let coordinator = coordinator()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;

    let job = &part.job;
    let builder = Publisher::builder()
        .ring_bytes(job.ring_bytes)
        .wait(job.wait.into());
    let builder = if job.trusted {
        builder.trust_subscribers()
    } else {
        builder
    };
    let mut publisher = builder.bind(&part.service)?;
    if STAMP + job.sizes.largest() > publisher.max_message() {
        let max = publisher.max_message() - STAMP;
        bail!(
            "messages of {} bytes do not fit a ring that takes {max}: see --sizes and --ring-bytes",
            job.sizes.largest()
        );
    }
    coordinator.send(&Report::Bound)?;
    while !publisher.wait_for_subscribers_timeout(job.consumers as usize, GLANCE)? {
        if interrupted.load(Ordering::Relaxed) {
            return Ok(());
        }
    }

    let mut random = fastrand::Rng::with_seed(1);
    let mut chunk = vec![0; 1 << 20];
    let path = job.file.as_deref().context("a file")?;
    let start = Instant::now();
    let (mut bytes, mut messages) = (0, 0_u64);
    for _ in 0..job.repeat {
        let mut file =
            File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        // The length was taken once; what a growing file gains since then is not part of the job.
        let mut left = part.len;
        while left > 0 {
            let filled = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            file.read_exact(&mut chunk[..filled])
                .with_context(|| format!("cannot read {}", path.display()))?;
            left -= filled as u64;
            let mut rest = &chunk[..filled];
            while !rest.is_empty() {
                let (payload, after) = rest.split_at(job.sizes.pick(&mut random).min(rest.len()));
                rest = after;
                if let Some(rate) = job.rate {
                    wait_until(start + Duration::from_nanos(messages * 1_000_000_000 / rate));
                }
                if !send(&mut publisher, payload, &interrupted)? {
                    return Ok(());
                }
                bytes += payload.len() as u64;
                messages += 1;
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let stats = publisher.stats();
    coordinator.send(&Report::Producer(ProducerReport {
        bytes,
        messages,
        seconds,
        stalls: stats.stalls,
        sleeps: stats.sleeps,
        rings: stats.rings,
    }))?;
    Ok(())
}

/// Publishes one message, written in place. False if the user interrupted.
fn send(
    publisher: &mut Publisher,
    payload: &[u8],
    interrupted: &AtomicBool,
) -> anyhow::Result<bool> {
    loop {
        if interrupted.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match publisher.reserve_timeout(STAMP + payload.len(), GLANCE) {
            Ok(mut message) => {
                message[STAMP..].copy_from_slice(payload);
                message[..STAMP].copy_from_slice(&now().to_ne_bytes());
                message.commit();
                return Ok(true);
            }
            Err(SendTimeoutError::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sleeps for the most part and spins for the rest, to be on time.
fn wait_until(due: Instant) {
    if let Some(long) = due.checked_duration_since(Instant::now() + Duration::from_micros(200)) {
        std::thread::sleep(long);
    }
    while Instant::now() < due {
        std::hint::spin_loop();
    }
}

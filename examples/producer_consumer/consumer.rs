//! Subscribes, and hashes what arrives.

use std::time::{Duration, Instant};

use anyhow::ensure;
use blake3::Hasher;
use hdrhistogram::Histogram;
use memlane::{Message, RecvError, Subscriber, Trust};
use memlane_transport::Link;

use crate::{
    Part,
    producer::STAMP,
    reports::{ConsumerReport, Latency, Report, coordinator, now},
};

pub(crate) fn run(part: &Part) -> anyhow::Result<()> {
    let coordinator = coordinator()?;
    // Ctrl-C reaches every process of the terminal. The producer ends the stream, and that ends this one.
    ctrlc::set_handler(|| {})?;
    let builder = Subscriber::builder().wait(part.job.wait.into());
    if part.job.trusted {
        // SAFETY: the publisher is this same program, started by the same coordinator.
        let builder = unsafe { builder.trust_publisher() };
        consume(
            part,
            &coordinator,
            builder.connect(&part.service)?,
            |hasher, message| {
                hasher.update(&message[STAMP..]);
            },
        )
    } else {
        // What is hashed must be what was received, and the publisher might be changing it: so a copy.
        let mut copy = Vec::new();
        consume(
            part,
            &coordinator,
            builder.connect(&part.service)?,
            move |hasher, message| {
                copy.resize(message.len() - STAMP, 0);
                message.read_at(STAMP, &mut copy);
                hasher.update(&copy);
            },
        )
    }
}

fn consume<T: Trust>(
    part: &Part,
    coordinator: &Link,
    mut subscriber: Subscriber<T>,
    mut hash: impl FnMut(&mut Hasher, &Message<'_, T>),
) -> anyhow::Result<()> {
    coordinator.send(&Report::Subscribed)?;
    let mut check = Check {
        len: part.len,
        expected: &part.hash,
        hasher: Hasher::new(),
        at: 0,
        passes: 0,
        mismatch: None,
    };
    let mut latencies = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
    let (mut bytes, mut first, mut last) = (0, None, Instant::now());
    let mut reported = last;
    loop {
        let message = match subscriber.recv() {
            Ok(message) => message,
            Err(RecvError::Disconnected { .. }) => break,
            Err(error) => return Err(error.into()),
        };
        let mut stamp = [0; STAMP];
        ensure!(
            message.len() >= STAMP,
            "expected a time stamp, got a message of {} bytes",
            message.len()
        );
        message.read_at(0, &mut stamp);
        latencies.saturating_record(now().saturating_sub(u64::from_ne_bytes(stamp)));
        hash(&mut check.hasher, &message);
        let len = (message.len() - STAMP) as u64;
        drop(message);
        check.count(len);
        bytes += len;
        last = Instant::now();
        first.get_or_insert(last);
        if last.duration_since(reported) > Duration::from_millis(50) {
            reported = last;
            // A coordinator that is behind misses nothing that the next report does not say.
            let _ = coordinator.try_send(&Report::Progress(bytes));
        }
    }
    let stats = subscriber.stats();
    coordinator.send(&Report::Consumer(ConsumerReport {
        bytes,
        messages: stats.messages,
        seconds: first.map_or(0.0, |first| last.duration_since(first).as_secs_f64()),
        latency: Latency::from(&latencies),
        wakeups: stats.wakeups,
        passes: check.passes,
        mismatch: check.mismatch,
    }))?;
    Ok(())
}

/// Hashes pass after pass over the file.
struct Check<'a> {
    len: u64,
    expected: &'a str,
    hasher: Hasher,
    at: u64,
    passes: u32,
    mismatch: Option<String>,
}

impl Check<'_> {
    /// So many bytes more have been hashed. A pass ends with a message.
    fn count(&mut self, len: u64) {
        self.at += len;
        if self.at < self.len {
            return;
        }
        let found = self.hasher.finalize().to_hex();
        if found.as_str() == self.expected && self.at == self.len {
            self.passes += 1;
        } else if self.mismatch.is_none() {
            let pass = self.passes + 1;
            self.mismatch = Some(format!(
                "pass {pass}: expected {}, got {found}",
                self.expected
            ));
        }
        self.hasher.reset();
        self.at = 0;
    }
}

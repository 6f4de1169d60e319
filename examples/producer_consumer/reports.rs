//! What producer and consumers tell the coordinator, over the link they inherit as standard input.

use anyhow::Context;
use hdrhistogram::Histogram;
use memlane_transport::Link;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The producer can be subscribed to.
    Bound,
    /// A consumer has subscribed.
    Subscribed,
    /// So many bytes of the file have arrived so far.
    Progress(u64),
    Producer(ProducerReport),
    Consumer(ConsumerReport),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProducerReport {
    pub(crate) bytes: u64,
    pub(crate) messages: u64,
    pub(crate) seconds: f64,
    pub(crate) stalls: u64,
    pub(crate) sleeps: u64,
    pub(crate) rings: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ConsumerReport {
    pub(crate) bytes: u64,
    pub(crate) messages: u64,
    /// From the first message to the last.
    pub(crate) seconds: f64,
    pub(crate) latency: Latency,
    pub(crate) wakeups: u64,
    /// Passes over the file whose hash was right, and the first that was not.
    pub(crate) passes: u32,
    pub(crate) mismatch: Option<String>,
}

/// One-way latency in nanoseconds: from the commit of a message to its being read.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
}

impl From<&Histogram<u64>> for Latency {
    fn from(histogram: &Histogram<u64>) -> Latency {
        Latency {
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
        }
    }
}

/// The link to the coordinator, of a producer or consumer.
pub(crate) fn coordinator() -> anyhow::Result<Link> {
    // If the coordinator dies, however it dies, so does this process, in order.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    Link::inherited().context("this role is started by producer_consumer itself")
}

/// Nanoseconds of the clock that all processes of a machine share.
pub(crate) fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

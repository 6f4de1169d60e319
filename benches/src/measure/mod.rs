//! The loops that take the time. They know a path only by its two ends, so references and memlane are
//! measured by the same code.

pub mod burst;
pub mod footprint;
pub mod ping_pong;
pub mod probe;
pub mod setup;
pub mod stream;

use anyhow::Result;
use hdrhistogram::Histogram;

use crate::metrics::Metrics;

/// The percentiles of `samples`, each divided by `divisor`.
pub(crate) fn percentiles(samples: &[u32], divisor: f64) -> Result<Metrics> {
    let mut histogram = Histogram::<u64>::new(3)?;
    for &sample in samples {
        histogram.record(u64::from(sample))?;
    }
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / divisor;
    Ok(Metrics::new()
        .with("p50", at(0.50))
        .with("p99", at(0.99))
        .with("p99.9", at(0.999)))
}

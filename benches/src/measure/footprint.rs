//! What one idle lane takes from its process.

use std::fs;

use anyhow::{Context, Result};

use crate::metrics::Metrics;
use crate::worker::Session;

const KIB: f64 = 1024.0;

/// What a process holds now.
#[derive(Clone, Copy, Debug, Default)]
struct Holdings {
    descriptors: f64,
    threads: f64,
    mapped: f64,
    resident_shared: f64,
    resident_private: f64,
}

/// Measures what `open` adds to this process once the lane it returns is idle: descriptors, threads, and in
/// bytes what is mapped, what is resident of memory files, and what is resident otherwise.
///
/// Both sides pass one barrier in `open`: the writer once it listens, the reader before it connects.
///
/// # Errors
///
/// Fails if `open` does or /proc cannot be read.
pub fn measure<L>(
    session: &mut Session,
    open: impl FnOnce(&Session) -> Result<L>,
) -> Result<Metrics> {
    session.bracketed(|session| {
        // The first look pays for the buffers of the second.
        Holdings::now()?;
        let before = Holdings::now()?;
        let lane = open(session)?;
        session.barrier()?;
        let after = Holdings::now()?;
        session.barrier()?;
        drop(lane);
        Ok(Metrics::new()
            .with("descriptors", after.descriptors - before.descriptors)
            .with("threads", after.threads - before.threads)
            .with("mapped", after.mapped - before.mapped)
            .with("shared", after.resident_shared - before.resident_shared)
            .with("private", after.resident_private - before.resident_private))
    })
}

impl Holdings {
    fn now() -> Result<Self> {
        let mut holdings = Self {
            descriptors: count("/proc/self/fd")?,
            threads: count("/proc/self/task")?,
            ..Self::default()
        };
        let smaps = fs::read_to_string("/proc/self/smaps").context("/proc/self/smaps")?;
        let mut is_memfd = false;
        for line in smaps.lines() {
            let mut words = line.split_ascii_whitespace();
            match (words.next(), words.next()) {
                (Some("Size:"), Some(kib)) => holdings.mapped += kib.parse::<f64>()? * KIB,
                (Some("Rss:"), Some(kib)) if is_memfd => {
                    holdings.resident_shared += kib.parse::<f64>()? * KIB
                }
                (Some("Rss:"), Some(kib)) => holdings.resident_private += kib.parse::<f64>()? * KIB,
                // A line that starts with an address range and not with a key begins the next mapping.
                (Some(range), Some(_)) if !range.ends_with(':') => {
                    is_memfd = line.contains("/memfd:")
                }
                _ => {}
            }
        }
        Ok(holdings)
    }
}

fn count(directory: &str) -> Result<f64> {
    Ok(fs::read_dir(directory)
        .context(directory.to_owned())?
        .count() as f64)
}

//! One measurement: what, between whom, how large, how often.

use std::fmt;

use clap::{Args, ValueEnum};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Benchmark {
    /// Ping-pong between two polling processes.
    Latency,
    /// One process sends, the other receives, both polling.
    Throughput,
    /// Ping-pong between two processes that sleep while they wait.
    Blocking,
    /// From nothing to the first message received.
    Setup,
    /// One process sends, four receive.
    Fanout,
    /// Descriptors, threads and memory of one idle lane.
    Footprint,
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Contender {
    /// One cache line going back and forth: what no message can beat.
    CacheLine,
    /// A single-producer single-consumer ring with separate indices, published with every message.
    PlainRing,
    /// The same ring, its reader publishing only every eighth of the ring.
    TunedRing,
    /// eventfd, blocking read and write.
    Eventfd,
    /// eventfd, `epoll_wait` before each read.
    EventfdEpoll,
    /// Stream socket pair, blocking send and receive.
    Stream,
    /// Stream socket pair, `epoll_wait` before each receive.
    StreamEpoll,
    /// A bare Unix socket over which a memfd and two eventfds arrive.
    Bare,
    /// memlane as it is by default, between processes that do not trust each other; where it sleeps, woken
    /// through a socket.
    Memlane,
    /// memlane between processes that do; where it sleeps, woken through an eventfd.
    MemlaneTrusting,
}

impl Contender {
    /// Whether this is memlane rather than something to compare it with.
    pub fn is_candidate(self) -> bool {
        matches!(self, Self::Memlane | Self::MemlaneTrusting)
    }
}

/// One measurement. All its processes know it.
#[derive(Args, Clone, Debug)]
pub struct Task {
    /// What is measured.
    #[arg(long)]
    pub benchmark: Benchmark,
    /// Who is measured.
    #[arg(long)]
    pub contender: Contender,
    /// Bytes of one message.
    #[arg(long)]
    pub size: usize,
    /// Messages, round trips or connections.
    #[arg(long)]
    pub iterations: u64,
    /// The core of each process; the first one takes the time.
    #[arg(long, value_delimiter = ',')]
    pub cores: Vec<usize>,
}

impl Task {
    /// Bytes of ring data, for references and candidates alike.
    pub const RING_BYTES: usize = 1 << 20;

    /// Round trips or messages before the clock starts.
    pub fn warm_up(&self) -> u64 {
        self.iterations / 10
    }

    /// Whether the first two processes have a core each, so that the distance between them can be probed.
    pub fn has_distance(&self) -> bool {
        self.cores[0] != self.cores[1]
    }

    /// The arguments that make clap build the same task again.
    pub fn to_args(&self) -> Vec<String> {
        let cores: Vec<String> = self.cores.iter().map(usize::to_string).collect();
        [
            ("--benchmark", self.benchmark.to_string()),
            ("--contender", self.contender.to_string()),
            ("--size", self.size.to_string()),
            ("--iterations", self.iterations.to_string()),
            ("--cores", cores.join(",")),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            benchmark,
            contender,
            size,
            cores,
            ..
        } = self;
        write!(f, "{benchmark}/{contender}/{size} B on cores {cores:?}")
    }
}

impl fmt::Display for Benchmark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_value(self, f)
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_value(self, f)
    }
}

/// The word clap knows a variant by.
fn write_value(value: &impl ValueEnum, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match value.to_possible_value() {
        Some(possible) => f.pad(possible.get_name()),
        None => Err(fmt::Error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        task: Task,
    }

    #[test]
    fn arguments_survive() {
        let task = Task {
            benchmark: Benchmark::Fanout,
            contender: Contender::EventfdEpoll,
            size: 48,
            iterations: 7,
            cores: vec![0, 1, 1],
        };
        let args = std::iter::once("probe".to_owned()).chain(task.to_args());
        assert_eq!(Probe::parse_from(args).task.to_args(), task.to_args());
    }
}

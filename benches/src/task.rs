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
    /// What a message costs its sender, by how many readers keep up.
    Readers,
    /// Descriptors, threads and memory of one idle lane.
    Footprint,
    /// A new region for each message: made, written, opened, read and dropped by one process.
    Fresh,
    /// The same, between two processes.
    FreshSent,
    /// Messages in a publisher's pool beside new regions sent over links: written whole and read whole.
    Pooled,
    /// The same, a word of each page written and read.
    PooledPages,
    /// A region that stays: written whole by one process, read whole by the other, both polling.
    Access,
    /// Large messages in memory that stays, of which only the first and the last bytes are touched, both polling.
    Touch,
    /// A region that both know is handed over and handed back.
    HandOver,
    /// One process sends a message now and then, the other waits for it in one way or another.
    Paced,
    /// What a message costs its sender, whose reader is awake, but does something else meanwhile.
    Cost,
    /// The same with a reader that takes each message as soon as it is there.
    CostFollowed,
    /// Ping-pong between two tasks that sleep while they wait, each in a tokio runtime of one thread.
    Tokio,
    /// A request and its reply, both sides polling.
    Requests,
    /// A request and its reply, both sides asleep while they wait.
    RequestsAsleep,
}

impl Benchmark {
    /// Those about messages in a ring, and the lanes around it.
    pub const LANES: &[Self] = &[
        Self::Latency,
        Self::Throughput,
        Self::Blocking,
        Self::Setup,
        Self::Fanout,
        Self::Readers,
        Self::Footprint,
    ];

    /// Those about memory that is handed over.
    pub const REGIONS: &[Self] = &[
        Self::Fresh,
        Self::FreshSent,
        Self::Pooled,
        Self::PooledPages,
        Self::Access,
        Self::Touch,
        Self::HandOver,
    ];

    /// Those about requests and replies.
    pub const REQUESTS: &[Self] = &[Self::Requests, Self::RequestsAsleep];

    /// Those about waiting and waking.
    pub const WAITING: &[Self] = &[
        Self::Blocking,
        Self::Paced,
        Self::Cost,
        Self::CostFollowed,
        Self::Tokio,
    ];
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
    /// A memfd, made and mapped with as few system calls as will do; its pages come fault by fault.
    Memfd,
    /// A memfd whose pages are allocated before they are written, so that shortage is an error.
    MemfdAllocated,
    /// A memfd whose pages are mapped in one go, by madvise(2).
    MemfdPopulated,
    /// `Region`, frozen and opened as `Frozen`.
    Frozen,
    /// The same, made with `Options::prefault`.
    FrozenPrefault,
    /// `Frozen::copy_of`.
    FrozenCopy,
    /// `Region`, shared as `Live` and opened as `LiveView`, read in place.
    Live,
    /// The same, made with `Options::prefault`.
    LivePrefault,
    /// The same as `live`, copied out to be read.
    LiveCopy,
    /// The same as `live`, in transparent huge pages.
    LiveHuge,
    /// A message in a publisher's pool, copied out to be read.
    Loan,
    /// The same between processes that trust each other, read in place.
    LoanTrusting,
    /// A shared mapping that both processes may write.
    Plain,
    /// The same, copied out to be read.
    PlainCopy,
    /// A message of 64 bytes in memlane's ring, between processes that trust each other.
    Ring64,
    /// Places in a plain shared mapping, their numbers sent through a plain ring.
    PlainSlots,
    /// Places in a live region, their numbers sent through memlane's ring, both polling.
    Slots,
    /// The same, both asleep while they wait.
    SlotsAsleep,
    /// `exchange`: a buffer that goes to and fro, its messages sent over a link; both asleep while they wait.
    ExchangeLink,
    /// The same, its messages sent over a pair of lanes, both polling.
    ExchangeLanes,
    /// The crate ipc-channel: one `IpcSharedMemory`, sent again and again.
    IpcChannel,
    /// The plain ring and an eventfd: written after each message, read while there is none.
    EventfdRing,
    /// memlane between processes that trust each other, its reader spinning.
    MemlanePoll,
    /// The same, its reader spinning or sleeping as it pays, woken through an eventfd. Of the sender's cost: a fence with
    /// each message.
    MemlaneAdaptive,
    /// The same, its reader asleep while it waits.
    MemlaneBlock,
    /// memlane between processes that do not trust each other, its reader spinning or sleeping as it pays, woken through
    /// a socket: as it is by default.
    MemlaneAdaptiveSocket,
    /// The same, its reader asleep while it waits.
    MemlaneBlockSocket,
    /// As `memlane-adaptive`, sent in batches of 16.
    #[value(name = "memlane-batch-16")]
    MemlaneBatch16,
    /// As `memlane-adaptive`, sent in batches of 64.
    #[value(name = "memlane-batch-64")]
    MemlaneBatch64,
    /// As `memlane-adaptive`, but the reader carries the barrier, by membarrier(2), which spares the sender all fences.
    MemlaneMembarrier,
    /// memlane with one reader, all polling, between processes that trust each other.
    OneReader,
    /// The same with two readers, which share a core.
    TwoReaders,
    /// The same with four.
    FourReaders,
    /// The same with eight.
    EightReaders,
    /// tokio's `AsyncFd` on an eventfd, as its documentation has it: read until that would block.
    AsyncFd,
    /// The same by someone who knows that an eventfd read once is empty, which saves the second read.
    AsyncFdOnce,
    /// tokio's `UnixStream`.
    UnixStream,
    /// memlane's client and server, between processes that do not trust each other.
    Requests,
    /// The same between processes that do.
    RequestsTrusting,
}

impl Contender {
    /// Whether this is memlane rather than something to compare it with.
    pub fn is_candidate(self) -> bool {
        matches!(
            self,
            Self::Memlane
                | Self::MemlaneTrusting
                | Self::MemlanePoll
                | Self::MemlaneAdaptive
                | Self::MemlaneBlock
                | Self::MemlaneAdaptiveSocket
                | Self::MemlaneBlockSocket
                | Self::MemlaneBatch16
                | Self::MemlaneBatch64
                | Self::MemlaneMembarrier
                | Self::Requests
                | Self::RequestsTrusting
        ) || self.readers().is_some()
    }

    /// How many readers it has, where contenders differ in that.
    pub fn readers(self) -> Option<usize> {
        match self {
            Self::OneReader => Some(1),
            Self::TwoReaders => Some(2),
            Self::FourReaders => Some(4),
            Self::EightReaders => Some(8),
            _ => None,
        }
    }

    /// Whether this is fresh memory by hand.
    pub fn is_memfd(self) -> bool {
        matches!(
            self,
            Self::Memfd | Self::MemfdAllocated | Self::MemfdPopulated
        )
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
    /// Nanoseconds from one message to the next, if that is what is measured.
    #[arg(long, default_value_t = 0)]
    pub gap: u64,
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
        self.cores
            .get(1)
            .is_some_and(|&second| second != self.cores[0])
    }

    /// The arguments that make clap build the same task again.
    pub fn to_args(&self) -> Vec<String> {
        let cores: Vec<String> = self.cores.iter().map(usize::to_string).collect();
        [
            ("--benchmark", self.benchmark.to_string()),
            ("--contender", self.contender.to_string()),
            ("--size", self.size.to_string()),
            ("--iterations", self.iterations.to_string()),
            ("--gap", self.gap.to_string()),
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
            gap: 5,
            cores: vec![0, 1, 1],
        };
        let args = std::iter::once("probe".to_owned()).chain(task.to_args());
        assert_eq!(Probe::parse_from(args).task.to_args(), task.to_args());
    }
}

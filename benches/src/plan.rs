//! Which measurements are made: who is compared with whom, over what, and how often.

use crate::candidate;
use crate::task::{Benchmark, Contender, Task};

/// Readers of the fan-out.
const READERS: usize = 4;

/// Tasks that are compared with each other: same benchmark, same size, same cores.
#[derive(Clone, Debug)]
pub struct Group {
    /// What is measured.
    pub benchmark: Benchmark,
    /// What distinguishes the group from others of the benchmark.
    pub label: String,
    /// One for each contender.
    pub tasks: Vec<Task>,
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The benchmarks, in the order of the report.
    pub benchmarks: Vec<Benchmark>,
    /// The two cores, or one twice: then what polls is left out, because it would wait for the scheduler at
    /// every turn.
    pub cores: (usize, usize),
    /// As little as shows that everything works.
    pub quick: bool,
    /// The contenders that take part; all if none is named.
    pub only: Vec<Contender>,
}

impl Plan {
    /// All groups of the plan.
    pub fn groups(&self) -> Vec<Group> {
        self.benchmarks
            .iter()
            .flat_map(|&benchmark| self.groups_of(benchmark))
            .filter(|group| !group.tasks.is_empty())
            .collect()
    }

    fn groups_of(&self, benchmark: Benchmark) -> Vec<Group> {
        use Benchmark::{
            Access, Blocking, Cost, CostFollowed, Fanout, Footprint, Fresh, FreshSent, HandOver,
            Latency, Paced, Pooled, PooledPages, Readers, Requests, RequestsAsleep, Setup,
            Throughput, Tokio, Touch,
        };
        use Contender::{
            AsyncFd, AsyncFdOnce, Bare, CacheLine, EightReaders, Eventfd, EventfdEpoll,
            EventfdRing, ExchangeLanes, ExchangeLink, FourReaders, Frozen, FrozenCopy,
            FrozenPrefault, IpcChannel, Live, LiveCopy, LiveHuge, LivePrefault, Loan, LoanTrusting,
            Memfd, MemfdAllocated, MemfdPopulated, Memlane, MemlaneAdaptive, MemlaneAdaptiveSocket,
            MemlaneBatch16, MemlaneBatch64, MemlaneBlock, MemlaneBlockSocket, MemlaneMembarrier,
            MemlanePoll, MemlaneTrusting, OneReader, Plain, PlainCopy, PlainRing, PlainSlots,
            Ring64, Slots, SlotsAsleep, Stream, StreamEpoll, TunedRing, TwoReaders, UnixStream,
        };

        let (first, second) = self.cores;
        let apart = first != second;
        if !apart
            && matches!(
                benchmark,
                Latency
                    | Throughput
                    | Fanout
                    | Readers
                    | Access
                    | Touch
                    | Paced
                    | CostFollowed
                    | Requests
            )
        {
            return vec![];
        }
        let contenders: &[Contender] = match benchmark {
            Latency => &[CacheLine, PlainRing, Memlane, MemlaneTrusting],
            Throughput | Fanout => &[PlainRing, TunedRing, Memlane, MemlaneTrusting],
            Blocking => &[
                Eventfd,
                EventfdEpoll,
                MemlaneTrusting,
                Stream,
                StreamEpoll,
                Memlane,
            ],
            Readers => &[OneReader, TwoReaders, FourReaders, EightReaders],
            Setup | Footprint => &[Bare, Memlane, MemlaneTrusting],
            Fresh | FreshSent => &[
                Memfd,
                MemfdAllocated,
                MemfdPopulated,
                Frozen,
                FrozenPrefault,
                FrozenCopy,
                Live,
                LivePrefault,
            ],
            Pooled | PooledPages => &[Frozen, FrozenPrefault, Plain, Loan, LoanTrusting],
            Access => &[
                Plain,
                Live,
                LiveHuge,
                LoanTrusting,
                PlainCopy,
                LiveCopy,
                Loan,
            ],
            Touch => &[Ring64, PlainSlots, Slots, Loan, LoanTrusting],
            HandOver => &[
                IpcChannel,
                Memfd,
                ExchangeLink,
                ExchangeLanes,
                Slots,
                SlotsAsleep,
            ],
            Paced => &[
                PlainRing,
                MemlanePoll,
                MemlaneAdaptive,
                MemlaneAdaptiveSocket,
                MemlaneBlock,
                MemlaneBlockSocket,
                EventfdRing,
            ],
            Cost | CostFollowed => &[
                PlainRing,
                MemlanePoll,
                MemlaneAdaptive,
                MemlaneBatch16,
                MemlaneBatch64,
                MemlaneMembarrier,
            ],
            Tokio => &[AsyncFd, AsyncFdOnce, MemlaneTrusting, UnixStream, Memlane],
            Requests => &[
                Memlane,
                MemlaneTrusting,
                Contender::Requests,
                Contender::RequestsTrusting,
            ],
            RequestsAsleep => &[
                Eventfd,
                EventfdEpoll,
                MemlaneTrusting,
                Contender::RequestsTrusting,
                Memlane,
                Contender::Requests,
            ],
        };
        let group = |label: String, size: usize, iterations: u64, cores: Vec<usize>| {
            let iterations = if self.quick {
                iterations.div_ceil(100).max(20)
            } else {
                iterations
            };
            let task = |&contender| Task {
                benchmark,
                contender,
                size: if contender == Ring64 { 64 } else { size },
                iterations,
                gap: 0,
                cores: match contender.readers() {
                    Some(readers) => std::iter::once(first)
                        .chain([second].repeat(readers))
                        .collect(),
                    None => cores.clone(),
                },
            };
            let takes_part = |contender: &&Contender| {
                (candidate::AVAILABLE || !contender.is_candidate())
                    && (self.only.is_empty() || self.only.contains(contender))
            };
            Group {
                benchmark,
                label,
                tasks: contenders.iter().filter(takes_part).map(task).collect(),
            }
        };
        let sized = |sizes: &[(usize, u64)]| {
            sizes
                .iter()
                .map(|&(size, iterations)| {
                    group(bytes(size), size, iterations, vec![first, second])
                })
                .collect()
        };

        match benchmark {
            Latency => sized(&[
                (8, 200_000),
                (48, 200_000),
                (64, 200_000),
                (256, 200_000),
                (1024, 100_000),
                (65_536, 10_000),
            ]),
            Throughput => sized(&[
                (8, 10_000_000),
                (64, 8_000_000),
                (1024, 2_000_000),
                (4096, 500_000),
                (65_536, 40_000),
            ]),
            // So many that twenty or more lie beyond p99.9.
            Blocking => {
                let one_core = group("one core".into(), 8, 50_000, vec![first, first]);
                let two_cores =
                    apart.then(|| group("two cores".into(), 8, 20_000, vec![first, second]));
                two_cores.into_iter().chain([one_core]).collect()
            }
            Setup => sized(&[(8, 300)]),
            Fanout => {
                let cores = std::iter::once(first).chain([second; READERS]).collect();
                vec![group(
                    format!("1:{READERS}, {}", bytes(4096)),
                    4096,
                    100_000,
                    cores,
                )]
            }
            Readers => sized(&[(8, 4_000_000), (64, 2_000_000)]),
            Footprint => sized(&[(8, 1)]),
            Fresh => [(64 << 10, 500), (1 << 20, 50)]
                .into_iter()
                .map(|(size, iterations)| group(bytes(size), size, iterations, vec![first]))
                .collect(),
            FreshSent => sized(&[(64 << 10, 500), (1 << 20, 50)]),
            Pooled | PooledPages => {
                let size = 1 << 20;
                let alone = group(
                    format!("{}, one thread", bytes(size)),
                    size,
                    200,
                    vec![first],
                );
                let label = format!("{}, two processes", bytes(size));
                let both = apart.then(|| group(label, size, 200, vec![first, second]));
                both.into_iter().chain([alone]).collect()
            }
            Access => sized(&[(64 << 10, 2000), (1 << 20, 200)]),
            Touch => sized(&[
                (64 << 10, 20_000),
                (256 << 10, 20_000),
                (1 << 20, 20_000),
                (4 << 20, 20_000),
            ]),
            HandOver => {
                let size = 64 << 10;
                let label = bytes(size);
                let two_cores = apart.then(|| {
                    let label = format!("{label}, two cores");
                    group(label, size, 1000, vec![first, second])
                });
                let mut one_core =
                    group(format!("{label}, one core"), size, 5000, vec![first, first]);
                one_core
                    .tasks
                    .retain(|task| !matches!(task.contender, Slots | ExchangeLanes));
                two_cores.into_iter().chain([one_core]).collect()
            }
            // Between half a second and two seconds each.
            Paced => [
                (1_000, 500_000),
                (5_000, 200_000),
                (10_000, 100_000),
                (30_000, 40_000),
                (100_000, 15_000),
                (1_000_000, 1500),
                (10_000_000, 200),
            ]
            .into_iter()
            .map(|(gap, iterations)| {
                let mut group = group(time(gap), 16, iterations, vec![first, second]);
                for task in &mut group.tasks {
                    task.gap = gap;
                }
                group
            })
            .collect(),
            Cost => {
                let one_core = group("one core".into(), 8, 8_000_000, vec![first, first]);
                let two_cores =
                    apart.then(|| group("two cores".into(), 8, 8_000_000, vec![first, second]));
                two_cores.into_iter().chain([one_core]).collect()
            }
            Requests => sized(&[(64, 200_000)]),
            RequestsAsleep => {
                let one_core = group("one core".into(), 64, 50_000, vec![first, first]);
                let two_cores =
                    apart.then(|| group("two cores".into(), 64, 20_000, vec![first, second]));
                two_cores.into_iter().chain([one_core]).collect()
            }
            CostFollowed => sized(&[(8, 8_000_000)]),
            Tokio => {
                let one_core = group("one core".into(), 8, 20_000, vec![first, first]);
                let two_cores =
                    apart.then(|| group("two cores".into(), 8, 5_000, vec![first, second]));
                two_cores.into_iter().chain([one_core]).collect()
            }
        }
    }
}

fn bytes(size: usize) -> String {
    if size >= 1 << 20 {
        format!("{} MiB", size >> 20)
    } else if size >= 1024 {
        format!("{} KiB", size / 1024)
    } else {
        format!("{size} B")
    }
}

fn time(nanoseconds: u64) -> String {
    match nanoseconds {
        1_000_000.. => format!("{} ms", nanoseconds / 1_000_000),
        1_000.. => format!("{} us", nanoseconds / 1_000),
        _ => format!("{nanoseconds} ns"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_core_leaves_out_what_polls() {
        let plan = Plan {
            benchmarks: vec![
                Benchmark::Latency,
                Benchmark::Blocking,
                Benchmark::Paced,
                Benchmark::CostFollowed,
            ],
            cores: (1, 1),
            quick: true,
            only: vec![],
        };
        let labels: Vec<_> = plan.groups().into_iter().map(|group| group.label).collect();
        assert_eq!(labels, ["one core"]);
    }
}

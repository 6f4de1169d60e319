//! The tables.

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};

use crate::plan::Group;
use crate::rounds::{Best, OFF, Results, Summary};
use crate::task::{Benchmark, Contender};

/// How a number is written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    Time,
    Millions,
    Thousands,
    Gigabytes,
    Kibibytes,
    Count,
    Fraction,
    Percent,
}

impl Unit {
    pub(crate) fn write(self, value: f64) -> String {
        match self {
            Self::Time if value < 1e3 => format!("{value:.1} ns"),
            Self::Time if value < 1e6 => format!("{:.2} us", value / 1e3),
            Self::Time => format!("{:.2} ms", value / 1e6),
            Self::Millions => format!("{:.2}", value / 1e6),
            Self::Thousands => format!("{:.1}", value / 1e3),
            Self::Gigabytes => format!("{:.2}", value / 1e9),
            Self::Kibibytes => format!("{:.0}", value / 1024.0),
            Self::Count => format!("{value:.0}"),
            Self::Fraction => format!("{value:.2}"),
            Self::Percent => format!("{:.2} %", value * 100.0),
        }
    }
}

/// A column with a number as it was measured.
type Column = (&'static str, &'static str, Unit);

/// A column with a ratio or a difference: its heading, the metric, and what a contender is compared with.
type Ratio = (
    &'static str,
    &'static str,
    fn(Contender) -> &'static [Contender],
);

/// How the results of one benchmark are laid out.
struct Layout {
    title: &'static str,
    key: &'static str,
    columns: &'static [Column],
    ratios: &'static [Ratio],
    /// Times beyond those of what a contender is compared with.
    differences: &'static [Ratio],
    best: Best,
}

const ONE_WAY: &[Column] = &[
    ("p50", "p50", Unit::Time),
    ("p99", "p99", Unit::Time),
    ("p99.9", "p99.9", Unit::Time),
    ("mean, no timestamps", "mean", Unit::Time),
];

const ONE_WAY_ASLEEP: &[Column] = &[
    ("p50", "p50", Unit::Time),
    ("p99", "p99", Unit::Time),
    ("p99.9", "p99.9", Unit::Time),
    ("mean, no timestamps", "mean", Unit::Time),
    ("sleeps a turn", "sleeps", Unit::Fraction),
];

const RATES: &[Column] = &[
    ("M msg/s", "messages", Unit::Millions),
    ("GB/s", "bytes", Unit::Gigabytes),
];

const RATE_RATIOS: &[Ratio] = &[
    ("rate / plain", "messages", |_| &[Contender::PlainRing]),
    ("rate / tuned", "messages", |_| &[Contender::TunedRing]),
];

const TURNS: &[Column] = &[
    ("p50", "p50", Unit::Time),
    ("p99", "p99", Unit::Time),
    ("mean, no timestamps", "mean", Unit::Time),
    ("k/s", "rate", Unit::Thousands),
];

fn layout(benchmark: Benchmark) -> Layout {
    match benchmark {
        Benchmark::Fresh => Layout {
            title: "Fresh regions, one process: made, written whole, opened, read whole, dropped. Ratios, of rates: more is better; target 0.95x.",
            key: "region",
            columns: TURNS,
            ratios: FRESH_RATIOS,
            differences: &[],
            best: Best::Greatest,
        },
        Benchmark::FreshSent => Layout {
            title: "Fresh regions, two processes: made, written whole, sent; opened, read whole, dropped, acknowledged. Both sleep. Ratios, of rates: more is better.",
            key: "region",
            columns: TURNS,
            ratios: FRESH_RATIOS,
            differences: &[],
            best: Best::Greatest,
        },
        Benchmark::Pooled => Layout {
            title: "Messages in a pool beside new regions sent over a link: every byte written, sent, every byte read, released. Ratios, of rates: more is better.",
            key: "region",
            columns: TURNS,
            ratios: POOLED_RATIOS,
            differences: &[],
            best: Best::Greatest,
        },
        Benchmark::PooledPages => Layout {
            title: "Messages in a pool beside new regions sent over a link: a word of each page written, sent, read, released. Ratios, of rates: more is better; target 20x.",
            key: "region",
            columns: TURNS,
            ratios: POOLED_RATIOS,
            differences: &[],
            best: Best::Greatest,
        },
        Benchmark::Access => Layout {
            title: "Full write, hand-over, full read, hand-over back, both polling. Ratios, of rates: more is better; target 0.97x.",
            key: "region",
            columns: &[
                ("p50 turn", "p50", Unit::Time),
                ("write", "write", Unit::Time),
                ("read", "read", Unit::Time),
                ("write GB/s", "write.bytes", Unit::Gigabytes),
                ("read GB/s", "read.bytes", Unit::Gigabytes),
            ],
            ratios: &[
                ("p50 turn / plain", "rate.p50", same_loop_over_plain),
                ("mean turn / plain", "rate", same_loop_over_plain),
                ("write / plain", "write.bytes", same_loop_over_plain),
                ("read / plain", "read.bytes", same_loop_over_plain),
            ],
            differences: &[],
            best: Best::Greatest,
        },
        Benchmark::Touch => Layout {
            title: "Latency, one way, both polling, first and last bytes touched: half of a round trip. Ratios: less is better; target 1.5x.",
            key: "message",
            columns: ONE_WAY,
            ratios: &[
                ("p50 / ring-64", "p50", |_| &[Contender::Ring64]),
                ("mean / ring-64", "mean", |_| &[Contender::Ring64]),
                ("p50 / plain", "p50", |_| &[Contender::PlainSlots]),
            ],
            differences: &[],
            best: Best::Least,
        },
        Benchmark::HandOver => Layout {
            title: "A region that both know, over and back, first and last bytes read. Ratios, of rates: more is better; target 10x.",
            key: "region",
            columns: TURNS,
            ratios: &[
                ("p50 / ipc-channel", "rate.p50", |_| {
                    &[Contender::IpcChannel]
                }),
                ("mean / ipc-channel", "rate", |_| &[Contender::IpcChannel]),
                ("p50 / memfd", "rate.p50", |_| &[Contender::Memfd]),
            ],
            differences: &[],
            best: Best::Greatest,
        },
        Benchmark::Latency => Layout {
            title: "Latency, one way, both polling: half of a round trip. Ratios: less is better.",
            key: "message",
            columns: ONE_WAY,
            ratios: &[
                ("p50 / limit", "p50", |_| &[Contender::CacheLine]),
                ("mean / limit", "mean", |_| &[Contender::CacheLine]),
                ("p50 / plain", "p50", |_| &[Contender::PlainRing]),
                ("mean / plain", "mean", |_| &[Contender::PlainRing]),
            ],
            differences: &[],
            best: Best::Least,
        },
        Benchmark::Throughput => Layout {
            title: "Throughput, both polling, ring of 1 MiB. Ratios: more is better.",
            key: "message",
            columns: RATES,
            ratios: RATE_RATIOS,
            differences: &[],
            best: Best::Greatest,
        },
        Benchmark::Blocking => Layout {
            title: "Latency, one way, 8 B, both sleep while they wait: half of a round trip. Ratios: less is better; targets 1.05x (eventfd), 1.1x (socket), p99.9 1.2x.",
            key: "on",
            columns: ONE_WAY_ASLEEP,
            ratios: &[
                ("p50 / cheaper", "p50", cheaper_of_its_kind),
                ("p99 / cheaper", "p99", cheaper_of_its_kind),
                ("p99.9 / cheaper", "p99.9", cheaper_of_its_kind),
                ("mean / cheaper", "mean", cheaper_of_its_kind),
                ("p50 / epoll", "p50", epoll_of_its_kind),
                ("p99 / epoll", "p99", epoll_of_its_kind),
                ("p99.9 / epoll", "p99.9", epoll_of_its_kind),
                ("mean / epoll", "mean", epoll_of_its_kind),
            ],
            differences: &[],
            best: Best::Least,
        },
        Benchmark::Paced => Layout {
            title: "Paced: a message each so often, latency from one clock to the same. Ratios: less is better; targets 1.3x of polling up to 10 us, 1.1x of blocking and 1 % of a core at 10 ms.",
            key: "every",
            columns: &[
                ("p50", "p50", Unit::Time),
                ("p99", "p99", Unit::Time),
                ("reader's core", "processor", Unit::Percent),
                ("sleeps a message", "sleeps", Unit::Fraction),
                ("really every", "gap", Unit::Time),
                ("clock", "clock", Unit::Time),
            ],
            ratios: &[
                ("p50 / poll", "p50", |_| &[Contender::MemlanePoll]),
                ("p99 / poll", "p99", |_| &[Contender::MemlanePoll]),
                ("p50 / block", "p50", blocking_the_same_way),
                ("p99 / block", "p99", blocking_the_same_way),
                ("p50 / plain", "p50", |_| &[Contender::PlainRing]),
                ("p50 / eventfd", "p50", |_| &[Contender::EventfdRing]),
            ],
            differences: &[],
            best: Best::Least,
        },
        Benchmark::Cost => Layout {
            title: "What a message of 8 B costs its sender, a burst of 4096 at a time, while the reader is awake but not reading. Target: 1 ns over poll in batches or with membarrier, one fence otherwise.",
            key: "on",
            ..COST
        },
        Benchmark::CostFollowed => Layout {
            title: "The same while the reader takes each message as soon as it is there.",
            key: "message",
            ..COST
        },
        Benchmark::Tokio => Layout {
            title: "Latency, one way, 8 B, two tasks that sleep while they wait: half of a round trip. Ratios: less is better; target 1.3x.",
            key: "on",
            columns: ONE_WAY_ASLEEP,
            ratios: &[
                ("p50 / async-fd", "p50", |_| &[Contender::AsyncFd]),
                ("mean / async-fd", "mean", |_| &[Contender::AsyncFd]),
                ("p50 / once", "p50", |_| &[Contender::AsyncFdOnce]),
                ("mean / once", "mean", |_| &[Contender::AsyncFdOnce]),
                ("p50 / stream", "p50", |_| &[Contender::UnixStream]),
                ("mean / stream", "mean", |_| &[Contender::UnixStream]),
            ],
            differences: &[],
            best: Best::Least,
        },
        Benchmark::Requests => Layout {
            title: "Requests of 64 B and replies of 64 B, both poll: whole turns, beside messages one way, half of a turn. Ratios: less is better; target 3x.",
            key: "payload",
            columns: ONE_WAY,
            ratios: &[
                ("p50 / one way", "p50", one_way),
                ("p99 / one way", "p99", one_way),
                ("mean / one way", "mean", one_way),
            ],
            differences: &[],
            best: Best::Least,
        },
        Benchmark::RequestsAsleep => Layout {
            title: "Requests of 64 B and replies of 64 B, both sleep: whole turns, as of bare wake-ups. Ratios: less is better; target 1.1x.",
            key: "on",
            columns: ONE_WAY_ASLEEP,
            ratios: &[
                ("p50 / epoll", "p50", |_| &[Contender::EventfdEpoll]),
                ("mean / epoll", "mean", |_| &[Contender::EventfdEpoll]),
                ("p50 / eventfd", "p50", |_| &[Contender::Eventfd]),
                ("p50 / messages", "p50", one_way),
            ],
            differences: &[],
            best: Best::Least,
        },
        Benchmark::Setup => Layout {
            title: "Set-up: from before connect until the first message has been received. Ratios: less is better.",
            key: "message",
            columns: &[("p50", "p50", Unit::Time), ("p99", "p99", Unit::Time)],
            ratios: &[("p50 / bare", "p50", |_| &[Contender::Bare])],
            differences: &[],
            best: Best::Least,
        },
        Benchmark::Fanout => Layout {
            title: "Fan-out, delivered to all readers together, which share one core. Ratios: more is better.",
            key: "fan-out",
            columns: RATES,
            ratios: RATE_RATIOS,
            differences: &[],
            best: Best::Greatest,
        },
        Benchmark::Readers => Layout {
            title: "What a message costs its sender while several readers keep up, all polling. Target: each reader more costs less than 5 ns.",
            key: "message",
            columns: &[
                ("p50", "p50", Unit::Time),
                ("p99", "p99", Unit::Time),
                ("mean", "mean", Unit::Time),
            ],
            ratios: &[],
            differences: &[
                ("p50 over one", "p50", |_| &[Contender::OneReader]),
                ("mean over one", "mean", |_| &[Contender::OneReader]),
            ],
            best: Best::Least,
        },
        Benchmark::Footprint => Layout {
            title: "Footprint of one idle lane with a ring of 1 MiB, KiB where nothing else is said.",
            key: "message",
            columns: &[
                ("reader: fds", "reader.descriptors", Unit::Count),
                ("threads", "reader.threads", Unit::Count),
                ("mapped", "reader.mapped", Unit::Kibibytes),
                ("resident shared", "reader.shared", Unit::Kibibytes),
                ("private", "reader.private", Unit::Kibibytes),
                ("writer: fds", "writer.descriptors", Unit::Count),
                ("threads", "writer.threads", Unit::Count),
                ("mapped", "writer.mapped", Unit::Kibibytes),
                ("resident shared", "writer.shared", Unit::Kibibytes),
                ("private", "writer.private", Unit::Kibibytes),
            ],
            ratios: &[],
            differences: &[],
            best: Best::Least,
        },
    }
}

const COST: Layout = Layout {
    title: "",
    key: "",
    columns: &[
        ("p50", "p50", Unit::Time),
        ("p99", "p99", Unit::Time),
        ("mean", "mean", Unit::Time),
        ("fences", "fences", Unit::Count),
        ("rings", "rings", Unit::Count),
        ("reader slept", "reader.sleeps", Unit::Count),
    ],
    ratios: &[],
    differences: &[
        ("p50 over poll", "p50", |_| &[Contender::MemlanePoll]),
        ("mean over poll", "mean", |_| &[Contender::MemlanePoll]),
        ("p50 over plain", "p50", |_| &[Contender::PlainRing]),
    ],
    best: Best::Least,
};

const FRESH_RATIOS: &[Ratio] = &[
    ("p50 / memfd", "rate.p50", |_| &[Contender::Memfd]),
    ("mean / memfd", "rate", |_| &[Contender::Memfd]),
    ("p50 / populated", "rate.p50", |_| {
        &[Contender::MemfdPopulated]
    }),
];

const POOLED_RATIOS: &[Ratio] = &[
    ("p50 / frozen", "rate.p50", |_| &[Contender::Frozen]),
    ("mean / frozen", "rate", |_| &[Contender::Frozen]),
    ("p50 / plain", "rate.p50", |_| &[Contender::Plain]),
];

fn same_loop_over_plain(contender: Contender) -> &'static [Contender] {
    match contender {
        Contender::PlainCopy | Contender::LiveCopy | Contender::Loan => &[Contender::PlainCopy],
        _ => &[Contender::Plain],
    }
}

/// A message on the same terms.
fn one_way(contender: Contender) -> &'static [Contender] {
    match contender {
        Contender::Memlane | Contender::Requests => &[Contender::Memlane],
        _ => &[Contender::MemlaneTrusting],
    }
}

/// The two ways of using the same kernel object that a way of waking is compared with.
fn cheaper_of_its_kind(contender: Contender) -> &'static [Contender] {
    match contender {
        Contender::Stream | Contender::StreamEpoll | Contender::Memlane => {
            &[Contender::Stream, Contender::StreamEpoll]
        }
        _ => &[Contender::Eventfd, Contender::EventfdEpoll],
    }
}

/// The one of the two that can watch more than one descriptor, as a real program must.
fn epoll_of_its_kind(contender: Contender) -> &'static [Contender] {
    match contender {
        Contender::Stream | Contender::StreamEpoll | Contender::Memlane => {
            &[Contender::StreamEpoll]
        }
        _ => &[Contender::EventfdEpoll],
    }
}

/// The reader that never spins, woken through the same kernel object.
fn blocking_the_same_way(contender: Contender) -> &'static [Contender] {
    match contender {
        Contender::MemlaneAdaptiveSocket | Contender::MemlaneBlockSocket => {
            &[Contender::MemlaneBlockSocket]
        }
        _ => &[Contender::MemlaneBlock],
    }
}

/// A table for each benchmark, and what has to be known about how far the cores were.
///
/// # Errors
///
/// Fails if `out` does.
pub fn write(results: &Results, out: &mut impl Write) -> io::Result<()> {
    let mut start = 0;
    for groups in results.groups.chunk_by(|a, b| a.benchmark == b.benchmark) {
        let layout = layout(groups[0].benchmark);
        writeln!(
            out,
            "\n{}\n{}",
            layout.title,
            table(results, start..start + groups.len(), &layout)
        )?;
        start += groups.len();
    }
    if let Some(usual) = results.usual_distance() {
        writeln!(
            out,
            "\nThe cores are usually {usual:.1} ns apart, one way (lower quartile of all probes). Rounds with a probe before or after that is \
             {OFF} times farther or nearer are dropped.\n~ marks values for which no other rounds were left."
        )?;
    }
    Ok(())
}

fn table(results: &Results, groups: std::ops::Range<usize>, layout: &Layout) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    let headings = layout
        .columns
        .iter()
        .map(|column| column.0)
        .chain(layout.ratios.iter().map(|ratio| ratio.0))
        .chain(layout.differences.iter().map(|difference| difference.0));
    table.set_header(
        [layout.key, "contender"]
            .into_iter()
            .chain(headings)
            .chain(["dropped"]),
    );
    for group in groups {
        for (index, task) in results.groups[group].tasks.iter().enumerate() {
            let mut row = vec![
                results.groups[group].label.clone(),
                task.contender.to_string(),
            ];
            row.extend(layout.columns.iter().map(|&(_, metric, unit)| {
                cell(results.value(group, index, metric), |value| {
                    unit.write(value)
                })
            }));
            row.extend(layout.ratios.iter().map(|&(_, metric, against)| {
                let ratio =
                    results.ratio(group, index, against(task.contender), metric, layout.best);
                cell(ratio, |ratio| format!("{ratio:.2}x"))
            }));
            row.extend(layout.differences.iter().map(|&(_, metric, against)| {
                let difference =
                    results.difference(group, index, against(task.contender), metric, layout.best);
                cell(difference, |difference| format!("{difference:+.2} ns"))
            }));
            row.push(format!(
                "{}/{}",
                results.dropped(group, index),
                results.rounds()
            ));
            table.add_row(row);
        }
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn cell(summary: Option<Summary>, write: impl FnOnce(f64) -> String) -> String {
    summary.map_or_else(String::new, |Summary { value, off }| {
        format!("{}{}", if off { "~" } else { "" }, write(value))
    })
}

/// Every number of every round, one a line, for those who want to look at the spread.
///
/// # Errors
///
/// Fails if `out` does.
pub fn write_csv(results: &Results, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "round,benchmark,group,contender,usual,metric,value")?;
    for round in 0..results.rounds() {
        for (
            group,
            Group {
                benchmark,
                label,
                tasks,
            },
        ) in results.groups.iter().enumerate()
        {
            for (task, of_task) in tasks.iter().enumerate() {
                let usual = results.is_usual(round, group, task);
                for (metric, value) in results.sample(round, group, task).iter() {
                    writeln!(
                        out,
                        "{round},{benchmark},\"{label}\",{},{usual},{metric},{value}",
                        of_task.contender
                    )?;
                }
            }
        }
    }
    Ok(())
}

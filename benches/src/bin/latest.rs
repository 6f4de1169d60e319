//! Measures the latest-value cell against a plain copy of one cache line that is written as often, and prints
//! tables.
//!
//! Reader and writer are threads with mappings of their own, as two processes would have them. All readers
//! run on the second core: on a machine with more cores each would disturb the writer, here one does at a time.

use std::convert::Infallible;
use std::hint::{black_box, spin_loop};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use memlane_benches::machine;
use memlane_benches::shared::{self, HEADER, Mapping};
use memlane_region::latest::{LatestReader, LatestWriter, ReadError};

/// Measure the latest-value cell.
#[derive(Debug, Parser)]
#[command(name = "latest")]
struct Options {
    /// How often everything is measured; the median counts [default: 31, with --quick 1].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,

    /// The cores of what is measured and of what disturbs it [default: the first two this process may use].
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    cores: Option<Vec<usize>>,

    /// As little as shows that everything works; the numbers mean nothing.
    #[arg(long)]
    quick: bool,
}

/// Bytes of a value.
const LEN: usize = 64;

/// What a writer does between two updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// It never writes.
    Quiet,
    /// It waits for so many turns of a spin loop.
    Turns(u32),
    /// Nothing.
    Busy,
}

const PACES: [(&str, Pace); 4] = [
    ("quiet", Pace::Quiet),
    ("every 2000 turns", Pace::Turns(2000)),
    ("every 40 turns", Pace::Turns(40)),
    ("all the time", Pace::Busy),
];

impl Pace {
    #[inline(always)]
    fn wait(self) {
        if let Pace::Turns(turns) = self {
            for _ in 0..turns {
                spin_loop();
            }
        }
    }
}

/// Somewhere to put a value of 64 bytes, and to have it from.
trait Place: Sized {
    const NAME: &'static str;
    type Writer: Send;
    type Reader: Send;

    fn make() -> Result<(Self::Writer, OwnedFd)>;
    fn open(descriptor: OwnedFd) -> Result<Self::Reader>;
    fn write(writer: &mut Self::Writer, value: &[u8; LEN]);
    /// False if there was nothing to be had.
    fn read(reader: &mut Self::Reader, value: &mut [u8; LEN]) -> bool;
}

/// One cache line, without any protocol: what is read may be torn.
struct Line;

impl Place for Line {
    const NAME: &'static str = "plain line";
    type Writer = Mapping;
    type Reader = Mapping;

    fn make() -> Result<(Mapping, OwnedFd)> {
        let descriptor = shared::create(HEADER, true)?;
        Ok((Mapping::new(&descriptor, HEADER, true)?, descriptor))
    }

    fn open(descriptor: OwnedFd) -> Result<Mapping> {
        Mapping::new(descriptor, HEADER, true)
    }

    #[inline(always)]
    fn write(writer: &mut Mapping, value: &[u8; LEN]) {
        // SAFETY: the first 64 bytes of a ring of a page, which is mapped as long as the writer lives. Others read
        // them meanwhile, through mappings of their own and at addresses the compiler knows nothing of.
        unsafe { black_box(writer.data()).cast::<[u8; LEN]>().write(*value) }
    }

    #[inline(always)]
    fn read(reader: &mut Mapping, value: &mut [u8; LEN]) -> bool {
        // SAFETY: as above.
        *value = unsafe { black_box(reader.data()).cast::<[u8; LEN]>().read() };
        true
    }
}

/// The cell.
struct Cell;

impl Place for Cell {
    const NAME: &'static str = "latest-value cell";
    type Writer = LatestWriter;
    type Reader = LatestReader;

    fn make() -> Result<(LatestWriter, OwnedFd)> {
        let (mut writer, descriptor) = LatestWriter::<_, Infallible>::create("memlane-bench", LEN)?;
        writer.write(&[0; LEN])?;
        Ok((writer, descriptor))
    }

    fn open(descriptor: OwnedFd) -> Result<LatestReader> {
        Ok(LatestReader::open(descriptor, LEN, 1 << 20)?)
    }

    #[inline(always)]
    fn write(writer: &mut LatestWriter, value: &[u8; LEN]) {
        writer.write(value).expect("a value of the right length");
    }

    #[inline(always)]
    fn read(reader: &mut LatestReader, value: &mut [u8; LEN]) -> bool {
        match reader.read(value) {
            Ok(found) => found.is_some(),
            Err(ReadError::Unstable { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Nanoseconds for each of `count` calls, and how many of them were in vain.
fn time(count: u32, mut call: impl FnMut(u32) -> bool) -> (f64, u32) {
    let mut vain = 0;
    for number in 0..count / 10 {
        call(number);
    }
    let start = Instant::now();
    for number in 0..count {
        vain += u32::from(!call(number));
    }
    (start.elapsed().as_nanos() as f64 / f64::from(count), vain)
}

/// The median of single calls with a pause before each, in nanoseconds beyond what taking the time costs.
fn time_each(count: u32, pause: Pace, mut call: impl FnMut() -> bool) -> (f64, u32) {
    let mut vain = 0;
    let mut once = |call: &mut dyn FnMut() -> bool| {
        pause.wait();
        let start = Instant::now();
        vain += u32::from(!call());
        start.elapsed().as_nanos() as f64
    };
    let mut nothing: Vec<_> = (0..count).map(|_| once(&mut || true)).collect();
    let mut calls: Vec<_> = (0..count).map(|_| once(&mut call)).collect();
    (median(&mut calls) - median(&mut nothing), vain)
}

/// Nanoseconds a read on core `cores.0`, while core `cores.1` writes at that pace. Between two reads is a pause,
/// which does not count.
fn reader<P: Place>(
    cores: (usize, usize),
    pace: Pace,
    pause: Pace,
    count: u32,
) -> Result<(f64, u32)> {
    machine::pin(cores.0)?;
    let (mut writer, descriptor) = P::make()?;
    let mut reader = P::open(descriptor)?;
    let (stop, ready) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            machine::pin(cores.1).expect("a core");
            let mut value = [0_u8; LEN];
            ready.store(1, Ordering::Release);
            while pace != Pace::Quiet && !stop.load(Ordering::Relaxed) {
                value[0] = value[0].wrapping_add(1);
                P::write(&mut writer, black_box(&value));
                pace.wait();
            }
        });
        while ready.load(Ordering::Acquire) == 0 {
            spin_loop();
        }
        let mut value = [0; LEN];
        let timed = match pause {
            Pace::Turns(_) => {
                time_each(count, pause, || P::read(&mut reader, black_box(&mut value)))
            }
            _ => time(count, |_| P::read(&mut reader, black_box(&mut value))),
        };
        stop.store(true, Ordering::Relaxed);
        Ok(timed)
    })
}

/// Nanoseconds an update on core `cores.0`, while so many readers read all the time on core `cores.1`.
fn writer<P: Place>(
    cores: (usize, usize),
    pace: Pace,
    readers: usize,
    count: u32,
) -> Result<(f64, u32)> {
    machine::pin(cores.0)?;
    let (mut writer, descriptor) = P::make()?;
    let readers = (0..readers)
        .map(|_| P::open(descriptor.as_fd().try_clone_to_owned()?))
        .collect::<Result<Vec<_>>>()?;
    let (stop, ready) = (AtomicBool::new(false), AtomicUsize::new(0));
    let expected = readers.len();
    thread::scope(|scope| {
        for mut reader in readers {
            scope.spawn({
                let (stop, ready) = (&stop, &ready);
                move || {
                    machine::pin(cores.1).expect("a core");
                    let mut value = [0; LEN];
                    ready.fetch_add(1, Ordering::Release);
                    while !stop.load(Ordering::Relaxed) {
                        P::read(&mut reader, black_box(&mut value));
                    }
                }
            });
        }
        while ready.load(Ordering::Acquire) < expected {
            spin_loop();
        }
        let mut value = [0; LEN];
        let timed = time(count, |number| {
            value[0] = number as u8;
            P::write(&mut writer, black_box(&value));
            pace.wait();
            true
        });
        stop.store(true, Ordering::Relaxed);
        Ok(timed)
    })
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Rounds of both places in turn: the medians of the times and of their ratios, and the reads in vain.
fn compare(
    rounds: usize,
    mut line: impl FnMut() -> Result<(f64, u32)>,
    mut cell: impl FnMut() -> Result<(f64, u32)>,
) -> Result<[f64; 4]> {
    let mut all = [vec![], vec![], vec![], vec![]];
    for _ in 0..rounds {
        let (line, _) = line()?;
        let (cell, vain) = cell()?;
        for (values, value) in all
            .iter_mut()
            .zip([line, cell, cell / line, f64::from(vain)])
        {
            values.push(value);
        }
    }
    Ok(all.map(|mut values| median(&mut values)))
}

fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(headings);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn measure(options: &Options) -> Result<()> {
    let mut out = io::stdout();
    write!(out, "{}", machine::header())?;
    let cores = match options.cores.as_deref() {
        Some(&[first, second]) => (first, second),
        Some(other) => anyhow::bail!("--cores takes two cores, not {}", other.len()),
        None => machine::default_cores()?,
    };
    ensure!(cores.0 != cores.1, "reader and writer take a core each");
    writeln!(out, "cores    {} and {}", cores.0, cores.1)?;
    let rounds = usize::from(options.rounds.unwrap_or(if options.quick { 1 } else { 31 }));
    let count = if options.quick { 1000 } else { 200_000 };

    for (often, pause, count) in [
        ("one after the other", Pace::Busy, count),
        ("with 1 us between", Pace::Turns(100), count / 10),
    ] {
        writeln!(out, "\nReads of {LEN} bytes, {often}\n")?;
        let mut reads = table(&["writes", Line::NAME, Cell::NAME, "ratio", "in vain"]);
        for (name, pace) in PACES {
            let [line, cell, ratio, vain] = compare(
                rounds,
                || reader::<Line>(cores, pace, pause, count),
                || reader::<Cell>(cores, pace, pause, count),
            )?;
            reads.add_row([
                name.to_owned(),
                format!("{line:.2} ns"),
                format!("{cell:.2} ns"),
                format!("{ratio:.2}x"),
                format!("{:.3}%", vain / f64::from(count) * 100.0),
            ]);
        }
        writeln!(out, "{reads}")?;
    }

    for (name, pace) in PACES.into_iter().skip(1) {
        // Waiting takes its time, too.
        let count = match pace {
            Pace::Turns(turns) => count / (1 + turns / 10),
            _ => count,
        };
        writeln!(
            out,
            "\nAn update of {LEN} bytes, {name}, while readers read all the time\n"
        )?;
        let mut updates = table(&["readers", Line::NAME, Cell::NAME, "ratio", "cell, to none"]);
        let mut alone = None;
        for readers in [0, 1, 2, 4, 8] {
            let [line, cell, ratio, _] = compare(
                rounds,
                || writer::<Line>(cores, pace, readers, count),
                || writer::<Cell>(cores, pace, readers, count),
            )?;
            let alone = *alone.get_or_insert(cell);
            updates.add_row([
                readers.to_string(),
                format!("{line:.2} ns"),
                format!("{cell:.2} ns"),
                format!("{ratio:.2}x"),
                format!("{:.2}x", cell / alone),
            ]);
        }
        writeln!(out, "{updates}")?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match measure(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("latest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

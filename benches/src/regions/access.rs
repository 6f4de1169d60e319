//! Memory that stays, written whole by the initiator and read whole by the responder. Whose turn it is, is said in a line
//! beside it, the same for all contenders.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use anyhow::{Result, ensure};
use memlane::{Trusted, Untrusted, WaitPolicy};
use memlane_region::{HugePages, Live, LiveView, Options, Region};

use super::loans::{Loans, Terms};
use super::plain::Plain;
use super::{give, memfd, read_all, take, unsuitable};
use crate::measure::percentiles;
use crate::measure::ping_pong::{Game, measure_turns};
use crate::metrics::Metrics;
use crate::references::cache_line::CacheLine;
use crate::shared::{self, Mapping};
use crate::task::Contender;
use crate::worker::Session;

/// Either side of the memory: the initiator writes it, the responder reads it.
trait Memory {
    /// Writes every byte.
    fn write(&mut self, value: u8);

    /// Reads every byte; the first and the last of them.
    fn read(&mut self) -> (u8, u8);
}

fn ends(bytes: &[u8]) -> (u8, u8) {
    (bytes[0], bytes[bytes.len() - 1])
}

/// What is read, in place or from a copy.
struct InPlace<M>(M);
struct Copied<M>(M, Vec<u8>);

impl Memory for InPlace<Plain> {
    #[inline]
    fn write(&mut self, value: u8) {
        // SAFETY: mapped to be written by both sides, and the other waits for its turn.
        unsafe { self.0.bytes_mut() }.fill(value);
    }

    #[inline]
    fn read(&mut self) -> (u8, u8) {
        // SAFETY: the other side waits for its turn.
        let bytes = unsafe { self.0.bytes() };
        read_all(bytes);
        ends(bytes)
    }
}

impl Memory for Copied<Plain> {
    #[inline]
    fn write(&mut self, value: u8) {
        // SAFETY: mapped to be written by both sides, and the other waits for its turn.
        unsafe { self.0.bytes_mut() }.fill(value);
    }

    #[inline]
    fn read(&mut self) -> (u8, u8) {
        // SAFETY: the other side waits for its turn.
        self.1.copy_from_slice(unsafe { self.0.bytes() });
        ends(std::hint::black_box(&self.1))
    }
}

/// The first `len` bytes of a live region.
struct Front<L> {
    live: L,
    len: usize,
}

impl Memory for Front<Live> {
    #[inline]
    fn write(&mut self, value: u8) {
        self.live[..self.len].fill(value);
    }

    #[inline]
    fn read(&mut self) -> (u8, u8) {
        ends(&self.live[..self.len])
    }
}

impl Memory for InPlace<Front<LiveView>> {
    fn write(&mut self, _: u8) {}

    #[inline]
    fn read(&mut self) -> (u8, u8) {
        // SAFETY: the maker, this same executable, waits for its turn.
        let bytes = &unsafe { self.0.live.bytes() }[..self.0.len];
        read_all(bytes);
        ends(bytes)
    }
}

impl Memory for Copied<Front<LiveView>> {
    fn write(&mut self, _: u8) {}

    #[inline]
    fn read(&mut self) -> (u8, u8) {
        self.0.live.read(0, &mut self.1);
        ends(std::hint::black_box(&self.1))
    }
}

/// Nanoseconds in writing or in reading, of each turn.
struct Spent(Vec<u32>);

impl Spent {
    #[inline]
    fn since(&mut self, start: Instant) {
        let nanoseconds = start.elapsed().as_nanos();
        self.0.push(u32::try_from(nanoseconds).unwrap_or(u32::MAX));
    }
}

struct Access<M> {
    memory: M,
    line: CacheLine,
    value: u8,
    spent: Spent,
}

/// A game that keeps account.
trait Timed: Game {
    fn spent(&self) -> &[u32];
}

impl<M: Memory> Timed for Access<M> {
    fn spent(&self) -> &[u32] {
        &self.spent.0
    }
}

#[inline]
fn check(found: (u8, u8), value: u8) -> Result<()> {
    ensure!(found == (value, value), "expected {value}, found {found:?}");
    Ok(())
}

impl<M: Memory> Game for Access<M> {
    #[inline]
    fn ping(&mut self) -> Result<()> {
        self.value = self.value.wrapping_add(1);
        let start = Instant::now();
        self.memory.write(self.value);
        self.spent.since(start);
        self.line.take();
        self.line.wait();
        Ok(())
    }

    #[inline]
    fn pong(&mut self) -> Result<()> {
        self.value = self.value.wrapping_add(1);
        self.line.wait();
        let start = Instant::now();
        let found = self.memory.read();
        self.spent.since(start);
        check(found, self.value)?;
        self.line.take();
        Ok(())
    }
}

/// Loans are handed over by what they are made for, which counts as part of the turn.
struct Lent<T: Terms> {
    loans: Loans<T>,
    value: u8,
    spent: Spent,
}

impl<T: Terms> Timed for Lent<T> {
    fn spent(&self) -> &[u32] {
        &self.spent.0
    }
}

impl<T: Terms> Game for Lent<T> {
    #[inline]
    fn ping(&mut self) -> Result<()> {
        self.value = self.value.wrapping_add(1);
        let mut loan = self.loans.loan()?;
        let start = Instant::now();
        loan.fill(self.value);
        self.spent.since(start);
        self.loans.send(loan)?;
        self.loans.acknowledged()
    }

    #[inline]
    fn pong(&mut self) -> Result<()> {
        self.value = self.value.wrapping_add(1);
        let spent = &mut self.spent;
        let found = self.loans.receive(|message| {
            let start = Instant::now();
            let bytes = message.whole();
            let found = ends(bytes);
            spent.since(start);
            Ok(found)
        })?;
        check(found, self.value)?;
        self.loans.acknowledge()
    }
}

/// Writes and reads by turns. `write` and `read` are what one of them usually takes, the time of the hand-over left out.
///
/// # Errors
///
/// Fails if what is read is not what was written.
pub(crate) fn measure(session: &mut Session) -> Result<Metrics> {
    let size = session.task().size;
    let socket = session.take_descriptor()?;
    let is_writer = session.role().is_initiator();
    let contender = session.task().contender;
    match contender {
        Contender::Plain | Contender::PlainCopy => {
            let [line, fd] = if is_writer {
                let fds = [shared::create(0, true)?, memfd(size, true)?];
                give(socket, &[fds[0].as_fd(), fds[1].as_fd()])?;
                fds
            } else {
                take(socket)?
            };
            let memory = Plain::map(fd, size, true)?;
            memory.populate()?;
            if contender == Contender::Plain {
                play(session, line, InPlace(memory))
            } else {
                play(session, line, Copied(memory, vec![0; size]))
            }
        }
        Contender::Live | Contender::LiveCopy | Contender::LiveHuge => {
            let (options, whole) = if contender == Contender::LiveHuge {
                let options = Options::new("memlane-bench").huge_pages(HugePages::Transparent);
                (options, size.next_multiple_of(HUGE))
            } else {
                (Options::new("memlane-bench").prefault(true), size)
            };
            if is_writer {
                let live = Region::create(options, whole)?.share()?;
                let line = shared::create(0, true)?;
                give(socket, &[line.as_fd(), live.as_fd()])?;
                return play(session, line, Front { live, len: size });
            }
            let [line, fd] = take(socket)?;
            let live = LiveView::open(fd, whole)?;
            let view = Front { live, len: size };
            if contender == Contender::LiveCopy {
                play(session, line, Copied(view, vec![0; size]))
            } else {
                play(session, line, InPlace(view))
            }
        }
        Contender::Loan => lent::<Untrusted>(session),
        Contender::LoanTrusting => lent::<Trusted>(session),
        _ => Err(unsuitable(session)),
    }
}

/// Bytes that surely fill a huge page.
const HUGE: usize = 4 << 20;

/// Memory for the times of one side.
fn no_time(session: &Session) -> Spent {
    let task = session.task();
    let turns = task.warm_up() + 2 * task.iterations;
    Spent(Vec::with_capacity(turns as usize))
}

fn lent<T: Terms>(session: &mut Session) -> Result<Metrics> {
    let game = Lent {
        loans: Loans::<T>::between(session, WaitPolicy::Poll)?,
        value: 0,
        spent: no_time(session),
    };
    play_timed(session, game)
}

fn play(session: &mut Session, line: OwnedFd, memory: impl Memory) -> Result<Metrics> {
    let game = Access {
        memory,
        line: CacheLine::new(Mapping::new(line, 0, true)?),
        value: 0,
        spent: no_time(session),
    };
    play_timed(session, game)
}

fn play_timed(session: &mut Session, mut game: impl Timed) -> Result<Metrics> {
    let metrics = measure_turns(session, &mut game)?;
    let spent = percentiles(game.spent(), 1.0)?.require("p50")?;
    let name = if session.role().is_initiator() {
        "write"
    } else {
        "read"
    };
    Ok(metrics.with(name, spent).with(
        format!("{name}.bytes"),
        session.task().size as f64 / spent * 1e9,
    ))
}

/// The numbers of both sides.
///
/// # Errors
///
/// Fails if the reader has not reported.
pub(crate) fn combine(writer: &Metrics, reader: &Metrics) -> Result<Metrics> {
    let mut both = writer.clone();
    for name in ["read", "read.bytes"] {
        both = both.with(name, reader.require(name)?);
    }
    Ok(both)
}

//! Memory that stays, written whole by the initiator and read whole by the responder. Whose turn it is, is said in a line
//! beside it, the same for all contenders.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use anyhow::{Result, ensure};
use memlane_region::{Live, LiveView, Options, Region};

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

impl Memory for Live {
    #[inline]
    fn write(&mut self, value: u8) {
        self.fill(value);
    }

    #[inline]
    fn read(&mut self) -> (u8, u8) {
        ends(self)
    }
}

impl Memory for InPlace<LiveView> {
    fn write(&mut self, _: u8) {}

    #[inline]
    fn read(&mut self) -> (u8, u8) {
        // SAFETY: the maker, this same executable, waits for its turn.
        let bytes = unsafe { self.0.bytes() };
        read_all(bytes);
        ends(bytes)
    }
}

impl Memory for Copied<LiveView> {
    fn write(&mut self, _: u8) {}

    #[inline]
    fn read(&mut self) -> (u8, u8) {
        self.0.read(0, &mut self.1);
        ends(std::hint::black_box(&self.1))
    }
}

struct Access<M> {
    memory: M,
    line: CacheLine,
    value: u8,
    /// Nanoseconds in writing or in reading, of each turn.
    spent: Vec<u32>,
}

impl<M> Access<M> {
    #[inline]
    fn spent(&mut self, start: Instant) {
        let nanoseconds = start.elapsed().as_nanos();
        self.spent
            .push(u32::try_from(nanoseconds).unwrap_or(u32::MAX));
    }
}

impl<M: Memory> Game for Access<M> {
    #[inline]
    fn ping(&mut self) -> Result<()> {
        self.value = self.value.wrapping_add(1);
        let start = Instant::now();
        self.memory.write(self.value);
        self.spent(start);
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
        self.spent(start);
        ensure!(
            found == (self.value, self.value),
            "expected {}, found {found:?}",
            self.value
        );
        self.line.take();
        Ok(())
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
        Contender::Live | Contender::LiveCopy if is_writer => {
            let options = Options::new("memlane-bench").prefault(true);
            let live = Region::create(options, size)?.share()?;
            let line = shared::create(0, true)?;
            give(socket, &[line.as_fd(), live.as_fd()])?;
            play(session, line, live)
        }
        Contender::Live | Contender::LiveCopy => {
            let [line, fd] = take(socket)?;
            let view = LiveView::open(fd, size)?;
            if contender == Contender::Live {
                play(session, line, InPlace(view))
            } else {
                play(session, line, Copied(view, vec![0; size]))
            }
        }
        _ => Err(unsuitable(session)),
    }
}

fn play(session: &mut Session, line: OwnedFd, memory: impl Memory) -> Result<Metrics> {
    let line = CacheLine::new(Mapping::new(line, 0, true)?);
    let task = session.task();
    let turns = task.warm_up() + 2 * task.iterations;
    let mut game = Access {
        memory,
        line,
        value: 0,
        spent: Vec::with_capacity(turns as usize),
    };
    let metrics = measure_turns(session, &mut game)?;
    let spent = percentiles(&game.spent, 1.0)?.require("p50")?;
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

//! What reuse is worth: new regions, sent over a link, beside messages in a publisher's pool, and beside a mapping
//! that stays, without any message but whose turn it is. Between two processes, or all in one thread.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use anyhow::{Result, ensure};
use memlane::{Trusted, Untrusted, WaitPolicy};
use memlane_region::{Frozen, Options, Region};
use memlane_transport::{FdRef, Link, MemoryFd};

use super::loans::{Loans, Terms};
use super::plain::Plain;
use super::{expect, give, memfd, read_all, take, unsuitable};
use crate::measure::ping_pong::{Game, measure_turns};
use crate::metrics::Metrics;
use crate::references::cache_line::CacheLine;
use crate::shared::{self, Mapping};
use crate::task::Contender;
use crate::worker::Session;

/// How much of a message is written and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Every byte.
    Whole,
    /// A word of each page: what new memory costs, without what any memory costs.
    Pages,
}

const PAGE: usize = 4096;

impl Extent {
    #[inline]
    fn write(self, bytes: &mut [u8], value: u64) {
        match self {
            Self::Whole => bytes.fill(value as u8),
            Self::Pages => bytes
                .chunks_mut(PAGE)
                .for_each(|page| page[..8].copy_from_slice(&value.to_ne_bytes())),
        }
    }

    #[inline]
    fn read(self, bytes: &[u8], value: u64) -> Result<()> {
        match self {
            Self::Whole => {
                read_all(bytes);
                ends(bytes, value)
            }
            Self::Pages => words(value, bytes.len(), |at| {
                u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
            }),
        }
    }
}

fn ends(bytes: &[u8], value: u64) -> Result<()> {
    let found = (bytes[0], bytes[bytes.len() - 1]);
    let value = value as u8;
    ensure!(found == (value, value), "expected {value}, found {found:?}");
    Ok(())
}

#[inline]
fn words(value: u64, len: usize, word: impl Fn(usize) -> u64) -> Result<()> {
    (0..len)
        .step_by(PAGE)
        .try_for_each(|at| expect(word(at), value))
}

/// A way for messages, to this process itself or to the other one and, for acknowledgements, back.
trait Way {
    fn put(&mut self, value: u64) -> Result<()>;
    fn get(&mut self, value: u64) -> Result<()>;
    fn acknowledge(&mut self) -> Result<()>;
    fn acknowledged(&mut self) -> Result<()>;
}

/// A new region for each message, over a link.
struct Fresh {
    options: Options,
    size: usize,
    extent: Extent,
    there: Rc<Link>,
    back: Rc<Link>,
}

impl Way for Fresh {
    fn put(&mut self, value: u64) -> Result<()> {
        let mut region = Region::create(&self.options, self.size)?;
        self.extent.write(&mut region, value);
        let frozen = region.freeze()?;
        Ok(self.there.send(&FdRef::new(&frozen))?)
    }

    fn get(&mut self, value: u64) -> Result<()> {
        let fd: MemoryFd = self.back.recv()?;
        self.extent
            .read(&Frozen::open(fd.into(), self.size)?, value)
    }

    fn acknowledge(&mut self) -> Result<()> {
        Ok(self.there.send(&0_u64)?)
    }

    fn acknowledged(&mut self) -> Result<()> {
        let _: u64 = self.back.recv()?;
        Ok(())
    }
}

struct Pooled<T: Terms> {
    loans: Loans<T>,
    size: usize,
    extent: Extent,
}

impl<T: Terms> Way for Pooled<T> {
    #[inline]
    fn put(&mut self, value: u64) -> Result<()> {
        let mut loan = self.loans.loan()?;
        self.extent.write(&mut loan, value);
        self.loans.send(loan)
    }

    #[inline]
    fn get(&mut self, value: u64) -> Result<()> {
        let Self { size, extent, .. } = *self;
        self.loans.receive(|received| match extent {
            Extent::Whole => ends(received.whole(), value),
            Extent::Pages => words(value, size, |at| received.word(at)),
        })
    }

    #[inline]
    fn acknowledge(&mut self) -> Result<()> {
        self.loans.acknowledge()
    }

    #[inline]
    fn acknowledged(&mut self) -> Result<()> {
        self.loans.acknowledged()
    }
}

struct Staying {
    memory: Plain,
    /// None for one who is alone.
    line: Option<CacheLine>,
    extent: Extent,
}

impl Way for Staying {
    #[inline]
    fn put(&mut self, value: u64) -> Result<()> {
        // SAFETY: mapped to be written, and the other side waits for its turn.
        self.extent.write(unsafe { self.memory.bytes_mut() }, value);
        self.line.as_mut().map(CacheLine::take);
        Ok(())
    }

    #[inline]
    fn get(&mut self, value: u64) -> Result<()> {
        self.line.as_mut().map(CacheLine::wait);
        // SAFETY: the other side waits for its turn.
        self.extent.read(unsafe { self.memory.bytes() }, value)
    }

    #[inline]
    fn acknowledge(&mut self) -> Result<()> {
        self.line.as_mut().map(CacheLine::take);
        Ok(())
    }

    #[inline]
    fn acknowledged(&mut self) -> Result<()> {
        self.line.as_mut().map(CacheLine::wait);
        Ok(())
    }
}

struct Turns<W> {
    way: W,
    value: u64,
    alone: bool,
}

impl<W: Way> Game for Turns<W> {
    #[inline]
    fn ping(&mut self) -> Result<()> {
        self.value += 1;
        self.way.put(self.value)?;
        if self.alone {
            self.way.get(self.value)
        } else {
            self.way.acknowledged()
        }
    }

    #[inline]
    fn pong(&mut self) -> Result<()> {
        self.value += 1;
        self.way.get(self.value)?;
        self.way.acknowledge()
    }
}

/// Messages of one size, one after the other.
///
/// # Errors
///
/// Fails if a system call does, or if what is read is not what was written.
pub(crate) fn measure(session: &mut Session, extent: Extent) -> Result<Metrics> {
    let options = Options::new("memlane-bench");
    match session.task().contender {
        Contender::Frozen => fresh(session, extent, options),
        Contender::FrozenPrefault => fresh(session, extent, options.prefault(true)),
        Contender::Plain => staying(session, extent),
        Contender::Loan => pooled::<Untrusted>(session, extent),
        Contender::LoanTrusting => pooled::<Trusted>(session, extent),
        _ => Err(unsuitable(session)),
    }
}

fn is_alone(session: &Session) -> bool {
    session.task().cores.len() == 1
}

fn play(session: &mut Session, way: impl Way) -> Result<Metrics> {
    let mut turns = Turns {
        way,
        value: 0,
        alone: is_alone(session),
    };
    measure_turns(session, &mut turns)
}

fn fresh(session: &mut Session, extent: Extent, options: Options) -> Result<Metrics> {
    let (there, back) = if is_alone(session) {
        let (one, other) = Link::pair()?;
        (Rc::new(one), Rc::new(other))
    } else {
        let link = Rc::new(Link::from_fd(session.take_descriptor()?)?);
        (link.clone(), link)
    };
    let way = Fresh {
        options,
        size: session.task().size,
        extent,
        there,
        back,
    };
    play(session, way)
}

fn pooled<T: Terms>(session: &mut Session, extent: Extent) -> Result<Metrics> {
    let loans = if is_alone(session) {
        Loans::<T>::alone(session)?
    } else {
        Loans::between(session, WaitPolicy::Poll)?
    };
    let size = session.task().size;
    let way = Pooled {
        loans,
        size,
        extent,
    };
    play(session, way)
}

fn staying(session: &mut Session, extent: Extent) -> Result<Metrics> {
    let size = session.task().size;
    let map = |fd: OwnedFd| -> Result<Plain> {
        let memory = Plain::map(fd, size, true)?;
        memory.populate()?;
        Ok(memory)
    };
    let (memory, line) = if is_alone(session) {
        (map(memfd(size, true)?)?, None)
    } else {
        let socket = session.take_descriptor()?;
        let [line, memory] = if session.role().is_initiator() {
            let fds = [shared::create(0, true)?, memfd(size, true)?];
            give(socket, &fds.each_ref().map(AsFd::as_fd))?;
            fds
        } else {
            take(socket)?
        };
        let line = CacheLine::new(Mapping::new(line, 0, true)?);
        (map(memory)?, Some(line))
    };
    let way = Staying {
        memory,
        line,
        extent,
    };
    play(session, way)
}

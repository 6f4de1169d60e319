//! What sending a message costs whoever sends it, while nobody sleeps.
//!
//! Messages come in bursts that the ring has room for, and the time of a burst is taken by its sender alone. What the reader
//! does meanwhile, is the difference between the two benchmarks: it waits for its turn elsewhere, or takes each message as
//! soon as it is there, and with it the lines that the sender is writing.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use memlane::{Publisher, Subscriber, Trusted, WaitPolicy};

use super::{bind, connect, shared, unsuitable};
use crate::candidate::{Outgoing, Terms};
use crate::machine;
use crate::measure::burst::{self, BURST, bursts};
use crate::metrics::Metrics;
use crate::path::{Inbox, Payloads, Receiver, Sender, Spin};
use crate::references::spsc::{Consumer, Producer, Publish};
use crate::shared::{self as memory, Mapping};
use crate::task::{Benchmark, Contender, Task};
use crate::worker::Session;

/// The descriptors that each process of `task` starts with: a line to take turns with, and a ring where it is not
/// memlane's.
///
/// # Errors
///
/// Fails if a resource is short.
pub fn provision(task: &Task) -> Result<Vec<Vec<OwnedFd>>> {
    let line = memory::create(0, true)?;
    shared(match task.contender {
        Contender::PlainRing => vec![line, memory::create(Task::RING_BYTES, true)?],
        _ => vec![line],
    })
}

/// One process of a measurement.
///
/// # Errors
///
/// Fails if the measurement does, or if the contender does not take part.
pub(crate) fn run(session: &mut Session) -> Result<Metrics> {
    let turns = Turns::new(session)?;
    let (wait, batch) = match session.task().contender {
        Contender::PlainRing => {
            let ring = Mapping::new(session.take_descriptor()?, Task::RING_BYTES, true)?;
            return if session.role().is_initiator() {
                send(session, turns, &mut OneByOne(Producer::new(ring)))
            } else {
                let consumer = Consumer::new(ring, Publish::Lazily, Spin::Hard);
                receive(session, turns, consumer)
            };
        }
        Contender::MemlanePoll => (WaitPolicy::Poll, 1),
        Contender::MemlaneAdaptive | Contender::MemlaneMembarrier => (WaitPolicy::Adaptive, 1),
        Contender::MemlaneBatch16 => (WaitPolicy::Adaptive, 16),
        Contender::MemlaneBatch64 => (WaitPolicy::Adaptive, 64),
        _ => return Err(unsuitable(session.task())),
    };
    let moves_barrier = session.task().contender == Contender::MemlaneMembarrier;
    if !session.role().is_initiator() {
        let mut options = Trusted::subscriber();
        if moves_barrier {
            options = options.membarrier(0);
        }
        let mut incoming = connect(session, options, wait)?;
        if moves_barrier {
            take_barrier(&mut incoming.subscriber)?;
        }
        return receive(session, turns, incoming);
    }
    let mut options = Trusted::publisher();
    if moves_barrier {
        options = options.membarrier();
    }
    let mut outgoing = bind(session, options, wait)?;
    if moves_barrier {
        give_barrier(&mut outgoing.0)?;
    }
    let rings = outgoing.0.stats().rings;
    let (metrics, outgoing) = if batch == 1 {
        let mut one_by_one = OneByOne(outgoing);
        (send(session, turns, &mut one_by_one)?, one_by_one.0)
    } else {
        let mut batches = Batches { outgoing, batch };
        (send(session, turns, &mut batches)?, batches.outgoing)
    };
    Ok(metrics
        .with("rings", (outgoing.0.stats().rings - rings) as f64)
        .with("fences", u8::from(outgoing.0.fences()).into()))
}

/// The last message before the bursts.
const BEGIN: &[u8] = b"begin";

/// Sends messages to a reader that falls asleep before each, until it is known to carry the barrier. Where the kernel has no
/// membarrier(2), it never does, and the report says so.
fn give_barrier(publisher: &mut Publisher) -> Result<()> {
    for _ in 0..100 {
        sleep(Duration::from_millis(1));
        publisher.send(b"sleep")?;
        if !publisher.fences() {
            break;
        }
    }
    Ok(publisher.send(BEGIN)?)
}

/// The reader's side of it.
fn take_barrier(subscriber: &mut Subscriber<Trusted>) -> Result<()> {
    while &*subscriber.recv()? != BEGIN {}
    Ok(())
}

/// How a burst is sent.
trait Burst {
    fn send(&mut self, payloads: &mut Payloads) -> Result<()>;
}

struct OneByOne<S>(S);

impl<S: Sender> Burst for OneByOne<S> {
    #[inline]
    fn send(&mut self, payloads: &mut Payloads) -> Result<()> {
        (0..BURST).try_for_each(|_| self.0.send(payloads.advance()))
    }
}

struct Batches {
    outgoing: Outgoing,
    batch: u64,
}

impl Burst for Batches {
    #[inline]
    fn send(&mut self, payloads: &mut Payloads) -> Result<()> {
        for _ in 0..BURST / self.batch {
            let batch = self.batch;
            self.outgoing.0.batch(|publisher| {
                (0..batch).try_for_each(|_| publisher.send(payloads.advance()))
            })?;
        }
        Ok(())
    }
}

/// One side's view of a word that counts turns. Neither side sleeps for it.
struct Turns {
    line: Mapping,
    turn: u64,
    spin: Spin,
    /// Whether the reader waits for its turn before it takes a burst.
    apart: bool,
}

impl Turns {
    fn new(session: &mut Session) -> Result<Self> {
        let line = Mapping::new(session.take_descriptor()?, 0, true)?;
        let spin = if session.task().has_distance() {
            Spin::Hard
        } else {
            Spin::Yielding
        };
        let apart = session.task().benchmark == Benchmark::Cost;
        Ok(Self {
            line,
            turn: 0,
            spin,
            apart,
        })
    }

    fn give(&mut self) {
        self.turn += 1;
        self.line.word(0).store(self.turn, Release);
    }

    fn take(&mut self) {
        self.turn += 1;
        let (word, turn) = (self.line.word(0), self.turn);
        self.spin
            .until(|| (word.load(Acquire) == turn).then_some(()));
    }
}

/// Takes the time of each burst.
fn send(session: &mut Session, mut turns: Turns, burst: &mut impl Burst) -> Result<Metrics> {
    burst::measure(session, |payloads| {
        turns.take();
        let start = Instant::now();
        burst.send(payloads)?;
        let took = start.elapsed();
        if turns.apart {
            turns.give();
        }
        Ok(took)
    })
}

/// Takes all bursts, and tells how often it has slept meanwhile (`sleeps`).
fn receive(
    session: &mut Session,
    mut turns: Turns,
    mut receiver: impl Receiver,
) -> Result<Metrics> {
    let task = session.task();
    let mut inbox = Inbox::new(task.size);
    let count = bursts(task.warm_up()) + bursts(task.iterations);
    session.bracketed(|_| {
        let sleeps = machine::sleeps()?;
        for _ in 0..count {
            turns.give();
            if turns.apart {
                turns.take();
            }
            for _ in 0..BURST {
                inbox.receive(&mut receiver)?;
            }
        }
        let sleeps = machine::sleeps()? - sleeps;
        Ok(Metrics::new().with("sleeps", sleeps as f64))
    })
}

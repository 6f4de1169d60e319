//! A message now and then: how late it is, and how much of a core waiting for it takes.
//!
//! The sender spins on its own core until it is time, reads the clock, and sends what it read. The receiver reads the same
//! clock (CLOCK_MONOTONIC) once it has the message. So one look at the clock is part of every latency, and the looks of the
//! receiver, of its use of the core; the report says what a look costs.

use std::hint::spin_loop;
use std::os::fd::OwnedFd;

use anyhow::{Result, ensure};
use memlane::{Trusted, Untrusted, WaitPolicy};

use super::{bind, connect, shared, unsuitable};
use crate::measure::percentiles;
use crate::metrics::Metrics;
use crate::path::{Receiver, Sender, Spin};
use crate::references::eventfd::{self, Sleeper, Waker};
use crate::references::eventfd_ring::{RingingProducer, RungConsumer};
use crate::references::spsc::{Consumer, Producer, Publish};
use crate::shared::{self as memory, Mapping};
use crate::task::{Contender, Task};
use crate::worker::Session;
use crate::{candidate::Terms, machine};

/// The descriptors that each process of `task` starts with: a ring, and an eventfd, where that is what is measured.
///
/// # Errors
///
/// Fails if a resource is short.
pub fn provision(task: &Task) -> Result<Vec<Vec<OwnedFd>>> {
    let ring = || memory::create(Task::RING_BYTES, true);
    shared(match task.contender {
        Contender::PlainRing => vec![ring()?],
        Contender::EventfdRing => vec![ring()?, eventfd::create()?],
        _ => vec![],
    })
}

/// One process of a measurement.
///
/// # Errors
///
/// Fails if the measurement does, or if the contender does not take part.
pub(crate) fn run(session: &mut Session) -> Result<Metrics> {
    match session.task().contender {
        Contender::PlainRing => {
            let ring = ring(session)?;
            if session.role().is_initiator() {
                send(session, Producer::new(ring))
            } else {
                receive(session, Consumer::new(ring, Publish::Each, Spin::Hard))
            }
        }
        Contender::EventfdRing => {
            let (ring, eventfd) = (ring(session)?, session.take_descriptor()?);
            if session.role().is_initiator() {
                let producer = RingingProducer::new(Producer::new(ring), Waker::new(eventfd));
                send(session, producer)
            } else {
                let consumer = Consumer::new(ring, Publish::Each, Spin::Hard);
                receive(
                    session,
                    RungConsumer::new(consumer, Sleeper::reading(eventfd)),
                )
            }
        }
        Contender::MemlanePoll => over_lane::<Trusted>(session, WaitPolicy::Poll),
        Contender::MemlaneAdaptive => over_lane::<Trusted>(session, WaitPolicy::Adaptive),
        Contender::MemlaneBlock => over_lane::<Trusted>(session, WaitPolicy::Block),
        Contender::MemlaneAdaptiveSocket => over_lane::<Untrusted>(session, WaitPolicy::Adaptive),
        Contender::MemlaneBlockSocket => over_lane::<Untrusted>(session, WaitPolicy::Block),
        _ => Err(unsuitable(session.task())),
    }
}

fn ring(session: &mut Session) -> Result<Mapping> {
    Mapping::new(session.take_descriptor()?, Task::RING_BYTES, true)
}

fn over_lane<T: Terms>(session: &mut Session, wait: WaitPolicy) -> Result<Metrics> {
    if session.role().is_initiator() {
        let outgoing = bind(session, T::publisher(), wait)?;
        send(session, outgoing)
    } else {
        let incoming = connect(session, T::subscriber(), wait)?;
        receive(session, incoming)
    }
}

const WORD: usize = size_of::<u64>();

/// What travels: the number of the message, and when it was sent.
type Message = [u8; 2 * WORD];

/// Sends a message each time the gap has passed since it read the clock for the one before, or later, if sending takes
/// longer than that: it does not catch up.
fn send(session: &mut Session, mut sender: impl Sender) -> Result<Metrics> {
    let (count, gap) = (messages(session.task())?, session.task().gap);
    session.bracketed(|_| {
        let mut message = Message::default();
        let mut due = machine::clock();
        for number in 0..count {
            let now = loop {
                let now = machine::clock();
                if now >= due {
                    break now;
                }
                spin_loop();
            };
            message[..WORD].copy_from_slice(&number.to_ne_bytes());
            message[WORD..].copy_from_slice(&now.to_ne_bytes());
            sender.send(&message)?;
            due = now + gap;
        }
        Ok(Metrics::new())
    })
}

/// All messages, the warm-up among them.
fn messages(task: &Task) -> Result<u64> {
    ensure!(
        task.size == size_of::<Message>(),
        "expected messages of {} bytes, which carry their number and the time, got {}",
        size_of::<Message>(),
        task.size
    );
    Ok(task.warm_up() + task.iterations)
}

/// Receives them, and tells the percentiles of their latencies, the `gap` that there really was between them, this
/// process's use of a core (`processor`, of 1), its `sleeps` for each message, and what one look at the `clock` costs.
fn receive(session: &mut Session, mut receiver: impl Receiver) -> Result<Metrics> {
    let count = messages(session.task())?;
    let (warm_up, iterations) = (session.task().warm_up(), session.task().iterations);
    let clock = machine::clock_cost_ns();
    session.bracketed(|_| {
        let mut message = Message::default();
        let mut take = |number: u64| {
            let len = receiver.recv(&mut message)?;
            let now = machine::clock();
            let (head, tail) = message.split_at(WORD);
            let found = u64::from_ne_bytes(head.try_into()?);
            ensure!(
                len == size_of::<Message>() && found == number,
                "expected message {number}, found {found} with {len} bytes"
            );
            let sent = u64::from_ne_bytes(tail.try_into()?);
            Ok(u32::try_from(now.saturating_sub(sent)).unwrap_or(u32::MAX))
        };
        // Written, so that no page of it is new any more.
        let mut samples = vec![u32::MAX; iterations as usize];
        let sleeps = machine::sleeps()?;
        for number in 0..warm_up {
            take(number)?;
        }
        let (start, used) = (machine::clock(), machine::processor_ns());
        for (number, sample) in (warm_up..).zip(&mut samples) {
            *sample = take(number)?;
        }
        let used = machine::processor_ns() - used;
        let took = (machine::clock() - start) as f64;
        Ok(percentiles(&samples, 1.0)?
            .with("gap", took / iterations as f64)
            .with("processor", used / took)
            .with(
                "sleeps",
                (machine::sleeps()? - sleeps) as f64 / count as f64,
            )
            .with("clock", clock))
    })
}

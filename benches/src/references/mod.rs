//! What memlane is compared with. Each file is one way to do it by hand, as well as a careful programmer
//! would.

pub mod cache_line;
pub mod eventfd;
pub mod eventfd_ring;
pub mod setup;
pub mod socketpair;
pub mod spsc;

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};

use self::cache_line::CacheLine;
use self::eventfd::{Sleeper, WakeUps, Waker};
use self::setup::{Listener, ReaderEnd};
use self::spsc::{Consumer, Each, Producer, Publish};
use crate::measure::ping_pong::Messages;
use crate::measure::{footprint, ping_pong, setup as first_message, stream};
use crate::metrics::Metrics;
use crate::path::{Inbox, Payloads, Spin};
use crate::shared::{self, Mapping};
use crate::task::{Benchmark, Contender, Task};
use crate::worker::Session;

/// The descriptors that each process of `task` starts with: for a ping-pong what it sends through and what
/// it receives from, for a stream the rings.
///
/// # Errors
///
/// Fails if a resource is short.
pub fn provision(task: &Task) -> Result<Vec<Vec<OwnedFd>>> {
    let ring = || shared::create(Task::RING_BYTES, true);
    Ok(match (task.benchmark, task.contender) {
        (_, Contender::CacheLine) => crossed(shared::create(0, true)?, None)?,
        (Benchmark::Latency, Contender::PlainRing) => crossed(ring()?, Some(ring()?))?,
        (_, Contender::Eventfd | Contender::EventfdEpoll) => {
            crossed(eventfd::create()?, Some(eventfd::create()?))?
        }
        (_, Contender::Stream | Contender::StreamEpoll) => {
            let (one, other) = socketpair::create()?;
            vec![vec![one], vec![other]]
        }
        (_, Contender::PlainRing | Contender::TunedRing) => {
            let rings: Vec<_> = task.cores[1..]
                .iter()
                .map(|_| ring())
                .collect::<Result<_>>()?;
            let readers: Vec<_> = rings
                .iter()
                .map(|ring| Ok(vec![ring.try_clone()?]))
                .collect::<Result<_>>()?;
            std::iter::once(rings).chain(readers).collect()
        }
        (_, Contender::Bare | Contender::Memlane | Contender::MemlaneTrusting) => {
            task.cores.iter().map(|_| vec![]).collect()
        }
        (Benchmark::Readers, _) => task.cores.iter().map(|_| vec![]).collect(),
        (benchmark, contender) => bail!("{contender} is no reference for {benchmark}"),
    })
}

/// For the initiator `there` and `back`, for the responder the same the other way round.
pub(crate) fn crossed(there: OwnedFd, back: Option<OwnedFd>) -> Result<Vec<Vec<OwnedFd>>> {
    let clone = |fd: &OwnedFd| fd.try_clone().context("dup");
    let mut responder = back
        .as_ref()
        .map(clone)
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    responder.push(clone(&there)?);
    Ok(vec![
        std::iter::once(there).chain(back).collect(),
        responder,
    ])
}

/// One process of a measurement of a reference.
///
/// # Errors
///
/// Fails if the measurement does, or if the benchmark is not one for this reference.
pub(crate) fn run(session: &mut Session) -> Result<Metrics> {
    let Task {
        benchmark,
        contender,
        size,
        ..
    } = *session.task();
    match (benchmark, contender) {
        (Benchmark::Latency, Contender::CacheLine) => {
            let line = CacheLine::new(Mapping::new(session.take_descriptor()?, 0, true)?);
            ping_pong::measure(session, line)
        }
        (Benchmark::Latency, Contender::PlainRing) => {
            let producer = Producer::new(ring(session)?);
            let consumer = Consumer::new(ring(session)?, Publish::Each, Spin::Hard);
            let game = Messages::new(producer, consumer, size);
            ping_pong::measure(session, game)
        }
        (Benchmark::Blocking, Contender::Eventfd) => {
            let waker = Waker::new(session.take_descriptor()?);
            let sleeper = Sleeper::reading(session.take_descriptor()?);
            ping_pong::measure(session, WakeUps { waker, sleeper })
        }
        (Benchmark::Blocking, Contender::EventfdEpoll) => {
            let waker = Waker::new(session.take_descriptor()?);
            let sleeper = Sleeper::polling(session.take_descriptor()?)?;
            ping_pong::measure(session, WakeUps { waker, sleeper })
        }
        (Benchmark::Blocking, Contender::Stream | Contender::StreamEpoll) => {
            let polling = contender == Contender::StreamEpoll;
            let (outgoing, incoming) = socketpair::ends(session.take_descriptor()?, polling)?;
            ping_pong::measure(session, Messages::new(outgoing, incoming, size))
        }
        (
            Benchmark::Throughput | Benchmark::Fanout,
            Contender::PlainRing | Contender::TunedRing,
        ) => {
            let publish = if contender == Contender::TunedRing {
                Publish::Lazily
            } else {
                Publish::Each
            };
            if session.role().is_initiator() {
                let readers = session.task().cores.len() - 1;
                let producers = (0..readers)
                    .map(|_| Ok(Producer::new(ring(session)?)))
                    .collect::<Result<_>>()?;
                stream::produce(session, Each::new(producers))
            } else {
                let spin = session.spin();
                let consumer = Consumer::new(ring(session)?, publish, spin);
                stream::consume(session, consumer)
            }
        }
        (Benchmark::Setup, Contender::Bare) => {
            if session.role().is_initiator() {
                first_message::connect_often(session, ReaderEnd::connect)
            } else {
                first_message::accept_often(session, Listener::bind, |listener, message| {
                    let mut lane = listener.accept()?;
                    lane.send(message)?;
                    Ok(lane)
                })
            }
        }
        (Benchmark::Footprint, Contender::Bare) => {
            let name = session.name("lane");
            if session.role().is_initiator() {
                footprint::measure(session, |session| {
                    session.barrier()?;
                    let mut lane = ReaderEnd::connect(&name)?;
                    Inbox::new(Payloads::MIN_LEN).receive(&mut lane)?;
                    Ok(lane)
                })
            } else {
                footprint::measure(session, |session| {
                    let listener = Listener::bind(&name)?;
                    session.barrier()?;
                    let mut lane = listener.accept()?;
                    lane.send(Payloads::new(Payloads::MIN_LEN).advance())?;
                    Ok((listener, lane))
                })
            }
        }
        _ => bail!("{contender} is no reference for {benchmark}"),
    }
}

fn ring(session: &mut Session) -> Result<Mapping> {
    Mapping::new(session.take_descriptor()?, Task::RING_BYTES, true)
}

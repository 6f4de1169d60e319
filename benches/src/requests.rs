//! A request and its reply, beside what they are made of: two messages where both sides poll, two wake-ups where both sleep.
//!
//! Times of requests, and of what sleeps, are of whole turns; those of messages between sides that poll are one way, half of a
//! turn.

use std::hint::black_box;
use std::os::fd::OwnedFd;

use anyhow::{Result, bail, ensure};
use memlane::{Client, Server, Trusted, TryRecvError, Untrusted, WaitPolicy};

use crate::candidate::{Terms, both_ways};
use crate::measure::ping_pong::{self, Game, Messages};
use crate::metrics::Metrics;
use crate::path::Payloads;
use crate::references::{
    crossed,
    eventfd::{self, Sleeper, WakeUps, Waker},
};
use crate::task::{Benchmark, Contender, Task};
use crate::worker::Session;

/// Whether the benchmark is one of those here.
pub fn is_about(benchmark: Benchmark) -> bool {
    Benchmark::REQUESTS.contains(&benchmark)
}

/// The descriptors that each process of `task` starts with.
///
/// # Errors
///
/// Fails if a resource is short.
pub fn provision(task: &Task) -> Result<Vec<Vec<OwnedFd>>> {
    match task.contender {
        Contender::Eventfd | Contender::EventfdEpoll => {
            crossed(eventfd::create()?, Some(eventfd::create()?))
        }
        _ => Ok(task.cores.iter().map(|_| vec![]).collect()),
    }
}

/// One process of a measurement.
///
/// # Errors
///
/// Fails if the measurement does, or if the contender does not take part.
pub(crate) fn run(session: &mut Session) -> Result<Metrics> {
    let wait = match session.task().benchmark {
        Benchmark::Requests => WaitPolicy::Poll,
        _ => WaitPolicy::Block,
    };
    match session.task().contender {
        Contender::Eventfd => {
            let waker = Waker::new(session.take_descriptor()?);
            let sleeper = Sleeper::reading(session.take_descriptor()?);
            ping_pong::measure_turns(session, &mut WakeUps { waker, sleeper })
        }
        Contender::EventfdEpoll => {
            let waker = Waker::new(session.take_descriptor()?);
            let sleeper = Sleeper::polling(session.take_descriptor()?)?;
            ping_pong::measure_turns(session, &mut WakeUps { waker, sleeper })
        }
        Contender::Memlane => messages::<Untrusted>(session, wait),
        Contender::MemlaneTrusting => messages::<Trusted>(session, wait),
        Contender::Requests => requests::<Untrusted>(session, wait),
        Contender::RequestsTrusting => requests::<Trusted>(session, wait),
        contender => bail!("{contender} does not take part in requests"),
    }
}

/// A lane each way, by hand.
fn messages<T: Terms>(session: &mut Session, wait: WaitPolicy) -> Result<Metrics> {
    let (outgoing, incoming) = both_ways::<T>(session, wait)?;
    let mut game = Messages::new(outgoing, incoming, session.task().size);
    match session.task().benchmark {
        Benchmark::Requests => ping_pong::measure(session, game),
        _ => ping_pong::measure_turns(session, &mut game),
    }
}

fn requests<T: Terms>(session: &mut Session, wait: WaitPolicy) -> Result<Metrics> {
    let size = session.task().size;
    let name = session.name("requests");
    let lane = || T::publisher().ring_bytes(Task::RING_BYTES);
    if session.role().is_initiator() {
        session.barrier()?;
        let client = Client::builder()
            .replies(T::subscriber())
            .requests(lane())
            .wait(wait)
            .connect(&name)?;
        let mut asking = Asking {
            client,
            payloads: Payloads::new(size),
            buffer: vec![0; size],
        };
        return ping_pong::measure_turns(session, &mut asking);
    }
    let server = Server::builder()
        .requests(T::subscriber())
        .replies(lane())
        .wait(wait);
    let mut server = server.bind(&name)?;
    session.barrier()?;
    while server.clients() == 0 {
        match server.try_recv() {
            Err(TryRecvError::Empty) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => bail!("a request before the first turn"),
        }
    }
    let buffer = vec![0; size];
    ping_pong::measure_turns(session, &mut Answering { server, buffer })
}

/// Each request is new in every byte, and each reply read whole.
struct Asking<T: Terms> {
    client: Client<T>,
    payloads: Payloads,
    buffer: Vec<u8>,
}

impl<T: Terms> Game for Asking<T> {
    #[inline]
    fn ping(&mut self) -> Result<()> {
        let reply = self.client.call(self.payloads.advance())?;
        let len = reply.copy_to(&mut self.buffer);
        ensure!(len == self.buffer.len(), "a reply of {len} bytes");
        black_box(&self.buffer);
        Ok(())
    }

    fn pong(&mut self) -> Result<()> {
        bail!("a client asks")
    }
}

struct Answering<T: Terms> {
    server: Server<T>,
    buffer: Vec<u8>,
}

impl<T: Terms> Game for Answering<T> {
    fn ping(&mut self) -> Result<()> {
        bail!("a server answers")
    }

    #[inline]
    fn pong(&mut self) -> Result<()> {
        let request = self.server.recv()?;
        let len = request.copy_to(&mut self.buffer);
        request.reply(black_box(&self.buffer[..len]))?;
        Ok(())
    }
}

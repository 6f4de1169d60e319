//! Tasks that sleep and are woken: ping-pong between two tokio runtimes of one thread each.

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use memlane::tokio::{Publisher, Subscriber};
use memlane::{Trust, Trusted, Untrusted, WaitPolicy};
use rustix::event::{EventfdFlags, eventfd};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::runtime::Builder;

use super::unsuitable;
use crate::candidate::{Terms, both_ways};
use crate::machine;
use crate::measure::percentiles;
use crate::metrics::Metrics;
use crate::path::{Inbox, Payloads};
use crate::references::{crossed, eventfd::Waker, socketpair};
use crate::task::{Contender, Task};
use crate::worker::Session;

/// The descriptors that each process of `task` starts with: what it sends through and what it receives from.
///
/// # Errors
///
/// Fails if a resource is short.
pub fn provision(task: &Task) -> Result<Vec<Vec<OwnedFd>>> {
    let eventfd = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("eventfd");
    match task.contender {
        Contender::AsyncFd | Contender::AsyncFdOnce => crossed(eventfd()?, Some(eventfd()?)),
        Contender::UnixStream => {
            let (one, other) = socketpair::create()?;
            Ok(vec![vec![one], vec![other]])
        }
        _ => Ok(vec![vec![], vec![]]),
    }
}

/// One process of a measurement.
///
/// # Errors
///
/// Fails if the measurement does, or if the contender does not take part.
pub(crate) fn run(session: &mut Session) -> Result<Metrics> {
    match session.task().contender {
        Contender::AsyncFd => over_eventfd(session, Eventfd::read_until_empty),
        Contender::AsyncFdOnce => over_eventfd(session, Eventfd::read_once),
        Contender::UnixStream => over_stream(session),
        Contender::MemlaneTrusting => over_lanes::<Trusted>(session),
        Contender::Memlane => over_lanes::<Untrusted>(session),
        _ => Err(unsuitable(session.task())),
    }
}

/// What goes back and forth, as [`ping_pong::Game`](crate::measure::ping_pong::Game).
trait Game {
    async fn ping(&mut self) -> Result<()>;
    async fn pong(&mut self) -> Result<()>;
}

/// Measures one-way times, as [`ping_pong::measure`](crate::measure::ping_pong::measure) does. The game is made in the
/// runtime that it is played in.
fn play<G: Game>(session: &mut Session, game: impl FnOnce() -> Result<G>) -> Result<Metrics> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let mut game = runtime.block_on(async { game() })?;
    let Task { iterations, .. } = *session.task();
    let warm_up = session.task().warm_up();
    let is_initiator = session.role().is_initiator();
    session.bracketed(|_| {
        runtime.block_on(async {
            if is_initiator {
                return initiate(&mut game, warm_up, iterations).await;
            }
            for _ in 0..warm_up + 2 * iterations {
                game.pong().await?;
            }
            Ok(Metrics::new())
        })
    })
}

async fn initiate(game: &mut impl Game, warm_up: u64, iterations: u64) -> Result<Metrics> {
    for _ in 0..warm_up {
        game.ping().await?;
    }

    let mut samples = vec![0_u32; iterations as usize];
    for sample in &mut samples {
        let start = Instant::now();
        game.ping().await?;
        *sample = u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX);
    }

    let sleeps = machine::sleeps()?;
    let start = Instant::now();
    for _ in 0..iterations {
        game.ping().await?;
    }
    let mean = start.elapsed().as_nanos() as f64 / iterations as f64 / 2.0;
    let sleeps = (machine::sleeps()? - sleeps) as f64 / iterations as f64;
    Ok(percentiles(&samples, 2.0)?
        .with("mean", mean)
        .with("sleeps", sleeps))
}

/// An eventfd for each direction. The wake-up is all that travels.
struct Eventfd {
    waker: Waker,
    sleeper: AsyncFd<OwnedFd>,
}

impl Eventfd {
    async fn read_until_empty(&self) -> Result<()> {
        let read = |eventfd: &OwnedFd| Ok(rustix::io::read(eventfd, &mut [0_u8; 8])?);
        self.sleeper.async_io(Interest::READABLE, read).await?;
        Ok(())
    }

    /// A write after the read is a new edge, which the runtime does not see before this task sleeps: nothing is lost by
    /// forgetting the last one.
    async fn read_once(&self) -> Result<()> {
        let mut ready = self.sleeper.readable().await?;
        rustix::io::read(self.sleeper.get_ref(), &mut [0_u8; 8])?;
        ready.clear_ready();
        Ok(())
    }
}

struct WakeUps<S> {
    eventfd: Eventfd,
    sleep: S,
}

impl<S: AsyncFn(&Eventfd) -> Result<()>> Game for WakeUps<S> {
    async fn ping(&mut self) -> Result<()> {
        self.eventfd.waker.wake()?;
        (self.sleep)(&self.eventfd).await
    }

    async fn pong(&mut self) -> Result<()> {
        (self.sleep)(&self.eventfd).await?;
        self.eventfd.waker.wake()
    }
}

fn over_eventfd(
    session: &mut Session,
    sleep: impl AsyncFn(&Eventfd) -> Result<()>,
) -> Result<Metrics> {
    let waker = Waker::new(session.take_descriptor()?);
    let sleeper = session.take_descriptor()?;
    play(session, || {
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as the `AsyncFd` owns it, which gives out no
        // more than references to it here.
        let sleeper = unsafe { AsyncFd::register_with_interest(sleeper, Interest::READABLE) }?;
        let eventfd = Eventfd { waker, sleeper };
        Ok(WakeUps { eventfd, sleep })
    })
}

/// A stream socket that carries the messages itself.
struct Stream {
    stream: UnixStream,
    /// Of one byte more than a message, so that the runtime sees by the first read that there is nothing more to read.
    buffer: Vec<u8>,
    payloads: Payloads,
    inbox: Inbox,
}

impl Stream {
    /// One read is one message, because there is never more than one under way.
    async fn receive(&mut self) -> Result<&[u8]> {
        let len = self.stream.read(&mut self.buffer).await?;
        ensure!(len > 0, "the other end is gone");
        ensure!(len < self.buffer.len(), "more than a message came");
        self.inbox.buffer()[..len].copy_from_slice(&self.buffer[..len]);
        self.inbox.check(len)
    }
}

impl Game for Stream {
    async fn ping(&mut self) -> Result<()> {
        self.stream.write_all(self.payloads.advance()).await?;
        self.receive().await?;
        Ok(())
    }

    async fn pong(&mut self) -> Result<()> {
        self.receive().await?;
        self.stream
            .write_all(black_box(self.inbox.buffer()))
            .await?;
        Ok(())
    }
}

fn over_stream(session: &mut Session) -> Result<Metrics> {
    let stream = std::os::unix::net::UnixStream::from(session.take_descriptor()?);
    stream.set_nonblocking(true)?;
    let size = session.task().size;
    play(session, || {
        Ok(Stream {
            stream: UnixStream::from_std(stream)?,
            buffer: vec![0; size + 1],
            payloads: Payloads::new(size),
            inbox: Inbox::new(size),
        })
    })
}

/// A lane for each direction.
struct Lanes<T: Trust> {
    publisher: Publisher,
    subscriber: Subscriber<T>,
    payloads: Payloads,
    inbox: Inbox,
}

impl<T: Trust> Lanes<T> {
    async fn receive(&mut self) -> Result<()> {
        let message = self.subscriber.recv().await?;
        let len = message.copy_to(self.inbox.buffer());
        drop(message);
        self.inbox.check(len)?;
        Ok(())
    }
}

impl<T: Trust> Game for Lanes<T> {
    async fn ping(&mut self) -> Result<()> {
        self.publisher.send(self.payloads.advance()).await?;
        self.receive().await
    }

    async fn pong(&mut self) -> Result<()> {
        self.receive().await?;
        self.publisher.send(black_box(self.inbox.buffer())).await?;
        Ok(())
    }
}

fn over_lanes<T: Terms>(session: &mut Session) -> Result<Metrics> {
    let (outgoing, incoming) = both_ways::<T>(session, WaitPolicy::Block)?;
    let size = session.task().size;
    play(session, || {
        Ok(Lanes {
            publisher: Publisher::register(outgoing.0)?,
            subscriber: Subscriber::register(incoming.subscriber)?,
            payloads: Payloads::new(size),
            inbox: Inbox::new(size),
        })
    })
}

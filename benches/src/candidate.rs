//! memlane behind the same traits as the references. Everything that depends on its interface is in this
//! file.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use memlane::{
    Publisher, PublisherBuilder, Subscriber, SubscriberBuilder, Trust, Trusted, TryRecvError,
    Untrusted, WaitPolicy,
};

use crate::measure::ping_pong::Messages;
use crate::measure::{burst, footprint, ping_pong, setup, stream};
use crate::metrics::Metrics;
use crate::path::{Inbox, Payloads, Receiver, Sender, Spin};
use crate::task::{Benchmark, Contender, Task};
use crate::worker::Session;

/// memlane takes part.
pub(crate) const AVAILABLE: bool = true;

/// One process of a measurement of memlane.
pub(crate) fn run(session: &mut Session) -> Result<Metrics> {
    let contender = session.task().contender;
    if contender == Contender::MemlaneTrusting || contender.readers().is_some() {
        measure::<Trusted>(session)
    } else {
        measure::<Untrusted>(session)
    }
}

/// How far the two sides trust each other, and with it what wakes them: sockets if they do not, eventfds if
/// they do.
pub(crate) trait Terms: Trust + Sized {
    fn publisher() -> PublisherBuilder;
    fn subscriber() -> SubscriberBuilder<Self>;
}

impl Terms for Untrusted {
    fn publisher() -> PublisherBuilder {
        Publisher::builder()
    }

    fn subscriber() -> SubscriberBuilder<Self> {
        Subscriber::builder()
    }
}

impl Terms for Trusted {
    fn publisher() -> PublisherBuilder {
        Publisher::builder().trust_subscribers()
    }

    fn subscriber() -> SubscriberBuilder<Self> {
        // SAFETY: the publisher is this same executable, which writes its memory through memlane only.
        unsafe { Subscriber::builder().trust_publisher() }
    }
}

fn measure<T: Terms>(session: &mut Session) -> Result<Metrics> {
    let Task {
        benchmark, size, ..
    } = *session.task();
    let wait = match benchmark {
        Benchmark::Latency | Benchmark::Throughput | Benchmark::Fanout | Benchmark::Readers => {
            WaitPolicy::Poll
        }
        Benchmark::Blocking | Benchmark::Setup | Benchmark::Footprint => WaitPolicy::Block,
        _ => bail!("{benchmark} is measured elsewhere"),
    };
    let bind = |name: &str| Outgoing::bind::<T>(name, wait);
    let connect = |name: &str| Incoming::<T>::connect(name, wait);
    let lane = session.name("lane");

    match (benchmark, session.role().is_initiator()) {
        (Benchmark::Latency | Benchmark::Blocking, _) => {
            let (outgoing, incoming) = both_ways::<T>(session, wait)?;
            ping_pong::measure(session, Messages::new(outgoing, incoming, size))
        }
        (Benchmark::Throughput | Benchmark::Fanout | Benchmark::Readers, true) => {
            let mut outgoing = bind(&lane)?;
            session.barrier()?;
            outgoing
                .0
                .wait_for_subscribers(session.task().cores.len() - 1)?;
            if benchmark == Benchmark::Readers {
                return burst::send(session, &mut outgoing, Outgoing::drain);
            }
            stream::produce(session, outgoing)
        }
        (Benchmark::Readers, false) => {
            session.barrier()?;
            let incoming = Incoming {
                spin: session.spin(),
                ..connect(&lane)?
            };
            burst::receive(session, incoming)
        }
        (Benchmark::Throughput | Benchmark::Fanout, false) => {
            session.barrier()?;
            let incoming = Incoming {
                spin: session.spin(),
                ..connect(&lane)?
            };
            stream::consume(session, incoming)
        }
        (Benchmark::Setup, true) => setup::connect_often(session, connect),
        (Benchmark::Setup, false) => setup::accept_often(session, bind, |outgoing, message| {
            outgoing.0.wait_for_subscribers(1)?;
            outgoing.send(message)
        }),
        (Benchmark::Footprint, true) => footprint::measure(session, |session| {
            session.barrier()?;
            let mut incoming = connect(&lane)?;
            Inbox::new(Payloads::MIN_LEN).receive(&mut incoming)?;
            Ok(incoming)
        }),
        (Benchmark::Footprint, false) => footprint::measure(session, |session| {
            let mut outgoing = bind(&lane)?;
            session.barrier()?;
            outgoing.0.wait_for_subscribers(1)?;
            outgoing.send(Payloads::new(Payloads::MIN_LEN).advance())?;
            Ok(outgoing)
        }),
        _ => bail!("{benchmark} is measured elsewhere"),
    }
}

/// A lane in each direction, between processes that trust each other.
pub(crate) fn trusting_lanes(
    session: &Session,
    wait: WaitPolicy,
) -> Result<(Outgoing, Incoming<Trusted>)> {
    both_ways::<Trusted>(session, wait)
}

/// A lane in each direction: both sides publish, then each subscribes to the other.
pub(crate) fn both_ways<T: Terms>(
    session: &Session,
    wait: WaitPolicy,
) -> Result<(Outgoing, Incoming<T>)> {
    let role = session.role().index();
    let outgoing = Outgoing::bind::<T>(&session.name(role), wait)?;
    session.barrier()?;
    let incoming = Incoming::connect(&session.name(1 - role), wait)?;
    outgoing.0.wait_for_subscribers(1)?;
    Ok((outgoing, incoming))
}

pub(crate) struct Outgoing(pub(crate) Publisher);

impl Outgoing {
    fn bind<T: Terms>(name: &str, wait: WaitPolicy) -> Result<Self> {
        Self::with(T::publisher(), name, wait)
    }

    /// Waits until its readers have received everything.
    fn drain(&mut self) -> Result<()> {
        ensure!(
            self.0.drain(Duration::from_secs(60))?,
            "a reader does not read"
        );
        Ok(())
    }

    /// With further options.
    pub(crate) fn with(options: PublisherBuilder, name: &str, wait: WaitPolicy) -> Result<Self> {
        let options = options.wait(wait).ring_bytes(Task::RING_BYTES);
        Ok(Self(options.bind(name)?))
    }
}

impl Sender for Outgoing {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        Ok(self.0.send(payload)?)
    }
}

pub(crate) struct Incoming<T: Trust> {
    pub(crate) subscriber: Subscriber<T>,
    spin: Spin,
}

impl<T: Terms> Incoming<T> {
    fn connect(name: &str, wait: WaitPolicy) -> Result<Self> {
        Self::with(T::subscriber(), name, wait)
    }

    /// With further options.
    pub(crate) fn with(
        options: SubscriberBuilder<T>,
        name: &str,
        wait: WaitPolicy,
    ) -> Result<Self> {
        Ok(Self {
            subscriber: options.wait(wait).connect(name)?,
            spin: Spin::Hard,
        })
    }
}

impl<T: Trust> Receiver for Incoming<T> {
    /// With a core of its own, a reader waits as memlane does. Where readers share one, it yields as those
    /// of the references do.
    #[inline]
    fn recv(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if self.spin == Spin::Hard {
            return Ok(self.subscriber.recv()?.copy_to(buffer));
        }
        self.spin.until(|| match self.subscriber.try_recv() {
            Ok(message) => Some(Ok(message.copy_to(buffer))),
            Err(TryRecvError::Empty) => None,
            Err(error) => Some(Err(error.into())),
        })
    }
}

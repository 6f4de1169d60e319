//! Something goes out, and the answer comes back.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;

use super::percentiles;
use crate::machine;
use crate::metrics::Metrics;
use crate::path::{Inbox, Payloads, Receiver, Sender};
use crate::worker::Session;

/// What goes back and forth between the initiator, who calls `ping`, and the responder, who calls `pong` as
/// often.
pub trait Game {
    /// Sends, and waits for the answer.
    ///
    /// # Errors
    ///
    /// Fails if the path is broken.
    fn ping(&mut self) -> Result<()>;

    /// Waits, and answers.
    ///
    /// # Errors
    ///
    /// Fails if the path is broken.
    fn pong(&mut self) -> Result<()>;
}

/// The game with messages: each ping is new in every byte, read whole on the other side, and sent back from
/// there.
#[derive(Debug)]
pub struct Messages<S, R> {
    sender: S,
    receiver: R,
    payloads: Payloads,
    inbox: Inbox,
}

impl<S: Sender, R: Receiver> Messages<S, R> {
    /// Plays with messages of `size` bytes.
    pub fn new(sender: S, receiver: R, size: usize) -> Self {
        Self {
            sender,
            receiver,
            payloads: Payloads::new(size),
            inbox: Inbox::new(size),
        }
    }
}

impl<S: Sender, R: Receiver> Game for Messages<S, R> {
    #[inline]
    fn ping(&mut self) -> Result<()> {
        self.sender.send(self.payloads.advance())?;
        self.inbox.receive(&mut self.receiver)?;
        Ok(())
    }

    #[inline]
    fn pong(&mut self) -> Result<()> {
        let message = self.inbox.receive(&mut self.receiver)?;
        self.sender.send(black_box(message))
    }
}

/// Measures one-way times, half a round trip each: `p50`, `p99` and `p99.9` from a timestamp before and after
/// each round trip, and `mean` over a loop of as many without timestamps. In that loop it also counts the
/// initiator's `sleeps` per round trip: a side that finds the answer waiting has no need to.
///
/// # Errors
///
/// Fails if the game does.
pub fn measure(session: &mut Session, mut game: impl Game) -> Result<Metrics> {
    play(session, &mut game, 2.0)
}

/// The same with the times of whole turns, and turns a second: `rate`, of the loop without timestamps, and
/// `rate.p50`, of the usual turn, which leaves out what else the machine did.
///
/// # Errors
///
/// Fails if the game does.
pub fn measure_turns(session: &mut Session, game: &mut impl Game) -> Result<Metrics> {
    let metrics = play(session, game, 1.0)?;
    Ok(match (metrics.get("mean"), metrics.get("p50")) {
        (Some(mean), Some(usual)) => metrics
            .with("rate", 1e9 / mean)
            .with("rate.p50", 1e9 / usual),
        _ => metrics,
    })
}

fn play(session: &mut Session, game: &mut impl Game, parts: f64) -> Result<Metrics> {
    let iterations = session.task().iterations;
    let warm_up = session.task().warm_up();
    if session.role().is_initiator() {
        session.bracketed(|_| initiate(game, warm_up, iterations, parts))
    } else {
        session.bracketed(|_| {
            for _ in 0..warm_up + 2 * iterations {
                game.pong()?;
            }
            Ok(Metrics::new())
        })
    }
}

fn initiate(game: &mut impl Game, warm_up: u64, iterations: u64, parts: f64) -> Result<Metrics> {
    for _ in 0..warm_up {
        game.ping()?;
    }

    let mut samples = vec![0_u32; iterations as usize];
    for sample in &mut samples {
        let start = Instant::now();
        game.ping()?;
        *sample = u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX);
    }

    let sleeps_before = machine::sleeps()?;
    let start = Instant::now();
    for _ in 0..iterations {
        game.ping()?;
    }
    let mean = start.elapsed().as_nanos() as f64 / iterations as f64 / parts;

    let sleeps = (machine::sleeps()? - sleeps_before) as f64 / iterations as f64;

    Ok(percentiles(&samples, parts)?
        .with("mean", mean)
        .with("sleeps", sleeps))
}

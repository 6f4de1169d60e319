//! One word in one cache line, written in turn by both sides. It carries no payload: it is the limit for
//! everything that does.

use std::sync::atomic::Ordering::{Acquire, Release};

use anyhow::Result;

use crate::measure::ping_pong::Game;
use crate::shared::Mapping;

/// One side's view of the line. The word counts turns: the initiator makes it odd, the responder even.
#[derive(Debug)]
pub struct CacheLine {
    line: Mapping,
    turn: u64,
}

impl CacheLine {
    /// A side of a region that is still all zeros.
    pub fn new(line: Mapping) -> Self {
        Self { line, turn: 0 }
    }

    /// Gives the turn to the other side.
    #[inline]
    pub fn take(&mut self) {
        self.turn += 1;
        self.line.word(0).store(self.turn, Release);
    }

    /// Waits for the turn. Looks without a pause: with nothing to read behind the line, that is the quickest.
    #[inline]
    pub fn wait(&mut self) {
        self.turn += 1;
        while self.line.word(0).load(Acquire) != self.turn {}
    }
}

impl Game for CacheLine {
    #[inline]
    fn ping(&mut self) -> Result<()> {
        self.take();
        self.wait();
        Ok(())
    }

    #[inline]
    fn pong(&mut self) -> Result<()> {
        self.wait();
        self.take();
        Ok(())
    }
}

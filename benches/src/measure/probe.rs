//! How far apart the two cores are at this moment.
//!
//! Virtual cores move: the same two may share a cache for some seconds and sit on different ends of a
//! socket in the next. A measurement taken while they were far says nothing about the thing measured, so
//! each one is bracketed by two probes.

use std::time::Instant;

use anyhow::Result;

use super::ping_pong::Game;

const BATCHES: usize = 21;
const BATCH: usize = 300;

/// Plays `game` and returns its one-way time in nanoseconds: the median over some batches, so that being
/// interrupted in one of them does not look like distance.
///
/// # Errors
///
/// Fails if the game does.
pub fn initiate(game: &mut impl Game) -> Result<f64> {
    let mut batches = [0.0; BATCHES];
    for batch in &mut batches {
        let start = Instant::now();
        for _ in 0..BATCH {
            game.ping()?;
        }
        *batch = start.elapsed().as_nanos() as f64 / (2 * BATCH) as f64;
    }
    batches.sort_by(f64::total_cmp);
    Ok(batches[BATCHES / 2])
}

/// The other side of [`initiate`].
///
/// # Errors
///
/// Fails if the game does.
pub fn respond(game: &mut impl Game) -> Result<()> {
    (0..BATCHES * BATCH).try_for_each(|_| game.pong())
}

//! How long messages have been in coming lately.

use std::time::Duration;

use super::LONGEST;

/// The spins to choose from, in microseconds.
const SPINS: [u32; 6] = [2, 4, 8, 16, 32, 50];

const _: () = assert!(SPINS[SPINS.len() - 1] as u128 == LONGEST.as_micros());

/// Of so many gaps; then all counts are halved.
pub(super) const WINDOW: u32 = 32;

/// The last gaps, by length, the newer ones counting for more.
#[derive(Debug)]
pub(super) struct Gaps {
    /// Those that a spin of that length would have met.
    counts: [u32; SPINS.len()],
    /// Those that no spin would have.
    long: u32,
    budget: Duration,
}

impl Gaps {
    /// Two gaps of 16 us, which five long ones outweigh.
    pub(super) fn new() -> Gaps {
        let mut gaps = Gaps {
            counts: [0; SPINS.len()],
            long: 0,
            budget: Duration::ZERO,
        };
        gaps.short(Duration::from_micros(16), 2);
        gaps
    }

    /// For how long to spin.
    #[inline]
    pub(super) fn budget(&self) -> Duration {
        self.budget
    }

    /// A gap of next to nothing. It changes nothing for the next.
    #[inline]
    pub(super) fn shortest(&mut self) {
        self.counts[0] += 1;
        self.age();
    }

    /// Gaps of that length.
    pub(super) fn short(&mut self, length: Duration, times: u32) {
        let place = SPINS
            .iter()
            .position(|spin| u128::from(*spin) >= length.as_micros());
        match place {
            Some(place) => self.counts[place] += times.min(WINDOW),
            None => self.long += times.min(WINDOW),
        }
        self.age();
        self.choose();
    }

    /// Gaps that were too long.
    pub(super) fn long(&mut self, times: u32) {
        self.long += times.min(WINDOW);
        self.age();
        self.choose();
    }

    #[inline]
    fn age(&mut self) {
        if self.counts.iter().sum::<u32>() + self.long >= WINDOW {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.long /= 2;
        }
    }

    /// The spin that would have saved most: a sleep for each gap it met, less the time spent in spinning.
    fn choose(&mut self) {
        let all = self.counts.iter().sum::<u32>() + self.long;
        let (mut met, mut spun, mut most, mut shorter) = (0, 0, 0, 0);
        self.budget = Duration::ZERO;
        for (count, spin) in self.counts.iter().zip(SPINS) {
            met += count;
            // Each somewhere between the two.
            spun += count * (shorter + spin) / 2;
            shorter = spin;
            let saved = met * LONGEST.as_micros() as u32;
            let spent = spun + (all - met) * spin;
            if saved > spent + most {
                most = saved - spent;
                self.budget = Duration::from_micros(spin.into());
            }
        }
    }
}

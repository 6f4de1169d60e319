use std::time::{Duration, Instant};

/// How a side waits for the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitPolicy {
    /// Spins, and never sleeps: lowest latency, one core busy for as long as the wait lasts. The other side
    /// never has to look whether to wake this one.
    Poll,
    /// Spins as long as that has been paying lately (at most 50 us), then sleeps.
    #[default]
    Adaptive,
    /// Sleeps at once: lowest CPU use.
    Block,
}

/// Paces one wait after the other: says for how long to spin before sleeping.
///
/// ```
/// use memlane_signaling::{Pacer, WaitPolicy};
///
/// let mut pacer = Pacer::new(WaitPolicy::Adaptive);
/// let mut tries = 0;
/// let spun = pacer.spin(|| { tries += 1; (tries == 3).then_some("here") });
/// assert_eq!(spun, Some("here"));
/// ```
#[derive(Debug)]
pub struct Pacer {
    policy: WaitPolicy,
    budget: Duration,
    /// Sleeps so short that spinning might have done instead.
    short: u32,
}

const LONGEST: Duration = Duration::from_micros(50);
const SHORTEST: Duration = Duration::from_micros(1);
/// A sleep of up to this long may have been one that a longer spin would have saved: waking alone takes a
/// part of it.
const SHORT: Duration = Duration::from_micros(100);
/// After so many short sleeps the longest spin is tried once more. On one core, where spinning never pays, that
/// costs some 100 us each time.
const TRIAL: u32 = 64;
/// Looks between two glances at the clock.
const LOOKS: u32 = 32;

impl Pacer {
    /// A pacer that knows nothing yet and starts with half of the longest spin.
    pub fn new(policy: WaitPolicy) -> Pacer {
        Pacer {
            policy,
            budget: LONGEST / 2,
            short: 0,
        }
    }

    /// The policy it was made with.
    pub fn policy(&self) -> WaitPolicy {
        self.policy
    }

    /// To be told how long the sleep after a spin in vain was, when it ended for what was waited for: a spin
    /// that had shrunk would never find out that messages come faster now.
    pub fn slept(&mut self, time: Duration) {
        if time < SHORT {
            self.short += 1;
            if self.short >= TRIAL {
                self.short = 0;
                self.budget = LONGEST;
            }
        }
    }

    /// Looks, again and again, until `look` finds something or it is time to sleep (`None`).
    ///
    /// With [`WaitPolicy::Poll`] it comes back with `None` about every 50 us too, for the caller to check
    /// deadlines and the peer's life, and then to spin on.
    pub fn spin<T>(&mut self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let budget = match self.policy {
            WaitPolicy::Poll => LONGEST,
            WaitPolicy::Adaptive => self.budget,
            WaitPolicy::Block => return None,
        };
        let start = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if let Some(found) = look() {
                    // Worth it: be ready to spin for twice as long as it took.
                    self.budget = (self.budget * 2).min(LONGEST);
                    return Some(found);
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= budget {
                self.budget = (self.budget / 2).max(SHORTEST);
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spins_less_where_it_is_in_vain_and_more_where_it_pays() {
        let mut pacer = Pacer::new(WaitPolicy::Adaptive);
        for _ in 0..20 {
            assert_eq!(pacer.spin(|| None::<()>), None);
        }
        assert_eq!(pacer.budget, SHORTEST);
        for _ in 0..20 {
            assert_eq!(pacer.spin(|| Some(())), Some(()));
        }
        assert_eq!(pacer.budget, LONGEST);
    }

    #[test]
    fn short_sleeps_make_it_try_again() {
        let mut pacer = Pacer::new(WaitPolicy::Adaptive);
        while pacer.budget > SHORTEST {
            assert_eq!(pacer.spin(|| None::<()>), None);
        }
        for _ in 0..10 * TRIAL {
            pacer.slept(SHORT);
        }
        assert_eq!(pacer.budget, SHORTEST);
        for _ in 0..TRIAL {
            pacer.slept(SHORT / 2);
        }
        assert_eq!(pacer.budget, LONGEST);
    }

    #[test]
    fn block_never_looks() {
        let mut looks = 0;
        assert_eq!(
            Pacer::new(WaitPolicy::Block).spin(|| {
                looks += 1;
                Some(())
            }),
            None
        );
        assert_eq!(looks, 0);
    }
}

mod gaps;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use gaps::{Gaps, WINDOW};
use rustix::thread::{CpuSet, sched_getaffinity};

/// How a side waits for the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitPolicy {
    /// Spins, and never sleeps: lowest latency, one core busy for as long as the wait lasts. The other side
    /// never has to look whether to wake this one.
    Poll,
    /// Spins as long as that has been paying lately (at most 50 us), then sleeps. Where this thread is confined to the one
    /// core that the other side runs on, it yields that once instead, if that has been paying.
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
    gaps: Gaps,
    /// Sleeps of up to [`SHORT`] since the longest spin was last tried, and after how many it is tried again.
    short: u32,
    trial: u32,
    /// What came of it so far, while it is tried.
    trying: Option<Trial>,
    /// Yields in vain, one after the other, while the core is yielded instead of spinning.
    yielding: Option<u32>,
}

/// The longest spin. What a sleep costs both sides, in latency and in work, is taken to be as much: then nobody ever pays
/// more than twice what the better of spinning and sleeping would have cost.
const LONGEST: Duration = Duration::from_micros(50);
/// A sleep of up to this long may have been one that a longer spin would have saved: waking alone takes a
/// part of it.
const SHORT: Duration = Duration::from_micros(100);
/// After so many short sleeps the longest spin is tried, for so many waits, or until it was in vain so often. Each time that
/// none of them was met it takes twice as many sleeps, up to [`RAREST`]: where spinning never pays, that is 0.05 us for each.
const TRIAL: u32 = 8;
const TRIES: u32 = 8;
const VAIN: u32 = 4;
const RAREST: u32 = 4096;
/// Looks between two glances at the clock; so many are made before the first.
const LOOKS: u32 = 32;
/// About what those take.
const SOME_LOOKS: Duration = Duration::from_micros(1);
/// Yields in vain, one after the other, until it sleeps instead.
const YIELDS: u32 = 4;

/// Waits of a trial.
#[derive(Debug, Default)]
struct Trial {
    met: u32,
    vain: u32,
}

/// Time and the scheduler, as far as they matter here.
trait Machine {
    fn now(&self) -> Instant;
    /// Whether this thread may run on one core only.
    fn is_confined(&self) -> bool;
    fn yield_now(&self);
    fn pause(&self);
}

struct Real;

impl Machine for Real {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn is_confined(&self) -> bool {
        sched_getaffinity(None).is_ok_and(|cores: CpuSet| cores.count() == 1)
    }

    fn yield_now(&self) {
        std::thread::yield_now();
    }

    #[inline(always)]
    fn pause(&self) {
        std::hint::spin_loop();
    }
}

impl Pacer {
    /// A pacer that knows nothing yet and starts with a spin of 16 us.
    pub fn new(policy: WaitPolicy) -> Pacer {
        Pacer {
            policy,
            gaps: Gaps::new(),
            short: 0,
            trial: TRIAL,
            trying: None,
            yielding: None,
        }
    }

    /// The policy it was made with.
    pub fn policy(&self) -> WaitPolicy {
        self.policy
    }

    /// To be told how long the sleep after a spin in vain was, and whether it ended for what was waited for: this is how a
    /// pacer learns that spinning is in vain, and, when it has ceased to spin, that messages come faster now.
    pub fn slept(&mut self, time: Duration, met: bool) {
        if time >= SHORT {
            self.gaps.long(1);
        } else if met {
            self.short += 1;
        }
    }

    /// Looks, again and again, until `look` finds something or it is time to sleep (`None`), which may be at once, without a
    /// single look. The clock is not asked if it is there within the first looks.
    ///
    /// With [`WaitPolicy::Poll`] it comes back with `None` about every 50 us too, for the caller to check
    /// deadlines and the peer's life, and then to spin on.
    #[inline]
    pub fn spin<T>(&mut self, look: impl FnMut() -> Option<T>) -> Option<T> {
        self.spin_on(&Real, look)
    }

    #[inline]
    fn spin_on<T>(
        &mut self,
        machine: &impl Machine,
        mut look: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        match self.policy {
            WaitPolicy::Block => return None,
            WaitPolicy::Poll => {}
            WaitPolicy::Adaptive if self.trying.is_some() || self.short >= self.trial => {
                return self.try_out(machine, look);
            }
            WaitPolicy::Adaptive if self.yielding.is_some() => {
                return self.yield_once(machine, look);
            }
            WaitPolicy::Adaptive if self.gaps.budget() == Duration::ZERO => return None,
            WaitPolicy::Adaptive => {}
        }
        for _ in 0..LOOKS {
            if let Some(found) = look() {
                self.gaps.shortest();
                return Some(found);
            }
            machine.pause();
        }
        let budget = match self.policy {
            WaitPolicy::Adaptive => self.gaps.budget(),
            _ => LONGEST,
        };
        match spin_for(machine, budget, &mut look) {
            Ok((found, time)) => {
                self.gaps.short(time, 1);
                Some(found)
            }
            // What comes of it, the sleep will show.
            Err(()) => None,
        }
    }

    /// Short sleeps can mean that messages come so fast that spinning would pay, or that waking takes as long as that: tries
    /// what they mean, for some waits in a row. One alone would say little: the first begins late, after waking up.
    #[cold]
    fn try_out<T>(
        &mut self,
        machine: &impl Machine,
        mut look: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let mut trial = self.trying.take().unwrap_or_default();
        if trial.met + trial.vain == 0 && machine.is_confined() {
            self.yielding = Some(0);
            let found = self.yield_once(machine, &mut look);
            if self.yielding == Some(0) {
                (self.short, self.trial) = (0, TRIAL);
                return found;
            }
            self.yielding = None;
            trial.vain += 1;
            if found.is_some() {
                self.trying = Some(trial);
                return found;
            }
        }
        let spun = spin_for(machine, LONGEST, &mut look);
        // What was seen before this says less.
        let weight = WINDOW / TRIES;
        match &spun {
            Ok((_, time)) => {
                trial.met += 1;
                self.gaps.short(*time, weight);
            }
            Err(()) => {
                trial.vain += 1;
                self.gaps.long(weight);
            }
        }
        if trial.met + trial.vain == TRIES || trial.vain == VAIN {
            self.trial = match trial.met {
                0 => (self.trial * 2).min(RAREST),
                _ => TRIAL,
            };
            self.short = 0;
        } else {
            self.trying = Some(trial);
        }
        spun.ok().map(|(found, _)| found)
    }

    /// Lets others run, among them the other side, and looks once more.
    fn yield_once<T>(
        &mut self,
        machine: &impl Machine,
        mut look: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        let start = machine.now();
        machine.yield_now();
        let found = look();
        // Had others the core for longer, a wake-up would have taken it from them.
        let soon = machine.now().duration_since(start) < LONGEST;
        self.yielding = match self.yielding {
            Some(_) if soon && found.is_some() => Some(0),
            Some(vain) if soon && vain + 1 < YIELDS => Some(vain + 1),
            _ => None,
        };
        found
    }
}

/// What `look` found, and in how long a spin it would be found again.
#[inline]
fn spin_for<T>(
    machine: &impl Machine,
    budget: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> Result<(T, Duration), ()> {
    let start = machine.now();
    let mut time = Duration::ZERO;
    for glances in 0.. {
        for _ in 0..LOOKS {
            if let Some(found) = look() {
                // The looks before the first glance and since the last have no times of their own. Asking for them now would
                // keep the message waiting.
                let looks = time.checked_div(glances).unwrap_or(SOME_LOOKS);
                return Ok((found, time + 2 * looks));
            }
            machine.pause();
        }
        time = machine.now().duration_since(start);
        if time >= budget {
            break;
        }
    }
    Err(())
}

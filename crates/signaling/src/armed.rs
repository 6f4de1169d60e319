use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use crate::{
    barrier,
    primitive::{AtomicU64, Ordering, fence},
};

/// This bit of an armed flag is set while the sleeper carries the barrier, awake or asleep; the other bits are 0 while
/// it is awake.
pub const CARRIED: u64 = 1 << 63;

/// Within this time every store that a processor has executed is seen by all others, many times over: it takes as long
/// as a cache line takes to come, and whatever stops a thread drains its stores.
const SETTLED: Duration = Duration::from_millis(1);

/// The sleeper's side of the armed flag: a word in its own shared page, 0 while it is awake (but for [`CARRIED`]).
///
/// Every time it is armed the word gets a value it never had, so that the ringer can tell one sleep from the
/// next and rings once for each ([`Rung`]).
#[derive(Debug, Default)]
pub struct Armed {
    last: u64,
    /// Whether this side may carry the barrier.
    may: bool,
    /// [`CARRIED`] while it does.
    carried: u64,
    barriers: u64,
}

impl Armed {
    /// A flag that has not been armed. The ringer fences after each commit.
    pub fn new() -> Armed {
        Armed::default()
    }

    /// A flag that has not been armed, for a ringer whose process says that it is
    /// [registered](crate::register): [`arm_by`](Armed::arm_by) may spare it the fences. Where membarrier(2) is not to be
    /// had, this is the same as [`new`](Armed::new).
    pub fn registered() -> Armed {
        Armed {
            may: barrier::heavy(),
            ..Armed::default()
        }
    }

    /// Announces the sleep in `word`, which only this side writes. Afterwards the sleeper must look for data
    /// once more before it waits. The ringer fences.
    pub fn arm(&mut self, word: &AtomicU64) {
        self.arm_by(word, false);
    }

    /// Announces the sleep, like [`arm`](Armed::arm), and says who has the barrier from now on: if `carry` is set (and the
    /// flag was made by [`registered`](Armed::registered)) this side, with one membarrier(2) each time it is armed.
    ///
    /// If that is forbidden one day (a seccomp filter was installed), the barrier is the ringer's for good, and this
    /// one call takes a millisecond.
    #[inline]
    pub fn arm_by(&mut self, word: &AtomicU64, carry: bool) {
        self.arm_with(word, carry, barrier::heavy, || {
            std::thread::sleep(SETTLED);
        });
    }

    /// [`registered`](Armed::registered), for models.
    #[doc(hidden)]
    pub fn modelled() -> Armed {
        Armed {
            may: true,
            ..Armed::default()
        }
    }

    /// What `arm_by` does, with the kernel's part in it to be modelled.
    #[doc(hidden)]
    #[inline]
    pub fn arm_with(
        &mut self,
        word: &AtomicU64,
        carry: bool,
        heavy: impl FnOnce() -> bool,
        settle: impl FnOnce(),
    ) {
        let before = self.carried;
        self.carried = if carry && self.may { CARRIED } else { 0 };
        self.last += 1;
        word.store(self.carried | self.last, Ordering::Relaxed);
        if before | self.carried == 0 {
            // Pairs with the ringer's fence between its commit and its load of the word.
            return fence(Ordering::SeqCst);
        }
        // Also when the barrier goes back: until the ringer has seen that, it may look without a fence. It does now, wherever
        // it is: what it has committed until then is seen here, and its next look sees the word.
        if heavy() {
            self.barriers += 1;
        } else {
            self.give_back(word, settle);
        }
    }

    /// There is no membarrier(2) any more.
    #[cold]
    fn give_back(&mut self, word: &AtomicU64, settle: impl FnOnce()) {
        self.may = false;
        self.carried = 0;
        word.store(self.last, Ordering::Relaxed);
        // From here on the ringer's looks see that the barrier is its own. Those that were before go with commits that
        // are on their way out of its processor, and are seen before the sleep if it begins a little later.
        fence(Ordering::SeqCst);
        settle();
        fence(Ordering::SeqCst);
    }

    /// Takes the announcement back.
    pub fn disarm(&mut self, word: &AtomicU64) {
        word.store(self.carried, Ordering::Relaxed);
    }

    /// Whether this side carries the barrier now.
    pub fn carries(&self) -> bool {
        self.carried != 0
    }

    /// How often it called membarrier(2).
    pub fn barriers(&self) -> u64 {
        self.barriers
    }
}

/// The ringer's side of the armed flag: remembers which sleep it has rung for, and who carries the barrier.
#[derive(Debug, Default)]
pub struct Rung {
    /// The flag when last looked at. Only one thread rings; the atomic makes that thread free to change.
    last: std::sync::atomic::AtomicU64,
    /// This process is registered.
    registered: bool,
}

/// What [`Rung::look`] found: an armed flag that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The other side sleeps, and has not been rung for since it fell asleep: ring.
    pub ring: bool,
    /// The barrier went from one side to the other. If it came here ([`Rung::fences`]), the look that found this may have
    /// been too early: fence, and look once more.
    pub moved: bool,
}

impl Rung {
    /// Nothing rung for yet; this side fences.
    pub fn new() -> Rung {
        Rung::default()
    }

    /// Nothing rung for yet. This process is [registered](crate::register): this side fences until the sleeper says in
    /// its flag that it carries the barrier, and while it does not.
    pub fn registered() -> Rung {
        Rung {
            registered: true,
            ..Rung::default()
        }
    }

    /// Whether there must be a `fence(SeqCst)` between a commit and the next load of the flag; if not, a
    /// `compiler_fence(SeqCst)`.
    ///
    /// A sleeper that says wrongly that it carries the barrier is not always woken. That is all.
    #[inline(always)]
    pub fn fences(&self) -> bool {
        !(self.registered && self.last.load(Relaxed) & CARRIED != 0)
    }

    /// What to do, given the flag as loaded after the commit and the fence: nothing (`None`) as long as it is what it was.
    ///
    /// A burst rings once. A hostile sleeper can make the ringer ring for every message by changing the flag
    /// each time; that is the worst it can do, and one system call that never blocks.
    #[inline(always)]
    pub fn look(&self, armed: u64) -> Option<Look> {
        if armed == self.last.load(Relaxed) {
            return None;
        }
        Some(self.changed(armed))
    }

    fn changed(&self, armed: u64) -> Look {
        let before = self.fences();
        self.last.store(armed, Relaxed);
        Look {
            ring: armed & !CARRIED != 0,
            moved: before != self.fences(),
        }
    }

    /// Whether to ring, of a side that always fences: what [`look`](Rung::look) says of that.
    #[inline(always)]
    pub fn due(&self, armed: u64) -> bool {
        self.look(armed).is_some_and(|look| look.ring)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ring_for_each_sleep() {
        let (word, mut armed, rung) = (AtomicU64::new(0), Armed::new(), Rung::new());
        let load = || word.load(Ordering::Relaxed);
        assert!(!rung.due(load()));
        for _ in 0..3 {
            armed.arm(&word);
            assert!(rung.due(load()));
            assert!(!rung.due(load()));
            armed.disarm(&word);
            assert!(!rung.due(load()));
        }
    }

    /// A flag that may be carried, with a kernel that does it `times` times.
    struct Sleeper {
        word: AtomicU64,
        armed: Armed,
        times: u64,
        settled: u64,
    }

    impl Sleeper {
        fn new(times: u64) -> Sleeper {
            Sleeper {
                word: AtomicU64::new(0),
                armed: Armed::modelled(),
                times,
                settled: 0,
            }
        }

        fn arm(&mut self, carry: bool) -> u64 {
            let Sleeper {
                word,
                armed,
                times,
                settled,
            } = self;
            let heavy = || {
                *times = times.wrapping_sub(1);
                *times != u64::MAX
            };
            armed.arm_with(word, carry, heavy, || *settled += 1);
            word.load(Ordering::Relaxed)
        }

        fn disarm(&mut self) -> u64 {
            self.armed.disarm(&self.word);
            self.word.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn the_barrier_goes_where_the_flag_says() {
        let (mut sleeper, rung) = (Sleeper::new(9), Rung::registered());
        let look = |ring, moved| Some(Look { ring, moved });
        assert!(rung.fences());
        assert_eq!(rung.look(sleeper.arm(false)), look(true, false));
        assert_eq!(rung.look(sleeper.disarm()), look(false, false));
        assert_eq!((sleeper.armed.barriers(), rung.fences()), (0, true));

        assert_eq!(rung.look(sleeper.arm(true)), look(true, true));
        assert_eq!(rung.look(sleeper.disarm()), look(false, false));
        assert_eq!(rung.look(sleeper.arm(true)), look(true, false));
        assert_eq!((sleeper.armed.barriers(), rung.fences()), (2, false));

        // One last time, so that the ringer's next look sees that it is the one.
        assert_eq!(rung.look(sleeper.arm(false)), look(true, true));
        assert_eq!((sleeper.armed.barriers(), rung.fences()), (3, true));
        assert_eq!(rung.look(sleeper.disarm()), look(false, false));
        assert_eq!(rung.look(sleeper.arm(false)), look(true, false));
        assert_eq!((sleeper.armed.barriers(), sleeper.settled), (3, 0));
    }

    #[test]
    fn a_membarrier_that_fails_gives_the_barrier_back_for_good() {
        let (mut sleeper, rung) = (Sleeper::new(1), Rung::registered());
        assert!(rung.due(sleeper.arm(true)));
        assert!(!rung.fences());
        assert!(rung.due(sleeper.arm(true)));
        assert!(rung.fences());
        for _ in 0..3 {
            assert!(!rung.due(sleeper.disarm()));
            assert!(rung.due(sleeper.arm(true)));
            assert!(rung.fences() && !sleeper.armed.carries());
        }
        assert_eq!((sleeper.armed.barriers(), sleeper.settled), (1, 1));
    }

    /// Its sleeper never waits for that, and loses its own wake-ups at most.
    #[test]
    fn a_ringer_that_is_not_registered_fences_whatever_the_flag_says() {
        let (mut sleeper, rung) = (Sleeper::new(9), Rung::new());
        let armed = sleeper.arm(true);
        assert!(rung.due(armed) && !rung.due(armed));
        assert!(rung.fences());
    }

    /// A flag of any value costs one ring at most, and one that says awake none.
    #[test]
    fn nonsense_costs_a_ring() {
        let rung = Rung::registered();
        for armed in [u64::MAX, CARRIED, u64::MAX - 1, 1, CARRIED | 1, 0, CARRIED] {
            assert_eq!(rung.due(armed), armed & !CARRIED != 0);
            assert!(!rung.due(armed));
        }
    }

    #[test]
    fn the_kernel_fences_registered_processes() {
        // As the kernel has it: both work from 4.16 on, which this crate needs in any case.
        assert!(crate::register());
        let mut armed = Armed::registered();
        let word = AtomicU64::new(0);
        armed.arm_by(&word, true);
        assert_eq!((armed.carries(), armed.barriers()), (true, 1));
    }
}

//! The policy against a clock and a scheduler of its own: what it does is what it would do, and takes no time.

use std::cell::Cell;

use super::*;

/// A look with its pause, a yield that nobody uses, and waking up.
const LOOK: Duration = Duration::from_nanos(40);
const YIELD: Duration = Duration::from_nanos(500);
const WAKE: Duration = Duration::from_micros(37);

/// How the other side runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    /// On another core, sending whatever this side does.
    Elsewhere,
    /// On another core, sending when it has been answered.
    Answered,
    /// On this one: while this side does not sleep or yield, nothing comes.
    Here,
    /// On this one, with a third program that never yields, and gets a slice of 3 ms for each yield.
    HereWithAHog,
}

struct World {
    start: Instant,
    now: Cell<Duration>,
    /// When the next message comes.
    next: Cell<Duration>,
    other: Other,
    confined: bool,
    glances: Cell<u32>,
}

#[derive(Debug, Default)]
struct Account {
    latencies: Vec<Duration>,
    time: Duration,
    spinning: Duration,
    spun: u32,
    slept: u32,
}

impl Machine for World {
    fn now(&self) -> Instant {
        self.glances.set(self.glances.get() + 1);
        self.start + self.now.get()
    }

    fn is_confined(&self) -> bool {
        self.confined
    }

    fn yield_now(&self) {
        let now = self.now.get();
        match self.other {
            Other::Elsewhere | Other::Answered => self.now.set(now + YIELD),
            Other::Here => self
                .now
                .set(self.next.get().min(now + YIELD).max(now) + YIELD),
            Other::HereWithAHog => self.now.set(now + Duration::from_millis(3)),
        }
    }

    fn pause(&self) {
        self.now.set(self.now.get() + LOOK);
        if matches!(self.other, Other::Here | Other::HereWithAHog) {
            self.next.set(self.next.get() + LOOK);
        }
    }
}

/// Plays so many rounds of these gaps: each the time from one message, once received, to the next.
fn play(
    pacer: &mut Pacer,
    other: Other,
    confined: bool,
    rounds: u32,
    gap: impl Fn(u32) -> Duration,
) -> Account {
    let world = World {
        start: Instant::now(),
        now: Cell::default(),
        next: Cell::default(),
        other,
        confined,
        glances: Cell::default(),
    };
    let mut account = Account::default();
    let mut sent = Duration::ZERO;
    for round in 0..rounds {
        sent = match other {
            Other::Elsewhere => sent + gap(round),
            _ => world.now.get() + gap(round),
        };
        world.next.set(sent);
        let before = world.now.get();
        let here = || (world.next.get() <= world.now.get()).then_some(());
        if here().is_none() {
            let found = pacer.spin_on(&world, here);
            account.spinning += world.now.get() - before;
            match found {
                Some(()) => account.spun += 1,
                None => {
                    let asleep = world.now.get();
                    world.now.set(asleep.max(world.next.get()) + WAKE);
                    account.slept += 1;
                    pacer.slept(world.now.get() - asleep, true);
                }
            }
        }
        account.latencies.push(world.now.get() - world.next.get());
    }
    account.time = world.now.get();
    account.latencies.sort();
    account
}

impl Account {
    fn p50(&self) -> Duration {
        self.latencies[self.latencies.len() / 2]
    }

    /// Of the time, in thousandths.
    fn spinning(&self) -> u128 {
        self.spinning.as_nanos() * 1000 / self.time.as_nanos()
    }
}

const fn us(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

fn pacer() -> Pacer {
    Pacer::new(WaitPolicy::Adaptive)
}

/// One that has seen nothing but silence.
fn asleep() -> Pacer {
    let mut pacer = pacer();
    play(&mut pacer, Other::Elsewhere, false, 100, |_| us(10_000));
    assert_eq!(pacer.gaps.budget(), Duration::ZERO);
    pacer
}

#[test]
fn it_spins_where_messages_come_every_so_many_microseconds() {
    for gap in [1, 3, 10, 20, 30, 40] {
        for mut pacer in [pacer(), asleep()] {
            play(&mut pacer, Other::Elsewhere, false, 1000, |_| us(gap));
            let account = play(&mut pacer, Other::Elsewhere, false, 1000, |_| us(gap));
            assert!(account.slept < 20, "{gap} us: {} sleeps", account.slept);
            assert!(account.p50() <= 2 * LOOK, "{gap} us: {:?}", account.p50());
        }
    }
}

#[test]
fn a_message_that_is_there_at_once_costs_no_glance_at_the_clock() {
    let world = World {
        start: Instant::now(),
        now: Cell::default(),
        next: Cell::default(),
        other: Other::Elsewhere,
        confined: false,
        glances: Cell::default(),
    };
    let mut pacer = pacer();
    for tries in 1..=LOOKS {
        let mut left = tries;
        let found = pacer.spin_on(&world, || {
            left -= 1;
            (left == 0).then_some(())
        });
        assert_eq!(found, Some(()));
    }
    assert_eq!(world.glances.get(), 0);
}

#[test]
fn it_sleeps_where_spinning_would_be_in_vain() {
    for gap in [150, 1_000, 10_000] {
        let mut pacer = pacer();
        let account = play(&mut pacer, Other::Elsewhere, false, 1000, |_| us(gap));
        assert!(account.slept > 990, "{gap} us: {} sleeps", account.slept);
        // At the start it has to find out.
        assert!(account.spinning < us(200), "{gap}: {:?}", account.spinning);
        assert_eq!(account.p50(), WAKE);
    }
}

#[test]
fn bursts_are_met_spinning_and_silence_asleep() {
    let gap = |round| if round % 100 == 0 { us(10_000) } else { us(10) };
    for mut pacer in [pacer(), asleep()] {
        play(&mut pacer, Other::Elsewhere, false, 300, gap);
        let account = play(&mut pacer, Other::Elsewhere, false, 10_000, gap);
        assert!(account.p50() <= 2 * LOOK, "{:?}", account.p50());
        // One at the start of each burst, which the first ones of it wait for.
        assert!(account.slept <= 102, "{} sleeps", account.slept);
        // 99 gaps of 10 us, and at most one spin in vain.
        let burst = account.spinning / 100;
        assert!(burst < us(990) + 2 * LONGEST, "{burst:?} for each burst");
    }
}

/// One short gap in four is worth a short spin each time.
#[test]
fn it_tells_short_gaps_from_long_ones() {
    let gap = |round| if round % 4 == 0 { us(5) } else { us(10_000) };
    let mut pacer = pacer();
    play(&mut pacer, Other::Answered, false, 1000, gap);
    let account = play(&mut pacer, Other::Answered, false, 10_000, gap);
    assert!(account.spinning() < 10, "{} per mille", account.spinning());
    assert_eq!((account.spun, account.slept), (2_500, 7_500));
}

#[test]
fn on_one_core_it_does_not_spin() {
    for gap in [1, 5, 30] {
        // Not confined, for all it knows; it finds out.
        let mut pacer = pacer();
        play(&mut pacer, Other::Here, false, 10_000, |_| us(gap));
        let account = play(&mut pacer, Other::Here, false, 10_000, |_| us(gap));
        let each = account.spinning / 10_000;
        assert!(each < Duration::from_nanos(100), "{gap} us: {each:?} each");
        assert_eq!(account.spun, 0);
    }
}

#[test]
fn on_one_core_it_yields_where_that_brings_the_message() {
    let gap = |_| Duration::from_nanos(400);
    let mut pacer = pacer();
    play(&mut pacer, Other::Here, true, 100, gap);
    let account = play(&mut pacer, Other::Here, true, 1000, gap);
    assert_eq!((account.spun, account.slept), (1000, 0));
    // What takes the other side longer is slept for, but for a trial now and then.
    play(&mut pacer, Other::Here, true, 10_000, |_| us(20));
    let account = play(&mut pacer, Other::Here, true, 10_000, |_| us(20));
    assert!(account.slept > 9_980, "{}", account.slept);
    let each = account.spinning / 10_000;
    assert!(each < Duration::from_nanos(200), "{each:?} each");
}

/// A yield goes to whoever is next, a wake-up to whom it is for.
#[test]
fn on_one_core_it_does_not_yield_to_others() {
    let gap = |_| us(5);
    let mut pacer = pacer();
    play(&mut pacer, Other::HereWithAHog, true, 10_000, gap);
    let account = play(&mut pacer, Other::HereWithAHog, true, 10_000, gap);
    assert!(account.slept > 9_900, "{}", account.slept);
}

/// Both pinned, each to a core of its own: the yields bring nothing, the spins do.
#[test]
fn confined_to_another_core_than_the_other_side_it_spins() {
    let mut pacer = asleep();
    play(&mut pacer, Other::Elsewhere, true, 1000, |_| us(10));
    let account = play(&mut pacer, Other::Elsewhere, true, 1000, |_| us(10));
    assert!(account.slept < 20, "{} sleeps", account.slept);
    assert!(account.p50() <= 2 * LOOK, "{:?}", account.p50());
}

#[test]
fn block_never_looks_and_poll_never_sleeps() {
    let mut looks = 0;
    let mut look = || {
        looks += 1;
        None::<()>
    };
    assert_eq!(Pacer::new(WaitPolicy::Block).spin(&mut look), None);
    assert_eq!(looks, 0);
    let mut pacer = Pacer::new(WaitPolicy::Poll);
    for _ in 0..100 {
        pacer.slept(Duration::from_secs(1), true);
    }
    let account = play(&mut pacer, Other::Elsewhere, false, 100, |_| us(30));
    assert_eq!((account.spun, account.slept), (100, 0));
}

/// Time-outs are gaps, too, unless they were over too soon to tell.
#[test]
fn waits_that_end_in_time_outs_cease_to_spin() {
    let mut pacer = pacer();
    for _ in 0..100 {
        pacer.slept(SHORT / 2, false);
    }
    assert_eq!((pacer.short, pacer.gaps.budget()), (0, us(16)));
    for _ in 0..5 {
        pacer.slept(SHORT, false);
    }
    assert_eq!(pacer.gaps.budget(), Duration::ZERO);
}

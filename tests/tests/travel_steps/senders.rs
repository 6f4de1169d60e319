//! A sender whose receiver moves.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, channel},
    },
    thread,
    time::Duration,
};

use memlane::{Address, Error, Link, Publisher, Receiver, ReceiverTicket, Sender, TryRecvError};
use memlane_region::{Remote, Shared, page_size};
use memlane_tests::{Child, Dice, PATIENCE, Role, Scene, alive, number, wait_until};
use memlane_transport::Fd;
use serde::{Deserialize, Serialize};

use crate::{
    FATES, Fate, message,
    publishers::{STEPS, Step, play},
};

/// In another process.
#[derive(Debug, Serialize, Deserialize)]
enum Plan {
    /// By hand, and it gets that far.
    ByHand(Box<Link>, Step),
    /// Sends to a receiver there, from this number on, until it is killed.
    Floods(String, u64),
}

pub(crate) fn sender(role: &Role) {
    match role.hear() {
        Plan::ByHand(link, until) => play(role, *link, until, true),
        Plan::Floods(address, first) => flood(role, &address.parse().unwrap(), first),
    }
}

/// The messages of one sender have numbers up to here, those of another begin here.
const OTHERS: u64 = 1 << 32;

/// What was received of one and of the other.
#[derive(Debug, Default)]
struct Ledger([Vec<u64>; 2]);

impl Ledger {
    fn note(&mut self, message: &[u8]) {
        let number = number(message);
        self.0[usize::from(number >= OTHERS)].push(number % OTHERS);
    }

    /// Receives what there is.
    fn empty(&mut self, receiver: &mut Receiver) {
        loop {
            match receiver.try_recv() {
                Ok(message) => self.note(&message.to_vec()),
                Err(TryRecvError::Empty) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Receives until so many of each have come.
    #[track_caller]
    fn fill(&mut self, receiver: &mut Receiver, counts: [usize; 2]) {
        wait_until("enough messages", || {
            self.empty(receiver);
            self.0
                .iter()
                .zip(counts)
                .all(|(has, count)| has.len() >= count)
        });
    }
}

/// Moves to this same process, the way it goes between two.
fn arrive(ticket: ReceiverTicket) -> Receiver {
    let (to, from) = Link::pair().unwrap();
    to.send(&ticket).unwrap();
    drop(ticket);
    let ticket: ReceiverTicket = from.adopting().recv().unwrap();
    let builder = Receiver::builder().timeout(PATIENCE);
    builder.arrive_receiver(ticket).unwrap()
}

/// A receiver with two senders. One has sent three messages, of which one was received, and gets no further than to a step of the
/// move.
struct Moving {
    child: Child,
    old: Receiver,
    good: Sender,
    step: Step,
}

/// What has become of it.
struct Moved {
    child: Child,
    /// What has remained, and why.
    old: Option<(Receiver, Error)>,
    new: Receiver,
    /// What was received there.
    there: Ledger,
    good: Sender,
}

impl Moving {
    fn start(scene: &Scene, step: Step) -> Moving {
        let mut old = Receiver::builder().timeout(PATIENCE).unbound().unwrap();
        let (ours, theirs) = Link::pair().unwrap();
        old.attach(ours).unwrap();
        let good = thread::spawn(move || Publisher::builder().over(theirs).unwrap());
        wait_until("the other is there", || {
            assert!(matches!(old.try_recv(), Err(TryRecvError::Empty)));
            old.senders() == 1
        });
        let (ours, theirs) = Link::pair().unwrap();
        let plan = Plan::ByHand(Box::new(theirs), step);
        let child = scene.spawn("sender", &plan);
        drop(plan);
        old.attach(ours).unwrap();
        let first = old.recv_timeout(PATIENCE).unwrap().to_vec();
        assert_eq!(number(&first), 0);
        Moving {
            child,
            old,
            good: good.join().unwrap(),
            step,
        }
    }

    /// Has it fall there; the other sends two messages meanwhile, and moves.
    fn fall(self, fate: Fate) -> Moved {
        let Moving {
            child,
            mut old,
            mut good,
            step,
        } = self;
        let (fallen, falls) = channel();
        let (passes, passed) = channel();
        let (enough, others) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            let leaving = scope.spawn(move || {
                leave(&mut old, step, &falls, &passes);
                let remains = old.depart().err()?;
                Some((remains.end, remains.error))
            });
            let (enough, others) = (&enough, &others);
            let arriving = scope.spawn(move || {
                let (mut new, mut there) = (arrive(passed.recv().unwrap()), Ledger::default());
                // Lanes that are late come while it receives.
                while !enough.load(Ordering::Relaxed) {
                    there.empty(&mut new);
                    others.store(there.0[1].len() == 2, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(1));
                }
                (new, there)
            });
            good.send(&message(OTHERS)).unwrap();
            child.hear::<()>();
            match fate {
                Fate::Killed => child.kill(),
                Fate::Stopped => child.stop(),
            }
            // It may not wait for that.
            let _ = fallen.send(());
            good.send(&message(OTHERS + 1)).unwrap();
            // However long the old end waits.
            wait_until("the other has moved", || others.load(Ordering::Relaxed));
            let old = leaving.join().unwrap();
            enough.store(true, Ordering::Relaxed);
            let (new, there) = arriving.join().unwrap();
            Moved {
                child,
                old,
                new,
                there,
                good,
            }
        })
    }
}

/// Makes a ticket, and gets on with it until the sender has fallen, if that is to come before it departs.
fn leave(
    old: &mut Receiver,
    step: Step,
    falls: &mpsc::Receiver<()>,
    passes: &mpsc::Sender<ReceiverTicket>,
) {
    if step == Step::Joined {
        falls.recv().unwrap();
    }
    passes.send(old.ticket().unwrap()).unwrap();
    while (Step::Asked..Step::Told).contains(&step) {
        old.is_awaited().unwrap();
        if falls.recv_timeout(Duration::from_millis(1)).is_ok() {
            return;
        }
    }
    if step >= Step::Told {
        assert!(old.wait_until_awaited(PATIENCE).unwrap());
    }
}

/// Once everybody has moved who can: the other one's messages are all there.
#[track_caller]
fn the_other_has_lost_nothing(mut new: Receiver, mut there: Ledger, mut good: Sender) -> Ledger {
    good.send(&message(OTHERS + 2)).unwrap();
    drop(good);
    wait_until("all have left", || {
        there.empty(&mut new);
        new.senders() == 0
    });
    assert_eq!(there.0[1], [0, 1, 2]);
    there
}

/// What it has sent is received at one end, or at both if it has fallen between the word to the one and to the other; the other
/// sender moves in any case.
#[test]
fn a_sender_that_is_killed_in_a_move() {
    let scene = Scene::new();
    for step in STEPS {
        let moved = Moving::start(&scene, step).fall(Fate::Killed);
        moved.child.kill_and_reap();
        let mut here = Ledger::default();
        if let Some((mut old, error)) = moved.old {
            assert!(matches!(error, Error::Stays { .. }), "{step:?}: {error}");
            here.fill(&mut old, [2, 0]);
            // Then nothing is in the way.
            wait_until("its lane is gone", || {
                here.empty(&mut old);
                old.senders() == 0
            });
            old.depart().unwrap();
        }
        let there = the_other_has_lost_nothing(moved.new, moved.there, moved.good);
        let left = |at: bool| if at { vec![1, 2] } else { vec![] };
        assert_eq!(here.0, [left(step < Step::Confirmed), vec![]], "{step:?}");
        assert_eq!(there.0[0], left(step >= Step::Begun), "{step:?}");
    }
}

/// The others do not wait for one that is stopped, but its old end does, for up to 5 s (which is why all steps are tried at once). What it
/// had sent is received there, unless it had said that somebody waits; then by the successor, when it goes on.
#[test]
fn a_sender_that_is_stopped_in_a_move() {
    let scene = Scene::new();
    let all = STEPS.map(|step| Moving::start(&scene, step));
    thread::scope(|scope| {
        for moving in all {
            scope.spawn(move || stopped(moving));
        }
    });
}

fn stopped(moving: Moving) {
    let step = moving.step;
    let Moved {
        child,
        old,
        mut new,
        mut there,
        good,
    } = moving.fall(Fate::Stopped);
    alive();
    let mut here = Ledger::default();
    let its_own = step < Step::Awaited;
    let left = |at: bool| if at { vec![1, 2] } else { vec![] };
    // One that was told of it may count as left, since it is nobody's here.
    assert!(old.is_some() || !its_own, "{step:?}");
    let remains = old.map(|(mut old, error)| {
        assert!(matches!(error, Error::Stays { .. }), "{step:?}: {error}");
        assert_eq!(old.senders(), usize::from(its_own), "{step:?}");
        here.fill(&mut old, [left(its_own).len(), 0]);
        old
    });
    child.go_on();
    child.tell(&());
    thread::scope(|scope| {
        let here = &mut here;
        remains.map(|old| scope.spawn(move || depart(old, here)));
        there.fill(&mut new, [left(!its_own).len(), 0]);
        wait_until("its lane is there", || {
            there.empty(&mut new);
            new.senders() == 2
        });
    });
    assert_eq!(here.0, [left(its_own), vec![]], "{step:?}");
    child.kill_and_reap();
    let there = the_other_has_lost_nothing(new, there, good);
    assert_eq!(there.0[0], left(!its_own), "{step:?}");
}

// ---- at any moment ----

fn flood(role: &Role, address: &Address, first: u64) {
    let (page, descriptor) = Shared::create("sent", page_size(), 0).unwrap();
    role.tell(&Fd::from(descriptor));
    let builder = Publisher::builder().ring_bytes(4096).timeout(PATIENCE);
    let mut sender = builder.connect_to(address).unwrap();
    for sent in 0.. {
        sender.send(&message(first + sent)).unwrap();
        page.word(0).store(sent + 1, Ordering::Release);
        alive();
    }
}

/// Departs from all, and receives what is in the way.
fn depart(mut old: Receiver, here: &mut Ledger) {
    while let Err(remains) = old.depart() {
        old = remains.end;
        here.empty(&mut old);
        alive();
    }
}

/// These are messages from one on, each once: the first of them, and the next.
#[track_caller]
fn in_order(numbers: &[u64]) -> Option<(u64, u64)> {
    let first = *numbers.first()?;
    let next = first + numbers.len() as u64;
    assert!(numbers.iter().copied().eq(first..next), "{numbers:?}");
    Some((first, next))
}

/// Real senders, one of which is killed or stopped while both move. All that it had committed is received, in order, and what the other
/// sends exactly once.
#[test]
fn a_sender_that_falls_at_any_moment() {
    let scene = Scene::new();
    let mut dice = Dice::new();
    let mut outcomes = [0; 3];
    for round in 0..16 {
        let fate = FATES[round % 2];
        let address = scene.address("jobs");
        let mut old = Receiver::builder().bind_to(&address).unwrap();
        let senders = [0, OTHERS].map(|first| {
            let plan = Plan::Floods(address.to_string(), first);
            let child = scene.spawn("sender", &plan);
            let page: Fd = child.hear();
            let page = Remote::open(page.into(), page_size(), 0, page_size()).unwrap();
            (child, page)
        });
        let mut here = Ledger::default();
        here.fill(&mut old, [10, 10]);
        let ticket = old.ticket().unwrap();
        let arriving = thread::spawn(move || arrive(ticket));
        if dice.below(2) == 0 {
            while !old.is_awaited().unwrap() {
                here.empty(&mut old);
            }
        }
        let victim = &senders[0].0;
        let mut there = Ledger::default();
        let mut new = thread::scope(|scope| {
            let here = &mut here;
            let leaving = scope.spawn(move || depart(old, here));
            dice.dally(400_000);
            match fate {
                Fate::Killed => victim.kill(),
                Fate::Stopped => victim.stop(),
            }
            let mut new = arriving.join().unwrap();
            // The other goes on.
            there.fill(&mut new, [0, 200]);
            victim.go_on();
            wait_until("the old end has left", || {
                there.empty(&mut new);
                leaving.is_finished()
            });
            leaving.join().unwrap();
            new
        });
        for (name, (child, committed)) in senders.into_iter().enumerate() {
            // The one that was stopped goes on until here.
            child.kill_and_reap();
            // At one end or the other, where its lane may just be coming.
            let sent = committed.load_word(0);
            let received = here.0[name].len() as u64;
            wait_until("all that it has sent is received", || {
                there.empty(&mut new);
                let last = there.0[name].last().copied();
                received.max(last.map_or(0, |last| last + 1)) >= sent
            });
            wait_until("it is gone", || {
                there.empty(&mut new);
                new.senders() <= 1 - name
            });
            let (first, until) = in_order(&here.0[name]).unwrap();
            assert_eq!(first, 0, "round {round}");
            let next = match in_order(&there.0[name]) {
                None => until,
                Some((first, next)) => {
                    let may_overlap = (name, fate) == (0, Fate::Killed);
                    assert!(
                        first == until || may_overlap && first < until,
                        "round {round}: {first} after {until}"
                    );
                    next.max(until)
                }
            };
            assert!(
                (sent..=sent + 1).contains(&next),
                "round {round}: {next} of {sent} received"
            );
        }
        let overlap = there.0[0]
            .first()
            .map(|first| *first < here.0[0].len() as u64);
        outcomes[overlap.map_or(0, |overlap| 1 + usize::from(overlap))] += 1;
    }
    println!("here alone, one after the other, and both: {outcomes:?}");
}

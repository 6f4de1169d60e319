//! The publisher of a lane that moves.

use std::{
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use memlane::{Error, Link, Reason, RecvError, RecvTimeoutError, Subscriber};
use memlane_region::{Shared, WordsMut, page_size};
use memlane_tests::{
    Child, PATIENCE, Role, Scene, alive, number,
    wire::{Answer, Greeting, Notice, Opening, VERSION, Welcome, header},
};
use memlane_transport::Fd;
use serde::{Deserialize, Serialize};

use crate::{Fate, RECORD, expect, message};

/// How far it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Step {
    /// There is a lane, with three messages.
    Joined,
    /// It has been asked for a ticket,
    Asked,
    /// and has given one.
    Given,
    /// It has heard a successor,
    Met,
    /// said its version to it,
    Opened,
    /// and welcomed it.
    Welcomed,
    /// It has told the old end that somebody waits,
    Awaited,
    /// and heard that it departs.
    Told,
    /// It has told the successor to begin,
    Begun,
    /// and the old end that it has.
    Confirmed,
}

pub(crate) const STEPS: [Step; 10] = [
    Step::Joined,
    Step::Asked,
    Step::Given,
    Step::Met,
    Step::Opened,
    Step::Welcomed,
    Step::Awaited,
    Step::Told,
    Step::Begun,
    Step::Confirmed,
];

/// So many it has sent.
pub(crate) const MESSAGES: u64 = 3;

/// Publishes to whoever is at the other end of a link, and gets that far in its move.
pub(crate) fn publisher(role: &Role) {
    let (link, until): (Link, Step) = role.hear();
    play(role, link, until, false);
}

/// The same, as one that has connected, if it offers its lane.
pub(crate) fn play(role: &Role, link: Link, until: Step, offers: bool) {
    let opening = Opening { version: VERSION };
    link.send(&opening).unwrap();
    if offers {
        link.send(&4_u32).unwrap();
    }
    assert_eq!(link.recv_timeout::<Opening>(PATIENCE).unwrap(), opening);
    let _greeting: Greeting = link.recv_timeout(PATIENCE).unwrap();
    let capacity = page_size();
    let (mut ring, descriptor) = Shared::create("by-hand", page_size(), capacity).unwrap();
    for number in 0..MESSAGES {
        let at = number * RECORD;
        ring.write(at, 8, &message(number));
        ring.store_release(at, header(RECORD, 8));
    }
    let welcome = || {
        let ring = Fd::from(descriptor.try_clone().unwrap());
        Answer::Welcome(Welcome::new(ring, capacity as u64))
    };
    link.send(&welcome()).unwrap();
    role.halt(Step::Joined, until);
    let (8, ticket) = link.recv_timeout::<(u32, u32)>(PATIENCE).unwrap() else {
        panic!("it wants something else");
    };
    role.halt(Step::Asked, until);
    let (mut successor, theirs) = Link::pair().unwrap();
    let given = Notice::Ticket {
        number: ticket,
        link: theirs.into_fd().into(),
    };
    // Who does not wait any longer has hung up, here and below.
    let _ = link.send(&given);
    drop(given);
    role.halt(Step::Given, until);
    assert_eq!(
        successor.recv_timeout::<Opening>(PATIENCE).unwrap(),
        opening
    );
    let (11, back) = successor.recv_timeout::<(u32, Fd)>(PATIENCE).unwrap() else {
        panic!("it does not arrive");
    };
    let _greeting: Greeting = successor.recv_timeout(PATIENCE).unwrap();
    role.halt(Step::Met, until);
    successor.send_over(back.into()).unwrap();
    let _ = successor.send(&opening);
    role.halt(Step::Opened, until);
    let _ = successor.send(&welcome());
    role.halt(Step::Welcomed, until);
    let _ = link.send(&Notice::Awaited { number: ticket });
    role.halt(Step::Awaited, until);
    let departed: (u32, u64, u64, u64) = link.recv_timeout(PATIENCE).unwrap();
    let (9, start, sequence, 0) = departed else {
        panic!("{departed:?}");
    };
    role.halt(Step::Told, until);
    let begin = Notice::Begin {
        start,
        sequence,
        at: 0,
    };
    let _ = successor.send(&begin);
    role.halt(Step::Begun, until);
    let _ = link.send(&Notice::Departed);
    role.halt(Step::Confirmed, until);
    role.hear::<()>();
}

/// What becomes of the old end, or why it has not departed, and of its successor.
struct Outcome {
    old: Option<Subscriber>,
    error: Option<Error>,
    new: Option<Result<Subscriber, Error>>,
}

/// An old end that has received the first message, and moves within this process, while its publisher does not get any further.
struct Moving {
    child: Child,
    old: Subscriber,
    step: Step,
}

impl Moving {
    fn start(scene: &Scene, step: Step) -> Moving {
        let (ours, theirs) = Link::pair().unwrap();
        let child = scene.spawn("publisher", &(&ours, step));
        drop(ours);
        let builder = Subscriber::builder().timeout(PATIENCE);
        let mut old = builder.over(theirs).unwrap();
        expect(&mut old, 0..1);
        Moving { child, old, step }
    }

    /// Has it fall there; `then` is done when the old end has come to nothing, or moved.
    fn fall(self, fate: Fate, then: impl FnOnce(&Child)) -> (Outcome, Child) {
        let Moving {
            child,
            mut old,
            step,
        } = self;
        let (fallen, falls) = channel();
        let (passes, passed) = channel();
        thread::scope(|scope| {
            let leaving = scope.spawn(move || leave(&mut old, step, &falls, passes).end(old));
            let arriving = scope.spawn(move || {
                let ticket: memlane::Ticket = passed.recv().ok()?;
                let builder = Subscriber::builder().timeout(PATIENCE);
                Some(builder.arrive(ticket))
            });
            child.hear::<()>();
            match fate {
                Fate::Killed => child.kill(),
                Fate::Stopped => child.stop(),
            }
            // It may not wait for that.
            let _ = fallen.send(());
            let (old, error) = leaving.join().unwrap();
            then(&child);
            let new = arriving.join().unwrap();
            (Outcome { old, error, new }, child)
        })
    }
}

/// How far the old end has come.
enum Left {
    /// It has no ticket.
    Not(Error),
    /// It has one, and is to depart.
    Departs,
}

/// Asks for a ticket, and passes it on.
fn leave(
    old: &mut Subscriber,
    step: Step,
    falls: &Receiver<()>,
    passes: std::sync::mpsc::Sender<memlane::Ticket>,
) -> Left {
    if step == Step::Joined {
        falls.recv().unwrap();
    }
    match old.ticket() {
        Ok(ticket) => passes.send(ticket).unwrap(),
        Err(error) => return Left::Not(error),
    }
    if (Step::Given..Step::Told).contains(&step) {
        falls.recv().unwrap();
    }
    if step >= Step::Told {
        assert!(old.wait_until_awaited(PATIENCE).unwrap());
    }
    Left::Departs
}

impl Left {
    fn end(self, old: Subscriber) -> (Option<Subscriber>, Option<Error>) {
        match self {
            Left::Not(error) => (Some(old), Some(error)),
            Left::Departs => match old.depart() {
                Ok(()) => (None, None),
                Err(stays) => (stays.subscriber, Some(stays.error)),
            },
        }
    }
}

/// All there is to be received from a publisher that has died.
fn rest(mut subscriber: Subscriber) -> Vec<u64> {
    let mut numbers = Vec::new();
    loop {
        match subscriber.recv_timeout(PATIENCE) {
            Ok(message) => numbers.push(number(&message.to_vec())),
            Err(RecvTimeoutError::Disconnected {
                reason: Reason::Died,
            }) => return numbers,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Whoever has the lane, as documented (docs/moving.md), receives what is left of it; nobody waits for one that is dead.
#[test]
fn a_publisher_that_is_killed_in_a_move() {
    let scene = Scene::new();
    for step in STEPS {
        let moving = Moving::start(&scene, step);
        let (outcome, child) = moving.fall(Fate::Killed, |_| {});
        child.kill_and_reap();
        let Outcome { old, error, new } = outcome;
        let departed = error.is_none();
        if let Some(error) = error {
            assert!(matches!(error, Error::HungUp), "{step:?}: {error}");
        }
        assert_eq!(departed, step == Step::Confirmed, "{step:?}");
        let left = [1, 2];
        // It is never neither that has the rest.
        assert_eq!(old.is_some(), !departed, "{step:?}");
        if let Some(old) = old {
            assert_eq!(rest(old), left, "{step:?}");
        }
        match new {
            None => assert!(step < Step::Given, "{step:?}"),
            Some(Err(error)) => {
                assert!(matches!(error, Error::HungUp), "{step:?}: {error}");
                assert!(step < Step::Begun, "{step:?}");
            }
            Some(Ok(new)) => {
                assert!(step >= Step::Begun, "{step:?}");
                assert_eq!(rest(new), left, "{step:?}");
            }
        }
    }
}

/// Whoever asks one that is stopped is told so after a while (5 s, which is why all steps are tried at once), and what it was told is done
/// when it goes on: nothing is lost.
#[test]
fn a_publisher_that_is_stopped_in_a_move() {
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
    let goes_on = |child: &Child| {
        alive();
        if step >= Step::Given {
            child.go_on();
            child.tell(&());
        }
    };
    let (outcome, child) = moving.fall(Fate::Stopped, goes_on);
    let Outcome { old, error, new } = outcome;
    let departed = error.is_none();
    if let Some(error) = error {
        assert!(matches!(error, Error::NoAnswer { .. }), "{step:?}: {error}");
    }
    assert_eq!(departed, step == Step::Confirmed, "{step:?}");
    // One that has not departed goes on, and what may have is lost to it.
    assert_eq!(old.is_some(), step < Step::Given, "{step:?}");
    let mut has_it = match (old, new) {
        (Some(old), None) => old,
        (None, Some(new)) => new.unwrap(),
        _ => panic!("{step:?}"),
    };
    expect(&mut has_it, 1..3);
    let short = Duration::from_millis(5);
    let empty = has_it.recv_timeout(short).unwrap_err();
    assert!(matches!(empty, RecvTimeoutError::TimedOut), "{empty}");
    child.kill_and_reap();
    assert!(matches!(
        has_it.recv(),
        Err(RecvError::Disconnected {
            reason: Reason::Died
        })
    ));
}

/// A successor has a time of its own, in which a publisher that is stopped does not answer; the old end goes on all the while.
#[test]
fn a_successor_does_not_wait_longer_than_it_is_told_to() {
    let scene = Scene::new();
    for step in STEPS {
        if !(Step::Given..=Step::Awaited).contains(&step) {
            continue;
        }
        let Moving { child, mut old, .. } = Moving::start(&scene, step);
        let ticket = old.ticket().unwrap();
        let (arrived, arrives) = channel();
        let arriving = thread::spawn(move || {
            let builder = Subscriber::builder().timeout(Duration::from_millis(200));
            arrived.send(builder.arrive(ticket)).unwrap();
        });
        child.hear::<()>();
        child.stop();
        let error = arrives.recv().unwrap().unwrap_err();
        arriving.join().unwrap();
        // On a busy machine its time may be over before it is welcome.
        let welcome = step >= Step::Welcomed;
        assert!(
            matches!(error, Error::NoAnswer { .. })
                || welcome && matches!(error, Error::NotDeparted { .. }),
            "{step:?}: {error}"
        );
        expect(&mut old, 1..3);
        child.kill_and_reap();
        assert_eq!(rest(old), [0; 0]);
    }
}

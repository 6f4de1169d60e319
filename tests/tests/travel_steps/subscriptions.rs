//! Subscribers of many publishers that move while one of these is killed: its end is told of where it was received to the end.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
    thread,
    time::Duration,
};

use memlane::{
    Error, Link, Publisher, Reason, Received, RecvError, RecvTimeoutError, Subscriber,
    Subscriptions, SubscriptionsTicket,
};
use memlane_tests::{Child, PATIENCE, Scene, alive, number, wait_until};

use crate::{
    lane, message,
    publishers::{STEPS, Step},
    send,
};

/// The labels of the one that is killed, and of the other.
const FALLEN: &str = "fallen";
const GOOD: &str = "good";

/// What was received of the one that is killed, the other's messages, and whether that one's end was told of.
#[derive(Debug, Default, PartialEq)]
struct Ledger {
    fallen: Vec<u64>,
    good: Vec<u64>,
    ended: bool,
}

impl Ledger {
    /// Receives what there is.
    fn empty(&mut self, subscriptions: &mut Subscriptions) {
        loop {
            let (key, number) = match subscriptions.recv_timeout(Duration::ZERO) {
                Ok(Received::Message(key, message)) => (key, number(&message.to_vec())),
                Ok(Received::Ended(ended)) => {
                    let died = RecvError::Disconnected {
                        reason: Reason::Died,
                    };
                    assert_eq!(ended.label, FALLEN);
                    assert_eq!(ended.reason.to_string(), died.to_string());
                    assert!(
                        !std::mem::replace(&mut self.ended, true),
                        "it is told twice"
                    );
                    continue;
                }
                Err(RecvTimeoutError::TimedOut | RecvTimeoutError::Disconnected { .. }) => return,
                Err(error) => panic!("{error}"),
            };
            match subscriptions.label(key) {
                Some(FALLEN) => self.fallen.push(number),
                _ => self.good.push(number),
            }
        }
    }
}

/// A subscriber of two, of which one has sent three messages, of which one was received, and gets no further than to a step of the move.
struct Moving {
    child: Child,
    old: Subscriptions,
    good: Publisher,
    step: Step,
}

impl Moving {
    fn start(scene: &Scene, step: Step) -> Moving {
        let (good, subscriber) = lane();
        let mut old = Subscriptions::new().unwrap();
        old.add_as(GOOD, subscriber).unwrap();
        let (ours, theirs) = Link::pair().unwrap();
        let child = scene.spawn("publisher", &(&theirs, step));
        drop(theirs);
        let subscriber = Subscriber::builder().timeout(PATIENCE).over(ours);
        old.add_as(FALLEN, subscriber.unwrap()).unwrap();
        match old.recv_timeout(PATIENCE).unwrap() {
            Received::Message(_, message) => assert_eq!(number(&message.to_vec()), 0),
            Received::Ended(ended) => panic!("{ended:?}"),
        }
        Moving {
            child,
            old,
            good,
            step,
        }
    }

    /// Kills it there, while the other moves. What is left, and what has come to the successor.
    fn kill(
        self,
    ) -> (
        Option<(Subscriptions, Error)>,
        Subscriptions,
        Ledger,
        Publisher,
    ) {
        let Moving {
            child,
            mut old,
            mut good,
            step,
        } = self;
        let (killed, kills) = channel();
        let (passes, passed) = channel::<SubscriptionsTicket>();
        let (enough, others) = (&AtomicBool::new(false), &AtomicBool::new(false));
        thread::scope(|scope| {
            let leaving = scope.spawn(move || {
                if step == Step::Joined {
                    kills.recv().unwrap();
                }
                passes.send(old.ticket().unwrap()).unwrap();
                while (Step::Asked..Step::Told).contains(&step) {
                    old.is_awaited().unwrap();
                    if kills.recv_timeout(Duration::from_millis(1)).is_ok() {
                        break;
                    }
                }
                if step >= Step::Told {
                    assert!(old.wait_until_awaited(PATIENCE).unwrap());
                }
                let remains = old.depart().err()?;
                Some((remains.end, remains.error))
            });
            let arriving = scope.spawn(move || {
                let builder = Subscriber::builder().timeout(PATIENCE);
                let new = builder.arrive_subscriptions(passed.recv().unwrap());
                let (mut new, mut there) = (new.unwrap(), Ledger::default());
                while !enough.load(Ordering::Relaxed) {
                    there.empty(&mut new);
                    others.store(there.good == [0], Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(1));
                }
                (new, there)
            });
            send(&mut good, 0..1);
            child.hear::<()>();
            child.kill();
            // It may not wait for that.
            let _ = killed.send(());
            wait_until("the other has moved", || others.load(Ordering::Relaxed));
            let old = leaving.join().unwrap();
            enough.store(true, Ordering::Relaxed);
            let (new, there) = arriving.join().unwrap();
            child.kill_and_reap();
            (old, new, there, good)
        })
    }
}

/// What it has sent is received at one end, or at both if it was killed between the word to the one and to the other, and then it is told
/// there that it has ended; the other publisher's lane moves in any case.
#[test]
fn a_publisher_among_others_that_is_killed_in_a_move() {
    let scene = Scene::new();
    for step in STEPS {
        let (old, mut new, mut there, mut good) = Moving::start(&scene, step).kill();
        let mut here = Ledger::default();
        if let Some((mut old, error)) = old {
            let why = "it stays where it is: whoever is at the other end of a lane has hung up";
            assert_eq!(error.to_string(), why, "{step:?}");
            wait_until("its end is told of", || {
                here.empty(&mut old);
                here.ended
            });
            // Then nothing is in the way.
            old.depart().unwrap();
        }
        good.send(&message(1)).unwrap();
        let both = step >= Step::Begun;
        wait_until("all is received", || {
            there.empty(&mut new);
            there.good.len() == 2 && there.ended == both
        });
        let left = |at: bool| Ledger {
            fallen: if at { vec![1, 2] } else { vec![] },
            good: vec![],
            ended: at,
        };
        assert_eq!(here, left(step < Step::Confirmed), "{step:?}");
        let good = vec![0, 1];
        let expected = Ledger { good, ..left(both) };
        assert_eq!(there, expected, "{step:?}");
        alive();
    }
}

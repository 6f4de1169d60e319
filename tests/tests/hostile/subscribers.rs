//! Hostile subscribers among honest ones.

use memlane::Link;
use memlane_tests::{
    Census, PATIENCE, Policy, Scene, Steady, Stream, Wish, ready_to_sleep, unbound, wait_until,
    wire::{Asks, Notice, Offer, VERSION},
};

use crate::{
    by_hand::{join, open},
    villain::{Outcome, Villainy},
};

const LONGEST: usize = 600;

/// A publisher with two honest subscribers, the villains one after the other, and what the publisher then has to
/// say.
fn among_honest_ones(
    policy: Policy,
    trusting: bool,
    villainies: &[Villainy],
    mut act: impl FnMut(Villainy, &memlane_tests::Child, &Stream, &[Steady]),
) -> u64 {
    let scene = Scene::new();
    let address = scene.address("lane");
    let mut builder = unbound(1 << 14).wait(policy.into());
    if trusting {
        builder = builder.trust_subscribers();
    }
    let publisher = ready_to_sleep(builder.bind_to(&address).unwrap(), policy);
    let honest = [Policy::Block, Policy::Adaptive].map(|policy| {
        let wish = Wish {
            policy,
            trusting: false,
        };
        Steady::start(&scene, &address, wish, LONGEST)
    });
    let base = Census::beside(&publisher);
    let stream = Stream::start(publisher, LONGEST);
    for villainy in villainies {
        let orders = (address.to_string(), villainy);
        let villain = scene.spawn("villain", &orders);
        act(*villainy, &villain, &stream, &honest);
        villain.finish();
        for honest in &honest {
            honest.advance(200);
        }
    }
    base.settle();
    let publisher = stream.stop();
    assert_eq!(publisher.subscribers(), 2, "the honest ones");
    let evicted = publisher.stats().evicted;
    let sent = publisher.stats().messages;
    drop(publisher);
    for honest in honest {
        assert_eq!(honest.finish(), (sent, sent));
    }
    evicted
}

#[test]
fn greetings_that_are_refused() {
    use Villainy::*;
    let expected = |villainy| match villainy {
        PageUnsealed => "got one sealed with nothing",
        PageHalfSealed => "got one sealed with SHRINK|GROW",
        PageTooLarge => "got one of",
        PageEmpty => "bytes, got one of 0",
        PageSparse => "allocated, found 0",
        PageNoMemory | PageIsAPipe | PageIsASocket => "not shared memory",
        BellIsAPipe | BellIsAFile => "expected a Unix stream socket as a doorbell",
        BellIsUdp | BellIsADatagram => "got a socket of",
        BellIsAnEventfd => "got an eventfd",
        BellIsNoEventfd => "expected an eventfd as a doorbell, got pipe",
        _ => unreachable!(),
    };
    for trusting in [false, true] {
        let last = if trusting {
            BellIsNoEventfd
        } else {
            BellIsAnEventfd
        };
        let villainies = [
            PageUnsealed,
            PageHalfSealed,
            PageTooLarge,
            PageEmpty,
            PageSparse,
            PageNoMemory,
            PageIsAPipe,
            PageIsASocket,
            BellIsAPipe,
            BellIsAFile,
            BellIsUdp,
            BellIsADatagram,
            last,
        ];
        let evicted = among_honest_ones(
            Policy::Adaptive,
            trusting,
            &villainies,
            |villainy, villain, _, _| {
                let Outcome::Refused(refusal) = villain.hear() else {
                    panic!("{villainy:?} was not refused");
                };
                let text = format!("{refusal:?}").replace("found one of", "got one of");
                assert!(text.contains(expected(villainy)), "{villainy:?}: {text}");
            },
        );
        assert_eq!(evicted, 0);
    }
}

#[test]
fn greetings_that_are_none() {
    use Villainy::*;
    let villainies = [
        OldVersion,
        Garbage,
        AnotherMagic,
        HalfAGreeting,
        Oversized,
        Empty,
        SurplusDescriptors,
        Floods,
        GreetsTwice,
        AsksForTicketsUnread,
        AsksForTicketsElsewhere,
    ];
    for policy in Policy::ALL {
        among_honest_ones(policy, false, &villainies, |villainy, villain, _, _| {
            let outcome: Outcome = villain.hear();
            assert_eq!(outcome, Outcome::HungUp, "{villainy:?}");
        });
    }
}

#[test]
fn cursors_that_make_no_sense() {
    use Villainy::*;
    let villainies = [
        CursorBeyond,
        CursorBack,
        CursorMax,
        CursorRandom,
        DepartsBeyond,
        DepartsBefore,
    ];
    for policy in Policy::ALL {
        let evicted = among_honest_ones(policy, false, &villainies, |villainy, villain, _, _| {
            let outcome: Outcome = villain.hear();
            assert_eq!(outcome, Outcome::HungUp, "{villainy:?}");
        });
        assert_eq!(evicted, 6);
    }
}

#[test]
fn nuisances() {
    use Villainy::*;
    let villainies = [
        Flips,
        NeverDrains,
        BellOfAListener,
        BellUnconnected,
        RingsForEver,
        AsksForTickets,
        ArrivesNowhere,
        Wavers,
    ];
    for policy in Policy::ALL {
        let evicted = among_honest_ones(
            policy,
            false,
            &villainies,
            |villainy, villain, _, honest| {
                let outcome: Outcome = villain.hear();
                assert_eq!(outcome, Outcome::Joined, "{villainy:?}");
                for honest in honest {
                    honest.advance(1000);
                }
                villain.tell(&());
                let outcome: Outcome = villain.hear();
                assert_eq!(outcome, Outcome::Done, "{villainy:?}");
            },
        );
        assert_eq!(evicted, 0);
    }
}

/// The publisher sleeps, and the one it waits for has closed what it would ring: there is nothing to wait for.
#[test]
fn a_doorbell_closed_while_the_publisher_sleeps() {
    for policy in Policy::SLEEPY {
        let villainies = [
            Villainy::ClosesItsBell,
            Villainy::ClosesItsBellLate,
            Villainy::ShutsItsBell,
        ]
        .repeat(3);
        among_honest_ones(policy, false, &villainies, |_, villain, _, _| {
            assert_eq!(villain.hear::<Outcome>(), Outcome::HungUp);
        });
    }
}

/// A doorbell that the publisher's own side writes to when a subscriber leaves must not be one that the subscriber
/// can block.
#[test]
fn a_doorbell_that_is_a_trap() {
    for policy in Policy::SLEEPY {
        let villainies = [Villainy::LeavesTheTrap; 5];
        among_honest_ones(policy, false, &villainies, |_, villain, _, honest| {
            if villain.hear::<Outcome>() == Outcome::Joined {
                // The publisher asks the control side now and then, so it stops if that hangs.
                honest[0].advance(1000);
                villain.tell(&());
                assert_eq!(villain.hear::<Outcome>(), Outcome::Done);
            }
        });
    }
}

/// One asks for tickets without end, and takes none: few descriptors are on their way to it, which count for all of its publisher's user.
#[test]
fn tickets_that_nobody_takes() {
    let _scene = Scene::new();
    let publisher = unbound(1 << 14).unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    open(&theirs, VERSION);
    let offer = Offer {
        socket: None,
        eventfd: None,
    };
    let (joined, _) = join(theirs, offer, false).ok().unwrap();
    for round in 0..3 {
        for _ in 0..50 {
            joined.link.send_timeout(&Asks::TICKET, PATIENCE).unwrap();
        }
        wait_until("it has heard them", || {
            joined.link.room().unwrap().taken == 0
        });
        let mut given = Vec::new();
        for _ in 0..50 {
            match joined.link.recv_timeout(PATIENCE).unwrap() {
                Notice::Ticket { link, .. } => given.push(link),
                Notice::Stays { why, .. } => {
                    assert!(why.contains("at most 8 tickets"), "{why}");
                }
                other => panic!("{other:?}"),
            }
        }
        // It may have been about to answer the last when these were taken.
        assert!((8..=9).contains(&given.len()), "{round}: {}", given.len());
    }
    drop(joined.ticket());
    assert_eq!(publisher.stats().evicted, 0);
}

/// Hundreds connect and never say anything: the oldest make room for the newest, and whoever does speak is served.
#[test]
fn silent_connections() {
    let scene = Scene::new();
    let address = scene.address("lane");
    let publisher = unbound(1 << 14).bind_to(&address).unwrap();
    let publisher = ready_to_sleep(publisher, Policy::Adaptive);
    let wish = Wish {
        policy: Policy::Block,
        trusting: false,
    };
    let honest = Steady::start(&scene, &address, wish, LONGEST);
    let base = Census::beside(&publisher);
    let stream = Stream::start(publisher, LONGEST);
    let mut silent = Vec::new();
    for round in 0..6 {
        for _ in 0..100 {
            silent.push(Link::connect(&address).expect("the publisher"));
        }
        let newcomer = wish.connect(&address).expect("a place beside the silent");
        drop(newcomer);
        honest.advance(100);
        // Two descriptors of each are here, the publisher's and the villain's.
        wait_until("the oldest were dropped", || {
            Census::take().descriptors() <= base.descriptors() + silent.len() + 64
        });
        assert_eq!(silent.len(), 100 * (round + 1));
    }
    drop(silent);
    base.settle();
    let publisher = stream.stop();
    let sent = publisher.stats().messages;
    drop(publisher);
    assert_eq!(honest.finish(), (sent, sent));
}

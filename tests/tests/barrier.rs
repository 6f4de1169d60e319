//! Who carries the barrier between a publisher's messages and a subscriber's sleep: no wake-up is lost wherever it is, when it
//! moves, and when the kernel's part in it is forbidden one day.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use memlane::{Link, Publisher, Subscriber, WaitPolicy};
use memlane_region::{Remote, Shared, page_size};
use memlane_signaling::CARRIED;
use memlane_tests::{
    Child, PATIENCE, Part, Role, Scene, alive, cores, play, thread_id, unbound, wait_asleep,
    wait_until,
    wire::{ARMED, Answer, Bell, Greeting, Offer, Opening, VERSION},
};
use memlane_transport::Fd;
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[("player", player)];

#[test]
fn other_process() {
    play(ROLES);
}

/// Two lanes between two processes, there and back.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Match {
    rounds: u64,
    /// Each ball is so many messages, by turns.
    lengths: [u64; 2],
    /// Of both subscribers: [`memlane::SubscriberBuilder::membarrier`].
    after: u64,
    one_core: bool,
    /// The round before which the other process forbids itself membarrier(2).
    forbidden: Option<u64>,
}

/// What became of one side.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Score {
    sleeps: u64,
    barriers: u64,
    carries: bool,
    fences: bool,
}

fn score(publisher: &Publisher, subscriber: &Subscriber) -> Score {
    let stats = subscriber.stats();
    Score {
        sleeps: stats.sleeps,
        barriers: stats.barriers,
        carries: subscriber.carries_barrier(),
        fences: publisher.fences(),
    }
}

fn pin(first: bool) {
    let cores = cores();
    memlane_tests::pin(if first {
        cores[0]
    } else {
        cores[cores.len() - 1]
    });
}

fn publisher() -> memlane::PublisherBuilder {
    unbound(page_size()).wait(WaitPolicy::Block).membarrier()
}

fn subscriber(after: u64) -> memlane::SubscriberBuilder {
    Subscriber::builder()
        .wait(WaitPolicy::Block)
        .timeout(PATIENCE)
        .membarrier(after)
}

fn send(publisher: &mut Publisher, game: Match, round: u64) {
    for number in 0..game.lengths[round as usize % 2] {
        let message = [round, number].map(u64::to_le_bytes).concat();
        publisher.send(&message).expect("room");
    }
}

fn receive(subscriber: &mut Subscriber, game: Match, round: u64) {
    for number in 0..game.lengths[round as usize % 2] {
        let message = subscriber.recv().expect("a message").to_vec();
        assert_eq!(message, [round, number].map(u64::to_le_bytes).concat());
    }
    if round.is_multiple_of(1024) {
        alive();
    }
}

fn player(role: &Role) {
    let game: Match = role.hear();
    pin(game.one_core);
    let mut back = publisher().bind("back").expect("a publisher");
    let mut there = subscriber(game.after).connect("there").expect("one");
    role.tell(&());
    back.wait_for_subscribers(1).expect("a subscriber");
    for round in 0..game.rounds {
        if game.forbidden == Some(round) {
            forbid_membarrier();
        }
        receive(&mut there, game, round);
        send(&mut back, game, round);
    }
    role.tell(&score(&back, &there));
    role.hear::<()>();
}

/// From now on it fails in this process, whose threads there are.
fn forbid_membarrier() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter_all_threads};
    let filter = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_membarrier, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into().expect("a known machine"),
    );
    let program: BpfProgram = filter.expect("a filter").try_into().expect("a program");
    apply_filter_all_threads(&program).expect("a filter");
}

/// Plays it; this side's score and the other's.
fn play_out(game: Match) -> [Score; 2] {
    let scene = Scene::new();
    let mut there = publisher().bind_to(&scene.address("there")).unwrap();
    let player: Child = scene.spawn("player", &game);
    player.hear::<()>();
    // On a thread of its own, since affinity is a thread's and the next test has this one.
    let (ours, there) = std::thread::scope(|scope| {
        let playing = scope.spawn(|| {
            pin(true);
            let address = scene.address("back");
            let mut back = subscriber(game.after).connect_to(&address).unwrap();
            for round in 0..game.rounds {
                send(&mut there, game, round);
                receive(&mut back, game, round);
            }
            (score(&there, &back), there)
        });
        playing.join().unwrap()
    });
    let theirs: Score = player.hear();
    println!("{game:?}: {ours:?}, {theirs:?}");
    player.tell(&());
    player.finish();
    drop(there);
    [ours, theirs]
}

#[test]
fn no_wake_up_is_lost_where_it_is_the_subscribers() {
    for (one_core, rounds) in [(true, 50_000), (false, 10_000)] {
        let scores = play_out(Match {
            rounds: memlane_tests::rounds(rounds),
            lengths: [1, 1],
            after: 0,
            one_core,
            forbidden: None,
        });
        for score in scores {
            assert!(score.carries && !score.fences, "{score:?}");
            assert!(score.sleeps > 0 && score.barriers >= score.sleeps);
        }
    }
}

#[test]
fn no_wake_up_is_lost_where_it_moves() {
    for (one_core, rounds) in [(true, 20_000), (false, 5_000)] {
        let scores = play_out(Match {
            rounds,
            lengths: [1, 12],
            after: 6,
            one_core,
            forbidden: None,
        });
        for score in scores {
            assert!(score.barriers > 0, "{score:?}");
        }
    }
}

#[test]
fn it_stays_the_publishers_where_too_few_messages_come_for_each_sleep() {
    let scores = play_out(Match {
        rounds: 1_000,
        lengths: [1, 2],
        after: 100,
        one_core: true,
        forbidden: None,
    });
    for score in scores {
        assert!(!score.carries && score.fences, "{score:?}");
        assert_eq!(score.barriers, 0);
    }
}

#[test]
fn no_wake_up_is_lost_when_membarrier_is_forbidden_one_day() {
    for one_core in [true, false] {
        let [ours, theirs] = play_out(Match {
            rounds: 5_000,
            lengths: [1, 1],
            after: 0,
            one_core,
            forbidden: Some(1_000),
        });
        // The other's subscriber has given it back to this side's publisher, and this side's carries on.
        assert!(!theirs.carries && ours.fences, "{ours:?}, {theirs:?}");
        assert!(ours.carries && !theirs.fences, "{ours:?}, {theirs:?}");
        assert!(theirs.barriers > 0, "{theirs:?}");
    }
}

/// A lane inside this process.
fn lane(
    publisher: memlane::PublisherBuilder,
    subscriber: memlane::SubscriberBuilder,
) -> (Publisher, Subscriber) {
    let publisher = publisher.unbound().unwrap();
    let (here, there) = Link::pair().unwrap();
    publisher.attach(here).unwrap();
    let subscriber = subscriber.over(there).unwrap();
    (publisher, subscriber)
}

/// Sends a message to a subscriber that sleeps, and gets it back.
fn wake(publisher: &mut Publisher, subscriber: &mut Subscriber) {
    std::thread::scope(|scope| {
        let (id, ids) = std::sync::mpsc::channel();
        let sleeper = &mut *subscriber;
        scope.spawn(move || {
            id.send(thread_id()).unwrap();
            assert_eq!(sleeper.recv().unwrap().len(), 3);
        });
        wait_asleep(std::process::id(), ids.recv().unwrap());
        publisher.send(b"one").unwrap();
    });
    // Finds it awake.
    publisher.send(b"two").unwrap();
    assert_eq!(subscriber.recv().unwrap().len(), 3);
}

#[test]
fn it_takes_two_to_agree() {
    let _scene = Scene::new();
    let with = Subscriber::builder().wait(WaitPolicy::Block).membarrier(0);
    let without = Subscriber::builder().wait(WaitPolicy::Block);
    let agrees = unbound(page_size()).membarrier();
    let pairs = [
        (unbound(page_size()), with.clone(), false),
        (agrees.clone(), without, false),
        (agrees, with, true),
    ];
    for (publisher, subscriber, carries) in pairs {
        let (mut publisher, mut subscriber) = lane(publisher, subscriber);
        for _ in 0..3 {
            wake(&mut publisher, &mut subscriber);
            assert_eq!(subscriber.carries_barrier(), carries);
            assert_eq!(publisher.fences(), !carries);
        }
        let stats = subscriber.stats();
        assert_eq!(stats.barriers > 0, carries, "{stats:?}");
    }
}

/// One subscriber that needs the fence, and the publisher makes it; without that one, it does not.
#[test]
fn one_that_does_not_carry_it_is_enough() {
    let _scene = Scene::new();
    let (mut publisher, mut first) = lane(unbound(page_size()).membarrier(), subscriber(0));
    wake(&mut publisher, &mut first);
    assert!(!publisher.fences());

    let (here, there) = Link::pair().unwrap();
    publisher.attach(here).unwrap();
    let second = Subscriber::builder().over(there).unwrap();
    publisher.send(b"three").unwrap();
    assert!(publisher.fences() && first.carries_barrier());
    drop(second);
    wait_until("it has left", || publisher.subscribers() == 1);
    assert_eq!(first.recv().unwrap().len(), 5);
    wake(&mut publisher, &mut first);
    assert!(!publisher.fences());

    // One that polls needs nothing.
    let (here, there) = Link::pair().unwrap();
    publisher.attach(here).unwrap();
    let poll = Subscriber::builder().wait(WaitPolicy::Poll);
    let _third = poll.over(there).unwrap();
    wake(&mut publisher, &mut first);
    assert!(!publisher.fences());
}

/// A watched subscriber arms the same flag.
#[test]
fn watched_subscribers_carry_it_too() {
    use rustix::event::{PollFd, PollFlags, poll};
    let _scene = Scene::new();
    let (mut publisher, subscriber) = lane(unbound(page_size()).membarrier(), subscriber(0));
    let mut subscriber = memlane::Watched::new(subscriber).unwrap();
    for number in 0..100_u32 {
        assert!(matches!(
            subscriber.try_recv(),
            Err(memlane::TryRecvError::Empty)
        ));
        publisher.send(&number.to_le_bytes()).unwrap();
        assert_eq!(publisher.stats().rings, u64::from(number) + 1);
        assert!(!publisher.fences());
        poll(&mut [PollFd::new(&subscriber, PollFlags::IN)], None).unwrap();
        assert_eq!(
            subscriber.try_recv().unwrap().to_vec(),
            number.to_le_bytes()
        );
    }
    let stats = subscriber.stats();
    assert!(stats.barriers >= 100, "{stats:?}");
    assert_eq!((stats.wakeups, stats.spurious), (99, 0), "{stats:?}");
}

/// A subscriber that says that it carries the barrier, and that it does not, and that it sleeps, as it likes: it costs its
/// publisher a ring and a fence for each message, and nobody else a wake-up.
#[test]
fn whoever_lies_about_it_hurts_nobody_else() {
    let _scene = Scene::new();
    for agrees in [true, false] {
        let builder = unbound(1 << 16);
        let builder = if agrees {
            builder.membarrier()
        } else {
            builder
        };
        let (mut publisher, mut honest) = lane(
            builder,
            Subscriber::builder().wait(WaitPolicy::Block).membarrier(0),
        );
        let (here, link) = Link::pair().unwrap();
        publisher.attach(here).unwrap();
        let (page, fd) = Shared::create("liar", page_size(), 0).unwrap();
        let (_bell, end) =
            memlane_signaling::Doorbell::new(memlane_signaling::Backing::Socket).unwrap();
        link.send(&Opening { version: VERSION }).unwrap();
        link.send(&Greeting::new(
            Fd::from(fd),
            Offer {
                socket: Some(Fd::from(end)),
                eventfd: None,
            },
        ))
        .unwrap();
        let _: Opening = link.recv_timeout(PATIENCE).unwrap();
        let Answer::Welcome(welcome) = link.recv_timeout(PATIENCE).unwrap() else {
            panic!("refused");
        };
        assert_eq!(welcome.registered, agrees);
        assert!(matches!(welcome.doorbell, Bell::Socket(_)));
        let ring = Remote::open(welcome.ring.into(), page_size(), 1 << 16, 1 << 20);
        drop(ring.expect("a ring"));

        let flags = [CARRIED, 0, CARRIED | 1, 1, u64::MAX, CARRIED, u64::MAX >> 1];
        for (round, flag) in flags.into_iter().enumerate() {
            page.word(ARMED).store(flag, Ordering::SeqCst);
            let before = publisher.stats().rings;
            wake(&mut publisher, &mut honest);
            let rings = publisher.stats().rings - before;
            assert!((1..=3).contains(&rings), "round {round}: {rings} rings");
            let carried = flag & CARRIED != 0 && agrees;
            assert_eq!(publisher.fences(), !carried, "round {round}");
            assert_eq!(honest.carries_barrier(), agrees);
        }
        drop(link);
        wait_until("it is let go of", || publisher.subscribers() == 1);
    }
}

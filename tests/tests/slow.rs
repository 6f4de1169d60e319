//! Subscribers that are slow, or stopped, beside others that are not: what is kept for them, what becomes of it, and who waits
//! for whom.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use memlane::{
    Async, Decision, Error, Link, Overflow, Publisher, PublisherBuilder, Reason, RecvError,
    SendTimeoutError, Subscriber, TryRecvError, TrySendError, Watched, WhenFull,
    region::{Remote, Shared, page_size},
};
use memlane_tests::{
    Census, Child, Control, Dice, PATIENCE, Part, Policy, Role, Scene, Tasks, check, fill, length,
    play, unbound, wait_until,
    wire::{Answer, Greeting, Notice, Offer, Opening, VERSION, Welcome},
};
use memlane_transport::Fd;
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::Signal,
};
use serde::{Deserialize, Serialize};

const ROLES: &[(&str, Part)] = &[("subscriber", subscriber)];

#[test]
fn other_process() {
    play(ROLES);
}

const RING: usize = 4096;
const LONGEST: usize = 300;

/// What another process is to subscribe over.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    link: Fd,
    policy: Policy,
    disconnect: bool,
    longest: usize,
}

/// Receives to the end, checks what it gets, and says how many messages that were, and what the end was. The number of the first
/// is for it to find out.
fn subscriber(role: &Role) {
    let plan: Plan = role.hear();
    let link = Link::from_fd(plan.link.into()).expect("a link");
    let builder = Subscriber::builder()
        .wait(plan.policy.into())
        .overflow(match plan.disconnect {
            true => Overflow::Disconnect,
            false => Overflow::Block,
        });
    let mut subscriber = builder.timeout(PATIENCE).over(link).expect("a subscriber");
    role.tell(&std::process::id());
    let mut copy = Vec::new();
    for expected in 0_u64.. {
        match subscriber.recv() {
            Ok(message) => message.copy_into(&mut copy),
            Err(RecvError::Disconnected { reason }) => {
                role.tell(&(expected, reason.to_string()));
                return;
            }
            Err(error) => panic!("message {expected}: {error}"),
        }
        assert_eq!(copy.len(), length(expected, plan.longest));
        check(expected, &copy);
    }
}

fn join(scene: &Scene, publisher: &Publisher, policy: Policy, longest: usize) -> Child {
    join_with(scene, publisher, policy, Overflow::Block, longest)
}

fn join_as(scene: &Scene, publisher: &Publisher, overflow: Overflow, longest: usize) -> Child {
    join_with(scene, publisher, Policy::Block, overflow, longest)
}

fn join_with(
    scene: &Scene,
    publisher: &Publisher,
    policy: Policy,
    overflow: Overflow,
    longest: usize,
) -> Child {
    let (ours, theirs) = Link::pair().expect("a pair");
    let before = publisher.subscribers();
    publisher.attach(ours).expect("a link");
    let plan = Plan {
        link: Fd::from(theirs.into_fd()),
        policy,
        disconnect: overflow == Overflow::Disconnect,
        longest,
    };
    let child = scene.spawn("subscriber", &plan);
    let _: u32 = child.hear();
    publisher
        .wait_for_subscribers(before + 1)
        .expect("a subscriber");
    child
}

/// Stops a process, all of it.
fn stop(child: &Child) {
    child.signal(Signal::STOP);
    let tasks = format!("/proc/{}/task", child.id());
    wait_until("it is stopped", || {
        let tasks = std::fs::read_dir(&tasks).expect("a process");
        tasks.flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with('T'))
        })
    });
}

fn message(number: u64, longest: usize) -> Vec<u8> {
    let mut message = vec![0; length(number, longest)];
    fill(number, &mut message);
    message
}

/// Sends until there is no room, from message `first` on; the number of the next.
fn fill_up(publisher: &mut Publisher, first: u64, longest: usize) -> u64 {
    for number in first.. {
        match publisher.try_send(&message(number, longest)) {
            Ok(()) => {}
            Err(TrySendError::Full) => return number,
            Err(error) => panic!("message {number}: {error}"),
        }
    }
    unreachable!("memory is bounded")
}

fn spilling(rings: usize) -> PublisherBuilder {
    unbound(RING).spill_bytes(rings * RING)
}

/// One is stopped. The other gets everything meanwhile, and nobody waits, until there is no more to keep; then all wait. What
/// was kept is received once the first goes on.
#[test]
fn a_stopped_subscriber_is_served_from_a_spill() {
    for policy in Policy::SLEEPY {
        let scene = Scene::new();
        let mut publisher = spilling(8).wait(policy.into()).unbound().unwrap();
        let slow = join(&scene, &publisher, policy, LONGEST);
        stop(&slow);
        let fast = join(&scene, &publisher, policy, LONGEST);
        let mut sent = 0;
        while publisher.stats().spills < 8 {
            publisher
                .send_timeout(&message(sent, LONGEST), PATIENCE)
                .expect("room beside one that is stopped");
            sent += 1;
        }
        assert_eq!(publisher.pool_bytes(), 0);
        sent = fill_up(&mut publisher, sent, LONGEST);
        // The other one is not why.
        let timed_out = publisher.send_timeout(&message(sent, LONGEST), Duration::from_millis(20));
        assert!(matches!(timed_out, Err(SendTimeoutError::TimedOut)));
        assert!(
            publisher.ring_bytes() <= 10 * RING,
            "{}",
            publisher.ring_bytes()
        );
        slow.signal(Signal::CONT);
        for number in sent..sent + 2000 {
            publisher.send(&message(number, LONGEST)).unwrap();
        }
        assert!(publisher.drain(PATIENCE).unwrap());
        publisher.close();
        for child in [slow, fast] {
            let (received, end): (u64, String) = child.hear();
            assert_eq!(received, sent + 2000, "{end}");
            child.finish();
        }
    }
}

/// What was kept for one that is killed is given back, with its descriptors and mappings.
#[test]
fn a_killed_laggard_gives_its_memory_back() {
    let scene = Scene::new();
    let mut publisher = spilling(4).unbound().unwrap();
    let slow = join(&scene, &publisher, Policy::Block, LONGEST);
    let fast = join(&scene, &publisher, Policy::Block, LONGEST);
    publisher.send(&message(0, LONGEST)).unwrap();
    assert!(publisher.drain(PATIENCE).unwrap());
    let before = Census::beside(&publisher);
    stop(&slow);
    let mut next = fill_up(&mut publisher, 1, LONGEST);
    assert_eq!(publisher.ring_bytes(), 5 * RING);
    let full = Census::beside(&publisher);
    assert_eq!(full.descriptors() - before.descriptors(), 4);
    assert_eq!(full.regions() - before.regions(), 4 * 2);
    slow.kill_and_reap();
    wait_until("it is gone", || publisher.subscribers() == 1);
    publisher.send(&message(next, LONGEST)).unwrap();
    next += 1;
    assert!(publisher.drain(PATIENCE).unwrap());
    publisher.trim(Duration::ZERO);
    // Back in the first ring: the fast one has still to go on there.
    publisher.send(&message(next, LONGEST)).unwrap();
    assert!(publisher.drain(PATIENCE).unwrap());
    publisher.trim(Duration::ZERO);
    assert_eq!(publisher.ring_bytes(), RING);
    publisher.close();
    let (received, _): (u64, String) = fast.hear();
    assert_eq!(received, next + 1);
    fast.finish();
}

/// A subscriber that is slower by turns, over thousands of rings that are left and used again.
#[test]
fn rings_are_left_and_used_again() {
    let scene = Scene::new();
    let mut dice = Dice::new();
    let mut publisher = spilling(2).unbound().unwrap();
    let children = Policy::SLEEPY.map(|policy| join(&scene, &publisher, policy, LONGEST));
    let mut next = 0;
    let mut stopped = false;
    while publisher.stats().spills < 3000 {
        if dice.below(50) == 0 && !stopped {
            stop(&children[0]);
            stopped = true;
        }
        if publisher.try_send(&message(next, LONGEST)).is_ok() {
            next += 1;
        } else {
            children[0].signal(Signal::CONT);
            stopped = false;
            publisher.send(&message(next, LONGEST)).unwrap();
            next += 1;
        }
        assert!(publisher.ring_bytes() <= 4 * RING);
    }
    children[0].signal(Signal::CONT);
    publisher.close();
    for child in children {
        let (received, end): (u64, String) = child.hear();
        assert_eq!(received, next, "{end}");
        child.finish();
    }
}

/// Long messages are in the pool, whose records are in whichever ring.
#[test]
fn long_messages_in_a_spill() {
    let scene = Scene::new();
    let longest = 9000;
    let mut publisher = spilling(60).pool_bytes(8 << 20).unbound().unwrap();
    let slow = join(&scene, &publisher, Policy::Block, longest);
    stop(&slow);
    let fast = join(&scene, &publisher, Policy::Block, longest);
    for number in 0..120 {
        let sent = publisher.send_timeout(&message(number, longest), PATIENCE);
        sent.expect("room");
    }
    assert!(publisher.stats().spills > 2, "{:?}", publisher.stats());
    slow.signal(Signal::CONT);
    for number in 120..1000 {
        publisher.send(&message(number, longest)).unwrap();
    }
    publisher.close();
    for child in [slow, fast] {
        let (received, end): (u64, String) = child.hear();
        assert_eq!(received, 1000, "{end}");
        child.finish();
    }
}

/// Who joins while rings are left for others begins with the next message, wherever that is.
#[test]
fn joining_while_rings_are_left() {
    let _scene = Scene::new();
    let mut publisher = spilling(3).unbound().unwrap();
    let mut next = 0_u64;
    let mut waiting: Vec<(Subscriber, u64)> = Vec::new();
    let mut dice = Dice::new();
    for _ in 0..400 {
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        waiting.push((Subscriber::builder().over(theirs).unwrap(), next));
        for _ in 0..dice.below(120) {
            let sent = loop {
                match publisher.try_send(&next.to_ne_bytes()) {
                    Ok(()) => break true,
                    Err(_) if waiting.is_empty() => break false,
                    // The oldest has kept all that it may.
                    Err(_) => {
                        let (mut subscriber, first) = waiting.remove(0);
                        for number in first..next {
                            let message = subscriber.recv().unwrap();
                            assert_eq!(message.to_vec(), number.to_ne_bytes());
                        }
                        drop(subscriber);
                        let subscribers = waiting.len();
                        wait_until("it is gone", || publisher.subscribers() == subscribers);
                    }
                }
            };
            next += u64::from(sent);
        }
        if waiting.len() > 5 {
            let at = dice.below(waiting.len() as u64) as usize;
            let (mut subscriber, first) = waiting.swap_remove(at);
            for number in first..next {
                assert_eq!(subscriber.recv().unwrap().to_vec(), number.to_ne_bytes());
            }
        }
    }
    assert!(publisher.stats().spills > 10, "{:?}", publisher.stats());
}

/// A publisher that is closed, or dropped, leaves all that it has kept.
#[test]
fn what_is_kept_is_received_after_the_end() {
    let _scene = Scene::new();
    let mut publisher = spilling(8).unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let mut subscriber = Subscriber::builder().over(theirs).unwrap();
    let sent = fill_up(&mut publisher, 0, LONGEST);
    assert_eq!(publisher.stats().spills, 8);
    publisher.close();
    for number in 0..sent {
        assert_eq!(
            subscriber.recv().unwrap().to_vec(),
            message(number, LONGEST)
        );
    }
    let Err(RecvError::Disconnected { reason }) = subscriber.recv() else {
        panic!("there is no end");
    };
    assert_eq!(reason, memlane::Reason::Closed);
}

#[test]
fn spills_that_cannot_be() {
    let _scene = Scene::new();
    for bytes in [1, RING - 1, 63 * RING, usize::MAX] {
        let error = unbound(RING).spill_bytes(bytes).unbound().unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Option { .. }), "{text}");
        assert!(text.contains(&bytes.to_string()), "{text}");
    }
}

/// What the end of one that was dropped is.
fn assert_too_slow(end: &str) {
    assert!(end.contains("it was too slow"), "{end}");
}

/// One asks to be dropped, and is stopped: nobody waits for it. Once it goes on, it receives what it had begun to read, and is
/// told. What it kept is given back.
#[test]
fn a_subscriber_that_asks_is_dropped_at_once() {
    for rings in [0, 2] {
        let scene = Scene::new();
        let mut publisher = spilling(rings).unbound().unwrap();
        let slow = join_as(&scene, &publisher, Overflow::Disconnect, LONGEST);
        stop(&slow);
        let fast = join(&scene, &publisher, Policy::Block, LONGEST);
        for number in 0..1000 {
            let sent = publisher.send_timeout(&message(number, LONGEST), PATIENCE);
            sent.expect("room beside one that is dropped");
        }
        assert_eq!(publisher.stats().disconnected, 1);
        assert_eq!(publisher.subscribers(), 1);
        slow.signal(Signal::CONT);
        let (received, end): (u64, String) = slow.hear();
        assert!(received > 10, "{received}");
        assert_too_slow(&end);
        slow.finish();
        assert!(publisher.drain(PATIENCE).unwrap());
        publisher.close();
        let (received, _): (u64, String) = fast.hear();
        assert_eq!(received, 1000);
        fast.finish();
    }
}

/// One that is waited for, and then not any longer: by calls that wait, that do not, in a loop, and in a task.
#[test]
fn a_subscriber_is_waited_for_so_long() {
    const AFTER: Duration = Duration::from_millis(30);
    for form in 0..4 {
        let _scene = Scene::new();
        let when_full = WhenFull::Disconnect { after: AFTER };
        let publisher = unbound(RING).when_full(when_full).unbound().unwrap();
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        let mut slow = Subscriber::builder().over(theirs).unwrap();
        let since = Instant::now();
        let send = |number: u64| message(number, LONGEST);
        let publisher = match form {
            0 => {
                let mut publisher = publisher;
                (0..200).for_each(|number| publisher.send(&send(number)).unwrap());
                publisher
            }
            1 => {
                let mut publisher = publisher;
                for number in 0..200 {
                    while let Err(error) = publisher.try_send(&send(number)) {
                        assert!(matches!(error, TrySendError::Full));
                        std::thread::yield_now();
                    }
                }
                publisher
            }
            2 => {
                let mut publisher = Watched::new(publisher).unwrap();
                for number in 0..200 {
                    while let Err(error) = publisher.try_send(&send(number)) {
                        assert!(matches!(error, TrySendError::Full));
                        poll(&mut [PollFd::new(&publisher, PollFlags::IN)], None).unwrap();
                        publisher.drive().unwrap();
                    }
                }
                publisher.into_inner()
            }
            _ => Control::run(async {
                let mut publisher = Async::new(publisher).unwrap();
                for number in 0..200 {
                    publisher.send(&send(number)).await.unwrap();
                }
                publisher.into_inner()
            }),
        };
        assert!(since.elapsed() >= AFTER);
        assert_eq!(publisher.stats().disconnected, 1);
        assert_eq!(publisher.subscribers(), 0);
        let mut received = 0;
        let end = loop {
            match slow.recv() {
                Ok(text) => assert_eq!(text.to_vec(), message(received, LONGEST)),
                Err(error) => break error.to_string(),
            }
            received += 1;
        };
        assert!(received > 10);
        assert_too_slow(&end);
        // It has said so, so that what it kept is free, and it finds nothing in that.
        wait_until("its place is free", || {
            publisher.drive().unwrap();
            publisher.stats().left == 0
        });
        for _ in 0..3 {
            assert_too_slow(&slow.recv().unwrap_err().to_string());
            assert_too_slow(&slow.try_recv().unwrap_err().to_string());
        }
    }
}

/// The callback knows who is in the way, and decides for each.
#[test]
fn a_callback_decides() {
    let scene = Scene::new();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let mut publisher = {
        let asked = asked.clone();
        spilling(4)
            .on_lagging(move |lagging| {
                asked.lock().unwrap().push(lagging.clone());
                match lagging.subscriber {
                    0 => Decision::Spill,
                    1 => Decision::Disconnect,
                    _ => Decision::Wait,
                }
            })
            .unbound()
            .unwrap()
    };
    let children = [(); 2].map(|()| join(&scene, &publisher, Policy::Block, LONGEST));
    children.iter().for_each(stop);
    let mut sent = 0;
    while publisher.stats().spills < 4 {
        publisher.send(&message(sent, LONGEST)).unwrap();
        sent += 1;
    }
    assert_eq!(publisher.stats().disconnected, 1);
    // The first one has all that it may have, and the others wait for it.
    sent = fill_up(&mut publisher, sent, LONGEST);
    let before = asked.lock().unwrap().len();
    // It is asked every now and then, and not all the time.
    for calls in 1.. {
        let timeout = Duration::from_millis(200);
        let timed_out = publisher.send_timeout(&message(sent, LONGEST), timeout);
        assert!(matches!(timed_out, Err(SendTimeoutError::TimedOut)));
        let asked = asked.lock().unwrap();
        let again = asked.len() - before;
        assert!(again <= 30 * calls, "asked {again} times in {calls} calls");
        let last = asked.last().unwrap();
        assert_eq!((last.subscriber, last.spilled), (0, 4 * RING));
        assert!(last.behind > 4 * RING as u64);
        if again >= 2 && last.waited > Duration::from_millis(100) {
            break;
        }
    }
    {
        let asked = asked.lock().unwrap();
        assert!(
            asked
                .iter()
                .all(|lagging| lagging.overflow == Overflow::Block)
        );
    }
    children.iter().for_each(|child| child.signal(Signal::CONT));
    publisher.send(&message(sent, LONGEST)).unwrap();
    publisher.close();
    let [first, second] = children;
    let (received, _): (u64, String) = first.hear();
    assert_eq!(received, sent + 1);
    let (received, end): (u64, String) = second.hear();
    assert!(received < sent, "{received}");
    assert_too_slow(&end);
    first.finish();
    second.finish();
}

/// One that has all of the pool is dropped: what it has stays as it is until it is gone, and others get more.
#[test]
fn a_laggard_that_has_the_pool() {
    let scene = Scene::new();
    let longest = 200_000;
    let builder = unbound(1 << 16).pool_bytes(4 << 20).max_message(longest);
    let mut publisher = builder
        .on_lagging(|lagging| match lagging.subscriber {
            0 => Decision::Disconnect,
            _ => Decision::Wait,
        })
        .unbound()
        .unwrap();
    let slow = join(&scene, &publisher, Policy::Block, longest);
    stop(&slow);
    let fast = join(&scene, &publisher, Policy::Block, longest);
    let mut sent = 0;
    while publisher.stats().disconnected == 0 {
        let text = message(sent, longest);
        publisher.send_timeout(&text, PATIENCE).expect("room");
        sent += 1;
    }
    for number in sent..sent + 200 {
        let text = message(number, longest);
        publisher.send_timeout(&text, PATIENCE).expect("room");
    }
    assert_eq!(publisher.stats().disconnected, 1);
    assert!(publisher.pool_bytes() <= 8 << 20);
    slow.signal(Signal::CONT);
    let (received, end): (u64, String) = slow.hear();
    assert!(received > 5 && received <= sent, "{received} of {sent}");
    assert_too_slow(&end);
    slow.finish();
    for number in sent + 200..sent + 400 {
        publisher.send(&message(number, longest)).unwrap();
    }
    assert!(publisher.drain(PATIENCE).unwrap());
    publisher.trim(Duration::ZERO);
    assert!(
        publisher.pool_bytes() <= 4 << 20,
        "{}",
        publisher.pool_bytes()
    );
    publisher.close();
    let (received, _): (u64, String) = fast.hear();
    assert_eq!(received, sent + 400);
    fast.finish();
}

/// A subscriber in this process.
fn subscribe(publisher: &Publisher, overflow: Overflow) -> Subscriber {
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let builder = Subscriber::builder().overflow(overflow);
    builder.over(theirs).unwrap()
}

/// Two have all of the pool. One is dropped at once, the other after a while, with no message between the two.
#[test]
fn those_who_have_the_pool_are_dropped_one_after_the_other() {
    let _scene = Scene::new();
    let after = Duration::from_millis(30);
    let builder = unbound(1 << 16).pool_bytes(1 << 20).max_message(200_000);
    let when_full = WhenFull::Disconnect { after };
    let mut publisher = builder.when_full(when_full).unbound().unwrap();
    let subscribers = [Overflow::Disconnect, Overflow::Block];
    let subscribers = subscribers.map(|overflow| subscribe(&publisher, overflow));
    let text = vec![7; 200_000];
    let mut sent = 0;
    while publisher.stats().disconnected < 2 {
        let room = publisher.send_timeout(&text, PATIENCE);
        room.expect("room beside those who are dropped");
        sent += 1;
    }
    for mut subscriber in subscribers {
        let mut received = 0;
        let end = loop {
            match subscriber.recv() {
                Ok(message) => assert_eq!(message.to_vec(), text),
                Err(error) => break error.to_string(),
            }
            received += 1;
        };
        assert!((1..sent).contains(&received), "{received} of {sent}");
        assert_too_slow(&end);
    }
}

/// Who has released all records, and keeps what they name, is in the way of the next long message, and nobody else is.
#[test]
fn one_that_keeps_the_pool_is_dropped() {
    let _scene = Scene::new();
    let when_full = WhenFull::Disconnect {
        after: Duration::ZERO,
    };
    let builder = unbound(1 << 16).pool_bytes(1 << 20).max_message(200_000);
    let mut publisher = builder.when_full(when_full).unbound().unwrap();
    let mut keeper = subscribe(&publisher, Overflow::Block);
    let mut other = subscribe(&publisher, Overflow::Block);
    let text = vec![7; 200_000];
    let mut held = Vec::new();
    for _ in 0..8 {
        publisher.send_timeout(&text, PATIENCE).expect("room");
        if publisher.stats().disconnected == 0 {
            held.push(keeper.recv().unwrap().hold().expect("a slot"));
            assert!(matches!(keeper.try_recv(), Err(TryRecvError::Empty)));
            // Its cursor is known, too.
            publisher.drain(Duration::ZERO).unwrap();
        }
        assert_eq!(other.recv().unwrap().to_vec(), text);
    }
    assert_eq!(publisher.stats().disconnected, 1);
    assert!(held.iter().all(|held| held.to_vec() == text));
    assert_too_slow(&keeper.recv().unwrap_err().to_string());
    assert!(matches!(other.try_recv(), Err(TryRecvError::Empty)));
}

/// Where one that is waited for has the pool, one that asks to be dropped, and reads, is not in the way.
#[test]
fn one_that_keeps_up_is_not_in_the_way_of_the_pool() {
    let _scene = Scene::new();
    let builder = unbound(1 << 16).pool_bytes(1 << 20).max_message(200_000);
    let mut publisher = builder.unbound().unwrap();
    let _slow = subscribe(&publisher, Overflow::Block);
    let mut fast = subscribe(&publisher, Overflow::Disconnect);
    let text = vec![7; 200_000];
    let mut sent = 0;
    while publisher.try_send(&text).is_ok() {
        sent += 1;
        if sent > 1 {
            // One behind, always.
            assert_eq!(fast.recv().unwrap().to_vec(), text);
        }
    }
    assert!(sent > 2, "{sent}");
    assert_eq!(publisher.stats().disconnected, 0);
    assert_eq!(fast.recv().unwrap().to_vec(), text);
}

/// "Never" is a time, too.
#[test]
fn a_subscriber_is_waited_for_without_end() {
    let _scene = Scene::new();
    let when_full = WhenFull::Disconnect {
        after: Duration::MAX,
    };
    let mut publisher = unbound(RING).when_full(when_full).unbound().unwrap();
    let _slow = subscribe(&publisher, Overflow::Block);
    let sent = fill_up(&mut publisher, 0, LONGEST);
    let timed_out = publisher.send_timeout(&message(sent, LONGEST), Duration::from_millis(20));
    assert!(matches!(timed_out, Err(SendTimeoutError::TimedOut)));
    assert_eq!(publisher.stats().disconnected, 0);
}

/// Subscribers that stop and go on at random are dropped at every point of their way from ring to ring: whatever they receive is
/// what was sent, in order, and then they are told.
#[test]
fn dropped_at_any_moment() {
    let scene = Scene::new();
    let mut dice = Dice::new();
    let mut dropped = 0;
    for _ in 0..60 {
        let rings = dice.below(3) as usize;
        let mut publisher = spilling(rings).max_subscribers(8).unbound().unwrap();
        let fast = join(&scene, &publisher, Policy::Block, LONGEST);
        let slow = join_as(&scene, &publisher, Overflow::Disconnect, LONGEST);
        let total = 2000;
        for number in 0..total {
            if dice.below(300) == 0 {
                // It may have ended by now.
                slow.signal(Signal::STOP);
            } else if dice.below(100) == 0 {
                slow.signal(Signal::CONT);
            }
            publisher.send(&message(number, LONGEST)).unwrap();
        }
        let killed = dice.below(4) == 0;
        if killed {
            slow.kill();
        }
        slow.signal(Signal::CONT);
        publisher.close();
        let (received, _): (u64, String) = fast.hear();
        assert_eq!(received, total);
        fast.finish();
        match slow.hear_if_alive::<(u64, String)>() {
            Some((received, end)) if received < total => {
                assert_too_slow(&end);
                dropped += 1;
                if !killed {
                    slow.finish();
                }
            }
            Some(_) if !killed => slow.finish(),
            _ => {}
        }
    }
    assert!(dropped > 0, "nobody was dropped, of 60");
}

/// What is being looked at in place when its reader is dropped stays what it is.
#[test]
fn a_message_outlives_its_subscription() {
    let _scene = Scene::new();
    let mut publisher = spilling(0).unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let builder = Subscriber::builder().overflow(Overflow::Disconnect);
    // SAFETY: the publisher is this crate's, in this process.
    #[allow(unsafe_code)]
    let mut slow = unsafe { builder.trust_publisher() }.over(theirs).unwrap();
    publisher.send(&message(0, LONGEST)).unwrap();
    let long = vec![7; 100_000];
    publisher.send(&long).unwrap();
    let first = slow.recv().unwrap();
    for number in 0..1000 {
        publisher.send(&message(number, LONGEST)).unwrap();
    }
    assert_eq!(publisher.stats().disconnected, 1);
    assert_eq!(&*first, message(0, LONGEST));
    drop(first);
    let held = slow.recv().unwrap().hold().expect("a slot");
    let end = loop {
        match slow.recv() {
            Ok(_) => {}
            Err(error) => break error.to_string(),
        }
    };
    assert_too_slow(&end);
    for _ in 0..20 {
        publisher.send(&vec![9; 100_000]).unwrap();
    }
    assert!(*held == *long, "torn");
    drop(slow);
    publisher.send(&vec![9; 100_000]).unwrap();
    assert!(*held == *long, "torn after the end");
}

/// Those who were dropped have their places until they are gone.
#[test]
fn places_of_the_dropped() {
    let _scene = Scene::new();
    let mut publisher = spilling(0).max_subscribers(2).unbound().unwrap();
    let subscribe = || {
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        Subscriber::builder()
            .overflow(Overflow::Disconnect)
            .over(theirs)
    };
    let slow = subscribe().unwrap();
    let other = subscribe().unwrap();
    drop(other);
    wait_until("it is gone", || publisher.subscribers() == 1);
    for number in 0..200 {
        publisher.send(&message(number, LONGEST)).unwrap();
    }
    assert_eq!(
        (publisher.subscribers(), publisher.stats().disconnected),
        (0, 1)
    );
    let subscribe = |publisher: &Publisher| {
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        Subscriber::builder().over(theirs)
    };
    let second = subscribe(&publisher).unwrap();
    let refused = subscribe(&publisher).unwrap_err().to_string();
    assert!(refused.contains("takes no more"), "{refused}");
    drop(slow);
    let mut third = None;
    wait_until("a place is free", || {
        third = subscribe(&publisher).ok();
        third.is_some()
    });
    drop(second);
}

/// The publisher's side of a lane, by hand: a ring of one page, to which one subscriber comes.
struct Hostile {
    link: Link,
    ring: Shared,
    subscriber: Subscriber,
}

/// The header of a ring's end.
fn switch(ring: u64) -> u64 {
    ring | 3 << 32
}

fn hostile(rings: &[(u32, Fd)], at: u32) -> (Link, Shared, Result<Subscriber, Error>) {
    hostile_with(rings, at, 0)
}

fn hostile_with(
    rings: &[(u32, Fd)],
    at: u32,
    skip: u64,
) -> (Link, Shared, Result<Subscriber, Error>) {
    let (ours, theirs) = Link::pair().unwrap();
    let (ring, descriptor) = Shared::create("test-ring", page_size(), page_size()).unwrap();
    std::thread::scope(|scope| {
        let subscriber = scope.spawn(|| Subscriber::builder().timeout(PATIENCE).over(theirs));
        ours.send(&Opening { version: VERSION }).unwrap();
        assert_eq!(ours.recv::<Opening>().unwrap().version, VERSION);
        let _greeting: Greeting = ours.recv().unwrap();
        for (id, memory) in rings {
            let memory = memory_of(memory);
            ours.send(&(2_u32, Notice::Ring { id: *id, memory }))
                .unwrap();
        }
        ours.send(&Answer::Welcome(Welcome {
            at,
            skip,
            ..Welcome::new(descriptor.into(), page_size() as u64)
        }))
        .unwrap();
        (ours, ring, subscriber.join().unwrap())
    })
}

fn memory_of(memory: &Fd) -> Fd {
    use std::os::fd::AsFd;
    memory.as_fd().try_clone_to_owned().unwrap().into()
}

fn another_ring(len: usize) -> (Shared, Fd) {
    let (ring, descriptor) = Shared::create("test-ring", page_size(), len).unwrap();
    (ring, descriptor.into())
}

/// Stores a header in a ring, as its writer.
fn store(ring: &mut Shared, position: u64, header: u64) {
    use memlane::region::WordsMut;
    ring.store_release(position, header);
}

impl Hostile {
    fn new(rings: &[(u32, Fd)]) -> Hostile {
        let (link, ring, subscriber) = hostile(rings, 0);
        Hostile {
            link,
            ring,
            subscriber: subscriber.unwrap(),
        }
    }
}

/// A ring ends, and the next one is none: not announced, not a ring, of another size, over the quota.
#[test]
fn rings_that_are_none() {
    let _scene = Scene::new();
    let page = page_size();
    let null = || {
        Fd::from(std::os::fd::OwnedFd::from(
            std::fs::File::open("/dev/null").unwrap(),
        ))
    };
    let cases: [(&str, Option<Fd>); 3] = [
        ("expected a ring that was announced, got 7", None),
        ("ring 7", Some(null())),
        ("ring 7", Some(another_ring(2 * page).1)),
    ];
    for (expected, memory) in cases {
        let known = memory.is_some();
        let mut lane = Hostile::new(&[]);
        if let Some(memory) = memory {
            lane.link.send(&Notice::Ring { id: 7, memory }).unwrap();
        }
        store(&mut lane.ring, 0, switch(7));
        for _ in 0..2 {
            let error = lane.subscriber.recv().unwrap_err();
            let text = error.to_string();
            let refused = matches!(error, RecvError::Chunk(_));
            // Longer than announced is as good.
            if known && !refused {
                panic!("{text}");
            }
            assert!(refused && text.contains(expected), "{text}");
            assert!(lane.subscriber.try_recv().is_err());
        }
    }
}

/// Rings that lead to one another, and rings without end, each with something in it.
#[test]
fn rings_in_circles() {
    let _scene = Scene::new();
    let (mut second, memory) = another_ring(page_size());
    let mut lane = Hostile::new(&[(1, memory)]);
    store(&mut lane.ring, 0, switch(1));
    store(&mut second, 0, switch(0));
    for _ in 0..3 {
        let error = lane.subscriber.recv().unwrap_err();
        assert!(matches!(error, RecvError::Corrupt(_)), "{error}");
    }

    let (mut second, memory) = another_ring(page_size());
    let mut lane = Hostile::new(&[(1, memory)]);
    for position in (0..64).step_by(16) {
        // Both the same record; at each position but the first, the way to the other ring is beside it.
        let (here, there) = match position / 16 % 2 {
            0 => (&mut lane.ring, &mut second),
            _ => (&mut second, &mut lane.ring),
        };
        store(here, position, memlane_tests::wire::header(16, 8));
        store(
            here,
            position + 16,
            switch(if position / 16 % 2 == 0 { 1 } else { 0 }),
        );
        store(there, position + 16, 0);
    }
    for _ in 0..4 {
        assert_eq!(lane.subscriber.recv().unwrap().len(), 8);
    }
    assert!(lane.subscriber.try_recv().is_err());
}

/// Who ends a link for what comes over it has left, to an honest publisher: what comes next in memory is not for it any more.
#[test]
fn nothing_is_read_behind_a_broken_link() {
    let _scene = Scene::new();
    for elsewhere in [true, false] {
        let (mut second, memory) = another_ring(page_size());
        let mut lane = Hostile::new(&[(1, memory)]);
        store(&mut lane.ring, 0, memlane_tests::wire::header(16, 8));
        assert_eq!(lane.subscriber.recv().unwrap().len(), 8);
        if elsewhere {
            store(&mut lane.ring, 16, switch(1));
        }
        rustix::net::send(&lane.link, b"no packet", rustix::net::SendFlags::empty()).unwrap();
        if !elsewhere {
            // Finds nothing in the ring, and takes what came.
            let timeout = Duration::from_millis(1);
            assert!(lane.subscriber.recv_timeout(timeout).is_err());
        }
        let next = match elsewhere {
            true => &mut second,
            false => &mut lane.ring,
        };
        store(next, 16, memlane_tests::wire::header(16, 8));
        for _ in 0..3 {
            let error = lane.subscriber.recv().unwrap_err();
            let RecvError::Disconnected { reason } = error else {
                panic!("{error}");
            };
            assert!(matches!(reason, Reason::Broken { .. }), "{reason}");
        }
    }
}

/// Notices of more rings than there can be, of the same one again, of the first, and a welcome to none.
#[test]
fn notices_of_rings_that_make_no_sense() {
    let _scene = Scene::new();
    let page = page_size();
    let many: Vec<_> = (0..64).map(|id| (id, another_ring(page).1)).collect();
    let (_link, _ring, subscriber) = hostile(&many, 63);
    assert!(subscriber.is_ok(), "{:?}", subscriber.err());
    drop(subscriber);
    let (_link, _ring, subscriber) = hostile(&[], 5);
    let Err(Error::Welcome { why }) = subscriber else {
        panic!("{subscriber:?}");
    };
    assert_eq!(why, "expected a ring that was announced, got 5");
    let twice = [(1, another_ring(page).1), (1, another_ring(page).1)];
    let mut lane = Hostile::new(&twice);
    store(&mut lane.ring, 0, switch(2));
    let text = lane.subscriber.recv().unwrap_err().to_string();
    assert!(
        text.contains("expected a new ring, got 1 once more"),
        "{text}"
    );
}

/// A subscriber that never reads its link is dropped once it leaves too many notices unread, and nobody else is.
#[test]
fn a_subscriber_that_takes_no_notices() {
    let _scene = Scene::new();
    let mut publisher = spilling(1).unbound().unwrap();
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let (_page, descriptor) = Shared::create("test-page", page_size(), 0).unwrap();
    theirs.send(&Opening { version: VERSION }).unwrap();
    theirs
        .send(&Greeting::new(descriptor.into(), Offer::default()))
        .unwrap();
    publisher.wait_for_subscribers(1).unwrap();
    // All that is kept for it is one ring, and so is what it is told of.
    let sent = fill_up(&mut publisher, 0, LONGEST);
    assert!(sent > 0);
    assert_eq!(publisher.stats().spills, 1);
    assert_eq!(publisher.subscribers(), 1);
    assert_eq!(theirs.recv::<Opening>().unwrap().version, VERSION);
    let Answer::Welcome(welcome) = theirs.recv().unwrap() else {
        panic!("refused");
    };
    assert_eq!((welcome.start, welcome.at), (0, 0));
    let Notice::Ring { id, memory } = theirs.recv().unwrap() else {
        panic!("no ring");
    };
    assert_eq!(id, 1);
    Remote::open(memory.into(), page_size(), RING, 1 << 20).unwrap();
}

/// Who joins at any moment gets the last messages that it asks for, and then every one that follows, however it reads.
#[test]
fn a_history_for_those_who_come_late() {
    const KEPT: u64 = 20;
    let _scene = Scene::new();
    let mut publisher = spilling(1).history(KEPT as usize).unbound().unwrap();
    let links: Vec<(Link, Link)> = (0..300).map(|_| Link::pair().unwrap()).collect();
    let (ours, theirs): (Vec<_>, Vec<_>) = links.into_iter().unzip();
    let (attach, attached) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut dice = Dice::new();
            for (link, ours) in theirs.into_iter().zip(ours) {
                attach.send(ours).unwrap();
                let asked = dice.below(KEPT + 5);
                let overflow = dice.pick(&[Overflow::Block, Overflow::Overwrite]);
                let builder = Subscriber::builder().history(asked).overflow(overflow);
                let mut subscriber = builder.over(link).unwrap();
                let first = subscriber.recv().unwrap();
                let mut expected = first.sequence() + 1;
                assert_eq!(first.to_vec(), message(expected - 1, LONGEST));
                let mut missed = first.missed();
                assert!(missed == 0 || overflow == Overflow::Overwrite);
                drop(first);
                for _ in 0..asked + 10 {
                    let next = subscriber.recv().unwrap();
                    missed += next.missed();
                    assert_eq!(next.sequence(), expected + next.missed());
                    assert_eq!(next.to_vec(), message(next.sequence(), LONGEST));
                    expected = next.sequence() + 1;
                }
                assert_eq!(subscriber.stats().missed, missed);
            }
        });
        let mut number = 0;
        while !reader.is_finished() {
            while let Ok(link) = attached.try_recv() {
                publisher.attach(link).unwrap();
            }
            let text = message(number, LONGEST);
            match publisher.send_timeout(&text, Duration::from_millis(1)) {
                Ok(()) => number += 1,
                Err(SendTimeoutError::TimedOut) => {}
                Err(error) => panic!("{error}"),
            }
        }
        reader.join().unwrap();
    });
}

/// Exactly as many as are asked for, and are there, short or long.
#[test]
fn a_history_is_exact() {
    let _scene = Scene::new();
    for longest in [40, 9000] {
        let mut publisher = unbound(1 << 16).history(10).unbound().unwrap();
        for sent in 0..60 {
            for asked in [0, 1, 7, 10, 11] {
                for overflow in [Overflow::Block, Overflow::Overwrite, Overflow::Disconnect] {
                    let (ours, theirs) = Link::pair().unwrap();
                    publisher.attach(ours).unwrap();
                    let builder = Subscriber::builder().history(asked).overflow(overflow);
                    let mut subscriber = builder.over(theirs).unwrap();
                    for number in sent - asked.min(10).min(sent)..sent {
                        let text = subscriber.try_recv().unwrap();
                        assert_eq!(text.sequence(), number);
                        assert_eq!(text.to_vec(), message(number, longest));
                    }
                    assert!(matches!(subscriber.try_recv(), Err(TryRecvError::Empty)));
                    assert_eq!(subscriber.sequence(), sent);
                    assert_eq!(subscriber.stats().missed, 0);
                    drop(subscriber);
                    wait_until("it is gone", || publisher.subscribers() == 0);
                }
            }
            publisher.send(&message(sent, longest)).unwrap();
        }
    }
}

/// What is sent has the memory first: of messages that are long for the ring, or the pool, fewer are kept.
#[test]
fn a_history_that_does_not_fit() {
    let _scene = Scene::new();
    let mut publisher = unbound(RING)
        .pool_bytes(1 << 20)
        .max_message(250_000)
        .history(1000)
        .unbound()
        .unwrap();
    let got = |publisher: &Publisher, sent: u64, longest: usize| {
        let (ours, theirs) = Link::pair().unwrap();
        publisher.attach(ours).unwrap();
        let mut subscriber = Subscriber::builder()
            .history(u64::MAX)
            .over(theirs)
            .unwrap();
        let mut got = 0;
        while let Ok(text) = subscriber.try_recv() {
            let number = text.sequence();
            assert_eq!(text.to_vec(), message(number, longest));
            got += 1;
        }
        assert_eq!(subscriber.sequence(), sent);
        drop(subscriber);
        wait_until("it is gone", || publisher.subscribers() == 0);
        got
    };
    for number in 0..500 {
        publisher.try_send(&message(number, LONGEST)).unwrap();
    }
    let short = got(&publisher, 500, LONGEST);
    assert!((10..100).contains(&short), "{short}");
    for number in 500..600 {
        publisher.try_send(&message(number, 250_000)).unwrap();
    }
    let long = got(&publisher, 600, 250_000);
    assert!((1..40).contains(&long), "{long}");
    assert!(publisher.pool_bytes() <= 1 << 20);
}

/// A welcome with messages to skip that are not there, or cannot be.
#[test]
fn messages_to_skip_that_are_none() {
    let _scene = Scene::new();
    for skip in [1, 2, 1 << 20, u64::MAX] {
        let (_link, _ring, subscriber) = hostile_with(&[], 0, skip);
        let Err(Error::Welcome { why }) = subscriber else {
            panic!("{subscriber:?}");
        };
        assert!(
            why.contains("messages to skip") && why.contains(&skip.to_string()),
            "{why}"
        );
    }
}

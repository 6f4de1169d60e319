//! Subscribers are killed.

use memlane_region::page_size;
use memlane_tests::{
    AnySubscriber, Census, Child, Dice, Policy, Received, Role, Scene, Steady, Stream, Wish, alive,
    ready_to_sleep, thread_id, unbound, wait_asleep, wait_until,
};
use serde::{Deserialize, Serialize};

use crate::chance::{LONGEST, kills, untrusting};

/// What a subscriber does until it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Conduct {
    /// Receives.
    Reads,
    /// Receives so many messages, then no more, so that the publisher comes to wait for it.
    Stops(u64),
    /// Holds a message for ever.
    Holds,
}

pub(crate) fn subscriber(role: &Role) {
    let (address, wish, conduct): (String, Wish, Conduct) = role.hear();
    let mut subscriber = wish
        .connect(&address.parse().expect("an address"))
        .expect("a publisher");
    role.tell(&thread_id());
    let mut message = Vec::new();
    let mut left = match conduct {
        Conduct::Reads => u64::MAX,
        Conduct::Stops(after) => after,
        Conduct::Holds => 0,
    };
    while left > 0 {
        match subscriber.recv(&mut message) {
            Ok(Received::Message) => left -= 1,
            Ok(Received::Disconnected(_)) => return,
            Err(error) => panic!("{error}"),
        }
        alive();
    }
    let held = match (&mut subscriber, conduct) {
        (AnySubscriber::Untrusting(subscriber), Conduct::Holds) => subscriber.recv().ok(),
        _ => None,
    };
    // Says nothing: it waits for its end.
    role.hear::<()>();
    drop(held);
}

impl Conduct {
    fn start(self, scene: &Scene, wish: Wish) -> Child {
        let address = scene.address("lane").to_string();
        scene.spawn("subscriber", &(address, wish, self))
    }
}

/// Subscribers are killed before, in and after the handshake, awake, asleep, and while the publisher waits for them.
/// It goes on each time, those who are left lose nothing, and it gets back what the dead cost it.
#[test]
fn killed_subscribers() {
    let mut dice = Dice::new();
    for policy in Policy::ALL {
        for trusting in [false, true] {
            let scene = Scene::new();
            let address = scene.address("lane");
            let mut builder = unbound(page_size() << 1).wait(policy.into());
            if trusting {
                builder = builder.trust_subscribers();
            }
            let publisher = ready_to_sleep(builder.bind_to(&address).unwrap(), policy);
            let steady = Steady::start(&scene, &address, untrusting(Policy::Adaptive), LONGEST);
            let base = Census::beside(&publisher);
            let stream = Stream::start(publisher, LONGEST);
            for _ in 0..kills(1200) / 6 {
                let conduct = match dice.below(4) {
                    0 => Conduct::Reads,
                    1 => Conduct::Holds,
                    _ => Conduct::Stops(dice.below(30)),
                };
                let wish = Wish {
                    policy: dice.pick(&Policy::ALL),
                    trusting: dice.below(2) == 0,
                };
                let victim = conduct.start(&scene, wish);
                if dice.below(5) > 0 {
                    victim.hear::<u32>();
                    if conduct != Conduct::Reads {
                        wait_until("the publisher waits", || stream.blocked());
                    }
                    dice.dally(3000);
                } else {
                    // Somewhere between its start and its first message.
                    dice.dally(300_000);
                }
                victim.kill();
                // While it is a zombie.
                steady.advance(100);
                if dice.below(8) == 0 {
                    wait_until("the dead are let go of", || {
                        Census::take().regions() == base.regions()
                    });
                }
                victim.kill_and_reap();
            }
            base.settle();
            let publisher = stream.stop();
            assert_eq!(publisher.subscribers(), 1);
            assert_eq!(publisher.stats().evicted, 0);
            let sent = publisher.stats().messages;
            drop(publisher);
            let (received, end) = steady.finish();
            assert_eq!((received, end), (sent, sent));
        }
    }
}

/// A subscriber that is asleep when it is killed: the publisher learns of it without sending anything.
#[test]
fn subscribers_killed_asleep() {
    for driven in [false, true] {
        let scene = Scene::new();
        let mut builder = unbound(page_size());
        if driven {
            builder = builder.driven();
        }
        let mut publisher = builder.bind_to(&scene.address("lane")).unwrap();
        let base = Census::take();
        for round in 0..20 {
            let wish = Wish {
                policy: Policy::Block,
                trusting: round % 2 == 0,
            };
            let victim = Conduct::Reads.start(&scene, wish);
            publisher.wait_for_subscribers(1).unwrap();
            wait_asleep(victim.id(), victim.hear());
            victim.kill();
            wait_until("the publisher notices", || {
                publisher.drive().unwrap();
                publisher.subscribers() == 0
            });
            victim.kill_and_reap();
            publisher.send(b"to nobody").unwrap();
            base.settle();
        }
    }
}

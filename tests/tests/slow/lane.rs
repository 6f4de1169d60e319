//! Subscribers in other processes and in this one, and what is sent to them.

use memlane::{Link, Overflow, Publisher, PublisherBuilder, RecvError, Subscriber, TrySendError};
use memlane_tests::{Child, PATIENCE, Policy, Role, Scene, check, fill, length, unbound};
use memlane_transport::Fd;
use serde::{Deserialize, Serialize};

pub(crate) const RING: usize = 4096;
pub(crate) const LONGEST: usize = 300;

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
pub(crate) fn subscriber(role: &Role) {
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

pub(crate) fn join(scene: &Scene, publisher: &Publisher, policy: Policy, longest: usize) -> Child {
    join_with(scene, publisher, policy, Overflow::Block, longest)
}

pub(crate) fn join_as(
    scene: &Scene,
    publisher: &Publisher,
    overflow: Overflow,
    longest: usize,
) -> Child {
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

pub(crate) fn message(number: u64, longest: usize) -> Vec<u8> {
    let mut message = vec![0; length(number, longest)];
    fill(number, &mut message);
    message
}

/// Sends until there is no room, from message `first` on; the number of the next.
pub(crate) fn fill_up(publisher: &mut Publisher, first: u64, longest: usize) -> u64 {
    for number in first.. {
        match publisher.try_send(&message(number, longest)) {
            Ok(()) => {}
            Err(TrySendError::Full) => return number,
            Err(error) => panic!("message {number}: {error}"),
        }
    }
    unreachable!("memory is bounded")
}

pub(crate) fn spilling(rings: usize) -> PublisherBuilder {
    unbound(RING).spill_bytes(rings * RING)
}

/// What the end of one that was dropped is.
pub(crate) fn assert_too_slow(end: &str) {
    assert!(end.contains("it was too slow"), "{end}");
}

/// A subscriber in this process.
pub(crate) fn subscribe(publisher: &Publisher, overflow: Overflow) -> Subscriber {
    let (ours, theirs) = Link::pair().unwrap();
    publisher.attach(ours).unwrap();
    let builder = Subscriber::builder().overflow(overflow);
    builder.over(theirs).unwrap()
}

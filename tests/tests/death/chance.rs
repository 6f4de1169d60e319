//! How many are killed, and of which kind they are.

use memlane_tests::{Dice, Policy, Wish};

pub(crate) const LONGEST: usize = 1500;

pub(crate) fn kills(default: u64) -> u64 {
    match std::env::var("MEMLANE_KILLS") {
        Ok(kills) => kills.parse().expect("MEMLANE_KILLS is a number"),
        Err(_) => default,
    }
}

pub(crate) fn untrusting(policy: Policy) -> Wish {
    Wish {
        policy,
        trusting: false,
    }
}

/// Where more threads spin than there are cores, each gets on only when it has its turn: a few rounds will do.
pub(crate) fn mostly_sleepy(dice: &mut Dice) -> Policy {
    use Policy::{Adaptive, Block, Poll};
    dice.pick(&[Adaptive, Block, Adaptive, Block, Adaptive, Block, Poll])
}

//! Doorbells and waiting: wake a sleeping process through a descriptor, and notice a dead one.
//!
//! Whoever may sleep makes a [`Doorbell`] and sends the other side its [`Ringer`]. Before sleeping it says so in
//! an armed flag ([`Armed`]) in its own shared page; the other side looks at that flag after every commit and
//! rings only if it is set. While nobody sleeps, nobody makes a system call.
//!
//! ```text
//! sleeper                          ringer
//!   arm (store flag)                 commit (store data)
//!   fence(SeqCst)                    fence(SeqCst)
//!   look again: data? -> disarm      load flag: armed? -> ring
//!   wait on the doorbell
//! ```
//!
//! Of the two fences one comes first; whichever it is, the other side's load sees the store before it. So
//! either the sleeper sees the data or the ringer sees the flag, and no wake-up is lost.
//!
//! Where many messages come for each sleep, the sleeper can have both fences: with membarrier(2), which is a fence on all
//! processors that run the ringer, if the ringer's process has agreed to that ([`register`]). The flag says who has them,
//! and the sleeper says it anew for each sleep ([`Armed::arm_by`]); `docs/barrier.md` has the argument.
//!
//! [`Waiter`] waits on a doorbell together with the death of the peer, which the kernel reports through the
//! link's hang-up or its pidfd. [`Pacer`] decides how long to spin before that. [`WaitSet`] waits for any number of
//! sources of any kind, timers and other threads, on any number of threads.
//!
//! # Whom to trust with what
//!
//! An eventfd is the cheapest doorbell, but whoever holds it can clear `O_NONBLOCK` (the flag is shared) and
//! fill the counter, and then the *ringer's* write blocks for ever. So a ringer takes an eventfd only from a
//! peer it trusts with its liveness, and from others the sending end of a socket pair, where
//! `send(MSG_DONTWAIT)` never blocks, whatever the peer does. The receiving end never leaves the sleeper.
//! Which one it is, is decided by the side that rings ([`Ringer::open`]), never by what the peer says.
#![forbid(unsafe_code)]

mod armed;
mod barrier;
mod doorbell;
mod pacer;
mod wait_set;
mod waiter;

pub use armed::{Armed, CARRIED, Look, Rung};
pub use barrier::register;
pub use doorbell::{Backing, Doorbell, Ringer, WrongDoorbell};
pub use pacer::{Pacer, WaitPolicy};
pub use wait_set::{
    AddError, Event, Events, Interest, Key, Notifier, Readiness, Ready, Registration, Timer,
    Trigger, WaitSet,
};
pub use waiter::{Waiter, Woken, gone, remaining};

#[doc(hidden)]
pub mod primitive {
    //! The switch between production and loom.
    #[cfg(memlane_loom)]
    pub use loom::sync::{
        RwLock,
        atomic::{AtomicU64, Ordering, fence},
    };
    #[cfg(not(memlane_loom))]
    pub use std::sync::{
        RwLock,
        atomic::{AtomicU64, Ordering, fence},
    };
}

#[doc(hidden)]
pub mod model {
    //! What the loom models take in hand: the parts that synchronise without the kernel.
    pub use crate::wait_set::{Pending, Registry};
}

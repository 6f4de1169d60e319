//! Tests that cross crates and processes.
//!
//! Every test is a [`Scene`]. Its other processes are this same executable, run again: [`Scene::spawn`] starts one
//! in a role, and the test `other_process` of each file plays it ([`play`]). What parent and child have to tell
//! each other goes over a link that is the child's standard input.
//!
//! A scene, and each child that ends in order, must leave as many descriptors and mapped regions as it found, and
//! the test no file and no child. Children die with the thread that started them (PR_SET_PDEATHSIG). Nothing here
//! asserts how long something took; what shows no sign of life for [`PATIENCE`] is aborted.
#![deny(unsafe_code)]

mod attachments;
mod census;
mod circle;
mod cores;
mod departing;
mod ends;
mod message;
mod process;
mod scene;
mod shortage;
mod stream;
mod subscriber;
mod tasks;
mod watchdog;
pub mod wire;

pub use attachments::{attachments, check_attachments, memfd_with, none_is_kept};
pub use census::Census;
pub use circle::{Passed, Route, circle, who_has_it};
pub use cores::{cores, pin};
pub use departing::departing;
pub use ends::End;
pub use message::{check, fill, length, number};
pub use process::{Child, Part, Role, Start, play, play_after};
pub use scene::{Dice, Scene, ready_to_sleep, rounds, unbound};
pub use shortage::Shortage;
pub use stream::{Steady, Stream, steady};
pub use subscriber::{AnySubscriber, Form, Policy, Received, Wish, trusting};
pub use tasks::{
    Control, Smol, Tasks, Tokio, block_on, poll_and_drop, poll_once, threads, yield_now,
};
pub use watchdog::{PATIENCE, alive, thread_id, wait_asleep, wait_stopped, wait_until};

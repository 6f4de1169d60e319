//! Two pinned processes, and what they cost to connect: memlane beside the things it has to be compared
//! with.
//!
//! The binaries `two_process`, `regions`, `waiting` and `requests` are the user interface ([`cli`]); `--help` lists what they measure. A
//! measurement is a [`Task`](task::Task): one benchmark, one contender, one message size. The [`runner`]
//! starts the task's processes by running its own executable again, sleeps while they work, and fails at
//! once when one of them dies. The [`worker`] side pins itself, gets its descriptors over an inherited
//! socket, probes the distance of the two cores, measures, and probes again.
//!
//! Both sides of every comparison run through the same loops ([`measure`]), which know only the two traits
//! in [`path`]. So the timestamps, the payloads and the checks are the same by construction, and only what
//! is behind the traits differs: [`references`], written as a careful textbook would, or memlane.
//!
//! What is about memory rather than messages, is in [`regions`]; what is about sleeping and being woken, in [`waiting`];
//! what is about requests, in [`requests`].
//!
//! The binary `descriptors` compares links with bare sendmsg and recvmsg where descriptors are passed; it has
//! loops of its own, in [`descriptors`].

pub mod cli;
pub mod control;
pub mod descriptors;
pub mod machine;
pub mod measure;
pub mod metrics;
pub mod path;
pub mod plan;
pub mod references;
pub mod regions;
pub mod report;
pub mod requests;
pub mod rounds;
pub mod runner;
pub mod shared;
pub mod task;
pub mod waiting;
pub mod worker;

mod candidate;

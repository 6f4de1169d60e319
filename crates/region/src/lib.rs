//! Sealed shared memory on memfd: one writer per page, verified before it is mapped, and a ring in it.
//!
//! Every shared page has exactly one process that may ever write it, and the kernel enforces that:
//! [`Shared::create`] maps a new memfd writable and only then seals it, so that whoever receives the
//! descriptor can map it read-only and nothing else, and can neither shrink nor punch it under its owner.
//! [`Remote::open`] is the one gate through which a received descriptor becomes memory: seals, size, file
//! system and quota are checked in that order, and no check can be made to hang by the sender.
//!
//! On these two stands the [`ring`]: a lane's record buffer with one writer and many readers, where the
//! commit lives in each record's header. A message costs one cache-line transfer and no system call.
//!
//! | who | writes | reads |
//! |---|---|---|
//! | ring writer | its own region: page 0 (armed flag), then the records | every reader's control page |
//! | ring reader | its own region: one control page (cursor, armed flag) | the writer's region |
//!
//! What this crate does not do: move descriptors (memlane-transport), wait or wake (memlane-signaling).
//!
//! # Memory that another process can write
//!
//! Two rules, kept by the types. First, nobody gets a `&[u8]` over a page of a [`Remote`] without an `unsafe`
//! promise, since Rust forbids a reference to bytes that change; such bytes are copied out
//! ([`Words::read`]). Second, control words are 64-bit atomics, one size per address for ever, and a
//! [`Remote`] offers only `Relaxed` loads of them, the one atomic access that is defined on read-only pages
//! (`std::sync::atomic`, "Atomic accesses to read-only memory"); ordering comes from fences.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod copy;
mod error;
mod gate;
#[allow(unsafe_code)]
mod mapping;
mod primitive;
pub mod ring;
mod shared;
mod words;

pub use error::Error;
pub use gate::{Refused, Remote};
pub use mapping::page_size;
pub use shared::Shared;
pub use words::{HeapWords, Words, WordsMut};

//! Owned shared memory on memfd: regions that are mine, frozen, or live with one writer, and a ring in the last kind.
//!
//! A [`Region`] is memory that nobody else has, and a plain `&mut [u8]`. What others get of it is settled by the
//! kernel, by seals that cannot be taken back:
//!
//! ```text
//!                  freeze                             Frozen::open
//!      Region ───────────────▶ Frozen   ─ ─ ─ ─ ─ ─▶  Frozen        &[u8], immutable for ever
//!        │  │      share                              LiveView::open
//!        │  └────────────────▶ Live     ─ ─ ─ ─ ─ ─▶  LiveView      copied out: its one writer goes on
//!        │      into_moved                            claim
//!        └───────────────────▶ Moved    ─ ─ ─ ─ ─ ─▶  Frozen        that sealing works is the proof
//! ```
//!
//! Memory that another program can write as well, its own or one made for it, is [`Foreign`]: copies in and out.
//!
//! [`Shared`] and [`Remote`] are the two ends of live memory with control words and a [`ring`]: a lane's record buffer
//! with one writer and many readers, where the commit lives in each record's header. A message costs one cache-line
//! transfer and no system call.
//!
//! Every shared page has exactly one process that may ever write it: memory is mapped writable first and sealed second, and
//! its descriptor is sent third, so that whoever receives it can map it read-only and nothing else, and can neither
//! shrink nor punch it under its owner. Received descriptors become memory at one gate: seals, file system, size,
//! quota and allocation are checked in that order, and no check can be made to hang by the sender.
//!
//! | who | writes | reads |
//! |---|---|---|
//! | ring writer | its own region: page 0 (control words), then the records | every reader's control page |
//! | ring reader | its own region: one control page (cursor, armed flag) | the writer's region |
//!
//! A stream of large regions to one peer takes no memory beyond the first few: [`exchange`] hands the same ones over
//! and gets them back.
//!
//! What this crate does not do: move descriptors (memlane-transport), wait or wake (memlane-signaling). With feature
//! `transport`, regions are parts of a link's messages: `link.send(&frozen)`.
//!
//! # Memory that another process can write
//!
//! Two rules, kept by the types. First, nobody gets a `&[u8]` over a page that another process can write without an
//! `unsafe` promise, since Rust forbids a reference to bytes that change; such bytes are copied out
//! ([`LiveView::read`], [`Words::read`]). Second, control words are 64-bit atomics, one size per address for ever,
//! and a [`Remote`] offers only `Relaxed` loads of them, the one atomic access that is defined on read-only pages
//! (`std::sync::atomic`, "Atomic accesses to read-only memory"); ordering comes from fences.
#![deny(unsafe_code)]

#[cfg(test)]
#[macro_use]
mod documented;

mod cgroup;
#[allow(unsafe_code)]
mod copy;
mod error;
pub mod exchange;
mod foreign;
#[allow(unsafe_code)]
mod frozen;
mod gate;
mod implied;
pub mod latest;
mod limits;
#[allow(unsafe_code)]
mod live;
mod live_view;
#[allow(unsafe_code)]
mod mapping;
mod memory;
#[cfg(feature = "transport")]
mod messages;
#[allow(unsafe_code)]
mod moved;
#[cfg(doctest)]
mod must_not_compile;
mod options;
mod page_kind;
#[allow(unsafe_code)]
mod pages;
pub mod pool;
mod primitive;
#[allow(unsafe_code)]
mod range;
#[allow(unsafe_code)]
mod region;
mod remote;
pub mod ring;
mod shared;
mod view;
mod words;

pub use error::{Error, Limit, Refused, Rejected};
pub use foreign::Foreign;
pub use frozen::Frozen;
pub use gate::Quota;
pub use live::{Ended, Live};
pub use live_view::LiveView;
pub use mapping::page_size;
#[cfg(feature = "transport")]
pub use messages::MESSAGE_QUOTA;
pub use moved::Moved;
pub use options::{HugePages, Options};
pub use page_kind::PageKind;
pub use region::Region;
pub use remote::Remote;
pub use shared::Shared;
pub use view::{TypedBytes, ViewError};
pub use words::{HeapWords, Words, WordsMut};

/// What is shared between threads, and what moves.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<Region>();
    shared::<Frozen>();
    shared::<Live>();
    shared::<LiveView>();
    shared::<Moved>();
    shared::<Foreign>();
    shared::<Shared>();
    shared::<Remote>();
};

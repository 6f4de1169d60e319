//! Regions that go to a peer and come back, over and over: what is called a swap chain where the regions are frames.
//!
//! New memory is expensive: a page costs 2.5 us when it is touched first. So a [`Lender`] makes a few [`Buffer`]s and hands
//! them to one peer in turn, whose [`Borrower`] maps each of them once, reads, and gives back. The descriptor travels the first
//! time; from then on a region is named by its number, and handing it over and back takes two small messages, over a link
//! or as bytes over lanes: no memory, no mapping, no page fault, and on top of the messages no system call.
//!
//! | | owner | peer |
//! |---|---|---|
//! | memory | writes it, alone, as the kernel enforces | reads it |
//! | | [`Lender::lend`] -> [`Lent`], sent | [`Arrival`] -> [`Borrower::receive`] -> [`Borrowed`] |
//! | | [`Return`] -> [`Lender::take_back`] -> [`Buffer`] | [`Borrowed::give_back`] -> [`Return`], sent |
//! | | [`Lender::retire`] -> [`Retired`], sent | [`Arrival`] -> [`Borrower::receive`] unmaps |
//!
//! Neither end trusts the other. Every loan of a region has a higher number than the one before, and each end keeps its own
//! books: a message that was replayed, or made up, is a typed [`Error`], and changes nothing.
#![cfg_attr(feature = "transport", doc = "")]
#![cfg_attr(
    feature = "transport",
    doc = "Over a link, with the other process as a thread:"
)]
#![cfg_attr(feature = "transport", doc = "")]
#![cfg_attr(feature = "transport", doc = include_str!("example.md"))]

mod borrower;
mod error;
mod lender;
#[cfg(feature = "transport")]
mod link;
mod message;

pub use borrower::{Borrowed, Borrower};
pub use error::Error;
pub use lender::{Buffer, Lender, Lent, Retired};
#[cfg(feature = "transport")]
pub use link::Unsent;
pub use message::{Arrival, Return};

use crate::Moved;

/// Regions that an exchange can have at a time.
pub const MAX_REGIONS: usize = 4096;

//! A latest-value cell: one writer, any number of readers, and only the newest value counts.
//!
//! The writer never waits, never retries and does not know its readers; a value has any length up to a maximum
//! that is chosen when the cell is made. A reader copies the newest complete value, and knows by its sequence
//! number whether it has changed and how many were missed. What it gets is never torn. A writer that is stopped or
//! killed in the middle of an update leaves the value before it.
//!
//! The values are in four slots of the writer's region, update `s` in slot `s % 4`:
//!
//! ```text
//!   | word: 2s, or 2s + 1 while being written | length | value | padding to a multiple of 128 |
//! ```
//!
//! To write update `s`, the [`LatestWriter`] stores `2s + 1` in the slot's word, the value and its length, then
//! `2s`. A [`LatestReader`] takes the highest even word, copies the value behind it, and looks at the word again:
//! if it is the same, so was the value all the time. Otherwise the writer has come round, which takes three whole
//! updates at least, and the reader begins anew, a bounded number of times.
//!
//! No word of the region says which slot is the newest. Such a word would be one more line that the writer
//! takes from its readers at each update, and a reader would wait for it before it knew which slot to ask
//! for: two cache misses, one after the other. The words of the slots are asked for at once, and with each
//! comes the beginning of its value: one miss, as for a plain load. A reader that finds the same update twice
//! looks, from then on, at the next slot only, since that is where the next update begins.
//!
//! # Waiting for a change
//!
//! A reader that sleeps has a flag in its own control page and a doorbell. It joins the writer's
//! [`Roster`](crate::ring::Roster) as a [`Watcher`]; after each update the writer looks at the flags, behind a
//! full fence, and rings those that sleep. To wait, a reader sets its flag, fences, looks at
//! [`LatestReader::changed`] once more, and sleeps if nothing has. A reader that is stopped, or killed, costs
//! the writer one load for each update until it has left.
//!
//! # Orderings
//!
//! | store | load | what it carries |
//! |---|---|---|
//! | word `2s`, `Release` (writer) | word, `Relaxed`, then `fence(Acquire)` (reader) | length and value of update `s` |
//! | word `2s + 1`, then `fence(Release)` (`SeqCst` for a long value), then the value (writer) | value, then `fence(Acquire)`, then the word (reader) | if any byte is of a later update, the word is not the same any more |
//! | word `2s` / armed flag around `SeqCst` fences | the other of the two | either the writer sees the flag, or the reader sees the update |
//! | word `2s` / epoch of the roster around `SeqCst` fences | the other of the two | either the writer sees the reader, or the start that `join` answers is not before `s` |
//!
//! The bytes of a value race by design: the reader's copy may meet the writer's next round. The reader copies them
//! with [`Words::read`](crate::Words::read), and does not look at what it has copied before the second look at
//! the word; the writer's stores are its own affair, since no other process can write there.
//!
//! # What a hostile writer can do
//!
//! Values that mean nothing, and no more: lengths are checked before anything is copied, what else is loaded is only
//! compared, and a read begins anew 63 times at most. Sequence numbers never go back for a reader. One that was
//! shown a number which no update reaches gets [`ReadError::Unstable`] from then on, or always the same value.

mod layout;
mod reader;
mod writer;

pub use layout::ring_len;
pub use reader::{LatestReader, ReadError, Update};
pub use writer::{LatestWriter, TooLong, Watcher};

//! A lane's record buffer: one writer, many readers, lossless.
//!
//! Records follow one another in the writer's region; positions count bytes since the ring began and never
//! wrap (they are masked where memory is touched). Each begins with a header word, and the commit is in it:
//!
//! ```text
//!         position                                          position + advance
//!            | header: 0, or advance, kind, slack | payload | slack |  header: 0  | ...
//! ```
//!
//! To append, the [`RingWriter`] writes the payload, zeroes the header word after the record, then stores the
//! record's own header with `Release`. A [`RingReader`] polls that one word, which for small messages lies
//! in the same cache line as the payload: a message costs one cache miss. A header that reads 0 is not
//! committed yet, whatever lies behind it; so nothing else ever has to be cleared, and a writer that dies in
//! the middle of a record leaves a ring that ends before it.
//!
//! A record of at most 64 bytes, header included, never straddles cache lines in a stream of its like: the
//! writer aligns its end to the power of two that holds it ([`end`]). (Measured: 48-byte messages in 162 ns one way
//! instead of 204, the limit being 120.)
//!
//! A record of another kind carries no message but says where it is: in a chunk of the writer's
//! [`pool`](crate::pool).
//!
//! # Back-pressure
//!
//! The ring is lossless. A reader keeps its position to itself and exports it, as the bytes released since it
//! joined, to the cursor in its own control page: every eighth of the ring, whenever it finds the ring
//! empty, and when that gives a waiting writer what it waits for. The writer caches the slowest cursor plus
//! the capacity as its limit, and looks again only when a record does not fit below it.
//!
//! A writer that is about to sleep stores what it waits for in a word of its own page
//! ([`RingWriter::want`]): the position that the slowest reader must get to. Each reader that passes it
//! wakes the writer once; readers ahead of it never do.
//!
//! # Joining
//!
//! A reader joins at the next record, while the writer runs at full speed or sits idle, and the writer does
//! nothing for it. [`Roster::join`] publishes the reader, fences, and takes the position that the writer
//! stores at every commit as the start. The writer fences before it looks at the roster: so either it sees
//! the reader there, or the start is not before the position at which it looked, and its limit holds for the
//! new reader too.
//!
//! # Orderings
//!
//! | store | load | what it carries |
//! |---|---|---|
//! | header, `Release` (writer) | header, `Relaxed`, then `fence(Acquire)` (reader) | the payload, and the zero of the next header |
//! | cursor, `Release` (reader) | cursor, `Relaxed`, then `fence(Acquire)` (writer) | the reader is done with the bytes before it |
//! | position, `Release` (writer) | position, `Acquire` (join) | headers before the start need not be looked at |
//! | what the writer wants / cursor around `SeqCst` fences | the other of the two | either the writer sees the cursor, or the reader sees that it must wake it |
//! | epoch / position around `SeqCst` fences | the other of the two | either the writer sees the reader, or the reader's start is late enough |
//!
//! Loads from a peer's memory are `Relaxed` and followed by a fence because that memory is mapped read-only,
//! where nothing stronger is defined.

mod layout;
mod reader;
mod roster;
mod writer;

pub use layout::{Corrupt, end, max_payload};
pub use reader::{CursorPage, Record, RingReader};
pub use roster::{Joined, LEFT, Reader, Roster};
pub use writer::{NoRoom, RingWriter};

/// The word of a writer that waits until a reader has released the record at `position`; see [`RingWriter::want`].
pub(crate) fn want_past(position: u64) -> u64 {
    (position + layout::HEADER) | layout::WAITING
}

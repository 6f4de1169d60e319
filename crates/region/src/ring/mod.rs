//! A lane's record buffer: one writer, many readers, each lossless or lossy.
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
//! A message may have *attachments*, descriptors, which the ring cannot carry: its header says so, and has a tag that changes
//! from one attempt to the next. Writer and readers pass them on as they like, with the record's position and that tag, before the
//! record is committed. What was passed on for a record that did not come about is known by that.
//!
//! # Back-pressure
//!
//! A [`RingReader`] loses nothing. It keeps its position to itself and exports it, as the bytes released since it
//! joined, to the cursor in its own control page: every eighth of the ring, whenever it finds the ring
//! empty, and when that gives a waiting writer what it waits for. The writer caches the slowest cursor plus
//! the capacity as its limit, and looks again only when a record does not fit below it.
//!
//! A writer that is about to sleep stores what it waits for in a word of its own page
//! ([`RingWriter::want`]): the position that the slowest reader must get to. Each reader that passes it
//! wakes the writer once; readers ahead of it never do.
//!
//! # Readers that hold nobody up
//!
//! A [`LossyReader`] has no cursor: the writer overwrites what it has not read, and it is told how many messages that
//! were. It takes nothing for a message that is none, by three rules:
//!
//! - The writer exports a *bound*, beyond which no byte was ever written, before it writes one there. It moves it an
//!   eighth of the ring at a time, by way of the same limit that keeps it off what lossless readers have not released: so
//!   a message costs what it does without lossy readers.
//! - A reader copies a record out, and looks at the bound then. If that is more than a lap ahead, the copy is nothing.
//! - It does so, too, before it believes that there is nothing, that it may sleep, or that the ring is corrupt: a header
//!   of a later lap, or a payload where a header was, may say anything.
//!
//! With each bound comes an *anchor*, where the writer was at the time and how many records it had written: there an
//! overtaken reader goes on, and knows how many it has missed. Two anchors take turns, so that a writer which is stopped
//! or killed at any moment leaves one that is whole. These words ([`LAP_WORDS`]) are kept up from the first record on,
//! whoever reads: so a reader may join while the writer is idle, and one that was removed without knowing it sees no torn
//! message either.
//!
//! A chunk that such a reader finds named may be used again at any time: it is
//! [announced](crate::pool::Chunk::announce) first.
//!
//! # Rings that are left to those who are slow
//!
//! A writer whose ring is full of what some have not read may go on in another one ([`RingWriter::switch`]), and leave the
//! first as it is: it stores a header there that is no record's, and names the other. Positions go on, so that nothing
//! else changes for anybody: cursors, chunks, lossy readers. A reader that comes to that header goes on in the other ring
//! ([`RingReader::switched`]). A ring is used again, or given up, when every cursor has passed its end; a chain of them is
//! shared by all who are slow, and the writer is held up by those alone who read its own ([`RingWriter::laggards`]).
//!
//! A reader that is not to be waited for any longer is [dismissed](RingWriter::dismiss): the ring that it reads stays as it is
//! until it is gone, and it ends there. So it is told the truth by whatever it still reads, in place or copied.
//!
//! # Writers that go on where another stops
//!
//! The next ring may be another writer's, in another process ([`RingWriter::hand_over`], [`RingWriter::begin_at`]): positions,
//! sequences and the numbers of rings go on, and so do cursors. What the header of its first ring has, the words of the writer
//! before do not say any more: whoever comes to that ring looks there from then on. To the successor its readers are those
//! that [were there](Roster::adopt), wherever in the rings of its predecessor they are: those nobody writes again.
//!
//! # History
//!
//! A writer may keep its last records for those who join ([`RingWriter::keep`]): their positions, on its heap. Where the oldest
//! one is that it keeps bounds it like a cursor, and moves on when it looks for room. Who joins takes it as the start, under
//! the roster's lock, which the writer takes to move it.
//!
//! # Joining
//!
//! A reader joins at the next record, while the writer runs at full speed or sits idle, and the writer does
//! nothing for it. [`Roster::join`] publishes the reader, fences, and takes the position that the writer
//! stores at every commit as the start. The writer fences before it looks at the roster: so either it sees
//! the reader there, or the start is not before the position at which it looked, and its limit holds for the
//! new reader too. With the start comes the number of records before it, which is stored beside the position.
//!
//! A reader may take another's place ([`Roster::succeed`]), in another process: it begins at the other's cursor, and for
//! a writer that does not know of it yet, that cursor holds for both. What the writer has seen of the one is the least that
//! the other may begin at.
//!
//! # Orderings
//!
//! | store | load | what it carries |
//! |---|---|---|
//! | header, `Release` (writer) | header, `Relaxed`, then `fence(Acquire)` (reader) | the payload, and the zero of the next header |
//! | cursor, `Release` (reader) | cursor, `Relaxed`, then `fence(Acquire)` (writer) | the reader is done with the bytes before it |
//! | position, `Release` (writer) | position, `Acquire` (join) | headers before the start need not be looked at |
//! | sequence, `Release` (writer) | sequence, `Acquire` (join) | the position before it: a start whose sequence it is not is seen to have changed |
//! | bound, then `fence(Release)`, then bytes (writer) | bytes, then `fence(Acquire)`, then bound (lossy reader) | whoever has any of the bytes has the bound |
//! | bound, `Release` (writer) | bound, then `fence(Acquire)`, then the anchors' number (lossy reader) | there is an anchor that belongs to it |
//! | the anchors' number, `Release` (writer) | the number, then `fence(Acquire)` (lossy reader) | the anchor, and the 0 where it says that the next record begins |
//! | the number, then the fence above, then the other anchor (writer) | an anchor, then `fence(Acquire)`, then the number (lossy reader) | an anchor that is being stored is seen not to be the newest but one |
//! | what the writer wants / cursor around `SeqCst` fences | the other of the two | either the writer sees the cursor, or the reader sees that it must wake it |
//! | epoch / position around `SeqCst` fences | the other of the two | either the writer sees the reader, or the reader's start is late enough |
//! | switch, `Release` (writer) | switch, `Relaxed`, then `fence(Acquire)` (reader) | the 0 in the other ring, and that this ring is whole |
//! | word of a dismissal / cursor around `SeqCst` fences | the other of the two | either the writer sees the cursor, or the reader sees that it was dismissed |
//!
//! Loads from a peer's memory are `Relaxed` and followed by a fence because that memory is mapped read-only,
//! where nothing stronger is defined.

mod history;
mod laps;
mod layout;
mod lossy;
mod reader;
mod roster;
mod spill;
mod successor;
mod writer;

pub use laps::LAP_WORDS;
pub(crate) use laps::STREAMED;
pub use layout::{Corrupt, TAGS, end, max_payload};
pub use lossy::{LossyError, LossyReader, Polled, Taken};
pub use reader::{Carried, CursorPage, Look, Record, RingReader};
pub use roster::{From, Joined, LEFT, NoSuccession, Reader, Roster};
pub use spill::{Dismissal, End, Laggard};
pub use writer::{NoRoom, RingWriter};

/// The word of a writer that waits until a reader has released the record at `position`; see [`RingWriter::want`].
pub(crate) fn want_past(position: u64) -> u64 {
    (position + layout::HEADER) | layout::WAITING
}

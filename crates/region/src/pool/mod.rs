//! Memory for messages too large to copy: chunks that are written in place, sent by name, and read in place.
//!
//! A [`Pool`] belongs to the one writer of a lane. [`Pool::loan`] gives a [`Loan`], an exclusively owned `[u8]`
//! in shared memory; [`Pool::send`] puts a record into the lane's [`ring`](crate::ring) that names the chunk
//! ([`ChunkRef`], three words); a reader finds the chunk in its [`PoolReader`]. What a message costs does not
//! depend on its length.
//!
//! # Memory
//!
//! A pool consists of segments, each a live region of its own ([`Shared`](crate::Shared)) with chunks of one
//! size class: sealed, allocated and touched when it is made, mapped writable by its owner and read-only by
//! everyone else. Sizes are whole pages in quarter steps of powers of two (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, ...),
//! so that at most a fifth of a chunk of five pages or more is beyond the loan.
//!
//! ```text
//! segment:  | one word per chunk: the sequence it was sent with, or 0 | ... page | chunk 0 | chunk 1 | ...
//! ```
//!
//! Segments are made when a class has no free chunk, up to a limit in bytes, and given back when they have been
//! quiet for long enough ([`Pool::trim`]), or when another class needs the room. [`Pool::take_changes`] says
//! which ones, for whoever moves descriptors to readers. Their ids count up and name one segment for ever.
//!
//! # Who has a chunk
//!
//! Which chunks are free, loaned or sent is known to the owner alone, on its heap: no peer can free a chunk,
//! hand one out twice, or lose one (nothing in shared memory is a list, a count or an index that the owner
//! follows). Every send has a sequence number of its own, and a sent chunk is free again when no reader has it.
//! A reader says what it has in its own control page, in words that only it writes: its cursor, and
//! [`HOLD_SLOTS`] *hold slots*, each 0 or the sequence of a chunk (and how many of them it ever used, so that the
//! owner need not look at the others). To release twice is to store 0 twice; to
//! release what another one holds is impossible; and when a reader is gone from the roster, nobody looks at its
//! page any more. A reader that lies can keep chunks, as many as there are, which is what the limit bounds and
//! [`Pool::held_by`] tells, and can lose what it holds itself.
//!
//! - **Lossless readers hold implicitly.** A chunk is held from the moment it is sent by every reader whose
//!   cursor has not passed its record. What is to outlive the record gets a slot ([`Chunk::hold`]), *before* the
//!   cursor that passes the record is exported. The owner loads cursors first and slots second: it sees the old
//!   cursor, or the slot.
//! - **Lossy readers announce.** A reader whose cursor means nothing to the owner ([`NOTHING`]) stores the
//!   sequence in a slot, fences, and reads only if the chunk's word in the segment still is that sequence
//!   ([`Chunk::announce`]). The owner stores 0 there, fences, and only then looks at the slots: it sees the
//!   announcement, or the reader sees the 0. (This is the protocol of hazard pointers.)
//!
//! # When the owner looks
//!
//! A loan takes the chunk that was freed last, which the caches still have. The owner looks at readers when there
//! is none, and when twice as many chunks have been sent as were out after the look before, at least
//! 16: a look takes time in proportion to what it frees, and a pool of thousands of chunks goes on using
//! few of them while readers keep up, so that the others become quiet. To lossy readers, who would lose what they
//! have not read yet, the newest 8 messages of a size are left while the pool can grow, and half of them after that, or
//! fewer, if slots keep the others.
//! A look allocates nothing, nor does anything else here but making and giving up segments, and running into the
//! limit.
//!
//! # Orderings
//!
//! | store | load | what it carries |
//! |---|---|---|
//! | slots ever used, `Release`, before the slot | the same as for the slot, before it | the slot is looked at |
//! | record header, `Release` (owner) | header, then `fence(Acquire)` (reader) | the chunk's bytes and its word |
//! | hold slot, then cursor, both `Release` (lossless reader) | cursor, `fence(SeqCst)`, hold slot (owner) | the owner sees the old cursor, or the slot |
//! | hold slot / chunk's word around `SeqCst` fences | the other of the two | the owner sees the announcement, or the lossy reader sees the 0 |
//! | hold slot, `Release`, whatever the value (reader) | hold slot, then `fence(Acquire)` (owner) | the reader is done with the chunk that was there before |
//! | roster's epoch / position around `SeqCst` fences | the other of the two | the owner sees the reader, or the reader's start is after what is looked at |
//! | bit of a loan, `Release` (whoever drops it unsent) | bit, `Acquire` (owner) | its writes are over |
//!
//! # Leftovers
//!
//! A loan contains leftovers of older messages of this pool (never of another process: new segments are zero).
//! Readers map whole segments, so what lies behind a message in its chunk can be read too. With
//! [`PoolOptions::zero`] a chunk is zeroed before it is loaned again, and what a loan was shortened by when
//! it is sent, so that every message is followed by zeroes. This does not keep readers of one pool apart in time:
//! one that joins can read what has been sent and not been loaned again since. Readers who must not see what
//! others were sent need pools of their own.
//!
//! ```
//! use std::sync::Arc;
//! use memlane_region::{
//!     HeapWords,
//!     pool::{Holder, Pool, PoolOptions, PoolReader},
//!     ring::{Reader, Record, RingReader, RingWriter},
//! };
//! # use memlane_region::ring::CursorPage;
//! # use std::sync::atomic::{AtomicU64, Ordering};
//! # struct Page { cursor: AtomicU64, slots: [AtomicU64; 64] }
//! # struct Export(Arc<Page>);
//! # impl<M> CursorPage<M> for Export {
//! #     fn export(&mut self, cursor: u64) { self.0.cursor.store(cursor, Ordering::Release) }
//! #     fn writer_sleeps(&self) -> bool { false }
//! #     fn wanted(&self, _: &M) -> u64 { 0 }
//! #     fn wake(&mut self) {}
//! # }
//! # impl Reader for Page {
//! #     fn cursor(&self) -> u64 { self.cursor.load(Ordering::Relaxed) }
//! #     fn corrupt(&self, _: u64) {}
//! # }
//! // `Page` is a reader's control page, as both sides have it.
//! impl Holder for Page {
//!     fn released(&self, start: u64) -> u64 {
//!         start.wrapping_add(self.cursor())
//!     }
//!     fn slots(&self) -> u64 {
//!         64
//!     }
//!     fn slot(&self, slot: usize) -> u64 {
//!         self.slots[slot].load(Ordering::Relaxed)
//!     }
//! }
//!
//! let memory = HeapWords::new(4096);
//! let mut ring: RingWriter<_, Page> = RingWriter::new(memory.map());
//! let mut pool = Pool::new(PoolOptions::new(64 << 20))?;
//! # let page = Page { cursor: AtomicU64::new(0), slots: [const { AtomicU64::new(0) }; 64] };
//! let page = Arc::new(page);
//! let start = ring.roster().join(page.clone())?.start;
//! let mut reader = RingReader::new(memory, Export(page), start);
//!
//! let mut loan = pool.loan(1 << 20, &mut ring)?;
//! loan[..5].copy_from_slice(b"frame");
//! loan.truncate(5);
//! pool.send(loan, &mut ring).unwrap();
//!
//! // The segment's descriptor travels to the reader, once.
//! let mut chunks = PoolReader::new(64 << 20);
//! for segment in pool.segments() {
//!     chunks.insert(segment.id, segment.descriptor.try_clone()?, segment.geometry)?;
//! }
//! let Some(Record::Chunk(found)) = reader.poll_record()? else { panic!("no chunk") };
//! let mut copy = [0; 5];
//! chunks.resolve(found)?.read(0, &mut copy);
//! assert_eq!(&copy, b"frame");
//! reader.release();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod chunk_ref;
mod class;
mod holds;
mod ledger;
mod loan;
#[allow(unsafe_code)]
mod memory;
mod options;
mod owner;
#[allow(unsafe_code)]
mod reader;
mod returns;
mod segments;

pub use chunk_ref::ChunkRef;
pub use holds::{Hold, HoldError, HoldPage, Holds};
pub use ledger::{HOLD_SLOTS, Holder, Holders, Ledger, NOTHING};
pub use loan::Loan;
pub use memory::Geometry;
pub use options::{PoolError, PoolOptions, Unsent};
pub use owner::{Held, Pool};
pub use reader::{Chunk, HeldChunk, KeptChunk, PoolReader, Unresolved};
pub use segments::{Change, MAX_SEGMENTS, Segment};

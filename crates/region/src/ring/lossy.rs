use super::{
    laps::{Anchor, LapWords},
    layout::{self, Corrupt, HEADER, KIND_INLINE},
    reader::{Carried, Record, special},
};
use crate::{
    primitive::{Ordering, fence},
    words::Words,
};

/// How often a poll is overtaken before it says so. Once is a reader that was slow; more is one that is slower than its
/// copy is long, or a writer that lies.
const ATTEMPTS: usize = 4;

/// What [`LossyReader::poll`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Polled {
    /// Nothing: all that was committed is read, or known to be missed.
    Empty,
    /// A message, which is the reader's now.
    Message(Taken),
    /// A message of so many bytes, more than the buffer has. It is still there, until it is overwritten.
    Longer(usize),
    /// Messages, but each one was overwritten while it was read. They are counted as missed; the next poll goes on
    /// where the writer is.
    Overtaken,
    /// The stream goes on in another ring, that of this number: the reader takes that one's memory, and
    /// [follows](LossyReader::follow). If it has none, for the writer has given that ring up, it polls again, and finds where the
    /// writer is now.
    Switch(u32),
}

/// A message that [`LossyReader::poll`] took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// How many messages the writer has sent before this one.
    pub sequence: u64,
    /// How many messages were missed between the one before and this one.
    pub missed: u64,
    /// Where it is: at the beginning of the buffer, or in a chunk.
    pub record: Record,
    /// Where its record began: bytes since the ring began.
    pub position: u64,
}

impl Taken {
    /// The same, of which what was missed before message `sequence` does not count.
    pub fn since(self, sequence: u64) -> Taken {
        let first = self.sequence.saturating_sub(self.missed).max(sequence);
        Taken {
            missed: self.sequence.saturating_sub(first),
            ..self
        }
    }
}

/// A word that no honest writer stores for lossy readers. The lane is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LossyError {
    /// A header, in a place that was not overwritten.
    #[error(transparent)]
    Header(#[from] Corrupt),
    /// The place to go on from is none.
    #[error(
        "corrupt anchor: overtaken at position {position}, before message {sequence}, expected a place behind, found \
         position {found_position}, before message {found_sequence}"
    )]
    Anchor {
        /// Where the reader was, in bytes since the ring began.
        position: u64,
        /// How many messages had been sent before that.
        sequence: u64,
        /// The position found.
        found_position: u64,
        /// The sequence found.
        found_sequence: u64,
    },
}

/// A reader that holds nobody up: the writer overwrites what it has not read yet, and it is told how many messages
/// that were.
///
/// It copies each message out and looks afterwards whether it was left alone, so there is no way to see one in
/// place. It exports nothing, and needs no page for its position: to the writer it is a reader whose
/// [`cursor`](super::Reader::cursor) is always [`LEFT`](super::LEFT).
///
/// With records of up to *r* bytes it can be 7/8 of the capacity less *r* behind, and misses nothing. Once it is
/// overtaken it goes on close to the writer: an eighth of the capacity and a record behind it at most.
///
/// ```
/// use std::sync::Arc;
///
/// use memlane_region::{
///     HeapWords,
///     ring::{LEFT, LossyReader, Polled, Reader, Record, RingWriter},
/// };
///
/// struct Lossy;
/// impl Reader for Lossy {
///     fn cursor(&self) -> u64 { LEFT }
///     fn corrupt(&self, _: u64) {}
/// }
///
/// let memory = HeapWords::with_header(64, 4096);
/// let mut writer = RingWriter::with_laps(memory.map(), 0);
/// let joined = writer.roster().join(Arc::new(Lossy))?;
/// let mut reader = LossyReader::new(memory, 0, joined.start, joined.sequence);
///
/// for _ in 0..100 {
///     writer.append(&[7; 120]).unwrap();
/// }
/// let mut buffer = [0; 120];
/// let (mut taken, mut missed) = (0, 0);
/// while let Polled::Message(message) = reader.poll(&mut buffer)? {
///     assert_eq!((message.record, buffer), (Record::Inline(120), [7; 120]));
///     missed += message.missed;
///     taken += 1;
/// }
/// assert!(taken > 0 && missed > 0);
/// assert_eq!(taken + missed, 100);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LossyReader<M> {
    /// Of the first ring, whose header has the words.
    memory: M,
    /// Of the ring that it reads, if that is another one; and the number of that.
    other: Option<M>,
    ring: u32,
    /// The ring in which the position is, if that is another one.
    next: Option<u32>,
    /// Where it came to this ring, and how many it has left there since the last record.
    arrived: Option<u64>,
    empty: u32,
    laps: LapWords,
    position: u64,
    sequence: u64,
    /// The longest record there can be.
    max: u64,
    /// Missed since it joined.
    missed: u64,
    /// Those of them that no message has told of.
    untold: u64,
    corrupt: Option<LossyError>,
}

/// What was read at a position, to be believed only if nothing was written there meanwhile.
enum Found {
    Nothing,
    Record { advance: u64, record: Record },
    Longer(usize),
    Switch(u32),
    Nonsense(u64),
}

impl<M: Words> LossyReader<M> {
    /// A reader that begins at `start`, before message `sequence`, as [`Roster::join`](super::Roster::join) answered
    /// on the writer's side. `laps` is where the words are in the header of `memory`, as said to
    /// [`RingWriter::with_laps`](super::RingWriter::with_laps).
    ///
    /// # Panics
    ///
    /// If the capacity is below 128 bytes, or (in whichever call first looks) if the header has no such words.
    pub fn new(memory: M, laps: usize, start: u64, sequence: u64) -> LossyReader<M> {
        let capacity = memory.capacity();
        assert!(
            capacity >= layout::MIN_CAPACITY,
            "a ring of {capacity} bytes holds nothing"
        );
        LossyReader {
            max: layout::max_advance(capacity),
            memory,
            other: None,
            ring: 0,
            next: None,
            arrived: None,
            empty: 0,
            laps: LapWords { at: laps },
            position: start & !7,
            sequence,
            missed: 0,
            untold: 0,
            corrupt: None,
        }
    }

    /// Takes the next message: copies it to the beginning of `buffer`, or says in which chunk it is. One as long as
    /// [`max_payload`](super::max_payload) is has room for all.
    ///
    /// What it returns was committed as it is, and left alone until it was copied. A chunk may be used again at any
    /// time: it must be [announced](crate::pool::Chunk::announce), and if it is gone by then, the message was missed
    /// after all ([`forgo`](LossyReader::forgo)).
    ///
    /// It returns after a bounded number of copies, whatever the writer does. Who reads until the ring is empty sets a
    /// limit: a hostile writer can have messages for ever, and a fast one, too.
    ///
    /// # Errors
    ///
    /// [`LossyError`], from then on always.
    #[inline(always)]
    pub fn poll(&mut self, buffer: &mut [u8]) -> Result<Polled, LossyError> {
        if let Some(corrupt) = self.corrupt {
            return Err(corrupt);
        }
        if self.next.is_some() {
            self.look_ahead()?;
        }
        for _ in 0..ATTEMPTS {
            if let Some(ring) = self.next {
                return Ok(Polled::Switch(ring));
            }
            let found = self.look(buffer);
            // Pairs with the writer's fence between the bound and the bytes before it: whatever of a later lap was read
            // above, be it a header of 0, the bound tells.
            fence(Ordering::Acquire);
            if self.laps.overtaken(&self.memory, self.position) {
                if self.catch_up()? {
                    continue;
                }
                break;
            }
            return match found {
                Found::Record { advance, record } => {
                    let taken = Taken {
                        sequence: self.sequence,
                        missed: std::mem::take(&mut self.untold),
                        record,
                        position: self.position,
                    };
                    self.position = self.position.wrapping_add(advance);
                    self.sequence = self.sequence.wrapping_add(1);
                    Ok(Polled::Message(taken))
                }
                Found::Nothing => Ok(Polled::Empty),
                Found::Longer(len) => Ok(Polled::Longer(len)),
                // A writer comes to a ring to write in it, as a rule, or hands over at once to one that is made later.
                Found::Switch(ring)
                    if self.arrived != Some(self.position)
                        || ring > self.ring
                        || self.empty < layout::MAX_EMPTY =>
                {
                    self.next = Some(ring);
                    Ok(Polled::Switch(ring))
                }
                Found::Switch(ring) => Err(self.nonsense(layout::switch(ring))),
                Found::Nonsense(header) => Err(self.nonsense(header)),
            };
        }
        Ok(Polled::Overtaken)
    }

    /// Goes on in the ring that [`poll`](LossyReader::poll) has named: its memory, or none if it is the first one, number 0. Does
    /// nothing if it has named none.
    ///
    /// # Panics
    ///
    /// If the capacity is another.
    pub fn follow(&mut self, memory: Option<M>) {
        let Some(ring) = self.next.take() else {
            return;
        };
        if let Some(memory) = &memory {
            assert_eq!(
                memory.capacity(),
                self.memory.capacity(),
                "a ring of another size"
            );
        }
        self.other = memory;
        self.empty = match self.arrived == Some(self.position) {
            true => self.empty + u32::from(ring <= self.ring),
            false => 0,
        };
        self.ring = ring;
        self.arrived = Some(self.position);
    }

    /// The same, where [`poll`](LossyReader::poll) has named the first ring of another writer, which goes on where the one before has
    /// stopped: in the header of this memory are the words from here on.
    pub fn follow_home(&mut self, memory: M) {
        self.follow(None);
        self.memory = memory;
    }

    /// The number of the first ring, which is not 0.
    pub fn numbered(mut self, ring: u32) -> LossyReader<M> {
        self.ring = ring;
        self
    }

    /// Begins in this ring, not the first one.
    pub fn starting_in(mut self, ring: u32, memory: M) -> LossyReader<M> {
        self.next = Some(ring);
        self.follow(Some(memory));
        self.arrived = None;
        self
    }

    /// The memory of the ring that it reads.
    #[inline(always)]
    fn records(&self) -> &M {
        self.other.as_ref().unwrap_or(&self.memory)
    }

    /// What is at the position now.
    #[inline(always)]
    fn look(&self, buffer: &mut [u8]) -> Found {
        let header = self.records().load(self.position);
        if header == 0 {
            return Found::Nothing;
        }
        // Pairs with the Release store of the header: the payload is there.
        fence(Ordering::Acquire);
        match layout::parse(header, KIND_INLINE, self.max) {
            Some((_, len)) if len > buffer.len() => Found::Longer(len),
            Some((advance, len)) => {
                let payload = &mut buffer[..len];
                self.records().read(self.position, HEADER as usize, payload);
                let record = Record::Inline(len);
                Found::Record { advance, record }
            }
            None => self.special(header, buffer),
        }
    }

    /// The record with this header: in a chunk, or one of those with attachments.
    #[inline(never)]
    fn special(&self, header: u64, buffer: &mut [u8]) -> Found {
        let word = |at: u64| {
            self.records()
                .load(self.position.wrapping_add(HEADER + 8 * at))
        };
        let Some((advance, record)) = special(header, self.max, word) else {
            return match layout::parse_switch(header) {
                Some(ring) => Found::Switch(ring),
                None => Found::Nonsense(header),
            };
        };
        if let Record::Attached {
            message: Carried::Inline(len),
            ..
        } = record
        {
            let Some(payload) = buffer.get_mut(..len) else {
                return Found::Longer(len);
            };
            self.records().read(self.position, HEADER as usize, payload);
        }
        Found::Record { advance, record }
    }

    /// Goes on where the writer was a short while ago. False if it does not stand still for long enough to say where.
    #[cold]
    fn catch_up(&mut self) -> Result<bool, LossyError> {
        let Some(anchor) = self.laps.anchor(&self.memory) else {
            return Ok(false);
        };
        self.go_on_from(anchor)?;
        Ok(true)
    }

    /// The ring that it was to go on in may have been given up since: if the writer has said where it is behind that, there.
    #[cold]
    fn look_ahead(&mut self) -> Result<(), LossyError> {
        match self.laps.anchor(&self.memory) {
            Some(anchor) if anchor.position > self.position => self.go_on_from(anchor),
            _ => Ok(()),
        }
    }

    fn go_on_from(&mut self, anchor: Anchor) -> Result<(), LossyError> {
        let Anchor {
            position,
            sequence,
            ring,
        } = anchor;
        // Backward is nowhere: the bound that tells of being overtaken is at most a lap from the anchor.
        let bytes = position.saturating_sub(self.position);
        let messages = sequence.saturating_sub(self.sequence);
        if position % 8 != 0
            || bytes == 0
            || messages > bytes / HEADER
            || messages < bytes.div_ceil(self.max)
        {
            let corrupt = LossyError::Anchor {
                position: self.position,
                sequence: self.sequence,
                found_position: position,
                found_sequence: sequence,
            };
            return Err(*self.corrupt.insert(corrupt));
        }
        self.position = position;
        self.sequence = sequence;
        self.next = (ring != self.ring).then_some(ring);
        self.miss(messages);
        Ok(())
    }

    fn miss(&mut self, messages: u64) {
        self.missed = self.missed.saturating_add(messages);
        self.untold = self.untold.saturating_add(messages);
    }

    #[cold]
    fn nonsense(&mut self, header: u64) -> LossyError {
        let corrupt = LossyError::Header(Corrupt {
            position: self.position,
            header,
            max: self.max,
        });
        *self.corrupt.insert(corrupt)
    }

    /// Counts a message that was taken as missed, with those that were missed before it: the next one says so. For one in
    /// a chunk that was gone before it could be held.
    pub fn forgo(&mut self, taken: Taken) {
        self.untold = self.untold.saturating_add(taken.missed);
        self.miss(1);
    }

    /// Whether there is nothing to poll for: no record, and none that was missed.
    ///
    /// A reader that sleeps arms its flag, fences (`SeqCst`), and looks here once more before it does. The header alone
    /// does not tell: where the writer has overtaken, it may be 0 for ever.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        if self.next.is_some() || self.records().load(self.position) != 0 {
            return false;
        }
        // As in `poll`: a 0 of a later lap shows in the bound.
        fence(Ordering::Acquire);
        !self.laps.overtaken(&self.memory, self.position)
    }

    /// Where the next record begins: bytes since the ring began.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// How many messages the writer has sent before the next one: those taken, those missed, and those before this reader
    /// joined.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How many messages were missed since this reader joined, those included that no [`Taken`] has told of yet.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// The writer's memory, of the first ring.
    pub fn memory(&self) -> &M {
        &self.memory
    }
}

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use rustix::fd::OwnedFd;

use super::{
    Change, ChunkRef, Geometry, Holder, Holders, Ledger, Loan, PoolError, PoolOptions, Segment,
    Unsent, class,
    segments::{Place, Table},
};
use crate::{
    Error, page_size,
    ring::{Reader, RingWriter},
    words::WordsMut,
};

/// The first segment of a class is about so long, or a 16th of the pool's limit; each one after it as long as those
/// before together, up to a 64th of the limit if that is more. Chunks that are longer are made by twos, very large ones one by one.
const SEGMENT: usize = 1 << 20;

/// So many messages of a size are left to lossy readers, unless the limit is in the way.
const BACKLOG: usize = 8;

/// The owner's end of a pool: makes segments, loans chunks, and knows who has which.
///
/// See the [module](super) for how it works. It is used by the thread that writes the ring; `readers` is that
/// ring's [`RingWriter`] everywhere below.
#[derive(Debug)]
pub struct Pool {
    options: PoolOptions,
    page: usize,
    segments: Table,
    classes: Vec<Class>,
    /// The last one used.
    sequence: u64,
    /// Bytes that readers have who were dismissed, and that do not count.
    written_off: usize,
}

#[derive(Debug)]
struct Class {
    /// Bytes of a chunk.
    size: usize,
    /// The last one is loaned next.
    free: Vec<Place>,
    sent: Ledger<Place>,
    /// All there are.
    chunks: usize,
}

/// What somebody has of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// How many chunks.
    pub chunks: usize,
    /// Their size, in bytes.
    pub bytes: usize,
}

impl Class {
    /// Those loaned, and those whose loans were dropped since the last look.
    fn loaned(&self) -> usize {
        self.chunks - self.free.len() - self.sent.len()
    }
}

impl Pool {
    /// A pool without segments.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] if the longest loan is over the limit.
    pub fn new(options: PoolOptions) -> Result<Pool, Error> {
        let page = page_size();
        let too_long = || Error::Length {
            what: "the longest loan",
            len: options.max_loan as u64,
            expected: "a length for which one chunk, in whole pages, is within the pool's limit",
        };
        if options.max_loan > options.limit {
            return Err(too_long());
        }
        let last = class::class(options.max_loan.div_ceil(page));
        if class::pages(last) * page > options.limit {
            return Err(too_long());
        }
        let class = |class| Class {
            size: class::pages(class) * page,
            free: Vec::new(),
            sent: Ledger::new(),
            chunks: 0,
        };
        Ok(Pool {
            options,
            page,
            segments: Table::new(),
            classes: (0..=last).map(class).collect(),
            sequence: 0,
            written_off: 0,
        })
    }

    /// Loans `len` bytes. They contain leftovers, unless the pool zeroes ([`PoolOptions::zero`]).
    ///
    /// Looks at the readers if that is due, and makes a segment only if there is no free chunk then: see
    /// [`has_changes`](Pool::has_changes). If the limit is in the way, segments that are free, of other sizes, are
    /// given up.
    ///
    /// # Errors
    ///
    /// [`PoolError`]. After [`PoolError::Exhausted`] the same call may succeed as soon as a reader has released
    /// something ([`want`](Pool::want)).
    #[inline]
    pub fn loan<H: Holders>(&mut self, len: usize, readers: &mut H) -> Result<Loan, PoolError> {
        if !self.is_ready(len) {
            self.make_ready(len, readers)?;
        }
        Ok(self.loan_ready(len))
    }

    /// Whether a free chunk for `len` bytes is known, and no look at readers is due.
    #[inline(always)]
    pub fn is_ready(&self, len: usize) -> bool {
        let class = self.classes.get(class::class(len.div_ceil(self.page)));
        class.is_some_and(|class| !class.free.is_empty() && !class.sent.is_due())
            && len <= self.options.max_loan
    }

    /// The first half of [`loan`](Pool::loan), all of it that can fail: finds a free chunk for `len` bytes, or makes one.
    ///
    /// # Errors
    ///
    /// As [`loan`](Pool::loan).
    pub fn make_ready<H: Holders>(&mut self, len: usize, readers: &mut H) -> Result<(), PoolError> {
        if len > self.options.max_loan {
            let max = self.options.max_loan;
            return Err(PoolError::TooLarge { len, max });
        }
        let class = class::class(len.div_ceil(self.page));
        let one = &mut self.classes[class];
        if one.free.is_empty() || one.sent.is_due() {
            self.look(class, BACKLOG, readers);
        }
        if self.classes[class].free.is_empty() {
            self.grow(class, readers)?;
        }
        Ok(())
    }

    /// The second half of [`loan`](Pool::loan). It is inlined, so that a loan is made where it is wanted: to pass it on
    /// through memory just written takes longer than all else.
    ///
    /// # Panics
    ///
    /// If no chunk is [ready](Pool::make_ready).
    #[inline(always)]
    pub fn loan_ready(&mut self, len: usize) -> Loan {
        assert!(len <= self.options.max_loan, "{len} bytes are no loan");
        let class = &mut self.classes[class::class(len.div_ceil(self.page))];
        let place = class.free.pop().expect("a free chunk");
        if self.options.zero {
            self.segments.zero(place);
        }
        Loan::new(self.segments.lend(place, len), place.segment, len)
    }

    /// Sends a loan: appends a record that names its chunk to `ring`, whose readers have it from now on.
    ///
    /// # Errors
    ///
    /// [`Unsent`], with the loan, if the ring has no room for the record.
    ///
    /// # Panics
    ///
    /// If the loan is another pool's.
    #[inline]
    pub fn send<M: WordsMut, R: Reader>(
        &mut self,
        loan: Loan,
        ring: &mut RingWriter<M, R>,
    ) -> Result<ChunkRef, Unsent> {
        self.send_with(loan, None, ring)
    }

    /// [`send`](Pool::send), with attachments that have gone to the readers by now, if any: they find those by the record's
    /// [position](RingWriter::position) and this tag, which is below [`TAGS`](crate::ring::TAGS).
    ///
    /// # Errors
    ///
    /// As [`send`](Pool::send).
    ///
    /// # Panics
    ///
    /// As [`send`](Pool::send).
    #[inline]
    pub fn send_with<M: WordsMut, R: Reader>(
        &mut self,
        mut loan: Loan,
        tag: Option<u16>,
        ring: &mut RingWriter<M, R>,
    ) -> Result<ChunkRef, Unsent> {
        if let Err(why) = ring.reserve(ChunkRef::LEN) {
            return Err(Unsent { why, loan });
        }
        let segment = self.segments.of(&loan);
        let (id, class) = (segment.id, segment.class);
        if self.options.zero {
            loan.zero_tail();
        }
        let place = Place {
            segment: loan.place,
            chunk: loan.chunk().chunk(),
        };
        let len = loan.len();
        self.sequence += 1;
        self.segments
            .send(place, loan.into_chunk(), self.sequence, len);
        let sent = &mut self.classes[class].sent;
        sent.send(place, self.sequence, ring.position());
        let named = ChunkRef {
            segment: id,
            chunk: place.chunk,
            sequence: self.sequence,
            len: len as u64,
        };
        let appended = ring.append_chunk_with(named, tag);
        debug_assert!(appended.is_ok(), "it was reserved");
        Ok(named)
    }

    /// Looks for a free chunk for the next loan of `len` bytes, if there is none known. To be called after a send,
    /// once the readers have been woken: what it costs (a cache miss for each reader) does not delay the next
    /// message then. Makes no segment.
    #[inline]
    pub fn prepare<H: Holders>(&mut self, len: usize, readers: &mut H) {
        let class = class::class(len.div_ceil(self.page));
        if self
            .classes
            .get(class)
            .is_some_and(|one| one.free.is_empty())
        {
            self.look(class, BACKLOG, readers);
        }
    }

    /// Gives up every segment that has been free, with nothing loaned from it, for `quiet`, as far as calls of this
    /// method could tell: the time counts from the first call that finds it so. To be called every now and then,
    /// and whenever `quiet` is zero, in which case all that is free goes. How many bytes that gave back here.
    ///
    /// The memory is free once readers have unmapped it, too ([`take_changes`](Pool::take_changes)).
    pub fn trim<H: Holders>(&mut self, now: Instant, quiet: Duration, readers: &mut H) -> usize {
        let before = self.segments.bytes();
        for class in 0..self.classes.len() {
            self.look(class, BACKLOG, readers);
            // Older segments are used first, so that the others become quiet.
            self.classes[class].free.sort_unstable_by(|a, b| b.cmp(a));
        }
        let segments = self.segments.iter_mut();
        let quiet: Vec<u32> = segments
            .filter_map(|(at, segment)| segment.is_quiet(now, quiet).then_some(at))
            .collect();
        quiet.into_iter().for_each(|at| self.remove(at));
        before - self.segments.bytes()
    }

    /// How many messages were sent, and the id of the next segment: where another pool [begins](Pool::begin_at) whose ring goes on where
    /// this one's stops.
    pub fn end(&self) -> (u64, u32) {
        (self.sequence, self.segments.next_id())
    }

    /// Begins behind another pool, where that one [ends](Pool::end): what its readers hold of the other is not this one's, by number.
    ///
    /// # Panics
    ///
    /// If it has made a segment.
    pub fn begin_at(&mut self, sequence: u64, segment: u32) {
        assert_eq!(self.end(), (0, 0), "a pool that has begun");
        self.sequence = sequence;
        self.segments.number_from(segment);
    }

    /// Whether segments were made or given up since [`take_changes`](Pool::take_changes).
    #[inline]
    pub fn has_changes(&self) -> bool {
        self.segments.has_changes()
    }

    /// What became of segments since this was called last. A segment that came and went is left out.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.segments.take_changes()
    }

    /// The segments there are, for a reader that joins.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        self.segments.describe()
    }

    /// One of them.
    pub fn segment(&self, id: u32) -> Option<Segment<'_>> {
        self.segments().find(|segment| segment.id == id)
    }

    /// The longest loan, in bytes.
    pub fn max_loan(&self) -> usize {
        self.options.max_loan
    }

    /// Bytes of all chunks.
    pub fn bytes(&self) -> usize {
        self.segments.bytes()
    }

    /// What a reader has, by its own word: it joined at `start`. Chunks that several readers have count for each.
    pub fn held_by<H: Holder>(&self, start: u64, reader: &H) -> Held {
        let mut held = Held::default();
        for class in &self.classes {
            let chunks = class.sent.held_by(start, reader);
            held.chunks += chunks;
            held.bytes += chunks * class.size;
        }
        held
    }

    /// How many chunks for loans of `len` bytes readers have, as of the last look.
    pub fn sent(&self, len: usize) -> usize {
        let class = self.classes.get(class::class(len.div_ceil(self.page)));
        class.map_or(0, |class| class.sent.len())
    }

    /// Whether a reader is in the way of a loan, by its own word: its cursor has not passed the oldest record with a chunk, or a
    /// slot of it keeps one that every cursor has passed. It joined at `start`. As of the last look.
    pub fn is_held_up_by<H: Holder>(&self, start: u64, reader: &H) -> bool {
        let oldest = self.classes.iter().filter_map(|one| one.sent.oldest());
        let released = reader.released(start);
        oldest.min().is_some_and(|oldest| released <= oldest)
            || self.classes.iter().any(|one| one.sent.is_kept_by(reader))
    }

    /// The word to show to readers before sleeping until a loan may succeed, as that of [`RingWriter::want`]: where a
    /// cursor passes the oldest record with a chunk, of whatever size, since other sizes make room, too. `None` if all that
    /// is out is held by slots or loaned.
    ///
    /// After it is stored comes one more [`loan`](Pool::loan), then sleep, unless this says something else by then: the
    /// readers may have passed that record meanwhile and hold what it named, and would not wake anybody for the next one.
    pub fn want(&self) -> Option<u64> {
        let oldest = self.classes.iter().filter_map(|one| one.sent.oldest());
        oldest.min().map(crate::ring::want_past)
    }

    /// What becomes readable when a loan is dropped between [`await_loans`](Pool::await_loans) and
    /// [`await_no_loans`](Pool::await_no_loans); made at the first call. It stays the pool's, and always the same.
    ///
    /// # Errors
    ///
    /// The kernel's: short of descriptors.
    pub fn dropped_loans(&self) -> std::io::Result<&Arc<OwnedFd>> {
        self.segments.returns().bell()
    }

    /// From now until [`await_no_loans`](Pool::await_no_loans), a loan that is dropped makes
    /// [`dropped_loans`](Pool::dropped_loans) readable. One more [`loan`](Pool::loan) must come before the sleep.
    pub fn await_loans(&self) {
        self.segments.returns().watch();
    }

    /// Ends what [`await_loans`](Pool::await_loans) began.
    pub fn await_no_loans(&self) {
        self.segments.returns().ignore();
    }

    /// The loan's segment, if no message in it has been sent yet: readers have to be told of it before the first one.
    #[inline]
    pub fn unsent_segment(&self, loan: &Loan) -> Option<Segment<'_>> {
        let segment = self.segments.of(loan);
        (!segment.is_sent()).then(|| segment.describe())
    }

    /// Takes back what readers of a class, and those who dropped loans, have given back. The newest `keep` messages
    /// are left to lossy readers.
    #[inline(never)]
    fn look<H: Holders>(&mut self, class: usize, keep: usize, readers: &mut H) {
        let Class {
            free, sent, chunks, ..
        } = &mut self.classes[class];
        if free.len() + sent.len() < *chunks {
            self.segments.take_dropped(class, free);
        }
        let segments = &mut self.segments;
        let first = free.len();
        sent.look(
            keep,
            readers,
            |place| {
                let word = segments.get(place.segment).memory.word(place.chunk);
                word.store(0, Ordering::Relaxed);
            },
            |place| free.push(place),
        );
        for place in &free[first..] {
            segments.take_sent(*place);
        }
    }

    /// Makes a segment of this class, of which there is no free chunk; or finds one after all.
    #[cold]
    fn grow<H: Holders>(&mut self, class: usize, readers: &mut H) -> Result<(), PoolError> {
        self.write_off(readers);
        let limit = self.limit();
        let (size, chunks) = (self.classes[class].size, self.classes[class].chunks);
        if !self.fits(size) {
            let mut keep = self.classes[class].sent.recent() / 2;
            loop {
                self.look(class, keep, readers);
                if !self.classes[class].free.is_empty() {
                    return Ok(());
                }
                // Slots may keep all that was not left to lossy readers: then these have to do with less. If more is left
                // than that, cursors are in the way.
                if keep == 0 || self.classes[class].sent.recent() > keep {
                    break;
                }
                keep /= 2;
            }
            if !self.make_room(size, class, readers) {
                return Err(self.exhausted());
            }
        }
        let fits = limit.saturating_sub(self.segments.bytes()) / size;
        let first = SEGMENT.min(limit / 16);
        let wanted = (size * chunks).clamp(first, first.max(limit / 64)) / size;
        // Four at least, unless they are very large: one is written while others are read.
        let wanted = wanted.max(if size <= limit / 16 { 4 } else { 1 });
        let geometry = Geometry {
            chunks: wanted.min(fits).clamp(1, u32::MAX as usize) as u32,
            chunk_size: size as u64,
        };
        let memory = &self.options.memory;
        let segment = self.segments.create(memory, class, geometry)?;
        let one = &mut self.classes[class];
        one.chunks += geometry.chunks as usize;
        one.free.reserve(one.chunks);
        one.sent.reserve(one.chunks);
        let new = (0..geometry.chunks).rev();
        one.free.extend(new.map(|chunk| Place { segment, chunk }));
        Ok(())
    }

    /// Whether chunks of `len` bytes can be made.
    fn fits(&self, len: usize) -> bool {
        self.limit().saturating_sub(self.segments.bytes()) >= len && !self.segments.is_full()
    }

    /// What it may have, in bytes, beside what is written off.
    fn limit(&self) -> usize {
        self.options.limit + self.written_off
    }

    /// Counts what is left to readers who were dismissed: as much as the limit again, at most.
    fn write_off<H: Holders>(&mut self, readers: &mut H) {
        let mut written_off = 0;
        for class in &self.classes {
            written_off += class.sent.kept_by_dismissed(readers) * class.size;
        }
        self.written_off = written_off.min(self.options.limit);
    }

    /// Gives up free segments, if that helps, until a chunk of `len` bytes can be made. Whether it can.
    fn make_room<H: Holders>(&mut self, len: usize, class: usize, readers: &mut H) -> bool {
        let limit = self.limit();
        for other in (0..self.classes.len()).filter(|&other| other != class) {
            self.look(other, 0, readers);
        }
        let segments = self.segments.iter();
        let mut free: Vec<(bool, u32, usize)> = segments
            .filter(|(_, segment)| segment.is_free())
            .map(|(at, segment)| (segment.is_touched(), at, segment.len))
            .collect();
        let bytes: usize = free.iter().map(|&(.., len)| len).sum();
        if free.is_empty() || (limit + bytes).saturating_sub(self.segments.bytes()) < len {
            return false;
        }
        // Those not used lately first.
        free.sort_unstable();
        for (_, at, _) in free {
            if self.fits(len) {
                break;
            }
            self.remove(at);
        }
        self.fits(len)
    }

    /// Gives up a segment, which is free.
    fn remove(&mut self, at: u32) {
        let segment = self.segments.get(at);
        let class = &mut self.classes[segment.class];
        class.chunks -= segment.memory.geometry().chunks as usize;
        class.free.retain(|place| place.segment != at);
        self.segments.remove(at);
    }

    fn exhausted(&self) -> PoolError {
        let sum = |count: fn(&Class) -> usize| {
            let classes = self.classes.iter();
            classes.map(|class| count(class) * class.size).sum()
        };
        PoolError::Exhausted {
            limit: self.options.limit,
            held: sum(|class| class.sent.len()),
            loaned: sum(Class::loaned),
        }
    }
}

use std::{
    ops::{Deref, DerefMut},
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    Error, MAX_REGIONS, Return,
    message::{Kind, LENT, Loan},
};
use crate::{Live, Options, Region};

/// The owner's end of an exchange with one peer: makes the buffers, hands them over, and gets them back.
///
/// Its books are private: what a peer returns is looked up here, and what it makes up is refused.
///
/// # One peer
///
/// A peer that has had a region can go on reading what is written to it, and so can everybody it sends the descriptor on to.
/// So a buffer stays with the lender that made it, and a lender with its peer: another peer takes another lender, and
/// never sees what this one was sent. After [`reclaim`](Lender::reclaim) the next peer must be one that may.
#[derive(Debug)]
pub struct Lender {
    /// Tells the buffers of one lender from those of another.
    identity: u64,
    limit: usize,
    held: usize,
    slots: Vec<Slot>,
    /// Ids of retired regions.
    vacant: Vec<u32>,
}

#[derive(Debug)]
struct Slot {
    /// Of the last loan. It goes on when the id gets a new region.
    generation: u64,
    /// Bytes of the region.
    len: usize,
    /// The peer has given it back once, so that it knows it. From the sending alone this would not follow.
    known: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// A [`Buffer`] is with the user.
    Here,
    Lent(Live),
    Vacant,
}

/// A buffer to write: memory that the borrower reads when it is [lent](Lender::lend), and that nobody else can write.
///
/// It holds what was written to it last, zeroes at first. Give it to [`Lender::retire`] when it is no longer needed; one
/// that is dropped counts against the lender's limit for good, since the peer goes on having it.
#[derive(Debug)]
#[must_use = "a buffer that is dropped instead of retired stays with the peer"]
pub struct Buffer {
    live: Live,
    id: u32,
    lender: u64,
}

impl Lender {
    /// An owner without buffers. All of them together may have `limit` bytes: as much the peer can keep from being freed, so
    /// that a [`Borrower`](super::Borrower) with the same number as its quota takes them all.
    pub fn new(limit: usize) -> Lender {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Lender {
            // It only has to differ from others.
            identity: NEXT.fetch_add(1, Ordering::Relaxed),
            limit,
            held: 0,
            slots: Vec::new(),
            vacant: Vec::new(),
        }
    }

    /// Makes a buffer of `len` bytes, all zero. `options` are a name or [`Options`].
    ///
    /// # Errors
    ///
    /// [`Error::Limit`], [`Error::Regions`]; [`Error::Region`] as [`Region::create`].
    pub fn create(&mut self, options: impl Into<Options>, len: usize) -> Result<Buffer, Error> {
        if self.limit - self.held < len {
            return Err(Error::Limit {
                len,
                held: self.held,
                limit: self.limit,
            });
        }
        if self.vacant.is_empty() && self.slots.len() == MAX_REGIONS {
            return Err(Error::Regions);
        }
        let region = Region::create(options, len)?;
        let live = region.share().map_err(|rejected| rejected.error)?;
        self.held += len;
        let id = match self.vacant.pop() {
            Some(id) => id,
            None => {
                self.slots.push(Slot {
                    generation: 0,
                    len: 0,
                    known: false,
                    state: State::Vacant,
                });
                (self.slots.len() - 1) as u32
            }
        };
        let slot = self.slot(id);
        slot.len = len;
        slot.known = false;
        slot.state = State::Here;
        Ok(self.buffer(id, live))
    }

    /// Hands over the first `used` bytes of `buffer`. What comes back is to be sent to the peer; if that fails,
    /// [`Lent::cancel`] gives the buffer back.
    ///
    /// # Panics
    ///
    /// If the buffer has fewer bytes, or is of another lender.
    pub fn lend(&mut self, buffer: Buffer, used: usize) -> Lent<'_> {
        let (id, len) = (buffer.id, buffer.len());
        assert!(used <= len, "{used} bytes of a buffer of {len} bytes");
        let slot = self.slot_of(&buffer);
        slot.generation += 1;
        slot.state = State::Lent(buffer.live);
        Lent {
            lender: self,
            id,
            used,
        }
    }

    /// Gets back the buffer that the peer returns.
    ///
    /// # Errors
    ///
    /// [`Error::Foreign`], [`Error::NotLent`], [`Error::OtherLoan`]: the peer's mistake, or malice.
    pub fn take_back(&mut self, returned: Return) -> Result<Buffer, Error> {
        let Return { id, generation } = returned;
        let slot = self.slots.get_mut(id as usize);
        let slot = slot.ok_or(Error::Foreign { id })?;
        match slot.state {
            State::Lent(_) if slot.generation == generation => {}
            State::Lent(_) => {
                return Err(Error::OtherLoan {
                    id,
                    expected: slot.generation,
                    found: generation,
                });
            }
            State::Here => return Err(Error::NotLent { id }),
            State::Vacant => return Err(Error::Foreign { id }),
        }
        slot.known = true;
        self.recall(id).ok_or(Error::NotLent { id })
    }

    /// Gets back all that is lent, for when the peer is gone: dead, or its link over. Later returns of them are refused.
    ///
    /// The next peer knows none of the regions and is sent their descriptors anew. It must be one that may read what the
    /// last one was sent, and the last one what the next is sent; otherwise drop the buffers and the lender.
    pub fn reclaim(&mut self) -> Vec<Buffer> {
        for slot in &mut self.slots {
            slot.known = false;
        }
        let ids = 0..self.slots.len() as u32;
        ids.filter_map(|id| self.recall(id)).collect()
    }

    /// Gives a buffer up: its memory goes back to the kernel as soon as the peer has unmapped it, too. If the peer knows it,
    /// that takes a message, to be sent where the descriptors go.
    ///
    /// # Panics
    ///
    /// If the buffer is of another lender.
    pub fn retire(&mut self, buffer: Buffer) -> Option<Retired> {
        let id = buffer.id;
        let slot = self.slot_of(&buffer);
        slot.generation += 1;
        slot.state = State::Vacant;
        let (len, known, generation) = (slot.len, slot.known, slot.generation);
        self.held -= len;
        self.vacant.push(id);
        known.then_some(Retired(Loan {
            id,
            generation,
            used: 0,
        }))
    }

    /// Bytes of all its regions together.
    pub fn held(&self) -> usize {
        self.held
    }

    /// How many buffers are lent.
    pub fn lent(&self) -> usize {
        let lent = |slot: &&Slot| matches!(slot.state, State::Lent(_));
        self.slots.iter().filter(lent).count()
    }

    /// The buffer that is lent under this id.
    fn recall(&mut self, id: u32) -> Option<Buffer> {
        let slot = self.slot(id);
        match std::mem::replace(&mut slot.state, State::Here) {
            State::Lent(live) => Some(self.buffer(id, live)),
            other => {
                slot.state = other;
                None
            }
        }
    }

    fn buffer(&self, id: u32, live: Live) -> Buffer {
        let lender = self.identity;
        Buffer { live, id, lender }
    }

    fn slot(&mut self, id: u32) -> &mut Slot {
        &mut self.slots[id as usize]
    }

    fn slot_of(&mut self, buffer: &Buffer) -> &mut Slot {
        assert_eq!(buffer.lender, self.identity, "a buffer of another lender");
        self.slot(buffer.id)
    }
}

impl Buffer {
    /// Its number, which the peer knows it by. It goes to another region when this one is retired.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline(always)]
    fn deref(&self) -> &[u8] {
        &self.live
    }
}

impl DerefMut for Buffer {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.live
    }
}

/// A buffer that is handed over, to be told to the peer. Dropped, it stays handed over.
///
/// The message is 24 bytes of plain data, and a descriptor until the peer has returned the region for the first time. Both go
/// over a link as they are (feature `transport`: `send`, or anywhere inside a message); the bytes
/// alone can go over a lane.
#[derive(Debug)]
#[must_use = "the peer gets the region only by this message"]
pub struct Lent<'a> {
    lender: &'a mut Lender,
    id: u32,
    used: usize,
}

impl Lent<'_> {
    /// The descriptor that has to travel with the bytes; none if the peer knows the region.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self.slot() {
            Slot {
                known: false,
                state: State::Lent(live),
                ..
            } => Some(live.as_fd()),
            _ => None,
        }
    }

    /// For channels that carry bytes; [`Arrival`](super::Arrival) is made of them at the other end.
    pub fn to_bytes(&self) -> [u8; LENT] {
        let kind = if self.slot().known {
            Kind::Known
        } else {
            Kind::New
        };
        self.loan().to_bytes(kind)
    }

    /// The buffer, which was not handed over after all: for when the message could not be sent. Not for one that was, which
    /// the borrower would go on reading.
    pub fn cancel(self) -> Buffer {
        let buffer = self.lender.recall(self.id);
        buffer.expect("lent when this was made, and the lender borrowed since")
    }

    pub(super) fn loan(&self) -> Loan {
        Loan {
            id: self.id,
            generation: self.slot().generation,
            used: self.used as u64,
        }
    }

    fn slot(&self) -> &Slot {
        &self.lender.slots[self.id as usize]
    }
}

/// A region that comes no more, to be told to the peer, so that it unmaps it. Send it where the descriptors go, so that it
/// arrives before the id comes again.
#[derive(Clone, Copy, Debug)]
#[must_use = "the peer unmaps the region only after this message"]
pub struct Retired(pub(super) Loan);

impl Retired {
    /// For channels that carry bytes; [`Arrival`](super::Arrival) is made of them at the other end.
    pub fn to_bytes(self) -> [u8; LENT] {
        self.0.to_bytes(Kind::Retired)
    }
}

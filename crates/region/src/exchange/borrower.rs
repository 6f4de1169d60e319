use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use super::{
    Arrival, Error, MAX_REGIONS, Return,
    message::{Event, Loan},
};
use crate::{
    Moved, Quota, Refused,
    gate::{self, VIEW_SEALS},
    pages::{Access, Pages, Wanted},
};

/// The other end of an exchange: maps each region of its lender once, reads, and gives back.
///
/// A lender need not be trusted. Its memory passes the gate that every received region passes, before it is mapped; all of it
/// together stays within a quota; and each message is checked against what came before.
#[derive(Debug)]
pub struct Borrower {
    quota: Quota,
    mapped: usize,
    regions: Vec<Slot>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Of the latest loan, also of a region that is retired.
    generation: u64,
    /// Shared with what is borrowed of it, so that a second owner tells that it is.
    pages: Option<Arc<Pages>>,
}

impl Borrower {
    /// A borrower that knows no region yet. `quota` is what it is willing to map of this lender's, all regions
    /// together, in bytes or as [`Quota`].
    pub fn new(quota: impl Into<Quota>) -> Borrower {
        Borrower {
            quota: quota.into(),
            mapped: 0,
            regions: Vec::new(),
        }
    }

    /// Takes a message of the lender's: a region that is handed over, or none if the message said that one comes no more,
    /// which is unmapped then.
    ///
    /// A region that is new is mapped; one that is known takes no system call and no allocation.
    ///
    /// # Errors
    ///
    /// The lender's mistake, or malice: [`Error::Unknown`], [`Error::Redefined`], [`Error::Held`], [`Error::Replayed`],
    /// [`Error::Used`], [`Error::Regions`], [`Error::Limit`]. [`Error::Refused`] with the descriptor if the memory is
    /// not as it has to be, or cannot be mapped; one that did not come over a memlane-transport link can be of any kind, and
    /// close(2) can wait for some ([`Refused`]).
    pub fn receive(&mut self, arrival: Arrival) -> Result<Option<Borrowed>, Error> {
        match arrival.0 {
            Event::Known(loan) => self.known(loan).map(Some),
            Event::New(loan, memory) => self.new_region(loan, memory).map(Some),
            Event::Retired(loan) => self.retired(loan).map(|()| None),
        }
    }

    /// Bytes mapped.
    pub fn mapped(&self) -> usize {
        self.mapped
    }

    fn known(&mut self, loan: Loan) -> Result<Borrowed, Error> {
        let (slot, pages) = self.here(loan)?;
        let used = check_used(loan, pages.len())?;
        slot.generation = loan.generation;
        Ok(Borrowed::new(pages, loan, used))
    }

    fn new_region(&mut self, loan: Loan, memory: Moved) -> Result<Borrowed, Error> {
        let id = loan.id;
        let fd = OwnedFd::from(memory);
        // First of all, since what is refused for another reason is closed here, which is safe for memory only.
        let len = match gate::verify(&fd, VIEW_SEALS, None, self.quota) {
            Ok(len) => len,
            Err(error) => return Err(Error::Refused(Refused::new(error, fd))),
        };
        if id as usize >= MAX_REGIONS {
            return Err(Error::Regions);
        }
        let last = match self.regions.get(id as usize) {
            Some(Slot { pages: Some(_), .. }) => return Err(Error::Redefined { id }),
            Some(slot) => slot.generation,
            None => 0,
        };
        check_later(loan, last)?;
        let used = check_used(loan, len)?;
        let (held, limit) = (self.mapped, self.quota.bytes());
        if limit - held < len {
            return Err(Error::Limit { len, held, limit });
        }
        let pages = match Pages::map(fd.as_fd(), len, Access::Read, Wanted::DEFAULT) {
            Ok(pages) => Arc::new(pages),
            Err(error) => return Err(Error::Refused(Refused::new(error, fd))),
        };
        if self.regions.len() <= id as usize {
            self.regions.resize_with(id as usize + 1, Slot::default);
        }
        self.mapped += len;
        self.regions[id as usize] = Slot {
            generation: loan.generation,
            pages: Some(Arc::clone(&pages)),
        };
        Ok(Borrowed::new(pages, loan, used))
    }

    fn retired(&mut self, loan: Loan) -> Result<(), Error> {
        let (slot, pages) = self.here(loan)?;
        slot.generation = loan.generation;
        slot.pages = None;
        self.mapped -= pages.len();
        Ok(())
    }

    /// The region that a loan names, which must be known, not be borrowed, and have had no later loan.
    fn here(&mut self, loan: Loan) -> Result<(&mut Slot, Arc<Pages>), Error> {
        let id = loan.id;
        let slot = self.regions.get_mut(id as usize);
        let slot = slot.ok_or(Error::Unknown { id })?;
        let last = slot.generation;
        let pages = slot.pages.as_mut().ok_or(Error::Unknown { id })?;
        if Arc::get_mut(pages).is_none() {
            return Err(Error::Held { id });
        }
        let pages = Arc::clone(pages);
        check_later(loan, last)?;
        Ok((slot, pages))
    }
}

fn check_later(loan: Loan, last: u64) -> Result<(), Error> {
    if loan.generation > last {
        return Ok(());
    }
    Err(Error::Replayed {
        id: loan.id,
        last,
        found: loan.generation,
    })
}

fn check_used(loan: Loan, len: usize) -> Result<usize, Error> {
    match usize::try_from(loan.used) {
        Ok(used) if used <= len => Ok(used),
        _ => Err(Error::Used {
            id: loan.id,
            used: loan.used,
            len,
        }),
    }
}

/// A region of a lender's, to read until it is given back.
///
/// Its owner should not write it meanwhile, but can: so it is copied out ([`read`](Borrowed::read)), and what is checked must
/// be the copy. Reads do not fault, whatever the owner does.
///
/// Only [`give_back`](Borrowed::give_back), and sending what that returns, ends the loan. One that is dropped is never returned:
/// its owner has one buffer less until the link ends.
#[derive(Debug)]
#[must_use = "its owner gets it back only by `give_back`"]
pub struct Borrowed {
    pages: Arc<Pages>,
    id: u32,
    generation: u64,
    used: usize,
}

impl Borrowed {
    fn new(pages: Arc<Pages>, loan: Loan, used: usize) -> Borrowed {
        Borrowed {
            pages,
            id: loan.id,
            generation: loan.generation,
            used,
        }
    }

    /// The number that its owner knows it by.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Bytes handed over.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether none were.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Copies `dst.len()` bytes from `offset` on. If the owner writes meanwhile, the copy may be a mixture.
    ///
    /// # Panics
    ///
    /// If what was handed over ends before that.
    #[inline]
    pub fn read(&self, offset: usize, dst: &mut [u8]) {
        let len = dst.len();
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.used),
            "{len} bytes from {offset} on are not in the {} handed over",
            self.used
        );
        self.pages.read(offset, dst);
    }

    /// The bytes, in place.
    ///
    /// # Safety
    ///
    /// The owner must not write them while they are borrowed. Nothing but its own code sees to that: a
    /// [`Lender`](super::Lender) does not before it has had them back, and whether it is one is a promise about another
    /// program.
    #[allow(unsafe_code)]
    #[inline(always)]
    pub unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: in bounds, since what is used was compared with what is mapped; the caller vouches for the owner, and
        // nobody else can write.
        unsafe { self.pages.bytes(self.used) }
    }

    /// Ends the loan: the message is to be sent to the owner.
    pub fn give_back(self) -> Return {
        Return {
            id: self.id,
            generation: self.generation,
        }
    }
}

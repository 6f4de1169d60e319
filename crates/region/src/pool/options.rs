use super::Loan;
use crate::{Error, Options, ring::NoRoom};

/// How large a pool may become, and how it treats leftovers.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    pub(super) limit: usize,
    pub(super) max_loan: usize,
    pub(super) zero: bool,
    pub(super) memory: Options,
}

impl PoolOptions {
    /// A pool whose chunks take at most `limit` bytes together; each segment's header, a page as a rule, comes on top.
    /// Loans are of at most a quarter of that unless [`max_loan`](PoolOptions::max_loan) says otherwise.
    ///
    /// A segment that was given back counts no more, though readers may still have it mapped: until they unmap
    /// it, its memory is in use.
    pub fn new(limit: usize) -> PoolOptions {
        PoolOptions {
            limit,
            max_loan: limit / 4,
            zero: false,
            memory: Options::new("memlane-pool"),
        }
    }

    /// The longest loan, in bytes.
    #[must_use]
    pub fn max_loan(mut self, bytes: usize) -> PoolOptions {
        self.max_loan = bytes;
        self
    }

    /// Whether chunks are zeroed before they are loaned again, and what a loan was shortened by before it is
    /// sent. Costs a write of as many bytes as the loan before had.
    #[must_use]
    pub fn zero(mut self, zero: bool) -> PoolOptions {
        self.zero = zero;
        self
    }

    /// How the memory of its segments is made; touched at creation in any case.
    #[must_use]
    pub fn memory(mut self, options: impl Into<Options>) -> PoolOptions {
        self.memory = options.into();
        self
    }
}

/// Why there is no loan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// Longer than this pool ever loans.
    #[error("expected a loan of at most {max} bytes, got one of {len}")]
    TooLarge {
        /// Length asked for, in bytes.
        len: usize,
        /// The longest loan, in bytes.
        max: usize,
    },
    /// No chunk of the size is free, and there is no room below the limit for another segment.
    /// [`Pool::held_by`](super::Pool::held_by) tells which reader holds how much.
    #[error(
        "the pool is exhausted: of at most {limit} bytes, {held} are held by readers and {loaned} are loaned"
    )]
    Exhausted {
        /// The most that all segments may take, in bytes.
        limit: usize,
        /// Bytes of chunks that were sent and that some reader has.
        held: usize,
        /// Bytes of chunks that are loaned.
        loaned: usize,
    },
    /// A segment cannot be made.
    #[error(transparent)]
    Os(#[from] Error),
}

/// A loan that could not be sent: the ring has no room for its record.
#[derive(Debug, thiserror::Error)]
#[error("the ring has no room for a record: {why:?}")]
pub struct Unsent {
    /// What the ring said.
    pub why: NoRoom,
    /// The loan, as it was.
    pub loan: Loan,
}

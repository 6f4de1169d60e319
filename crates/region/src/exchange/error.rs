use crate::Refused;

/// Why a buffer was not made, a hand-over not taken, or a return not believed. Whichever it is, nothing has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Creating: the regions of this lender would be more than its limit. Receiving: the regions of this
    /// peer would be more than its quota.
    #[error(
        "a region of {len} bytes beside the {held} there are is over the limit of {limit} bytes"
    )]
    Limit {
        /// Length of the region, in bytes.
        len: usize,
        /// Bytes of the others together.
        held: usize,
        /// Bytes that all may have together.
        limit: usize,
    },
    /// Creating: there are as many regions as can be. Receiving: the id is none that a region can have.
    #[error(
        "a region beside {} others, or with an id from there on, is not possible",
        super::MAX_REGIONS
    )]
    Regions,
    /// Creating: the kernel refuses the memory.
    #[error(transparent)]
    Region(#[from] crate::Error),

    /// A return that names a region this lender never had, or retired.
    #[error("a return of region {id}, which this lender does not have")]
    Foreign {
        /// The id that came.
        id: u32,
    },
    /// A return of a region that is not lent: it has come back before, or has never been handed over.
    #[error("a return of region {id}, which is not lent")]
    NotLent {
        /// The region.
        id: u32,
    },
    /// A return of an earlier loan of the region (or of one yet to come).
    #[error("a return of region {id} from loan {found}, where loan {expected} is the one out")]
    OtherLoan {
        /// The region.
        id: u32,
        /// The loan that is out.
        expected: u64,
        /// The loan named.
        found: u64,
    },

    /// A hand-over of a region that the peer has not sent.
    #[error("a hand-over of region {id}, whose memory has not come")]
    Unknown {
        /// The id that came.
        id: u32,
    },
    /// New memory for an id whose region is still known.
    #[error("new memory for region {id}, which is known already")]
    Redefined {
        /// The region.
        id: u32,
    },
    /// A hand-over, or the end, of a region that has not been given back.
    #[error("region {id} comes again, or is retired, before it was given back")]
    Held {
        /// The region.
        id: u32,
    },
    /// A hand-over that is not later than the last one of the region.
    #[error("region {id} comes with loan {found}, where loan {last} has been before")]
    Replayed {
        /// The region.
        id: u32,
        /// The latest loan so far.
        last: u64,
        /// The loan that came.
        found: u64,
    },
    /// A hand-over of more bytes than the region has.
    #[error("{used} bytes of region {id} are handed over, which has {len}")]
    Used {
        /// The region.
        id: u32,
        /// Bytes that are said to be used.
        used: u64,
        /// Bytes that the region has.
        len: usize,
    },
    /// The memory is not such as can be mapped safely, with its descriptor.
    #[error(transparent)]
    Refused(Box<Refused>),
    /// Bytes that are no message of this module.
    #[error("{len} bytes that are no {expected}")]
    Malformed {
        /// What they should have been.
        expected: &'static str,
        /// How many came.
        len: usize,
    },
    /// The link failed.
    #[cfg(feature = "transport")]
    #[error(transparent)]
    Link(#[from] memlane_transport::Error),
}

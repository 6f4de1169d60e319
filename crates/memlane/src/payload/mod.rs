//! What a lane carries: bytes, plain data, or any serde value.

mod answering;
mod asking;
mod builders;
mod description;
mod encoded;
mod ends;
mod error;
mod many;
mod plain;
mod requests;
mod senders;
mod slice;
mod travel;
mod typed;
mod values;
mod watch;

pub use answering::{Answers, Asked};
pub use description::PayloadType;
pub use encoded::Encoded;
pub use error::PayloadError;
pub use plain::{Plain, PlainMessage, PlainReservation};
pub use requests::{AsClient, AsServer};
pub use slice::{Slice, SliceMessage, SliceReservation};
pub use typed::{AsPublisher, Receives, Typed};
pub use values::Values;

/// What a typed lane carries: [`Plain`], [`Slice`] or [`Encoded`].
///
/// Publisher and subscriber say what they carry when a lane is made, and one that carries something else is refused, with an
/// error that says what each side has.
pub trait Payload: sealed::Sealed + 'static {
    /// How values of it lie in messages, as far as that has to be the same on both sides.
    fn describe() -> PayloadType;
}

/// In the ring, messages begin at multiples of this: values in place are aligned to no more.
const ALIGNMENT: usize = 8;

mod sealed {
    pub trait Sealed {}
}

use memlane_transport::codec::{DecodeError, EncodeError};

use crate::AttachmentError;

/// What can go wrong on a typed lane: what can on any (`E`), and with the value itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError<E: std::error::Error + 'static> {
    /// The lane's own error.
    #[error(transparent)]
    Lane(E),
    /// The attachments of the message, descriptors of the value, cannot be had. It has been received, and the next one may be.
    #[error(transparent)]
    Attachments(AttachmentError),
    /// The value cannot be encoded. Nothing was sent.
    #[error("the value cannot be encoded: {0}")]
    Encode(EncodeError),
    /// The message is no value of the type. It has been received, and the next one may be.
    #[error("the message is no value of the type: {0}")]
    Decode(DecodeError),
    /// The message is not as long as values of the type are. It has been received, and the next one may be.
    #[error("expected a message of {} {size} bytes, got {len}", if *.multiple { "a multiple of" } else { "exactly" })]
    Length {
        /// Size of a value, in bytes.
        size: usize,
        /// Whether a message has any number of values.
        multiple: bool,
        /// Length of the message, in bytes.
        len: usize,
    },
}

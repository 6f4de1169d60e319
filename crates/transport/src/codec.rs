//! Values to bytes and back: the only module that knows bincode (2.0.1, `config::standard()`).
//!
//! Encoding is bincode's own. Decoding reads the same bytes through a deserializer of this crate, because the bytes come
//! from a peer and bincode's believes too much (each of these is a test):
//!
//! | a peer can | bincode 2.0.1 | here |
//! |---|---|---|
//! | announce a `String` of 2^60 bytes | allocates, unless a limit is configured | a length is compared with the bytes left first |
//! | announce a `Vec<()>` of 2^60 elements | loops, whatever the limit: the elements take no bytes | an element that takes no bytes is refused |
//! | nest a recursive type 16 000 deep | overflows the stack, which aborts the process | at most [`MAX_DEPTH`] levels |
//! | append bytes | ignores them | refused |
//!
//! So work and memory are bounded by the bytes that came, and nothing a peer sends makes [`decode`] panic.
//!
//! The second rule also means that a sequence or map whose elements take no bytes (`Vec<()>`, `HashSet<Unit>`) cannot be
//! received unless it is empty: send the count instead. Types that need a self-describing format (`#[serde(untagged)]`,
//! `#[serde(flatten)]`, `serde_json::Value`) cannot be decoded, as with bincode itself.

mod carried;
mod decode;

use bincode::config::{self, Configuration};
use bincode::enc::write::Writer;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use carried::{append_carrying, decode_carried, encode_carrying};

/// Levels of nesting that [`decode`] follows: structs, sequences, enums, options and boxes within one another.
pub const MAX_DEPTH: usize = 128;

const CONFIG: Configuration = config::standard();

/// Why a value could not be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The value takes more bytes than allowed.
    #[error("{size} bytes are more than the {limit} allowed")]
    TooLarge {
        /// Bytes the value takes.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// There is no memory for the encoded value.
    #[error("no memory for the {size} bytes that the value takes so far")]
    Memory {
        /// Bytes of the value up to where it stopped.
        size: usize,
    },
    /// The value has more descriptors than allowed.
    #[error("{count} descriptors are more than the {limit} allowed")]
    TooManyDescriptors {
        /// Descriptors in the value.
        count: usize,
        /// Descriptors allowed.
        limit: usize,
    },
    /// A descriptor of the value could not be duplicated.
    #[error("cannot duplicate a descriptor to be sent: {0}")]
    Descriptor(std::io::Error),
    /// The value's own `Serialize`, or bincode, refused.
    #[error("{0}")]
    Refused(String),
}

/// Why bytes could not be decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The value is complete and bytes follow.
    #[error("{count} bytes follow the value")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// The bytes end within the value.
    #[error("the bytes end before the value does")]
    Short,
    /// A string, sequence or map says it is longer than all the bytes left.
    #[error("a length of {length} is announced where {left} bytes are left")]
    Length {
        /// Announced.
        length: usize,
        /// Bytes left.
        left: usize,
    },
    /// An element of a sequence or map takes no bytes, so its length could be any.
    #[error("an element of a sequence takes no bytes")]
    EmptyElement,
    /// The value nests too deeply.
    #[error("the value nests deeper than {MAX_DEPTH} levels")]
    Depth,
    /// A descriptor is missing, named twice, of another kind than its place asks for, or not taken from this peer.
    #[error("{0}")]
    Descriptor(String),
    /// More descriptors came than the value names.
    #[error("{received} descriptors came, and the value has {taken}")]
    SurplusDescriptors {
        /// Descriptors that came.
        received: usize,
        /// Descriptors in the value.
        taken: usize,
    },
    /// The bytes are no value of the type, or its own `Deserialize` refused.
    #[error("{0}")]
    Refused(String),
}

/// Encodes `value` into a new buffer of at most `limit` bytes.
///
/// # Errors
/// [`EncodeError::TooLarge`] says how many bytes it would take.
pub fn encode<T: Serialize + ?Sized>(value: &T, limit: usize) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::new();
    append(value, &mut bytes, limit)?;
    Ok(bytes)
}

/// Encodes `value` at the start of `buffer` and says how many bytes it took; the rest of the buffer is untouched.
///
/// # Errors
/// [`EncodeError::TooLarge`] says how many bytes it would take; the buffer then holds part of the value.
pub fn encode_into<T: Serialize + ?Sized>(
    value: &T,
    buffer: &mut [u8],
) -> Result<usize, EncodeError> {
    run(
        value,
        Bounded {
            limit: buffer.len(),
            size: 0,
            memory: true,
            put: |at: usize, bytes: &[u8]| {
                if let Some(room) = buffer.get_mut(at..at + bytes.len()) {
                    room.copy_from_slice(bytes);
                }
                true
            },
        },
    )
}

/// Encodes `value` behind what `buffer` holds, at most `limit` bytes of it. On error the buffer is as before.
///
/// # Errors
/// [`EncodeError::TooLarge`] says how many bytes it would take.
pub fn append<T: Serialize + ?Sized>(
    value: &T,
    buffer: &mut Vec<u8>,
    limit: usize,
) -> Result<(), EncodeError> {
    let start = buffer.len();
    let result = run(
        value,
        Bounded {
            limit,
            size: 0,
            memory: true,
            put: |_, bytes: &[u8]| {
                // To abort is what a plain `extend` does, and a large value can be refused instead.
                let room = buffer.try_reserve(bytes.len()).is_ok();
                if room {
                    buffer.extend_from_slice(bytes);
                }
                room
            },
        },
    );
    if result.is_err() {
        buffer.truncate(start);
    }
    result.map(drop)
}

/// Decodes a value from all of `bytes`.
///
/// # Errors
/// Every disagreement between the bytes and the type, bytes left over included; see the module's table.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    decode::run(bytes, CONFIG)
}

fn run<T: Serialize + ?Sized>(
    value: &T,
    mut writer: Bounded<impl FnMut(usize, &[u8]) -> bool>,
) -> Result<usize, EncodeError> {
    let result = bincode::serde::encode_into_writer(value, &mut writer, CONFIG);
    let (size, limit) = (writer.size, writer.limit);
    match result {
        _ if !writer.memory => Err(EncodeError::Memory { size }),
        Err(error) => Err(EncodeError::Refused(error.to_string())),
        Ok(()) if size > limit => Err(EncodeError::TooLarge { size, limit }),
        Ok(()) => Ok(size),
    }
}

/// Keeps the first `limit` bytes and goes on counting, so that the error can say what the value takes.
struct Bounded<F> {
    limit: usize,
    size: usize,
    /// Whether there has been enough of it.
    memory: bool,
    /// Takes bytes at a position, if there is room for them.
    put: F,
}

impl<F: FnMut(usize, &[u8]) -> bool> Writer for Bounded<F> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        let at = self.size;
        self.size = at.saturating_add(bytes.len());
        if self.size <= self.limit && self.memory {
            self.memory = (self.put)(at, bytes);
        }
        if self.memory {
            Ok(())
        } else {
            Err(bincode::error::EncodeError::Other("no memory"))
        }
    }
}

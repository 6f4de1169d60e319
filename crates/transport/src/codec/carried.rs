//! Values with descriptors, where the descriptors go another way than the bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{DecodeError, EncodeError};
use crate::dispose::dispose_all;
use crate::fd::{Adoption, Descriptors, Fds, Taken, receiving, sending};

/// [`encode_into`](super::encode_into), for a value that may have descriptors in it, at most `most`: with the length come those,
/// in the order in which the bytes count them. They are open as long as the batch is, whatever becomes of the value.
///
/// ```
/// use memlane_transport::{Fd, FdRef, codec};
///
/// let null = std::fs::File::open("/dev/null")?;
/// let mut buffer = [0; 64];
/// let (len, fds) = codec::encode_carrying(&("null", FdRef::new(&null)), &mut buffer, 8)?;
/// let (name, _null): (String, Fd) = codec::decode_carried(&buffer[..len], fds, false)?;
/// assert_eq!(name, "null");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Those of [`encode_into`](super::encode_into); [`EncodeError::TooManyDescriptors`], [`EncodeError::Descriptor`].
pub fn encode_carrying<T: Serialize + ?Sized>(
    value: &T,
    buffer: &mut [u8],
    most: usize,
) -> Result<(usize, Fds), EncodeError> {
    carrying(most, || super::encode_into(value, buffer))
}

/// [`append`](super::append), for a value that may have descriptors in it, at most `most`: those come back.
///
/// # Errors
/// Those of [`append`](super::append), [`EncodeError::TooManyDescriptors`], [`EncodeError::Descriptor`]. The buffer is as
/// before then.
pub fn append_carrying<T: Serialize + ?Sized>(
    value: &T,
    buffer: &mut Vec<u8>,
    limit: usize,
    most: usize,
) -> Result<Fds, EncodeError> {
    let start = buffer.len();
    let encoded = carrying(most, || super::append(value, buffer, limit));
    if encoded.is_err() {
        buffer.truncate(start);
    }
    encoded.map(|((), fds)| fds)
}

fn carrying<R>(
    most: usize,
    encode: impl FnOnce() -> Result<R, EncodeError>,
) -> Result<(R, Fds), EncodeError> {
    let (encoded, outgoing) = sending(Descriptors::default(), most, encode);
    let (count, limit) = (outgoing.count, most);
    if count > limit {
        return Err(EncodeError::TooManyDescriptors { count, limit });
    }
    if let Some(error) = outgoing.failure {
        return Err(EncodeError::Descriptor(error));
    }
    let encoded = encoded?;
    let fds = Fds::of_value(outgoing.fds.into_lent()).map_err(EncodeError::Descriptor)?;
    Ok((encoded, fds))
}

/// [`decode`](super::decode), for a value whose descriptors came another way. All of them have to be in the value. Links and
/// listeners are taken as such if the peer is trusted with that (`adopts`, see [`Link::adopting`](crate::Link::adopting)).
///
/// Of the descriptors that are not taken, those that came from a peer go to [`dispose`](crate::dispose), as do those of a value
/// that is refused.
///
/// # Errors
/// Those of [`decode`](super::decode); [`DecodeError::Descriptor`], [`DecodeError::SurplusDescriptors`].
pub fn decode_carried<T: DeserializeOwned>(
    bytes: &[u8],
    fds: Fds,
    adopts: bool,
) -> Result<T, DecodeError> {
    let received = fds.len();
    let adoption = match adopts {
        true => Adoption::Allowed,
        false => Adoption::Refused,
    };
    let fds = match fds.into_vec() {
        Ok(fds) => fds,
        // Somebody else has them, too.
        Err(shared) => {
            let mut copies = Vec::with_capacity(received);
            for fd in shared.iter() {
                match fd.try_clone_to_owned() {
                    Ok(copy) => copies.push(copy),
                    Err(error) => {
                        // close(2) may wait for whoever chose them, also of a copy.
                        dispose_all(copies);
                        return Err(DecodeError::Descriptor(error.to_string()));
                    }
                }
            }
            copies
        }
    };
    let (decoded, Taken { count, fault }) = receiving(fds, adoption, || super::decode::<T>(bytes));
    match (fault, decoded) {
        (Some(fault), _) => Err(DecodeError::Descriptor(fault.to_string())),
        (None, Ok(_)) if count < received => Err(DecodeError::SurplusDescriptors {
            received,
            taken: count,
        }),
        (None, decoded) => decoded,
    }
}

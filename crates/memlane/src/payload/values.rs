//! Payloads as values, whatever they are encoded by.

use std::convert::Infallible;

use memlane_transport::codec;
use serde::{Serialize, de::DeserializeOwned};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Encoded, Payload, PayloadError, Plain, Slice};

/// A payload whose values can be sent and received as copies: what requests, replies and latest values are.
pub trait Values: Payload {
    /// What is sent: a `T`, or of [`Slice`] a `[T]`.
    type Value: ?Sized;
    /// What is received: a `T`, or of [`Slice`] a `Vec<T>`.
    type Owned;

    /// The bytes of a value, in it or in `copy`, which is empty.
    #[doc(hidden)]
    fn bytes<'a>(
        value: &'a Self::Value,
        copy: &'a mut Vec<u8>,
        limit: usize,
    ) -> Result<&'a [u8], PayloadError<Infallible>>;

    /// The value that a message of `len` bytes is, which `read` copies out: all of them, once.
    #[doc(hidden)]
    fn value(
        len: usize,
        copy: &mut Vec<u8>,
        read: impl FnOnce(&mut [u8]),
    ) -> Result<Self::Owned, PayloadError<Infallible>>;
}

impl<T: FromBytes + IntoBytes + Immutable + 'static> Values for Plain<T> {
    type Value = T;
    type Owned = T;

    #[inline(always)]
    fn bytes<'a>(
        value: &'a T,
        _: &'a mut Vec<u8>,
        _: usize,
    ) -> Result<&'a [u8], PayloadError<Infallible>> {
        Ok(value.as_bytes())
    }

    #[inline(always)]
    fn value(
        len: usize,
        _: &mut Vec<u8>,
        read: impl FnOnce(&mut [u8]),
    ) -> Result<T, PayloadError<Infallible>> {
        if len != size_of::<T>() {
            return Err(PayloadError::Length {
                size: size_of::<T>(),
                multiple: false,
                len,
            });
        }
        let mut value = T::new_zeroed();
        read(value.as_mut_bytes());
        Ok(value)
    }
}

impl<T: FromBytes + IntoBytes + Immutable + 'static> Values for Slice<T> {
    type Value = [T];
    type Owned = Vec<T>;

    fn bytes<'a>(
        value: &'a [T],
        _: &'a mut Vec<u8>,
        _: usize,
    ) -> Result<&'a [u8], PayloadError<Infallible>> {
        Ok(value.as_bytes())
    }

    fn value(
        len: usize,
        _: &mut Vec<u8>,
        read: impl FnOnce(&mut [u8]),
    ) -> Result<Vec<T>, PayloadError<Infallible>> {
        if len % size_of::<T>() != 0 {
            return Err(PayloadError::Length {
                size: size_of::<T>(),
                multiple: true,
                len,
            });
        }
        let count = len / size_of::<T>();
        let mut values = T::new_vec_zeroed(count).expect("memory, as for any vector");
        read(values.as_mut_bytes());
        Ok(values)
    }
}

impl<T: Serialize + DeserializeOwned + 'static> Values for Encoded<T> {
    type Value = T;
    type Owned = T;

    fn bytes<'a>(
        value: &'a T,
        copy: &'a mut Vec<u8>,
        limit: usize,
    ) -> Result<&'a [u8], PayloadError<Infallible>> {
        copy.clear();
        codec::append(value, copy, limit).map_err(PayloadError::Encode)?;
        Ok(copy)
    }

    fn value(
        len: usize,
        copy: &mut Vec<u8>,
        read: impl FnOnce(&mut [u8]),
    ) -> Result<T, PayloadError<Infallible>> {
        copy.resize(len, 0);
        read(copy);
        let value = codec::decode(copy).map_err(PayloadError::Decode);
        super::encoded::forget_long(copy);
        value
    }
}

impl PayloadError<Infallible> {
    /// The same, where the lane has errors, too.
    pub(crate) fn widen<E: std::error::Error>(self) -> PayloadError<E> {
        match self {
            PayloadError::Lane(never) => match never {},
            PayloadError::Attachments(error) => PayloadError::Attachments(error),
            PayloadError::Encode(error) => PayloadError::Encode(error),
            PayloadError::Decode(error) => PayloadError::Decode(error),
            PayloadError::Length {
                size,
                multiple,
                len,
            } => PayloadError::Length {
                size,
                multiple,
                len,
            },
        }
    }
}

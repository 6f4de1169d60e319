//! Where slots lie, and what their first words say.

use crate::{Error, page_size};

/// Values that exist at a time: the newest, two before it, and the one being written.
pub(super) const SLOTS: u64 = 4;

/// Where the length is in a slot.
pub(super) const LENGTH: u64 = 8;

/// Where the value begins in a slot.
pub(super) const VALUE: usize = 16;

/// A cache line.
pub(super) const LINE: u64 = 64;

/// Processors fetch lines in pairs: slots do not share one.
const ALIGN: usize = 128;

/// In the first word of a slot, beside the number of the update: it is being written.
const WRITING: u64 = 1;

/// Bytes from one slot to the next; `None` if no memory holds such values.
fn checked_stride(max_len: usize) -> Option<usize> {
    max_len
        .checked_add(VALUE)?
        .checked_next_multiple_of(ALIGN)
        .filter(|&stride| stride <= 1 << 43)
}

/// Bytes from one slot to the next, in memory of `capacity` bytes.
///
/// # Panics
///
/// If there is no room for the slots.
pub(super) fn stride(capacity: u64, max_len: usize) -> u64 {
    checked_stride(max_len)
        .map(|stride| stride as u64)
        .filter(|stride| SLOTS * stride <= capacity)
        .unwrap_or_else(|| panic!("{capacity} bytes do not hold four values of {max_len}"))
}

/// Length of the ring memory for a cell with values of up to `max_len` bytes: the power of two that holds four
/// of them, each with 16 bytes before it and padded to a multiple of 128.
///
/// Values of up to 112 bytes take one page; beyond that, values just below a quarter of a power of two waste
/// least.
///
/// # Errors
///
/// [`Error::Length`] if that is more than any region can have.
pub fn ring_len(max_len: usize) -> Result<usize, Error> {
    let stride = checked_stride(max_len).ok_or(Error::Length {
        what: "a value",
        len: max_len as u64,
        expected: "at most 2^43 - 16 bytes",
    })?;
    Ok((SLOTS as usize * stride)
        .next_power_of_two()
        .max(page_size()))
}

/// Where the slot of update `sequence` begins.
#[inline(always)]
pub(super) fn slot(sequence: u64, stride: u64) -> u64 {
    sequence % SLOTS * stride
}

/// The first word of a slot with update `sequence` complete in it.
#[inline(always)]
pub(super) fn written(sequence: u64) -> u64 {
    sequence << 1
}

/// The first word of a slot while the update whose [`written`] word will be `word` is being written to it.
#[inline(always)]
pub(super) fn begun(word: u64) -> u64 {
    word | WRITING
}

/// The update that a first word tells of, complete or not.
#[inline(always)]
pub(super) fn sequence(word: u64) -> u64 {
    word >> 1
}

/// The word if its update is complete, otherwise 0.
#[inline(always)]
pub(super) fn complete(word: u64) -> u64 {
    if word & WRITING == 0 { word } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documented::says;

    documented!(SLOTS, LENGTH, VALUE, ALIGN, WRITING);

    #[test]
    fn slots_fit_and_do_not_share_lines() {
        for max_len in (0..300).chain([4096, 65_536, 1 << 20, (1 << 20) + 1]) {
            let ring = ring_len(max_len).unwrap();
            let stride = stride(ring as u64, max_len);
            assert!(ring.is_power_of_two() && ring % page_size() == 0);
            assert!(stride >= (VALUE + max_len) as u64 && stride % ALIGN as u64 == 0);
            assert!(slot(SLOTS - 1, stride) + stride <= ring as u64);
        }
        assert!(ring_len(usize::MAX).is_err() && ring_len(usize::MAX / 4).is_err());
        assert_eq!(ring_len(112).unwrap(), page_size());
        for max_len in [112, 1008, 1009] {
            let len = ring_len(max_len).unwrap() as u64;
            assert!(page_size() != 4096 || says(&format!("ring_len({max_len})"), len));
        }
    }

    #[test]
    fn words_say_what_was_written() {
        for number in [0, 1, 2, 5, u64::MAX >> 1] {
            assert_eq!(sequence(written(number)), number);
            assert_eq!(sequence(begun(written(number))), number);
            assert_eq!(complete(written(number)), written(number));
            assert_eq!(complete(begun(written(number))), 0);
        }
    }
}

//! Where records begin and end, and what a header says.

/// Bytes of a header word.
pub(super) const HEADER: u64 = 8;

/// The kind of a record that carries its payload in the ring. Never 0, so no header of a record is 0.
pub(super) const KIND_INLINE: u64 = 1;

/// A kind that no header can have.
pub(super) const KIND_NONE: u64 = u64::MAX;

const KIND_SHIFT: u32 = 32;

/// A cache line; records that fit into one stay in one.
const LINE: u64 = 64;

/// The longest payload of such a record.
const IN_LINE: usize = (LINE - HEADER) as usize;

/// The smallest ring: [`max_payload`] fits it wherever the last record ended, padding included.
pub(super) const MIN_CAPACITY: u64 = 2 * LINE;

/// Set in the word of a writer that waits, beside the position it waits for, which is a multiple of 8.
pub(super) const WAITING: u64 = 1;

/// A reader exports its cursor at least every so many bytes.
pub(super) fn step(capacity: u64) -> u64 {
    capacity / 8
}

/// The longest payload for a ring of `capacity` bytes: seven eighths of it, less the record's own header and
/// the next one.
///
/// The last eighth is what a reader may have released without saying so; it may be busy elsewhere now. So
/// every payload fits once the readers have released all that was written.
pub fn max_payload(capacity: u64) -> usize {
    (capacity - step(capacity) - 2 * HEADER).min(u32::MAX as u64) as usize
}

/// Where a record that begins at `position` and carries `len` bytes ends, and the next one begins.
///
/// Both sides compute it from the same two numbers. Records longer than a cache line end at the next
/// multiple of 8; shorter ones at the next multiple of the power of two that holds them.
#[inline(always)]
pub fn end(position: u64, len: usize) -> u64 {
    let total = HEADER + len as u64;
    let align = if total <= LINE {
        total.next_power_of_two()
    } else {
        8
    };
    // Wrapping, since a reader computes it from a start that its peer announced.
    position.wrapping_add(total + (align - 1)) & !(align - 1)
}

/// The furthest that a record can end which was reserved with `len` bytes and is committed with at most as
/// many: the end of the longest, but that one just over a cache line is not aligned, and one just below is.
#[inline(always)]
pub(super) fn furthest_end(position: u64, len: usize) -> u64 {
    let end = end(position, len);
    if len > IN_LINE {
        end.max(self::end(position, IN_LINE))
    } else {
        end
    }
}

/// The header of a committed record with `len` bytes of payload: length in the low 32 bits, kind in the
/// next 8, zeroes above.
#[inline(always)]
pub(super) fn header(len: usize) -> u64 {
    len as u64 | KIND_INLINE << KIND_SHIFT
}

/// What a header that is not 0 says of its payload's length, if it is of this kind, in a ring whose longest
/// payload is `max` bytes; `None` if no writer writes it.
#[inline(always)]
pub(super) fn payload_len(header: u64, kind: u64, max: usize) -> Option<usize> {
    let len = header as u32 as usize;
    (header >> KIND_SHIFT == kind && len <= max).then_some(len)
}

/// A header in the ring that no honest writer writes. The lane is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "corrupt ring: at position {position} expected a header of kind 1 and at most {max} bytes, found {header:#018x}"
)]
pub struct Corrupt {
    /// Where in the stream, in bytes since the ring began.
    pub position: u64,
    /// The word found there.
    pub header: u64,
    /// The longest payload that this ring can hold.
    pub max: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_records_stay_in_one_line_once_aligned() {
        for len in 0..=56 {
            let mut position = end(8, len);
            for _ in 0..100 {
                let last = position + HEADER + len as u64 - 1;
                assert_eq!(position / LINE, last / LINE, "{len} bytes at {position}");
                position = end(position, len);
            }
        }
    }

    #[test]
    fn an_end_holds_the_record_and_is_a_word() {
        for position in (0..256).step_by(8) {
            for len in 0..300 {
                let end = end(position, len);
                assert!(end % 8 == 0 && end >= position + HEADER + len as u64);
                assert!(end - position < HEADER + len as u64 + LINE);
            }
        }
    }

    #[test]
    fn every_payload_fits_at_every_position() {
        for capacity in [MIN_CAPACITY, 256, 4096] {
            for position in (0..2 * LINE).step_by(8) {
                for len in 0..=max_payload(capacity) {
                    assert!(furthest_end(position, len) + HEADER <= position + capacity);
                }
            }
        }
    }

    #[test]
    fn a_shorter_payload_ends_in_the_room_of_a_longer_one() {
        for position in (0..2 * LINE).step_by(8) {
            for len in 0..300 {
                let furthest = furthest_end(position, len);
                assert!((0..=len).any(|shorter| end(position, shorter) == furthest));
                assert!((0..=len).all(|shorter| end(position, shorter) <= furthest));
            }
        }
    }

    #[test]
    fn headers_are_checked_whole() {
        assert_eq!(payload_len(header(0), KIND_INLINE, 100), Some(0));
        assert_eq!(payload_len(header(100), KIND_INLINE, 100), Some(100));
        for bad in [header(101), 5, 2 << 32 | 5, header(5) | 1 << 63, u64::MAX] {
            assert_eq!(payload_len(bad, KIND_INLINE, 100), None, "{bad:#x}");
            assert_eq!(payload_len(bad, KIND_NONE, 100), None, "{bad:#x}");
        }
    }
}

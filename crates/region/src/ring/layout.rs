//! Where records begin and end, and what a header says.

/// Bytes of a header word.
pub(super) const HEADER: u64 = 8;

/// The kind of a record that carries its payload in the ring. Never 0, so no header of a record is 0.
const KIND_INLINE: u64 = 1;

const KIND_SHIFT: u32 = 32;

/// A cache line; records that fit into one stay in one.
const LINE: u64 = 64;

/// The longest payload that fits a ring of `capacity` bytes: all but its own header and the next one.
pub fn max_payload(capacity: u64) -> usize {
    (capacity - 2 * HEADER).min(u32::MAX as u64) as usize
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
    (position + total + (align - 1)) & !(align - 1)
}

/// The header of a committed record with `len` bytes of payload: length in the low 32 bits, kind in the
/// next 8, zeroes above.
#[inline(always)]
pub(super) fn header(len: usize) -> u64 {
    len as u64 | KIND_INLINE << KIND_SHIFT
}

/// Reads a header that is not 0, for a ring whose longest payload is `max` bytes.
#[inline(always)]
pub(super) fn payload_len(header: u64, max: usize, position: u64) -> Result<usize, Corrupt> {
    let len = header as u32 as usize;
    if header >> KIND_SHIFT == KIND_INLINE && len <= max {
        Ok(len)
    } else {
        Err(Corrupt {
            position,
            header,
            max,
        })
    }
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
    fn the_longest_payload_fits_at_every_position() {
        for position in (0..4096).step_by(8) {
            assert!(end(position, max_payload(4096)) + HEADER <= position + 4096);
        }
    }

    #[test]
    fn headers_are_checked_whole() {
        assert_eq!(payload_len(header(0), 100, 0), Ok(0));
        assert_eq!(payload_len(header(100), 100, 0), Ok(100));
        for bad in [header(101), 5, 2 << 32 | 5, header(5) | 1 << 63, u64::MAX] {
            assert_eq!(
                payload_len(bad, 100, 24),
                Err(Corrupt {
                    position: 24,
                    header: bad,
                    max: 100
                })
            );
        }
    }
}

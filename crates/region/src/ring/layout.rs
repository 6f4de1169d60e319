//! Where records begin and end, and what a header says.

/// Bytes of a header word.
pub(super) const HEADER: u64 = 8;

/// The kind of a record that carries its payload in the ring. Never 0, so no header of a record is 0.
pub(super) const KIND_INLINE: u64 = 1;

/// The kind of a record whose payload says where the message is: in a chunk of the writer's pool.
pub(super) const KIND_CHUNK: u64 = 2;

/// The kind of a header that is no record's: the stream goes on in another ring, whose number is in the low half.
pub(super) const KIND_SWITCH: u64 = 3;

/// A kind that no header can have.
pub(super) const KIND_NONE: u64 = u64::MAX;

const KIND_SHIFT: u32 = 32;
const SLACK_SHIFT: u32 = 40;

/// From here on a header says whether its message has attachments (this bit), and by which tag they are known (the others).
const ATTACHED_SHIFT: u32 = 48;

/// Tags of attachments are below this.
pub const TAGS: u16 = 1 << 15;

/// The most bytes that padding leaves unused: the payload's up to the next word, and words up to a line.
const MAX_SLACK: u64 = LINE + 7;

/// A cache line; records that fit into one stay in one.
const LINE: u64 = 64;

/// The longest payload of such a record.
const IN_LINE: usize = (LINE - HEADER) as usize;

/// The smallest ring: [`max_payload`] fits it wherever the last record ended, padding included.
pub(super) const MIN_CAPACITY: u64 = 2 * LINE;

/// So many rings may be left at one position, without a record in any of them: a publisher that goes on without somebody leaves
/// the one that it has, be it empty.
pub(super) const MAX_EMPTY: u32 = 64;

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
    (capacity - step(capacity) - 2 * HEADER).min(u32::MAX as u64 - 2 * LINE) as usize
}

/// Where the writer ends a record that begins at `position` and carries `len` bytes, and begins the next one:
/// if it is longer than a cache line, at the next multiple of 8; if not, at the next multiple of the power of
/// two that holds it.
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

/// The header of a committed record of this kind, of `advance` bytes to the next header, with `len` bytes of payload: from
/// the low bits up, 32 of advance, 8 of kind, 8 of slack (the bytes behind the payload), 16 zeroes.
///
/// The advance stands there ready to be added, since every step of a reader waits for it.
#[inline(always)]
pub(super) fn header(kind: u64, advance: u64, len: usize) -> u64 {
    let slack = advance - HEADER - len as u64;
    advance | kind << KIND_SHIFT | slack << SLACK_SHIFT
}

/// What to add to a kind, for a message with attachments that are known by this tag.
pub(super) fn attached(tag: u16) -> u64 {
    debug_assert!(tag < TAGS, "{tag} is no tag");
    (1 | u64::from(tag) << 1) << (ATTACHED_SHIFT - KIND_SHIFT)
}

/// The tag of a header's attachments, if it has some, and the header without.
pub(super) fn split(header: u64) -> (Option<u16>, u64) {
    let attached = header >> ATTACHED_SHIFT;
    if attached & 1 == 0 {
        // What else is there, if anything, is wrong.
        return (None, header);
    }
    let tag = (attached >> 1) as u16;
    (Some(tag), header & ((1 << ATTACHED_SHIFT) - 1))
}

/// What a header that is not 0 says, if it is of this kind: the advance and the length of the payload, in a
/// ring where records are at most `max` bytes long. `None` if no writer writes it.
#[inline(always)]
pub(super) fn parse(header: u64, kind: u64, max: u64) -> Option<(u64, usize)> {
    let advance = header & u64::from(u32::MAX);
    let slack = header >> SLACK_SHIFT;
    let right = header >> KIND_SHIFT & 0xff == kind
        && advance % 8 == 0
        && advance <= max
        && slack <= MAX_SLACK
        && advance >= HEADER + slack;
    right.then(|| (advance, (advance - HEADER - slack) as usize))
}

/// The header that says in which ring the stream goes on.
pub(super) fn switch(ring: u32) -> u64 {
    u64::from(ring) | KIND_SWITCH << KIND_SHIFT
}

/// The ring in which the stream goes on, if a header says so.
pub(super) fn parse_switch(header: u64) -> Option<u32> {
    (header >> KIND_SHIFT == KIND_SWITCH).then_some(header as u32)
}

/// The longest record that a ring of `capacity` bytes can have: the next header has to fit too.
pub(super) fn max_advance(capacity: u64) -> u64 {
    (capacity - HEADER).min(u32::MAX as u64 & !7)
}

/// A header in the ring that no honest writer writes. The lane is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "corrupt ring: at position {position} expected the header of a record of at most {max} bytes, found {header:#018x}"
)]
pub struct Corrupt {
    /// Where in the stream, in bytes since the ring began.
    pub position: u64,
    /// The word found there.
    pub header: u64,
    /// The longest record that this ring can hold, its header included, in bytes.
    pub max: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{documented::says, ring::LEFT};

    documented!(
        HEADER,
        KIND_INLINE,
        KIND_CHUNK,
        KIND_SWITCH,
        KIND_SHIFT,
        SLACK_SHIFT,
        ATTACHED_SHIFT,
        TAGS,
        MAX_SLACK,
        LINE
    );
    documented!(MIN_CAPACITY, MAX_EMPTY, WAITING, LEFT);

    #[test]
    fn as_documented() {
        for (position, len) in [(0, 0), (8, 20), (64, 24), (8, 56), (8, 57)] {
            let end = end(position, len);
            assert!(says(&format!("end({position}, {len})"), end), "{end}");
        }
        let inline = header(KIND_INLINE, 32, 20);
        assert!(says("header(KIND_INLINE, 32, 20)", inline), "{inline}");
        let chunk = header(KIND_CHUNK, 32, 24);
        assert!(says("header(KIND_CHUNK, 32, 24)", chunk), "{chunk}");
        assert!(says("switch(2)", switch(2)), "{}", switch(2));
        let attached = header(KIND_INLINE | attached(3), 32, 20);
        assert!(
            says("header(KIND_INLINE, 32, 20), tag 3", attached),
            "{attached}"
        );
        for capacity in [4096, 1 << 20] {
            let max = max_payload(capacity) as u64;
            assert!(says(&format!("max_payload({capacity})"), max), "{max}");
        }
    }

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
    fn headers_say_what_the_writer_did() {
        for position in (0..2 * LINE).step_by(8) {
            for len in 0..300 {
                let advance = end(position, len) - position;
                let parsed = parse(header(KIND_INLINE, advance, len), KIND_INLINE, 1024);
                assert_eq!(parsed, Some((advance, len)));
            }
        }
    }

    #[test]
    fn a_switch_is_no_record_and_no_record_a_switch() {
        for ring in [0, 1, 64, u32::MAX] {
            let switch = switch(ring);
            assert_ne!(switch, 0);
            assert_eq!(parse_switch(switch), Some(ring));
            for kind in [KIND_INLINE, KIND_CHUNK, KIND_NONE] {
                assert_eq!(parse(switch, kind, u64::MAX), None);
            }
            assert_eq!(parse_switch(switch | 1 << SLACK_SHIFT), None);
            assert_eq!(parse_switch(switch | 1 << 63), None);
        }
        for kind in [KIND_INLINE, KIND_CHUNK] {
            assert_eq!(parse_switch(header(kind, 32, 24)), None);
        }
        assert_eq!(parse_switch(0), None);
        assert_eq!(parse_switch(u64::MAX), None);
    }

    #[test]
    fn a_tag_is_beside_the_rest_of_a_header() {
        for kind in [KIND_INLINE, KIND_CHUNK] {
            let plain = header(kind, 32, 24);
            assert_eq!(split(plain), (None, plain));
            for tag in [0, 1, 2, 0x5555, TAGS - 1] {
                let tagged = header(kind | attached(tag), 32, 24);
                assert_eq!(split(tagged), (Some(tag), plain), "{tagged:#x}");
                // Readers who know nothing of attachments take no such message for one without.
                assert_eq!(parse(tagged, kind, 1024), None, "{tagged:#x}");
            }
        }
        // A tag of nothing is nonsense, and stays that.
        assert_eq!(split(2 << 48 | 1), (None, 2 << 48 | 1));
    }

    #[test]
    fn headers_are_checked_whole() {
        let max = max_advance(128);
        assert_eq!(
            parse(header(KIND_INLINE, max, 112), KIND_INLINE, max),
            Some((120, 112))
        );
        let bad = [
            ("no kind", 16),
            ("another kind", 2 << 32 | 16),
            ("reserved bits", header(KIND_INLINE, 16, 8) | 1 << 63),
            ("too long", header(KIND_INLINE, 128, 120)),
            ("no word", header(KIND_INLINE, 17, 9)),
            ("no header", 1 << 32),
            ("less than its slack", 1 << 32 | 9 << 40 | 16),
            (
                "more slack than padding",
                header(KIND_INLINE, 120, 120 - 8 - 72),
            ),
            ("all ones", u64::MAX),
        ];
        for (why, bad) in bad {
            assert_eq!(parse(bad, KIND_INLINE, max), None, "{why}: {bad:#x}");
        }
        for kind in [KIND_INLINE, KIND_CHUNK] {
            let header = header(kind, 32, 24);
            assert_eq!(parse(header, kind, max), Some((32, 24)));
            assert_eq!(parse(header, KIND_INLINE + KIND_CHUNK - kind, max), None);
            assert_eq!(parse(header, KIND_NONE, max), None);
        }
    }
}

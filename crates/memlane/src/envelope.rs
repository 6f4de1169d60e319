//! What precedes the payload of a request, and of a reply, in its record: words in the machine's byte order, so that the
//! payload is aligned as that of any message.

use rustix::time::ClockId;

/// Bytes before the payload of a request: number, kind, deadline.
pub(crate) const REQUEST_HEADER: usize = 24;

/// Bytes before the payload of a reply: number, kind.
pub(crate) const REPLY_HEADER: usize = 16;

/// So many low bits of a request's number are its place among those of its client that have no last reply yet.
pub(crate) const PLACE_BITS: u32 = 16;

/// In the page of the lane of requests: the requests that were given up last, by their place modulo [`GIVEN_UP_WORDS`]. The
/// client stores, the server loads.
pub(crate) const GIVEN_UP: usize = 2048;
pub(crate) const GIVEN_UP_WORDS: usize = 256;

/// Before those: how far the client's clock of deadlines is behind the calendar's ([`behind`]), 0 if it does not say. The
/// client stores before its lane is joined, the server loads once it has.
pub(crate) const BEHIND: usize = 1984;

/// The smallest page holds them all.
const _: () = assert!(GIVEN_UP + 8 * GIVEN_UP_WORDS <= 4096);

/// Kinds of what a client sends.
pub(crate) const REQUEST: u64 = 1;
pub(crate) const CANCEL: u64 = 2;

/// Kinds of what a server sends. All but `ITEM` are the last that is said of a request.
pub(crate) const ITEM: u64 = 1;
pub(crate) const LAST: u64 = 2;
pub(crate) const END: u64 = 3;
pub(crate) const FAILED: u64 = 4;
pub(crate) const UNANSWERED: u64 = 5;
pub(crate) const CANCELLED: u64 = 6;
pub(crate) const EXPIRED: u64 = 7;

#[cfg(test)]
documented!(
    REQUEST_HEADER,
    REPLY_HEADER,
    PLACE_BITS,
    GIVEN_UP,
    GIVEN_UP_WORDS,
    BEHIND,
    REQUEST,
    CANCEL,
    ITEM,
    LAST,
    END,
    FAILED,
    UNANSWERED,
    CANCELLED,
    EXPIRED
);

/// The place in a request's number.
#[inline(always)]
pub(crate) fn place(number: u64) -> usize {
    (number & ((1 << PLACE_BITS) - 1)) as usize
}

/// Where in the page it is said that a request was given up.
#[inline(always)]
pub(crate) fn given_up(number: u64) -> usize {
    GIVEN_UP + 8 * (place(number) % GIVEN_UP_WORDS)
}

/// Words as they lie in memory.
#[inline(always)]
pub(crate) fn put<const N: usize>(words: [u64; N], dst: &mut [u8]) {
    for (word, dst) in words.iter().zip(dst.chunks_exact_mut(8)) {
        dst.copy_from_slice(&word.to_ne_bytes());
    }
}

/// The words in a header.
#[inline(always)]
pub(crate) fn words<const N: usize>(src: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    for (word, src) in words.iter_mut().zip(src.chunks_exact(8)) {
        *word = u64::from_ne_bytes(src.try_into().expect("8 bytes"));
    }
    words
}

/// Now, in nanoseconds of CLOCK_MONOTONIC, as deadlines are.
pub(crate) fn now() -> u64 {
    read(ClockId::Monotonic)
}

/// How many nanoseconds CLOCK_MONOTONIC is behind CLOCK_REALTIME, wrapping. A time namespace has a CLOCK_MONOTONIC of its own, and
/// all have the other: two processes that see this differ have different clocks.
pub(crate) fn behind() -> u64 {
    read(ClockId::Realtime).wrapping_sub(now())
}

/// How many nanoseconds are to be added to a deadline of a process whose clock is so far behind.
pub(crate) fn skew(theirs: u64, ours: u64) -> i64 {
    let skew = theirs.wrapping_sub(ours) as i64;
    // The two are not read at the same moment, between which the calendar's may be set a little.
    match theirs == 0 || skew.unsigned_abs() < SAME {
        true => 0,
        false => skew,
    }
}

/// Clocks that are this close, in nanoseconds, are the same.
const SAME: u64 = 1_000_000_000;

fn read(clock: ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    (now.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(now.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_of_time_namespaces_are_told_from_those_that_were_set_a_little() {
        let hour = 3_600_000_000_000;
        let ours = behind();
        assert_eq!(skew(behind(), ours), 0);
        assert_eq!(skew(0, ours), 0);
        for (theirs, expected) in [
            (ours.wrapping_add(SAME - 1), 0),
            (ours.wrapping_sub(SAME - 1), 0),
            (ours.wrapping_add(hour), hour as i64),
            (ours.wrapping_sub(hour), -(hour as i64)),
        ] {
            assert_eq!(skew(theirs, ours), expected);
        }
        // A clock that is an hour ahead is behind the calendar by so much less.
        let (theirs, deadline) = (ours.wrapping_sub(hour), now() + hour + SAME);
        let here = deadline.saturating_add_signed(skew(theirs, ours));
        assert!(here > now() && here <= now() + SAME);
    }
}

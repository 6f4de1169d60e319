//! What precedes the payload of a request, and of a reply, in its record: words in the machine's byte order, so that the
//! payload is aligned as that of any message.

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
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

//! Messages that say which they are: length and contents follow from the number, so that a receiver notices a lost,
//! repeated or torn one.

use std::sync::OnceLock;

/// The longest message there can be.
const LONGEST: usize = 4 << 20;
/// In words, so that a message and the next ones have other bytes at every place.
const SHIFTS: usize = 509;
/// Bytes after which they repeat, since many a process makes them: no power of two, unlike every ring.
const PERIOD: usize = 8 * 4099;

/// Bytes that look like no others.
fn table() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let mut bytes = Vec::with_capacity(LONGEST + 8 * SHIFTS + PERIOD);
        let mut word = 0x9E37_79B9_7F4A_7C15_u64;
        for _ in 0..PERIOD / 8 {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        while bytes.len() < LONGEST + 8 * SHIFTS {
            bytes.extend_from_within(..PERIOD);
        }
        bytes
    })
}

fn contents(number: u64, len: usize) -> &'static [u8] {
    let shift = (number % SHIFTS as u64) as usize * 8;
    &table()[shift..shift + len]
}

/// The length of a message, of at most `max` bytes: from nothing to all there is, most of them short, with the
/// steps of the layout in between.
pub fn length(number: u64, max: usize) -> usize {
    const SHORT: [usize; 14] = [0, 1, 7, 8, 9, 16, 48, 55, 56, 57, 64, 65, 127, 1000];
    let mixed = (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize;
    match number % 16 {
        at @ 0..14 => SHORT[at as usize].min(max),
        14 => mixed % (max / 8 + 1),
        _ if number % 128 == 15 => max,
        _ if number % 128 == 79 => mixed % (max + 1),
        _ => mixed % 4096 % (max + 1),
    }
}

/// Writes message `number`: the number, then bytes that belong to it.
pub fn fill(number: u64, message: &mut [u8]) {
    message.copy_from_slice(contents(number, message.len()));
    if let Some(first) = message.first_chunk_mut() {
        *first = number.to_le_bytes();
    }
}

/// The number that a message of at least 8 bytes says it has.
#[track_caller]
pub fn number(message: &[u8]) -> u64 {
    u64::from_le_bytes(*message.first_chunk().expect("a message with a number"))
}

/// Checks that this is message `number`, whole.
#[track_caller]
pub fn check(expected: u64, message: &[u8]) {
    let rest = match message.first_chunk::<8>() {
        Some(_) => {
            assert_eq!(
                number(message),
                expected,
                "another message than the next one, of {} bytes",
                message.len()
            );
            8
        }
        None => 0,
    };
    let whole = message[rest..] == contents(expected, message.len())[rest..];
    assert!(
        whole,
        "message {expected} of {} bytes has other contents",
        message.len()
    );
}

//! What docs/memory-layout.md says of the numbers in shared memory, compared with the code when tests are compiled.

const DOCUMENT: &[u8] = include_bytes!("../../../docs/memory-layout.md");

/// Does not compile unless each of these constants has a row in the document that begins with its name and its number:
///
/// ```text
/// | `NAME` | 8 | ...
/// ```
macro_rules! documented {
    ($($constant:expr),+ $(,)?) => {$(
        const _: () = assert!(
            $crate::documented::says(stringify!($constant), $constant as u64),
            concat!("docs/memory-layout.md: no row with the number of `", stringify!($constant), "`")
        );
    )+};
}

/// Whether a row of the document begins with this name and this number.
pub(crate) const fn says(name: &str, number: u64) -> bool {
    let mut at = 0;
    while at < DOCUMENT.len() {
        if DOCUMENT[at] == b'\n' {
            let cell = skip(skip(skip(at + 1, b"| `"), name.as_bytes()), b"` | ");
            if let Some(behind) = number_at(cell, number) {
                if skip(behind, b" |") != NOWHERE {
                    return true;
                }
            }
        }
        at += 1;
    }
    false
}

const NOWHERE: usize = usize::MAX;

/// The place behind `text`, if it is there in the document.
const fn skip(at: usize, text: &[u8]) -> usize {
    let mut i = 0;
    while i < text.len() {
        if at >= DOCUMENT.len() || DOCUMENT.len() - at <= i || DOCUMENT[at + i] != text[i] {
            return NOWHERE;
        }
        i += 1;
    }
    if at == NOWHERE { NOWHERE } else { at + i }
}

/// The place behind the decimal `number`, if it is there in the document.
const fn number_at(mut at: usize, number: u64) -> Option<usize> {
    let mut power = 1;
    while number / power >= 10 {
        power *= 10;
    }
    while power > 0 {
        at = skip(at, &[b'0' + (number / power % 10) as u8]);
        power /= 10;
    }
    if at == NOWHERE { None } else { Some(at) }
}

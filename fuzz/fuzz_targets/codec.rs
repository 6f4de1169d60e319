//! The decoder alone, against bincode's own.
//!
//! Whatever the bytes: no panic, no large allocation; what is accepted is what bincode reads from the same bytes, and is
//! encoded and decoded to the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memlane_fuzz::census::Frugal;
use memlane_fuzz::values::{Node, Plain, Print, Table, Tree, printed};
use memlane_transport::codec::{decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

#[global_allocator]
static FRUGAL: Frugal = Frugal;

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else {
        return;
    };
    match kind % 8 {
        1 => check::<Node>(bytes),
        2 => table(bytes),
        // No descriptors outside of a link: any place for one is an error.
        3 => drop(decode::<Tree>(bytes)),
        _ => check::<Plain>(bytes),
    }
});

fn check<T: Serialize + DeserializeOwned + Print>(bytes: &[u8]) {
    let Ok(value) = decode::<T>(bytes) else {
        return;
    };
    let text = printed(&value);
    let encoded = encode(&value, usize::MAX).expect("what was decoded can be encoded");
    let again = decode::<T>(&encoded).expect("what was encoded can be decoded");
    assert_eq!(printed(&again), text);

    let config = bincode::config::standard();
    let (theirs, used) = bincode::serde::decode_from_slice::<T, _>(bytes, config)
        .expect("what is accepted is bincode's");
    assert_eq!((printed(&theirs), used), (text, bytes.len()));
    let theirs = bincode::serde::encode_to_vec(&value, config).expect("what is accepted");
    assert_eq!(theirs, encoded);
}

/// Its order, and so its bytes, are another each time.
fn table(bytes: &[u8]) {
    if let Ok(value) = decode::<Table>(bytes) {
        let encoded = encode(&value, usize::MAX).expect("what was decoded can be encoded");
        assert_eq!(decode::<Table>(&encoded).expect("and decoded"), value);
    }
}

//! Bytes as values: what lies where, what is refused and why, and writers that do not hold still.
#![cfg(not(memlane_loom))]

mod support;

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{Ordering, fence},
};

use memlane_region::{Live, LiveView, Region, TypedBytes, ViewError};
use proptest::{collection::vec, prelude::*};
use support::process::{self, Link, Other};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const QUOTA: usize = 1 << 20;

/// Three bytes of it are padding, so that it can be read, and not written in place.
#[derive(Clone, Copy, Debug, PartialEq, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Padded {
    number: u32,
    kind: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(32))]
struct Wide([u64; 4]);

fn sent(live: &Live) -> LiveView {
    LiveView::open(live.as_fd().try_clone_to_owned().unwrap(), QUOTA).unwrap()
}

/// What `bytes` hold at `offset` by plain arithmetic, compared with all ways to see it as `T`.
fn same<T>(
    live: &mut Live,
    offset: usize,
    count: usize,
    from: impl Fn(&[u8]) -> T,
) -> Result<(), TestCaseError>
where
    T: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + PartialEq + std::fmt::Debug,
{
    let (size, len) = (size_of::<T>(), live.len());
    let end = |count: usize| {
        size.checked_mul(count)
            .and_then(|size| size.checked_add(offset))
    };
    let fits = |count| end(count).is_some_and(|end| end <= len);
    let expected = |count| -> Result<Vec<T>, ViewError> {
        let (type_name, alignment) = (std::any::type_name::<T>(), align_of::<T>());
        if !fits(count) {
            return Err(ViewError::OutOfBounds {
                type_name,
                size,
                count,
                offset,
                len,
            });
        }
        if offset % alignment != 0 {
            return Err(ViewError::Unaligned {
                type_name,
                alignment,
                offset,
                remainder: offset % alignment,
            });
        }
        Ok((0..count)
            .map(|i| from(&live[offset + i * size..][..size]))
            .collect())
    };
    let (one, all) = (expected(1), expected(count));
    prop_assert_eq!(
        live.view::<T>(offset).copied(),
        one.clone().map(|one| one[0])
    );
    prop_assert_eq!(
        live.view_slice::<T>(offset, count).map(<[T]>::to_vec),
        all.clone()
    );

    // Copies need not be aligned.
    let view = sent(live);
    let copied = view.read_as::<T>(offset);
    prop_assert_eq!(copied.is_ok(), fits(1));
    if let Ok(copied) = copied {
        prop_assert_eq!(copied, from(&live[offset..][..size]));
    }
    if count <= len {
        let mut copies = vec![T::new_zeroed(); count];
        let copied = view.read_slice_as(offset, &mut copies);
        prop_assert_eq!(copied.is_ok(), fits(count));
        for (i, copy) in copies.iter().enumerate() {
            let there = match fits(count) {
                true => from(&live[offset + i * size..][..size]),
                false => T::new_zeroed(),
            };
            prop_assert_eq!(*copy, there);
        }
    }

    prop_assert_eq!(
        live.view_mut::<T>(offset).map(|value| *value),
        one.map(|one| one[0])
    );
    prop_assert_eq!(
        live.view_slice_mut::<T>(offset, count)
            .map(|values| values.to_vec()),
        all
    );
    if let Ok(values) = live.view_slice_mut::<T>(offset, count) {
        values.iter_mut().for_each(|value| *value = T::new_zeroed());
        prop_assert!(live[offset..][..size * count].iter().all(|&byte| byte == 0));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_place_any_length(
        bytes in vec(any::<u8>(), 1..150),
        offset in prop_oneof![0..160usize, (0..20usize).prop_map(|at| at * 8), usize::MAX - 40..=usize::MAX],
        count in prop_oneof![0..40usize, usize::MAX / 8 - 2..usize::MAX / 8 + 3, Just(usize::MAX)],
    ) {
        let live = || Region::copy_of("view", &bytes).unwrap().share().unwrap();
        same::<u8>(&mut live(), offset, count, |b| b[0])?;
        same::<[u8; 3]>(&mut live(), offset, count, |b| b.try_into().unwrap())?;
        same::<u16>(&mut live(), offset, count, |b| u16::from_ne_bytes(b.try_into().unwrap()))?;
        same::<i32>(&mut live(), offset, count, |b| i32::from_ne_bytes(b.try_into().unwrap()))?;
        same::<u64>(&mut live(), offset, count, |b| u64::from_ne_bytes(b.try_into().unwrap()))?;
        same::<u128>(&mut live(), offset, count, |b| u128::from_ne_bytes(b.try_into().unwrap()))?;
        same::<Wide>(&mut live(), offset, count, |b| {
            Wide([0, 8, 16, 24].map(|at| u64::from_ne_bytes(b[at..at + 8].try_into().unwrap())))
        })?;
        same::<()>(&mut live(), offset, count.min(50), |_| ())?;
    }

    #[test]
    fn words(bytes in vec(any::<u8>(), 8..100), at in 0..12usize, value: u64) {
        let mut live = Region::copy_of("words", &bytes).unwrap().share().unwrap();
        let view = sent(&live);
        let at = at * 8 % (bytes.len() & !7);
        prop_assert_eq!(view.load(at), u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap()));
        live.store(at, value);
        prop_assert_eq!(view.load(at), value);
        prop_assert_eq!(*live.view::<u64>(at).unwrap(), value);
        prop_assert_eq!(&live[..at], &bytes[..at]);
        prop_assert_eq!(&live[at + 8..], &bytes[at + 8..]);
    }
}

#[test]
fn errors_say_what_was_expected_and_what_came() {
    let region = Region::create("errors", 100).unwrap();
    let error = region.view::<u64>(96).unwrap_err();
    assert_eq!(
        error.to_string(),
        "expected 1 of u64, of 8 bytes each, at byte 96, got 100 bytes in all"
    );
    let error = region.view_slice::<u32>(6, 3).unwrap_err();
    assert_eq!(
        error.to_string(),
        "expected u32 at a multiple of 4 bytes, got byte 6, whose address is 2 more than one"
    );
}

#[test]
fn padding_is_read_as_it_comes() {
    let frozen = memlane_region::Frozen::copy_of("padded", &[0xff; 16]).unwrap();
    let expected = Padded {
        number: u32::MAX,
        kind: 0xff,
    };
    assert_eq!(frozen.view_slice::<Padded>(0, 2).unwrap(), [expected; 2]);
    let live = Region::copy_of("padded", &[0xff; 16])
        .unwrap()
        .share()
        .unwrap();
    assert_eq!(sent(&live).read_as::<Padded>(5).unwrap(), expected);
}

#[test]
#[should_panic(expected = "no word at byte 4 of a region of 4096 bytes")]
fn words_are_aligned() {
    sent(&Region::create("words", 4096).unwrap().share().unwrap()).load(4);
}

#[test]
#[should_panic(expected = "no word at byte 4096 of a region of 4096 bytes")]
fn words_are_in_the_region() {
    sent(&Region::create("words", 4096).unwrap().share().unwrap()).load(4096);
}

#[test]
#[should_panic(expected = "no word at byte 0 of a region of 7 bytes")]
fn words_end_where_the_bytes_end() {
    let mut region = Region::create("words", 4096).unwrap();
    region.truncate(7).unwrap();
    region.share().unwrap().store(0, 1);
}

/// What the writer in the other process writes, over and over: all ones, and all twos.
const FLIPS: [u8; 2] = [1, 2];
/// Byte where the flipping begins; before it is a word that counts the flips.
const FLIPPED: usize = 8;

/// Not a test, but what other processes of this file run.
#[test]
fn other_process() {
    let Some((role, link)) = process::role() else {
        return;
    };
    let mut live = Region::create("flipped", 4096).unwrap().share().unwrap();
    live.fill(FLIPS[0]);
    live.store(0, 0);
    match role.as_str() {
        "flipper" => flip(live, &link),
        "counter" => count(live, &link),
        other => panic!("{other}"),
    }
}

/// Flips bytes, until the link ends.
fn flip(mut live: Live, link: &Link) {
    link.tell(b"F", Some(live.as_fd()));
    let reader = std::thread::scope(|scope| {
        let heard = scope.spawn(|| link.hear());
        for turn in 1.. {
            live[FLIPPED..].fill(FLIPS[turn % 2]);
            live.store(0, turn as u64);
            if heard.is_finished() {
                break;
            }
        }
        heard.join().unwrap()
    });
    assert_eq!(reader.0, b"");
}

/// Writes a number to every word, and then says which, until the link ends.
fn count(mut live: Live, link: &Link) {
    link.tell(b"C", Some(live.as_fd()));
    for turn in 1..=u64::MAX {
        // Nothing is rewritten before the reader has seen it.
        live.view_slice_mut::<u64>(8, 511).unwrap().fill(turn);
        live.store(0, turn);
        if link.hear().0.is_empty() {
            return;
        }
    }
}

fn received(other: &Other) -> LiveView {
    let fd: Option<OwnedFd> = other.link().hear().1;
    LiveView::open(fd.unwrap(), QUOTA).unwrap()
}

/// Of memory that changes while it is read, a copy is a value, if a mixture.
#[test]
fn copies_of_what_somebody_flips() {
    let other = Other::spawn("flipper");
    let view = received(&other);
    let flipped = |bytes: &[u8]| bytes.iter().all(|byte| FLIPS.contains(byte));
    let (mut changes, mut last, mut slice) = (0, 0, [0_u64; 256]);
    while changes < 300 {
        let turn = view.load(0);
        changes += u32::from(turn != last);
        assert!(turn >= last, "{turn} after {last}");
        last = turn;
        assert!(flipped(
            view.read_as::<Wide>(FLIPPED + 3).unwrap().as_bytes()
        ));
        assert!(flipped(&view.read_as::<[u8; 1000]>(FLIPPED + 1).unwrap()));
        let padded = view.read_as::<Padded>(FLIPPED).unwrap();
        assert!(flipped(&padded.number.to_ne_bytes()) && flipped(&[padded.kind]));
        view.read_slice_as(FLIPPED, &mut slice).unwrap();
        assert!(flipped(slice.as_bytes()));
    }
    drop(view);
    other.finish();
}

/// Store, load and fence: what was written before the store is read after the load.
#[test]
fn a_stored_word_carries_what_was_written_before() {
    let other = Other::spawn("counter");
    let view = received(&other);
    let mut slice = [0_u64; 511];
    for turn in 1..500 {
        while view.load(0) != turn {
            std::thread::yield_now();
        }
        fence(Ordering::Acquire);
        view.read_slice_as(8, &mut slice).unwrap();
        assert_eq!(slice, [turn; 511]);
        other.link().tell(b"N", None);
    }
    drop(view);
    other.finish();
}

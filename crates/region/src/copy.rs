//! Copying out of memory that another process may be writing, and into memory that only this one may.
//!
//! A plain copy of such bytes would be a data race. Rust's atomics have no bytewise copy yet (RFC 3301), so
//! short copies are `Relaxed` 64-bit loads, one per word, and on x86-64 those of about a cache line, and long
//! ones, are assembly, whose loads are outside of what the compiler may reason about. Either way every byte lands in memory that only
//! this process has before anyone looks at it.

use std::sync::atomic::{AtomicU64, Ordering};

/// From this length on the assembly loop pays (measured: at 64 bytes both cost the same).
#[cfg(all(target_arch = "x86_64", not(miri)))]
const LONG: usize = 128;

/// From this length on `rep movsb` pays, on processors that are quick at it (measured: 64 KiB out of the other core's
/// cache in 7.1 us instead of 7.6; below that its start costs more than it saves).
#[cfg(all(target_arch = "x86_64", not(miri)))]
const VERY_LONG: usize = 32 << 10;

/// Copies `dst.len()` bytes from `src + offset`.
///
/// # Safety
///
/// `src` is 8-aligned, and every aligned word that holds a byte of `offset .. offset + dst.len()` is mapped
/// for as long as the call lasts. Other processes may write there; this one may not.
#[inline(always)]
pub(crate) unsafe fn copy_out(src: *const u8, offset: usize, dst: &mut [u8]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    match dst.len() {
        // SAFETY: in bounds by the caller's promise.
        32..=64 => return unsafe { copy_line(src.add(offset), dst) },
        // SAFETY: as above.
        VERY_LONG.. if has_fast_strings() => return unsafe { copy_string(src.add(offset), dst) },
        // SAFETY: as above.
        LONG.. => return unsafe { copy_long(src.add(offset), dst) },
        _ => {}
    }
    // SAFETY: the caller's promise is ours.
    unsafe { copy_words(src, offset, dst) }
}

/// Word by word. Same contract as [`copy_out`].
#[inline(always)]
unsafe fn copy_words(src: *const u8, offset: usize, mut dst: &mut [u8]) {
    // SAFETY: aligned since `src` is, and mapped by the caller's promise for every offset used below.
    let load = |at: usize| unsafe {
        AtomicU64::from_ptr(src.add(at).cast::<u64>().cast_mut())
            .load(Ordering::Relaxed)
            .to_ne_bytes()
    };
    let mut at = offset & !7;
    let skip = offset % 8;
    if skip != 0 && !dst.is_empty() {
        let len = dst.len().min(8 - skip);
        let (head, rest) = dst.split_at_mut(len);
        copy_in(head, &load(at)[skip..skip + len]);
        dst = rest;
        at += 8;
    }
    let mut words = dst.chunks_exact_mut(8);
    for word in &mut words {
        word.copy_from_slice(&load(at));
        at += 8;
    }
    let tail = words.into_remainder();
    if !tail.is_empty() {
        copy_in(tail, &load(at)[..tail.len()]);
    }
}

/// Copies between slices of one length. For up to a cache line it is a few moves in place of a call, which
/// for eight bytes is most of what a message costs.
#[inline(always)]
pub(crate) fn copy_in(dst: &mut [u8], src: &[u8]) {
    /// The first and the last `N` bytes, which together are all of them.
    #[inline(always)]
    fn ends<const N: usize>(dst: &mut [u8], src: &[u8]) {
        let last = src.len() - N;
        let (head, tail): ([u8; N], [u8; N]) = (
            src[..N].try_into().expect("N bytes"),
            src[last..].try_into().expect("N bytes"),
        );
        dst[..N].copy_from_slice(&head);
        dst[last..].copy_from_slice(&tail);
    }
    assert_eq!(dst.len(), src.len());
    match src.len() {
        8..=16 => ends::<8>(dst, src),
        17..=32 => ends::<16>(dst, src),
        33..=64 => ends::<32>(dst, src),
        65.. => dst.copy_from_slice(src),
        4..=7 => ends::<4>(dst, src),
        2..=3 => ends::<2>(dst, src),
        1 => dst[0] = src[0],
        0 => {}
    }
}

/// The first and the last 32 bytes, with SSE2: a cache line in four loads instead of eight.
///
/// # Safety
///
/// `dst.len()` is at least 32 and at most 64, and as many bytes are mapped at `src`.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
unsafe fn copy_line(src: *const u8, dst: &mut [u8]) {
    let last = dst.len() - 32;
    // SAFETY: `last + 32` bytes are loaded from `src`, where the caller promises as many, and stored to `dst`,
    // which is exclusively ours and as long. The only registers touched are named, and nothing is pushed.
    unsafe {
        std::arch::asm!(
            "movdqu {a}, [{from}]",
            "movdqu {b}, [{from} + 16]",
            "movdqu {c}, [{from} + {last}]",
            "movdqu {d}, [{from} + {last} + 16]",
            "movdqu [{to}], {a}",
            "movdqu [{to} + 16], {b}",
            "movdqu [{to} + {last}], {c}",
            "movdqu [{to} + {last} + 16], {d}",
            from = in(reg) src,
            to = in(reg) dst.as_mut_ptr(),
            last = in(reg) last,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack, preserves_flags),
        );
    }
}

/// 64 bytes a turn with SSE2, which every x86-64 has; the last turn overlaps the one before.
///
/// # Safety
///
/// `dst.len()` is at least 64, and as many bytes are mapped at `src`.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn copy_long(src: *const u8, dst: &mut [u8]) {
    let turns = dst.len() / 64;
    let last = dst.len() - 64;
    // SAFETY: the loop loads `turns * 64 <= dst.len()` bytes from `src` and stores as many to `dst`, then the
    // last 64 bytes of both; `dst` is exclusively ours, `src` is mapped by the caller's promise. The only
    // registers touched are named, and nothing is pushed.
    unsafe {
        std::arch::asm!(
            "2:",
            "movdqu {a}, [{from}]",
            "movdqu {b}, [{from} + 16]",
            "movdqu {c}, [{from} + 32]",
            "movdqu {d}, [{from} + 48]",
            "add {from}, 64",
            "movdqu [{to}], {a}",
            "movdqu [{to} + 16], {b}",
            "movdqu [{to} + 32], {c}",
            "movdqu [{to} + 48], {d}",
            "add {to}, 64",
            "dec {turns}",
            "jnz 2b",
            "movdqu {a}, [{tail_from}]",
            "movdqu {b}, [{tail_from} + 16]",
            "movdqu {c}, [{tail_from} + 32]",
            "movdqu {d}, [{tail_from} + 48]",
            "movdqu [{tail_to}], {a}",
            "movdqu [{tail_to} + 16], {b}",
            "movdqu [{tail_to} + 32], {c}",
            "movdqu [{tail_to} + 48], {d}",
            from = inout(reg) src => _,
            to = inout(reg) dst.as_mut_ptr() => _,
            turns = inout(reg) turns => _,
            tail_from = in(reg) src.add(last),
            tail_to = in(reg) dst.as_mut_ptr().add(last),
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack),
        );
    }
}

/// Whether the processor has "enhanced rep movsb" (CPUID leaf 7, EBX bit 9; Intel SDM, volume 2, CPUID).
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
fn has_fast_strings() -> bool {
    use std::{
        arch::x86_64::{__cpuid, __cpuid_count},
        sync::OnceLock,
    };
    // Under a hypervisor, asking takes microseconds.
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        #[allow(unused_unsafe)] // safe since Rust 1.94
        // SAFETY: every x86-64 has the instruction.
        unsafe {
            __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx & 1 << 9 != 0
        }
    })
}

/// All at once, by the processor's own routine.
///
/// # Safety
///
/// As many bytes as `dst` has are mapped at `src`.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn copy_string(src: *const u8, dst: &mut [u8]) {
    // SAFETY: `dst.len()` bytes are loaded from `src`, where the caller promises as many, and stored to `dst`, which is
    // exclusively ours. The direction flag is clear, as on entry to every `asm!`. The registers changed are named.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") dst.len() => _,
            inout("rsi") src => _,
            inout("rdi") dst.as_mut_ptr() => _,
            options(nostack, preserves_flags),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_short_length() {
        let src: Vec<u8> = (1..=200).collect();
        for len in 0..src.len() {
            let mut dst = vec![0; len + 1];
            copy_in(&mut dst[..len], &src[..len]);
            assert_eq!(dst[..len], src[..len]);
            assert_eq!(dst[len], 0);
        }
    }

    #[test]
    fn very_long_ones() {
        let words: Vec<AtomicU64> = (0..(64 << 10) / 8).map(AtomicU64::new).collect();
        let byte = |at: usize| (at as u64 / 8).to_ne_bytes()[at % 8];
        for len in [32 << 10, (32 << 10) - 1, (32 << 10) + 1, 50_001] {
            for offset in [0, 1, 13] {
                let mut dst = vec![0; len + 1];
                // SAFETY: a vector of words is 8-aligned, and the range ends inside it.
                unsafe { copy_out(words.as_ptr().cast(), offset, &mut dst[..len]) };
                let right = (0..len).all(|at| dst[at] == byte(offset + at));
                assert!(right && dst[len] == 0, "offset {offset}, {len} bytes");
            }
        }
    }

    #[test]
    fn every_offset_and_length() {
        let words: Vec<AtomicU64> = (0..64)
            .map(|i: u64| AtomicU64::new(i.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
            .collect();
        let bytes: Vec<u8> = words
            .iter()
            .flat_map(|w| w.load(Ordering::Relaxed).to_ne_bytes())
            .collect();
        for offset in 0..32 {
            for len in 0..=bytes.len() - offset {
                let mut dst = vec![0; len];
                // SAFETY: a vector of words is 8-aligned, and the range ends inside it.
                unsafe { copy_out(words.as_ptr().cast(), offset, &mut dst) };
                assert_eq!(
                    dst,
                    bytes[offset..offset + len],
                    "offset {offset}, {len} bytes"
                );
            }
        }
    }
}

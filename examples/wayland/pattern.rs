//! The picture: every pixel is a function of the frame's number and its place, so that it can be checked.

use crate::events::Size;

/// Bytes of a pixel: XRGB8888, little-endian, as every compositor takes it.
pub(crate) const PIXEL: usize = 4;

/// Blocks that drift apart and a gradient across them; each pixel changes with each frame.
fn pixel(frame: u32, x: u32, y: u32) -> u32 {
    let blocks = x.wrapping_add(3 * frame) ^ y.wrapping_sub(2 * frame);
    let red = blocks & 0xff;
    let green = (x / 2).wrapping_add(y) & 0xff;
    let blue = x.wrapping_add(2 * y).wrapping_add(5 * frame) & 0xff;
    0xff00_0000 | red << 16 | green << 8 | blue
}

fn places(size: Size) -> impl Iterator<Item = (u32, u32)> {
    (0..size.height).flat_map(move |y| (0..size.width).map(move |x| (x, y)))
}

/// Draws a frame in place.
pub(crate) fn draw(picture: &mut [u8], size: Size, frame: u32) {
    for (bytes, (x, y)) in picture.chunks_exact_mut(PIXEL).zip(places(size)) {
        bytes.copy_from_slice(&pixel(frame, x, y).to_le_bytes());
    }
}

/// A pixel that is not what it should be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wrong {
    pub(crate) x: u32,
    pub(crate) y: u32,
    pub(crate) expected: u32,
    pub(crate) found: u32,
}

/// All pixels of `picture` that differ from the frame. The X of XRGB means nothing, and is not compared.
pub(crate) fn differences(picture: &[u8], size: Size, frame: u32) -> impl Iterator<Item = Wrong> {
    let pixels = picture.chunks_exact(PIXEL).zip(places(size));
    pixels.filter_map(move |(bytes, (x, y))| {
        let colour = |pixel| pixel & 0x00ff_ffff;
        let found = colour(u32::from_le_bytes(bytes.try_into().expect("a pixel")));
        let expected = colour(pixel(frame, x, y));
        (found != expected).then_some(Wrong {
            x,
            y,
            expected,
            found,
        })
    })
}

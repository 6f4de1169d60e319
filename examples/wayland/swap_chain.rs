//! Buffers that take turns: drawn into, shown, and drawn into again once the compositor has released them.

use memlane_region::{Live, Region};
use wayland_client::protocol::wl_buffer::WlBuffer;

use crate::window::Window;

/// A buffer, and who has it.
#[derive(Debug)]
struct Frame {
    memory: Live,
    buffer: WlBuffer,
    /// It is the compositor's until it releases it.
    shown: bool,
    /// It has been drawn into.
    used: bool,
}

/// A few buffers of the window's size.
#[derive(Debug)]
pub(crate) struct SwapChain {
    frames: Vec<Frame>,
}

impl SwapChain {
    pub(crate) fn new(window: &Window, count: u32) -> anyhow::Result<SwapChain> {
        let frames = (0..count).map(|number| {
            let region = Region::create("frame", window.size().bytes())?;
            // SAFETY: a compositor reads the buffers of a window and does not write them (wl_shm); libwayland maps them
            // writable all the same. Whoever runs this program trusts the compositor with all that he sees.
            let memory = unsafe { region.share_writable() }?;
            let buffer = window.buffer(&memory, Some(number))?;
            Ok(Frame {
                memory,
                buffer,
                shown: false,
                used: false,
            })
        });
        let frames = frames.collect::<anyhow::Result<_>>()?;
        Ok(SwapChain { frames })
    }

    /// Has a frame drawn into a buffer that the compositor does not have, waiting for one if it has all, and shows it.
    pub(crate) fn show(
        &mut self,
        window: &mut Window,
        draw: impl FnOnce(&mut [u8]),
    ) -> anyhow::Result<()> {
        let next = self.free(window)?;
        let frame = &mut self.frames[next];
        draw(&mut frame.memory);
        (frame.used, frame.shown) = (true, true);
        window.show(&frame.buffer)
    }

    /// How many of the buffers have been drawn into.
    pub(crate) fn used(&self) -> usize {
        self.frames.iter().filter(|frame| frame.used).count()
    }

    /// A buffer that the compositor does not have.
    fn free(&mut self, window: &mut Window) -> anyhow::Result<usize> {
        window.wait(|said| {
            for number in said.released.drain(..) {
                if let Some(frame) = self.frames.get_mut(number as usize) {
                    frame.shown = false;
                }
            }
            self.frames.iter().position(|frame| !frame.shown)
        })
    }
}

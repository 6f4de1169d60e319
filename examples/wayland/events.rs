//! What the compositor says.

use wayland_client::{
    Connection, Dispatch, QueueHandle, WEnum, delegate_noop,
    globals::GlobalListContents,
    protocol::{
        wl_buffer::{self, WlBuffer},
        wl_callback::{self, WlCallback},
        wl_compositor::WlCompositor,
        wl_output::{self, WlOutput},
        wl_registry::{self, WlRegistry},
        wl_shm::WlShm,
        wl_shm_pool::WlShmPool,
        wl_surface::WlSurface,
    },
};
use wayland_protocols::xdg::shell::client::{
    xdg_surface::{self, XdgSurface},
    xdg_toplevel::{self, XdgToplevel},
    xdg_wm_base::{self, XdgWmBase},
};

use crate::pattern::PIXEL;

/// In pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) width: u32,
    pub(crate) height: u32,
}

impl Size {
    /// Nothing, for what is no size.
    fn new(width: i32, height: i32) -> Option<Size> {
        let positive = |number| u32::try_from(number).ok().filter(|&number| number > 0);
        Some(Size {
            width: positive(width)?,
            height: positive(height)?,
        })
    }

    pub(crate) fn pixels(self) -> usize {
        self.width as usize * self.height as usize
    }

    pub(crate) fn bytes(self) -> usize {
        self.pixels() * PIXEL
    }

    /// Width, height, bytes of a row and of all, as the protocol has them; nothing, if it cannot.
    pub(crate) fn of_buffer(self) -> Option<[i32; 4]> {
        let width = i32::try_from(self.width).ok()?;
        let height = i32::try_from(self.height).ok()?;
        let stride = width.checked_mul(PIXEL as i32)?;
        Some([width, height, stride, stride.checked_mul(height)?])
    }
}

/// What the compositor has said so far.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// The size it wants for the window; nothing, if it leaves that to us.
    pub(crate) wanted: Option<Size>,
    /// The window has a state to begin with.
    pub(crate) configured: bool,
    /// The window is to go.
    pub(crate) closed: bool,
    /// The size of the output.
    pub(crate) output: Option<Size>,
    /// The frame committed last has been drawn.
    pub(crate) drawn: bool,
    /// Buffers that it does not read any more, by number.
    pub(crate) released: Vec<u32>,
    /// A screenshot has been taken.
    pub(crate) shot: bool,
}

impl Dispatch<XdgToplevel, ()> for Said {
    fn event(
        said: &mut Said,
        _: &XdgToplevel,
        event: xdg_toplevel::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Said>,
    ) {
        match event {
            xdg_toplevel::Event::Configure { width, height, .. } => {
                said.wanted = Size::new(width, height);
            }
            xdg_toplevel::Event::Close => said.closed = true,
            _ => {}
        }
    }
}

impl Dispatch<XdgSurface, ()> for Said {
    fn event(
        said: &mut Said,
        surface: &XdgSurface,
        event: xdg_surface::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Said>,
    ) {
        if let xdg_surface::Event::Configure { serial } = event {
            surface.ack_configure(serial);
            said.configured = true;
        }
    }
}

impl Dispatch<XdgWmBase, ()> for Said {
    fn event(
        _: &mut Said,
        shell: &XdgWmBase,
        event: xdg_wm_base::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Said>,
    ) {
        if let xdg_wm_base::Event::Ping { serial } = event {
            shell.pong(serial);
        }
    }
}

impl Dispatch<WlOutput, ()> for Said {
    fn event(
        said: &mut Said,
        _: &WlOutput,
        event: wl_output::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Said>,
    ) {
        if let wl_output::Event::Mode {
            flags: WEnum::Value(flags),
            width,
            height,
            ..
        } = event
            && flags.contains(wl_output::Mode::Current)
        {
            said.output = Size::new(width, height);
        }
    }
}

impl Dispatch<WlCallback, ()> for Said {
    fn event(
        said: &mut Said,
        _: &WlCallback,
        event: wl_callback::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Said>,
    ) {
        if let wl_callback::Event::Done { .. } = event {
            said.drawn = true;
        }
    }
}

impl Dispatch<WlBuffer, Option<u32>> for Said {
    fn event(
        said: &mut Said,
        _: &WlBuffer,
        event: wl_buffer::Event,
        number: &Option<u32>,
        _: &Connection,
        _: &QueueHandle<Said>,
    ) {
        if let wl_buffer::Event::Release = event {
            said.released.extend(number);
        }
    }
}

/// Objects that come and go while the window is there are of no interest.
impl Dispatch<WlRegistry, GlobalListContents> for Said {
    fn event(
        _: &mut Said,
        _: &WlRegistry,
        _: wl_registry::Event,
        _: &GlobalListContents,
        _: &Connection,
        _: &QueueHandle<Said>,
    ) {
    }
}

delegate_noop!(Said: WlCompositor);
delegate_noop!(Said: WlShmPool);
delegate_noop!(Said: ignore WlShm);
delegate_noop!(Said: ignore WlSurface);

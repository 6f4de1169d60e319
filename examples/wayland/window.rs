//! A fullscreen window.

use std::os::fd::AsFd;

use anyhow::{Context, bail};
use wayland_client::{
    Connection, Dispatch, EventQueue, Proxy,
    globals::{BindError, GlobalList, registry_queue_init},
    protocol::{
        wl_buffer::WlBuffer,
        wl_compositor::WlCompositor,
        wl_output::WlOutput,
        wl_shm::{Format, WlShm},
        wl_surface::WlSurface,
    },
};
use wayland_protocols::xdg::shell::client::xdg_wm_base::XdgWmBase;

pub(crate) use crate::events::{Said, Size};

/// A fullscreen window, and what the compositor has said about it.
#[derive(Debug)]
pub(crate) struct Window {
    queue: EventQueue<Said>,
    said: Said,
    globals: GlobalList,
    shm: WlShm,
    output: WlOutput,
    surface: WlSurface,
    size: Size,
}

impl Window {
    /// Opens it, in the size that the compositor asks for.
    pub(crate) fn open(connection: &Connection) -> anyhow::Result<Window> {
        let (globals, queue) = registry_queue_init::<Said>(connection)?;
        let events = queue.handle();
        let compositor: WlCompositor = globals.bind(&events, 4..=4, ())?;
        let shell: XdgWmBase = globals.bind(&events, 1..=1, ())?;
        let shm = globals.bind(&events, 1..=1, ())?;
        let output = globals.bind(&events, 1..=1, ())?;
        let surface = compositor.create_surface(&events, ());
        let toplevel = shell
            .get_xdg_surface(&surface, &events, ())
            .get_toplevel(&events, ());
        toplevel.set_title("memlane".into());
        toplevel.set_fullscreen(Some(&output));
        surface.commit();
        let mut window = Window {
            queue,
            said: Said::default(),
            globals,
            shm,
            output,
            surface,
            // Where the compositor has no wish.
            size: Size {
                width: 640,
                height: 480,
            },
        };
        window.wait(|said| said.configured.then_some(()))?;
        window.size = window.said.wanted.unwrap_or(window.size);
        Ok(window)
    }

    pub(crate) fn size(&self) -> Size {
        self.size
    }

    pub(crate) fn output(&self) -> &WlOutput {
        &self.output
    }

    /// A global object that only some compositors have.
    pub(crate) fn bind<I>(&self, version: u32) -> Result<I, BindError>
    where
        I: Proxy + 'static,
        Said: Dispatch<I, ()>,
    {
        let events = self.queue.handle();
        self.globals.bind(&events, version..=version, ())
    }

    /// Gives memory to the compositor, as a buffer of the window's size. Its release is told under `number`.
    pub(crate) fn buffer(
        &self,
        memory: impl AsFd,
        number: Option<u32>,
    ) -> anyhow::Result<WlBuffer> {
        let [width, height, stride, len] = self
            .size
            .of_buffer()
            .with_context(|| format!("no buffer has {:?}", self.size))?;
        let events = self.queue.handle();
        let pool = self.shm.create_pool(memory.as_fd(), len, &events, ());
        let format = Format::Xrgb8888;
        let buffer = pool.create_buffer(0, width, height, stride, format, &events, number);
        // The buffer keeps the memory.
        pool.destroy();
        Ok(buffer)
    }

    /// Shows a buffer, and waits until the compositor has drawn it.
    pub(crate) fn show(&mut self, buffer: &WlBuffer) -> anyhow::Result<()> {
        self.said.drawn = false;
        self.surface.attach(Some(buffer), 0, 0);
        self.surface.damage_buffer(0, 0, i32::MAX, i32::MAX);
        self.surface.frame(&self.queue.handle(), ());
        self.surface.commit();
        self.wait(|said| said.drawn.then_some(()))
    }

    /// Waits until the compositor has said what is asked for.
    pub(crate) fn wait<T>(
        &mut self,
        mut answer: impl FnMut(&mut Said) -> Option<T>,
    ) -> anyhow::Result<T> {
        loop {
            if let Some(answer) = answer(&mut self.said) {
                return Ok(answer);
            }
            self.queue.blocking_dispatch(&mut self.said)?;
            if self.said.closed {
                bail!("the window was closed");
            }
        }
    }
}

//! Screenshots: the compositor writes what it shows into memory of ours.

use anyhow::{Context, ensure};
use memlane_region::Foreign;
use wayland_client::{Connection, Dispatch, QueueHandle, protocol::wl_buffer::WlBuffer};

use crate::window::{Said, Window};
use protocol::weston_screenshooter::{Event, WestonScreenshooter};

/// Weston's protocol, as wayland-scanner makes it.
#[allow(missing_docs, missing_debug_implementations, unreachable_pub)]
mod protocol {
    use wayland_client::{self, protocol::*};

    mod interfaces {
        use wayland_client::{backend as wayland_backend, protocol::__interfaces::*};
        wayland_scanner::generate_interfaces!("wayland/weston-screenshooter.xml");
    }
    use interfaces::*;

    wayland_scanner::generate_client_code!("wayland/weston-screenshooter.xml");
}

/// Takes screenshots of the output that the window covers.
#[derive(Debug)]
pub(crate) struct Camera {
    shooter: WestonScreenshooter,
    memory: Foreign,
    picture: WlBuffer,
}

impl Camera {
    /// Fails if the compositor offers no screenshots, or the window does not cover its output.
    pub(crate) fn new(window: &mut Window) -> anyhow::Result<Camera> {
        let shooter = window
            .bind(1)
            .context("no screenshots here: it takes weston, started with --debug")?;
        let output = window.wait(|said| said.output)?;
        ensure!(
            output == window.size(),
            "expected a window that covers the output, {output:?}, got {:?}",
            window.size()
        );
        let memory = Foreign::create("screenshot", output.bytes())?;
        let picture = window.buffer(&memory, None)?;
        Ok(Camera {
            shooter,
            memory,
            picture,
        })
    }

    /// What the output shows now: a copy, since the compositor could go on writing.
    pub(crate) fn shoot(&mut self, window: &mut Window) -> anyhow::Result<Vec<u8>> {
        self.shooter.take_shot(window.output(), &self.picture);
        window.wait(|said| std::mem::take(&mut said.shot).then_some(()))?;
        let mut picture = vec![0; self.memory.len()];
        self.memory.read_at(0, &mut picture)?;
        Ok(picture)
    }
}

impl Dispatch<WestonScreenshooter, ()> for Said {
    fn event(
        said: &mut Said,
        _: &WestonScreenshooter,
        Event::Done: Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Said>,
    ) {
        said.shot = true;
    }
}

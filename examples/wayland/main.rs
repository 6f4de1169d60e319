//! Frames in a Wayland compositor, drawn in place in memory that is shared with it.
//!
//! Two or three regions take turns as the buffers of a fullscreen window. Each is drawn into while the compositor does not
//! have it, shown, and drawn into again once the compositor has released it: no frame is copied on its way, no memory is
//! allocated after the first few frames, and no name is left anywhere.
//!
//! ```text
//! $ cargo run --release --example wayland -- [--frames 60] [--buffers 3]
//! ```
//!
//! With `--check`, the compositor takes screenshots, into memory that it writes and this program only copies from, and
//! each of their pixels is compared with what was drawn. For that it has to be weston, which need not have a screen:
//!
//! ```text
//! $ weston --backend=headless-backend.so --use-pixman --width=1024 --height=640 --socket=frames --debug \
//!          --idle-time=0 --config=$PWD/examples/wayland/weston.ini &
//! $ WAYLAND_DISPLAY=frames cargo run --release --example wayland -- --check
//! ```

mod events;
mod pattern;
mod screenshot;
mod swap_chain;
#[cfg(test)]
mod test;
mod window;

use anyhow::{Context, bail};
use clap::Parser;
use wayland_client::Connection;

use pattern::Wrong;
use screenshot::Camera;
use swap_chain::SwapChain;
use window::Window;

#[derive(Parser)]
#[command(about = "Shows frames in a Wayland compositor, drawn in place in shared memory.")]
struct Options {
    /// How many frames to show
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    frames: u32,
    /// How many buffers take turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=16))]
    buffers: u32,
    /// Take a screenshot of every tenth frame and of the last one, and compare each pixel with what was drawn
    #[arg(long)]
    check: bool,
}

/// What was done.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    frames: u32,
    /// Buffers drawn into; one that has been released is used first.
    buffers: usize,
    screenshots: u32,
    /// Pixels compared, each of which was as it should be.
    pixels: u64,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let connection = Connection::connect_to_env().context("no Wayland compositor")?;
    let summary = run(&options, &connection)?;
    println!(
        "{} frames shown, in {} buffers that took turns",
        summary.frames, summary.buffers
    );
    if options.check {
        println!(
            "{} screenshots, {} pixels compared: all as drawn",
            summary.screenshots, summary.pixels
        );
    }
    Ok(())
}

fn run(options: &Options, connection: &Connection) -> anyhow::Result<Summary> {
    let mut window = Window::open(connection)?;
    let size = window.size();
    let mut chain = SwapChain::new(&window, options.buffers)?;
    let mut camera = match options.check {
        true => Some(Camera::new(&mut window)?),
        false => None,
    };
    let mut screenshots = 0;
    for frame in 0..options.frames {
        chain.show(&mut window, |picture| pattern::draw(picture, size, frame))?;
        let due = frame % 10 == 0 || frame == options.frames - 1;
        if let Some(camera) = camera.as_mut().filter(|_| due) {
            let picture = camera.shoot(&mut window)?;
            compare(&picture, size, frame)?;
            screenshots += 1;
        }
    }
    Ok(Summary {
        frames: options.frames,
        buffers: chain.used(),
        screenshots,
        pixels: u64::from(screenshots) * size.pixels() as u64,
    })
}

/// Compares a screenshot with the frame, pixel by pixel.
fn compare(picture: &[u8], size: window::Size, frame: u32) -> anyhow::Result<()> {
    let mut wrong = pattern::differences(picture, size, frame);
    let Some(Wrong {
        x,
        y,
        expected,
        found,
    }) = wrong.next()
    else {
        return Ok(());
    };
    bail!(
        "frame {frame}: {} of {} pixels differ; the first, at {x}, {y}, should be {expected:06x} and is {found:06x}",
        1 + wrong.count(),
        size.pixels()
    );
}

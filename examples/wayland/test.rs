//! The example with a weston that has no screen, as two processes.
//!
//! Skipped where weston is not installed; with `MEMLANE_REQUIRE_WESTON=1` that is a failure.

use std::{
    fs::DirBuilder,
    io::{PipeReader, Read, pipe},
    os::{
        fd::OwnedFd,
        unix::{fs::DirBuilderExt, net::UnixStream},
    },
    path::PathBuf,
    process::{Child, Command},
};

use clap::Parser;
use memlane_region::Region;
use wayland_client::Connection;

use crate::{
    Options, Summary, compare, pattern, run, screenshot::Camera, swap_chain::SwapChain,
    window::Window,
};

/// A weston with an output of 320 x 200 pixels, for one client.
struct Weston {
    process: Child,
    /// Written by it and by the processes that it starts: at its end when the last of them is gone.
    messages: PipeReader,
    runtime_directory: PathBuf,
}

impl Weston {
    /// Nothing if it is not installed, unless it has to be. Drop the connection first.
    fn start(test: &str) -> Option<(Weston, Connection)> {
        let name = format!("memlane-{}-{test}", std::process::id());
        let runtime_directory = std::env::temp_dir().join(name);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (messages, writer) = pipe().unwrap();
        DirBuilder::new()
            .mode(0o700)
            .create(&runtime_directory)
            .unwrap();
        let config = concat!(env!("CARGO_MANIFEST_DIR"), "/wayland/weston.ini");
        let mut command = Command::new("weston");
        command
            .args(["--backend=headless-backend.so", "--use-pixman"])
            .args(["--width=320", "--height=200", "--idle-time=0", "--debug"])
            .arg(format!("--config={config}"))
            .env("XDG_RUNTIME_DIR", &runtime_directory)
            // No socket that anyone could find: standard input is the client, and it ends with it.
            .env("WAYLAND_SERVER_SOCKET", "0")
            .stdin(OwnedFd::from(theirs))
            .stdout(writer.try_clone().unwrap())
            .stderr(writer);
        let process = command.spawn();
        drop(command);
        match process {
            Ok(process) => {
                let weston = Weston {
                    process,
                    messages,
                    runtime_directory,
                };
                Some((weston, Connection::from_socket(ours).unwrap()))
            }
            Err(error) => {
                std::fs::remove_dir(&runtime_directory).unwrap();
                assert!(
                    std::env::var_os("MEMLANE_REQUIRE_WESTON").is_none_or(|set| set != "1"),
                    "MEMLANE_REQUIRE_WESTON=1, and weston does not start: {error}"
                );
                eprintln!("skipped: weston does not start, {error}");
                None
            }
        }
    }
}

impl Drop for Weston {
    fn drop(&mut self) {
        // It may have ended with its client.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let mut messages = String::new();
        let _ = self.messages.read_to_string(&mut messages);
        let _ = std::fs::remove_dir_all(&self.runtime_directory);
        if std::thread::panicking() {
            eprintln!("weston said:\n{messages}");
        }
    }
}

#[test]
fn frames_are_shown_as_they_were_drawn() {
    for buffers in [2, 3] {
        let Some((_weston, connection)) = Weston::start("shown") else {
            return;
        };
        let buffers_option = format!("--buffers={buffers}");
        let options = ["wayland", "--check", "--frames=25", &buffers_option];
        let summary = run(&Options::parse_from(options), &connection).unwrap();
        assert!((2..=buffers).contains(&summary.buffers), "{summary:?}");
        let expected = Summary {
            frames: 25,
            screenshots: 4,
            pixels: 4 * 320 * 200,
            ..summary
        };
        assert_eq!(summary, expected);
    }
}

#[test]
fn one_wrong_pixel_is_noticed() {
    let Some((_weston, connection)) = Weston::start("noticed") else {
        return;
    };
    let mut window = Window::open(&connection).unwrap();
    let size = window.size();
    let mut chain = SwapChain::new(&window, 2).unwrap();
    let mut camera = Camera::new(&mut window).unwrap();
    let mut show = |wrong: bool| {
        let draw = |picture: &mut [u8]| {
            pattern::draw(picture, size, 0);
            picture[4 * (320 * 123 + 45)] ^= u8::from(wrong);
        };
        chain.show(&mut window, draw).unwrap();
        compare(&camera.shoot(&mut window).unwrap(), size, 0)
    };
    show(false).unwrap();
    let error = show(true).unwrap_err().to_string();
    let expected = "frame 0: 1 of 64000 pixels differ; the first, at 45, 123, should be";
    assert!(error.starts_with(expected), "{error}");
    show(false).unwrap();
}

/// Why the example takes `share_writable`: should this fail one day, `share` is enough for that libwayland.
#[test]
fn memory_that_only_its_maker_can_write_is_refused() {
    let Some((_weston, connection)) = Weston::start("refused") else {
        return;
    };
    let mut window = Window::open(&connection).unwrap();
    let region = Region::create("frame", window.size().bytes()).unwrap();
    let memory = region.share().unwrap();
    let buffer = window.buffer(&memory, None).unwrap();
    let error = window.show(&buffer).unwrap_err().to_string();
    assert!(error.contains("failed mmap"), "{error}");
}

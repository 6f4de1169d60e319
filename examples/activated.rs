//! A service that its first client starts, and that ends when nobody has come for a while: the sockets are systemd's.
//!
//! ```text
//! $ cargo build --example activated
//! $ systemd-socket-activate --seqpacket --listen=$XDG_RUNTIME_DIR/greeter target/debug/examples/activated
//!
//! $ target/debug/examples/activated $XDG_RUNTIME_DIR/greeter        (in another terminal: a client)
//! Hello, world! This is process 4711, started for the socket "unknown".
//! ```
//!
//! A unit file for it is in the documentation of `memlane_transport::activation`.

use std::time::Duration;

use anyhow::{Context, ensure};
use memlane_transport::{Access, Address, Error, Link, Listener};

/// How long to wait for the next client. The socket stays with systemd, so one that comes at the last moment starts the
/// next service.
const IDLE: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<()> {
    if let Some(path) = std::env::args_os().nth(1) {
        let link = Link::connect(&Address::path(path)?)?;
        link.send("world")?;
        println!("{}", link.recv::<String>()?);
        return Ok(());
    }
    // SAFETY: nothing else in this program takes what a service manager passed.
    let mut listeners = unsafe { Listener::activated(Access::SameUser) }?;
    ensure!(listeners.len() < 2, "one socket is enough");
    let (name, listener) = listeners
        .pop()
        .context("not started by systemd-socket-activate or a socket unit")?;
    loop {
        match listener.accept_timeout(IDLE) {
            // A client that goes wrong ends its own link.
            Ok(link) => drop(greet(&link, &name)),
            Err(Error::AccessDenied { .. }) => {}
            Err(Error::TimedOut) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn greet(link: &Link, socket: &str) -> Result<(), Error> {
    let who: String = link.recv_timeout(IDLE)?;
    let process = std::process::id();
    let greeting =
        format!("Hello, {who}! This is process {process}, started for the socket {socket:?}.");
    link.send_timeout(&greeting, IDLE)
}

//! Two processes that cannot open anything get a link to one another from their parent, and share memory over it.
//!
//! ```text
//! $ cargo run --example broker
//! ```
//!
//! The parent starts this executable twice. Each child enters a seccomp filter under which `open`, `socket`, `connect`
//! and their like fail, shows that they do, and asks the parent for the other by name. What they then say to one
//! another the parent does not see.

mod sandbox;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use memlane_transport::broker::{Arrival, Broker, Client, Declined, Event};
use memlane_transport::{Error, Link, MemoryFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

const PICTURE: &[u8] = b"a picture, drawn without files";
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        None => parent(),
        Some(name @ ("renderer" | "decoder")) => {
            child(name).with_context(|| format!("in the {name}"))
        }
        Some(other) => bail!("expected no argument, found {other:?}"),
    }
}

fn parent() -> anyhow::Result<()> {
    let mut broker = Broker::new(|from, to| from == "renderer" && to == "decoder")?;
    let mut children = ["renderer", "decoder"]
        .map(|name| spawn(&mut broker, name))
        .into_iter()
        .collect::<anyhow::Result<Vec<Child>>>()?;
    let mut introductions = 0;
    while broker.names().next().is_some() {
        for event in broker.drive_timeout(PATIENCE)? {
            match event {
                Event::Introduced { from, to } => {
                    println!("broker:   {from}, this is {to}");
                    introductions += 1;
                }
                Event::Declined {
                    from, to, reason, ..
                } => println!("broker:   {from}, {to:?}: {reason}"),
                Event::Left { name } => println!("broker:   {name} has left"),
                other => bail!("{other:?}"),
            }
        }
    }
    for child in &mut children {
        let status = child.wait()?;
        ensure!(status.success(), "a child failed: {status}");
    }
    ensure!(
        introductions == 1,
        "expected one introduction, made {introductions}"
    );
    Ok(())
}

fn spawn(broker: &mut Broker, name: &str) -> anyhow::Result<Child> {
    let link = OwnedFd::from(broker.admit(name)?);
    // The copy in the command is closed with it, so that the child's is the only one.
    let child = Command::new(std::env::current_exe()?)
        .arg(name)
        .stdin(Stdio::from(link))
        .spawn()?;
    Ok(child)
}

fn child(name: &str) -> anyhow::Result<()> {
    let link = Link::inherited()?;
    let mut broker = Client::new(link);

    sandbox::enter()?;
    refused(name, "open a file", File::open("/dev/null"))?;
    refused(name, "make a socket", UnixDatagram::unbound())?;
    refused(name, "make a pair of sockets", UnixStream::pair())?;
    refused(name, "start a program", Command::new("true").status())?;

    match name {
        "renderer" => render(&mut broker),
        _ => decode(&mut broker),
    }
}

fn refused<T>(name: &str, what: &str, result: io::Result<T>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            say(name, &format!("cannot {what}: {error}"));
            Ok(())
        }
        Err(error) => bail!("to {what} failed for another reason: {error}"),
        Ok(_) => bail!("could {what} in the sandbox"),
    }
}

fn render(broker: &mut Client) -> anyhow::Result<()> {
    // Whether there is somebody of that name is none of its business.
    match broker.introduce_timeout("network", PATIENCE) {
        Err(error @ Error::Declined { .. }) => say("renderer", &error.to_string()),
        other => bail!("expected no introduction, found {other:?}"),
    }
    let decoder = loop {
        match broker.introduce_timeout("decoder", PATIENCE) {
            Err(Error::Declined {
                reason: Declined::Busy,
                ..
            }) => {}
            other => break other?,
        }
    };
    decoder.send_timeout(&("picture", memory(PICTURE)?), PATIENCE)?;
    let (what, answer): (String, MemoryFd) = decoder.recv_timeout(PATIENCE)?;
    let answer = contents(answer)?;
    say(
        "renderer",
        &format!("got a {what}: {:?}", String::from_utf8_lossy(&answer)),
    );
    ensure!(answer == PICTURE.to_ascii_uppercase());
    Ok(())
}

fn decode(broker: &mut Client) -> anyhow::Result<()> {
    let (name, renderer) = match broker.recv_timeout(PATIENCE)? {
        Arrival::Introduced { name, link } => (name, link),
        other => bail!("expected an introduction, found {other:?}"),
    };
    let (what, picture): (String, MemoryFd) = renderer.recv_timeout(PATIENCE)?;
    let picture = contents(picture)?;
    say(
        "decoder",
        &format!(
            "got a {what} from the {name}: {:?}",
            String::from_utf8_lossy(&picture)
        ),
    );
    let answer = memory(&picture.to_ascii_uppercase())?;
    renderer.send_timeout(&("decoded picture", answer), PATIENCE)?;
    Ok(())
}

/// Memory with `bytes` in it that nobody can change or cut short any more.
fn memory(bytes: &[u8]) -> anyhow::Result<MemoryFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("picture", flags)?);
    file.write_all_at(bytes, 0)?;
    fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(MemoryFd::try_from(OwnedFd::from(file))?)
}

/// What is in memory of which only its kind has been checked.
fn contents(memory: MemoryFd) -> anyhow::Result<Vec<u8>> {
    let file = File::from(OwnedFd::from(memory));
    let mut bytes = vec![0; 100];
    let size = file.read_at(&mut bytes, 0)?;
    bytes.truncate(size);
    Ok(bytes)
}

/// One write, so that the lines of two processes stay apart.
fn say(name: &str, what: &str) {
    let _ = io::stdout().write_all(format!("{:9} {what}\n", format!("{name}:")).as_bytes());
}

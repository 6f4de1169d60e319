//! A parent has its data looked at by a child that can do nothing else: no address, no files, no network.
//!
//! ```text
//! $ cargo run --release --example spawn -- [FILE]
//! ```
//!
//! The parent starts this executable again, in a sandbox, and streams a file to it (by default this executable) over one
//! of two links that the child is born with. The child gives up the rest, shows what it cannot do any more, and answers
//! each block with its BLAKE3 hash over the other link. The parent, which has the file, compares.

use std::{
    env,
    fs::File,
    io::{self, Read},
    net::TcpStream,
    path::PathBuf,
    process::Command as StdCommand,
};

use anyhow::{Context, bail, ensure};
use memlane::{
    Child, Command, Publisher, RecvError, Subscriber, parent, parent_link,
    sandbox::{self, Files, Filter, landlock_version},
};

/// Bytes of the file in a message; the last has what is left.
const BLOCK: usize = 256 << 10;

fn main() -> anyhow::Result<()> {
    match env::args_os().nth(1) {
        Some(role) if role == "--hash" => hash().context("in the child"),
        Some(file) => supervise(file.into()),
        None => supervise(env::current_exe()?),
    }
}

fn supervise(path: PathBuf) -> anyhow::Result<()> {
    let mut file = File::open(&path).with_context(|| path.display().to_string())?;
    let mut child = Command::new(env::current_exe()?)
        .arg("--hash")
        .link("hashes")
        .kill_on_drop(true)
        .no_network()
        // To load the program; once it runs, it does without. Kernels without Landlock leave that to the child alone.
        .files(Files::none().libraries().best_effort())
        .system_calls(Filter::program())
        .spawn()?;
    let hashes = child.take_link("hashes").context("named above")?;
    let Child {
        link, mut process, ..
    } = child;

    let mut blocks = Publisher::builder().unbound()?;
    blocks.attach_process(link, &process)?;
    let mut hashes = Subscriber::builder().over_process(hashes, &process)?;
    ensure!(
        blocks.wait_for_subscribers_timeout(1, std::time::Duration::from_secs(30))?,
        "the child does not subscribe"
    );
    let mut count = 0;
    loop {
        let mut block = blocks.reserve(BLOCK)?;
        let length = fill(&mut file, &mut block)?;
        if length == 0 {
            break;
        }
        let expected = blake3::hash(&block[..length]);
        block.commit_first(length);
        let found = hashes.recv()?.to_vec();
        ensure!(
            found == expected.as_bytes(),
            "block {count} has another hash there"
        );
        count += 1;
    }
    drop(blocks);
    let status = process.wait()?;
    ensure!(status.success(), "the child failed: {status}");
    match landlock_version() {
        Some(version) => println!("parent: {count} blocks, with Landlock {version}"),
        None => println!("parent: {count} blocks, without Landlock"),
    }
    Ok(())
}

/// Reads until it is full, or the file ends.
fn fill(file: &mut File, block: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < block.len() {
        match file.read(&mut block[length..])? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

fn hash() -> anyhow::Result<()> {
    let (blocks, hashes) = (parent()?, parent_link("hashes")?);
    // Before anything is read that came from elsewhere.
    sandbox::enter()?;
    refused("open a file", File::open("/etc/passwd"))?;
    refused("connect to anything", TcpStream::connect("127.0.0.1:22"))?;
    refused("start a program", StdCommand::new("/bin/true").status())?;

    let mut publisher = Publisher::builder().ring_bytes(1 << 16).unbound()?;
    publisher.attach(hashes)?;
    publisher.wait_for_subscribers(1)?;
    let mut blocks = Subscriber::builder().over(blocks)?;
    loop {
        match blocks.recv() {
            Ok(block) => publisher.send(blake3::hash(&block.to_vec()).as_bytes())?,
            Err(RecvError::Disconnected { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn refused<T>(what: &str, result: io::Result<T>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            println!("child:  cannot {what}: {error}");
            Ok(())
        }
        Err(error) => bail!("to {what} failed for another reason: {error}"),
        Ok(_) => bail!("could {what} in the sandbox"),
    }
}

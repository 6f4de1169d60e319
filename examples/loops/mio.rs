//! Both ends of a lane in loops of mio's, which are edge-triggered.
//!
//! ```text
//! $ cargo run --release --example loop_mio [-- MESSAGES]
//! 100000 messages received, in 5678 turns of the loop
//! the publisher waited 1234 times for room
//! ```
//!
//! The parent publishes as fast as its child reads. Neither ever blocks but in the loop, where it could wait for as much else
//! as it likes.

use std::{
    env, io,
    os::fd::{AsRawFd, OwnedFd},
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use memlane::{Link, Publisher, Subscriber, TryRecvError, TrySendError, Watched};
use mio::{Events, Interest, Poll, Token, unix::SourceFd};

const LANE: Token = Token(0);
/// The argument that makes a process the subscriber.
const SUBSCRIBE: &str = "subscribe";

fn main() -> anyhow::Result<()> {
    let argument = env::args().nth(1);
    if argument.as_deref() == Some(SUBSCRIBE) {
        return subscribe();
    }
    let messages = argument.map_or(Ok(100_000), |text| text.parse());
    publish(messages.context("a number of messages was expected")?)
}

/// A loop that waits for a lane's end. The end outlives it.
fn watch(end: &impl AsRawFd) -> io::Result<(Poll, Events)> {
    let poll = Poll::new()?;
    let mut source = SourceFd(&end.as_raw_fd());
    poll.registry()
        .register(&mut source, LANE, Interest::READABLE)?;
    Ok((poll, Events::with_capacity(16)))
}

/// Waits for the next event; a signal is no reason to stop.
fn turn(poll: &mut Poll, events: &mut Events) -> io::Result<()> {
    match poll.poll(events, None) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        result => result,
    }
}

fn publish(messages: u64) -> anyhow::Result<()> {
    let (link, theirs) = Link::pair()?;
    let mut child = Command::new(env::current_exe()?)
        .arg(SUBSCRIBE)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    // No thread: the loop does the control work, too.
    let publisher = Publisher::builder()
        .ring_bytes(64 << 10)
        .driven()
        .unbound()?;
    publisher.attach(link)?;
    let mut publisher = Watched::new(publisher)?;
    let (mut poll, mut events) = watch(&publisher)?;
    while publisher.subscribers() == 0 {
        turn(&mut poll, &mut events)?;
        publisher.drive()?;
    }
    let (mut number, mut waits) = (0, 0_u64);
    while number < messages {
        match publisher.try_send(&message(number)) {
            Ok(()) => number += 1,
            Err(TrySendError::Full) => {
                waits += 1;
                turn(&mut poll, &mut events)?;
                publisher.drive()?;
                ensure!(publisher.subscribers() > 0, "the subscriber is gone");
            }
            Err(error) => return Err(error.into()),
        }
    }
    drop((poll, publisher));
    ensure!(child.wait()?.success(), "the subscriber has failed");
    println!("the publisher waited {waits} times for room");
    Ok(())
}

fn subscribe() -> anyhow::Result<()> {
    let mut subscriber = Watched::new(Subscriber::builder().over(Link::inherited()?)?)?;
    let (mut poll, mut events) = watch(&subscriber)?;
    let (mut number, mut turns) = (0, 0_u64);
    'turns: loop {
        turn(&mut poll, &mut events)?;
        turns += 1;
        // An edge is told of once: everything there is has to be taken.
        loop {
            match subscriber.try_recv() {
                Ok(received) => ensure!(received.to_vec() == message(number), "message {number}"),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected { .. }) => break 'turns,
                Err(error) => return Err(error.into()),
            }
            number += 1;
        }
    }
    println!("{number} messages received, in {turns} turns of the loop");
    Ok(())
}

/// Messages of up to 800 bytes that say which they are.
fn message(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(1 + number as usize % 100)
}

//! What the runner and its workers say to each other, over one SOCK_SEQPACKET pair for each worker.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

use crate::metrics::Metrics;

/// Descriptors in one message, at most.
pub const MAX_DESCRIPTORS: usize = 16;

const MAX_TEXT: usize = 16 * 1024;

/// What a worker tells the runner.
#[derive(Debug)]
pub enum Report {
    /// It stands at a barrier and waits for the others.
    Waiting,
    /// It has finished.
    Finished(Metrics),
    /// It gave up.
    Failed(String),
}

/// One end of the control socket.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
}

impl Control {
    /// Both ends of a new socket: the runner's, and the descriptor to give to a worker.
    ///
    /// # Errors
    ///
    /// Fails if there is no descriptor left.
    pub fn pair() -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .context("socketpair")?;
        Ok((Self { socket: ours }, theirs))
    }

    /// The worker's end, which the runner left in the place of its standard input.
    ///
    /// # Errors
    ///
    /// Fails if there is no descriptor left.
    pub fn inherited() -> Result<Self> {
        let socket = std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .context("no control socket")?;
        Ok(Self { socket })
    }

    /// To a worker: the descriptors it works with, at most [`MAX_DESCRIPTORS`]. They stay open here as
    /// well.
    ///
    /// # Errors
    ///
    /// Fails if the worker is gone.
    pub fn equip(&self, descriptors: &[OwnedFd]) -> Result<()> {
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        send_with_descriptors(&self.socket, b"D", &borrowed)
    }

    /// In a worker: the descriptors given by [`equip`](Self::equip).
    ///
    /// # Errors
    ///
    /// Fails if the runner is gone or says something else.
    pub fn equipment(&self) -> Result<Vec<OwnedFd>> {
        let mut tag = [0; 1];
        let (len, descriptors) = receive_with_descriptors(&self.socket, &mut tag)?;
        ensure!(len == 1 && tag == *b"D", "expected descriptors");
        Ok(descriptors)
    }

    /// To a worker: everybody has arrived at the barrier.
    ///
    /// # Errors
    ///
    /// Fails if the worker is gone.
    pub fn release(&self) -> Result<()> {
        self.say(b"G")
    }

    /// In a worker: waits until all workers of the task have come here as often as this one.
    ///
    /// # Errors
    ///
    /// Fails if the runner is gone or says something else.
    pub fn barrier(&self) -> Result<()> {
        self.say(b"B")?;
        let mut answer = [0; 1];
        let (_, len) = rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::empty())
            .context("barrier")?;
        ensure!(len == 1 && answer == *b"G", "the runner is gone");
        Ok(())
    }

    /// In a worker: its last word, the numbers or the reason why there are none.
    ///
    /// # Errors
    ///
    /// Fails if the runner is gone.
    pub fn finish(&self, outcome: &Result<Metrics>) -> Result<()> {
        let mut message = match outcome {
            Ok(metrics) => format!("R{}", metrics.encode()),
            Err(error) => format!("E{error:#}"),
        }
        .into_bytes();
        message.truncate(MAX_TEXT);
        self.say(&message)
    }

    /// To the runner: the next word of a worker, `None` if it is gone without one.
    ///
    /// # Errors
    ///
    /// Fails if what it says makes no sense.
    pub fn report(&self) -> Result<Option<Report>> {
        let mut message = vec![0; MAX_TEXT];
        let len = match rustix::net::recv(&self.socket, &mut message[..], RecvFlags::empty()) {
            // A worker that dies with unread messages in its socket shows as a reset.
            Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Ok((_, len)) => len,
            Err(error) => return Err(error).context("control socket"),
        };
        let text = str::from_utf8(&message[1..len]).context("a worker speaks gibberish")?;
        Ok(Some(match message[0] {
            b'B' => Report::Waiting,
            b'R' => Report::Finished(Metrics::decode(text)?),
            b'E' => Report::Failed(text.to_owned()),
            tag => bail!("a worker said {tag:#x}"),
        }))
    }

    fn say(&self, message: &[u8]) -> Result<()> {
        rustix::net::send(&self.socket, message, SendFlags::NOSIGNAL)
            .context("the other end is gone")?;
        Ok(())
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends one packet with descriptors beside it, which stay open here.
///
/// # Errors
///
/// Fails if there are more than [`MAX_DESCRIPTORS`] or the socket refuses.
pub fn send_with_descriptors(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ensure!(
        descriptors.len() <= MAX_DESCRIPTORS
            && ancillary.push(SendAncillaryMessage::ScmRights(descriptors)),
        "{} descriptors are too many",
        descriptors.len(),
    );
    sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .context("sendmsg")?;
    Ok(())
}

/// Receives one packet and the descriptors beside it, which are close-on-exec from birth.
///
/// # Errors
///
/// Fails if the socket does, or if descriptors were lost on the way.
pub fn receive_with_descriptors(
    socket: impl AsFd,
    bytes: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .context("recvmsg")?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    ensure!(
        !received.flags.contains(ReturnFlags::CTRUNC),
        "descriptors were lost"
    );
    Ok((received.bytes, descriptors))
}

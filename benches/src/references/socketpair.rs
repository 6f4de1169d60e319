//! A stream socket pair that carries the messages itself, bytes and wake-up in one.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use super::eventfd::Epoll;
use crate::path::{Receiver, Sender};

/// Both ends of a new pair that blocks.
///
/// # Errors
///
/// Fails if there is no descriptor left.
pub fn create() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .context("socketpair")
}

/// Sends through one end.
#[derive(Debug)]
pub struct Outgoing(OwnedFd);

/// Receives from one end.
#[derive(Debug)]
pub struct Incoming {
    socket: OwnedFd,
    epoll: Option<Epoll>,
}

/// Both directions of one end, the receiving one sleeping in `recv` or, if `polling`, in `epoll_wait`.
///
/// # Errors
///
/// Fails if there is no descriptor left.
pub fn ends(socket: OwnedFd, polling: bool) -> Result<(Outgoing, Incoming)> {
    let epoll = polling.then(|| Epoll::of(socket.as_fd())).transpose()?;
    let outgoing = Outgoing(socket.try_clone().context("dup")?);
    Ok((outgoing, Incoming { socket, epoll }))
}

impl Sender for Outgoing {
    #[inline]
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        let sent = send(&self.0, payload, SendFlags::NOSIGNAL).context("send")?;
        ensure!(
            sent == payload.len(),
            "a short message went out whole into an empty socket, except now"
        );
        Ok(())
    }
}

impl Receiver for Incoming {
    /// One `recv` is one message, because the ping-pong has never more than one under way.
    #[inline]
    fn recv(&mut self, buffer: &mut [u8]) -> Result<usize> {
        if let Some(epoll) = &self.epoll {
            epoll.wait()?;
        }
        let (_, len) = recv(&self.socket, buffer, RecvFlags::empty()).context("recv")?;
        ensure!(len > 0, "the other end is gone");
        Ok(len)
    }
}

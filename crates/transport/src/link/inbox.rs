//! What a link has received of a message.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::Limits;
use crate::dispose::dispose_all;
use crate::error::Error;
use crate::frame::{HEADER, Header, Refused};
use crate::message::{Body, Parts, Received};
use crate::sys::{self, Packet};

/// The receiving side of a link.
#[derive(Default)]
pub(crate) struct Inbox {
    /// Descriptors of a message whose last packet has not come.
    parts: Option<Parts>,
    /// A stream's packet that has not come whole.
    stream: Option<Box<Partial>>,
    /// Nothing comes any more: what is queued behind a hang-up or a broken rule is not looked at.
    ended: bool,
}

struct Partial {
    packet: Packet,
    fds: Vec<OwnedFd>,
}

/// Why there is no message.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The socket will tell (POLLIN).
    Empty,
    /// The peer closed with messages of ours unread, which the kernel says before it gives out what the peer had sent.
    Reset,
    Failed(Error),
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Stop {
        dispose_all(refused.fds);
        Stop::Failed(refused.error)
    }
}

impl Inbox {
    pub(crate) fn packets() -> Inbox {
        Inbox::default()
    }

    pub(crate) fn stream() -> Inbox {
        Inbox {
            parts: None,
            stream: Some(Box::new(Partial {
                packet: Packet::new(),
                fds: Vec::new(),
            })),
            ended: false,
        }
    }

    /// Whether a message has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.parts.is_some()
            || self
                .stream
                .as_ref()
                .is_some_and(|stream| !stream.packet.bytes().is_empty())
    }

    /// Takes what has come. `packet` is where a message that comes in a packet of its own stays. After a hang-up or a broken
    /// rule, what had come of a message is closed, and nothing comes any more.
    pub(crate) fn receive<'p>(
        &mut self,
        socket: BorrowedFd<'_>,
        packet: &'p mut Packet,
        limits: &Limits,
    ) -> Result<Received<'p>, Stop> {
        if self.ended {
            return Err(Stop::Empty);
        }
        let result = self.next(socket, packet, limits);
        if let Err(Stop::Failed(error)) = &result {
            if error.ends_link() || error.is_disconnected() {
                self.ended = true;
                self.dispose_of_begun();
            }
        }
        result
    }

    fn next<'p>(
        &mut self,
        socket: BorrowedFd<'_>,
        packet: &'p mut Packet,
        limits: &Limits,
    ) -> Result<Received<'p>, Stop> {
        loop {
            let (size, fds) = match &mut self.stream {
                None => receive_packet(socket, packet)?,
                Some(stream) => (stream.receive(socket)?, std::mem::take(&mut stream.fds)),
            };
            let bytes = match &self.stream {
                None => &packet.bytes()[..size],
                Some(stream) => stream.packet.bytes(),
            };
            let (header, fields) = match open(bytes, fds.len()) {
                Ok(opened) => opened,
                Err(error) => return Err(Refused { error, fds }.into()),
            };
            let Some(fds) = Parts::collect(&mut self.parts, &fields, fds, limits)? else {
                if let Some(stream) = &mut self.stream {
                    stream.packet.clear();
                }
                continue;
            };
            let body = match &mut self.stream {
                None => Body::Packet(&packet.bytes()[header.body_at()..]),
                Some(stream) => {
                    let body = stream.packet.bytes()[header.body_at()..].to_vec();
                    stream.packet.clear();
                    Body::Copy(body)
                }
            };
            return Ok(Received { body, fds, fields });
        }
    }

    fn dispose_of_begun(&mut self) {
        let parts = self.parts.take().map(Parts::into_descriptors);
        let partial = self.stream.as_mut();
        let partial = partial.map(|stream| std::mem::take(&mut stream.fds));
        dispose_all(parts.into_iter().chain(partial).flatten().collect());
    }
}

/// Header and fields of a whole packet.
fn open(bytes: &[u8], received: usize) -> Result<(Header, crate::frame::Fields), Error> {
    let header = Header::read(bytes)?;
    let fields = header.fields(bytes)?;
    if usize::from(header.descriptors) != received {
        return Err(Error::DescriptorCount {
            announced: header.descriptors,
            received,
        });
    }
    Ok((header, fields))
}

fn receive_packet(
    socket: BorrowedFd<'_>,
    packet: &mut Packet,
) -> Result<(usize, Vec<OwnedFd>), Stop> {
    packet.clear();
    let piece = sys::receive(socket, packet, usize::MAX).map_err(stop)?;
    let size = piece.size;
    let fds = piece.descriptors(packet.bytes())?;
    match (size, fds.len()) {
        (0, 0) => Err(Stop::Failed(Error::Disconnected)),
        // It looks like a hang-up and installs descriptors.
        (0, descriptors) => Err(Refused {
            error: Error::EmptyPacket { descriptors },
            fds,
        }
        .into()),
        _ => Ok((size, fds)),
    }
}

impl Partial {
    /// Receives until the packet is whole: never a byte beyond its end, so that what comes along is its own.
    fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<usize, Stop> {
        loop {
            let have = self.packet.bytes().len();
            let want = match have {
                ..HEADER => HEADER,
                _ => Header::read(self.packet.bytes())
                    .map_err(|error| self.refuse(error, Vec::new()))?
                    .packet(),
            };
            if have == want {
                return Ok(have);
            }
            let piece = sys::receive(socket, &mut self.packet, want - have).map_err(stop)?;
            let size = piece.size;
            let fds = piece
                .descriptors(self.packet.bytes())
                .map_err(|refused| self.refuse(refused.error, refused.fds))?;
            match (size, have) {
                (0, _) => return Err(self.refuse(Error::Disconnected, fds)),
                (_, 0) => self.fds = fds,
                // unix(7): descriptors come with the first byte of what they were sent with.
                _ if !fds.is_empty() => {
                    let descriptors = fds.len();
                    return Err(self.refuse(Error::LateDescriptors { descriptors }, fds));
                }
                _ => {}
            }
        }
    }

    fn refuse(&mut self, error: Error, mut fds: Vec<OwnedFd>) -> Stop {
        fds.append(&mut self.fds);
        Refused { error, fds }.into()
    }
}

fn stop(error: std::io::Error) -> Stop {
    match Errno::from_io_error(&error) {
        Some(Errno::AGAIN) => Stop::Empty,
        Some(Errno::CONNRESET) => Stop::Reset,
        _ => Stop::Failed(Error::io("receiving a message", error)),
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.dispose_of_begun();
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("begun", &self.has_begun())
            .finish_non_exhaustive()
    }
}

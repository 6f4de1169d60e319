use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    io::{Errno, IoSliceMut, ReadWriteFlags},
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt},
};

/// What a doorbell is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// An eventfd: cheapest, for peers that the ringer trusts not to block it.
    EventFd,
    /// A stream socket pair: safe to ring whoever holds the other end.
    Socket,
}

/// The end of a doorbell that its maker sleeps on. It never leaves the process.
///
/// Its descriptor ([`AsFd`]) becomes readable when it is rung.
#[derive(Debug)]
pub struct Doorbell {
    backing: Backing,
    fd: OwnedFd,
    /// Wake-ups since the socket was last emptied, and after how many it is.
    undrained: u32,
    drain_every: u32,
}

/// A stream socket holds so many one-byte packets before it refuses more, and then it would stop to wake: 278 where
/// net.core.wmem_default is what the kernel makes it, 6 where it is as small as can be. An honest ringer sends one for each
/// sleep, of which every second may go uncounted; a quarter of what there is room for leaves as much again.
const DRAIN_EVERY: u32 = 64;

/// What a packet takes of a send buffer, with the kernel's own part.
const PACKET: usize = 768;

/// After so many wake-ups the socket is emptied whose other end this is.
fn drain_every(end: BorrowedFd<'_>) -> io::Result<u32> {
    let packets = sockopt::socket_send_buffer_size(end)? / PACKET;
    Ok(u32::try_from(packets / 4)
        .unwrap_or(DRAIN_EVERY)
        .clamp(1, DRAIN_EVERY))
}

impl Doorbell {
    /// Makes a doorbell. The descriptor beside it is the end to send to whoever shall ring it; it is the
    /// caller's, to be closed once it is sent.
    ///
    /// # Errors
    ///
    /// The kernel's, when descriptors or memory are short.
    ///
    /// ```
    /// use memlane_signaling::{Backing, Doorbell, Ringer, Waiter, Woken};
    ///
    /// let (mut doorbell, end) = Doorbell::new(Backing::Socket)?;
    /// // ... the end travels to another process, which opens it:
    /// let ringer = Ringer::open(end, Backing::Socket).map_err(|refused| refused.error)?;
    ///
    /// let waiter = Waiter::new(&doorbell)?;
    /// ringer.ring();
    /// assert_eq!(waiter.wait(&mut doorbell, None)?, Woken::Rung);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new(backing: Backing) -> io::Result<(Doorbell, OwnedFd)> {
        let (fd, end) = match backing {
            Backing::EventFd => {
                let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                let end = fd.try_clone()?;
                (fd, end)
            }
            Backing::Socket => rustix::net::socketpair(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            )?,
        };
        let drain_every = match backing {
            Backing::EventFd => DRAIN_EVERY,
            // Before the end is somebody else's, who may make the buffer smaller: his rings, then, are his to lose.
            Backing::Socket => drain_every(end.as_fd())?,
        };
        Ok((
            Doorbell {
                backing,
                fd,
                undrained: 0,
                drain_every,
            },
            end,
        ))
    }

    /// What it is made of.
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// To be called after each wake-up from an edge-triggered wait: keeps the doorbell able to wake, at no
    /// cost most of the time. An eventfd needs nothing: every ring is a new edge.
    pub fn woken(&mut self) {
        if self.backing == Backing::Socket {
            self.undrained += 1;
            if self.undrained >= self.drain_every {
                self.undrained = 0;
                self.drain();
            }
        }
    }

    /// To be called for a ring that may have come and is to be waited for later: counts it, as [`woken`](Doorbell::woken) does, and
    /// takes none. Whoever waits is woken by it, and by those that are left with it.
    pub fn left(&mut self) {
        self.undrained = self.undrained.saturating_add(1);
    }

    /// Takes all rings, so that the descriptor is not readable until the next one. For level-triggered waits.
    pub fn drain(&self) {
        let mut sink = [0; 4096];
        match self.backing {
            // Other holders share the description and may have cleared O_NONBLOCK or read first: only
            // RWF_NOWAIT is this call's own. Offset -1: the file has no position.
            Backing::EventFd => {
                let mut sinks = [IoSliceMut::new(&mut sink[..8])];
                let _ = rustix::io::preadv2(&self.fd, &mut sinks, u64::MAX, ReadWriteFlags::NOWAIT);
            }
            // A flood is not chased: what is left wakes again.
            Backing::Socket => {
                let _ = rustix::net::recv(&self.fd, &mut sink, RecvFlags::DONTWAIT);
            }
        }
    }

    /// Wakes whoever waits on this doorbell in its own process, for good: it stays readable. For an end.
    pub fn wake_for_good(&self) {
        // Errors mean that it is woken already: a full counter, a socket that was hung up.
        let _ = match self.backing {
            Backing::EventFd => rustix::io::write(&self.fd, &1_u64.to_ne_bytes()).map(drop),
            Backing::Socket => rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both),
        };
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The end of a doorbell that rings.
#[derive(Debug)]
pub struct Ringer {
    backing: Backing,
    fd: OwnedFd,
}

/// A descriptor that is not the doorbell it was said to be. It comes back, since closing a descriptor of
/// unknown kind can hang.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct WrongDoorbell {
    /// What was expected, and what came.
    pub error: io::Error,
    /// The descriptor.
    pub descriptor: OwnedFd,
}

impl Ringer {
    /// Takes a received descriptor as a doorbell of this backing, which is for the caller to decide: see the
    /// crate's documentation on whom to trust with what.
    ///
    /// # Errors
    ///
    /// [`WrongDoorbell`] if the descriptor is something else. No check can be made to block by the sender.
    pub fn open(descriptor: OwnedFd, backing: Backing) -> Result<Ringer, Box<WrongDoorbell>> {
        let result = match backing {
            Backing::EventFd => is_eventfd(descriptor.as_fd()),
            Backing::Socket => is_unix_stream(descriptor.as_fd()),
        };
        match result {
            Ok(()) => Ok(Ringer {
                backing,
                fd: descriptor,
            }),
            Err(error) => Err(Box::new(WrongDoorbell { error, descriptor })),
        }
    }

    /// What it is made of.
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// Rings. Never blocks (for an eventfd: as long as its other holders keep their word), never signals.
    ///
    /// There is no error: a doorbell that takes no more rings has rung, and one whose owner is gone wakes
    /// nobody; the link tells of that.
    pub fn ring(&self) {
        let _ = match self.backing {
            Backing::EventFd => rustix::io::write(&self.fd, &1_u64.to_ne_bytes()),
            Backing::Socket => {
                rustix::net::send(&self.fd, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
            }
        };
    }
}

/// To send it on: another process rings it, too.
impl AsFd for Ringer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The descriptor. Closing a socket that was received can wait for whatever its other end has sent to it.
impl From<Ringer> for OwnedFd {
    fn from(ringer: Ringer) -> OwnedFd {
        ringer.fd
    }
}

fn wrong(expected: &str, found: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("expected {expected} as a doorbell, got {found}"),
    )
}

/// Socket options are answered by the socket layer alone, and by nothing that is not a socket.
fn is_unix_stream(fd: BorrowedFd<'_>) -> io::Result<()> {
    let expected = "a Unix stream socket";
    match (sockopt::socket_domain(fd), sockopt::socket_type(fd)) {
        (Ok(AddressFamily::UNIX), Ok(SocketType::STREAM)) => Ok(()),
        (Err(error), _) | (_, Err(error)) => Err(wrong(expected, error)),
        (Ok(domain), Ok(kind)) => Err(wrong(
            expected,
            format_args!("a socket of {domain:?}, {kind:?}"),
        )),
    }
}

/// All anonymous inodes are one inode, so only the name tells an eventfd from a timerfd; readlink on a
/// `/proc/self/fd` entry asks no file system. Without /proc, or where a sandbox forbids to look there, that it is an
/// anonymous inode must do.
fn is_eventfd(fd: BorrowedFd<'_>) -> io::Result<()> {
    let expected = "an eventfd";
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    match rustix::fs::readlink(path, Vec::new()) {
        Ok(name) if name.as_bytes() == b"anon_inode:[eventfd]" => Ok(()),
        Ok(name) => Err(wrong(expected, name.to_string_lossy())),
        Err(Errno::NOENT | Errno::ACCESS | Errno::NOTDIR | Errno::PERM) => {
            use rustix::fs::{AtFlags, StatxFlags, fstat, makedev, statx};
            // DONT_SYNC is what keeps a hostile file system from being asked.
            let inode = |fd: BorrowedFd<'_>| {
                let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
                match statx(fd, "", flags, StatxFlags::INO) {
                    Ok(stat) => Ok((
                        makedev(stat.stx_dev_major, stat.stx_dev_minor),
                        stat.stx_ino,
                    )),
                    // A filter cannot tell this from a look at a path. Whoever may send an eventfd is trusted not to
                    // make this wait.
                    Err(Errno::PERM) => fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)),
                    Err(error) => Err(error),
                }
            };
            let own = eventfd(0, EventfdFlags::CLOEXEC)?;
            if inode(fd)? == inode(own.as_fd())? {
                Ok(())
            } else {
                Err(wrong(expected, "another kind of file"))
            }
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As net.core.wmem_default may make it: whatever fits, twice as many rings as are taken before they are read do.
    #[test]
    fn a_socket_is_emptied_before_it_is_full() {
        for size in [1, 8 << 10, 16 << 10, 64 << 10, 100 << 10] {
            let (bell, end) = Doorbell::new(Backing::Socket).unwrap();
            sockopt::set_socket_send_buffer_size(&end, size).unwrap();
            let every = drain_every(end.as_fd()).unwrap();
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let rings = (0..1000).take_while(|_| rustix::net::send(&end, &[1], flags).is_ok());
            let room = rings.count() as u32;
            assert!(every >= 1 && 2 * every < room, "{size}: {every} of {room}");
            drop(bell);
        }
    }
}

//! New memory for each message: what allocating, zeroing and mapping pages costs.
//!
//! Every contender copies the same payload into memory that did not exist before, makes it readable to a receiver by
//! nothing but a descriptor, maps it there, reads every byte, and gives everything back to the kernel. Bare
//! memory trusts the receiver: it is not sealed, and no check is made before it is mapped.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use memlane_region::{Frozen, Live, LiveView, Options, Region};
use memlane_transport::{FdRef, Link, MemoryFd};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::plain::Plain;
use super::{expect, memfd, read_all, unsuitable};
use crate::control::{receive_with_descriptors, send_with_descriptors};
use crate::measure::ping_pong::{Game, measure_turns};
use crate::metrics::Metrics;
use crate::path::Payloads;
use crate::task::Contender;
use crate::worker::Session;

/// New memory.
trait Fresh {
    /// What the maker keeps until the receiver is done.
    type Made: AsFd;

    /// Makes memory with a copy of `payload` that is ready to be sent.
    fn make(&self, payload: &[u8]) -> Result<Self::Made>;

    /// Opens what was sent, and hands its bytes to `read`.
    fn open(&self, fd: OwnedFd, len: usize, read: impl FnOnce(&[u8]) -> Result<()>) -> Result<()>;
}

/// By hand.
struct Memfd {
    allocate: bool,
    populate: bool,
}

struct MadeByHand {
    fd: OwnedFd,
    _memory: Plain,
}

impl AsFd for MadeByHand {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Fresh for Memfd {
    type Made = MadeByHand;

    fn make(&self, payload: &[u8]) -> Result<MadeByHand> {
        let fd = memfd(payload.len(), self.allocate)?;
        let mut memory = Plain::map(&fd, payload.len(), true)?;
        if self.populate {
            memory.populate()?;
        }
        // SAFETY: mapped to be written, and its descriptor has not left this process.
        unsafe { memory.bytes_mut() }.copy_from_slice(payload);
        Ok(MadeByHand {
            fd,
            _memory: memory,
        })
    }

    fn open(&self, fd: OwnedFd, len: usize, read: impl FnOnce(&[u8]) -> Result<()>) -> Result<()> {
        let memory = Plain::map(fd, len, false)?;
        // SAFETY: the maker, this same executable, writes before it sends and never after.
        read(unsafe { memory.bytes() })
    }
}

/// `Region`, frozen.
struct Freezing(Options);

impl Fresh for Freezing {
    type Made = Frozen;

    fn make(&self, payload: &[u8]) -> Result<Frozen> {
        let mut region = Region::create(&self.0, payload.len())?;
        region.copy_from_slice(payload);
        Ok(region.freeze()?)
    }

    fn open(&self, fd: OwnedFd, len: usize, read: impl FnOnce(&[u8]) -> Result<()>) -> Result<()> {
        read(&Frozen::open(fd, len)?)
    }
}

/// `Frozen`, made in one step.
struct Copying(Options);

impl Fresh for Copying {
    type Made = Frozen;

    fn make(&self, payload: &[u8]) -> Result<Frozen> {
        Ok(Frozen::copy_of(&self.0, payload)?)
    }

    fn open(&self, fd: OwnedFd, len: usize, read: impl FnOnce(&[u8]) -> Result<()>) -> Result<()> {
        read(&Frozen::open(fd, len)?)
    }
}

/// `Region`, shared.
struct Sharing(Options);

impl Fresh for Sharing {
    type Made = Live;

    fn make(&self, payload: &[u8]) -> Result<Live> {
        let mut region = Region::create(&self.0, payload.len())?;
        region.copy_from_slice(payload);
        Ok(region.share()?)
    }

    fn open(&self, fd: OwnedFd, len: usize, read: impl FnOnce(&[u8]) -> Result<()>) -> Result<()> {
        let view = LiveView::open(fd, len)?;
        // SAFETY: the maker, this same executable, writes before it shares and never after.
        read(unsafe { view.bytes() })
    }
}

/// What is done with each kind of memory.
trait Use {
    fn with(self, session: &mut Session, fresh: impl Fresh) -> Result<Metrics>;
}

fn choose(session: &mut Session, with: impl Use) -> Result<Metrics> {
    let by_hand = |allocate, populate| Memfd { allocate, populate };
    let plain = Options::new("memlane-bench");
    let ready = plain.clone().prefault(true);
    match session.task().contender {
        Contender::Memfd => with.with(session, by_hand(false, false)),
        Contender::MemfdAllocated => with.with(session, by_hand(true, false)),
        Contender::MemfdPopulated => with.with(session, by_hand(false, true)),
        Contender::Frozen => with.with(session, Freezing(plain)),
        Contender::FrozenPrefault => with.with(session, Freezing(ready)),
        Contender::FrozenCopy => with.with(session, Copying(plain)),
        Contender::Live => with.with(session, Sharing(plain)),
        Contender::LivePrefault => with.with(session, Sharing(ready)),
        _ => Err(unsuitable(session)),
    }
}

/// Reads all of a message and checks that it is the one sent as `number`.
fn read(bytes: &[u8], number: u64) -> Result<()> {
    read_all(bytes);
    let (head, rest) = bytes.split_first_chunk().context("a message too short")?;
    expect(u64::from_ne_bytes(*head), number)?;
    ensure!(
        rest.first() == rest.last() && rest.first() != Some(&0),
        "message {number} is not whole"
    );
    Ok(())
}

/// Both ends in one process: a descriptor is duplicated where it would be sent.
///
/// # Errors
///
/// Fails if a system call does, or if what is read is not what was written.
pub(crate) fn alone(session: &mut Session) -> Result<Metrics> {
    struct Alone<F> {
        fresh: F,
        payloads: Payloads,
        number: u64,
    }

    impl<F: Fresh> Game for Alone<F> {
        fn ping(&mut self) -> Result<()> {
            let payload = self.payloads.advance();
            let made = self.fresh.make(payload)?;
            let fd = made.as_fd().try_clone_to_owned().context("dup")?;
            let number = self.number;
            self.number += 1;
            self.fresh
                .open(fd, payload.len(), |bytes| read(bytes, number))
        }

        fn pong(&mut self) -> Result<()> {
            self.ping()
        }
    }

    struct Alternate;

    impl Use for Alternate {
        fn with(self, session: &mut Session, fresh: impl Fresh) -> Result<Metrics> {
            let payloads = Payloads::new(session.task().size);
            let number = 0;
            let mut game = Alone {
                fresh,
                payloads,
                number,
            };
            measure_turns(session, &mut game)
        }
    }

    choose(session, Alternate)
}

/// How a descriptor travels, with the number of its message.
trait Carrier {
    fn send(&self, number: u64, fd: BorrowedFd<'_>) -> Result<()>;
    fn recv(&self) -> Result<(u64, OwnedFd)>;
    fn acknowledge(&self, number: u64) -> Result<()>;
    fn acknowledged(&self) -> Result<u64>;
}

/// By hand, waiting in the kernel.
struct Bare(OwnedFd);

impl Carrier for Bare {
    fn send(&self, number: u64, fd: BorrowedFd<'_>) -> Result<()> {
        send_with_descriptors(&self.0, &number.to_ne_bytes(), &[fd])
    }

    fn recv(&self) -> Result<(u64, OwnedFd)> {
        let mut number = [0; 8];
        let (_, descriptors) = receive_with_descriptors(&self.0, &mut number)?;
        let fd = descriptors.into_iter().next();
        Ok((u64::from_ne_bytes(number), fd.context("no descriptor")?))
    }

    fn acknowledge(&self, number: u64) -> Result<()> {
        send(&self.0, &number.to_ne_bytes(), SendFlags::NOSIGNAL).context("send")?;
        Ok(())
    }

    fn acknowledged(&self) -> Result<u64> {
        let mut number = [0; 8];
        let (_, len) = recv(&self.0, &mut number[..], RecvFlags::empty()).context("recv")?;
        ensure!(len == number.len(), "the receiver is gone");
        Ok(u64::from_ne_bytes(number))
    }
}

impl Carrier for Link {
    fn send(&self, number: u64, fd: BorrowedFd<'_>) -> Result<()> {
        Ok(self.send(&(number, FdRef::new(&fd)))?)
    }

    fn recv(&self) -> Result<(u64, OwnedFd)> {
        let (number, fd): (u64, MemoryFd) = self.recv()?;
        Ok((number, fd.into()))
    }

    fn acknowledge(&self, number: u64) -> Result<()> {
        Ok(self.send(&number)?)
    }

    fn acknowledged(&self) -> Result<u64> {
        Ok(self.recv()?)
    }
}

/// One end in each process; bare memory through a bare socket, regions through a link.
///
/// # Errors
///
/// Fails if a system call does, or if what is read is not what was written.
pub(crate) fn sent(session: &mut Session) -> Result<Metrics> {
    struct Sent<F, C> {
        fresh: F,
        carrier: C,
        payloads: Payloads,
        number: u64,
    }

    impl<F: Fresh, C: Carrier> Game for Sent<F, C> {
        fn ping(&mut self) -> Result<()> {
            let made = self.fresh.make(self.payloads.advance())?;
            self.carrier.send(self.number, made.as_fd())?;
            expect(self.carrier.acknowledged()?, self.number)?;
            self.number += 1;
            Ok(())
        }

        fn pong(&mut self) -> Result<()> {
            let (number, fd) = self.carrier.recv()?;
            expect(number, self.number)?;
            self.number += 1;
            self.fresh
                .open(fd, self.payloads.size(), |bytes| read(bytes, number))?;
            self.carrier.acknowledge(number)
        }
    }

    fn play(session: &mut Session, fresh: impl Fresh, carrier: impl Carrier) -> Result<Metrics> {
        let payloads = Payloads::new(session.task().size);
        let number = 0;
        let mut game = Sent {
            fresh,
            carrier,
            payloads,
            number,
        };
        measure_turns(session, &mut game)
    }

    struct Send;

    impl Use for Send {
        fn with(self, session: &mut Session, fresh: impl Fresh) -> Result<Metrics> {
            let socket = session.take_descriptor()?;
            if session.task().contender.is_memfd() {
                play(session, fresh, Bare(socket))
            } else {
                play(session, fresh, Link::from_fd(socket)?)
            }
        }
    }

    choose(session, Send)
}

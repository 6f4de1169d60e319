//! Memory that stays, in places of one size: a message is the number of a place. Only the first eight bytes and the last
//! one of it are written and read, so that its size should not matter.

use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use memlane::{Trusted, Untrusted, WaitPolicy};
use memlane_region::{Live, LiveView, Options, Region};

use super::plain::Plain;
use super::{exchange, expect, give, ipc, loans, memfd, take, unsuitable};
use crate::candidate::trusting_lanes;
use crate::measure::ping_pong::{self, Game, Messages, measure_turns};
use crate::metrics::Metrics;
use crate::path::{Receiver, Sender, Spin};
use crate::references::spsc::{Consumer, Producer, Publish};
use crate::shared::{self, Mapping};
use crate::task::{Contender, Task};
use crate::worker::Session;

/// Places on each side, used in turn.
const PLACES: usize = 4;

/// Memory that this side writes.
trait Put {
    /// Writes the ends of the `len` bytes from `at` on.
    fn put(&mut self, at: usize, len: usize, number: u64);
}

/// Memory that the other side writes.
trait Get {
    /// The ends of the `len` bytes from `at` on.
    fn get(&self, at: usize, len: usize) -> (u64, u8);
}

/// Writes the number to both ends.
#[inline]
pub(crate) fn put(place: &mut [u8], number: u64) {
    place[..8].copy_from_slice(&number.to_ne_bytes());
    let last = place.len() - 1;
    place[last] = number as u8;
}

impl Put for Plain {
    #[inline]
    fn put(&mut self, at: usize, len: usize, number: u64) {
        // SAFETY: mapped to be written, and the other side reads a place only after its number has come.
        put(&mut unsafe { self.bytes_mut() }[at..at + len], number);
    }
}

impl Get for Plain {
    #[inline]
    fn get(&self, at: usize, len: usize) -> (u64, u8) {
        // SAFETY: the other side leaves a place alone from when its number comes until the answer is sent.
        let place = &unsafe { self.bytes() }[at..at + len];
        let head = place[..8].try_into().expect("eight bytes");
        (u64::from_ne_bytes(head), place[len - 1])
    }
}

impl Put for Live {
    #[inline]
    fn put(&mut self, at: usize, len: usize, number: u64) {
        put(&mut self[at..at + len], number);
    }
}

impl Get for LiveView {
    #[inline]
    fn get(&self, at: usize, len: usize) -> (u64, u8) {
        let (mut head, mut last) = ([0; 8], [0]);
        self.read(at, &mut head);
        self.read(at + len - 1, &mut last);
        (u64::from_ne_bytes(head), last[0])
    }
}

/// Both sides' memory, and the way for numbers of places.
struct Slots<P, G, S, R> {
    mine: P,
    theirs: G,
    sender: S,
    receiver: R,
    size: usize,
    number: u64,
}

impl<P: Put, G: Get, S: Sender, R: Receiver> Slots<P, G, S, R> {
    /// Writes a place and sends its number.
    #[inline]
    fn lend(&mut self) -> Result<()> {
        let place = self.number as usize % PLACES;
        self.mine.put(place * self.size, self.size, self.number);
        self.tell(place as u64)
    }

    /// Receives the number of a place and reads that.
    #[inline]
    fn borrow(&mut self) -> Result<()> {
        let place = usize::try_from(self.hear()?)?;
        ensure!(place < PLACES, "there is no place {place}");
        let (first, last) = self.theirs.get(place * self.size, self.size);
        expect(first, self.number)?;
        expect(last.into(), self.number & 0xff)
    }

    #[inline]
    fn tell(&mut self, place: u64) -> Result<()> {
        let mut message = [0; 16];
        message[..8].copy_from_slice(&place.to_ne_bytes());
        message[8..].copy_from_slice(&(self.size as u64).to_ne_bytes());
        self.sender.send(&message)
    }

    #[inline]
    fn hear(&mut self) -> Result<u64> {
        let mut message = [0; 16];
        let len = self.receiver.recv(&mut message)?;
        ensure!(len == message.len(), "{len} bytes came");
        let (place, _) = message.split_first_chunk().context("a place")?;
        Ok(u64::from_ne_bytes(*place))
    }
}

/// Each side writes into memory of its own and sends.
struct Touch<T>(T);

impl<P: Put, G: Get, S: Sender, R: Receiver> Game for Touch<Slots<P, G, S, R>> {
    #[inline]
    fn ping(&mut self) -> Result<()> {
        self.0.lend()?;
        self.0.borrow()?;
        self.0.number += 1;
        Ok(())
    }

    #[inline]
    fn pong(&mut self) -> Result<()> {
        self.0.borrow()?;
        self.0.lend()?;
        self.0.number += 1;
        Ok(())
    }
}

/// The initiator's memory goes over and comes back.
struct Exchange<T>(T);

impl<P: Put, G: Get, S: Sender, R: Receiver> Game for Exchange<Slots<P, G, S, R>> {
    #[inline]
    fn ping(&mut self) -> Result<()> {
        self.0.lend()?;
        let back = self.0.hear()?;
        expect(back, self.0.number % PLACES as u64)?;
        self.0.number += 1;
        Ok(())
    }

    #[inline]
    fn pong(&mut self) -> Result<()> {
        self.0.borrow()?;
        self.0.tell(self.0.number % PLACES as u64)?;
        self.0.number += 1;
        Ok(())
    }
}

/// Large messages of which the ends are touched.
///
/// # Errors
///
/// Fails if what is read is not what was written.
pub(crate) fn touch(session: &mut Session) -> Result<Metrics> {
    match session.task().contender {
        Contender::Ring64 => {
            let size = session.task().size;
            let (outgoing, incoming) = trusting_lanes(session, WaitPolicy::Poll)?;
            ping_pong::measure(session, Messages::new(outgoing, incoming, size))
        }
        Contender::PlainSlots => {
            let slots = by_hand(session)?;
            ping_pong::measure(session, Touch(slots))
        }
        Contender::Slots => {
            let slots = regions(session, WaitPolicy::Poll)?;
            ping_pong::measure(session, Touch(slots))
        }
        Contender::Loan => {
            let loans = loans::Touch::<Untrusted>::new(session)?;
            ping_pong::measure(session, loans)
        }
        Contender::LoanTrusting => {
            let loans = loans::Touch::<Trusted>::new(session)?;
            ping_pong::measure(session, loans)
        }
        _ => Err(unsuitable(session)),
    }
}

/// Memory that both know goes over and back.
///
/// # Errors
///
/// Fails if what is read is not what was written.
pub(crate) fn hand_over(session: &mut Session) -> Result<Metrics> {
    match session.task().contender {
        Contender::IpcChannel => {
            let mut channel = ipc::Channel::new(session)?;
            measure_turns(session, &mut channel)
        }
        Contender::Memfd => {
            let mut bare = ipc::Bare::new(session)?;
            measure_turns(session, &mut bare)
        }
        Contender::ExchangeLink => exchange::over_link(session),
        Contender::ExchangeLanes => exchange::over_lanes(session),
        Contender::Slots => {
            let slots = regions(session, WaitPolicy::Poll)?;
            measure_turns(session, &mut Exchange(slots))
        }
        Contender::SlotsAsleep => {
            let slots = regions(session, WaitPolicy::Block)?;
            measure_turns(session, &mut Exchange(slots))
        }
        _ => Err(unsuitable(session)),
    }
}

fn by_hand(session: &mut Session) -> Result<Slots<Plain, Plain, Producer, Consumer>> {
    let size = session.task().size;
    let socket = session.take_descriptor()?;
    let ring = || shared::create(Task::RING_BYTES, true);
    let memory = || memfd(PLACES * size, true);
    let [there, back, ours, theirs] = if session.role().is_initiator() {
        let fds = [ring()?, ring()?, memory()?, memory()?];
        give(socket, &fds.each_ref().map(AsFd::as_fd))?;
        fds
    } else {
        let [there, back, ours, theirs] = take(socket)?;
        [back, there, theirs, ours]
    };
    let ring = |fd| Mapping::new(fd, Task::RING_BYTES, true);
    let memory = |fd| {
        let memory = Plain::map(fd, PLACES * size, true)?;
        memory.populate()?;
        anyhow::Ok(memory)
    };
    Ok(Slots {
        mine: memory(ours)?,
        theirs: memory(theirs)?,
        sender: Producer::new(ring(there)?),
        receiver: Consumer::new(ring(back)?, Publish::Each, Spin::Hard),
        size,
        number: 0,
    })
}

fn regions(
    session: &mut Session,
    wait: WaitPolicy,
) -> Result<Slots<Live, LiveView, impl Sender + use<>, impl Receiver + use<>>> {
    let size = session.task().size;
    let socket = session.take_descriptor()?;
    let options = Options::new("memlane-bench").prefault(true);
    let mine = Region::create(options, PLACES * size)?.share()?;
    give(&socket, &[mine.as_fd()])?;
    let [fd] = take(&socket)?;
    let theirs = LiveView::open(fd, PLACES * size)?;
    let (sender, receiver) = trusting_lanes(session, wait)?;
    Ok(Slots {
        mine,
        theirs,
        sender,
        receiver,
        size,
        number: 0,
    })
}

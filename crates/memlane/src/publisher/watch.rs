//! The newest value, for whoever wants it.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use memlane_region::{
    Options, Shared,
    latest::{self, LatestWriter, Watcher},
};
use memlane_transport::{Access, Address, Link};

use super::{
    control::{Pattern, Terms},
    hosted::Hosted,
    peer::Peer,
};
use crate::{Error, Payload, PayloadType, Typed, after, names::address_of, pidfd_of};

/// Has a value, of which others see the newest: never half of one, never an older one than they have seen.
///
/// It waits for nobody, whatever its receivers do, and allocates nothing. A receiver that comes late has the newest value at
/// once; one that is slow misses values, and can tell how many.
///
/// ```
/// # let link = memlane::Link::pair()?;
/// use memlane::{WatchReceiver, WatchSender};
///
/// // let mut pose = WatchSender::bind("pose")?;
/// # let mut pose = WatchSender::builder().unbound()?;
/// # pose.attach(link.0)?;
/// pose.send(b"north")?;
/// pose.send(b"south-east")?;
///
/// // let mut seen = WatchReceiver::connect("pose")?;
/// # let mut seen = WatchReceiver::builder().over(link.1)?;
/// assert_eq!(seen.get()?.as_deref(), Some(&b"south-east"[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct WatchSender {
    /// Before the writer: what it tells receivers at the end comes first.
    control: Hosted,
    writer: LatestWriter<Shared, Peer>,
}

/// Options of a [`WatchSender`].
#[derive(Clone, Debug)]
pub struct WatchSenderBuilder {
    max_len: usize,
    max_receivers: usize,
    memory: Options,
    trust: bool,
    access: Access,
    driven: bool,
    carries: PayloadType,
}

/// A value longer than its sender's may be ([`WatchSenderBuilder::max_len`]). It has not been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a value of at most {max} bytes (WatchSenderBuilder::max_len), got one of {len}")]
pub struct TooLong {
    /// Length of the value, in bytes.
    pub len: usize,
    /// The longest value, in bytes.
    pub max: usize,
}

impl From<latest::TooLong> for TooLong {
    fn from(latest::TooLong { len, max }: latest::TooLong) -> TooLong {
        TooLong { len, max }
    }
}

impl Default for WatchSenderBuilder {
    fn default() -> WatchSenderBuilder {
        WatchSenderBuilder {
            max_len: 1008,
            max_receivers: 64,
            memory: Options::new("memlane-latest"),
            trust: false,
            access: Access::SameUser,
            driven: false,
            carries: PayloadType::bytes(),
        }
    }
}

impl WatchSenderBuilder {
    /// The longest value, in bytes. Default: 1008; of [plain](crate::Plain) values, their size. The cell takes four times as
    /// much, up to a power of two, and a page.
    pub fn max_len(mut self, bytes: usize) -> WatchSenderBuilder {
        self.max_len = bytes;
        self
    }

    /// How many receivers there may be at a time; more are refused. Default: 64. One that moves to another process keeps its place.
    /// Each costs this process up to three descriptors, four once it has moved, and one page, and each value a load, if it may sleep.
    pub fn max_receivers(mut self, receivers: usize) -> WatchSenderBuilder {
        self.max_receivers = receivers;
        self
    }

    /// How the cell is made: huge pages, locked, dumped. Default: as [`Options`] have it. All of it is touched.
    pub fn memory(mut self, options: impl Into<Options>) -> WatchSenderBuilder {
        self.memory = options.into();
        self
    }

    /// Trusts receivers not to block this process, as [`PublisherBuilder::trust_subscribers`](super::PublisherBuilder) does.
    pub fn trust_receivers(mut self) -> WatchSenderBuilder {
        self.trust = true;
        self
    }

    /// Who may watch. Default: [`Access::SameUser`].
    pub fn access(mut self, access: Access) -> WatchSenderBuilder {
        self.access = access;
        self
    }

    /// Leaves control work to the user's own loop, which calls [`WatchSender::drive`] whenever
    /// [`WatchSender::control_fd`] is readable. No thread is started then. Default: one control thread for all of the process.
    pub fn driven(mut self) -> WatchSenderBuilder {
        self.driven = true;
        self
    }

    /// Makes it a sender of values ([`Typed`]), not bytes. Options come before.
    pub fn of<P: Payload>(self) -> Typed<WatchSenderBuilder, P> {
        Typed::<WatchSenderBuilder, P>::builder(self)
    }

    pub(crate) fn carrying(mut self, payload: PayloadType) -> WatchSenderBuilder {
        if let Some(len) = payload.len() {
            self.max_len = len;
        }
        self.carries = payload;
        self
    }

    pub(crate) fn carries(&self) -> &PayloadType {
        &self.carries
    }

    /// Binds a service by name, which [`WatchReceiver`](crate::WatchReceiver)s connect to.
    ///
    /// # Errors
    ///
    /// [`Error`]: the name is taken or none, or resources are short.
    pub fn bind(self, service: &str) -> Result<WatchSender, Error> {
        self.bind_to(&address_of(service)?)
    }

    /// Binds a service at an address of the user's choice.
    ///
    /// # Errors
    ///
    /// [`Error`]: the address is taken, or resources are short.
    pub fn bind_to(self, address: &Address) -> Result<WatchSender, Error> {
        let access = self.access.clone();
        let sender = self.unbound()?;
        sender.control.bind(address, access)?;
        Ok(sender)
    }

    /// Makes a sender without an address: receivers come over links given to it ([`WatchSender::attach`]).
    ///
    /// # Errors
    ///
    /// [`Error`], when an option is impossible or resources are short.
    pub fn unbound(self) -> Result<WatchSender, Error> {
        let (writer, cell) = LatestWriter::create(self.memory, self.max_len)?;
        let roster = writer.roster().clone();
        let terms = Terms {
            home: 0,
            ring: cell,
            capacity: self.max_len as u64,
            trust: self.trust,
            // It waits for nobody.
            sleeps: false,
            registered: false,
            max_subscribers: self.max_receivers,
            waits: false,
            carries: self.carries,
            pattern: Pattern::Latest,
            max_attachments: 0,
            attachments_in_flight: 0,
        };
        Ok(WatchSender {
            control: Hosted::new(terms, roster, self.driven)?,
            writer,
        })
    }
}

impl WatchSender {
    /// Binds a service of this user's, with the options of [`WatchSenderBuilder`].
    ///
    /// # Errors
    ///
    /// [`Error`]: the name is taken or none, or resources are short.
    pub fn bind(service: &str) -> Result<WatchSender, Error> {
        WatchSender::builder().bind(service)
    }

    /// Options, all with defaults.
    pub fn builder() -> WatchSenderBuilder {
        WatchSenderBuilder::default()
    }

    /// Makes this the newest value. Its number: 1 for the first, and one more each time.
    ///
    /// # Errors
    ///
    /// [`TooLong`].
    #[inline]
    pub fn send(&mut self, value: &[u8]) -> Result<u64, TooLong> {
        Ok(self.writer.write(value)?)
    }

    /// Has `fill` write a value of `len` bytes in place, and makes it the newest. Receivers see the one before until `fill` is
    /// through; it gets what a much older value left there.
    ///
    /// # Errors
    ///
    /// [`TooLong`]; `fill` is not called then.
    #[inline]
    pub fn send_with(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<u64, TooLong> {
        Ok(self.writer.write_with(len, fill)?)
    }

    /// The number of the newest value: 0 before the first.
    pub fn sequence(&self) -> u64 {
        self.writer.sequence()
    }

    /// The longest value, in bytes.
    pub fn max_len(&self) -> usize {
        self.writer.max_len()
    }

    /// Takes a link that was made elsewhere (inherited, or [`Link::pair`]); the process at its other end makes it a receiver
    /// ([`WatchReceiverBuilder::over`](crate::WatchReceiverBuilder::over)). The link is the sender's from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if it cannot be watched; it is closed then.
    pub fn attach(&self, link: Link) -> Result<(), Error> {
        self.control.attach(link, None)
    }

    /// [`attach`](WatchSender::attach), for a link whose other end a known process has: its receiver is gone when that process
    /// has ended, too, whoever else holds the link then. The pidfd is duplicated.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if it is no pidfd, or cannot be watched; the link is closed then.
    pub fn attach_process(&self, link: Link, process: impl AsFd) -> Result<(), Error> {
        self.control.attach(link, Some(pidfd_of(process)?))
    }

    /// How many receivers there are. By the next line there may be more, or fewer.
    pub fn receivers(&self) -> usize {
        self.control.subscribers()
    }

    /// Waits until there are at least `count` receivers, no longer than `timeout`; whether there are. Of one that is
    /// [driven](WatchSenderBuilder::driven) nobody would come meanwhile: it answers at once.
    pub fn wait_for_receivers(&self, count: usize, timeout: Duration) -> bool {
        match self.control.is_driven() {
            false => self.control.wait_for_subscribers(count, after(timeout)),
            true => self.receivers() >= count,
        }
    }

    /// Receivers that go on in another process ([`WatchReceiver::depart`](crate::WatchReceiver::depart)).
    pub fn moved(&self) -> u64 {
        self.control.moved()
    }

    /// Clients that have not become receivers: not admitted, one too many, or of another version or kind. Each was told why.
    pub fn refused(&self) -> u64 {
        self.control.refused()
    }

    /// Does what control work there is, without waiting: for a sender that is [driven](WatchSenderBuilder::driven).
    ///
    /// # Errors
    ///
    /// [`Error::Os`].
    pub fn drive(&self) -> Result<(), Error> {
        let driven = self.control.drive_if_driven();
        driven.map_err(Error::os("look for control events"))
    }

    /// Readable when there is control work, for a sender that is [driven](WatchSenderBuilder::driven); none for one that has
    /// a thread for it. It stays the sender's.
    pub fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        self.control.fd()
    }

    /// Closes the service, and tells all receivers that this was in order. They keep the newest value. Dropping the sender does
    /// the same.
    pub fn close(self) {}
}

impl Watcher for Peer {
    #[inline(always)]
    fn wake(&self) {
        let _ = Peer::wake(self);
    }
}

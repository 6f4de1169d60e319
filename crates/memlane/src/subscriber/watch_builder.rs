//! How one comes to see the newest value of another process.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use memlane_signaling::WaitPolicy;
use memlane_transport::{Access, Address, Link};

use super::{Meeting, SubscriberBuilder, Untrusted, handshake::Awaits, watch::WatchReceiver};
use crate::{
    Connecting, Error, Payload, PayloadType, Subscriber, Typed,
    connecting::{Begun, Connects},
    names::address_of,
    pidfd_of, process_of,
};

/// Options of a [`WatchReceiver`].
#[derive(Clone, Debug)]
pub struct WatchReceiverBuilder {
    pub(super) lane: SubscriberBuilder,
    pub(super) max_len: usize,
}

impl Default for WatchReceiverBuilder {
    fn default() -> WatchReceiverBuilder {
        WatchReceiverBuilder {
            lane: Subscriber::builder(),
            max_len: 64 << 20,
        }
    }
}

impl WatchReceiverBuilder {
    /// How it waits for a newer value. Default: [`WaitPolicy::Adaptive`].
    pub fn wait(mut self, policy: WaitPolicy) -> WatchReceiverBuilder {
        self.lane = self.lane.wait(policy);
        self
    }

    /// Whose service it may be. Default: [`Access::SameUser`].
    pub fn access(mut self, access: Access) -> WatchReceiverBuilder {
        self.lane = self.lane.access(access);
        self
    }

    /// For how long to wait for the sender's answer. Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> WatchReceiverBuilder {
        self.lane = self.lane.timeout(timeout);
        self
    }

    /// The longest value that it takes, in bytes: a sender whose values may be longer is not watched. Default: 64 MiB. Up to
    /// eight times as much is mapped.
    pub fn max_len(mut self, bytes: usize) -> WatchReceiverBuilder {
        self.max_len = bytes;
        self
    }

    /// Makes it a receiver of values ([`Typed`]), not bytes. Options come before.
    pub fn of<P: Payload>(self) -> Typed<WatchReceiverBuilder, P> {
        Typed::<WatchReceiverBuilder, P>::builder(self)
    }

    pub(crate) fn carrying(mut self, payload: PayloadType) -> WatchReceiverBuilder {
        self.lane = self.lane.carrying(payload);
        self
    }

    pub(crate) fn carries(&self) -> Option<&PayloadType> {
        self.lane.carries()
    }

    /// Watches a service of this user's.
    ///
    /// # Errors
    ///
    /// [`Error::NoSender`]: nobody watched answers there, or something else, or for other payloads; [`Error`].
    pub fn connect(self, service: &str) -> Result<WatchReceiver, Error> {
        self.connect_to(&address_of(service)?)
    }

    /// Watches a service at an address of the user's choice.
    ///
    /// # Errors
    ///
    /// As [`connect`](WatchReceiverBuilder::connect).
    pub fn connect_to(self, address: &Address) -> Result<WatchReceiver, Error> {
        let link = Link::connect_with(address, self.lane.access.clone())?;
        let process = process_of(&link).map_err(Error::os("watch the sender's process"))?;
        let mut receiver = self.meet(link, process)?.wait()?;
        receiver.address = Some(address.clone());
        Ok(receiver)
    }

    /// Watches over a link that was made elsewhere (inherited, or [`Link::pair`]), whose other end a sender has or gets
    /// ([`WatchSender::attach`](crate::WatchSender::attach)). The link is the receiver's from now on.
    ///
    /// # Errors
    ///
    /// As [`connect`](WatchReceiverBuilder::connect).
    pub fn over(self, link: Link) -> Result<WatchReceiver, Error> {
        self.meet(link, None)?.wait()
    }

    /// [`over`](WatchReceiverBuilder::over), for a link whose other end a known process has: the sender is gone when that
    /// process has ended, too, whoever else holds the link then. The pidfd is duplicated.
    ///
    /// # Errors
    ///
    /// As [`connect`](WatchReceiverBuilder::connect); [`Error::Os`] if it is no pidfd.
    pub fn over_process(self, link: Link, process: impl AsFd) -> Result<WatchReceiver, Error> {
        self.meet(link, Some(pidfd_of(process)?))?.wait()
    }

    /// Begins to watch a service of this user's, without waiting: for loops and tasks.
    ///
    /// # Errors
    ///
    /// As [`connect`](WatchReceiverBuilder::connect), as far as that is known at once.
    pub fn begin(self, service: &str) -> Result<Connecting<WatchReceiver>, Error> {
        self.begin_at(&address_of(service)?)
    }

    /// Begins to watch a service at an address of the user's choice, without waiting.
    ///
    /// # Errors
    ///
    /// As [`begin`](WatchReceiverBuilder::begin).
    pub fn begin_at(self, address: &Address) -> Result<Connecting<WatchReceiver>, Error> {
        let WatchReceiverBuilder { lane, max_len } = self;
        let meeting = Meeting::to(lane, address, Awaits::Latest)?;
        Ok(Connecting::new(Looking::new(meeting, max_len)))
    }

    /// Begins to watch over a link that was made elsewhere, as [`over`](WatchReceiverBuilder::over) does, without waiting.
    ///
    /// # Errors
    ///
    /// As [`begin`](WatchReceiverBuilder::begin).
    pub fn begin_over(self, link: Link) -> Result<Connecting<WatchReceiver>, Error> {
        self.meet(link, None)
    }

    fn meet(
        self,
        link: Link,
        process: Option<OwnedFd>,
    ) -> Result<Connecting<WatchReceiver>, Error> {
        let WatchReceiverBuilder { lane, max_len } = self;
        let meeting = Meeting::over(lane, link, process, Awaits::Latest)?;
        Ok(Connecting::new(Looking::new(meeting, max_len)))
    }
}

/// A receiver on its way.
#[derive(Debug)]
pub struct Looking {
    meeting: Meeting<Untrusted>,
    max_len: usize,
    /// It is there, and is to hear when it may begin.
    arriving: Option<WatchReceiver>,
}

impl Looking {
    pub(super) fn new(meeting: Meeting<Untrusted>, max_len: usize) -> Looking {
        Looking {
            meeting,
            max_len,
            arriving: None,
        }
    }

    /// One that came with a ticket begins when the other has departed.
    fn advance_arriving(&mut self) -> Result<Option<WatchReceiver>, Error> {
        let Looking {
            meeting, arriving, ..
        } = self;
        let Some(receiver) = arriving else {
            return Ok(None);
        };
        let begins = meeting.advance_by(|_| Ok(receiver.begin()?.then_some(())));
        if begins.map_err(no_predecessor)?.is_none() {
            return Ok(None);
        }
        meeting.has_begun(&receiver.link);
        Ok(arriving.take())
    }
}

impl Begun for Looking {
    type End = WatchReceiver;

    fn advance(&mut self) -> Result<Option<WatchReceiver>, Error> {
        if self.arriving.is_some() {
            return self.advance_arriving();
        }
        let nobody = match self.meeting.succeeds() {
            false => no_sender,
            true => no_predecessor,
        };
        let met = self.meeting.advance_to_welcome(|_, _| Ok(()));
        let Some((handshake, welcome)) = met.map_err(nobody)? else {
            return Ok(None);
        };
        let receiver = WatchReceiver::new(handshake, welcome, self.max_len);
        let mut receiver = receiver.map_err(nobody)?;
        receiver.address = self.meeting.address().cloned();
        if !self.meeting.succeeds() {
            return Ok(Some(receiver));
        }
        self.arriving = Some(receiver);
        self.advance_arriving()
    }

    fn descriptor(&self) -> &Arc<OwnedFd> {
        Begun::descriptor(&self.meeting)
    }
}

fn no_sender(error: Error) -> Error {
    let idle = "if a loop of its own is to drive it, that does not";
    error.nobody("receiver", idle, |why| Error::NoSender { why })
}

/// The same, of one that came with a ticket, which may be void.
fn no_predecessor(error: Error) -> Error {
    match error {
        Error::HungUp => Error::HungUp,
        error => no_sender(error),
    }
}

impl Connects for WatchReceiver {
    type Begun = Looking;
}

//! A connected socket that carries typed messages.

mod halves;
mod inbox;
mod making;
pub(crate) mod outbox;
mod room;
mod value;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::PollFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::fd::{Adoption, Fd};
use crate::limits::Limits;
use crate::message::{Outgoing, Received};
use crate::peer::{Credentials, Peer};
use crate::receipt::Receipt;
use crate::socket::SocketKind;
use crate::sys;
use crate::wait::{self, Patience};
use inbox::Inbox;
use outbox::{Outbox, Sent};
pub use room::Room;

/// A connection between two processes: typed messages both ways, each with any number of descriptors in it, up to its
/// [`Limits`].
///
/// A link is a SOCK_SEQPACKET socket, or a SOCK_STREAM one where something else made it so ([`SocketKind`]): messages
/// arrive whole, in order, once. All calls take `&self` and may be made from several threads; each message goes to one of
/// the receivers.
///
/// None of the calls depends on O_NONBLOCK, which belongs to the description and can be changed by whoever shares it
/// (THREATS A30); a link made here may have it set or not. SIGPIPE is never raised, received descriptors are close-on-exec.
///
/// # Messages of several packets
/// A message with more descriptors than a packet takes, and any message on a stream, can leave in part when there is no more
/// room. The sending call then counts it as sent, and the rest leaves with the next call on the link, a receive included, or
/// with [`flush`](Link::flush). Whoever drops the link before loses that message whole: the receiver never sees a part of one.
///
/// # A link ends on the first broken rule
/// When a packet breaks the protocol ([`Error::ends_link`]), everything it brought is closed, the socket is shut down in
/// both directions, and every later call returns [`Error::Ended`] with the reason. Packets that were queued behind it are
/// discarded when the link is dropped. The same happens when the kernel refuses a later packet of a message that has left
/// in part (one of its descriptors is an io_uring, which cannot be passed: EINVAL).
///
/// # Whom to receive from
/// A holder of *this end's* socket can make a receive sleep in the kernel for ever, whatever the flags (THREATS C5b).
/// Receive only on ends made by this process, or inherited from a process it trusts with its liveness. For the same reason
/// a link in a message is refused, unless this end [adopts](Link::adopting) what its peer sends.
///
/// ```
/// use memlane_transport::Link;
///
/// let (left, right) = Link::pair()?;
/// left.send(&("frame", 7_u32))?;
/// let (what, number): (String, u32) = right.recv()?;
/// assert_eq!((what.as_str(), number), ("frame", 7));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Dropping
/// The socket is closed on another thread (see [`dispose`](crate::dispose)), since the peer can have sent what makes close(2) wait for days;
/// dropping waits for that for at most 50 ms. It is closed within some 20 us otherwise. [`into_fd`](Link::into_fd) leaves closing to the caller.
pub struct Link {
    /// Shared with a message that carries the link, until that has left.
    fd: Arc<Fd>,
    /// What it sends on, if that is another socket.
    out: Option<Fd>,
    limits: Limits,
    adoption: Adoption,
    lingers: bool,
    end: OnceLock<End>,
    /// Held for calls that do not wait.
    outbox: Mutex<Outbox>,
    inbox: Mutex<Inbox>,
}

#[derive(Debug)]
enum End {
    /// The hang-up has been received.
    Disconnected,
    /// A packet broke the protocol, or a message could not be sent to its end; the error as text.
    Broken(Arc<str>),
}

impl Link {
    pub(crate) fn new(fd: OwnedFd, kind: SocketKind) -> Link {
        Link {
            fd: Arc::new(Fd::socket(fd)),
            out: None,
            limits: Limits::new(),
            adoption: Adoption::Refused,
            lingers: false,
            end: OnceLock::new(),
            outbox: Mutex::default(),
            inbox: Mutex::new(match kind {
                SocketKind::Packets => Inbox::packets(),
                SocketKind::Stream => Inbox::stream(),
            }),
        }
    }

    /// The link with other limits. What they say about descriptors to be received, the kernel is told (SO_PASSRIGHTS), and
    /// keeps for all who share the socket.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Link {
        // What the kernel does not know, the receiver checks.
        let _ = sys::identity::set_pass_rights(self.fd.as_fd(), limits.max_received() > 0);
        self.limits = limits;
        self
    }

    /// The link, taking links and listeners in messages as what they are. Without it they are refused, and end the link.
    ///
    /// For a peer that this process trusts with its liveness: its parent, the broker that introduces it to others. Any
    /// other could keep a copy of the end it sends and hold up every receive on it (THREATS C5b), and can name a service to
    /// connect to instead.
    #[must_use]
    pub fn adopting(mut self) -> Link {
        self.adoption = Adoption::Allowed;
        self
    }

    /// The link, not hung up when what comes over it breaks a rule, or its end is read: it has ended here, but the peer hears of that when
    /// this value is dropped. For who has something of the peer's that it may take back when this side is gone.
    #[must_use]
    pub fn lingering(mut self) -> Link {
        self.lingers = true;
        self
    }

    /// The socket itself, for instance to hand it to a child; of one with [two](Link::send_over), the one it receives on. Its
    /// O_NONBLOCK may be set or not. Part of a message that was still to be sent or received is lost: [`flush`](Link::flush)
    /// first, and ask [`is_between_messages`](Link::is_between_messages).
    ///
    /// # Panics
    /// If a message that carries this link is on its way in the very moment (as for [`Fd`](crate::Fd)), and no descriptor
    /// number is left for a duplicate.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        match Arc::try_unwrap(self.fd) {
            Ok(fd) => fd.into(),
            Err(shared) => shared
                .as_fd()
                .try_clone_to_owned()
                .expect("a descriptor number for a link that is being sent"),
        }
    }

    /// Sends `value`, waiting for room as long as it takes.
    ///
    /// Descriptors in it are borrowed: whatever the outcome they are still the value's. Once it returns, the kernel holds
    /// its own references, and the caller may close them. Room is short when the receiver is slow ([`Limits::in_flight`]
    /// included), when memory is, and when this *user* has more descriptors in flight than this process's RLIMIT_NOFILE
    /// (ETOOMANYREFS, possibly on other sockets and in other processes: THREATS A8); the call waits for all of these, the
    /// latter two by retrying.
    ///
    /// Long bytes are quick as `String`, or as a type that serialises as bytes (crate `serde_bytes`); a `Vec<u8>` goes through
    /// serde element by element, at 10 ns for each.
    ///
    /// # Errors
    /// [`Error::BodyTooLarge`], [`Error::TooManyDescriptors`], [`Error::Encode`]: nothing was sent and the link goes on.
    /// [`Error::Disconnected`]: nobody will read it; what the peer had sent can still be received.
    /// [`Error::Ended`], [`Error::Io`]; with EPERM the other end's socket takes no descriptors (SO_PASSRIGHTS, Linux 6.16),
    /// with EINVAL one of them cannot be passed (an io_uring), with EMSGSIZE the socket's send buffer was made too small.
    pub fn send<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), Error> {
        self.send_within(value, Patience::Forever)
    }

    /// [`send`](Link::send) without waiting.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] when there is no room; else as [`send`](Link::send).
    pub fn try_send<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), Error> {
        self.send_within(value, Patience::None)
    }

    /// [`send`](Link::send), waiting at most `timeout`.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when there was no room in time, and nothing was sent; else as [`send`](Link::send).
    pub fn send_timeout<T: Serialize + ?Sized>(
        &self,
        value: &T,
        timeout: Duration,
    ) -> Result<(), Error> {
        self.send_within(value, Patience::timeout(timeout))
    }

    /// Sends `value` with a [`Receipt`], which tells when the receiver holds its descriptors.
    ///
    /// For hand-overs, where the sender's own copies must not go before the receiver's are there. Dropping the value after
    /// [`send`](Link::send) is safe for the descriptors themselves, which the kernel keeps alive in flight; what only a
    /// receipt can tell is that they arrived *somewhere*.
    ///
    /// # Errors
    /// As [`send`](Link::send); [`Error::DescriptorLimit`] when no descriptor numbers are left for the receipt.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use memlane_transport::{Fd, Link};
    /// let (left, right) = Link::pair()?;
    /// let file = Fd::from(std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null")?));
    /// let receipt = left.transfer(&file)?;
    /// let taken: Fd = right.recv()?;
    /// receipt.wait_timeout(Duration::from_secs(5))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn transfer<T: Serialize + ?Sized>(&self, value: &T) -> Result<Receipt, Error> {
        self.transfer_within(value, Patience::Forever)
    }

    /// [`transfer`](Link::transfer) without waiting for room.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] when there is no room; else as [`transfer`](Link::transfer).
    pub fn try_transfer<T: Serialize + ?Sized>(&self, value: &T) -> Result<Receipt, Error> {
        self.transfer_within(value, Patience::None)
    }

    /// [`transfer`](Link::transfer), waiting at most `timeout` for room. The receipt has a time-out of its own.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when there was no room in time; else as [`transfer`](Link::transfer).
    pub fn transfer_timeout<T: Serialize + ?Sized>(
        &self,
        value: &T,
        timeout: Duration,
    ) -> Result<Receipt, Error> {
        self.transfer_within(value, Patience::timeout(timeout))
    }

    /// Sends the rest of a message that left in part, waiting for room as long as it takes.
    ///
    /// # Errors
    /// [`Error::Disconnected`], [`Error::Ended`], [`Error::Io`].
    pub fn flush(&self) -> Result<(), Error> {
        self.flush_within(Patience::Forever)
    }

    /// [`flush`](Link::flush) without waiting.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] when a part is still to be sent; else as [`flush`](Link::flush).
    pub fn try_flush(&self) -> Result<(), Error> {
        self.flush_within(Patience::None)
    }

    /// [`flush`](Link::flush), waiting at most `timeout`.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when a part is still to be sent; else as [`flush`](Link::flush).
    pub fn flush_timeout(&self, timeout: Duration) -> Result<(), Error> {
        self.flush_within(Patience::timeout(timeout))
    }

    /// Receives the next message, waiting as long as it takes. The descriptors in it are the caller's.
    ///
    /// What type it was does not travel with it. Bytes that make sense as another type come out as a value of that type
    /// (a `u32` as an `i32` of another value), and those that do not end the link: so give each direction of a link *one* type,
    /// an enum with all there is to say, and a version in the first message where the two ends can be of different builds.
    /// Fields cannot be left out or added (`#[serde(default)]` has no effect).
    ///
    /// # Errors
    /// [`Error::Disconnected`] when the peer is gone and everything it had sent was delivered.
    /// [`Error::Ended`] and every error that [ends the link](Error::ends_link); [`Error::Io`].
    pub fn recv<T: DeserializeOwned>(&self) -> Result<T, Error> {
        self.recv_within(Patience::Forever)
    }

    /// [`recv`](Link::recv) without waiting.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] when there is no message; else as [`recv`](Link::recv).
    pub fn try_recv<T: DeserializeOwned>(&self) -> Result<T, Error> {
        self.recv_within(Patience::None)
    }

    /// [`recv`](Link::recv), waiting at most `timeout`.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when no message came in time; else as [`recv`](Link::recv).
    pub fn recv_timeout<T: DeserializeOwned>(&self, timeout: Duration) -> Result<T, Error> {
        self.recv_within(Patience::timeout(timeout))
    }

    /// Who is at the other end, with a new pidfd: ask once and keep it. See [`Peer`] for what the answer means.
    ///
    /// # Errors
    /// No descriptor numbers left for the pidfd.
    pub fn peer(&self) -> io::Result<Peer> {
        Peer::of(self.out())
    }

    /// Who is at the other end, without a pidfd: one system call, no descriptor.
    ///
    /// # Errors
    /// Those of getsockopt(2); none on a connected Unix socket.
    #[doc(alias = "SO_PEERCRED")]
    pub fn credentials(&self) -> io::Result<Credentials> {
        Credentials::of(self.out())
    }

    fn send_within<T: Serialize + ?Sized>(
        &self,
        value: &T,
        patience: Patience,
    ) -> Result<(), Error> {
        self.send_message(self.encode(value, None)?, patience)
    }

    fn transfer_within<T: Serialize + ?Sized>(
        &self,
        value: &T,
        patience: Patience,
    ) -> Result<Receipt, Error> {
        let (receipt, theirs) = Receipt::pair()?;
        self.send_message(self.encode(value, Some(theirs))?, patience)?;
        Ok(receipt)
    }

    pub(crate) fn encode<T: Serialize + ?Sized>(
        &self,
        value: &T,
        receipt: Option<OwnedFd>,
    ) -> Result<Outgoing, Error> {
        self.check()?;
        Outgoing::new(value, receipt, &self.limits, self.out())
    }

    fn send_message(&self, message: Outgoing, patience: Patience) -> Result<(), Error> {
        let mut message = Some(message);
        let mut pause = Pause::new();
        loop {
            match self.advance(&mut message) {
                Ok(Sent::Whole) => return Ok(()),
                Ok(Sent::Part) => break,
                Err(stop) => self.wait_for_room(stop, patience, &mut pause)?,
            }
        }
        match self.flush_within(patience) {
            // It has begun to leave: the next call goes on with it.
            Err(Error::WouldBlock | Error::TimedOut) => Ok(()),
            other => other,
        }
    }

    /// Sends what there is room for: the message that has begun, then `message`, which is gone when it has begun itself.
    pub(crate) fn advance(&self, message: &mut Option<Outgoing>) -> Result<Sent, outbox::Stop> {
        self.check().map_err(outbox::Stop::Failed)?;
        let (result, finished) = {
            let mut outbox = self.outbox();
            let result = outbox.send(self.out(), message, &self.limits);
            (result, outbox.take_finished())
        };
        drop(finished);
        if let Err(outbox::Stop::Torn(error)) = &result {
            self.finish(End::Broken(describe(error).into()));
        }
        result
    }

    fn flush_within(&self, patience: Patience) -> Result<(), Error> {
        let mut pause = Pause::new();
        while let Err(stop) = self.advance(&mut None) {
            self.wait_for_room(stop, patience, &mut pause)?;
        }
        Ok(())
    }

    fn wait_for_room(
        &self,
        stop: outbox::Stop,
        patience: Patience,
        pause: &mut Pause,
    ) -> Result<(), Error> {
        match stop {
            outbox::Stop::Full => {
                wait::ready(self.out(), PollFlags::OUT, patience)?;
            }
            // The socket has room, so there is nothing to wait for but time, and the peer's end.
            outbox::Stop::Later => {
                let left = patience.left(pause.next())?;
                let found = wait::once(self.out(), PollFlags::empty(), left)?;
                if found.is_some_and(|found| found.contains(PollFlags::HUP)) {
                    return Err(Error::Disconnected);
                }
            }
            outbox::Stop::Failed(error) | outbox::Stop::Torn(error) => return Err(error),
        }
        Ok(())
    }

    pub(crate) fn recv_within<T: DeserializeOwned>(&self, patience: Patience) -> Result<T, Error> {
        let mut pause = Pause::new();
        loop {
            if let Some(value) = self.take()? {
                return Ok(value);
            }
            self.wait_for_message(patience, &mut pause)?;
        }
    }

    /// Receives a message that is there; `None` when the socket is empty.
    pub(crate) fn take<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        let mut packet = sys::Packet::new();
        let mut resets = 0;
        loop {
            self.check()?;
            // The guard goes before the message is decoded, which runs code of the message's type.
            let result = self
                .inbox()
                .receive(self.as_fd(), &mut packet, &self.limits);
            match result {
                Ok(message) => return self.open(message).map(Some),
                Err(inbox::Stop::Empty) => return Ok(None),
                Err(inbox::Stop::Reset) if resets < 2 => resets += 1,
                Err(inbox::Stop::Reset) => return Err(self.end(Error::Disconnected)),
                Err(inbox::Stop::Failed(error)) => return Err(self.end(error)),
            }
        }
    }

    fn open<T: DeserializeOwned>(&self, message: Received<'_>) -> Result<T, Error> {
        message
            .decode(&self.limits, self.adoption)
            .map_err(|error| self.end(error))
    }

    /// Waits for what the peer sends, and goes on sending what has begun: both ends may be in the middle of a message.
    fn wait_for_message(&self, patience: Patience, pause: &mut Pause) -> Result<(), Error> {
        let events = match self.advance(&mut None) {
            Err(outbox::Stop::Full) if self.out.is_none() => PollFlags::IN | PollFlags::OUT,
            // With room on another socket, one thing is waited for and the other asked for once in a while.
            Err(outbox::Stop::Full | outbox::Stop::Later) => {
                wait::once(self.as_fd(), PollFlags::IN, patience.left(pause.next())?)?;
                return Ok(());
            }
            // What the peer had sent before is still there to be received.
            Ok(_) | Err(outbox::Stop::Failed(Error::Disconnected)) => PollFlags::IN,
            Err(outbox::Stop::Failed(error) | outbox::Stop::Torn(error)) => return Err(error),
        };
        wait::ready(self.as_fd(), events, patience).map(drop)
    }

    /// Whether no message is there in part, in either direction: the socket alone is the whole link, and it can be sent to
    /// another process or taken apart ([`into_fd`](Link::into_fd)).
    ///
    /// False after a `try_` or `_timeout` form has sent a part, until it is [flushed](Link::flush), and while the peer has
    /// sent a part: for as long as it likes, so that whoever hands over many links hangs up on such a peer, or leaves it
    /// behind. On a SOCK_SEQPACKET link only messages of more than 253 descriptors have parts.
    #[must_use]
    pub fn is_between_messages(&self) -> bool {
        !self.outbox().has_begun() && !self.inbox().has_begun()
    }

    /// Nothing panics while they are held.
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers an error that is final and hangs up.
    fn end(&self, error: Error) -> Error {
        let end = match &error {
            Error::Disconnected => End::Disconnected,
            error if error.ends_link() => End::Broken(describe(error).into()),
            _ => return error,
        };
        self.finish(end);
        error
    }

    fn finish(&self, end: End) {
        if self.end.set(end).is_ok() && !self.lingers {
            self.hang_up();
        }
    }

    fn check(&self) -> Result<(), Error> {
        match self.end.get() {
            None => Ok(()),
            Some(End::Disconnected) => Err(Error::Disconnected),
            Some(End::Broken(why)) => Err(Error::Ended {
                why: Arc::clone(why),
            }),
        }
    }
}

/// The error and what caused it, in a line.
fn describe(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Time to wait where nothing tells when to try again: longer each time.
#[derive(Debug)]
pub(crate) struct Pause(Duration);

impl Pause {
    pub(crate) fn new() -> Pause {
        Pause(Duration::from_micros(100))
    }

    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(Duration::from_millis(20));
        pause
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl From<Link> for OwnedFd {
    fn from(link: Link) -> OwnedFd {
        link.into_fd()
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut link = f.debug_struct("Link");
        link.field("fd", &self.as_fd().as_raw_fd());
        if let Some(end) = self.end.get() {
            link.field("end", end);
        }
        link.finish()
    }
}

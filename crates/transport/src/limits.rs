//! What a message may carry.

/// What a message may carry, and how many may be on their way: the defaults suit a service's control messages.
///
/// A sender keeps its own limits and says so before anything leaves; a receiver keeps its own against the peer, and a
/// message beyond them ends the link. So give both ends the same.
///
/// ```
/// use memlane_transport::{Error, Limits, Link};
///
/// let (left, _right) = Link::pair()?;
/// let left = left.with_limits(Limits::new().body(1 << 10));
/// let error = left.send(&vec![7_u8; 2000]).unwrap_err();
/// assert!(matches!(error, Error::BodyTooLarge { size: 2003, limit: 1024 }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    body: usize,
    sent: usize,
    received: usize,
    in_flight: usize,
}

impl Limits {
    /// 16 MiB of body, 1024 descriptors, 128 messages with descriptors on their way.
    #[must_use]
    pub const fn new() -> Limits {
        Limits {
            body: 16 << 20,
            sent: 1024,
            received: 1024,
            in_flight: 128,
        }
    }

    /// Bytes that an encoded message may have. Up to [`MAX_INLINE`](crate::frame::MAX_INLINE) travel in the packet, more in
    /// memory of their own, which costs the sender a page fault for each page and the receiver a copy.
    #[must_use]
    pub const fn body(mut self, bytes: usize) -> Limits {
        self.body = bytes;
        self
    }

    /// Descriptors that a message may carry in either direction, at most 65 000; a packet takes 253 (SCM_MAX_FD), and what is
    /// more is split and put together again.
    #[must_use]
    pub const fn descriptors(mut self, count: usize) -> Limits {
        self.sent = if count < 65_000 { count } else { 65_000 };
        self.received = self.sent;
        self
    }

    /// Descriptors that a *received* message may carry, at most 65 000.
    ///
    /// A message of several packets holds what has come of it until it has come whole, however long its sender takes: with
    /// more than 251, one peer can keep that many descriptor numbers of this process (RLIMIT_NOFILE is 1024 as a rule).
    /// Links that a [`Listener`](crate::Listener) accepts take 251 unless it says otherwise.
    ///
    /// With zero, for a service that gives descriptors and takes none, the kernel refuses them to the sender already, where
    /// it knows SO_PASSRIGHTS (Linux 6.16, EPERM): bodies beyond a packet and receipts included. Nothing that a peer sends
    /// can then make this end wait in close(2) (see [`dispose`](crate::dispose)).
    #[must_use]
    pub const fn received_descriptors(mut self, count: usize) -> Limits {
        self.received = if count < 65_000 { count } else { 65_000 };
        self
    }

    /// Messages with descriptors that this end sends ahead of the receiver, at least one: more of them wait, or are
    /// [`WouldBlock`](crate::Error::WouldBlock).
    ///
    /// The kernel counts descriptors in flight per *user* and compares with the sender's RLIMIT_NOFILE (unix(7),
    /// ETOOMANYREFS), so whatever a slow receiver leaves lying can make other processes of the user fail (THREATS A8). Where
    /// that matters, choose one. How many are still on their way is told by the kernel (SIOCOUTQ), not by the peer; it is
    /// estimated from bytes, never too low.
    #[must_use]
    pub const fn in_flight(mut self, messages: usize) -> Limits {
        self.in_flight = if messages > 1 { messages } else { 1 };
        self
    }

    pub(crate) const fn max_body(&self) -> usize {
        self.body
    }

    pub(crate) const fn max_sent(&self) -> usize {
        self.sent
    }

    pub(crate) const fn max_received(&self) -> usize {
        self.received
    }

    pub(crate) const fn max_in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::new()
    }
}

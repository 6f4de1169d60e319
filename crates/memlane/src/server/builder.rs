use std::time::Duration;

use memlane_signaling::WaitPolicy;
use memlane_transport::{Access, Address};

use super::Server;
use crate::{
    Error, Publisher, PublisherBuilder, Subscriber, SubscriberBuilder, Trust, Untrusted, accepting,
    envelope::PLACE_BITS, names::address_of,
};

/// Options of a [`Server`].
#[derive(Debug)]
pub struct ServerBuilder<T: Trust = Untrusted> {
    pub(crate) requests: SubscriberBuilder<T>,
    pub(crate) replies: PublisherBuilder,
    pub(super) max_requests: usize,
    pub(super) reply_timeout: Duration,
}

impl Default for ServerBuilder {
    fn default() -> ServerBuilder {
        ServerBuilder {
            requests: Subscriber::builder(),
            replies: Publisher::builder().ring_bytes(64 << 10),
            max_requests: 1024,
            reply_timeout: Duration::from_millis(100),
        }
    }
}

impl<T: Trust> ServerBuilder<T> {
    /// How lanes of requests are read: what of each is mapped at most, and whether clients are
    /// [trusted](SubscriberBuilder::trust_publisher), so that requests are slices.
    pub fn requests<U: Trust>(self, lane: SubscriberBuilder<U>) -> ServerBuilder<U> {
        ServerBuilder {
            requests: lane.like(self.requests),
            replies: self.replies,
            max_requests: self.max_requests,
            reply_timeout: self.reply_timeout,
        }
    }

    /// How the lanes of replies are made, one for each client: its ring (default: 64 KiB), its pool, the longest reply. With
    /// [`spill_bytes`](PublisherBuilder::spill_bytes), so much is kept for a client that is slow before it is waited for.
    /// What is not of the lanes themselves (who waits how, and for how long, and who may) is said by the options here.
    pub fn replies(mut self, lane: PublisherBuilder) -> ServerBuilder<T> {
        self.replies = lane.like(&self.replies);
        self
    }

    /// How the server waits, for requests and for room. Default: [`WaitPolicy::Adaptive`].
    pub fn wait(mut self, policy: WaitPolicy) -> ServerBuilder<T> {
        self.requests = self.requests.wait(policy);
        self.replies = self.replies.wait(policy);
        self
    }

    /// Whose clients are taken. Default: [`Access::SameUser`].
    pub fn access(mut self, access: Access) -> ServerBuilder<T> {
        self.requests = self.requests.access(access);
        self
    }

    /// For how long a client may take to become one. Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> ServerBuilder<T> {
        self.requests = self.requests.timeout(timeout);
        self
    }

    /// How many clients there may be at a time; more are refused. Default: 64. Each costs this process seven descriptors, its
    /// ring of requests, which it has made, and one of replies.
    pub fn max_clients(mut self, clients: usize) -> ServerBuilder<T> {
        self.requests = self.requests.max_senders(clients);
        self
    }

    /// How many requests of a client may be without their last reply at a time, 1 to 65536. Default: 1024. A client knows it,
    /// and one that sends more is dropped.
    pub fn max_requests(mut self, requests: usize) -> ServerBuilder<T> {
        self.max_requests = requests;
        self
    }

    /// For how long a reply waits for a client that leaves no room for it, because it is stopped or does not receive what it has
    /// asked for. Then it is dropped, so that it cannot hold up the others for good. Default: 100 ms. One that makes room just in time,
    /// for each of many replies, does hold them up for most of the time: towards clients that one does not trust, use
    /// [`try_reply`](crate::Request::try_reply), or [`spill_bytes`](PublisherBuilder::spill_bytes).
    pub fn reply_timeout(mut self, timeout: Duration) -> ServerBuilder<T> {
        self.reply_timeout = timeout;
        self
    }

    /// Binds a service by name, which [`Client`](crate::Client)s connect to.
    ///
    /// # Errors
    ///
    /// [`Error`]: the name is taken or none, or resources are short.
    pub fn bind(self, service: &str) -> Result<Server<T>, Error> {
        self.bind_to(&address_of(service)?)
    }

    /// Binds a service at an address of the user's choice.
    ///
    /// # Errors
    ///
    /// [`Error`]: the address is taken, or resources are short.
    pub fn bind_to(self, address: &Address) -> Result<Server<T>, Error> {
        self.check()?;
        let listener = accepting::listen(address, self.requests.access.clone())?;
        Server::new(self, Some(listener))
    }

    /// Makes a server without an address: clients come over links given to it ([`Server::attach`]).
    ///
    /// # Errors
    ///
    /// [`Error`], when an option is impossible or resources are short.
    pub fn unbound(self) -> Result<Server<T>, Error> {
        self.check()?;
        Server::new(self, None)
    }

    fn check(&self) -> Result<(), Error> {
        let (requests, most) = (self.max_requests, 1 << PLACE_BITS);
        if !(1..=most).contains(&requests) {
            let why = format!("expected 1 to {most}, got {requests}");
            return Err(Error::Option {
                what: "max_requests",
                why,
            });
        }
        // Made for each client, and so that a wrong option is known before there is one.
        self.replies.clone().for_one().map(drop)
    }
}

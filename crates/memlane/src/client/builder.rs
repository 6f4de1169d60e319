use std::{
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use memlane_signaling::WaitPolicy;
use memlane_transport::{Access, Address, Error as LinkError, Link};

use super::Client;
use crate::{
    Error, Publisher, PublisherBuilder, Subscriber, SubscriberBuilder, Trust, Untrusted, after,
    envelope::{BEHIND, PLACE_BITS, behind},
    names::address_of,
    pidfd_of, process_of,
    protocol::{LIMITS, Refusal},
    subscriber::{Awaits, Handshake, Prepared, left},
};

/// Options of a [`Client`].
#[derive(Debug)]
pub struct ClientBuilder<T: Trust = Untrusted> {
    pub(crate) requests: PublisherBuilder,
    pub(crate) replies: SubscriberBuilder<T>,
    max_backlog: usize,
}

impl Default for ClientBuilder {
    fn default() -> ClientBuilder {
        ClientBuilder {
            requests: Publisher::builder().ring_bytes(64 << 10),
            replies: Subscriber::builder(),
            max_backlog: 64 << 20,
        }
    }
}

impl<T: Trust> ClientBuilder<T> {
    /// How the lane of requests is made: its ring (default: 64 KiB), its pool, the longest request.
    /// What is not of the lane itself (who waits how, and for how long, and who may) is said by the options here.
    ///
    /// ```
    /// use memlane::{Client, Publisher};
    ///
    /// let lane = Publisher::builder().ring_bytes(1 << 20).pool_bytes(256 << 20);
    /// let options = Client::builder().requests(lane);
    /// // let mut client = options.connect("sum")?;
    /// ```
    pub fn requests(mut self, lane: PublisherBuilder) -> ClientBuilder<T> {
        self.requests = lane.like(&self.requests);
        self
    }

    /// How the lane of replies is read: what of it is mapped at most, and whether the server is
    /// [trusted](SubscriberBuilder::trust_publisher), so that replies are slices.
    pub fn replies<U: Trust>(self, lane: SubscriberBuilder<U>) -> ClientBuilder<U> {
        ClientBuilder {
            requests: self.requests,
            replies: lane.like(self.replies),
            max_backlog: self.max_backlog,
        }
    }

    /// How the client waits, for replies and for room. Default: [`WaitPolicy::Adaptive`].
    pub fn wait(mut self, policy: WaitPolicy) -> ClientBuilder<T> {
        self.requests = self.requests.wait(policy);
        self.replies = self.replies.wait(policy);
        self
    }

    /// Whose service it may be. Default: [`Access::SameUser`].
    pub fn access(mut self, access: Access) -> ClientBuilder<T> {
        self.replies = self.replies.access(access);
        self
    }

    /// For how long to wait for the server to take this client. Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> ClientBuilder<T> {
        self.replies = self.replies.timeout(timeout);
        self
    }

    /// How many bytes of replies are kept that come while others are waited for. Default: 64 MiB. Beyond that, waiting answers
    /// [`CallError::Backlog`](super::CallError::Backlog).
    pub fn max_backlog(mut self, bytes: usize) -> ClientBuilder<T> {
        self.max_backlog = bytes;
        self
    }

    /// Connects to a server of this user's.
    ///
    /// # Errors
    ///
    /// [`Error::NoServer`]: nobody answers there, or something else, or for other payloads; [`Error`].
    pub fn connect(self, service: &str) -> Result<Client<T>, Error> {
        self.connect_to(&address_of(service)?)
    }

    /// Connects to a server at an address of the user's choice.
    ///
    /// # Errors
    ///
    /// As [`connect`](ClientBuilder::connect).
    pub fn connect_to(self, address: &Address) -> Result<Client<T>, Error> {
        let deadline = after(self.replies.timeout);
        let link = Link::connect_with(address, self.replies.access.clone())?;
        let process = process_of(&link).map_err(Error::os("watch the server's process"))?;
        self.meet(link, process, deadline)
    }

    /// Calls over a link that was made elsewhere (inherited, or [`Link::pair`]), whose other end a server has or gets
    /// ([`Server::attach`](crate::Server::attach)). The link is the client's from now on.
    ///
    /// # Errors
    ///
    /// As [`connect`](ClientBuilder::connect).
    pub fn over(self, link: Link) -> Result<Client<T>, Error> {
        let deadline = after(self.replies.timeout);
        self.meet(link, None, deadline)
    }

    /// [`over`](ClientBuilder::over), for a link whose other end a known process has: the server is gone when that process has
    /// ended, too, whoever else holds the link then. The pidfd is duplicated.
    ///
    /// # Errors
    ///
    /// As [`connect`](ClientBuilder::connect); [`Error::Os`] if it is no pidfd.
    pub fn over_process(
        self,
        link: Link,
        process: impl std::os::fd::AsFd,
    ) -> Result<Client<T>, Error> {
        let deadline = after(self.replies.timeout);
        let process = pidfd_of(process)?;
        self.meet(link, Some(process), deadline)
    }

    fn meet(
        self,
        link: Link,
        process: Option<OwnedFd>,
        deadline: Option<Instant>,
    ) -> Result<Client<T>, Error> {
        let ClientBuilder {
            requests,
            replies,
            max_backlog,
        } = self;
        let waited = replies.timeout;
        let link = Arc::new(link.with_limits(LIMITS));
        let prepared = Prepared::new(&replies)?;
        let opened = prepared.send_opening(&link, left(deadline));
        opened.and_then(|()| prepared.send_greeting(&link, Awaits::Server, left(deadline)))?;
        // Made while the server hears that.
        let mut publisher = requests.for_one()?;
        publisher.show(BEHIND, behind());
        let again = process.as_ref().map(OwnedFd::try_clone).transpose();
        let mut again = again.map_err(Error::os("duplicate a pidfd"))?;
        let handshake = Handshake::new(replies, prepared, link.clone(), process);
        let mut handshake = handshake.awaiting(Awaits::Server);
        let mut limit = 0;
        let welcome = loop {
            let heard = handshake.hear(left(deadline));
            let heard = heard.map_err(|error| no_server(error, waited))?;
            if let Some(welcome) = heard {
                break welcome;
            }
            if let Some(server) = handshake.take_met() {
                limit = server.requests as usize;
                if !(1..=1 << PLACE_BITS).contains(&limit) {
                    let why = format!(
                        "expected a server that takes 1 to {} requests at a time, got {limit}",
                        1 << PLACE_BITS
                    );
                    return Err(Error::Welcome { why });
                }
                let joined = publisher.join(server.greeting, link.clone(), again.take());
                joined.map_err(|refusal| {
                    let why = match refusal {
                        Refusal::Payload { carries, expects } => {
                            format!("it expects {expects}, and this client sends {carries}")
                        }
                        refusal => format!("this client refused the server's greeting: {refusal}"),
                    };
                    Error::NoServer { why }
                })?;
            }
        };
        let subscriber = handshake.finish(welcome)?;
        Ok(Client::new(publisher, subscriber, limit, max_backlog))
    }
}

/// What a client makes of what it hears in place of a welcome.
fn no_server(error: Error, waited: Duration) -> Error {
    let why = match error {
        Error::Refused { why } => why,
        Error::HungUp => {
            "it hung up before it had taken this client: it has ended, or many others came at once; try again, or see whether \
             it runs"
                .to_owned()
        }
        Error::Link(LinkError::TimedOut) => format!(
            "it did not answer within {waited:?}: it is stopped, or busy elsewhere than in its recv calls, which are what lets \
             clients in"
        ),
        error => return error,
    };
    Error::NoServer { why }
}

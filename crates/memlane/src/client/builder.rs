use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use memlane_signaling::WaitPolicy;
use memlane_transport::{Access, Address, Link};

use super::Client;
use crate::{
    Connecting, Error, Publisher, PublisherBuilder, Subscriber, SubscriberBuilder, Trust,
    Untrusted,
    connecting::{Begun, Connects},
    envelope::{BEHIND, PLACE_BITS, behind},
    names::address_of,
    pidfd_of, process_of,
    protocol::{Refusal, Server as Greeted},
    subscriber::{Awaits, Handshake, Meeting},
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
        let link = Link::connect_with(address, self.replies.access.clone())?;
        let process = process_of(&link).map_err(Error::os("watch the server's process"))?;
        self.meet(link, process)?.wait()
    }

    /// Calls over a link that was made elsewhere (inherited, or [`Link::pair`]), whose other end a server has or gets
    /// ([`Server::attach`](crate::Server::attach)). The link is the client's from now on.
    ///
    /// # Errors
    ///
    /// As [`connect`](ClientBuilder::connect).
    pub fn over(self, link: Link) -> Result<Client<T>, Error> {
        self.meet(link, None)?.wait()
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
        self.meet(link, Some(pidfd_of(process)?))?.wait()
    }

    /// Begins to connect to a server of this user's, without waiting: for loops and tasks.
    ///
    /// # Errors
    ///
    /// As [`connect`](ClientBuilder::connect), as far as that is known at once.
    ///
    /// ```
    /// # let link = memlane::Link::pair()?;
    /// # let answering = std::thread::spawn(move || {
    /// #     let mut server = memlane::Server::builder().unbound().unwrap();
    /// #     server.attach(link.0).unwrap();
    /// #     server.recv().unwrap().reply(b"an answer").unwrap();
    /// # });
    /// # async_io::block_on(async {
    /// // let mut client = memlane::Client::builder().begin("sum")?.finish().await?;
    /// # let mut client = memlane::Client::builder().begin_over(link.1)?.finish().await?;
    /// println!("{} bytes", client.call(b"a question").await?.len());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # answering.join().unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn begin(self, service: &str) -> Result<Connecting<Client<T>>, Error> {
        self.begin_at(&address_of(service)?)
    }

    /// Begins to connect to a server at an address of the user's choice, without waiting.
    ///
    /// # Errors
    ///
    /// As [`begin`](ClientBuilder::begin).
    pub fn begin_at(self, address: &Address) -> Result<Connecting<Client<T>>, Error> {
        self.offer(|replies| Meeting::to(replies, address, Awaits::Server))
    }

    /// Begins to call over a link that was made elsewhere, as [`over`](ClientBuilder::over) does, without waiting.
    ///
    /// # Errors
    ///
    /// As [`begin`](ClientBuilder::begin).
    pub fn begin_over(self, link: Link) -> Result<Connecting<Client<T>>, Error> {
        self.meet(link, None)
    }

    fn meet(self, link: Link, process: Option<OwnedFd>) -> Result<Connecting<Client<T>>, Error> {
        self.offer(|replies| Meeting::over(replies, link, process, Awaits::Server))
    }

    fn offer(
        self,
        meet: impl FnOnce(SubscriberBuilder<T>) -> Result<Meeting<T>, Error>,
    ) -> Result<Connecting<Client<T>>, Error> {
        let meeting = meet(self.replies)?;
        // Made while the server hears of it.
        let publisher = self.requests.for_one()?;
        publisher.show(BEHIND, behind());
        Ok(Connecting::new(Asking {
            meeting,
            publisher: Some(publisher),
            limit: 0,
            max_backlog: self.max_backlog,
        }))
    }
}

/// A client on its way.
#[derive(Debug)]
pub struct Asking<T: Trust> {
    meeting: Meeting<T>,
    /// Of the requests.
    publisher: Option<Publisher>,
    /// So many the server takes, once it has said so.
    limit: usize,
    max_backlog: usize,
}

impl<T: Trust> Begun for Asking<T> {
    type End = Client<T>;

    fn advance(&mut self) -> Result<Option<Client<T>>, Error> {
        let Asking {
            meeting,
            publisher,
            limit,
            ..
        } = self;
        let met = meeting.advance_to_welcome(|server, handshake| match publisher {
            Some(publisher) => {
                *limit = join(publisher, server, handshake)?;
                Ok(())
            }
            None => unreachable!("taken with the welcome"),
        });
        let met = met.map_err(no_server)?;
        let Some((handshake, welcome)) = met else {
            return Ok(None);
        };
        let publisher = self.publisher.take().expect("it is finished once");
        let subscriber = handshake.finish(welcome)?;
        let client = Client::new(publisher, subscriber, self.limit, self.max_backlog);
        Ok(Some(client))
    }

    fn descriptor(&self) -> &Arc<OwnedFd> {
        Begun::descriptor(&self.meeting)
    }
}

impl<T: Trust> Connects for Client<T> {
    type Begun = Asking<T>;
}

/// Makes the server the reader of the requests; how many it takes at a time.
fn join<T: Trust>(
    publisher: &mut Publisher,
    server: Greeted,
    handshake: &Handshake<T>,
) -> Result<usize, Error> {
    let limit = server.requests as usize;
    if !(1..=1 << PLACE_BITS).contains(&limit) {
        let why = format!(
            "expected a server that takes 1 to {} requests at a time, got {limit}",
            1 << PLACE_BITS
        );
        return Err(Error::Welcome { why });
    }
    let process = handshake.process.as_ref().map(OwnedFd::try_clone);
    let process = process
        .transpose()
        .map_err(Error::os("duplicate a pidfd"))?;
    let joined = publisher.join(server.greeting, handshake.link().clone(), process);
    joined.map_err(|refusal| {
        let why = match refusal {
            Refusal::Payload { carries, expects } => {
                format!("it expects {expects}, and this client sends {carries}")
            }
            refusal => format!("this client refused the server's greeting: {refusal}"),
        };
        Error::NoServer { why }
    })?;
    Ok(limit)
}

fn no_server(error: Error) -> Error {
    let idle = "busy elsewhere than in its recv calls, which are what lets clients in";
    error.nobody("client", idle, |why| Error::NoServer { why })
}

//! Clients and servers of values, made.

use std::os::fd::AsFd;

use super::{Payload, Typed};
use crate::{Address, Client, ClientBuilder, Error, Link, Server, ServerBuilder, Trust, Watched};

/// A [`Client`], or one in a loop.
pub trait AsClient {
    /// Whether its server is trusted.
    type Trust: Trust;

    /// The client in it.
    fn as_client(&mut self) -> &mut Client<Self::Trust>;
}

impl<T: Trust> AsClient for Client<T> {
    type Trust = T;

    #[inline(always)]
    fn as_client(&mut self) -> &mut Client<T> {
        self
    }
}

impl<T: Trust> AsClient for Watched<Client<T>> {
    type Trust = T;

    #[inline(always)]
    fn as_client(&mut self) -> &mut Client<T> {
        self
    }
}

/// A [`Server`], or one in a loop.
pub trait AsServer {
    /// Whether its clients are trusted.
    type Trust: Trust;

    /// The server in it.
    fn as_server(&mut self) -> &mut Server<Self::Trust>;
}

impl<T: Trust> AsServer for Server<T> {
    type Trust = T;

    #[inline(always)]
    fn as_server(&mut self) -> &mut Server<T> {
        self
    }
}

impl<T: Trust> AsServer for Watched<Server<T>> {
    type Trust = T;

    #[inline(always)]
    fn as_server(&mut self) -> &mut Server<T> {
        self
    }
}

impl<T: Trust> ClientBuilder<T> {
    /// Makes it a client that sends values of `Q` and receives values of `A` ([`Typed`]), not bytes. Options come before.
    ///
    /// ```
    /// # let link = memlane::Link::pair()?;
    /// # let answering = std::thread::spawn(move || {
    /// use memlane::{Client, Encoded, Plain, Server};
    ///
    /// // let mut server = Server::builder().of::<Encoded<Vec<String>>, Plain<u64>>().bind("count")?;
    /// # let mut server = Server::builder().of::<Encoded<Vec<String>>, Plain<u64>>().unbound().unwrap();
    /// # server.get_mut().attach(link.0).unwrap();
    /// let request = server.recv()?;
    /// let count = request.len() as u64;
    /// request.reply(&count)?;
    /// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    /// # });
    /// # use memlane::{Client, Encoded, Plain};
    ///
    /// // let mut client = Client::builder().of::<Encoded<Vec<String>>, Plain<u64>>().connect("count")?;
    /// # let mut client = Client::builder().of::<Encoded<Vec<String>>, Plain<u64>>().over(link.1)?;
    /// let count = client.call(&vec!["one".to_owned(), "two".to_owned()])?;
    /// assert_eq!(count, 2);
    /// # answering.join().unwrap().unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn of<Q: Payload, A: Payload>(mut self) -> Typed<ClientBuilder<T>, (Q, A)> {
        self.requests = self.requests.carrying(Q::describe());
        self.replies = self.replies.carrying(A::describe());
        Typed::new(self)
    }
}

impl<T: Trust> ServerBuilder<T> {
    /// Makes it a server that receives values of `Q` and answers with values of `A` ([`Typed`]), not bytes. Options come before.
    /// A request that is no value of `Q` is answered with a failure, and never seen.
    pub fn of<Q: Payload, A: Payload>(mut self) -> Typed<ServerBuilder<T>, (Q, A)> {
        self.requests = self.requests.carrying(Q::describe());
        self.replies = self.replies.carrying(A::describe());
        Typed::new(self)
    }
}

macro_rules! described {
    ($builder:ident, $sent:ident, $received:ident) => {
        /// Says which version of the types this is: those who have another are refused.
        pub fn version(self, version: u32) -> Self {
            let mut builder = self.into_inner();
            let sent = builder.$sent.carries().clone().with_version(version);
            builder.$sent = builder.$sent.carrying(sent);
            if let Some(received) = builder.$received.carries().cloned() {
                let received = received.with_version(version);
                builder.$received = builder.$received.carrying(received);
            }
            Typed::new(builder)
        }

        fn named_in_order(self, sent: &str, received: &str) -> Self {
            let mut builder = self.into_inner();
            let sends = builder.$sent.carries().clone().with_name(sent);
            builder.$sent = builder.$sent.carrying(sends);
            if let Some(receives) = builder.$received.carries().cloned() {
                let receives = receives.with_name(received);
                builder.$received = builder.$received.carrying(receives);
            }
            Typed::new(builder)
        }
    };
}

impl<T: Trust, Q: Payload, A: Payload> Typed<ClientBuilder<T>, (Q, A)> {
    described!(ClientBuilder, requests, replies);

    /// Says what the types of requests and replies are called, in place of what the compiler calls them.
    pub fn named(self, requests: &str, replies: &str) -> Self {
        self.named_in_order(requests, replies)
    }

    /// Connects to a server of this user's ([`ClientBuilder::connect`]).
    ///
    /// # Errors
    ///
    /// As there; [`Error::NoServer`] says what each side has, if that differs.
    pub fn connect(self, service: &str) -> Result<Typed<Client<T>, (Q, A)>, Error> {
        self.try_map(|builder| builder.connect(service))
    }

    /// Connects to a server at an address of the user's choice ([`ClientBuilder::connect_to`]).
    ///
    /// # Errors
    ///
    /// As [`connect`](Typed::connect).
    pub fn connect_to(self, address: &Address) -> Result<Typed<Client<T>, (Q, A)>, Error> {
        self.try_map(|builder| builder.connect_to(address))
    }

    /// Calls over a link that was made elsewhere ([`ClientBuilder::over`]).
    ///
    /// # Errors
    ///
    /// As [`connect`](Typed::connect).
    pub fn over(self, link: Link) -> Result<Typed<Client<T>, (Q, A)>, Error> {
        self.try_map(|builder| builder.over(link))
    }

    /// Calls over a link whose other end a known process has ([`ClientBuilder::over_process`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn over_process(
        self,
        link: Link,
        process: impl AsFd,
    ) -> Result<Typed<Client<T>, (Q, A)>, Error> {
        self.try_map(|builder| builder.over_process(link, process))
    }
}

impl<T: Trust, Q: Payload, A: Payload> Typed<ServerBuilder<T>, (Q, A)> {
    described!(ServerBuilder, replies, requests);

    /// Says what the types of requests and replies are called, in place of what the compiler calls them.
    pub fn named(self, requests: &str, replies: &str) -> Self {
        self.named_in_order(replies, requests)
    }

    /// Binds a service of this user's ([`ServerBuilder::bind`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn bind(self, service: &str) -> Result<Typed<Server<T>, (Q, A)>, Error> {
        self.try_map(|builder| builder.bind(service))
    }

    /// Binds a service at an address of the user's choice ([`ServerBuilder::bind_to`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn bind_to(self, address: &Address) -> Result<Typed<Server<T>, (Q, A)>, Error> {
        self.try_map(|builder| builder.bind_to(address))
    }

    /// Makes a server without an address ([`ServerBuilder::unbound`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn unbound(self) -> Result<Typed<Server<T>, (Q, A)>, Error> {
        self.try_map(ServerBuilder::unbound)
    }
}

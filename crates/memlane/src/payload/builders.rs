//! Typed lanes, made.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use super::{Payload, PayloadType, Typed};
use crate::{
    Address, Async, Client, ClientBuilder, Connecting, Connects, Error, Link, Publisher,
    PublisherBuilder, PublisherStays, PublisherTicket, Readiness, Receiver, Stays, Subscriber,
    SubscriberBuilder, Ticket, Trust, WatchReceiver, WatchReceiverBuilder,
};

impl<E: Connects, P> Typed<Connecting<E>, P> {
    /// Gets on as far as that takes no waiting ([`Connecting::try_finish`]).
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// As there.
    pub fn try_finish(&mut self) -> Result<Option<Typed<E, P>>, Error> {
        Ok(self.get_mut().try_finish()?.map(Typed::new))
    }

    /// Finishes in a task, on any executor ([`Connecting::finish`]).
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// ```
    /// # let link = memlane::Link::pair()?;
    /// # let mut publisher = memlane::Publisher::builder().of::<memlane::Encoded<String>>().unbound()?;
    /// # publisher.get_ref().attach(link.0)?;
    /// use memlane::{Encoded, Subscriber};
    ///
    /// # async_io::block_on(async {
    /// let options = Subscriber::builder().of::<Encoded<String>>();
    /// // let mut lines = options.begin("lines")?.finish().await?;
    /// # let mut lines = options.begin_over(link.1)?.finish().await?;
    /// # publisher.send(&"a line".to_owned())?;
    /// println!("{}", lines.recv().await?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub async fn finish(self) -> Result<Typed<Async<E>, P>, Error> {
        self.into_inner().finish().await.map(Typed::new)
    }

    /// Finishes in a task, which is woken by what `readiness` makes ([`Connecting::finish_with`]); in a tokio runtime by
    /// `memlane::tokio::Readiness::new`.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn finish_with<R: Readiness>(
        self,
        readiness: impl FnMut(Arc<OwnedFd>) -> io::Result<R>,
    ) -> Result<Typed<Async<E, R>, P>, Error> {
        let end = self.into_inner().finish_with(readiness).await;
        end.map(Typed::new)
    }
}

/// Beginning to connect, without waiting: for loops and tasks.
macro_rules! begins {
    ($($trust:ident)?, $builder:ty, $end:ty, $payload:ty, $($of:ident),+) => {
        impl<$($trust: Trust,)? $($of: Payload),+> Typed<$builder, $payload> {
            /// Begins to connect to a service of this user's, without waiting: for loops and tasks.
            ///
            /// # Errors
            ///
            /// As [`connect`](Typed::connect), as far as that is known at once.
            pub fn begin(self, service: &str) -> Result<Typed<Connecting<$end>, $payload>, Error> {
                self.try_map(|builder| builder.begin(service))
            }

            /// Begins to connect to a service at an address of the user's choice, without waiting.
            ///
            /// # Errors
            ///
            /// As [`begin`](Typed::begin).
            pub fn begin_at(
                self,
                address: &Address,
            ) -> Result<Typed<Connecting<$end>, $payload>, Error> {
                self.try_map(|builder| builder.begin_at(address))
            }

            /// Begins to connect over a link that was made elsewhere, as [`over`](Typed::over) does, without waiting.
            ///
            /// # Errors
            ///
            /// As [`begin`](Typed::begin).
            pub fn begin_over(self, link: Link) -> Result<Typed<Connecting<$end>, $payload>, Error> {
                self.try_map(|builder| builder.begin_over(link))
            }
        }
    };
}

begins!(, PublisherBuilder, Publisher, P, P);
begins!(T, SubscriberBuilder<T>, Subscriber<T>, P, P);
begins!(, WatchReceiverBuilder, WatchReceiver, P, P);
begins!(T, ClientBuilder<T>, Client<T>, (Q, A), Q, A);

impl<P: Payload> Typed<PublisherBuilder, P> {
    pub(crate) fn builder(builder: PublisherBuilder) -> Typed<PublisherBuilder, P> {
        Typed::new(builder.carrying(P::describe()))
    }

    /// Says what the type is called, in place of what the compiler calls it.
    pub fn named(self, name: &str) -> Typed<PublisherBuilder, P> {
        self.described(|described| described.with_name(name))
    }

    /// Says which version of the type this is: those who have another are refused.
    pub fn version(self, version: u32) -> Typed<PublisherBuilder, P> {
        self.described(|described| described.with_version(version))
    }

    fn described(self, with: impl FnOnce(PayloadType) -> PayloadType) -> Self {
        let builder = self.into_inner();
        let described = with(builder.carries().clone());
        Typed::new(builder.carrying(described))
    }

    /// Binds a service of this user's ([`PublisherBuilder::bind`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn bind(self, service: &str) -> Result<Typed<Publisher, P>, Error> {
        self.try_map(|builder| builder.bind(service))
    }

    /// Binds a service at an address of the user's choice ([`PublisherBuilder::bind_to`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn bind_to(self, address: &Address) -> Result<Typed<Publisher, P>, Error> {
        self.try_map(|builder| builder.bind_to(address))
    }

    /// Connects to a queue of this user's ([`PublisherBuilder::connect`]).
    ///
    /// # Errors
    ///
    /// As there; [`Error::NoReceiver`] says what each side carries, if that differs.
    pub fn connect(self, service: &str) -> Result<Typed<Publisher, P>, Error> {
        self.try_map(|builder| builder.connect(service))
    }

    /// Connects to a queue at an address of the user's choice ([`PublisherBuilder::connect_to`]).
    ///
    /// # Errors
    ///
    /// As [`connect`](Typed::connect).
    pub fn connect_to(self, address: &Address) -> Result<Typed<Publisher, P>, Error> {
        self.try_map(|builder| builder.connect_to(address))
    }

    /// Sends over a link that was made elsewhere ([`PublisherBuilder::over`]).
    ///
    /// # Errors
    ///
    /// As [`connect`](Typed::connect).
    pub fn over(self, link: Link) -> Result<Typed<Publisher, P>, Error> {
        self.try_map(|builder| builder.over(link))
    }

    /// Sends over a link whose other end a known process has ([`PublisherBuilder::over_process`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn over_process(
        self,
        link: Link,
        process: impl AsFd,
    ) -> Result<Typed<Publisher, P>, Error> {
        self.try_map(|builder| builder.over_process(link, process))
    }

    /// Makes a publisher without an address ([`PublisherBuilder::unbound`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn unbound(self) -> Result<Typed<Publisher, P>, Error> {
        self.try_map(PublisherBuilder::unbound)
    }

    /// Goes on where another publisher of the same values stops ([`PublisherBuilder::arrive`]).
    ///
    /// # Errors
    ///
    /// As there; [`Error::Option`] says what each side carries, if that differs.
    pub fn arrive(self, ticket: PublisherTicket) -> Result<Typed<Publisher, P>, Error> {
        self.try_map(|builder| builder.arrive(ticket))
    }

    /// Begins to go on where another publisher of the same values stops, without waiting ([`PublisherBuilder::begin_arrival`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn begin_arrival(
        self,
        ticket: PublisherTicket,
    ) -> Result<Typed<Connecting<Publisher>, P>, Error> {
        self.try_map(|builder| builder.begin_arrival(ticket))
    }
}

impl<T: Trust, P: Payload> Typed<SubscriberBuilder<T>, P> {
    pub(crate) fn builder(builder: SubscriberBuilder<T>) -> Typed<SubscriberBuilder<T>, P> {
        Typed::new(builder.carrying(P::describe()))
    }

    /// Says what the type is called, in place of what the compiler calls it.
    pub fn named(self, name: &str) -> Typed<SubscriberBuilder<T>, P> {
        self.described(|described| described.with_name(name))
    }

    /// Says which version of the type this is: publishers that have another refuse it.
    pub fn version(self, version: u32) -> Typed<SubscriberBuilder<T>, P> {
        self.described(|described| described.with_version(version))
    }

    fn described(self, with: impl FnOnce(PayloadType) -> PayloadType) -> Self {
        let builder = self.into_inner();
        let described = builder.carries().cloned().unwrap_or_else(P::describe);
        Typed::new(builder.carrying(with(described)))
    }

    /// Subscribes to a service of this user's ([`SubscriberBuilder::connect`]).
    ///
    /// # Errors
    ///
    /// As there; [`Error::Refused`] says what each side carries, if that differs.
    pub fn connect(self, service: &str) -> Result<Typed<Subscriber<T>, P>, Error> {
        self.try_map(|builder| builder.connect(service))
    }

    /// Subscribes to a service at an address of the user's choice ([`SubscriberBuilder::connect_to`]).
    ///
    /// # Errors
    ///
    /// As [`connect`](Typed::connect).
    pub fn connect_to(self, address: &Address) -> Result<Typed<Subscriber<T>, P>, Error> {
        self.try_map(|builder| builder.connect_to(address))
    }

    /// Subscribes over a link that was made elsewhere ([`SubscriberBuilder::over`]).
    ///
    /// # Errors
    ///
    /// As [`connect`](Typed::connect).
    pub fn over(self, link: Link) -> Result<Typed<Subscriber<T>, P>, Error> {
        self.try_map(|builder| builder.over(link))
    }

    /// Goes on where another subscriber stops ([`SubscriberBuilder::arrive`]).
    ///
    /// # Errors
    ///
    /// As there; [`Error::Refused`] says what each side carries, if that differs.
    pub fn arrive(self, ticket: Ticket) -> Result<Typed<Subscriber<T>, P>, Error> {
        self.try_map(|builder| builder.arrive(ticket))
    }

    /// Begins to go on where another subscriber stops, without waiting ([`SubscriberBuilder::begin_arrival`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn begin_arrival(
        self,
        ticket: Ticket,
    ) -> Result<Typed<Connecting<Subscriber<T>>, P>, Error> {
        self.try_map(|builder| builder.begin_arrival(ticket))
    }

    /// Subscribes over a link whose other end a known process has: see [`SubscriberBuilder::over_process`].
    ///
    /// # Errors
    ///
    /// As [`over_process`](SubscriberBuilder::over_process).
    pub fn over_process(
        self,
        link: Link,
        process: impl AsFd,
    ) -> Result<Typed<Subscriber<T>, P>, Error> {
        self.try_map(|builder| builder.over_process(link, process))
    }

    /// Binds a queue of this user's ([`SubscriberBuilder::bind`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn bind(self, service: &str) -> Result<Typed<Receiver<T>, P>, Error> {
        self.try_map(|builder| builder.bind(service))
    }

    /// Binds a queue at an address of the user's choice ([`SubscriberBuilder::bind_to`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn bind_to(self, address: &Address) -> Result<Typed<Receiver<T>, P>, Error> {
        self.try_map(|builder| builder.bind_to(address))
    }

    /// Makes a queue without an address ([`SubscriberBuilder::unbound`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn unbound(self) -> Result<Typed<Receiver<T>, P>, Error> {
        self.try_map(SubscriberBuilder::unbound)
    }
}

/// What does not depend on the values.
impl<T: Trust, P: Payload> Typed<Subscriber<T>, P> {
    /// Asks the publisher for a ticket, with which another process goes on ([`Subscriber::ticket`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn ticket(&mut self) -> Result<Ticket, Error> {
        self.get_mut().ticket()
    }

    /// Whether somebody waits to go on ([`Subscriber::is_awaited`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn is_awaited(&mut self) -> Result<bool, Error> {
        self.get_mut().is_awaited()
    }

    /// Stops, and leaves its place to whoever has its ticket ([`Subscriber::depart`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn depart(self) -> Result<(), Box<Stays<T>>> {
        self.into_inner().depart()
    }
}

/// What does not depend on the values.
impl<P: Payload> Typed<Publisher, P> {
    /// Waits until there are at least `count` subscribers ([`Publisher::wait_for_subscribers`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn wait_for_subscribers(&self, count: usize) -> Result<(), Error> {
        self.get_ref().wait_for_subscribers(count)
    }

    /// Waits until there are at least `count` subscribers, no longer than `timeout`; whether there are.
    ///
    /// # Errors
    ///
    /// As [`wait_for_subscribers`](Typed::wait_for_subscribers).
    pub fn wait_for_subscribers_timeout(
        &self,
        count: usize,
        timeout: Duration,
    ) -> Result<bool, Error> {
        self.get_ref().wait_for_subscribers_timeout(count, timeout)
    }

    /// Makes a ticket, with which another process goes on ([`Publisher::ticket`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn ticket(&mut self) -> Result<PublisherTicket, Error> {
        self.get_mut().ticket()
    }

    /// Whether somebody waits to go on ([`Publisher::is_awaited`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn is_awaited(&mut self) -> Result<bool, Error> {
        self.get_mut().is_awaited()
    }

    /// Stops, and leaves its subscribers to whoever has its ticket ([`Publisher::depart`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn depart(self) -> Result<(), Box<PublisherStays>> {
        self.into_inner().depart()
    }

    /// Waits until every subscriber has received all that was sent ([`Publisher::drain`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn drain(&mut self, timeout: Duration) -> Result<bool, Error> {
        self.get_mut().drain(timeout)
    }
}

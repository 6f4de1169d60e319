//! Latest values that are values.

use std::{os::fd::AsFd, time::Duration};

use super::{Payload, PayloadError, Typed, Values};
use crate::{
    Address, Async, Connecting, Error, Link, Readiness, TooLong, WatchError, WatchReceiver,
    WatchReceiverBuilder, WatchSender, WatchSenderBuilder, WatchTicket, Watched,
};

impl<P: Payload> Typed<WatchSenderBuilder, P> {
    pub(crate) fn builder(builder: WatchSenderBuilder) -> Typed<WatchSenderBuilder, P> {
        Typed::new(builder.carrying(P::describe()))
    }

    /// Says what the type is called, in place of what the compiler calls it.
    pub fn named(self, name: &str) -> Typed<WatchSenderBuilder, P> {
        let builder = self.into_inner();
        let described = builder.carries().clone().with_name(name);
        Typed::new(builder.carrying(described))
    }

    /// Says which version of the type this is: those who have another are refused.
    pub fn version(self, version: u32) -> Typed<WatchSenderBuilder, P> {
        let builder = self.into_inner();
        let described = builder.carries().clone().with_version(version);
        Typed::new(builder.carrying(described))
    }

    /// Binds a service of this user's ([`WatchSenderBuilder::bind`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn bind(self, service: &str) -> Result<Typed<WatchSender, P>, Error> {
        self.try_map(|builder| builder.bind(service))
    }

    /// Binds a service at an address of the user's choice ([`WatchSenderBuilder::bind_to`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn bind_to(self, address: &Address) -> Result<Typed<WatchSender, P>, Error> {
        self.try_map(|builder| builder.bind_to(address))
    }

    /// Makes a sender without an address ([`WatchSenderBuilder::unbound`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn unbound(self) -> Result<Typed<WatchSender, P>, Error> {
        self.try_map(WatchSenderBuilder::unbound)
    }
}

impl<P: Payload> Typed<WatchReceiverBuilder, P> {
    pub(crate) fn builder(builder: WatchReceiverBuilder) -> Typed<WatchReceiverBuilder, P> {
        Typed::new(builder.carrying(P::describe()))
    }

    /// Says what the type is called, in place of what the compiler calls it.
    pub fn named(self, name: &str) -> Typed<WatchReceiverBuilder, P> {
        let builder = self.into_inner();
        let described = builder.carries().cloned().unwrap_or_else(P::describe);
        Typed::new(builder.carrying(described.with_name(name)))
    }

    /// Says which version of the type this is: senders that have another refuse it.
    pub fn version(self, version: u32) -> Typed<WatchReceiverBuilder, P> {
        let builder = self.into_inner();
        let described = builder.carries().cloned().unwrap_or_else(P::describe);
        Typed::new(builder.carrying(described.with_version(version)))
    }

    /// Watches a service of this user's ([`WatchReceiverBuilder::connect`]).
    ///
    /// # Errors
    ///
    /// As there; [`Error::NoSender`] says what each side carries, if that differs.
    pub fn connect(self, service: &str) -> Result<Typed<WatchReceiver, P>, Error> {
        self.try_map(|builder| builder.connect(service))
    }

    /// Watches a service at an address of the user's choice ([`WatchReceiverBuilder::connect_to`]).
    ///
    /// # Errors
    ///
    /// As [`connect`](Typed::connect).
    pub fn connect_to(self, address: &Address) -> Result<Typed<WatchReceiver, P>, Error> {
        self.try_map(|builder| builder.connect_to(address))
    }

    /// Watches over a link that was made elsewhere ([`WatchReceiverBuilder::over`]).
    ///
    /// # Errors
    ///
    /// As [`connect`](Typed::connect).
    pub fn over(self, link: Link) -> Result<Typed<WatchReceiver, P>, Error> {
        self.try_map(|builder| builder.over(link))
    }

    /// Watches over a link whose other end a known process has ([`WatchReceiverBuilder::over_process`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn over_process(
        self,
        link: Link,
        process: impl AsFd,
    ) -> Result<Typed<WatchReceiver, P>, Error> {
        self.try_map(|builder| builder.over_process(link, process))
    }

    /// Goes on where another receiver stops ([`WatchReceiverBuilder::arrive`]).
    ///
    /// # Errors
    ///
    /// As there; [`Error::NoSender`] says what each side carries, if that differs.
    pub fn arrive(self, ticket: WatchTicket) -> Result<Typed<WatchReceiver, P>, Error> {
        self.try_map(|builder| builder.arrive(ticket))
    }

    /// Begins to go on where another receiver stops, without waiting ([`WatchReceiverBuilder::begin_arrival`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn begin_arrival(
        self,
        ticket: WatchTicket,
    ) -> Result<Typed<Connecting<WatchReceiver>, P>, Error> {
        self.try_map(|builder| builder.begin_arrival(ticket))
    }
}

impl<P: Values> Typed<WatchSender, P> {
    /// Makes this the newest value ([`WatchSender::send`]).
    ///
    /// # Errors
    ///
    /// Those of there, and [`PayloadError::Encode`].
    pub fn send(&mut self, value: &P::Value) -> Result<u64, PayloadError<TooLong>> {
        let (sender, copy) = self.end_and_copy();
        let limit = sender.max_len();
        let bytes = P::bytes(value, copy, limit).map_err(PayloadError::widen)?;
        sender.send(bytes).map_err(PayloadError::Lane)
    }
}

macro_rules! receives {
    ($receiver:ty) => {
        impl<P: Values> Typed<$receiver, P> {
            /// The newest value; none before the first ([`WatchReceiver::get`]).
            ///
            /// # Errors
            ///
            /// Those of there, and those of values.
            pub fn get(&mut self) -> Result<Option<P::Owned>, PayloadError<WatchError>> {
                let (receiver, copy) = self.end_and_copy();
                value::<P>(receiver, copy)
            }

            /// Waits until there is a newer value than the one that was read last ([`WatchReceiver::changed`]).
            ///
            /// # Errors
            ///
            /// As there.
            pub fn changed(&mut self) -> Result<(), WatchError> {
                self.end_mut().changed()
            }

            /// Waits until there is a newer value than the one that was read last, no longer than `timeout`
            /// ([`WatchReceiver::changed_timeout`]).
            ///
            /// # Errors
            ///
            /// As there.
            pub fn changed_timeout(&mut self, timeout: Duration) -> Result<(), WatchError> {
                self.end_mut().changed_timeout(timeout)
            }

            /// Whether there is a newer value than the one that was read last ([`WatchReceiver::try_changed`]).
            ///
            /// # Errors
            ///
            /// As there.
            pub fn try_changed(&mut self) -> Result<bool, WatchError> {
                self.end_mut().try_changed()
            }
        }
    };
}

receives!(WatchReceiver);
receives!(Watched<WatchReceiver>);

impl<R: Readiness, P: Values> Typed<Async<WatchReceiver, R>, P> {
    /// The newest value; none before the first ([`WatchReceiver::get`]).
    ///
    /// # Errors
    ///
    /// Those of there, and those of values.
    pub fn get(&mut self) -> Result<Option<P::Owned>, PayloadError<WatchError>> {
        let (receiver, copy) = self.end_and_copy();
        value::<P>(receiver.get_mut(), copy)
    }

    /// Waits until there is a newer value than the one that was read last ([`Async::changed`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn changed(&mut self) -> Result<(), WatchError> {
        self.end_mut().changed().await
    }
}

fn value<P: Values>(
    receiver: &mut WatchReceiver,
    copy: &mut Vec<u8>,
) -> Result<Option<P::Owned>, PayloadError<WatchError>> {
    let read = |bytes: &[u8]| P::value(bytes.len(), copy, |dst| dst.copy_from_slice(bytes));
    let value = receiver.get_with(read).map_err(PayloadError::Lane)?;
    value.transpose().map_err(PayloadError::widen)
}

//! Typed ends that move to another process: of many lanes, and of a latest value.

use std::time::Duration;

use super::{Payload, Typed};
use crate::{
    Connecting, Error, Receiver, ReceiverTicket, Remains, SubscriberBuilder, Subscriptions,
    SubscriptionsTicket, Trust, WatchReceiver, WatchTicket,
};

impl<T: Trust, P: Payload> Typed<SubscriberBuilder<T>, P> {
    /// Goes on where another receiver stops ([`SubscriberBuilder::arrive_receiver`]).
    ///
    /// # Errors
    ///
    /// As there. Lanes that carry something else stay where they are.
    pub fn arrive_receiver(self, ticket: ReceiverTicket) -> Result<Typed<Receiver<T>, P>, Error> {
        self.try_map(|builder| builder.arrive_receiver(ticket))
    }

    /// Begins to go on where another receiver stops, without waiting ([`SubscriberBuilder::begin_arrival_of_receiver`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn begin_arrival_of_receiver(
        self,
        ticket: ReceiverTicket,
    ) -> Result<Typed<Connecting<Receiver<T>>, P>, Error> {
        self.try_map(|builder| builder.begin_arrival_of_receiver(ticket))
    }

    /// Goes on where other subscriptions stop ([`SubscriberBuilder::arrive_subscriptions`]).
    ///
    /// # Errors
    ///
    /// As there. Lanes that carry something else stay where they are.
    pub fn arrive_subscriptions(
        self,
        ticket: SubscriptionsTicket,
    ) -> Result<Typed<Subscriptions<T>, P>, Error> {
        self.try_map(|builder| builder.arrive_subscriptions(ticket))
    }

    /// Begins to go on where other subscriptions stop, without waiting
    /// ([`SubscriberBuilder::begin_arrival_of_subscriptions`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn begin_arrival_of_subscriptions(
        self,
        ticket: SubscriptionsTicket,
    ) -> Result<Typed<Connecting<Subscriptions<T>>, P>, Error> {
        self.try_map(|builder| builder.begin_arrival_of_subscriptions(ticket))
    }
}

macro_rules! travels {
    ([$($generics:tt)*], $end:ident, $of:ty, $ticket:ident) => {
        /// What does not depend on the values.
        impl<$($generics)*> Typed<$of, P> {
            #[doc = concat!("Makes a ticket, with which another process goes on ([`", stringify!($end), "::ticket`]).")]
            ///
            /// # Errors
            ///
            /// As there.
            pub fn ticket(&mut self) -> Result<$ticket, Error> {
                self.get_mut().ticket()
            }

            #[doc = concat!("Whether somebody waits to go on ([`", stringify!($end), "::is_awaited`]).")]
            ///
            /// # Errors
            ///
            /// As there.
            pub fn is_awaited(&mut self) -> Result<bool, Error> {
                self.get_mut().is_awaited()
            }

            #[doc = concat!("Waits until somebody waits to go on ([`", stringify!($end), "::wait_until_awaited`]).")]
            ///
            /// # Errors
            ///
            /// As there.
            pub fn wait_until_awaited(&mut self, timeout: Duration) -> Result<bool, Error> {
                self.get_mut().wait_until_awaited(timeout)
            }

            #[doc = concat!("Stops, and leaves its place to whoever has its ticket ([`", stringify!($end), "::depart`]).")]
            ///
            /// # Errors
            ///
            /// As there.
            pub fn depart(self) -> Result<(), Box<Remains<Typed<$of, P>>>> {
                let departed = self.into_inner().depart();
                departed.map_err(|remains| Box::new(remains.map(Typed::new)))
            }
        }
    };
}

travels!([T: Trust, P: Payload], Receiver, Receiver<T>, ReceiverTicket);
travels!([T: Trust, P: Payload], Subscriptions, Subscriptions<T>, SubscriptionsTicket);
travels!([P: Payload], WatchReceiver, WatchReceiver, WatchTicket);

impl<T: Trust, P: Payload> Typed<Receiver<T>, P> {
    /// Takes its ticket back ([`Receiver::stay`]).
    pub fn stay(&mut self) {
        self.get_mut().stay();
    }
}

impl<T: Trust, P: Payload> Typed<Subscriptions<T>, P> {
    /// Takes its ticket back ([`Subscriptions::stay`]).
    pub fn stay(&mut self) {
        self.get_mut().stay();
    }
}

impl<P: Payload> Typed<WatchReceiver, P> {
    /// Takes its ticket back ([`WatchReceiver::stay`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn stay(&mut self) -> Result<(), Error> {
        self.get_mut().stay()
    }
}

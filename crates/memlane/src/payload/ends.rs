//! What typed ends do that does not depend on the values: who is at the other side.

use std::{os::fd::AsFd, time::Duration};

use super::{Payload, Typed};
use crate::{Error, Link, Publisher, Receiver, Server, Subscriber, Trust, WatchSender};

macro_rules! attaches {
    ([$($generics:tt)*], $end:ident, $typed:ty, [$($mut:tt)?], $get:ident, $count:ident, $who:literal) => {
        impl<$($generics)*> $typed {
            #[doc = concat!("Takes a link that was made elsewhere ([`", stringify!($end), "::attach`]).")]
            ///
            /// # Errors
            ///
            /// As there.
            pub fn attach(&$($mut)? self, link: Link) -> Result<(), Error> {
                self.$get().attach(link)
            }

            #[doc = concat!(
                "Takes a link whose other end a known process has ([`", stringify!($end), "::attach_process`])."
            )]
            ///
            /// # Errors
            ///
            /// As there.
            pub fn attach_process(
                &$($mut)? self,
                link: Link,
                process: impl AsFd,
            ) -> Result<(), Error> {
                self.$get().attach_process(link, process)
            }

            #[doc = concat!("How many ", $who, " there are ([`", stringify!($end), "::", stringify!($count), "`]).")]
            pub fn $count(&self) -> usize {
                self.get_ref().$count()
            }
        }
    };
}

attaches!([P: Payload], Publisher, Typed<Publisher, P>, [], get_ref, subscribers, "subscribers");
attaches!([P: Payload], WatchSender, Typed<WatchSender, P>, [], get_ref, receivers, "receivers");
attaches!([T: Trust, P: Payload], Receiver, Typed<Receiver<T>, P>, [mut], get_mut, senders, "senders");
attaches!([T: Trust, Q: Payload, A: Payload], Server, Typed<Server<T>, (Q, A)>, [mut], get_mut, clients, "clients");

impl<T: Trust, P: Payload> Typed<Subscriber<T>, P> {
    /// Waits until somebody waits to go on ([`Subscriber::wait_until_awaited`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn wait_until_awaited(&mut self, timeout: Duration) -> Result<bool, Error> {
        self.get_mut().wait_until_awaited(timeout)
    }

    /// Does not move after all ([`Subscriber::stay`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn stay(&mut self) -> Result<(), Error> {
        self.get_mut().stay()
    }
}

impl<P: Payload> Typed<Publisher, P> {
    /// Waits until somebody waits to go on ([`Publisher::wait_until_awaited`]).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn wait_until_awaited(&mut self, timeout: Duration) -> Result<bool, Error> {
        self.get_mut().wait_until_awaited(timeout)
    }

    /// Does not move after all ([`Publisher::stay`]).
    pub fn stay(&mut self) {
        self.get_mut().stay();
    }
}

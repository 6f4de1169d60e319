//! A subscriber of many publishers.

mod future;
mod received;
mod travel;

use std::{collections::HashMap, io, os::fd::OwnedFd, sync::Arc, time::Duration};

use memlane_signaling::WaitPolicy;
use memlane_transport::{Address, Peer};

pub use received::{Ended, Received};
pub use travel::SubscriptionsTicket;

use crate::{
    Error, Message, Reason, RecvError, RecvTimeoutError, Subscriber, SubscriberBuilder, Trust,
    TryRecvError, Untrusted, address_of, after,
    receiver::{
        arriving::Arriving,
        gather::{self, Gather, Key},
        leaving::Leaving,
    },
    receiving::Finding,
    subscriber::{Next, NoMessage, Why},
    watched::{Watch, polls},
};

/// Receives from any number of publishers: of services here and there, each [waited for or
/// overwritten](crate::Overflow) as it was subscribed to.
///
/// Messages of one publisher come in its order; those of several come by turns, so that a flood of one does not hold up the
/// others. Each comes with the [`Key`] of its publisher. When a publisher is gone, what it had committed is still received, and
/// then it is told, once, that it has [`Ended`], and why; the others go on. One that comes back can be added again, under a new
/// key. With no publisher left there is nothing to wait for: that is [`Disconnected`](RecvError::Disconnected), with
/// [`Reason::NoPublisher`].
///
/// All are waited for at once, by one thread, which is the caller's. Each costs what a subscriber costs: a page and four descriptors.
///
/// ```
/// use memlane::{Received, Subscriptions};
///
/// # let (left, right) = (memlane::Link::pair()?, memlane::Link::pair()?);
/// # let mut publisher = memlane::Publisher::builder().unbound()?;
/// # publisher.attach(left.0)?;
/// # let mut other = memlane::Publisher::builder().unbound()?;
/// # other.attach(right.0)?;
/// let mut subscriptions = Subscriptions::new()?;
/// // let left = subscriptions.connect("left")?;
/// # let left = subscriptions.add_as("left", memlane::Subscriber::builder().over(left.1)?)?;
/// // let right = subscriptions.connect("right")?;
/// # let right = subscriptions.add_as("right", memlane::Subscriber::builder().over(right.1)?)?;
/// # publisher.send(b"a frame")?;
/// # drop(publisher);
/// # drop(other);
/// loop {
///     match subscriptions.recv() {
///         Ok(Received::Message(from, message)) if from == left => println!("{} bytes", message.len()),
///         Ok(Received::Message(..)) => println!("from the right"),
///         Ok(Received::Ended(ended)) => println!("{}: {}", ended.label, ended.reason),
///         Err(memlane::RecvError::Disconnected { .. }) => break, // nobody is left
///         Err(error) => return Err(error.into()),
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Subscriptions<T: Trust = Untrusted> {
    gather: Gather<T>,
    builder: SubscriberBuilder<T>,
    labels: HashMap<Key, String>,
    /// Whom the last message came from.
    last: Option<Key>,
    ended: u64,
    /// It is about to move to another process.
    leaving: Option<Box<Leaving>>,
    /// It goes on where another stops.
    arriving: Option<Box<Arriving<T>>>,
}

/// What a subscriber of many publishers has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionsStats {
    /// Messages received.
    pub messages: u64,
    /// Times it went to sleep for want of a message.
    pub sleeps: u64,
    /// Times a publisher rang it awake.
    pub wakeups: u64,
    /// Publishers that have ended.
    pub ended: u64,
}

/// What was found, and is still where it was.
#[derive(Debug)]
pub enum Found {
    Message(Key, Next),
    Ended(Key, NoMessage),
}

impl Subscriptions {
    /// A subscriber of no publisher yet, with default options.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: descriptors are short.
    pub fn new() -> Result<Subscriptions, Error> {
        Subscriptions::builder().subscriptions()
    }

    /// Options, all with defaults: those of a subscriber, whose [`subscriptions`](SubscriberBuilder::subscriptions) makes it.
    pub fn builder() -> SubscriberBuilder {
        SubscriberBuilder::default()
    }
}

impl<T: Trust> SubscriberBuilder<T> {
    /// Makes a subscriber of many publishers, of none so far. It waits as these options say, whichever way those
    /// wait that are [added](Subscriptions::add), and [connects](Subscriptions::connect) with them.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: descriptors are short.
    pub fn subscriptions(self) -> Result<Subscriptions<T>, Error> {
        Ok(Subscriptions {
            gather: Gather::new(self.wait).map_err(Error::os("create epoll"))?,
            builder: self,
            labels: HashMap::new(),
            last: None,
            ended: 0,
            leaving: None,
            arriving: None,
        })
    }
}

impl<T: Trust> Subscriptions<T> {
    /// Subscribes to a service of this user's, too, with the options that this was made with. Waits for the publisher's welcome,
    /// and receives nothing meanwhile; to go on instead, [begin](SubscriberBuilder::begin), and [`add`](Subscriptions::add).
    ///
    /// # Errors
    ///
    /// As [`SubscriberBuilder::connect`].
    pub fn connect(&mut self, service: &str) -> Result<Key, Error> {
        let subscriber = self.builder.clone().connect_to(&address_of(service)?)?;
        self.add_as(service, subscriber)
    }

    /// Subscribes to a service at an address of the user's choice, too.
    ///
    /// # Errors
    ///
    /// As [`connect`](Subscriptions::connect).
    pub fn connect_to(&mut self, address: &Address) -> Result<Key, Error> {
        self.add(self.builder.clone().connect_to(address)?)
    }

    /// Adds a subscriber, whatever it has received before; its label is the address of its publisher, if it has one. The
    /// key names its publisher from now on, and never another one.
    ///
    /// [`liveliness`](SubscriberBuilder::liveliness) is the user's to look after: see [`silence`](Subscriptions::silence).
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if it [polls](WaitPolicy::Poll), so that nobody wakes it, and this does not; [`Error::Os`] if it cannot be
    /// watched. It is dropped then.
    pub fn add(&mut self, subscriber: Subscriber<T>) -> Result<Key, Error> {
        let label = subscriber.address().map(Address::to_string);
        self.add_as(&label.unwrap_or_default(), subscriber)
    }

    /// Adds a subscriber, under a label of the user's.
    ///
    /// # Errors
    ///
    /// As [`add`](Subscriptions::add).
    pub fn add_as(&mut self, label: &str, subscriber: Subscriber<T>) -> Result<Key, Error> {
        if subscriber.waiter().is_none() && self.gather.policy() != WaitPolicy::Poll {
            return Err(Error::Option {
                what: "wait",
                why: "expected a subscriber that is woken, to be waited for with others, got one that polls"
                    .to_owned(),
            });
        }
        let key = self.gather.add(subscriber);
        let key = key.map_err(Error::os("watch a subscriber"))?;
        self.labels.insert(key, label.to_owned());
        Ok(key)
    }

    /// Takes a subscriber out again: it goes on at its next message. None if it has ended, or was removed.
    pub fn remove(&mut self, key: Key) -> Option<Subscriber<T>> {
        self.labels.remove(&key);
        self.gather.remove(key)
    }

    /// Receives the next message, of whichever publisher, or is told that one has ended; waits for it.
    ///
    /// # Errors
    ///
    /// [`RecvError::Disconnected`] if there is no publisher; [`RecvError::Wait`] if waiting fails in the kernel. What is wrong
    /// with a publisher is in the [`Ended`] that tells of it.
    #[inline]
    pub fn recv(&mut self) -> Result<Received<Message<'_, T>>, RecvError> {
        let found = self.next(|gather| gather.wait(None));
        self.give(found).map_err(NoMessage::forever)
    }

    /// Receives the next message, or is told that a publisher has ended, if there is such a thing.
    ///
    /// # Errors
    ///
    /// [`TryRecvError::Empty`]; [`TryRecvError::Disconnected`] if there is no publisher.
    #[inline]
    pub fn try_recv(&mut self) -> Result<Received<Message<'_, T>>, TryRecvError> {
        let found = self.next(Gather::find);
        self.give(found).map_err(NoMessage::at_once)
    }

    /// Receives the next message, or is told that a publisher has ended; waits for it no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError::TimedOut`], and as [`recv`](Subscriptions::recv).
    pub fn recv_timeout(
        &mut self,
        timeout: Duration,
    ) -> Result<Received<Message<'_, T>>, RecvTimeoutError> {
        let deadline = after(timeout);
        let found = self.next(|gather| gather.wait(deadline));
        self.give(found).map_err(NoMessage::in_time)
    }

    /// How many publishers there are, those among them that are gone and have not been told of.
    pub fn len(&self) -> usize {
        self.gather.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The publishers there are, in no order.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.labels.keys().copied()
    }

    /// A publisher's label.
    pub fn label(&self, key: Key) -> Option<&str> {
        self.labels.get(&key).map(String::as_str)
    }

    /// A publisher's process, as the kernel knows it: the one that bound its service. Of a link that was made elsewhere, it is the
    /// one that made the link.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn peer(&self, key: Key) -> Option<io::Result<Peer>> {
        Some(self.gather.get(key)?.link().peer())
    }

    /// The subscriber to a publisher: what it has done, for one.
    pub fn get(&self, key: Key) -> Option<&Subscriber<T>> {
        self.gather.get(key)
    }

    /// For how long a publisher has given no sign of life ([`Subscriber::silence`]).
    pub fn silence(&mut self, key: Key) -> Option<Duration> {
        self.gather.get_mut(key).map(Subscriber::silence)
    }

    /// Whose message came last: for typed lanes, when that was no value of the type.
    pub fn last(&self) -> Option<Key> {
        self.last
    }

    /// What it has done so far.
    pub fn stats(&self) -> SubscriptionsStats {
        SubscriptionsStats {
            messages: self.gather.stats.messages,
            sleeps: self.gather.stats.sleeps,
            wakeups: self.gather.stats.wakeups,
            ended: self.ended,
        }
    }

    #[inline]
    fn next(
        &mut self,
        look: impl Fn(&mut Gather<T>) -> io::Result<Option<gather::Found>>,
    ) -> Result<Found, NoMessage> {
        loop {
            if self.is_empty() && self.arriving.is_none() {
                return Err(Why::Disconnected(Reason::NoPublisher).into());
            }
            return match look(&mut self.gather).map_err(Why::Wait)? {
                None => Err(NoMessage::TimedOut),
                Some(gather::Found::Record(key, next)) => Ok(Found::Message(key, next)),
                // The kernel could not say whether it lives, and is asked again.
                Some(gather::Found::Ended(_, error))
                    if matches!(error.cause(), Some(Why::Wait(_))) =>
                {
                    Err(error)
                }
                Some(gather::Found::Ended(key, why)) => Ok(Found::Ended(key, why)),
                Some(gather::Found::Other(token)) => {
                    self.take_over(token);
                    continue;
                }
            };
        }
    }

    #[inline]
    fn give(
        &mut self,
        found: Result<Found, NoMessage>,
    ) -> Result<Received<Message<'_, T>>, NoMessage> {
        match found? {
            Found::Message(key, next) => {
                self.last = Some(key);
                let message = self.gather.deliver(key, next)?;
                Ok(Received::Message(key, message))
            }
            Found::Ended(key, why) => Ok(Received::Ended(self.bury(key, why))),
        }
    }

    #[cold]
    fn bury(&mut self, key: Key, why: NoMessage) -> Ended {
        self.ended += 1;
        let stats = self.get(key).map(Subscriber::stats).unwrap_or_default();
        let label = self.labels.remove(&key).unwrap_or_default();
        drop(self.gather.remove(key));
        Ended {
            key,
            label,
            reason: why.forever(),
            stats,
        }
    }
}

impl<T: Trust> Finding for Subscriptions<T> {
    type Found = Found;

    fn find(&mut self) -> Result<Option<Found>, NoMessage> {
        match self.next(Gather::find) {
            Ok(found) => Ok(Some(found)),
            Err(NoMessage::TimedOut) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl<T: Trust> Watch for Subscriptions<T> {
    fn watch(&mut self) -> Result<(), Error> {
        if self.gather.policy() == WaitPolicy::Poll {
            return Err(polls());
        }
        self.gather
            .watch()
            .map_err(Error::os("watch many publishers"))
    }

    fn unwatch(&mut self) {
        self.gather.unwatch();
    }

    fn descriptor(&self) -> &Arc<OwnedFd> {
        self.gather.descriptor()
    }
}

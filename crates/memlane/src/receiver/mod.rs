//! A queue that many processes send into.

pub(crate) mod arrival;
pub(crate) mod arriving;
pub(crate) mod gather;
pub(crate) mod joining;
mod lanes;
pub(crate) mod leaving;
mod more;
pub(crate) mod travel;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use memlane_signaling::WaitPolicy;
use memlane_transport::{Address, Link, Listener, Peer};

use arriving::Arriving;
use gather::{ARRIVALS, Found, Gather, Key};
use joining::Joining;
use leaving::Leaving;
pub use travel::{ReceiverTicket, Remains};

use crate::{
    Error, Message, RecvError, RecvTimeoutError, Subscriber, SubscriberBuilder, Trust,
    TryRecvError, Untrusted, accepting, address_of, after, pidfd_of,
    receiving::{Finding, Receiving},
    subscriber::{Awaits, Next, NoMessage, Why},
    watched::{Watch, polls},
};

/// The receiving end of a queue: takes the messages of any number of [`Sender`](crate::Sender)s.
///
/// Each sender has a lane of its own, so that no page has two writers, and a sender that is slow, broken, hostile or dead is
/// nobody else's concern. Senders are let in by [`recv`](Receiver::recv) and its like: while a receiver is busy elsewhere for
/// longer than a new one waits (5 s), that one is told that nobody answers; those that have connected go on. Messages of one
/// sender come in its order; those of several come by turns. When a sender is gone, what it had committed is still received. The queue is bounded: a sender waits once its lane is full.
///
/// ```
/// use memlane::{Receiver, Sender};
/// # let directory = std::env::temp_dir().join(format!("memlane-queue-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory)?;
/// # let address = memlane::Address::path(directory.join("jobs")).map_err(memlane::transport::Error::from)?;
///
/// // let mut receiver = Receiver::bind("jobs")?;
/// # let mut receiver = Receiver::builder().bind_to(&address)?;
/// # let sender = std::thread::spawn(move || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// // any number of others
/// // let mut sender = Sender::connect("jobs")?;
/// # let mut sender = memlane::Publisher::builder().connect_to(&address)?;
/// sender.send(b"a job")?;
/// # Ok(())
/// # });
/// assert_eq!(receiver.recv()?.to_vec(), b"a job");
/// # sender.join().unwrap().unwrap();
/// # drop(receiver);
/// # std::fs::remove_dir_all(&directory)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Receiver<T: Trust = Untrusted> {
    gather: Gather<T>,
    joining: Joining<T>,
    /// Whom the last message came from.
    last: Option<Key>,
    stats: ReceiverStats,
    /// It is about to move to another process.
    leaving: Option<Box<Leaving>>,
    /// It goes on where another stops.
    arriving: Option<Box<Arriving<T>>>,
}

/// What a receiver has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReceiverStats {
    /// Messages received.
    pub messages: u64,
    /// Times it went to sleep for want of a message.
    pub sleeps: u64,
    /// Times a sender rang it awake.
    pub wakeups: u64,
    /// Senders that have left or died, and whose messages have all been received.
    pub left: u64,
    /// Senders that were dropped because what they wrote made no sense.
    pub evicted: u64,
    /// Clients that have not become senders.
    pub refused: u64,
}

impl Receiver {
    /// Binds a queue of this user's, with the options of [`SubscriberBuilder`].
    ///
    /// # Errors
    ///
    /// [`Error`]: the name is taken or none, or resources are short.
    pub fn bind(service: &str) -> Result<Receiver, Error> {
        Receiver::builder().bind(service)
    }

    /// Options, all with defaults: those of a subscriber.
    pub fn builder() -> SubscriberBuilder {
        SubscriberBuilder::default()
    }
}

impl<T: Trust> SubscriberBuilder<T> {
    /// Binds a queue, which [`Sender`](crate::Sender)s connect to.
    ///
    /// Its [`timeout`](SubscriberBuilder::timeout) is what a client has to become a sender; [`access`](SubscriberBuilder::access)
    /// says who may, and [`max_senders`](SubscriberBuilder::max_senders) how many. Who trusts the publisher trusts every sender.
    ///
    /// # Errors
    ///
    /// [`Error`]: the name is taken or none, or resources are short.
    pub fn bind(self, service: &str) -> Result<Receiver<T>, Error> {
        self.bind_to(&address_of(service)?)
    }

    /// Binds a queue at an address of the user's choice.
    ///
    /// # Errors
    ///
    /// [`Error`]: the address is taken, or resources are short.
    pub fn bind_to(self, address: &Address) -> Result<Receiver<T>, Error> {
        let listener = accepting::listen(address, self.access.clone())?;
        Receiver::new(self, Some(listener))
    }

    /// Makes a queue without an address: senders come over links given to it ([`Receiver::attach`]).
    ///
    /// # Errors
    ///
    /// [`Error`], if resources are short.
    pub fn unbound(self) -> Result<Receiver<T>, Error> {
        Receiver::new(self, None)
    }
}

impl<T: Trust> Receiver<T> {
    fn new(
        builder: SubscriberBuilder<T>,
        listener: Option<Listener>,
    ) -> Result<Receiver<T>, Error> {
        let gather = Gather::new(builder.wait).map_err(Error::os("create epoll"))?;
        let mut joining = Joining::new(builder, Awaits::Offer, listener);
        joining
            .listen(&gather)
            .map_err(Error::os("watch the listener"))?;
        Ok(Receiver {
            gather,
            joining,
            last: None,
            stats: ReceiverStats::default(),
            leaving: None,
            arriving: None,
        })
    }

    /// Takes a link that was made elsewhere (inherited, or [`Link::pair`]); the process at its other end makes it a sender
    /// ([`PublisherBuilder::over`](crate::PublisherBuilder::over)). The link is the receiver's from now on.
    ///
    /// # Errors
    ///
    /// [`Error`], if resources are short; it is closed then.
    pub fn attach(&mut self, link: Link) -> Result<(), Error> {
        self.joining.begin(&mut self.gather, link, None)
    }

    /// [`attach`](Receiver::attach), for a link whose other end a known process has: its sender is gone when that process has
    /// ended, too, whoever else holds the link then. The pidfd is duplicated.
    ///
    /// # Errors
    ///
    /// As [`attach`](Receiver::attach); [`Error::Os`] if it is no pidfd.
    pub fn attach_process(&mut self, link: Link, process: impl AsFd) -> Result<(), Error> {
        let process = pidfd_of(process)?;
        self.joining.begin(&mut self.gather, link, Some(process))
    }

    /// Receives the next message, of whichever sender; waits for it, and for senders.
    ///
    /// # Errors
    ///
    /// [`RecvError::Wait`]. Senders that leave, die or break the rules are no errors: see [`stats`](Receiver::stats).
    pub fn recv(&mut self) -> Result<Message<'_, T>, RecvError> {
        let next = self.next(|gather| gather.wait(None));
        self.deliver(next).map_err(NoMessage::forever)
    }

    /// Receives the next message, if there is one. Lets senders in, too.
    ///
    /// # Errors
    ///
    /// [`TryRecvError::Empty`].
    pub fn try_recv(&mut self) -> Result<Message<'_, T>, TryRecvError> {
        let next = self.next(Gather::find);
        self.deliver(next).map_err(NoMessage::at_once)
    }

    /// Receives the next message; waits for it no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// [`RecvTimeoutError::TimedOut`] and [`RecvTimeoutError::Wait`].
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Message<'_, T>, RecvTimeoutError> {
        let deadline = after(timeout);
        let next = self.next(|gather| gather.wait(deadline));
        self.deliver(next).map_err(NoMessage::in_time)
    }

    /// [`recv`](Receiver::recv), with the sender of the message.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// ```
    /// # let links = [memlane::Link::pair()?, memlane::Link::pair()?];
    /// # let mut receiver = memlane::Receiver::builder().unbound()?;
    /// # let sending: Vec<_> = links.into_iter().enumerate().map(|(number, link)| {
    /// #     receiver.attach(link.0).unwrap();
    /// #     std::thread::spawn(move || {
    /// #         let mut sender = memlane::Sender::builder().over(link.1).unwrap();
    /// #         sender.send(&[number as u8]).unwrap();
    /// #         sender.drain(std::time::Duration::from_secs(5)).unwrap();
    /// #     })
    /// # }).collect();
    /// use std::collections::HashMap;
    ///
    /// // let mut receiver = memlane::Receiver::bind("jobs")?;
    /// let mut counts = HashMap::new();
    /// for _ in 0..2 {
    ///     let (from, job) = receiver.recv_from()?;
    ///     println!("{} bytes", job.len());
    ///     drop(job);
    ///     // Asked for once: a process of the same user's, whatever it says.
    ///     if *counts.entry(from).and_modify(|count| *count += 1).or_insert(1) == 1 {
    ///         let peer = receiver.peer(from).expect("its last message came from there")?;
    ///         println!("the first one of process {:?} of user {}", peer.pid(), peer.uid());
    ///     }
    /// }
    /// # sending.into_iter().for_each(|sending| sending.join().unwrap());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn recv_from(&mut self) -> Result<(Key, Message<'_, T>), RecvError> {
        let next = self.next(|gather| gather.wait(None));
        self.deliver_from(next).map_err(NoMessage::forever)
    }

    /// [`try_recv`](Receiver::try_recv), with the sender of the message.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_recv_from(&mut self) -> Result<(Key, Message<'_, T>), TryRecvError> {
        let next = self.next(Gather::find);
        self.deliver_from(next).map_err(NoMessage::at_once)
    }

    /// [`recv_timeout`](Receiver::recv_timeout), with the sender of the message.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv_timeout_from(
        &mut self,
        timeout: Duration,
    ) -> Result<(Key, Message<'_, T>), RecvTimeoutError> {
        let deadline = after(timeout);
        let next = self.next(|gather| gather.wait(deadline));
        self.deliver_from(next).map_err(NoMessage::in_time)
    }

    /// Whose message was received last.
    pub fn last(&self) -> Option<Key> {
        self.last
    }

    /// The process that a sender was connected by, as the kernel knows it; none if that sender is gone, and all its messages have
    /// been received. Of a link that was [given](Receiver::attach), it is the one that made the link.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn peer(&self, key: Key) -> Option<io::Result<Peer>> {
        Some(self.gather.get(key)?.link().peer())
    }

    /// The senders there are, in no order.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.gather.keys()
    }

    /// The lane of a sender: what was received of it, for one.
    pub fn get(&self, key: Key) -> Option<&Subscriber<T>> {
        self.gather.get(key)
    }

    /// How many senders there are, those among them that have ended and whose messages have not all been received.
    pub fn senders(&self) -> usize {
        self.gather.len()
    }

    /// What it has done so far.
    pub fn stats(&self) -> ReceiverStats {
        ReceiverStats {
            messages: self.gather.stats.messages,
            sleeps: self.gather.stats.sleeps,
            wakeups: self.gather.stats.wakeups,
            refused: self.joining.refused,
            ..self.stats
        }
    }

    /// The next record, by `look`, which is asked again after each thing that was none.
    fn next(
        &mut self,
        look: impl Fn(&mut Gather<T>) -> io::Result<Option<Found>>,
    ) -> Result<(Key, Next), NoMessage> {
        loop {
            match look(&mut self.gather).map_err(Why::Wait)? {
                None => return Err(NoMessage::TimedOut),
                Some(Found::Record(key, record)) => return Ok((key, record)),
                Some(Found::Ended(key, error)) => self.bury(key, &error),
                Some(Found::Other(token)) => self.handle(token),
            }
        }
    }

    fn deliver(
        &mut self,
        next: Result<(Key, Next), NoMessage>,
    ) -> Result<Message<'_, T>, NoMessage> {
        let (key, record) = next?;
        self.last = Some(key);
        self.gather.deliver(key, record)
    }

    pub(crate) fn deliver_from(
        &mut self,
        next: Result<(Key, Next), NoMessage>,
    ) -> Result<(Key, Message<'_, T>), NoMessage> {
        let next @ (key, _) = next?;
        Ok((key, self.deliver(Ok(next))?))
    }

    #[cold]
    fn handle(&mut self, token: u64) {
        if token >= ARRIVALS {
            return self.take_over(token);
        }
        let Some((subscriber, _)) = self.joining.handle(&mut self.gather, token) else {
            return;
        };
        if self.gather.add(subscriber).is_err() {
            self.joining.refused += 1;
        }
    }

    #[cold]
    fn bury(&mut self, key: Key, error: &NoMessage) {
        drop(self.gather.remove(key));
        match error.cause() {
            Some(Why::Disconnected(_)) => self.stats.left += 1,
            _ => self.stats.evicted += 1,
        }
        // Its descriptors may be what a waiting client lacked.
        self.joining.accept(&mut self.gather);
    }
}

impl<T: Trust> Finding for Receiver<T> {
    type Found = (Key, Next);

    /// Whatever does not concern messages is done by the way.
    fn find(&mut self) -> Result<Option<(Key, Next)>, NoMessage> {
        match self.next(Gather::find) {
            Ok(next) => Ok(Some(next)),
            Err(NoMessage::TimedOut) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl<T: Trust> Receiving for Receiver<T> {
    type Trust = T;

    fn deliver(
        &mut self,
        next: Result<(Key, Next), NoMessage>,
    ) -> Result<Message<'_, T>, NoMessage> {
        Receiver::deliver(self, next)
    }
}

impl<T: Trust> Watch for Receiver<T> {
    fn watch(&mut self) -> Result<(), Error> {
        if self.gather.policy() == WaitPolicy::Poll {
            return Err(polls());
        }
        self.gather
            .watch()
            .map_err(Error::os("watch a receiver's lanes"))
    }

    fn unwatch(&mut self) {
        self.gather.unwatch();
    }

    fn descriptor(&self) -> &Arc<OwnedFd> {
        self.gather.descriptor()
    }
}

use memlane::{
    Address, Error, Link, Message, Reason, RecvError, RecvTimeoutError, Subscriber,
    SubscriberBuilder, SubscriberStats, Trust, Trusted, TryRecvError, WaitPolicy,
};
use serde::{Deserialize, Serialize};

use crate::PATIENCE;

/// [`WaitPolicy`], to be told to other processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Policy {
    Poll,
    Adaptive,
    Block,
}

impl Policy {
    /// All.
    pub const ALL: [Policy; 3] = [Policy::Poll, Policy::Adaptive, Policy::Block];
    /// Those that sleep.
    pub const SLEEPY: [Policy; 2] = [Policy::Adaptive, Policy::Block];
}

impl From<Policy> for WaitPolicy {
    fn from(policy: Policy) -> WaitPolicy {
        match policy {
            Policy::Poll => WaitPolicy::Poll,
            Policy::Adaptive => WaitPolicy::Adaptive,
            Policy::Block => WaitPolicy::Block,
        }
    }
}

/// What kind of subscriber a test wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// How it waits.
    pub policy: Policy,
    /// Whether it trusts the publisher.
    pub trusting: bool,
}

/// A subscriber of either trust.
#[derive(Debug)]
#[allow(missing_docs, clippy::large_enum_variant)]
pub enum AnySubscriber {
    Trusting(Subscriber<Trusted>),
    Untrusting(Subscriber),
}

/// The three ways to receive.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Form {
    Recv,
    TryRecv,
    RecvTimeout,
}

/// What came.
#[derive(Debug)]
pub enum Received {
    /// A message, copied.
    Message,
    /// The end, and why.
    Disconnected(Reason),
}

impl Wish {
    /// Subscribes to a service.
    pub fn connect(self, address: &Address) -> Result<AnySubscriber, Error> {
        self.make(
            |builder| builder.connect_to(address),
            |builder| builder.connect_to(address),
        )
    }

    /// Subscribes to a service of that name in the runtime directory.
    pub fn connect_by_name(self, service: &str) -> Result<AnySubscriber, Error> {
        self.make(
            |builder| builder.connect(service),
            |builder| builder.connect(service),
        )
    }

    /// Subscribes over a link.
    pub fn over(self, link: Link) -> Result<AnySubscriber, Error> {
        let mut link = Some(link);
        let mut link = || link.take().expect("one of the two is called");
        if self.trusting {
            Ok(AnySubscriber::Trusting(
                trusting(self.builder()).over(link())?,
            ))
        } else {
            Ok(AnySubscriber::Untrusting(self.builder().over(link())?))
        }
    }

    fn builder(self) -> SubscriberBuilder {
        Subscriber::builder()
            .wait(self.policy.into())
            .timeout(PATIENCE)
    }

    fn make(
        self,
        trusted: impl FnOnce(SubscriberBuilder<Trusted>) -> Result<Subscriber<Trusted>, Error>,
        untrusted: impl FnOnce(SubscriberBuilder) -> Result<Subscriber, Error>,
    ) -> Result<AnySubscriber, Error> {
        if self.trusting {
            trusted(trusting(self.builder())).map(AnySubscriber::Trusting)
        } else {
            untrusted(self.builder()).map(AnySubscriber::Untrusting)
        }
    }
}

/// Has it trust its publisher.
#[allow(unsafe_code)]
pub fn trusting(builder: SubscriberBuilder) -> SubscriberBuilder<Trusted> {
    // SAFETY: whoever publishes in these tests to a subscriber that trusts is this crate's publisher.
    unsafe { builder.trust_publisher() }
}

impl AnySubscriber {
    /// Receives the next message in one of the three forms, as a copy in `copy`.
    ///
    /// # Errors
    ///
    /// Everything but the end.
    pub fn receive(&mut self, form: Form, copy: &mut Vec<u8>) -> Result<Received, RecvError> {
        match self {
            AnySubscriber::Untrusting(subscriber) => {
                receive(subscriber, form, |message| message.copy_into(copy))
            }
            AnySubscriber::Trusting(subscriber) => receive(subscriber, form, |message| {
                copy.clear();
                copy.extend_from_slice(message);
            }),
        }
    }

    /// Receives the next message, as a copy in `copy`.
    pub fn recv(&mut self, copy: &mut Vec<u8>) -> Result<Received, RecvError> {
        self.receive(Form::Recv, copy)
    }

    /// What it has done.
    pub fn stats(&self) -> SubscriberStats {
        match self {
            AnySubscriber::Trusting(subscriber) => subscriber.stats(),
            AnySubscriber::Untrusting(subscriber) => subscriber.stats(),
        }
    }
}

fn receive<T: Trust>(
    subscriber: &mut Subscriber<T>,
    form: Form,
    take: impl FnOnce(&Message<'_, T>),
) -> Result<Received, RecvError> {
    match form {
        Form::Recv => match subscriber.recv() {
            Ok(message) => take(&message),
            Err(RecvError::Disconnected { reason }) => return Ok(Received::Disconnected(reason)),
            Err(error) => return Err(error),
        },
        Form::TryRecv => {
            let mut misses = 0_u32;
            loop {
                match subscriber.try_recv() {
                    Ok(message) => {
                        take(&message);
                        break;
                    }
                    Err(TryRecvError::Empty) => std::hint::spin_loop(),
                    Err(TryRecvError::Disconnected { reason }) => {
                        return Ok(Received::Disconnected(reason));
                    }
                    Err(TryRecvError::Corrupt(corrupt)) => return Err(corrupt.into()),
                    Err(TryRecvError::Chunk(error)) => return Err(error.into()),
                    Err(TryRecvError::Anchor(error)) => return Err(error.into()),
                }
                misses += 1;
                if misses.is_multiple_of(64) {
                    std::thread::yield_now();
                }
            }
        }
        Form::RecvTimeout => match subscriber.recv_timeout(PATIENCE) {
            Ok(message) => take(&message),
            Err(RecvTimeoutError::Disconnected { reason }) => {
                return Ok(Received::Disconnected(reason));
            }
            Err(RecvTimeoutError::TimedOut) => panic!("no message for {PATIENCE:?}"),
            Err(RecvTimeoutError::Corrupt(corrupt)) => return Err(corrupt.into()),
            Err(RecvTimeoutError::Chunk(error)) => return Err(error.into()),
            Err(RecvTimeoutError::Anchor(error)) => return Err(error.into()),
            Err(RecvTimeoutError::Wait(error)) => return Err(RecvError::Wait(error)),
            Err(RecvTimeoutError::Silent { silence }) => {
                return Err(RecvError::Silent { silence });
            }
        },
    }
    Ok(Received::Message)
}

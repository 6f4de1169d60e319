//! Lane ends in a tokio runtime (feature `tokio`).
//!
//! They live on the runtime's own epoll: memlane starts no thread. What they do, and what happens to futures that are dropped,
//! is in [`Async`].
//!
//! ```
//! use memlane::tokio::{Publisher, Subscriber};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = std::env::temp_dir().join(format!("memlane-doc-tokio-{}", std::process::id()));
//! # std::fs::create_dir(&directory)?;
//! # let address = memlane::Address::path(directory.join("camera"))?;
//! // let mut publisher = Publisher::bind("camera")?;
//! # let mut publisher = Publisher::register(memlane::Publisher::builder().driven().bind_to(&address)?)?;
//! // let mut subscriber = Subscriber::connect("camera").await?;
//! # let mut subscriber = Subscriber::finish(memlane::Subscriber::builder().begin_at(&address)?).await?;
//! # std::fs::remove_dir_all(&directory)?;
//! publisher.send(b"a frame").await?;
//! println!("{} bytes", subscriber.recv().await?.len());
//! # Ok(())
//! # }
//! ```
//!
//! Import ends by name: beside a `use memlane::*`, `tokio` is ambiguous, which may be this module or the crate.
//!
//! # Panics
//! What makes one of these types panics outside a runtime, or in one without I/O.

use std::{
    io,
    os::fd::OwnedFd,
    sync::Arc,
    task::{Context, Poll, ready},
};

use ::tokio::task::{JoinHandle, coop::poll_proceed};
use memlane_transport::tokio::Readable;

use crate::{Async, Connecting, Error, Trust, Untrusted, future};

/// A [`Publisher`](crate::Publisher) in a tokio runtime.
pub type Publisher = Async<crate::Publisher, Readiness>;

/// A [`Sender`](crate::Sender) in a tokio runtime.
pub type Sender = Publisher;

/// A [`Subscriber`](crate::Subscriber) in a tokio runtime.
pub type Subscriber<T = Untrusted> = Async<crate::Subscriber<T>, Readiness>;

/// A [`Receiver`](crate::Receiver) in a tokio runtime.
pub type Receiver<T = Untrusted> = Async<crate::Receiver<T>, Readiness>;

/// [`Subscriptions`](crate::Subscriptions) in a tokio runtime.
pub type Subscriptions<T = Untrusted> = Async<crate::Subscriptions<T>, Readiness>;

/// A [`Client`](crate::Client) in a tokio runtime.
pub type Client<T = Untrusted> = Async<crate::Client<T>, Readiness>;

/// A [`Server`](crate::Server) in a tokio runtime.
pub type Server<T = Untrusted> = Async<crate::Server<T>, Readiness>;

/// A [`WatchReceiver`](crate::WatchReceiver) in a tokio runtime.
pub type WatchReceiver = Async<crate::WatchReceiver, Readiness>;

/// Wakes the tasks of a lane's end from the runtime it was made in.
#[derive(Debug)]
pub struct Readiness {
    descriptor: Readable,
    /// Does the control work of a driven publisher, also while no call waits.
    driver: Option<JoinHandle<()>>,
}

impl Readiness {
    /// Watches a descriptor in the runtime of the calling task: for [`Async::with`] and
    /// [`Connecting::finish_with`].
    ///
    /// # Errors
    ///
    /// The runtime's.
    pub fn new(descriptor: Arc<OwnedFd>) -> io::Result<Readiness> {
        Ok(Readiness {
            descriptor: Readable::new(descriptor).map_err(io::Error::other)?,
            driver: None,
        })
    }
}

impl future::Readiness for Readiness {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.descriptor.poll_readable(cx)
    }

    fn poll_proceed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ready!(poll_proceed(cx)).made_progress();
        Poll::Ready(())
    }
}

impl Drop for Readiness {
    fn drop(&mut self) {
        if let Some(driver) = &self.driver {
            driver.abort();
        }
    }
}

/// What is the same for all that connect.
macro_rules! connects {
    ($end:ident $(, $trust:ident)?) => {
        impl$(<$trust: Trust>)? $end$(<$trust>)? {
            /// Finishes what the builder has begun (`begin`, `begin_at`, `begin_over`), in the runtime of the calling task:
            ///
            /// ```no_run
            /// # async fn connect() -> Result<(), memlane::Error> {
            /// # use std::time::Duration;
            #[doc = concat!("let options = memlane::", stringify!($end), "::builder().timeout(Duration::from_secs(1));")]
            #[doc = concat!("let end = memlane::tokio::", stringify!($end), "::finish(options.begin(\"a-service\")?).await?;")]
            /// # Ok(())
            /// # }
            /// ```
            ///
            /// # Cancellation
            ///
            /// Dropped while it is pending, it hangs up.
            ///
            /// # Errors
            ///
            /// As [`Connecting::try_finish`] and [`Async::with`].
            pub async fn finish(connecting: Connecting<crate::$end$(<$trust>)?>) -> Result<$end$(<$trust>)?, Error> {
                connecting.finish_with(Readiness::new).await
            }
        }
    };
}

connects!(Subscriber, T);
connects!(Client, T);
connects!(WatchReceiver);

impl Subscriber {
    /// Subscribes to a service of this user's, with the options of [`SubscriberBuilder`](crate::SubscriberBuilder).
    ///
    /// # Cancellation
    ///
    /// Dropped while it is pending, it hangs up.
    ///
    /// # Errors
    ///
    /// As [`Subscriber::connect`](crate::Subscriber::connect).
    pub async fn connect(service: &str) -> Result<Subscriber, Error> {
        Subscriber::finish(crate::Subscriber::builder().begin(service)?).await
    }
}

impl<T: Trust> Subscriber<T> {
    /// Takes a subscriber into the runtime of the calling task.
    ///
    /// # Errors
    ///
    /// As [`Async::with`].
    pub fn register(subscriber: crate::Subscriber<T>) -> Result<Subscriber<T>, Error> {
        Async::with(subscriber, Readiness::new)
    }
}

impl Receiver {
    /// Binds a queue of this user's, with the options of [`SubscriberBuilder`](crate::SubscriberBuilder). Senders are let in by
    /// its [`recv`](Async::recv).
    ///
    /// # Errors
    ///
    /// As [`Receiver::bind`](crate::Receiver::bind) and [`Async::with`].
    pub fn bind(service: &str) -> Result<Receiver, Error> {
        Receiver::register(crate::Receiver::bind(service)?)
    }
}

impl<T: Trust> Receiver<T> {
    /// Takes a receiver into the runtime of the calling task. Senders are let in by its [`recv`](Async::recv).
    ///
    /// # Errors
    ///
    /// As [`Async::with`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let link = memlane::Link::pair()?;
    /// // let receiver = memlane::Receiver::bind("jobs")?;
    /// # let mut receiver = memlane::Subscriber::builder().unbound()?;
    /// # receiver.attach(link.0)?;
    /// let mut receiver = memlane::tokio::Receiver::register(receiver)?;
    /// # let sending = std::thread::spawn(|| memlane::Publisher::builder().over(link.1).unwrap().send(b"a job"));
    /// println!("{} bytes", receiver.recv().await?.len());
    /// # sending.join().unwrap()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn register(receiver: crate::Receiver<T>) -> Result<Receiver<T>, Error> {
        Async::with(receiver, Readiness::new)
    }
}

/// What is the same for those of many lanes that arrive.
macro_rules! arrives {
    ($end:ident, $begin:literal) => {
        impl<T: Trust> $end<T> {
            #[doc = concat!("Finishes what [`SubscriberBuilder::", $begin, "`](crate::SubscriberBuilder::", $begin, ") has begun, in the runtime of the calling task.")]
            ///
            /// # Cancellation
            ///
            /// Dropped while it is pending, it is as one that gives up, or, once it has been departed from, that dies.
            ///
            /// # Errors
            ///
            /// As [`Connecting::try_finish`] and [`Async::with`].
            pub async fn finish(connecting: Connecting<crate::$end<T>>) -> Result<$end<T>, Error> {
                connecting.finish_with(Readiness::new).await
            }
        }
    };
}

arrives!(Receiver, "begin_arrival_of_receiver");
arrives!(Subscriptions, "begin_arrival_of_subscriptions");

impl<T: Trust> Subscriptions<T> {
    /// Takes a subscriber of many publishers into the runtime of the calling task.
    ///
    /// # Errors
    ///
    /// As [`Async::with`].
    pub fn register(subscriptions: crate::Subscriptions<T>) -> Result<Subscriptions<T>, Error> {
        Async::with(subscriptions, Readiness::new)
    }
}

impl Client {
    /// Connects to a server of this user's, with the options of [`ClientBuilder`](crate::ClientBuilder).
    ///
    /// # Cancellation
    ///
    /// Dropped while it is pending, it hangs up.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`](crate::Client::connect).
    pub async fn connect(service: &str) -> Result<Client, Error> {
        Client::finish(crate::Client::builder().begin(service)?).await
    }
}

impl<T: Trust> Client<T> {
    /// Takes a client into the runtime of the calling task.
    ///
    /// # Errors
    ///
    /// As [`Async::with`].
    pub fn register(client: crate::Client<T>) -> Result<Client<T>, Error> {
        Async::with(client, Readiness::new)
    }
}

impl WatchReceiver {
    /// Watches a service of this user's, with the options of [`WatchReceiverBuilder`](crate::WatchReceiverBuilder).
    ///
    /// # Cancellation
    ///
    /// Dropped while it is pending, it hangs up.
    ///
    /// # Errors
    ///
    /// As [`WatchReceiver::connect`](crate::WatchReceiver::connect).
    pub async fn connect(service: &str) -> Result<WatchReceiver, Error> {
        WatchReceiver::finish(crate::WatchReceiver::builder().begin(service)?).await
    }

    /// Takes a receiver of latest values into the runtime of the calling task.
    ///
    /// # Errors
    ///
    /// As [`Async::with`].
    pub fn register(receiver: crate::WatchReceiver) -> Result<WatchReceiver, Error> {
        Async::with(receiver, Readiness::new)
    }
}

impl<T: Trust> Server<T> {
    /// Takes a server into the runtime of the calling task. Clients are let in by its [`recv`](Async::recv).
    ///
    /// # Errors
    ///
    /// As [`Async::with`].
    pub fn register(server: crate::Server<T>) -> Result<Server<T>, Error> {
        Async::with(server, Readiness::new)
    }
}

impl Server {
    /// Binds a service of this user's and answers on it, with the options of [`ServerBuilder`](crate::ServerBuilder). Clients are
    /// let in by its [`recv`](Async::recv).
    ///
    /// # Errors
    ///
    /// As [`Server::bind`](crate::Server::bind) and [`Async::with`].
    pub fn bind(service: &str) -> Result<Server, Error> {
        Server::register(crate::Server::bind(service)?)
    }
}

impl Publisher {
    /// Binds a service of this user's and publishes on it, with the options of [`PublisherBuilder`](crate::PublisherBuilder).
    /// A task of the runtime accepts subscribers. For other options, [`register`](Publisher::register) what
    /// a builder has made that was told to be [driven](crate::PublisherBuilder::driven).
    ///
    /// This makes the ring, and waits for nobody; but for another process that is just about to bind the same name, for
    /// some microseconds.
    ///
    /// # Errors
    ///
    /// As [`Publisher::bind`](crate::Publisher::bind) and [`Async::with`].
    pub fn bind(service: &str) -> Result<Publisher, Error> {
        Publisher::register(crate::Publisher::builder().driven().bind(service)?)
    }

    /// Connects to a queue of this user's, with the options of [`PublisherBuilder`](crate::PublisherBuilder): a [`Sender`]. A task
    /// of the runtime does its control work.
    ///
    /// # Cancellation
    ///
    /// Dropped while it is pending, it hangs up.
    ///
    /// # Errors
    ///
    /// As [`Publisher::connect`](crate::Publisher::connect).
    pub async fn connect(service: &str) -> Result<Publisher, Error> {
        Publisher::finish(crate::Publisher::builder().driven().begin(service)?).await
    }

    /// Finishes what [`PublisherBuilder::begin`](crate::PublisherBuilder::begin) and its like, or
    /// [`begin_arrival`](crate::PublisherBuilder::begin_arrival), began, in the runtime of the
    /// calling task, as [`register`](Publisher::register) does.
    ///
    /// # Cancellation
    ///
    /// Dropped while it is pending, it hangs up.
    ///
    /// # Errors
    ///
    /// As [`Connecting::try_finish`] and [`Async::with`].
    pub async fn finish(connecting: Connecting<crate::Publisher>) -> Result<Publisher, Error> {
        connecting
            .finish_with(Readiness::new)
            .await
            .and_then(Publisher::with_driver)
    }

    /// Takes a publisher into the runtime of the calling task. If it is [driven](crate::PublisherBuilder::driven), a task of
    /// the runtime does its control work from now on; if not, memlane's control thread goes on with it.
    ///
    /// # Errors
    ///
    /// As [`Async::with`].
    pub fn register(publisher: crate::Publisher) -> Result<Publisher, Error> {
        Async::with(publisher, Readiness::new).and_then(Publisher::with_driver)
    }

    fn with_driver(mut publisher: Publisher) -> Result<Publisher, Error> {
        if publisher.get_ref().control_fd().is_some() {
            let driver = publisher.driver(Readiness::new)?;
            publisher.readiness.driver = Some(::tokio::spawn(driver));
        }
        Ok(publisher)
    }
}

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
//! # let link = memlane::Link::pair()?;
//! # let publisher = memlane::Publisher::builder().driven().unbound()?;
//! # publisher.attach(link.0)?;
//! # let subscriber = std::thread::spawn(|| memlane::Subscriber::builder().over(link.1));
//! let mut publisher = Publisher::register(publisher)?;
//! publisher.wait_for_subscribers(1).await?;
//! # let subscriber = subscriber.join().unwrap()?;
//! let mut subscriber = Subscriber::register(subscriber)?;
//! publisher.send(b"a frame").await?;
//! println!("{} bytes", subscriber.recv().await?.len());
//! # Ok(())
//! # }
//! ```
//!
//! # Panics
//! What makes one of these types panics outside a runtime, or in one without I/O.

use std::{
    io,
    task::{Context, Poll, ready},
};

use ::tokio::task::{JoinHandle, coop::poll_proceed, yield_now};
use memlane_transport::tokio::Readable;

use crate::{Async, Error, Trust, Untrusted, future};

/// A [`Publisher`](crate::Publisher) in a tokio runtime.
pub type Publisher = Async<crate::Publisher, Readiness>;

/// A [`Subscriber`](crate::Subscriber) in a tokio runtime.
pub type Subscriber<T = Untrusted> = Async<crate::Subscriber<T>, Readiness>;

/// Wakes the tasks of a lane's end from the runtime it was made in.
#[derive(Debug)]
pub struct Readiness {
    descriptor: Readable,
    /// Does the control work of a driven publisher, also while no call waits.
    driver: Option<JoinHandle<()>>,
}

impl Readiness {
    fn new(descriptor: std::sync::Arc<std::os::fd::OwnedFd>) -> io::Result<Readiness> {
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

impl Publisher {
    /// Takes a publisher into the runtime of the calling task. If it is [driven](crate::PublisherBuilder::driven), a task of
    /// the runtime does its control work from now on; if not, memlane's control thread goes on with it.
    ///
    /// # Errors
    ///
    /// As [`Async::with`].
    pub fn register(publisher: crate::Publisher) -> Result<Publisher, Error> {
        let mut publisher = Async::with(publisher, Readiness::new)?;
        if let Some((control, descriptor)) = publisher.get_ref().driver() {
            let readable = Readable::new(descriptor)
                .map_err(io::Error::other)
                .map_err(Error::os("watch a publisher in a runtime"))?;
            publisher.readiness.driver = Some(::tokio::spawn(async move {
                while std::future::poll_fn(|cx| readable.poll_readable(cx))
                    .await
                    .is_ok()
                {
                    // More than one batch leaves the descriptor readable, which is no edge.
                    while control.drive().is_ok_and(|more| more) {
                        yield_now().await;
                    }
                }
            }));
        }
        Ok(publisher)
    }
}

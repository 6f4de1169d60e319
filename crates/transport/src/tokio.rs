//! Links, listeners and receipts that `.await` (feature `tokio`).
//!
//! The methods are those of the blocking types, with the same names, limits and [`Error`]s. No thread is started, and nothing
//! is queued: a future that waits is on the runtime's own epoll.
//!
//! A type here wraps the one of the same name in the crate's root: make that first, and change it
//! ([`with_limits`](crate::Link::with_limits), [`adopting`](crate::Link::adopting)) before it is wrapped. `get_ref` lends it,
//! for its `try_` forms and to send it in a message; its blocking forms would hold up the runtime. `into_inner` gives it back
//! with everything it had begun.
//!
//! # Time-outs
//! [`tokio::time::timeout`] around any call. For [`Link::send`] that does not tell whether the message
//! is on its way, [`Link::send_timeout`] does.
//!
//! # Cancellation
//! Any future here can be dropped at any time, and nothing is lost:
//!
//! | dropped while pending | then |
//! |---|---|
//! | [`Link::recv`] | the next `recv` gives the message, whatever had come of it |
//! | [`Link::send`], [`Link::transfer`] | nothing was sent, or the message has begun to leave and follows whole: see there |
//! | [`Link::flush`] | the rest leaves later |
//! | [`Link::connect`] | the server has seen no client |
//! | [`Listener::accept`] | the next `accept` gives the client |
//! | [`Receipt::wait`] | the answer stays |
//!
//! # Panics
//! What makes one of these types panics outside a runtime, or in one without I/O; what waits, in one without time
//! (`enable_all`).
//!
//! ```
//! use memlane_transport::tokio::{Link, Listener};
//! use memlane_transport::{Address, Listener as Blocking};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), memlane_transport::Error> {
//! let address = Address::abstract_name(format!("memlane-doc-tokio-{}", std::process::id()))?;
//! let listener = Listener::new(Blocking::bind(&address)?)?;
//!
//! let client = Link::connect(&address).await?;
//! let server = listener.accept().await?;
//! client.send("hello").await?;
//! assert_eq!(server.recv::<String>().await?, "hello");
//! # Ok(())
//! # }
//! ```

mod link;
mod listener;
mod readable;
mod receipt;

pub use link::Link;
pub use listener::Listener;
pub use readable::Readable;
pub use receipt::Receipt;

use crate::Error;

fn waiting(error: std::io::Error) -> Error {
    Error::io("waiting in the runtime", error)
}

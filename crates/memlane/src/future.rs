//! Lane ends in tasks, with any executor.

use std::{
    fmt, io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use crate::{Error, Watched, reactor::Reactor, watched::End};

/// Tells a task when a descriptor is readable: what an end of a lane needs of a runtime.
///
/// ```
/// use std::{io, os::fd::OwnedFd, sync::Arc, task::{Context, Poll}};
///
/// /// smol's reactor.
/// struct Smol(async_io::Async<Arc<OwnedFd>>);
///
/// impl memlane::Readiness for Smol {
///     fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
///         self.0.poll_readable(cx)
///     }
/// }
/// ```
pub trait Readiness {
    /// Ready if the descriptor may have become readable since it last was ready; otherwise the task is woken when it does.
    ///
    /// # Errors
    ///
    /// The runtime's.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready if the task may go on: called before each message that is received or sent, for runtimes that make tasks yield
    /// to others now and then.
    fn poll_proceed(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// An end of a lane in a task: what it does, it does without blocking.
///
/// This form runs on any executor. Tasks are woken by memlane's control thread, one for all ends of the process, which is
/// started by the first. With the feature `tokio`, `memlane::tokio` has a form that lives on the runtime's own
/// epoll and needs no thread; for other runtimes, implement [`Readiness`].
///
/// # Cancellation
///
/// Any future here can be dropped at any time: a message is received by the call that answers it, and not before, and sent or
/// not sent when the call is over. What a dropped `send` was to send has not been sent.
///
/// ```
/// # let link = memlane::Link::pair()?;
/// # let publisher = memlane::Publisher::builder().unbound()?;
/// # publisher.attach(link.0)?;
/// # let subscriber = memlane::Subscriber::builder().over(link.1)?;
/// use memlane::Async;
///
/// let mut publisher = Async::new(publisher)?;
/// let mut subscriber = Async::new(subscriber)?;
/// # async_io::block_on(async {
/// publisher.send(b"a frame").await?;
/// assert_eq!(subscriber.recv().await?.to_vec(), b"a frame");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Async<E: End, R: Readiness = ControlThread> {
    pub(crate) readiness: R,
    pub(crate) end: Watched<E>,
}

impl<E: End> Async<E> {
    /// Takes an end into tasks, to be woken by the control thread.
    ///
    /// # Errors
    ///
    /// As [`Watched::new`], and [`Error::Os`] if the control thread cannot be started. The end is dropped.
    pub fn new(end: E) -> Result<Async<E>, Error> {
        let end = Watched::new(end)?;
        let readiness = ControlThread::new(end.descriptor().clone())
            .map_err(Error::os("watch a lane from the control thread"))?;
        Ok(Async { readiness, end })
    }
}

impl<E: End, R: Readiness> Async<E, R> {
    /// Takes an end into tasks, to be woken by `readiness`, which watches the descriptor it is given; it may keep it for longer
    /// than the end lives.
    ///
    /// # Errors
    ///
    /// As [`Watched::new`], and [`Error::Os`] if `readiness` fails. The end is dropped.
    pub fn with(
        end: E,
        readiness: impl FnOnce(Arc<OwnedFd>) -> io::Result<R>,
    ) -> Result<Async<E, R>, Error> {
        let end = Watched::new(end)?;
        let readiness =
            readiness(end.descriptor().clone()).map_err(Error::os("watch a lane in a runtime"))?;
        Ok(Async { readiness, end })
    }

    /// The end.
    pub fn get_ref(&self) -> &E {
        &self.end
    }

    /// The end, for its `try_` forms. Its blocking forms would hold up the executor. Do not exchange it for another.
    pub fn get_mut(&mut self) -> &mut E {
        &mut self.end
    }

    /// The end, out of tasks.
    pub fn into_inner(self) -> E {
        self.end.into_inner()
    }
}

impl<E: End + fmt::Debug, R: Readiness> fmt::Debug for Async<E, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end: &E = &self.end;
        f.debug_tuple("Async").field(end).finish()
    }
}

/// Wakes the tasks of an [`Async`] end from memlane's control thread.
#[derive(Debug)]
pub struct ControlThread {
    reactor: Arc<Reactor>,
    id: u32,
    descriptor: Arc<OwnedFd>,
    task: Arc<Task>,
}

impl ControlThread {
    /// Has the control thread watch a descriptor: for [`Async::with`] and [`Connecting::finish_with`](crate::Connecting::finish_with),
    /// where it is what those without a `with` use.
    ///
    /// # Errors
    ///
    /// The kernel's: short of descriptors, or of threads.
    pub fn new(descriptor: Arc<OwnedFd>) -> io::Result<ControlThread> {
        let reactor = Reactor::get()?;
        let task = Arc::new(Task::default());
        let id = reactor.add_task(&descriptor, task.clone())?;
        Ok(ControlThread {
            reactor,
            id,
            descriptor,
            task,
        })
    }
}

impl Readiness for ControlThread {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.task.poll(cx)
    }
}

impl Drop for ControlThread {
    fn drop(&mut self) {
        self.reactor.remove_task(self.id, &self.descriptor);
    }
}

/// Who waits for a descriptor.
#[derive(Debug, Default)]
pub(crate) struct Task(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    ready: bool,
    waker: Option<Waker>,
}

impl Task {
    fn locked(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Cloned before, and dropped after, nothing is locked: a waker can do anything.
        let waker = cx.waker().clone();
        let mut waiting = self.locked();
        if std::mem::take(&mut waiting.ready) {
            return Poll::Ready(Ok(()));
        }
        let before = match &waiting.waker {
            Some(before) if before.will_wake(&waker) => Some(waker),
            _ => waiting.waker.replace(waker),
        };
        drop(waiting);
        drop(before);
        Poll::Pending
    }

    /// The descriptor is readable. Not to be called with a lock held: a waker can do anything.
    pub(crate) fn wake(&self) {
        let waker = {
            let mut waiting = self.locked();
            waiting.ready = true;
            waiting.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
